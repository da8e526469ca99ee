"""Whether a model's query vectors may be compared with the vectors of an index."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import ArgumentError
from .exact import unit
from .facts import Facts
from .stored import Stored

if TYPE_CHECKING:
    from ..encoding.base import Embedder, Kind

logger = logging.getLogger(__name__)

#: Rows among which a short text is looked for, to encode it anew.
_ROWS: Final = 64
#: Characters that every model takes uncut.
_SHORT: Final = 100
#: Least cosine of a text's new vector to the stored one. Number formats differ by less than 0.02, models by more.
_COSINE: Final = 0.98


def check_model(model: Embedder, facts: Facts, stored: Stored) -> None:
    """Make sure that the model makes vectors like those of the index.

    Another number format than the one the index was made in is fine (an index made on a machine that is fast in
    bfloat16 may be searched on one that is not); so are other instructions for queries. A text of the index,
    encoded anew, tells them from another model.

    Raises:
        ArgumentError: it does not; the message says what differs.
    """
    if model.fingerprint == facts.model_fingerprint:
        return
    problem = _difference(model, facts, stored)
    if problem is None:
        return
    name = facts.model_name
    if name == model.card.name:
        raise ArgumentError(
            f"the index was made with {name}, used otherwise than now: {problem.what}. {problem.advice}, or build the "
            "index anew"
        )
    raise ArgumentError(
        f"the index was made with {name} and cannot be searched with {model.card.name}: {problem.what}. "
        f"Search with --model {name}, or build an index with {model.card.name}."
    )


@dataclass(frozen=True)
class _Problem:
    """What differs, and what to do where the model is the same one."""

    what: str
    advice: str


def _difference(model: Embedder, facts: Facts, stored: Stored) -> _Problem | None:
    card = model.card.to_dict()
    if model.dimension != facts.dimension:
        whole = facts.dimension == facts.model_card.get("dimension")
        return _Problem(
            f"its vectors have {facts.dimension} dimensions, the model's have {model.dimension}",
            "Leave out truncate_dim=..." if whole else f"Give truncate_dim={facts.dimension}",
        )
    for field, argument in (("pooling", "pooling_method"), ("normalize", "normalize_embeddings"), ("similarity", "")):
        before = facts.model_card.get(field)
        if card[field] != before:
            advice = "Use the model as it was then"
            if field == "normalize":
                advice = "Leave out normalize_embeddings=False" if before else "Give normalize_embeddings=False"
            elif argument:
                advice = f"Give {argument}={before}"
            return _Problem(f"{field} was {before} and is {card[field]} now", advice)
    if stored.count == 0:
        return None
    row, text = _short_text(stored)
    if not text:
        return _Problem(
            "their fingerprints differ, and the index keeps no texts to compare their vectors by",
            "Give the model's files and options as they were then",
        )
    kind: Kind = facts.settings["kind"]
    length = min(facts.settings["max_length"], model.card.max_length)
    encoded = next(iter(model.encode_windows([[text]], kind=kind, max_length=length)))
    cosine = float(unit(encoded.vectors[0]) @ unit(stored.vectors(np.asarray([row]))[0]))
    if cosine < _COSINE:
        return _Problem(
            f"a text of the index has another vector now (cosine {cosine:.3f} to the stored one)",
            _of_prompts(card, facts) or "Give the model's files as they were then",
        )
    logger.info(
        "the index was made by %s in %s and is searched by %s in %s: a text's vectors agree (cosine %.4f)",
        facts.model_name, facts.precision, model.card.name, model.precision, cosine,
    )  # fmt: skip
    return None


def _of_prompts(card: Mapping[str, Any], facts: Facts) -> str | None:
    """What to do where documents have another instruction now; None where they have the same."""
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
