"""Files and folders that are complete or not there, and folders that one process at a time writes to.

Whatever is written goes to a name of its own first, and gets the name it is for when all of it is on the disk. What a
killed process leaves under such a name is removed by the next one that writes there.
"""

from __future__ import annotations

import contextlib
import errno
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
from .remote import is_there, is_url, refuse_url

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from typing_extensions import Self

logger = logging.getLogger(__name__)
_LOCK: Final = ".lock"
_TEMPORARY: Final = ".tmp"
#: Errors of file systems without locks (some network and container ones).
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
#: A name that something is written under, or that what it replaces is moved to: `.NAME.HOST-PROCESS-TOKEN.tmp`.
_NAME: Final = re.compile(r"^\.(.+)\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})\.(tmp|old)$")
#: Age in seconds from which such a name of another machine's process is nobody's.
_ABANDONED: Final = 24 * 3600
#: Tokens of the names that this process is using.
_in_use: set[str] = set()


class OutputFolder:
    """A folder locked for writing; a context manager.

    The lock is one of the operating system, which frees it however the process ends. Unfinished files of an earlier
    process are removed on entry.

    Raises:
        OutputError: on entry, when the folder cannot be made or written, or another process holds it.

    Example:
        >>> from bgekit.files import OutputFolder
        >>> with OutputFolder("out") as folder:
        ...     with folder.create("numbers.txt") as file:
        ...         _ = file.write(b"1 2 3")
        >>> open("out/numbers.txt").read()
        '1 2 3'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        refuse_url(path, "this is written")
        self.path = Path(path)
        self._lock: BaseFileLock | None = None
        self._created = False

    def __enter__(self) -> Self:
        with failing(f"write to the folder {self.path}"):
            self._created = not self.path.exists()
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise OutputError(f"{self.path} is a file; the output must be a folder") from error
            self._lock = _locked(self.path / _LOCK)
            for leftover in self.path.glob(f"*{_TEMPORARY}"):
                leftover.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            # Removed before it is freed: whoever opens the name from now on makes a new file, and filelock looks
            # whether the file it locked still has a name.
            with contextlib.suppress(OSError):  # A system that keeps open files from removal: filelock does it later.
                (self.path / _LOCK).unlink()
            self._lock.release()
            self._lock = None
        if self._created and error is not None:
            with contextlib.suppress(OSError):  # Not empty: something was written, and it stays.
                self.path.rmdir()

    def create(self, name: str) -> contextlib.AbstractContextManager[HashedFile]:
        """A file of the folder to be written, as by `atomic_file`; its temporary name needs no owner: we are alone."""
        return _written(self.path / name, self.path / f"{name}{_TEMPORARY}", f"write {self.path / name}")

    def create_folder(self, name: str) -> None:
        """A folder within it; "" is the folder itself, which is there."""
        with failing(f"write to the folder {self.path / name}"):
            (self.path / name).mkdir(exist_ok=True)

    def sync(self, name: str = "") -> None:
        """Put the names of the files in it, or in a folder within it, on the disk, too (where the system can)."""
        try:
            _sync(self.path / name)
        except OSError as error:
            logger.debug("%s cannot be synced: %s", self.path / name, error)


def _locked(path: Path) -> BaseFileLock:
    """The lock that a file stands for, acquired, with the process that holds it in the file.

    Raises:
        OutputError: another process holds it.
    """
    from filelock import FileLock, Timeout  # A tenth of the time that a command takes to start.

    # What filelock would put in the place of a lock where there are none outlives a process that is killed.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        holder = path.read_text()
    except (OSError, ValueError):
        holder = ""
    try:
        lock.acquire(blocking=False)
        with contextlib.suppress(OSError):  # Windows lets nobody write to a locked file.
            path.write_text(str(os.getpid()))
        return lock
    except Timeout as error:
        process = f"process {holder}" if holder else "another process"
        raise OutputError(f"{path.parent} is being written by {process}: wait for it, or use another folder") from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        reason = error
    logger.warning("%s cannot be locked (%s): make sure that nothing else writes there", path.parent, reason)
    return lock


def check_place(path: str | os.PathLike[str], *, folder: bool = False, doing: str = "write") -> None:
    """See to it, before work is done, that a file (or a folder) can be made at a path; nothing is made.

    Args:
        path: The path.
        folder: Whether it is a folder that is to be made.
        doing: What cannot be done otherwise, as the error says it.

    Raises:
        OutputError: it cannot be made.
    """
    refuse_url(path, "this is written")
    place = Path(path).expanduser().absolute()
    if folder and place.exists() and not place.is_dir():
        raise OutputError(f"{path} is a file; the output must be a folder")
    above = next(parent for parent in place.parents if os.path.lexists(parent))
    if not above.is_dir():
        raise OutputError(f"cannot {doing} {path}: {above} is not a folder")
    for there in (place, above) if place.exists() else (above,):
        if not os.access(there, os.W_OK):
            raise OutputError(f"cannot {doing} {path}: no permission to write to {there}")


def check_free(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """See to it, before work is done, that a file which is there is replaced only by those who ask for it.

    Args:
        path: The file.
        overwrite: Whether they do.

    Raises:
        OutputError: it is there, and they do not.
    """
    there = is_there(str(path)) if is_url(path) else Path(path).expanduser().exists()
    if there and not overwrite:
        raise OutputError(f"{path} exists; pass overwrite=True to replace it, or give another file")


def target_folder(path: Path, overwrite: bool) -> Path:
    """The folder to make, links resolved: a link to it stays one."""
    refuse_url(path, "models are saved")
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
def atomic_file(path: Path, *, doing: str = "", advice: str = "") -> Iterator[HashedFile]:
    """A file to be written that gets its name if the block ends well, and vanishes otherwise.

    Folders above it are made. Several processes may write it at once: the last one to finish counts.

    Args:
        path: The file.
        doing: What cannot be done if it fails, as the error says it; by default to write the file.
        advice: Follows the reason in the error.

    Raises:
        OutputError: it cannot be written; what was there is unchanged.
    """
    refuse_url(path, "this is written")
    doing = doing or f"write {path}"
    with failing(doing, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
    with working_names(path) as (working, _), _written(path, working, doing, advice) as file:
        yield file


@contextlib.contextmanager
def _written(path: Path, working: Path, doing: str, advice: str = "") -> Iterator[HashedFile]:
    try:
        with failing(doing, advice):
            with working.open("wb") as file:
                hashed = HashedFile(file)
                yield hashed
                hashed.sync()
            os.replace(working, path)
    except BaseException:
        with contextlib.suppress(OSError):  # The error that led here is the one to report.
            working.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def failing(doing: str, advice: str = "") -> Iterator[None]:
    """OutputError "cannot DOING: reason" in the place of an error of the system."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BgekitError):
            raise
        raise OutputError(f"cannot {doing}: {error.strerror or error}{advice}") from error


def write_together(files: Sequence[tuple[str | os.PathLike[str], Iterable[bytes]]]) -> None:
    """Write bytes to files; none gets its name before all are complete and on the disk.

    Raises:
        OutputError: one of them cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for path, chunks in files:
            # An error within the loop is one of this file, which was entered last and is left first.
            file = stack.enter_context(atomic_file(Path(path)))
            for chunk in chunks:
                file.write(chunk)
            file.sync()


def write_json(path: Path, content: Any) -> None:
    """Write JSON in UTF-8 for people to read, in place: for files of a folder that is itself atomic.

    Example:
        >>> from pathlib import Path
        >>> from bgekit.files import write_json
        >>> write_json(Path("card.json"), {"pooling": "cls"})
    """
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic_folder(path: Path, *, doing: str = "save the model to") -> Iterator[Path]:
    """A new folder that becomes `path` if the block ends well, and vanishes otherwise.

    Args:
        path: The folder; one that is there is replaced.
        doing: What cannot be done to it if it fails, as the error says it.

    Raises:
        OutputError: it cannot be written; what was there is unchanged.

    Example:
        >>> from pathlib import Path
        >>> from bgekit.files import atomic_folder
        >>> with atomic_folder(Path("model-a")) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> Path("model-a/config.json").exists()
        True
    """
    from safetensors import SafetensorError

    refuse_url(path, "this is written")
    with working_names(path) as (working, replaced):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            working.mkdir()
            yield working
            usual_modes(working)
            for each in (*working.rglob("*"), working):
                _sync(each)
            if path.exists():
                path.rename(replaced)
            try:
                working.rename(path)
            except BaseException:
                if replaced.exists():
                    replaced.rename(path)
                raise
            _sync(path.parent)
        except BgekitError:
            raise
        except (OSError, SafetensorError) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            raise OutputError(f"cannot {doing} {path}: {reason}; what was there is unchanged") from error
        finally:
            # Whatever ended the block, Ctrl-C too; what cannot be removed takes space, no more.
            shutil.rmtree(working, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder beside a path, on the same disk, that is gone afterwards.

    Raises:
        OutputError: it cannot be made.
    """
    with working_names(beside) as (folder, _):
        with failing(f"write to {beside.parent}"):
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


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
    """Name of the machine, or of the container on it, within which a process number means this process."""
    place = platform.node()
    with contextlib.suppress(OSError):
        place += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(place.encode()).hexdigest()[:8]


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


def _sync(path: Path) -> None:
    """Put a file on the disk, or the names in a folder."""
    if os.name != "posix" and path.is_dir():
        return  # Folders cannot be opened there.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
