"""Evaluation of models in settings on tasks -> a report."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from .._version import package_versions
from ..data.formats import Quoting
from ..display.terminal import loading, shown_command
from ..errors import ArgumentError, NumericalError
from ..files.atomic import OutputFolder
from ..files.hashing import digest
from ..files.remote import is_url
from ..files.transfer import local_place
from ..inference.shards import EncodeShards, encode_for_now
from ..models.families import known_name, model_name
from ..models.sentence_transformers_files import short_names, shown_name
from .comparison import compare_all
from .judged_model import JudgedModel, Setting, role_of
from .readers.detect import read_tasks
from .report.report import Report
from .results import AGAIN, Result
from .tasks.base import Items, Scores, Task, check_rerankable, require_packages
from .tasks.retrieval import RetrievalTask

if TYPE_CHECKING:
    from ..inference.model import Embedder

logger = logging.getLogger(__name__)
Model: TypeAlias = "str | os.PathLike[str] | Embedder | Candidate"
Data: TypeAlias = "str | os.PathLike[str] | Task"
#: Folder of scores and vectors in an output.
CACHE: Final = "cache"
_VERSIONS: Final = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "pytrec-eval-terrier", "mteb")


@dataclass
class Candidate:
    """A model that is judged, in one or more settings.

    Attributes:
        name: As reports name it.
        embedder: The model; loaded by name when it is first needed.
        options: Options of `FlagModel`, when it is loaded by name.
        settings: How it is used.
        note: What sets it apart from another candidate of the same name, such as its precision.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.evaluation import Candidate, Setting, evaluate
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> report = evaluate([Candidate("mine", model, settings=(Setting(dimension=64),))], "scifact", progress=False)
        >>> len(report.results)
        1
    """

    name: str
    embedder: Embedder | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[Setting] = (Setting(),)
    note: str = ""
    again: int = field(default=0, init=False)
    shown: str = field(default="", init=False)

    def label(self, setting: Setting) -> str:
        """The name and what differs from the model's defaults."""
        # Beside other modes, the model's own is named, too.
        own = "dense" if setting.mode == "dense" and any(each.mode != "dense" for each in self.settings) else ""
        parts = [part for part in (self.note if setting.of_model else "", own, str(setting)) if part]
        name = self.shown or self.name
        shown = f"{name} [{', '.join(parts)}]" if parts else name
        return f"{shown}{AGAIN} {self.again + 1}" if self.again else shown

    def opened(self) -> Embedder:
        """The model, which can be used as it is to be judged; the weights of one by name are read at its first use."""
        from ..inference.embedder import load_model

        embedder = self.embedder if self.embedder is not None else load_model(self.name, **self.options)
        for setting in self.settings:
            JudgedModel(embedder, setting)
        return embedder


def evaluate(
    model: Model | Sequence[Model],
    data: Data | Sequence[Data],
    *,
    split: str | None = None,
    tasks: Sequence[str] | None = None,
    settings: Sequence[Setting] = (Setting(),),
    output: str | os.PathLike[str] | None = None,
    keep_vectors: bool = False,
    compare: bool = True,
    seed: int = 0,
    progress: bool | None = None,
    log_scores: bool = True,
    notes: Sequence[str] = (),
    encoding: str | None = None,
    quoting: Quoting = "auto",
    encode: EncodeShards = encode_for_now,
    **options: Any,
) -> Report:
    """Measure models on data, and compare them.

    Args:
        model: A name or folder, an `Embedder`, a `Candidate`, or several of them.
        data: Folders or files in any form that `read_tasks` knows, or tasks.
        split: The split to measure on; by default test where there is one.
        tasks: Only the tasks of these names.
        settings: Each model is measured in each of them (candidates have their own), in those with a reranker on the
            tasks that can be reranked, in other modes than `dense` on those that search; the report notes the others.
        output: Folder for results.json, per_item.jsonl, report.md and report.html; also for scores and vectors that a
            later run can use: what was computed from the same model, data and settings is not computed again, and an
            interrupted run continues. At a URL only the four files are written; what a later run can use stays in the
            local cache.
        keep_vectors: Leave the corpora's vectors in the output; by default they go when all is done.
        compare: Compare every pair of models and settings on every task.
        seed: Random seed for the comparisons' randomisations.
        progress: Show progress bars; by default on a terminal.
        log_scores: Log each score when it is there, unless there is no progress; a caller may have words of its own.
        notes: Put into the report.
        encoding: What text files of data are written in, by a name that Python knows; by default UTF-8.
        quoting: Whether quotes in csv and tsv enclose fields: `auto`, `csv` or `none`, see `read_records`.
        encode: Encodes corpora: `encode_to_shards`, or the same with more machines; these need an output that all see.
        **options: Of `FlagModel`, for models given by name.

    Returns:
        The report.

    Raises:
        ArgumentError: arguments are impossible, or there is a reranker and no task that can be reranked.
        DataError: the data cannot be read; nothing was computed then.
        MissingExtraError: a package is missing that scores or reports need; nothing was computed then.
        OutputError: the output cannot be written, or another process writes to it.

    Example:
        >>> from bgekit.evaluation import evaluate
        >>> report = evaluate("BAAI/bge-small-en-v1.5", "scifact", progress=False)
        >>> result = report.results[0]
        >>> result.kind, result.main_metric
        ('retrieval', 'ndcg_at_10')
    """
    start = time.perf_counter()
    work = None if output is None else Path(output)
    if output is not None and is_url(output):
        if keep_vectors:
            raise ArgumentError(f"vectors are kept in a local folder only, and the output {output} is a URL")
        work = local_place("runs", os.fspath(output))
    candidates = _each_once([_candidate(each, settings, options) for each in _listed(model)])
    seen: Counter[str] = Counter()
    for candidate, shown in zip(candidates, _shown_names([each.name for each in candidates]), strict=True):
        candidate.shown = shown
        # The same model twice is a fair question: the answer must be that it does not differ from itself.
        candidate.again = seen[candidate.label(candidate.settings[0])]
        seen.update(candidate.label(setting) for setting in candidate.settings)
    labels = [candidate.label(setting) for candidate in candidates for setting in candidate.settings]
    left_out: list[str] = []
    found = tasks_of(data, split=split, tasks=tasks, left_out=left_out, encoding=encoding, quoting=quoting)
    if output is not None:
        require_packages(found, "matplotlib")
    if compare and len(labels) > 1:
        require_packages(found, "scipy")
    if any(setting.reranker is not None for candidate in candidates for setting in candidate.settings):
        left_out += _not_reranked(found)
    left_out += _without_modes(found, [setting for candidate in candidates for setting in candidate.settings])
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        cache = None
        if work is not None:
            cache = ScoreCache(stack.enter_context(OutputFolder(work / CACHE)))
        # All are opened before one is used: what is wrong with the last costs no work of the first.
        waiting: deque[tuple[Candidate, Embedder]] = deque()
        for candidate in candidates:
            with loading(candidate.name, show=progress is not False):
                waiting.append((candidate, candidate.opened()))
        while waiting:
            number = len(candidates) - len(waiting) + 1
            place = f"model {number} of {len(candidates)}" if len(candidates) > 1 else ""
            said = logging.INFO if log_scores and progress is not False else logging.DEBUG
            results += _judge(*waiting.popleft(), found, cache, progress, place, said, encode)
        # As a reader wants them: task by task, models in the order given.
        places = {label: place for place, label in enumerate(labels)}
        order = {(task.name, task.split): place for place, task in enumerate(found)}
        results.sort(key=lambda result: (order[result.task, result.split], places[result.label]))
        compared = []
        if compare and len(labels) > 1:
            compared = compare_all(results, {(task.name, task.split): task for task in found}, seed=seed)
        report = Report(
            results,
            [each for each in compared if not each.over_tasks],
            _environment(seed, time.perf_counter() - start),
            [*notes, *left_out],
            means=[each for each in compared if each.over_tasks],
        )
        if output is not None:
            report.save(output)
            if cache is not None and not keep_vectors:
                shutil.rmtree(cache.vectors(), ignore_errors=True)
    return report


@dataclass
class FirstStage:
    """An embedder whose best passages are reranked by one reranker after another.

    Attributes:
        model: Name or folder of the embedder.
        tasks: Tasks that are measured; rerankers can be measured on them.
        folder: A folder where the embedder's vectors stay from one reranker to the next.
        devices: Where to compute, as `FlagModel` takes it.
        pooling: How the embedder pools, None for what it says.
        progress: Show progress bars.
    """

    model: str
    tasks: Sequence[Task]
    folder: Path
    devices: Any = None
    pooling: str | None = None
    progress: bool = False
    _rerankers: int = field(default=0, init=False)

    @functools.cached_property
    def alone(self) -> Report:
        """Scores of the embedder without a reranker."""
        return self._measured(Setting())

    def reranked_by(self, reranker: str | os.PathLike[str], top_k: int, name: str | None = None) -> Report:
        """Scores with a reranker.

        Args:
            reranker: Name or folder of the reranker; what is in a folder may be another one in the next call.
            top_k: Passages a query that it sees.
            name: As messages name it, where it lies in the folder for a while only.
        """
        from ..inference.reranker import FlagReranker

        self._rerankers += 1
        with FlagReranker(reranker, use_fp16=True, devices=self.devices) as opened:
            if name is not None:
                opened.card = replace(opened.card, name=name)
            label = f"{name or 'reranker'}, evaluation {self._rerankers}"  # Results are kept by it.
            return self._measured(Setting(reranker=opened, reranker_name=label, rerank_top_k=top_k))

    def _measured(self, setting: Setting) -> Report:
        options = {"devices": self.devices} | ({} if self.pooling is None else {"pooling_method": self.pooling})
        candidate = Candidate(self.model, options=options, settings=[setting])
        return evaluate(
            candidate, self.tasks, output=self.folder, keep_vectors=True, compare=False, progress=self.progress,
            log_scores=False,
        )  # fmt: skip


def _judge(
    candidate: Candidate, embedder: Embedder, tasks: Sequence[Task], cache: ScoreCache | None, progress: bool | None,
    place: str, said: int, encode: EncodeShards,
) -> Iterator[Result]:  # fmt: skip
    """The results of one model in all its settings; one that was opened here is closed afterwards."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.nullcontext() if candidate.embedder is not None else embedder)
        folder = cache.vectors() if cache is not None else None
        if folder is None and len(candidate.settings) > 1:
            # Where nothing is kept, a corpus is encoded once for all settings all the same.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bgekit-")))
        for task in tasks:
            memo: dict[str, Any] = {}
            settings = [
                setting for setting in candidate.settings
                if setting.modes <= {*task.modes} and (setting.reranker is None or task.rerankable)
            ]  # fmt: skip
            for setting in settings:
                model = JudgedModel(
                    embedder, setting, folder=folder, progress=progress, memo=memo, place=place, encode=encode,
                    settings=settings,
                )  # fmt: skip
                yield _result(candidate, model, task, cache, said)


def _shown_names(names: Sequence[str]) -> list[str]:
    """Names of models as reports show them: of folders the last part, as far as that tells them apart."""
    folders = list(dict.fromkeys(name for name in names if shown_name(name) != name))
    short = dict(zip(folders, short_names(folders), strict=True)) if folders else {}
    taken = set(names)
    return [name if short.get(name, name) in taken else short[name] for name in names]


def _not_reranked(tasks: Sequence[Task]) -> list[str]:
    """Message on the tasks that are measured without the reranker.

    Raises:
        ArgumentError: these are all.
    """
    others = [task for task in tasks if not task.rerankable]
    if len(others) == len(tasks):
        check_rerankable(others)
    return [f"not measured with a reranker: {', '.join(task.name for task in others)}"] if others else []


def _without_modes(tasks: Sequence[Task], settings: Sequence[Setting]) -> list[str]:
    """Message on the tasks that are not measured in all modes of the settings.

    Raises:
        ArgumentError: no task is measured in one of them.
    """
    wanted = sorted({mode for setting in settings for mode in setting.modes})
    for mode in wanted:
        if not any(mode in task.modes for task in tasks):
            kinds = ", ".join(f"{task.name} ({task.kind.replace('_', ' ')})" for task in tasks)
            raise ArgumentError(
                f"the mode {mode} of search cannot be measured on {kinds}: retrieval is measured by "
                f"{', '.join(RetrievalTask.modes)} and their hybrid, other kinds by dense alone"
            )
    others = [task.name for task in tasks if not {*wanted} <= {*task.modes}]
    return [f"measured in the mode dense alone: {', '.join(others)}"] if others else []


def _result(candidate: Candidate, model: JudgedModel, task: Task, cache: ScoreCache | None, level: int) -> Result:
    stored = cache.get(model, task) if cache is not None else None
    if stored is not None:
        scores, seconds = stored
    else:
        start = time.perf_counter()
        scores = task.score(model)
        seconds = time.perf_counter() - start
        if cache is not None:
            cache.put(model, task, scores, seconds)
    label = candidate.label(model.setting)
    if not math.isfinite(scores.metrics[task.main_metric]):
        raise NumericalError(
            f"{label} on {task.name}: {task.main_metric} is not a number; the model scores every item alike, or all "
            "labels are equal"
        )
    # Thresholds are similarities and no scores.
    thresholds = {name: value for name, value in scores.metrics.items() if name.endswith("_threshold")}
    main = 100 * scores.metrics[task.main_metric]
    logger.log(level, "%s on %s: %s %.2f (%.1f s)", label, task.name, task.main_metric, main, seconds)
    return Result(
        model=candidate.name,
        setting={
            **model.setting.to_dict(),
            "precision": model.embedder.precision,
            **({"note": candidate.note} if candidate.note else {}),
        },
        label=label,
        task=task.name,
        kind=task.kind,
        mode=model.setting.mode,
        split=task.split,
        language=task.language,
        main_metric=task.main_metric,
        main_score=main,
        metrics={name: 100 * value for name, value in scores.metrics.items() if name not in thresholds},
        count=len(scores.items.ids),
        exclusions=task.exclusions,
        published=task.published,
        comparable=task.comparable,
        # Of another setting the published score is not a reproduction.
        reference=_reference(candidate.name, task) if model.setting == Setting() else None,
        card=model.embedder.card.to_dict(),
        fingerprints={"model": model.fingerprint, "data": task.fingerprint},
        seconds=seconds,
        cached=stored is not None,
        reused=stored is None and model.reused,
        items=scores.items,
        details={**scores.details, **({"thresholds": thresholds} if thresholds else {})},
        notes=(*task.notes, *scores.details.get("notes", ())),
    )


def _reference(name: str, task: Task) -> float | None:
    """The published score of this model, known by its name as in the family table."""
    wanted = (known_name(name) or model_name(name)).lower()
    return next((score for known, score in task.published.items() if known.lower() == wanted), None)


def _candidate(model: Model, settings: Sequence[Setting], options: Mapping[str, Any]) -> Candidate:
    if isinstance(model, Candidate):
        return model
    if isinstance(model, str | os.PathLike):
        return Candidate(os.fspath(model), options=options, settings=settings)
    if options:
        raise ArgumentError(
            f"{', '.join(options)}: options of FlagModel go with a model's name, not with a loaded model"
        )
    return Candidate(model.card.name, embedder=model, settings=settings)


def _each_once(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, with what needs no model among the settings of the first alone."""
    known: set[str] = set()
    kept = []
    for candidate in candidates:
        settings = []
        for setting in candidate.settings:
            key = repr(sorted(setting.to_dict().items()))
            if setting.of_model or key not in known:
                settings.append(setting)
            if not setting.of_model:
                known.add(key)
        if len(settings) < len(candidate.settings):
            candidate = replace(candidate, settings=settings)
        if settings:
            kept.append(candidate)
    return kept


def tasks_of(
    data: Data | Sequence[Data],
    *,
    split: str | None = None,
    tasks: Sequence[str] | None = None,
    left_out: list[str] | None = None,
    encoding: str | None = None,
    quoting: Quoting = "auto",
) -> list[Task]:
    """The tasks of all data, as `evaluate` measures them; the packages that they are scored with are there.

    Args:
        data: As `evaluate` takes it.
        split: The split to measure on; by default test where there is one.
        tasks: Only the tasks of these names.
        left_out: Gets a note for each part of the data that is not measured.
        encoding: What text files are written in, as in `evaluate`.
        quoting: Quoting of csv and tsv files, as there.

    Raises:
        ArgumentError: there is no such task, or one is there twice.
        DataError: the data cannot be read.
        MissingExtraError: a package is missing that scores need.
    """
    names, left_out = tasks, [] if left_out is None else left_out
    found = [source for source in _listed(data) if isinstance(source, Task)]
    sources = [source for source in _listed(data) if not isinstance(source, Task)]
    # One source need not have all the names when there are several.
    wanted = names if len(sources) == 1 and not found else None
    for source in sources:
        found += read_tasks(source, split=split, tasks=wanted, left_out=left_out, encoding=encoding, quoting=quoting)
    if names is not None and wanted is None:
        asked, there = {name.lower() for name in names}, {task.name.lower() for task in found}
        if missing := asked - there:
            raise ArgumentError(
                f"there is no task {', '.join(sorted(missing))}; there are {', '.join(task.name for task in found)}"
            )
        found = [task for task in found if task.name.lower() in asked]
    keys = [(task.name, task.split) for task in found]
    if twice := {f"{name} ({part})" for name, part in keys if keys.count((name, part)) > 1}:
        raise ArgumentError(f"{', '.join(sorted(twice))} is given twice; give each task once")
    if not found:
        raise ArgumentError("there is no task to measure on")
    require_packages(found)
    return found


def _listed(value: Any) -> list[Any]:
    """One thing or several, as a list."""
    if isinstance(value, str | os.PathLike) or not isinstance(value, Iterable):
        return [value]
    return list(value)


def _environment(seed: int, seconds: float) -> dict[str, Any]:
    """Versions and settings that a reader needs to repeat the evaluation."""
    return {
        "versions": {"python": platform.python_version(), **package_versions(*_VERSIONS)},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": seconds,
        "seed": seed,
        "command": shown_command(sys.argv),
    }


#: Changes whenever a protocol or metric does: what was stored before is then computed again.
PROTOCOL: Final = "2"


class ScoreCache:
    """A folder of scores. What is damaged counts as not there."""

    def __init__(self, folder: OutputFolder) -> None:
        """The cache in a folder that the caller has entered."""
        self._folder = folder

    def get(self, model: JudgedModel, task: Task) -> tuple[Scores, float] | None:
        """Scores and the seconds that they took, None if they were never computed."""
        path = self._folder.path / self._name(model, task)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stored = content["items"]
            columns = {name: np.asarray(values, dtype=np.float64) for name, values in stored["columns"].items()}
            scores = Scores(content["metrics"], Items(**stored | {"columns": columns}), content["details"])
            return scores, float(content["seconds"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read and is computed again: %s", path, error)
            return None

    def put(self, model: JudgedModel, task: Task, scores: Scores, seconds: float) -> None:
        """Keep scores.

        Raises:
            OutputError: they cannot be written.
        """
        items = scores.items
        content = {
            "seconds": seconds,
            "metrics": dict(scores.metrics),
            "details": dict(scores.details),
            "items": {
                **vars(items),
                "ids": list(items.ids),
                "columns": {name: column.tolist() for name, column in items.columns.items()},
                "texts": list(items.texts),
                "groups": None if items.groups is None else list(items.groups),
            },
        }
        with self._folder.create(self._name(model, task)) as file:
            # Escaped, so that lone surrogates of broken texts survive.
            file.write(json.dumps(content, ensure_ascii=True).encode())

    def vectors(self) -> Path:
        """Folder for the vectors of corpora."""
        return self._folder.path / "vectors"

    @staticmethod
    def _name(model: JudgedModel, task: Task) -> str:
        # Not by the task's name, but by the prompts that a checkpoint may have for it.
        card = model.embedder.card
        roles = [str(role_of(card, task.kind, task.name, side)) for side in ("query", "document", "plain")]
        return f"{digest(PROTOCOL, model.fingerprint, task.fingerprint, task.main_metric, *roles)[:32]}.json"
