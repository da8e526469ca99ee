"""The card of an embedder or a reranker: all that using it rightly takes, such as prompts, with the source of each.

The order of belief is the checkpoint's own files, then the table of families, then the caller; a caller who
contradicts a known fact is obeyed, with a warning that names both values.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from ..errors import ArgumentError
from .head_files import Output

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
#: What a text is in a search: a query, a document, or a text as it is, which has the card's default prompt, if any.
Role: TypeAlias = Literal["query", "document", "plain"]


class Unset(Enum):
    """Type of the default of arguments for which None has a meaning of its own."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "<from the model card>"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True)
class Prompt:
    r"""Text put before and after an input.

    The suffix survives truncation: a long input is cut so that prefix, text and suffix fit together.

    Attributes:
        prefix: Text before the input.
        suffix: Text after it, always tokenised by itself.
        apart: Tokenise the prefix by itself too, where it could merge with the input's first word (SGPT's brackets).

    Example:
        >>> from bgekit.models import Prompt
        >>> str(Prompt("query: "))
        'query: '
        >>> Prompt.from_format("Find an answer", "Instruct: {}\\nQuery: {}").prefix
        'Instruct: Find an answer\nQuery: '
    """

    prefix: str = ""
    suffix: str = ""
    apart: bool = False

    def __bool__(self) -> bool:
        return bool(self.prefix or self.suffix)

    def __str__(self) -> str:
        return f"{self.prefix}{{text}}{self.suffix}" if self.suffix else self.prefix

    @classmethod
    def from_format(cls, instruction: str | None, template: str = "{}{}") -> Prompt:
        r"""Prompt of an instruction in a template with two slots: instruction, then text.

        The templates are those of FlagEmbedding (`query_instruction_format`), such as
        `"Instruct: {}\nQuery: {}"`; a literal backslash-n, as command lines give it, means a line break.
        No instruction means no prompt, whatever the template.

        Raises:
            ArgumentError: the template does not have exactly two slots `{}`.
        """
        if not instruction:
            return cls()
        before, between, after = _template_parts(template)
        return cls(f"{before}{instruction}{between}", after)

    def in_format(self, template: str, made_with: str | None = None) -> Prompt:
        """The instruction of this prompt in another template (see `from_format`).

        Args:
            template: The template.
            made_with: The template of this prompt; where it has another form, all that it puts before a text is the
                instruction.

        Raises:
            ArgumentError: the template does not have exactly two slots `{}`, or this prompt is not an instruction.
        """
        for known in filter(None, (made_with, template)):
            before, between, after = _template_parts(known)
            bare = self.prefix.removeprefix(before).removesuffix(between)
            if self == Prompt(f"{before}{bare}{between}", after):
                return Prompt.from_format(bare, template)
        if self.apart or self.suffix:
            raise ArgumentError(
                f"the prompt {str(self)!r} is not an instruction that can be put into the format {template!r}: pass one"
            )
        return Prompt.from_format(self.prefix, template)


def _template_parts(template: str) -> tuple[str, str, str]:
    """Texts before, between and after the two slots of a template."""
    parts = template.replace("\\n", "\n").split("{}")
    if len(parts) != 3:
        raise ArgumentError(f"instruction format {template!r} must hold two slots {{}}: the instruction, then the text")
    return parts[0], parts[1], parts[2]


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


def listed(numbers: Sequence[int]) -> str:
    """Ascending numbers for people, runs shortened: "64, 128, 256 to 767"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


#: Fields of a card that manifests and reports leave out: what they do not depend on, or have elsewhere.
_NOT_IN_MANIFESTS: Final = (
    "position_limit", "notice", "sources", "selftest", "calibration", "pretrained_only",
    "matryoshka_dims", "heads",
)  # fmt: skip


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
        position_limit: Maximum number of tokens that the position embeddings allow, None without a fixed limit.
        family: Title of the family in the table, None when the model is unknown there.
        notice: Advice to log once at load.
        sources: Where each field was found.
        selftest: A text and its vector, as stored by `FlagModel.save`, None without.
        calibration: What similarities mean (`bge calibrate`), with what the model must be for it, None without.
        pretrained_only: Whether the model is not an embedder yet: it must be fine-tuned before its vectors are of use.
        matryoshka_dims: Numbers of leading dimensions that were trained to be embeddings, too (Matryoshka,
            arXiv:2205.13147); empty where nobody says so.
        heads: Outputs beside the dense one that the checkpoint has heads for (BGE-M3 and its kind).

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
    matryoshka_dims: Sequence[int] = ()
    heads: tuple[Output, ...] = ()

    def prompt(self, role: str | None) -> Prompt:
        """The prompt of a role; a role without one has the empty prompt."""
        return self.prompts.get(role, Prompt()) if role else Prompt()

    def to_dict(self) -> dict[str, Any]:
        """The card as plain values, for manifests and reports; prompts as [prefix, suffix]."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _NOT_IN_MANIFESTS} | {
            "prompts": {role: [prompt.prefix, prompt.suffix] for role, prompt in self.prompts.items()},
            "dense": [layer.folder for layer in self.dense],
        }


#: Key of `config.json` under which `FlagReranker.save` keeps what no field of transformers says.
CONFIG_KEY: Final = "bgekit_reranker"


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
        position_limit: Maximum number of tokens that the position embeddings allow, None without a fixed limit.
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


#: Fields whose difference between an adapter and its base is said.
_SAID: Final = ("pooling", "normalize", "query", "document", "max_length", "similarity", "lower_case", "include_prompt")
#: Fields that are prompts.
_PROMPTS: Final = ("query", "document")


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

    def add_adapter(self, adapter: Path, values: Mapping[str, Any], base: Mapping[str, Any]) -> None:
        """Take what an adapter's own files say, if no other has said it; differences to its base are logged."""
        for key, value in values.items():
            if key in _SAID and key in base and value != base[key] and key not in self.values:
                logger.warning(
                    "%s of the adapter %s is %r, that of its base %s is %r: the adapter's is used",
                    key, adapter, _shown(value), self.name, _shown(base[key]),
                )  # fmt: skip
        self.add(f"adapter {adapter}", values)

    def override(self, source: str, values: Mapping[str, Any]) -> None:
        """Take the values whatever is known; where they contradict, say both.

        That is a warning, but for prompts: another one is a choice, unless it is the known one without its last space.
        """
        for key, value in values.items():
            known, where = self.values.get(key), self.sources.get(key, "default")
            if where != "default" and value != known and not _is_off(key, value):
                chosen = key in _PROMPTS
                cut = chosen and str(value) == str(known).rstrip()
                logger.log(
                    logging.INFO if chosen and not cut else logging.WARNING,
                    "%s of %s is %r according to the %s, but the caller says %r: the caller's is used%s",
                    key, self.name, _shown(known), where, _shown(value),
                    "; it lacks the space at its end" if cut else "",
                )  # fmt: skip
            self.values[key], self.sources[key] = value, source


def _is_off(key: str, value: Any) -> bool:
    # Leaving a prompt away, or cutting texts earlier, is a choice and not a contradiction.
    return (key in _PROMPTS and not value) or key == "max_length"


def _shown(value: Any) -> Any:
    """A value as a message has it."""
    return str(value) if isinstance(value, Prompt) else value
