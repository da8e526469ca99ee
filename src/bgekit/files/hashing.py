"""Hashes of files and texts, which tell whether they have changed."""

from __future__ import annotations

import hashlib
import os
import time
from typing import IO, Any, Final

from ..errors import OutputError
from .remote import is_url, open_binary, url_status


def digest(*parts: str) -> str:
    """sha256 (hex) of some strings, for fingerprints.

    Example:
        >>> from bgekit.files import digest
        >>> digest("BAAI/bge-small-en-v1.5", "cls")[:8]
        'd2aa02a8'
    """
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


#: A file that was changed less than so many nanoseconds ago may be changed again within a tick of the clock.
_SETTLED_NS: Final = 2 * 10**9


class HashedFile:
    """A binary file that is written once, front to back, and knows the sha256 of its content."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write bytes, or anything with a buffer of bytes."""
        self._digest.update(data)
        return self._file.write(data)

    #: What pyarrow asks of a file that it writes to.
    closed = False

    def tell(self) -> int:
        """Bytes that were written."""
        return self._file.tell()

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def sync(self) -> None:
        """Put what was written on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def sha256(self) -> str:
        """sha256 (hex) of what was written."""
        return self._digest.hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """sha256 (hex) of a file at a path or a URL, "" when it is not there.

    Raises:
        OutputError: it cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from bgekit.files import file_sha256
        >>> len(file_sha256(Path("corpus.jsonl"))), file_sha256(Path("not-there"))
        (64, '')
    """
    try:
        return content_sha256(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def content_sha256(path: str | os.PathLike[str]) -> str:
    """sha256 (hex) of a file at a path or a URL.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open_binary(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_status(path: str | os.PathLike[str]) -> list[int | str] | None:
    """Size, times and number of a file, which change with its content; None where they cannot be relied on.

    Of one at a URL they are its size and the mark that its server gives it.

    Size and time of writing alone are not enough: tools that copy and unpack set the time. The time at which the
    system last changed the file's entry cannot be set, but its clock ticks in steps, and Windows keeps none.

    Raises:
        FileNotFoundError: it is not there.
    """
    if is_url(path):
        there = url_status(os.fspath(path))
        return [there.size, there.version] if there.version and there.size is not None else None
    status = os.stat(path)
    if os.name == "nt" or time.time_ns() - status.st_ctime_ns < _SETTLED_NS:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
