"""Evaluation data of any known form -> tasks. `detect.py` is the entry; each other module knows one form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._lazy import lazy_names

if TYPE_CHECKING:
    from .detect import read_tasks

_HOMES = {
    "read_tasks": "detect",
}

__all__ = [
    "read_tasks",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
