"""Parts of an index beside its vectors: what is written for each segment in the pass that writes its rows, and read.

bm25/   postings of the words of each text (`postings`), and lengths.npy, the number of words of each row, int32 [n]

Like all files of a segment these never change; a part that an index gets later lies in a folder with the number of the
change (`bm25-000007`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from ..errors import ArgumentError, OutputError
from ..files.atomic import OutputFolder
from ..inference.shards import mapped
from . import words
from .bm25 import Bm25
from .postings import Postings, WordPostings, kept_in, write_postings
from .storage import Facts, Segment, Stored

Part = Literal["bm25"]
#: What an index can have beside its vectors.
PARTS: Final = ("bm25",)
_LENGTHS: Final = "lengths.npy"
#: Where blocks of postings wait to be merged; what a killed process left of it goes with other unfinished work.
_SCRATCH: Final = "building-update-postings"


def check_parts(parts: Sequence[str]) -> None:
    """See to it that an index can have these parts.

    Raises:
        ArgumentError: there is none of a name.
    """
    for name in parts:
        if name not in PARTS:
            raise ArgumentError(f"parts of an index are {', '.join(PARTS)}, not {name!r}; its vectors need no name")


def parts_with(facts: Facts, parts: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """What index.json is to say of the parts of an index that has some more."""
    made = {"bm25": {"words": words.VERSION}}
    known = {**(facts.parts or {})}
    for name in parts:
        known.setdefault(name, made[name])
    if not facts.settings["store_texts"] and "bm25" in known:
        raise ArgumentError(
            "the words of texts cannot be taken where no texts are kept: encode with --store-texts, or index the files"
        )
    return known or None


class SegmentParts:
    """The parts of one segment, written row by row."""

    def __init__(self, output: OutputFolder, folder: str, names: Mapping[str, Any], generation: int | None) -> None:
        self._output, self._names = output, names
        self._prefix = f"{folder}/" if folder else ""
        self._suffix = "" if generation is None else f"-{generation:06d}"
        scratch = output.path / _SCRATCH
        keep = kept_in(scratch)
        self._words = WordPostings(keep) if "bm25" in names else None

    def add(self, line: bytes) -> None:
        """Take the next row, as `rows.jsonl` has it."""
        if self._words is not None:
            self._words.add(json.loads(line)["text"])

    def write(self) -> dict[str, dict[str, Any]] | None:
        """Write what the rows gave: what index.json says of it."""
        if self._words is None:
            return None
        folder = f"bm25{self._suffix}"
        self._output.create_folder(self._prefix + folder)
        self._words.finish(last=True)
        place = f"{self._prefix}{folder}/"
        sizes = write_postings(lambda name: self._output.create(place + name), self._words.blocks)
        with self._output.create(place + _LENGTHS) as file:
            np.save(file, np.frombuffer(self._words.lengths, np.int32))  # type: ignore[arg-type]
        self._output.sync(self._prefix + folder)
        return {"bm25": {"folder": folder, **sizes}}


@contextlib.contextmanager
def segment_parts(
    output: OutputFolder, folder: str, names: Mapping[str, Any] | None, generation: int | None = None
) -> Iterator[SegmentParts]:
    """What writes the parts of a segment; a context manager.

    Args:
        output: The index folder.
        folder: Where in it the segment lies.
        names: What index.json says of parts.
        generation: Number of the change, where the segment is there already.
    """
    try:
        yield SegmentParts(output, folder, names or {}, generation)
    finally:
        shutil.rmtree(output.path / _SCRATCH, ignore_errors=True)


def add_parts(
    output: OutputFolder, segment: Segment, stored: Stored, names: Mapping[str, Any], generation: int
) -> dict[str, dict[str, Any]]:
    """Write parts that a segment lacks: what index.json says of all that it then has."""
    there = segment.parts or {}
    lacking = {name: made for name, made in names.items() if name not in there}
    with segment_parts(output, segment.folder, lacking, generation) as parts:
        for line in stored.lines():
            parts.add(line)
        return there | (parts.write() or {})


class OpenParts:
    """The parts of a segment, open.

    Raises:
        OutputError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, segment: Segment) -> None:
        self.words: Postings | None = None
        known = (segment.parts or {}).get("bm25")
        if known is not None:
            place = folder / known["folder"]
            self.words = Postings.open(place, **{name: known[name] for name in ("terms", "bytes", "postings")})
            self.lengths = mapped(place / _LENGTHS, (segment.count,))


def open_bm25(facts: Facts, parts: Sequence[tuple[int, OpenParts]], deleted: Any) -> Bm25:
    """BM25 over all segments of an index.

    Args:
        facts: What its index.json says.
        parts: First row and open parts of each segment.
        deleted: Whether each row is deleted [rows]; None where none is.

    Raises:
        ArgumentError: the index lacks the part.
        OutputError: its words were taken otherwise than those of queries would be.
    """
    known = (facts.parts or {}).get("bm25")
    if known is None:
        raise ArgumentError(
            "the index has no words to search by: give --parts bm25 once, which takes them from its texts (in Python "
            "index_records(..., parts=['bm25']))"
        )
    if known["words"] != words.VERSION:
        raise OutputError("the words of the index were taken by another version of bgekit: build the index again")
    postings = [(first, each.words) for first, each in parts if each.words is not None]
    lengths = [each.lengths for _, each in parts if each.words is not None]
    return Bm25(postings, np.concatenate(lengths) if lengths else np.empty(0, np.int32), deleted)
