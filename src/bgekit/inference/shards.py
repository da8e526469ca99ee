"""Corpora larger than memory: records -> a folder of vectors, written shard by shard, that can be resumed.

    shard-00000.npy        vectors [n, dimension]
    shard-00000.ids.jsonl  a line a vector: {"id": ...}, with "text" if texts are stored
    shard-00000.metadata.arrow  the columns of metadata that records have, if they have any: a row per vector
    shard-00000.json       facts of the shard, with sha256 of its input and files; written last
    manifest.json          how the vectors were made (from the start), and what they are (when all are there)

A shard is finished when its facts are there. Its input is hashed, so a later run reads the input again, keeps the
shards whose input, settings and files are the same, and encodes the rest; the result does not depend on how often
it was interrupted. Files hold no times, so two runs over the same input can be compared byte by byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..data.chunking import chunk_records
from ..data.columns import BadLines
from ..data.formats import line_of
from ..data.metadata import Columns, content_of, read_table, table_of, typed, write_table
from ..data.records import Record, RecordReader
from ..errors import ArgumentError, BgekitError, NumericalError, OutputError
from ..files.atomic import OutputFolder
from ..files.hashing import file_sha256

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
Dtype = Literal["float32", "float16"]


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
        output: The folder; an `OutputFolder` that the caller has entered, or a path.
        shard_size: Texts of a shard.
        kind: Which prompt the texts get: that of the role `query` or `document`, or another one of the card by its
            name, or (`plain`) the card's default, which most often is none.
        dtype: Number format of the stored vectors.
        max_length: Cut texts at this many tokens; by default the model's own limit.
        batch_size: Maximum number of texts per batch; by default sized from the device.
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
    with nullcontext(output) if isinstance(output, OutputFolder) else OutputFolder(output) as folder:
        model.settle()
        texts, settings = prepared(
            model, records, kind=kind, max_length=max_length, batch_size=batch_size, dtype=dtype,
            shard_size=shard_size, store_texts=store_texts, chunks=chunks,
        )  # fmt: skip
        run = _Run(folder, records, describe(model, settings), progress, allow_mixed)
        run.begin(resume=resume, overwrite=overwrite)
        blocks = run.blocks(texts)
        # Closed, an interrupted generator ends its threads now, not when it happens to be collected.
        told = None if progress is None else run.tell
        encoding = model.encode_blocks(
            blocks, role=kind, max_length=max_length, batch_size=batch_size, progress=told,
        )  # fmt: skip
        with closing(encoding) as results:
            for encoded in results:
                run.store(encoded)
        return run.finish()


def prepared(
    model: Embedder, records: Iterable[Record], *, chunks: Chunks | None = None, **settings: Any
) -> tuple[Iterable[Record], dict[str, Any]]:
    """The texts that are encoded of some records, and the settings that a manifest keeps.

    Args:
        model: What encodes.
        records: The records.
        chunks: How documents are split into passages, if they are.
        settings: Further arguments of `encode_to_shards`.

    Raises:
        ArgumentError: the model cannot split documents, or not like this.
    """
    settings = {
        "kind": settings["kind"], "max_length": settings["max_length"] or model.max_length_of(settings["kind"]),
        "batch_size": settings["batch_size"], "dtype": settings["dtype"], "dimension": model.dimension,
        "shard_size": settings["shard_size"], "store_texts": settings["store_texts"],
        **(records.settings if isinstance(records, RecordReader) else {}),
    }  # fmt: skip
    if chunks is None:
        return records, settings
    texts, settings["chunk_size"], settings["chunk_overlap"] = _passages(model, records, chunks, settings)
    return texts, settings


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


@dataclass
class _Shard:
    """A shard on its way through the model."""

    index: int
    first: int
    records: list[Record]
    metadata: Any
    input_sha256: str
    position: int


class _Run:
    """One run: it compares with what is there, feeds the model with what is missing, and writes."""

    def __init__(
        self,
        folder: OutputFolder,
        source: Iterable[Record],
        manifest: dict[str, Any],
        progress: EncodeProgress | None,
        allow_mixed: bool,
    ) -> None:
        self._folder, self._manifest, self._progress, self._allow_mixed = folder, manifest, progress, allow_mixed
        self._reader = source if isinstance(source, RecordReader) else None
        self._size: int = manifest["settings"]["shard_size"]
        self._pending: deque[_Shard] = deque()
        #: What the manifest says of each shard; None while it is being encoded.
        self._entries: list[dict[str, Any] | None] = []
        self._columns = Columns()
        self._input = hashlib.sha256()
        self._kept = 0
        self._failure: BgekitError | None = None
        #: The manifest of the run that is gone on with, until its arithmetic was compared.
        self._earlier: dict[str, Any] | None = None
        #: Where the last shard ends in the input, and how much of that a text takes, for the bar.
        self._read, self._size_of_text = 0, 0.0

    def begin(self, *, resume: bool, overwrite: bool) -> None:
        """Compare with an earlier run, or remove it; write the manifest."""
        path = self._folder.path / MANIFEST
        there = path.exists()
        if there and not overwrite and next(self._folder.path.glob("shard-*[0-9].json"), None) is None:
            # An earlier run came to nothing, and what it was to be binds nobody; a manifest of something else does.
            read_manifest(path)
            self._remove()
            there = False
        if overwrite:
            self._remove()
        elif there and not resume:
            raise OutputError(f"{self._folder.path} already holds shards; --overwrite starts over")
        elif there:
            differing = differences(read_manifest(path), self._manifest)
            if differing:
                raise self._other_run("; ".join(differing))
            self._earlier = read_manifest(path)
            return
        elif next(self._folder.path.glob("shard-*.npy"), None) is not None:
            raise OutputError(f"{self._folder.path} holds shards without {MANIFEST}; --overwrite removes them")
        self._write_json(MANIFEST, self._manifest)
        self._folder.sync()

    def blocks(self, records: Iterable[Record]) -> Iterator[list[str]]:
        """The texts of each shard that is not finished yet."""
        try:
            for shard in self._shards(records):
                self._size_of_text = (shard.position - self._read) / len(shard.records)
                self._read = shard.position
                if (facts := self._finished(shard)) is not None:
                    self._entries.append(self._entry(shard, facts))
                    self._kept += len(shard.records)
                    if self._progress is not None:
                        self._progress.kept(len(shard.records), shard.position)
                    continue
                self._compare_arithmetic()
                self._entries.append(None)
                self._pending.append(shard)
                yield [record.text for record in shard.records]
            if (self._folder.path / shard_name(len(self._entries), ".json")).exists():
                raise self._other_run(f"the input is shorter now: it ends in shard {len(self._entries) - 1}")
        except BgekitError as error:
            # Raised in `finish`: the shards that are under way come first, so a rerun need not make them again.
            self._failure = error

    def _compare_arithmetic(self) -> None:
        """Before a first shard is computed beside others: refuse, or record, where bits differ."""
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return
        now, there = self._manifest.get(ARITHMETIC, []), earlier.get(ARITHMETIC, [])
        if not now:
            return
        if not there:
            logger.info("%s does not say how its shards were computed (bgekit 0.1.0)", self._folder.path)
        elif not {each["class"] for each in now} <= {each["class"] for each in there}:
            what = f"its shards were computed with {_in_words(there)}, this is {_in_words(now)}"
            if not self._allow_mixed:
                raise self._other_run(
                    f"{what}, and the same text would have slightly other vectors in the rest; --allow-mixed continues "
                    "and records it"
                )
            logger.warning("%s: %s", self._folder.path, what)
        self._manifest[ARITHMETIC] = there + [each for each in now if each not in there]
        self._write_json(MANIFEST, earlier | {ARITHMETIC: self._manifest[ARITHMETIC]})
        self._folder.sync()

    def tell(self, texts: float, tokens: int) -> None:
        """Texts were computed, a share of the shards under way."""
        if self._progress is not None:
            self._progress.computed(texts, tokens, texts * self._size_of_text)

    def store(self, encoded: Encoded) -> None:
        """Write the vectors of the oldest shard under way."""
        shard = self._pending.popleft()
        try:
            facts = self._write(shard, encoded)
        except OutputError as error:
            done = sum(entry is not None for entry in self._entries)
            kept = "1 finished shard stays" if done == 1 else f"{done} finished shards stay"
            raise OutputError(f"{error}. {kept} valid; the same command continues from there") from error
        self._entries[shard.index] = self._entry(shard, facts)
        if self._progress is not None:
            self._progress.encoded(len(shard.records), encoded.tokens, shard.position)

    def finish(self) -> EncodeReport:
        """Complete the manifest, or raise what stopped the input."""
        if self._failure is not None:
            raise self._failure
        entries = [entry for entry in self._entries if entry is not None]
        counts = {key: sum(entry[key] for entry in entries) for key in ("texts", "tokens", "truncated", "repaired")}
        skipped = self._reader.skipped if self._reader else BadLines()
        if self._earlier is not None and ARITHMETIC in self._earlier:  # Nothing was computed here.
            self._manifest[ARITHMETIC] = self._earlier[ARITHMETIC]
        elif self._earlier is not None:
            self._manifest.pop(ARITHMETIC, None)
        manifest = self._manifest | {
            "complete": True,
            "input_files": self._reader.files if self._reader else [],
            "input_sha256": self._input.hexdigest(),
            **{key: counts[key] for key in ("texts", "tokens")},
            **{key: {"count": counts[key], "first_ids": self._first_ids(entries, key)} for key in _CHANGES},
            "skipped": {"count": skipped.count, "lines": [vars(line) for line in skipped.lines]},
            "shards": entries,
        }
        if read_manifest(self._folder.path / MANIFEST) != json.loads(json_bytes(manifest)):
            self._write_json(MANIFEST, manifest)
            self._folder.sync()
        if not entries:
            logger.warning("the input has no records: %s holds no vectors", self._folder.path)
        return EncodeReport(**counts, kept=self._kept, shards=len(entries), skipped=skipped.count)

    def _shards(self, records: Iterable[Record]) -> Iterator[_Shard]:
        source, first = iter(records), 0
        for index in itertools.count():
            part = list(itertools.islice(source, self._size))
            if not part:
                return
            digest = hashlib.sha256()
            for record in part:
                for value in (record.id, record.text):
                    data = value.encode("utf-8", "surrogatepass")
                    digest.update(len(data).to_bytes(8, "little"))
                    digest.update(data)
            if (metadata := self._metadata(part, first)) is not None:
                digest.update(content_of(metadata))
            self._input.update(digest.digest())
            position = self._reader.position if self._reader else first + len(part)
            yield _Shard(index, first, part, metadata, digest.hexdigest(), position)
            first += len(part)

    def _metadata(self, records: Sequence[Record], first: int) -> Any:
        """The table of the metadata of a shard; None without."""
        if not any(record.metadata for record in records):
            return None
        places = [(each.file, each.line) if each.file else ("", row) for row, each in enumerate(records, first)]
        table = table_of([record.metadata for record in records], places)
        if table is not None:
            self._columns.add(table, f"records from {first:,} on")
        return table

    def _finished(self, shard: _Shard) -> dict[str, Any] | None:
        """The facts of a shard that an earlier run finished, None when it must be encoded."""
        facts = read_facts(self._folder.path / shard_name(shard.index, ".json"))
        if facts is None:
            return None
        if facts["input_sha256"] != shard.input_sha256:
            start = shard.records[0]
            where = f" ({start.file}, line {start.line})" if start.file else ""
            raise self._other_run(
                f"the input has changed in shard {shard.index}, which starts at record {shard.first}{where}"
            )
        for suffix, key in ((".npy", "vectors_sha256"), (".ids.jsonl", "ids_sha256"), (_METADATA, "metadata_sha256")):
            name = shard_name(shard.index, suffix)
            if key in facts and file_sha256(self._folder.path / name) != facts[key]:
                logger.warning("%s is missing or was changed: its shard is encoded again", self._folder.path / name)
                return None
        return facts

    def _write(self, shard: _Shard, encoded: Encoded) -> dict[str, Any]:
        with np.errstate(over="ignore"):  # Looked for in the next line.
            vectors = encoded.vectors.astype(self._manifest["settings"]["dtype"])
        if not np.isfinite(vectors).all():
            row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            raise NumericalError(f"the vector of {shard.records[row].id!r} is too large for {vectors.dtype}")
        with self._folder.create(shard_name(shard.index, ".npy")) as file:
            np.save(file, np.ascontiguousarray(vectors))  # type: ignore[arg-type]
            vectors_sha256 = file.sha256
        with_texts = self._manifest["settings"]["store_texts"]
        with self._folder.create(shard_name(shard.index, ".ids.jsonl")) as file:
            for record in shard.records:
                file.write(line_of({"id": record.id, "text": record.text} if with_texts else {"id": record.id}))
            ids_sha256 = file.sha256
        facts = {
            "first": shard.first,
            "texts": len(shard.records),
            "tokens": encoded.tokens,
            "truncated": [shard.records[row].id for row in encoded.truncated],
            "repaired": [shard.records[row].id for row in encoded.repaired],
            "input_sha256": shard.input_sha256,
            "vectors_sha256": vectors_sha256,
            "ids_sha256": ids_sha256,
        }
        if shard.metadata is not None:
            with self._folder.create(shard_name(shard.index, _METADATA)) as file:
                write_table(file, shard.metadata.schema, [shard.metadata])
                facts["metadata_sha256"] = file.sha256
        self._write_json(shard_name(shard.index, ".json"), facts)
        self._folder.sync()
        return facts

    def _entry(self, shard: _Shard, facts: dict[str, Any]) -> dict[str, Any]:
        metadata = {"metadata": shard_name(shard.index, _METADATA)} if "metadata_sha256" in facts else {}
        return {
            "vectors": shard_name(shard.index, ".npy"),
            "ids": shard_name(shard.index, ".ids.jsonl"),
            **metadata,
            **{key: facts[key] for key in ("texts", "tokens")},
            **{key: len(facts[key]) for key in _CHANGES},
            **{key: facts[key] for key in ("input_sha256", "vectors_sha256", "metadata_sha256") if key in facts},
        }

    def _first_ids(self, entries: list[dict[str, Any]], change: str) -> list[str]:
        found: list[str] = []
        for index, entry in enumerate(entries):
            if entry[change] and len(found) < _NAMED:
                facts = read_facts(self._folder.path / shard_name(index, ".json")) or {}
                found += facts.get(change, [])
        return found[:_NAMED]

    def _other_run(self, what: str) -> OutputError:
        return OutputError(
            f"{self._folder.path} was made by another run: {what}. Use another folder, or --overwrite to start over."
        )

    def _remove(self) -> None:
        try:
            # The manifest first: shards without one are refused, and never mixed with new ones.
            (self._folder.path / MANIFEST).unlink(missing_ok=True)
            for path in self._folder.path.glob("shard-*.*"):
                if path.name.endswith((".npy", ".ids.jsonl", _METADATA, ".json")):
                    path.unlink()
        except OSError as error:
            raise OutputError(f"cannot remove the old shards in {self._folder.path}: {error.strerror}") from error

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        with self._folder.create(name) as file:
            file.write(json_bytes(content))


MANIFEST: Final = "manifest.json"
_METADATA: Final = ".metadata.arrow"
FORMAT: Final = "bgekit shards"
VERSION: Final = 1
_FACTS: Final = frozenset(
    ("first", "texts", "tokens", "truncated", "repaired", "input_sha256", "vectors_sha256", "ids_sha256")
)


def shard_name(index: int, suffix: str) -> str:
    """Name of a file of a shard: `shard-00012.npy`."""
    return f"shard-{index:05d}{suffix}"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        OutputError: it is missing, damaged, or of another kind or version.
    """
    try:
        content = _read_json(path)
    except ValueError as error:
        raise OutputError(f"{path} is damaged ({error}); --overwrite starts over") from error
    if content is None:
        raise OutputError(f"{path.parent} is not a folder of encoded shards: it has no {path.name}")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise OutputError(f"{path} is not a manifest of encoded shards; use another folder, or --overwrite")
    if content.get("version") != VERSION:
        raise OutputError(f"{path} has version {content.get('version')}; this bgekit knows version {VERSION}")
    return content


def read_facts(path: Path) -> dict[str, Any] | None:
    """Facts about one finished shard, None when it is not finished or its facts are damaged.

    Raises:
        OutputError: the file cannot be read.
    """
    try:
        facts = _read_json(path)
    except ValueError as error:
        logger.warning("%s is damaged (%s): the shard is encoded again", path, error)
        return None
    return facts if isinstance(facts, dict) and _FACTS <= facts.keys() else None


def _read_json(path: Path) -> Any:
    """The content of a file, None when it is not there; a ValueError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def json_bytes(content: dict[str, Any]) -> bytes:
    """JSON for a file; in ASCII, because ids can hold lone surrogates."""
    return (json.dumps(content, indent=1) + "\n").encode()


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


def _in_words(arithmetics: Sequence[Mapping[str, str]]) -> str:
    """Arithmetics as people know them, with what tells them apart."""
    return " and ".join(f"torch {each['torch']} on {each['cpu'] or 'a CPU'} ({each['class']})" for each in arithmetics)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Differences in how the vectors of two manifests are made, in words."""
    found = []
    before, now = _comparable(old), _comparable(new)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            found.append(f"{key} was {before.get(key)!r:.80} and is {now.get(key)!r:.80} now")
    if len(found) > 1:  # A fingerprint tells nobody anything where there is something to tell.
        found = [each for each in found if not each.startswith("model fingerprint ")]
    if found and old["model_card"].get("name") != new["model_card"].get("name"):
        found.insert(0, f"model was {old['model_card'].get('name')} and is {new['model_card'].get('name')} now")
    return found


def _comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    # The name a model goes by does not matter as long as the weights and the card are the same.
    card = {f"model {key}": value for key, value in manifest["model_card"].items() if key not in ("name", "family")}
    rest = {"model fingerprint": manifest["model_fingerprint"], "precision": manifest["precision"]}
    return json.loads(json.dumps(card | rest | manifest["settings"]))


def load_shards(folder: str | os.PathLike[str]) -> ShardSet:
    """The vectors, ids and manifest of a folder that `bge encode` wrote.

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
    return ShardSet(folder)


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
