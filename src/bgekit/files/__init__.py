"""Files that are complete or not there, folders that one process writes to, and hashes. Knows no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .atomic import OutputFolder, atomic_folder, write_json
    from .hashing import digest, file_sha256

_HOMES = {
    "OutputFolder": "atomic",
    "atomic_folder": "atomic",
    "digest": "hashing",
    "file_sha256": "hashing",
    "write_json": "atomic",
}

__all__ = [
    "OutputFolder",
    "atomic_folder",
    "digest",
    "file_sha256",
    "write_json",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
