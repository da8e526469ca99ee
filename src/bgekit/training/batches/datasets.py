"""Datasets of training: found in files and folders, opened, limited, freed of copies and joined."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from ...data.arrow_store import Counts
from ...data.columns import BadLines
from ...data.formats import Dialect, Quoting, stem_and_format
from ...data.training_rows import (
    EXPECTED,
    HAS_SCORE,
    HAS_TEACHER,
    NEGATIVE_IS_POSITIVE,
    POSITIVE_IS_QUERY,
    Row,
    RowStore,
    open_store,
)
from ...errors import ArgumentError, DataError
from ...files.remote import is_folder, is_there, is_url, names_in

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
    `no_in_batch_neg`, the passages of other rows are not negatives.

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
        if is_folder(path):
            inside = list(_files_in(path))
            if not inside:
                raise DataError(f"the folder {path} has no training data (*.jsonl, *.json, *.parquet, also .gz)")
        elif is_there(path):
            inside = [(path, "")]
        else:
            raise DataError(f"there is no training data at {path}")
        for file, folder in inside:
            name = _beside(path, file) if folder else os.path.basename(file)
            in_batch = in_batch_negatives and not _named_so(path, file)
            found.append(DataSpec(name, (file,), float(weight), in_batch, folder=folder))
    names = Counter(spec.name for spec in found)
    return [replace(spec, name=spec.files[0]) if names[spec.name] > 1 else spec for spec in found]


def _files_in(folder: str) -> Iterator[tuple[str, str]]:
    """Files of training data below a folder, each with the folder it stands in; those of a folder come first."""
    try:
        folders, names = names_in(folder)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from error
    for name in names:
        if not name.startswith(".") and name != _DESCRIPTION:
            path = os.path.join(folder, name)
            if stem_and_format(name)[1] in _FORMATS and (is_url(path) or os.path.isfile(path)):
                yield path, folder
            else:
                logger.info("%s is not training data and is left out", path)
    for name in folders:
        if not name.startswith("."):
            yield from _files_in(os.path.join(folder, name))


def _beside(path: str, file: str) -> str:
    """Path of a file relative to what `path`, which it is in, stands in."""
    if is_url(path):
        return file.removeprefix(os.path.dirname(path.rstrip("/"))).lstrip("/")
    return os.path.relpath(file, os.path.dirname(os.path.abspath(path)))


def _named_so(path: str, file: str) -> bool:
    """Whether a file, or a folder from `path` down to it, has a name that ends in `no_in_batch_neg`."""
    inside = _beside(path, file).replace(os.sep, "/").split("/")
    return any(part.endswith(NO_IN_BATCH) for part in (*inside[:-1], stem_and_format(inside[-1])[0]))


_Opened: TypeAlias = tuple[DataSpec, tuple[RowStore, ...]]
#: A part of the seed of each use, so that no two of them draw the same numbers.
_LIMIT_DRAW: Final = 1
_ADVICE: Final = f"\n{EXPECTED[0].upper()}{EXPECTED[1:]}; nothing was trained."
#: Rows whose texts are compared at once.
_COMPARED: Final = 1000


@dataclass(frozen=True)
class Dataset:
    """A dataset and its rows.

    Attributes:
        spec: What it is.
        stores: The rows of its files.
        start: Number of its first row over all data.
        rows: [n] int64, the numbers over all data of those rows that are trained on.
        scored: Whether its rows are scored pairs.
        teacher: Whether a teacher has scored all its passages, and that is to be used.
    """

    spec: DataSpec
    stores: tuple[RowStore, ...]
    start: int
    rows: Counts
    scored: bool
    teacher: bool

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Counts:
        """Numbers of the rows that are trained on (see `store`), [n] int64."""
        return np.concatenate([store.column(name) for store in self.stores])[self.rows - self.start]

    def scores(self) -> npt.NDArray[np.float64]:
        """Similarities of the scored pairs that are trained on, [n] float64; NaN for other rows."""
        return np.concatenate([store.scores() for store in self.stores])[self.rows - self.start]

    def values(self, name: str) -> dict[str | None, int]:
        """Counts of each value of `prompt` or `type` in its files."""
        counts: Counter[str | None] = Counter()
        for store in self.stores:
            counts.update(store.values(name))
        return counts


class TrainingData(Sequence[Row]):
    """All rows, by their numbers. Those that are trained on are the `rows` of each dataset.

    Attributes:
        datasets: Datasets in the order in which they were given.
        warnings: What was noticed while reading.
        duplicates: Rows that are equal to an earlier one.
    """

    def __init__(self, datasets: Sequence[Dataset], warnings: Sequence[str] = (), duplicates: int = 0) -> None:
        self.datasets = tuple(datasets)
        self.warnings = list(warnings)
        self.duplicates = duplicates
        self._stores = [(number, store) for number, data in enumerate(self.datasets) for store in data.stores]
        self._starts = list(itertools.accumulate((len(store) for _, store in self._stores), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        """The row of a number, from 0; it takes the same time wherever it is."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        index = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect.bisect_right(self._starts, index) - 1
        dataset, store = self._stores[number]
        return Row(**store.row(index - self._starts[number]), dataset=dataset, index=index)

    def place(self, index: int) -> str:
        """File and line of a row, as text."""
        file, line = self.line(index)
        return f"{file}, line {line}"

    def line(self, index: int) -> tuple[str, int]:
        """File and line of a row."""
        number = bisect.bisect_right(self._starts, index) - 1
        store = self._stores[number][1]
        return store.source, store.line(index - self._starts[number])

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the content of the data, the order of its files, and which rows are trained on."""
        digest = hashlib.sha256()
        for data in self.datasets:
            for store in data.stores:
                # The digest of the content, in the form that checkpoints of 0.1.0 have it.
                digest.update(f"{store.path.name.partition('.')[0]}.arrow".encode())
            digest.update(data.rows.tobytes())
        return digest.hexdigest()


def load_data(
    paths: Sequence[str | os.PathLike[str]],
    *,
    weights: Sequence[float] = (),
    cache: str | os.PathLike[str] | None = None,
    teacher: bool = False,
    max_rows: int | None = None,
    seed: int = 0,
    same_dataset: bool = False,
    small_threshold: int = 0,
    drop_threshold: int = 0,
    drop_duplicates: bool = False,
    in_batch_negatives: bool = True,
    encoding: str | None = None,
    quoting: Quoting = "auto",
) -> TrainingData:
    """Read and check all training data.

    Args:
        paths: Files and folders, see `find_datasets`.
        weights: One for each path.
        cache: Folder of checked rows, by default `default_cache()`.
        teacher: Rows have to have a teacher's scores (knowledge distillation). With `same_dataset`, files in which
            no row has them are trained on without, as in FlagEmbedding.
        max_rows: Maximum number of rows of a dataset; those that stay are drawn with the seed, once.
        seed: See there.
        same_dataset: Rows of a batch come from one dataset; the thresholds apply then.
        small_threshold: Datasets of one folder with fewer rows are put together.
        drop_threshold: What was put together and still has fewer rows is left out.
        drop_duplicates: Leave out rows that are equal to an earlier one.
        in_batch_negatives: False for no in-batch negatives anywhere.
        encoding: What text files are written in, as in `read_records`.
        quoting: Quoting of csv and tsv files, as in `read_records`.

    Raises:
        DataError: files or lines cannot be used: all of them are listed; or no row is left.
        ArgumentError: an argument is impossible.
        OutputError: the cache cannot be written.
    """
    if max_rows is not None and max_rows < 1:
        raise ArgumentError(f"max_example_num_per_dataset must be at least 1, not {max_rows}")
    folder = Path(cache) if cache is not None else default_cache()
    bad, dialect = BadLines(), Dialect(encoding, quoting)
    warnings: list[str] = []
    specs = find_datasets([os.fspath(path) for path in paths], weights, in_batch_negatives=in_batch_negatives)
    opened: list[_Opened] = []
    for spec in specs:
        store = open_store(spec.files[0], folder, bad, dialect)
        if store is None:
            continue
        if not len(store):
            warnings.append(f"{store.source} is empty")
            continue
        if teacher:
            _check_teacher(store, same_dataset, bad)
        first = store.row(0)  # It speaks for all, as in FlagEmbedding.
        opened.append((replace(spec, batch_size=first["batch_size"], type=first["type"]), (store,)))
    bad.check("problem", "in the training data", _ADVICE)
    if same_dataset and small_threshold:
        opened = _merged(opened, small_threshold, drop_threshold, warnings)
    datasets: list[Dataset] = []
    start = 0
    for spec, stores in opened:
        rows = np.arange(start, start + sum(map(len, stores)))
        notes = np.concatenate([store.column("notes") for store in stores])
        taught = teacher and bool((notes & HAS_TEACHER).all())
        datasets.append(Dataset(spec, stores, start, rows, bool((notes & HAS_SCORE).all()), taught))
        start += len(rows)
    datasets, duplicates = _without_duplicates(datasets, drop_duplicates)
    if duplicates:
        fate = "are left out" if drop_duplicates else "are kept (--drop-duplicates leaves them out)"
        warnings.append(f"{duplicates:,} rows are equal to an earlier one; they {fate}")
    if max_rows is not None:
        datasets = [_limited(data, number, max_rows, seed) for number, data in enumerate(datasets)]
    if not any(map(len, datasets)):
        raise DataError(f"there is no row of training data in {', '.join(os.fspath(path) for path in paths)}")
    for warning in warnings:
        logger.warning("training data: %s", warning)
    return TrainingData(datasets, warnings, duplicates)


def check_cosines(data: TrainingData) -> None:
    """Check that the scores of scored pairs can be cosines.

    Raises:
        DataError: some are not from -1 to 1: all of them are listed.
    """
    bad = BadLines()
    for dataset in (each for each in data.datasets if each.scored):
        scores = dataset.scores()
        for position in np.flatnonzero(np.abs(scores) > 1):
            bad.add(
                *data.line(int(dataset.rows[position])),
                f"a score of {scores[position]:g} is not a cosine: --scored-loss mse needs -1 to 1; divide the scores, "
                "or take cosent, for which only their order counts",
            )
    bad.check("problem", "in the training data", _ADVICE)


@dataclass(frozen=True)
class Copies:
    """Rows of a dataset that have one text, as the model sees it, in several places.

    Attributes:
        positives: Rows whose query is one of their positives.
        negatives: Rows with a positive among their negatives.
        alone: Rows of whose negatives none is left, since all are positives or the query.
    """

    positives: int
    negatives: int
    alone: int


def count_copies(
    data: TrainingData, dataset: Dataset, keys: Callable[[Sequence[Sequence[str]]], list[list[int]]]
) -> Copies:
    """Rows among whose texts are copies, looked for where reading has noted texts that are nearly equal.

    Args:
        data: All rows.
        dataset: Those that are looked at.
        keys: Lists of texts -> keys that are equal for texts that are so to the model (`Collator.keys`).
    """
    positives = negatives = alone = 0
    noted = dataset.rows[(dataset.column("notes") & (POSITIVE_IS_QUERY | NEGATIVE_IS_POSITIVE)) > 0]
    for start in range(0, len(noted), _COMPARED):
        rows = [data[int(number)] for number in noted[start : start + _COMPARED]]
        found = keys([[*row.positives, row.query, *row.negatives] for row in rows])
        for row, own in zip(rows, found, strict=True):
            count = len(row.positives)
            known, query, others = own[:count], own[count], own[count + 1 :]
            positives += query in known
            negatives += any(key in known for key in others)
            alone += bool(others) and all(key in (*known, query) for key in others)
    return Copies(positives, negatives, alone)


def default_cache() -> Path:
    """Folder of checked rows: in the cache of Hugging Face (`HF_HOME`), beside `hub`."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "bgekit" / "training"


def _check_teacher(store: RowStore, same_dataset: bool, bad: BadLines) -> None:
    notes = store.column("notes")
    missing = np.flatnonzero(notes & (HAS_TEACHER | HAS_SCORE) == 0)
    if not len(missing) or (same_dataset and not (notes & HAS_TEACHER).any()):
        return
    for line in store.column("line")[missing]:
        bad.add(
            store.source, int(line), "no pos_scores and neg_scores, which knowledge distillation needs (`bge score`)"
        )


def _merged(opened: Sequence[_Opened], small: int, drop: int, warnings: list[str]) -> list[_Opened]:
    """Datasets with fewer than `small` rows, put together by folder; left out if these have fewer than `drop`."""
    kept: list[_Opened] = []
    groups: dict[tuple[str, bool, int], list[_Opened]] = {}
    for spec, stores in opened:
        if sum(map(len, stores)) >= small:
            kept.append((spec, stores))
        else:
            # A file that was named stands for itself; what cannot share a batch is not put together either.
            notes = int(stores[0].column("notes")[0]) & (HAS_SCORE | HAS_TEACHER)
            groups.setdefault((spec.folder or spec.files[0], spec.in_batch_negatives, notes), []).append((spec, stores))
    for (folder, in_batch, _), members in groups.items():
        stores = tuple(store for _, stores in members for store in stores)
        rows = sum(map(len, stores))
        name = f"{os.path.basename(os.path.normpath(folder))} ({len(members)} small)"
        if rows < drop:
            warnings.append(f"{name}: {rows:,} rows, fewer than drop_threshold={drop:,}; they are left out")
            continue
        specs = [spec for spec, _ in members]
        if len(specs) == 1:
            kept.append((specs[0], stores))
            continue
        sizes = [spec.batch_size for spec in specs if spec.batch_size is not None]
        types = {spec.type for spec in specs}
        kept.append((
            DataSpec(
                name, tuple(file for spec in specs for file in spec.files), specs[0].weight, in_batch,
                batch_size=min(sizes, default=None), folder=folder,
                # The smaller batches of any member suit all of them.
                type=next((spec.type for spec in specs if spec.symmetric), types.pop() if len(types) == 1 else None),
            ),
            stores,
        ))  # fmt: skip
    return kept


def _without_duplicates(datasets: Sequence[Dataset], drop: bool) -> tuple[list[Dataset], int]:
    """The datasets, without rows equal to an earlier one if `drop`, and how many of these there are."""
    if not datasets:
        return [], 0
    digests = np.concatenate([data.column("digest") for data in datasets])
    _, first = np.unique(digests, return_index=True)
    duplicates = len(digests) - len(first)
    if not drop or not duplicates:
        return list(datasets), duplicates
    keep = np.zeros(len(digests), dtype=bool)
    keep[first] = True
    return [replace(data, rows=data.rows[keep[data.rows]]) for data in datasets], duplicates


def _limited(data: Dataset, number: int, most: int, seed: int) -> Dataset:
    if len(data) <= most:
        return data
    generator = np.random.default_rng([seed, _LIMIT_DRAW, number])
    return replace(data, rows=data.rows[np.sort(generator.choice(len(data), most, replace=False))])
