"""How far a long encode is: a bar on stderr with texts/s, tokens/s and the time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class EncodeProgress:
    """A progress bar over the bytes of the input; a context manager.

    The number of texts is known only at the end, the number of bytes from the start, so the time left is reckoned
    from bytes. Rates are means over this run; texts kept from an earlier run do not count in them.
    """

    def __init__(self, total: int | None) -> None:
        """A bar for an input of `total` bytes; None (standard input) leaves out the time left."""
        from tqdm.auto import tqdm

        known = "encode {percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
        # A log file gets a line now and then instead of ten a second.
        interval = 0.2 if sys.stderr is not None and sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            total=total or None,
            bar_format=known if total else "encode: {desc} [{elapsed}]",
            mininterval=interval,
            miniters=0,
            dynamic_ncols=True,
            file=sys.stderr,
        )
        self._kept = self._texts = self._tokens = 0
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def kept(self, texts: int, position: int) -> None:
        """Texts of an earlier run were found good; the input is read up to `position`."""
        self._kept += texts
        self._move(position, counts=False)

    def encoded(self, texts: int, tokens: int, position: int) -> None:
        """Texts were encoded and written; the input is read up to `position`."""
        self._texts += texts
        self._tokens += tokens
        self._move(position, counts=True)

    def _move(self, position: int, *, counts: bool) -> None:
        seconds = max(time.perf_counter() - self._start, 1e-9)
        found = f"{self._kept:,} kept + " if self._kept else ""
        rates = f"{self._texts / seconds:,.0f} texts/s, {self._tokens / seconds:,.0f} tokens/s"
        self._bar.set_description_str(f"{found}{self._texts:,} texts, {rates}", refresh=False)
        # A shard that had to be made again behind others that are kept must not turn the bar back.
        step = max(0, position - self._bar.n)
        if counts:
            self._bar.update(step)
            return
        # Not by `update`: what is only read must not count in the rate that the time left is reckoned from.
        self._bar.n += step
        self._bar.last_print_n += step
        self._bar.update(0)
        if not self._texts:  # The bar's own clock and rate begin where the work does.
            self._bar.initial = self._bar.n
            self._start = time.perf_counter()
