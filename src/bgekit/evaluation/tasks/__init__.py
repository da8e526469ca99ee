"""Kinds of tasks, a module each: data, MTEB's protocol for it, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._lazy import lazy_names

if TYPE_CHECKING:
    from .base import Scores, Task

_HOMES = {
    "Scores": "base",
    "Task": "base",
}

__all__ = [
    "Scores",
    "Task",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
