"""bgekit: text embedding models of the BGE kind, from loading to search.

Public names are imported when they are first used, so that `import bgekit` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
