"""What a terminal shows: text in columns, where Chinese characters take two, and progress of whatever takes long.

Progress goes to stderr: one bar with a switch, and lines that do not break it.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
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


def shown_command(arguments: Sequence[str]) -> str:
    """A command as people type it: `bge` without the folder that it lies in, and instead of `python -m bgekit`."""
    program, *rest = arguments
    path = Path(program)
    ours = path.stem == "bge" or (path.name == "__main__.py" and path.parent.name == "bgekit")
    return shlex.join(["bge" if ours else program, *rest])


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
#: Seconds between two drawings of a bar, and between two lines where a bar cannot move.
_REDRAW: Final = 0.2
_EVERY: Final = 30.0
#: Columns that a bar takes with its share and the time since it began.
_LEAST: Final = 26
#: Seconds that what takes no longer than them is passed over in silence.
_SOON: Final = 1.0
#: Marks a record of the log (`extra=`) that a verb says once, when it is done.
AT_END: Final = {"at_end": True}
_title: ContextVar[str] = ContextVar("title", default="")


def on_terminal() -> bool:
    """Whether stderr is a terminal, where a bar can move."""
    return sys.stderr is not None and sys.stderr.isatty()


def _can_redraw() -> bool:
    """Whether a bar can move: on a terminal, and in a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return on_terminal() or "IPKernelApp" in getattr(shell, "config", ())


def write_line(line: str) -> None:
    """Write a line to stderr, above a bar that stands there."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None:
        tqdm.tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def titled(title: str) -> Iterator[None]:
    """Let bars that appear in a block of code say what they are about, whoever makes them.

    Args:
        title: Stands where the verb stands otherwise, such as `SciFact: documents, model 2 of 2`.
    """
    token = _title.set(title)
    try:
        yield
    finally:
        _title.reset(token)


def title_now() -> str:
    """The title of the block of code that runs; empty without one."""
    return _title.get()


@contextlib.contextmanager
def loading(what: str, *, show: bool = True) -> Iterator[None]:
    """Say on a terminal that something is being loaded, if that takes more than a second.

    Args:
        what: It, such as the name of a model.
        show: The switch.
    """
    if not (show and on_terminal()):
        yield
        return
    said = threading.Event()

    def say() -> None:
        said.set()
        sys.stderr.write(f"loading {printable(what)} ...")
        sys.stderr.flush()

    timer = threading.Timer(_SOON, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if said.is_set():  # The line is for the time being: what comes next stands in its place.
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Progress:
    """A bar with what is done, how fast, and the time left; a context manager. Safe to tell from several threads.

    Where a bar cannot move (a log file), a plain line says the same every 30 seconds.

    Example:
        >>> with Progress("encode", "texts", 60, show=False) as bar:
        ...     bar.advance(20, tokens=512)
    """

    def __init__(
        self, verb: str = "", unit: str = "", total: int | None = None, *, show: bool | None = True,
        layout: str | None = None, leave: bool = True, first: int = 0,
    ) -> None:  # fmt: skip
        """A bar that appears when it is entered.

        Args:
            verb: What is done, before the bar; within `titled` the title stands there.
            unit: What is counted.
            total: How many of these there are, None if nobody knows.
            show: The switch; None for a bar on a terminal, from a few thousand things on.
            layout: tqdm's `bar_format`, for another look.
            first: How many were done before; they do not count in the rate.
            leave: Keep the bar where it ended; within `titled`, where many follow each other, it always goes.
        """
        self._shown = on_terminal() and (total is None or total >= _MANY) if show is None else show
        title = _title.get()
        self._verb, self._unit, self._total = title or verb, unit, total
        self._layout, self._leave = layout, leave and not title
        self._moves = _can_redraw()
        #: Of many bars those of work that is soon done need not be seen.
        self._wait = _SOON if title else 0.0
        self._done, self._tokens, self._first = float(first), 0, float(first)
        self._start = self._drawn = time.perf_counter()
        self._lock = threading.RLock()
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._bar is not None:
                self._draw()
                self._bar.close()
            self._shown = False  # A thread that is told to stop may still finish what it has begun.

    def advance(self, count: float, tokens: int = 0) -> None:
        """So many more are done; where tokens are counted, the bar has tokens/s, too."""
        with self._lock:
            self._tokens += tokens
            self._done += count
            self._show()

    def note(self, text: str) -> None:
        """Show a text in the place of the verb."""
        self._verb = text
        if (bar := self._open()) is not None:
            bar.set_description_str(text)

    def _open(self) -> Any:
        """The bar, made when it is first asked for; None where the switch is off, or no bar can move."""
        waited = time.perf_counter() - self._start >= self._wait
        if self._bar is None and self._shown and self._moves and waited:
            from tqdm.auto import tqdm

            layout = (
                "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}" if self._total else "{desc} {elapsed}{postfix}"
            )
            self._bar = tqdm(
                file=sys.stderr, desc=self._verb or None, total=self._total, leave=self._leave, dynamic_ncols=True,
                bar_format=self._layout or layout,
            )  # fmt: skip
        return self._bar

    def _show(self) -> None:
        """Draw the bar, or write a line, if it is time to."""
        bar, now = self._open(), time.perf_counter()
        if not self._shown or now - self._drawn < (_REDRAW if self._moves else _EVERY) or (self._moves and bar is None):
            return
        self._drawn = now
        if bar is None:
            share = f"{self._done / self._total:.0%}" if self._total else ""
            write_line(f"{self._verb}: " + ", ".join(filter(None, (share, *self._parts()))))
        else:
            self._draw()

    def _draw(self) -> None:
        """Draw the bar with as much beside it as the terminal has room for."""
        if self._layout is not None:
            return
        room = shutil.get_terminal_size().columns - columns(self._verb) - _LEAST
        shown: list[str] = []
        for part in filter(None, self._parts()):
            room -= columns(part) + 2
            if room >= 0:
                shown.append(part)
        self._bar.n = round(self._done) if not self._total else min(round(self._done), self._total)
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.refresh()

    def _parts(self) -> tuple[str, ...]:
        """What is said beside the share that is done; what matters most comes first."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        tokens = f"{self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""
        return self._left(), self._counts(), _rate(self._things() / seconds, self._unit), tokens

    def _counts(self) -> str:
        """What is done, in words."""
        return f"{self._done:,.0f}{f'/{self._total:,}' if self._total else ''} {self._unit}"

    def _things(self) -> float:
        """Units that were done in this run."""
        return self._done - self._first

    def _left(self) -> str:
        """The time left, if it can be reckoned."""
        made = self._done - self._first
        if not self._total or made <= 0 or self._done >= self._total:
            return ""
        seconds = (time.perf_counter() - self._start) / made * max(self._total - self._done, 0.0)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


def _rate(value: float, unit: str) -> str:
    """So many units per second; of slow ones the seconds that each takes."""
    if 0 < value < 0.5:
        return f"{1 / value:,.0f} s/{unit.removesuffix('s')}"
    return f"{value:,.0f} {unit}/s" if value >= 10 else f"{value:.1f} {unit}/s"


class RowProgress(Progress):
    """A bar over rows, called with the rows done and all rows; it appears with the first call."""

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int, total: int) -> None:
        """So many are done, of so many."""
        with self._lock:
            self._total, self._done = total, float(done)
            self._show()


class EncodeProgress(Progress):
    """A progress bar over the bytes of the input; a context manager.

    The number of texts is known only at the end, the number of bytes from the start, so the time left is reckoned
    from bytes; where an input is not a file, the places of its records stand for them. It moves within a shard, as
    tokens are computed. Rates are means over this run; texts kept from an earlier run do not count in them.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.display import EncodeProgress
        >>> from bgekit.inference import encode_to_shards
        >>> records = read_records("corpus.jsonl")
        >>> with EncodeProgress(records.size) as bar:
        ...     report = encode_to_shards(FlagModel("BAAI/bge-small-en-v1.5"), records, "vectors", progress=bar)
    """

    def __init__(self, total: int | None, *, show: bool = True, leave: bool = True) -> None:
        """A bar for an input of `total` bytes; None (standard input) leaves out the time left."""
        super().__init__("encode", "texts", total or None, show=show, leave=leave)
        self._kept = 0
        #: Texts whose vectors are written, and those that are computed beyond them; the same of tokens and bytes.
        self._texts, self._texts_ahead = 0, 0.0
        self._written, self._tokens_ahead = 0, 0
        self._position, self._bytes_ahead = 0, 0.0

    def kept(self, texts: int, position: int) -> None:
        """Texts of an earlier run were found good; the input is read up to `position`."""
        with self._lock:
            self._kept += texts
            self._position = max(self._position, position)
            if not self._things():  # The clock and the rate begin where the work does.
                self._first, self._start = float(self._position), time.perf_counter()
            self._move()

    def computed(self, texts: float, tokens: int, size: float) -> None:
        """Texts were computed, a share of a shard; `size` is that of their input."""
        with self._lock:
            self._texts_ahead += texts
            self._tokens_ahead += tokens
            self._bytes_ahead += size
            self._move()

    def encoded(self, texts: int, tokens: int, position: int) -> None:
        """Texts were encoded and written; the input is read up to `position`."""
        with self._lock:
            self._texts += texts
            self._written += tokens
            self._texts_ahead = max(0.0, self._texts_ahead - texts)
            self._tokens_ahead = max(0, self._tokens_ahead - tokens)
            self._bytes_ahead = max(0.0, self._bytes_ahead - max(0, position - self._position))
            self._position = max(self._position, position)
            self._move()

    def _move(self) -> None:
        self._tokens = self._written + self._tokens_ahead
        # A shard that had to be made again behind others that are kept must not turn the bar back.
        self._done = max(self._done, self._position + self._bytes_ahead)
        if self._total:
            self._done = min(self._done, float(self._total))
        self._show()

    def _things(self) -> float:
        return self._texts + self._texts_ahead

    def _counts(self) -> str:
        found = f"{self._kept:,} kept + " if self._kept else ""
        return f"{found}{self._things():,.0f} texts"
