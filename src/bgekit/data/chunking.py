"""Documents longer than a model takes -> overlapping passages, cut by tokens at the ends of sentences.

What has headings is cut at each of them first, then between paragraphs, and only what is too long alone within them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, BgekitError
from .markup import PATH, Block, Document, Section, sections
from .records import Record, titled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Characters tokenised at once: the tokenizer's own record of a text is a hundred times the text.
_SLAB: Final = 1 << 18
#: Most records tokenised at once.
_BATCH: Final = 64
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SENTENCE_END: Final = re.compile(r"[.!?。！？…][\"'”’)\]」』）]*$")
_CJK_END: Final = frozenset("。！？」』）")
#: How good a place to cut is.
_PARAGRAPH, _SENTENCE, _WORD, _INSIDE = 3, 2, 1, 0


@dataclass(frozen=True)
class Passage:
    """A part of a text.

    Attributes:
        text: The part, `whole[start:end]`.
        start: Its first character in the whole text.
        end: The character behind its last one.

    Example:
        >>> from bgekit.data import Passage
        >>> text = "One sentence. Another one."
        >>> passage = Passage("Another one.", 14, 26)
        >>> text[passage.start : passage.end] == passage.text
        True
    """

    text: str
    start: int
    end: int


def chunk_text(text: str, tokenizer: PreTrainedTokenizerFast, size: int, overlap: int) -> list[Passage]:
    """Passages of a text; one that is not longer than `size` stays whole.

    Args:
        text: The text.
        tokenizer: Counts tokens, special ones and prompts left out: the caller leaves room for them in `size`.
        size: Maximum number of tokens of a passage. It ends where a paragraph, a sentence or at least a word does, as
            long as that leaves it three quarters of its size.
        overlap: Tokens that neighbours share; down to half of them where a sentence begins there, and fewer where
            that would begin within a word.

    Raises:
        ArgumentError: not 0 <= overlap < size.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import chunk_text
        >>> tokenizer = FlagModel("BAAI/bge-small-en-v1.5").tokenizer
        >>> passages = chunk_text("One cat. " * 40, tokenizer, size=32, overlap=8)
        >>> len(passages) > 2, passages[0].start
        (True, 0)
    """
    chunker = _Chunker(tokenizer, size, overlap)
    return chunker.passages(text, *chunker.spans([text])[0])


def chunk_records(
    records: Iterable[Record], tokenizer: PreTrainedTokenizerFast, size: int, overlap: int
) -> Iterator[Record]:
    """A record for each passage of each record, its id followed by `#0`, `#1`, ...; arguments as `chunk_text`.

    A document with headings has passages of one section each, that begin with the headings that lead there. Paragraphs,
    lists, tables and fences stay whole as far as they fit; rows of tables do in any case, and below the first passage
    of a table stand under its header again. Neighbours within a section share what of these fits the overlap.

    Raises:
        ArgumentError: not 0 <= overlap < size.
        BgekitError: what reading the records raises, after the passages of the records before.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import Record, chunk_records
        >>> tokenizer = FlagModel("BAAI/bge-small-en-v1.5").tokenizer
        >>> records = chunk_records([Record("long", "One cat. " * 40)], tokenizer, size=32, overlap=8)
        >>> next(records).id
        'long#0'
    """
    chunker = _Chunker(tokenizer, size, overlap)
    return chunker.records(records)


def document_of(passage_id: str) -> tuple[str, int]:
    """The id of the document, and the number of the passage in it, of an id that `chunk_records` made."""
    document, _, number = passage_id.rpartition("#")
    return document, int(number)


_Spans = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class _Chunker:
    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: int, overlap: int) -> None:
        if size < 1 or not 0 <= overlap < size:
            raise ArgumentError(
                f"passages of {size} tokens cannot share {overlap}: the overlap must be from 0 to below the size"
            )
        from tokenizers import Tokenizer

        # A copy, because truncation is a state of the tokenizer, which an encoder may be using at the same time.
        self._backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._size, self._overlap = size, overlap

    def records(self, records: Iterable[Record]) -> Iterator[Record]:
        for batch in _batches(records):
            spans = iter(self.spans([record.text for record in batch if record.document is None]))
            for record in batch:
                if record.document is None:
                    texts = [passage.text for passage in self.passages(record.text, *next(spans))]
                    found = [(text, record.line) for text in texts]
                else:
                    found = list(self._of_document(record.document, record.line))
                for number, (text, line) in enumerate(found):
                    yield replace(record, id=f"{record.id}#{number}", text=text, line=line, document=None)

    def _of_document(self, document: Document, line: int) -> Iterator[tuple[str, int]]:
        """Passages of a document, with the lines of their headings."""
        for section in sections(document):
            title = self._title(section.title)
            room = self._size - self._tokens(title)
            while True:
                parts = list(self._sized(room)._parts(section))
                texts = [titled(title, part) for part, _ in parts]
                # Beside a title, or cut out of the whole, a text can have more tokens than it had.
                cut = (text for text, (_, row) in zip(texts, parts, strict=True) if not row)
                excess = max(map(self._tokens, cut), default=0) - self._size
                if excess <= 0 or room == 1:
                    break
                room = max(1, room - excess)
            yield from ((text, section.line if document.first_line else line) for text in texts)

    def _parts(self, section: Section) -> Iterator[tuple[str, bool]]:
        """Parts of a section, without its title, and whether they are a row of a table that is longer than the size."""
        text = section.text
        starts, ends = self.spans([text])[0]
        if len(starts) <= self._size:
            yield text, False
            return
        blocks = list(self._blocks(section.blocks, starts))
        firsts = np.searchsorted(starts, [block.start for block in blocks])
        lasts = np.searchsorted(starts, [block.end for block in blocks])
        heads = {header: self._tokens(header) for header in {block.header for block in blocks}}
        first = 0
        while first < len(blocks):
            head, room = self._head(blocks[first], heads)
            last = first + 1
            while last < len(blocks) and lasts[last] - firsts[first] <= room:
                last += 1
            start, end = blocks[first].start, blocks[last - 1].end
            long = bool(lasts[last - 1] - firsts[first] > room)
            if long and blocks[first].kind != "row":
                inside = slice(firsts[first], lasts[first])
                found = self.passages(text[start:end], starts[inside] - start, ends[inside] - start)
                yield from ((passage.text, False) for passage in found)
            else:
                yield head + text[start:end], long
            if last == len(blocks):
                return
            first = next(
                (
                    each for each in range(first + 1, last)
                    if lasts[last - 1] - firsts[each] <= self._overlap
                    and lasts[last] - firsts[each] <= self._head(blocks[each], heads)[1]
                ),
                last,
            )  # fmt: skip

    def _blocks(self, blocks: Iterable[Block], starts: npt.NDArray[np.int64]) -> Iterator[Block]:
        """Blocks, those that are longer than the size as the blocks that they consist of."""
        for block in blocks:
            first, last = np.searchsorted(starts, [block.start, block.end])
            if block.parts and last - first > self._size:
                yield from self._blocks(block.parts, starts)
            else:
                yield block

    def _head(self, block: Block, tokens: dict[str, int]) -> tuple[str, int]:
        """The header of the table that a passage begins in, unless it takes half of the size, and the room below it."""
        if not block.header or 2 * tokens[block.header] > self._size:
            return "", self._size
        return f"{block.header}\n", self._size - tokens[block.header]

    def _title(self, path: str) -> str:
        """The headings that lead to a section, without the first of them where all take more than half of the size."""
        names = path.split(PATH)
        while names and 2 * self._tokens(PATH.join(names)) > self._size:
            del names[0]
        return PATH.join(names)

    def _sized(self, size: int) -> _Chunker:
        sized = copy.copy(self)
        sized._size, sized._overlap = size, min(self._overlap, size - 1)
        return sized

    def _tokens(self, text: str) -> int:
        return len(self._backend.encode(_SURROGATE.sub("\ufffd", text), add_special_tokens=False).ids)

    def spans(self, texts: Sequence[str]) -> list[_Spans]:
        """First and last-but-one characters of the tokens of each text."""
        slabs = [(index, start, part) for index, text in enumerate(texts) for start, part in _slabs(text)]
        # Character by character, so that places in it are places in the original.
        valid = [_SURROGATE.sub("\ufffd", part) for _, _, part in slabs]
        encodings = self._backend.encode_batch(valid, add_special_tokens=False)
        found: list[list[npt.NDArray[np.int64]]] = [[np.empty((0, 2), np.int64)] for _ in texts]
        for (index, start, _), encoding in zip(slabs, encodings, strict=True):
            found[index].append(np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2) + start)
        joined = [np.concatenate(parts) for parts in found]
        return [(spans[:, 0], spans[:, 1]) for spans in joined]

    def passages(self, text: str, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[Passage]:
        """Passages of a text whose tokens begin and end at these characters."""
        count = len(starts)
        if count <= self._size:
            return [Passage(text, 0, len(text))]
        found, first = [], 0
        while True:
            last = self._last(text, starts, ends, first)
            start, end = int(starts[first]), int(ends[last - 1])
            found.append(Passage(text[start:end], start, end))
            if last >= count:
                return found
            first = self._next_first(text, starts, ends, first, last)

    def _last(self, text: str, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], first: int) -> int:
        """The token behind the passage that begins with token `first`."""
        limit = first + self._size
        while True:
            last = self._best_cut(text, starts, ends, first, limit) if limit < len(starts) else len(starts)
            # A part of a text can have more tokens than it had within the whole: half a word, or a word that has
            # lost the space before it.
            excess = self._tokens(text[starts[first] : ends[last - 1]]) - self._size
            if excess <= 0 or last - first == 1:
                return last
            limit = max(first + 1, last - excess)

    def _best_cut(
        self, text: str, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], first: int, limit: int
    ) -> int:
        # Far enough behind `first` that the next passage begins behind it, too.
        least = min(limit, max(first + (limit - first) * 3 // 4, first + self._overlap + 1))
        best, best_value = limit, _INSIDE
        for cut in range(limit, least - 1, -1):
            value = _value_of_cut(text, starts, ends, cut)
            if value > best_value:
                best, best_value = cut, value
                if value == _PARAGRAPH:
                    break
        return best

    def _next_first(
        self, text: str, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], first: int, last: int
    ) -> int:
        """The next passage's first token: where a sentence begins, if half of the overlap is left, or else a word."""
        earliest = max(first + 1, last - self._overlap)
        values = [_value_of_cut(text, starts, ends, cut) for cut in range(earliest, last)]
        for least, tokens in ((_SENTENCE, len(values) // 2), (_WORD, len(values))):
            for skipped, value in enumerate(values[:tokens]):
                if value >= least:
                    return earliest + skipped
        # Writing without spaces, or a word as long as the overlap.
        return earliest


def _value_of_cut(text: str, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], cut: int) -> int:
    """How good a place it is to cut before token `cut`."""
    before, after = int(ends[cut - 1]), int(starts[cut])
    # Some tokenizers count the space before a word as the word's, others do not.
    while after < len(text) and text[after].isspace():
        after += 1
    gap = text[before:after]
    if gap.count("\n") > 1:
        return _PARAGRAPH
    ending = text[max(0, before - 4) : before]
    if "\n" in gap or (_SENTENCE_END.search(ending) and (gap or ending[-1] in _CJK_END)):
        return _SENTENCE
    return _WORD if gap else _INSIDE


def _slabs(text: str) -> Iterator[tuple[int, str]]:
    """Parts of a text that can be tokenised on their own, with their places: they end behind white space."""
    start = 0
    while start < len(text):
        end = start + _SLAB
        if end < len(text):
            spaces = [text.rfind(space, start + _SLAB // 2, end) for space in "\n "]
            end = max(spaces) + 1 or end
        yield start, text[start:end]
        start = end


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    try:
        for record in records:
            batch.append(record)
            characters += len(record.text)
            if len(batch) == _BATCH or characters >= _SLAB:
                yield batch
                batch, characters = [], 0
    except BgekitError:
        # What was read before the record that cannot be read is good.
        yield batch
        raise
    yield batch
