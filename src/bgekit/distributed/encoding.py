"""`encode_to_shards` on a cluster: one process plans and commits, actors read, encode and write their own shards."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..data.chunking import chunk_records
from ..data.formats import STDIN, line_of
from ..data.records import Place, Record, RecordReader, read_records
from ..display.terminal import title_now
from ..errors import ArgumentError, BgekitError, DataError
from ..files.atomic import OutputFolder, SharedFolder
from ..files.remote import is_url
from ..inference.shard_stores import LocalShards, RemoteShards, ShardStore
from ..inference.shards import (
    ARITHMETIC,
    SHARD_SIZE,
    Chunks,
    Dtype,
    EncodeReport,
    Shard,
    ShardPlan,
    ShardPlanner,
    ShardRun,
    compute_shards,
    describe,
    prepared,
    write_shard,
)
from ..models.head_files import DENSE, Output
from .cluster import Actor, RayCluster, cores, in_actor
from .recipes import ModelRecipe

if TYPE_CHECKING:
    from ..display.terminal import EncodeProgress
    from ..inference.model import Embedder

logger = logging.getLogger(__name__)
#: Seconds that an actor waits for its next shard before it ends those that it has.
_PATIENCE: Final = 0.2
#: Records kept of those that were read, as splitting documents reads ahead.
_RECENT: Final = 512
#: Records of an input that is not in files, while a run goes on.
_SPOOL: Final = "records.jsonl.tmp"


class Source(Protocol):
    """Records that can be read from any of them on, in another process: `RecordReader` and others; can be pickled."""

    def at(self, place: Place) -> Iterator[Record]:
        """The records from a place on that one of them had."""


@dataclass(frozen=True)
class EncodeJob:
    """All that an actor needs to know of a run.

    Attributes:
        recipe: The model.
        source: The input.
        from_files: Whether it is the caller's files, whose reading the manifest states.
        output: The output: its folder, or its URL.
        chunks: How documents are split, if they are.
        settings: Further arguments of `encode_to_shards` that decide the bytes of a shard.
        work_folder: Folder that relative names start from.
        threads: Whether OMP_NUM_THREADS was chosen by the caller, and counts.
    """

    recipe: ModelRecipe
    source: Source
    from_files: bool
    output: SharedFolder | str
    chunks: Chunks | None
    settings: dict[str, Any]
    work_folder: str
    threads: str | None


def encode_on_cluster(
    cluster: RayCluster,
    model: ModelRecipe | Embedder,
    records: Iterable[Record],
    output: str | os.PathLike[str] | OutputFolder,
    *,
    shard_size: int = SHARD_SIZE,
    kind: str = "document",
    dtype: Dtype = "float32",
    max_length: int | None = None,
    batch_size: int | None = None,
    outputs: Collection[Output] = DENSE,
    chunks: Chunks | None = None,
    store_texts: bool = False,
    resume: bool = True,
    overwrite: bool = False,
    allow_mixed: bool = False,
    progress: EncodeProgress | None = None,
) -> EncodeReport:
    """Encode records into a folder of shards with the nodes of a cluster; the bytes are those of `encode_to_shards`.

    This process reads the input once, to plan, and loads no model. Actors read their parts of the input themselves:
    files, output and a model that is a folder must be on storage that all nodes share, under the same paths.

    Args:
        cluster: The cluster, entered.
        model: The model; one that is loaded here, too, must be the same on all nodes.
        records: The input: `read_records(files)`, or anything else, which is then written beside the output first.
        output: As in `encode_to_shards`; so are all others.
        shard_size: Texts of a shard.
        kind: Which prompt the texts get.
        dtype: Number format of the stored vectors.
        max_length: Cut texts at this many tokens.
        batch_size: Maximum number of texts per batch.
        outputs: What is computed and stored.
        chunks: Split documents into passages.
        store_texts: Keep the texts beside the ids.
        resume: Continue with an output that was begun.
        overwrite: Start over.
        allow_mixed: Let nodes of different arithmetic, and shards of another one, be mixed; the manifest names all.
        progress: What to tell how far it is.

    Raises:
        DataError: a record cannot be read; the shards before it are finished.
        ArgumentError: the nodes compute differently, or the input is standard input.
        OutputError: as in `encode_to_shards`, or a node does not see the output.
        NumericalError: a vector has NaN or infinity; file and line of its text are named.
        WorkerError: nodes have no room, or a shard ends its process again and again.

    Example:
        >>> from bgekit.data import read_records
        >>> from bgekit.distributed import ModelRecipe, RayCluster, encode_on_cluster
        >>> with RayCluster("auto") as cluster:  # doctest: +SKIP
        ...     encode_on_cluster(cluster, ModelRecipe("BAAI/bge-m3"), read_records("corpus/"), "/shared/vectors")
    """
    if shard_size < 1:
        raise ArgumentError(f"shard_size must be a positive number of texts, not {shard_size}")
    recipe = model if isinstance(model, ModelRecipe) else ModelRecipe.of(model)
    reader = records if isinstance(records, RecordReader) else None
    if reader is not None and STDIN in reader.files:
        raise ArgumentError("standard input (-) cannot be read by other machines: give files that all nodes see")
    settings = {
        "kind": kind, "max_length": max_length, "batch_size": batch_size, "dtype": dtype, "shard_size": shard_size,
        "store_texts": store_texts, "outputs": tuple(outputs),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        if not isinstance(output, OutputFolder) and not is_url(output):
            output = stack.enter_context(OutputFolder(output))
        shared = stack.enter_context(output.shared()) if isinstance(output, OutputFolder) else str(output)
        source = _source_of(records, output)
        job = EncodeJob(
            recipe, source, reader is not None, shared, chunks, settings, os.getcwd(), os.environ.get("OMP_NUM_THREADS")
        )  # fmt: skip
        run: ShardRun | None = None
        #: What actors said of themselves, and where they are, before there was a run.
        early: list[tuple[dict[str, Any], str]] = []

        def admit(said: dict[str, Any], where: str) -> None:
            if run is None:
                early.append((said, where))
                return
            _check_same(manifest, said, where)
            for each in said.get(ARITHMETIC, []):
                run.admit(each, f"the node {where}")

        changed = (lambda nodes: None) if progress is None else (lambda nodes: progress.note(_title(nodes)))
        crew = stack.enter_context(cluster.crew(ShardActor, [job], admit=admit, changed=changed))
        crew.ready()
        manifest = early[0][0]
        if not isinstance(model, ModelRecipe) and manifest["model_fingerprint"] != model.fingerprint:
            raise ArgumentError(
                f"{recipe.name} computes in {manifest['precision']} on the nodes, and otherwise here, or is another "
                "model there: --dtype makes the precision the same everywhere"
            )
        texts: Iterable[Record] = source if reader is None else reader
        if chunks is not None:
            tokenizer = crew.ask("tokenizer")
            made = manifest["settings"]
            texts = chunk_records(texts, tokenizer, made["chunk_size"], made["chunk_overlap"])
        store = LocalShards(output) if isinstance(output, OutputFolder) else RemoteShards(str(output), manifest)
        run = ShardRun(store, manifest, allow_mixed=allow_mixed, progress=progress)
        run.begin(resume=resume, overwrite=overwrite)
        for said, where in early[1:]:
            admit(said, where)
        planner = ShardPlanner(texts, shard_size, reader, chunked=chunks is not None)
        with run.keeping():
            for plan, facts in crew.run(shard.plan for shard in run.missing(planner)):
                run.done(plan, facts)
        return run.finish(planner)


def _title(nodes: int) -> str:
    return f"{title_now() or 'encode'} on {nodes} {'node' if nodes == 1 else 'nodes'}"


def _check_same(first: dict[str, Any], other: dict[str, Any], where: str) -> None:
    """See to it that two nodes load the same model.

    Raises:
        ArgumentError: they do not.
    """
    for key, value in first.items():
        if key != ARITHMETIC and other.get(key) != value:
            raise ArgumentError(
                f"the node {where} has another model than the others: its {key.replace('_', ' ')} is "
                f"{other.get(key)!r:.80}, not {value!r:.80}; --dtype makes the precision the same everywhere"
            )


def _source_of(records: Iterable[Record], folder: Any) -> Any:
    """The records as others can read them."""
    if hasattr(records, "at"):
        return records.at(Place()) if isinstance(records, RecordReader) else records
    if not isinstance(folder, OutputFolder):
        raise ArgumentError("records that are in no file are encoded to a URL by one machine: give read_records(...)")
    with folder.create(_SPOOL) as file:
        for record in records:
            if record.metadata:
                raise ArgumentError("records with metadata are encoded by a cluster from files: give read_records(...)")
            file.write(line_of({"id": record.id, "text": record.text}))
    return read_records(folder.path.absolute() / _SPOOL, title_field="", format="jsonl")


class ShardReader:
    """The records of shards, read again: from a place in the middle of a file, or forward from where it is.

    Args:
        source: The input.
        split: Splits documents into passages, if that is done.
    """

    def __init__(self, source: Source, split: Any = None) -> None:
        self._source, self._split = source, split
        self._stream: Iterator[Record] = iter(())
        self._recent: deque[Record] = deque(maxlen=_RECENT)

    def read(self, plan: ShardPlan) -> Shard:
        """A shard.

        Raises:
            DataError: the input cannot be read, or is not what was planned.
        """
        assert plan.place is not None
        records = self._from(plan.place)
        chunked = self._split is not None
        texts = self._split(records) if chunked else records
        part = list(itertools.islice(texts, plan.skip, plan.skip + plan.texts))
        if part:
            shard = Shard.of(part, index=plan.index, first=plan.first, position=plan.position, chunked=chunked)
            if shard.plan.input_sha256 == plan.input_sha256:
                return shard
        raise DataError(
            f"{plan.file or 'the input'} on {platform.node()} is not what was planned in {plan}: it has changed since, "
            "or the node sees another file"
        )

    def _from(self, place: Place) -> Iterator[Record]:
        there = self._recent and _order(self._recent[0]) <= place[:2] and place.source == _order(self._recent[-1])[0]
        if place.offset is not None or not there:
            self._stream = self._source.at(place)
            self._recent.clear()
        back = [record for record in self._recent if _order(record) >= place[:2]]
        return itertools.chain(back, (record for record in self._noted() if _order(record) >= place[:2]))

    def _noted(self) -> Iterator[Record]:
        for record in self._stream:
            self._recent.append(record)
            yield record


def _order(record: Record) -> tuple[int, int]:
    assert record.place is not None
    return record.place[:2]


class ShardActor(Actor):
    """A process that computes shards: as an actor of Ray, or any other way. Its model lives in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._orders: SimpleQueue[tuple[Any, Future[Any]]] = SimpleQueue()
        self._model: Any = None
        self._max_length: int | None = None

    def begin(self, arguments: tuple[EncodeJob]) -> dict[str, Any]:
        """Load the model; what a manifest says of it and how it computes.

        Raises:
            BgekitError: the model cannot be loaded here, or the output is not seen.
        """
        (job,) = arguments
        # What a node has to say of the input, the process that plans says, too, once.
        logging.getLogger("bgekit").setLevel(logging.ERROR)
        if job.threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)  # Ray's; ours are set below.
        with contextlib.suppress(OSError):  # All names may be absolute.
            os.chdir(job.work_folder)
        if isinstance(job.output, SharedFolder):
            job.output.check()
        threading.Thread(target=self._live, args=(job, share_of_cores()), daemon=True, name="bgekit-shards").start()
        return dict(self._ask(None))

    def tokenizer(self) -> Any:
        """The tokenizer, for the process that plans."""
        return self._model.tokenizer

    def work(self, plan: ShardPlan) -> dict[str, Any] | None:
        """Read, compute and write a shard; its facts. Several may be asked for at once, from several threads.

        Returns:
            The facts; None if the process was told to stop before the shard was read.

        Raises:
            BgekitError: it cannot be read, computed or written.
        """
        facts = self._ask(plan)
        return None if facts is None else dict(facts)

    def _ask(self, order: ShardPlan | None) -> Any:
        answer: Future[Any] = Future()
        self._orders.put((order, answer))
        return answer.result()

    def _live(self, job: EncodeJob, threads: int) -> None:
        """The thread that computes: torch counts threads for each thread that asks."""
        _, answer = self._orders.get()
        try:
            import torch

            torch.set_num_threads(max(1, min(threads, torch.get_num_threads())))
            self._model = model = job.recipe.load()
            self._max_length = job.settings["max_length"]
            model.settle()
            reader = job.source if job.from_files and isinstance(job.source, RecordReader) else ()
            _, settings = prepared(model, reader, chunks=job.chunks, **job.settings)
            manifest = describe(model, settings)
            store: ShardStore = (
                LocalShards(job.output) if isinstance(job.output, SharedFolder) else RemoteShards(job.output, manifest)
            )
        except BaseException as error:
            answer.set_exception(plain_error(error))
            return
        split = None
        if job.chunks is not None:
            size, overlap = settings["chunk_size"], settings["chunk_overlap"]
            tokenizer = self.tokenizer()
            split = lambda records: chunk_records(records, tokenizer, size, overlap)  # noqa: E731
        shards = ShardReader(job.source, split)
        answer.set_result(manifest)
        while True:
            self._stream(store, settings, shards, self._orders.get())

    def _stream(
        self, store: ShardStore, settings: dict[str, Any], reader: ShardReader, order: tuple[Any, Future[Any]]
    ) -> None:
        """Compute a shard, and those that are asked for meanwhile: while one is computed the next ones are read."""
        waiting: deque[Future[Any]] = deque()

        def shards() -> Iterator[Shard]:
            following: tuple[Any, Future[Any]] | None = order
            while following is not None:
                plan, answer = following
                if self._told.is_set():
                    answer.set_result(None)
                else:
                    try:
                        shard = reader.read(plan)
                    except BaseException as error:
                        answer.set_exception(plain_error(error))
                    else:
                        waiting.append(answer)
                        yield shard
                try:
                    following = self._orders.get(timeout=_PATIENCE)
                except Empty:
                    following = None

        try:
            computed = compute_shards(
                self._model, shards(), kind=settings["kind"], max_length=self._max_length,
                batch_size=settings["batch_size"], outputs=settings.get("outputs", DENSE),
            )  # fmt: skip
            for shard, encoded in computed:
                facts = write_shard(store, shard, encoded, settings)
                waiting.popleft().set_result(facts)
        except BaseException as error:
            for answer in waiting:
                answer.set_exception(plain_error(error))


def share_of_cores() -> int:
    """Processors that this actor was given."""
    if not in_actor():
        return cores()
    given = sys.modules["ray"].get_runtime_context().get_assigned_resources().get("CPU")
    return max(1, int(given)) if given else cores()


def plain_error(error: BaseException) -> BaseException:
    """An error that can be sent: ours without its cause, whose classes others may lack."""
    if isinstance(error, BgekitError):
        try:
            return type(error)(str(error))
        except TypeError:
            return BgekitError(str(error))
    return error
