"""Pooling of packed token vectors against its definition, written with loops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgekit.models.card import POOLINGS, Pooling
from bgekit.networks.packing import Packed
from bgekit.networks.pooling import pool, rows_needed, select_rows


def by_definition(vectors: Sequence[torch.Tensor], pooling: str, skip: int) -> torch.Tensor:
    """Pooling of the token vectors of one text."""
    if pooling == "cls":
        return vectors[0]
    if pooling == "last_token":
        return vectors[-1]
    numbered = [(place, vector) for place, vector in enumerate(vectors, 1) if place > min(skip, len(vectors) - 1)]
    if pooling == "max":
        return torch.stack([vector for _, vector in numbered]).max(0).values
    weights = [place if pooling == "weighted_mean" else 1 for place, _ in numbered]
    total = sum(weight * vector for weight, (_, vector) in zip(weights, numbered, strict=True))
    return total / sum(weights)


def batch_of(lengths: Sequence[int], skip: Sequence[int] | None = None) -> Packed:
    return Packed(torch.arange(sum(lengths)), tuple(lengths), tuple(skip) if skip is not None else None)


@pytest.mark.parametrize("pooling", POOLINGS)
@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=12),
    skipping=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pooling_is_its_definition(pooling: Pooling, shape: list[tuple[int, int]], skipping: bool, seed: int) -> None:
    lengths, skips = zip(*shape, strict=True)
    torch.manual_seed(seed)
    hidden = torch.randn(sum(lengths), 7)
    batch = batch_of(lengths, skips if skipping else None)
    got = pool(select_rows(hidden, batch, rows_needed(pooling)), batch, pooling)
    parts = hidden.double().split(list(lengths))
    expected = [by_definition(part, pooling, skip if skipping else 0) for part, skip in zip(parts, skips, strict=True)]
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_is_summed_in_float32(pooling: Pooling) -> None:
    hidden = torch.full((4096, 2), 1.001, dtype=torch.bfloat16)
    batch = batch_of([4096])
    got = pool(select_rows(hidden, batch, rows_needed(pooling)), batch, pooling)
    assert got.dtype == torch.float32
    assert torch.allclose(got, hidden[:1].float(), rtol=1e-4)  # bfloat16 sums would stop growing at 256


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_reach_exactly_the_tokens_that_count(pooling: Pooling) -> None:
    hidden = torch.randn(9, 3, requires_grad=True)
    batch = batch_of([4, 5])
    pool(select_rows(hidden, batch, rows_needed(pooling)), batch, pooling).sum().backward()
    assert hidden.grad is not None
    touched = (hidden.grad != 0).any(1).tolist()
    firsts, lasts = [0, 4], [3, 8]
    expected = {"cls": firsts, "last_token": lasts}.get(pooling)
    assert hidden.grad.isfinite().all()
    if expected is not None:
        assert [row for row, hit in enumerate(touched) if hit] == expected
    elif pooling != "max":
        assert all(touched)


def test_the_prompt_alone_leaves_its_last_token() -> None:
    hidden = torch.randn(3, 4)
    assert torch.equal(pool(hidden, batch_of([3], [3]), "mean")[0], hidden[2])
    assert torch.equal(pool(hidden, batch_of([3], [99]), "max")[0], hidden[2])
