"""Calibration of a model's similarities on one's own data: their distribution, a threshold, calibrated scores.

Cosines of different models lie in different ranges, so no number holds for all of them; it must be measured, on pairs
like those that it will be used for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..data.formats import Quoting
from ..errors import ArgumentError, DataError, NoGuaranteeError, import_extra
from ..files.hashing import digest
from ..models.calibration_map import FORMAT, LogisticMap, QuantileMap, nearness
from .judged_model import JudgedModel, role_of
from .readers.detect import read_tasks
from .tasks.base import Task
from .text_pairs import TextPairs, pairs_of_lists, pairs_of_task
from .thresholds import (
    Booleans,
    Floats,
    Integers,
    ScoredPairs,
    Target,
    Threshold,
    best_guarantee,
    choose_threshold,
    odds_factor,
)

if TYPE_CHECKING:
    from ..inference.model import Embedder

#: Difference of similarities up to which they are the same.
_NO_SPREAD: Final = 1e-6
#: A task, a path for `read_tasks`, a list of texts, two lists of texts that belong together line by line, or two lists
#: and a label (1 related, 0 not) for each line.
Data: TypeAlias = "Task | TextPairs | str | os.PathLike[str] | Sequence[str] | tuple[Sequence[str], ...]"
#: Without a request, the threshold is for this share of unrelated pairs.
DEFAULT_FALSE_POSITIVE_RATE: Final = 0.01
#: Per cent of the pairs below each quantile that is reported.
QUANTILES: Final = (0, 1, 5, 25, 50, 75, 95, 99, 100)
#: Shares of the quantiles that a map keeps: every 2 %, closer together at the ends, where thresholds are.
_KNOTS: Final = np.array([*np.arange(0, 2, 0.2), *np.arange(2, 98, 2), *np.arange(98, 99.9, 0.2), 99.9, 100]) / 100
_BINS: Final = 40


@dataclass(frozen=True)
class Distribution:
    """Distribution of the similarities of some pairs.

    Attributes:
        count: Number of pairs.
        mean: Mean of their similarity.
        std: Standard deviation of their similarity.
        quantiles: Similarity by the per cent of pairs below it.
        similarity: [n], the values themselves.
    """

    count: int
    mean: float
    std: float
    quantiles: Mapping[int, float]
    similarity: Floats = field(repr=False, compare=False)

    @classmethod
    def of(cls, similarity: Floats) -> Distribution:
        """The distribution of some values."""
        values = np.quantile(similarity, np.array(QUANTILES) / 100)
        quantiles = {per_cent: float(value) for per_cent, value in zip(QUANTILES, values, strict=True)}
        return cls(len(similarity), float(similarity.mean()), float(similarity.std()), quantiles, similarity)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, a histogram among them."""
        counts, edges = np.histogram(self.similarity, _BINS)
        return {
            "count": self.count,
            "mean": self.mean,
            "std": self.std,
            "quantiles": {str(per_cent): value for per_cent, value in self.quantiles.items()},
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }


@dataclass(frozen=True)
class Measurement:
    """Similarities of a model on some data.

    Attributes:
        model: The model's name.
        data: Name of the data.
        split: Split of the data.
        distributions: Distributions of `unrelated` pairs (labelled, or else random), of `related` and of `random` pairs
            where both are known.
        unrelated_are: `labelled` or `random`.
    """

    model: str
    data: str
    split: str
    distributions: Mapping[str, Distribution]
    unrelated_are: str

    def _measured(self) -> dict[str, Any]:
        """What was measured, as plain values for JSON."""
        return {
            "unrelated_are": self.unrelated_are,
            "distributions": {name: each.to_dict() for name, each in self.distributions.items()},
        }


@dataclass(frozen=True)
class Shortfall(Measurement):
    """What was measured where no threshold has the guarantee that was asked for.

    Attributes:
        target: Which rate was to be guaranteed.
        wanted: The rate.
        confidence: Confidence of the guarantee.
        prevalence: Share of related pairs that precision refers to, None where it is unknown.
        best: The rate nearest to `wanted` that these pairs can guarantee, and its threshold; None if there is none.
        reason: Why `wanted` cannot be guaranteed.
    """

    target: Target
    wanted: float
    confidence: float
    prevalence: float | None
    best: tuple[float, float] | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        best = None if self.best is None else {"wanted": self.best[0], "value": self.best[1]}
        return {
            "model": self.model, "data": {"name": self.data, "split": self.split}, "threshold": None,
            "target": self.target, "wanted": self.wanted, "confidence": self.confidence, "prevalence": self.prevalence,
            "best_guarantee": best, "reason": self.reason, **self._measured(),
        }  # fmt: skip


@dataclass(frozen=True)
class Calibration(Measurement):
    """Meaning of a model's similarities on some data. Called with similarities, it gives calibrated scores.

    Attributes:
        threshold: The threshold that was asked for; what was measured beside it is that of `Measurement`.
        score_map: Map from similarity to a calibrated score.
        meaning: Meaning of calibrated scores: `probability` that a pair is related, or `percentile`, the share of
            unrelated pairs with less similarity.
        prevalence: Share of related pairs that probability and precision refer to, None where it is unknown.
        made_for: What the model must be for the calibration to hold.
        fingerprint: sha256 (hex) of the data and of how pairs were drawn from it.
        seed: Random seed for drawing pairs and of the bootstrap.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.evaluation import calibrate
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> calibration = calibrate(model, "pairs.jsonl", false_positive_rate=0.2, show_progress=False)
        >>> calibration([0.2, 0.9]).shape
        (2,)
    """

    threshold: Threshold
    score_map: LogisticMap | QuantileMap
    meaning: str
    prevalence: float | None
    made_for: Mapping[str, Any]
    fingerprint: str
    seed: int

    def __call__(self, similarity: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Calibrated scores, from 0 to 1, of raw similarities of any shape."""
        return self.score_map(similarity)

    def attach(self, model: Embedder) -> None:
        """Put it into the card of the model: `similarity(..., calibrated=True)` uses it, and `save` keeps it."""
        model.card = dataclasses.replace(model.card, calibration=self.to_card())

    def to_card(self) -> dict[str, Any]:
        """The part that a model card keeps, as plain values."""
        threshold = self.threshold
        return {
            "format": FORMAT,
            "meaning": self.meaning,
            "map": self.score_map.to_dict(),
            "prevalence": self.prevalence,
            "threshold": {
                "value": threshold.value, "target": threshold.target, "wanted": threshold.wanted,
                "confidence": threshold.confidence, "groups": threshold.groups, "method": threshold.method,
            },
            "data": {
                "name": self.data, "split": self.split, "fingerprint": self.fingerprint,
                "pairs": {name: each.count for name, each in self.distributions.items()},
            },
            "made_for": dict(self.made_for),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return {
            "model": self.model,
            **self.to_card(),
            "threshold": dataclasses.asdict(self.threshold),
            **self._measured(),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Wish:
    """The guarantee that a threshold is to keep on some pairs, checked as far as that needs no model.

    Attributes:
        target: The rate that is guaranteed.
        wanted: How much of it, above 0 and below 1.
        share: Share of related pairs where the threshold will be used, None if it is unknown.
    """

    target: Target
    wanted: float
    share: float | None

    @classmethod
    def of(
        cls, texts: TextPairs, *, precision: float | None = None, false_positive_rate: float | None = None,
        recall: float | None = None, confidence: float = 0.95, prevalence: float | None = None,
    ) -> Wish:  # fmt: skip
        """What the arguments of `calibrate` ask for.

        Raises:
            ArgumentError: they contradict each other or are impossible.
            DataError: the pairs do not have what the guarantee is about.
        """
        rates: dict[Target, float | None] = {
            "precision": precision, "false_positive_rate": false_positive_rate, "recall": recall,
        }  # fmt: skip
        given = [(target, value) for target, value in rates.items() if value is not None]
        if len(given) > 1:
            raise ArgumentError(
                f"{' and '.join(target for target, _ in given)} ask for two thresholds: give one of them"
            )
        target, wanted = given[0] if given else ("false_positive_rate", DEFAULT_FALSE_POSITIVE_RATE)
        for name, value in ((target, wanted), ("confidence", confidence), ("prevalence", prevalence)):
            if value is not None and not (isinstance(value, int | float) and 0 < value < 1):
                raise ArgumentError(f"{name} must be between 0 and 1, not {value!r}")
        share = prevalence if prevalence is not None else texts.share
        if target != "false_positive_rate" and not texts.related.any():
            raise DataError(f"{texts.name} names no related pairs, so {target} is unknown: use a false-positive rate")
        if target == "precision" and share is None:
            raise ArgumentError(
                f"{texts.name} names related pairs only, so their share is unknown, and precision depends on it: give "
                "the share that is expected where the threshold is used, such as prevalence=0.5, or use a "
                "false-positive rate"
            )
        return cls(target, wanted, share)


def calibrate(
    model: Embedder,
    data: Data,
    *,
    precision: float | None = None,
    false_positive_rate: float | None = None,
    recall: float | None = None,
    confidence: float = 0.95,
    prevalence: float | None = None,
    pairs: int = 5000,
    related_from: float | None = None,
    split: str | None = None,
    seed: int = 0,
    show_progress: bool | None = None,
    encoding: str | None = None,
    quoting: Quoting = "auto",
) -> Calibration:
    """Measure a model's similarities on data, choose a threshold that keeps a guarantee, and learn a calibrated score.

    The threshold is the lowest one that keeps the guarantee on unseen pairs like these at the stated confidence: it is
    stricter than the one that just reaches the rate on the pairs at hand (`threshold.plain`), the more so the fewer
    pairs there are. Pairs that share a text, such as all those of one query, are one group, and it is groups that
    count: rates are means over them (`threshold.groups`). `thresholds.py` says how.

    Args:
        model: The model.
        data: A task, a path for `read_tasks`, a list of texts, two lists of texts that belong together line by line,
            two lists and labels, 1 for related and 0 for unrelated lines, or what `read_pairs` gives.
        precision: At least this share of the pairs from the threshold on are related.
        false_positive_rate: At most this share of the unrelated pairs reach the threshold. The default, with 0.01.
        recall: At least this share of the related pairs reach the threshold.
        confidence: Probability that the guarantee holds.
        prevalence: Share of related pairs where the threshold and the probabilities will be used; by default that of
            the data where it names related and unrelated pairs.
        pairs: Maximum number of pairs that are drawn of each sort: related, unrelated, random.
        related_from: Score from which on pairs of an STS task are related; by default the higher one of two, else
            0.8 of the highest.
        split: Split of the data, where `data` is a path.
        encoding: What text files at a path are written in, by a name that Python knows; by default UTF-8.
        quoting: Whether quotes in csv and tsv there enclose fields: `auto`, `csv` or `none`, see `read_records`.
        seed: Random seed for drawing pairs and of the bootstrap.
        show_progress: Show a progress bar; by default on a terminal.

    Raises:
        ArgumentError: requests contradict each other or are impossible.
        DataError: the data cannot be read, or the model finds all pairs equally similar.
        NoGuaranteeError: the data has too few groups of pairs for the guarantee, or does not allow the precision; it
            holds what was measured and the best guarantee that is possible.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.evaluation import calibrate
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> calibration = calibrate(model, "pairs.jsonl", false_positive_rate=0.2, show_progress=False)
        >>> calibration.threshold.target
        'false_positive_rate'
    """
    texts = read_pairs(
        data, pairs=pairs, related_from=related_from, split=split, seed=seed, encoding=encoding, quoting=quoting
    )
    wish = Wish.of(
        texts, precision=precision, false_positive_rate=false_positive_rate, recall=recall, confidence=confidence,
        prevalence=prevalence,
    )  # fmt: skip
    target, wanted, share = wish.target, wish.wanted, wish.share
    labelled, random = scored_pairs(model, texts, show_progress)
    _check_spread(model.card.name, labelled, random)
    known = texts.share is not None
    scored = labelled if known else labelled.joined(random)
    groups = {"unrelated": scored.similarity[~scored.related], "related": scored.similarity[scored.related]}
    if known:
        groups["random"] = random.similarity
    if not scored.related.any():
        share = None
    measured: dict[str, Any] = {
        "model": model.card.name, "data": texts.name, "split": texts.split,
        "distributions": {name: Distribution.of(values) for name, values in groups.items() if len(values)},
        "unrelated_are": "labelled" if known else "random",
    }  # fmt: skip
    try:
        threshold = choose_threshold(scored, target, wanted, confidence=confidence, prevalence=share, seed=seed)
    except DataError as error:
        best = best_guarantee(scored, target, wanted, confidence=confidence, prevalence=share)
        raise NoGuaranteeError(
            str(error), Shortfall(**measured, target=target, wanted=wanted, confidence=confidence, prevalence=share,
                                  best=best, reason=str(error)),
        ) from None  # fmt: skip
    bounded = model.card.similarity == "cosine" or (model.card.similarity == "dot" and model.card.normalize)
    return Calibration(
        **measured,
        threshold=threshold,
        score_map=_quantile_map(groups["unrelated"]) if share is None else fit_logistic(scored, share, bounded=bounded),
        meaning="probability" if share is not None else "percentile",
        prevalence=share,
        made_for=_made_for(model, texts),
        fingerprint=digest(str(FORMAT), texts.fingerprint, str(pairs), str(related_from), str(seed)),
        seed=seed,
    )


def _check_spread(model: str, *pairs: ScoredPairs) -> None:
    """See to it that similarities differ at all, which a threshold could make use of.

    Raises:
        DataError: they do not.
    """
    similarity = np.concatenate([each.similarity for each in pairs])
    if len(similarity) and np.ptp(similarity) <= _NO_SPREAD:
        raise DataError(
            f"{model} gives all {len(similarity):,} pairs the same similarity ({similarity[0]:.4f}), so no threshold "
            "tells related from unrelated ones: its vectors are all alike (a model that has collapsed, or one that is "
            "not an embedder), or all texts are equal"
        )


def fit_logistic(pairs: ScoredPairs, prevalence: float, *, bounded: bool = True) -> LogisticMap:
    """The probability that a pair is related, by logistic regression on its similarity and on its nearness to 1.

    Labels are smoothed as Platt (1999) does, so that pairs without any overlap give finite values.

    Args:
        pairs: Pairs, related and unrelated.
        prevalence: Share of related pairs that the probabilities are to be right for.
        bounded: Similarities are at most 1, as cosines are.

    Raises:
        DataError: related pairs are not more similar than unrelated ones.
    """
    columns = {"slope": pairs.similarity} | ({"edge": nearness(pairs.similarity)} if bounded else {})
    while columns:
        *weights, intercept = _logistic(np.stack(list(columns.values())), pairs.related)
        found = dict(zip(columns, weights, strict=True))
        if min(weights) > 0:
            shift = float(np.log(odds_factor(pairs.share, prevalence)))
            return LogisticMap(found.get("slope", 0.0), found.get("edge", 0.0), intercept + shift)
        # A probability that falls while the similarity rises is an accident of few pairs: do without the cause.
        columns.pop(min(found, key=lambda name: found[name] * float(columns[name].std())))
    raise DataError("related pairs are not more similar than unrelated ones, so similarity says nothing of them")


def _logistic(features: Floats, labels: Booleans) -> list[float]:
    """Weights of features [k, n] and the constant that make the labels most likely."""
    linear = import_extra("sklearn.linear_model", "eval")
    centre, scale = features.mean(axis=1), np.maximum(features.std(axis=1), 1e-12)
    design = np.stack([*((features - centre[:, None]) / scale[:, None]), np.ones(len(labels))], axis=1)
    positive = int(labels.sum())
    # Each pair counts as related by its smoothed label, and as unrelated by the rest of 1.
    targets = np.where(labels, (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2))
    # The slight penalty is for similarities that are all small: both features say nearly the same there.
    model = linear.LogisticRegression(C=1e6, fit_intercept=False, solver="newton-cholesky", tol=1e-10, max_iter=200)
    model.fit(np.tile(design, (2, 1)), np.repeat([1, 0], len(labels)), np.concatenate([targets, 1 - targets]))
    *weights, constant = model.coef_[0]
    raw = np.array(weights) / scale
    return [*raw.tolist(), float(constant - raw @ centre)]


def _quantile_map(unrelated: Floats) -> QuantileMap:
    """The share of unrelated pairs below a similarity."""
    values = np.quantile(unrelated, _KNOTS)
    # Of equal quantiles the last one counts: all these pairs have at most this similarity.
    last = np.append(values[1:] > values[:-1], True)
    return QuantileMap(tuple(values[last].tolist()), tuple(_KNOTS[last].tolist()))


def read_pairs(
    data: Data, *, pairs: int = 5000, related_from: float | None = None, split: str | None = None, seed: int = 0,
    encoding: str | None = None, quoting: Quoting = "auto",
) -> TextPairs:  # fmt: skip
    """The pairs that `calibrate` measures, and takes as its data; arguments are those of the same names there.

    Raises:
        ArgumentError: an argument is impossible.
        DataError: the data cannot be read.
    """
    if not isinstance(pairs, int) or pairs < 1:
        raise ArgumentError(f"pairs must be a positive number, not {pairs!r}")
    if isinstance(data, str | os.PathLike):
        tasks = read_tasks(data, split=split, encoding=encoding, quoting=quoting)
        if len(tasks) != 1:
            names = ", ".join(f"{task.name} ({task.split})" for task in tasks)
            raise DataError(f"{data} holds {len(tasks)} tasks, but a calibration is of one: {names}")
        data = tasks[0]
    if isinstance(data, TextPairs):
        return data
    if isinstance(data, Task):
        return pairs_of_task(data, pairs, related_from=related_from, seed=seed)
    if isinstance(data, tuple) and 2 <= len(data) <= 3 and not isinstance(data[0], str):
        first, second, labels = (*data, None) if len(data) == 2 else data
        return pairs_of_lists(first, second, labels, pairs, seed=seed)  # type: ignore[arg-type]
    if isinstance(data, Sequence) and all(isinstance(text, str) for text in data):
        return pairs_of_lists(data, None, None, pairs, seed=seed)  # type: ignore[arg-type]
    raise ArgumentError(
        "data must be a task, a path, a list of texts, or a tuple of two lists of texts, with labels or without, "
        f"not {type(data).__name__}"
    )


def scored_pairs(model: Embedder, texts: TextPairs, progress: bool | None) -> tuple[ScoredPairs, ScoredPairs]:
    """The labelled and the random pairs with their similarities, from vectors that are computed once."""
    judged = JudgedModel(model, progress=progress)
    if texts.sides[0] == texts.sides[1]:
        first = second = judged.plain(texts.first, texts.kind, texts.name)
    else:
        first = judged.queries(texts.first, texts.kind, texts.name)
        second = judged.documents(texts.second, texts.kind, texts.name)

    def scored(rows: Integers, related: Booleans) -> ScoredPairs:
        # Pairs by blocks: gathered vectors of all of them would be many times those of the texts.
        parts = [
            judged.similarity(first[rows[0, start : start + 1024]], second[rows[1, start : start + 1024]])
            for start in range(0, rows.shape[1], 1024)
        ]
        return ScoredPairs(np.concatenate([np.empty(0), *parts]), related, rows, texts.sides[0] == texts.sides[1])

    return scored(texts.rows, texts.related), scored(texts.random, np.zeros(texts.random.shape[1], dtype=bool))


def _made_for(model: Embedder, texts: TextPairs) -> dict[str, Any]:
    """Settings that must be the same for the calibration to hold, prompts included if pairs were encoded with them."""
    facts = model.similarity_facts()
    for side in {*texts.sides}:
        role = role_of(model.card, texts.kind, texts.name, side)
        if role is not None:
            facts[f"prompt {role}"] = str(model.card.prompt(role))
    return facts
