"""Whether a model makes vectors like those of an index: what has no other sign is told by encoding a text again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import ArgumentError
from ..inference.similarity import unit
from .storage import Facts, Stored

if TYPE_CHECKING:
    from ..inference.model import Embedder

logger = logging.getLogger(__name__)
#: Rows among which a short text is looked for, to encode it again.
_ROWS: Final = 64
#: Characters that every model takes uncut.
_SHORT: Final = 100
#: Least cosine of a text's new vector to the stored one. Number formats differ by less than 0.02, models by more.
_COSINE: Final = 0.98


def check_model(model: Embedder, facts: Facts, stored: Stored, *, adding: bool = False) -> None:
    """Make sure that the model makes vectors like those of the index.

    Another number format than the one the index was made in is fine (an index made on a machine that is fast in
    bfloat16 may be searched on one that is not); so are other instructions for queries. A text of the index,
    encoded again, tells them from another model.

    Args:
        model: The model.
        facts: How the vectors of the index were made.
        stored: Its rows.
        adding: Whether its vectors are to be added rather than searched with.

    Raises:
        ArgumentError: it does not; the message says what differs.
    """
    if model.fingerprint == facts.model_fingerprint:
        return
    difference = _difference(model, facts, stored)
    if difference is None:
        return
    (what, advice), name = difference, facts.model_name
    if name == model.card.name:
        raise ArgumentError(
            f"the index was made with {name}, with other settings: {what}. {advice}, or build the index again"
        )
    use, verb = ("take vectors of", "Add") if adding else ("be searched with", "Search")
    raise ArgumentError(
        f"the index was made with {name} and cannot {use} {model.card.name}: {what}. "
        f"{verb} with --model {name}, or build an index with {model.card.name}."
    )


def _difference(model: Embedder, facts: Facts, stored: Stored) -> tuple[str, str] | None:
    """What differs, and advice where the model is the same one."""
    card = model.card.to_dict()
    if model.dimension != facts.dimension:
        whole = facts.dimension == facts.model_card.get("dimension")
        return (
            f"its vectors have {facts.dimension} dimensions, the model's have {model.dimension}",
            "Leave out truncate_dim=..." if whole else f"Give truncate_dim={facts.dimension}",
        )
    for fact, argument in (("pooling", "pooling_method"), ("normalize", "normalize_embeddings"), ("similarity", "")):
        before = facts.model_card.get(fact)
        if card[fact] != before:
            advice = "Use the model as it was then"
            if fact == "normalize":
                advice = "Leave out normalize_embeddings=False" if before else "Give normalize_embeddings=False"
            elif argument:
                advice = f"Give {argument}={before}"
            return f"{fact} was {before} and is {card[fact]} now", advice
    if stored.count == 0:
        return None
    row, text = _short_text(stored)
    if not text:
        return (
            "their fingerprints differ, and the index keeps no texts to compare their vectors by",
            "Give the model's files and options as they were then",
        )
    role: str = facts.settings["kind"]
    length = min(facts.settings["max_length"], model.card.max_length)
    encoded = next(iter(model.encode_blocks([[text]], role=role, max_length=length)))
    cosine = float(unit(encoded.vectors[0]) @ unit(stored.vectors(np.asarray([row]))[0]))
    if cosine < _COSINE:
        return (
            f"a text of the index has another vector now (cosine {cosine:.3f} to the stored one)",
            _of_prompts(card, facts) or "Give the model's files as they were then",
        )
    logger.info(
        "the index was made by %s in %s and is searched by %s in %s: a text's vectors agree (cosine %.4f)",
        facts.model_name, facts.precision, model.card.name, model.precision, cosine,
    )  # fmt: skip
    return None


def _of_prompts(card: Mapping[str, Any], facts: Facts) -> str | None:
    """Advice where documents have another instruction now; None where they have the same."""
    before, now = (each.get("prompts", {}).get("document", ["", ""]) for each in (facts.model_card, card))
    if list(before) == list(now):
        return None
    if before[1]:
        return (
            f"Documents had the instruction {before[0]!r}, with {before[1]!r} behind the text: give the model with it"
        )
    return f"Give passage_instruction_for_retrieval={before[0]!r}"


def _short_text(stored: Stored) -> tuple[int, str]:
    """Row and text of the longest of the first texts that no model cuts, else of the shortest; "" without texts."""
    texts = [stored.row(row)[1] or "" for row in range(min(_ROWS, stored.count))]
    lengths = [len(text) for text in texts]
    best = max(range(len(texts)), key=lambda row: lengths[row] if lengths[row] <= _SHORT else -lengths[row])
    if not texts[best]:
        best = min((row for row in range(len(texts)) if texts[row]), key=lengths.__getitem__, default=best)
    return best, texts[best]
