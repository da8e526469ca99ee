"""Files that are complete or not there, folders that one process writes to, URLs, and hashes. Knows no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .atomic import OutputFolder as OutputFolder
    from .atomic import atomic_folder as atomic_folder
    from .atomic import write_json as write_json
    from .hashing import digest as digest
    from .hashing import file_sha256 as file_sha256
    from .remote import is_url as is_url

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "atomic": ("OutputFolder", "atomic_folder", "write_json"),
        "hashing": ("digest", "file_sha256"),
        "remote": ("is_url",),
    },
)
