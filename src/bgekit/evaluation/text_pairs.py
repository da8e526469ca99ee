"""Pairs of texts to calibrate on: those that the data says are related or not, and random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, DataError
from ..files.hashing import digest
from ..models.card import Role
from .judged_model import Kind
from .tasks.base import Task
from .tasks.bitext import BitextTask
from .tasks.classification import ClassificationTask
from .tasks.clustering import ClusteringTask
from .tasks.pairs import PairClassificationTask, StsTask
from .tasks.reranking import RerankingTask
from .tasks.retrieval import RetrievalTask
from .tasks.summarization import SummarizationTask

Integers = npt.NDArray[np.int64]
Labelled = tuple[str, str, bool]
#: Graded scores (STS: 0 to 5) count as related from this share of the highest one on.
_GRADED: Final = 0.8


@dataclass
class TextPairs:
    """Pairs as numbers of texts.

    Attributes:
        name: Name of the data.
        split: Split of the data.
        kind: Kind of the task, which decides about prompts.
        fingerprint: sha256 (hex) of the data.
        sides: Whether first and second texts are queries, documents or neither.
        first: Distinct first texts.
        second: Distinct second texts; the same list as `first` where the sides do not differ.
        rows: [2, n] numbers of the texts of each pair that the data speaks of.
        related: [n], what it says.
        random: [2, m] pairs drawn at random that the data does not call related.
        share: Share of related ones among the pairs that all of the data speaks of; None where it does not name both.
    """

    name: str
    split: str
    kind: Kind
    fingerprint: str
    sides: tuple[Role, Role] = ("plain", "plain")
    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    rows: Integers = field(default_factory=lambda: np.empty((2, 0), dtype=np.int64))
    related: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))
    random: Integers = field(default_factory=lambda: np.empty((2, 0), dtype=np.int64))
    share: float | None = None


def pairs_of_task(task: Task, limit: int, *, related_from: float | None = None, seed: int = 0) -> TextPairs:
    """The pairs of a task.

    Args:
        task: STS and pair classification have labelled pairs; so have reranking, and retrieval by its judgements.
            Bitext mining has related pairs alone; of the other kinds only the texts are used.
        limit: Maximum number of pairs of each of the three: related, unrelated, random.
        related_from: Score from which on a pair of an STS task is related; by default the higher of two, or 0.8 of
            the highest.
        seed: Which pairs are drawn.

    Raises:
        ArgumentError: nothing can be drawn from this kind of task.
    """
    rng = np.random.default_rng(seed)
    result = TextPairs(task.name, task.split, task.kind, task.fingerprint)
    if isinstance(task, RetrievalTask):
        result.sides = ("query", "document")
        return _filled(result, *_retrieval(task, result, limit, rng), limit, rng)
    if isinstance(task, StsTask):
        least = related_from if related_from is not None else _least_related(task.scores)
        labels = [score >= least for score in task.scores]
        found = list(zip(task.first, task.second, labels, strict=True))
    elif isinstance(task, PairClassificationTask):
        found = [(a, b, label == 1) for a, b, label in zip(task.first, task.second, task.labels, strict=True)]
    elif isinstance(task, RerankingTask):
        result.sides = ("query", "document")
        found = [
            (group.query, text, related)
            for group in task.groups
            for texts, related in ((group.positives, True), (group.negatives, False))
            for text in texts
        ]
    elif isinstance(task, BitextTask):
        found = [(a, b, True) for a, b in zip(task.first, task.second, strict=True)]
    else:
        texts = _texts(task)
        return _filled(result, [], set(), (texts, texts), limit, rng)
    return _labelled(result, found, limit, rng)


def pairs_of_lists(
    first: Sequence[str], second: Sequence[str] | None, labels: Sequence[int] | None, limit: int, *, seed: int = 0
) -> TextPairs:
    """Pairs of lists: line i of both belongs together if its label is 1, or without labels.

    Args:
        first: The texts; alone, only random pairs of them are drawn.
        second: As many others.
        labels: 1 (related) or 0 for each line.
        limit: Maximum number of pairs of each kind.
        seed: Which pairs are drawn.
    """
    first = list(first)  # Columns of numpy and pandas, too.
    second = None if second is None else list(second)
    labels = None if labels is None else list(labels)
    if second is None and labels is not None:
        raise ArgumentError("labels need two lists of texts: calibrate(model, (first, second, labels))")
    if (second is not None and len(second) != len(first)) or (labels is not None and len(labels) != len(first)):
        raise ArgumentError("the lists have different lengths")
    wrong = next((label for label in labels or () if label not in (0, 1)), None)
    if wrong is not None:
        raise ArgumentError(f"labels must be 1 (related) or 0 (unrelated), not {wrong!r}")
    content = [*first, "\1", *(second or ()), "\1", *map(str, labels or ())]
    result = TextPairs("lists", "", "sts", digest(*content))
    rng = np.random.default_rng(seed)
    if second is None:
        return _filled(result, [], set(), (first, first), limit, rng)
    related = [True] * len(first) if labels is None else [label == 1 for label in labels]
    return _labelled(result, list(zip(first, second, related, strict=True)), limit, rng)


def _labelled(result: TextPairs, found: list[Labelled], limit: int, rng: np.random.Generator) -> TextPairs:
    """Pairs from labelled ones alone: random ones are drawn from their texts, which costs no further encoding."""
    known = {(a, b) for a, b, related in found if related}
    kept, result.share = _sampled(found, limit, rng)
    return _filled(result, kept, known, ([a for a, _, _ in kept], [b for _, b, _ in kept]), limit, rng)


def _filled(
    result: TextPairs, kept: list[Labelled], known: set[tuple[str, str]], pools: tuple[Sequence[str], Sequence[str]],
    limit: int, rng: np.random.Generator,
) -> TextPairs:  # fmt: skip
    """Draw random pairs from the pools, none that is known to be related, and number all texts."""
    drawn = _drawn(pools, limit, known, rng)
    if not drawn:
        raise DataError(f"{result.name} has no two different texts to compare")
    first: dict[str, int] = {}
    second: dict[str, int] = {} if result.sides[0] != result.sides[1] else first
    number, partner = _numbering(first), _numbering(second)
    result.rows = np.array([(number(a), partner(b)) for a, b, _ in kept], dtype=np.int64).reshape(-1, 2).T
    result.related = np.array([related for _, _, related in kept], dtype=bool)
    result.random = np.array([(number(a), partner(b)) for a, b in drawn], dtype=np.int64).T
    result.first, result.second = list(first), list(second)
    return result


def _numbering(known: dict[str, int]) -> Callable[[str], int]:
    return lambda text: known.setdefault(text, len(known))


def _drawn(
    pools: tuple[Sequence[str], Sequence[str]], limit: int, related: set[tuple[str, str]], rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Random pairs, none twice, none of equal texts, none that is related in either order."""
    first, second = (sorted(set(pool)) for pool in pools)
    # Few texts are shuffled over and over, so that each stands in about as many pairs as any other.
    wanted = 2 * limit
    if first == second:
        # Each shuffle gives pairs of the texts of its one half with those of the other: no text is in two of them.
        half = len(first) // 2
        if not half:
            return []
        rounds = [rng.permutation(len(first)) for _ in range(-(-wanted // half))]
        left, right = (np.concatenate([each[start : start + half] for each in rounds]) for start in (0, half))
    elif not first or not second:
        return []
    else:
        left, right = (
            np.concatenate([rng.permutation(len(pool)) for _ in range(-(-wanted // len(pool)))])[:wanted]
            for pool in (first, second)
        )
    taken: dict[tuple[str, str], None] = {}
    for a, b in zip(left, right, strict=True):
        pair = (first[a], second[b])
        turned = (pair[1], pair[0])
        if pair[0] != pair[1] and turned not in taken and not {pair, turned} & related:
            taken[pair] = None
            if len(taken) == limit:
                break
    return list(taken)


def _retrieval(
    task: RetrievalTask, result: TextPairs, limit: int, rng: np.random.Generator
) -> tuple[list[Labelled], set[tuple[str, str]], tuple[Sequence[str], Sequence[str]]]:
    """Judged pairs, all that are related, and queries and documents to draw from; documents are read in one pass."""
    judged = [(query, each, grade > 0) for query, found in task.qrels.items() for each, grade in found.items()]
    kept, result.share = _sampled(judged, limit, rng)
    ids = task.corpus.ids
    others = [ids[number] for number in rng.choice(len(ids), min(limit, len(ids)), replace=False)]
    texts = task.corpus.texts({document for _, document, _ in kept} | set(others))
    queries = task.queries
    found = [(queries[query], texts[each], related) for query, each, related in kept if each in texts]
    known = {(queries[query], texts[each]) for query, each, related in judged if related and each in texts}
    return found, known, ([queries[query] for query in task.qrels], [texts[each] for each in others])


def _sampled(found: list[Labelled], limit: int, rng: np.random.Generator) -> tuple[list[Labelled], float | None]:
    """At most `limit` related and as many unrelated pairs, and the share of related ones among all if both exist."""
    labels = np.array([related for _, _, related in found], dtype=bool)
    kept: list[Labelled] = []
    for related in (True, False):
        places = np.flatnonzero(labels == related)
        if len(places) > limit:
            places = np.sort(rng.choice(places, limit, replace=False))
        kept += [found[place] for place in places]
    return kept, float(labels.mean()) if labels.any() and not labels.all() else None


def _least_related(scores: Sequence[float]) -> float:
    """The higher one of two scores, or a share of the highest where they are graded."""
    different = sorted(set(scores))
    return different[-1] if len(different) == 2 else _GRADED * different[-1]


def _texts(task: Task) -> list[str]:
    if isinstance(task, ClassificationTask):
        return list(task.texts)
    if isinstance(task, ClusteringTask):
        return [text for texts, _ in task.sets for text in texts]
    if isinstance(task, SummarizationTask):
        return [text for group in task.groups for text in (group.text, *group.machine)]
    raise ArgumentError(f"{task.name}: no pairs can be drawn from a task of the kind {task.kind}")
