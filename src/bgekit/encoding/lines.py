"""Lines of text files: their ends, their encoding, and what is to be said where a file is not what it is taken for."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, Generic, TypeVar

from ..errors import DataError
from .charsets import Guess, Recoded, bom, guess_by_zeros, guess_encoding, is_utf8

#: Bytes, or characters, that are looked at before it is decided what a file is.
AHEAD: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"
_HEAD: Final = 4096
_BAD_BYTES: Final = re.compile("[\udc80-\udcff]")

Item = TypeVar("Item", str, bytes)


class Ahead(Iterator[Item], Generic[Item]):
    """An iterator whose next items can be looked at before they are taken."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items: Iterator[Item] = iter(items)
        self._seen: deque[Item] = deque()
        #: Whether what was looked at last is all that there is.
        self.ended = False

    def __next__(self) -> Item:
        return self._seen.popleft() if self._seen else next(self._items)

    def look(self) -> list[Item]:
        """The next items, about 1 MiB of them, or all that are left."""
        size = sum(map(len, self._seen))
        while size < AHEAD and not self.ended:
            item = next(self._items, None)
            if item is None:
                self.ended = True
            else:
                self._seen.append(item)
                size += len(item)
        return list(self._seen)


class Lines(Iterable[str]):
    r"""The lines of a stream, each with its end: `\n`, `\r\n`, or `\r` where the file has no other.

    Bytes that are not of the encoding are lone surrogates in a line; `problem` finds them.

    Args:
        file: The file, for messages.
        stream: Its content.
        encoding: What it is written in; None for UTF-8, and a guess in the messages where it is not.

    Raises:
        DataError: (while iterating, too) the file is in another encoding.
    """

    def __init__(self, file: str, stream: Any, encoding: str | None) -> None:
        self._file, self._encoding = file, encoding
        self._utf8 = is_utf8(encoding)
        if self._utf8:
            self._check_head(stream.peek(_HEAD))
        else:
            stream = io.BufferedReader(Recoded(stream, encoding or "", file), AHEAD)
        if stream.peek(3)[:3] == _BOM:
            stream.read(3)
        self._lines = _split(stream)
        self._any_bad = False
        self._told = 0  # Lines so far that are UTF-8 and more than ASCII.
        self._guess: Guess | None = None

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._lines, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                rest = Ahead(self._lines)
                self._check(number, [line, *rest.look()])
                for each in chain([line], rest):
                    yield each.decode("utf-8", "surrogateescape")
                return
            self._told += not line.isascii()
            yield text

    def problem(self, text: str) -> str | None:
        """What is wrong with the encoding of a text of this file; None for nothing."""
        if not self._any_bad or text.isascii() or not _BAD_BYTES.search(text):
            return None
        problem = self._reason(text.encode("utf-8", "surrogateescape"))
        return f"{problem} (if it is no slip, {self._guess})" if problem and self._guess else problem

    def _reason(self, line: bytes) -> str | None:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            if not self._utf8:
                return f"not valid {self._encoding}"
            return f"not valid UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}"
        return None

    def _check_head(self, head: bytes) -> None:
        stated = bom(head)
        if stated:
            raise DataError(f"{self._file} is {stated.upper()}: --encoding {stated} reads it")
        guess = guess_by_zeros(head)
        if guess is not None:
            raise DataError(f"{self._file} is not UTF-8: {guess}")

    def _check(self, number: int, ahead: Sequence[bytes]) -> None:
        """At the first line that is not of the encoding: whether most are not.

        Args:
            number: Of the line, from 1.
            ahead: The line and those that follow.

        Raises:
            DataError: they are not. To leave out broken lines is a way to read a file only where they are few.
        """
        self._any_bad = True
        place = f"{self._file}, line {number}: {self._reason(ahead[0])}"
        bad = [each for each in ahead if self._reason(each)]
        if not self._utf8:
            if 2 * len(bad) > len(ahead) > 1:
                raise DataError(f"{place}, as most lines from here on; without --encoding it is guessed what they are")
            return
        if self._told > len(bad):  # The file is UTF-8 with slips, whose rest another encoding would spoil.
            return
        self._guess = guess_encoding(b"".join(bad))
        most = "as most lines from here on" if len(ahead) > 1 else "and it is the last line"
        if self._guess and 2 * len(bad) >= len(ahead):
            raise DataError(f"{place}, {most}: {self._guess}")
        if 2 * len(bad) > len(ahead) + number - 1:
            raise DataError(
                f"{place}, {most}, and what else they are cannot be guessed: name it with --encoding, such as gb18030, "
                "big5, cp932, cp949 or latin-1"
            )


def _split(stream: Any) -> Iterator[bytes]:
    head = stream.peek(_HEAD)
    return _old_lines(stream) if b"\r" in head and b"\n" not in head else iter(stream)


def _old_lines(stream: Any) -> Iterator[bytes]:
    r"""Lines that end in `\r`, as on the first Macintosh; `\n` and `\r\n` end one, too."""
    rest = b""
    while block := stream.read(AHEAD):
        *lines, rest = (rest + block).splitlines(keepends=True)
        yield from lines
    yield from rest.splitlines(keepends=True)
