"""Negatives of a row: the texts that they are drawn from, and the choice among them.

The texts are on disk, and any of them is found by its number. Candidates come from rankings (places counted before
anything is excluded) and, at random, from all texts. What is a
copy of the query, of a positive or of a negative of the row never comes in; guards keep out what scores so high that
it may be an unmarked positive. All draws depend on the seed, the row and the texts alone.
"""

from __future__ import annotations

import array
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..data.arrow_store import ArrowStore, write_batches
from ..data.encodings import repair
from ..data.records import Record
from ..data.training_rows import Row, copy_key
from ..errors import ArgumentError
from ..inference.similarity import share_of
from ..search.nearest import Rows
from .dedup import Pieces, check_threshold, jaccard, mixed, pieces

if TYPE_CHECKING:
    from ..data.training_rows import InputRow
    from ..files.atomic import OutputFolder

_NAME: Final = "texts.arrow"
#: Texts of a record batch.
_BATCH_TEXTS: Final = 1024
#: The key of a blank text.
BLANK: Final = copy_key("")
#: [rows] of candidates -> the similarity [n] of each to the query.
Similarity = Callable[[Rows], npt.NDArray[np.float64]]
FILL: Final = "fill"
RANDOM: Final = "random"
#: Why a text is left out that may come in after all, when nothing else is left.
_BEFORE: Final = "before the range of another ranking"
#: Below so many texts a random order is made of all of them; above, they are drawn one by one.
_ALL: Final = 20_000
#: Random candidates looked at, at most, for each negative that is missing.
_TRIES: Final = 200
#: Random candidates drawn at once.
_CHUNK: Final = 64


class TextStore(ArrowStore):
    """Numbered texts: first the candidates, then texts of the input that are not candidates but need a vector.

    Attributes:
        candidates: How many of the texts negatives are drawn from; they have the numbers below.
        keys: [n] int64, equal for texts that differ in case and white space only.
        digest: sha256 (hex) of all texts.
    """

    def __init__(self, path: Path, candidates: int, places: dict[int, int], digest: str) -> None:
        super().__init__(path)
        self.candidates, self.keys, self.digest = candidates, self.column("key"), digest
        self._places = places

    def __getitem__(self, number: int) -> str:
        return str(self.value("text", int(number)))

    def find(self, text: str) -> int:
        """The number of a text of the input."""
        return self._places[_exact(text)]

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
        while batch := list(itertools.islice(each, _BATCH_TEXTS)):
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


@dataclass(frozen=True)
class Guards:
    """Limits that keep out candidates that may be unmarked positives. Scores are compared with the lowest positive's.

    Attributes:
        margin: A negative scores at least so much less than the positive.
        max_positive_ratio: A negative scores at most this share of the positive's score.
        max_score: A negative scores at most so much.
        near_duplicates: Jaccard similarity from which on near copies count as copies.

    Example:
        >>> from bgekit.mining import Guards
        >>> Guards(margin=0.05, near_duplicates=0.8).margin
        0.05
    """

    margin: float | None = None
    max_positive_ratio: float | None = None
    max_score: float | None = None
    near_duplicates: float | None = None

    def __post_init__(self) -> None:
        if self.max_positive_ratio is not None and not 0 < self.max_positive_ratio <= 1:
            raise ArgumentError(
                f"max_positive_ratio is a share above 0 and at most 1, such as 0.95, not {self.max_positive_ratio}"
            )
        for name in ("margin", "max_score"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ArgumentError(f"{name} must be a finite number, not {value}")
        if self.near_duplicates is not None:
            check_threshold(self.near_duplicates)

    @property
    def need_scores(self) -> bool:
        """Whether any of them looks at scores."""
        return any(each is not None for each in (self.margin, self.max_positive_ratio, self.max_score))

    def ceilings(self, positive: float) -> dict[str, float]:
        """The highest score that each guard lets through."""
        found = {}
        if self.margin is not None:
            found["margin"] = positive - self.margin
        if self.max_positive_ratio is not None:
            found["max_positive_ratio"] = share_of(positive, self.max_positive_ratio)
        if self.max_score is not None:
            found["max_score"] = self.max_score
        return found


@dataclass(frozen=True)
class Choice:
    """Settings for drawing negatives.

    Attributes:
        negatives: How many a row gets.
        first: Places of a ranking that are passed over.
        last: The last place that is looked at.
        sampling: `random` within the range, or the `top` of it.
        shares: How many in a turn come from each miner.
        fill: Fill up with random texts if there are too few candidates.
        seed: Random seed.
        guards: What keeps candidates out.

    Example:
        >>> from bgekit.mining import Choice, Guards
        >>> Choice(negatives=7, first=10, last=100, guards=Guards(max_positive_ratio=0.95)).sampling
        'random'
    """

    negatives: int = 15
    first: int = 10
    last: int = 210
    sampling: Literal["random", "top"] = "random"
    shares: tuple[int, ...] = (1,)
    fill: bool = True
    seed: int = 0
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise ArgumentError(
                f"the range {self.first}-{self.last} is empty: 10-210 skips the first 10 places and ends at place 210"
            )
        if self.negatives < 1:
            raise ArgumentError(f"negatives must be at least 1, not {self.negatives}")
        if self.seed < 0:
            raise ArgumentError(f"seed must not be negative, but it is {self.seed}")
        if any(share < 1 for share in self.shares):
            raise ArgumentError(f"shares are whole numbers of at least 1, not {list(self.shares)}")


@dataclass(frozen=True)
class Candidate:
    """A text that may become a negative.

    Attributes:
        number: Its number in the store.
        text: The text.
        miner: Who found it; `fill` for what makes up for missing ones.
        rank: Its place in the ranking, from 1; 0 for a random one.
    """

    number: int
    text: str
    miner: str
    rank: int


class Draw:
    """The negatives of one row, drawn step by step.

    Attributes:
        similarity: Scores of texts for the row, None without.
        kept: Negatives that the row had and keeps.
        accepted: The negatives so far.
        refused: Why other candidates were left out, counted once each; known when the draw has ended.
    """

    def __init__(
        self, row: Row, store: TextStore, rankings: Sequence[tuple[str, Rows | None]], choice: Choice, *,
        similarity: Similarity | None = None, positive_score: float = 0.0, kept: Sequence[str] = (),
        relevant: Sequence[int] = (), judged: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Nothing drawn yet.

        Args:
            row: The row.
            store: The texts.
            rankings: What each miner found, best first, from place 1; None for a miner that draws at random.
            choice: How to draw.
            similarity: Scores of candidates, for guards.
            positive_score: The lowest score of the query's positives, for guards.
            kept: Negatives that the row keeps.
            relevant: Keys of texts that are positives of the same query in any row.
            judged: Keys of texts that judgements call relevant to the query.
        """
        self.similarity, self.kept = similarity, kept
        self.accepted: list[Candidate] = []
        self.refused: Counter[str] = Counter()
        #: Candidates looked at so far, by number: why each was left out, "" for one that was proposed.
        self._judged: dict[int, str] = {}
        self._row, self._store, self._choice = row, store, choice
        self._ceilings = choice.guards.ceilings(positive_score)
        self._taken = {copy_key(text): "copy of a negative" for text in kept}
        self._taken |= dict.fromkeys(judged, "judged relevant") | dict.fromkeys(relevant, "positive of the same query")
        self._taken |= {copy_key(text): "copy of a positive" for text in row.positives}
        self._taken |= {copy_key(row.query): "copy of the query", BLANK: "blank"}
        self._near: list[Pieces] = []
        if choice.guards.near_duplicates is not None:
            known = [store[number] for key in (*relevant, *judged) if (number := store.first(key)) is not None]
            self._near = [pieces(text) for text in dict.fromkeys([row.query, *row.positives, *kept, *known])]
        #: Keys of what any miner places before the range: nearer than what is wanted, so not drawn at random either.
        tops = [ranking[: choice.first] for _, ranking in rankings if ranking is not None]
        self._top = set(store.keys[np.concatenate(tops)].tolist()) if tops else set()
        self._candidates = self._ordered(rankings)

    def propose(self) -> list[Candidate]:
        """Candidates, as many as are missing or all that are left; none is a copy of another. None end the draw."""
        missing = self._choice.negatives - len(self.accepted)
        found = list(itertools.islice(self._candidates, missing)) if missing > 0 else []
        if not found:
            self.end()
        return found

    def accept(self, candidates: Sequence[Candidate]) -> None:
        """Make negatives of candidates that were proposed."""
        self.accepted += candidates

    def refuse(self, candidates: Sequence[Candidate], reason: str) -> None:
        """Leave out candidates that were proposed; neither copies nor near copies of them come in."""
        for candidate in candidates:
            self._judged[candidate.number] = reason
            self._taken[int(self._store.keys[candidate.number])] = "copy of a refused one"

    def end(self) -> None:
        """Propose no more, and free what was needed for it."""
        self.refused.update(reason for reason in self._judged.values() if reason)
        self._judged, self._near, self._candidates = {}, [], iter(())

    def _ordered(self, rankings: Sequence[tuple[str, Rows | None]]) -> Iterator[Candidate]:
        sources = [
            self._random(name, number) if ranking is None else self._ranked(name, ranking)
            for number, (name, ranking) in enumerate(rankings, 1)
        ]
        yield from _in_turns(sources, self._choice.shares)
        if self._choice.fill and not any(ranking is None for _, ranking in rankings):
            yield from self._random(FILL, 0)

    def _ranked(self, name: str, ranking: Rows) -> Iterator[Candidate]:
        window = ranking[self._choice.first : self._choice.last]
        ranks = np.arange(self._choice.first + 1, self._choice.first + 1 + len(window))
        if self._choice.sampling == "random":
            # By a hash of the text, not by its place: where two neighbours swap places, the same texts are drawn.
            order = np.argsort(self._priorities(self._store.keys[window]), kind="stable")
            window, ranks = window[order], ranks[order]
        yield from self._checked(name, window, ranks.tolist())

    def _priorities(self, keys: Rows) -> npt.NDArray[np.uint64]:
        start = np.array([self._choice.seed, self._row.index], dtype=np.uint64)
        salt = mixed(mixed(start[:1]) + start[1:])
        return mixed(keys.view(np.uint64) ^ salt)

    def _random(self, name: str, number: int) -> Iterator[Candidate]:
        """Random texts; those before the range only when nothing else is left."""
        generator = np.random.default_rng([self._choice.seed, self._row.index, number])
        size = self._store.candidates
        if size <= _ALL:
            order = generator.permutation(size)
            chunks: Iterator[Rows] = (order[first : first + _CHUNK] for first in range(0, size, _CHUNK))
        else:
            tries = -(-_TRIES * self._choice.negatives // _CHUNK)
            chunks = (generator.integers(size, size=_CHUNK) for _ in range(tries))
        passed: list[int] = []
        for chunk in chunks:
            if self._top:
                near = np.array([key in self._top for key in self._store.keys[chunk].tolist()])
                passed += chunk[near].tolist()
                chunk = chunk[~near]
            yield from self._checked(name, chunk)
        # Sorted by nothing: they keep the random order they came in.
        yield from self._checked(name, np.array(passed, dtype=np.int64))

    def _checked(self, name: str, rows: Rows, ranks: Sequence[int] | None = None) -> Iterator[Candidate]:
        """Those that nothing keeps out. Without ranks they are random, which lets in what is before a range."""
        scores = self.similarity(rows) if self._ceilings and self.similarity is not None and len(rows) else None
        for position, number in enumerate(rows.tolist()):
            if self._judged.get(number, _BEFORE) != _BEFORE:
                continue
            key = int(self._store.keys[number])
            reason = self._taken.get(key)
            if reason is None and ranks is not None and key in self._top:
                reason = _BEFORE
            if reason is None and scores is not None:
                reason = next((name for name, most in self._ceilings.items() if scores[position] > most), None)
            text = "" if reason is not None else self._store[number]
            if reason is None and self._near and not self._is_new(text):
                reason = "near copy"
            self._judged[number] = reason or ""
            if reason is None:
                self._taken[key] = "copy of a negative"
                yield Candidate(number, text, name, 0 if ranks is None else ranks[position])

    def _is_new(self, text: str) -> bool:
        found = pieces(text)
        least = self._choice.guards.near_duplicates or 1.0
        if any(jaccard(found, other) >= least for other in self._near):
            return False
        self._near.append(found)
        return True


def _in_turns(sources: Sequence[Iterator[Candidate]], shares: Sequence[int]) -> Iterator[Candidate]:
    """Candidates of all sources, so many of each in a turn as its share is; the rest continues where one is empty."""
    left = list(zip(sources, shares, strict=True))
    while left:
        for entry in list(left):
            source, share = entry
            taken = list(itertools.islice(source, share))
            yield from taken
            if len(taken) < share:
                left.remove(entry)
