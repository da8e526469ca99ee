"""Splits of a data folder: which of its files hold train, dev and test."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..errors import DataError
from ..files.remote import is_url, names_in
from .formats import listing, stem_and_format

#: What people call the splits, those first that are to be scored.
DEV_SPLITS: Final = ("dev", "validation", "val", "valid", "eval")
KNOWN_SPLITS: Final = ("test", *DEV_SPLITS, "train")
#: A shard's name, without ending: the split, the number, how many there are; then often a hash.
_SHARD: Final = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?", re.IGNORECASE)
#: Names, without ending, of files that have none of their own.
_NAMELESS: Final = re.compile(r"(data|part|shard|chunk|file)?[-_]?\d*", re.IGNORECASE)
#: Files of settings whose names look like data; the last three are those of the package `datasets`.
_DESCRIPTIONS: Final = ("dataset.json", "dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json")


class UnknownSplit(DataError):
    """The data has no split of that name."""


@dataclass(frozen=True)
class DataFile:
    """One split, or one part of a test collection: a file, or the shards that it is cut into.

    Attributes:
        paths: Paths in their order.
        count: How many shards their names say that there are; 0 where they say nothing.
        language: Language of the rows that count, where rows say theirs in a column `lang`; "" for all.
        languages: Languages that rows were seen to have, where all count.
    """

    paths: tuple[str, ...]
    count: int = 0
    language: str = ""
    languages: set[str] = field(default_factory=set, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The first file's own name."""
        return os.path.basename(self.paths[0])

    def __str__(self) -> str:
        more = len(self.paths) - 1
        return self.paths[0] + (f" (and {more} more)" if more else "")

    def checked(self) -> DataFile:
        """This file, after a check that none of its shards is missing.

        Raises:
            DataError: shards are missing.
        """
        shards = [_SHARD.fullmatch(stem_and_format(os.path.basename(path))[0]) for path in self.paths]
        numbers = [int(shard[2]) for shard in shards if shard]
        if numbers and self.count > 0 and numbers != list(range(self.count)):
            missing = [number for number in range(self.count) if number not in numbers]
            what = f"{listing(missing)} of 0 to {self.count - 1} are missing" if missing else "some are there twice"
            raise DataError(f"{self.paths[0]} is one of {self.count} shards, and {what}: fetch the data again")
        return self


@dataclass(frozen=True)
class Folder:
    """Content of a folder: files of data, folders, others.

    Attributes:
        path: As the user named it.
        files: Data files by their name without ending.
        folders: Names of the folders in it.
        others: Names of files that are not data.
    """

    path: str
    files: Mapping[str, Sequence[DataFile]]
    folders: Sequence[str]
    others: Sequence[str]

    @classmethod
    def of(cls, path: str) -> Folder:
        """List a folder; what is hidden is left out.

        What repositories of the hub and the package `datasets` put between a folder and its files is looked through:
        the snapshot of a cached repository, a folder `data`, a folder for each split. Shards make one file.

        Raises:
            DataError: it cannot be listed.
        """
        listed = cls._listed(snapshot_of(path))
        if "data" in listed.folders and all(name == "data" or _is_config(name) for name in listed.folders):
            inner = cls.of(os.path.join(listed.path, "data"))
            # One that describes itself is a data set of its own.
            listed = listed if "dataset.json" in inner.others else listed._with(inner)
        files, folders = dict(listed.files), []
        for name in listed.folders:
            whole = listed._split_in(name)
            if whole is None:
                folders.append(name)
            else:
                files.setdefault(name, [whole])
        return cls(path, files, folders, listed.others)

    @property
    def name(self) -> str:
        """The folder's own name; of a repository in the hub's cache that of the repository."""
        return repository_name(self.path)

    def file(self, stem: str) -> DataFile:
        """The file of this name.

        Raises:
            DataError: there are several, such as one zipped and one not, or shards are missing.
        """
        found = self.files[stem]
        if len(found) > 1:
            both = " and ".join(map(str, found))
            raise DataError(f"{both} stand side by side, and it is not clear which counts: keep one")
        return found[0].checked()

    def holding(self, path: str) -> tuple[str, DataFile]:
        """Name and data file of a file in it: the whole, where the file is a shard."""
        base = os.path.basename(path)
        for stem, found in self.files.items():
            for file in found:
                if any(os.path.basename(each) == base for each in file.paths):
                    return stem, file.checked() if file.count else DataFile((path,))
        return stem_and_format(base)[0], DataFile((path,))

    @property
    def root(self) -> str:
        """Path that holds the files."""
        return snapshot_of(self.path)

    def at(self, name: str) -> Folder:
        """A folder in it."""
        return Folder.of(os.path.join(self.root, name))

    @classmethod
    def _listed(cls, path: str) -> Folder:
        """Listing of a folder, in which shards of one file are joined."""
        files: dict[str, dict[tuple[str, int], list[str]]] = {}
        folders, others = list[str](), list[str]()
        try:
            inner, names = names_in(path)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        folders += [name for name in inner if not name.startswith(".")]
        for name in names:
            stem, form = stem_and_format(name)
            if name.startswith("."):
                continue
            if form is None or form == "txt" or name in _DESCRIPTIONS:
                others.append(name)
            else:
                shard = _SHARD.fullmatch(stem)
                own, like, count = (shard[1], form, int(shard[3])) if shard else (stem, name, 0)
                files.setdefault(own, {}).setdefault((like, count), []).append(os.path.join(path, name))
        found = {
            stem: [DataFile(tuple(paths), count) for (_, count), paths in by_key.items()]
            for stem, by_key in files.items()
        }
        return cls(path, found, folders, others)

    def _with(self, data: Folder) -> Folder:
        """This folder and what is in its folder `data`."""
        files = {stem: [*self.files.get(stem, ()), *data.files.get(stem, ())] for stem in (*self.files, *data.files)}
        folders = [name for name in self.folders if name != "data"]
        folders += [os.path.join("data", name) for name in data.folders]
        return Folder(self.path, files, folders, [*self.others, *data.others])

    def _split_in(self, name: str) -> DataFile | None:
        """The split that a folder holds in files of no name of their own, None if it holds something else."""
        named = os.path.basename(name).lower() in KNOWN_SPLITS
        inner = Folder._listed(os.path.join(self.path, name)) if named or "dataset_dict.json" in self.others else None
        if inner is None or inner.folders or not inner.files or "dataset.json" in inner.others:
            return None
        if not all(_NAMELESS.fullmatch(stem) or stem == name for stem in inner.files):
            return None
        files = [file.checked() for found in inner.files.values() for file in found]
        paths = tuple(path for file in files for path in file.paths)
        return DataFile(paths)


def snapshot_of(path: str) -> str:
    """The folder that holds the files of a repository in a cache; any other path as it is.

    In the hub's cache (`datasets--OWNER--NAME/snapshots/HASH`) it is the snapshot that `refs/main` names, or else the
    latest; in that of the package `datasets` (`OWNER___NAME/CONFIGURATION/0.0.0/HASH`) the latest.
    """
    inside = os.path.join(path, "snapshots") if _repository(path) else os.path.join(path, "0.0.0")
    if is_url(path) or not os.path.isdir(inside):  # No such cache is at a URL.
        return path
    try:
        with open(os.path.join(path, "refs", "main"), encoding="utf-8") as file:
            main = os.path.join(inside, file.read().strip())
    except OSError:
        main = ""
    found = sorted((entry.path for entry in os.scandir(inside) if entry.is_dir()), key=os.path.getmtime)
    return main if main in found else found[-1] if found else path


def repository_name(path: str) -> str:
    """The name of a folder; of a repository in the hub's cache, or its snapshot, the repository's without its owner."""
    parts = path.rstrip("/").split("/") if is_url(path) else os.path.abspath(path).split(os.sep)
    cached = parts[-3] if len(parts) > 2 and parts[-2] == "snapshots" else parts[-1]
    return _repository(cached) or parts[-1].rpartition("___")[2]


def owned_by(path: str) -> str:
    """The folder of a repository in the hub's cache that a path is a snapshot of; any other path as it is."""
    if is_url(path):
        return path
    snapshots = os.path.dirname(os.path.abspath(path))
    above = os.path.dirname(snapshots)
    return above if os.path.basename(snapshots) == "snapshots" and _repository(above) else path


def _repository(path: str) -> str:
    """The repository's name that a folder of the hub's cache has in its own; "" for other folders."""
    kind, _, own = os.path.basename(path).partition("--")
    return own.rpartition("--")[2] if kind in ("datasets", "models") else ""


def _is_config(name: str) -> bool:
    """Whether a folder beside `data` is a part of the same data set."""
    return re.split(r"[_-]", name.lower())[-1] in ("corpus", "queries", "query", "qrels", "ranked", "default")


def choose_split(available: Iterable[str], wanted: str | None, place: str) -> str:
    """The split to score: the one that was asked for, or else test, dev or validation, or the only one.

    Args:
        available: The splits there are.
        wanted: What was asked for.
        place: File or folder, for messages.

    Raises:
        UnknownSplit: there is none such, or it is not clear which.
    """
    splits = list(available)
    if wanted is not None:
        found = find_split(splits, wanted) or (find_split(splits, *DEV_SPLITS) if wanted in DEV_SPLITS else None)
        if found is None:
            raise UnknownSplit(f"{place} has no split {wanted!r}; it has {listing(splits)}")
        return found
    found = find_split(splits, "test", *DEV_SPLITS)
    if found is not None:
        return found
    scored = [split for split in splits if split != "train"] or splits
    if len(scored) != 1:
        raise UnknownSplit(f"{place} has the splits {listing(splits)}: say which with --split (split=...)")
    return scored[0]


def find_split(splits: Iterable[str], *names: str) -> str | None:
    """The first of these names that there is; else a split that begins or ends with one, such as `sts-test`."""
    splits = list(splits)
    for name in names:
        if name in splits:
            return name
    for name in names:
        alike = [split for split in splits if name in _ends(split)]
        if len(alike) == 1:
            return alike[0]
    return None


def split_in(stem: str) -> str | None:
    """The split that a file's name says, such as `dev` for `dev_queries`; None if it says none."""
    return next((name for name in KNOWN_SPLITS if name in _ends(stem)), None)


def _ends(name: str) -> tuple[str, ...]:
    parts = re.split(r"[._-]", name.lower())
    return (parts[0], parts[-1])
