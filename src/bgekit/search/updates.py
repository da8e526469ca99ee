"""Documents come and go: an index that follows its input, and takes and loses documents.

A change reads what is there, writes what is new beside it as a segment, marks what is gone, and replaces index.json in
one step (`segments`). Nothing that has a vector is encoded again: a row whose document, text and metadata are the same
stays where it is; one whose text is the same takes the vector along.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..data.formats import STDIN, line_of
from ..data.metadata import Part, cast_table, extended, joined_tables, read_table, table_of, typed, write_table
from ..data.records import Record, RecordReader
from ..errors import ArgumentError, DataError, OutputError
from ..files.atomic import OutputFolder, failing
from ..files.hashing import digest, file_status
from ..files.remote import is_url
from ..inference.ragged import Ragged
from ..inference.shards import (
    SHARD_SIZE,
    Chunks,
    EncodeReport,
    encode_shard,
    encode_to_shards,
    load_shards,
    prepared,
)
from ..models.head_files import DENSE
from .model_check import check_model
from .parts import PARTS, outputs_of
from .segments import (
    STRUCTURE_FROM,
    commit,
    document_hashes,
    document_in,
    documents_of,
    hashed,
    id_bytes,
    id_of,
    keep_hashes,
    next_generation,
    segment_name,
    text_in,
    write_deleted,
    write_segment,
    write_structure,
)
from .storage import (
    FACTS,
    Facts,
    Joined,
    Segment,
    Selected,
    Stored,
    StoredArray,
    StoredFiles,
    StoredShards,
    columns_of,
    open_stored,
    read_deleted,
    read_facts,
    segments_of,
)
from .where import Where

if TYPE_CHECKING:
    from ..display.terminal import EncodeProgress
    from ..inference.model import Embedder

logger = logging.getLogger(__name__)
#: What folders of encodes under way are called: those of a build, and those of a change with what was read before.
BUILDING: Final = "building"
_CHANGING: Final = f"{BUILDING}-update"
#: Records read at once, and rows whose metadata are kept in memory.
_BLOCK: Final = 1024
#: Bytes of new rows that are kept in memory.
_LINES_IN_MEMORY: Final = 1 << 22
#: Segments of about one size, a factor of this apart, that are kept beside each other: one more, and they are merged.
_FEW: Final = 8
#: Ids that messages name.
_NAMED: Final = 5
_NONE: Final = -1


@dataclass(frozen=True)
class UpdateReport:
    """What a change did to an index.

    Attributes:
        added: Rows that are new or were replaced: texts, or passages of documents.
        encoded: Those of them that were encoded; the others took the vector of an equal text along.
        removed: Rows that are gone, those that were replaced included.
        rows: Rows of the index now.
        bytes_written: Bytes of the files that were made.
        encoding: Report of the encode; None where nothing had to be encoded.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import Record, read_records
        >>> from bgekit.search import UpdateReport, index_records
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> index, _ = index_records(model, read_records("corpus.jsonl"), "index")
        >>> report = index.add(model, [Record("d7", "A river of milk.")])
        >>> isinstance(report, UpdateReport), report.added, report.encoded, report.rows
        (True, 1, 1, 7)
    """

    added: int
    encoded: int
    removed: int
    rows: int
    bytes_written: int
    encoding: EncodeReport | None = None


@dataclass(frozen=True)
class Removal:
    """Documents that are removed from an index, or would be.

    Attributes:
        documents: How many.
        rows: Their rows: texts, or passages.
        missing: How many ids were given that are not there.
        first_ids: The first of the documents, some at most.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.search import Removal, index_records
        >>> index, _ = index_records(FlagModel("BAAI/bge-small-en-v1.5"), read_records("corpus.jsonl"), "index")
        >>> index.remove(["d1", "d2"], dry_run=True)
        Removal(documents=2, rows=2, missing=0, first_ids=('d1', 'd2'))
    """

    documents: int
    rows: int
    missing: int
    first_ids: tuple[str, ...]


def add_records(
    folder: Path,
    model: Embedder,
    records: Iterable[Record],
    *,
    batch_size: int | None = None,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[], EncodeProgress] | None = None,
) -> UpdateReport:
    """Add documents to an index; see `SearchIndex.add`."""
    with _Change(folder) as change:
        facts = change.facts
        check_model(model, facts, change.stored, adding=True)
        if model.fingerprint != facts.model_fingerprint:
            logger.warning(
                "the index was made in %s and its new texts are encoded in %s: their vectors differ in the last digits",
                facts.precision, model.precision,
            )  # fmt: skip
        read = _read_as_kept(records, facts)
        size, overlap = facts.settings.get("chunk_size"), facts.settings.get("chunk_overlap")
        own = {name: facts.settings[name] for name in ("kind", "max_length", "dtype", "store_texts")}
        own["outputs"] = outputs_of(facts.parts or ())
        texts, settings = prepared(
            model, read, batch_size=batch_size, shard_size=shard_size,
            chunks=None if size is None else Chunks(size, overlap), **own,
        )  # fmt: skip
        kept = list(records.kept) if isinstance(records, RecordReader) else []
        options = (facts.input or {}).get("options")
        if kept:
            facts = replace(facts, settings=facts.settings | {"keep": kept})
            options = None if options is None else options | {"keep": kept}
        # What the index holds now is no more what its files hold.
        facts = replace(facts, input=None if options is None else {"options": options})
        with change.read(texts, _key(model, facts, records), replacing=True) as found:
            found.settle_metadata(all_of_it=False)
            if not found.added and not found.gone.any():
                return UpdateReport(0, 0, 0, change.facts.count, 0)
            report = found.encode(model, settings, records, progress)
            return change.write(found, facts, report)


def synchronise(
    folder: Path,
    model: Embedder,
    records: Iterable[Record],
    source: dict[str, Any] | None,
    *,
    settings: dict[str, Any],
    chunks: Chunks | None,
    progress: Callable[[], EncodeProgress] | None,
) -> EncodeReport | None:
    """Make an index hold exactly the texts of some records.

    Args:
        folder: The index.
        model: What encodes.
        records: The documents.
        source: What the index is to say of its input; None where it cannot say anything.
        settings: Arguments of `encode_to_shards`.
        chunks: How documents are split, if they are.
        progress: As in `index_records`.

    Returns:
        What was read and encoded; None where vectors of the index cannot be used, so that it must be built anew.
    """
    with _Change(folder) as change:
        texts, made = prepared(model, records, chunks=chunks, **settings)
        if not _comparable(model, made, change.facts):
            return None
        facts = replace(
            change.facts, model_card=model.card.to_dict(), settings=made, input=source,
        )  # fmt: skip
        with change.read(texts, _key(model, facts, records), replacing=False) as found:
            found.settle_metadata(all_of_it=True)
            report = found.encode(model, made, records, progress)
            change.write(found, facts, report)
            return found.report(records, report)


def remove_documents(
    folder: Path,
    ids: Iterable[str] | None = None,
    *,
    where: str | None = None,
    ignore_missing: bool = False,
    dry_run: bool = False,
) -> Removal:
    """Remove documents from an index; see `SearchIndex.remove`."""
    if (ids is None) == (where is None):
        raise ArgumentError("give the ids of what is to be removed, or a condition (where=...): one of the two")
    if isinstance(ids, str):
        raise ArgumentError(f"ids is a list of ids, not the string {ids!r}")
    with _Change(folder) as change:
        rows, missing = change.rows_of_ids(list(dict.fromkeys(ids or ()))) if where is None else (None, [])
        if missing and not ignore_missing:
            more = len(missing) - _NAMED
            named = ", ".join(map(repr, missing[:_NAMED])) + (f" and {more:,} more" if more > 0 else "")
            raise DataError(
                f"{folder} has no documents of {len(missing):,} of the ids: {named}. Nothing was removed; "
                "ignore_missing=True removes the others"
            )
        if rows is None:
            rows = change.rows_where(str(where))
        names = documents_of((change.stored.line(int(row)) for row in rows), chunked=change.facts.chunked)
        first = tuple(name.decode("utf-8", "surrogatepass") for name in names[:_NAMED])
        if len(rows) and not dry_run:
            change.remove(rows)
        return Removal(len(names), len(rows), len(missing), first)


def compact(folder: Path) -> UpdateReport:
    """Write an index as one segment without deleted rows; see `SearchIndex.compact`."""
    with _Change(folder) as change:
        return change.compact()


def _comparable(model: Embedder, settings: dict[str, Any], facts: Facts) -> bool:
    """Whether a text has the vector that the index has of it."""
    names = ("kind", "max_length", "dtype", "dimension", "store_texts")
    heads = {PARTS[name]: part["head"] for name, part in (facts.parts or {}).items() if "head" in part}
    return (
        model.fingerprint == facts.model_fingerprint
        and all(settings.get(name) == facts.settings.get(name) for name in names)
        and heads == settings.get("heads", {})
    )


#: Options of reading that cannot be one thing for some documents of an index and another for others.
_READING: Final = ("text_field", "title_field", "id_field", "format", "encoding", "quoting", "delimiter", "records")


def _read_as_kept(records: Iterable[Record], facts: Facts) -> Iterable[Record]:
    """Records with the columns that the index keeps, numbered so that they are no others' of it.

    Raises:
        ArgumentError: they are read otherwise than the index was.
    """
    if not isinstance(records, RecordReader):
        return records
    given = records.settings
    for name in _READING:
        before, now = facts.settings.get(name), given.get(name)
        if None not in (before, now) and before != now:
            raise ArgumentError(
                f"the index was read with {name}={before!r} and what is added with {name}={now!r}: leave it out, or "
                "build another index"
            )
    records.name_rows()
    records.keep(records.kept, where_there=facts.settings.get("keep", ()))
    return _with_ids(records) if STDIN in records.files else records


def _with_ids(records: Iterable[Record]) -> Iterator[Record]:
    """Records, of standard input only those with ids: what others would replace nobody can know."""
    for record in records:
        if record.file == STDIN and record.id == f"{STDIN}#{record.line - 1}":
            raise DataError(
                f"standard input, line {record.line:,}: the record has no id, so that it cannot be told which document "
                "it replaces: write it with an id, or to a file, whose name then stands for it"
            )
        yield record


def _key(model: Embedder, facts: Facts, records: Iterable[Record]) -> str | None:
    """What an interrupted change is known by: its input, and the state of the index that it is compared with.

    None where an input cannot be told from another.
    """
    if not isinstance(records, RecordReader) or records.size is None:
        return None
    files = list[Any]()
    for file in records.files:
        status = file_status(file) if is_url(file) else [os.stat(file).st_size, os.stat(file).st_mtime_ns]
        if status is None:
            return None
        files.append([file, *status])
    return digest(json.dumps([model.fingerprint, facts.settings, files, facts.generation], sort_keys=True))[:12]


class _Change:
    """A change of an index under way, which holds the lock of its folder; a context manager.

    Attributes:
        facts: The state that it starts from.
        stored: Its rows.
        deleted: Whether each is deleted.
        generation: Number of the change.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Change:
        if not (self.path / FACTS).exists():
            raise OutputError(f"{self.path} is not an index: it has no {FACTS}")
        with contextlib.ExitStack() as stack:
            self.output = stack.enter_context(OutputFolder(self.path))
            self.facts = read_facts(self.path)  # Under the lock: nobody changes it now.
            self.stored = open_stored(self.path, self.facts)
            marks = read_deleted(self.path, self.facts)
            self._before = np.zeros(self.facts.rows, np.bool_) if marks is None else marks
            self.deleted = self._before.copy()
            self.generation = next_generation(self.path)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def parts(self) -> list[StoredFiles]:
        """The rows of each segment."""
        return segments_of(self.stored)

    @cached_property
    def hashes(self) -> list[npt.NDArray[np.uint64]]:
        """Hashes of the documents of each segment."""
        found = []
        for segment, part in zip(self.facts.segments, self.parts, strict=True):
            found.append(document_hashes(part, chunked=self.facts.chunked))
            keep_hashes(self.output, segment, found[-1])
        return found

    @property
    def firsts(self) -> list[int]:
        """The first row of each segment, and the number of all."""
        return [0, *itertools.accumulate(segment.count for segment in self.facts.segments)]

    def read(
        self, texts: Iterable[Record], key: str | None, *, replacing: bool
    ) -> contextlib.AbstractContextManager[_Found]:
        """Compare texts with what the index has; see `_Found`."""
        return _Found.read(self, texts, key, replacing=replacing)

    def rows_of(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Rows that are not deleted and whose documents' ids have one of these hashes, in order."""
        found = []
        for own, first in zip(self.hashes, self.firsts, strict=False):
            begin = np.searchsorted(own[0], hashes, side="left")
            end = np.searchsorted(own[0], hashes, side="right")
            found += [
                own[1, low:high].astype(np.int64) + first for low, high in zip(begin, end, strict=True) if low < high
            ]
        rows = np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
        return rows[~self.deleted[rows]]

    def rows_of_ids(self, ids: Sequence[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Rows of documents, in order, and the ids that are not there."""
        wanted = {id_bytes(name) for name in ids}
        candidates = self.rows_of(_hashes(sorted(wanted)))
        rows, there = [], set()
        for row in candidates:
            document = document_in(id_of(self.stored.line(int(row))), self.facts.chunked)
            if document in wanted:  # Not only of the same hash.
                rows.append(int(row))
                there.add(document)
        return np.asarray(rows, np.int64), [name for name in ids if id_bytes(name) not in there]

    def rows_where(self, where: str) -> npt.NDArray[np.int64]:
        """Rows that are not deleted and meet a condition, in order."""
        return np.flatnonzero(Where(where).rows_in(self.path, self.stored.metadata) & ~self.deleted)

    def remove(self, rows: npt.NDArray[np.int64]) -> None:
        """Mark rows as deleted."""
        options = (self.facts.input or {}).get("options")
        facts = replace(self.facts, input=None if options is None else {"options": options})
        self.deleted[rows] = True
        self._finish(facts, keep=len(self.facts.segments), new=None)

    def compact(self) -> UpdateReport:
        """Write all that is not deleted as one segment."""
        before = self.facts.rows
        (only, *others) = self.facts.segments
        whole = not others and not self.deleted.any()
        if whole and (only.structure is not None or self.facts.index_type == "exact" or not before):
            return UpdateReport(0, 0, 0, len(self.deleted), 0)
        removed = int(self.deleted.sum())
        written = self._finish(self.facts, keep=0, new=None)
        return UpdateReport(0, 0, removed, before - removed, written)

    def write(self, found: _Found, facts: Facts, encoding: EncodeReport | None) -> UpdateReport:
        """Make what was found the new state."""
        removed = int(np.count_nonzero(found.gone & ~self.deleted))
        self.deleted |= found.gone
        new = found.rows()
        live = [int(np.count_nonzero(~self.deleted[low:high])) for low, high in itertools.pairwise(self.firsts)]
        keep = len(live) - (_merged(live, new.count) if new is not None else 0)
        written = self._finish(facts, keep=keep, new=new)
        rows = sum(live) + (0 if new is None else new.count)
        return UpdateReport(found.added, found.encoded, removed, rows, written, encoding)

    def _finish(self, facts: Facts, *, keep: int, new: Stored | None) -> int:
        """Make the first segments, the others merged, and new rows the state of the index; returns bytes written.

        Args:
            facts: What index.json is to say apart from segments.
            keep: Segments that stay; of later ones the rows that are not deleted join the new ones.
            new: New rows.
        """
        segments, marks, merged, schemas = list[Segment](), list[npt.NDArray[np.bool_]](), list[Stored](), list[Any]()
        for at, (segment, part, first) in enumerate(zip(self.facts.segments, self.parts, self.firsts, strict=False)):
            own = self.deleted[first : first + segment.count]
            if own.all():
                continue
            if at < keep:
                segments.append(segment)
                marks.append(own)
                schemas.append(None if part.metadata is None else part.metadata.schema)
            else:
                merged.append(Selected(part, np.flatnonzero(~own)) if own.any() else part)
        merged += [] if new is None else [new]
        written = 0
        if merged or not segments:
            segment, schema = self._write_segment(facts, Joined(merged, facts.dimension), alone=not segments)
            segments.append(segment)
            schemas.append(schema)
            marks.append(np.zeros(segment.count, np.bool_))
            files = (self.path / segment.folder).rglob("*")
            written = sum(file.stat().st_size for file in files if file.is_file())
        marked = np.concatenate(marks)
        deleted = self.facts.deleted
        if tuple(segments) != self.facts.segments or not np.array_equal(marked, self._before):
            deleted = write_deleted(self.output, marked, self.generation)
            written += 0 if deleted is None else (self.path / deleted["file"]).stat().st_size
        count = sum(segment.count for segment in segments)
        facts = replace(
            facts, count=count - (0 if deleted is None else deleted["rows"]), generation=self.generation,
            segments=tuple(segments), deleted=deleted, metadata=_metadata_of(segments, schemas),
        )  # fmt: skip
        commit(self.output, facts)
        # Of this change, and of those that were interrupted and would now be others.
        remove_building(self.path, f"{_CHANGING}-*")
        return written + (self.path / FACTS).stat().st_size

    def _write_segment(self, facts: Facts, rows: Stored, *, alone: bool) -> tuple[Segment, Any]:
        """Write rows as a segment: it, and the schema of its metadata."""
        name, metadata = segment_name(self.generation), typed(rows.metadata_parts)
        segment = write_segment(self.output, name, rows, chunked=facts.chunked, metadata=metadata, parts=facts.parts)
        if facts.index_type != "exact" and (alone or segment.count >= STRUCTURE_FROM):
            stored = open_stored(self.path, replace(facts, segments=(segment,)))
            segment = write_structure(self.output, segment, stored, facts, facts.index_type, self.generation)
        return segment, None if metadata is None else metadata[0]


def _metadata_of(segments: Sequence[Segment], schemas: Sequence[Any]) -> dict[str, Any] | None:
    """What index.json says of the columns of all segments, by the schema of each, None for one without columns."""
    tables = [
        (schema.empty_table(), segment.folder, 0)
        for segment, schema in zip(segments, schemas, strict=True)
        if schema is not None
    ]
    whole = typed(lambda: iter(tables))
    if whole is None:
        return None
    only = segments[0].metadata if len(segments) == 1 else None
    return only or {"columns": columns_of(whole[0])}


def _merged(live: Sequence[int], added: int) -> int:
    """How many of the last segments are written again together with what is added.

    Segments are of the same size if their rows have the same power of 8. When there would be 8 of a size at the end of
    the index, they and smaller ones between them become one. So there are never more than 7 of a size, and a row is
    written again once for each factor of 8 by which the index has grown since it was added.

    Args:
        live: Rows of each segment that are not deleted.
        added: Rows that are added.
    """
    sizes = [_size_of(rows) for rows in (*live, added)]
    for size in range(max(sizes) + 1):
        last = list(itertools.takewhile(lambda each: each <= size, reversed(sizes)))  # noqa: B023
        if last.count(size) >= _FEW:
            return len(last) - 1
    return 0


def _size_of(rows: int) -> int:
    return (max(rows, 1).bit_length() - 1) // 3


def _hashes(documents: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(map(hashed, documents)), dtype="<u8")


class _Texts:
    """Rows of an index, looked up by their lines and by their texts."""

    def __init__(self, stored: Stored, rows: npt.NDArray[np.int64]) -> None:
        self._stored = stored
        lines, texts = bytearray(), bytearray()
        for line in Selected(stored, rows).lines():
            lines += blake2b(line, digest_size=8).digest()
            texts += blake2b(text_in(line) or b"", digest_size=8).digest()
        self._lines, self._texts = _Sorted(lines, rows), _Sorted(texts, rows)

    def find(self, lines: Sequence[bytes], kept: npt.NDArray[np.bool_]) -> tuple[list[int], list[int]]:
        """For each line a row with the same id and text, and one with the same text; -1 where there is none.

        Args:
            lines: The lines, with texts.
            kept: Marks rows whose line was found; none of them is found twice.
        """
        same, alike = [_NONE] * len(lines), [_NONE] * len(lines)
        with_texts = self._stored.count > 0 and text_in(self._stored.line(0)) is not None
        if not with_texts:  # Equal ids say nothing.
            return same, alike
        for at, row, line in self._candidates(self._lines, lines):
            if same[at] == _NONE and not kept[row] and line == lines[at]:
                kept[row] = True
                same[at] = alike[at] = row
        rest = [at for at, row in enumerate(same) if row == _NONE]
        texts = [text_in(lines[at]) for at in rest]
        for at, row, line in self._candidates(self._texts, [text or b"" for text in texts], most=_NAMED):
            # Of equal texts any will do; a hash that other texts share is as good as never seen.
            if text_in(line) == texts[at]:
                alike[rest[at]] = row
        return same, alike

    def _candidates(
        self, rows: _Sorted, contents: Sequence[bytes], most: int | None = None
    ) -> Iterator[tuple[int, int, bytes]]:
        """Places of contents with the rows that may have each, and the lines of these."""
        places, found = list[int](), list[int]()
        for at, candidates in rows.found(contents):
            for row in itertools.islice(candidates, most):
                places.append(at)
                found.append(row)
        yield from zip(places, found, self._stored.lines_at(np.asarray(found, np.int64)), strict=True)


class _Sorted:
    """Rows by hashes of eight bytes."""

    def __init__(self, hashes: bytearray, rows: npt.NDArray[np.int64]) -> None:
        unsorted = np.frombuffer(bytes(hashes), dtype="<u8")
        order = np.argsort(unsorted, kind="stable")
        self._hashes, self._rows = unsorted[order], rows[order]

    def found(self, contents: Sequence[bytes]) -> Iterator[tuple[int, Iterator[int]]]:
        """Those of some contents whose hashes there are, by their places, and the rows of each hash, in order."""
        if not len(self._hashes) or not contents:
            return
        hashes = b"".join(blake2b(each, digest_size=8).digest() for each in contents)
        wanted = np.frombuffer(hashes, dtype="<u8")
        first = np.searchsorted(self._hashes, wanted)
        there = self._hashes[np.minimum(first, len(self._hashes) - 1)] == wanted
        for at in np.flatnonzero(there).tolist():
            yield at, self._from(int(first[at]))

    def _from(self, first: int) -> Iterator[int]:
        for at in range(first, len(self._hashes)):
            if self._hashes[at] != self._hashes[first]:
                return
            yield int(self._rows[at])


class _Found:
    """What was read of an input, compared with an index.

    Attributes:
        kept: Marks rows of the index that the input has as they are.
        gone: Marks rows of the index that go.
        count: Texts that were read.
        added: Those of them that become new rows.
        encoded: Those of these whose text the index had not.
    """

    def __init__(self, change: _Change, folder: Path, key: str | None, lines: IO[bytes]) -> None:
        self._change, self._folder, self._key = change, folder, key
        self.kept = np.zeros(change.facts.rows, np.bool_)
        self.gone = np.zeros(change.facts.rows, np.bool_)
        #: The metadata of each block that has any; None where a file has it.
        self.count, self._tables = 0, dict[int, Any]()
        #: Of each text the row that is the same, one with the same text, and whether its line is among the new ones, by
        #: blocks.
        self._same, self._alike, self._is_new = list[Any](), list[Any](), list[Any]()
        self._new_lines = lines
        self._table: Any = None
        self._vectors: Stored | None = None

    @classmethod
    @contextlib.contextmanager
    def read(cls, change: _Change, texts: Iterable[Record], key: str | None, *, replacing: bool) -> Iterator[_Found]:
        """Read texts and look each up in the index.

        Args:
            change: The change.
            texts: What is encoded: passages where documents are split.
            key: What an interrupted change with the same input is known by.
            replacing: Whether documents replace those of the same id, and others stay; otherwise the index is to have
                these texts alone.
        """
        building = f"{_CHANGING}-{key or 'records'}"
        folder = change.path / f"{building}-read"
        kept = None if key is None else building
        remove_building(change.path, f"{_CHANGING}-*", but=kept)
        with contextlib.ExitStack() as stack:
            stack.callback(remove_building, change.path, f"{_CHANGING}-*", but=kept)
            # What is read is of use to this change alone: it need not be on the disk.
            lines = stack.enter_context(tempfile.SpooledTemporaryFile(_LINES_IN_MEMORY, dir=str(change.path)))
            found = cls(change, folder, key, lines)
            found._read(texts, replacing)
            yield found

    def _read(self, texts: Iterable[Record], replacing: bool) -> None:
        change, source = self._change, iter(texts)
        chunked = change.facts.chunked
        table = None if replacing else _Texts(change.stored, np.flatnonzero(~change.deleted))
        replaced = np.zeros(change.facts.rows, np.bool_)
        while block := list(itertools.islice(source, _BLOCK)):
            self._keep_metadata(block)
            lines = [line_of({"id": each.id, "text": each.text}) for each in block]
            looked_up = table
            if looked_up is None:
                rows = self._rows_of({document_in(id_bytes(each.id), chunked) for each in block})
                replaced[rows] = True
                looked_up = _Texts(change.stored, rows)
            same, alike = looked_up.find(lines, self.kept)
            with failing(f"write to the folder {change.path}"):
                self._new_lines.write(b"".join(line for line, row in zip(lines, same, strict=True) if row == _NONE))
            self._same.append(np.asarray(same, np.int64))
            self._alike.append(np.asarray(alike, np.int64))
            self._is_new.append(self._same[-1] == _NONE)
            self.count += len(block)
        self._candidates = replaced if replacing else ~change.deleted

    def _rows_of(self, documents: set[bytes]) -> npt.NDArray[np.int64]:
        """Rows of documents, in order."""
        rows = self._change.rows_of(_hashes(sorted(documents)))
        stored, chunked = self._change.stored, self._change.facts.chunked
        own = [document_in(id_of(stored.line(int(row))), chunked) in documents for row in rows]
        return rows[np.asarray(own, np.bool_)]

    def _keep_metadata(self, block: Sequence[Record]) -> None:
        if not any(record.metadata for record in block):
            return
        places = [(each.file, each.line) if each.file else ("", row) for row, each in enumerate(block, self.count)]
        table = table_of([record.metadata for record in block], places)
        if table is not None:
            number = len(self._same)
            self._tables[number] = table
            if number:
                self._write_table(number, table.schema, [table])
                self._tables[number] = None

    def _parts(self) -> Iterator[Part]:
        for number, block in enumerate(self._same):
            if number in self._tables:
                table = self._tables[number]
                yield self._read_table(number, len(block)) if table is None else table, "what is read", len(block)
            else:
                yield None, "", len(block)

    def _write_table(self, name: object, schema: Any, tables: Iterable[Any]) -> None:
        self._change.output.create_folder(self._folder.name)
        with self._change.output.create(f"{self._folder.name}/{name}.arrow") as file:
            write_table(file, schema, tables)

    def _read_table(self, name: object, rows: int) -> Any:
        return read_table(self._folder / f"{name}.arrow", rows)

    def settle_metadata(self, *, all_of_it: bool) -> None:
        """Type the metadata of all texts, and see which rows of the index have other metadata than theirs.

        Args:
            all_of_it: Whether the index is to have the columns of these texts alone.

        Raises:
            DataError: a column has another type than in the index.
        """
        stored = self._change.stored.metadata
        before = None if stored is None else stored.schema
        whole = typed(self._parts) if all_of_it else extended(before, self._parts, str(self._change.path))
        stays = True
        if whole is not None and self.count <= _BLOCK:
            self._table = joined_tables(*whole)
        elif whole is not None:
            self._write_table("typed", *whole)
            self._table = self._read_table("typed", self.count)
        if all_of_it:  # Where columns come or go, or change their type, all rows are written again, in order.
            now = None if self._table is None else self._table.schema
            stays = columns_of(now or ()) == columns_of(before or ())
            _tell_of_types(before, now, self._change.path)
        if self._table is not None or not stays:
            self._compare(stored, stays)
        self.gone = self._candidates & ~self.kept
        self.added = sum(int(np.count_nonzero(block == _NONE)) for block in self._same)
        self.encoded = sum(int(np.count_nonzero(block == _NONE)) for block in self._alike)

    def _compare(self, stored: Any, stays: bool) -> None:
        first = 0
        for same in self._same:
            at = np.flatnonzero(same != _NONE)
            if len(at):
                other = at
                if stays:
                    now = self._table.slice(first, len(same)).take(at)
                    old = None if stored is None else stored.take(same[at])
                    other = at[_different(cast_table(old, len(at), now.schema), now)]
                self.kept[same[other]] = False
                same[other] = _NONE
            first += len(same)

    def encode(
        self,
        model: Embedder,
        settings: dict[str, Any],
        records: Iterable[Record],
        progress: Callable[[], EncodeProgress] | None,
    ) -> EncodeReport | None:
        """Encode the texts that the index has not; None where it has all."""
        if not self.encoded:
            return None
        outputs = settings.get("outputs", DENSE)
        given = {name: settings[name] for name in ("kind", "dtype", "max_length", "batch_size")}
        with contextlib.nullcontext() if progress is None else progress() as shown:
            bar: Any = None
            if shown is not None:
                size = records.size if isinstance(records, RecordReader) else None
                bar = _Scaled(shown, 1.0 if size is None else size / self.encoded)
            # Of a change of one shard, whoever interrupts it leaves nothing to go on from.
            if self.encoded <= settings["shard_size"] and set(outputs) == set(DENSE):
                vectors, report = encode_shard(model, list(self._unknown()), progress=bar, **given)
                self._vectors = StoredArray(vectors)
                return report
            building = self._change.path / f"{_CHANGING}-{self._key or 'records'}"
            report = encode_to_shards(
                model, self._unknown(), building, shard_size=settings["shard_size"], outputs=outputs,
                overwrite=self._key is None, progress=bar, **given,
            )  # fmt: skip
        self._vectors = StoredShards(load_shards(building))
        return report

    def _lines(self) -> Iterator[tuple[bytes, int]]:
        """Lines of the new rows, and the row that each takes its vector from, -1 for those that are encoded.

        One caller at a time reads them.
        """
        self._new_lines.seek(0)
        for same, alike, is_new in zip(self._same, self._alike, self._is_new, strict=True):
            for at in range(len(same)):
                if is_new[at]:
                    yield self._new_lines.readline(), int(alike[at])
                elif same[at] == _NONE:
                    yield self._change.stored.line(int(alike[at])), int(alike[at])

    def _lines_of(self, *, reused: bool) -> Callable[[], Iterator[bytes]]:
        """What gives the lines of the new rows that are encoded, or of the others, as the index keeps them."""
        with_texts = self._change.facts.settings["store_texts"]

        def lines() -> Iterator[bytes]:
            for line, row in self._lines():
                if (row != _NONE) == reused:
                    yield line if with_texts else line_of({"id": json.loads(line)["id"]})

        return lines

    def _unknown(self) -> Iterator[Record]:
        for line, row in self._lines():
            if row == _NONE:
                fields = json.loads(line)
                yield Record(fields["id"], fields["text"])

    def rows(self) -> Stored | None:
        """The new rows: first those that were encoded, then those with vectors of the index; None without any."""
        parts: list[Stored] = []
        if self._vectors is not None:
            parts.append(_NewRows(self._vectors, self._lines_of(reused=False), self._tables_of(reused=False)))
        sources = [
            alike[(same == _NONE) & (alike != _NONE)] for same, alike in zip(self._same, self._alike, strict=True)
        ]
        rows = np.concatenate([np.empty(0, np.int64), *sources])
        if len(rows):
            source = Selected(self._change.stored, rows)
            parts.append(_NewRows(source, self._lines_of(reused=True), self._tables_of(reused=True)))
        return Joined(parts, self._change.facts.dimension) if parts else None

    def _tables_of(self, *, reused: bool) -> Callable[[], Iterator[Part]]:
        """What gives the metadata of the new rows that are encoded, or of the others."""

        def parts() -> Iterator[Part]:
            first = 0
            for same, alike in zip(self._same, self._alike, strict=True):
                at = np.flatnonzero((same == _NONE) & ((alike != _NONE) == reused))
                if len(at):
                    table = None if self._table is None else self._table.slice(first, len(same)).take(at)
                    yield table, "what is added", len(at)
                first += len(same)

        return parts

    def report(self, records: Iterable[Record], encoding: EncodeReport | None) -> EncodeReport:
        """What was read, as a whole build reports it."""
        skipped = records.skipped.count if isinstance(records, RecordReader) else 0
        if encoding is None:
            return EncodeReport(self.count, self.count, 0, 0, 0, 0, skipped)
        return replace(encoding, texts=self.count, kept=self.count - encoding.texts + encoding.kept, skipped=skipped)


def _tell_of_types(before: Any, now: Any, path: Path) -> None:
    """Say which columns have another type now."""
    there = columns_of(now or ())
    other = [
        f"{name} was {type_} and is {there[name]} now"
        for name, type_ in columns_of(before or ()).items()
        if there.get(name, type_) != type_
    ]
    if other:
        logger.warning("%s: the column %s", path, ", ".join(other))


def _different(one: Any, other: Any) -> npt.NDArray[np.bool_]:
    """Whether each row of two tables of the same columns differs."""
    found = np.zeros(len(one), np.bool_)
    for name in one.column_names:
        if not one.column(name).equals(other.column(name)):
            pairs = zip(one.column(name).to_pylist(), other.column(name).to_pylist(), strict=True)
            found |= np.fromiter((before != now for before, now in pairs), np.bool_, len(found))
    return found


class _NewRows(Stored):
    """Rows whose vectors are stored elsewhere, with lines and metadata of their own."""

    def __init__(
        self, vectors: Stored, lines: Callable[[], Iterator[bytes]], metadata: Callable[[], Iterator[Part]]
    ) -> None:
        self._source, self._own_lines, self._parts = vectors, lines, metadata
        self.count, self.dimension = vectors.count, vectors.dimension

    @property
    def metadata(self) -> Any:
        """Not as one table: they are written part by part."""
        raise NotImplementedError

    def metadata_parts(self) -> Iterator[Part]:
        """Their own."""
        return self._parts()

    def blocks(self, rows: int = _BLOCK) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """As they are stored."""
        return self._source.blocks(rows)

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """As they are stored."""
        return self._source.vectors(rows)

    def part_blocks(self, name: str) -> Iterator[Ragged]:
        """As they are stored."""
        return self._source.part_blocks(name)

    def lines(self) -> Iterator[bytes]:
        """Their own."""
        return self._own_lines()

    def line(self, row: int) -> bytes:
        """From the beginning: they are written in order."""
        return next(itertools.islice(self.lines(), row, None))


class _Scaled:
    """A bar over the bytes of an input that is told the numbers of texts of a part of it."""

    def __init__(self, bar: EncodeProgress, size: float) -> None:
        self._bar, self._size = bar, size

    def kept(self, texts: int, position: int) -> None:
        """As the bar's."""
        self._bar.kept(texts, round(position * self._size))

    def computed(self, texts: float, tokens: int, size: float) -> None:
        """As the bar's."""
        self._bar.computed(texts, tokens, size * self._size)

    def encoded(self, texts: int, tokens: int, position: int) -> None:
        """As the bar's."""
        self._bar.encoded(texts, tokens, round(position * self._size))


def remove_building(path: Path, called: str = f"{BUILDING}-*", *, but: str | None = None) -> None:
    """Remove the shards of encodes that ended, or that were begun with another input.

    Args:
        path: The index folder.
        called: Pattern of the names of what is removed.
        but: Name of what stays.
    """
    for old in path.glob(called):
        if old.name != but:
            shutil.rmtree(old, ignore_errors=True)  # Left behind it takes space, no more.
