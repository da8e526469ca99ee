"""Losses of the global batch, whatever the number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._lazy import lazy_names

if TYPE_CHECKING:
    from .contrastive import Contrastive as Contrastive
    from .listwise import GroupLoss as GroupLoss
    from .matryoshka import Matryoshka as Matryoshka
    from .sts import CoSent as CoSent
    from .sts import ScoredMse as ScoredMse
    from .unified import Unified as Unified

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "contrastive": ("Contrastive",),
        "listwise": ("GroupLoss",),
        "matryoshka": ("Matryoshka",),
        "sts": ("CoSent", "ScoredMse"),
        "unified": ("Unified",),
    },
)
