"""Texts -> token ids: checked, cleaned, cut at the maximum length, and counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, TextTypeError
from ..models.prompts import Prompt

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
    """

    ids: list[list[int]]
    truncated: list[int] = field(default_factory=list)
    prompt_length: int = 0


def check_text(text: object, index: int) -> str:
    """`text` if it is a string.

    Raises:
        TextTypeError: it is not; the message names its index.
    """
    if not isinstance(text, str):
        raise TextTypeError(
            f"texts must be strings, but the one at index {index} is {text!r:.80} ({type(text).__name__})"
        )
    return text


def repair(text: str) -> tuple[str, bool]:
    """The text as valid Unicode, and whether it had to be changed.

    Surrogate pairs become the character they stand for, lone surrogates become U+FFFD.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), True
    return text, False


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a checkpoint.

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
    return tokenizer  # type: ignore[no-any-return]


class TextTokenizer:
    """Texts -> ids with one prompt, truncated at one length. Safe to use from several threads.

    The Rust tokenizer holds its truncation setting as state; this class owns a copy and never changes it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: Prompt, max_length: int) -> None:
        from tokenizers import Tokenizer

        # A copy through its serialised form: the settings of the original stay as they are.
        self._backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._prefix = prompt.prefix
        self._max_length = max_length
        self._suffix = self._plain_ids(prompt.suffix)
        self._trailing = self._trailing_specials()
        room = max_length - len(self._suffix)
        if room <= self._backend.num_special_tokens_to_add(False):
            raise CheckpointError(f"max_length={max_length} leaves no room for a text beside its special tokens")
        self._backend.enable_truncation(room)
        self.prompt_length = self._prompt_length()

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token ids of valid Unicode texts."""
        if self._prefix:
            texts = [self._prefix + text for text in texts]
        encodings = self._backend.encode_batch_fast(texts) if len(texts) > 1 else [self._backend.encode(texts[0])]
        ids = [encoding.ids for encoding in encodings]
        room = self._max_length - len(self._suffix)
        truncated = [i for i, encoding in enumerate(encodings) if len(ids[i]) >= room and len(encoding.overflowing) > 0]
        if self._suffix:
            ids = [self._with_suffix(row) for row in ids]
        return Tokens(ids, truncated, self.prompt_length)

    def _with_suffix(self, ids: list[int]) -> list[int]:
        end = len(ids) - self._trailing
        return ids[:end] + self._suffix + ids[end:]

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids) if text else []

    def _trailing_specials(self) -> int:
        # What the tokenizer appends after every text, such as [SEP] or </s>.
        with_specials, plain = (
            self._backend.encode("a").ids,
            self._backend.encode("a", add_special_tokens=False).ids,
        )
        for start in range(len(with_specials) - len(plain) + 1):
            if with_specials[start : start + len(plain)] == plain:
                return len(with_specials) - start - len(plain)
        return 0

    def _prompt_length(self) -> int:
        # As sentence-transformers counts it for include_prompt=False: the prompt alone, less what follows a text.
        return len(self._backend.encode(self._prefix).ids) - self._trailing if self._prefix else 0
