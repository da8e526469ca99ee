"""Fusion of what several modes of search found for a query: by weights, or by reciprocal ranks.

A mode (`dense`, `lexical`, `bm25`, `multi-vector`) gives a query a list of rows with scores. Cosines, sums of lexical
weights and BM25 have scales of their own, and that of BM25 differs from query to query, as it grows with a query's
words. Weights that hold for queries that were not seen need scores that mean the same in each: before they are weighed,
a mode's scores are divided by the highest that it gives to the query (`comparable`).

`fusion.json` in an index folder holds weights that were fitted on judged queries, with the model that they hold for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, OutputError, check_count
from ..files.atomic import atomic_file
from ..files.remote import is_folder, open_binary
from ..models.calibration_map import other_model

if TYPE_CHECKING:
    from ..inference.model import Embedder

Doubles: TypeAlias = npt.NDArray[np.float64]
#: Scores [n] and rows [n] that one mode found for one query; row -1 is no row, as in `SearchIndex.nearest`.
Found: TypeAlias = "tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.int64]]"
#: The file of an index folder that holds fitted weights.
FUSION: Final = "fusion.json"
#: Version of its layout.
_LAYOUT: Final = 1
#: What is added to ranks: the constant of Cormack, Clarke and Buettcher (2009), who found others to differ little.
RANK_CONSTANT: Final = 60


def comparable(scores: npt.ArrayLike) -> Doubles:
    """A mode's scores [n] of one query on a scale that queries share: divided by the highest, which becomes 1.

    Where the highest is not above 0 they stay as they are. Infinite scores, which stand for rows that are none, are
    left out of account.
    """
    values = np.asarray(scores, dtype=np.float64)
    finite = values[np.isfinite(values)]
    highest = float(finite.max()) if len(finite) else 0.0
    return values / highest if highest > 0 else values


def candidates(found: Mapping[str, Found]) -> npt.NDArray[np.int64]:
    """The rows [n] that any mode found for a query, ascending, each once.

    Weights are best fed with the scores that every mode gives to all of these: `by_weights` counts 0 for a row that is
    not in a mode's list, whatever the mode would have given to it.
    """
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *(rows for _, rows in found.values())]))
    return rows[rows >= 0]


def by_weights(found: Mapping[str, Found], weights: Mapping[str, float], top_k: int) -> Found:
    """The best rows of a query by the weighted sum of what each mode gives to them.

    A mode's scores are made `comparable` first. A row that is not in a mode's list gets 0 from that mode; the lists of
    modes with the weight 0 are not looked at, so that one weight alone gives the order of that mode.

    Args:
        found: What each mode found, in any order; no row twice in a list.
        weights: A weight for each mode, 0 or more; others than those in `found` must be 0.
        top_k: Rows wanted.

    Returns:
        Weighted sums [n] and rows [n], best first, of equal sums the earlier row; fewer than `top_k` where fewer were
        found.

    Raises:
        ArgumentError: a mode has no weight or none of the weights counts, one is negative or not a number, or a mode
            with a weight has no list.
    """
    used = _checked(weights, found)
    return _summed(
        {mode: (weight * comparable(found[mode][0]), found[mode][1]) for mode, weight in used.items()}, top_k
    )


def by_ranks(found: Mapping[str, Found], top_k: int, *, constant: int = RANK_CONSTANT) -> Found:
    """The best rows of a query by the sum of 1 / (constant + rank) over the modes that found them.

    Args:
        found: What each mode found, best first; no row twice in a list.
        top_k: Rows wanted.
        constant: The larger, the less the first ranks stand out.

    Returns:
        Sums [n] and rows [n], as `by_weights` returns them.
    """
    return _summed(
        {mode: (1 / (constant + 1.0 + np.arange(len(rows))), rows) for mode, (_, rows) in found.items()}, top_k
    )


def _summed(parts: Mapping[str, tuple[Doubles, npt.NDArray[np.int64]]], top_k: int) -> Found:
    """Sums of what each mode adds to rows, best first."""
    check_count("top_k", top_k, "rows")
    rows = candidates(parts)
    total = np.zeros(len(rows))
    # In the order of their names: a sum's last bit must not depend on the order that modes are given in.
    for _, (values, own) in sorted(parts.items()):
        there = own >= 0
        total[np.searchsorted(rows, own[there])] += values[there]
    best = np.lexsort((rows, -total))[:top_k]
    return total[best], rows[best]


def _checked(weights: Mapping[str, float], found: Mapping[str, Found]) -> dict[str, float]:
    """The weights that count, by mode."""
    check_weights(weights)
    if missing := [mode for mode in found if mode not in weights]:
        raise ArgumentError(f"there is no weight for {', '.join(missing)}: weights are {dict(weights)}")
    used = {mode: float(weight) for mode, weight in weights.items() if weight}
    if missing := [mode for mode in used if mode not in found]:
        raise ArgumentError(f"{', '.join(missing)} has a weight, and nothing was searched by it")
    return used


def check_weights(weights: Mapping[str, float]) -> None:
    """See to it that weights of modes can be used.

    Raises:
        ArgumentError: one is negative or no number, or all are 0.
    """
    if wrong := {mode: weight for mode, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)}:
        raise ArgumentError(f"weights of modes are numbers from 0 on: {wrong}")
    if not any(weights.values()):
        raise ArgumentError("at least one mode needs a weight above 0")


@dataclass(frozen=True)
class Gain:
    """Score of the hybrid, on queries that its weights were not fitted on, minus that of one of its parts.

    Attributes:
        difference: Points (x100).
        low: Lower end of its 95 % interval; None where none can be given.
        high: Upper end.
    """

    difference: float
    low: float | None
    high: float | None


def over_better(gains: Sequence[Gain]) -> Gain:
    """Hybrid minus the better of its parts, of its gains over each: the least of them, with an interval that holds it.

    Which part is the better one is not known for sure. The least lower end is above the least gain no more often than
    the lower end of the better part's own interval is; the least upper end is below it a little more often where two
    parts are equally good, and as often as one interval says where they are not.
    """
    lows = [gain.low for gain in gains if gain.low is not None]
    highs = [gain.high for gain in gains if gain.high is not None]
    known = len(lows) == len(highs) == len(gains) > 0
    return Gain(min(gain.difference for gain in gains), min(lows) if known else None, min(highs) if known else None)


@dataclass(frozen=True)
class FittedWeights:
    """Weights of modes that were fitted on judged queries, and what they were fitted on: the content of `fusion.json`.

    Attributes:
        weights: By mode; they add up to 1.
        model: Name of the model.
        made_for: What decides its scores, as plain values.
        data: Name of the judged data.
        data_fingerprint: sha256 (hex) of its content and protocol.
        queries: Judged queries.
        metric: What was maximised.
        scores: Its value x100 of each mode, and of `hybrid` on queries that the weights were not fitted on.
        gains: Hybrid minus each mode.
    """

    weights: Mapping[str, float]
    model: str
    made_for: Mapping[str, Any]
    data: str
    data_fingerprint: str
    queries: int
    metric: str
    scores: Mapping[str, float]
    gains: Mapping[str, Gain] = field(default_factory=dict)

    @property
    def over_better(self) -> Gain:
        """Hybrid minus the better of its parts."""
        return over_better([*self.gains.values()])

    def check_model(self, model: Embedder, source: str = FUSION) -> None:
        """See to it that the weights hold for a model.

        Args:
            model: The model.
            source: The file that they are from, for the message.

        Raises:
            ArgumentError: they were fitted for another one.
        """
        if what := other_model(self.made_for, model.similarity_facts(), model.card):
            raise ArgumentError(
                f"the weights in {source} were fitted for another model than {model.card.name} ({what}): fit them "
                "anew with bge calibrate --hybrid, or remove the file, and hybrid goes by reciprocal ranks"
            )


def write_fusion(path: Path, fitted: FittedWeights) -> None:
    """Write fitted weights to a file, or to `fusion.json` of a folder that is there.

    Raises:
        OutputError: it cannot be written.
    """
    content = {"version": _LAYOUT} | asdict(fitted)
    with atomic_file(Path(_file(path))) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_fusion(path: str | os.PathLike[str]) -> FittedWeights | None:
    """The weights that `write_fusion` wrote; None where there is no such file.

    Raises:
        OutputError: it cannot be read, or is damaged.
    """
    file = _file(path)
    try:
        with open_binary(file) as raw:
            content = json.loads(raw.read())
        version = content.pop("version")
        if version != _LAYOUT:
            raise ValueError(f"version {version} is not {_LAYOUT}")
        content["gains"] = {mode: Gain(**gain) for mode, gain in content["gains"].items()}
        fitted = FittedWeights(**content)
        check_weights(fitted.weights)
        return fitted
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{file} holds no fitted weights ({error}): write it anew with bge calibrate --hybrid, or remove it"
        ) from error


def fitted_in(path: str | os.PathLike[str]) -> FittedWeights:
    """The weights in a file or an index folder, which must be there; both may be at a URL.

    Raises:
        OutputError: they are not, or cannot be read.
    """
    fitted = read_fusion(path)
    if fitted is None:
        raise OutputError(f"{_file(path)} does not exist: bge calibrate --hybrid writes fitted weights")
    return fitted


def _file(path: str | os.PathLike[str]) -> str:
    return os.path.join(path, FUSION) if is_folder(os.fspath(path)) else os.fspath(path)
