"""`from FlagEmbedding import FlagModel` goes on working: a thin alias of bgekit.

Not to be installed beside the original FlagEmbedding, which provides a package of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bgekit.errors import ArgumentError, BgekitError
from bgekit.models.card import UNSET, Pooling, Unset

if TYPE_CHECKING:
    from bgekit import FlagModel

__all__ = ["FlagAutoModel", "FlagModel"]

_RERANKER = "rerankers are not in bgekit yet"
#: Names of FlagEmbedding 1.2 to 1.4 that are not here -> what to do.
_MISSING = {
    "BGEM3FlagModel": "bgekit has the dense vectors of BGE-M3: FlagModel(name).encode(texts) gives them as an array",
    "FlagLLMModel": "use FlagModel(name): last-token pooling and the instruction come from the model's card",
    "FlagICLModel": "use FlagModel(name) for its vectors without in-context examples",
    "FlagPseudoMoEModel": "models with experts by domain are not in bgekit",
    "LLMEmbedder": "use FlagModel(name) with the instruction of your task as query_instruction_for_retrieval",
    "FlagReranker": _RERANKER,
    "FlagLLMReranker": _RERANKER,
    "FlagAutoReranker": _RERANKER,
    "LayerWiseFlagLLMReranker": _RERANKER,
    "LightWeightFlagLLMReranker": _RERANKER,
    "AbsReranker": _RERANKER,
    "AbsEmbedder": "the base class of embedders is bgekit.Embedder",
    "EmbedderModelClass": "no model class is needed: FlagModel(name) finds out what a model is",
    "RerankerModelClass": _RERANKER,
}
#: Kinds of FlagAutoModel whose vectors are those of FlagModel.
_MODEL_CLASSES = ("encoder-only-base", "decoder-only-base")


class NotOfferedError(BgekitError, ImportError):
    """A name of the original FlagEmbedding that bgekit does not have; the message says what to use instead."""


class FlagAutoModel:
    """The entry point of FlagEmbedding 1.3 and later; every model is a `FlagModel` here."""

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
    ) -> FlagModel:
        """A `FlagModel`; what is left out comes from the model's card, its instruction too.

        Args:
            model_name_or_path: A folder, a Hugging Face id, or `packaged:NAME`.
            model_class: Not needed: `encoder-only-base` and `decoder-only-base` are accepted.
            normalize_embeddings: As in `FlagModel`.
            use_fp16: As in `FlagModel`.
            use_bf16: As in `FlagModel`.
            query_instruction_for_retrieval: As in `FlagModel`: None or "" for none.
            devices: As in `FlagModel`.
            pooling_method: As in `FlagModel`; None for the card's.
            trust_remote_code: As in `FlagModel`; None for no.
            query_instruction_format: As in `FlagModel`.
            truncate_dim: As in `FlagModel`.
            options: Further arguments of `FlagModel`.

        Raises:
            ArgumentError: `model_class` names a kind whose results are not those of `FlagModel`.
        """
        kind = getattr(model_class, "value", model_class)
        if kind is not None and kind not in _MODEL_CLASSES:
            raise ArgumentError(
                f"model_class={kind!r} is not in bgekit; leave it out, and FlagModel gives the model's dense vectors"
            )
        return __getattr__("FlagModel")(  # type: ignore[no-any-return]
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


def __getattr__(name: str) -> Any:
    if name == "FlagModel":
        from bgekit import FlagModel

        return FlagModel
    if name in _MISSING:
        # Not an AttributeError: Python would replace its text in `from FlagEmbedding import ...`.
        raise NotOfferedError(
            f"this FlagEmbedding is the alias package of bgekit, which has FlagModel and FlagAutoModel but no {name}: "
            f"{_MISSING[name]}. To use the original, install it in an environment without bgekit."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it is an alias of bgekit, with FlagModel")


def __dir__() -> list[str]:
    return sorted(__all__)
