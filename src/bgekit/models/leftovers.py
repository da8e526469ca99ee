"""Names and modes of what is written before it is renamed, and the removal of what killed processes left there.

A name says which process writes there: `.NAME.HOST-PID-TOKEN.tmp`, and `.old` for what is about to be replaced. What
belongs to a running process is never touched.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import OutputError

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
