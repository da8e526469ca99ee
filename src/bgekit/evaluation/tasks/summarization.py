"""Summarisation: whether summaries that people rate higher lie nearer to those that people wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...errors import DataError, import_extra
from ..judged_model import JudgedModel, Kind
from .base import Items, Scores, Task, together
from .pairs import checked_main


@dataclass(frozen=True)
class SummaryGroup:
    """Summaries of one text.

    Attributes:
        text: The text, for reports; models do not see it.
        human: Summaries that people wrote.
        machine: Summaries to be judged.
        scores: People's rating of each of them.
    """

    text: str
    human: Sequence[str]
    machine: Sequence[str]
    scores: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class SummarizationTask(Task):
    """MTEB's protocol (SummEval): a summary scores its greatest similarity to a human one; rank correlation with the
    ratings of each text, mean over texts. Texts whose ratings or scores are all equal have no correlation and are left
    out.

    Attributes:
        groups: The texts with their summaries.
    """  # noqa: D205

    kind: ClassVar[Kind] = "summarization"
    packages: ClassVar[tuple[str, ...]] = ("scipy",)
    main_metric: str = "cosine_spearman"

    groups: Sequence[SummaryGroup]

    def content(self) -> Iterable[object]:
        """The summaries and ratings."""
        return ([list(group.human), list(group.machine), list(group.scores)] for group in self.groups)

    def score(self, model: JudgedModel) -> Scores:
        """Encode and correlate."""
        stats: Any = import_extra("scipy.stats", "eval")
        texts = [text for group in self.groups for text in (*group.human, *group.machine)]
        vectors = model.plain(texts, self.kind, self.name).astype(np.float64)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        found: dict[str, list[float]] = {f"{a}_{b}": [] for a in ("cosine", "dot") for b in ("spearman", "pearson")}
        ids, shown, first = [], [], 0
        for number, group in enumerate(self.groups):
            human = slice(first, first + len(group.human))
            machine = slice(human.stop, human.stop + len(group.machine))
            first = machine.stop
            predicted = {
                name: (v[machine] @ v[human].T).max(axis=1) for name, v in (("cosine", unit), ("dot", vectors))
            }
            if min(len(set(group.scores)), *(len(set(values.tolist())) for values in predicted.values())) < 2:
                continue
            ids.append(str(number))
            shown.append(group.text)
            for name, values in predicted.items():
                found[f"{name}_spearman"].append(float(stats.spearmanr(group.scores, values).statistic))
                found[f"{name}_pearson"].append(float(stats.pearsonr(group.scores, values).statistic))
        if not ids:
            raise DataError(f"{self.name}: no text has summaries that were rated differently")
        own = "cosine" if model.cosine else "dot"
        found |= {key: found[f"{own}_{key}"] for key in ("spearman", "pearson")}
        metrics = {name: float(np.mean(values)) for name, values in found.items()}
        same = together([(group.text, frozenset(group.human)) for group in self.groups])
        groups = None if same is None else [same[int(number)] for number in ids]
        checked_main(self, metrics)
        return Scores(metrics, Items(ids, "mean", {"value": np.asarray(found[self.main_metric])}, shown, groups))
