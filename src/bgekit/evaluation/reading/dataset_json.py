"""Folders with a `dataset.json` that says what kind of data they hold and what others scored on it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from ...encoding.rows import listing, shown
from ...errors import DataError
from ..benchmarks.protocol import protocol_of
from ..task import Kind, Task
from .beir import find_beir
from .forms import EXAMPLES
from .paths import Folder, choose_split
from .rows import READERS
from .source import Source

FILE: Final = "dataset.json"
_INSTRUCTED: Final = ("retrieval", "reranking")
_EXAMPLE: Final = (
    '{"name": "MyData", "task_type": "sts", "main_metric": "cosine_spearman", "language": "en", '
    '"splits": {"test": 1379}, "query_instruction_applies": false}'
)


class NoTask(DataError):
    """The folder holds no data that could be scored."""


@dataclass(frozen=True)
class Described:
    """A folder and what its `dataset.json` says.

    Attributes:
        folder: The folder.
        facts: The content of the file.
    """

    folder: Folder
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Folder) -> Described | None:
        """The description of a folder, None if it has none.

        Raises:
            DataError: the file is no JSON object with a task type.
        """
        if FILE not in folder.others:
            return None
        path = os.path.join(folder.path, FILE)
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
        return cls(folder, facts)

    @property
    def name(self) -> str:
        """The data set's name; the folder's, if it says none."""
        return self._fact("name", str, self.folder.name)

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
        if kind == "retrieval":
            parts = find_beir(self.folder)
            if parts is None:
                raise DataError(
                    f"{self.folder.path} is to be retrieval, and has {listing(self._content())}. Expected "
                    f"{EXAMPLES['retrieval']}"
                )
            chosen = choose_split(parts.qrels, split, self.folder.path)
            return parts.read(self.name, chosen, self._known(kind, chosen), protocol_of(self.name))
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
        protocol = protocol_of(self.name) | self._samples_per_label(chosen)
        facts = self._known(kind, chosen)
        return READERS[cast(Kind, kind)](Source(self.name, chosen, file, self.folder, facts, protocol))

    def _known(self, kind: str, split: str) -> dict[str, Any]:
        """The fields of `Task` that the description says."""
        known: dict[str, Any] = {
            "language": self._fact("language", str, ""),
            "query_instruction": self._fact("query_instruction_applies", bool, kind in _INSTRUCTED),
            "comparable": self.facts.get("mteb_match") == "exact",
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

    def _samples_per_label(self, split: str) -> dict[str, Any]:
        """How many texts of each label are drawn: said outright, or by a measurement on the split."""
        measured = self._fact("measured", dict, {})
        by_model = [self._inner("measured", by_split) for by_split in measured.values()]
        for said in (self.facts, *(self._inner("measured", by_split.get(split, {})) for by_split in by_model)):
            count = said.get("samples_per_label")
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
        return [os.path.basename(file) for files in self.folder.files.values() for file in files] + [
            f"{name}/" for name in self.folder.folders
        ]

    @property
    def _path(self) -> str:
        return os.path.join(self.folder.path, FILE)
