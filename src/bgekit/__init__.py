"""bgekit: text embedding models of the BGE kind, from loading to search.

Public names are imported when they are first used, so that `import bgekit` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoding.api import OpenAIEmbedder
    from .encoding.base import Embedder
    from .encoding.embedder import FlagModel
    from .encoding.result import Embeddings
    from .errors import BgekitError
    from .models.card import ModelCard, read_card
    from .reranking.reranker import FlagReranker

__version__ = "0.1.0"

_HOMES = {
    "BgekitError": "errors",
    "Embedder": "encoding.base",
    "Embeddings": "encoding.result",
    "FlagModel": "encoding.embedder",
    "FlagReranker": "reranking.reranker",
    "ModelCard": "models.card",
    "OpenAIEmbedder": "encoding.api",
    "read_card": "models.card",
}

__all__ = [
    "BgekitError",
    "Embedder",
    "Embeddings",
    "FlagModel",
    "FlagReranker",
    "ModelCard",
    "OpenAIEmbedder",
    "__version__",
    "read_card",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
