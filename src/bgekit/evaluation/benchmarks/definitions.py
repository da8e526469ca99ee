"""Named benchmarks: their tasks, as the published averages count them. Their facts are in benchmarks.yaml."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np

from ...data.columns import normal
from ...errors import ArgumentError
from ...files.yaml_tables import packaged_yaml
from ..judged_model import JudgedModel, Kind
from ..tasks.base import Items, Scores, Task

_FACTS: Final = packaged_yaml(__package__, "benchmarks.yaml")
#: Main metric of each kind in the published tables.
MAIN_METRICS: Final[Mapping[Kind, str]] = _FACTS["main_metrics"]
#: The forums of CQADupStack: their mean counts as one dataset.
CQADUPSTACK: Final = tuple(f"CQADupstack{forum}Retrieval" for forum in _FACTS["cqadupstack"].split())


@dataclass(frozen=True)
class BenchmarkTask:
    """One task of a benchmark.

    Attributes:
        name: Its name in the mteb package.
        kind: What is measured.
        split: The split that counts.
        main_metric: The metric that counts, by the name of the published tables' time.
        language: Such as `en`, `zh`; "" for several.
        subset: Its subset in the mteb package, such as `en` or `zh-CN`; "" where there is only one.
        parts: Names in the mteb package of the tasks whose mean it is; () for a task of its own.
    """

    name: str
    kind: Kind
    split: str
    main_metric: str
    language: str
    subset: str = ""
    parts: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name and subset, such as `STS22-zh`: no two tasks of a benchmark share it."""
        return f"{self.name}-{self.subset}" if self.subset else self.name

    def answers_to(self, name: str) -> bool:
        """Whether a name that someone wrote means this task: with the subset or without, in any case."""
        return name.strip().lower() in (self.name.lower(), self.key.lower())


@dataclass(frozen=True)
class Benchmark:
    """A list of tasks whose scores are averaged.

    Attributes:
        name: As on the command line.
        title: For people.
        tasks: Tasks in the order of the kinds' columns.
    """

    name: str
    title: str
    tasks: tuple[BenchmarkTask, ...]

    def __iter__(self) -> Iterator[BenchmarkTask]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def weights(self) -> dict[Kind, int]:
        """Number of tasks of each kind, in the order of the columns."""
        return dict(Counter(task.kind for task in self.tasks))

    def label(self, task: BenchmarkTask) -> str:
        """Name of a task in reports: without its subset where the benchmark has only that one."""
        return task.name if sum(task.name == other.name for other in self.tasks) == 1 else task.key

    def select(self, names: Iterable[str] | None) -> tuple[BenchmarkTask, ...]:
        """The tasks of these names, in the benchmark's order; None for all.

        Raises:
            ArgumentError: the benchmark has no such task.
        """
        if names is None:
            return self.tasks
        wanted = list(names)
        for name in wanted:
            if not any(task.answers_to(name) for task in self.tasks):
                known = ", ".join(dict.fromkeys(task.name for task in self.tasks))
                raise ArgumentError(f"benchmark {self.name} has no task {name!r}; it has {known}")
        return tuple(task for task in self.tasks if any(task.answers_to(name) for name in wanted))


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name, in any case.

    Raises:
        ArgumentError: there is no such benchmark; the message lists those there are.
    """
    found = BENCHMARKS.get(name.strip().lower().replace("_", "-"))
    if found is None:
        listed = ", ".join(f"{known} ({entry.title}, {len(entry)} tasks)" for known, entry in BENCHMARKS.items())
        raise ArgumentError(f"there is no benchmark {name!r}; choose one of {listed}")
    return found


def _tasks(entries: Iterable[Any]) -> Iterator[BenchmarkTask]:
    """The tasks of entries of the file; a name may have a subset after a colon, an entry may be a list of entries."""
    for entry in entries:
        if isinstance(entry, list):
            yield from _tasks(entry)
            continue
        kind: Kind = entry["kind"]
        for name, _, subset in (named.partition(":") for named in entry["names"].split()):
            parts = CQADUPSTACK if name == "CQADupstackRetrieval" else ()
            split, language = entry.get("split", "test"), entry.get("language", subset)
            yield BenchmarkTask(name, kind, split, MAIN_METRICS[kind], language, subset, parts)


#: All named benchmarks by name.
BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    name: Benchmark(name, entry["title"], tuple(_tasks(entry["tasks"]))) for name, entry in _FACTS["benchmarks"].items()
}
_NAMES: Final = frozenset(
    name.lower() for entry in BENCHMARKS.values() for task in entry for name in (task.name, *task.parts)
)


def is_named(name: str) -> bool:
    """Whether a task of some benchmark has this name, in any case."""
    return name.lower() in _NAMES


_TASKS: Final[Mapping[str, str]] = {
    **{normal(name): task for task, names in _FACTS["other_names"].items() for name in (task, *names.split())},
    **{normal(name.removesuffix("Retrieval")): name for name in CQADUPSTACK},
}


def task_called(name: str) -> str:
    """The task whose data has this name, such as FiQA2018 for `fiqa`; a name that is none of these comes back as it is.

    Args:
        name: Name of a folder or repository, without its owner.
    """
    return _TASKS.get(normal(name), name)


def names_of(task: str) -> set[str]:
    """The names, as `normal` spells them, of a task's data, its own among them."""
    return {normal(task), *(name for name, own in _TASKS.items() if own == task)}


#: By field of a task's class, and by the name of the task in lower case.
_PROTOCOL: Final[Mapping[str, Mapping[str, Any]]] = {
    field: {name: value for value, names in by_value.items() for name in names.lower().split()}
    for field, by_value in _FACTS["protocol"].items()
}
_VERSION: Final = re.compile(r"\.v\d+$", re.IGNORECASE)


def protocol_of(name: str) -> dict[str, Any]:
    """Peculiarities of MTEB's protocol for a task, as fields of our task classes.

    Args:
        name: Its name in the mteb package, in any case, or that of its data on the hub or in BEIR's downloads.

    Returns:
        `samples_per_label` and `experiments` (classification), `skip_identical_ids` (retrieval) or `merge_subqueries`
        (reranking), each only where it is not the default of the class; empty for a name that MTEB does not know.
    """
    own = task_called(_VERSION.sub("", name.strip())).lower()
    return {field: by_name[own] for field, by_name in _PROTOCOL.items() if own in by_name}


@dataclass(frozen=True, kw_only=True)
class MeanTask(Task):
    """Retrieval tasks whose mean counts as one dataset (the forums of CQADupStack).

    Attributes:
        parts: The tasks.
    """

    kind: ClassVar[Kind] = "retrieval"
    rerankable: ClassVar[bool] = True

    parts: Sequence[Task]

    @property
    def notes(self) -> tuple[str, ...]:
        """The parts' notes, each after the part's name."""
        return (*self.remarks, *(f"{part.name}: {note}" for part in self.parts for note in part.notes))

    def content(self) -> Iterable[object]:
        """The parts' fingerprints."""
        return [part.fingerprint for part in self.parts]

    def score(self, model: JudgedModel) -> Scores:
        """Measure each part; metrics are means over parts, items are the parts' items."""
        return mean_scores([part.score(model) for part in self.parts], [part.name for part in self.parts])


def mean_scores(parts: Sequence[Scores], names: Sequence[str]) -> Scores:
    """Means of metrics over parts. An item counts as much as its share in the mean of its part.

    Args:
        parts: Scores whose main metric is a mean over items.
        names: Names of the parts.
    """
    shared = [name for name in parts[0].metrics if all(name in part.metrics for part in parts)]
    metrics = {name: float(np.mean([part.metrics[name] for part in parts])) for name in shared}
    total = sum(len(part.items.ids) for part in parts)
    values = [part.items.columns["value"] * total / (len(parts) * len(part.items.ids)) for part in parts]
    ids = [f"{name}/{item}" for name, part in zip(names, parts, strict=True) for item in part.items.ids]
    texts = [text for part in parts for text in part.items.texts]
    groups: list[int | str] = []
    for name, part in zip(names, parts, strict=True):
        own = part.items.ids if part.items.groups is None else part.items.groups
        groups += [f"{name}/{group}" for group in own]
    items = Items(ids, "mean", {"value": np.concatenate(values)}, texts if len(texts) == len(ids) else (), groups)
    return Scores(metrics, items, {"parts": {name: part.metrics for name, part in zip(names, parts, strict=True)}})
