"""Texts as token sequences on disk: one folder for each file of texts, found again by its content.

The arrays are mapped into memory, so data larger than memory is read from the disk as it is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..encoding.records import RecordReader
from ..encoding.rows import STDIN
from ..encoding.tables import Quoting
from ..encoding.tokenization import repair
from ..errors import DataError, OutputError
from ..models.leftovers import working_names
from ..training.store import content_digest
from .masking import Ids
from .words import Words

logger = logging.getLogger(__name__)

#: Part of every name: what an older version wrote is not read.
_VERSION: Final = 1
#: Texts that are tokenised at once.
_WINDOW: Final = 1024
#: The bit of a stored token that says that it begins a word.
_BEGINS: Final = 1 << 31
#: Written last.
_FACTS: Final = "facts.json"


@dataclass(frozen=True)
class Reading:
    """How files become sequences.

    Attributes:
        room: Tokens of a sequence, without special tokens.
        long_texts: Whether texts beyond that become several sequences of nearly equal length, or lose their end.
        text_field: As in `read_records`.
        title_field: As in `read_records`.
        on_error: As in `read_records`.
        encoding: As in `read_records`.
        quoting: As in `read_records`.
    """

    room: int
    long_texts: Literal["split", "cut"] = "split"
    text_field: str | None = None
    title_field: str | None = None
    on_error: Literal["raise", "skip"] = "raise"
    encoding: str | None = None
    quoting: Quoting = "auto"


@dataclass(frozen=True)
class Facts:
    """What was found in a file.

    Attributes:
        texts: Texts with at least one token.
        empty: Texts without.
        skipped: Lines left out.
        long: Texts that did not fit into a sequence.
        sequences: What became of the texts.
        tokens: Tokens of all sequences, without special ones.
        unknown: Those among them that the vocabulary lacks.
    """

    texts: int
    empty: int
    skipped: int
    long: int
    sequences: int
    tokens: int
    unknown: int


class TokenStore:
    """The sequences of one file of texts. Can be pickled and used after a fork.

    Attributes:
        path: Its folder.
        source: The file of texts, as the user named it.
        facts: What was found in it.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self._open()

    def _open(self) -> None:
        try:
            self.facts = Facts(**json.loads((self.path / _FACTS).read_text(encoding="utf-8")))
            count, tokens = self.facts.sequences, self.facts.tokens
            self._tokens = self._mapped("tokens", np.uint32, tokens)
            self._ends = self._mapped("ends", np.int64, count)
            self.texts: npt.NDArray[Any] = self._mapped("texts", np.int64, count)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.path} is damaged: {error}") from error

    def _mapped(self, name: str, dtype: type, size: int) -> npt.NDArray[Any]:
        if not size:
            return np.empty(0, dtype=dtype)
        return np.memmap(self.path / name, dtype=dtype, mode="r", shape=(size,))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "source": self.source}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.path, self.source = state["path"], state["source"]
        self._open()

    def __len__(self) -> int:
        return self.facts.sequences

    def sequence(self, number: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Token ids [L] of a sequence without special tokens, and which of them begin a word."""
        start = int(self._ends[number - 1]) if number else 0
        stored = np.asarray(self._tokens[start : int(self._ends[number])])
        return (stored & (_BEGINS - 1)).astype(np.int64), stored >= _BEGINS

    @property
    def lengths(self) -> Ids:
        """[n] tokens of each sequence, without special ones."""
        return np.diff(np.asarray(self._ends), prepend=0)


def open_store(source: str, cache: Path, backend: Any, unknown: int | None, reading: Reading) -> TokenStore:
    """The sequences of a file of texts, tokenised and stored unless that was done before.

    Args:
        source: The file.
        cache: Folder of stored sequences.
        backend: The Rust tokenizer, without padding or truncation.
        unknown: Id of the token for what the vocabulary lacks, None without one.
        reading: How texts become sequences.

    Raises:
        DataError: the file cannot be read, or (unless they are skipped) a line cannot be used.
        OutputError: the folder cannot be written.
    """
    if source == STDIN:
        raise DataError("standard input (-) is read once, training data more often: write it to a file first")
    try:
        content = content_digest(source)
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error
    way = json.dumps([_VERSION, content, asdict(reading), hashlib.sha256(backend.to_str().encode()).hexdigest()])
    path = cache / f"{hashlib.sha256(way.encode()).hexdigest()[:40]}.tokens"
    if path.is_dir():
        try:
            return TokenStore(path, source)
        except DataError as error:
            logger.warning("%s; it is made anew", error)
            shutil.rmtree(path, ignore_errors=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with working_names(path) as (working, _):
            try:
                working.mkdir()
                facts = _write(source, working, backend, unknown, reading)
                (working / _FACTS).write_text(json.dumps(asdict(facts)), encoding="utf-8")
                if not path.is_dir():  # Another process may have been quicker.
                    os.replace(working, path)
            finally:
                shutil.rmtree(working, ignore_errors=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write tokenised texts to {cache}: {error.strerror or error}. Name another folder with --cache_path"
        ) from error
    return TokenStore(path, source)


def _write(source: str, folder: Path, backend: Any, unknown: int | None, reading: Reading) -> Facts:
    records = RecordReader(
        source, text_field=reading.text_field, title_field=reading.title_field, on_error=reading.on_error,
        encoding=reading.encoding, quoting=reading.quoting,
    )  # fmt: skip
    logger.info("tokenising %s", source)
    words = Words(backend)
    texts = empty = long = sequences = tokens = unknowns = 0
    with (folder / "tokens").open("wb") as token_file, (folder / "ends").open("wb") as end_file, (
        folder / "texts"
    ).open("wb") as text_file:  # fmt: skip
        cleaned = (repair(record.text)[0] for record in records)
        while window := list(islice(cleaned, _WINDOW)):
            for text, encoding in zip(window, backend.encode_batch(window, add_special_tokens=False), strict=True):
                ids = np.array(encoding.ids, dtype=np.uint32)
                if not len(ids):
                    empty += 1
                    continue
                long += len(ids) > reading.room
                unknowns += 0 if unknown is None else int((ids == unknown).sum())
                begins = words.starts(text, encoding)
                for part in _parts(begins, reading):
                    piece = ids[part] | np.where(begins[part], np.uint32(_BEGINS), np.uint32(0))
                    piece[0] |= np.uint32(_BEGINS)
                    piece.tofile(token_file)
                    tokens += len(piece)
                    np.array([tokens], dtype=np.int64).tofile(end_file)
                    np.array([texts], dtype=np.int64).tofile(text_file)
                    sequences += 1
                texts += 1
        for file in (token_file, end_file, text_file):
            file.flush()
            os.fsync(file.fileno())
    return Facts(texts, empty, records.skipped.count, long, sequences, tokens, unknowns)


def _parts(begins: npt.NDArray[np.bool_], reading: Reading) -> Iterator[slice]:
    """Stretches of a text's tokens that become sequences: as equal as whole words allow, none longer than the room."""
    size, start = len(begins), 0
    if reading.long_texts == "cut":
        yield slice(0, min(size, reading.room))
        return
    while size - start > reading.room:
        most = -(-(size - start) // -(-(size - start) // reading.room))
        inner = np.flatnonzero(begins[start + 1 : start + most + 1])
        stop = start + (int(inner[-1]) + 1 if len(inner) else most)
        yield slice(start, stop)
        start = stop
    yield slice(start, size)
