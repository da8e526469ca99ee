"""Checked rows on disk: one Arrow file for each file of training data, found again by its content.

The Arrow file is mapped into memory, so data larger than memory is read from the disk as it is needed, and any row
is found in constant time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DataError, OutputError, import_extra
from .columns import BadLines, read_file
from .formats import STDIN, USUAL, Dialect
from .training_rows import Row, row_of, text_key

logger = logging.getLogger(__name__)
Counts: TypeAlias = "npt.NDArray[np.int64]"
#: Part of every name: what an older version wrote is not read.
_VERSION: Final = "2"
#: Rows of a record batch. All but the last have exactly so many, so a row's place follows from its number; with the
#: longest row allowed they stay below the 2 GiB that the offsets of a string column can address.
_BATCH_ROWS: Final = 128
#: Record batches kept open.
_OPEN_BATCHES: Final = 4096
_TEMPORARY: Final = ".tmp"
#: Age in seconds at which an unfinished file is nobody's any more.
_ABANDONED: Final = 24 * 3600
#: Columns that are numbers about a row, not its content: bytes of UTF-8 of the query, and on average of a positive
#: and a negative (which stand for tokens: about 4 bytes each in English, 3 in Chinese); then what was noticed.
_NUMBERS: Final = ("line", "digest", "query_bytes", "positive_bytes", "negative_bytes", "negative_count", "notes")
#: Bits of `notes`. The first two are of texts that are equal up to case and white space: whether they are so to a model
#: is for its tokenizer to say.
POSITIVE_IS_QUERY: Final = 1
NEGATIVE_IS_POSITIVE: Final = 2
HAS_TEACHER: Final = 4
HAS_SCORE: Final = 8


class RowStore:
    """The rows of one file of training data. Can be pickled and used after a fork.

    Attributes:
        path: The Arrow file.
        source: The file of training data, as the user named it.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self._open()

    def _open(self) -> None:
        pyarrow = import_extra("pyarrow", "train")
        ipc = import_extra("pyarrow.ipc", "train")
        # No threads of its own: they would not survive the fork of a data loader's worker.
        options = ipc.IpcReadOptions(use_threads=False)
        try:
            self._reader: Any = ipc.open_file(pyarrow.memory_map(str(self.path)), options=options)
            last = self._reader.num_record_batches - 1
            self._size = last * _BATCH_ROWS + self._reader.get_batch(last).num_rows if last >= 0 else 0
        except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
            raise DataError(f"{self.path} is damaged: {error}") from error
        self._batch = lru_cache(_OPEN_BATCHES)(self._reader.get_batch)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "source": self.source}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.path, self.source = state["path"], state["source"]
        self._open()

    def __len__(self) -> int:
        return self._size

    def row(self, number: int) -> dict[str, Any]:
        """The fields of a row, as `Row` names them; `dataset` and `index` are the caller's."""
        batch = self._batch(number // _BATCH_ROWS)
        position = number % _BATCH_ROWS
        fields = {name: batch.column(name)[position].as_py() for name in _content_fields()}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

    def line(self, number: int) -> int:
        """The line of a row in the file of training data."""
        return int(self._batch(number // _BATCH_ROWS).column("line")[number % _BATCH_ROWS].as_py())

    def column(self, name: str) -> Counts:
        """One of the columns of numbers, [rows] int64."""
        if not len(self):
            return np.empty(0, dtype=np.int64)
        batches = (self._reader.get_batch(number) for number in range(self._reader.num_record_batches))
        return np.concatenate([batch.column(name).to_numpy() for batch in batches]).astype(np.int64)

    def scores(self) -> npt.NDArray[np.float64]:
        """Similarities of scored pairs, [rows] float64; NaN for other rows."""
        batches = (self._reader.get_batch(number) for number in range(self._reader.num_record_batches))
        return np.concatenate([
            np.empty(0), *(batch.column("score").to_numpy(zero_copy_only=False) for batch in batches)
        ]).astype(np.float64)  # fmt: skip

    def values(self, name: str) -> dict[str | None, int]:
        """How often each value of `prompt` or `type` occurs."""
        compute = import_extra("pyarrow.compute", "train")
        counts: dict[str | None, int] = {}
        for number in range(self._reader.num_record_batches):
            for entry in compute.value_counts(self._reader.get_batch(number).column(name)).to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
        return counts


def open_store(source: str, cache: Path, bad: BadLines, dialect: Dialect = USUAL) -> RowStore | None:
    """The rows of a file of training data, checked and stored unless that was done before.

    Args:
        source: The file.
        cache: Folder of stored rows.
        bad: Told about all lines that cannot be used.
        dialect: How the file is written.

    Returns:
        The rows; None if there are bad.

    Raises:
        OutputError: the folder cannot be written.
    """
    if source == STDIN:
        bad.add("standard input", 0, "training data is read more than once; write it to a file first")
        return None
    try:
        path = cache / f"{content_digest(source, dialect)}.arrow"
    except OSError as error:
        bad.add(source, 0, f"cannot be read: {error.strerror or error}")
        return None
    if path.is_file():
        try:
            return RowStore(path, source)
        except DataError as error:
            logger.warning("%s; it is made anew", error)
    before = bad.count
    with _created(path) as temporary:
        _write(source, temporary, bad, dialect)
        if bad.count > before:
            return None
        os.replace(temporary, path)
    return RowStore(path, source)


def content_digest(source: str, dialect: Dialect = USUAL) -> str:
    """sha256 (hex, 40 digits) of a file's content and of how it is read."""
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    # The ending decides the format.
    name = os.path.basename(source).lower()
    form = json.dumps([_VERSION, name.removesuffix(".gz").rpartition(".")[2], *dialect.settings.items()])
    return hashlib.sha256(f"{form}{digest.hexdigest()}".encode()).hexdigest()[:40]


@contextlib.contextmanager
def _created(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; whatever is still there at the end is removed."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f"*{_TEMPORARY}"):
            with contextlib.suppress(OSError):  # Another process was quicker.
                if time.time() - leftover.stat().st_mtime > _ABANDONED:
                    leftover.unlink()
        yield temporary
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write checked training data to {path.parent}: {error.strerror or error}. "
            "Name another folder with --cache_path"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write(source: str, path: Path, bad: BadLines, dialect: Dialect) -> None:
    """Check all rows of a file; write them as long as none is bad."""
    pyarrow = import_extra("pyarrow", "train")
    ipc = import_extra("pyarrow.ipc", "train")
    schema = _schema()
    rows = _checked_rows(source, bad, dialect)
    before = bad.count
    with path.open("wb") as file:
        with ipc.new_file(file, schema) as writer:
            while batch := list(islice(rows, _BATCH_ROWS)):
                if bad.count == before:
                    writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
        file.flush()
        os.fsync(file.fileno())


def _checked_rows(source: str, bad: BadLines, dialect: Dialect) -> Iterator[dict[str, Any]]:
    scored: dict[bool, int] = {}
    try:
        # All lines that are no rows are to be reported, not only the first.
        for line, row in bad.usable(read_file(source, dialect, bad=bad), row_of):
            if scored.setdefault(row.score is not None, line.number) == line.number and len(scored) == 2:
                bad.add(
                    source, line.number,
                    f"it has {'a' if row.score is not None else 'no'} score, other than line {min(scored.values())}: "
                    "put scored pairs and other rows into different files",
                )  # fmt: skip
            yield _record(row, line.number)
    except DataError as problem:
        bad.add(source, 0, problem)


def _record(row: Row, line: int) -> dict[str, Any]:
    positive_keys = {text_key(text) for text in row.positives}
    notes = POSITIVE_IS_QUERY * (text_key(row.query) in positive_keys)
    known = positive_keys | {text_key(row.query)}
    notes |= NEGATIVE_IS_POSITIVE * any(text_key(text) in known for text in row.negatives)
    notes |= HAS_TEACHER * row.has_teacher | HAS_SCORE * (row.score is not None)
    numbers = {
        "line": line, "digest": row.digest, "query_bytes": _mean_bytes((row.query,)),
        "positive_bytes": _mean_bytes(row.positives), "negative_bytes": _mean_bytes(row.negatives),
        "negative_count": len(row.negatives), "notes": notes,
    }  # fmt: skip
    return numbers | {name: getattr(row, name) for name in _content_fields()}


def _mean_bytes(texts: tuple[str, ...]) -> int:
    return sum(len(text.encode()) for text in texts) // len(texts) if texts else 0


def _content_fields() -> tuple[str, ...]:
    return (
        "query", "positives", "negatives", "pos_scores", "neg_scores", "prompt", "type", "score", "batch_size",
    )  # fmt: skip


def _schema() -> Any:
    pyarrow = import_extra("pyarrow", "train")
    texts, scores = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64())
    types = (
        pyarrow.string(), texts, texts, scores, scores, pyarrow.string(), pyarrow.string(), pyarrow.float64(),
        pyarrow.int32(),
    )  # fmt: skip
    columns = [*zip(_content_fields(), types, strict=True), *((name, pyarrow.int64()) for name in _NUMBERS)]
    return pyarrow.schema(columns)
