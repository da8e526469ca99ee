"""Tasks that count as one dataset together: the forums of CQADupStack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..judged import JudgedModel
from ..task import Items, Kind, Scores, Task


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
        names: Of the parts.
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
