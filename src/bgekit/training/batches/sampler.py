"""Sampling: which rows form which batch, which of them each process takes, and which texts of a row are drawn.

The batches of an epoch are a function of the data, the seed and the epoch: not of the number of processes, of data
loader workers, or of where a run was interrupted. So batch k of epoch e can be asked for directly.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ...data.arrow_store import Counts
from ...data.training_rows import CLASSES, ONE_NEGATIVE, Row
from ...errors import ArgumentError, DataError
from ...networks.packing import Packed
from .datasets import TrainingData

if TYPE_CHECKING:
    from typing_extensions import Self

BatchT = TypeVar("BatchT")
#: A part of the seed of each use, so that no two of them draw the same numbers.
_PASS: Final = 2
_EPOCH: Final = 3
#: Batches whose rows are sorted by length together: enough for even batches, few enough for random ones.
_SORTED_TOGETHER: Final = 64


@dataclass(frozen=True)
class PlanOptions:
    """Options of making batches.

    Attributes:
        batch_size: Rows of a global batch, of all processes together.
        seed: Random seed for the order.
        drop_last: Leave out batches with fewer rows.
        same_dataset: Rows of a batch come from one dataset; a dataset's own batch size counts then.
        temperature: A dataset's share of the rows is proportional to weight * rows ** (1 / temperature).
        devices: What a dataset's own batch size is multiplied by: it is meant for each device.
        group_by_length: Rows of a batch have similar lengths, so that batches that differ in cost do so as a whole.
    """

    batch_size: int
    seed: int = 0
    drop_last: bool = False
    same_dataset: bool = False
    temperature: float = 1.0
    devices: int = 1
    group_by_length: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.devices < 1:
            raise ArgumentError(f"batch_size and devices must be at least 1, not {self.batch_size} and {self.devices}")
        if not 0 < self.temperature < float("inf"):
            raise ArgumentError(f"sampling_temperature must be a number above 0, not {self.temperature}")
        if self.seed < 0:
            raise ArgumentError(f"seed must not be negative, but it is {self.seed}")


@dataclass(frozen=True, eq=False)
class DatasetShare:
    """A dataset's part in the batches of a run.

    Attributes:
        rows: [n] int64, numbers of its rows.
        weight: How often they are drawn.
        batch_size: Rows of its batches, None for the usual number.
        in_batch: Whether other rows' passages are negatives.
        kind: Rows of different kinds never share a batch.
        lengths: [n] what each row costs, for `group_by_length`.
    """

    rows: Counts
    weight: float = 1.0
    batch_size: int | None = None
    in_batch: bool = True
    kind: Hashable = None
    lengths: Counts | None = None


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The rows of a batch of all processes together.

    Attributes:
        rows: [size] int64, numbers of the rows.
        passes: [size] int64, how often each row was drawn before; the epoch, where each row comes once an epoch.
        in_batch: Whether other rows' passages are negatives.
    """

    rows: Counts
    passes: Counts
    in_batch: bool

    @property
    def size(self) -> int:
        """Rows of all processes."""
        return len(self.rows)

    def part(self, rank: int, world: int) -> slice:
        """The rows of one process: a stretch, of `size / world` rows rounded up or down."""
        each, rest = divmod(self.size, world)
        start = rank * each + min(rank, rest)
        return slice(start, start + each + (rank < rest))


class EpochPlan(Sequence[GlobalBatch]):
    """The global batches of one epoch.

    An epoch has as many rows as there are. Each dataset has an endless stream of its rows, in one random order
    after another, of which every epoch takes the next stretch. So with equal weights and a temperature of 1 each row
    comes once an epoch; a dataset that is drawn less often still has each row come before any comes again.
    """

    def __init__(self, shares: Sequence[DatasetShare], options: PlanOptions, epoch: int) -> None:
        self.options, self.epoch = options, epoch
        self._counts = rows_of_epoch(shares, options.temperature)
        self._pools = _pools(shares, self._counts, options)
        self._shares = shares
        sizes = [(sum(self._counts[member] for member in pool.members), pool.batch_size) for pool in self._pools]
        self._steps = [rows // size if options.drop_last else -(-rows // size) for rows, size in sizes]

    def __len__(self) -> int:
        return sum(self._steps)

    @overload
    def __getitem__(self, index: int) -> GlobalBatch: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[GlobalBatch]: ...

    def __getitem__(self, index: int | slice) -> GlobalBatch | Sequence[GlobalBatch]:
        """Batch number `index` of the epoch."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        index = index + (len(self) if index < 0 else 0)
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        pool, start, stop = self._cuts[index]
        rows, passes = self._ordered[pool]
        return GlobalBatch(rows[start:stop], passes[start:stop], self._pools[pool].in_batch)

    @cached_property
    def _ordered(self) -> list[tuple[Counts, Counts]]:
        """Rows and passes of each pool, in the order in which they are cut into batches."""
        generator = np.random.default_rng([self.options.seed, _EPOCH, self.epoch])
        ordered = []
        for pool, steps in zip(self._pools, self._steps, strict=True):
            drawn = [self._drawn(member) for member in pool.members]
            rows, passes, lengths = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
            order = generator.permutation(len(rows))[: steps * pool.batch_size]
            if self.options.group_by_length:
                order = _grouped(order, lengths, pool.batch_size, generator)
            ordered.append((rows[order], passes[order]))
        return ordered

    @cached_property
    def _cuts(self) -> list[tuple[int, int, int]]:
        """Pool, first and last row of each batch, in the order of the epoch."""
        cuts = []
        for number, (pool, (rows, _)) in enumerate(zip(self._pools, self._ordered, strict=True)):
            starts = range(0, len(rows), pool.batch_size)
            cuts += [(number, start, min(start + pool.batch_size, len(rows))) for start in starts]
        order = np.random.default_rng([self.options.seed, _EPOCH, self.epoch, 0]).permutation(len(cuts))
        return [cuts[position] for position in order]

    def _drawn(self, member: int) -> tuple[Counts, Counts, Counts]:
        """Rows, passes and lengths of a dataset's stretch of this epoch."""
        share, count = self._shares[member], self._counts[member]
        size = len(share.rows)
        first = self.epoch * count
        positions, passes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for number in range(first // size, -(-(first + count) // size)) if count else ():
            order = np.random.default_rng([self.options.seed, _PASS, member, number]).permutation(size)
            taken = order[max(first - number * size, 0) : first + count - number * size]
            positions.append(taken)
            passes.append(np.full(len(taken), number))
        chosen = np.concatenate(positions)
        lengths = share.lengths if share.lengths is not None else np.zeros(size, dtype=np.int64)
        return share.rows[chosen], np.concatenate(passes), lengths[chosen]


def plan(shares: Sequence[DatasetShare], options: PlanOptions, epoch: int) -> EpochPlan:
    """The global batches of an epoch, counted from 0.

    Raises:
        DataError: there is no batch, because each dataset is smaller than one and such are left out.
    """
    made = EpochPlan(shares, options, epoch)
    if not len(made):
        raise DataError(
            f"no dataset fills a batch of {options.batch_size} rows, and incomplete batches are left out: "
            "take a smaller batch or --dataloader-drop-last false"
        )
    return made


def dataset_shares(
    data: TrainingData, options: PlanOptions, group_size: int = 8, query_max_len: int = 512, passage_max_len: int = 512
) -> list[DatasetShare]:
    """The datasets with their part in the batches.

    Args:
        data: All rows.
        options: How batches are made.
        group_size: Passages of a row, for the lengths of rows.
        query_max_len: Tokens of a query, likewise.
        passage_max_len: Tokens of a passage, likewise.
    """
    shares = []
    for dataset in data.datasets:
        spec, own, lengths = dataset.spec, None, None
        if spec.batch_size is not None:
            own = spec.batch_size * options.devices
        elif spec.symmetric:
            own = max(options.batch_size // 2, 1)
        if options.group_by_length:
            # Bytes stand for tokens: a token has 3 to 4 of them in most languages.
            longest = {"query": 4 * query_max_len, "positive": 4 * passage_max_len, "negative": 4 * passage_max_len}
            query, positive, negative = (np.minimum(dataset.column(f"{n}_bytes"), most) for n, most in longest.items())
            lengths = query + positive + np.minimum(dataset.column("negative_count"), group_size - 1) * negative
        kind = (dataset.scored, dataset.teacher)
        shares.append(DatasetShare(dataset.rows, spec.weight, own, spec.in_batch_negatives, kind, lengths))
    return shares


def rows_of_epoch(shares: Sequence[DatasetShare], temperature: float = 1.0) -> list[int]:
    """Rows of each dataset in an epoch; in all as many as there are."""
    sizes = np.array([len(share.rows) for share in shares], dtype=np.float64)
    weights = np.array([share.weight for share in shares])
    # In logarithms, since a temperature near 0 makes powers of sizes overflow.
    with np.errstate(divide="ignore"):
        logs = np.where(sizes > 0, np.log(weights) + np.log(sizes) / temperature, -np.inf)
    parts = np.exp(logs - logs.max()) if len(sizes) and sizes.any() else sizes
    total = int(sizes.sum())
    exact = parts / max(parts.sum(), 1e-300) * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    # Largest remainders first; of equal ones the earlier dataset.
    rest = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[rest] += 1
    return [int(count) for count in counts]


@dataclass(frozen=True)
class _Pool:
    """Datasets whose rows share batches."""

    members: tuple[int, ...]
    batch_size: int
    in_batch: bool


def _pools(shares: Sequence[DatasetShare], counts: Sequence[int], options: PlanOptions) -> list[_Pool]:
    members: dict[Hashable, list[int]] = {}
    for number, share in enumerate(shares):
        if counts[number]:
            members.setdefault(number if options.same_dataset else (share.in_batch, share.kind), []).append(number)
    pools = []
    for numbers in members.values():
        first = shares[numbers[0]]
        own = first.batch_size if options.same_dataset else None
        pools.append(_Pool(tuple(numbers), own or options.batch_size, first.in_batch))
    return pools


def _grouped(order: Counts, lengths: Counts, batch_size: int, generator: np.random.Generator) -> Counts:
    """The order with rows of similar length in each batch.

    In a batch their order is random, so that all processes' parts are alike; a short last batch stays the last.
    """
    order = order.copy()
    stretch = batch_size * _SORTED_TOGETHER
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        order[start : start + stretch] = part[np.argsort(lengths[part], kind="stable")]
    for start in range(0, len(order), batch_size):
        generator.shuffle(order[start : start + batch_size])
    return order


class StepBatch:
    """A dataclass of one process's part of a global batch, whose tensors move together."""

    def to(self, device: torch.device) -> Self:
        """Copy the batch to another device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Copy the batch to memory that a GPU copies from without waiting (a loader calls this)."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return move(value)
            if isinstance(value, Packed):
                return Packed(move(value.input_ids), value.lengths, value.skip, moved(value.token_types))
            return [moved(each) for each in value] if isinstance(value, list) else value

        own: Any = self
        return replace(own, **{each.name: moved(getattr(self, each.name)) for each in fields(own)})  # type: ignore[no-any-return]


class StepBatches(Dataset[BatchT]):
    """Batches of one process by step: item k is that of step k, item (e, k) that of step k of epoch e.

    Nothing is remembered from one item to the next, so any number of data loader workers give the same batches, and
    a run is resumed by asking for the later items only. Use it with `DataLoader(..., batch_size=None)`.

    Args:
        shares: The datasets.
        options: How their rows form batches.
        rank: This process.
        world: Processes in all.
    """

    def __init__(self, shares: Sequence[DatasetShare], options: PlanOptions, *, rank: int = 0, world: int = 1) -> None:
        self.shares, self.options, self.rank, self.world = shares, options, rank, world
        self._plan = plan(shares, options, 0)

    def __len__(self) -> int:
        return len(self._plan)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of items that do not name one. It does not reach data loader workers that run already."""
        if epoch != self._plan.epoch:
            self._plan = plan(self.shares, self.options, epoch)

    def plan(self, epoch: int | None = None) -> EpochPlan:
        """The global batches of an epoch, by default of the chosen one."""
        if epoch is not None:
            self.set_epoch(epoch)
        return self._plan

    def __getitem__(self, key: int | tuple[int, int]) -> BatchT:
        """The batch of a step; of the chosen epoch where only the step is given."""
        if get_worker_info() is not None:
            # The tokenizer's threads did not survive the fork of this worker, and it would wait for them for ever.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        epoch, index = key if isinstance(key, tuple) else (None, key)
        return self.batch(self.plan(epoch)[index])

    @abstractmethod
    def batch(self, rows: GlobalBatch) -> BatchT:
        """This process's part of a global batch."""


@dataclass(frozen=True)
class Example:
    """A row with the texts that are drawn of it for one pass over the data.

    Attributes:
        row: The row.
        positive: Which of its positives was drawn.
        passages: The positive first, then negatives.
        teacher: A teacher's score of each passage, None without.
    """

    row: Row
    positive: int
    passages: tuple[str, ...]
    teacher: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Sampling:
    """The drawing of examples from rows.

    Attributes:
        group_size: Passages of an example: a positive and `group_size - 1` negatives.
        repeat: Repeat the negatives of a row that has too few (as FlagEmbedding does); else such a row has fewer.
        shuffle_ratio: Share of the positives of over 100 characters whose three parts are put in another order.
        teacher: Hand on a teacher's scores.
        seed: Random seed.
    """

    group_size: int = 8
    repeat: bool = True
    shuffle_ratio: float = 0.0
    teacher: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ArgumentError(f"train_group_size must be at least 1, not {self.group_size}")
        if not 0 <= self.shuffle_ratio <= 1:
            raise ArgumentError(f"shuffle_ratio must be from 0 to 1, not {self.shuffle_ratio}")
        if self.seed < 0:
            raise ArgumentError(f"seed must not be negative, but it is {self.seed}")

    def negatives_of(self, row: Row) -> int:
        """Number of negatives in an example of a row."""
        if row.score is not None or not row.negatives:
            return 0
        if row.type == ONE_NEGATIVE:
            return 1
        wanted = self.group_size - 1
        return wanted if self.repeat and row.type != CLASSES else min(wanted, len(row.negatives))

    def draw(self, row: Row, earlier: int) -> Example:
        """The example of a row in a pass over the data; it depends on the seed, the row's index and the pass alone.

        Args:
            row: The row.
            earlier: How often the row was drawn before: the epoch, where each row comes once an epoch.
        """
        generator = np.random.default_rng([self.seed, earlier, row.index])
        positive = int(generator.integers(len(row.positives)))
        negatives = _without_replacement(generator, len(row.negatives), self.negatives_of(row))
        text = row.positives[positive]
        if self.shuffle_ratio and generator.random() < self.shuffle_ratio:
            text = _shuffled(generator, text)
        teacher = None
        if self.teacher and row.score is None and row.has_teacher and row.pos_scores is not None:
            teacher = (row.pos_scores[positive], *((row.neg_scores or ())[negative] for negative in negatives))
        return Example(row, positive, (text, *(row.negatives[negative] for negative in negatives)), teacher)


def _without_replacement(generator: np.random.Generator, size: int, count: int) -> list[int]:
    """`count` of `size` positions, each as often as any other or once more."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += generator.permutation(size)[: count - len(drawn)].tolist()
    return drawn


def _shuffled(generator: np.random.Generator, text: str) -> str:
    """Three parts of a text of over 100 characters in another order."""
    if len(text) <= 100:
        return text
    size = len(text) // 3 + 1
    parts: Sequence[str] = [text[start : start + size] for start in range(0, len(text), size)]
    return " ".join(parts[part] for part in generator.permutation(len(parts)))
