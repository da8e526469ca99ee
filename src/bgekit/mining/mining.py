"""A run of mining: texts to disk, vectors to shards, then block by block rankings, draws and finished lines.

What is finished lies in a work folder beside the output, so an interrupted run continues from there; the output gets
its name when it is complete.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..data.documents import Unit
from ..data.formats import STDIN, Dialect, Quoting, line_of
from ..data.records import Record, RecordReader, read_records
from ..data.training_rows import InputRow, check_output, check_training, read_training
from ..display.terminal import titled
from ..errors import ArgumentError, DataError, require_extra
from ..files.atomic import OutputFolder, check_place
from ..files.hashing import digest, file_sha256
from ..files.remote import is_url
from ..files.transfer import check_target, local_place, write_files
from ..inference.shards import EncodeShards, encode_for_now
from ..search.bm25 import Bm25
from ..search.nearest import Rows
from .dense import DenseMiner, Floats, IndexKind
from .known_pairs import Judgements, Relevant, distinct_negatives
from .mining_page import page
from .mining_report import Tally, report, step_of
from .negatives import RANDOM, Choice, Draw, Similarity, TextStore, store_texts
from .teacher import Teacher

if TYPE_CHECKING:
    from ..display.terminal import EncodeProgress
    from ..inference.model import Embedder

logger = logging.getLogger(__name__)
#: Rows that are mined together: what an interrupted run loses at most, and what is in memory.
BLOCK: Final = 2048
DENSE, BM25 = "dense", "bm25"
MINERS: Final = (DENSE, BM25, RANDOM)
#: Rows whose draws are under way together: with a reranker, whose pairs make one call.
_TOGETHER: Final = 64
#: A reranker may refuse as many candidates of a row as its ranges have, and so many times the negatives wanted.
_REFUSALS: Final = 10
#: Part of the name of what is kept: what an older version made is not used.
_VERSION: Final = "3"
_SAMPLE_DRAW: Final = 2
#: Total texts -> what shows how far their encoding is.
MakeProgress = Callable[[int], "AbstractContextManager[EncodeProgress]"]


@dataclass(frozen=True)
class Mining:
    """A mining run: input, output, candidates and the choice of negatives.

    Attributes:
        input: File of training data, or its URL.
        output: File of training data with negatives, or its URL; one that is there is replaced.
        pool: Files and folders of candidates, in any form that `read_records` takes. A title is not added to them, as
            it is not to positives. By default all passages of the input are candidates.
        text_field: Field of the pool's texts; by default `text`, `content` or `contents`.
        id_field: Field of the pool's ids, which judgements name; by default `_id` or `id`, else the number of the row.
        qrels: Files of judgements: what they call relevant to a query is not a negative of it.
        queries: A file of the texts of the judgements' queries by id; by default rows have these ids, as `query_id`.
        encoding: What input and pool are written in, as in `read_records`.
        quoting: Quoting of input and pool, as in `read_records`.
        format: Format of the pool, as in `read_records`; so are the next four.
        records: What of a text or document is one candidate.
        include: Patterns of files in folders that are read.
        exclude: Patterns of files and folders in folders that are skipped.
        delimiter: Separator of csv columns.
        choice: How negatives are drawn.
        miners: Of `dense` (every model), `bm25` and `random`; the shares of `choice` are in the order of all models
            and then the others.
        index: How vectors are searched.
        search_device: Where they are compared, by default on the CPU.
        keep_existing: Keep the negatives that rows have, and add to them; otherwise they are replaced.
        scores: Write `pos_scores` and `neg_scores`: similarities of the first model, or of BM25 without one.
        max_reranker_score: The highest score of a reranker that a negative may have.
        work: Folder of what is kept between runs; by default one beside the output (for a URL one in the cache),
            removed in the end.
        samples: Rows that the report shows in full.

    Example:
        >>> from bgekit.mining import Mining, mine
        >>> task = Mining("train.jsonl", "by-words.jsonl", pool=("corpus.jsonl",), miners=("bm25",))
        >>> report = mine(task)
    """

    input: str
    output: str
    pool: tuple[str, ...] = ()
    text_field: str | None = None
    id_field: str | None = None
    qrels: tuple[str, ...] = ()
    queries: str | None = None
    choice: Choice = field(default_factory=Choice)
    miners: tuple[str, ...] = (DENSE,)
    index: IndexKind = "exact"
    search_device: str | None = None
    keep_existing: bool = False
    scores: bool = True
    max_reranker_score: float | None = None
    work: str | None = None
    samples: int = 5
    encoding: str | None = None
    quoting: Quoting = "auto"
    format: str | None = None
    records: Unit | None = None
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    delimiter: str | None = None

    @property
    def dialect(self) -> Dialect:
        """Encoding and quoting of input and pool."""
        return Dialect(self.encoding, self.quoting)


def mine(
    task: Mining,
    models: Sequence[Embedder] = (),
    *,
    reranker: Teacher | None = None,
    progress: MakeProgress | None = None,
    advance: Callable[[int, int], None] | None = None,
    encode: EncodeShards = encode_for_now,
) -> dict[str, Any]:
    """Mine negatives, and write them and a report: for `mined.jsonl` as `mined.report.json` and `mined.report.html`.

    Args:
        task: What to do.
        models: The models of the miner `dense`; with the others they are only used for scores.
        reranker: Judges candidates if `max_reranker_score` is set.
        progress: Makes the context manager that receives the progress of encoding.
        advance: Called after each block with the rows that are done, and all rows.
        encode: Encodes the passages: `encode_to_shards`, or the same with more machines.

    Returns:
        The content of the report.

    Raises:
        DataError: a file cannot be used; it names file and line.
        ArgumentError: arguments contradict each other.
        OutputError: the output cannot be written, or another process writes to it.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.mining import Choice, Mining, mine
        >>> task = Mining("train.jsonl", "mined.jsonl", choice=Choice(negatives=2, first=1, last=5))
        >>> report = mine(task, [FlagModel("BAAI/bge-small-en-v1.5")])
    """
    check_task(task, models=len(models), reranker=reranker is not None)
    judgements = Judgements.read(task.qrels, task.queries, task.dialect) if task.qrels else None
    count = check_training(task.input, dialect=task.dialect)
    work = _work_folder(task)
    with OutputFolder(work) as folder:
        pool: Iterable[Record] | None = _read_pool(task) if task.pool else None
        if pool is not None and judgements is not None:
            pool = judgements.passing(pool)
        with contextlib.closing(
            store_texts(folder, lambda: read_training(task.input, task.dialect), pool, negatives=task.keep_existing)
        ) as store:
            if not store.candidates:
                raise DataError(f"{', '.join(task.pool) or task.input} has no texts to draw negatives from")
            relevant = Relevant.of_rows(read_training(task.input, task.dialect))
            judged = Relevant((), ())
            if judgements is not None:
                judged = judgements.relevant(read_training(task.input, task.dialect), store)
            run = _Run(task, models, store, folder, count, reranker, relevant, judged, encode)
            content = run.all(progress, advance)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        shown = page(content, os.path.basename(task.output))
        write_files([
            (task.output, _chunks(run.parts())), (report_path(task.output), [text.encode()]),
            (page_path(task.output), [shown.encode()]),
        ])  # fmt: skip
    if task.work is None:
        shutil.rmtree(work, ignore_errors=True)  # Left behind it takes space, no more.
    return content


def report_path(output: str | os.PathLike[str]) -> str:
    """Path or URL of the report of an output: `mined.report.json` for `mined.jsonl`."""
    stem, ending = os.path.splitext(os.fspath(output))
    return f"{stem if ending in ('.jsonl', '.json') else os.fspath(output)}.report.json"


def page_path(output: str | os.PathLike[str]) -> str:
    """The same of the report as a page: `mined.report.html` for `mined.jsonl`."""
    return f"{report_path(output).removesuffix('.json')}.html"


def check_task(task: Mining, *, models: int, reranker: bool) -> None:
    """See to it, before anything is loaded, that a task can be done: arguments, packages, outputs, the pool.

    Args:
        task: What to do.
        models: How many models there will be.
        reranker: Whether there will be a reranker.

    Raises:
        ArgumentError: arguments contradict each other.
        DataError: the pool cannot be read.
        MissingExtraError: the index needs faiss, which is not installed.
        OutputError: an output cannot be written.
    """
    check_output(task.output, task.input, *task.pool)
    check_target(report_path(task.output))
    check_target(page_path(task.output))
    check_place(_work_folder(task), folder=True)
    if task.queries is not None and not task.qrels:
        raise ArgumentError("queries are the texts of judgements (qrels), and no judgements are given")
    if task.id_field is not None and not (task.qrels and task.pool):
        raise ArgumentError("id_field is for judgements (qrels) of a pool of candidates; give both")
    unknown = [name for name in task.miners if name not in MINERS]
    if unknown or not task.miners:
        raise ArgumentError(f"miners are {', '.join(MINERS)}, not {', '.join(unknown) or 'none at all'}")
    if DENSE in task.miners and not models:
        raise ArgumentError("the miner `dense` needs a model; without one there are bm25 and random")
    if DENSE in task.miners and task.index != "exact":
        require_extra("faiss", "faiss")
    if task.choice.guards.need_scores and not models and BM25 not in task.miners:
        raise ArgumentError("guards on scores need a model (or bm25) that gives the scores")
    if models > 1 and DENSE not in task.miners:
        raise ArgumentError("without the miner `dense` one model gives the scores, so give one, not several")
    if (task.max_reranker_score is None) == reranker:
        raise ArgumentError("a reranker and max_reranker_score go together: give both or neither")
    sources = _sources(task, [f"model {number}" for number in range(1, models + 1)])
    if len(task.choice.shares) != len(sources) and task.choice.shares != (1,):
        raise ArgumentError(
            f"{len(task.choice.shares)} shares are given for {len(sources)} miners: {', '.join(sources)}"
        )
    if task.pool and STDIN not in task.pool:  # What is read from a pipe is gone.
        _read_pool(task).require()


def _read_pool(task: Mining) -> RecordReader:
    return read_records(
        task.pool, text_field=task.text_field, title_field="", id_field=task.id_field, encoding=task.encoding,
        quoting=task.quoting, format=task.format, records=task.records, include=task.include, exclude=task.exclude,
        delimiter=task.delimiter,
    )  # fmt: skip


def _work_folder(task: Mining) -> Path:
    if task.work is not None:
        return Path(task.work)
    return local_place("runs", f"{task.output}.mining") if is_url(task.output) else Path(f"{task.output}.mining")


def _sources(task: Mining, models: Sequence[str]) -> list[str]:
    """Names of all that give candidates."""
    return [*(models if DENSE in task.miners else ()), *(name for name in (BM25, RANDOM) if name in task.miners)]


class _Run:
    def __init__(
        self, task: Mining, models: Sequence[Embedder], store: TextStore, folder: OutputFolder, count: int,
        reranker: Teacher | None, relevant: Relevant, judged: Relevant, encode: EncodeShards,
    ) -> None:  # fmt: skip
        names = [model.card.name for model in models]
        equal = (1,) * len(_sources(task, names))
        self._choice = replace(task.choice, shares=task.choice.shares if len(task.choice.shares) > 1 else equal)
        self._task, self._store, self._folder, self._count, self._reranker = task, store, folder, count, reranker
        self._dense = [
            DenseMiner(model, store, folder.path, index=task.index, device=task.search_device, encode=encode)
            for model in models
        ]
        self._relevant, self._judged = relevant, judged
        self._step = step_of(bool(self._dense) and self._dense[0].cosine)
        self._bm25: Bm25 | None = None
        content = {
            "version": _VERSION, "input": file_sha256(task.input), "texts": store.digest,
            "candidates": store.candidates, "choice": asdict(self._choice), "judged": judged.digest,
            "models": [model.fingerprint for model in models], "reranker": reranker and str(reranker.fingerprint),
            **{name: getattr(task, name) for name in
               ("miners", "index", "search_device", "keep_existing", "scores", "max_reranker_score", "samples")},
        }  # fmt: skip
        self._key = digest(json.dumps(content, sort_keys=True))[:16]
        generator = np.random.default_rng([task.choice.seed, _SAMPLE_DRAW])
        self._samples = set(generator.permutation(count)[: task.samples].tolist())
        choice_made = {name: value for name, value in asdict(self._choice).items() if name not in ("first", "last")}
        self._settings = {
            "models": names, "rows": count, "candidates": store.candidates,
            "range": [self._choice.first, self._choice.last], **choice_made, "miners": list(task.miners),
            "index": task.index, "keep_existing": task.keep_existing, "max_reranker_score": task.max_reranker_score,
        }  # fmt: skip

    def all(self, progress: MakeProgress | None, advance: Callable[[int, int], None] | None) -> dict[str, Any]:
        """Mine what no earlier run has; the report."""
        tally = Tally(step=self._step)
        done = number = 0
        prepared = False
        rows = read_training(self._task.input, self._task.dialect)
        while block := list(itertools.islice(rows, BLOCK)):
            facts = self._facts(number)
            if facts is None:
                if not prepared:
                    self._prepare(progress)
                    prepared = True
                facts = self._block(block)
                self._store_part(number, facts)
            tally.add(Tally.from_json(facts["tally"]))
            done, number = done + len(block), number + 1
            if advance is not None:
                advance(done, self._count)
        return report(self._settings, tally)

    def parts(self) -> Iterator[Path]:
        """Files of finished lines, in order."""
        return (self._part(number, ".jsonl") for number in range(-(-self._count // BLOCK)))

    def _part(self, number: int, suffix: str) -> Path:
        return self._folder.path / f"rows-{self._key}-{number:05d}{suffix}"

    def _facts(self, number: int) -> dict[str, Any] | None:
        """Facts about a block that an earlier run has finished."""
        try:
            facts: dict[str, Any] = json.loads(self._part(number, ".json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return facts if file_sha256(self._part(number, ".jsonl")) == facts["sha256"] else None

    def _store_part(self, number: int, facts: dict[str, Any]) -> None:
        with self._folder.create(self._part(number, ".jsonl").name) as file:
            for line in facts.pop("lines"):
                file.write(line)
            facts["sha256"] = file.sha256
        with self._folder.create(self._part(number, ".json").name) as file:
            file.write(json.dumps(facts).encode())
        self._folder.sync()

    def _prepare(self, progress: MakeProgress | None) -> None:
        for number, miner in enumerate(self._dense, 1):
            place = f", model {number} of {len(self._dense)}" if len(self._dense) > 1 else ""
            with (
                titled(f"mine: passages{place}"),
                contextlib.nullcontext() if progress is None else progress(len(self._store)) as shown,
            ):
                miner.prepare(shown)
        if BM25 in self._task.miners:
            self._bm25 = Bm25.of_texts(self._store[number] for number in range(self._store.candidates))

    def _block(self, block: Sequence[InputRow]) -> dict[str, Any]:
        """Lines and tally of a block of rows."""
        queries = [each.row.query for each in block]
        prompts = [each.row.prompt for each in block]
        vectors = [miner.encode(queries, prompts) for miner in self._dense]
        rankings: list[tuple[str, Sequence[Rows | None]]] = []
        if DENSE in self._task.miners:
            for miner, encoded in zip(self._dense, vectors, strict=True):
                rankings.append((miner.name, miner.rank(encoded, self._choice.last)))
        if self._bm25 is not None:
            rankings.append((BM25, [self._bm25.rank(query, self._choice.last) for query in queries]))
        if RANDOM in self._task.miners:
            rankings.append((RANDOM, [None] * len(block)))
        draws = [
            self._draw(each, [(name, of[row]) for name, of in rankings], self._similarity(each, vectors, row))
            for row, each in enumerate(block)
        ]
        self._accept(draws, queries)
        tally, lines = Tally(step=self._step), []
        for each, draw in zip(block, draws, strict=True):
            scores = self._scores(each, draw)
            tally.add_row(each.row, draw, self._choice.negatives, scores, sample=each.row.index in self._samples)
            lines.append(line_of(self._fields(each, draw, scores)))
        return {"tally": tally.to_json(), "lines": lines}

    def _similarity(self, each: InputRow, vectors: Sequence[Floats], row: int) -> Similarity | None:
        """Scores of texts for a row: of the first model, or else of BM25."""
        if self._dense:
            return lambda rows: self._dense[0].similarity(vectors[0][row], rows)
        if (bm25 := self._bm25) is not None:
            return lambda rows: bm25.scores(each.row.query, [self._store[number] for number in rows.tolist()])
        return None

    def _draw(self, each: InputRow, rankings: Sequence[tuple[str, Rows | None]], similarity: Similarity | None) -> Draw:
        row = each.row
        relevant, judged = self._relevant.to(row.query), self._judged.to(row.query)
        kept = distinct_negatives(each, (*relevant, *judged)) if self._task.keep_existing else []
        lowest = 0.0
        if self._choice.guards.need_scores and similarity is not None:
            numbers = [number for key in relevant if (number := self._store.first(key)) is not None]
            lowest = float(similarity(np.array(numbers, dtype=np.int64)).min())
        return Draw(
            row, self._store, rankings, self._choice, similarity=similarity, positive_score=lowest, kept=kept,
            relevant=relevant, judged=judged,
        )  # fmt: skip

    def _accept(self, draws: Sequence[Draw], queries: Sequence[str]) -> None:
        """Let all rows draw, with a reranker's consent if there is one."""
        if self._reranker is None:
            for draw in draws:
                while found := draw.propose():
                    draw.accept(found)
            return
        for first in range(0, len(draws), _TOGETHER):
            self._judge(self._reranker, draws[first : first + _TOGETHER], queries[first : first + _TOGETHER])

    def _judge(self, reranker: Teacher, draws: Sequence[Draw], queries: Sequence[str]) -> None:
        """Let rows draw what a reranker scores low enough. One that it refuses too much is left with fewer."""
        choice, most = self._choice, self._task.max_reranker_score
        refusals = len(choice.shares) * (choice.last - choice.first) + _REFUSALS * choice.negatives
        left = dict.fromkeys(range(len(draws)), refusals)
        while proposed := [(row, found) for row in left if (found := draws[row].propose())]:
            pairs = [(queries[row], each.text) for row, found in proposed for each in found]
            scores = iter(reranker.compute_score(pairs, show_progress=False))
            for row, found in proposed:
                judged = [(each, most is None or next(scores) <= most) for each in found]
                draws[row].accept([each for each, good in judged if good])
                draws[row].refuse([each for each, good in judged if not good], "max_reranker_score")
                left[row] -= sum(not good for _, good in judged)
                if left[row] < 0:
                    draws[row].end()

    def _scores(self, each: InputRow, draw: Draw) -> tuple[list[float], list[float]] | None:
        """Scores of a row's positives, and of its negatives in order: kept ones first."""
        if draw.similarity is None:
            return None
        known = [self._store.find(text) for text in (*each.row.positives, *draw.kept)]
        wanted = np.array([*known, *(candidate.number for candidate in draw.accepted)], dtype=np.int64)
        found = [round(float(score), 6) for score in draw.similarity(wanted)]
        count = len(each.row.positives)
        return found[:count], found[count:]

    def _fields(self, each: InputRow, draw: Draw, scores: tuple[list[float], list[float]] | None) -> dict[str, Any]:
        # Scores that were there belong to other negatives.
        fields = {name: value for name, value in each.fields.items() if name not in ("pos_scores", "neg_scores")}
        fields |= {"query": each.row.query, "pos": list(each.row.positives)}
        fields["neg"] = [*draw.kept, *(candidate.text for candidate in draw.accepted)]
        if scores is not None and self._task.scores:
            fields |= {"pos_scores": scores[0], "neg_scores": scores[1]}
        return fields


def _chunks(files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
