"""The tasks of a named benchmark from local folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ...encoding.rows import USUAL, Dialect
from ...encoding.tables import Quoting
from ...errors import DataError, in_lines
from ..kinds.classification import ClassificationTask
from ..kinds.retrieval import RetrievalTask
from ..reading import read_tasks
from ..task import Task
from .named import BenchmarkTask, benchmark
from .parts import MeanTask
from .protocol import protocol_of

#: Folders of the BEIR downloads whose names are not the tasks' own.
BEIR_FOLDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "ClimateFEVER": ("climate-fever",),
    "CQADupstackRetrieval": ("cqadupstack",),
    "DBPedia": ("dbpedia-entity",),
    "FiQA2018": ("fiqa",),
    "QuoraRetrieval": ("quora",),
    "Touche2020": ("webis-touche2020", "touche2020-v2"),
    "TRECCOVID": ("trec-covid",),
}


@dataclass(frozen=True)
class Found:
    """What a data root holds of a benchmark.

    Attributes:
        tasks: Those that are there, in the benchmark's order.
        missing: Keys of those that are not.
    """

    tasks: list[Task]
    missing: list[str]

    def __str__(self) -> str:
        count = len(self.tasks) + len(self.missing)
        told = f"{len(self.tasks)} of {count} tasks are there"
        return f"{told}; missing: {', '.join(self.missing)}" if self.missing else told


def find_tasks(
    name: str, tasks: Iterable[str] | None = None, *, data_root: str | os.PathLike[str], dialect: Dialect = USUAL
) -> Found:
    """The tasks of a benchmark that are in folders below a data root.

    A task is in the folder of its name, in any case, with or without its subset behind a dash or as a folder below
    (`STS22-zh`, `MIRACLRetrieval/zh`), in the folder that BEIR has it in (`fiqa`), or where `dataset.json` says its
    name. Languages that `dataset.json` states must agree.

    Args:
        name: Name of the benchmark.
        tasks: Names of the wanted ones; by default all.
        data_root: The folder.
        dialect: How text files in it are written.

    Raises:
        ArgumentError: there is no such benchmark or task.
        DataError: the folder does not exist, or data in it cannot be read.
    """
    whole, root = benchmark(name), _Root(Path(data_root), dialect)
    found: list[Task] = []
    missing = []
    for wanted in whole.select(tasks):
        task = _mean_task(root, wanted) if wanted.parts else _task(root, wanted, whole.label(wanted))
        if task is None:
            missing.append(wanted.key)
        else:
            found.append(task)
    return Found(found, missing)


def benchmark_tasks(
    name: str,
    tasks: Iterable[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
    *,
    encoding: str | None = None,
    quoting: Quoting = "auto",
) -> tuple[list[Task], list[str]]:
    """The tasks of a benchmark, and what a reader of their results should know.

    Args:
        name: Name of the benchmark.
        tasks: Names of the wanted ones; by default all (all that are there, with a data root).
        data_root: Folder to read them from, `find_tasks` says where in it; without it they run through the package
            mteb, with data from the hub.
        encoding: What text files below the data root are written in, by a name that Python knows; by default UTF-8.
        quoting: Whether quotes in csv and tsv there enclose fields: `auto`, `csv` or `none`, see `read_records`.

    Raises:
        ArgumentError: there is no such benchmark or task.
        DataError: a task that was asked for is not there, none is, or data cannot be read.
        MissingExtraError: without a data root: mteb is not installed.
    """
    if data_root is None:
        from .mteb_bridge import hub_tasks

        return hub_tasks(name, tasks), []
    wanted = None if tasks is None else list(tasks)
    found = find_tasks(name, wanted, data_root=data_root, dialect=Dialect(encoding, quoting))
    if not found.tasks or (wanted is not None and found.missing):
        example = Path(data_root) / found.missing[0]
        place = f"in the folder of its name, such as {example}, or where dataset.json says its name"
        if len(found.missing) == 1:
            lacks = f"{found.missing[0]} of {benchmark(name).name}; a task"
        else:
            lacks = f"{len(found.missing)} tasks of {benchmark(name).name}:{in_lines(found.missing)}\nA task"
        raise DataError(f"{data_root} has no folder for {lacks} is looked for {place}")
    return found.tasks, [f"{benchmark(name).name}: {found}"] if found.missing else []


class _Root:
    """The folders below a data root, two deep."""

    def __init__(self, path: Path, dialect: Dialect = USUAL) -> None:
        if not path.is_dir():
            raise DataError(f"the data root {path} is not a folder; it should hold a folder for each task")
        self.path, self.dialect = path, dialect

    @cached_property
    def folders(self) -> list[tuple[Path, dict[str, Any]]]:
        """Each folder with what its dataset.json says."""
        return [(folder, _described(folder)) for folder in _below(self.path)]

    def find(self, task: BenchmarkTask, *, only: bool = True) -> Path | None:
        """The folder of a task; one that names the subset comes before one that does not.

        Args:
            task: The task.
            only: Whether data without a word about its subset can only be this one.
        """
        fitting = [(_fit(task, folder, facts, only), folder) for folder, facts in self.folders]
        score, folder = max(fitting, key=lambda pair: pair[0], default=(0, self.path))
        return (_inner(folder, task.subset) or folder) if score else None


def _below(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir())


def _inner(folder: Path, subset: str) -> Path | None:
    if not subset:
        return None
    return next((child for child in _below(folder) if child.name.lower() == subset.lower()), None)


def _described(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Whoever reads the data says what is wrong with it.
        return {}
    return content if isinstance(content, dict) else {}


def _fit(task: BenchmarkTask, folder: Path, facts: Mapping[str, Any], only: bool) -> int:
    """How well a folder fits a task: 0 not at all, more is better."""
    name, subset = folder.name.lower(), task.subset.lower()
    stated = str(facts.get("subset") or "").lower()
    own = {task.name.lower(), *BEIR_FOLDERS.get(task.name, ())}
    suffix = next((name[len(known) + 1 :] for known in own if name.startswith(f"{known}-")), "")
    named = name in own or str(facts.get("name", "")).lower() == task.name.lower()
    if not (named or suffix):
        return 0
    told = stated or suffix
    language = str(facts.get("language") or "").lower()
    if subset:
        if told or _inner(folder, subset) is not None:
            return 2 * (not told or told == subset)
        holds_data = any(child.is_file() for child in folder.iterdir())
        return int(holds_data and (language in (task.language, subset) if language else only))
    # A suffix that is no subset of the task makes it another task, unless dataset.json says it is this one.
    if suffix and str(facts.get("name", "")).lower() != task.name.lower() and suffix != task.language:
        return 0
    return 2 if named else 1


def _task(root: _Root, wanted: BenchmarkTask, label: str) -> Task | None:
    folder = root.find(wanted, only=label == wanted.name)
    return None if folder is None else _read(root, folder, wanted, label)


def _mean_task(root: _Root, wanted: BenchmarkTask) -> Task | None:
    parts = []
    for part in wanted.parts:
        whole = root.find(wanted)
        # As a folder of its own, or as BEIR has it: cqadupstack/android.
        forum = part.removeprefix("CQADupstack").removesuffix("Retrieval")
        folder = root.find(replace(wanted, name=part, parts=())) or (_inner(whole, forum) if whole else None)
        if folder is None:
            return None
        parts.append(_read(root, folder, replace(wanted, name=part, parts=()), part))
    return MeanTask(
        name=wanted.name, split=wanted.split, main_metric=wanted.main_metric, language=wanted.language,
        query_instruction=True, comparable=all(part.comparable for part in parts),
        exclusions=tuple(exclusion for part in parts for exclusion in part.exclusions), parts=parts,
    )  # fmt: skip


def _read(root: _Root, folder: Path, wanted: BenchmarkTask, label: str) -> Task:
    """The task in a folder, with the benchmark's name, metric and protocol."""
    dialect = root.dialect
    tasks = read_tasks(folder, split=wanted.split, encoding=dialect.encoding, quoting=dialect.quoting)
    read = list(_fitting(tasks, wanted))
    if len(read) != 1:
        raise DataError(
            f"{folder} should hold the one {wanted.kind.replace('_', ' ')} task {wanted.key}, split {wanted.split}; "
            f"it holds {len(read)} of that kind"
        )
    changes: dict[str, Any] = {"name": label, "main_metric": wanted.main_metric}
    if not read[0].language:
        changes["language"] = wanted.language
    if isinstance(read[0], RetrievalTask | ClassificationTask):
        changes |= protocol_of(wanted.name)
    if wanted.kind in ("retrieval", "reranking"):
        changes["query_instruction"] = True
    if wanted.name == "SummEval":
        # The published column has the mean of correlations and their p values together (an error of mteb's first
        # SummEval); ours is the mean correlation.
        changes["comparable"] = False
    return replace(read[0], **changes)


def _fitting(tasks: Sequence[Task], wanted: BenchmarkTask) -> Iterator[Task]:
    for task in tasks:
        if task.kind == wanted.kind:
            yield task
