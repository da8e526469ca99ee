"""Several models of one architecture -> one: averages, weights from examples or by validation, TIES, DARE, SLERP, LoRA.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .merge_weights import Examples as Examples
    from .merge_weights import Validation as Validation
    from .merging import Merged as Merged
    from .merging import Merging as Merging
    from .merging import merge as merge
    from .merging import mix_models as mix_models
    from .merging import mix_models_by_layers as mix_models_by_layers
    from .merging import mix_models_with_data as mix_models_with_data
    from .sources import Options as Options

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "merge_weights": ("Examples", "Validation"),
        "merging": ("Merged", "Merging", "merge", "mix_models", "mix_models_by_layers", "mix_models_with_data"),
        "sources": ("Options",),
    },
)
