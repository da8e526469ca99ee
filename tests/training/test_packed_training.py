"""Packed batches while training: dropout in attention, batches joined and cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bgekit.networks.packing import Packed, packed_attention


@pytest.mark.parametrize("lengths", [[4, 4], [3, 9, 1]])
def test_dropout_of_attention_weights_is_unbiased_and_differentiable(lengths: list[int]) -> None:
    torch.manual_seed(0)
    batch = Packed.of([[1] * length for length in lengths])
    query, key, value = (torch.randn(1, 2, sum(lengths), 3, dtype=torch.float64) for _ in range(3))
    value.requires_grad_()

    def attend(dropout: float) -> torch.Tensor:
        return packed_attention(nn.Identity(), query, key, value, None, packed=batch, dropout=dropout)[0]

    exact = attend(0.0)
    samples = torch.stack([attend(0.3).detach() for _ in range(400)])
    assert not torch.equal(samples[0], samples[1])
    error = (samples.mean(0) - exact).abs() / (samples.std(0) / 400**0.5 + 1e-12)
    assert error.max().item() < 5  # standard errors
    attend(0.3).sum().backward()
    assert value.grad is not None and float(value.grad.abs().sum()) > 0


def test_join_and_take() -> None:
    first = Packed.of([[1, 2, 3], [4]], skip=[1, 0])
    second = Packed.of([[5, 6], [7, 8, 9, 10]], token_types=[[0, 1], [0, 0, 1, 1]])
    whole = Packed.join(first, second)
    assert whole.input_ids.tolist() == list(range(1, 11))
    assert whole.lengths == (3, 1, 2, 4)
    assert whole.skip == (1, 0, 0, 0)
    assert whole.token_types is not None and whole.token_types.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 1]
    some = whole.take([3, 0])
    assert some.input_ids.tolist() == [7, 8, 9, 10, 1, 2, 3]
    assert some.lengths == (4, 3)
    assert some.skip == (0, 1)
    assert some.token_types is not None and some.token_types.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert Packed.join(Packed.of([]), first).input_ids.tolist() == [1, 2, 3, 4]
    assert first.take([]).lengths == () and first.take([]).input_ids.shape == (0,)
