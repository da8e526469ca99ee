"""Parts of an index beside its vectors: what is written for each segment in the pass that writes its rows, and read.

bm25/          postings of the words of each text (`postings`); lengths.npy, the number of words of each row, int32 [n]
lexical/       postings of the tokens of each text with the weights that a model gives them; tokens.npy, the same row by row,
               and offsets.npy, where those of each row begin [n + 1]
multi-vector/  vectors.npy, vectors of the tokens of all texts in float16 [tokens, d], and offsets.npy

Like all files of a segment these never change; a part that an index gets later lies in a folder with the number of the
change (`bm25-000007`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, NumericalError, OutputError
from ..files.atomic import OutputFolder
from ..inference.ragged import LEXICAL, Ragged
from ..inference.shards import mapped
from ..models.head_files import Output
from . import words
from .postings import Postings, TokenPostings, WordPostings, kept_in, write_postings

#: What an index can have beside its vectors, and of which output of a model it is made; "" where texts are enough.
PARTS: Final[dict[str, Output | None]] = {"bm25": None, "lexical": "sparse", "multi-vector": "multi-vector"}
_LENGTHS, _OFFSETS = "lengths.npy", "offsets.npy"
#: What a part has row by row.
_VALUES: Final = {"lexical": "tokens.npy", "multi-vector": "vectors.npy"}
#: Where blocks of postings wait to be merged; what a killed process left of it goes with other unfinished work.
_SCRATCH: Final = "building-update-postings"
#: Texts whose values are read at once.
_BLOCK: Final = 1024


def check_parts(parts: Collection[str]) -> None:
    """See to it that an index can have these parts.

    Raises:
        ArgumentError: there is none of a name.
    """
    for name in parts:
        if name not in PARTS:
            raise ArgumentError(f"parts of an index are {', '.join(PARTS)}, not {name!r}; its vectors need no name")


def outputs_of(parts: Collection[str]) -> list[Output]:
    """What a model computes of a text for an index with some parts."""
    return ["dense", *(output for name, output in PARTS.items() if output is not None and name in parts)]


def facts_of_parts(
    parts: Collection[str], settings: Mapping[str, Any], there: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]] | None:
    """What index.json is to say of parts; None without any.

    Args:
        parts: Those that are wanted.
        settings: Settings of the encode.
        there: What it says of those that the index has.

    Raises:
        ArgumentError: what one is made of was not kept.
    """
    known = {**(there or {})}
    for name, output in PARTS.items():
        if name not in parts or name in known:
            continue
        if output is None:
            if not settings["store_texts"]:
                raise ArgumentError(
                    "the words of texts cannot be taken where no texts are kept: encode with --store-texts, or index "
                    "the files"
                )
            known[name] = {"words": words.VERSION}
        elif output not in settings.get("outputs", ()):
            raise ArgumentError(
                f"the part {name} is made by the model, which has to read all texts again: give the files with --parts "
                f"{name} (in Python index_records(..., parts=[{name!r}])), or encode them with --outputs dense {output}"
            )
        else:
            known[name] = {"head": settings["heads"][output]}
            known[name] |= {"width": settings["token_dimension"]} if name == "multi-vector" else {}
    return known or None


class SegmentParts:
    """The parts of one segment, written while its rows are read."""

    def __init__(self, output: OutputFolder, folder: str, names: Mapping[str, Any], generation: int | None) -> None:
        if names.get("bm25", {}).get("words", words.VERSION) != words.VERSION:
            raise OutputError("the words of the index were taken by another version of bgekit: build the index again")
        self._output, self._names = output, names
        self._prefix = f"{folder}/" if folder else ""
        self._suffix = "" if generation is None else f"-{generation:06d}"
        self._keep = kept_in(output.path / _SCRATCH)
        self._words = WordPostings(self._keep) if "bm25" in names else None
        self._made: dict[str, dict[str, Any]] = {}

    def add(self, line: bytes) -> None:
        """Take the next row, as `rows.jsonl` has it."""
        if self._words is not None:
            self._words.add(json.loads(line)["text"])

    def add_values(self, name: str, blocks: Iterable[Ragged]) -> None:
        """Write a part that a model computed: what all rows have.

        Raises:
            NumericalError: a number of a vector is too large for the part.
        """
        folder = self._folder(name)
        kind = LEXICAL if name == "lexical" else np.dtype(np.float16)
        postings = TokenPostings(self._keep) if name == "lexical" else None
        offsets, total = [np.zeros(1, np.int64)], 0
        place = self._output.path / folder / f"{_VALUES[name]}.part"
        try:
            # How many there are is known at the end, and stands at the beginning of the file.
            with place.open("wb") as file:
                for block in blocks:
                    values = _as(block.values, kind)
                    file.write(np.ascontiguousarray(values).tobytes())
                    offsets.append(block.offsets[1:] + total)
                    total += len(values)
                    if postings is not None:
                        postings.add(block)
            shape: tuple[int, ...] = (total,) if name == "lexical" else (total, self._names[name]["width"])
            with self._output.create(f"{folder}/{_VALUES[name]}") as made, place.open("rb") as whole:
                header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(made, header)  # type: ignore[arg-type]
                while part := whole.read(1 << 24):
                    made.write(part)
        finally:
            place.unlink(missing_ok=True)
        self._save(f"{folder}/{_OFFSETS}", np.concatenate(offsets))
        sizes = {}
        if postings is not None:
            postings.finish(last=True)
            sizes = write_postings(lambda file: self._output.create(f"{folder}/{file}"), postings.blocks, np.float32)
        self._finish(name, folder, {"values": total, **sizes, **({"width": shape[1]} if len(shape) > 1 else {})})

    def write(self) -> dict[str, dict[str, Any]] | None:
        """Write the words of the rows: what index.json says of all parts."""
        if self._words is not None:
            folder = self._folder("bm25")
            self._words.finish(last=True)
            sizes = write_postings(lambda file: self._output.create(f"{folder}/{file}"), self._words.blocks)
            self._save(f"{folder}/{_LENGTHS}", np.frombuffer(self._words.lengths, np.int32))
            self._finish("bm25", folder, sizes)
        return {name: self._made[name] for name in self._names} or None

    def _folder(self, name: str) -> str:
        folder = f"{self._prefix}{name}{self._suffix}"
        self._output.create_folder(folder)
        return folder

    def _save(self, name: str, array: npt.NDArray[Any]) -> None:
        with self._output.create(name) as file:
            np.save(file, array)  # type: ignore[arg-type]

    def _finish(self, name: str, folder: str, sizes: Mapping[str, int]) -> None:
        self._output.sync(folder)
        self._made[name] = {"folder": folder.removeprefix(self._prefix), **sizes}


def _as(values: npt.NDArray[Any], kind: np.dtype[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):  # Looked for in the next line.
        found = values.astype(kind, copy=False)
    if kind == np.float16 and not np.isfinite(found).all():
        raise NumericalError("a vector of a token is too large for 16 bits, in which an index keeps them")
    return found


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


class OpenParts:
    """The parts of a segment, open: all are mapped from the start.

    Attributes:
        postings: Of `bm25` and `lexical`.
        lengths: Words of each row [n], with `bm25`.
        rows: What `lexical` and `multi-vector` have row by row.

    Args:
        folder: Folder of the segment.
        count: Its rows.
        known: What index.json says of its parts.

    Raises:
        OutputError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, count: int, known: Mapping[str, Mapping[str, Any]] | None) -> None:
        self.postings: dict[str, Postings] = {}
        self.rows: dict[str, Ragged] = {}
        self.lengths: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        for name, facts in (known or {}).items():
            place = folder / facts["folder"]
            if name != "multi-vector":
                sizes = {each: facts[each] for each in ("terms", "bytes", "postings")}
                self.postings[name] = Postings.open(place, **sizes)
            if name == "bm25":
                self.lengths = mapped(place / _LENGTHS, (count,))
            else:
                width = (facts["width"],) if name == "multi-vector" else ()
                values = mapped(place / _VALUES[name], (facts["values"], *width))
                self.rows[name] = Ragged(values, np.asarray(mapped(place / _OFFSETS, (count + 1,))))

    def blocks(self, name: str) -> Iterator[Ragged]:
        """What a part has row by row, in blocks."""
        whole = self.rows[name]
        for first in range(0, len(whole), _BLOCK):
            offsets = whole.offsets[first : first + _BLOCK + 1]
            yield Ragged(whole.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def taken(whole: Ragged, rows: npt.NDArray[np.int64]) -> Ragged:
    """Some rows of what a part has row by row, copied."""
    return Ragged.of([np.asarray(whole[row]) for row in rows.tolist()], whole.values)


def joined(blocks: Sequence[Ragged]) -> Ragged:
    """Blocks one after another."""
    return Ragged.of([row for block in blocks for row in block], blocks[0].values)
