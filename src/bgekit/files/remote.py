"""Object stores and other file systems behind URLs (`s3://bucket/key`), through fsspec: ranges, lists, whole uploads.

What can pass (a connection that breaks, a server that is busy) is tried a few times more; then, and at once where it
cannot (credentials, a bucket that is not there), it is an OSError whose `strerror` says in one line what happened, as
errors of local files do.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from ..errors import ArgumentError, BgekitError, DataError, MissingExtraError, OutputError, import_extra, require_extra

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")
#: Seconds before each further attempt. Clients such as s3fs make several of their own within one.
_WAITS: Final = (1.0, 4.0)
#: Bytes of a range, as long as a file is read front to back.
_RANGE: Final = 4 << 20
#: A letter alone is a drive of Windows.
_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
#: What becomes of a URL when it is taken for a path.
_MADE_OF_URL: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):[/\\]+(.*)", re.DOTALL)
#: Protocols whose package an extra brings.
_EXTRAS: Final = {"s3": ("s3", "s3fs"), "s3a": ("s3", "s3fs")}
#: Keys by which file systems say that a file has changed.
_VERSIONS: Final = (
    "ETag", "etag", "md5Hash", "generation", "content_md5", "blob_id", "sha256", "LastModified", "last_modified",
    "updated", "mtime", "modified", "created",
)  # fmt: skip
#: Errors that no further attempt changes.
_FINAL: Final = (
    FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, NotImplementedError,
)  # fmt: skip
_FINAL_NUMBERS: Final = frozenset({
    errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.ENOSPC, errno.ESTALE,
})  # fmt: skip
#: Names of the errors of network clients (aiohttp, botocore, urllib3, requests) that are no OSErrors, and may pass.
_PASSING: Final = frozenset({
    "ClientError", "HTTPClientError", "ConnectionError", "HTTPError", "HttpError", "TimeoutError",
    "ResponseParserError",
})  # fmt: skip


@dataclass(frozen=True)
class Status:
    """What is at a URL.

    Attributes:
        size: Bytes; None where the server does not say.
        version: Changes with the content; "" where there is no such mark.
        is_folder: Whether it is a folder: there are names below it.
    """

    size: int | None
    version: str = ""
    is_folder: bool = False


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, such as `s3://bucket/key`.

    Example:
        >>> from bgekit.files import is_url
        >>> is_url("s3://bucket/corpus.jsonl"), is_url("corpus.jsonl"), is_url("C:/corpus.jsonl")
        (True, False, False)
    """
    return isinstance(path, str) and _URL.match(path) is not None


def refuse_url(path: str | os.PathLike[str], what: str) -> None:
    """Raise OutputError if a path is a URL, or was made of one.

    Args:
        path: The path.
        what: What cannot be there, as the error says it: "an index is changed".
    """
    if found := _MADE_OF_URL.match(str(path)):
        url = f"{found[1]}://{found[2]}"
        raise OutputError(f"{url} is a URL, and {what} on the local disk only: give a path there")


def url_status(url: str) -> Status:
    """What is at a URL.

    Raises:
        FileNotFoundError: nothing is.
        OSError: it cannot be known.
        MissingExtraError: the package for such URLs is not installed.
    """
    system, path = _system(url)
    return _status_of(_tried(url, lambda: _fresh(system, path).info(path)))


def list_url(url: str) -> dict[str, Status]:
    """The files below a folder, those of its folders too, by their names relative to it, in order; empty if none is.

    Raises:
        FileNotFoundError: its bucket is not there.
        OSError: it cannot be listed.
    """
    system, path = _system(url)
    found: dict[str, Any] = _tried(url, lambda: _fresh(system, path).find(path, detail=True))
    above = path.rstrip("/") + "/"
    # An object whose name ends in a slash is how consoles make a folder that is empty.
    inside = [each for each in sorted(found) if each.startswith(above) and not each.endswith("/")]
    return {each.removeprefix(above): _status_of(found[each]) for each in inside}


def folders_and_files(url: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files right in a folder, in order.

    Raises:
        OSError: it cannot be listed.
    """
    system, path = _system(url)
    found: list[dict[str, Any]] = _tried(url, lambda: _fresh(system, path).ls(path, detail=True))
    names: tuple[list[str], list[str]] = ([], [])
    for info in found:
        name = info["name"].rstrip("/").rpartition("/")[2]
        if info["name"].rstrip("/") != path.rstrip("/"):
            names[info["type"] != "directory"].append(name)
    return sorted(names[0]), sorted(names[1])


def open_url(url: str) -> io.BufferedReader[Any]:
    """A file at a URL, to be read range by range; it is never downloaded as a whole.

    Raises:
        OSError: it is not there, or (while reading, too) cannot be read, or has changed since it was opened.
        MissingExtraError: the package for such URLs is not installed.
    """
    return io.BufferedReader(_UrlFile(url), 1 << 17)


def read_url(url: str) -> bytes:
    """The content of a small file.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    system, path = _system(url)
    return _tried(url, lambda: bytes(_fresh(system, path).cat_file(path)))


def write_url(url: str, content: bytes | Path) -> None:
    """Write a file as a whole: readers see what was there before, or all of it.

    Args:
        url: Where to.
        content: Its bytes, or the local file that has them.

    Raises:
        OSError: it cannot be written.
    """
    system, path = _system(url)
    if isinstance(content, Path):
        _tried(url, lambda: system.put_file(str(content), path))
    else:
        _tried(url, lambda: system.pipe_file(path, content))


def remove_url(url: str) -> None:
    """Remove a file, if it is there.

    Raises:
        OSError: it cannot be removed.
    """
    system, path = _system(url)
    with contextlib.suppress(FileNotFoundError):
        _tried(url, lambda: system.rm_file(path))


def open_binary(path: str | os.PathLike[str]) -> io.BufferedReader[Any]:
    """A file at a path or a URL, to be read.

    Raises:
        OSError: it cannot be opened.
    """
    if is_url(path):
        return open_url(os.fspath(path))
    return io.BufferedReader(io.FileIO(path), 1 << 17)


def is_folder(path: str) -> bool:
    """Whether there is a folder at a path or a URL.

    Raises:
        DataError: a URL cannot be looked at.
    """
    if not is_url(path):
        return os.path.isdir(path)
    status = _looked_at(path)
    return status is not None and status.is_folder


def is_file(path: str) -> bool:
    """Whether there is a regular file at a path or a URL.

    Raises:
        DataError: a URL cannot be looked at.
    """
    if not is_url(path):
        return os.path.isfile(path)
    status = _looked_at(path)
    return status is not None and not status.is_folder


def is_there(path: str) -> bool:
    """Whether there is anything at a path or a URL.

    Raises:
        DataError: a URL cannot be looked at.
    """
    return os.path.exists(path) if not is_url(path) else _looked_at(path) is not None


def _looked_at(url: str) -> Status | None:
    try:
        return url_status(url)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {url}: {error.strerror or error}") from error


def names_in(path: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of all else in a folder at a path or a URL, each in order.

    Raises:
        OSError: it cannot be listed.
    """
    if is_url(path):
        return folders_and_files(path)
    entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    folders = [entry.name for entry in entries if entry.is_dir()]
    return folders, [entry.name for entry in entries if not entry.is_dir()]


def is_pattern(path: str) -> bool:
    """Whether a path or a URL stands for those that match it; what is there by that very name does not.

    Raises:
        DataError: a URL cannot be looked at.
    """
    # In a URL a question mark is more likely its own than a pattern's.
    magic = "*" in path if is_url(path) else glob.has_magic(path)
    return magic and not is_there(path)


def matching(pattern: str, root: str = "") -> list[str]:
    """The paths or URLs that match a pattern, in order, below a folder if one is given.

    Raises:
        DataError: URLs cannot be listed.
    """
    whole = os.path.join(root, pattern) if root else pattern
    if not is_url(whole):
        found = glob.glob(pattern, root_dir=root or None, recursive=True)
        return sorted(os.path.join(root, name) for name in found) if root else sorted(found)
    system, path = _system(whole)
    try:
        names = _tried(whole, lambda: _fresh(system, path).glob(path))
    except OSError as error:
        raise DataError(f"cannot read {whole}: {error.strerror or error}") from error
    protocol, fixed = whole.partition("://")[0], len(path.partition("*")[0].rpartition("/")[0].split("/"))
    paths = [system._strip_protocol(name) for name in names]
    # What is hidden matches none, as on the disk.
    shown = [each for each in paths if not any(part.startswith(".") for part in each.split("/")[fixed:])]
    return sorted(f"{protocol}://{each}" for each in shown)


class _UrlFile(io.RawIOBase):
    """A file at a URL, read by ranges; a range that breaks off is asked for again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._system, self._path = _system(url)
        self._status = url_status(url)
        if self._status.is_folder:
            raise IsADirectoryError(errno.EISDIR, "it is a folder", url)
        self._file: Any = _tried(
            url, lambda: self._system.open(self._path, "rb", block_size=_RANGE, cache_type="readahead")
        )
        self._position, self._checked = 0, False

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Whether its size is known."""
        return self._status.size is not None

    def tell(self) -> int:
        """Bytes before what is read next."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place, as in any raw stream."""
        if not self.seekable():
            raise io.UnsupportedOperation("the server does not say how large the file is, so it is read front to back")
        size = self._status.size or 0
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as any raw stream does."""
        size = self._status.size
        count = len(buffer) if size is None else min(len(buffer), size - self._position)
        if count <= 0:
            self._check_unchanged()
            return 0
        if size is None:  # What was read of such a stream is gone, so nothing can be tried again.
            data: bytes = _tried(self._url, lambda: bytes(self._file.read(count)), again=False)
        else:
            data = _tried(self._url, lambda: self._range(count))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Let the connection go."""
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()

    def _range(self, count: int) -> bytes:
        self._file.seek(self._position)
        data: bytes = self._file.read(count)
        if not data:
            raise ConnectionError(f"it ends after {self._position:,} of {self._status.size:,} bytes")
        return data

    def _check_unchanged(self) -> None:
        """At the end of a file of several ranges: that all are of one content."""
        if self._checked or (self._status.size or 0) <= _RANGE:
            return
        self._checked = True
        if url_status(self._url) != self._status:
            raise OSError(errno.ESTALE, "it was changed while it was read", self._url)


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        MissingExtraError: a package is not installed.
        ArgumentError: there are no such URLs.
    """
    protocol = url.partition("://")[0].lower()
    if protocol in _EXTRAS:
        require_extra(_EXTRAS[protocol][0], _EXTRAS[protocol][1])
    core: Any = import_extra("fsspec.core", "remote")
    # Folders are made where there are such; in an object store there are none, and a bucket is never made.
    options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        system, path = core.url_to_fs(url, **options)
    except ImportError as error:
        raise MissingExtraError(f"{url}: {error}") from error
    except ValueError as error:
        raise ArgumentError(f"{url}: {_in_one_line(error)}") from error
    return system, path


def _fresh(system: Any, path: str) -> Any:
    """The file system, without what it remembers of a path and what is around it."""
    system.invalidate_cache(path)
    return system


def _status_of(info: dict[str, Any]) -> Status:
    if info.get("type") == "directory":
        return Status(None, is_folder=True)
    version = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    if isinstance(version, datetime):  # In the lists of `memory://` the same time is a number.
        version = version.timestamp()
    return Status(info.get("size"), str(version).strip('"'))


def _tried(url: str, operation: Callable[[], Answer], *, again: bool = True) -> Answer:
    """The result of an operation, tried again (if it may be) where what went wrong can pass.

    Raises:
        OSError: it failed, also when it was tried again.
        MissingExtraError: a package that it needs is not installed.
    """
    for wait in (*(_WAITS if again else ()), None):
        try:
            return operation()
        except BgekitError:
            raise
        except ImportError as error:
            raise MissingExtraError(f"{url}: {error}") from error
        except Exception as raised:
            failure = _unmasked(raised)
            if wait is None or not _may_pass(failure):
                raise _explained(url, failure, tried=again and _may_pass(failure)) from raised
            logger.info("%s: %s; trying again in %g s", url, _in_one_line(failure), wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _unmasked(error: Exception) -> Exception:
    """The error that was meant: of one without words s3fs makes an IndexError."""
    # findings/s3fs_timeout_is_an_index_error.sh
    hidden = error.__context__ if isinstance(error, IndexError) else None
    return hidden if isinstance(hidden, OSError) else error


def _may_pass(error: Exception) -> bool:
    if isinstance(error, OSError):
        # To s3fs a file that has changed is EBUSY, as a server is; to the hub's client being offline is no connection.
        named = type(error).__name__ in ("FileExpired", "OfflineModeIsEnabled")
        return not (isinstance(error, _FINAL) or error.errno in _FINAL_NUMBERS or named)
    return isinstance(error, EOFError) or any(each.__name__ in _PASSING for each in type(error).__mro__)


def _explained(url: str, error: Exception, *, tried: bool) -> OSError:
    """The error as one of the system, whose `strerror` says what happened."""
    said = _in_one_line(error)
    if isinstance(error, FileNotFoundError):
        bucket = re.match(r"[^:]+://([^/]*)", url)
        reason = (
            f"there is no bucket {bucket[1]}" if bucket and "bucket does not exist" in said else "it does not exist"
        )
        return FileNotFoundError(errno.ENOENT, reason, url)
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, f"access is denied ({said}): check the credentials", url)
    if type(error).__name__ == "FileExpired":
        return OSError(errno.ESTALE, "it was changed while it was read", url)
    if "redentials" in said and "ocate" in said:  # NoCredentialsError of botocore, DefaultCredentialsError of Google.
        return PermissionError(errno.EACCES, f"no credentials were found ({said})", url)
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        return type(error)(error.errno, error.strerror or said, url)
    return OSError(errno.EIO, f"{said} (tried {len(_WAITS) + 1} times)" if tried else said, url)


def _in_one_line(error: Exception) -> str:
    said = " ".join(str(error.strerror or error if isinstance(error, OSError) else error).split())
    if not said and isinstance(error, TimeoutError):
        return "the connection broke, or nothing came in time"
    return said or type(error).__name__
