"""Our local tasks as tasks of the `mteb` package, to check one protocol against the other without a hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ...errors import ArgumentError, import_extra
from ..judged_model import MTEB_NAMES
from ..tasks.base import Task
from ..tasks.bitext import BitextTask
from ..tasks.classification import ClassificationTask
from ..tasks.clustering import ClusteringTask
from ..tasks.pairs import PairClassificationTask, StsTask
from ..tasks.reranking import RerankingTask
from ..tasks.retrieval import RetrievalTask
from ..tasks.summarization import SummarizationTask

#: mteb's module and class for each kind.
_CLASSES: Final[Mapping[str, tuple[str, str]]] = {
    "retrieval": ("mteb.abstasks.retrieval", "AbsTaskRetrieval"),
    # mteb reranks by retrieving among given documents.
    "reranking": ("mteb.abstasks.retrieval", "AbsTaskRetrieval"),
    "sts": ("mteb.abstasks.sts", "AbsTaskSTS"),
    "pair_classification": ("mteb.abstasks.pair_classification", "AbsTaskPairClassification"),
    "classification": ("mteb.abstasks.classification", "AbsTaskClassification"),
    # The first protocol, which the published tables used.
    "clustering": ("mteb.abstasks.clustering_legacy", "AbsTaskClusteringLegacy"),
    "bitext": ("mteb.abstasks.text.bitext_mining", "AbsTaskBitextMining"),
    "summarization": ("mteb.abstasks.text.summarization", "AbsTaskSummarization"),
}

#: mteb's names of the main metrics that differ from ours.
_MAIN: Final = {"map": "map_at_1000", "mrr": "mrr_at_10"}

#: mteb's codes of languages; what it writes into results depends on them, no score does.
_LANGUAGES: Final = {"en": "eng-Latn", "zh": "cmn-Hans"}


def local_mteb_task(task: Task) -> Any:
    """An mteb task of the right class whose data is that of a task of ours: loaded, with one subset.

    Raises:
        ArgumentError: mteb has no such kind of task.
        MissingExtraError: mteb is not installed.
    """
    maker = _MAKERS.get(type(task))
    if maker is None:
        raise ArgumentError(f"mteb has no counterpart of a {type(task).__name__}")
    module, name = _CLASSES[task.kind]
    base = getattr(import_extra(module, "mteb"), name)
    data, attributes = maker(task)
    made = type(f"Local{name}", (base,), {"metadata": _metadata(task), **attributes})()
    made.dataset = data
    made.data_loaded = True
    return made


def _metadata(task: Task) -> Any:
    metadata = import_extra("mteb.abstasks.task_metadata", "mteb").TaskMetadata
    languages = [_LANGUAGES.get(part, "eng-Latn") for part in (task.language or "en").split("-")[:2]]
    return metadata(
        name=task.name,
        description=f"{task.name} from local files",
        dataset={"path": "local", "revision": task.fingerprint},
        type=MTEB_NAMES[task.kind],
        category="t2t",
        eval_splits=[task.split],
        eval_langs=list(dict.fromkeys(languages)),
        main_score=_MAIN.get(task.main_metric, task.main_metric),
    )


def _dataset(columns: Mapping[str, Any]) -> Any:
    return import_extra("datasets", "mteb").Dataset.from_dict(dict(columns))


def _retrieval(task: RetrievalTask) -> tuple[Any, dict[str, Any]]:
    records = list(task.corpus.read())
    data = {
        "corpus": _dataset({"id": [r.id for r in records], "text": [r.text for r in records]}),
        "queries": _dataset({"id": list(task.qrels), "text": [task.queries[query] for query in task.qrels]}),
        "relevant_docs": {query: dict(found) for query, found in task.qrels.items()},
        "top_ranked": None,
    }
    return {"default": {task.split: data}}, {"ignore_identical_ids": task.skip_identical_ids}


def _reranking(task: RerankingTask) -> tuple[Any, dict[str, Any]]:
    ids: list[str] = []
    texts: list[str] = []
    relevant: dict[str, dict[str, int]] = {}
    ranked: dict[str, list[str]] = {}
    for number, group in enumerate(task.groups):
        if group.others:
            raise ArgumentError(f"{task.name} has several queries a group, which mteb scores in one task of its own")
        judged = {f"{number}-{name}": grade for name, grade in group.judged().items()}
        passages = [*group.positives, *group.negatives]
        relevant[str(number)] = judged
        ranked[str(number)] = list(judged)[: len(passages)]
        ids += ranked[str(number)]
        texts += passages
    data = {
        "corpus": _dataset({"id": ids, "text": texts}),
        "queries": _dataset({"id": list(relevant), "text": [group.query for group in task.groups]}),
        "relevant_docs": relevant,
        "top_ranked": ranked,
    }
    return {"default": {task.split: data}}, {}


def _sts(task: StsTask) -> tuple[Any, dict[str, Any]]:
    columns = {"sentence1": list(task.first), "sentence2": list(task.second), "score": list(task.scores)}
    return {task.split: _dataset(columns)}, {}


def _pairs(task: PairClassificationTask) -> tuple[Any, dict[str, Any]]:
    columns = {"sentence1": list(task.first), "sentence2": list(task.second), "labels": list(task.labels)}
    return {task.split: _dataset(columns)}, {}


def _classification(task: ClassificationTask) -> tuple[Any, dict[str, Any]]:
    # mteb wants numbers. The order of the labels is ours, so that the classifier's sums are those of ours too.
    number = {label: place for place, label in enumerate(sorted({*task.train_labels, *task.labels}))}
    sets = import_extra("datasets", "mteb").DatasetDict(
        {
            "train": _dataset(
                {"text": list(task.train_texts), "label": [number[label] for label in task.train_labels]}
            ),
            task.split: _dataset({"text": list(task.texts), "label": [number[label] for label in task.labels]}),
        }
    )
    return sets, {"samples_per_label": task.samples_per_label, "n_experiments": task.experiments}


def _clustering(task: ClusteringTask) -> tuple[Any, dict[str, Any]]:
    columns = {
        "sentences": [list(texts) for texts, _ in task.sets],
        "labels": [list(labels) for _, labels in task.sets],
    }
    return {task.split: _dataset(columns)}, {}


def _bitext(task: BitextTask) -> tuple[Any, dict[str, Any]]:
    return {task.split: _dataset({"sentence1": list(task.first), "sentence2": list(task.second)})}, {}


def _summaries(task: SummarizationTask) -> tuple[Any, dict[str, Any]]:
    columns = {
        "text": [group.text for group in task.groups],
        "human_summaries": [list(group.human) for group in task.groups],
        "machine_summaries": [list(group.machine) for group in task.groups],
        "relevance": [list(map(float, group.scores)) for group in task.groups],
    }
    # A rank correlation: any scale will do.
    return {task.split: _dataset(columns)}, {"min_score": 0, "max_score": 5}


_MAKERS: Final[Mapping[type[Task], Callable[[Any], tuple[Any, dict[str, Any]]]]] = {
    RetrievalTask: _retrieval,
    RerankingTask: _reranking,
    StsTask: _sts,
    PairClassificationTask: _pairs,
    ClassificationTask: _classification,
    ClusteringTask: _clustering,
    BitextTask: _bitext,
    SummarizationTask: _summaries,
}
