"""The card of a reranker: length, prompts and all else that using it rightly takes, with the source of each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import CardError
from .card import UNSET, Facts, shown
from .config import DEFAULT_MAX_LENGTH, checked_length, declared_dtype, position_limit, read_config
from .families import find_family
from .prompts import Prompt
from .weights import read_json, stored_dtype

logger = logging.getLogger(__name__)
#: Key of `config.json` under which `FlagReranker.save` keeps what no field of transformers says.
CONFIG_KEY: Final = "bgekit_reranker"
CLASSIFIER: Final = "ForSequenceClassification"


@dataclass(frozen=True)
class RerankerCard:
    """Card of a reranker: all that using it rightly takes.

    Attributes:
        name: Name or path that the caller gave.
        labels: Outputs of its head: 1 is the score itself; of 2 the second less the first is.
        max_length: Longest pair in tokens, special tokens included.
        query: Text around queries.
        document: Text around passages.
        architecture: Model type of transformers, such as `xlm-roberta`.
        position_limit: Most tokens that the position embeddings allow, None without a fixed limit.
        dtype: Type of the stored weights.
        sources: Where each field was found.

    Example:
        >>> from bgekit import FlagReranker
        >>> card = FlagReranker("BAAI/bge-reranker-base").card
        >>> card.labels
        1
    """

    name: str
    labels: int
    max_length: int
    query: Prompt = Prompt()
    document: Prompt = Prompt()
    architecture: str = ""
    position_limit: int | None = None
    dtype: str = "float32"
    sources: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The entry `CONFIG_KEY` of the config."""
        return {
            "max_length": self.max_length,
            "query": [self.query.prefix, self.query.suffix],
            "document": [self.document.prefix, self.document.suffix],
        }


def read_reranker_card(
    folder: Path, name: str | None = None, *, adapters: Sequence[Path] = (), **caller: Any
) -> RerankerCard:
    """The card of the cross-encoder in `folder`.

    Args:
        folder: A checkpoint with its `config.json`.
        name: The name the caller used.
        adapters: As in `read_card`.
        caller: Fields that the caller sets: `query`, `document` (prompts), `max_length`; values that are `UNSET`
            are ignored.

    Raises:
        CardError: the model is no sequence classifier, or one of more than two classes.
        CheckpointError: a file is missing or damaged.

    Example:
        >>> from bgekit.models import read_reranker_card, resolve
        >>> read_reranker_card(resolve("BAAI/bge-reranker-base")).labels
        1
    """
    name = name or str(folder)
    config = read_config(folder)
    facts = Facts(name)
    for adapter in adapters:
        facts.add(f"adapter {adapter}", _adapter_facts(adapter, name, _own_facts(config)))
    facts.add("checkpoint", _own_facts(config))
    facts.add("checkpoint", {"labels": label_count(config)})
    if (dtype := stored_dtype(folder)) is not None:
        facts.add("checkpoint", {"dtype": dtype})
    facts.add("config.json", {"dtype": declared_dtype(config) or "float32"})
    facts.add("default", {"max_length": _default_length(folder, config), "query": Prompt(), "document": Prompt()})
    facts.override("caller", {key: value for key, value in caller.items() if value is not UNSET})
    known, sources = facts.values, facts.sources
    _refuse_others(name, config, known["labels"])
    return RerankerCard(
        name=name,
        labels=known["labels"],
        max_length=checked_length(known["max_length"], sources["max_length"], config, name),
        query=known["query"],
        document=known["document"],
        architecture=str(config.get("model_type", "")),
        position_limit=position_limit(config),
        dtype=known["dtype"],
        sources=sources,
    )


def label_count(config: Mapping[str, Any]) -> int:
    """Outputs of a classifier's head by its config; transformers takes 2 where it does not say."""
    if isinstance(config.get("id2label"), dict):
        return len(config["id2label"])
    return int(config.get("num_labels") or 2)


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says that it is a sequence classifier."""
    return any(CLASSIFIER in kind for kind in config.get("architectures") or ())


def _refuse_others(name: str, config: Mapping[str, Any], labels: int) -> None:
    architectures = config.get("architectures") or []
    if architectures and not is_classifier(config):
        family = find_family(name)
        if any("ForCausalLM" in kind for kind in architectures) and family is not None and family.kind == "reranker":
            raise CardError(
                f"{name!r} is a language model that answers 'Yes' or 'No' ({architectures[0]}); FlagReranker takes "
                f"cross-encoders with a classification head (...{CLASSIFIER}), such as BAAI/bge-reranker-v2-m3"
            )
        raise CardError(
            f"{name!r} is no reranker: its config.json says {architectures[0]}, not ...{CLASSIFIER}. "
            "For text vectors use FlagModel."
        )
    if labels > 2:
        classes = list((config.get("id2label") or {}).values())[:5]
        raise CardError(
            f"{name!r} tells {labels} classes apart ({', '.join(map(str, classes))}): a reranker has one output, "
            "the score, or two, not relevant and relevant"
        )


def _own_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    stored = config.get(CONFIG_KEY)
    if not isinstance(stored, dict):
        return {}
    facts: dict[str, Any] = {"max_length": stored["max_length"]} if "max_length" in stored else {}
    return facts | {role: Prompt(*stored[role]) for role in ("query", "document") if role in stored}


def _adapter_facts(adapter: Path, name: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an adapter's own files; differences to its base are logged."""
    own = _own_facts(read_json(adapter / "config.json")) if (adapter / "config.json").is_file() else {}
    for key, value in own.items():
        if key in base and value != base[key]:
            logger.warning(
                "%s of the adapter %s is %r, that of its base %s is %r: the adapter's is used",
                key, adapter, shown(value), name, shown(base[key]),
            )  # fmt: skip
    return own


def _default_length(folder: Path, config: Mapping[str, Any]) -> int:
    """Length as in FlagEmbedding: 512 tokens, or fewer where the tokenizer or the network takes fewer."""
    path = folder / "tokenizer_config.json"
    stated = read_json(path).get("model_max_length") if path.is_file() else None
    limits = [DEFAULT_MAX_LENGTH, position_limit(config) or DEFAULT_MAX_LENGTH]
    if isinstance(stated, int | float) and stated > 0:
        limits.append(int(min(stated, DEFAULT_MAX_LENGTH)))
    return min(limits)
