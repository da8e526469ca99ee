"""Bitext mining: find each text's translation among those of all texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...search.nearest import QUERIES, TopK
from ..judged_model import JudgedModel, Kind
from .base import Items, Scores, Task, together
from .pairs import checked_main, numbered, pair_texts


@dataclass(frozen=True, kw_only=True)
class BitextTask(Task):
    """MTEB's protocol: each first text's nearest second text; F1 of each line as a class of its own, mean over lines.

    Attributes:
        first: Texts in one language.
        second: Their translations, line by line.
    """

    kind: ClassVar[Kind] = "bitext"
    main_metric: str = "f1"

    first: Sequence[str]
    second: Sequence[str]

    def content(self) -> Iterable[object]:
        """The lines."""
        return zip(self.first, self.second, strict=True)

    def score(self, model: JudgedModel) -> Scores:
        """Encode and match."""
        vectors = model.comparable(model.plain([*self.first, *self.second], self.kind, self.name))
        sources, targets = vectors[: len(self.first)], vectors[len(self.first) :]
        matches = []
        for row in range(0, len(sources), QUERIES):
            best = TopK(sources[row : row + QUERIES], 1, cosine=False)
            best.add(0, targets)
            matches += [int(rows[0]) for _, rows in best.found()]
        # A line is a class with one true member, so its recall is 1 or 0, and its precision one over how often it was
        # chosen.
        chosen = Counter(matches)
        right = np.asarray([match == line for line, match in enumerate(matches)], dtype=np.float64)
        precision = np.asarray([hit / max(chosen[line], 1) for line, hit in enumerate(right)])
        f1 = 2 * precision * right / np.maximum(precision + right, 1e-12)
        columns = {"f1": f1, "precision": precision, "recall": right, "accuracy": right}
        metrics = {name: float(column.mean()) for name, column in columns.items()}
        checked_main(self, metrics)
        items = Items(
            numbered(len(f1)), "mean", {"value": columns[self.main_metric]}, pair_texts(self.first, self.second),
            groups=together(list(zip(self.first, self.second, strict=True))),
        )  # fmt: skip
        return Scores(metrics, items)
