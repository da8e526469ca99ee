"""Checkpoints as files and what they say: card, families, prompts, configuration, hub, weights. No computation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .card import ModelCard as ModelCard
    from .card import Prompt as Prompt
    from .card import RerankerCard as RerankerCard
    from .card_reading import read_card as read_card
    from .card_reading import read_reranker_card as read_reranker_card
    from .families import Family as Family
    from .families import find_family as find_family
    from .hub import resolve as resolve

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "card": ("ModelCard", "Prompt", "RerankerCard"),
        "card_reading": ("read_card", "read_reranker_card"),
        "families": ("Family", "find_family"),
        "hub": ("resolve",),
    },
)
