"""Retrieval: find the documents that are relevant to each query, in a corpus of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from ...data.records import Record
from ...display.terminal import printable, wrapped
from ...errors import NumericalError
from ...search.nearest import QUERIES, UNIT_LENGTH, TopK
from ..judged_model import Floats, JudgedModel, Kind
from ..metrics import DEPTHS, ranking, ranking_metrics
from .base import Items, Scores, Task, together
from .pairs import checked_main, shortened

#: Depths of the recall curve in reports.
CURVE: Final = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
#: Pairs whose similarity is kept for a histogram.
_SAMPLE: Final = 1000
#: Ends the note on queries that have the id of a document.
_SAY_WHICH: Final = 'say "skip_identical_ids": true or false in dataset.json'
#: Characters of a document that are shown.
_SHOWN: Final = 300


@dataclass(frozen=True)
class Corpus:
    """Documents that are read again for each pass, so that they need not fit into memory.

    Attributes:
        ids: Ids in the order of reading, all different.
        read: Starts a pass; a record's text is title and text.
        digest: sha256 (hex) of ids and texts.
    """

    ids: Sequence[str]
    read: Callable[[], Iterable[Record]]
    digest: str

    def __len__(self) -> int:
        return len(self.ids)

    def texts(self, wanted: Iterable[str]) -> dict[str, str]:
        """The texts of some documents."""
        missing, found = set(wanted), {}
        for record in self.read() if missing else ():
            if record.id in missing:
                found[record.id] = record.text
                missing.discard(record.id)
                if not missing:
                    break
        return found


@dataclass(frozen=True, kw_only=True)
class RetrievalTask(Task):
    """MTEB's protocol: the 1,000 nearest documents of each query by exact search, judged by trec_eval's measures.

    Attributes:
        queries: Texts by id.
        corpus: The documents.
        qrels: Relevance by query and document; each of its queries is in `queries` and counts once.
        skip_identical_ids: Drop a document with the id of the query (ArguAna, Quora: there it is the query itself).
        identical_ids_settled: Whether that was said, by the name of the task or with the data.
    """

    kind: ClassVar[Kind] = "retrieval"
    packages: ClassVar[tuple[str, ...]] = ("pytrec_eval",)
    rerankable: ClassVar[bool] = True
    main_metric: str = "ndcg_at_10"
    query_instruction: bool = True

    queries: Mapping[str, str]
    corpus: Corpus
    qrels: Mapping[str, Mapping[str, int]]
    skip_identical_ids: bool = False
    identical_ids_settled: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on documents that have the id of a query, where there are any."""
        if not self.identical_ids:
            return self.remarks
        count = len(self.identical_ids)
        told = "1 query has" if count == 1 else f"{count:,} queries have"
        told = f"{told} the id of a document, which is"
        if self.skip_identical_ids:
            how = f"{told} left out of what was found for it (skip_identical_ids)"
        elif self.identical_ids_settled:
            how = f"{told} ranked as any other (no skip_identical_ids)"
        else:
            how = f"{told} ranked as any other, as nothing says otherwise; {self._same_texts}: {_SAY_WHICH}"
        return (*self.remarks, how)

    @cached_property
    def identical_ids(self) -> list[str]:
        """The queries whose id is that of a document, too."""
        documents = frozenset(self.corpus.ids)
        return [query for query in self.qrels if query in documents]

    @cached_property
    def _same_texts(self) -> str:
        """Number of these in which the document is the query itself."""
        texts = self.corpus.texts(self.identical_ids)
        # A document's text may have its title before it.
        same = sum(
            bool(text := self.queries[query].strip()) and texts[query].strip().endswith(text)
            for query in self.identical_ids
        )
        return f"the texts are the same in {same:,} of {len(self.identical_ids):,}"

    def content(self) -> Iterable[object]:
        """Judgements, the texts of judged queries, the corpus's digest, the protocol."""
        yield from ([query, self.queries[query], dict(found)] for query, found in self.qrels.items())
        yield [self.corpus.digest, self.skip_identical_ids, max(DEPTHS)]

    def score(self, model: JudgedModel) -> Scores:
        """Search and measure."""
        depth = max(DEPTHS)
        ids = list(self.qrels)
        encode = model.queries if self.query_instruction else model.plain
        vectors = model.comparable(encode([self.queries[query] for query in ids], self.kind, self.name))
        # One more than counts where the query itself may be among them.
        longest = UNIT_LENGTH if model.cosine else None
        best = [
            TopK(vectors[first : first + QUERIES], depth + self.skip_identical_ids, cosine=False, longest=longest)
            for first in range(0, len(ids), QUERIES)
        ]
        unrelated: npt.NDArray[np.float32] = np.empty(0, np.float32)
        records = self.corpus.read()
        with model.corpus(records, self.corpus.digest, self.kind, self.name, count=len(self.corpus)) as blocks:
            for first, block in blocks:
                documents = model.comparable(block)
                if not np.isfinite(documents).all():
                    raise NumericalError(f"a document vector of {self.name} has NaN or infinity")
                if first == 0:
                    unrelated = self._unrelated(ids, vectors, documents)
                for part in best:
                    part.add(first, documents)
        found = [pair for part in best for pair in part.found()]
        run = {
            query: {
                self.corpus.ids[row]: float(score)
                for row, score in zip(rows, scores, strict=True)
                if not (self.skip_identical_ids and self.corpus.ids[row] == query)
            }
            for query, (scores, rows) in zip(ids, found, strict=True)
        }
        if model.setting.reranker is not None:
            run = self._reranked(run, model)
        return self._measured(ids, run, unrelated)

    def explain(
        self, ids: Sequence[str], a: Mapping[str, Any], b: Mapping[str, Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """First document that each model found for some queries, and a relevant one."""
        named = {}
        for query in ids:
            relevance = self.qrels[query]
            named[query] = {
                "relevant": max(relevance, key=lambda document: relevance[document]),
                **{f"{side} found": top[query][0] for side, top in (("a", a["top"]), ("b", b["top"])) if top[query]},
            }
        texts = self.corpus.texts(document for names in named.values() for document in names.values())
        return {
            query: {name: f"{document}: {_beginning(texts.get(document, ''))}" for name, document in names.items()}
            for query, names in named.items()
        }

    def _measured(self, ids: list[str], run: dict[str, dict[str, float]], unrelated: Floats) -> Scores:
        values = ranking_metrics(self.qrels, run, judged=self._judged)
        metrics = {name: float(column.mean()) for name, column in values.items()}
        checked_main(self, metrics)
        relevant = [
            score for query, scores in run.items() for document, score in scores.items()
            if self.qrels[query].get(document, 0) > 0
        ]  # fmt: skip
        details = {
            "recall_curve": self._recall_curve(run),
            "scores": {"relevant": shortened(relevant), "other": shortened(unrelated)},
            "top": {query: ranking(scores, 3) for query, scores in run.items()},
        }
        items = Items(
            ids, "mean", {"value": values[self.main_metric]}, [self.queries[query] for query in ids],
            # Queries with the same answer are found or missed together: the questions on one paragraph.
            together([(self.queries[query], self._relevant(query)) for query in ids]),
        )  # fmt: skip
        return Scores(metrics, items, details)

    @cached_property
    def _judged(self) -> frozenset[str]:
        return frozenset(document for judgement in self.qrels.values() for document in judgement)

    def _reranked(self, run: dict[str, dict[str, float]], model: JudgedModel) -> dict[str, dict[str, float]]:
        """The first passages of each query in the reranker's order; the others follow in their own."""
        heads = {query: ranking(scores, model.setting.rerank_top_k) for query, scores in run.items()}
        texts = self.corpus.texts(document for head in heads.values() for document in head)
        passages = [[texts[document] for document in head] for head in heads.values()]
        orders = model.rerank([self.queries[query] for query in heads], passages, self.name)
        reranked = {}
        for (query, head), order in zip(heads.items(), orders, strict=True):
            tail = [document for document in ranking(run[query], len(run[query])) if document not in set(head)]
            floor = float(order.min()) if len(order) else 0.0
            reranked[query] = dict(zip(head, map(float, order), strict=True)) | {
                document: floor - place for place, document in enumerate(tail, 1)
            }
        return reranked

    def _relevant(self, query: str) -> frozenset[str]:
        return frozenset(document for document, relevance in self.qrels[query].items() if relevance > 0)

    def _recall_curve(self, run: dict[str, dict[str, float]]) -> dict[str, list[float]]:
        depths = [depth for depth in CURVE if depth <= max(len(self.corpus), 1)]
        recall = np.zeros(len(depths))
        for query, scores in run.items():
            wanted = self._relevant(query)
            hits = np.cumsum([document in wanted for document in ranking(scores, depths[-1])])
            if len(hits) and wanted:
                recall += [hits[min(depth, len(hits)) - 1] / len(wanted) for depth in depths]
        return {"k": list(map(float, depths)), "recall": (recall / max(len(run), 1)).tolist()}

    def _unrelated(self, ids: list[str], queries: Floats, documents: Floats) -> Floats:
        """Similarities of random queries and documents that are not relevant to them, the same for every model."""
        random = np.random.default_rng(0)
        rows, columns = (random.integers(0, len(part), _SAMPLE) for part in (queries, documents))
        kept = [
            self.qrels[ids[row]].get(self.corpus.ids[column], 0) <= 0 for row, column in zip(rows, columns, strict=True)
        ]
        return np.einsum("nd,nd->n", queries[rows[kept]], documents[columns[kept]])


def _beginning(text: str) -> str:
    """The first words of a text, with an ellipsis where there are more."""
    return "".join(wrapped(printable(text), _SHOWN, lines=1))
