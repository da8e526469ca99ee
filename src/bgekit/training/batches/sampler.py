"""Which rows form which batch, and which of them each process takes.

The batches of an epoch are a function of the data, the seed and the epoch: not of the number of processes, of data
loader workers, or of where a run was interrupted. So batch k of epoch e can be asked for directly.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, overload

import numpy as np

from ...data.arrow_store import Counts
from ...errors import ArgumentError, DataError
from .datasets import TrainingData

#: A part of the seed of each use, so that no two of them draw the same numbers.
_PASS: Final = 2
_EPOCH: Final = 3
#: Batches whose rows are sorted by length together: enough for even batches, few enough for random ones.
_SORTED_TOGETHER: Final = 64


@dataclass(frozen=True)
class PlanOptions:
    """How batches are made.

    Attributes:
        batch_size: Rows of a global batch, of all processes together.
        seed: Of the order.
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
class Portion:
    """A dataset as the plan sees it.

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
class Step:
    """A global batch.

    Attributes:
        rows: [size] int64, numbers of the rows.
        visits: [size] int64, how often each row was visited before; the epoch, where each row comes once an epoch.
        in_batch: Whether other rows' passages are negatives.
    """

    rows: Counts
    visits: Counts
    in_batch: bool

    @property
    def size(self) -> int:
        """Rows of all processes."""
        return len(self.rows)

    def part(self, rank: int, world: int) -> slice:
        """The rows of one process: a stretch, of `size / world` rows rounded up or down."""
        share, rest = divmod(self.size, world)
        start = rank * share + min(rank, rest)
        return slice(start, start + share + (rank < rest))


class Plan(Sequence[Step]):
    """The global batches of one epoch.

    An epoch visits as many rows as there are. Each dataset has an endless stream of its rows, in one random order
    after another, of which every epoch takes the next stretch. So with equal weights and a temperature of 1 each row
    comes once an epoch; a dataset that is drawn less often still has each row come before any comes again.
    """

    def __init__(self, portions: Sequence[Portion], options: PlanOptions, epoch: int) -> None:
        self.options, self.epoch = options, epoch
        self._counts = rows_of_epoch(portions, options.temperature)
        self._pools = _pools(portions, self._counts, options)
        self._portions = portions
        sizes = [(sum(self._counts[member] for member in pool.members), pool.batch_size) for pool in self._pools]
        self._steps = [rows // size if options.drop_last else -(-rows // size) for rows, size in sizes]

    def __len__(self) -> int:
        return sum(self._steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Step]: ...

    def __getitem__(self, index: int | slice) -> Step | Sequence[Step]:
        """Batch number `index` of the epoch."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        index = index + (len(self) if index < 0 else 0)
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        pool, start, stop = self._cuts[index]
        rows, visits = self._ordered[pool]
        return Step(rows[start:stop], visits[start:stop], self._pools[pool].in_batch)

    @cached_property
    def _ordered(self) -> list[tuple[Counts, Counts]]:
        """Rows and visits of each pool, in the order in which they are cut into batches."""
        generator = np.random.default_rng([self.options.seed, _EPOCH, self.epoch])
        ordered = []
        for pool, steps in zip(self._pools, self._steps, strict=True):
            drawn = [self._drawn(member) for member in pool.members]
            rows, visits, lengths = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
            order = generator.permutation(len(rows))[: steps * pool.batch_size]
            if self.options.group_by_length:
                order = _grouped(order, lengths, pool.batch_size, generator)
            ordered.append((rows[order], visits[order]))
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
        """Rows, visits and lengths of a dataset's stretch of this epoch."""
        portion, count = self._portions[member], self._counts[member]
        size = len(portion.rows)
        first = self.epoch * count
        positions, visits = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for visit in range(first // size, -(-(first + count) // size)) if count else ():
            order = np.random.default_rng([self.options.seed, _PASS, member, visit]).permutation(size)
            taken = order[max(first - visit * size, 0) : first + count - visit * size]
            positions.append(taken)
            visits.append(np.full(len(taken), visit))
        chosen = np.concatenate(positions)
        lengths = portion.lengths if portion.lengths is not None else np.zeros(size, dtype=np.int64)
        return portion.rows[chosen], np.concatenate(visits), lengths[chosen]


def plan(
    data: TrainingData | Sequence[Portion], options: PlanOptions, epoch: int, *, group_size: int = 8,
    query_max_len: int = 512, passage_max_len: int = 512,
) -> Plan:  # fmt: skip
    """The global batches of an epoch.

    Args:
        data: The data, or its portions.
        options: How batches are made.
        epoch: From 0.
        group_size: Passages of a row, for the lengths of rows.
        query_max_len: Tokens of a query, likewise.
        passage_max_len: Tokens of a passage, likewise.

    Raises:
        DataError: there is no batch, because each dataset is smaller than one and such are left out.
    """
    if isinstance(data, TrainingData):
        data = portions_of(data, options, group_size, query_max_len, passage_max_len)
    made = Plan(data, options, epoch)
    if not len(made):
        raise DataError(
            f"no dataset fills a batch of {options.batch_size} rows, and incomplete batches are left out: "
            "take a smaller batch or --dataloader_drop_last false"
        )
    return made


def portions_of(
    data: TrainingData, options: PlanOptions, group_size: int = 8, query_max_len: int = 512, passage_max_len: int = 512
) -> list[Portion]:
    """The datasets as the plan sees them, with the arguments of `plan`."""
    portions = []
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
        portions.append(Portion(dataset.rows, spec.weight, own, spec.in_batch_negatives, kind, lengths))
    return portions


def rows_of_epoch(portions: Sequence[Portion], temperature: float = 1.0) -> list[int]:
    """How many rows of each dataset an epoch visits; in all as many as there are."""
    sizes = np.array([len(portion.rows) for portion in portions], dtype=np.float64)
    weights = np.array([portion.weight for portion in portions])
    # In logarithms, since a temperature near 0 makes powers of sizes overflow.
    with np.errstate(divide="ignore"):
        logs = np.where(sizes > 0, np.log(weights) + np.log(sizes) / temperature, -np.inf)
    shares = np.exp(logs - logs.max()) if len(sizes) and sizes.any() else sizes
    total = int(sizes.sum())
    exact = shares / max(shares.sum(), 1e-300) * total
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


def _pools(portions: Sequence[Portion], counts: Sequence[int], options: PlanOptions) -> list[_Pool]:
    members: dict[Hashable, list[int]] = {}
    for number, portion in enumerate(portions):
        if counts[number]:
            members.setdefault(number if options.same_dataset else (portion.in_batch, portion.kind), []).append(number)
    pools = []
    for numbers in members.values():
        first = portions[numbers[0]]
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
