"""Fine-tuning of embedders and rerankers on transformers' Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .embedder import finetune as finetune
    from .loop.arguments import EmbedderArguments as EmbedderArguments
    from .loop.arguments import RerankerArguments as RerankerArguments
    from .loop.options import DataArguments as DataArguments
    from .loop.options import ModelArguments as ModelArguments
    from .loop.options import RerankerDataArguments as RerankerDataArguments
    from .reranker import finetune_reranker as finetune_reranker

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "embedder": ("finetune",),
        "loop.arguments": ("EmbedderArguments", "RerankerArguments"),
        "loop.options": ("DataArguments", "ModelArguments", "RerankerDataArguments"),
        "reranker": ("finetune_reranker",),
    },
)
