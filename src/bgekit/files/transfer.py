"""What moves between URLs and the local disk: uploads of complete files, copies that are checked."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import BgekitError, OutputError
from .atomic import atomic_file, atomic_folder, check_place, failing, write_together
from .hashing import HashedFile, content_sha256, digest, file_status
from .remote import Status, is_url, list_url, open_url, read_url, remove_url, url_status, write_url

logger = logging.getLogger(__name__)
#: Files that are fetched at once, and the bytes of each that are.
_FETCHED_AT_ONCE: Final = 8
_BLOCK: Final = 4 << 20


def check_target(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """See to it, before work is done, that a file (or a folder) can be made at a path or a URL.

    At a URL that is tried out, by a file of another name, which is removed again.

    Raises:
        OutputError: it cannot be made.
    """
    if not is_url(path):
        check_place(path, folder=folder)
        return
    url = os.fspath(path).rstrip("/")
    above, _, name = f"{url}/results".rpartition("/") if folder else url.rpartition("/")
    trial = f"{above}/.{name}.{secrets.token_hex(4)}.tmp"
    with failing(f"write {url}"):
        write_url(trial, b"")
        with contextlib.suppress(PermissionError):  # Some may write and not remove.
            remove_url(trial)


@contextlib.contextmanager
def uploaded_file(url: str | Callable[[HashedFile], str]) -> Iterator[HashedFile]:
    """A file to be written that is uploaded if the block ends well; until then it lies on the local disk.

    Args:
        url: Where to, or what says it of the file, whose content is known then.

    Raises:
        OutputError: it cannot be written; what was there is unchanged.
    """
    with tempfile.TemporaryDirectory(prefix="bgekit-upload-") as folder:
        path = Path(folder, "content")
        with path.open("wb") as file:
            hashed = HashedFile(file)
            yield hashed
        target = url if isinstance(url, str) else url(hashed)
        with failing(f"write {target}"):
            write_url(target, path)


def write_files(files: Sequence[tuple[str | os.PathLike[str], Iterable[bytes]]]) -> None:
    """Write bytes to files, or to URLs; none gets its name before all are complete, and the first gets it last.

    Raises:
        OutputError: one of them cannot be written.
    """
    if not any(is_url(path) for path, _ in files):
        write_together(files)
        return
    with contextlib.ExitStack() as stack:
        for path, chunks in files:
            # Left in the reverse order, which is that of their uploads.
            file = stack.enter_context(uploaded_file(os.fspath(path)))
            for chunk in chunks:
                file.write(chunk)


#: The file of a local copy that says what it should hold.
_COPY: Final = ".copy.json"
#: How often a copy is begun again because what is copied was replaced meanwhile.
_STATES: Final = 3


@dataclass(frozen=True)
class LocalCopy:
    """Files of a folder at a URL, on the local disk.

    Attributes:
        folder: Where they lie.
        digests: sha256 (hex) of each by its name.
    """

    folder: Path
    digests: dict[str, str]


def local_copy(url: str, head: str, wanted: Callable[[bytes, Iterable[str]], Iterable[str]]) -> LocalCopy:
    """A folder at a URL as one on the local disk, where it stays until the next one is another.

    What is there is compared with the URL by the content of its head, and by size and mark of each file; the local
    files by their sha256, unless nothing has touched them.

    Args:
        url: The folder.
        head: Name of its file that is replaced last, when all others are there.
        wanted: The names that belong to it, of the head's content and the names that are there.

    Raises:
        OutputError: it cannot be read, a file of it is missing, or the local disk cannot be written.
    """
    url = url.rstrip("/")
    above = local_place("copies", url)
    try:
        for _ in range(_STATES):
            content, there = read_url(f"{url}/{head}"), list_url(url)
            names = [head, *wanted(content, there)]
            missing = [name for name in names if name not in there]
            if not missing:
                copy = _copied(url, above, {name: there[name] for name in names}, digest(content.decode("latin-1")))
                if copy is not None:
                    return copy
            elif read_url(f"{url}/{head}") == content:
                raise OutputError(f"{url}/{missing[0]} is missing, and {head} names it; make it again")
    except OSError as error:
        if isinstance(error, BgekitError):
            raise
        raise OutputError(f"cannot read {error.filename or url}: {error.strerror or error}") from error
    raise OutputError(f"{url} is replaced again and again while it is read: wait until what writes there is done")


def local_place(kind: str, url: str) -> Path:
    """The folder on the local disk for what belongs to a URL.

    Args:
        kind: `copies` of what is there, or `runs`, which go on after they were interrupted.
        url: The URL.
    """
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "bgekit" / kind / digest(url.rstrip("/"))[:24]


def _copied(url: str, above: Path, files: dict[str, Status], head: str) -> LocalCopy | None:
    """The copy of one state, made unless it is there and whole; None if the state is gone meanwhile."""
    marks = [f"{name}\n{status.size}\n{status.version}" for name, status in files.items()]
    # Where a server has no marks, nobody knows whether a copy is still right.
    known = all(status.version for status in files.values())
    folder = above / (digest(head, *marks)[:24] if known else secrets.token_hex(12))
    if folder.is_dir() and (copy := _checked_copy(folder)) is not None:
        return copy
    digests: dict[str, str] = {}
    logger.info("copying %s (%d files) to %s", url, len(files), folder)
    try:
        with atomic_folder(folder, doing=f"copy {url} to") as working:
            with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
                fetched = pool.map(lambda name: _fetch(f"{url}/{name}", working / name, files[name]), files)
                digests = dict(zip(files, fetched, strict=True))
            (working / _COPY).write_text(json.dumps({name: [sha256, None] for name, sha256 in digests.items()}))
    except _Replaced:
        return None
    for other in above.iterdir():
        if other != folder and not other.name.startswith("."):
            shutil.rmtree(other, ignore_errors=True)
    return LocalCopy(folder, digests)


class _Replaced(Exception):
    """A file was replaced while it was copied."""


def _fetch(url: str, path: Path, status: Status) -> str:
    """Copy a file; its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_url(url) as source, path.open("wb") as file:
            hashed = HashedFile(file)
            while block := source.read(_BLOCK):
                hashed.write(block)
        if url_status(url) != status or path.stat().st_size != status.size:
            raise _Replaced
    except FileNotFoundError as error:
        raise _Replaced from error
    return hashed.sha256


def _checked_copy(folder: Path) -> LocalCopy | None:
    """The copy that is there; None if a file of it is not what was copied."""
    try:
        noted: dict[str, list[Any]] = json.loads((folder / _COPY).read_bytes())
        changed = False
        for name, each in noted.items():
            status = file_status(folder / name)
            if status is None or status != each[1]:
                if content_sha256(folder / name) != each[0]:
                    logger.warning("%s is not what was copied: it is copied again", folder / name)
                    return None
                each[1], changed = status, True
    except (OSError, ValueError) as error:
        logger.warning("%s is damaged (%s): it is copied again", folder, error)
        return None
    if changed:
        with atomic_file(folder / _COPY) as file:
            file.write(json.dumps(noted).encode())
    return LocalCopy(folder, {name: each[0] for name, each in noted.items()})
