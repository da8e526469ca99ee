"""Where words begin among the tokens of a text, so that words are masked whole."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: What SentencePiece and byte-level BPE write in place of the space before a word.
_SPACES: Final = ("\u2581", "\u0120")
#: Scripts written without spaces (first and last character): Thai, Lao, Myanmar, Khmer, kana, Chinese characters.
#: There each token that begins with a character of its own counts as a word.
_UNSPACED: Final = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip
#: Tokens of the longest word; what is longer (a URL, base64) is masked token by token.
_LONGEST: Final = 24


class Words:
    """Finds word starts in what a fast tokenizer returns.

    A word is what the tokenizer takes apart on its own: for BERT a run of letters and digits (pieces after the first
    have `##`), one mark of punctuation, or one Chinese character; for SentencePiece and byte-level BPE what begins with
    a space. Those two do not separate the characters of scripts without spaces, which is done here.

    Args:
        backend: The Rust tokenizer.
    """

    def __init__(self, backend: Any) -> None:
        self._wordpiece = json.loads(backend.to_str())["model"]["type"] == "WordPiece"

    def starts(self, text: str, encoding: Any) -> npt.NDArray[np.bool_]:
        """[tokens] bool: whether a token begins a word.

        Args:
            text: The text.
            encoding: What the tokenizer made of it, without special tokens.
        """
        numbers = np.array([-1 if number is None else number for number in encoding.word_ids], dtype=np.int64)
        begins = np.ones(len(numbers), dtype=np.bool_)
        begins[1:] = (numbers[1:] != numbers[:-1]) | (numbers[1:] < 0)
        if not self._wordpiece and not begins.all():
            tokens, offsets = encoding.tokens, encoding.offsets
            for position in np.flatnonzero(~begins).tolist():
                begins[position] = tokens[position].startswith(_SPACES) or _apart(
                    text, offsets[position - 1], offsets[position]
                )
        return _short(begins)


def _apart(text: str, before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether a character without spaces around it ends or begins between two tokens, none being cut by them."""
    if after[0] < before[1] or not 0 < before[1] <= len(text) or after[0] >= len(text):
        return False  # Both hold bytes of one character.
    return _unspaced(text[after[0]]) or _unspaced(text[before[1] - 1])


def _unspaced(character: str) -> bool:
    code = ord(character)
    return code >= _UNSPACED[0][0] and any(first <= code <= last for first, last in _UNSPACED)


def _short(begins: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Words that are too long taken apart."""
    if not len(begins):
        return begins
    sizes = np.diff(np.append(np.flatnonzero(begins), len(begins)))
    return begins | np.repeat(sizes > _LONGEST, sizes)
