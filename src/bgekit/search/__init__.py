"""Search by meaning: exact and approximate indexes over vectors with their ids and texts, and maps of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .bm25 import Bm25 as Bm25
    from .build import index_records as index_records
    from .build import index_shards as index_shards
    from .index import Hit as Hit
    from .index import SearchIndex as SearchIndex
    from .map_plot import draw_map as draw_map
    from .results import write_results as write_results
    from .updates import Removal as Removal
    from .updates import UpdateReport as UpdateReport
    from .vector_map import MapReport as MapReport
    from .vector_map import write_map as write_map

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "bm25": ("Bm25",),
        "build": ("index_records", "index_shards"),
        "index": ("Hit", "SearchIndex"),
        "map_plot": ("draw_map",),
        "results": ("write_results",),
        "updates": ("Removal", "UpdateReport"),
        "vector_map": ("MapReport", "write_map"),
    },
)
