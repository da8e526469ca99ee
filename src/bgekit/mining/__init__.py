"""Hard negatives for training data, copies taken out of it, and a teacher's scores put into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .dedup import Removed, distinct
    from .mining import Mining, mine
    from .negatives import Choice, Guards
    from .teacher import score

_HOMES = {
    "Choice": "negatives",
    "Guards": "negatives",
    "Mining": "mining",
    "Removed": "dedup",
    "distinct": "dedup",
    "mine": "mining",
    "score": "teacher",
}

__all__ = [
    "Choice",
    "Guards",
    "Mining",
    "Removed",
    "distinct",
    "mine",
    "score",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
