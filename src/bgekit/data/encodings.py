"""Encodings of text files: UTF-8 unless the caller says otherwise, and a guess at what a file is that is not UTF-8.

Lines that are not of their file's encoding are found as they are read, and `repair` makes any text valid Unicode.

The guess tries decoders. A detector as a dependency (charset-normalizer is none of torch's or transformers') would be
for the sake of one line in an error message, and short Chinese texts are where detectors err.
"""

from __future__ import annotations

import codecs
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Final, Generic, TypeVar

from ..errors import ArgumentError, DataError
from ..files.yaml_tables import packaged_yaml

#: Bytes that a guess is made from.
_SAMPLE: Final = 1 << 16
#: Characters of it that are looked at.
_LOOKED_AT: Final = 4096
#: Stands for bytes that are not of the stated encoding; in UTF-8 it is a byte that cannot be.
_MARK: Final = "\udcff"
_BOMS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


@dataclass(frozen=True)
class Guess:
    """A guess at the encoding of a file.

    Attributes:
        encoding: As `--encoding` takes it.
        name: For people.
    """

    encoding: str
    name: str

    def __str__(self) -> str:
        return f"it looks like {self.name}: --encoding {self.encoding} reads it"


@dataclass(frozen=True)
class _Wide(Guess):
    """An encoding of two bytes a character, and what texts in it are made of: the fields of encodings.yaml."""

    leads: Sequence[tuple[int, int]]
    low_trails: bool
    frequent: str

    def fit(self, text: str) -> float:
        """Likelihood of the guess, from 0 (no such text) to 3 (nothing but frequent characters)."""
        characters = [character for character in text if not character.isascii()]
        usual = sum(map(self._usual, characters)) / len(characters)
        return usual + 2 * sum(character in self.frequent for character in characters) / len(characters)

    def _usual(self, character: str) -> bool:
        try:
            code = character.encode(self.encoding)
        except UnicodeEncodeError:
            return False
        fits = len(code) == 2 and (self.low_trails or code[1] >= 0xA1)
        return fits and any(first <= code[0] <= last for first, last in self.leads)


@dataclass(frozen=True)
class _Narrow(Guess):
    """An encoding of one byte a character, likewise."""

    letters: str
    least: int


@lru_cache
def _known() -> tuple[list[_Wide], list[_Narrow]]:
    """The encodings of encodings.yaml, which is read when there is something to guess."""
    table = packaged_yaml(__package__, "encodings.yaml")
    return [_Wide(**fields) for fields in table["wide"]], [_Narrow(**fields) for fields in table["narrow"]]


UTF16_LE, UTF16_BE = Guess("utf-16-le", "UTF-16"), Guess("utf-16-be", "UTF-16")
UTF32_LE, UTF32_BE = Guess("utf-32-le", "UTF-32"), Guess("utf-32-be", "UTF-32")
#: Characters that a guess at UTF-16 needs, as random bytes are usual ones soon enough.
_ENOUGH: Final = 10
#: What a fit has to be at least. Bytes of another encoding stay below half of the first, and a third of the second.
_FITS_WIDE, _FITS_NARROW = 0.85, 0.8


def check_encoding(name: str | None) -> None:
    """Raise unless it is the name of an encoding of texts that Python knows, or None.

    Raises:
        ArgumentError: it is not.
    """
    try:
        "".encode("utf-8" if name is None else name)
        # Of some (idna, punycode) there are no decoders that mark what they cannot read.
        codecs.getincrementaldecoder("utf-8" if name is None else name)(_mark_bad).decode(b"a", False)
    except (LookupError, TypeError, ValueError):
        raise ArgumentError(
            f"there is no encoding {name!r}; give one such as utf-8, gb18030, big5, cp932 (Shift-JIS), cp949 (EUC-KR), "
            "utf-16 or latin-1"
        ) from None


def is_utf8(name: str | None) -> bool:
    """Whether a name (or None) stands for UTF-8."""
    return name is None or codecs.lookup(name).name in ("utf-8", "utf-8-sig", "ascii")


def bom(head: bytes) -> str | None:
    """The encoding that the first bytes state, other than UTF-8; None if they state none."""
    return next((name for mark, name in _BOMS if head.startswith(mark)), None)


def guess_encoding(sample: bytes) -> Guess | None:
    """The likely encoding of bytes that are not UTF-8; None if no known one fits."""
    sample = sample[:_SAMPLE]
    wide, narrow = _known()
    found: list[tuple[float, Guess]] = []
    for each in wide:
        if text := _read(sample, each.encoding):
            found.append((each.fit(text) / _FITS_WIDE, each))
    for guess in (UTF16_LE, UTF16_BE):  # Any two bytes are a character of these.
        if (text := _read(sample, guess.encoding)) and len(text) >= _ENOUGH:
            found.append((max(each.fit(text) for each in wide) / _FITS_WIDE, guess))
    for known in narrow:
        if (text := _read(sample, known.encoding)) and len(text) >= known.least:
            found.append((sum(character in known.letters for character in text) / len(text) / _FITS_NARROW, known))
    fit, best = max(found, key=lambda pair: pair[0], default=(0.0, None))
    return best if fit >= 1 else None


def guess_by_zeros(head: bytes) -> Guess | None:
    """The wide form of Unicode that the beginning of a file is in, by its NUL bytes; None if it is in none."""
    zeros = [head[place::4].count(0) for place in range(4)]
    count, size = sum(zeros), len(head)
    if 2 * count > size:
        if zeros[0] > 0.9 * size / 4:
            return UTF32_BE if zeros[3] < 0.5 * size / 4 else None
        return UTF32_LE if zeros[3] > 0.9 * size / 4 else None
    little, big = zeros[1] + zeros[3], zeros[0] + zeros[2]
    guess = UTF16_LE if little > big else UTF16_BE
    if not count or min(little, big) > 0.1 * count:
        return None
    # Many zeros are Latin letters; few can be line ends between other letters, which then have to make sense.
    if 4 * count > size:
        return guess
    text = _read(head, guess.encoding)
    return guess if text and max(wide.fit(text) for wide in _known()[0]) >= _FITS_WIDE else None


def _read(sample: bytes, encoding: str) -> str | None:
    """The beginning of a sample, decoded; None where more than a hundredth of what is beyond ASCII cannot be."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    text = decoder.decode(sample)
    beyond = [character for character in text if not character.isascii()][:_LOOKED_AT]
    wrong = beyond.count("\ufffd")
    return "".join(beyond) if beyond and 100 * wrong <= len(beyond) else None


def repair(text: str) -> tuple[str, bool]:
    """The text as valid Unicode, and whether it had to be changed.

    Surrogate pairs become the character they stand for, lone surrogates become U+FFFD.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), True
    return text, False


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that should be UTF-8, for messages."""
    return f"not valid UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}"


class Recoded(io.RawIOBase):
    """A stream in another encoding as one in UTF-8; what is not of that encoding becomes a byte that is not UTF-8."""

    def __init__(self, stream: Any, encoding: str, name: str = "the input") -> None:
        self._stream, self._encoding, self._name = stream, encoding, name
        self._decoder = codecs.getincrementaldecoder(encoding)(_mark_bad)
        self._ready, self._ended = b"", False

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as any raw stream does."""
        while not self._ready and not self._ended:
            data = self._stream.read1(_SAMPLE)
            self._ended = not data
            try:
                text = self._decoder.decode(data, self._ended)
            except UnicodeError as error:
                raise DataError(f"{self._name} is not {self._encoding}: {error}") from error
            self._ready = text.encode("utf-8", "surrogateescape")
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


_mark_bad: Final = "bgekit-mark"
codecs.register_error(_mark_bad, lambda error: (_MARK, getattr(error, "end")))  # noqa: B009
#: Bytes, or characters, that are looked at before it is decided what a file is.
AHEAD: Final = 1 << 20
BOM: Final = b"\xef\xbb\xbf"
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
        offset: Bytes of the file before the stream's first line. Whoever reads from the middle has read what is before
            and seen what the file is.

    Attributes:
        offset: Bytes of the file before the line that comes next; None where the file cannot be entered there.

    Raises:
        DataError: (while iterating, too) the file is in another encoding.
    """

    def __init__(self, file: str, stream: Any, encoding: str | None, offset: int = 0) -> None:
        self._file, self._encoding = file, encoding
        self._utf8 = is_utf8(encoding)
        self.offset: int | None = offset if self._utf8 else None
        if not self._utf8:
            stream = io.BufferedReader(Recoded(stream, encoding or "", file), AHEAD)
        elif not offset:
            self._check_head(stream.peek(_HEAD))
        if not offset and stream.peek(3)[:3] == BOM:
            self._pass(stream.read(3))
        self._lines = _split(stream)
        self._entered = self._any_bad = offset > 0
        self._told = 0  # Lines so far that are UTF-8 and more than ASCII.
        self._guess: Guess | None = None

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._lines, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                rest = Ahead(self._lines)
                if not self._entered:
                    self._check(number, [line, *rest.look()])
                for each in chain([line], rest):
                    self._pass(each)
                    yield each.decode("utf-8", "surrogateescape")
                return
            self._told += not line.isascii()
            self._pass(line)
            yield text

    def _pass(self, data: bytes) -> None:
        if self.offset is not None:
            self.offset += len(data)

    def problem(self, text: str) -> str | None:
        """The error in the encoding of a text of this file; None if there is none."""
        if not self._any_bad or text.isascii() or not _BAD_BYTES.search(text):
            return None
        problem = self._reason(text.encode("utf-8", "surrogateescape"))
        return f"{problem} (if it is not a typing error, {self._guess})" if problem and self._guess else problem

    def _reason(self, line: bytes) -> str | None:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return not_utf8(error) if self._utf8 else f"not valid {self._encoding}"
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
            number: Number of the line, from 1.
            ahead: The line and those that follow.

        Raises:
            DataError: they are not. To leave out broken lines is a way to read a file only where they are few.
        """
        self._any_bad = True
        place = f"{self._file}, line {number}: {self._reason(ahead[0])}"
        bad = [each for each in ahead if self._reason(each)]
        if not self._utf8:
            if 2 * len(bad) > len(ahead) > 1:
                raise DataError(
                    f"{place}, as most lines from here on; leave out --encoding to have the encoding guessed"
                )
            return
        if self._told > len(bad):  # The file is UTF-8 with slips, whose rest another encoding would spoil.
            return
        self._guess = guess_encoding(b"".join(bad))
        most = "as most lines from here on" if len(ahead) > 1 else "and it is the last line"
        if self._guess and 2 * len(bad) >= len(ahead):
            raise DataError(f"{place}, {most}: {self._guess}")
        if 2 * len(bad) > len(ahead) + number - 1:
            raise DataError(
                f"{place}, {most}, and their encoding cannot be guessed: name it with --encoding, such as gb18030, "
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
