"""Search by meaning: exact and approximate indexes over vectors with the ids and texts they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .build import index_records as index_records
    from .build import index_shards as index_shards
    from .index import Hit as Hit
    from .index import SearchIndex as SearchIndex

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "build": ("index_records", "index_shards"),
        "index": ("Hit", "SearchIndex"),
    },
)
