"""Reranking: put the passages that belong to a query before those that do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from ..judged_model import JudgedModel, Kind
from ..metrics import ranking_metrics
from .base import Items, Scores, Task, together
from .pairs import checked_main, shortened

#: Above every grade.
_HIGHEST: Final = 2**31


@dataclass(frozen=True)
class RerankingGroup:
    """A query with passages that belong to it and passages that do not.

    Attributes:
        query: The query.
        positives: Passages that belong to it.
        negatives: Passages that do not.
        id: Shown in reports; by default its number.
        grades: How relevant each positive is, whole numbers from 1; () where all are alike.
        missed: Grades of passages that belong to it and are not among those to rerank: never found.
        others: Further queries that mean the same group (a reader's history in MIND): of its scores with each, a
            passage has the best.
    """

    query: str
    positives: Sequence[str]
    negatives: Sequence[str]
    id: str = ""
    grades: Sequence[int] = ()
    missed: Sequence[int] = ()
    others: Sequence[str] = ()

    @property
    def is_graded(self) -> bool:
        """Whether some passages are more relevant than others."""
        return len({*self.grades, *self.missed}) > 1

    def judged(self) -> dict[str, int]:
        """Relevance of the passages by made-up ids: positives, negatives, then those that are missed.

        trec_eval puts the later id first where scores are equal; here that is the less relevant passage.
        """
        grades = self.grades or [1] * len(self.positives)
        # Padded, so that their order as strings is that of the grades, the highest first.
        names = {f"a{_HIGHEST - grade:010d} {place}": grade for place, grade in enumerate(grades)}
        names |= {f"n{place}": 0 for place in range(len(self.negatives))}
        return names | {f"x{place}": grade for place, grade in enumerate(self.missed)}


@dataclass(frozen=True, kw_only=True)
class RerankingTask(Task):
    """MTEB's protocol: mean average precision (`map`) over queries; `mrr` is that of the first 10.

    Of equal scores the less relevant come first: a model that cannot tell them apart gains nothing. Grades decide nDCG;
    for all other measures a passage is relevant or not.

    Attributes:
        groups: The queries with their passages.
    """

    kind: ClassVar[Kind] = "reranking"
    packages: ClassVar[tuple[str, ...]] = ("pytrec_eval",)
    rerankable: ClassVar[bool] = True
    main_metric: str = "map"
    query_instruction: bool = True

    groups: Sequence[RerankingGroup]

    def content(self) -> Iterable[object]:
        """Queries, passages and, where there are any, grades."""
        for group in self.groups:
            more = [list(group.grades), list(group.missed), list(group.others)]
            yield [group.query, list(group.positives), list(group.negatives), *(more if any(more) else [])]

    @property
    def notes(self) -> tuple[str, ...]:
        """Whether there are grades."""
        graded = sum(group.is_graded for group in self.groups)
        told = f"{graded:,} of {len(self.groups):,} queries have passages of several grades: nDCG counts them, "
        return (*self.remarks, f"{told}map, mrr and the others only relevant or not") if graded else self.remarks

    def score(self, model: JudgedModel) -> Scores:
        """Encode, order and measure."""
        ids = [f"{number}" if not group.id else group.id for number, group in enumerate(self.groups)]
        similarities = self._similarities(model)
        qrels, run, related, unrelated = {}, {}, [], []
        for number, (group, scores) in enumerate(zip(self.groups, similarities, strict=True)):
            judged = group.judged()
            qrels[str(number)] = judged
            run[str(number)] = dict(zip(list(judged)[: len(scores)], map(float, scores), strict=True))
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
        pairs = [
            (number, query, [*group.positives, *group.negatives])
            for number, group in enumerate(self.groups)
            for query in (group.query, *group.others)
        ]
        passages = [texts for _, _, texts in pairs]
        if model.setting.reranker is not None:
            found = model.rerank([query for _, query, _ in pairs], passages, self.name)
        else:
            encode = model.queries if self.query_instruction else model.plain
            queries = encode([query for _, query, _ in pairs], self.kind, self.name)
            vectors = model.documents([text for texts in passages for text in texts], self.kind, self.name)
            rows = np.repeat(np.arange(len(passages)), [len(texts) for texts in passages])
            scores = model.similarity(queries[rows], vectors)
            found = np.split(scores, np.cumsum([len(texts) for texts in passages])[:-1])
        best: list[np.ndarray] = []
        for (number, _, _), scores in zip(pairs, found, strict=True):
            if number < len(best):
                best[number] = np.maximum(best[number], scores)
            else:
                best.append(scores)
        return best
