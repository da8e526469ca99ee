"""Weights of models: from their losses on a few examples, or by a search on validation data; how both are shown.

On examples, each model's weight is softmax(-loss / T) over the models (LM-Cocktail). The loss of an embedder is the
cross entropy of each query's positive against all passages of its batch, over vectors of length 1 at a temperature of
0.05; that of a reranker is the cross entropy of the positive within its own group. The formula is that of LM-Cocktail
(arXiv:2311.13534) as its package computes it. In a search each candidate is merged, and measured as its users would use
it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch.nn.functional import cross_entropy, normalize

from ..data.columns import BadLines, Line, read_file
from ..data.formats import USUAL, Dialect, Quoting
from ..data.training_rows import EXAMPLE_LINE, Row, row_of
from ..display.terminal import aligned
from ..errors import ArgumentError, DataError, NumericalError
from ..evaluation.evaluator import FirstStage, evaluate
from ..evaluation.tasks.base import check_rerankable
from ..inference.tokenization import load_tokenizer
from ..models.card import ModelCard, RerankerCard
from ..models.sentence_transformers_files import short_names
from ..networks import cross_encoder, encoder
from ..training.batches.collator import Batch, Collator, PairCollator
from ..training.batches.sampler import Example, Sampling
from .sources import Card, Kind, Options

if TYPE_CHECKING:
    from ..evaluation.tasks.base import Task

logger = logging.getLogger(__name__)
ExampleData: TypeAlias = "str | os.PathLike[str] | Iterable[Mapping[str, Any]]"
#: Temperature of the similarities.
TAU: Final = 0.05
#: Sweeps over all models, at most; each one costs as many evaluations as there are models and points.
SWEEPS: Final = 3
Weights: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class Examples:
    """Weights from examples: softmax(-loss / temperature) over the models.

    Attributes:
        data: A file of JSON lines `{"query", "pos", "neg"}`, or such rows.
        temperature: Temperature of the softmax; the higher, the more even the weights.
        batch_size: Examples of a batch, whose passages are each other's negatives (embedders).
        max_input_length: Tokens where texts are cut, or fewer if the model takes fewer.
        neg_number: Negatives of each example, drawn at random.
        encoding: What the file is written in, as in `read_records`.
        quoting: Quoting of a csv or tsv file, as there.

    Example:
        >>> from bgekit.merging import Examples, Merging, merge
        >>> task = Merging(["BAAI/bge-small-en-v1.5", "fine-tuned"])
        >>> merged = merge(task, "by-examples", examples=Examples("train.jsonl", neg_number=1))
        >>> len(merged.losses)
        2
    """

    data: ExampleData
    temperature: float = 5.0
    batch_size: int = 2
    max_input_length: int = 2048
    neg_number: int = 7
    encoding: str | None = None
    quoting: Quoting = "auto"


def softmax_weights(losses: Sequence[float], temperature: float) -> tuple[float, ...]:
    """softmax(-loss / temperature): the weights of models by their losses.

    Raises:
        ArgumentError: the temperature is not above 0.
        NumericalError: a loss is NaN or infinite.
    """
    if not temperature > 0:
        raise ArgumentError(f"the temperature must be above 0, not {temperature:g}")
    if not all(map(math.isfinite, losses)):
        raise NumericalError(f"a model's loss on the examples is not finite: {list(losses)}")
    least = min(losses)
    parts = [math.exp((least - loss) / temperature) for loss in losses]
    return tuple(part / math.fsum(parts) for part in parts)


def read_examples(data: ExampleData, kind: Kind, neg_number: int, seed: int, dialect: Dialect = USUAL) -> list[Example]:
    """The examples: of each row its first positive and so many of its negatives, drawn at random.

    A row with fewer negatives has them repeated.

    Args:
        data: A file of training data, or its rows.
        kind: Kind of the models.
        neg_number: Negatives of each example.
        seed: Random seed for the draws.
        dialect: How the file is written.

    Raises:
        DataError: rows cannot be used, or none has what a loss needs.
    """
    if neg_number < 0:
        raise ArgumentError(f"neg_number must not be negative, but it is {neg_number}")
    sampling = Sampling(neg_number + 1, seed=seed)
    rows = _rows(data, dialect)
    if not rows:
        raise DataError(f"there are no examples; each is an object such as {EXAMPLE_LINE}")
    examples = [sampling.draw(replace(row, positives=row.positives[:1]), 0) for row in rows]
    bare = sum(len(example.passages) == 1 for example in examples)
    if kind == "reranker" and bare == len(examples):
        raise DataError("no example has negatives: a reranker's loss compares a positive with them")
    if bare and kind == "reranker":
        logger.warning("%d of %d examples have no negatives and say nothing about a reranker", bare, len(examples))
    return examples


def _rows(data: ExampleData, dialect: Dialect) -> list[Row]:
    bad, found = BadLines(), list[Row]()
    if isinstance(data, str | os.PathLike):
        lines: Iterable[Line] = read_file(data, dialect, bad=bad)
    else:
        lines = (Line("the examples", number, fields) for number, fields in enumerate(data, 1))
    for line, row in bad.usable(lines, _row):
        if row.score is not None:
            bad.add(line.file, line.number, "a scored pair (with `score`) has no negatives to compare with")
            continue
        found.append(replace(row, index=len(found)))
    bad.check("example", "cannot be used")
    return found


def _row(line: Line) -> Row:
    if not isinstance(line.fields, Mapping):
        raise line.error(f"an object with query, pos and neg is expected, not {type(line.fields).__name__}")
    return row_of(line)


def model_loss(
    folder: Path, card: Card, read: Sequence[Example], examples: Examples, options: Options, device: str
) -> float:
    """The mean loss of a model over examples, in float32.

    Args:
        folder: Its checkpoint.
        card: Its card: pooling and prompts are what it says; a row's `prompt` stands in for that of its query.
        read: The examples.
        examples: How they were given: sizes of batches, whose passages are in-batch negatives, and of texts.
        options: How far the checkpoint is trusted.
        device: Where to compute.
    """
    size, length = examples.batch_size, examples.max_input_length
    if size < 1 or length < 1:
        raise ArgumentError("batch_size and max_input_length must be at least 1")
    there = torch.device(device)
    if isinstance(card, RerankerCard):
        collate, of_batch = _reranker(folder, card, length, options, there)
    else:
        collate, of_batch = _embedder(folder, card, length, options, there)
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(read), size):
            part = read[start : start + size]
            total += of_batch(collate(part, size=len(part)).to(there))
    return total / len(read)


def in_batch_loss(queries: torch.Tensor, passages: torch.Tensor, groups: Sequence[int]) -> float:
    """Sum over queries [n, d] of the cross entropy of their positive among all passages [m, d] of the batch.

    Args:
        queries: Vectors.
        passages: Vectors, row by row, the positive of each row first.
        groups: Passages of each row.
    """
    queries, passages = (normalize(vectors.cpu().double(), dim=-1) for vectors in (queries, passages))
    scores = queries @ passages.T / TAU
    sizes = torch.tensor(groups)
    return float(cross_entropy(scores, sizes.cumsum(0) - sizes, reduction="sum"))


def group_loss(scores: torch.Tensor, groups: Sequence[int]) -> float:
    """Sum over groups of the cross entropy of their first score within them.

    Args:
        scores: Scores of all groups, one after the other [m].
        groups: Size of each.
    """
    parts = scores.cpu().double().split(list(groups))
    return float(sum(part.logsumexp(0) - part[0] for part in parts))


def _embedder(
    folder: Path, card: ModelCard, length: int, options: Options, device: torch.device
) -> tuple[Collator, Callable[[Batch], float]]:
    network = encoder.load_trainable(
        folder, card, trust_remote_code=options.trust_remote_code, allow_pickle=options.allow_pickle
    )
    vectors = network.eval().to(device)
    tokenizer = load_tokenizer(folder, lower_case=card.lower_case, trust_remote_code=options.trust_remote_code)
    collate = Collator.of(tokenizer, card, query_max_len=length, passage_max_len=length)
    return collate, lambda batch: in_batch_loss(vectors(batch.queries), vectors(batch.passages), batch.groups)


def _reranker(
    folder: Path, card: RerankerCard, length: int, options: Options, device: torch.device
) -> tuple[Collator, Callable[[Batch], float]]:
    network = cross_encoder.load_trainable(
        folder, trust_remote_code=options.trust_remote_code, allow_pickle=options.allow_pickle
    )
    scores = network.eval().to(device)
    collate = PairCollator(
        load_tokenizer(folder, trust_remote_code=options.trust_remote_code), card.query, card.document, "{}{}",
        max_len=min(length, card.max_length), token_types=network.token_types,
    )  # fmt: skip
    return collate, lambda batch: group_loss(scores(batch.passages), batch.groups)


@dataclass(frozen=True)
class Validation:
    """Weights by search: those with the best mean score on tasks.

    Attributes:
        data: Folders or files in any form that `bgekit.evaluation.read_tasks` knows.
        split: The split to measure on; by default test where there is one.
        points: Values that a weight takes, from 0 to 1.
        first_stage: For rerankers, the embedder whose best passages are reranked.
        rerank_top_k: Passages of a query that the reranker sees.
        encoding: What text files are written in, as in `bgekit.evaluation.read_tasks`.
        quoting: Quoting of csv and tsv files, as there.

    Example:
        >>> from bgekit.merging import Merging, Validation, merge
        >>> task = Merging(["BAAI/bge-small-en-v1.5", "fine-tuned"])
        >>> merged = merge(task, "by-scores", validation=Validation(["scifact"], points=2))
        >>> len(merged.trials)
        2
    """

    data: Sequence[str]
    split: str | None = None
    points: int = 11
    first_stage: str | None = None
    rerank_top_k: int = 100
    encoding: str | None = None
    quoting: Quoting = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.data, str | os.PathLike) or not self.data:
            raise ArgumentError("validation data must be a list of folders or files with at least one")


@dataclass(frozen=True)
class Trial:
    """Weights and what they scored.

    Attributes:
        weights: Weights of each model.
        score: Mean of the main scores of all tasks, x100.
        scores: Scores of each task.
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
        raise ArgumentError("a search for weights needs two models or more")
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
    kind: Kind, tasks: Sequence[Task], kept: Path, validation: Validation, *, devices: Any, pooling: str | None = None,
    show_progress: bool = False,
) -> Callable[[Path], dict[str, float]]:  # fmt: skip
    """A measurement of the model in a folder on tasks: main scores x100 by task.

    Args:
        kind: Kind of the model.
        tasks: What is measured.
        kept: A folder where vectors of the first stage stay from one model to the next.
        validation: For rerankers, what the first stage is.
        devices: Where to compute, as `FlagModel` takes it.
        pooling: How the first stage pools, None for what it says.
        show_progress: Show bars.

    Raises:
        ArgumentError: rerankers cannot be measured on one of the tasks.
    """
    if kind == "reranker":
        check_rerankable(tasks)
    stage = FirstStage(
        str(validation.first_stage), tasks, kept, devices=devices, pooling=pooling, progress=show_progress
    )

    def measure(folder: Path) -> dict[str, float]:
        if kind == "encoder":
            found = evaluate(
                str(folder), tasks, compare=False, progress=show_progress, log_scores=False, devices=devices
            )
        else:
            found = stage.reranked_by(folder, validation.rerank_top_k)
        return {f"{result.task} {result.main_metric}": result.main_score for result in found.results}

    return measure


def _trial_cells(trials: Sequence[Trial], names: Sequence[str]) -> Iterator[list[str]]:
    """Trials as cells of a table, by weights; the best one has a star."""
    star = best(trials)
    tasks = trials[0].scores if len(trials[0].scores) > 1 else ()
    yield [*names, "score", *tasks, ""]
    for trial in sorted(trials, key=lambda each: each.weights, reverse=True):
        weights = [f"{weight:.3f}" for weight in trial.weights]
        scores = [f"{score:.2f}" for score in (trial.score, *(trial.scores[task] for task in tasks))]
        yield [*weights, *scores, "*" if trial is star else ""]


def weights_table(names: Sequence[str], weights: Sequence[float], losses: Sequence[float] | None) -> str:
    """Models, weights and losses in lines for a terminal."""
    cells = [["model", "weight", *(["loss"] if losses else [])]]
    for place, name in enumerate(names):
        cells.append([name, f"{weights[place]:.4f}", *([f"{losses[place]:.4f}"] if losses else [])])
    return "\n".join(aligned(cells))


def trials_table(trials: Sequence[Trial], names: Sequence[str]) -> str:
    """The trials of a search in lines for a terminal."""
    short, weights = short_names(names), best(trials).weights
    lines = list(aligned(list(_trial_cells(trials, short))))
    if max(weights) == 1:
        lines += ["", f"no mixture is better than {short[weights.index(1)]} alone: the result is a copy of it"]
    return "\n".join(lines)
