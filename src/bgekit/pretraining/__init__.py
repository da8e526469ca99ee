"""Pre-training of encoders on plain text: RetroMAE (arXiv:2205.12035)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .options import PretrainDataArguments as PretrainDataArguments
    from .options import PretrainModelArguments as PretrainModelArguments
    from .run import PretrainArguments as PretrainArguments
    from .run import pretrain as pretrain

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "options": ("PretrainDataArguments", "PretrainModelArguments"),
        "run": ("PretrainArguments", "pretrain"),
    },
)
