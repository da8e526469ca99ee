"""Fine-tuning of embedders and rerankers on transformers' Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .embedder import finetune
    from .loop.arguments import EmbedderArguments, RerankerArguments
    from .loop.options import DataArguments, ModelArguments, RerankerDataArguments
    from .reranker import finetune_reranker

_HOMES = {
    "DataArguments": "loop.options",
    "EmbedderArguments": "loop.arguments",
    "ModelArguments": "loop.options",
    "RerankerArguments": "loop.arguments",
    "RerankerDataArguments": "loop.options",
    "finetune": "embedder",
    "finetune_reranker": "reranker",
}

__all__ = [
    "DataArguments",
    "EmbedderArguments",
    "ModelArguments",
    "RerankerArguments",
    "RerankerDataArguments",
    "finetune",
    "finetune_reranker",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
