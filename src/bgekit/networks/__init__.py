"""Networks: encoder, cross-encoder, pooling, packing, CPU kernels, precision; and their checkpoints on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .cross_encoder import CrossEncoder as CrossEncoder
    from .cross_encoder import load_cross_encoder as load_cross_encoder
    from .cross_encoder import load_trainable as load_trainable
    from .encoder import Encoder as Encoder
    from .encoder import load_encoder as load_encoder
    from .heads import TokenHeads as TokenHeads
    from .packing import Packed as Packed
    from .saving import write_checkpoint as write_checkpoint
    from .saving import write_reranker as write_reranker

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "cross_encoder": ("CrossEncoder", "load_cross_encoder", "load_trainable"),
        "encoder": ("Encoder", "load_encoder"),
        "heads": ("TokenHeads",),
        "packing": ("Packed",),
        "saving": ("write_checkpoint", "write_reranker"),
    },
)
