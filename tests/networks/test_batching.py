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
