"""Pre-training of encoders on plain text: RetroMAE (arXiv:2205.12035)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .options import PretrainDataArguments, PretrainModelArguments
    from .run import PretrainArguments, pretrain

_HOMES = {
    "PretrainArguments": "run",
    "PretrainDataArguments": "options",
    "PretrainModelArguments": "options",
    "pretrain": "run",
}

__all__ = [
    "PretrainArguments",
    "PretrainDataArguments",
    "PretrainModelArguments",
    "pretrain",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
