"""Map of an index: a Parquet file of texts, vectors and neighbours, near copies and lone texts marked.

The columns are those that embedding-atlas reads (`--text text --vector vector --neighbors neighbors`); pandas, DuckDB
and polars read them, too.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..data.encodings import repair
from ..data.metadata import free_names
from ..display.terminal import Progress
from ..errors import ArgumentError, DataError, OutputError, check_count
from ..files.atomic import atomic_file, check_place, scratch_folder
from .index import SearchIndex
from .neighbors import EXACT_UP_TO, Neighbors, find_neighbors
from .storage import Stored

#: Other texts kept of each.
NEIGHBORS: Final = 15
#: Cosine from which two texts count as near copies.
NEAR_THRESHOLD: Final = 0.95
#: Share of the texts that can be lone ones.
LONE_SHARE: Final = 0.01
#: The columns that every map has; metadata of the same name gets a number behind.
COLUMNS: Final = ("id", "text", "vector", "neighbors", "near_copy", "lone")
#: Key of the file's own metadata that says how it was made.
FACTS_KEY: Final = b"bgekit"
#: Rows of a row group, which is what is in memory at once.
_ROWS: Final = 8192


@dataclass(frozen=True)
class MapReport:
    """Record of a map that was written.

    Attributes:
        texts: Rows.
        dimension: Width of the vectors.
        model_name: The model that made them.
        neighbors: Other texts kept of each.
        method: How these were found: `exact`, `hnsw` or `ivf`.
        near_copies: Texts with another one at least `near_threshold` similar.
        near_threshold: A cosine.
        lone: Texts whose nearest other text is less similar than that of 99 % of the texts.
        lone_below: The similarity that it lies below; None without lone texts.
        columns: Names of the columns of metadata, as they are in the file.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.search import MapReport, index_records, write_map
        >>> index, _ = index_records(FlagModel("BAAI/bge-small-en-v1.5"), read_records("corpus.jsonl"), "index")
        >>> isinstance(write_map(index, "map.parquet"), MapReport)
        True
    """

    texts: int
    dimension: int
    model_name: str
    neighbors: int
    method: str
    near_copies: int
    near_threshold: float
    lone: int
    lone_below: float | None
    columns: tuple[str, ...]


def write_map(
    index: SearchIndex | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    neighbors: int = NEIGHBORS,
    near_threshold: float = NEAR_THRESHOLD,
    metadata: Any = None,
    show_progress: bool | None = None,
    exact_up_to: int = EXACT_UP_TO,
) -> MapReport:
    """Write the map of an index, or of a folder of shards, to a Parquet file.

    Columns: `id`, `text`, metadata, `near_copy`, `lone` (true or false), `neighbors` (`ids`: rows from 0, the text's
    own first, and `distances`: 1 - cosine) and `vector` (float32, of fixed length).

    A near copy has another text at least `near_threshold` similar to it. Lone texts are those whose nearest other text
    is less similar than that of 99 % of all texts: at most one in a hundred, none where there are fewer than a hundred.

    Memory does not grow with the vectors, which are mapped (approximate neighbours need the graph in memory); what is
    kept of each text beside them takes 5 bytes.

    Args:
        index: The index, or the folder of one or of shards with texts (`bge encode --store-texts`).
        output: The file, whose name ends in .parquet.
        neighbors: Other texts kept of each.
        near_threshold: Cosine, above -1 and at most 1.
        metadata: A pyarrow table with a row per text, in order; by default the metadata that the index keeps.
        show_progress: A bar on stderr; None for one on a terminal where there is much to do.
        exact_up_to: Texts up to which all are compared with all; above, an approximate index names candidates.

    Raises:
        ArgumentError: an argument is impossible, or the table has another number of rows.
        DataError: the shards keep no texts, or there is none.
        OutputError: the index is damaged, or the file cannot be written.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.search import index_records, write_map
        >>> index, _ = index_records(FlagModel("BAAI/bge-small-en-v1.5"), read_records("corpus.jsonl"), "index")
        >>> report = write_map(index, "map.parquet", neighbors=3)
        >>> report.texts, report.method, report.lone
        (6, 'exact', 0)
    """
    check_count("neighbors", neighbors, "texts")
    check_near_threshold(near_threshold)
    check_map_file(output)
    opened = index if isinstance(index, SearchIndex) else SearchIndex.load(index)
    if not len(opened):
        raise DataError(f"{opened.folder} holds no vectors: there is nothing to map")
    if opened.live.row(0)[1] is None:
        raise DataError(f"{opened.folder} keeps no texts: encode with --store-texts, or map the files themselves")
    table = opened.metadata if metadata is None else metadata
    if table is not None and table.num_rows != len(opened):
        raise ArgumentError(f"metadata must have a row per text, {len(opened):,}, not {table.num_rows:,}")
    path = Path(output)
    with scratch_folder(path) as scratch:
        with Progress("compare", "texts", len(opened), show=show_progress) as bar:
            found = find_neighbors(opened, neighbors, scratch, advance=bar.advance, exact_up_to=exact_up_to)
        near, lone, lone_below = _marks(found, near_threshold)
        names = free_names([] if table is None else table.column_names, COLUMNS)
        report = MapReport(
            len(opened), opened.dimension, opened.facts.model_name, found.ids.shape[1] - 1, found.method,
            int(near.sum()), near_threshold, int(lone.sum()), lone_below, tuple(names),
        )  # fmt: skip
        named = None if table is None else table.rename_columns(names)
        with Progress("write", "texts", len(opened), show=show_progress) as bar:
            _write(path, opened.live, found, near, lone, named, report, bar)
    return report


def columns_of_map(index: SearchIndex) -> list[str]:
    """Names of the columns that the map of an index has."""
    table = index.metadata
    return [*COLUMNS, *([] if table is None else free_names(table.column_names, COLUMNS))]


def check_near_threshold(threshold: float) -> None:
    """Raise ArgumentError unless a threshold is a cosine that not all pairs reach."""
    if not -1 < threshold <= 1:
        raise ArgumentError(f"near_threshold is a cosine, above -1 and at most 1, not {threshold}")


def check_map_file(output: str | os.PathLike[str]) -> None:
    """See to it, before work is done, that a map can be written there, under a name by which it is known for one.

    Raises:
        ArgumentError: the name does not end in .parquet.
        OutputError: it cannot be written.
    """
    if Path(output).suffix.lower() != ".parquet":
        raise ArgumentError(f"{os.fspath(output)}: a map is a Parquet file; give a name that ends in .parquet")
    if Path(output).is_dir():
        raise OutputError(f"{os.fspath(output)} is a folder; the output must be a file")
    check_place(output, doing="write the map")


def _marks(found: Neighbors, threshold: float) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], float | None]:
    """Near copies [rows], lone texts [rows], and the similarity that the nearest neighbour of these lies below."""
    rows, width = found.ids.shape
    if width == 1:
        return np.zeros(rows, bool), np.zeros(rows, bool), None
    # A distance is rounded twice: a threshold of 1 still means copies.
    similarity = 1 - np.asarray(found.distances[:, 1])
    near = similarity >= threshold - 1e-6
    least = int(rows * LONE_SHARE)
    if least == 0:
        return near, np.zeros(rows, bool), None
    below = float(np.partition(similarity, least)[least])
    lone = (similarity < below) & ~near
    return near, lone, below if lone.any() else None


def _write(
    path: Path, stored: Stored, found: Neighbors, near: npt.NDArray[np.bool_], lone: npt.NDArray[np.bool_],
    metadata: Any, report: MapReport, bar: Progress,
) -> None:  # fmt: skip
    import pyarrow as pa
    from pyarrow import parquet

    vectors, pairs = pa.list_(pa.float32(), stored.dimension), {"ids": pa.int32(), "distances": pa.float32()}
    neighbors = pa.struct([(name, pa.list_(type_)) for name, type_ in pairs.items()])
    kept = [] if metadata is None else list(metadata.schema)
    marks = [pa.field("near_copy", pa.bool_()), pa.field("lone", pa.bool_())]
    fields = [("id", pa.string()), ("text", pa.string()), *kept, *marks, ("neighbors", neighbors), ("vector", vectors)]
    facts = {FACTS_KEY: json.dumps(report.__dict__)}
    schema = pa.schema(fields, metadata=facts)
    # As Arrow takes them: a lone surrogate becomes U+FFFD.
    rows = ((repair(key)[0], repair(text or "")[0]) for key, text in stored.rows())
    # Numbers that hardly ever come twice gain nothing by a dictionary, which takes time.
    repeated = [field.name for field in kept]
    with (
        atomic_file(path) as file,
        parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeated) as writer,
    ):
        for first in range(0, stored.count, _ROWS):
            end = min(first + _ROWS, stored.count)
            ids, texts = zip(*itertools.islice(rows, end - first), strict=True)
            width = found.ids.shape[1]
            starts = pa.array(np.arange(0, (end - first) * width + 1, width, dtype=np.int32))
            lists = [
                pa.ListArray.from_arrays(starts, pa.array(np.ascontiguousarray(each[first:end]).reshape(-1)))
                for each in (found.ids, found.distances)
            ]
            numbers = np.ascontiguousarray(stored.vectors(np.arange(first, end)), dtype=np.float32)
            columns = [
                pa.array(ids, pa.string()),
                pa.array(texts, pa.string()),
                *([] if metadata is None else metadata.slice(first, end - first).combine_chunks().columns),
                pa.array(near[first:end]),
                pa.array(lone[first:end]),
                pa.StructArray.from_arrays(lists, names=list(pairs)),
                pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), stored.dimension),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            bar.advance(end - first)
