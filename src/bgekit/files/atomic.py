"""A folder that one process at a time writes to, and files that appear in it whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from ..errors import BgekitError, OutputError
from .hashing import HashedFile

if TYPE_CHECKING:
    from typing_extensions import Self


logger = logging.getLogger(__name__)
_LOCK: Final = ".lock"
_TEMPORARY: Final = ".tmp"


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


_NAME: Final = re.compile(r"^\.(.+)\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})\.(tmp|old)$")
#: Age in seconds from which a name of another machine's process is nobody's.
_ABANDONED: Final = 24 * 3600
#: Tokens of names that this process is using.
_in_use: set[str] = set()


def check_place(path: str | os.PathLike[str], *, folder: bool = False, doing: str = "write") -> None:
    """See to it, before work is done, that a file (or a folder) can be made at a path; nothing is made.

    Args:
        path: The path.
        folder: Whether it is a folder that is to be made.
        doing: What cannot be done otherwise, as the error says it.

    Raises:
        OutputError: it cannot be made.
    """
    place = Path(path).expanduser().absolute()
    if folder and place.exists() and not place.is_dir():
        raise OutputError(f"{path} is a file; the output must be a folder")
    above = next(parent for parent in place.parents if os.path.lexists(parent))
    if not above.is_dir():
        raise OutputError(f"cannot {doing} {path}: {above} is no folder")
    for there in (place, above) if place.exists() else (above,):
        if not os.access(there, os.W_OK):
            raise OutputError(f"cannot {doing} {path}: no permission to write to {there}")


@contextlib.contextmanager
def working_names(path: Path) -> Iterator[tuple[Path, Path]]:
    """Two free names beside `path`: to write it under, and to move what it replaces to.

    What was left there by processes that were killed is removed before.
    """
    remove_leftovers(path.parent, path.name)
    token = secrets.token_hex(4)
    owner = f"{_host()}-{os.getpid()}-{token}"
    _in_use.add(token)
    try:
        yield path.with_name(f".{path.name}.{owner}.tmp"), path.with_name(f".{path.name}.{owner}.old")
    finally:
        _in_use.discard(token)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in a folder while they wrote `name` there, or anything.

    A process that was killed between two renames has left the only copy of what it replaced: that gets its name back.
    """
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            match = _NAME.match(path.name)
            if match is None or name not in (None, match[1]) or _is_used(path, match[2], int(match[3]), match[4]):
                continue
            target = path.with_name(match[1])
            if match[5] == "old" and not target.exists():
                path.rename(target)
            else:
                shutil.rmtree(path, ignore_errors=True)


def usual_modes(folder: Path) -> None:
    """Give the files of a folder the mode that a new file has there (by the umask).

    safetensors, and whatever else writes through a temporary file, leaves files that no other user can read.
    """
    probe = folder / f".{os.getpid()}.mode"
    probe.touch()
    usual = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode != usual:
            path.chmod(usual)


def _is_used(path: Path, host: str, process: int, token: str) -> bool:
    """Whether the process that a name belongs to may still be writing."""
    if host == _host() and process == os.getpid():
        return token in _in_use
    try:
        if host != _host() or os.name != "posix":
            return time.time() - path.stat().st_mtime < _ABANDONED
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # It is another user's, or its owner was quicker.
        pass
    return True


@functools.cache
def _host() -> str:
    """Where a process number means this process: a machine, or a container on it."""
    place = platform.node()
    with contextlib.suppress(OSError):
        place += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def target_folder(path: Path, overwrite: bool) -> Path:
    """The folder to make, links resolved: a link to it stays one."""
    path = path.expanduser().resolve()
    if not path.exists():
        check_place(path, doing="save the model to")
        return path
    if not path.is_dir():
        raise OutputError(f"{path} is a file; give a folder that does not exist yet")
    if not any(path.iterdir()):
        return path
    if not overwrite:
        raise OutputError(f"{path} exists; pass overwrite=True to replace the model there, or give another folder")
    if not (path / "config.json").is_file():
        raise OutputError(f"{path} holds no model (no config.json), so it is not replaced; give another folder")
    return path


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that becomes `path` if the block ends well, and vanishes otherwise."""
    from safetensors import SafetensorError

    with working_names(path) as (working, replaced):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            working.mkdir()
            yield working
            _flush(working)
            if path.exists():
                _exchange(path, working, replaced)
            else:
                working.rename(path)
            _flush_folder(path.parent)
        except BgekitError:
            raise
        except (OSError, SafetensorError) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            raise OutputError(f"cannot save the model to {path}: {reason}; what was there is unchanged") from error
        finally:
            # Whatever ended the block, Ctrl-C too; what cannot be removed takes space, no more.
            shutil.rmtree(working, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _exchange(path: Path, working: Path, replaced: Path) -> None:
    path.rename(replaced)
    try:
        working.rename(path)
    except BaseException:
        replaced.rename(path)
        raise


def _flush(folder: Path) -> None:
    usual_modes(folder)
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        _flush_folder(Path(root))


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Folders cannot be opened there.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """As UTF-8 for people to read."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_together(files: Sequence[tuple[str | os.PathLike[str], Iterable[bytes]]]) -> None:
    """Write bytes to files; none gets its name before all are complete. Otherwise as `write_lines`."""
    unnamed: dict[Path, Path] = {}
    try:
        for name, chunks in files:
            path = Path(name)
            unnamed[path] = path.with_name(f".{path.name}.tmp")
            with _writing(path), unnamed[path].open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in unnamed.items():
            with _writing(path):
                os.replace(temporary, path)
    finally:
        for temporary in unnamed.values():
            with contextlib.suppress(OSError):  # The error that led here is the one to report.
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
