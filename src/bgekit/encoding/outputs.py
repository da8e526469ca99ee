"""A folder that one process at a time writes to, and files that appear in it whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final

from ..errors import OutputError

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_LOCK: Final = ".lock"
_TEMPORARY: Final = ".tmp"
#: A file that was changed less than so many nanoseconds ago may be changed again within a tick of the clock.
_SETTLED_NS: Final = 2 * 10**9


class OutputFolder:
    """A folder held for writing; a context manager.

    The claim is a lock of the operating system, which frees it however the process ends. Unfinished files of an
    earlier process are removed on entry.

    Raises:
        OutputError: on entry, when the folder cannot be made or written, or another process holds it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        self._created = False

    def __enter__(self) -> Self:
        try:
            self._created = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path / _LOCK)
            for leftover in self.path.glob(f"*{_TEMPORARY}"):
                leftover.unlink()
        except OutputError:
            raise
        except FileExistsError as error:
            raise OutputError(f"{self.path} is a file; the output must be a folder") from error
        except OSError as error:
            raise OutputError(f"cannot write to the folder {self.path}: {error.strerror or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            # Removed before it is freed: whoever opens the name from now on makes a new file, and `_take_lock`
            # looks whether the file it locked is still the one of that name.
            with contextlib.suppress(OSError):  # A system that keeps open files from removal; an empty file stays.
                (self.path / _LOCK).unlink()
            os.close(self._lock)
            self._lock = None
        if self._created and error is not None:
            with contextlib.suppress(OSError):  # Not empty: something was written, and it stays.
                self.path.rmdir()

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[HashedFile]:
        """Write a file that gets its name only when it is complete and on the disk.

        Raises:
            OutputError: it cannot be written; nothing of it stays.
        """
        temporary = self.path / f"{name}{_TEMPORARY}"
        try:
            with temporary.open("wb") as file:
                hashed = HashedFile(file)
                yield hashed
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        except BaseException as error:
            with contextlib.suppress(OSError):  # The error that led here is the one to report.
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and not isinstance(error, OutputError):
                raise OutputError(f"cannot write {self.path / name}: {error.strerror or error}") from error
            raise

    def sync(self) -> None:
        """Put the names of the files on the disk, too (where the system can)."""
        if os.name != "posix":
            return
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            logger.debug("%s cannot be synced: %s", self.path, error)
        finally:
            os.close(folder)


class HashedFile:
    """A binary file that is written once, front to back, and knows the sha256 of its content."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write bytes, or anything with a buffer of bytes."""
        self._digest.update(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        """sha256 (hex) of what was written."""
        return self._digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file, "" when it is not there.

    Raises:
        OutputError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def file_status(path: Path) -> list[int] | None:
    """What stays the same as long as a file's content does, so that it need not be read again; None where nothing does.

    Size and time of writing alone are not enough: tools that copy and unpack set the time. The time at which the
    system last changed the file's entry cannot be set, but its clock ticks in steps, and Windows keeps none.

    Raises:
        FileNotFoundError: it is not there.
    """
    status = path.stat()
    if os.name == "nt" or time.time_ns() - status.st_ctime_ns < _SETTLED_NS:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _take_lock(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_now(lock, path)
            if _is_current(lock, path):
                os.ftruncate(lock, 0)
                os.write(lock, str(os.getpid()).encode())
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # Its holder ended and removed it between our opening and our locking it.


def _lock_now(lock: int, path: Path) -> None:
    try:
        if os.name == "nt":
            import msvcrt

            # A byte far behind the content, which others can still read.
            os.lseek(lock, 1 << 20, os.SEEK_SET)
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
            os.lseek(lock, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(lock, 20, 0).decode(errors="replace") if os.name == "posix" else ""
        process = f"process {holder}" if holder else "another process"
        raise OutputError(f"{path.parent} is being written by {process}: wait for it, or use another folder") from error
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see to it that nothing else writes there", path.parent, error)


def _is_current(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except FileNotFoundError:
        return False
