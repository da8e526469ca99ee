"""Networks: encoder, cross-encoder, pooling, packing, CPU kernels, precision; and their checkpoints on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .cross_encoder import CrossEncoder, load_cross_encoder, load_trainable
    from .encoder import Encoder, load_encoder
    from .packing import Packed
    from .saving import write_checkpoint, write_reranker

_HOMES = {
    "CrossEncoder": "cross_encoder",
    "Encoder": "encoder",
    "Packed": "packing",
    "load_cross_encoder": "cross_encoder",
    "load_encoder": "encoder",
    "load_trainable": "cross_encoder",
    "write_checkpoint": "saving",
    "write_reranker": "saving",
}

__all__ = [
    "CrossEncoder",
    "Encoder",
    "Packed",
    "load_cross_encoder",
    "load_encoder",
    "load_trainable",
    "write_checkpoint",
    "write_reranker",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
