"""Texts or pairs in, numbers out: embedders, rerankers, hosted models, shards of vectors, similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .embedder import FlagModel as FlagModel
    from .embedder import load_model as load_model
    from .m3 import BGEM3FlagModel as BGEM3FlagModel
    from .model import Embedder as Embedder
    from .openai import OpenAIEmbedder as OpenAIEmbedder
    from .pipeline import Embeddings as Embeddings
    from .ragged import LexicalCsr as LexicalCsr
    from .ragged import Ragged as Ragged
    from .reranker import FlagReranker as FlagReranker
    from .shards import Chunks as Chunks
    from .shards import ShardSet as ShardSet
    from .shards import encode_to_shards as encode_to_shards
    from .shards import load_shards as load_shards

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "embedder": ("FlagModel", "load_model"),
        "m3": ("BGEM3FlagModel",),
        "model": ("Embedder",),
        "openai": ("OpenAIEmbedder",),
        "pipeline": ("Embeddings",),
        "ragged": ("LexicalCsr", "Ragged"),
        "reranker": ("FlagReranker",),
        "shards": ("Chunks", "ShardSet", "encode_to_shards", "load_shards"),
    },
)
