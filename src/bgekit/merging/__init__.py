"""Several models of one architecture -> one: averages, weights from examples or by validation, TIES, DARE, SLERP, LoRA.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .merge_weights import Examples, Validation
    from .merging import Merged, Merging, merge, mix_models, mix_models_by_layers, mix_models_with_data
    from .sources import Options

_HOMES = {
    "Examples": "merge_weights",
    "Merged": "merging",
    "Merging": "merging",
    "Options": "sources",
    "Validation": "merge_weights",
    "merge": "merging",
    "mix_models": "merging",
    "mix_models_by_layers": "merging",
    "mix_models_with_data": "merging",
}

__all__ = [
    "Examples",
    "Merged",
    "Merging",
    "Options",
    "Validation",
    "merge",
    "mix_models",
    "mix_models_by_layers",
    "mix_models_with_data",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
