"""Fusion weights for a user's own queries: fitted on judged ones, with what they bring for queries not seen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from ..data.chunking import document_of
from ..data.formats import Quoting
from ..data.records import Record
from ..display.terminal import printable
from ..errors import ArgumentError, DataError, require_extra
from ..files.hashing import digest
from ..models.calibration_map import made_for_facts
from ..search.fusion import FittedWeights, Found, Gain, comparable
from ..search.fusion import candidates as all_rows
from ..search.index import SearchIndex
from ..search.modes import MODES, Mode, Part, depth_of
from ..search.storage import Stored
from .evaluator import Candidate, evaluate, tasks_of
from .hybrid import Candidates, depth_of_metric
from .judged_model import JudgedModel, Setting
from .metrics import metric_name
from .tasks.retrieval import Corpus, RetrievalTask, TaskSearch

if TYPE_CHECKING:
    from ..inference.model import Embedder
    from .report.report import Report
    from .results import Comparison

Rows: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HybridCalibration:
    """Weights of modes that were fitted on judged queries, and what was measured of them.

    Attributes:
        fitted: The weights; `write_fusion` writes them.
        report: The modes and their hybrid, whose weights were fitted without the queries that they are scored on.
        comparisons: Hybrid against each mode.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.evaluation import calibrate_hybrid
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> calibration = calibrate_hybrid(model, "scifact")  # doctest: +SKIP
        >>> calibration.fitted.weights  # doctest: +SKIP
        {'dense': 0.91, 'bm25': 0.09}
    """

    fitted: FittedWeights
    report: Report
    comparisons: Sequence[Comparison]

    @property
    def conclusion(self) -> str:
        """Whether hybrid beats the better of its parts, and dense alone, in a sentence without its full stop."""
        fitted = self.fitted
        best = max(fitted.gains, key=lambda mode: fitted.scores[mode])
        metric, over = metric_name(fitted.metric), fitted.over_better
        found = f"{over.difference:+.2f} points of {metric}"
        if over.low is None or over.high is None:
            found += f", no interval: {self.comparisons[0].doubt}"
        else:
            found += f", 95 % interval {over.low:+.2f} to {over.high:+.2f}"
        if over.low is not None and over.low > 0:
            return f"hybrid beats {best} alone, the better part ({found})"
        if fitted.weights[best] == 1:
            return f"the weights are those of {best} alone: the other modes add nothing for these queries ({found})"
        return f"that hybrid beats {best} alone, the better part, cannot be concluded from these queries ({found})"


def calibrate_hybrid(
    model: Embedder,
    data: str | os.PathLike[str] | RetrievalTask,
    *,
    index: SearchIndex | None = None,
    modes: Sequence[Mode] | None = None,
    split: str | None = None,
    seed: int = 0,
    show_progress: bool | None = None,
    encoding: str | None = None,
    quoting: Quoting = "auto",
) -> HybridCalibration:
    """Fit the weights by which a hybrid search puts its modes together, on judged queries.

    Args:
        model: The model.
        data: Judged queries, in any form that `read_tasks` knows for retrieval, or a task.
        index: An index of the model whose documents have the ids of the judgements: it is searched, with its passages,
            rather than the documents of the data.
        modes: The modes; by default all that the index has, without one `dense` and `bm25`.
        split: The split of the data; by default test where there is one.
        seed: Random seed for the comparisons' randomisations.
        show_progress: Show progress bars; by default on a terminal.
        encoding: What text files of data are written in; by default UTF-8.
        quoting: Whether quotes in csv and tsv enclose fields.

    Raises:
        ArgumentError: there is not one retrieval task in the data, a mode is not there, or there are too few queries.
        DataError: the data cannot be read, or none of the judged documents is in the index.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.errors import ArgumentError
        >>> from bgekit.evaluation import calibrate_hybrid
        >>> try:
        ...     calibrate_hybrid(FlagModel("BAAI/bge-small-en-v1.5"), "scifact")
        ... except ArgumentError as error:
        ...     print(str(error)[-38:])
        5 independent queries, and there are 2
    """
    require_extra("eval", "scipy")
    task = read_judged(data, split=split, encoding=encoding, quoting=quoting)
    there: tuple[Mode, ...] = ("dense", "bm25") if index is None else modes_of(index)
    chosen = tuple(modes) if modes else there
    if index is not None and (lacking := [mode for mode in chosen if mode not in there]):
        raise ArgumentError(
            f"the index has no {', '.join(lacking)}, but {', '.join(there)}: `bge search --index DIR --parts bm25` "
            "adds the words of its texts"
        )
    judged: RetrievalTask = task if index is None else IndexedTask.of(task, index)
    settings = [Setting(mode="hybrid", fused=chosen), *(Setting(mode=mode) for mode in chosen)]
    candidate = Candidate(model.card.name, model, settings=settings)
    report = evaluate(candidate, judged, seed=seed, progress=show_progress, log_scores=False)
    results = {result.mode: result for result in report.results}
    hybrid = results["hybrid"]
    comparisons = [each for each in report.comparisons if each.a == hybrid.label]
    gains = {
        mode: next(Gain(each.difference, each.ci_low, each.ci_high) for each in comparisons if each.b == result.label)
        for mode, result in results.items()
        if mode != "hybrid"
    }
    fitted = FittedWeights(
        weights=hybrid.details["weights"],
        model=model.card.name,
        made_for=made_for_facts(model.similarity_facts(), model.card),
        data=task.name,
        data_fingerprint=task.fingerprint,
        queries=hybrid.count,
        metric=hybrid.main_metric,
        scores={mode: result.main_score for mode, result in results.items()},
        gains=gains,
    )
    return HybridCalibration(fitted, report, comparisons)


def read_judged(
    data: str | os.PathLike[str] | RetrievalTask, *, split: str | None = None, encoding: str | None = None,
    quoting: Quoting = "auto",
) -> RetrievalTask:  # fmt: skip
    """The one retrieval task of some data.

    Raises:
        ArgumentError: there is none, or several.
        DataError: the data cannot be read.
    """
    if isinstance(data, RetrievalTask):
        return data
    tasks = [
        task for task in tasks_of(data, split=split, encoding=encoding, quoting=quoting)
        if isinstance(task, RetrievalTask)
    ]  # fmt: skip
    if len(tasks) != 1:
        found = ", ".join(task.name for task in tasks) or "none"
        raise ArgumentError(
            f"weights are fitted on the judged queries of one retrieval task, and {os.fspath(data)} has {found}: give "
            "the folder of one, with documents, queries and judgements (docs/evaluate.md has the forms)"
        )
    return tasks[0]


def modes_of(index: SearchIndex) -> tuple[Mode, ...]:
    """The modes that an index has.

    Raises:
        ArgumentError: it is but one.
    """
    modes = tuple(mode for mode in MODES if mode == "dense" or mode in (index.facts.parts or {}))
    if len(modes) < 2:
        index.check_mode("hybrid")  # Says what it lacks, and how it gets that.
    return modes


@dataclass(frozen=True, kw_only=True)
class IndexedTask(RetrievalTask):
    """Judged queries, searched for in an index as `bge search` does.

    Attributes:
        index: The index.
        document_of_row: For each row that is stored the place of its document in `corpus.ids`, -1 if it is deleted.
    """

    index: SearchIndex
    document_of_row: Rows

    @classmethod
    def of(cls, task: RetrievalTask, index: SearchIndex) -> IndexedTask:
        """The queries of a task, for the documents of an index.

        Raises:
            DataError: none of the relevant documents is in the index.
        """
        chunked = index.facts.chunked

        def names(stored: Stored) -> Iterator[tuple[str, str]]:
            return ((document_of(name)[0] if chunked else name, text or "") for name, text in stored.rows())

        number: dict[str, int] = {}
        for name, _ in names(index.live):
            number.setdefault(name, len(number))
        wanted = {name for found in task.qrels.values() for name, relevance in found.items() if relevance > 0}
        missing = wanted - number.keys()
        if missing == wanted:
            raise DataError(
                f"no document that is judged relevant in {task.name} is in {index.folder}: the judgements name "
                f"{_some(wanted)}, the index has {_some(number)}"
            )
        remarks = task.remarks
        if missing:
            remarks += (
                f"{len(missing):,} of {len(wanted):,} relevant documents are not in the index, such as "
                f"{_some(missing)}: they count as not found",
            )
        corpus = Corpus(
            list(number), lambda: (Record(name, text) for name, text in names(index.live)),
            digest(repr(index.facts), str(index.folder)),
        )  # fmt: skip
        rows = np.fromiter((number.get(name, -1) for name, _ in names(index.stored)), np.int64, index.stored.count)
        own = {each.name: getattr(task, each.name) for each in fields(task)}
        return cls(**own | {"corpus": corpus, "remarks": remarks, "index": index, "document_of_row": rows})

    def search(self, model: JudgedModel) -> TaskSearch:
        """The search in the index."""
        return _IndexSearch(self, model)


class _IndexSearch(TaskSearch):
    """What the modes of an index find for the queries of a task."""

    def __init__(self, task: IndexedTask, model: JudgedModel) -> None:
        super().__init__(task, model)
        self._index, self._document_of_row = task.index, task.document_of_row
        self._wanted = depth_of(depth_of_metric(task.main_metric) + task.skip_identical_ids)

    def unrelated(self) -> None:
        """Not looked at."""

    def found(self, mode: Mode) -> list[Found]:
        """Scores and rows of the best documents of each query, best first, in one mode."""
        found = list[Found]()
        for each in self.candidates((mode,)):
            scores, rows = each.weighed(np.ones((1, 1)))
            order = np.argsort(-scores[0], kind="stable")
            found.append((scores[0][order], rows[order]))
        return found

    def candidates(self, modes: Sequence[Mode]) -> list[Candidates]:
        """What any of the modes found for each query, with the scores that every one of them gives to it."""
        parts = self._parts
        every = list[Candidates]()
        for query, name in enumerate(self._ids):
            rows = all_rows({mode: self._listed(mode, query) for mode in modes})
            documents = self._document_of_row[rows]
            if self._task.skip_identical_ids:
                kept = [self._task.corpus.ids[document] != name for document in documents.tolist()]
                rows, documents = rows[kept], documents[kept]
            # Passages of a document side by side, documents as they are told apart where scores are equal.
            order = np.argsort(self._order[documents], kind="stable")
            rows, documents = rows[order], documents[order]
            scores = np.stack([comparable(parts[mode].score(query, rows)) for mode in modes])
            starts = np.flatnonzero(np.diff(documents, prepend=-1)) if self._index.facts.chunked else None
            every.append(Candidates(documents, scores, starts))
        return every

    @property
    def _parts(self) -> dict[str, Part]:
        queries = [self._task.queries[query] for query in self._ids]
        instruction = self._model.setting.instruction
        return self._once(
            "parts of the index",
            lambda: self._index.parts(self._model.embedder, queries, instruction=instruction),
        )

    def _listed(self, mode: Mode, query: int) -> Found:
        """What one mode finds for one query; of one that only scores, what vectors find for it."""

        def find() -> Found:
            find = self._parts[mode].find
            if find is None:
                return self._listed("dense", query)
            scores, rows = find([query], self._wanted)
            return scores[0], rows[0]

        return self._once(f"found in the index by {mode} for {query}", find)


def _some(names: Iterable[str]) -> str:
    """A few names, for messages."""
    return ", ".join(printable(name) for name in sorted(names)[:3])
