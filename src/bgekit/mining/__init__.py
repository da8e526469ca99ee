"""Hard negatives for training data, copies taken out of it, and a teacher's scores put into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .dedup import Removed as Removed
    from .dedup import distinct as distinct
    from .mining import Mining as Mining
    from .mining import mine as mine
    from .negatives import Choice as Choice
    from .negatives import Guards as Guards
    from .teacher import score as score

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "dedup": ("Removed", "distinct"),
        "mining": ("Mining", "mine"),
        "negatives": ("Choice", "Guards"),
        "teacher": ("score",),
    },
)
