"""The tasks of a named benchmark from folders, on the disk or at a URL."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ...data.columns import normal
from ...data.formats import USUAL, Dialect, Quoting
from ...data.splits import repository_name, snapshot_of
from ...errors import DataError, in_lines
from ...files.remote import is_folder, names_in, open_binary
from ..readers.detect import read_tasks
from ..readers.hub import has_subset
from ..readers.rows import Wanted
from ..tasks.base import Task
from .definitions import BenchmarkTask, MeanTask, benchmark, names_of


@dataclass(frozen=True)
class Found:
    """Tasks of a benchmark that a data root holds.

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
    (`STS22-zh`, `MIRACLRetrieval/zh`), in the folder that BEIR or the hub has it in (`fiqa`, `TNews-classification`),
    or where `dataset.json` says its name. Languages that `dataset.json` states must agree. Folders of owners
    (`C-MTEB/TNews-classification`) and the hub's cache (`datasets--C-MTEB--TNews-classification`) are looked into.

    Args:
        name: Name of the benchmark.
        tasks: Names of the wanted ones; by default all.
        data_root: The folder, or its URL.
        dialect: How text files in it are written.

    Raises:
        ArgumentError: there is no such benchmark or task.
        DataError: the folder does not exist, or data in it cannot be read.
    """
    whole, folders = benchmark(name), _folders(os.fspath(data_root))
    places = {wanted: _places(folders, wanted, whole.label(wanted)) for wanted in whole.select(tasks)}
    found: list[Task] = []
    for wanted, parts in places.items():
        if parts:
            read = [_read(place, dialect) for place in parts]
            found.append(_mean_task(wanted, read) if wanted.parts else read[0])
    return Found(found, [wanted.key for wanted, parts in places.items() if not parts])


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
        data_root: Folder or URL to read them from, `find_tasks` says where in it; without it they run through the
            package mteb, with data from the hub.
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
        example = os.path.join(data_root, found.missing[0])
        place = f"in the folder of its name, such as {example}, or where dataset.json says its name"
        if len(found.missing) == 1:
            lacks = f"{found.missing[0]} of {benchmark(name).name}; a task"
        else:
            lacks = f"{len(found.missing)} tasks of {benchmark(name).name}:{in_lines(found.missing)}\nA task"
        raise DataError(f"{data_root} has no folder for {lacks} is looked for {place}")
    return found.tasks, [f"{benchmark(name).name}: {found}"] if found.missing else []


@dataclass(frozen=True)
class _Place:
    """Path of a task, and its name in reports."""

    folder: str
    task: BenchmarkTask
    label: str


_Folders: TypeAlias = "list[tuple[str, dict[str, Any]]]"


def _folders(root: str) -> _Folders:
    """Each folder below a data root, two deep, with what its dataset.json says; those of an owner stand at the end."""
    if not is_folder(root):
        raise DataError(f"the data root {root} is not a folder; it should hold a folder for each task")
    own = _below(root)
    inner = [folder for above in own for folder in _below(snapshot_of(above))]
    return [(folder, _described(folder)) for folder in (*own, *inner)]


def _find(folders: _Folders, task: BenchmarkTask, *, only: bool = True) -> str | None:
    """The folder of a task; one that names the subset comes before one that does not.

    Args:
        folders: All that there are.
        task: The task.
        only: Whether data without a word about its subset can only be this one.
    """
    fitting = [(_fit(task, folder, facts, only), folder) for folder, facts in folders]
    score, folder = max(fitting, key=lambda pair: pair[0], default=(0, None))
    return folder if score else None


def _below(path: str) -> list[str]:
    try:
        return [os.path.join(path, name) for name in names_in(path)[0] if not name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _inner(folder: str, name: str) -> str | None:
    return next((child for child in _below(folder) if os.path.basename(child).lower() == name.lower()), None)


def _described(folder: str) -> dict[str, Any]:
    try:
        with open_binary(os.path.join(folder, "dataset.json")) as file:
            content = json.loads(file.read())
    except (OSError, ValueError):
        # Whoever reads the data says what is wrong with it.
        return {}
    return content if isinstance(content, dict) else {}


def _fit(task: BenchmarkTask, folder: str, facts: Mapping[str, Any], only: bool) -> int:
    """Fit of a folder to a task: 0 not at all, more is better."""
    name, subset = repository_name(folder).lower(), task.subset.lower()
    stated = str(facts.get("subset") or "").lower()
    own = names_of(task.name)
    named = normal(name) in own or str(facts.get("name", "")).lower() == task.name.lower()
    cuts = [place for place, character in enumerate(name) if character in "-_"]
    suffix = "" if named else next((name[cut + 1 :] for cut in cuts if normal(name[:cut]) in own), "")
    if not (named or suffix):
        return 0
    told = stated or suffix
    language = str(facts.get("language") or "").lower()
    if subset:
        if told or has_subset(folder, task.subset):
            return 2 * (not told or told == subset)
        holds_data = bool(names_in(folder)[1])
        return int(holds_data and (language in (task.language, subset) if language else only))
    # A suffix that is not a subset of the task makes it another task, unless dataset.json says it is this one.
    if suffix and str(facts.get("name", "")).lower() != task.name.lower() and suffix != task.language:
        return 0
    return 2 if named else 1


def _places(folders: _Folders, wanted: BenchmarkTask, label: str) -> list[_Place]:
    """Paths of a task or of its parts; empty if one is not there."""
    if not wanted.parts:
        folder = _find(folders, wanted, only=label == wanted.name)
        return [] if folder is None else [_Place(folder, wanted, label)]
    places = []
    for name in wanted.parts:
        whole, part = _find(folders, wanted), replace(wanted, name=name, parts=())
        # As a folder of its own, or as BEIR has it: cqadupstack/android.
        forum = name.removeprefix("CQADupstack").removesuffix("Retrieval")
        folder = _find(folders, part) or (_inner(whole, forum) if whole else None)
        if folder is None:
            return []
        places.append(_Place(folder, part, name))
    return places


def _mean_task(wanted: BenchmarkTask, parts: Sequence[Task]) -> Task:
    return MeanTask(
        name=wanted.name, split=wanted.split, main_metric=wanted.main_metric, language=wanted.language,
        query_instruction=True, comparable=all(part.comparable for part in parts),
        exclusions=tuple(exclusion for part in parts for exclusion in part.exclusions), parts=parts,
    )  # fmt: skip


def _read(place: _Place, dialect: Dialect) -> Task:
    """The task in a folder, with the benchmark's name, metric and protocol; what dataset.json says comes before."""
    folder, wanted = place.folder, place.task
    known = Wanted(wanted.name, wanted.kind, wanted.subset)
    tasks = read_tasks(folder, split=wanted.split, wanted=known, encoding=dialect.encoding, quoting=dialect.quoting)
    read = [task for task in tasks if task.kind == wanted.kind]
    if len(read) != 1:
        raise DataError(
            f"{folder} should hold the one {wanted.kind.replace('_', ' ')} task {wanted.key}, split {wanted.split}; "
            f"it holds {len(read)} of that kind"
        )
    changes: dict[str, Any] = {"name": place.label, "main_metric": wanted.main_metric}
    if not read[0].language:
        changes["language"] = wanted.language
    if wanted.kind in ("retrieval", "reranking"):
        changes["query_instruction"] = True
    if wanted.name == "SummEval":
        # The published column has the mean of correlations and their p values together (an error of mteb's first
        # SummEval); ours is the mean correlation.
        changes["comparable"] = False
    return replace(read[0], **changes)
