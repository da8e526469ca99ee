"""Tasks run through the `mteb` package: our models as its encoders, its scores as ours, and our data as its tasks.

mteb is imported when it is first needed (`pip install 'bgekit[mteb]'`). Nothing here asks the hub for metadata: only
the data of a task is fetched, and `local_mteb_task` needs no hub at all: with it one protocol can be checked against
the other.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt

from ...errors import ArgumentError, DataError, import_extra
from ...models.families import model_name
from ..judged_model import MTEB_NAMES, Floats, JudgedModel, Kind
from ..metrics import TREC_NAMES
from ..tasks.base import Items, Scores, Task
from ..tasks.bitext import BitextTask
from ..tasks.classification import ClassificationTask
from ..tasks.clustering import ClusteringTask
from ..tasks.pairs import PairClassificationTask, StsTask
from ..tasks.reranking import RerankingTask
from ..tasks.retrieval import RetrievalTask
from ..tasks.summarization import SummarizationTask
from .definitions import BenchmarkTask, benchmark, mean_scores

if TYPE_CHECKING:
    from ...inference.model import Embedder

#: Our kind of each of mteb's types of task; those we have no code for are encoded as their nearest relative.
_KINDS: Final[Mapping[str, Kind]] = {mteb: cast("Kind", ours) for ours, mteb in MTEB_NAMES.items()} | {
    "InstructionRetrieval": "retrieval",
    "InstructionReranking": "reranking",
    "MultilabelClassification": "classification",
    "Regression": "classification",
}

#: Metrics that mteb has renamed since the published tables: today's name by the name of then.
RENAMED: Final[Mapping[str, tuple[str, ...]]] = {
    # MIND has several queries per group; mteb keeps the best. The last name is that of data without such groups.
    "map": ("max_over_subqueries_map_at_1000", "map_at_1000"),
    "mrr": ("mrr_at_10",),
}


class MtebEncoder:
    """A model in a setting as an encoder of mteb 2.x (`mteb.models.EncoderProtocol`).

    Texts get the prompts that `judged_model.role_of` chooses from the model's card, the very same as in our own tasks;
    the prompts that mteb's tasks suggest for instruction models are not used.
    """

    def __init__(self, model: Embedder | JudgedModel, *, dtype: npt.DTypeLike = np.float32) -> None:
        """Wrap a model.

        Args:
            model: An embedder, or one in a setting.
            dtype: Number format of the vectors for mteb, which computes distances in it: float64 avoids ties.
        """
        self.judged = model if isinstance(model, JudgedModel) else JudgedModel(model)
        self._dtype = dtype
        if self.judged.setting.reranker is not None:
            raise ArgumentError("mteb compares vectors: a setting with a reranker cannot be run through it")

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> npt.NDArray[Any]:
        """Vectors [n, d] of the texts of mteb's batches.

        Args:
            inputs: Batches, each with a list under "text".
            task_metadata: Name and type of the task.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Query or document in tasks that know them, else None.
            kwargs: Not used: batches are sized by the embedder.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        kind, name = _KINDS.get(task_metadata.type, "classification"), task_metadata.name
        side = str(getattr(prompt_type, "value", prompt_type or "plain"))
        encode = {"query": self.judged.queries, "document": self.judged.documents}.get(side, self.judged.plain)
        return np.asarray(encode(texts, kind, name)).astype(self._dtype, copy=False)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """A tensor [n, m] of similarities, as the model's card compares vectors."""
        torch = import_extra("torch", "mteb")
        both = (np.atleast_2d(np.asarray(vectors)) for vectors in (embeddings1, embeddings2))
        left, right = (self.judged.comparable(cast("Floats", vectors)) for vectors in both)
        return torch.from_numpy(left @ right.T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """A tensor [n] of the similarities of the vectors of each pair."""
        torch = import_extra("torch", "mteb")
        first, second = (np.asarray(vectors, dtype=np.float32) for vectors in (embeddings1, embeddings2))
        return torch.from_numpy(self.judged.similarity(first, second))

    @property
    def mteb_model_meta(self) -> Any:
        """The record that mteb keeps of the model."""
        card = self.judged.embedder.card
        named = re.fullmatch(r"[\w.-]+/[\w.-]+", card.name)
        meta = import_extra("mteb.models", "mteb").ModelMeta
        overwrites = {
            "name": card.name if named else f"bgekit/{model_name(card.name)}",
            "revision": self.judged.fingerprint[:12],
            "max_tokens": card.max_length,
            "embed_dim": self.judged.setting.dimension or self.judged.embedder.dimension,
            "use_instructions": any(card.prompts.values()),
        }
        return meta.create_empty(overwrites=overwrites)


@dataclass(frozen=True, kw_only=True)
class HubTask(Task):
    """A task of a benchmark whose data and protocol are mteb's; there is a subclass for each kind.

    None is `rerankable`: mteb compares vectors.

    Attributes:
        source: The task in its benchmark.
    """

    source: BenchmarkTask

    def content(self) -> Iterable[object]:
        """Names, revisions of the data, and mteb's version."""
        for made in self._made():
            yield [made.metadata.name, self.source.subset, self.split, made.metadata.dataset["revision"]]
        yield [importlib.metadata.version("mteb"), self.main_metric]

    def score(self, model: JudgedModel) -> Scores:
        """Load the data and let mteb measure.

        Raises:
            DataError: the data cannot be loaded.
        """
        encoder, parts = MtebEncoder(model), []
        for made in self._made():
            _load(made)
            parts.append(evaluate_mteb(made, encoder, self.split, self.main_metric))
            made.unload_data()
        return mean_scores(parts, self.source.parts) if self.source.parts else parts[0]

    def _made(self) -> Iterator[Any]:
        mteb, subset = import_extra("mteb", "mteb"), self.source.subset
        for name in self.source.parts or (self.source.name,):
            yield mteb.get_task(name, eval_splits=[self.split], hf_subsets=[subset] if subset else None)


_HUB_TASKS: Final[Mapping[Kind, type[HubTask]]] = {
    cast("Kind", kind): type(f"{mteb}HubTask", (HubTask,), {"kind": kind, "__doc__": HubTask.__doc__})
    for kind, mteb in MTEB_NAMES.items()
}


def hub_tasks(name: str, tasks: Iterable[str] | None = None) -> list[Task]:
    """The tasks of a benchmark, to be run through the mteb package with data from the hub or its cache.

    Args:
        name: Name of the benchmark.
        tasks: Names of the wanted ones; by default all.

    Raises:
        ArgumentError: there is no such benchmark or task.
        MissingExtraError: mteb is not installed.
    """
    whole = benchmark(name)
    selected = whole.select(tasks)
    import_extra("mteb", "mteb")
    return [
        _HUB_TASKS[task.kind](
            name=whole.label(task),
            split=task.split,
            main_metric=task.main_metric,
            language=task.language,
            query_instruction=task.kind in ("retrieval", "reranking"),
            source=task,
        )
        for task in selected
    ]


def evaluate_mteb(task: Any, encoder: MtebEncoder, split: str, main_metric: str) -> Scores:
    """Run one task of mteb whose data is loaded, and read its scores.

    mteb rounds the means of its ranking metrics to five digits; here they are the means of the unrounded values of the
    queries.

    Args:
        task: Task of mteb, with one subset.
        encoder: The model.
        split: To be scored.
        main_metric: The metric that counts, by our name.

    Raises:
        DataError: mteb has no such metric.
    """
    per_query: dict[str, Mapping[str, float]] = {}

    def catch(scores: Mapping[str, Mapping[str, float]], *args: Any, **kwargs: Any) -> dict[str, float]:
        per_query.update(scores)
        return dict(own(scores, *args, **kwargs))

    if hasattr(task, "task_specific_scores"):
        own = task.task_specific_scores
        task.task_specific_scores = catch
    try:
        found = task.evaluate(encoder, split, encode_kwargs={"show_progress_bar": False})
    finally:
        task.__dict__.pop("task_specific_scores", None)
    if len(found) != 1:
        raise ArgumentError(f"{task.metadata.name} has the subsets {', '.join(found)}: choose one")
    raw = next(iter(found.values()))
    metrics = {name: float(value) for name, value in raw.items() if _is_metric(name, value)}
    columns = _columns(per_query)
    metrics |= {name: float(np.mean(column)) for name, column in columns.items()}
    for name, successors in RENAMED.items():
        current = next((each for each in successors if each in metrics), None)
        if name not in metrics and current is not None:
            metrics[name] = metrics[current]
            if current in columns:
                columns[name] = columns[current]
    if main_metric not in metrics:
        raise DataError(f"mteb has no metric {main_metric} for {task.metadata.name}; it has {', '.join(metrics)}")
    if main_metric in columns:
        return Scores(metrics, Items(list(per_query), "mean", {"value": columns[main_metric]}))
    return Scores(metrics, _items(raw, metrics, main_metric))


def _items(raw: Mapping[str, Any], metrics: Mapping[str, float], main_metric: str) -> Items:
    values, overlap = [metrics[main_metric]], 0.0
    if main_metric == "v_measure" and raw.get("v_measures"):
        values = raw["v_measures"]
    elif raw.get("scores_per_experiment"):
        values = [experiment[main_metric] for experiment in raw["scores_per_experiment"]]
        # Draws of training texts, all measured on the same texts, of which mteb keeps nothing: how much another choice
        # of those would change is unknown.
        overlap = 1.0
    columns = {"value": np.asarray(values, dtype=float)}
    return Items([str(number) for number in range(len(values))], "mean", columns, overlap=overlap)


def _columns(per_query: Mapping[str, Mapping[str, float]]) -> dict[str, npt.NDArray[np.float64]]:
    """Ranking metrics [queries] by the name that mteb reports, from pytrec_eval's answer."""
    columns = {}
    for name in next(iter(per_query.values()), {}):
        stem, _, depth = name.rpartition("_")
        if stem in TREC_NAMES:
            values = [found[name] for found in per_query.values()]
            columns[f"{TREC_NAMES[stem]}_at_{depth}"] = np.asarray(values, dtype=np.float64)
    return columns


def _is_metric(name: str, value: Any) -> bool:
    # nAUC measures whether low similarities foretell failures; no table has it.
    return isinstance(value, (int, float, np.number)) and not name.startswith("nauc") and name != "main_score"


def _load(task: Any) -> None:
    try:
        task.load_data()
    # Hub, cache and data sets fail in a dozen unrelated classes; the cause stays attached.
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise DataError(
            f"the data of {task.metadata.name} cannot be loaded from the Hugging Face hub or its cache "
            f"({type(error).__name__}: {told}); without the hub, put it into a folder DIR/{task.metadata.name} and "
            "pass --data-root DIR"
        ) from error


#: mteb's codes of languages; what it writes into results depends on them, no score does.
_LANGUAGES: Final = {"en": "eng-Latn", "zh": "cmn-Hans"}


def local_mteb_task(task: Task) -> Any:
    """An mteb task of the right class whose data is that of a task of ours: loaded, with one subset.

    Raises:
        ArgumentError: mteb has no such kind of task.
        MissingExtraError: mteb is not installed.
    """
    if type(task) not in _COUNTERPARTS:
        raise ArgumentError(f"mteb has no counterpart of a {type(task).__name__}")
    module, name, maker = _COUNTERPARTS[type(task)]
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
        main_score=RENAMED.get(task.main_metric, (task.main_metric,))[-1],
    )


def _dataset(columns: Mapping[str, Iterable[Any]]) -> Any:
    return import_extra("datasets", "mteb").Dataset.from_dict({name: list(values) for name, values in columns.items()})


def _retrieval(task: RetrievalTask) -> tuple[Any, dict[str, Any]]:
    records = list(task.corpus.read())
    data = {
        "corpus": _dataset({"id": [r.id for r in records], "text": [r.text for r in records]}),
        "queries": _dataset({"id": task.qrels, "text": [task.queries[query] for query in task.qrels]}),
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
            raise ArgumentError(f"{task.name} has several queries per group, which mteb scores in one task of its own")
        judged = {f"{number}-{name}": grade for name, grade in group.judged().items()}
        passages = [*group.positives, *group.negatives]
        relevant[str(number)] = judged
        ranked[str(number)] = list(judged)[: len(passages)]
        ids += ranked[str(number)]
        texts += passages
    data = {
        "corpus": _dataset({"id": ids, "text": texts}),
        "queries": _dataset({"id": relevant, "text": [group.query for group in task.groups]}),
        "relevant_docs": relevant,
        "top_ranked": ranked,
    }
    return {"default": {task.split: data}}, {}


def _rows(task: Task, columns: Mapping[str, Iterable[Any]], **attributes: Any) -> tuple[Any, dict[str, Any]]:
    return {task.split: _dataset(columns)}, attributes


def _sts(task: StsTask) -> tuple[Any, dict[str, Any]]:
    return _rows(task, {"sentence1": task.first, "sentence2": task.second, "score": task.scores})


def _pairs(task: PairClassificationTask) -> tuple[Any, dict[str, Any]]:
    return _rows(task, {"sentence1": task.first, "sentence2": task.second, "labels": task.labels})


def _bitext(task: BitextTask) -> tuple[Any, dict[str, Any]]:
    return _rows(task, {"sentence1": task.first, "sentence2": task.second})


def _clustering(task: ClusteringTask) -> tuple[Any, dict[str, Any]]:
    texts, labels = [list(texts) for texts, _ in task.sets], [list(labels) for _, labels in task.sets]
    return _rows(task, {"sentences": texts, "labels": labels})


def _summaries(task: SummarizationTask) -> tuple[Any, dict[str, Any]]:
    columns: dict[str, list[Any]] = {
        "text": [group.text for group in task.groups],
        "human_summaries": [list(group.human) for group in task.groups],
        "machine_summaries": [list(group.machine) for group in task.groups],
        "relevance": [list(map(float, group.scores)) for group in task.groups],
    }
    # A rank correlation: any scale will do.
    return _rows(task, columns, min_score=0, max_score=5)


def _classification(task: ClassificationTask) -> tuple[Any, dict[str, Any]]:
    # mteb wants numbers. The order of the labels is ours, so that the classifier's sums are those of ours too.
    number = {label: place for place, label in enumerate(sorted({*task.train_labels, *task.labels}))}
    parts = {"train": (task.train_texts, task.train_labels), task.split: (task.texts, task.labels)}
    sets = import_extra("datasets", "mteb").DatasetDict({
        split: _dataset({"text": texts, "label": [number[label] for label in labels]})
        for split, (texts, labels) in parts.items()
    })  # fmt: skip
    return sets, {"samples_per_label": task.samples_per_label, "n_experiments": task.experiments}


#: mteb's module and class of each kind, and what makes its data, and further attributes of the class, of a task.
_COUNTERPARTS: Final[Mapping[type[Task], tuple[str, str, Callable[[Any], tuple[Any, dict[str, Any]]]]]] = {
    RetrievalTask: ("mteb.abstasks.retrieval", "AbsTaskRetrieval", _retrieval),
    # mteb reranks by retrieving among given documents.
    RerankingTask: ("mteb.abstasks.retrieval", "AbsTaskRetrieval", _reranking),
    StsTask: ("mteb.abstasks.sts", "AbsTaskSTS", _sts),
    PairClassificationTask: ("mteb.abstasks.pair_classification", "AbsTaskPairClassification", _pairs),
    ClassificationTask: ("mteb.abstasks.classification", "AbsTaskClassification", _classification),
    # The first protocol, which the published tables used.
    ClusteringTask: ("mteb.abstasks.clustering_legacy", "AbsTaskClusteringLegacy", _clustering),
    BitextTask: ("mteb.abstasks.text.bitext_mining", "AbsTaskBitextMining", _bitext),
    SummarizationTask: ("mteb.abstasks.text.summarization", "AbsTaskSummarization", _summaries),
}
