"""Lines that hold nothing usable: an error, or left out, counted and listed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final, Literal

from ..errors import DataError

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

#: Bad lines kept in memory and listed; all are counted.
_LISTED: Final = 10_000
#: Bad lines that are logged one by one.
_LOGGED: Final = 20


@dataclass(frozen=True)
class SkippedLine:
    """A line of the input that holds no usable record."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


@dataclass
class Skipped:
    """Lines that were left out.

    Attributes:
        count: All of them.
        lines: The first 10,000.
    """

    count: int = 0
    lines: list[SkippedLine] = field(default_factory=list)

    def add(self, line: SkippedLine) -> None:
        """Count, keep and log one line."""
        self.count += 1
        if self.count <= _LISTED:
            self.lines.append(line)
        if self.count <= _LOGGED:
            logger.warning("skipped %s", line)
        elif self.count == _LOGGED + 1:
            logger.warning("more lines are skipped; from here on they are only counted")


class BadLines:
    """What becomes of lines that cannot be used: an error at the first one, or they are left out.

    The error of a line at the very beginning waits for the next one: to leave such lines out is advice where there are
    good ones, and none where it would leave out all.

    Args:
        on_error: Which of the two.
        skipped: Told what is left out.
    """

    def __init__(self, on_error: OnError, skipped: Skipped) -> None:
        self._on_error, self._skipped = on_error, skipped
        self._waiting: SkippedLine | None = None
        self._any_good = False

    def bad(self, line: SkippedLine) -> None:
        """A line that cannot be used.

        Raises:
            DataError: it, or an earlier one, is an error.
        """
        if self._on_error == "skip":
            self._skipped.add(line)
        elif self._any_good:
            raise self._error(line, advice=True)
        elif self._waiting is not None:
            raise self._error(self._waiting)
        else:
            self._waiting = line

    def good(self) -> None:
        """A line that can be used.

        Raises:
            DataError: an earlier one could not.
        """
        self._any_good = True
        if self._waiting is not None:
            raise self._error(self._waiting, advice=True)

    def end(self) -> None:
        """There is no further line.

        Raises:
            DataError: the only one could not be used.
        """
        if self._waiting is not None:
            raise self._error(self._waiting)

    def _error(self, line: SkippedLine, *, advice: bool = False) -> DataError:
        return DataError(f"{line} (--on-error skip leaves such lines out)" if advice else str(line))
