"""Rows of training data in the BGE form, checked, and what a row becomes when it is drawn.

A line is `{"query": str, "pos": [str], "neg": [str], "pos_scores": [float], "neg_scores": [float], "prompt": str,
"type": str, "batch_size": int, "score": float}`; all but `query` and `pos` may be left out or null, and further
fields are ignored. `score` makes a scored pair of a line: its query and its only `pos` have that similarity. Such a
line may also be `{"sentence1": str, "sentence2": str, "score": float}`, as data of semantic similarity mostly is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, DataError
from ..files.atomic import check_free
from ..files.hashing import HashedFile
from ..files.remote import is_folder, is_url
from ..files.transfer import check_target, write_files
from .arrow_store import ArrowStore, content_digest, stored, write_batches
from .columns import BadLines, Line, read_file
from .encodings import repair
from .formats import STDIN, USUAL, Dialect, line_of, shown, stem_and_format

#: UTF-8 bytes of all texts of a row. More is not a training example but a file in a wrong form, and would stop a step.
LONGEST_ROW: Final = 8 << 20
EXAMPLE_LINE: Final = '{"query": "capital of France", "pos": ["Paris is ..."], "neg": ["Rome is ...", "Lyon is ..."]}'
EXPECTED: Final = f"each line is a JSON object such as {EXAMPLE_LINE}"
#: Types with rules of their own (FlagEmbedding 1.4): one negative; as many passages as there are classes;
#: the query's instruction before passages, too.
ONE_NEGATIVE: Final = "only_1neg"
CLASSES: Final = "symmetric_class"
PROMPTED_PASSAGES: Final = frozenset({"symmetric_sts", "symmetric_clustering"})


@dataclass(frozen=True)
class Row:
    """A line of training data.

    Attributes:
        query: Never blank.
        positives: At least one, never blank.
        negatives: Any number.
        pos_scores: A teacher's score of each positive.
        neg_scores: A teacher's score of each negative.
        prompt: Instruction of this row's query, "" for none, None for the model's own.
        type: One of FlagEmbedding's types, such as `only_1neg` or `symmetric_sts`.
        score: Similarity of query and positive, for a scored pair.
        batch_size: Rows of a batch of its dataset, where the data says so.
        dataset: Number of its dataset.
        index: Number of the row over all data, the same in every run on the same files.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    prompt: str | None = None
    type: str | None = None
    score: float | None = None
    batch_size: int | None = None
    dataset: int = 0
    index: int = 0

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher has scored all passages."""
        return self.pos_scores is not None and (self.neg_scores is not None or not self.negatives)

    @property
    def digest(self) -> int:
        """64 bits of a hash of what is trained on: equal rows have equal digests."""
        parts = [self.query, self.prompt or "", repr(self.score), *self.positives, "", *self.negatives]
        return hash64("\0".join(parts).encode())


def text_key(text: str) -> int:
    """A signed 64-bit hash of a text, the same for texts that differ in case and white space only.

    Whether two texts are the same to a model is another question, which its tokenizer answers: see `Collator.keys`.
    """
    return hash64(" ".join(text.casefold().split()).encode())


def hash64(content: bytes) -> int:
    """A signed 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def row_of(line: Line) -> Row:
    """The training row that a line holds.

    Raises:
        BadRow: it holds none; the error says why.
    """
    fields = line.fields
    if "sentence1" in fields and "query" not in fields:
        # Two sentences of one kind, both with the row's prompt, or both with none.
        first, second = (line.content(name, line.value(name)) for name in ("sentence1", "sentence2"))
        _check_size(line, first, second)
        prompt, type = _optional_text(line, "prompt") or "", _optional_text(line, "type") or "symmetric_sts"
        return Row(first, (second,), prompt=prompt, type=type, score=line.finite("score", line.value("score")))
    query = line.content("query", line.value("query"))
    positives = line.contents("pos", line.value("pos"))
    if not positives:
        raise line.error("pos is empty: a row needs at least one positive passage")
    negatives = line.contents("neg", [] if fields.get("neg") is None else fields["neg"])
    _check_size(line, query, *positives, *negatives)
    score = None if fields.get("score") is None else line.finite("score", fields["score"])
    if score is not None and (len(positives) != 1 or negatives):
        raise line.error(
            f"a scored pair (a line with `score`) has one pos and no neg, not {len(positives)} and {len(negatives)}"
        )
    size = fields.get("batch_size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 1 << 31):
        raise line.error(f"batch_size must be a whole number of at least 1, not {shown(size)}")
    return Row(
        query=query,
        positives=positives,
        negatives=negatives,
        pos_scores=_scores(line, "pos", len(positives)),
        neg_scores=_scores(line, "neg", len(negatives)),
        prompt=_optional_text(line, "prompt"),
        type=_optional_text(line, "type"),
        score=score,
        batch_size=size,
    )


def _check_size(line: Line, *texts: str) -> None:
    size = sum(len(text.encode()) for text in texts)
    if size > LONGEST_ROW:
        raise line.error(f"its texts have {size:,} bytes, more than {LONGEST_ROW:,}: are the rows whole documents?")


def _optional_text(line: Line, name: str) -> str | None:
    value = line.fields.get(name)
    return None if value is None else repair(line.string(name, value))[0]


def _scores(line: Line, name: str, count: int) -> tuple[float, ...] | None:
    values = line.fields.get(f"{name}_scores")
    if values is None:
        return None
    if not isinstance(values, list):
        raise line.error(f"{name}_scores must be a list of numbers, not {shown(values)}")
    if len(values) != count:
        raise line.error(f"{name}_scores has {len(values)} numbers for {count} texts in {name}")
    return tuple(line.finite(f"{name}_scores[{position}]", value) for position, value in enumerate(values))


@dataclass(frozen=True)
class InputRow:
    """A row of the input.

    Attributes:
        line: Its line in the file, from 1.
        fields: All its fields, as they stand there.
        row: What training makes of it; its `index` counts the rows of the file from 0.
    """

    line: int
    fields: Mapping[str, Any]
    row: Row


def copy_key(text: str) -> int:
    """A signed 64-bit hash of a text, the same for texts that differ in case and white space only."""
    return text_key("".join(text.split()))


def read_training(file: str, dialect: Dialect = USUAL) -> Iterator[InputRow]:
    """The rows of a file of training data.

    Args:
        file: The file.
        dialect: How it is written.

    Raises:
        DataError: a line cannot be used; it names file and line.

    Example:
        >>> from bgekit.data import read_training
        >>> next(read_training("train.jsonl")).row.query
        'a cat 0'
    """
    for index, line in enumerate(read_file(file, dialect)):
        yield InputRow(line.number, line.fields, replace(row_of(line), index=index))


def check_training(file: str, *, scored_pairs: bool = False, dialect: Dialect = USUAL) -> int:
    """The number of rows of a file of training data, all of which can be used.

    Args:
        file: The file; it is read again later, so it cannot be standard input.
        scored_pairs: Whether rows with `score`, which have no negatives, may be there.
        dialect: How it is written.

    Raises:
        DataError: lines cannot be used: the first ten of them are named, all are counted.
    """
    if file == STDIN:
        raise ArgumentError("the input is read more than once, so it cannot be standard input: write it to a file")
    bad, count = BadLines(), 0
    for line, row in bad.usable(read_file(file, dialect, bad=bad), row_of):
        if row.score is not None and not scored_pairs:
            bad.add(file, line.number, "a scored pair (a line with `score`) is trained on without negatives")
        try:
            line_of(line.fields)
        except TypeError as problem:  # A date or bytes of a table.
            bad.add(file, line.number, f"{problem}; what is handed on has to be text, numbers, lists or objects")
        count += 1
    bad.check("line", "cannot be used", f"\nWhat is expected: {EXPECTED}. Nothing was written.")
    if not count:
        raise DataError(f"{file} has no rows; {EXPECTED}")
    return count


#: Part of every name in the cache: what an older version wrote is not read.
_VERSION: Final = "2"
#: Rows of a record batch: with the longest row allowed they stay below the 2 GiB that the offsets of a string column
#: can address.
_BATCH_ROWS: Final = 128
#: Columns that are numbers about a row, not its content: bytes of UTF-8 of the query, and on average of a positive
#: and a negative (which stand for tokens: about 4 bytes each in English, 3 in Chinese); then what was noticed.
_NUMBERS: Final = ("line", "digest", "query_bytes", "positive_bytes", "negative_bytes", "negative_count", "notes")
#: Bits of `notes`. The first two are of texts that are equal up to case and white space: whether they are so to a model
#: is for its tokenizer to say.
POSITIVE_IS_QUERY: Final = 1
NEGATIVE_IS_POSITIVE: Final = 2
HAS_TEACHER: Final = 4
HAS_SCORE: Final = 8
#: The columns that are a row's content.
_CONTENT: Final = tuple(each.name for each in fields(Row) if each.name not in ("dataset", "index"))


class RowStore(ArrowStore):
    """The checked rows of one file of training data, which is `source`."""

    def row(self, number: int) -> dict[str, Any]:
        """The fields of a row, as `Row` names them; `dataset` and `index` are the caller's."""
        fields = {name: self.value(name, number) for name in _CONTENT}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

    def line(self, number: int) -> int:
        """The line of a row in the file of training data."""
        return int(self.value("line", number))

    def scores(self) -> npt.NDArray[np.float64]:
        """Similarities of scored pairs, [rows] float64; NaN for other rows."""
        return self._gathered(lambda batch: batch.column("score").to_numpy(zero_copy_only=False)).astype(np.float64)

    def values(self, name: str) -> dict[str | None, int]:
        """Counts of each value of `prompt` or `type`."""
        from pyarrow import compute

        counts: dict[str | None, int] = {}
        for number in range(self._reader.num_record_batches):
            for entry in compute.value_counts(self._reader.get_batch(number).column(name)).to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
        return counts


class _BadRows(Exception):
    """Some rows of a file are bad, so that none is stored."""


def open_store(source: str, cache: Path, bad: BadLines, dialect: Dialect = USUAL) -> RowStore | None:
    """The rows of a file of training data, checked and stored unless that was done before.

    Args:
        source: The file.
        cache: Folder of stored rows.
        bad: Collects the lines that cannot be used.
        dialect: How the file is written.

    Returns:
        The rows; None if there are bad.

    Raises:
        OutputError: the folder cannot be written.
    """
    if source == STDIN:
        bad.add("standard input", 0, "training data is read more than once; write it to a file first")
        return None
    try:
        path = cache / f"{content_digest(source, dialect)}.v{_VERSION}.arrow"
    except OSError as error:
        bad.add(source, 0, f"cannot be read: {error.strerror or error}")
        return None
    before = bad.count

    def write(file: HashedFile) -> None:
        _write(source, file, bad, dialect)
        if bad.count > before:
            raise _BadRows

    try:
        return stored(path, lambda: RowStore(path, source), write, "checked training data")
    except _BadRows:
        return None


def _write(source: str, file: HashedFile, bad: BadLines, dialect: Dialect) -> None:
    """Check all rows of a file; write them as long as none is bad."""
    import pyarrow

    texts, scores, text = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64()), pyarrow.string()
    types = (text, texts, texts, scores, scores, text, text, pyarrow.float64(), pyarrow.int32())
    columns = [*zip(_CONTENT, types, strict=True), *((name, pyarrow.int64()) for name in _NUMBERS)]
    schema = pyarrow.schema(columns)
    rows, before = _checked_rows(source, bad, dialect), bad.count

    def batches() -> Iterator[Any]:
        while batch := list(islice(rows, _BATCH_ROWS)):
            if bad.count == before:
                yield pyarrow.RecordBatch.from_pylist(batch, schema=schema)

    write_batches(file, schema, batches(), dict)


def _checked_rows(source: str, bad: BadLines, dialect: Dialect) -> Iterator[dict[str, Any]]:
    scored: dict[bool, int] = {}
    try:
        # All lines that are not rows are to be reported, not only the first.
        for line, row in bad.usable(read_file(source, dialect, bad=bad), row_of):
            if scored.setdefault(row.score is not None, line.number) == line.number and len(scored) == 2:
                bad.add(
                    source, line.number,
                    f"it has {'a' if row.score is not None else 'no'} score, other than line {min(scored.values())}: "
                    "put scored pairs and other rows into different files",
                )  # fmt: skip
            yield _record(row, line.number)
    except DataError as problem:
        bad.add(source, 0, problem)


def _record(row: Row, line: int) -> dict[str, Any]:
    positive_keys = {text_key(text) for text in row.positives}
    notes = POSITIVE_IS_QUERY * (text_key(row.query) in positive_keys)
    known = positive_keys | {text_key(row.query)}
    notes |= NEGATIVE_IS_POSITIVE * any(text_key(text) in known for text in row.negatives)
    notes |= HAS_TEACHER * row.has_teacher | HAS_SCORE * (row.score is not None)
    numbers = {
        "line": line, "digest": row.digest, "query_bytes": _mean_bytes((row.query,)),
        "positive_bytes": _mean_bytes(row.positives), "negative_bytes": _mean_bytes(row.negatives),
        "negative_count": len(row.negatives), "notes": notes,
    }  # fmt: skip
    return numbers | {name: getattr(row, name) for name in _CONTENT}


def _mean_bytes(texts: tuple[str, ...]) -> int:
    return sum(len(text.encode()) for text in texts) // len(texts) if texts else 0


def check_output(output: str, *inputs: str, overwrite: bool = True) -> None:
    """See to it that an output is a file of JSON lines by its name, not also an input, and can be written.

    Args:
        output: The file.
        inputs: Files that are read.
        overwrite: Whether one that is there may be replaced.

    Raises:
        ArgumentError: it is not.
        OutputError: it cannot be written, or is there.
    """
    if output.lower().endswith(".gz") or stem_and_format(output)[1] not in (None, "jsonl"):
        raise ArgumentError(f"the output is JSON lines, and {output} would be read as something else: call it .jsonl")
    for file in inputs:
        if _same_file(output, file):
            raise ArgumentError(f"{output} is also an input; give another output")
    if is_folder(output):
        raise ArgumentError(
            f"{output} is a folder; the output is a file, such as {os.path.join(output, 'mined.jsonl')}"
        )
    check_target(output)
    check_free(output, overwrite=overwrite)


def _same_file(one: str, other: str) -> bool:
    if is_url(one) or is_url(other):
        return one == other
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def write_lines(output: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows to a file, or to a URL; until they are complete, what was there before stays.

    Raises:
        OutputError: it cannot be written.
    """
    write_files([(output, map(line_of, rows))])
