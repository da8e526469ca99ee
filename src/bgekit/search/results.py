"""Results of a search as a file: Parquet with typed metadata, CSV, JSON lines, JSON or a TREC run, by its ending."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import numpy as np

from ..data.encodings import repair
from ..data.metadata import free_names, plain
from ..errors import ArgumentError, DataError, OutputError
from ..files.atomic import atomic_file, check_free, check_place
from .index import Hit

#: A question with what was found for it, best first.
Answer: TypeAlias = "tuple[str, Sequence[Hit]]"
#: The columns that every table of results has; metadata of the same name gets a number behind.
COLUMNS: Final = ("query", "rank", "id", "score", "text", "passage", "retrieval_score")
#: Rows of a row group of Parquet, which is what is in memory at once.
_ROWS: Final = 8192


def write_results(
    output: str | os.PathLike[str], answers: Iterable[Answer], *, metadata: Any = None, overwrite: bool = False
) -> int:
    """Write the results of questions to a file, which gets its name when all are there.

    `.jsonl` has an object `{"query", "results"}` per question and line, `.json` a list of these objects. `.parquet` and
    `.csv` are tables with a row per result: `query`, `rank`, `id`, `score`, `text`, `passage`, `retrieval_score` (both
    empty where there is none), and the columns of metadata, which have their own types in Parquet. `.trec` is a run as
    trec_eval reads it: `NUMBER Q0 ID RANK SCORE bgekit`, with questions numbered from 1.

    Args:
        output: The file.
        answers: Questions with their results; they are asked for one after another.
        metadata: The pyarrow schema of the metadata of results (`index.metadata.schema`); None without any.
        overwrite: Replace a file that is there.

    Returns:
        The number of results.

    Raises:
        ArgumentError: the ending of the name stands for none of these forms.
        OutputError: the file cannot be written, or is there.
        DataError: an id has white space, which a TREC run cannot have.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.search import index_records, write_results
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> index, _ = index_records(model, read_records("corpus.jsonl"), "index")
        >>> queries = ["where did the cat sit?", "what flows?"]
        >>> write_results("results.parquet", zip(queries, index.ask(model, queries, top_k=3)))
        6
    """
    check_results_file(output, overwrite=overwrite)
    write = _WRITERS[Path(output).suffix.lower()]
    count = 0

    def counted() -> Iterator[Answer]:
        nonlocal count
        for query, hits in answers:
            count += len(hits)
            yield query, hits

    with atomic_file(Path(output)) as file:
        write(file, counted(), metadata)  # type: ignore[arg-type]
    return count


def check_results_file(output: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """See to it, before work is done, that results can be written to a file.

    Raises:
        ArgumentError: the ending of its name stands for no form of results.
        OutputError: it cannot be written, or is there and is not to be replaced.
    """
    if Path(output).suffix.lower() not in _WRITERS:
        raise ArgumentError(
            f"{os.fspath(output)}: results are written as {', '.join(_WRITERS)}; give a name that ends so"
        )
    check_place(output, doing="write the results to")
    if Path(output).is_dir():
        raise OutputError(f"{os.fspath(output)} is a folder; the output must be a file")
    check_free(output, overwrite=overwrite)


def as_object(query: str, hits: Sequence[Hit]) -> dict[str, Any]:
    """A question with its results as JSON takes it."""
    return {"query": query, "results": [hit.to_dict() for hit in hits]}


def _write_lines(file: IO[bytes], answers: Iterable[Answer], metadata: Any) -> None:
    for answer in answers:
        file.write(_json(as_object(*answer)) + b"\n")


def _write_list(file: IO[bytes], answers: Iterable[Answer], metadata: Any) -> None:
    before = b"[\n"
    for answer in answers:
        file.write(before + _json(as_object(*answer)))
        before = b",\n"
    file.write(b"[]\n" if before == b"[\n" else b"\n]\n")


def _json(content: Mapping[str, Any]) -> bytes:
    return repair(json.dumps(content, ensure_ascii=False))[0].encode()


def _write_csv(file: IO[bytes], answers: Iterable[Answer], metadata: Any) -> None:
    names = [] if metadata is None else list(metadata.names)
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow([*COLUMNS, *free_names(names, COLUMNS)])
    for row in _rows(answers, names):
        writer.writerow(map(_cell, row))
        file.write(repair(lines.getvalue())[0].encode())
        lines.seek(0)
        lines.truncate()
    file.write(lines.getvalue().encode())


def _cell(value: Any) -> Any:
    """A value as a cell: lists and truth values as JSON, dates by ISO 8601."""
    value = plain(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | bool) else value


def _write_parquet(file: IO[bytes], answers: Iterable[Answer], metadata: Any) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = (pa.string(), pa.int32(), pa.string(), pa.float32(), pa.string(), pa.int32(), pa.float32())
    kept = [] if metadata is None else list(metadata)
    names = [each.name for each in kept]
    fields = [*zip(COLUMNS, types, strict=True), *zip(free_names(names, COLUMNS), (f.type for f in kept), strict=True)]
    schema = pa.schema(fields)
    rows = _rows(answers, names)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(itertools.islice(rows, _ROWS)):
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _rows(answers: Iterable[Answer], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """A row per result, in the order of `COLUMNS`, then its metadata by name."""
    for query, hits in answers:
        for hit in hits:
            text = None if hit.text is None else repair(hit.text)[0]
            own = (repair(query)[0], hit.rank, repair(hit.id)[0], hit.score, text, hit.passage, hit.retrieval_score)
            yield (*own, *(hit.metadata.get(name) for name in names))


def _write_trec(file: IO[bytes], answers: Iterable[Answer], metadata: Any) -> None:
    for number, (_, hits) in enumerate(answers, 1):
        for hit in hits:
            if not hit.id or len(hit.id.split()) != 1:
                raise DataError(f"the id {hit.id!r} has white space, which a TREC run cannot have: write another form")
            # As few digits as give the number back: trec_eval orders by scores, not by ranks.
            score = np.float32(hit.score)
            file.write(repair(f"{number} Q0 {hit.id} {hit.rank} {score!s} bgekit\n")[0].encode())


_WRITERS: Final[Mapping[str, Callable[[IO[bytes], Iterable[Answer], Any], None]]] = {
    ".parquet": _write_parquet, ".jsonl": _write_lines, ".json": _write_list, ".csv": _write_csv,
    ".trec": _write_trec,
}  # fmt: skip
