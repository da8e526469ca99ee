"""Rows of files in every format as typed records: corpora, training rows, columns by name, chunks. Knows no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .chunking import Passage as Passage
    from .chunking import chunk_records as chunk_records
    from .chunking import chunk_text as chunk_text
    from .records import Record as Record
    from .records import RecordReader as RecordReader
    from .records import read_records as read_records
    from .training_rows import read_training as read_training

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "chunking": ("Passage", "chunk_records", "chunk_text"),
        "records": ("Record", "RecordReader", "read_records"),
        "training_rows": ("read_training",),
    },
)
