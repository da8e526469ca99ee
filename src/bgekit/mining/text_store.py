"""The texts that negatives are drawn from, on disk: any of them is found by its number."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..data.arrow_store import ArrowStore, write_batches
from ..data.encodings import repair
from ..data.records import Record
from ..data.training_rows import copy_key

if TYPE_CHECKING:
    from ..data.training_rows import InputRow
    from ..files.atomic import OutputFolder

Rows: TypeAlias = "npt.NDArray[np.int64]"
_NAME: Final = "texts.arrow"
#: Texts of a record batch.
_BATCH_TEXTS: Final = 1024
#: The key of a blank text.
BLANK: Final = copy_key("")


class TextStore(ArrowStore):
    """Numbered texts: first the candidates, then texts of the input that are no candidates but need a vector.

    Attributes:
        candidates: How many of the texts negatives are drawn from; they have the numbers below.
        keys: [n] int64, equal for texts that differ in case and white space only.
        digest: sha256 (hex) of all texts.
    """

    def __init__(self, path: Path, candidates: int, places: dict[int, int], digest: str) -> None:
        super().__init__(path)
        self.candidates, self.keys, self.digest = candidates, self.column("key"), digest
        self._places = places

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> str:
        return str(self.value("text", int(number)))

    def find(self, text: str) -> int:
        """The number of a text of the input."""
        return self._places[_exact(text)]

    def has(self, key: int) -> bool:
        """Whether one of the texts has this key."""
        return self.first(key) is not None

    def first(self, key: int) -> int | None:
        """The number of the first text with this key, if there is one."""
        place = int(np.searchsorted(self.keys, key, sorter=self._by_key))
        if place == len(self.keys) or self.keys[self._by_key[place]] != key:
            return None
        return int(self._by_key[place])

    @cached_property
    def _by_key(self) -> Rows:
        return np.argsort(self.keys, kind="stable")

    def records(self) -> Iterator[Record]:
        """All texts, in order."""
        return (Record(str(number), self[number]) for number in range(len(self)))


def store_texts(
    folder: OutputFolder, rows: Callable[[], Iterable[InputRow]], pool: Iterable[Record] | None, *, negatives: bool
) -> TextStore:
    """The texts of a run.

    Args:
        folder: Where they are kept.
        rows: Gives the input, from its start.
        pool: The candidates, each counting as often as it occurs; None for all distinct passages of the input.
        negatives: Whether the input's own negatives need a vector, too.

    Raises:
        DataError: the pool or the input cannot be read.
        OutputError: the folder cannot be written.
    """
    import pyarrow

    # Of the pool, only what the input asks for is remembered: it may be far larger.
    places: dict[int, int] = {}
    ends, content = array.array("q", [0]), hashlib.sha256()
    candidates = 0

    def passages() -> Iterator[str]:
        for each in rows():
            yield from each.row.positives
            if negatives or pool is None:
                yield from each.row.negatives

    def texts() -> Iterator[str]:
        nonlocal candidates
        if pool is not None:
            missing = set(map(_exact, passages()))
            for record in pool:
                text = repair(record.text)[0]
                if missing and (key := _exact(text)) in missing:
                    missing.remove(key)
                    places[key] = candidates
                candidates += 1
                yield text
        count = candidates
        for text in passages():
            if places.setdefault(_exact(text), count) == count:
                count += 1
                yield text
        if pool is None:
            candidates = count

    def batches() -> Iterator[Any]:
        each = texts()
        while batch := list(islice(each, _BATCH_TEXTS)):
            for text in batch:
                encoded = text.encode()
                content.update(encoded)
                ends.append(ends[-1] + len(encoded))
            keys = pyarrow.array(list(map(copy_key, batch)), pyarrow.int64())
            yield pyarrow.RecordBatch.from_arrays([pyarrow.array(batch, pyarrow.large_string()), keys], schema=schema)

    schema = pyarrow.schema([("text", pyarrow.large_string()), ("key", pyarrow.int64())])
    with folder.create(_NAME) as file:
        write_batches(file, schema, batches(), dict)
    digest = hashlib.sha256(content.hexdigest().encode() + ends.tobytes()).hexdigest()
    return TextStore(folder.path / _NAME, candidates, places, digest)


def _exact(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
