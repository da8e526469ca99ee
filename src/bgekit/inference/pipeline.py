"""Windows of texts on their way in (checked, cleaned, equal ones found) and of vectors on their way out.

What is said of texts holds for pairs of texts, whose vectors are one score wide, as well.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ..data.unicode import check_text, repair
from ..errors import ArgumentError, NumericalError, TextTypeError
from ..networks.memory import Trimmer
from .embeddings import Embeddings, Encoded

logger = logging.getLogger(__name__)
#: From this many texts on, a progress bar is shown on a terminal unless the caller decides.
_PROGRESS_FROM: Final = 4096
#: What to do where a vector has NaN or infinity.
ADVICE: Final = "Try use_fp16=False; if that does not help, the weights are damaged."
T = TypeVar("T", bound="str | tuple[str, str]")


@dataclass
class Window(Generic[T]):
    """A stretch of the input.

    Attributes:
        first: Row of its first text in the whole input.
        size: Number of its texts, copies included.
        texts: Its distinct texts that have not been seen before.
        rows: Row of each of them in the whole input.
        copies: (row, row of the equal text seen before) for all others.
        repaired: Rows whose lone surrogates were replaced.
    """

    first: int
    size: int = 0
    texts: list[T] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    repaired: list[int] = field(default_factory=list)

    def check(self, encoded: Encoded, what: str = "the vector of the text", advice: str = ADVICE) -> None:
        """Raise NumericalError, naming the text, if a vector has NaN or infinity."""
        finite = np.isfinite(encoded.vectors).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise NumericalError(
                f"{what} at index {self.rows[bad]} has NaN or infinity: {self.texts[bad]!r:.200}. {advice}"
            )

    def restore(self, encoded: Encoded) -> Encoded:
        """The result with a row for every text of the window; copies must come from the window itself."""
        if not self.copies:
            return Encoded(encoded.vectors, encoded.tokens, encoded.truncated, self._local(self.repaired))
        vectors = np.empty((self.size, encoded.vectors.shape[1]), dtype=np.float32)
        cut = {self.rows[position] for position in encoded.truncated}
        vectors[self._local(self.rows)] = encoded.vectors
        for row, source in self.copies:
            vectors[row - self.first] = vectors[source - self.first]
        cut |= {row for row, source in self.copies if source in cut}
        return Encoded(vectors, encoded.tokens, self._local(sorted(cut)), self._local(self.repaired))

    def _local(self, rows: list[int]) -> list[int]:
        return [row - self.first for row in rows]


def not_texts(value: object) -> TextTypeError:
    """The error for something that is neither a text nor an iterable of texts."""
    return TextTypeError(f"texts must be a string or an iterable of strings, not {type(value).__name__}: {value!r:.80}")


def split(texts: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive lists of at most `size` texts."""
    if isinstance(texts, dict | bytes | bytearray):
        raise not_texts(texts)
    source = iter(texts)
    while window := list(itertools.islice(source, size)):
        yield window


def valid_text(item: object, row: int) -> tuple[str, bool]:
    """An element of the input as valid Unicode, and whether it had to be repaired.

    Raises:
        TextTypeError: it is not a string; the message has its row.
    """
    return repair(check_text(item, row))


def checked_windows(windows: Iterable[list[str]], *, across: bool, texts_stay: bool) -> Iterator[Window[str]]:
    """Windows of valid Unicode texts, equal texts found.

    Args:
        windows: Lists of texts.
        across: Find equal texts in the whole input; otherwise in each window for itself.
        texts_stay: The caller holds all texts in memory anyway, so they can be remembered themselves; otherwise a
            digest of each is.

    Raises:
        TextTypeError: an element is not a string; the message has its index in the whole input.
    """

    def key(text: str) -> str | bytes:
        return text if texts_stay or not across else hashlib.blake2b(text.encode(), digest_size=16).digest()

    return distinct_windows(windows, valid_text, key, across=across)


def distinct_windows(
    windows: Iterable[list[Any]],
    valid: Callable[[object, int], tuple[T, bool]],
    key: Callable[[T], object],
    *,
    across: bool,
) -> Iterator[Window[T]]:
    """Windows of valid inputs, equal ones found.

    Args:
        windows: Lists of inputs.
        valid: An input and its row -> the input to compute, and whether it had to be repaired; raises on others.
        key: What equal inputs have in common.
        across: Find equal inputs in the whole input; otherwise in each window for itself.
    """
    seen: dict[object, int] = {}
    first = 0
    for texts in windows:
        if not across:
            seen = {}
        window: Window[T] = Window(first)
        for row, item in enumerate(texts, first):
            text, changed = valid(item, row)
            if changed:
                window.repaired.append(row)
            source = seen.setdefault(key(text), row)
            if source == row:
                window.texts.append(text)
                window.rows.append(row)
            else:
                window.copies.append((row, source))
        window.size = len(texts)
        first += len(texts)
        yield window


def computed(
    windows: Iterable[Window[T]],
    compute: Callable[[Iterator[list[T]]], Iterator[Encoded]],
    dimension: int,
    what: str = "the vector of the text",
    advice: str = ADVICE,
) -> Iterator[tuple[Window[T], Encoded]]:
    """Each window with the vectors of its distinct texts, checked to be finite, in order.

    Args:
        windows: The input.
        compute: Lists of distinct texts, not empty -> one result for each, in order.
        dimension: Width of the vectors.
        what: For the message of an error.
        advice: The end of that message: what to do.

    Raises:
        NumericalError: a vector has NaN or infinity.
    """
    waiting: deque[Window[T]] = deque()

    def texts() -> Iterator[list[T]]:
        for window in windows:
            waiting.append(window)
            if window.texts:
                yield window.texts

    nothing = Encoded(np.empty((0, dimension), dtype=np.float32))
    trimmer = Trimmer()
    for encoded in compute(texts()):
        while not waiting[0].texts:
            yield waiting.popleft(), nothing
        window = waiting.popleft()
        window.check(encoded, what, advice)
        yield window, encoded
        trimmer.trim()
    while waiting:
        yield waiting.popleft(), nothing


class Collector:
    """Writes windows into one array: the caller's, one of known size, or one that grows."""

    def __init__(self, dimension: int, total: int | None, out: npt.NDArray[Any] | None) -> None:
        if out is not None:
            _check_out(out, total, dimension)
        self._out = out
        self._target = out if out is not None else np.empty((total or 0, dimension), dtype=np.float32)
        self._truncated: set[int] = set()
        #: Rows that were computed in several parts.
        self.split: set[int] = set()
        self._repaired: list[int] = []
        self._rows = 0
        self._first: dict[bytes, int] = {}

    def add(self, window: Window[Any], encoded: Encoded) -> None:
        """Write the next window."""
        if len(encoded.vectors) and encoded.vectors.shape[1] != self._target.shape[1]:
            self._take_width(encoded.vectors.shape[1])
        self._rows = window.first + window.size
        if self._rows > len(self._target):
            self._grow()
        self._target[window.rows] = encoded.vectors
        # A text whose tokens an earlier window had is the same to the model: another batch only rounded it otherwise.
        for row, key in zip(window.rows, encoded.keys, strict=False):
            if (source := self._first.setdefault(key, row)) != row:
                self._target[row] = self._target[source]
        self._truncated.update(window.rows[position] for position in encoded.truncated)
        self.split.update(window.rows[position] for position in encoded.split)
        for row, source in window.copies:
            self._target[row] = self._target[source]
            for rows in (self._truncated, self.split):
                if source in rows:
                    rows.add(row)
        self._repaired += window.repaired

    def result(self) -> Embeddings:
        """All vectors."""
        if self._out is not None and self._rows < len(self._out):
            raise ArgumentError(f"out has room for {len(self._out)} vectors, but there were only {self._rows} texts")
        return Embeddings.of(self._target[: self._rows], tuple(sorted(self._truncated)), tuple(self._repaired))

    def _take_width(self, width: int) -> None:
        """Make room for vectors of another width than was expected: a server may know better than a table."""
        if self._out is not None or self._rows:
            raise ArgumentError(
                f"the vectors have the width {width}, {'out has' if self._out is not None else 'those before had'} "
                f"{self._target.shape[1]}"
            )
        self._target = np.empty((len(self._target), width), dtype=np.float32)

    def _grow(self) -> None:
        if self._out is not None:
            raise ArgumentError(f"out has room for {len(self._out)} vectors, but there are more texts")
        grown = np.empty((max(self._rows, 2 * len(self._target)), self._target.shape[1]), dtype=np.float32)
        grown[: len(self._target)] = self._target
        self._target = grown


def _check_out(out: npt.NDArray[Any], total: int | None, dimension: int) -> None:
    if out.ndim != 2 or out.shape[1] != dimension or (total is not None and out.shape[0] != total):
        rows = "n" if total is None else total
        raise ArgumentError(f"out has the shape {out.shape}, the vectors need ({rows}, {dimension})")
    if not np.issubdtype(out.dtype, np.floating) or not out.flags.writeable:
        raise ArgumentError(f"out must be a writable array of a floating type, not {out.dtype}")


class Tally:
    """Counts what happened to texts during one call, for one log line at its end.

    Args:
        noun: What they are.
    """

    def __init__(self, noun: str = "texts") -> None:
        self._noun = noun
        self._texts = self._truncated = self._repaired = 0

    def add(self, texts: int, result: Encoded | Embeddings) -> None:
        """Count a result that has a row for each of its `texts`, copies included."""
        self._texts += texts
        self._truncated += len(result.truncated)
        self._repaired += len(result.repaired)

    def log(self, name: str) -> None:
        """Say what happened, if anything did."""
        if self._truncated:
            logger.warning(
                "%d of %d %s were too long for %s and were cut", self._truncated, self._texts, self._noun, name
            )
        if self._repaired:
            logger.warning("%d of %d %s held lone surrogates, now U+FFFD", self._repaired, self._texts, self._noun)


def with_progress(
    results: Iterator[tuple[Window[T], Encoded]],
    total: int | None,
    show: bool | None,
    *,
    noun: str = "texts",
    verb: str = "encode",
) -> Iterator[tuple[Window[T], Encoded]]:
    """The results, with a progress bar of texts/s, tokens/s and time left on stderr if asked for.

    By default (`show=None`) the bar is there on a terminal, from a few thousand texts on.
    """
    if show is None:
        show = (total is None or total >= _PROGRESS_FROM) and sys.stderr is not None and sys.stderr.isatty()
    if not show:
        yield from results
        return
    from tqdm.auto import tqdm

    tokens = 0
    with tqdm(total=total, unit=f" {noun}", desc=verb) as bar:
        for window, encoded in results:
            tokens += encoded.tokens
            bar.update(window.size)
            bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):,.0f} tokens/s", refresh=False)
            yield window, encoded
