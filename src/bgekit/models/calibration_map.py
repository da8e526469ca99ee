"""The map from a raw similarity to a calibrated score, which `similarity(..., calibrated=True)` applies.

A map is learnt by `bgekit.evaluation.calibration` and kept in the model card as plain values; applying it needs nothing
but numpy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import CardError, CheckpointError

if TYPE_CHECKING:
    from .card import ModelCard

logger = logging.getLogger(__name__)
#: Version of `calibration.json` and of the entry in model cards. 1 had the same maps, but its thresholds were found
#: as if the pairs of one query hardly erred together.
FORMAT: Final = 2


def nearness(cosine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """-log(1 - cosine); beyond 0.9999 a cosine is no different from that of equal texts in 16 bits."""
    return -np.log(np.maximum(1.0 - cosine, 1e-4))


@dataclass(frozen=True)
class LogisticMap:
    """The probability that a pair is related: sigmoid(slope x + edge (-log(1 - x)) + intercept).

    The second term stretches the similarities next to 1, where most related pairs of a good model are: the beta
    calibration of Kull, Silva Filho and Flach (2017), with the similarity itself in place of its logarithm.

    Attributes:
        slope: Coefficient of the similarity; not negative.
        edge: Coefficient of the nearness to 1; not negative, and 0 for similarities that can be larger than 1.
        intercept: What is added.
    """

    slope: float
    edge: float
    intercept: float

    def __call__(self, similarity: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Probabilities of similarities of any shape."""
        values = np.asarray(similarity, dtype=np.float64)
        line = self.slope * values + self.intercept
        if self.edge:
            line = line + self.edge * nearness(values)
        # Written with tanh, it cannot overflow.
        return (0.5 * (1 + np.tanh(line / 2))).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the model card."""
        return {"kind": "logistic", "slope": self.slope, "edge": self.edge, "intercept": self.intercept}


@dataclass(frozen=True)
class QuantileMap:
    """The share of unrelated pairs with less similarity, linear between stored quantiles.

    Attributes:
        similarity: Quantiles of the similarity of unrelated pairs, ascending.
        share: Share of unrelated pairs below each.
    """

    similarity: tuple[float, ...]
    share: tuple[float, ...]

    def __call__(self, similarity: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Shares for similarities of any shape."""
        return np.interp(np.asarray(similarity, dtype=np.float64), self.similarity, self.share).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the model card."""
        return {"kind": "quantiles", "similarity": list(self.similarity), "share": list(self.share)}


def read_map(content: Any) -> LogisticMap | QuantileMap:
    """The map that `to_dict` gave.

    Raises:
        CheckpointError: it is none.
    """
    try:
        if content["kind"] == "logistic":
            return LogisticMap(*(float(content[name]) for name in ("slope", "edge", "intercept")))
        if content["kind"] == "quantiles":
            knots = QuantileMap(tuple(map(float, content["similarity"])), tuple(map(float, content["share"])))
            if len(knots.similarity) == len(knots.share) > 0 and list(knots.similarity) == sorted(knots.similarity):
                return knots
    except (KeyError, TypeError, ValueError):
        pass
    raise _damaged(content)


def calibration_map(card: ModelCard, model: Mapping[str, Any]) -> LogisticMap | QuantileMap:
    """The map of the calibration in a card.

    Args:
        card: The card.
        model: What decides the similarities of the model at hand, as `Embedder.similarity_facts` says.

    Raises:
        CardError: there is none, or it was made for a model with other weights, or used in another way.
        CheckpointError: it is damaged.
    """
    if card.calibration is None:
        raise CardError(
            f"the card of {card.name} has no calibration: make one with bge calibrate --model M --data D --save DIR "
            "and load DIR, or with bgekit.evaluation.calibrate(model, data).attach(model)"
        )
    made_for = card.calibration.get("made_for")
    if not isinstance(made_for, Mapping) or card.calibration.get("format", 1) not in range(1, FORMAT + 1):
        raise _damaged(card.calibration)
    if what := other_model(made_for, model, card):
        raise CardError(
            f"the calibration in the card of {card.name} was made for another model ({what}): its scores would be "
            "wrong. Make a new one with bge calibrate"
        )
    return read_map(card.calibration.get("map"))


def made_for_facts(model: Mapping[str, Any], card: ModelCard) -> dict[str, Any]:
    """What decides the scores of a model, as plain values: what is fitted to them holds for these alone.

    Args:
        model: As `Embedder.similarity_facts` says.
        card: Its card, for the prompts.
    """
    return {**model, **{f"prompt {role}": str(prompt) for role, prompt in card.prompts.items()}}


def other_model(made_for: Mapping[str, Any], model: Mapping[str, Any], card: ModelCard) -> str:
    """What of a model is not as it was when something was fitted to its scores; "" if all is.

    Args:
        made_for: What `made_for_facts` said then.
        model: As `Embedder.similarity_facts` says now.
        card: Its card now.
    """
    now = made_for_facts(model, card)
    return ", ".join(
        "other weights" if key == "weights" else f"{key} was {before!r} and is {now.get(key)!r}"
        for key, before in made_for.items()
        if before != now.get(key)
    )


def moved(calibration: Mapping[str, Any], source: str | None, copy: str) -> Mapping[str, Any] | None:
    """The calibration of a model for a copy of it; None, with a warning, if it does not hold there.

    Args:
        calibration: As the card has it.
        source: Digest of the weights that are copied, None if the copy has new ones.
        copy: Digest of the same weights as they are stored in the copy.
    """
    made_for = calibration.get("made_for")
    if not isinstance(made_for, Mapping) or made_for.get("weights") != source:
        logger.warning(
            "the calibration in the model card belongs to other weights and is not saved: run bge calibrate again"
        )
        return None
    return {**calibration, "made_for": {**made_for, "weights": copy}}


def _damaged(content: Any) -> CheckpointError:
    return CheckpointError(
        f"the calibration in the model card is damaged or from another version ({content!r:.80}): "
        "make a new one with bge calibrate"
    )
