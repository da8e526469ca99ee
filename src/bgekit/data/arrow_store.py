"""Rows on disk as Arrow files: checked training rows, tokens of pre-training, texts that negatives are drawn from.

A file is mapped into memory, so data larger than memory is read from the disk as it is needed, and any row is found in
constant time. Files of a cache are found again by the content that they were made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..files.atomic import atomic_file
from ..files.hashing import HashedFile, content_sha256
from .formats import USUAL, Dialect

logger = logging.getLogger(__name__)
Counts: TypeAlias = "npt.NDArray[np.int64]"
Store = TypeVar("Store", bound="ArrowStore")
#: Record batches kept open.
OPEN_BATCHES: Final = 4096
#: Age in seconds at which an unfinished file of 0.1.0 is nobody's any more.
_ABANDONED: Final = 24 * 3600


class ArrowStore:
    """The rows of an Arrow file. Can be pickled and used after a fork.

    All record batches but the last have the same number of rows, so that a row's place follows from its number.

    Attributes:
        path: The Arrow file.
        source: The file that its rows were made from, as the user named it.

    Raises:
        DataError: it is damaged.
    """

    def __init__(self, path: Path, source: str = "") -> None:
        self.path, self.source = path, source
        self._open()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.source)

    def _open(self) -> None:
        import pyarrow
        from pyarrow import ipc

        try:
            self._map: Any = pyarrow.memory_map(str(self.path))
            # No threads of its own: they would not survive the fork of a data loader's worker.
            self._reader: Any = ipc.open_file(self._map, options=ipc.IpcReadOptions(use_threads=False))
            batches = self._reader.num_record_batches
            self._batch_rows = self._reader.get_batch(0).num_rows or 1 if batches else 1
            last = self._reader.get_batch(batches - 1).num_rows if batches else 0
            self._size = max(batches - 1, 0) * self._batch_rows + last
            #: What was noted when the file was complete.
            self.notes: Mapping[str, Any] = {}
            if batches:
                noted = self._reader.get_batch_with_custom_metadata(batches - 1).custom_metadata
                self.notes = json.loads(noted[b"notes"]) if noted else {}
        except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
            raise DataError(f"{self.path} is damaged: {error}") from error
        batch = self._batch = lru_cache(OPEN_BATCHES)(self._reader.get_batch)
        # A batch makes its column again each time it is asked, which takes as long as reading a value does.
        self._column = lru_cache(OPEN_BATCHES * len(self._reader.schema))(lambda name, at: batch(at).column(name))

    def __len__(self) -> int:
        return self._size

    def value(self, name: str, number: int) -> Any:
        """The value of a row in a column."""
        return self._column(name, number // self._batch_rows)[number % self._batch_rows].as_py()

    def column(self, name: str) -> Counts:
        """A column of whole numbers, [rows] int64."""
        return self._gathered(lambda batch: batch.column(name).to_numpy()).astype(np.int64)

    def _gathered(self, of_batch: Callable[[Any], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The arrays of all batches as one, [rows]."""
        batches = map(self._reader.get_batch, range(self._reader.num_record_batches))
        return np.concatenate([np.empty(0, dtype=np.int64), *map(of_batch, batches)])

    def close(self) -> None:
        """Free the file."""
        self._column.cache_clear()
        self._batch.cache_clear()
        self._map.close()


def write_batches(file: HashedFile | IO[bytes], schema: Any, batches: Iterable[Any], notes: Callable[[], Any]) -> None:
    """Write record batches, all but the last of one size, as a file that `ArrowStore` reads.

    Args:
        file: The file.
        schema: The pyarrow schema.
        batches: Batches of that schema.
        notes: Called when all are there: what is to be noted with them, for JSON; empty for nothing.
    """
    from pyarrow import RecordBatch, ipc

    waiting = None
    with ipc.new_file(file, schema) as writer:
        for batch in batches:
            if waiting is not None:
                writer.write_batch(waiting)
            waiting = batch
        if noted := notes():
            waiting = RecordBatch.from_pylist([], schema=schema) if waiting is None else waiting
            writer.write_batch(waiting, custom_metadata={"notes": json.dumps(noted)})
        elif waiting is not None:
            writer.write_batch(waiting)


def stored(path: Path, read: Callable[[], Store], write: Callable[[HashedFile], None], rows: str) -> Store:
    """The store at a path of a cache, written first unless it is there and whole.

    Args:
        path: The file in the cache.
        read: Opens it.
        write: Writes it; an error leaves nothing there.
        rows: What it holds, for the error.

    Raises:
        OutputError: the cache cannot be written.
    """
    if path.is_file():
        try:
            return read()
        except DataError as error:
            logger.warning("%s; it is made again", error)
    for leftover in path.parent.glob("*.arrow.*.tmp"):
        with contextlib.suppress(OSError):  # Another process was quicker.
            if time.time() - leftover.stat().st_mtime > _ABANDONED:
                leftover.unlink()
    advice = ". Name another folder with --cache-path"
    with atomic_file(path, doing=f"write {rows} to {path.parent}", advice=advice) as file:
        write(file)
    return read()


def content_digest(source: str, dialect: Dialect = USUAL) -> str:
    """sha256 (hex, 40 digits) of a file's content and of how it is read: the same since 0.1.0, so runs go on.

    Raises:
        OSError: the file cannot be read.
    """
    content = content_sha256(source)
    # The ending decides the format.
    name = os.path.basename(source).lower()
    form = json.dumps(["1", name.removesuffix(".gz").rpartition(".")[2], *dialect.settings.items()])
    return hashlib.sha256(f"{form}{content}".encode()).hexdigest()[:40]
