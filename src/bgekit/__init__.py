"""bgekit: text embedding models of the BGE kind, from loading to search.

Public names are imported when they are first used, so that `import bgekit` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names
from ._moved import install
from ._version import __version__

if TYPE_CHECKING:
    from .errors import BgekitError as BgekitError
    from .inference.embedder import FlagModel as FlagModel
    from .inference.embedder import load_model as load_model
    from .inference.m3 import BGEM3FlagModel as BGEM3FlagModel
    from .inference.model import Embedder as Embedder
    from .inference.openai import OpenAIEmbedder as OpenAIEmbedder
    from .inference.pipeline import Embeddings as Embeddings
    from .inference.reranker import FlagReranker as FlagReranker
    from .models.card import ModelCard as ModelCard
    from .models.card_reading import read_card as read_card

install()

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "errors": ("BgekitError",),
        "inference.embedder": ("FlagModel", "load_model"),
        "inference.m3": ("BGEM3FlagModel",),
        "inference.model": ("Embedder",),
        "inference.openai": ("OpenAIEmbedder",),
        "inference.pipeline": ("Embeddings",),
        "inference.reranker": ("FlagReranker",),
        "models.card": ("ModelCard",),
        "models.card_reading": ("read_card",),
    },
)
__all__ += ["__version__"]
