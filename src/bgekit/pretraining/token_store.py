"""Tokens of pre-training on disk, as sequences, with the places where words begin, so that words are masked whole."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..data.arrow_store import OPEN_BATCHES, ArrowStore, content_digest, stored, write_batches
from ..data.columns import BadLines
from ..data.documents import Source, Unit, find_sources, form_of_name
from ..data.encodings import repair
from ..data.formats import STDIN, Quoting
from ..data.records import RecordReader
from ..errors import ArgumentError, DataError
from ..files.hashing import HashedFile
from ..inference.tokenization import backend_of
from ..training.batches.datasets import default_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ids: TypeAlias = "npt.NDArray[np.int64]"
#: What SentencePiece and byte-level BPE write in place of the space before a word.
_SPACES: Final = ("\u2581", "\u0120")
#: Scripts written without spaces (first and last character): Thai, Lao, Myanmar, Khmer, kana, Chinese characters.
#: There each token that begins with a character of its own counts as a word.
_UNSPACED: Final = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip
#: Tokens of the longest word; what is longer (a URL, base64) is masked token by token.
_LONGEST: Final = 24


class Words:
    """Finds word starts in what a fast tokenizer returns.

    A word is what the tokenizer takes apart on its own: for BERT a run of letters and digits (pieces after the first
    have `##`), one mark of punctuation, or one Chinese character; for SentencePiece and byte-level BPE what begins with
    a space. Those two do not separate the characters of scripts without spaces, which is done here.

    Args:
        backend: The Rust tokenizer.
    """

    def __init__(self, backend: Any) -> None:
        self._wordpiece = json.loads(backend.to_str())["model"]["type"] == "WordPiece"

    def starts(self, text: str, encoding: Any) -> npt.NDArray[np.bool_]:
        """[tokens] bool: whether a token begins a word.

        Args:
            text: The text.
            encoding: What the tokenizer made of it, without special tokens.
        """
        numbers = np.array([-1 if number is None else number for number in encoding.word_ids], dtype=np.int64)
        begins = np.ones(len(numbers), dtype=np.bool_)
        begins[1:] = (numbers[1:] != numbers[:-1]) | (numbers[1:] < 0)
        if not self._wordpiece and not begins.all():
            tokens, offsets = encoding.tokens, encoding.offsets
            for position in np.flatnonzero(~begins).tolist():
                begins[position] = tokens[position].startswith(_SPACES) or _apart(
                    text, offsets[position - 1], offsets[position]
                )
        # Words that are too long are taken apart.
        sizes = np.diff(np.append(np.flatnonzero(begins), len(begins)))
        return begins | np.repeat(sizes > _LONGEST, sizes)


def _apart(text: str, before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether a character without spaces around it ends or begins between two tokens, none being cut by them."""
    if after[0] < before[1] or not 0 < before[1] <= len(text) or after[0] >= len(text):
        return False  # Both hold bytes of one character.
    return _unspaced(text[after[0]]) or _unspaced(text[before[1] - 1])


def _unspaced(character: str) -> bool:
    code = ord(character)
    return code >= _UNSPACED[0][0] and any(first <= code <= last for first, last in _UNSPACED)


logger = logging.getLogger(__name__)
#: Part of every name: what an older version wrote is not read.
_VERSION: Final = 1
#: Texts that are tokenised at once.
_WINDOW: Final = 1024
#: The bit of a stored token that says that it begins a word.
_BEGINS: Final = 1 << 31
#: File of a folder that is not text.
_ABOUT: Final = "dataset.json"
#: Sequences of a record batch.
_BATCH_SEQUENCES: Final = 4096


@dataclass(frozen=True)
class Reading:
    """Settings for making sequences of files.

    Attributes:
        room: Tokens of a sequence, without special tokens.
        long_texts: Whether texts beyond that become several sequences of nearly equal length, or lose their end.
        text_field: As in `read_records`.
        title_field: As in `read_records`.
        on_error: As in `read_records`.
        encoding: As in `read_records`.
        quoting: As in `read_records`.
        records: As in `read_records`.
        delimiter: As in `read_records`.
        include: As in `read_records`.
        exclude: As in `read_records`.
    """

    room: int
    long_texts: Literal["split", "cut"] = "split"
    text_field: str | None = None
    title_field: str | None = None
    on_error: Literal["raise", "skip"] = "raise"
    encoding: str | None = None
    quoting: Quoting = "auto"
    records: Unit | None = None
    delimiter: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def of(self, source: Source) -> dict[str, Any]:
        """Settings that decide what becomes of one file; those that 0.1.0 did not know only where they are used."""
        settings = {name: value for name, value in asdict(self).items() if name not in _FURTHER}
        further = {"encoding": self.encoding, "quoting": self.quoting, "delimiter": self.delimiter}
        further["records"] = unit if (unit := self.records or source.unit) != "line" else None
        return settings | {name: value for name, value in further.items() if value not in (None, "auto")}


#: Settings of reading that 0.1.0 did not know: names continue from its own.
_FURTHER: Final = frozenset({"encoding", "quoting", "records", "delimiter", "include", "exclude"})


@dataclass(frozen=True)
class Facts:
    """Counts of the texts and tokens of a file.

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


class TokenStore(ArrowStore):
    """The sequences of one file of texts, which is `source`. Can be pickled and used after a fork.

    Attributes:
        facts: What was found in the file.
    """

    def _open(self) -> None:
        super()._open()
        try:
            self.facts = Facts(**self.notes)
        except TypeError as error:
            raise DataError(f"{self.path} is damaged: {error}") from error
        self._arrays = lru_cache(OPEN_BATCHES)(self._batch_arrays)

    def _batch_arrays(self, number: int) -> tuple[Ids, npt.NDArray[np.uint32]]:
        """Bounds of each sequence of a batch [sequences + 1], and the tokens of all."""
        tokens = self._batch(number).column("tokens")
        return tokens.offsets.to_numpy(), tokens.values.to_numpy()

    def sequence(self, number: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Token ids [L] of a sequence without special tokens, and which of them begin a word."""
        ends, tokens = self._arrays(number // self._batch_rows)
        place = number % self._batch_rows
        stored = tokens[ends[place] : ends[place + 1]]
        return (stored & (_BEGINS - 1)).astype(np.int64), stored >= _BEGINS

    @cached_property
    def texts(self) -> Ids:
        """[n] number of the text that each sequence is of."""
        return self.column("text")

    @property
    def lengths(self) -> Ids:
        """[n] tokens of each sequence, without special ones."""
        return self._gathered(lambda batch: batch.column("tokens").value_lengths().to_numpy()).astype(np.int64)


def open_store(source: Source | str, cache: Path, backend: Any, unknown: int | None, reading: Reading) -> TokenStore:
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
    if isinstance(source, str):
        source = Source.of(source, source, form_of_name(source))
    file = source.path
    if file == STDIN:
        raise DataError("standard input (-) is read once, training data more often: write it to a file first")
    try:
        content = content_digest(file)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    way = json.dumps([_VERSION, content, reading.of(source), hashlib.sha256(backend.to_str().encode()).hexdigest()])
    # The name that 0.1.0 gave a folder is a part of its checkpoints' identity: the file's stem is still that.
    path = cache / f"{hashlib.sha256(way.encode()).hexdigest()[:40]}.tokens.arrow"
    return stored(
        path,
        lambda: TokenStore(path, file),
        lambda written: _write(source, written, backend, unknown, reading),
        "tokenised texts",
    )


def _write(source: Source, file: HashedFile, backend: Any, unknown: int | None, reading: Reading) -> None:
    import pyarrow

    records = RecordReader(
        source.path, text_field=reading.text_field, title_field=reading.title_field, on_error=reading.on_error,
        encoding=reading.encoding, quoting=reading.quoting, delimiter=reading.delimiter, format=source.form,
        records=reading.records or source.unit,
    )  # fmt: skip
    logger.info("tokenising %s", source.path)
    words = Words(backend)
    counts = dict.fromkeys(Facts.__dataclass_fields__, 0)
    schema = pyarrow.schema([("tokens", pyarrow.list_(pyarrow.uint32())), ("text", pyarrow.int64())])

    def sequences() -> Iterator[tuple[npt.NDArray[np.uint32], int]]:
        cleaned = (repair(record.text)[0] for record in records)
        while window := list(islice(cleaned, _WINDOW)):
            for text, encoding in zip(window, backend.encode_batch(window, add_special_tokens=False), strict=True):
                ids = np.array(encoding.ids, dtype=np.uint32)
                if not len(ids):
                    counts["empty"] += 1
                    continue
                counts["long"] += len(ids) > reading.room
                counts["unknown"] += 0 if unknown is None else int((ids == unknown).sum())
                begins = words.starts(text, encoding)
                for part in _parts(begins, reading):
                    piece = ids[part] | np.where(begins[part], np.uint32(_BEGINS), np.uint32(0))
                    piece[0] |= np.uint32(_BEGINS)
                    counts["tokens"] += len(piece)
                    counts["sequences"] += 1
                    yield piece, counts["texts"]
                counts["texts"] += 1

    def batches() -> Iterator[Any]:
        pieces = sequences()
        while batch := list(islice(pieces, _BATCH_SEQUENCES)):
            ends = np.cumsum([0, *(len(piece) for piece, _ in batch)], dtype=np.int32)
            tokens = pyarrow.array(np.concatenate([piece for piece, _ in batch]))
            columns = [pyarrow.ListArray.from_arrays(ends, tokens), pyarrow.array([text for _, text in batch])]
            yield pyarrow.RecordBatch.from_arrays(columns, schema=schema)

    write_batches(file, schema, batches(), lambda: counts | {"skipped": records.skipped.count})


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


#: A part of the seed, so that no two uses draw the same numbers.
_SPLIT: Final = 11


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer as pre-training uses it.

    Attributes:
        backend: The Rust tokenizer, without padding or truncation.
        before: Ids of the special tokens before every text, such as [CLS].
        after: Ids of those after it.
        mask: Id of the mask token.
        unknown: Id of the token for what the vocabulary lacks, None without one.
        ordinary: Ids that are not special tokens.
    """

    backend: Any
    before: tuple[int, ...]
    after: tuple[int, ...]
    mask: int
    unknown: int | None
    ordinary: Ids

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, name: str) -> Tokenization:
        """The tokenisation of a fast tokenizer.

        Raises:
            ArgumentError: it has no mask token, or puts nothing before a text whose vector could be learnt.
        """
        backend = backend_of(tokenizer)
        if tokenizer.mask_token_id is None:
            raise ArgumentError(f"the tokenizer of {name} has no mask token: RetroMAE cannot train a model without one")
        whole, plain = backend.encode("a").ids, backend.encode("a", add_special_tokens=False).ids
        places = [at for at in range(1, len(whole)) if whole[at : at + len(plain)] == plain]
        if not places or not plain:
            raise ArgumentError(f"the tokenizer of {name} puts no special token before a text, which RetroMAE needs")
        ordinary = np.setdiff1d(np.array(sorted(backend.get_vocab().values())), tokenizer.all_special_ids)
        return cls(
            backend, tuple(whole[: places[0]]), tuple(whole[places[0] + len(plain) :]), int(tokenizer.mask_token_id),
            tokenizer.unk_token_id, ordinary.astype(np.int64),
        )  # fmt: skip

    @property
    def special(self) -> int:
        """Number of special tokens of a sequence."""
        return len(self.before) + len(self.after)


class Texts:
    """Sequences by their numbers, from 0.

    Args:
        stores: The files.
        chosen: [n] int64, which of all their sequences are used; None for all.
    """

    def __init__(self, stores: Sequence[TokenStore], chosen: Ids | None = None) -> None:
        self.stores = list(stores)
        self._starts = np.cumsum([0, *map(len, self.stores)])
        self._chosen = chosen

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._chosen is None else len(self._chosen)

    def sequence(self, number: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Token ids of a sequence without special tokens, and which of them begin a word."""
        place = number if self._chosen is None else int(self._chosen[number])
        file = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self.stores[file].sequence(place - int(self._starts[file]))

    @cached_property
    def lengths(self) -> Ids:
        """[n] tokens of each sequence, without special ones."""
        every = np.concatenate([store.lengths for store in self.stores])
        return every if self._chosen is None else every[self._chosen]

    @property
    def facts(self) -> Facts:
        """Counts of all files together."""
        rows = [store.facts for store in self.stores]
        return Facts(**{name: sum(getattr(each, name) for each in rows) for name in Facts.__dataclass_fields__})

    @property
    def counts(self) -> list[tuple[tuple[str, ...], int]]:
        """The files, each with the number of its sequences that are used."""
        chosen = np.arange(len(self)) if self._chosen is None else self._chosen
        counts = np.diff(np.searchsorted(chosen, self._starts))
        return [((store.source,), int(count)) for store, count in zip(self.stores, counts, strict=True)]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the content of the files, their order, the tokenizer, and which sequences are used."""
        digest = hashlib.sha256("".join(store.path.stem for store in self.stores).encode())
        if self._chosen is not None:
            digest.update(self._chosen.tobytes())
        return digest.hexdigest()

    def split(self, share: float, seed: int) -> tuple[Texts, Texts]:
        """The sequences without, and those of, a share of the texts drawn at random. All of a text stay together.

        Raises:
            DataError: one of the two would be empty.
        """
        held = [
            np.random.default_rng([seed, _SPLIT, number]).random(store.facts.texts)[store.texts] < share
            for number, store in enumerate(self.stores)
        ]
        out = np.concatenate(held)
        if out.all() or not out.any():
            raise DataError(
                f"--validation-split {share} of {self.facts.texts:,} texts leaves nothing to "
                f"{'train on' if out.all() else 'measure'}: give another share, or --eval-data"
            )
        return Texts(self.stores, np.flatnonzero(~out)), Texts(self.stores, np.flatnonzero(out))


def read_texts(paths: Sequence[str], tokens: Tokenization, reading: Reading, cache: str | None) -> Texts:
    """The sequences of some files and folders.

    Args:
        paths: Files, folders and globs; the files of a folder count in the order of their names.
        tokens: The tokenizer.
        reading: How texts become sequences.
        cache: Folder of tokenised texts, by default beside the cache of Hugging Face.

    Raises:
        DataError: a file cannot be read or has a line that cannot be used, or there is no text at all.
        OutputError: the cache cannot be written.
    """
    folder = Path(cache) if cache is not None else default_cache()
    found = find_sources(
        paths, BadLines(reading.on_error), encoding=reading.encoding, include=reading.include, exclude=reading.exclude
    )
    # A folder of training data may say of itself what it is.
    sources = [each for each in found if not (each.found and os.path.basename(each.path) == _ABOUT)]
    texts = Texts([open_store(each, folder, tokens.backend, tokens.unknown, reading) for each in sources])
    if not len(texts):
        raise DataError(f"there is no text in {', '.join(paths)}")
    return texts
