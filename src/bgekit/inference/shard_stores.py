"""Where the shards of a run lie: in a folder that one process holds, or at a URL, where names say what is in a file.

In a folder a file has one name, and a run that starts over removes what was there. At a URL readers may be at work, and
nothing can be locked or renamed. So nothing there that a reader may look at is ever written to:

    shard-00000.5f2a....npy          vectors, named by 16 digits of the sha256 of the file
    shard-00000.91c3....ids.jsonl    ids, likewise; so is a file of metadata
    shard-00000.0b7e....json         facts of the shard, named by what decides how the run makes its vectors
    begun.json                       that, as long as the run is not complete
    manifest.json                    written when all is there, in the place of an older one, whose shards then go

A reader finds the older state until then, or none. Two runs of one kind write the same names with the same content.
"""

from __future__ import annotations

import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from ..data.documents import BEGUN
from ..errors import OutputError
from ..files.atomic import OutputFolder, SharedFolder, failing
from ..files.hashing import HashedFile, digest, file_sha256
from ..files.remote import is_there, list_url, read_url, remove_url, write_url
from ..files.transfer import LocalCopy, local_copy, uploaded_file
from .ragged_shards import RAGGED_FILES

logger = logging.getLogger(__name__)
#: Digits of a hash in a name.
_DIGITS: Final = 16
MANIFEST: Final = "manifest.json"
METADATA: Final = ".metadata.arrow"
#: Endings of the files of a shard -> the facts that hold their hashes.
PARTS: Final = {
    ".npy": "vectors_sha256", ".ids.jsonl": "ids_sha256", METADATA: "metadata_sha256", **RAGGED_FILES
}  # fmt: skip
_SHARD: Final = re.compile(rf"shard-\d+\.[0-9a-f]+({'|'.join(map(re.escape, (*PARTS, '.json')))})")
FORMAT: Final = "bgekit shards"
VERSION: Final = 1
_FACTS: Final = frozenset(
    ("first", "texts", "tokens", "truncated", "repaired", "input_sha256", "vectors_sha256", "ids_sha256")
)


def shard_name(index: int, suffix: str) -> str:
    """Name of a file of a shard: `shard-00012.npy`."""
    return f"shard-{index:05d}{suffix}"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        OutputError: it is missing, damaged, or of another kind or version.
    """
    try:
        content = _read_json(path)
    except ValueError as error:
        raise OutputError(f"{path} is damaged ({error}); --overwrite starts over") from error
    if content is None:
        raise OutputError(f"{path.parent} is not a folder of encoded shards: it has no {path.name}")
    return _checked_manifest(path, content)


def _checked_manifest(path: Path | str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise OutputError(f"{path} is not a manifest of encoded shards; use another folder, or --overwrite")
    if content.get("version") != VERSION:
        raise OutputError(f"{path} has version {content.get('version')}; this bgekit knows version {VERSION}")
    return content


def read_facts(path: Path) -> dict[str, Any] | None:
    """Facts about one finished shard, None when it is not finished or its facts are damaged.

    Raises:
        OutputError: the file cannot be read.
    """
    return _checked_facts(path, lambda: _read_json(path))


def _checked_facts(path: Path | str, read: Callable[[], Any]) -> dict[str, Any] | None:
    try:
        facts = read()
    except ValueError as error:
        logger.warning("%s is damaged (%s): the shard is encoded again", path, error)
        return None
    return facts if isinstance(facts, dict) and _FACTS <= facts.keys() else None


def _read_json(path: Path) -> Any:
    """The content of a file, None when it is not there; a ValueError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def json_bytes(content: dict[str, Any]) -> bytes:
    """JSON for a file; in ASCII, because ids can hold lone surrogates."""
    return (json.dumps(content, indent=1) + "\n").encode()


class ShardStore(ABC):
    """The files of a run's shards. Several processes may write shards; the one that has the run, its manifest.

    Attributes:
        place: The folder or URL.
    """

    place: str

    @abstractmethod
    def name(self, index: int, suffix: str, sha256: str) -> str:
        """Name of a file of a shard, whose content has that sha256 (hex)."""

    @abstractmethod
    def create(self, index: int, suffix: str) -> AbstractContextManager[HashedFile]:
        """A file of a shard to be written, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """

    @abstractmethod
    def finish(self, index: int, facts: dict[str, Any]) -> None:
        """Write the facts of a shard, all of whose files are written.

        Raises:
            OutputError: they cannot be written.
        """

    @abstractmethod
    def facts(self, index: int) -> dict[str, Any] | None:
        """The facts of a finished shard; None if it is not finished, or its facts are damaged.

        Raises:
            OutputError: they cannot be read.
        """

    @abstractmethod
    def holds(self, index: int, suffix: str, sha256: str) -> bool:
        """Whether a file of a finished shard is there with this content."""

    @abstractmethod
    def earlier(self) -> dict[str, Any] | None:
        """The manifest of the run that can be gone on with; None if there is none, or it came to nothing.

        Raises:
            OutputError: it is damaged, or something else is there.
        """

    @abstractmethod
    def clear(self) -> None:
        """Remove what this run would go on with, or could be taken for its own.

        Raises:
            OutputError: it cannot be removed.
        """

    @abstractmethod
    def begin(self, manifest: dict[str, Any]) -> None:
        """Write what is known of the manifest before shards are.

        Raises:
            OutputError: it cannot be written.
        """

    @abstractmethod
    def commit(self, parts: Callable[[], Iterable[bytes]], sha256: str, names: Callable[[], Iterator[str]]) -> None:
        """Write the manifest of a complete run, unless it is there.

        Args:
            parts: Gives its bytes.
            sha256: Their sha256 (hex).
            names: Gives the names of all files that it names.

        Raises:
            OutputError: it cannot be written, or files are gone meanwhile.
        """

    def other_run(self, what: str) -> OutputError:
        """The error for an output that another run made."""
        return OutputError(
            f"{self.place} was made by another run: {what}. Use another folder, or --overwrite to start over."
        )


class LocalShards(ShardStore):
    """Shards in a folder that this process holds, or helps to write."""

    def __init__(self, folder: OutputFolder | SharedFolder) -> None:
        self.place = str(folder.path)
        self._folder, self._path = folder, folder.path

    def name(self, index: int, suffix: str, sha256: str) -> str:
        """One name, whatever is in it."""
        return shard_name(index, suffix)

    def create(self, index: int, suffix: str) -> AbstractContextManager[HashedFile]:
        """In the folder."""
        return self._folder.create(shard_name(index, suffix))

    def finish(self, index: int, facts: dict[str, Any]) -> None:
        """Beside the files, which then are on the disk."""
        self._write(shard_name(index, ".json"), facts)

    def facts(self, index: int) -> dict[str, Any] | None:
        """Read from the folder."""
        return read_facts(self._path / shard_name(index, ".json"))

    def holds(self, index: int, suffix: str, sha256: str) -> bool:
        """The file is read."""
        return file_sha256(self._path / shard_name(index, suffix)) == sha256

    def earlier(self) -> dict[str, Any] | None:
        """The manifest in the folder."""
        path = self._path / MANIFEST
        if not path.exists():
            if next(self._path.glob("shard-*.npy"), None) is not None:
                raise OutputError(f"{self.place} holds shards without {MANIFEST}; --overwrite removes them")
            return None
        manifest = read_manifest(path)
        if next(self._path.glob("shard-*[0-9].json"), None) is None:
            # It came to nothing, and what it was to be binds nobody; a manifest of something else does.
            self.clear()
            return None
        return manifest

    def clear(self) -> None:
        """All shards."""
        with failing(f"remove the old shards in {self.place}"):
            # The manifest first: shards without one are refused, and never mixed with new ones.
            (self._path / MANIFEST).unlink(missing_ok=True)
            for path in self._path.glob("shard-*.*"):
                if path.name.endswith((*PARTS, ".json")):
                    path.unlink()

    def begin(self, manifest: dict[str, Any]) -> None:
        """The manifest itself, which says that it is not complete."""
        self._write(MANIFEST, manifest)

    def commit(self, parts: Callable[[], Iterable[bytes]], sha256: str, names: Callable[[], Iterator[str]]) -> None:
        """In the place of the one that was not complete."""
        if file_sha256(self._path / MANIFEST) != sha256:
            with self._folder.create(MANIFEST) as file:
                for part in parts():
                    file.write(part)
            self._folder.sync()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with self._folder.create(name) as file:
            file.write(json_bytes(content))
        self._folder.sync()


class RemoteShards(ShardStore):
    """Shards at a URL. It can be sent to another process, which then writes shards of the same run.

    Args:
        url: The URL of the folder.
        manifest: What decides how the run makes its vectors (`describe`).
    """

    def __init__(self, url: str, manifest: dict[str, Any]) -> None:
        self.place = url.rstrip("/")
        self._run = _run_key(manifest)
        #: Names of the files that are there, as far as this process knows; None until it asks.
        self._there: set[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_there": None}

    def name(self, index: int, suffix: str, sha256: str) -> str:
        """A name of its own for each content."""
        return shard_name(index, f".{sha256[:_DIGITS]}{suffix}")

    def create(self, index: int, suffix: str) -> AbstractContextManager[HashedFile]:
        """On the local disk, and then at the URL."""
        return uploaded_file(lambda file: f"{self.place}/{self.name(index, suffix, file.sha256)}")

    def finish(self, index: int, facts: dict[str, Any]) -> None:
        """Under the name of the run."""
        self._write(self._facts_name(index, self._run), json_bytes(facts))

    def facts(self, index: int) -> dict[str, Any] | None:
        """Asked for if a list of the folder has them."""
        name = self._facts_name(index, self._run)
        if name not in self._names():
            return None
        return _checked_facts(f"{self.place}/{name}", lambda: self._read_json(name))

    def holds(self, index: int, suffix: str, sha256: str) -> bool:
        """What has the name has the content, as nothing is written half: it is not read again."""
        return self.name(index, suffix, sha256) in self._names()

    def earlier(self) -> dict[str, Any] | None:
        """What was begun there, or else what is complete."""
        for name in (BEGUN, MANIFEST):
            url = f"{self.place}/{name}"
            try:
                content = self._read_json(name)
            except ValueError as error:
                raise OutputError(f"{url} is damaged ({error}); --overwrite starts over") from error
            if content is None:
                continue
            manifest = _checked_manifest(url, content)
            ending = f".{_run_key(manifest)}.json"
            if name == MANIFEST or any(each.endswith(ending) for each in self._names()):
                return manifest
            self._remove(BEGUN)  # It came to nothing.
        return None

    def clear(self) -> None:
        """All that the manifest, which readers look at, does not name, and what says that shards are finished."""
        self._remove(BEGUN)
        self._there = None
        try:
            content = self._read_json(MANIFEST)
            kept = set(_named_by(_checked_manifest(f"{self.place}/{MANIFEST}", content))) if content else set[str]()
        except (ValueError, KeyError, TypeError, OutputError):  # Not one that anybody could read.
            kept = set()
        self._remove_but(kept)

    def begin(self, manifest: dict[str, Any]) -> None:
        """Beside a manifest that readers look at."""
        self._write(BEGUN, json_bytes({**manifest, "complete": False}))

    def commit(self, parts: Callable[[], Iterable[bytes]], sha256: str, names: Callable[[], Iterator[str]]) -> None:
        """In the place of an older one, once all is seen to be there; then what only that one names is removed."""
        self._there = None
        there = self._names()
        if missing := next((name for name in names() if name not in there), None):
            raise OutputError(
                f"{self.place}/{missing} is gone: another run writes there. Let one run at a time write to a URL; the "
                "same command makes again what is missing"
            )
        with failing(f"read {self.place}/{MANIFEST}"):
            current = file_sha256(f"{self.place}/{MANIFEST}")
        if current != sha256:
            with uploaded_file(f"{self.place}/{MANIFEST}") as file:
                for part in parts():
                    file.write(part)
        self._remove(BEGUN)
        self._remove_but({*names(), *(name for name in there if name.endswith(f".{self._run}.json"))})

    def _facts_name(self, index: int, run: str) -> str:
        return shard_name(index, f".{run}.json")

    def _names(self) -> set[str]:
        if self._there is None:
            with failing(f"read {self.place}"):
                self._there = {name for name in list_url(self.place) if _SHARD.fullmatch(name)}
        return self._there

    def _remove_but(self, kept: set[str]) -> None:
        for name in sorted(self._names() - kept):
            self._remove(name)
        self._there = None

    def _remove(self, name: str) -> None:
        with failing(f"remove {self.place}/{name}"):
            remove_url(f"{self.place}/{name}")

    def _write(self, name: str, content: bytes) -> None:
        with failing(f"write {self.place}/{name}"):
            write_url(f"{self.place}/{name}", content)

    def _read_json(self, name: str) -> Any:
        with failing(f"read {self.place}/{name}"):
            return json.loads(_read_if_there(f"{self.place}/{name}") or b"null")


def _read_if_there(url: str) -> bytes | None:
    try:
        return read_url(url)
    except FileNotFoundError as error:
        if "bucket" in str(error.strerror):
            raise
        return None


def _run_key(manifest: dict[str, Any]) -> str:
    """What decides how vectors are made, as a part of names."""
    return digest(json.dumps(_comparable(manifest), sort_keys=True))[:_DIGITS]


def _named_by(manifest: dict[str, Any]) -> Iterator[str]:
    """The files that a manifest names."""
    for shard in manifest["shards"]:
        yield from (shard[name] for name in (key.removesuffix("_sha256") for key in PARTS.values()) if name in shard)


def copied_shards(url: str) -> Path:
    """A folder with the shards that are complete at a URL, which is kept as long as they are the same.

    Raises:
        OutputError: there are none that are complete, or a file is missing or not what its name says.
    """
    url = url.rstrip("/")
    if not is_there(f"{url}/{MANIFEST}") and is_there(f"{url}/{BEGUN}"):
        raise OutputError(f"{url} is not finished: run the same bge encode again; it continues from there")

    def wanted(head: bytes, _: Iterable[str]) -> Iterator[str]:
        try:
            return _named_by(_checked_manifest(f"{url}/{MANIFEST}", json.loads(head)))
        except (ValueError, KeyError) as error:
            raise OutputError(f"{url}/{MANIFEST} is damaged ({error}); --overwrite starts over") from error

    copy = local_copy(url, MANIFEST, wanted)
    _check_content(url, copy)
    return copy.folder


def _check_content(url: str, copy: LocalCopy) -> None:
    for name, sha256 in copy.digests.items():
        if _SHARD.fullmatch(name) and name.split(".")[1] != sha256[:_DIGITS]:
            raise OutputError(f"{url}/{name} is damaged: its content is not that of its name; make it again")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Differences in how the vectors of two manifests are made, in words."""
    found = []
    before, now = _comparable(old), _comparable(new)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            found.append(f"{key} was {before.get(key)!r:.80} and is {now.get(key)!r:.80} now")
    if len(found) > 1:  # A fingerprint tells nobody anything where there is something to tell.
        found = [each for each in found if not each.startswith("model fingerprint ")]
    if found and old["model_card"].get("name") != new["model_card"].get("name"):
        found.insert(0, f"model was {old['model_card'].get('name')} and is {new['model_card'].get('name')} now")
    return found


def _comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    # The name a model goes by does not matter as long as the weights and the card are the same.
    card = {f"model {key}": value for key, value in manifest["model_card"].items() if key not in ("name", "family")}
    rest = {"model fingerprint": manifest["model_fingerprint"], "precision": manifest["precision"]}
    return json.loads(json.dumps(card | rest | manifest["settings"]))
