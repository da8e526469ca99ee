"""Segments of an index: written once, named by index.json in one step, removed when it names them no more.

Whoever writes holds the lock of the folder (`OutputFolder`). Nothing that index.json names is ever written to; what a
change makes lies beside it under names that no state had before, and counts from the moment on that index.json is
replaced. A change that fails or is killed leaves files that no state names, which the next one removes.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..data.metadata import write_table
from ..errors import OutputError
from ..files.atomic import OutputFolder
from ..inference.shards import mapped
from .approximate import CODES, GRAPH, SCALES
from .approximate_build import measured, write_approximate
from .nearest import Floats
from .parts import PARTS, segment_parts
from .storage import (
    FACTS,
    IDS,
    METADATA,
    OFFSETS,
    ROWS,
    VECTORS,
    Facts,
    IndexType,
    Segment,
    Stored,
    StoredFiles,
    columns_of,
    facts_bytes,
    read_facts,
)

#: The id at the beginning of a row of `rows.jsonl`, as JSON.
_ID: Final = re.compile(rb'\{"id": "([^"\\]*(?:\\.[^"\\]*)*)"')
#: What follows it where texts are kept.
_TEXT: Final = b', "text": "'
#: What changes make: folders of segments, files of deleted rows, and structures.
_MADE: Final = re.compile(r"(segment|deleted|index)-(\d{6,})(\.\w+)?$")
#: Folders of parts in the folder of a segment, likewise.
_PART: Final = re.compile(rf"({'|'.join(PARTS)})(-\d{{6,}})?$")
#: Names of structures in the folder of a segment, with the number of a change or without.
_STRUCTURE: Final = re.compile(rf"index(-\d{{6,}})?({'|'.join(map(re.escape, (GRAPH, CODES, SCALES)))})$")
#: Rows from which on a segment that is added gets an approximate structure: fewer are as soon compared one by one.
STRUCTURE_FROM: Final = 20_000


def segment_name(generation: int) -> str:
    """The folder of the segment that the change of a number makes."""
    return f"segment-{generation:06d}"


def next_generation(path: Path) -> int:
    """The number of the next change of an index: no name in its folder has it, nor had one that index.json named."""
    found = [int(match[2]) for each in path.iterdir() if (match := _MADE.match(each.name))]
    with contextlib.suppress(OutputError):  # Where index.json is damaged, its numbers are in the names.
        found.append(read_facts(path).generation)
    return max(found, default=0) + 1


def write_segment(
    output: OutputFolder,
    folder: str,
    stored: Stored,
    *,
    chunked: bool,
    metadata: tuple[Any, Iterable[Any]] | None,
    parts: Mapping[str, Any] | None = None,
) -> Segment:
    """Write rows as a segment, without a structure.

    Args:
        output: The index folder.
        folder: Where in it the segment goes.
        stored: The rows.
        chunked: Whether they are passages of documents.
        metadata: Their schema and tables, as `typed` gives them; None without.
        parts: What index.json says of parts beside the vectors.
    """
    output.create_folder(folder)
    count, prefix = stored.count, f"{folder}/" if folder else ""
    with output.create(prefix + VECTORS) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, stored.dimension)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        for _, block in stored.blocks():
            file.write(np.ascontiguousarray(block, dtype="<f4"))
    offsets, hashes = np.zeros(count + 1, dtype=np.int64), DocumentHashes(chunked)
    with segment_parts(output, folder, parts) as written:
        for name in parts or ():
            if PARTS[name] is not None:
                written.add_values(name, stored.part_blocks(name))
        with output.create(prefix + ROWS) as file:
            for row, line in enumerate(stored.lines(), 1):
                offsets[row] = offsets[row - 1] + file.write(line)
                hashes.add(line)
                written.add(line)
        made = written.write()
    with output.create(prefix + OFFSETS) as file:
        np.save(file, offsets)  # type: ignore[arg-type]
    with output.create(prefix + IDS) as file:
        np.save(file, hashes.sorted())  # type: ignore[arg-type]
    known = None
    if metadata is not None:
        schema, tables = metadata
        with output.create(prefix + METADATA) as file:
            write_table(file, schema, tables)
            known = {"sha256": file.sha256, "columns": columns_of(schema)}
    output.sync(folder)
    return Segment(folder, count, known, parts=made)


def add_parts(
    output: OutputFolder, segment: Segment, stored: Stored, parts: Mapping[str, Any], generation: int
) -> Segment:
    """Write parts that a segment lacks and that are made of its texts: the segment with them.

    Args:
        output: The index folder.
        segment: The segment, whose files are there.
        stored: Its rows.
        parts: What index.json is to say of parts.
        generation: Number of the change.
    """
    there = segment.parts or {}
    lacking = {name: made for name, made in parts.items() if name not in there}
    with segment_parts(output, segment.folder, lacking, generation) as written:
        for line in stored.lines():
            written.add(line)
        return replace(segment, parts=there | (written.write() or {}))


def write_structure(
    output: OutputFolder,
    segment: Segment,
    stored: Stored,
    facts: Facts,
    index_type: IndexType,
    generation: int,
    queries: Floats | None = None,
) -> Segment:
    """Write what a search of this type needs of a segment beside its rows: the segment with it.

    Args:
        output: The index folder.
        segment: The segment, whose files are there.
        stored: Its rows.
        facts: How its vectors were made.
        index_type: The type.
        generation: Number of the change, for the name of a file where there is one already.
        queries: Vectors of queries by which it is measured how wide to search; by default rows of the segment.
    """
    if index_type == "exact" or segment.count == 0:
        return replace(segment, structure=None)
    taken = any(_STRUCTURE.match(each.name) for each in (output.path / segment.folder).iterdir())
    structure = write_approximate(
        output, segment.folder, f"index-{generation:06d}" if taken else "index", stored, index_type,
        cosine=facts.similarity == "cosine", normalized=facts.unit_vectors, recall=facts.recall, queries=queries,
    )  # fmt: skip
    return replace(segment, structure=structure)


def measure_structure(
    path: Path, segment: Segment, stored: Stored, facts: Facts, queries: Floats | None = None
) -> Segment:
    """A segment whose structure stays, with how wide it has to be searched measured again for `facts.recall`."""
    structure = measured(
        path / segment.folder, segment.structure or {}, stored, cosine=facts.similarity == "cosine",
        normalized=facts.unit_vectors, recall=facts.recall, queries=queries,
    )  # fmt: skip
    return replace(segment, structure=structure)


def write_deleted(output: OutputFolder, deleted: npt.NDArray[np.bool_], generation: int) -> dict[str, Any] | None:
    """Write which rows are deleted, [rows]: what index.json says of it; None where none is."""
    if not deleted.any():
        return None
    name = f"deleted-{generation:06d}.npy"
    with output.create(name) as file:
        np.save(file, np.packbits(deleted))  # type: ignore[arg-type]
    return {"file": name, "rows": int(deleted.sum())}


def commit(output: OutputFolder, facts: Facts) -> None:
    """Make what was written the present state of the index, and remove what no state needs any more."""
    output.sync()  # Names of segments, before index.json names them.
    with output.create(FACTS) as file:
        file.write(facts_bytes(facts))
    output.sync()
    remove_unnamed(output.path, facts)


def remove_unnamed(path: Path, facts: Facts) -> None:
    """Remove files of earlier states and of changes that came to nothing.

    Readers of an earlier state have its files open; who is about to open them finds them gone, and reads index.json
    again. What cannot be removed (a system that keeps files that are open) takes space until the next change.
    """
    folders = {segment.folder for segment in facts.segments}
    named = {segment.folder: _files_of(segment) for segment in facts.segments}
    with contextlib.suppress(OSError):
        for each in list(path.iterdir()):
            match = _MADE.match(each.name)
            if match and match[1] == "segment" and each.name not in folders:
                shutil.rmtree(each, ignore_errors=True)
            elif match and match[1] == "deleted" and each.name != (facts.deleted or {}).get("file"):
                _unlink(each)
            elif "" not in folders and each.name in (VECTORS, ROWS, OFFSETS, IDS, METADATA):
                _unlink(each)
        for folder, files in {"": set[str](), **named}.items():
            for each in (path / folder).iterdir():
                if each.name in files:
                    continue
                if _STRUCTURE.match(each.name):
                    _unlink(each)
                elif _PART.match(each.name) and each.is_dir():
                    shutil.rmtree(each, ignore_errors=True)


def _files_of(segment: Segment) -> set[str]:
    """Names of the structure and the parts of a segment in its folder."""
    parts = {each["folder"] for each in (segment.parts or {}).values()}
    return parts | set((segment.structure or {}).get("files", ()))


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def id_of(line: bytes) -> bytes:
    """The id at the beginning of a row, in UTF-8 (with lone surrogates as they are)."""
    found = _ID.match(line)
    if found is None:
        raise OutputError(f"a row of the index is damaged ({line[:40]!r}...); build the index again")
    if b"\\" in found[1]:
        return id_bytes(json.loads(b'"' + found[1] + b'"'))
    return found[1]


def id_bytes(name: str) -> bytes:
    """An id as `id_of` gives it."""
    return name.encode("utf-8", "surrogatepass")


def document_in(name: bytes, chunked: bool) -> bytes:
    """The document of an id: of a passage what stands before its number."""
    return name.rpartition(b"#")[0] if chunked else name


def hashed(document: bytes) -> bytes:
    """Eight bytes that stand for a document's id."""
    return blake2b(document, digest_size=8).digest()


class DocumentHashes:
    """Hashes of the documents of rows, one after another."""

    def __init__(self, chunked: bool) -> None:
        self._chunked, self._found = chunked, bytearray()
        self._last, self._hash = b"", hashed(b"")

    def add(self, line: bytes) -> None:
        """Take the next row."""
        document = document_in(id_of(line), self._chunked)
        if document != self._last:
            self._last, self._hash = document, hashed(document)
        self._found += self._hash

    def sorted(self) -> npt.NDArray[np.uint64]:
        """Hashes in order, and the row of each [2, n]."""
        hashes = np.frombuffer(bytes(self._found), dtype="<u8")
        order = np.argsort(hashes, kind="stable")
        return np.stack([hashes[order], order.astype(np.uint64)])


def document_hashes(stored: StoredFiles, *, chunked: bool) -> npt.NDArray[np.uint64]:
    """Sorted hashes of the documents of a segment, and the row of each [2, n], mapped.

    Of a folder that 0.1.0 wrote, which has none, they are made of its rows.
    """
    if (stored.folder / IDS).exists():
        return mapped(stored.folder / IDS, (2, stored.count))
    hashes = DocumentHashes(chunked)
    for line in stored.lines():
        hashes.add(line)
    return hashes.sorted()


def keep_hashes(output: OutputFolder, segment: Segment, hashes: npt.NDArray[np.uint64]) -> None:
    """Write what `document_hashes` gave, where it is not there."""
    name = f"{segment.folder}/{IDS}" if segment.folder else IDS
    if not (output.path / name).exists():
        with output.create(name) as file:
            np.save(file, hashes)  # type: ignore[arg-type]


def documents_of(lines: Iterable[bytes], *, chunked: bool) -> list[bytes]:
    """The ids of the documents of rows, each once, in order."""
    return list(dict.fromkeys(document_in(id_of(line), chunked) for line in lines))


def text_in(line: bytes) -> bytes | None:
    """The text of a row, as JSON writes it; None without."""
    found = _ID.match(line)
    if found is None or not line.startswith(_TEXT, found.end()):
        return None
    return line[found.end() + len(_TEXT) :]
