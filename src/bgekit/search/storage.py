"""Storage of an index on disk: vectors in blocks, and the id and text of each row."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..data.metadata import read_table
from ..errors import ArgumentError, OutputError
from ..files.atomic import OutputFolder
from ..inference.shards import ShardSet, json_bytes, mapped

VECTORS: Final = "vectors.npy"
ROWS: Final = "rows.jsonl"
OFFSETS: Final = "offsets.npy"
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

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """First row and vectors [rows, dimension] of each block, in order."""

    def gathered(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Rows and vectors of blocks of some rows, which are given in order."""
        for first in range(0, len(rows), _GATHERED):
            part = rows[first : first + _GATHERED]
            yield part, self.vectors(part)

    @abstractmethod
    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The vectors of some rows."""

    @abstractmethod
    def lines(self) -> Iterator[bytes]:
        """The rows as JSON lines, in order."""

    @abstractmethod
    def line(self, row: int) -> bytes:
        """One row as a JSON line: `id`, and `text` if texts are kept."""

    def row(self, row: int) -> tuple[str, str | None]:
        """Id of a row, and its text if texts are kept."""
        return _read_row(row, self.line(row))

    def rows(self) -> Iterator[tuple[str, str | None]]:
        """The same of all rows, in order."""
        for row, line in enumerate(self.lines()):
            yield _read_row(row, line)


def _read_row(row: int, line: bytes) -> tuple[str, str | None]:
    try:
        content = json.loads(line)
        return content["id"], content.get("text")
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"row {row} of the index is damaged ({error}); build the index again") from error


class StoredFiles(Stored):
    """An index folder's own files: one of vectors, one of rows, and one of where each row begins.

    Args:
        folder: The folder.
        count: Vectors in it.
        dimension: Their width.
        columns: Names and types of its metadata; None if it has none, or none is needed.

    Raises:
        OutputError: a file is missing, damaged, or not the size it should have.
    """

    def __init__(self, folder: Path, count: int, dimension: int, columns: dict[str, str] | None = None) -> None:
        self._folder, self.count, self.dimension = folder, count, dimension
        self._vectors = mapped(folder / VECTORS, (count, dimension))
        self._offsets = mapped(folder / OFFSETS, (count + 1,))
        self._path = folder / ROWS
        size = self._path.stat().st_size if self._path.is_file() else None
        if size != int(self._offsets[-1]):
            raise OutputError(f"{self._path} is missing or damaged; build the index again")
        self._metadata: Any = None
        if columns is not None:
            self._metadata = read_table(folder / METADATA, count)
            if columns_of(self._metadata.schema) != columns:
                raise OutputError(f"{folder / METADATA} belongs to another index; build the index again")

    @property
    def metadata(self) -> Any:
        """The one table, mapped."""
        return self._metadata

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Parts of the one array."""
        for first in range(0, self.count, _BLOCK):
            yield first, self._vectors[first : first + _BLOCK]

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read from the one array."""
        return np.asarray(self._vectors[rows])

    def lines(self) -> Iterator[bytes]:
        """Read from the one file, from its beginning."""
        with self._path.open("rb") as file:
            yield from file

    def line(self, row: int) -> bytes:
        """Read from its place in the one file."""
        with self._path.open("rb") as file:
            file.seek(int(self._offsets[row]))
            return file.read(int(self._offsets[row + 1] - self._offsets[row]))


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

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The shards."""
        # Opened again each time: thousands of files kept mapped would be too many open files.
        for shard in range(len(self._entries)):
            yield int(self._firsts[shard]), self._mapped(shard)

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
VERSION: Final = 1
IndexType = Literal["exact", "hnsw", "ivf"]
INDEX_TYPES: Final = ("exact", "hnsw", "ivf")


@dataclass(frozen=True)
class Facts:
    """Record of how an index was made.

    Attributes:
        index_type: `exact`, `hnsw` or `ivf`.
        count: Vectors in it.
        dimension: Their width.
        model_card: Card of the model that made them.
        model_fingerprint: Of that model.
        precision: Number format that it computed in.
        settings: Settings of the encode: kind, maximum length, chunk size, fields of the input...
        input: What was encoded, to see whether it has changed; None when that cannot be told.
        metadata: sha256 of the file of metadata, and its columns with their types; None without.
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
    if version != VERSION:
        raise OutputError(f"{path} has version {version}; this bgekit knows version {VERSION}. Build the index again")
    # Written where there is any, so that indexes without stay what they were.
    if content.keys() | {"metadata"} != {each.name for each in dataclasses.fields(Facts)}:
        raise OutputError(f"{path} is damaged (other fields than it should have); build the index again")
    return Facts(**content)


def write_facts(folder: OutputFolder, facts: Facts) -> None:
    """Write index.json, the last file of an index."""
    content = dataclasses.asdict(facts)
    if facts.metadata is None:
        del content["metadata"]
    with folder.create(FACTS) as file:
        file.write(json_bytes({"format": FORMAT, "version": VERSION, **content}))
    folder.sync()
