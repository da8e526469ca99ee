"""`from FlagEmbedding import FlagModel, FlagReranker` still works: a thin alias of bgekit.

Not to be installed beside the original FlagEmbedding, which provides a package of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bgekit.errors import ArgumentError, BgekitError
from bgekit.models.card import UNSET, Pooling, Unset
from bgekit.models.families import model_name

from . import _paths

if TYPE_CHECKING:
    from bgekit import BGEM3FlagModel, FlagModel, FlagReranker

__all__ = ["BGEM3FlagModel", "FlagAutoModel", "FlagAutoReranker", "FlagModel", "FlagReranker"]

_LANGUAGE_MODEL = (
    "rerankers on language models are not in bgekit; FlagReranker(name) takes every cross-encoder with a "
    "classification head, such as BAAI/bge-reranker-v2-m3"
)
#: Names of FlagEmbedding 1.2 to 1.4 that are not here -> what to do.
MISSING = {
    "FlagLLMModel": "use FlagModel(name): last-token pooling and the instruction come from the model's card",
    "FlagICLModel": "use FlagModel(name) for its vectors without in-context examples",
    "FlagPseudoMoEModel": "models with experts by domain are not in bgekit",
    "LLMEmbedder": "use FlagModel(name) with the instruction of your task as query_instruction_for_retrieval",
    "FlagLLMReranker": _LANGUAGE_MODEL,
    "LayerWiseFlagLLMReranker": _LANGUAGE_MODEL,
    "LightWeightFlagLLMReranker": _LANGUAGE_MODEL,
    "AbsReranker": "rerankers have no base class here: FlagReranker is the one there is",
    "AbsEmbedder": "the base class of embedders is bgekit.Embedder",
    "EmbedderModelClass": "no model class is needed: FlagModel(name) finds out what a model is",
    "RerankerModelClass": "no model class is needed: FlagReranker(name) finds out what a model is",
}
#: Kinds of FlagAutoModel -> the class that it is here.
_MODEL_CLASSES = {
    "encoder-only-base": "FlagModel", "decoder-only-base": "FlagModel", "encoder-only-m3": "BGEM3FlagModel"
}  # fmt: skip


class NotOfferedError(BgekitError, ImportError):
    """A name of the original FlagEmbedding that bgekit does not have; the message says what to use instead."""


def not_offered(name: str, instead: str) -> NotOfferedError:
    """The error for a name or module path of the original that is not here."""
    return NotOfferedError(
        f"this FlagEmbedding is the alias package of bgekit, which has {', '.join(__all__)} but no {name}: "
        f"{instead}. To use the original, install it in an environment without bgekit."
    )


class FlagAutoModel:
    """The entry point of FlagEmbedding 1.3 and later: a `BGEM3FlagModel` where it gives that, else a `FlagModel`."""

    def __init__(self) -> None:
        raise ArgumentError("FlagAutoModel is not made itself; call FlagAutoModel.from_finetuned(name)")

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str,
        model_class: str | None = None,
        normalize_embeddings: bool | Unset = UNSET,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | Unset | None = UNSET,
        devices: str | int | list[str] | list[int] | None = None,
        pooling_method: Pooling | None = None,
        trust_remote_code: bool | None = None,
        query_instruction_format: str | None = None,
        truncate_dim: int | None = None,
        **options: Any,
    ) -> FlagModel | BGEM3FlagModel:
        """The model; what is left out comes from its card, its instruction too.

        Args:
            model_name_or_path: A folder, a Hugging Face id, or `packaged:NAME`.
            model_class: `encoder-only-m3` gives a `BGEM3FlagModel`, as models that are called bge-m3 do without it;
                `encoder-only-base` and `decoder-only-base` give a `FlagModel`.
            normalize_embeddings: As in `FlagModel`.
            use_fp16: As in `FlagModel`.
            use_bf16: As in `FlagModel`.
            query_instruction_for_retrieval: As in `FlagModel`: None or "" for none.
            devices: As in `FlagModel`.
            pooling_method: As in `FlagModel`; None for the card's.
            trust_remote_code: As in `FlagModel`; None for no.
            query_instruction_format: As in `FlagModel`.
            truncate_dim: As in `FlagModel`.
            options: Further arguments of the class.

        Raises:
            ArgumentError: `model_class` names a kind that is not here.
        """
        kind = getattr(model_class, "value", model_class)
        if kind is None:
            kind = "encoder-only-m3" if model_name(model_name_or_path) == "bge-m3" else "encoder-only-base"
        if kind not in _MODEL_CLASSES:
            raise ArgumentError(
                f"model_class={kind!r} is not in bgekit; leave it out, and FlagModel gives the model's dense vectors"
            )
        return __getattr__(_MODEL_CLASSES[kind])(  # type: ignore[no-any-return]
            model_name_or_path,
            pooling_method=UNSET if pooling_method is None else pooling_method,
            normalize_embeddings=normalize_embeddings,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            query_instruction_format=query_instruction_format,
            devices=devices,
            truncate_dim=truncate_dim,
            trust_remote_code=bool(trust_remote_code),
            **options,
        )


class FlagAutoReranker:
    """The entry point of FlagEmbedding 1.3 and later; every model is a `FlagReranker` here."""

    def __init__(self) -> None:
        raise ArgumentError("FlagAutoReranker is not made itself; call FlagAutoReranker.from_finetuned(name)")

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str,
        model_class: str | None = None,
        use_fp16: bool = False,
        trust_remote_code: bool | None = None,
        **options: Any,
    ) -> FlagReranker:
        """A `FlagReranker`.

        Args:
            model_name_or_path: A folder, a Hugging Face id, or `packaged:NAME`.
            model_class: Not needed: `encoder-only-base` is accepted.
            use_fp16: As in `FlagReranker`.
            trust_remote_code: As in `FlagReranker`; None for no.
            options: Further arguments of `FlagReranker`.

        Raises:
            ArgumentError: `model_class` names a kind that is not here.
        """
        kind = getattr(model_class, "value", model_class)
        if kind not in (None, "encoder-only-base"):
            raise ArgumentError(f"model_class={kind!r} is not in bgekit: {_LANGUAGE_MODEL}")
        return __getattr__("FlagReranker")(  # type: ignore[no-any-return]
            model_name_or_path, use_fp16=use_fp16, trust_remote_code=bool(trust_remote_code), **options
        )


def __getattr__(name: str) -> Any:
    if name in ("BGEM3FlagModel", "FlagModel", "FlagReranker"):
        import bgekit

        return getattr(bgekit, name)
    if name in ("bge_m3", "flag_models", "flag_reranker", "inference"):  # The original's own imports make these attributes.
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    if name in MISSING:
        # Not an AttributeError: Python would replace its text in `from FlagEmbedding import ...`.
        raise not_offered(name, MISSING[name])
    here = ", ".join(__all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it is an alias of bgekit, with {here}")


def __dir__() -> list[str]:
    return sorted(__all__)


_paths.install()
