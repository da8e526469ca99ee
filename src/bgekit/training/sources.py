"""Which files are training data, and which dataset each belongs to."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..encoding.rows import stem_and_format
from ..errors import ArgumentError, DataError

logger = logging.getLogger(__name__)

#: What the name of a file or folder ends with whose rows do not serve each other as negatives.
NO_IN_BATCH: Final = "no_in_batch_neg"
#: Formats whose rows can hold lists.
_FORMATS: Final = ("jsonl", "parquet")
#: Not data, though its name looks like it.
_DESCRIPTION: Final = "dataset.json"


@dataclass(frozen=True)
class DataSpec:
    """A dataset: rows that are drawn, and by option batched, together.

    Attributes:
        name: For reports.
        files: Its files.
        weight: How often its rows are drawn, relative to those of others.
        in_batch_negatives: Whether passages of other rows are negatives.
        batch_size: Rows of its batches on each device, None for the usual number.
        type: One of FlagEmbedding's types, as its first row has it.
        folder: The folder it was found in, "" for a file that was named.
    """

    name: str
    files: tuple[str, ...]
    weight: float = 1.0
    in_batch_negatives: bool = True
    batch_size: int | None = None
    type: str | None = None
    folder: str = ""

    @property
    def symmetric(self) -> bool:
        """Whether queries and passages are of one kind, which makes batches half as large (FlagEmbedding 1.4)."""
        return self.type is not None and "symmetric" in self.type


def find_datasets(
    paths: Sequence[str], weights: Sequence[float] = (), *, in_batch_negatives: bool = True
) -> list[DataSpec]:
    """The datasets of some files and folders, one for each file.

    Of a folder all files of training data count, those of its sub-folders too, in the order of their names; hidden
    ones and `dataset.json` are left out. Where the name of a file, or of a folder around it, ends in
    `no_in_batch_neg`, the passages of other rows are no negatives.

    Args:
        paths: Files and folders.
        weights: One for each path, for all datasets in it; empty for 1 each.
        in_batch_negatives: False to have none anywhere.

    Raises:
        DataError: a path is not there, or a folder has no data.
        ArgumentError: the weights do not fit.
    """
    if weights and len(weights) != len(paths):
        raise ArgumentError(f"there are {len(weights)} dataset weights for {len(paths)} paths of training data")
    found = []
    for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True):
        if not 0 < weight < float("inf"):
            raise ArgumentError(f"a dataset's weight must be a number above 0, not {weight}")
        if os.path.isdir(path):
            inside = [(file, folder) for file, folder in _files_in(path)]
            if not inside:
                raise DataError(f"the folder {path} has no training data (*.jsonl, *.json, *.parquet, also .gz)")
        elif os.path.exists(path):
            inside = [(path, "")]
        else:
            raise DataError(f"there is no training data at {path}")
        for file, folder in inside:
            name = os.path.relpath(file, os.path.dirname(os.path.abspath(path))) if folder else os.path.basename(file)
            in_batch = in_batch_negatives and not _named_so(path, file)
            found.append(DataSpec(name, (file,), float(weight), in_batch, folder=folder))
    names = Counter(spec.name for spec in found)
    return [replace(spec, name=spec.files[0]) if names[spec.name] > 1 else spec for spec in found]


def _files_in(folder: str) -> Iterator[tuple[str, str]]:
    """Files of training data below a folder, each with the folder it stands in; those of a folder come first."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from error
    shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in shown:
        if entry.is_file() and entry.name != _DESCRIPTION:
            if stem_and_format(entry.name)[1] in _FORMATS:
                yield entry.path, folder
            else:
                logger.info("%s is no training data and is left out", entry.path)
    for entry in shown:
        if entry.is_dir():
            yield from _files_in(entry.path)


def _named_so(path: str, file: str) -> bool:
    """Whether a file, or a folder from `path` down to it, has a name that ends in `no_in_batch_neg`."""
    inside = os.path.relpath(file, os.path.dirname(os.path.abspath(path))).split(os.sep)
    return any(part.endswith(NO_IN_BATCH) for part in (*inside[:-1], stem_and_format(inside[-1])[0]))
