"""Attention for training on the CPU against the textbook's in float64, one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bgekit.networks import cpu_training as training_attention
from bgekit.networks import packing
from bgekit.networks.cpu_training import Layout, attend_by_head
from bgekit.networks.packing import Packed, packed_attention

HEADS, WIDTH = 3, 8
LENGTHS = {
    "all kinds": (5, 17, 33, 70, 96, 96, 91, 3, 1, 16),
    "one token": (1,),
    "equal, without padding": (32, 32),
    "one of each rounded length": (1, 9, 17, 33, 49, 65, 97),
}


def drawn(lengths: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key, value and a gradient of the result."""
    torch.manual_seed(0)
    made = [torch.randn(sum(lengths), HEADS, WIDTH, dtype=torch.float64).to(dtype) for _ in range(4)]
    return [*(each.requires_grad_() for each in made[:3]), made[3]]


def textbook(inputs: list[Tensor], lengths: tuple[int, ...], scale: float) -> Tensor:
    parts = [each.double().split(lengths) for each in inputs]
    results = []
    for query, key, value in zip(*parts, strict=True):
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        results.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value))
    return torch.cat(results)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 0.03)]
)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("scores", [1 << 20, 5000, 1])
def test_results_and_gradients(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], dtype: torch.dtype, tolerance: float, scores: int
) -> None:
    monkeypatch.setattr(training_attention, "_SCORES", scores)  # Blocks of one head up to all of them.
    *inputs, gradient = drawn(lengths, dtype)
    result = attend_by_head(*inputs, Layout.of(lengths, HEADS), 0.4, 0.0)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = textbook(exact, lengths, 0.4)
    assert result.dtype == dtype
    pairs = zip(
        [result, *torch.autograd.grad(result, inputs, gradient)],
        [expected, *torch.autograd.grad(expected, exact, gradient.double())],
        strict=True,
    )
    for found, wanted in pairs:
        assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1e-3)


def test_gradients_with_dropout() -> None:
    lengths = (3, 5, 2)
    *inputs, _ = drawn(lengths)

    def dropped(*inputs: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend_by_head(*inputs, Layout.of(lengths, HEADS), 0.5, 0.3)

    assert torch.autograd.gradcheck(dropped, inputs)
    assert not torch.allclose(dropped(*inputs), textbook(inputs, lengths, 0.5))


def test_dropout_changes_no_expectation() -> None:
    lengths = (12, 40)
    *inputs, _ = drawn(lengths)
    layout = Layout.of(lengths, HEADS)
    with torch.no_grad():
        runs = torch.stack([attend_by_head(*inputs, layout, 0.4, 0.25) for _ in range(2000)])
    errors = (runs.mean(0) - textbook(inputs, lengths, 0.4).detach()) / (runs.std(0) / 2000**0.5)
    assert errors.abs().mean() == pytest.approx(0.8, abs=0.1)  # That of a normal distribution.
    assert errors.abs().max() < 5


def test_masks_do_not_depend_on_whether_there_is_a_way_back() -> None:
    """The gradient cache computes everything twice, without and with it."""
    lengths = LENGTHS["all kinds"]
    *inputs, _ = drawn(lengths, torch.float32)
    layout = Layout.of(lengths, HEADS)
    torch.manual_seed(1)
    with torch.no_grad():
        first = attend_by_head(*inputs, layout, 0.4, 0.2)
    torch.manual_seed(1)
    assert torch.equal(first, attend_by_head(*inputs, layout, 0.4, 0.2))


def test_mixed_types_under_autocast() -> None:
    """Rotary embeddings give queries and keys in float32 beside values in bfloat16."""
    lengths = (4, 11)
    query, key, value, gradient = drawn(lengths, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = attend_by_head(query, key, value.bfloat16(), Layout.of(lengths, HEADS), 0.4, 0.1)
        result.backward(gradient.bfloat16())
    assert result.dtype == torch.bfloat16
    assert query.grad is not None and query.grad.dtype == torch.float32 and query.grad.abs().sum() > 0


def test_nothing_of_the_size_of_the_scores_is_kept() -> None:
    lengths = (64,) * 8
    *inputs, _ = drawn(lengths)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend_by_head(*inputs, Layout.of(lengths, HEADS), 0.4, 0.1)
    assert kept and max(kept) == inputs[0].numel()


@pytest.mark.parametrize(("causal", "window", "heads"), [(True, None, 3), (False, 4, 3), (False, None, 1)])
def test_what_it_cannot_goes_another_way(
    monkeypatch: pytest.MonkeyPatch, causal: bool, window: int | None, heads: int
) -> None:
    monkeypatch.setattr(packing, "attend_by_head", lambda *_: pytest.fail("neither order nor windows nor shared keys"))
    batch = Packed.of([[1] * 9, [1] * 5])
    query, key, value = (torch.randn(1, count, 14, WIDTH) for count in (3, heads, heads))
    module = nn.Identity()
    module.is_causal = causal  # type: ignore[assignment]
    module.train()
    result, _ = packed_attention(module, query, key, value, None, packed=batch, sliding_window=window)
    assert result.shape == (1, 14, 3, WIDTH)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "distilbert", "modernbert"])
def test_networks_in_training_equal_those_at_rest(make_model: Callable[..., Path], kind: str) -> None:
    from bgekit.models.card_reading import read_card
    from bgekit.networks.encoder import load_trainable

    folder = make_model(kind)
    network = load_trainable(folder, read_card(folder))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    config = network.transformer.config
    for name in ("attention_dropout", "attention_probs_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    batch = Packed.of([[7, 8, 9] * length for length in (1, 13, 2, 13, 6)])
    training = network.train()(batch)
    direction = torch.randn(training.shape, generator=torch.Generator().manual_seed(0))
    (of_training,) = torch.autograd.grad(training, [next(network.parameters())], direction)
    resting = network.eval()(batch)
    (of_resting,) = torch.autograd.grad(resting, [next(network.parameters())], direction)
    assert torch.allclose(training, resting, atol=1e-6)
    assert torch.allclose(of_training, of_resting, atol=1e-5 * of_resting.abs().max().item())
