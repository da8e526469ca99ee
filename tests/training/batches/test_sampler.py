"""Plans: each row once, the same global batches for every number of processes, and any step asked for directly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgekit.errors import ArgumentError, DataError
from bgekit.training.batches.sampler import DatasetShare, EpochPlan, PlanOptions, dataset_shares, plan, rows_of_epoch

from ..conftest import row, scored

WORLDS = (1, 2, 3, 4)


def portions(*sizes, **fields):
    starts = np.cumsum([0, *sizes])
    return [DatasetShare(np.arange(start, start + size), **fields) for start, size in zip(starts, sizes, strict=False)]


def rows_of(steps):
    return [step.rows.tolist() for step in steps]


SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any)
OPTIONS = st.builds(
    PlanOptions, batch_size=st.integers(1, 17), seed=st.integers(0, 5), drop_last=st.booleans(),
    same_dataset=st.booleans(), group_by_length=st.booleans(),
)  # fmt: skip


def with_lengths(sizes):
    generator = np.random.default_rng(0)
    return [
        DatasetShare(part.rows, lengths=generator.integers(1, 100, len(part.rows)), kind=number % 2)
        for number, part in enumerate(portions(*sizes))
    ]


@given(SIZES, OPTIONS, st.integers(0, 3))
def test_each_row_comes_once_an_epoch(sizes, options, epoch):
    made = EpochPlan(with_lengths(sizes), options, epoch)
    seen = [number for step in made for number in step.rows.tolist()]
    assert len(seen) == len(set(seen))
    assert all(step.passes.tolist() == [epoch] * step.size for step in made)
    if options.drop_last:
        assert all(step.size == options.batch_size for step in made)
    else:
        assert sorted(seen) == list(range(sum(sizes)))
        assert all(1 <= step.size <= options.batch_size for step in made)
    assert len(made) == len(EpochPlan(with_lengths(sizes), options, epoch + 7))


@given(SIZES, OPTIONS, st.sampled_from(WORLDS))
def test_the_parts_of_all_processes_are_the_whole(sizes, options, world):
    for step in EpochPlan(with_lengths(sizes), options, 0):
        parts = [step.part(rank, world) for rank in range(world)]
        assert [number for part in parts for number in step.rows[part].tolist()] == step.rows.tolist()
        counts = [part.stop - part.start for part in parts]
        assert max(counts) - min(counts) <= 1 and min(counts) >= 0


@given(SIZES, OPTIONS, st.integers(0, 3))
def test_a_step_can_be_asked_for_directly(sizes, options, epoch):
    whole = rows_of(EpochPlan(with_lengths(sizes), options, epoch))
    for index in range(len(whole)):
        assert EpochPlan(with_lengths(sizes), options, epoch)[index].rows.tolist() == whole[index]
    assert rows_of(EpochPlan(with_lengths(sizes), options, epoch)[1:]) == whole[1:]


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.floats(0.01, 100)), min_size=1, max_size=6), st.floats(0.1, 100)
)  # fmt: skip
def test_shares_follow_weight_and_temperature(datasets, temperature):
    parts = [DatasetShare(part.rows, weight=weight) for part, (_, weight) in zip(
        portions(*(size for size, _ in datasets)), datasets, strict=True)]  # fmt: skip
    counts = rows_of_epoch(parts, temperature)
    total = sum(size for size, _ in datasets)
    assert sum(counts) == total and min(counts) >= 0
    shares = np.array([weight * float(size) ** (1 / temperature) if size else 0 for size, weight in datasets])
    if total:
        assert np.allclose(counts, shares / shares.sum() * total, atol=1 + 1e-6, rtol=0)


def test_equal_weights_draw_each_row_once():
    for size in (1, 7, 10573, 123457):
        assert rows_of_epoch(portions(size, 807, 10000)) == [size, 807, 10000]
        assert rows_of_epoch([DatasetShare(part.rows, weight=0.3) for part in portions(size, 3)]) == [size, 3]


def test_a_dataset_drawn_less_often_still_has_all_rows_come_first():
    parts = [DatasetShare(np.arange(0, 30), weight=1.0), DatasetShare(np.arange(30, 60), weight=3.0)]
    options = PlanOptions(batch_size=7)
    seen, passes = [], []
    for epoch in range(4):
        for step in EpochPlan(parts, options, epoch):
            seen += step.rows.tolist()
            passes += zip(step.rows.tolist(), step.passes.tolist(), strict=True)
    counts = np.bincount(seen, minlength=60)
    assert counts[:30].tolist() == [2] * 30 and counts[30:].tolist() == [6] * 30
    assert len(set(passes)) == len(passes)  # A row that comes again in an epoch draws other negatives.


def test_seed_and_epoch_change_the_order():
    orders = {tuple(map(tuple, rows_of(EpochPlan(portions(50), PlanOptions(8, seed=seed), epoch))))
              for seed in (0, 1) for epoch in (0, 1)}  # fmt: skip
    assert len(orders) == 4


def test_batches_of_one_dataset():
    sizes = (20, 9, 4)
    made = EpochPlan(portions(*sizes), PlanOptions(8, same_dataset=True), 0)
    owners = [set(np.searchsorted(np.cumsum(sizes), step.rows, side="right").tolist()) for step in made]
    assert all(len(owner) == 1 for owner in owners)
    assert sorted(step.size for step in made) == [1, 4, 4, 8, 8, 8]
    plans = [EpochPlan(portions(*sizes), PlanOptions(8, same_dataset=True), epoch) for epoch in range(9)]
    owners = [[set(np.searchsorted(np.cumsum(sizes), step.rows, side="right")) for step in each] for each in plans]
    orders = {tuple(map(min, each)) for each in owners}
    assert len(orders) > 1  # The datasets' batches come in random order.


def test_own_batch_sizes_count_in_batches_of_one_dataset():
    parts = [DatasetShare(np.arange(12), batch_size=3), DatasetShare(np.arange(12, 24))]
    assert {step.size for step in EpochPlan(parts, PlanOptions(6, same_dataset=True), 0)} == {3, 6}
    assert {step.size for step in EpochPlan(parts, PlanOptions(6), 0)} == {6}


def test_kinds_and_in_batch_negatives_do_not_mix():
    parts = [
        DatasetShare(np.arange(0, 10)),
        DatasetShare(np.arange(10, 20)),
        DatasetShare(np.arange(20, 30), in_batch=False),
        DatasetShare(np.arange(30, 40), kind="scored"),
    ]
    groups = set()
    for step in EpochPlan(parts, PlanOptions(5), 0):
        found = {int(number) // 10 for number in step.rows}
        assert found <= {0, 1} or len(found) == 1
        assert step.in_batch == (found != {2})
        groups.add(frozenset(found))
    assert frozenset({0, 1}) in groups


def test_rows_of_similar_length():
    generator = np.random.default_rng(1)
    lengths = generator.lognormal(4, 1, 5000).astype(np.int64)
    part = DatasetShare(np.arange(5000), lengths=lengths)

    def spread(grouped):
        made = EpochPlan([part], PlanOptions(32, group_by_length=grouped), 0)
        return np.mean([np.std(lengths[step.rows]) for step in made])

    assert spread(True) < spread(False) / 10
    made = EpochPlan([part], PlanOptions(32, group_by_length=True), 0)
    means = [lengths[step.rows].mean() for step in made]
    assert np.corrcoef(means, np.arange(len(means)))[0, 1] < 0.3  # Lengths do not rise over the epoch.
    halves = [(lengths[step.rows[step.part(0, 2)]].sum(), lengths[step.rows].sum()) for step in made]
    assert 0.45 < sum(half for half, _ in halves) / sum(whole for _, whole in halves) < 0.55


def test_dropped_rows_are_random_ones():
    lengths = np.arange(10)
    dropped = {
        next(iter(set(range(10)) - {n for step in EpochPlan(
            [DatasetShare(np.arange(10), lengths=lengths)], PlanOptions(9, drop_last=True, group_by_length=True), epoch
        ) for n in step.rows.tolist()}))
        for epoch in range(30)
    }  # fmt: skip
    assert len(dropped) > 4


def test_no_batch_is_an_error():
    with pytest.raises(DataError, match="no dataset fills a batch of 8 rows"):
        plan(portions(5), PlanOptions(8, drop_last=True), 0)
    with pytest.raises(IndexError):
        plan(portions(5), PlanOptions(8), 0)[1]


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": 1, "devices": 0}, {"batch_size": 1, "temperature": 0.0},
                {"batch_size": 1, "temperature": float("nan")}, {"batch_size": 1, "seed": -1}],
)  # fmt: skip
def test_impossible_options(options):
    with pytest.raises(ArgumentError):
        PlanOptions(**options)


def test_plan_of_files(write, load):
    data = load(
        write("a.jsonl", [row(i, type="symmetric_sts") for i in range(8)]),
        write("b.jsonl", [row(i, batch_size=3) for i in range(8, 20)]),
        write("c-no_in_batch_neg.jsonl", [row(i) for i in range(20, 30)]),
        write("d.jsonl", [scored(i) for i in range(30, 40)]),
        write("e.jsonl", [{"query": f"{i}", "pos": ["x"], "score": 1} for i in range(40, 50)]),
        teacher=True, same_dataset=True,
    )  # fmt: skip
    options = PlanOptions(10, same_dataset=True, devices=2, group_by_length=True)
    made = plan(dataset_shares(data, options), options, 0)
    sizes = {min(step.rows.tolist()) // 10: step.size for step in made if step.rows.min() >= 20}
    assert sizes == {2: 10, 3: 10, 4: 10}
    assert sorted(step.size for step in made if step.rows.max() < 8) == [3, 5]
    assert [step.size for step in made if 8 <= step.rows.min() < 20] == [6, 6]
    mixed = plan(dataset_shares(data, PlanOptions(50)), PlanOptions(50), 0)
    assert sorted(sorted({int(n) // 10 for n in step.rows}) for step in mixed) == [[0, 1], [2], [3], [4]]
    assert sum(len(set(step.rows.tolist())) for step in mixed) == 50


def test_dropped_duplicates_are_not_planned(write, load):
    data = load(write("a.jsonl", [row(i // 2) for i in range(20)]), drop_duplicates=True)
    assert sorted(
        n for step in plan(dataset_shares(data, PlanOptions(4)), PlanOptions(4), 0) for n in step.rows.tolist()
    ) == list(range(0, 20, 2))
