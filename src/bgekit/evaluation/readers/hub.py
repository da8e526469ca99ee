"""Data as repositories of the hub have it: configurations in folders or the README, subsets, judgements next door."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from ...data.columns import LANGUAGE, first_line
from ...data.splits import KNOWN_SPLITS, DataFile, Folder, owned_by, repository_name, split_in
from ...errors import DataError
from ...files.remote import is_folder, is_url, matching, names_in, open_binary
from ...files.yaml_tables import read_yaml

#: What mteb's loader calls the parts of a test collection, each a configuration of its own.
CORPUS_PART: Final = ("corpus",)
QUERIES_PART: Final = ("queries", "query")
QRELS_PART: Final = ("qrels",)
RANKED_PART: Final = ("top_ranked",)
#: The configuration without a name: rows, or the judgements of a test collection.
DEFAULT_PART: Final = "default"


def configuration(folder: Folder, name: str) -> Folder | None:
    """The files of a configuration, those of each split by its name; None if the folder has none of that name.

    Args:
        folder: Folder of a repository.
        name: Name of the configuration, in any case.

    Raises:
        DataError: a folder cannot be listed.
    """
    own = stated(folder, name)
    if own is not None:
        return own
    for inner in folder.folders:
        if os.path.basename(inner).lower() == name.lower():
            found = folder.at(inner)
            if found.files:
                return found
    return None


def stated(folder: Folder, name: str) -> Folder | None:
    """The files of a configuration that the README lists, None if it lists none of that name whose files are there."""
    for own, files in _stated(folder):
        if own.lower() == name.lower():
            return Folder(folder.path, files, (), ())
    return None


def subset_of(folder: Folder, subset: str) -> Folder | None:
    """The folder as it is with the files of one subset alone, None if nothing in it says that there is such a subset.

    A subset is a configuration, a file in the folder of a split (`test/en.jsonl.gz`), a file whose name has both
    (`en_test`, `test-en`), or the rows that say so in a column `lang`.

    Raises:
        DataError: a folder cannot be listed.
    """
    own = configuration(folder, subset)
    if own is not None:
        return own
    files: dict[str, Sequence[DataFile]] = {}
    for name in folder.folders:
        if os.path.basename(name).lower() in KNOWN_SPLITS:
            inner = folder.at(name)
            files |= {os.path.basename(name): inner.files[stem] for stem in inner.files if _same(stem, subset)}
    for stem, found in folder.files.items():
        split = split_in(stem)
        if split is not None and _same(stem.lower().replace(split, "", 1).strip("._-"), subset):
            files[split] = found
    if not files:
        spoken = {stem: found for stem, found in folder.files.items() if _says_language(found)}
        files = {stem: [replace(file, language=subset) for file in found] for stem, found in spoken.items()}
    return Folder(folder.path, files, (), folder.others) if files else None


def has_subset(path: str, subset: str) -> bool:
    """Whether a folder has the data of a subset apart from that of others.

    Raises:
        DataError: it cannot be listed.
    """
    folder = Folder.of(path)
    return bool(part_of(folder, [f"{subset}-{CORPUS_PART[0]}"])) or subset_of(folder, subset) is not None


def part_of(folder: Folder, names: Sequence[str], subset: str = "") -> dict[str, DataFile]:
    """A part of a test collection by split, "" for all splits; empty if the folder does not have it.

    Args:
        folder: Folder of the collection.
        names: What the part is called.
        subset: Stands before the name where there are several (`en-corpus`).

    Raises:
        DataError: several files could be meant.
    """
    for name in [*(f"{subset}-{name}" for name in names if subset), *names]:
        if name in folder.files:
            return {"": folder.file(name)}
        inner = configuration(folder, name)
        if inner is not None:
            return {stem: inner.file(stem) for stem in inner.files}
    return {}


def of_split(files: Mapping[str, DataFile], split: str, what: str) -> DataFile:
    """The file of a split, or the only one that there is.

    Raises:
        DataError: there are several, and none of that split.
    """
    found = files.get(split) or files.get("") or files.get(what)
    if found is None and len(files) != 1:
        raise DataError(f"the {what} of {next(iter(files.values()))} is there as {', '.join(files)}, none is {split}")
    return found or next(iter(files.values()))


def beside(folder: Folder) -> Folder | None:
    """The repository with the judgements of this one (`T2Retrieval-qrels` beside `T2Retrieval`), None if there is none.

    Raises:
        DataError: a folder cannot be listed.
    """
    home = owned_by(folder.path)
    parent = os.path.dirname(home.rstrip("/") if is_url(home) else os.path.abspath(home))
    for name in names_in(parent)[0] if is_folder(parent) else ():
        path = os.path.join(parent, name)
        if _same(repository_name(path), f"{folder.name}-qrels"):
            found = Folder.of(path)
            return found if found.files else configuration(found, DEFAULT_PART)
    return None


def is_beside(name: str, others: Sequence[str]) -> bool:
    """Whether a folder's name says that it has the judgements of one of the others."""
    own = repository_name(name)
    return any(_same(own, f"{repository_name(other)}-qrels") for other in others)


def _same(name: str, other: str) -> bool:
    return name.lower().replace("_", "-") == other.lower().replace("_", "-")


def _says_language(found: Sequence[DataFile]) -> bool:
    try:
        return all(LANGUAGE in first_line(file).fields for file in found)
    except DataError:
        return False  # Whoever reads the file says what is wrong with it.


def _stated(folder: Folder) -> Iterator[tuple[str, dict[str, Sequence[DataFile]]]]:
    """Names and files of the configurations that the README of a repository lists, as far as their files are there."""
    for config in _listed(folder):
        if not isinstance(config, dict):
            continue
        files: dict[str, Sequence[DataFile]] = {}
        for split, patterns in _patterns(config.get("data_files")):
            paths = sorted(path for pattern in patterns for path in _matching(folder, str(pattern)))
            if paths:
                files[split] = [DataFile(tuple(paths))]
        if files:
            yield str(config.get("config_name", DEFAULT_PART)), files


def _listed(folder: Folder) -> list[Any]:
    if "README.md" not in folder.others:
        return []
    try:
        with open_binary(os.path.join(folder.root, "README.md")) as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8", errors="replace")
            _, _, rest = file.read().partition("---\n")
        head = read_yaml(rest.partition("\n---")[0]) if rest else None
    except (OSError, yaml.YAMLError):
        return []  # A README is for people; its head is of use where it can be read.
    configs = head.get("configs") if isinstance(head, dict) else None
    return configs if isinstance(configs, list) else []


def _patterns(files: object) -> Iterator[tuple[str, list[object]]]:
    """Splits and patterns of an entry `data_files`, in the forms that the hub allows, where a split can be told."""
    for entry in files if isinstance(files, list) else [files]:
        if isinstance(entry, dict) and "path" in entry:
            path = entry["path"]
            split = entry.get("split")
            yield from [(str(split), path if isinstance(path, list) else [path])] if split else _patterns(path)
        elif isinstance(entry, str) and (split := split_in(os.path.basename(entry).split(".")[0].rstrip("-*"))):
            yield split, [entry]


def _matching(folder: Folder, pattern: str) -> list[str]:
    # Only inside the folder, whatever a README says.
    if os.path.isabs(pattern) or ".." in pattern.split("/"):
        return []
    return matching(pattern, folder.root)
