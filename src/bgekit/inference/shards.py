"""Corpora larger than memory: records -> a folder of vectors, written shard by shard, that can be resumed.

    shard-00000.npy        vectors [n, dimension]
    shard-00000.ids.jsonl  a line a vector: {"id": ...}, with "text" if texts are stored
    shard-00000.metadata.arrow  the columns of metadata that records have, if they have any: a row per vector
    shard-00000.sparse.npz, ...  further outputs, see `ragged_shards`
    shard-00000.json       facts of the shard, with sha256 of its input and files; written last
    manifest.json          how the vectors were made (from the start), and what they are (when all are there)

A shard is finished when its facts are there. Its input is hashed, so a later run reads the input again, keeps the
shards whose input, settings and files are the same, and encodes the rest; the result does not depend on how often
it was interrupted. Files hold no times, so two runs over the same input can be compared byte by byte. What is else at a
URL, `shard_stores` says.
"""

from __future__ import annotations

import array
import hashlib
import itertools
import json
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..data.chunking import chunk_records, document_of
from ..data.columns import BadLines
from ..data.formats import line_of
from ..data.metadata import Columns, content_of, read_table, table_of, typed, write_table
from ..data.records import Place, Record, RecordReader
from ..errors import ArgumentError, BgekitError, NumericalError, OutputError
from ..files.atomic import OutputFolder
from ..files.remote import is_url
from ..models.head_files import DENSE, OUTPUTS, Output
from .ragged import LexicalCsr, Ragged
from .ragged_shards import read_lexical, write_ragged
from .shard_stores import (
    FORMAT,
    MANIFEST,
    METADATA,
    PARTS,
    VERSION,
    LocalShards,
    RemoteShards,
    ShardStore,
    copied_shards,
    differences,
    json_bytes,
    read_manifest,
)

if TYPE_CHECKING:
    from ..display.terminal import EncodeProgress
    from .model import Embedder
    from .pipeline import Encoded

__all__ = ["Chunks", "EncodeReport", "ShardSet", "encode_to_shards", "load_shards"]
logger = logging.getLogger(__name__)
#: Key of a manifest: the arithmetics that its shards were computed with; none where a server computed them.
ARITHMETIC: Final = "arithmetic"
#: Texts of a shard.
SHARD_SIZE: Final = 1024
#: Ids named in the manifest of texts that were cut or mended; the facts of each shard have them all.
_NAMED: Final = 20
#: What can happen to a text before it is encoded.
_CHANGES: Final = ("truncated", "repaired")
#: Bytes of the manifest's entries that are kept in memory.
_ENTRIES_IN_MEMORY: Final = 1 << 20
Dtype = Literal["float32", "float16"]
#: `encode_to_shards`, or something that does the same with more machines.
EncodeShards: TypeAlias = "Callable[..., EncodeReport]"


@dataclass(frozen=True)
class Chunks:
    """Settings for splitting long documents into passages, whose ids are the document's with `#0`, `#1`, ... behind.

    Attributes:
        size: Maximum number of tokens of a passage; None for what the model takes beside its prompt and special tokens.
        overlap: Tokens that two neighbours share; None for an eighth of the size.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.inference import Chunks, encode_to_shards
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> chunks = Chunks(size=32, overlap=8)
        >>> report = encode_to_shards(model, read_records("corpus.jsonl"), "passages", chunks=chunks)
    """

    size: int | None = None
    overlap: int | None = None


@dataclass(frozen=True)
class EncodeReport:
    """Counts of a run of `encode_to_shards`; texts are counted after splitting into passages.

    Attributes:
        texts: Texts of the whole input.
        kept: Those whose vectors an earlier run had made.
        shards: Shards of the whole input.
        tokens: Tokens encoded for the whole input, by this run and earlier ones.
        truncated: Texts that were cut at the maximum length.
        repaired: Texts whose lone surrogates were replaced.
        skipped: Lines of the input that were left out.
    """

    texts: int
    kept: int
    shards: int
    tokens: int
    truncated: int
    repaired: int
    skipped: int


def encode_to_shards(
    model: Embedder,
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
    """Encode records into a folder of shards, or continue where an earlier run was interrupted.

    Memory does not grow with the input. The bytes of a shard depend on its own texts alone.

    Args:
        model: What encodes.
        records: The input, most often `read_records(files)`; to resume, the same again from the start.
        output: The folder: a path, its URL, or an `OutputFolder` that the caller has entered.
        shard_size: Texts of a shard.
        kind: Which prompt the texts get: that of the role `query` or `document`, or another one of the card by its
            name, or (`plain`) the card's default, which most often is none.
        dtype: Number format of the stored vectors.
        max_length: Cut texts at this many tokens; by default the model's own limit.
        batch_size: Maximum number of texts per batch; by default sized from the device.
        outputs: What is computed and stored, from one pass; those beside `dense` take a model with heads. Vectors of
            tokens are large, so 256 texts make a better shard.
        chunks: Split documents into passages; by default they are cut at the maximum length.
        store_texts: Keep the texts beside the ids, for searching.
        resume: Continue with an output that was begun; otherwise it is an error.
        overwrite: Remove an output that is there and start over.
        allow_mixed: Continue with shards of another arithmetic (another kind of CPU or torch), in which
            the same text has slightly other vectors; the manifest then names both.
        progress: What to tell how far it is.

    Raises:
        DataError: a record cannot be read; the shards before it are finished.
        OutputError: the output cannot be written (finished shards stay valid), another process writes to it, or it
            was begun with another input, model or settings (the message names what differs).
        NumericalError: a vector has NaN or infinity.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.inference import encode_to_shards
        >>> report = encode_to_shards(FlagModel("BAAI/bge-small-en-v1.5"), read_records("corpus.jsonl"), "vectors")
        >>> report.texts, report.shards
        (6, 1)
    """
    if shard_size < 1:
        raise ArgumentError(f"shard_size must be a positive number of texts, not {shard_size}")
    with ExitStack() as stack:
        if not isinstance(output, OutputFolder) and not is_url(output):
            output = stack.enter_context(OutputFolder(output))
        model.settle()
        texts, settings = prepared(
            model, records, kind=kind, max_length=max_length, batch_size=batch_size, dtype=dtype,
            shard_size=shard_size, store_texts=store_texts, chunks=chunks, outputs=outputs,
        )  # fmt: skip
        manifest = describe(model, settings)
        store = LocalShards(output) if isinstance(output, OutputFolder) else RemoteShards(str(output), manifest)
        run = ShardRun(store, manifest, allow_mixed=allow_mixed, progress=progress)
        run.begin(resume=resume, overwrite=overwrite)
        reader = records if isinstance(records, RecordReader) else None
        planner = ShardPlanner(texts, shard_size, reader, chunked=chunks is not None)
        told = None if progress is None else run.tell
        computed = compute_shards(
            model, run.missing(planner), kind=kind, max_length=max_length, batch_size=batch_size, outputs=outputs,
            progress=told,
        )  # fmt: skip
        # Closed, an interrupted generator ends its threads now, not when it happens to be collected.
        with closing(computed) as results:
            for shard, encoded in results:
                with run.keeping():
                    facts = write_shard(store, shard, encoded, settings)
                run.done(shard.plan, facts)
        return run.finish(planner)


def encode_shard(
    model: Embedder,
    records: Sequence[Record],
    *,
    kind: str,
    dtype: Dtype,
    max_length: int | None,
    batch_size: int | None,
    progress: EncodeProgress | None = None,
) -> tuple[npt.NDArray[Any], EncodeReport]:
    """The dense vectors [n, dimension] that `encode_to_shards` would write of records as one shard; nothing is written.

    Args:
        model: What encodes.
        records: The records, at least one.
        kind: As in `encode_to_shards`; so are the others.
        dtype: Number format of the vectors.
        max_length: Tokens at which texts are cut.
        batch_size: Maximum number of texts per batch.
        progress: What to tell how far it is.

    Raises:
        NumericalError: a vector has NaN or infinity.
    """
    model.settle()
    count = len(records)
    shard = Shard(ShardPlan(0, 0, count, "", count), records)
    told = None if progress is None else lambda texts, tokens: progress.computed(texts, tokens, texts)
    computed = compute_shards(
        model, [shard], kind=kind, max_length=max_length, batch_size=batch_size, progress=told
    )  # fmt: skip
    with closing(computed) as results:
        ((_, encoded),) = results
    if progress is not None:
        progress.encoded(count, encoded.tokens, count)
    report = EncodeReport(count, 0, 1, encoded.tokens, len(encoded.truncated), len(encoded.repaired), 0)
    return _vectors_of(shard, encoded, dtype), report


#: For vectors that are gone when the work is done: a run goes on with those of another kind of CPU, and says so.
encode_for_now: Final[EncodeShards] = partial(encode_to_shards, allow_mixed=True)


def prepared(
    model: Embedder, records: Iterable[Record], *, chunks: Chunks | None = None, outputs: Collection[Output] = DENSE,
    **settings: Any,
) -> tuple[Iterable[Record], dict[str, Any]]:  # fmt: skip
    """The texts that are encoded of some records, and the settings that a manifest keeps.

    Args:
        model: What encodes.
        records: The records.
        chunks: How documents are split into passages, if they are.
        outputs: What is computed.
        settings: Further arguments of `encode_to_shards`.

    Raises:
        ArgumentError: the model cannot split documents, or not like this, or does not have the outputs.
        CheckpointError: a head that an output takes is missing, damaged or of another shape.
    """
    model.check_outputs(outputs)
    settings = {
        "kind": settings["kind"], "max_length": settings["max_length"] or model.max_length_of(settings["kind"]),
        "batch_size": settings["batch_size"], "dtype": settings["dtype"], "dimension": model.dimension,
        "shard_size": settings["shard_size"], "store_texts": settings["store_texts"],
        **(records.settings if isinstance(records, RecordReader) else {}),
        **_output_settings(model, outputs),
    }  # fmt: skip
    if chunks is None:
        return records, settings
    texts, settings["chunk_size"], settings["chunk_overlap"] = _passages(model, records, chunks, settings)
    return texts, settings


def _output_settings(model: Embedder, outputs: Collection[Output]) -> dict[str, Any]:
    """What a manifest keeps of outputs; nothing for dense vectors alone, which have all else."""
    if set(outputs) == set(DENSE):
        return {}
    named = [output for output in OUTPUTS if output in outputs]
    return {
        "outputs": named,
        **({} if "dense" in named else {"dimension": 0}),
        **({"vocabulary": model.vocabulary} if "sparse" in named else {}),
        **({"token_dimension": model.token_dimension} if "multi-vector" in named else {}),
        "heads": {output: model.output_fingerprint(output) for output in named if output != "dense"},
    }


def _passages(
    model: Embedder, records: Iterable[Record], chunks: Chunks, settings: dict[str, Any]
) -> tuple[Iterable[Record], int, int]:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ArgumentError(f"{model.card.name} has no tokenizer here, so its texts cannot be split into passages")
    kind = settings["kind"]
    prompt = model.card.prompt(model.card.default_prompt if kind == "plain" else kind)
    used = sum(len(tokenizer.encode(part, add_special_tokens=False)) for part in (prompt.prefix, prompt.suffix))
    room = settings["max_length"] - used - tokenizer.num_special_tokens_to_add(pair=False)
    size = room if chunks.size is None else chunks.size
    overlap = size // 8 if chunks.overlap is None else chunks.overlap
    if not 0 < size <= room:
        raise ArgumentError(f"a passage can have 1 to {room} tokens beside prompt and special tokens, not {size}")
    if not 0 <= overlap < size:
        raise ArgumentError(f"passages of {size} tokens can share 0 to {size - 1} tokens, not {overlap}")
    return chunk_records(records, tokenizer, size, overlap), size, overlap


@dataclass(frozen=True)
class ShardPlan:
    """A shard that is to be computed: which part of the input it is. It holds no text, and can be sent to a process.

    Attributes:
        index: Its number.
        first: Number of its first text in the whole input, from 0.
        texts: Number of its texts.
        input_sha256: Digest of ids, texts and metadata.
        position: Where it ends in the input: in bytes of the files, or else in texts.
        file: File of its first text, "" where it is from none.
        line: Line of that text in the file.
        place: Where its first record is in the input; None where the input cannot be read again from there.
        skip: Passages of that record that are before the shard, where documents are split.
    """

    index: int
    first: int
    texts: int
    input_sha256: str
    position: int
    file: str = ""
    line: int = 0
    place: Place | None = None
    skip: int = 0

    def __str__(self) -> str:
        where = f" ({self.file}, line {self.line})" if self.file else ""
        return f"shard {self.index}, which starts at record {self.first}{where}"


@dataclass(frozen=True)
class Shard:
    """The content of a shard.

    Attributes:
        plan: Which part of the input it is.
        records: Its ids and texts.
        metadata: The pyarrow table of their metadata; None without.
    """

    plan: ShardPlan
    records: Sequence[Record]
    metadata: Any = None

    @classmethod
    def of(
        cls, records: Sequence[Record], *, index: int, first: int, position: int, chunked: bool = False
    ) -> Shard:  # fmt: skip
        """The shard that some records make.

        Args:
            records: The records, at least one.
            index: As in `ShardPlan`; so are the next two.
            first: Number of the first text.
            position: Where it ends.
            chunked: Whether they are passages that documents were split into.
        """
        digest = hashlib.sha256()
        for record in records:
            for value in (record.id, record.text):
                data = value.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        metadata = None
        if any(record.metadata for record in records):
            places = [(each.file, each.line) if each.file else ("", row) for row, each in enumerate(records, first)]
            metadata = table_of([record.metadata for record in records], places)
        if metadata is not None:
            digest.update(content_of(metadata))
        start = records[0]
        plan = ShardPlan(
            index, first, len(records), digest.hexdigest(), position, start.file, start.line, start.place,
            document_of(start.id)[1] if chunked else 0,
        )  # fmt: skip
        return cls(plan, records, metadata)


class ShardPlanner(Iterable[Shard]):
    """The shards of an input, in order: the same input gives the same ones in every process. It is read once.

    Args:
        records: The input.
        size: Texts of a shard.
        reader: What reads the input from files, if they are files.
        chunked: Whether records are passages that documents were split into.

    Attributes:
        reader: As the argument.
    """

    def __init__(
        self, records: Iterable[Record], size: int, reader: RecordReader | None = None, *, chunked: bool = False
    ) -> None:
        self.reader, self._chunked = reader, chunked
        self._records, self._size = records, size
        self._columns, self._input = Columns(), hashlib.sha256()

    def __iter__(self) -> Iterator[Shard]:
        source, first = iter(self._records), 0
        for index in itertools.count():
            part = list(itertools.islice(source, self._size))
            if not part:
                return
            position = self.reader.position if self.reader else first + len(part)
            shard = Shard.of(part, index=index, first=first, position=position, chunked=self._chunked)
            if shard.metadata is not None:
                self._columns.add(shard.metadata, f"records from {first:,} on")
            self.count(shard.plan)
            yield shard
            first += len(part)

    def count(self, plan: ShardPlan) -> None:
        """Let a shard be the next of the input."""
        self._input.update(bytes.fromhex(plan.input_sha256))

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of the input, once all of it was read."""
        skipped = self.reader.skipped if self.reader else BadLines()
        return {
            "input_files": self.reader.files if self.reader else [],
            "input_sha256": self._input.hexdigest(),
            "skipped": {"count": skipped.count, "lines": [vars(line) for line in skipped.lines]},
        }


def compute_shards(
    model: Embedder,
    shards: Iterable[Shard],
    *,
    kind: str,
    max_length: int | None = None,
    batch_size: int | None = None,
    outputs: Collection[Output] = DENSE,
    progress: Callable[[float, int], None] | None = None,
) -> Generator[tuple[Shard, Encoded], None, None]:
    """Each shard with the results of its texts, in order; while one is computed, the next ones are read.

    Args:
        model: What encodes.
        shards: The shards, read as they are needed.
        kind: As in `encode_to_shards`; so are the next two.
        max_length: Tokens at which texts are cut.
        batch_size: Maximum number of texts per batch.
        outputs: What is computed.
        progress: As in `Embedder.encode_blocks`.

    Raises:
        NumericalError: a vector has NaN or infinity.
    """
    waiting: deque[Shard] = deque()

    def blocks() -> Iterator[list[str]]:
        for shard in shards:
            waiting.append(shard)
            yield [record.text for record in shard.records]

    encoding = model.encode_blocks(
        blocks(), role=kind, max_length=max_length, batch_size=batch_size, outputs=outputs, progress=progress
    )  # fmt: skip
    done = 0
    try:
        with closing(encoding) as results:
            for encoded in results:
                shard = waiting.popleft()
                done += shard.plan.texts
                yield shard, encoded
    except NumericalError as error:
        if error.row is None:
            raise
        record = next(itertools.islice(_records_of(waiting), error.row - done, None))
        where = f"{record.file}, line {record.line}: " if record.file else ""
        raise NumericalError(f"{where}the text of {record.id!r} has no vector: {error}") from error


def _records_of(shards: Iterable[Shard]) -> Iterator[Record]:
    return itertools.chain.from_iterable(shard.records for shard in shards)


def write_shard(store: ShardStore, shard: Shard, encoded: Encoded, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the files of a shard, its facts last.

    Args:
        store: Where to.
        shard: The shard.
        encoded: Results of its texts.
        settings: Those of the manifest (`prepared`).

    Returns:
        The facts.

    Raises:
        OutputError: they cannot be written.
        NumericalError: a vector is too large for the number format of the output.
    """
    index, records = shard.plan.index, shard.records
    vectors = _vectors_of(shard, encoded, settings["dtype"])
    with store.create(index, ".npy") as file:
        np.save(file, np.ascontiguousarray(vectors))  # type: ignore[arg-type]
        vectors_sha256 = file.sha256
    with store.create(index, ".ids.jsonl") as file:
        for record in records:
            file.write(
                line_of({"id": record.id, "text": record.text} if settings["store_texts"] else {"id": record.id})
            )
        ids_sha256 = file.sha256
    facts = {
        "first": shard.plan.first,
        "texts": len(records),
        "tokens": encoded.tokens,
        "truncated": [records[row].id for row in encoded.truncated],
        "repaired": [records[row].id for row in encoded.repaired],
        "input_sha256": shard.plan.input_sha256,
        "vectors_sha256": vectors_sha256,
        "ids_sha256": ids_sha256,
        **write_ragged(partial(store.create, index), encoded, settings),
    }
    if shard.metadata is not None:
        with store.create(index, METADATA) as file:
            write_table(file, shard.metadata.schema, [shard.metadata])
            facts["metadata_sha256"] = file.sha256
    store.finish(index, facts)
    return facts


def _vectors_of(shard: Shard, encoded: Encoded, dtype: Dtype) -> npt.NDArray[Any]:
    """The vectors of a shard in the number format of the output.

    Raises:
        NumericalError: one is too large for it.
    """
    with np.errstate(over="ignore"):  # Looked for in the next line.
        vectors: npt.NDArray[Any] = encoded.vectors.astype(dtype)
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise NumericalError(f"the vector of {shard.records[row].id!r} is too large for {vectors.dtype}")
    return vectors


def finished_facts(store: ShardStore, plan: ShardPlan) -> dict[str, Any] | None:
    """The facts of a shard that is finished; None where it must be computed.

    Raises:
        OutputError: it is finished, of other input.
    """
    facts = store.facts(plan.index)
    if facts is None:
        return None
    if facts["input_sha256"] != plan.input_sha256:
        raise store.other_run(f"the input has changed in {plan}")
    for suffix, key in PARTS.items():
        if key in facts and not store.holds(plan.index, suffix, facts[key]):
            name = store.name(plan.index, suffix, facts[key])
            logger.warning("%s/%s is missing or was changed: its shard is encoded again", store.place, name)
            return None
    return facts


#: Endings of the files of a shard, and which of its facts is the sha256 of each.


class ShardRun:
    """A run over one output: which shards are missing, which are done, and the manifest.

    One process has it, and alone writes the manifest. What `missing` gives may be computed and written by anyone, in
    any order, and is reported to `done`.

    Args:
        store: The output.
        manifest: What is known of it from the start (`describe`).
        allow_mixed: Go on with shards of another arithmetic, and record it.
        progress: What to tell how far it is.
    """

    def __init__(
        self, store: ShardStore, manifest: dict[str, Any], *, allow_mixed: bool = False,
        progress: EncodeProgress | None = None,
    ) -> None:  # fmt: skip
        self._store, self._manifest, self._progress, self._allow_mixed = store, manifest, progress, allow_mixed
        self._entries = _Entries()
        self._kept = 0
        self._failure: BgekitError | None = None
        #: The manifest of the run that is gone on with, until its arithmetic was compared.
        self._earlier: dict[str, Any] | None = None
        #: Where the last shard ends in the input, and how much of that a text takes, for the bar.
        self._read, self._size_of_text = 0, 0.0

    def begin(self, *, resume: bool, overwrite: bool) -> None:
        """Compare with an earlier run, or remove it; write the manifest.

        Raises:
            OutputError: the folder holds what is not gone on with.
        """
        if overwrite:
            self._store.clear()
        elif (earlier := self._store.earlier()) is not None:
            if not resume:
                raise OutputError(f"{self._store.place} already holds shards; --overwrite starts over")
            if differing := differences(earlier, self._manifest):
                raise self._store.other_run("; ".join(differing))
            self._earlier = earlier
            return
        self._store.begin(self._manifest)

    def missing(self, planner: ShardPlanner) -> Iterator[Shard]:
        """Each shard that is not finished yet.

        What stops the input ends it, too, and is raised by `finish`: the shards before it are computed first.
        """
        index = -1
        try:
            for shard in planner:
                index = shard.plan.index
                self._size_of_text = (shard.plan.position - self._read) / shard.plan.texts
                self._read = shard.plan.position
                if (facts := finished_facts(self._store, shard.plan)) is not None:
                    self._entries.add(index, _entry(self._store, index, facts))
                    self._kept += shard.plan.texts
                    if self._progress is not None:
                        self._progress.kept(shard.plan.texts, shard.plan.position)
                    continue
                self._compare_arithmetic()
                yield shard
            if self._store.facts(index + 1) is not None:
                raise self._store.other_run(f"the input is shorter now: it ends in shard {index}")
        except BgekitError as error:
            self._failure = error

    def admit(self, arithmetic: dict[str, str] | None, who: str) -> None:
        """See to it that another process may compute shards of this run, before it does.

        Args:
            arithmetic: How it computes (`Embedder.arithmetic`).
            who: What it is, for the message.

        Raises:
            ArgumentError: its bits are others, and a mixture is not allowed.
        """
        known = self._manifest.get(ARITHMETIC, [])
        if arithmetic is None or arithmetic in known:
            return
        if arithmetic["class"] not in {each["class"] for each in known}:
            what = f"{who} computes with {in_words([arithmetic])}, the others with {in_words(known)}"
            if not self._allow_mixed:
                raise ArgumentError(
                    f"{what}, and the same text would have slightly other vectors there; choose nodes of one kind, or "
                    "--allow-mixed, which records it"
                )
            logger.warning("%s: %s", self._store.place, what)
        self._manifest[ARITHMETIC] = [*known, arithmetic]
        if self._earlier is None:
            self._store.begin(self._manifest)

    def _compare_arithmetic(self) -> None:
        """Before a first shard is computed beside others: refuse, or record, where bits differ."""
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return
        now, there = self._manifest.get(ARITHMETIC, []), earlier.get(ARITHMETIC, [])
        if not now:
            return
        if not there:
            logger.info("%s does not say how its shards were computed (bgekit 0.1.0)", self._store.place)
        elif not {each["class"] for each in now} <= {each["class"] for each in there}:
            what = f"its shards were computed with {in_words(there)}, this is {in_words(now)}"
            if not self._allow_mixed:
                raise self._store.other_run(
                    f"{what}, and the same text would have slightly other vectors in the rest; --allow-mixed continues "
                    "and records it"
                )
            logger.warning("%s: %s", self._store.place, what)
        self._manifest[ARITHMETIC] = there + [each for each in now if each not in there]
        self._store.begin(earlier | {ARITHMETIC: self._manifest[ARITHMETIC]})

    def tell(self, texts: float, tokens: int) -> None:
        """Texts were computed, a share of the shards under way."""
        if self._progress is not None:
            self._progress.computed(texts, tokens, texts * self._size_of_text)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While shards are written: let an error of the output say what stays."""
        try:
            yield
        except OutputError as error:
            done = len(self._entries)
            kept = "1 finished shard stays" if done == 1 else f"{done} finished shards stay"
            raise OutputError(f"{error}. {kept} valid; the same command continues from there") from error

    def done(self, plan: ShardPlan, facts: Mapping[str, Any]) -> None:
        """A shard is written, with these facts."""
        self._entries.add(plan.index, _entry(self._store, plan.index, facts))
        if self._progress is not None:
            self._progress.encoded(plan.texts, facts["tokens"], plan.position)

    def finish(self, planner: ShardPlanner) -> EncodeReport:
        """Complete the manifest, or raise what stopped the input.

        Args:
            planner: What has planned the shards that are done.
        """
        if self._failure is not None:
            raise self._failure
        counts, of_input = self._entries.counts, planner.facts
        if self._earlier is not None and ARITHMETIC in self._earlier:  # Nothing was computed here.
            self._manifest[ARITHMETIC] = self._earlier[ARITHMETIC]
        elif self._earlier is not None:
            self._manifest.pop(ARITHMETIC, None)
        manifest = self._manifest | {
            "complete": True,
            **{key: of_input[key] for key in ("input_files", "input_sha256")},
            **{key: counts[key] for key in ("texts", "tokens")},
            **{key: {"count": counts[key], "first_ids": self._first_ids(key)} for key in _CHANGES},
            "skipped": of_input["skipped"],
            "shards": [],
        }
        digest = hashlib.sha256()
        for part in _manifest_parts(manifest, self._entries):
            digest.update(part)
        self._store.commit(
            lambda: _manifest_parts(manifest, self._entries), digest.hexdigest(),
            lambda: (entry[key] for entry in self._entries for key in ("vectors", "ids", "metadata") if key in entry),
        )  # fmt: skip
        if not len(self._entries):
            logger.warning("the input has no records: %s holds no vectors", self._store.place)
        skipped = of_input["skipped"]["count"]
        return EncodeReport(**counts, kept=self._kept, shards=len(self._entries), skipped=skipped)

    def _first_ids(self, change: str) -> list[str]:
        found: list[str] = []
        for index, entry in enumerate(self._entries if self._entries.counts[change] else ()):
            if len(found) >= _NAMED:
                break
            if entry[change]:
                facts = self._store.facts(index) or {}
                found += facts.get(change, [])
        return found[:_NAMED]


class _Entries:
    """What the manifest says of each shard that is done; on disk beyond a few thousand, so that memory stays flat.

    Attributes:
        counts: Sums over all shards.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("texts", "tokens", *_CHANGES), 0)
        self._file = tempfile.SpooledTemporaryFile(_ENTRIES_IN_MEMORY)
        #: Where the entry of each shard ends in the file, and how long it is; 0 as long as there is none.
        self._ends, self._lengths = array.array("q"), array.array("q")
        self._count = self._size = 0

    def __len__(self) -> int:
        return self._count

    def add(self, index: int, entry: Mapping[str, Any]) -> None:
        """An entry, of a shard that had none."""
        data = json.dumps(entry).encode()
        self._file.seek(self._size)
        self._file.write(data)
        self._size += len(data)
        missing = index + 1 - len(self._ends)
        for places in (self._ends, self._lengths):
            places.extend([0] * missing)
        self._ends[index], self._lengths[index] = self._size, len(data)
        self._count += 1
        for key in self.counts:
            self.counts[key] += entry[key]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The entries, in the order of the shards."""
        for end, length in zip(self._ends, self._lengths, strict=True):
            if length:
                self._file.seek(end - length)
                yield json.loads(self._file.read(length))


def _entry(store: ShardStore, index: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of a shard."""
    names = {key: store.name(index, suffix, facts[key]) for suffix, key in PARTS.items() if key in facts}
    return {
        **{key.removesuffix("_sha256"): name for key, name in names.items()},
        **{key: facts[key] for key in ("texts", "tokens")},
        **{key: len(facts[key]) for key in _CHANGES},
        **{key: facts[key] for key in ("input_sha256", *PARTS.values()) if key in facts and key != "ids_sha256"},
        **({"token_vectors": facts["token_vectors"]} if "token_vectors" in facts else {}),
    }


def _manifest_parts(manifest: dict[str, Any], entries: _Entries) -> Iterator[bytes]:
    """The bytes of a manifest, whose last key is an empty list `shards`, with these entries in it."""
    if not len(entries):
        yield json_bytes(manifest)
        return
    head, tail = json_bytes(manifest).rsplit(b"[]", 1)
    yield head + b"["
    for number, entry in enumerate(entries):
        text = json.dumps(entry, indent=1).replace("\n", "\n  ")
        yield f"{',' if number else ''}\n  {text}".encode()
    yield b"\n ]" + tail


def describe(model: Embedder, settings: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that is known from the start: how the vectors are made."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "model_card": model.card.to_dict(),
        "model_fingerprint": model.fingerprint,
        "precision": model.precision,
        **({} if (arithmetic := model.arithmetic) is None else {ARITHMETIC: [arithmetic]}),
        "settings": settings,
    }


def in_words(arithmetics: Sequence[Mapping[str, str]]) -> str:
    """Arithmetics as people know them, with what tells them apart."""
    return " and ".join(f"torch {each['torch']} on {each['cpu'] or 'a CPU'} ({each['class']})" for each in arithmetics)


def load_shards(folder: str | os.PathLike[str]) -> ShardSet:
    """The vectors, ids and manifest of a folder that `bge encode` wrote; those at a URL are copied to the local cache.

    Raises:
        OutputError: it is no such folder, or its run was interrupted.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.inference import encode_to_shards, load_shards
        >>> report = encode_to_shards(FlagModel("BAAI/bge-small-en-v1.5"), read_records("corpus.jsonl"), "vectors")
        >>> load_shards("vectors").vectors().shape
        (6, 384)
    """
    return ShardSet(copied_shards(os.fspath(folder)) if is_url(folder) else folder)


def mapped(path: Path, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array in a file, memory-mapped.

    Raises:
        OutputError: the file is missing or damaged, or the array has another shape.
    """
    try:
        # An empty file cannot be mapped.
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r" if all(shape) else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OutputError(f"{path} is missing or damaged ({error}); make it again") from error
    if found.shape != shape:
        raise OutputError(f"{path} has the shape {found.shape}, not {shape}; make it again")
    return found


class ShardSet:
    """Encoded shards. Vectors are memory-mapped: what is not looked at is not read.

    Attributes:
        folder: The folder.
        manifest: The content of its manifest.json.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.inference import ShardSet, encode_to_shards
        >>> report = encode_to_shards(FlagModel("BAAI/bge-small-en-v1.5"), read_records("corpus.jsonl"), "vectors")
        >>> shards = ShardSet("vectors")
        >>> len(shards), shards.dimension, shards.ids[0]
        (6, 384, 'd1')
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder / MANIFEST)
        if not self.manifest["complete"]:
            raise OutputError(f"{self.folder} is not finished: run the same bge encode again; it continues from there")

    def __len__(self) -> int:
        return int(self.manifest["texts"])

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return int(self.manifest["settings"]["dimension"])

    @property
    def has_texts(self) -> bool:
        """Whether the texts are stored (`bge encode --store-texts`)."""
        return bool(self.manifest["settings"]["store_texts"])

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all vectors, in order."""
        return [row["id"] for shard in self.manifest["shards"] for row in self._rows(shard)]

    def texts(self) -> list[str] | None:
        """The texts of all vectors, in order; None when they are not stored."""
        if not self.has_texts:
            return None
        return [row["text"] for shard in self.manifest["shards"] for row in self._rows(shard)]

    @cached_property
    def metadata(self) -> Any:
        """The pyarrow table of the metadata of all vectors, in order, each column with one type; None without.

        Raises:
            OutputError: a file is missing or damaged.
        """
        import pyarrow

        whole = typed(self.metadata_parts)
        return None if whole is None else pyarrow.concat_tables(whole[1])

    def metadata_parts(self) -> Iterator[tuple[Any, str, int]]:
        """The metadata of each shard as it is stored, its file's name, and the number of its rows."""
        for shard in self.manifest["shards"]:
            name = shard.get("metadata")
            yield None if name is None else read_table(self.folder / name, shard["texts"]), str(name), shard["texts"]

    def iter_shards(self) -> Iterator[tuple[list[str], npt.NDArray[Any]]]:
        """Ids and memory-mapped vectors [n, dimension] of each shard.

        Raises:
            OutputError: a file is missing or damaged.
        """
        for shard in self.manifest["shards"]:
            yield [row["id"] for row in self._rows(shard)], self._vectors(shard)

    def vectors(self) -> npt.NDArray[Any]:
        """All vectors [n, dimension] in memory, in the format they are stored in."""
        result = np.empty((len(self), self.dimension), dtype=self.manifest["settings"]["dtype"])
        row = 0
        for shard in self.manifest["shards"]:
            part = self._vectors(shard)
            result[row : row + len(part)] = part
            row += len(part)
        return result

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What is stored: `dense`, and what else `bge encode --outputs` was told."""
        return tuple(self.manifest["settings"].get("outputs", DENSE))

    def lexical_parts(self) -> Iterator[LexicalCsr]:
        """The lexical weights of each shard.

        Raises:
            OutputError: there are none, or a file is missing or damaged.
        """
        self._require("sparse")
        for shard in self.manifest["shards"]:
            yield read_lexical(self._ragged(shard, ".sparse.npz"), shard["texts"])

    def multi_vector_parts(self) -> Iterator[Ragged]:
        """The multi-vectors of each shard, memory-mapped.

        Raises:
            OutputError: there are none, or a file is missing or damaged.
        """
        self._require("multi-vector")
        width = self.manifest["settings"]["token_dimension"]
        for shard in self.manifest["shards"]:
            values = mapped(self._ragged(shard, ".multi.npy"), (shard["token_vectors"], width))
            yield Ragged(values, np.asarray(mapped(self._ragged(shard, ".offsets.npy"), (shard["texts"] + 1,))))

    def _require(self, output: Output) -> None:
        if output not in self.outputs:
            raise OutputError(
                f"{self.folder} holds {', '.join(self.outputs)} alone: encode into another folder with --outputs "
                f"{' '.join((*self.outputs, output))}"
            )

    def _ragged(self, shard: dict[str, Any], suffix: str) -> Path:
        return self.folder / shard[PARTS[suffix].removesuffix("_sha256")]

    def _vectors(self, shard: dict[str, Any]) -> npt.NDArray[Any]:
        return mapped(self.folder / shard["vectors"], (shard["texts"], self.dimension))

    def _rows(self, shard: dict[str, Any]) -> Iterator[dict[str, str]]:
        path, count = self.folder / shard["ids"], 0
        try:
            with path.open("rb") as file:
                for line in file:
                    count += 1
                    yield json.loads(line)
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} is missing or damaged: {error}") from error
        if count != shard["texts"]:
            raise OutputError(f"{path} has {count} lines, its shard has {shard['texts']} vectors")
