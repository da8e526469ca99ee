"""Display: what a terminal shows, pages and Markdown from templates, and plots. Knows no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .terminal import EncodeProgress as EncodeProgress

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "terminal": ("EncodeProgress",),
    },
)
