"""Reading of evaluation data: a path -> the tasks that are there.

Their form is recognised by content, or described by a `dataset.json`, which says what kind of data a folder holds and
what others scored on it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from ...data.columns import files_written
from ...data.formats import Dialect, Quoting, listing, shown
from ...data.splits import (
    DEV_SPLITS,
    KNOWN_SPLITS,
    Folder,
    UnknownSplit,
    choose_split,
    find_split,
    repository_name,
    split_in,
)
from ...errors import DataError
from ...files.remote import is_file, is_folder, is_there, open_binary
from ..benchmarks.definitions import protocol_of
from ..judged_model import Kind
from ..tasks.base import Task
from .collections import TestCollection, find_beir, find_contents, find_split_files
from .hub import DEFAULT_PART, configuration, is_beside, stated, subset_of
from .rows import (
    ANY,
    EXAMPLES,
    READERS,
    Source,
    UnknownForm,
    Wanted,
    kind_of_rows,
    read_rows_task,
    seen_file,
    seen_in,
    unfit,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """A data set that was found.

    Attributes:
        name: Name of its task.
        place: Where it is, as the user named it.
        read: Reads the task of a split.
    """

    name: str
    place: str
    read: Callable[[str | None], Task]

    @property
    def folder_name(self) -> str:
        """The name of its folder or file."""
        return repository_name(self.place)


def read_tasks(
    path: str | os.PathLike[str], *, split: str | None = None, tasks: Sequence[str] | None = None,
    left_out: list[str] | None = None, wanted: Wanted = ANY, encoding: str | None = None, quoting: Quoting = "auto",
) -> list[Task]:  # fmt: skip
    """The tasks of a file, a folder, or a folder of such folders.

    Args:
        path: Forms are recognised by content: a folder with `dataset.json`, BEIR's layout, both of FlagEmbedding's,
            `<split>` files of rows, or one such file. `rows.EXAMPLES` has an example of each. Folders may be as
            the hub or its cache has them, or as `save_to_disk` of the package `datasets` writes them.
        split: The split to score; by default test where there is one, else dev or validation, else the only one.
        tasks: Names of the data sets to read, of those in a folder of folders; in any case.
        left_out: Gets a line for each data set that is left out.
        wanted: What is known of the one data set that the path holds.
        encoding: What text files are written in, by a name that Python knows, such as `gb18030`; by default UTF-8.
        quoting: Whether quotes in csv and tsv enclose fields: `auto`, `csv` or `none`, see `read_records`.

    Returns:
        At least one task, those of a folder of folders in the order of its names. Of these, data sets that hold
        nothing to score, or not the split, are left out with a warning, unless `tasks` names them.

    Raises:
        DataError: the data cannot be read or has no known form; it says where, what was seen and what was expected.
        MissingExtraError: what reads one of the files is not installed; nothing was read then.

    Example:
        >>> from bgekit.evaluation import read_tasks
        >>> [task.name for task in read_tasks("scifact")]
        ['scifact']
    """
    with files_written(Dialect(encoding, quoting)):
        return _read_tasks(os.fspath(path), split, tasks, left_out, wanted)


def _read_tasks(
    place: str, split: str | None, tasks: Sequence[str] | None, left_out: list[str] | None, wanted: Wanted
) -> list[Task]:
    found = _data_sets(place, wanted, left_out)
    if tasks is not None:
        found = _selected(found, tasks, place)
    must = tasks is not None or len(found) == 1
    read: list[tuple[DataSet, Task]] = []
    problems = []
    for data_set in found:
        try:
            read.append((data_set, data_set.read(split)))
        except (NoTask, UnknownForm, UnknownSplit) as problem:
            if must:
                raise
            problems.append(problem)
            _leave_out(str(problem).partition("\n")[0], left_out)
    if not read:
        raise problems[0] if problems else unfit(place, seen_in(Folder.of(place)))
    names = Counter(task.name for _, task in read)
    return [
        replace(task, name=f"{task.name} ({data_set.folder_name})") if names[task.name] > 1 else task
        for data_set, task in read
    ]


def _leave_out(what: str, left_out: list[str] | None) -> None:
    logger.warning("left out: %s", what)
    if left_out is not None:
        left_out.append(f"left out: {what}")


def _data_sets(place: str, wanted: Wanted, left_out: list[str] | None = None) -> list[DataSet]:
    if is_file(place):
        return [_of_file(place, wanted)]
    if not is_folder(place):
        what = "is neither a file nor a folder" if is_there(place) else "does not exist"
        raise DataError(f"{place} {what}: expected a file or folder of evaluation data")
    folder = Folder.of(place)
    own = _of_folder(folder, wanted, alone=not folder.folders)
    if own is not None:
        return [own]
    if _advice(folder):
        raise unfit(place, seen_in(folder), _advice(folder))
    found = []
    for name in folder.folders:
        if is_beside(name, folder.folders):
            continue  # Judgements of a neighbour, who reads them.
        each = folder.at(name)
        data_set = _of_folder(each, ANY)
        if data_set is not None:
            found.append(data_set)
        elif each.files or each.folders:
            more = "" if each.files else "; if it holds data sets, name it itself"
            _leave_out(f"{each.path} fits no known form of evaluation data ({listing(seen_in(each))}){more}", left_out)
    if not found:
        raise unfit(place, seen_in(folder))
    return found


def _of_folder(folder: Folder, wanted: Wanted, *, alone: bool = False) -> DataSet | None:
    for name in folder.folders if wanted.subset else ():
        if os.path.basename(name).lower() == wanted.subset.lower():
            inner = _of_folder(folder.at(name), replace(wanted, subset="", name=wanted.name or folder.name))
            if inner is not None:
                return inner
    described = Described.of(folder, wanted)
    if described is not None:
        return DataSet(described.name, folder.path, described.read)
    name = wanted.name or folder.name
    protocol = protocol_of(name)
    rows = _subset(folder, wanted.subset)
    parts = find_beir(folder, wanted.subset) or find_beir(rows) or find_split_files(rows)
    if parts is not None:
        return DataSet(
            name, folder.path, lambda split: parts.read(name, split, protocol=protocol, kind=wanted.kind)
        )  # fmt: skip
    texts = find_contents(rows)
    if texts is not None:
        return DataSet(name, folder.path, lambda split: texts.read(name, split, protocol))
    if _advice(folder):
        return None  # What stands beside the parts of a test collection is not what the user wants scored.
    # A file that fits nothing counts too where nothing else can be meant: its error is the one to show.
    if (alone and len(rows.files) == 1) or find_split(rows.files, *KNOWN_SPLITS) or _row_files(rows):
        return DataSet(name, folder.path, lambda split: _split_task(rows, split, replace(wanted, name=name)))
    return None


def _subset(folder: Folder, subset: str) -> Folder:
    """The folder with the files of a subset, where it has several; without a subset those of its configuration."""
    own = subset_of(folder, subset) if subset else None
    return own or (stated if folder.files else configuration)(folder, DEFAULT_PART) or folder


def _of_file(place: str, wanted: Wanted) -> DataSet:
    folder = Folder.of(os.path.dirname(place) or os.curdir)
    base = os.path.basename(place)
    stem, file = folder.holding(place)
    described = Described.of(folder, wanted)
    if described is not None and base == FILE:
        return DataSet(described.name, place, described.read)
    if described is not None and described.has_rows and stem in described.splits:
        return DataSet(described.name, place, lambda split: described.read(_of_one(place, split, stem)))
    # `MyData/test.jsonl` is the test split of MyData, `pairs.jsonl` a data set of its own.
    name = wanted.name or (folder.name if stem in KNOWN_SPLITS else stem)
    own = split_in(stem) or "test"

    def read(split: str | None) -> Task:
        _of_one(place, split, own, stem)
        if kind_of_rows(file) is None:
            texts = find_contents(folder, only=stem)
            if texts is not None:
                return texts.read(name, None, protocol_of(name))
        return _rows_task(Source(name, own, file, folder, protocol=protocol_of(name)), wanted.kind)

    return DataSet(name, place, read)


def _of_one(place: str, wanted: str | None, *splits: str) -> str:
    """The split of a single file, which must be the one that was asked for."""
    if wanted is not None and wanted not in splits:
        raise UnknownSplit(f"{place} is one file, of split {splits[0]!r}: there is no split {wanted!r} in it")
    return splits[0]


def _split_task(folder: Folder, split: str | None, wanted: Wanted) -> Task:
    named = find_split(folder.files, *(("test", *DEV_SPLITS) if split is None else (split,)))
    # Files beside them, such as settings, are not splits; but a split that cannot be read is still the one to read.
    available = folder.files if named else _row_files(folder) or folder.files
    chosen = choose_split(available, split, folder.path)
    protocol = protocol_of(wanted.name)
    return _rows_task(Source(wanted.name, chosen, folder.file(chosen), folder, protocol=protocol), wanted.kind)


def _rows_task(source: Source, kind: Kind | None) -> Task:
    task = read_rows_task(source, kind if kind in READERS else None)
    if task is None:
        part = _is_part(source.file.name.split(".")[0]) or source.folder.name == "qrels"
        advice = "It looks like a part of a test collection: give the folder that holds all of it." if part else ""
        raise unfit(str(source.file), [seen_file(source.file)], advice)
    return task


def _row_files(folder: Folder) -> list[str]:
    """The files whose rows make a task, by their name without ending."""
    found = []
    for stem in folder.files:
        with contextlib.suppress(DataError):
            if kind_of_rows(folder.file(stem)) is not None:
                found.append(stem)
    return found


def _advice(folder: Folder) -> str:
    """Advice on what is missing of a test collection; "" if the folder is none."""
    there = {_is_part(os.path.basename(stem)) for stem in (*folder.files, *folder.folders)} - {""}
    missing = sorted({"corpus", "queries", "qrels"} - there)
    if not missing or len(there) < 2:
        return ""
    looked = [f"{name}.* or {name}/<split>.*, also in data/" for name in missing]
    if missing == ["qrels"]:
        looked += ["judgements as data/<split>.* or default/<split>.*", f"{folder.name}-qrels beside it"]
    return f"It looks like retrieval, without {' and '.join(missing)}. Looked for: {'; '.join(looked)}."


def _is_part(stem: str) -> str:
    """The part of a test collection that a name says, such as queries for `dev_queries`; "" if none."""
    last = re.split(r"[_-]", stem)[-1]
    return last if last in ("corpus", "queries", "qrels") else ""


def _selected(found: list[DataSet], wanted: Sequence[str], place: str) -> list[DataSet]:
    """The data sets of these names."""
    known = [{data_set.name.lower(), data_set.folder_name.lower()} for data_set in found]
    for name in wanted:
        if not any(name.lower() in names for names in known):
            raise DataError(f"{place} has no task {name!r}; it has {listing([data_set.name for data_set in found])}")
    asked = {name.lower() for name in wanted}
    return [data_set for data_set, names in zip(found, known, strict=True) if names & asked]


FILE: Final = "dataset.json"
_INSTRUCTED: Final = ("retrieval", "reranking")
_EXAMPLE: Final = (
    '{"name": "MyData", "task_type": "sts", "main_metric": "cosine_spearman", "language": "en", '
    '"splits": {"test": 1379}, "query_instruction_applies": false}'
)
#: Keys that are used for data of every kind.
_OBEYED: Final = frozenset(
    "name task_type main_metric language subset splits mteb_match published published_metric published_split "
    "published_other measured".split()
)
#: Keys that are used for some kinds, by their usual name and by that of mteb and beir: field of the task's class, type,
#: kinds.
_PROTOCOL: Final[Mapping[str, tuple[str, type, tuple[str, ...]]]] = {
    "query_instruction_applies": ("query_instruction", bool, _INSTRUCTED),
    "skip_identical_ids": ("skip_identical_ids", bool, _INSTRUCTED),
    "ignore_identical_ids": ("skip_identical_ids", bool, _INSTRUCTED),
    "samples_per_label": ("samples_per_label", int, ("classification",)),
    "experiments": ("experiments", int, ("classification",)),
    "n_experiments": ("experiments", int, ("classification",)),
    "seed": ("seed", int, ("classification", "clustering")),
}
#: Keys that tell people about the data. Whatever else stands there could be meant to change a score.
_TOLD: Final = frozenset(
    "licence license licence_class license_class source sources mteb_note published_source published_not_comparable "
    "notes note measured_how overlap extra_files files corpus queries qrels sentences documents rows size description "
    "title url homepage reference citation bibtex_citation authors author date created version revision domain domains "
    "tags".split()
)


class NoTask(DataError):
    """The folder holds no data that could be scored."""


@dataclass(frozen=True)
class Described:
    """A folder and what its `dataset.json` says.

    Attributes:
        folder: The folder.
        facts: The content of the file.
        wanted: What the caller knows.
    """

    folder: Folder
    facts: Mapping[str, Any]
    wanted: Wanted = ANY

    @classmethod
    def of(cls, folder: Folder, wanted: Wanted = ANY) -> Described | None:
        """The description of a folder, None if it has none.

        Raises:
            DataError: the file is not a JSON object with a task type.
        """
        if FILE not in folder.others:
            return None
        path = os.path.join(folder.root, FILE)
        try:
            with open_binary(path) as file:
                facts = json.loads(file.read().decode("utf-8-sig"))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not valid JSON: {error}. Expected one object such as {_EXAMPLE}") from error
        if not isinstance(facts, dict) or "task_type" not in facts:
            seen = f"the fields {listing(list(facts))}" if isinstance(facts, dict) else shown(facts)
            raise DataError(f"{path} has no task_type: it has {seen}. Expected one object such as {_EXAMPLE}")
        return cls(folder, facts, wanted)

    @property
    def name(self) -> str:
        """The data set's name; the folder's, if it says none."""
        return self.wanted.name or self._fact("name", str, self.folder.name)

    @property
    def has_rows(self) -> bool:
        """Whether each split is one file of rows."""
        return self._fact("task_type", str, "") in READERS

    @property
    def splits(self) -> list[str]:
        """The splits it lists, as far as their files are there; without a list all that there are."""
        listed = self._fact("splits", dict, {})
        return [split for split in listed if split in self.folder.files] or list(self.folder.files)

    def read(self, split: str | None) -> Task:
        """The task of one split.

        Raises:
            NoTask: the folder holds training data.
            DataError: a file or the description cannot be used, or there is no such split.
        """
        kind = self._fact("task_type", str, "")
        if kind == "training":
            raise NoTask(
                f"{self.folder.path} holds training data (task_type training in its {FILE}): there is nothing to "
                "score. A file of queries with pos and neg is read as a reranking task if it is named itself."
            )
        parts = self._parts() if kind in _INSTRUCTED else None
        if parts is not None:
            chosen = choose_split(parts.qrels, split, self.folder.path)
            return parts.read(self.name, chosen, self._known(kind, chosen), self._protocol(kind), kind=kind)
        if kind == "retrieval":
            raise DataError(
                f"{self.folder.path} should hold retrieval data, and has {listing(self._content())}. Expected "
                f"{EXAMPLES['retrieval']}"
            )
        if kind not in READERS:
            raise DataError(
                f"{self._path} has the task_type {kind!r}; known are retrieval, {', '.join(READERS)} and training"
            )
        if not self.folder.files:
            raise DataError(f"{self.folder.path} has no data: expected <split>.jsonl with {EXAMPLES[kind]}")
        # A file that is there can be asked for, though it is not listed: its reader says why it will not do.
        available = self.folder.files if split in self.folder.files else self.splits
        chosen = choose_split(available, split, self.folder.path)
        file = self.folder.file(chosen)
        protocol = self._measured_samples(chosen) | self._protocol(kind)
        facts = self._known(kind, chosen)
        return READERS[cast(Kind, kind)](Source(self.name, chosen, file, self.folder, facts, protocol))

    def _parts(self) -> TestCollection | None:
        return find_beir(self.folder, self.wanted.subset) or find_split_files(self.folder)

    def _known(self, kind: str, split: str) -> dict[str, Any]:
        """The fields of `Task` that the description says."""
        known: dict[str, Any] = {
            "language": self._fact("language", str, ""),
            "query_instruction": self._fact("query_instruction_applies", bool, kind in _INSTRUCTED),
            "comparable": self.facts.get("mteb_match") == "exact",
            "remarks": self._not_obeyed(kind),
        }
        metric = self._fact("main_metric", str, "")
        if metric:
            known["main_metric"] = metric
        if self.facts.get("published_metric", metric) == metric:
            if self.facts.get("published_split", split) == split:
                published = self._fact("published", dict, {})
            else:
                published = self._inner("published_other", self._fact("published_other", dict, {}).get(split, {}))
            known["published"] = {model: self._score(model, score) for model, score in published.items()}
        return known

    def _protocol(self, kind: str) -> dict[str, Any]:
        """Protocol of the task: as the description says, else as its name says."""
        stated: dict[str, Any] = {}
        for key, (name, wanted, kinds) in _PROTOCOL.items():
            if key not in self.facts or kind not in kinds or name == "query_instruction":
                continue
            value = self._fact(key, wanted, None)
            if wanted is int:
                self._check_whole(key, value, least=int(name != "seed"))
            if stated.setdefault(name, value) != value:
                raise DataError(f"{self._path}: {key} is {value!r} and {name} is {stated[name]!r}: keep one of the two")
        return protocol_of(self.name) | stated

    def _not_obeyed(self, kind: str) -> tuple[str, ...]:
        """Remarks on keys that could be meant to change a score, and do not."""
        known = _OBEYED | _TOLD | {key for key, (_, _, kinds) in _PROTOCOL.items() if kind in kinds}
        # False is what every kind does without such a key.
        names = [key for key, value in self.facts.items() if key not in known and (value or key not in _PROTOCOL)]
        if not names:
            return ()
        told = f"{FILE} has {', '.join(names)}: not known for {kind.replace('_', ' ')}, the score does not depend on it"
        logger.warning("%s: %s", self.folder.path, told)
        return (told,)

    def _measured_samples(self, split: str) -> dict[str, Any]:
        """Number of texts of each label that were drawn for a measurement that the description has for the split."""
        measured = self._fact("measured", dict, {})
        for by_split in (self._inner("measured", by_split) for by_split in measured.values()):
            count = self._inner("measured", by_split.get(split, {})).get("samples_per_label")
            if count is not None:
                self._check_whole("samples_per_label", count, least=1)
                return {"samples_per_label": count}
        return {}

    def _check_whole(self, name: str, value: object, *, least: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise DataError(f"{self._path}: {name} must be a whole number of at least {least}, not {value!r}")

    def _inner(self, name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise DataError(f"{self._path}: {name} must hold objects by model and split, not {shown(value)}")
        return value

    def _score(self, model: str, score: object) -> float:
        if not isinstance(score, int | float):
            raise DataError(f"{self._path}: the published score of {model} must be a number, not {shown(score)}")
        return float(score)

    def _fact(self, name: str, wanted: type, default: Any) -> Any:
        value = self.facts.get(name, default)
        if not isinstance(value, wanted):
            raise DataError(f"{self._path}: {name} must be of type {wanted.__name__}, not {shown(value)}")
        return value

    def _content(self) -> list[str]:
        return [file.name for files in self.folder.files.values() for file in files] + [
            f"{name}/" for name in self.folder.folders
        ]

    @property
    def _path(self) -> str:
        return os.path.join(self.folder.path, FILE)
