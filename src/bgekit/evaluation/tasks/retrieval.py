"""Retrieval: find the documents that are relevant to each query, in a corpus of any size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ...data.records import Record
from ...display.terminal import printable, wrapped
from ...errors import NumericalError
from ...models.card import Role
from ...models.head_files import Output
from ...search.bm25 import Bm25
from ...search.fusion import Found, candidates, comparable
from ...search.lexical import TokenWeights
from ...search.modes import DEPTH, Mode, by_tokens
from ...search.nearest import QUERIES, UNIT_LENGTH, TopK, pair_scores
from ...search.postings import TokenPostings, best_rows
from ..hybrid import Candidates, cross_fit, deal, fitted_point, promising_point, score_table, weight_grid
from ..judged_model import EncodedCorpus, Floats, JudgedModel, Kind
from ..metrics import DEPTHS, ranking, ranking_metrics
from .base import MOST, Items, Scores, Task, together
from .pairs import checked_main, shortened

T = TypeVar("T")
Rows: TypeAlias = npt.NDArray[np.int64]
#: Documents found for each query: what the deepest metric looks at.
_DEPTH: Final = max(DEPTHS)
#: Documents that are compared token by token: the nearest by vectors.
_SECOND: Final = 2 * DEPTH
#: Documents whose tokens are looked at at once.
_BLOCK: Final = 1024
#: Pairs whose similarity is kept for a histogram.
_SAMPLE: Final = 1000

#: Depths of the recall curve in reports.
CURVE: Final = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
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
    modes: ClassVar[tuple[Mode, ...]] = ("dense", "lexical", "bm25", "multi-vector")
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
        search = self.search(model)
        mode, details, most = model.setting.mode, dict[str, Any](), None
        if mode == "hybrid":
            found, details, most = search.fused()
        else:
            found = search.found(mode)
        run = {
            query: {self.corpus.ids[row]: float(score) for row, score in zip(rows, scores, strict=True)}
            for query, (scores, rows) in zip(self.qrels, found, strict=True)
        }
        # Similarities of pairs are those of vectors; other modes give scores of other scales to what they find alone.
        unrelated = search.unrelated() if mode == "dense" else None
        if model.setting.reranker is not None:
            run, most = self._reranked(run, model), None
        return self._measured(list(self.qrels), run, unrelated, details, most)

    def search(self, model: JudgedModel) -> TaskSearch:
        """The search for the queries with a model."""
        return TaskSearch(self, model)

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

    def _measured(
        self, ids: list[str], run: dict[str, dict[str, float]], unrelated: Floats | None, more: dict[str, Any],
        most: npt.NDArray[np.float64] | None,
    ) -> Scores:  # fmt: skip
        values = ranking_metrics(self.qrels, run, judged=self._judged)
        metrics = {name: float(column.mean()) for name, column in values.items()}
        checked_main(self, metrics)
        details = {
            "recall_curve": self._recall_curve(run),
            "top": {query: ranking(scores, 3) for query, scores in run.items()},
            **more,
        }
        if unrelated is not None:
            relevant = [
                score for query, scores in run.items() for document, score in scores.items()
                if self.qrels[query].get(document, 0) > 0
            ]  # fmt: skip
            details["scores"] = {"relevant": shortened(relevant), "other": shortened(unrelated)}
        columns = {"value": values[self.main_metric]} | ({} if most is None else {MOST: most})
        items = Items(ids, "mean", columns, [self.queries[query] for query in ids], self.groups)
        return Scores(metrics, items, details)

    @cached_property
    def groups(self) -> list[int] | None:
        """The group of each query, of those with the same answer, which are found or missed together; None without."""
        return together([(self.queries[query], self._relevant(query)) for query in self.qrels])

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


class TaskSearch:
    """The search for the queries of a task, with a model in a setting.

    What is found is kept in the model's memo, so that settings that differ in their mode alone share it.

    Args:
        task: The task.
        model: The model in its setting.
    """

    def __init__(self, task: RetrievalTask, model: JudgedModel) -> None:
        self._task, self._model = task, model
        self._ids = list(task.qrels)

    def found(self, mode: Mode) -> list[Found]:
        """Scores and rows of the best documents of each query, best first, in one mode."""
        if mode == "dense":
            return self._dense_found()[0]
        if mode == "multi-vector":
            return self._in_second_stage()
        return self._once(f"found by {mode}", lambda: [self._by_terms(mode, query) for query in range(len(self._ids))])

    def unrelated(self) -> Floats | None:
        """Similarities of random queries and documents that are not relevant to them, the same for every model."""
        return self._dense_found()[1]

    def candidates(self, modes: Sequence[Mode]) -> list[Candidates]:
        """What any of the modes found for each query, with the scores that every one of them gives to it."""
        place = self._order
        with contextlib.ExitStack() as stack:
            # One pass over the corpus where nothing is kept of it.
            corpus = stack.enter_context(self._corpus(modes)) if "dense" in modes else None
            rows = [own[np.argsort(place[own])] for own in self._candidate_rows(modes, corpus)]
            scores = [self._similarities(rows, corpus) if corpus and mode == "dense" else self._scores(mode, rows)
                      for mode in modes]  # fmt: skip
        return [
            Candidates(own, np.stack([comparable(each[query]) for each in scores])) for query, own in enumerate(rows)
        ]

    def _candidate_rows(self, modes: Sequence[Mode], corpus: EncodedCorpus | None = None) -> list[Rows]:
        """The rows that any of the modes found for each query; multi-vectors find none where others do."""
        if corpus is not None and "lexical" in modes:
            self._weights_of(corpus)
        finding = [mode for mode in modes if mode != "multi-vector"] or modes
        lists = {mode: self._dense_found(corpus)[0] if mode == "dense" else self.found(mode) for mode in finding}
        return [candidates({mode: own[query] for mode, own in lists.items()}) for query in range(len(self._ids))]

    def fused(self) -> tuple[list[Found], dict[str, Any], npt.NDArray[np.float64] | None]:
        """Scores and rows of the best documents of each query by several modes, and how they were weighed.

        Without fitted weights, or with weights that were fitted on these very queries, each query's weights are fitted
        on queries of other folds. Then the last is the main metric of each query with the weights that may bring most.
        """
        task, setting = self._task, self._model.setting
        modes = setting.fused
        every = self.candidates(modes)
        given, own, most = setting.weights, "", None
        if given is not None and given.data_fingerprint == task.fingerprint:
            given, own = None, "the weights given were fitted on these very queries, so they were fitted anew: "
        if given is not None:
            chosen: list[dict[str, float]] = [{mode: given.weights.get(mode, 0.0) for mode in modes}] * len(every)
            details: dict[str, Any] = {"weights": chosen[0]} if chosen else {}
            note = f"hybrid has the weights that were fitted on {given.data}: {_shown(given.weights)}"
        else:
            grid = weight_grid(len(modes))
            table = score_table(self._ids, every, task.corpus.ids.__getitem__, task.qrels, task.main_metric, grid)
            units = task.groups or self._ids
            fold, most = deal(units), table[:, promising_point(table, grid, units)]
            points = cross_fit(table, fold, grid).points
            chosen = [dict(zip(modes, grid[point].tolist(), strict=True)) for point in points[fold]]
            whole = dict(zip(modes, grid[fitted_point(table, grid)].tolist(), strict=True))
            details = {"weights": whole, "weights of folds": grid[points].tolist()}
            note = (
                f"{own}hybrid is cross-fitted: each fifth of the queries has weights that were fitted on the others "
                f"(on all of them {_shown(whole)}); intervals reach as far as the best weights may"
            )
        found = list[Found]()
        for each, weights in zip(every, chosen, strict=True):
            scores, rows = each.weighed(np.array([[weights[mode] for mode in modes]]))
            best = np.argsort(-scores[0], kind="stable")[:_DEPTH]
            found.append((scores[0][best], rows[best]))
        return found, {**details, "notes": [note]}, most

    # ------------------------------------------------------------------------------------------------ by vectors

    @cached_property
    def _queries(self) -> Floats:
        """Vectors of the queries."""
        task, model = self._task, self._model
        encode = model.queries if task.query_instruction else model.plain
        return model.comparable(encode([task.queries[query] for query in self._ids], task.kind, task.name))

    def _corpus(self, modes: Sequence[Mode] = ()) -> contextlib.AbstractContextManager[EncodedCorpus]:
        """What the model computes of all documents, as far as some modes take it."""
        corpus = self._task.corpus
        return self._model.corpus(
            corpus.read(), corpus.digest, self._task.kind, self._task.name, count=len(corpus),
            lexical="lexical" in modes,
        )  # fmt: skip

    def _dense_found(self, vectors: EncodedCorpus | None = None) -> tuple[list[Found], Floats]:
        """What is found by vectors, and similarities of random pairs.

        Args:
            vectors: Of the corpus, where they are at hand.
        """

        def search() -> tuple[list[Found], Floats]:
            if vectors is not None:
                return self._nearest(vectors)
            queries = self._queries  # Before the corpus: who waits sees in this order what is done.
            with self._corpus() as own:
                return self._nearest(own) if len(queries) else ([], np.empty(0, np.float32))

        setting = self._model.setting
        return self._once(f"found by vectors {setting.instruction!r} {setting.dimension}", search)

    def _nearest(self, vectors: EncodedCorpus) -> tuple[list[Found], Floats]:
        task, model, queries = self._task, self._model, self._queries
        longest = UNIT_LENGTH if model.cosine else None
        best = [
            # One more than counts where the query itself may be among them.
            TopK(queries[first : first + QUERIES], _DEPTH + task.skip_identical_ids, cosine=False, longest=longest)
            for first in range(0, len(queries), QUERIES)
        ]
        unrelated: Floats = np.empty(0, np.float32)
        for first, block in vectors:
            documents = model.comparable(block)
            if not np.isfinite(documents).all():
                raise NumericalError(f"a document vector of {task.name} has NaN or infinity")
            if first == 0:
                unrelated = self._unrelated(documents)
            for part in best:
                part.add(first, documents)
        pairs = [pair for part in best for pair in part.found()]
        return [self._without_itself(query, *pair) for query, pair in enumerate(pairs)], unrelated

    def _unrelated(self, documents: Floats) -> Floats:
        random, ids = np.random.default_rng(0), self._task.corpus.ids
        rows, columns = (random.integers(0, len(part), _SAMPLE) for part in (self._queries, documents))
        kept = [
            self._task.qrels[self._ids[row]].get(ids[column], 0) <= 0 for row, column in zip(rows, columns, strict=True)
        ]
        return np.einsum("nd,nd->n", self._queries[rows[kept]], documents[columns[kept]])

    def _similarities(self, rows: Sequence[Rows], vectors: EncodedCorpus) -> list[npt.NDArray[np.float64]]:
        """Scores that vectors give to rows of each query."""
        found = []
        for query, own in zip(self._queries.astype(np.float64), rows, strict=True):
            documents, one = self._model.comparable(vectors.at(own)), np.zeros(len(own), np.int64)
            # As `TopK` adds up: a score depends on its two vectors alone.
            scores = pair_scores(query[None], one, documents, np.arange(len(own)), cosine=False)
            found.append(scores.astype(np.float64))
        return found

    # ------------------------------------------------------------------------------------------------ by terms

    def _of_rows(self, mode: Mode, query: int) -> npt.NDArray[np.float32] | None:
        """The scores of all rows by words or by weights of tokens; None where nothing is shared with any."""
        if mode == "lexical":
            return self._weights_of().of_rows(self._outputs("sparse")[query])
        return self._words.of_rows(self._task.queries[self._ids[query]])

    def _by_terms(self, mode: Mode, query: int) -> Found:
        scores = self._of_rows(mode, query)
        if scores is None:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        rows = best_rows(scores, _DEPTH + self._task.skip_identical_ids)
        rows = rows[scores[rows] > 0]
        return self._without_itself(query, scores[rows], rows)

    @property
    def _words(self) -> Bm25:
        return self._once(
            "words of the corpus", lambda: Bm25.of_texts(record.text for record in self._task.corpus.read())
        )

    def _weights_of(self, corpus: EncodedCorpus | None = None) -> TokenWeights:
        """The lexical weights of the documents.

        Args:
            corpus: What was computed of them, where it is at hand.
        """

        def weigh() -> TokenWeights:
            postings = TokenPostings()
            with self._corpus(["lexical"]) if corpus is None else contextlib.nullcontext(corpus) as own:
                for block in own.lexical():
                    postings.add(block)
            postings.finish()
            return TokenWeights(postings.blocks, len(self._task.corpus))

        return self._once("weights of the corpus", weigh)

    def _scores(self, mode: Mode, rows: Sequence[Rows]) -> list[npt.NDArray[np.float64]]:
        """Scores that a mode gives to rows of each query, other than by vectors of texts."""
        if mode == "multi-vector":
            return self._by_tokens(rows)
        found = [np.zeros(len(own)) for own in rows]
        for query, own in enumerate(rows):
            if (scores := self._of_rows(mode, query)) is not None:
                found[query] = scores[own].astype(np.float64)
        return found

    # ------------------------------------------------------------------------------------------- token by token

    def _in_second_stage(self) -> list[Found]:
        """The nearest documents by vectors, in the order of what their tokens' vectors say."""
        nearest = self._nearest_rows()
        found = list[Found]()
        for rows, scores in zip(nearest, self._by_tokens(nearest), strict=True):
            order = np.lexsort((rows, -scores))
            found.append((scores[order], rows[order]))
        return found

    def _nearest_rows(self) -> list[Rows]:
        """The documents that are compared token by token where that is the mode."""
        return [rows[:_SECOND] for _, rows in self._dense_found()[0]]

    def _by_tokens(self, rows: Sequence[Rows]) -> list[npt.NDArray[np.float64]]:
        """Scores of rows of each query by the vectors of their tokens, each of which is computed once for all settings.

        They are more than a memory or a disk has, so what stays is the scores.
        """
        known: list[tuple[npt.NDArray[np.float64], Rows]] = self._once(
            f"by tokens {self._model.setting.instruction!r}", lambda: [(np.empty(0), np.empty(0, np.int64))] * len(rows)
        )
        new = [np.setdiff1d(own, there) for own, (_, there) in zip(rows, known, strict=True)]
        if any(map(len, new)):
            for more in self._by_tokens_in_settings():
                new = [np.union1d(own, np.setdiff1d(other, there))
                       for own, other, (_, there) in zip(new, more, known, strict=True)]  # fmt: skip
            for query, (own, (scores, there)) in enumerate(zip(self._token_scores(new), known, strict=True)):
                every = np.concatenate([there, new[query]])
                order = np.argsort(every)
                known[query] = np.concatenate([scores, own])[order], every[order]
        return [scores[np.searchsorted(there, own)] for own, (scores, there) in zip(rows, known, strict=True)]

    def _by_tokens_in_settings(self) -> Iterator[list[Rows]]:
        """What the model's settings of the same queries and vectors compare token by token, setting by setting."""
        own = self._model.setting
        for each in self._model.settings:
            if (each.instruction, each.dimension) == (own.instruction, own.dimension):
                if each.mode == "multi-vector":
                    yield self._nearest_rows()
                elif each.mode == "hybrid" and "multi-vector" in each.fused:
                    yield self._candidate_rows(each.fused)

    def _token_scores(self, rows: Sequence[Rows]) -> list[npt.NDArray[np.float64]]:
        """Scores of rows of each query, in one pass over the corpus."""
        queries = self._outputs("multi-vector")
        found = [np.zeros(len(own)) for own in rows]
        for wanted, block in self._token_vectors(np.unique(np.concatenate(rows))):
            part = by_tokens(queries, partial(_rows_of, block))
            for query, own in enumerate(rows):
                inside = np.flatnonzero(np.isin(own, wanted))
                found[query][inside] = part.score(query, np.searchsorted(wanted, own[inside]))
        return found

    def _token_vectors(self, rows: Rows) -> Iterator[tuple[Rows, list[npt.NDArray[Any]]]]:
        """Some rows of the corpus, ascending, and the vectors of their tokens, in blocks."""
        some = frozenset(rows.tolist())
        records = ((row, own) for row, own in enumerate(self._task.corpus.read()) if row in some)
        while block := list(itertools.islice(records, _BLOCK)):
            texts = [record.text for _, record in block]
            encoded = self._model.embedder.encode_outputs(texts, ["multi-vector"], role="document", show_progress=False)
            yield np.array([row for row, _ in block]), encoded.ragged["multi-vector"]

    # ------------------------------------------------------------------------------------------------ for all

    def _outputs(self, output: Output) -> list[npt.NDArray[Any]]:
        """What the model computes of the queries beside their vectors."""
        task, setting = self._task, self._model.setting
        texts = [task.queries[query] for query in self._ids]
        role: Role = "query" if task.query_instruction else "plain"
        return self._once(
            f"{output} of queries {setting.instruction!r}",
            lambda: self._model.embedder.encode_outputs(
                texts, [output], role=role, instruction=setting.instruction, show_progress=False
            ).ragged[output],
        )

    def _once(self, what: str, make: Callable[[], T]) -> T:
        return self._model.once(f"{what}, {self._task.fingerprint}", make)

    def _without_itself(self, query: int, scores: npt.NDArray[np.float32], rows: Rows) -> Found:
        """What was found, without the document that has the query's id, where that does not count."""
        if self._task.skip_identical_ids:
            own = self._ids[query]
            kept = [self._task.corpus.ids[row] != own for row in rows.tolist()]
            scores, rows = scores[kept], rows[kept]
        return scores[:_DEPTH], rows[:_DEPTH]

    @property
    def _order(self) -> Rows:
        """The place of each row among equal scores: the later id first, as trec_eval has it."""

        def places() -> Rows:
            ids = self._task.corpus.ids
            place = np.empty(len(ids), np.int64)
            place[sorted(range(len(ids)), key=lambda row: ids[row], reverse=True)] = np.arange(len(ids))
            return place

        return self._once("order of ids", places)


def _rows_of(block: Sequence[npt.NDArray[Any]], rows: Rows) -> list[npt.NDArray[Any]]:
    """The arrays of some texts of a block."""
    return [block[row] for row in rows.tolist()]


def _shown(weights: Any) -> str:
    return ", ".join(f"{mode} {weight:.2f}" for mode, weight in weights.items())


def _beginning(text: str) -> str:
    """The first words of a text, with an ellipsis where there are more."""
    return "".join(wrapped(printable(text), _SHOWN, lines=1))
