"""The model card: pooling, prompts, length and all else that using a model rightly takes, with the source of each.

The order of belief is the checkpoint's own files, then the table of families, then the caller; a caller who
contradicts a known fact is obeyed, with a warning that names both values.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, get_args

from .prompts import Prompt

logger = logging.getLogger(__name__)
Pooling = Literal["cls", "mean", "max", "weighted_mean", "last_token"]
POOLINGS: Final = get_args(Pooling)
#: Our name of each pooling -> the flag and the name that sentence-transformers writes for it.
SENTENCE_TRANSFORMERS_POOLING: Final[Mapping[str, tuple[str, str]]] = {
    "cls": ("pooling_mode_cls_token", "cls"),
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "max": ("pooling_mode_max_tokens", "max"),
    "weighted_mean": ("pooling_mode_weightedmean_tokens", "weightedmean"),
    "last_token": ("pooling_mode_lasttoken", "lasttoken"),
}
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]


class Unset(Enum):
    """Type of the default of arguments for which None has a meaning of its own."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "<from the model card>"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True)
class DenseLayer:
    """A `Dense` module of sentence-transformers: activation(x W^T + b) after pooling.

    Attributes:
        folder: Folder of the module inside the checkpoint.
        activation: Last part of the activation's class name, such as `Tanh` or `Identity`.
    """

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class ModelCard:
    """Card of an embedder: all that using it rightly takes.

    Attributes:
        name: Name or path that the caller gave.
        pooling: How token vectors become one vector.
        normalize: Whether vectors are scaled to unit length.
        prompts: Text around inputs by role: `query`, `document`, and others that the checkpoint defines.
        max_length: Longest input in tokens, special tokens included.
        dimension: Width of the vectors.
        similarity: `cosine`, `dot`, `euclidean` or `manhattan`.
        lower_case: Whether texts are lowercased before they are tokenised, whatever the tokenizer does by itself.
        include_prompt: Whether the prompt's tokens take part in pooling (INSTRUCTOR excludes them).
        default_prompt: Role whose prompt a plain `encode` uses, None for no prompt.
        dense: Dense layers after pooling.
        dtype: Type of the stored weights.
        architecture: Model type of transformers, such as `bert`.
        position_limit: Most tokens that the position embeddings allow, None without a fixed limit.
        family: Title of the family in the table, None when the model is unknown there.
        notice: Advice to log once at load.
        sources: Where each field was found.
        selftest: A text and its vector, as stored by `FlagModel.save`, None without.
        calibration: What similarities mean (`bge calibrate`), with what the model must be for it, None without.
        pretrained_only: Whether the model is no embedder yet: it must be fine-tuned before its vectors mean anything.

    Example:
        >>> from bgekit import FlagModel
        >>> card = FlagModel("BAAI/bge-small-en-v1.5").card
        >>> card.pooling, card.normalize, card.dimension
        ('cls', True, 384)
        >>> card.prompts["query"].prefix
        'Represent this sentence for searching relevant passages: '
    """

    name: str
    pooling: Pooling
    normalize: bool
    prompts: Mapping[str, Prompt]
    max_length: int
    dimension: int
    similarity: Similarity = "cosine"
    lower_case: bool = False
    include_prompt: bool = True
    default_prompt: str | None = None
    dense: tuple[DenseLayer, ...] = ()
    dtype: str = "float32"
    architecture: str = ""
    position_limit: int | None = None
    family: str | None = None
    notice: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    selftest: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    pretrained_only: bool = False

    def prompt(self, role: str | None) -> Prompt:
        """The prompt of a role; a role without one has the empty prompt."""
        return self.prompts.get(role, Prompt()) if role else Prompt()

    def to_dict(self) -> dict[str, Any]:
        """The card as plain values, for manifests and reports; prompts as [prefix, suffix]."""
        return {
            "name": self.name,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "prompts": {role: [prompt.prefix, prompt.suffix] for role, prompt in self.prompts.items()},
            "max_length": self.max_length,
            "dimension": self.dimension,
            "similarity": self.similarity,
            "lower_case": self.lower_case,
            "include_prompt": self.include_prompt,
            "default_prompt": self.default_prompt,
            "dense": [layer.folder for layer in self.dense],
            "dtype": self.dtype,
            "architecture": self.architecture,
            "family": self.family,
        }


class Facts:
    """Values with their sources; the first source of a field is believed, a caller overrides it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def add(self, source: str, values: Mapping[str, Any]) -> None:
        """Take the values of fields that are not known yet."""
        for key, value in values.items():
            if key not in self.values:
                self.values[key], self.sources[key] = value, source

    def override(self, source: str, values: Mapping[str, Any]) -> None:
        """Take the values whatever is known, with a warning that names both where they contradict."""
        for key, value in values.items():
            known, where = self.values.get(key), self.sources.get(key, "default")
            if where != "default" and value != known and not _is_off(key, value):
                logger.warning(
                    "%s of %s is %r according to the %s, but the caller says %r: the caller's is used",
                    key, self.name, shown(known), where, shown(value),
                )  # fmt: skip
            self.values[key], self.sources[key] = value, source


def _is_off(key: str, value: Any) -> bool:
    # Leaving a prompt away, or cutting texts earlier, is a choice and not a contradiction.
    return (key in ("query", "document") and not value) or key == "max_length"


def shown(value: Any) -> Any:
    """A value as a message has it."""
    return str(value) if isinstance(value, Prompt) else value
