"""Texts -> token ids: checked, cleaned, cut at the maximum length, and counted."""

from __future__ import annotations

import abc
import array
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import ArgumentError, CheckpointError
from ..models.card import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)


@dataclass
class Tokens:
    """Token ids of some texts.

    Attributes:
        ids: The ids of each text, special tokens included.
        truncated: Positions of the texts that were cut.
        prompt_length: Leading tokens of each text that belong to the prompt (with the opening special token).
        types: The token types of each text, where it is not the first for all.
        starts: Where inputs became several texts each: the first of every input. Its result is their maximum.
        split: Positions of the inputs that became several texts.
        places: Where equal sequences have been merged, the place in `ids` of each sequence that there was.
        keys: Of merged tokens, a digest for each input, the same for inputs whose sequences are the same.
    """

    ids: list[list[int]]
    truncated: list[int] = field(default_factory=list)
    prompt_length: int = 0
    types: list[list[int]] | None = None
    starts: list[int] | None = None
    split: list[int] = field(default_factory=list)
    places: list[int] | None = None
    keys: list[bytes] = field(default_factory=list)


#: The inputs of a block -> their tokens.
Preprocessor: TypeAlias = "Callable[[Sequence[Any]], Tokens]"


@dataclass(frozen=True, kw_only=True)
class Request(abc.ABC):
    """Settings of a call, from which the tokenisation of its inputs is made.

    Attributes:
        batch_size: Most sequences in a batch.
    """

    batch_size: int | None = None

    @abc.abstractmethod
    def preprocessor(self, tokenizer: PreTrainedTokenizerFast) -> Preprocessor:
        """The function from inputs to tokens, safe to call from several threads; `tokenizer` is left as it is."""


@dataclass(frozen=True)
class TextRequest(Request):
    """Settings for encoding texts: prompt and length.

    Attributes:
        prompt: Text around each of them.
        max_length: Most tokens of a text, prompt and special tokens included.
    """

    prompt: Prompt
    max_length: int

    def preprocessor(self, tokenizer: PreTrainedTokenizerFast) -> TextTokenizer:
        """See `Request`."""
        return TextTokenizer(tokenizer, self.prompt, self.max_length)


def merged(tokens: Tokens) -> Tokens:
    """The tokens with each distinct sequence once.

    Texts that differ become equal here: by case for an uncased tokenizer, by white space, by what is cut off.
    Computed in different batches they would be rounded differently.
    """
    keys = [_key(ids) for ids in tokens.ids]
    if tokens.types is not None:
        keys = [_key(types, salt=key) for types, key in zip(tokens.types, keys, strict=True)]
    first: dict[bytes, int] = {}
    kept = [row for row, key in enumerate(keys) if first.setdefault(key, row) == row]
    inputs = keys
    if tokens.starts is not None:
        ends = [*tokens.starts[1:], len(keys)]
        inputs = [_digest(b"".join(keys[start:end])) for start, end in zip(tokens.starts, ends, strict=True)]
    if len(kept) == len(keys):
        return replace(tokens, keys=inputs)
    place = {keys[row]: place for place, row in enumerate(kept)}
    return replace(
        tokens,
        ids=[tokens.ids[row] for row in kept],
        types=None if tokens.types is None else [tokens.types[row] for row in kept],
        places=[place[key] for key in keys],
        keys=inputs,
    )


def _key(numbers: Sequence[int], salt: bytes = b"") -> bytes:
    return _digest(salt + array.array("q", numbers).tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def load_tokenizer(
    folder: Path, *, lower_case: bool = False, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a checkpoint.

    Args:
        folder: The checkpoint.
        lower_case: Lowercase texts first, as the card may say, where the tokenizer does not do so by itself.
        trust_remote_code: Allow tokenizers that the checkpoint brings as Python code.

    Raises:
        CheckpointError: the files are missing or damaged, or there is no fast tokenizer for them.
    """
    names = (
        "tokenizer.json",
        "vocab.txt",
        "vocab.json",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model",
    )
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(f"{folder} has no tokenizer (none of {', '.join(names)})")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        # The tokenizers library raises plain Exception for damaged files.
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder} has only a slow tokenizer; bgekit needs tokenizer.json")
    if lower_case:
        _lower_case(tokenizer.backend_tokenizer)
    return tokenizer  # type: ignore[no-any-return]


def _lower_case(backend: Any) -> None:
    """Have a tokenizer lowercase texts, special tokens in them excepted (as sentence-transformers 6 does)."""
    from tokenizers.normalizers import BertNormalizer, Lowercase, Sequence

    normalizer = backend.normalizer
    steps: list[Any] = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, Sequence):
        steps = list(normalizer)  # type: ignore[call-overload]
    if not any(isinstance(step, Lowercase) or (isinstance(step, BertNormalizer) and step.lowercase) for step in steps):
        backend.normalizer = Sequence([Lowercase(), *steps])


class TextTokenizer:
    """Texts -> ids with one prompt, truncated at one length. Safe to use from several threads.

    The Rust tokenizer holds its truncation setting as state; this class owns a copy and never changes it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: Prompt, max_length: int) -> None:
        from tokenizers import Tokenizer

        # A copy through its serialised form: the settings of the original stay as they are.
        self._backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._leading, self._trailing = self._special_counts()
        self._joined = "" if prompt.apart else prompt.prefix
        self._before = self._plain_ids(prompt.prefix) if prompt.apart else []
        self._after = self._plain_ids(prompt.suffix)
        self.prompt_length = self._prompt_length(prompt.prefix)
        self._room = max_length - len(self._before) - len(self._after)
        if self._room <= self._leading + self._trailing:
            raise ArgumentError(f"max_length={max_length} leaves no room for text beside the special tokens")
        self._backend.enable_truncation(self._room)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token ids of valid Unicode texts."""
        if self._joined:
            texts = [self._joined + text for text in texts]
        encodings = self._backend.encode_batch_fast(texts) if len(texts) > 1 else [self._backend.encode(texts[0])]
        ids = [encoding.ids for encoding in encodings]
        truncated = [
            row for row, encoding in enumerate(encodings) if len(ids[row]) >= self._room and encoding.overflowing
        ]
        if self._before or self._after:
            ids = [self._surrounded(row) for row in ids]
        return Tokens(ids, truncated, self.prompt_length)

    def _surrounded(self, ids: list[int]) -> list[int]:
        start, end = self._leading, len(ids) - self._trailing
        return ids[:start] + self._before + ids[start:end] + self._after + ids[end:]

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids) if text else []

    def _special_counts(self) -> tuple[int, int]:
        """Numbers of tokens that the tokenizer puts before and after every text, such as [CLS] and [SEP]."""
        whole, plain = self._backend.encode("a").ids, self._backend.encode("a", add_special_tokens=False).ids
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return start, len(whole) - start - len(plain)
        return 0, 0

    def _prompt_length(self, prefix: str) -> int:
        # As sentence-transformers counts it for include_prompt=False: the prompt alone, less what follows a text.
        return len(self._backend.encode(prefix).ids) - self._trailing if prefix else 0
