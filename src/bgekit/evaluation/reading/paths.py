"""Which files of a folder hold which split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ...encoding.rows import listing, stem_and_format
from ...errors import DataError

#: What people call the splits, those first that are to be scored.
DEV_SPLITS: Final = ("dev", "validation", "val", "valid", "eval")
KNOWN_SPLITS: Final = ("test", *DEV_SPLITS, "train")


class UnknownSplit(DataError):
    """The data has no split of that name."""


@dataclass(frozen=True)
class Folder:
    """What is in a folder.

    Attributes:
        path: As the user named it.
        files: Data files by their name without ending.
        folders: Names of the folders in it.
        others: Names of files that are no data.
    """

    path: str
    files: Mapping[str, Sequence[str]]
    folders: Sequence[str]
    others: Sequence[str]

    @classmethod
    def of(cls, path: str) -> Folder:
        """List a folder; what is hidden is left out.

        Raises:
            DataError: it cannot be listed.
        """
        files: dict[str, list[str]] = {}
        folders, others = [], []
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        for entry in entries:
            stem, form = stem_and_format(entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif form is None or form == "txt" or entry.name == "dataset.json":
                others.append(entry.name)
            else:
                files.setdefault(stem, []).append(os.path.join(path, entry.name))
        return cls(path, files, folders, others)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return os.path.basename(os.path.abspath(self.path))

    def file(self, stem: str) -> str:
        """The file of this name.

        Raises:
            DataError: there are several, such as one zipped and one not.
        """
        found = self.files[stem]
        if len(found) > 1:
            raise DataError(f"{' and '.join(found)} stand side by side, and it is not clear which counts: keep one")
        return found[0]


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
