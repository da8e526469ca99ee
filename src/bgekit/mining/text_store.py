"""The texts that negatives are drawn from, on disk: any of them is found by its number."""

from __future__ import annotations

import array
import hashlib
import mmap
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..data.records import Record
from ..data.training_rows import copy_key
from ..data.unicode import repair

if TYPE_CHECKING:
    from ..data.training_rows import InputRow
    from ..files.atomic import OutputFolder

Rows: TypeAlias = "npt.NDArray[np.int64]"
_NAME: Final = "texts.bin"
#: The key of a blank text.
BLANK: Final = copy_key("")


class TextStore:
    """Numbered texts: first the candidates, then texts of the input that are no candidates but need a vector.

    Attributes:
        candidates: How many of the texts negatives are drawn from; they have the numbers below.
        keys: [n] int64, equal for texts that differ in case and white space only.
        digest: sha256 (hex) of all texts.
    """

    def __init__(
        self, path: Path, offsets: Rows, keys: Rows, candidates: int, places: dict[int, int], digest: str
    ) -> None:
        self.candidates, self.keys, self.digest = candidates, keys, digest
        self._offsets, self._places = offsets, places
        self._data: mmap.mmap | bytes = b""
        if len(offsets) > 1 and offsets[-1]:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> str:
        return self._data[self._offsets[number] : self._offsets[number + 1]].decode()

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

    def close(self) -> None:
        """Free the file."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()


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
    # Of the pool, only what the input asks for is remembered: it may be far larger.
    places: dict[int, int] = {}
    offsets, keys = array.array("q", [0]), array.array("q")

    def passages() -> Iterator[str]:
        for each in rows():
            yield from each.row.positives
            if negatives or pool is None:
                yield from each.row.negatives

    with folder.create(_NAME) as file:

        def add(text: str) -> None:
            offsets.append(offsets[-1] + file.write(text.encode()))
            keys.append(copy_key(text))

        if pool is not None:
            missing = set(map(_exact, passages()))
            for record in pool:
                text = repair(record.text)[0]
                if missing and (key := _exact(text)) in missing:
                    missing.remove(key)
                    places[key] = len(keys)
                add(text)
        candidates = len(keys)
        for text in passages():
            if places.setdefault(_exact(text), len(keys)) == len(keys):
                add(text)
        if pool is None:
            candidates = len(keys)
        digest = hashlib.sha256(file.sha256.encode() + offsets.tobytes()).hexdigest()
    return TextStore(
        folder.path / _NAME,
        np.array(offsets, dtype=np.int64),
        np.array(keys, dtype=np.int64),
        candidates,
        places,
        digest,
    )


def _exact(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
