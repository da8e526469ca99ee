"""Files or encoded shards -> an index folder. Memory does not grow with the corpus; an interrupted build continues.

While texts are encoded, the folder has their shards in `building-*`, which is removed at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..data.metadata import ALL, Keep, checked_keep, typed
from ..data.records import Record, RecordReader
from ..errors import ArgumentError, OutputError, require_extra
from ..files.atomic import OutputFolder
from ..files.hashing import digest, file_sha256, file_status
from ..files.remote import is_url, refuse_url
from ..inference.shard_stores import MANIFEST
from ..inference.shards import SHARD_SIZE, Chunks, EncodeReport, ShardSet, encode_to_shards, load_shards
from .index import SearchIndex
from .nearest import Floats
from .parts import check_heads, check_parts, facts_of_parts, outputs_of
from .segments import (
    STRUCTURE_FROM,
    add_parts,
    commit,
    measure_structure,
    next_generation,
    segment_name,
    write_segment,
    write_structure,
)
from .storage import (
    FACTS,
    INDEX_TYPES,
    Auto,
    Facts,
    IndexType,
    StoredFiles,
    StoredShards,
    check_similarity,
    facts_of_shards,
    read_facts,
)
from .tuning import check_recall
from .updates import BUILDING, remove_building, synchronise

if TYPE_CHECKING:
    from ..display.terminal import EncodeProgress
    from ..inference.model import Embedder

logger = logging.getLogger(__name__)
#: Bytes of vectors up to which `auto` takes an exact index.
_SMALL: Final = 256 << 20


def index_records(
    model: Embedder,
    records: Iterable[Record],
    folder: str | os.PathLike[str],
    *,
    index_type: IndexType | Auto | None = None,
    recall: float | None = None,
    queries: npt.ArrayLike | None = None,
    chunks: Chunks | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    shard_size: int = SHARD_SIZE,
    keep: Keep | None = None,
    parts: Sequence[str] = (),
    progress: Callable[[], EncodeProgress] | None = None,
) -> tuple[SearchIndex, EncodeReport | None]:
    """The index of some records in a folder, which then holds exactly these.

    If nothing has changed, it is the one that is there. Else that takes what is new and loses what is gone: only texts
    that it does not have are encoded. An index of another model, or with texts cut elsewhere, is built anew. Until the
    new state is complete, the old one stays.

    Args:
        model: What encodes.
        records: The documents. With `read_records(files)` it is known whether the files have changed; other records
            are compared with the index each time.
        folder: Where the index lies or will lie.
        index_type: `exact`; `int8`, which is approximate; with the extra `faiss` also `binary`, `hnsw` and `ivf`; or
            `auto`, which chooses by the number of texts and the extras that are there. By default that of the index
            that is there, else `exact`.
        recall: Share of the nearest that an approximate type is to find, 0.99 unless the index has another; how wide
            that has to search is measured.
        queries: Vectors of queries [n, dimension], as `encode_queries` gives them, to measure it with; by default
            texts of the index stand for queries.
        chunks: Split long documents into passages; a document is found by its best one.
        max_length: Cut texts at this many tokens; by default the model's own limit.
        batch_size: Maximum number of texts per batch; by default sized from the device.
        shard_size: Texts encoded between two signs of progress; an interrupted build loses no more than these.
        keep: Columns of the input that are kept for conditions and results, by name, or "*" for all but text, title and
            id; by default those that `read_records(..., keep=...)` names, or all that records have been given.
        parts: What the index is to have beside its vectors, for other modes of search: `bm25`, the words of its texts;
            of models with these heads, `lexical`, the weights of their tokens, and `multi-vector`, a vector of each
            token. What it has, it keeps.
        progress: Makes the context manager that receives the progress; called when there is something to encode.

    Returns:
        The index, and what was encoded for it; None when it was there.

    Raises:
        DataError: a record cannot be read, or a column that is kept has values of different types.
        OutputError: the folder cannot be written, or another process writes to it.
        MissingExtraError: the index type needs faiss, which is not installed.
        ArgumentError: the model's vectors are not compared by cosine or dot product.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.search import index_records
        >>> index, report = index_records(FlagModel("BAAI/bge-small-en-v1.5"), read_records("corpus.jsonl"), "index")
        >>> len(index)
        6
    """
    refuse_url(folder, "an index is made")
    check_type(index_type, recall)
    check_parts(parts)
    asked = _queries(queries, model.dimension)
    check_similarity(model.card.name, model.card.similarity, unit_vectors=model.card.normalize)
    path = Path(folder)
    if keep is not None:
        records = _keeping(records, keep)
    options = {
        "chunks": None if chunks is None else [chunks.size, chunks.overlap],
        "max_length": max_length or model.max_length_of("document"),
        "shard_size": shard_size,
        **(records.settings if isinstance(records, RecordReader) else {}),
    }
    there = _facts_there(path)
    kind = index_type or (there.index_type if there else "exact")
    check_type(kind, recall)
    if there is not None and there.parts:
        parts = list(dict.fromkeys([*there.parts, *parts]))
    outputs = outputs_of(parts)
    check_heads(model, parts)
    if len(outputs) > 1:
        options["outputs"] = outputs
    # What a model has to compute of all texts again makes it another index.
    lacks = there is not None and bool(set(outputs) - set(outputs_of(there.parts or ())))
    source = _source(records, options, None if there is None else there.input)
    if there is not None and source is not None and not lacks and there.model_fingerprint == model.fingerprint:
        if _contents(there.input) == _contents(source):
            with_type(path, kind, recall=recall, queries=asked)
            with_parts(path, parts)
            return SearchIndex.load(path), None
    settings = {
        "kind": "document", "max_length": max_length, "batch_size": batch_size, "dtype": "float32",
        "shard_size": shard_size, "store_texts": True, "outputs": outputs,
    }  # fmt: skip
    if there is not None and not lacks:
        synchronised = synchronise(
            path, model, records, source, settings=settings, chunks=chunks, progress=progress
        )  # fmt: skip
        if synchronised is not None:
            with_type(path, kind, recall=recall, queries=asked)
            with_parts(path, parts)
            return SearchIndex.load(path), synchronised
    with OutputFolder(path) as output:
        building = path / f"{BUILDING}-{_key(model, source)}"
        # Not what a structure is being built in.
        remove_building(path, f"{BUILDING}-{'[0-9a-f]' * 12}", but=building.name)
        with contextlib.nullcontext() if progress is None else progress() as shown:
            report = encode_to_shards(
                model, records, building, chunks=chunks, max_length=max_length, batch_size=batch_size,
                shard_size=shard_size, store_texts=True, outputs=outputs, overwrite=source is None, progress=shown,
            )  # fmt: skip
        known = recall or (None if there is None else there.recall)
        _write_index(output, load_shards(building), kind, source, known, asked, parts)
        remove_building(path)
    return SearchIndex.load(path), report


def index_shards(
    shards: ShardSet,
    folder: str | os.PathLike[str],
    *,
    index_type: IndexType | Auto | None = "exact",
    recall: float | None = None,
    queries: npt.ArrayLike | None = None,
    parts: Sequence[str] = (),
) -> SearchIndex:
    """The index of encoded shards in a folder: the one that is there if nothing has changed, else a new one.

    Args:
        shards: What `encode_to_shards` wrote.
        folder: Where the index lies or will lie.
        index_type: As in `index_records`; None for that of the index that is there.
        recall: As in `index_records`.
        queries: As in `index_records`.
        parts: As in `index_records`; they need the texts of shards (`store_texts=True`).

    Raises:
        OutputError: the folder cannot be written, or another process writes to it.
        MissingExtraError: the index type needs faiss, which is not installed.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.inference import encode_to_shards, load_shards
        >>> from bgekit.search import index_shards
        >>> report = encode_to_shards(FlagModel("BAAI/bge-small-en-v1.5"), read_records("corpus.jsonl"), "vectors")
        >>> index = index_shards(load_shards("vectors"), "index-of-shards")
        >>> len(index)
        6
    """
    refuse_url(folder, "an index is made")
    check_type(index_type, recall)
    check_parts(parts)
    asked = _queries(queries, shards.dimension)
    path = Path(folder)
    source = {"manifest_sha256": file_sha256(shards.folder / MANIFEST)}
    there = _facts_there(path)
    kind = index_type or (there.index_type if there else "exact")
    check_type(kind, recall)
    if there is not None and there.input == source:
        with_type(path, kind, recall=recall, queries=asked)
        with_parts(path, parts)
    else:
        with OutputFolder(path) as output:
            known = recall or (None if there is None else there.recall)
            wanted = [*(there.parts or ()), *parts] if there is not None else parts
            _write_index(output, shards, kind, source, known, asked, wanted)
    return SearchIndex.load(path)


def with_type(
    folder: str | os.PathLike[str],
    index_type: IndexType | Auto,
    *,
    recall: float | None = None,
    queries: Floats | None = None,
) -> None:
    """Change the type of an index, or how much of the nearest it finds, if it has another; its vectors stay.

    Args:
        folder: The index.
        index_type: As in `index_records`.
        recall: As in `index_records`. Where only this changes, nothing is built again: what it takes is measured.
        queries: Vectors of queries [n, dimension] float32 to measure it with.
    """
    refuse_url(folder, "an index is changed")
    check_type(index_type, recall)
    path = Path(folder)
    if _as_wanted(read_facts(path), index_type, recall):
        return
    with OutputFolder(path) as output:
        facts = read_facts(path)
        kind = choose_type(facts.rows, facts.dimension)[0] if index_type == "auto" else index_type
        same = kind == facts.index_type
        facts = replace(facts, recall=None if kind == "exact" else recall or facts.recall)
        generation = next_generation(path)
        segments = []
        for segment in facts.segments:
            stored = StoredFiles(path / segment.folder, segment.count, facts.dimension)
            large = len(facts.segments) == 1 or segment.count >= STRUCTURE_FROM
            if same and segment.structure is not None:
                segments.append(measure_structure(path, segment, stored, facts, queries))
            else:
                wanted = kind if large else "exact"
                segments.append(write_structure(output, segment, stored, facts, wanted, generation, queries))
        kind = "exact" if facts.rows == 0 else kind
        commit(output, replace(facts, index_type=kind, generation=generation, segments=tuple(segments)))


def with_parts(folder: str | os.PathLike[str], parts: Sequence[str]) -> None:
    """Give an index parts that it lacks, made of its texts; nothing is encoded.

    Args:
        folder: The index.
        parts: As in `index_records`.

    Raises:
        ArgumentError: there is no such part, or the index keeps no texts.
        OutputError: the folder cannot be written, or another process writes to it.
    """
    check_parts(parts)
    refuse_url(folder, "an index is changed")
    path = Path(folder)
    if set(parts) <= set(read_facts(path).parts or ()):
        return
    with OutputFolder(path) as output:
        facts = read_facts(path)
        # Of what a model computed of its texts there is no more than its parts.
        names = facts_of_parts(parts, {**facts.settings, "outputs": ()}, facts.parts) or {}
        generation, segments = next_generation(path), []
        for segment in facts.segments:
            stored = StoredFiles(path / segment.folder, segment.count, facts.dimension)
            segments.append(add_parts(output, segment, stored, names, generation))
        commit(output, replace(facts, parts=names, generation=generation, segments=tuple(segments)))


def _as_wanted(facts: Facts, index_type: IndexType | Auto, recall: float | None) -> bool:
    kind = choose_type(facts.rows, facts.dimension)[0] if index_type == "auto" else index_type
    return kind == facts.index_type and (kind == "exact" or recall in (None, facts.recall))


def check_type(index_type: str | None, recall: float | None = None) -> None:
    """See to it that there is such a type of index, and what it needs; None is that of an index that is there.

    Raises:
        ArgumentError: there is none of that name, or none finds such a share of the nearest.
        MissingExtraError: it needs faiss, which is not installed.
    """
    check_recall(recall)
    if index_type in (None, "auto"):
        return
    if index_type not in INDEX_TYPES:
        raise ArgumentError(f"index_type must be one of {', '.join(INDEX_TYPES)} or auto, not {index_type!r}")
    if index_type == "exact" and recall is not None:
        raise ArgumentError(
            "an exact index finds all of the nearest: leave out recall=..., or choose another index_type"
        )
    if index_type not in ("exact", "int8"):
        require_extra("faiss", "faiss")  # Before hours of encoding, not after them.


def choose_type(count: int, dimension: int) -> tuple[IndexType, str]:
    """The type of index that `auto` stands for, and why.

    Args:
        count: Vectors.
        dimension: Their width.
    """
    size = count * dimension * 4
    of = f"{count:,} vectors of {dimension} dimensions, {size / 1e6:,.0f} MB"
    if size <= _SMALL:
        return "exact", f"{of}: to look at all of them takes some hundredths of a second"
    if importlib.util.find_spec("faiss") is not None:
        return "binary", f"{of}: codes of {count * (dimension // 8 + 16) / 1e6:,.0f} MB in cells find them with faiss"
    return "int8", (
        f"{of}: numbers of 8 bits take a quarter of that (pip install 'bgekit[faiss]' brings cells with smaller codes)"
    )


def _queries(queries: npt.ArrayLike | None, dimension: int) -> Floats | None:
    if queries is None:
        return None
    vectors = np.asarray(queries, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dimension or not np.isfinite(vectors).all():
        raise ArgumentError(
            f"queries must be vectors [n, {dimension}] without NaN, these have the shape {list(vectors.shape)}"
        )
    return vectors


def _facts_there(path: Path) -> Facts | None:
    if (path / FACTS).exists():
        try:
            facts = read_facts(path)
            SearchIndex.load(path)
            return facts
        except OutputError as error:
            logger.warning("%s: it is built again", error)
    elif (path / MANIFEST).exists():
        raise OutputError(f"{path} holds encoded shards; give another folder for the index")
    return None


def _write_index(
    output: OutputFolder,
    shards: ShardSet,
    index_type: IndexType | Auto,
    source: Any,
    recall: float | None,
    queries: Floats | None,
    parts: Sequence[str],
) -> None:
    """Make encoded shards the index, in the place of the one that is there until then."""
    stored = StoredShards(shards)
    kind = choose_type(stored.count, stored.dimension)[0] if index_type == "auto" else index_type
    kind = "exact" if stored.count == 0 else kind
    facts = replace(facts_of_shards(shards, kind, source), recall=None if kind == "exact" else recall)
    facts = replace(facts, parts=facts_of_parts(parts, facts.settings))
    # The first index of a folder lies in it; a later one beside the one that it replaces.
    first = not (output.path / FACTS).exists()
    generation = 0 if first else next_generation(output.path)
    segment = write_segment(
        output, "" if first else segment_name(generation), stored, chunked=facts.chunked,
        metadata=typed(stored.metadata_parts), parts=facts.parts,
    )  # fmt: skip
    segment = write_structure(output, segment, stored, facts, kind, generation, queries)
    commit(output, replace(facts, metadata=segment.metadata, generation=generation, segments=(segment,)))


def _keeping(records: Iterable[Record], keep: Keep) -> Iterable[Record]:
    """Records with these columns of their metadata alone."""
    if isinstance(records, RecordReader):
        records.keep(keep)
        return records
    names = checked_keep(keep)
    if ALL in names:
        return records
    return (replace(each, metadata={name: each.metadata.get(name) for name in names}) for each in records)


def _source(records: Iterable[Record], options: dict[str, Any], known: Any) -> dict[str, Any] | None:
    """Mark by which it is seen whether an input has changed; None when that cannot be seen.

    Args:
        records: The input.
        options: How it is read and encoded.
        known: The same of an earlier run: files that have stayed untouched since then are not read again.
    """
    if not isinstance(records, RecordReader) or records.size is None:
        return None
    before = {entry["path"]: entry for entry in (known or {}).get("files", [])}
    files = []
    for file, name in zip(records.files, records.names, strict=True):
        path = file if is_url(file) else os.path.abspath(file)
        old, status = before.get(path, {}), file_status(file)
        same = status is not None and old.get("status") == status
        entry = {"path": path, "status": status, "sha256": old["sha256"] if same else file_sha256(file)}
        files.append(entry if name is None else entry | {"name": name})
    return {"options": options, "files": files}


def _contents(source: Any) -> Any:
    """The part of a source that decides what is encoded; where files lie does so where ids are made of their names."""
    if not isinstance(source, dict) or "files" not in source:
        return None
    files = [[entry["name"], entry["sha256"]] if "name" in entry else entry["sha256"] for entry in source["files"]]
    return [source["options"], files]


def _key(model: Embedder, source: Any) -> str:
    return digest(json.dumps([model.fingerprint, _contents(source)], sort_keys=True))[:12]
