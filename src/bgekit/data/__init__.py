"""Rows of files in every format as typed records: corpora, training rows, columns by name, chunks. Knows no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .chunking import Passage, chunk_records, chunk_text
    from .records import Record, RecordReader, read_records
    from .training_rows import read_training

_HOMES = {
    "Passage": "chunking",
    "Record": "records",
    "RecordReader": "records",
    "chunk_records": "chunking",
    "chunk_text": "chunking",
    "read_records": "records",
    "read_training": "training_rows",
}

__all__ = [
    "Passage",
    "Record",
    "RecordReader",
    "chunk_records",
    "chunk_text",
    "read_records",
    "read_training",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
