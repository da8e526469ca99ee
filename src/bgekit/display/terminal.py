"""What a terminal shows: text in columns, where Chinese characters take two, and progress of whatever takes long.

Progress goes to stderr: one bar with a switch, and lines that do not break it.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing_extensions import Self


def printable(text: str) -> str:
    """A text on one line and without control characters: a document must steer neither terminal nor page."""
    return " ".join("".join(" " if unicodedata.category(each)[0] == "C" else each for each in text).split())


def encodable(text: str) -> str:
    """A text with question marks for characters that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def columns(text: str) -> int:
    """The number of columns that a text takes."""
    return sum(map(_columns, text))


def clipped(text: str, width: int) -> str:
    """A text cut to so many columns, with an ellipsis where something is missing."""
    return text if columns(text) <= width else text[: _fitting(text, width - 1)].rstrip() + "…"


def middle_clipped(text: str, width: int) -> str:
    """A name cut to so many columns in its middle: names of models differ at their ends."""
    if columns(text) <= width:
        return text
    tail = text[len(text) - _fitting(text[::-1], (width - 1) // 2) :]
    return text[: _fitting(text, width - 1 - columns(tail))] + "…" + tail


def padded(text: str, width: int) -> str:
    """A text with spaces after it up to so many columns."""
    return text + " " * (width - columns(text))


def aligned(rows: Sequence[Sequence[str]], *, widest: int | None = None) -> Iterator[str]:
    """The lines of a table, whose columns are as wide as their widest cells.

    Args:
        rows: Texts of cells.
        widest: The most columns of the terminal that are kept for a cell; a longer one pushes the rest of its line.
    """
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    widths = widths if widest is None else [min(width, widest) for width in widths]
    for row in rows:
        yield "  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()


def wrapped(text: str, width: int, *, indent: str = "", lines: int | None = None) -> list[str]:
    """A text in lines of at most `width` columns, broken at spaces and, where there are none, between characters.

    Args:
        text: On one line.
        width: Columns, those of `indent` among them.
        indent: Before every line.
        lines: The most lines; what does not fit becomes an ellipsis.
    """
    room = max(width - columns(indent), 8)
    found: list[str] = []
    while text:
        last = lines is not None and len(found) == lines - 1
        end = _fitting(text, room)
        cut = last and end < len(text)
        if cut:
            end = _fitting(text, room - 1)
        if end < len(text) and text[end] != " " and (space := text.rfind(" ", 1, end)) > end // 2:
            end = space
        found.append(text[:end].rstrip() + "…" * cut)
        if last:
            break
        text = text[end:].lstrip()
    return [indent + line for line in found]


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitting(text: str, width: int) -> int:
    """The number of characters that fit into so many columns, at least one."""
    for end, character in enumerate(text):
        width -= _columns(character)
        if width < 0:
            return max(end, 1)
    return len(text)


#: From this many things on, a bar is shown on a terminal unless the caller decides.
_MANY: Final = 4096


def on_terminal() -> bool:
    """Whether stderr is a terminal, where a bar can move."""
    return sys.stderr is not None and sys.stderr.isatty()


def write_line(line: str) -> None:
    """Write a line to stderr, above a bar that stands there."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None:
        tqdm.tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)  # noqa: T201


class Progress:
    """A bar with what is done, how fast, and the time left; a context manager.

    Example:
        >>> with Progress("encode", "texts", 60, show=False) as bar:
        ...     bar.advance(20, tokens=512)
    """

    def __init__(
        self, verb: str = "", unit: str = "", total: int | None = None, *, show: bool | None = True,
        layout: str | None = None, leave: bool = True,
    ) -> None:  # fmt: skip
        """A bar that appears when it is entered.

        Args:
            verb: What is done, before the bar.
            unit: What is counted.
            total: How many of these there are, None if nobody knows.
            show: The switch; None for a bar on a terminal, from a few thousand things on.
            layout: tqdm's `bar_format`, for another look.
            leave: Keep the bar where it ended.
        """
        self._shown = on_terminal() and (total is None or total >= _MANY) if show is None else show
        # A log file gets a line now and then instead of ten a second.
        interval = 0.2 if on_terminal() else 10.0
        self._looks: dict[str, Any] = {
            "desc": verb, "unit": f" {unit}", "total": total, "bar_format": layout, "leave": leave,
            "mininterval": interval, "miniters": 0, "dynamic_ncols": True,
        }  # fmt: skip
        self._tokens = 0
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _open(self) -> Any:
        """The bar, made when it is first asked for; None where the switch is off."""
        if self._bar is None and self._shown:
            from tqdm.auto import tqdm

            self._bar = tqdm(file=sys.stderr, **self._looks)
        return self._bar

    def advance(self, count: int, tokens: int = 0) -> None:
        """So many more are done; where tokens are counted, the bar has tokens/s, too."""
        self._tokens += tokens
        if (bar := self._open()) is not None:
            if self._tokens:
                seconds = max(bar.format_dict["elapsed"], 1e-9)
                bar.set_postfix_str(f"{self._tokens / seconds:,.0f} tokens/s", refresh=False)
            bar.update(count)

    def note(self, text: str) -> None:
        """Show a text in the place of the verb."""
        if (bar := self._open()) is not None:
            bar.set_description_str(text)


class RowProgress(Progress):
    """A bar over rows, called with the rows done and all rows; it appears with the first call."""

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int, total: int) -> None:
        """So many are done, of so many."""
        self._looks["total"] = total
        if (bar := self._open()) is not None:
            bar.update(done - bar.n)


class EncodeProgress(Progress):
    """A progress bar over the bytes of the input; a context manager.

    The number of texts is known only at the end, the number of bytes from the start, so the time left is reckoned
    from bytes. Rates are means over this run; texts kept from an earlier run do not count in them.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.display import EncodeProgress
        >>> from bgekit.inference import encode_to_shards
        >>> records = read_records("corpus.jsonl")
        >>> with EncodeProgress(records.size) as bar:
        ...     report = encode_to_shards(FlagModel("BAAI/bge-small-en-v1.5"), records, "vectors", progress=bar)
    """

    def __init__(self, total: int | None, *, show: bool = True) -> None:
        """A bar for an input of `total` bytes; None (standard input) leaves out the time left."""
        known = "encode {percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
        super().__init__(total=total or None, show=show, layout=known if total else "encode: {desc} [{elapsed}]")
        self._kept = self._texts = 0
        self._start = time.perf_counter()

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
        bar = self._open()
        if bar is None:
            return
        seconds = max(time.perf_counter() - self._start, 1e-9)
        found = f"{self._kept:,} kept + " if self._kept else ""
        rates = f"{self._texts / seconds:,.0f} texts/s, {self._tokens / seconds:,.0f} tokens/s"
        bar.set_description_str(f"{found}{self._texts:,} texts, {rates}", refresh=False)
        # A shard that had to be made again behind others that are kept must not turn the bar back.
        step = max(0, position - bar.n)
        if counts:
            bar.update(step)
            return
        # Not by `update`: what is only read must not count in the rate that the time left is reckoned from.
        bar.n += step
        bar.last_print_n += step
        bar.update(0)
        if not self._texts:  # The bar's own clock and rate begin where the work does.
            bar.initial = bar.n
            self._start = time.perf_counter()
