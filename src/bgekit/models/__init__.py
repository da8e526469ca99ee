"""Checkpoints as files and what they say: card, families, prompts, configuration, hub, weights. No computation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .card import ModelCard, Prompt, RerankerCard
    from .card_reading import read_card, read_reranker_card
    from .families import Family, find_family
    from .hub import resolve

_HOMES = {
    "Family": "families",
    "ModelCard": "card",
    "Prompt": "card",
    "RerankerCard": "card",
    "find_family": "families",
    "read_card": "card_reading",
    "read_reranker_card": "card_reading",
    "resolve": "hub",
}

__all__ = [
    "Family",
    "ModelCard",
    "Prompt",
    "RerankerCard",
    "find_family",
    "read_card",
    "read_reranker_card",
    "resolve",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
