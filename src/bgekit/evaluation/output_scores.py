"""Retrieval with each output of a model that has several, and with all together: what a training run is judged by.

Dense vectors and lexical weights rank all documents. Multi-vectors, which are a hundred times as many numbers, rank
what these found first, as in BGE-M3's paper; so do all scores together. Memory does not grow with the corpus.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..inference.ragged import LexicalCsr, Ragged
from ..models.head_files import OUTPUTS, Output
from .metrics import DEPTHS, ranking_metrics

if TYPE_CHECKING:
    from ..inference.embedder import FlagModel
    from ..inference.pipeline import Encoded
    from .tasks.retrieval import RetrievalTask

Floats: TypeAlias = npt.NDArray[np.float32]
#: Name of the weighted sum of all scores.
TOGETHER: Final = "together"
#: Documents of each query that all scores rank: what each of dense vectors and lexical weights found first.
CANDIDATES: Final = 100
#: Documents encoded at once.
_BLOCK: Final = 2048


def output_metrics(
    model: FlagModel, task: RetrievalTask, outputs: Sequence[Output], weights: Mapping[Output, float]
) -> dict[str, float]:
    """The main metric of a task with each of some outputs, and with the sum of their scores.

    Args:
        model: The model; it gives these outputs.
        task: Queries, documents and judgements.
        outputs: The outputs, dense vectors always beside them.
        weights: Of each output's score in the sum.

    Returns:
        The metric as a fraction, by output, and for `TOGETHER` if there are several.

    Raises:
        MissingExtraError: SciPy or pytrec_eval is not installed.
    """
    ids, role = list(task.qrels), "query" if task.query_instruction else "plain"
    every = [output for output in OUTPUTS if output == "dense" or output in outputs]
    asked = model.encode_outputs([task.queries[query] for query in ids], every, role=role)  # type: ignore[arg-type]
    first: list[Output] = [output for output in every if output != "multi-vector"]
    found = _first_stage(model, task, asked, first)
    runs: dict[str, dict[str, dict[str, float]]] = {
        output: _run(task, ids, list(zip(*found[output], strict=True))) for output in first if output in outputs
    }
    if len(outputs) > 1:
        candidates = [
            np.unique(np.concatenate(rows)) for rows in zip(*(rows for rows, _ in found.values()), strict=True)
        ]
        scores = _second_stage(model, task, asked, every, candidates)
        if "multi-vector" in outputs:
            runs["multi-vector"] = _run(task, ids, list(zip(candidates, scores["multi-vector"], strict=True)))
        sums = [
            sum((weights[output] * scores[output][query] for output in outputs), np.zeros(1, np.float32))
            for query in range(len(ids))
        ]
        runs[TOGETHER] = _run(task, ids, list(zip(candidates, sums, strict=True)))
    judged = frozenset(document for own in task.qrels.values() for document in own)
    depths = sorted({*DEPTHS, int(task.main_metric.rpartition("_at_")[2])})
    return {
        name: float(ranking_metrics(task.qrels, run, depths, judged=judged)[task.main_metric].mean())
        for name, run in runs.items()
    }


def lexical_table(queries: Sequence[npt.NDArray[Any]], documents: Sequence[npt.NDArray[Any]]) -> Floats:
    """[n, m] scores of lexical weights: sums of products of those that both have."""
    sides = [LexicalCsr.of(side) for side in (queries, documents)]
    width = 1 + max(int(side.indices.max(initial=0)) for side in sides)
    left, right = (side.matrix(width) for side in sides)
    table: Floats = (left @ right.T).toarray()
    return table


def multi_vector_scores(query: npt.NDArray[Any], documents: Sequence[npt.NDArray[Any]]) -> Floats:
    """[m]: the mean, over a query's vectors, of each one's largest product with a vector of the document."""
    joined = Ragged.of(documents)
    largest: Floats = np.maximum.reduceat(query @ joined.values.T, joined.offsets[:-1], axis=1).mean(axis=0)
    return largest


Found: TypeAlias = "tuple[npt.NDArray[np.int64], Floats]"


def _first_stage(
    model: FlagModel, task: RetrievalTask, asked: Encoded, outputs: Sequence[Output]
) -> dict[Output, tuple[list[npt.NDArray[np.int64]], list[Floats]]]:
    """Rows and scores of the best documents of each query, by output."""
    best: dict[Output, tuple[npt.NDArray[np.int64], Floats]] = {
        output: (np.empty((len(asked.vectors), 0), np.int64), np.empty((len(asked.vectors), 0), np.float32))
        for output in outputs
    }
    start = 0
    for block in _blocks(record.text for record in task.corpus.read()):
        documents = model.encode_outputs(block, outputs, role="document")
        for output, (rows, scores) in best.items():
            table = _table(asked, documents, output)
            here = np.broadcast_to(np.arange(start, start + len(block)), table.shape)
            rows, scores = np.concatenate([rows, here], axis=1), np.concatenate([scores, table], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES]
            best[output] = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
        start += len(block)
    # What has no word of the query in it was not found.
    kept = {output: scores > (0 if output == "sparse" else -np.inf) for output, (_, scores) in best.items()}
    return {
        output: tuple([line[mask] for line, mask in zip(each, kept[output], strict=True)] for each in (rows, scores))  # type: ignore[misc]
        for output, (rows, scores) in best.items()
    }


def _second_stage(
    model: FlagModel, task: RetrievalTask, asked: Encoded, outputs: Sequence[Output],
    candidates: Sequence[npt.NDArray[np.int64]],
) -> dict[Output, list[Floats]]:  # fmt: skip
    """Scores of some documents for each query, by output."""
    scores: dict[Output, list[Floats]] = {
        output: [np.zeros(len(rows), np.float32) for rows in candidates] for output in outputs
    }
    wanted = np.unique(np.concatenate(list(candidates)))
    chosen = set(wanted.tolist())
    texts = (record.text for row, record in enumerate(task.corpus.read()) if row in chosen)
    start = 0
    for block in _blocks(texts):
        here, documents = wanted[start : start + len(block)], model.encode_outputs(block, outputs, role="document")
        start += len(block)
        tables = {o: _table(asked, documents, o) for o in outputs if o != "multi-vector"}
        for query, rows in enumerate(candidates):
            places = np.flatnonzero(np.isin(rows, here))
            at = np.searchsorted(here, rows[places])
            for output in outputs if len(places) else ():
                if output == "multi-vector":
                    vectors = documents.ragged[output]
                    found = multi_vector_scores(asked.ragged[output][query], [vectors[place] for place in at])
                else:
                    found = tables[output][query, at]
                scores[output][query][places] = found
    return scores


def _table(asked: Encoded, documents: Encoded, output: Output) -> Floats:
    """[n, m] scores by dense vectors or lexical weights."""
    if output == "sparse":
        return lexical_table(asked.ragged[output], documents.ragged[output])
    table: Floats = asked.vectors @ documents.vectors.T
    return table


def _run(task: RetrievalTask, ids: Sequence[str], found: Sequence[Found]) -> dict[str, dict[str, float]]:
    """What was found, by the ids of queries and documents; a document with the query's own id as the task says."""
    names = task.corpus.ids
    return {
        query: {
            names[row]: float(score) for row, score in zip(rows, scores, strict=True)
            if not (task.skip_identical_ids and names[row] == query)
        }
        for query, (rows, scores) in zip(ids, found, strict=True)
    }  # fmt: skip


def _blocks(texts: Iterable[str]) -> Iterable[list[str]]:
    given = iter(texts)
    while block := list(itertools.islice(given, _BLOCK)):
        yield block
