"""Reranking: put the passages that belong to a query before those that do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..judged import JudgedModel
from ..metrics import ranking_metrics
from ..task import Items, Kind, Scores, Task, together
from .pairs import checked_main, shortened


@dataclass(frozen=True)
class RerankingGroup:
    """A query with passages that belong to it and passages that do not; both kinds are there.

    Attributes:
        query: The query.
        positives: Passages that belong to it.
        negatives: Passages that do not.
        id: Shown in reports; by default its number.
    """

    query: str
    positives: Sequence[str]
    negatives: Sequence[str]
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class RerankingTask(Task):
    """MTEB's protocol: mean average precision (`map`) over queries; `mrr` is that of the first 10.

    Of equal scores the negatives come first: a model that cannot tell them apart gains nothing.

    Attributes:
        groups: The queries with their passages.
    """

    kind: ClassVar[Kind] = "reranking"
    rerankable: ClassVar[bool] = True
    main_metric: str = "map"
    query_instruction: bool = True

    groups: Sequence[RerankingGroup]

    def content(self) -> Iterable[object]:
        """Queries and passages."""
        return ([group.query, list(group.positives), list(group.negatives)] for group in self.groups)

    def score(self, model: JudgedModel) -> Scores:
        """Encode, order and measure."""
        ids = [f"{number}" if not group.id else group.id for number, group in enumerate(self.groups)]
        similarities = self._similarities(model)
        qrels, run, related, unrelated = {}, {}, [], []
        for number, (group, scores) in enumerate(zip(self.groups, similarities, strict=True)):
            # trec_eval puts the later id first where scores are equal: "n" after "a".
            names = [f"a{i}" for i in range(len(group.positives))] + [f"n{i}" for i in range(len(group.negatives))]
            qrels[str(number)] = {name: int(name[0] == "a") for name in names}
            run[str(number)] = dict(zip(names, map(float, scores), strict=True))
            related.append(scores[: len(group.positives)])
            unrelated.append(scores[len(group.positives) :])
        values = ranking_metrics(qrels, run)
        values = {"map": values["map_at_1000"], "mrr": values["mrr_at_10"]} | values
        metrics = {name: float(column.mean()) for name, column in values.items()}
        checked_main(self, metrics)
        details = {
            "scores": {"related": shortened(np.concatenate(related)), "unrelated": shortened(np.concatenate(unrelated))}
        }
        items = Items(
            ids, "mean", {"value": values[self.main_metric]}, [group.query for group in self.groups],
            # A query may stand in several rows, and a question be asked in several ways of the same passages.
            together([(group.query, frozenset(group.positives)) for group in self.groups]),
        )  # fmt: skip
        return Scores(metrics, items, details)

    def _similarities(self, model: JudgedModel) -> list[np.ndarray]:
        """Scores of each query's passages, positives before negatives."""
        passages = [[*group.positives, *group.negatives] for group in self.groups]
        if model.setting.reranker is not None:
            return model.rerank([group.query for group in self.groups], passages)
        encode = model.queries if self.query_instruction else model.plain
        queries = encode([group.query for group in self.groups], self.kind, self.name)
        vectors = model.documents([text for texts in passages for text in texts], self.kind, self.name)
        rows = np.repeat(np.arange(len(passages)), [len(texts) for texts in passages])
        scores = model.similarity(queries[rows], vectors)
        return np.split(scores, np.cumsum([len(texts) for texts in passages])[:-1])
