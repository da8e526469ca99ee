"""The server: any model of bgekit behind HTTP, in the shapes that clients speak."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .app import create_app as create_app
    from .run import run as run
    from .settings import Settings as Settings

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {"app": ("create_app",), "run": ("run",), "settings": ("Settings",)},
)
