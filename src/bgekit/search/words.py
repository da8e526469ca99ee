"""The words of a text, as everything that compares texts by words takes them: BM25 of searches and of mining."""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Final

#: Chinese, Japanese and Korean characters: there, words have no spaces around them.
CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
#: What an index keeps, so that one whose words were taken otherwise is not searched with others.
VERSION: Final = 1
_WORDS: Final = re.compile(f"[{CJK}]+|[^\\W{CJK}]+")
_ASCII: Final = re.compile(r"\w+", re.ASCII)
_IS_CJK: Final = re.compile(f"[{CJK}]")


def words(text: str) -> list[str]:
    """The words of a text, without case and forms of width; of Chinese and the like its characters and pairs of them.

    Pairs of neighbours need no dictionary, so a name that none has is found, too; docs/hybrid.md compares them with
    words cut by jieba.

    Example:
        >>> from bgekit.search import words
        >>> words("The CAT's 中文")
        ['the', 'cat', 's', '中', '文', '中文']
    """
    if text.isascii():
        return _ASCII.findall(text.lower())
    found: list[str] = []
    for run in _WORDS.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _IS_CJK.match(run):
            found += run
            found += map("".join, itertools.pairwise(run))
        else:
            found.append(run)
    return found
