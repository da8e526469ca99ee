"""Folders with a `dataset.json` that says what kind of data they hold and what others scored on it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from ...data.formats import listing, shown
from ...data.splits import Folder, choose_split
from ...errors import DataError
from ..benchmarks.definitions import protocol_of
from ..judged_model import Kind
from ..tasks.base import Task
from .collections import TestCollection, find_beir, find_split_files
from .rows import ANY, EXAMPLES, READERS, Source, Wanted

logger = logging.getLogger(__name__)
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
            DataError: the file is no JSON object with a task type.
        """
        if FILE not in folder.others:
            return None
        path = os.path.join(folder.root, FILE)
        try:
            with open(path, encoding="utf-8-sig") as file:
                facts = json.load(file)
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
                f"{self.folder.path} is to be retrieval, and has {listing(self._content())}. Expected "
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
            if wanted is int and (isinstance(value, bool) or value < (name != "seed")):
                raise DataError(f"{self._path}: {key} must be a whole number from {int(name != 'seed')}, not {value!r}")
            if stated.setdefault(name, value) != value:
                raise DataError(f"{self._path}: {key} is {value!r} and {name} is {stated[name]!r}: keep one of the two")
        return protocol_of(self.name) | stated

    def _not_obeyed(self, kind: str) -> tuple[str, ...]:
        """Remarks on keys that could be meant to change a score, and do not."""
        known = _OBEYED | _TOLD | {key for key, (_, _, kinds) in _PROTOCOL.items() if kind in kinds}
        # False is what every kind does without such a key.
        names = [key for key, value in self.facts.items() if key not in known and not (key in _PROTOCOL and not value)]
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
                if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                    raise DataError(f"{self._path}: samples_per_label must be a whole number from 1, not {count!r}")
                return {"samples_per_label": count}
        return {}

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
