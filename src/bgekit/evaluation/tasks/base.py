"""The base class of tasks (data and protocol of one evaluation), and the scores of a model on one."""

from __future__ import annotations

import abc
import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ...data.columns import Exclusion
from ...errors import ArgumentError, require_extra
from ...search.modes import Mode
from ..judged_model import Kind

if TYPE_CHECKING:
    from ..judged_model import JudgedModel

#: How per-item values become the main score: their mean, or a statistic of prediction and label over all items.
Statistic: TypeAlias = Literal["mean", "spearman", "pearson", "average_precision"]

#: The column of `Items` that an interval reaches to, which other models' items need not have.
MOST: Final = "most"


@dataclass(frozen=True)
class Items:
    """Contributions of items (queries, pairs, texts, clustering problems) to the main score.

    Attributes:
        ids: One for each item, the same for every model.
        statistic: How the columns become the score.
        columns: `{"value": [n]}` for "mean"; `{"predicted": [n], "label": [n]}` for the others. Where a score is the
            mean over draws of training texts, `draws` [n, draws] has what each item adds in each, `value` how well it
            was done. Where it is one of weights that were fitted on other items, `most` [n] has the values with the
            weights that may bring most, to which intervals reach (`evaluation.hybrid.promising_point`).
        texts: A text to show for each item, such as the query.
        groups: For each item the group of those that stand or fall with it, the same for every model (`together`);
            None where all are independent.
        overlap: Share of their texts that two draws (of training texts; where the items are clustering problems, two
            items) have in common, on average.
    """

    ids: Sequence[str]
    statistic: Statistic
    columns: Mapping[str, npt.NDArray[np.float64]]
    texts: Sequence[str] = ()
    groups: Sequence[int | str] | None = None
    overlap: float = 0.0


def together(keys: Sequence[Sequence[Hashable]]) -> list[int] | None:
    """Groups of items that share a key, directly or through others: their outcomes are not independent.

    Args:
        keys: Keys of each item, such as the texts of a pair.

    Returns:
        A number for each item; None where no two items share a key.
    """
    parents: dict[Hashable, Hashable] = {}

    def first(key: Hashable) -> Hashable:
        while (parent := parents.setdefault(key, key)) != key:
            parents[key] = parents[parent]
            key = parents[key]
        return key

    for own in keys:
        for other in own[1:]:
            parents[first(other)] = first(own[0])
    numbers: dict[Hashable, int] = {}
    groups = [numbers.setdefault(first(own[0]), len(numbers)) for own in keys]
    return groups if len(numbers) < len(groups) else None


def shared_part(draws: Sequence[Iterable[Hashable]]) -> float:
    """Share of its members that a draw has in common with another, on average over all pairs of draws."""
    members = [set(draw) for draw in draws]
    counts = Counter(member for own in members for member in own)
    pairs = len(members) * (len(members) - 1)
    if not pairs or not counts:
        return 0.0
    size = sum(map(len, members)) / len(members)
    return sum(count * (count - 1) for count in counts.values()) / pairs / size


@dataclass(frozen=True)
class Scores:
    """Scores of a model on a task.

    Attributes:
        metrics: Metrics by name, as fractions (a perfect nDCG is 1.0); the main metric is among them.
        items: What each item contributes to the main metric.
        details: Further findings that reports show, as plain JSON values.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.evaluation import JudgedModel, read_tasks
        >>> scores = read_tasks("scifact")[0].score(JudgedModel(FlagModel("BAAI/bge-small-en-v1.5")))
        >>> len(scores.items.ids)
        2
    """

    metrics: Mapping[str, float]
    items: Items
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """Data and protocol of one evaluation; each kind is a subclass in `tasks/`.

    Attributes:
        name: As shown in reports.
        split: Such as `test`.
        main_metric: Name of the metric that counts.
        language: Such as `en`, `zh-en`; "" if unknown.
        query_instruction: Queries get the model's query instruction (retrieval and reranking).
        published: Scores (x100) of the main metric that others published, by model name without its organisation.
        comparable: Whether the data is exactly that of the published scores.
        exclusions: What of the data was left out.
        remarks: What else its reader noticed that a reader of its scores should know.

    Example:
        >>> from bgekit.evaluation import read_tasks
        >>> task = read_tasks("scifact")[0]
        >>> task.name, task.kind, task.main_metric
        ('scifact', 'retrieval', 'ndcg_at_10')
    """

    kind: ClassVar[Kind]
    #: Packages of the extra `eval` that scores are computed with.
    packages: ClassVar[tuple[str, ...]] = ()
    #: Whether a reranker can be measured on it: its score depends on the order that the reranker gives to passages.
    rerankable: ClassVar[bool] = False
    #: The modes of search that it can be measured in.
    modes: ClassVar[tuple[Mode, ...]] = ("dense",)

    name: str
    split: str = "test"
    main_metric: str
    language: str = ""
    query_instruction: bool = False
    published: Mapping[str, float] = field(default_factory=dict)
    comparable: bool = True
    exclusions: tuple[Exclusion, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for readers of the scores on how they came about: the remarks, and those of the kind."""
        return self.remarks

    @abc.abstractmethod
    def score(self, model: JudgedModel) -> Scores:
        """Encode the texts with a model and measure."""

    @abc.abstractmethod
    def content(self) -> Iterable[object]:
        """All that decides the score beside the model, as plain JSON values in a fixed order: data and protocol."""

    def explain(
        self, ids: Sequence[str], a: Mapping[str, Any], b: Mapping[str, Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """More about some items, to show why two models differ on them.

        Args:
            ids: The items.
            a: `Scores.details` of one model.
            b: Of the other.

        Returns:
            Names and texts to show, by item; by default nothing.
        """
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of kind, data and protocol; the task's name has no part in it."""
        digest = hashlib.sha256(f"{self.kind}\0{self.query_instruction}".encode())
        for part in self.content():
            digest.update(json.dumps(part, ensure_ascii=True, sort_keys=True).encode())
            digest.update(b"\0")
        return digest.hexdigest()


def require_packages(tasks: Iterable[Task], *more: str) -> None:
    """See to it, before a model is loaded, that all packages are there that the tasks are scored with, and `more`.

    Raises:
        MissingExtraError: one is not installed.
    """
    require_extra("eval", *dict.fromkeys([*(name for task in tasks for name in task.packages), *more]))


def check_rerankable(tasks: Iterable[Task]) -> None:
    """Raise ArgumentError, which names the others, unless a reranker can be measured on each of the tasks."""
    if others := [f"{task.name} ({task.kind.replace('_', ' ')})" for task in tasks if not task.rerankable]:
        raise ArgumentError(
            f"a reranker cannot be measured on {', '.join(others)}: it reranks the passages of queries, so give "
            "data for retrieval or reranking, that of a benchmark in folders (--data-root)"
        )
