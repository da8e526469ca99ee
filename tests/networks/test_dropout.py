"""Dropout on the CPU: the share that is dropped, what fixes the masks, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bgekit.networks.cpu_training import Dropout, Keep, use_quick_dropout


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(dtype: torch.dtype, probability: float) -> None:
    keep = Keep(probability, seed=1)
    mask = keep.draw(torch.empty(300, 1001, dtype=dtype)).double()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    # One mask: within 1/256 and five standard errors of 0.0009.
    assert abs(1 - mask.mean().item() - probability) < 0.004 + 0.0045
    assert keep.scale == pytest.approx(1 / (1 - probability))
    # Neither rows nor columns are alike, nor do neighbours depend on one another.
    assert (1 - mask.mean(0) - probability).abs().max() < 0.15
    assert (1 - mask.mean(1) - probability).abs().max() < 0.1
    centred = mask - mask.mean()
    for step in (1, 2, 3, 4, 8):
        correlation = (centred[:, step:] * centred[:, :-step]).mean() / centred.square().mean()
        assert abs(correlation) < 0.01


@pytest.mark.parametrize("probability", [0.0005, 0.1, 0.9, 0.9995])
def test_the_share_over_many_masks(probability: float) -> None:
    keep = Keep(probability, seed=2)
    shares = torch.stack([1 - keep.draw(torch.empty(64)).mean() for _ in range(20_000)]).double()
    assert abs(shares.mean().item() - probability) < 5 * shares.std().item() / 20_000**0.5


def test_masks_follow_from_the_seed_and_differ_from_one_another() -> None:
    first, second = (Keep(0.5, seed=3) for _ in range(2))
    masks = [first.draw(torch.empty(7, 9)) for _ in range(3)]
    assert all(torch.equal(mask, second.draw(torch.empty(7, 9))) for mask in masks)
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], Keep(0.5, seed=4).draw(torch.empty(7, 9)))


def test_torchs_generator_fixes_the_masks() -> None:
    layer, values = Dropout(0.3), torch.ones(50, 50)
    torch.manual_seed(5)
    state, first = torch.get_rng_state(), layer(values)
    assert not torch.equal(first, layer(values))
    torch.set_rng_state(state)
    assert torch.equal(first, layer(values))


def test_the_way_back_drops_the_same() -> None:
    values = torch.rand(40, 30, dtype=torch.float64, requires_grad=True)
    dropped = Dropout(0.4)(values)
    gradient = torch.rand(40, 30, dtype=torch.float64)
    dropped.backward(gradient)
    factors = dropped.detach() / values.detach()
    assert values.grad is not None
    assert torch.allclose(values.grad, gradient * factors)
    assert sorted({round(factor, 3) for factor in factors.flatten().tolist()}) == [0.0, 1.667]


def test_values_that_are_laid_out_otherwise() -> None:
    values = torch.rand(3, 4, 5).transpose(0, 2)
    dropped = Dropout(0.5)(values)
    assert dropped.shape == (5, 4, 3)
    assert torch.allclose(dropped[dropped != 0], 2 * values[dropped != 0])


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_and_everything(probability: float) -> None:
    assert torch.equal(Dropout(probability)(torch.ones(9)), torch.full((9,), 1 - probability))


def test_evaluation_drops_nothing() -> None:
    assert torch.equal(Dropout(0.5).eval()(torch.ones(9)), torch.ones(9))


def test_only_plain_modules_are_replaced() -> None:
    network = nn.Sequential(nn.Sequential(nn.Dropout(0.2), nn.AlphaDropout(0.1)), nn.Linear(2, 2), nn.Dropout(0.4))
    network[2].eval()
    names = list(network.state_dict())
    use_quick_dropout(network)
    kinds = [type(module) for module in network.modules() if not isinstance(module, nn.Sequential)]
    assert kinds == [Dropout, nn.AlphaDropout, nn.Linear, Dropout]
    assert [module.p for module in network.modules() if isinstance(module, Dropout)] == [0.2, 0.4]
    assert network[0][0].training and not network[2].training
    assert list(network.state_dict()) == names
