"""The batch plan: every text once, budgets kept, longest first."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bgekit.networks.packing import plan_batches

LENGTHS = st.lists(st.integers(1, 600), max_size=80)


@given(lengths=LENGTHS, budget=st.integers(1, 2000), size=st.none() | st.integers(1, 40), padded=st.booleans())
def test_every_plan(lengths: list[int], budget: int, size: int | None, padded: bool) -> None:
    batches = list(plan_batches(lengths, budget, batch_size=size, padded=padded))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[row] for row in batch]
        cost = max(own) * len(own) if padded else sum(own)
        assert cost <= budget or len(batch) == 1
        assert size is None or len(batch) <= size
    planned = [lengths[row] for batch in batches for row in batch]
    assert planned == sorted(lengths, reverse=True)


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_batches_are_as_full_as_they_can_be(lengths: list[int], budget: int) -> None:
    batches = list(plan_batches(lengths, budget))
    for batch, following in itertools.pairwise(batches):
        assert sum(lengths[row] for row in batch) + lengths[following[0]] > budget


def test_the_plan_is_the_same_every_time() -> None:
    lengths = [5, 9, 5, 9, 1, 5]
    assert list(plan_batches(lengths, 15)) == [[1], [3, 0], [2, 5, 4]]


@given(lengths=LENGTHS, budget=st.integers(1, 2000), streams=st.integers(2, 9), size=st.none() | st.integers(1, 40))
def test_several_streams_get_equal_batches(lengths: list[int], budget: int, streams: int, size: int | None) -> None:
    batches = list(plan_batches(lengths, budget, streams=streams, batch_size=size))
    planned = [lengths[row] for batch in batches for row in batch]
    assert planned == sorted(lengths, reverse=True)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert size is None or all(len(batch) <= size for batch in batches)
    rounds = -(-sum(lengths) // (streams * budget))
    for batch in batches:
        own = [lengths[row] for row in batch]
        assert len(own) == 1 or sum(own) <= sum(lengths) / (rounds * streams) + max(own)
    if size is None:
        assert len(batches) <= rounds * streams


@given(count=st.integers(1, 200), streams=st.integers(2, 9), budget=st.integers(10, 2000))
def test_streams_end_together_where_texts_are_alike(count: int, streams: int, budget: int) -> None:
    sizes = [10 * len(batch) for batch in plan_batches([10] * count, budget, streams=streams)]
    assert max(sizes) - min(sizes) <= 10
    assert len(sizes) == min(count, streams * -(-10 * count // (streams * budget)))


def test_padded_batches_for_streams_keep_the_budget() -> None:
    batches = list(plan_batches([512] + [5] * 300, 2048, padded=True, streams=2))
    assert max(max(512 if row == 0 else 5 for row in batch) * len(batch) for batch in batches) <= 2048
