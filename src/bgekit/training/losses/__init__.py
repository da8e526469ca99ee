"""Losses of the global batch, whatever the number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._lazy import lazy_names

if TYPE_CHECKING:
    from .contrastive import Contrastive
    from .listwise import GroupLoss
    from .matryoshka import Matryoshka
    from .sts import CoSent, ScoredMse

_HOMES = {
    "CoSent": "sts",
    "Contrastive": "contrastive",
    "GroupLoss": "listwise",
    "Matryoshka": "matryoshka",
    "ScoredMse": "sts",
}

__all__ = [
    "CoSent",
    "Contrastive",
    "GroupLoss",
    "Matryoshka",
    "ScoredMse",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
