"""Windows of texts on their way in (checked, cleaned, equal texts found) and of vectors on their way out."""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, NumericalError, TextTypeError
from .result import Embeddings, Encoded
from .tokenization import check_text, repair

logger = logging.getLogger(__name__)

#: From this many texts on, a progress bar is shown on a terminal unless the caller decides.
_PROGRESS_FROM: Final = 4096


@dataclass
class Window:
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
    texts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    repaired: list[int] = field(default_factory=list)

    def check(self, encoded: Encoded) -> None:
        """Raise NumericalError, naming the text, if a vector has NaN or infinity."""
        finite = np.isfinite(encoded.vectors).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise NumericalError(
                f"the vector of the text at index {self.rows[bad]} has NaN or infinity: {self.texts[bad]!r:.200}. "
                "Try use_fp16=False; if that does not help, the weights are damaged."
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


def split(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Consecutive lists of at most `size` texts."""
    if isinstance(texts, dict | bytes | bytearray):
        raise not_texts(texts)
    source = iter(texts)
    while window := list(itertools.islice(source, size)):
        yield window


def checked_windows(windows: Iterable[list[str]], *, across: bool, texts_stay: bool) -> Iterator[Window]:
    """Windows of valid Unicode texts, equal texts found.

    Args:
        windows: Lists of texts.
        across: Find equal texts in the whole input; otherwise in each window for itself.
        texts_stay: The caller holds all texts in memory anyway, so they can be remembered themselves; otherwise a
            digest of each is.

    Raises:
        TextTypeError: an element is not a string; the message has its index in the whole input.
    """
    seen: dict[str | bytes, int] = {}
    first = 0
    for texts in windows:
        if not across:
            seen = {}
        window = Window(first)
        for row, item in enumerate(texts, first):
            text, changed = repair(check_text(item, row))
            if changed:
                window.repaired.append(row)
            key = text if texts_stay or not across else hashlib.blake2b(text.encode(), digest_size=16).digest()
            source = seen.setdefault(key, row)
            if source == row:
                window.texts.append(text)
                window.rows.append(row)
            else:
                window.copies.append((row, source))
        window.size = len(texts)
        first += len(texts)
        yield window


class Collector:
    """Writes windows into one array: the caller's, one of known size, or one that grows."""

    def __init__(self, dimension: int, total: int | None, out: npt.NDArray[Any] | None) -> None:
        if out is not None:
            _check_out(out, total, dimension)
        self._out = out
        self._target = out if out is not None else np.empty((total or 0, dimension), dtype=np.float32)
        self._truncated: set[int] = set()
        self._repaired: list[int] = []
        self._rows = 0

    def add(self, window: Window, encoded: Encoded) -> None:
        """Write the next window."""
        self._rows = window.first + window.size
        if self._rows > len(self._target):
            self._grow()
        self._target[window.rows] = encoded.vectors
        self._truncated.update(window.rows[position] for position in encoded.truncated)
        for row, source in window.copies:
            self._target[row] = self._target[source]
            if source in self._truncated:
                self._truncated.add(row)
        self._repaired += window.repaired

    def result(self) -> Embeddings:
        """All vectors."""
        if self._out is not None and self._rows < len(self._out):
            raise ArgumentError(f"out has room for {len(self._out)} vectors, but there were only {self._rows} texts")
        return Embeddings.of(self._target[: self._rows], tuple(sorted(self._truncated)), tuple(self._repaired))

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
    """Counts what happened to texts during one call, for one log line at its end."""

    def __init__(self) -> None:
        self._texts = self._truncated = self._repaired = 0

    def add(self, texts: int, result: Encoded | Embeddings) -> None:
        """Count a result that has a row for each of its `texts`, copies included."""
        self._texts += texts
        self._truncated += len(result.truncated)
        self._repaired += len(result.repaired)

    def log(self, name: str) -> None:
        """Say what happened, if anything did."""
        if self._truncated:
            logger.warning("%d of %d texts were too long for %s and were cut", self._truncated, self._texts, name)
        if self._repaired:
            logger.warning("%d of %d texts held lone surrogates, now U+FFFD", self._repaired, self._texts)


def with_progress(
    results: Iterator[tuple[Window, Encoded]], total: int | None, show: bool | None
) -> Iterator[tuple[Window, Encoded]]:
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
    with tqdm(total=total, unit=" texts", desc="encode") as bar:
        for window, encoded in results:
            tokens += encoded.tokens
            bar.update(window.size)
            bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):,.0f} tokens/s", refresh=False)
            yield window, encoded
