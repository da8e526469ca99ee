"""bgekit: text embedding models of the BGE kind, from loading to search.

Public names are imported when they are first used, so that `import bgekit` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names
from ._moved import install
from ._version import __version__

if TYPE_CHECKING:
    from .errors import BgekitError
    from .inference.embedder import FlagModel, load_model
    from .inference.model import Embedder
    from .inference.openai import OpenAIEmbedder
    from .inference.pipeline import Embeddings
    from .inference.reranker import FlagReranker
    from .models.card import ModelCard
    from .models.card_reading import read_card

install()

_HOMES = {
    "BgekitError": "errors",
    "Embedder": "inference.model",
    "Embeddings": "inference.pipeline",
    "FlagModel": "inference.embedder",
    "FlagReranker": "inference.reranker",
    "ModelCard": "models.card",
    "OpenAIEmbedder": "inference.openai",
    "load_model": "inference.embedder",
    "read_card": "models.card_reading",
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
    "load_model",
    "read_card",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
