"""Texts or pairs in, numbers out: embedders, rerankers, hosted models, shards of vectors, similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .embedder import FlagModel, load_model
    from .model import Embedder
    from .openai import OpenAIEmbedder
    from .pipeline import Embeddings
    from .reranker import FlagReranker
    from .shards import Chunks, ShardSet, encode_to_shards, load_shards

_HOMES = {
    "Chunks": "shards",
    "Embedder": "model",
    "Embeddings": "pipeline",
    "FlagModel": "embedder",
    "FlagReranker": "reranker",
    "OpenAIEmbedder": "openai",
    "ShardSet": "shards",
    "encode_to_shards": "shards",
    "load_model": "embedder",
    "load_shards": "shards",
}

__all__ = [
    "Chunks",
    "Embedder",
    "Embeddings",
    "FlagModel",
    "FlagReranker",
    "OpenAIEmbedder",
    "ShardSet",
    "encode_to_shards",
    "load_model",
    "load_shards",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
