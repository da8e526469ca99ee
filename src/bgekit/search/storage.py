"""Storage of an index on disk: vectors in blocks, the id and text of each row, and what index.json says of them.

An index folder holds segments, whose files never change once index.json names them:

vectors.npy     vectors [n, dimension]
rows.jsonl      a line a vector: {"id": ..., "text": ...}
offsets.npy     where each line begins [n + 1]
ids.npy         where the rows of a document are [2, n]: sorted hashes of documents' ids, and the row of each
metadata.arrow  columns that were kept, a row per vector; absent without
index.faiss     the graph or the cells, if the index is approximate
bm25/           how often each row has each word, if the index has that part (`parts`)

The first one lies in the folder itself, later ones in folders `segment-000007`, named by the change that made them, as
is `deleted-000007.npy`, a bit for each row that is no longer there. Rows are numbered through all segments. index.json
is replaced in one step, so that a folder holds one state or the next.
"""

from __future__ import annotations

import bisect
import dataclasses
import io
import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..data.metadata import Part, read_table, typed
from ..errors import ArgumentError, OutputError
from ..inference.ragged import LEXICAL, Ragged
from ..inference.shard_stores import json_bytes
from ..inference.shards import ShardSet, mapped
from .parts import OpenParts, taken

VECTORS: Final = "vectors.npy"
ROWS: Final = "rows.jsonl"
OFFSETS: Final = "offsets.npy"
IDS: Final = "ids.npy"
METADATA: Final = "metadata.arrow"
#: Vectors compared at once, and those that are gathered to be compared: these fit into a processor's cache.
_BLOCK: Final = 4096
_GATHERED: Final = 1024


class Stored(ABC):
    """Vectors and rows on disk; only what is looked at is read."""

    count: int
    dimension: int

    @property
    @abstractmethod
    def metadata(self) -> Any:
        """The pyarrow table of what is known of each row beside id and text; None without."""

    def metadata_parts(self) -> Iterator[Part]:
        """The metadata in parts, in order, with what messages call each and its number of rows."""
        yield self.metadata, "the index", self.count

    @abstractmethod
    def blocks(self, rows: int = _BLOCK) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """First row and vectors [rows, dimension] of each block, in order; of so many rows, unless they lie apart."""

    @abstractmethod
    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The vectors of some rows."""

    @abstractmethod
    def part_blocks(self, name: str) -> Iterator[Ragged]:
        """What a part that a model computes (`parts`) has of each row, in order, in blocks."""

    def part_at(self, name: str, rows: npt.NDArray[np.int64]) -> Ragged:
        """The same of some rows."""
        raise NotImplementedError

    @abstractmethod
    def lines(self) -> Iterator[bytes]:
        """The rows as JSON lines, in order."""

    @abstractmethod
    def line(self, row: int) -> bytes:
        """One row as a JSON line: `id`, and `text` if texts are kept."""

    def lines_at(self, rows: npt.NDArray[np.int64]) -> list[bytes]:
        """Some rows as JSON lines."""
        return [self.line(row) for row in rows.tolist()]

    def row(self, row: int) -> tuple[str, str | None]:
        """Id of a row, and its text if texts are kept."""
        return _read_row(row, self.line(row))

    def rows_at(self, rows: npt.NDArray[np.int64]) -> list[tuple[str, str | None]]:
        """The same of some rows."""
        lines = self.lines_at(rows)
        try:
            # One list is read in two thirds of the time of its rows.
            found = [(content["id"], content.get("text")) for content in json.loads(b"[%s]" % b",".join(lines))]
        except (ValueError, KeyError, TypeError, AttributeError):
            found = []
        if len(found) == len(lines):
            return found
        return [_read_row(row, line) for row, line in zip(rows.tolist(), lines, strict=True)]  # Names the damaged one.

    def rows(self) -> Iterator[tuple[str, str | None]]:
        """The same of all rows, in order."""
        for row, line in enumerate(self.lines()):
            yield _read_row(row, line)


def _read_row(row: int, line: bytes) -> tuple[str, str | None]:
    try:
        content = json.loads(line.decode())  # Of bytes it would find out the encoding first.
        return content["id"], content.get("text")
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"row {row} of the index is damaged ({error}); build the index again") from error


class StoredFiles(Stored):
    """The files of one segment: one of vectors, one of rows, and one of where each row begins.

    All are mapped or open from the start: they can be read after a later state of the index has removed them.

    Args:
        folder: The folder.
        count: Vectors in it.
        dimension: Their width.
        columns: Names and types of its metadata; None if it has none, or none is needed.
        parts: What index.json says of its parts; None if it has none, or none is needed.

    Attributes:
        parts: Its parts, open.

    Raises:
        OutputError: a file is missing, damaged, or not the size it should have.
    """

    def __init__(
        self, folder: Path, count: int, dimension: int, columns: dict[str, str] | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.count, self.dimension = folder, count, dimension
        self._vectors = mapped(folder / VECTORS, (count, dimension))
        self._offsets = np.asarray(mapped(folder / OFFSETS, (count + 1,)))  # Of which one number is read sooner.
        self._file = _open(folder / ROWS, int(self._offsets[-1]))
        self.parts = OpenParts(folder, count, parts)
        self._metadata: Any = None
        if columns is not None:
            self._metadata = read_table(folder / METADATA, count)
            if columns_of(self._metadata.schema) != columns:
                raise OutputError(f"{folder / METADATA} belongs to another index; build the index again")

    def is_current(self) -> bool:
        """Whether the files of the folder are those that are open."""
        try:
            there, own = (self.folder / ROWS).stat(), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (there.st_ino, there.st_dev, there.st_mtime_ns) == (own.st_ino, own.st_dev, own.st_mtime_ns)

    @property
    def metadata(self) -> Any:
        """The one table, mapped."""
        return self._metadata

    def metadata_parts(self) -> Iterator[Part]:
        """The one table."""
        yield self._metadata, str(self.folder / METADATA), self.count

    def blocks(self, rows: int = _BLOCK) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Parts of the one array."""
        for first in range(0, self.count, rows):
            yield first, self._vectors[first : first + rows]

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read from the one array."""
        return np.asarray(self._vectors[rows])

    def part_blocks(self, name: str) -> Iterator[Ragged]:
        """Parts of the one file."""
        return self.parts.blocks(name)

    def part_at(self, name: str, rows: npt.NDArray[np.int64]) -> Ragged:
        """Read from the one file."""
        return taken(self.parts.rows[name], rows)

    def lines(self) -> Iterator[bytes]:
        """Read from the one file, from its beginning."""
        rest, position, end = b"", 0, int(self._offsets[-1])
        while position < end:
            part = _read(self._file, position, min(_READ, end - position))
            position += len(part)
            *lines, rest = (rest + part).split(b"\n")
            yield from (line + b"\n" for line in lines)

    def line(self, row: int) -> bytes:
        """Read from its place in the one file."""
        return self.lines_at(np.asarray([row]))[0]

    def lines_at(self, rows: npt.NDArray[np.int64]) -> list[bytes]:
        """Each read from its place in the one file."""
        starts, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        return [_read(self._file, start, end - start) for start, end in zip(starts, ends, strict=True)]


#: Bytes of rows read at once.
_READ: Final = 1 << 20


def _open(path: Path, size: int) -> io.FileIO:
    try:
        file = io.FileIO(path)
    except OSError as error:
        raise OutputError(f"{path} is missing or damaged ({error}); build the index again") from error
    if os.fstat(file.fileno()).st_size != size:
        file.close()
        raise OutputError(f"{path} is missing or damaged; build the index again")
    return file


def _read(file: io.FileIO, position: int, size: int) -> bytes:
    """Bytes of an open file, whose own position is nobody's: several threads and processes may read it."""
    try:
        if hasattr(os, "pread"):
            found = os.pread(file.fileno(), size, position)
        else:
            with open(file.name, "rb") as own:
                own.seek(position)
                found = own.read(size)
    except OSError as error:
        raise OutputError(f"cannot read {file.name!s}: {error.strerror or error}") from error
    if not found and size:
        raise OutputError(f"{file.name!s} is damaged: it ends too early; build the index again")
    return found


class Joined(Stored):
    """Several parts one after another, such as the segments of an index."""

    def __init__(self, parts: Sequence[Stored], dimension: int) -> None:
        self.parts, self.dimension = list(parts), dimension
        #: The first row of each part, and the number of all.
        self.firsts = np.concatenate([[0], np.cumsum([part.count for part in parts], dtype=np.int64)]).astype(np.int64)
        self.count = int(self.firsts[-1])
        self._starts: list[int] = self.firsts[:-1].tolist()

    @cached_property
    def metadata(self) -> Any:
        """The tables of all parts as one, null where a part lacks a column; in memory where types had to change."""
        whole = typed(self.metadata_parts)
        if whole is None:
            return None
        import pyarrow

        return pyarrow.concat_tables(whole[1])

    def metadata_parts(self) -> Iterator[Part]:
        """Those of all parts."""
        for part in self.parts:
            yield from part.metadata_parts()

    def blocks(self, rows: int = _BLOCK) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Those of all parts."""
        for start, part in zip(self.firsts, self.parts, strict=False):
            for first, block in part.blocks(rows):
                yield int(start) + first, block

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read from their parts."""
        found = np.empty((len(rows), self.dimension), dtype=np.float32)
        places = self._part_of(rows)
        for place in np.unique(places):
            chosen = places == place
            found[chosen] = self.parts[place].vectors(rows[chosen] - self.firsts[place])
        return found

    def part_blocks(self, name: str) -> Iterator[Ragged]:
        """Those of all parts."""
        for part in self.parts:
            yield from part.part_blocks(name)

    def part_at(self, name: str, rows: npt.NDArray[np.int64]) -> Ragged:
        """Each read from its part."""
        places = self._part_of(rows)
        order = np.argsort(places, kind="stable")
        found = [
            self.parts[place].part_at(name, rows[places == place] - self.firsts[place]) for place in np.unique(places)
        ]
        whole = [row for block in found for row in block]
        return Ragged.of([whole[place] for place in np.argsort(order).tolist()])

    def lines(self) -> Iterator[bytes]:
        """Those of all parts."""
        for part in self.parts:
            yield from part.lines()

    def lines_at(self, rows: npt.NDArray[np.int64]) -> list[bytes]:
        """Each read from its part."""
        found: list[bytes] = [b""] * len(rows)
        places = self._part_of(rows)
        for place in np.unique(places):
            chosen = np.flatnonzero(places == place)
            lines = self.parts[place].lines_at(rows[chosen] - self.firsts[place])
            for at, line in zip(chosen.tolist(), lines, strict=True):
                found[at] = line
        return found

    def line(self, row: int) -> bytes:
        """Read from its part."""
        place = bisect.bisect_right(self._starts, row) - 1
        return self.parts[place].line(row - self._starts[place])

    def _part_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self.firsts, rows, side="right") - 1


class Selected(Stored):
    """Some rows of what is stored, in order, numbered anew: those that are not deleted."""

    def __init__(self, stored: Stored, rows: npt.NDArray[np.int64]) -> None:
        self._stored, self._rows = stored, rows
        self.count, self.dimension = len(rows), stored.dimension

    @property
    def metadata(self) -> Any:
        """The rows of the table, copied."""
        table = self._stored.metadata
        return None if table is None else table.take(self._rows)

    def metadata_parts(self) -> Iterator[Part]:
        """The rows of the table, copied part by part."""
        table = self._stored.metadata
        for first in range(0, self.count, _SELECTED):
            rows = self._rows[first : first + _SELECTED]
            yield None if table is None else table.take(rows), "the index", len(rows)

    def blocks(self, rows: int = _GATHERED) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Copies of the rows' vectors."""
        step = min(rows, _GATHERED)
        for first in range(0, self.count, step):
            yield first, self._stored.vectors(self._rows[first : first + step])

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read from where they are stored."""
        return self._stored.vectors(self._rows[rows])

    def part_blocks(self, name: str) -> Iterator[Ragged]:
        """Copies of what the rows have."""
        for first in range(0, self.count, _GATHERED):
            yield self._stored.part_at(name, self._rows[first : first + _GATHERED])

    def lines(self) -> Iterator[bytes]:
        """Those of the rows."""
        if self.count * _SPARSE < self._stored.count:
            yield from (self._stored.line(int(row)) for row in self._rows)
            return
        wanted = np.zeros(self._stored.count, dtype=np.bool_)
        wanted[self._rows] = True
        yield from itertools.compress(self._stored.lines(), wanted)

    def line(self, row: int) -> bytes:
        """Read from where it is stored."""
        return self._stored.line(int(self._rows[row]))


class StoredArray(Stored):
    """Vectors in memory; what else rows have is not known."""

    metadata = None

    def __init__(self, vectors: npt.NDArray[Any]) -> None:
        self._vectors = vectors
        self.count, self.dimension = vectors.shape

    def blocks(self, rows: int = _BLOCK) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Parts of the array."""
        for first in range(0, self.count, rows):
            yield first, self._vectors[first : first + rows]

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """A copy of rows of the array."""
        return self._vectors[rows]

    def part_blocks(self, name: str) -> Iterator[Ragged]:
        """There are none."""
        raise KeyError(name)

    def lines(self) -> Iterator[bytes]:
        """There are none."""
        raise NotImplementedError

    def line(self, row: int) -> bytes:
        """There is none."""
        raise NotImplementedError


#: Rows of metadata copied at once, and the share of rows, one in so many, below which each line is read alone.
_SELECTED: Final = 1 << 16
_SPARSE: Final = 16


class StoredShards(Stored):
    """The shards of `bge encode`, searched where they lie."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self.count, self.dimension = len(shards), shards.dimension
        self._entries: list[dict[str, Any]] = shards.manifest["shards"]
        sizes = [entry["texts"] for entry in self._entries]
        self._firsts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._lines = lru_cache(maxsize=8)(self._read_lines)

    @property
    def metadata(self) -> Any:
        """The tables of all shards as one, in memory."""
        return self._shards.metadata

    def metadata_parts(self) -> Iterator[Part]:
        """The table of each shard as it is stored: cells of csv files without types."""
        return self._shards.metadata_parts()

    def blocks(self, rows: int = _BLOCK) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The shards."""
        # Opened again each time: thousands of files kept mapped would be too many open files.
        for shard in range(len(self._entries)):
            yield int(self._firsts[shard]), self._mapped(shard)

    def part_blocks(self, name: str) -> Iterator[Ragged]:
        """Those of the shards."""
        if name == "multi-vector":
            yield from self._shards.multi_vector_parts()
            return
        for weights in self._shards.lexical_parts():
            values = np.empty(len(weights.data), LEXICAL)
            values["token"], values["weight"] = weights.indices, weights.data
            yield Ragged(values, weights.indptr)

    def lines(self) -> Iterator[bytes]:
        """The rows as JSON lines, in order."""
        for shard in range(len(self._entries)):
            yield from self._read_lines(shard)

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read from their shards."""
        found = np.empty((len(rows), self.dimension), dtype=np.float32)
        shards = self._shard_of(rows)
        for shard in np.unique(shards):
            chosen = shards == shard
            found[chosen] = self._mapped(int(shard))[rows[chosen] - self._firsts[shard]]
        return found

    def line(self, row: int) -> bytes:
        """Read from its shard; the last few shards used are kept."""
        shard = int(self._shard_of(np.asarray([row]))[0])
        return self._lines(shard)[row - int(self._firsts[shard])]

    def _shard_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self._firsts, rows, side="right") - 1

    def _mapped(self, shard: int) -> npt.NDArray[Any]:
        entry = self._entries[shard]
        return mapped(self._shards.folder / entry["vectors"], (entry["texts"], self.dimension))

    def _read_lines(self, shard: int) -> list[bytes]:
        entry = self._entries[shard]
        path = self._shards.folder / entry["ids"]
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
        if len(lines) != entry["texts"]:
            raise OutputError(f"{path} has {len(lines)} lines, its shard has {entry['texts']} vectors")
        return lines


FACTS: Final = "index.json"
APPROXIMATE: Final = "index.faiss"
FORMAT: Final = "bgekit index"
#: Version of a folder whose only segment lies in it and has all its rows, which is what 0.1.0 wrote; of others without
#: parts beside the vectors; and of those with.
VERSION_PLAIN: Final = 1
VERSION_DENSE: Final = 2
VERSION: Final = 3
IndexType = Literal["exact", "int8", "binary", "hnsw", "ivf"]
Auto = Literal["auto"]
INDEX_TYPES: Final = ("exact", "int8", "binary", "hnsw", "ivf")


@dataclass(frozen=True)
class Segment:
    """A part of an index, whose files never change.

    Attributes:
        folder: Where its files lie within the index folder; "" for that folder itself.
        count: Vectors in it, deleted ones included.
        metadata: sha256 of its file of metadata, and its columns with their types; None without.
        structure: What an approximate or compressed search of its rows needs: its `type`, its `files` in the folder of
            the segment, and what else its type keeps. None where every vector is looked at.
        parts: Of each part beside the vectors its `folder` in that of the segment, and what its files hold.
    """

    folder: str
    count: int
    metadata: dict[str, Any] | None = None
    structure: dict[str, Any] | None = None
    parts: dict[str, dict[str, Any]] | None = None


@dataclass(frozen=True)
class Facts:
    """Record of how an index was made, and of the files that are its present state.

    Attributes:
        index_type: `exact`, `int8`, `binary`, `hnsw` or `ivf`.
        count: Vectors in it, without those that are deleted.
        dimension: Their width.
        model_card: Card of the model that made them.
        model_fingerprint: Of that model.
        precision: Number format that it computed in.
        settings: Settings of the encode: kind, maximum length, chunk size, fields of the input...
        input: What was encoded, to see whether it has changed; None when that cannot be told.
        metadata: Columns with their types, and of a single segment the sha256 of the file; None without.
        generation: Changes since the index was built; the next one names its files by the next number.
        segments: The parts, in the order of their rows.
        deleted: Name of the file of bits of deleted rows, and how many these are; None where there are none.
        recall: Share of the nearest rows that an approximate search is to find; None for the usual one.
        parts: What each segment has beside its vectors, by name, and how that was made; None for nothing.
    """

    index_type: IndexType
    count: int
    dimension: int
    model_card: dict[str, Any]
    model_fingerprint: str
    precision: str
    settings: dict[str, Any]
    input: Any = field(default=None)
    metadata: dict[str, Any] | None = field(default=None)
    generation: int = 0
    segments: tuple[Segment, ...] = ()
    deleted: dict[str, Any] | None = None
    recall: float | None = None
    parts: dict[str, dict[str, Any]] | None = None

    @property
    def rows(self) -> int:
        """Rows of all segments, deleted ones included."""
        return sum(segment.count for segment in self.segments)

    @property
    def model_name(self) -> str:
        """The name that the model was given by."""
        return str(self.model_card["name"])

    @property
    def similarity(self) -> str:
        """`cosine` or `dot`, or `euclidean` for vectors of length 1."""
        return str(self.model_card["similarity"])

    @property
    def unit_vectors(self) -> bool:
        """Whether all stored vectors have length 1; in float16 they have it only nearly."""
        return bool(self.model_card["normalize"]) and self.settings["dtype"] == "float32"

    @property
    def chunked(self) -> bool:
        """Whether documents were split into passages."""
        return self.settings.get("chunk_size") is not None


def columns_of(schema: Any) -> dict[str, str]:
    """Names and types of the columns of a schema of pyarrow."""
    return {field.name: str(field.type) for field in schema}


def check_similarity(name: str, similarity: str, *, unit_vectors: bool) -> None:
    """Raise ArgumentError if a model's vectors are compared in a way that indexes cannot.

    Of vectors of length 1 the Euclidean distance has the same order as the dot product.
    """
    if similarity == "manhattan" or (similarity == "euclidean" and not unit_vectors):
        raise ArgumentError(
            f"vectors of {name} are compared by their {similarity} distance, indexes by cosine or dot product: score "
            "them with model.similarity"
        )


def facts_of_shards(shards: ShardSet, index_type: IndexType = "exact", source: Any = None) -> Facts:
    """The facts of an index over encoded shards.

    Raises:
        ArgumentError: their vectors are not compared by cosine or dot product.
    """
    manifest = shards.manifest
    card = manifest["model_card"]
    check_similarity(card["name"], card["similarity"], unit_vectors=card["normalize"])
    return Facts(
        index_type, len(shards), shards.dimension, manifest["model_card"], manifest["model_fingerprint"],
        manifest["precision"], manifest["settings"], source,
    )  # fmt: skip


def read_facts(folder: Path) -> Facts:
    """The facts of an index folder.

    Raises:
        OutputError: they are missing, damaged, or of another kind or version.
    """
    path = folder / FACTS
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise OutputError(f"{folder} is not an index: it has no {FACTS}") from error
    except ValueError as error:
        raise OutputError(f"{path} is damaged ({error}); build the index again") from error
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise OutputError(f"{path} does not describe an index; build it in another folder")
    version = content.pop("version", None)
    if version not in (VERSION_PLAIN, VERSION_DENSE, VERSION):
        raise OutputError(
            f"{path} has version {version}; this bgekit knows versions up to {VERSION}. Build the index again"
        )
    names = {each.name for each in dataclasses.fields(Facts)}
    # Written where there is any, so that indexes without stay what they were.
    later = {VERSION_PLAIN: _LATER, VERSION_DENSE: {"parts"}, VERSION: set[str]()}[version]
    optional = {"metadata"} | (_LATER if version == VERSION_PLAIN else {"deleted", "recall", "parts"})
    try:
        if not names - optional <= content.keys() <= names or content.keys() & later:
            raise ValueError("other fields than it should have")
        if version != VERSION_PLAIN:
            segments = tuple(Segment(**each) for each in content.pop("segments"))
            return Facts(**content, segments=segments)
    except (TypeError, ValueError) as error:
        raise OutputError(f"{path} is damaged ({error}); build the index again") from error
    return _with_plain_segment(Facts(**content))


#: What index.json says only where there was a change since the index was built.
_LATER: Final = {"generation", "segments", "deleted", "recall", "parts"}
#: Types that 0.1.0 knows.
_PLAIN_TYPES: Final = ("exact", "hnsw", "ivf")


def _with_plain_segment(facts: Facts) -> Facts:
    """Facts with the one segment that a folder of version 1 is."""
    structure = None if facts.index_type == "exact" else {"type": facts.index_type, "files": [APPROXIMATE]}
    return replace(facts, segments=(Segment("", facts.count, facts.metadata, structure),))


def facts_bytes(facts: Facts) -> bytes:
    """The content of index.json."""
    content = {name: each for name, each in dataclasses.asdict(facts).items() if each is not None or name == "input"}
    plain = facts.index_type in _PLAIN_TYPES and facts == _with_plain_segment(facts) and not facts.generation
    if plain:
        content = {name: value for name, value in content.items() if name not in _LATER}
    else:
        content["segments"] = [
            {name: value for name, value in each.items() if value is not None} for each in content["segments"]
        ]
    version = VERSION_PLAIN if plain else VERSION_DENSE if facts.parts is None else VERSION
    return json_bytes({"format": FORMAT, "version": version, **content})


def open_stored(path: Path, facts: Facts, known: Mapping[str, StoredFiles] | None = None) -> Stored:
    """The files of all segments of an index.

    Args:
        path: The index folder.
        facts: What its index.json says.
        known: Segments that are open already, by folder: their files do not change.

    Raises:
        OutputError: a file is missing or damaged.
    """
    parts = []
    for segment in facts.segments:
        part = (known or {}).get(segment.folder)
        if part is None or not part.is_current():
            columns = None if segment.metadata is None else segment.metadata["columns"]
            part = StoredFiles(path / segment.folder, segment.count, facts.dimension, columns, segment.parts)
        parts.append(part)
    return parts[0] if len(parts) == 1 else Joined(parts, facts.dimension)


def segments_of(stored: Stored) -> list[StoredFiles]:
    """The parts that `open_stored` opened."""
    parts = stored.parts if isinstance(stored, Joined) else [stored]
    return [part for part in parts if isinstance(part, StoredFiles)]


def read_deleted(path: Path, facts: Facts) -> npt.NDArray[np.bool_] | None:
    """Whether each row of an index is deleted, [rows]; None where none is.

    Raises:
        OutputError: the file is missing or damaged.
    """
    if facts.deleted is None:
        return None
    file = path / facts.deleted["file"]
    bits = np.asarray(mapped(file, (-(-facts.rows // 8),)))
    marks = np.unpackbits(bits, count=facts.rows).astype(np.bool_)
    if int(marks.sum()) != facts.deleted["rows"]:
        raise OutputError(f"{file} belongs to another state of the index; build the index again")
    return marks
