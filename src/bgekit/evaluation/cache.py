"""Scores on disk, found again by what they were made from: model, setting, data and protocol, never by name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..encoding.base import digest
from ..encoding.outputs import OutputFolder
from .judged import JudgedModel, role_of
from .task import Items, Scores, Task

logger = logging.getLogger(__name__)

#: Changes whenever a protocol or metric does: what was stored before is then computed anew.
PROTOCOL: Final = "2"


class ScoreCache:
    """A folder of scores. What is damaged counts as not there."""

    def __init__(self, folder: OutputFolder) -> None:
        """The cache in a folder that the caller has entered."""
        self._folder = folder

    def get(self, model: JudgedModel, task: Task) -> tuple[Scores, float] | None:
        """Scores and the seconds that they took, None if they were never computed."""
        path = self._folder.path / self._name(model, task)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return _scores(content), float(content["seconds"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read and is computed anew: %s", path, error)
            return None

    def put(self, model: JudgedModel, task: Task, scores: Scores, seconds: float) -> None:
        """Keep scores.

        Raises:
            OutputError: they cannot be written.
        """
        items = scores.items
        content = {
            "seconds": seconds,
            "metrics": dict(scores.metrics),
            "details": dict(scores.details),
            "items": {
                "ids": list(items.ids),
                "statistic": items.statistic,
                "columns": {name: column.tolist() for name, column in items.columns.items()},
                "texts": list(items.texts),
                "groups": None if items.groups is None else list(items.groups),
                "overlap": items.overlap,
            },
        }
        with self._folder.create(self._name(model, task)) as file:
            # Escaped, so that lone surrogates of broken texts survive.
            file.write(json.dumps(content, ensure_ascii=True).encode())

    def vectors(self) -> Path:
        """Where vectors of corpora are kept."""
        return self._folder.path / "vectors"

    @staticmethod
    def _name(model: JudgedModel, task: Task) -> str:
        # Not by the task's name, but by the prompts that a checkpoint may have for it.
        card = model.embedder.card
        roles = [str(role_of(card, task.kind, task.name, side)) for side in ("query", "document", "plain")]
        return f"{digest(PROTOCOL, model.fingerprint, task.fingerprint, task.main_metric, *roles)[:32]}.json"


def _scores(content: dict[str, Any]) -> Scores:
    stored = content["items"]
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in stored["columns"].items()}
    items = Items(
        stored["ids"], stored["statistic"], columns, stored["texts"], stored["groups"], float(stored["overlap"])
    )
    return Scores(content["metrics"], items, content["details"])
