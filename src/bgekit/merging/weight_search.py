"""Weights that score best on validation data: each candidate is merged, and measured as its users would use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..errors import ArgumentError
from ..evaluation.evaluator import FirstStage, evaluate
from ..evaluation.tasks.base import check_rerankable
from .compatibility import Kind

if TYPE_CHECKING:
    from ..evaluation.tasks.base import Task

#: Sweeps over all models, at most; each one costs as many evaluations as there are models and points.
SWEEPS: Final = 3
Weights: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """Weights and what they scored.

    Attributes:
        weights: Of each model.
        score: Mean of the main scores of all tasks, x100.
        scores: Of each task.
    """

    weights: Weights
    score: float
    scores: Mapping[str, float]


def search(judge: Callable[[Weights], Trial], models: int, points: int) -> list[Trial]:
    """Try weights that sum to 1.

    Of two models all `points` weights from 0 to 1 are tried. Of more, coordinate ascent from equal weights on: one
    model's weight takes all `points` values while the others keep their proportions, then the next model's, until a
    sweep over all models brings nothing or three sweeps are done.

    Args:
        judge: Measures weights; each is asked for once.
        models: Number of models.
        points: Values that a weight takes.

    Returns:
        All trials, in the order in which they were made.
    """
    if models < 2:
        raise ArgumentError("weights are searched for two models or more")
    if points < 2:
        raise ArgumentError(f"search_points must be at least 2, not {points}")
    trials: dict[Weights, Trial] = {}

    def tried(weights: Weights) -> Trial:
        key = tuple(round(weight, 6) for weight in weights)
        if key not in trials:
            trials[key] = judge(weights)
        return trials[key]

    grid = [place / (points - 1) for place in range(points)]
    if models == 2:
        for second in grid:
            tried((1 - second, second))
        return list(trials.values())
    current = tried((1 / models,) * models)
    for _ in range(SWEEPS):
        before = current.score
        for number in range(models):
            for weight in grid:
                trial = tried(_with(current.weights, number, weight))
                current = max(current, trial, key=lambda each: each.score)
        if current.score <= before:
            break
    return list(trials.values())


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score; of equal ones that with the most even weights."""
    return max(trials, key=lambda trial: (trial.score, -max(trial.weights)))


def _with(weights: Weights, number: int, weight: float) -> Weights:
    """The weights with one of them set, the others in their proportions."""
    rest = sum(weights) - weights[number]
    share = [each / rest if rest > 0 else 1 / (len(weights) - 1) for each in weights]
    return tuple(weight if place == number else (1 - weight) * share[place] for place in range(len(weights)))


def measures(
    kind: Kind,
    tasks: Sequence[Task],
    kept: Path,
    *,
    first_stage: str | None,
    rerank_top_k: int,
    devices: Any,
    pooling: str | None = None,
) -> Callable[[Path], dict[str, float]]:
    """A measurement of the model in a folder on tasks: main scores x100 by task.

    Args:
        kind: Of the model.
        tasks: What is measured.
        kept: A folder where vectors of the first stage stay from one model to the next.
        first_stage: For rerankers, the embedder whose best passages are put in order.
        rerank_top_k: Passages of a query that the reranker sees.
        devices: Where to compute, as `FlagModel` takes it.
        pooling: How the first stage pools, None for what it says.

    Raises:
        ArgumentError: rerankers cannot be measured on one of the tasks.
    """
    if kind == "reranker":
        check_rerankable(tasks)
    stage = FirstStage(str(first_stage), tasks, kept, devices=devices, pooling=pooling)

    def measure(folder: Path) -> dict[str, float]:
        if kind == "encoder":
            found = evaluate(str(folder), tasks, compare=False, progress=False, devices=devices)
        else:
            found = stage.reranked_by(folder, rerank_top_k)
        return {f"{result.task} {result.main_metric}": result.main_score for result in found.results}

    return measure


def rows(trials: Sequence[Trial], names: Sequence[str]) -> Iterator[list[str]]:
    """Trials as cells of a table, by weights; the best one has a star."""
    star = best(trials)
    tasks = list(trials[0].scores)
    yield [*names, "score", *(tasks if len(tasks) > 1 else []), ""]
    for trial in sorted(trials, key=lambda each: each.weights, reverse=True):
        scores = [f"{trial.scores[task]:.2f}" for task in tasks] if len(tasks) > 1 else []
        weights = [f"{weight:.3f}" for weight in trial.weights]
        yield [*weights, f"{trial.score:.2f}", *scores, "*" if trial is star else ""]
