"""Search by meaning: exact and approximate indexes over vectors with the ids and texts they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .build import index_records, index_shards
    from .index import Hit, SearchIndex

_HOMES = {
    "Hit": "index",
    "SearchIndex": "index",
    "index_records": "build",
    "index_shards": "build",
}

__all__ = [
    "Hit",
    "SearchIndex",
    "index_records",
    "index_shards",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
