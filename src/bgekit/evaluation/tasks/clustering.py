"""Clustering: how well groups of vectors agree with labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...errors import import_extra
from ..judged_model import JudgedModel, Kind
from .base import Items, Scores, Task, shared_part
from .pairs import checked_main, numbered


@dataclass(frozen=True, kw_only=True)
class ClusteringTask(Task):
    """MTEB's (first) protocol: mini-batch k-means with as many clusters as labels, V-measure, mean over problems.

    Attributes:
        sets: Texts and labels of each problem.
        seed: Random seed for k-means.
    """

    kind: ClassVar[Kind] = "clustering"
    packages: ClassVar[tuple[str, ...]] = ("sklearn",)
    main_metric: str = "v_measure"

    sets: Sequence[tuple[Sequence[str], Sequence[str]]]
    seed: int = 42

    def content(self) -> Iterable[object]:
        """The problems and the seed."""
        yield from ([list(texts), list(labels)] for texts, labels in self.sets)
        yield self.seed

    def score(self, model: JudgedModel) -> Scores:
        """Encode and cluster each problem."""
        cluster: Any = import_extra("sklearn.cluster", "eval")
        sklearn: Any = import_extra("sklearn.metrics", "eval")
        # In one call: a text may stand in several problems.
        vectors = model.plain([text for texts, _ in self.sets for text in texts], self.kind, self.name)
        values, first = [], 0
        for texts, labels in self.sets:
            part = vectors[first : first + len(texts)]
            first += len(texts)
            groups = len(set(labels))
            if groups < 2:
                values.append(1.0)  # As in MTEB: one label is one cluster.
                continue
            means = cluster.MiniBatchKMeans(
                n_clusters=groups, batch_size=500, n_init="auto", compute_labels=True, random_state=self.seed
            )
            with warnings.catch_warnings():
                # Fewer distinct texts than labels: k-means says so, and the score shows it.
                warnings.simplefilter("ignore")
                means.fit(part)
            values.append(float(sklearn.v_measure_score(labels, means.labels_)))
        column = np.asarray(values)
        metrics = {"v_measure": float(column.mean()), "v_measure_std": float(column.std())}
        checked_main(self, {"v_measure": metrics["v_measure"]})
        shown = [f"{len(texts):,} texts, {len(set(labels))} labels" for texts, labels in self.sets]
        items = Items(
            numbered(len(values)), "mean", {"value": column}, shown,
            overlap=shared_part([texts for texts, _ in self.sets]),
        )  # fmt: skip
        return Scores(metrics, items)
