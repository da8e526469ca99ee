"""The cached step has the gradient of the plain step, whatever surrounds it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bgekit.errors import ArgumentError
from bgekit.models.card_reading import read_card
from bgekit.networks.encoder import Encoder, PackedBackbone, load_transformer
from bgekit.networks.packing import Packed
from bgekit.training.loop.gradient_cache import cached_backward, plain_backward
from bgekit.training.losses.contrastive import Contrastive
from bgekit.training.losses.listwise import GroupLoss
from training.loss_cases import CASES, Rows, gradients, make_network, make_rows, rows_for, step

LOSS = Contrastive(0.05)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= tolerance * largest, name


@pytest.mark.parametrize("name", CASES)
def test_every_loss(name: str) -> None:
    kind, loss = CASES[name]
    network, rows = make_network(kind), rows_for(kind)
    plain = step(network, kind, loss, rows, None)
    expected = gradients(network)
    for chunk in (1, 4, 1000):
        cached = step(network, kind, loss, rows, chunk)
        assert_close(gradients(network), expected, 1e-12)
        assert cached.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
        assert not cached.loss.requires_grad
        assert cached.metrics.keys() == plain.metrics.keys()


@settings(max_examples=15, deadline=None)
@given(groups=st.lists(st.integers(1, 5), min_size=1, max_size=8), chunk=st.integers(1, 9), seed=st.integers(0, 999))
def test_any_group_sizes(groups: list[int], chunk: int, seed: int) -> None:
    network, rows = make_network("vectors"), make_rows(groups, seed)
    step(network, "vectors", LOSS, rows, None)
    expected = gradients(network)
    step(network, "vectors", LOSS, rows, chunk)
    for name, gradient in gradients(network).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-10, atol=1e-12)


class Recorder(nn.Module):
    """Notes what goes through a network, and keeps its vectors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[Packed, Tensor]] = []

    def forward(self, batch: Packed) -> Tensor:
        vectors = self.network(batch)
        self.seen.append((batch, vectors))
        return vectors


def test_dropout_is_the_same_in_both_passes() -> None:
    network = Recorder(make_network("vectors", dropout=0.3))
    rows = rows_for("vectors")
    torch.manual_seed(1)
    step(network, "vectors", LOSS, rows, 4)
    after = torch.rand(1)
    half = len(network.seen) // 2
    assert half > 3
    for (_, first), (_, second) in zip(network.seen[:half], network.seen[half:], strict=True):
        assert torch.equal(first, second)
        assert second.requires_grad and not first.requires_grad
    assert len({vectors.sum().item() for _, vectors in network.seen[:half]}) == half

    # The gradient is that of the very masks: the same chunks with their graphs, one backward pass.
    found = gradients(network)
    batches = [batch for batch, _ in network.seen[:half]]
    torch.manual_seed(1)
    vectors = torch.cat([network(batch) for batch in batches])
    assert torch.equal(torch.rand(1), after), "the generator stands where one pass leaves it"
    order = chunk_order(Packed.join(rows.queries, rows.passages), batches)
    vectors = vectors[torch.tensor(order).argsort()]
    LOSS(*vectors.split([len(rows.queries.lengths), len(rows.passages.lengths)]), rows).loss.backward()
    assert_close(found, gradients(network), 1e-12)


def chunk_order(everything: Packed, chunks: list[Packed]) -> list[int]:
    """Which sequence each of the chunks' sequences is; equal ones in the order in which they stand."""
    texts = [ids.tolist() for ids in everything.input_ids.split(everything.lengths)]
    found: list[int] = []
    for chunk in chunks:
        for ids in chunk.input_ids.split(chunk.lengths):
            found.append(next(i for i, text in enumerate(texts) if text == ids.tolist() and i not in found))
    return found


def test_a_chunk_is_a_number_of_tokens() -> None:
    """Chunks of long texts hold fewer of them, so that none takes more memory than another."""
    network = Recorder(make_network("vectors"))
    texts = Packed.of([[1] * 8] * 10 + [[2]] * 40)
    cached_backward(network, [texts], lambda v: _sum(v), chunk=10)
    sizes = [(len(batch.lengths), len(batch.input_ids)) for batch, _ in network.seen]
    assert max(tokens for _, tokens in sizes) <= 10 * 120 / 50
    assert {count for count, _ in sizes} == {3, 17, 24}


def _sum(vectors: Tensor) -> Any:
    from bgekit.training.losses.distributed import LossValue

    return LossValue(vectors.sum(), {})


def test_gradients_are_exchanged_once() -> None:
    class Wrapper(Recorder):
        silent = False

        @contextlib.contextmanager
        def no_sync(self) -> Iterator[None]:
            self.silent = True
            yield
            self.silent = False

    network = Wrapper(make_network("vectors"))
    exchanged = []
    step(network, "vectors", LOSS, rows_for("vectors"), 5, backward=lambda t: exchanged.append(not network.silent))
    assert len(exchanged) > 3
    assert exchanged == [False] * (len(exchanged) - 1) + [True]


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_process_without_rows_has_a_gradient_of_zero(chunk: int | None) -> None:
    for kind in ("vectors", "scores"):
        network = make_network(kind)
        loss: Any = GroupLoss() if kind == "scores" else LOSS
        value = step(network, kind, loss, rows_for(kind).part(0, 0), chunk)
        assert value.loss.item() == 0
        assert all(not gradient.any() for gradient in gradients(network).values())


def test_a_scaled_loss_is_scaled_once() -> None:
    network, rows = make_network("vectors", torch.float32), rows_for("vectors")
    step(network, "vectors", LOSS, rows, None)
    expected = gradients(network)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step(network, "vectors", LOSS, rows, 3, backward=lambda t: scaler.scale(t).backward())
    assert_close({name: g / 1024 for name, g in gradients(network).items()}, expected, 1e-5)


@pytest.mark.parametrize("around", ["step", "network"])
def test_autocast(around: str) -> None:
    """Weights cast in the pass without gradient must not be reused in the other."""
    rows = rows_for("vectors")
    network = make_network("vectors", torch.float32)

    def run(chunk: int | None) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16) if around == "step" else contextlib.nullcontext():
            step(encode, "vectors", LOSS, rows, chunk)
        return gradients(network)

    class Cast(nn.Module):
        def forward(self, batch: Packed) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return network(batch)

    encode = network if around == "step" else Cast()
    expected = run(None)
    assert_close(run(4), expected, 0.03)


def test_needs_at_least_one_sequence() -> None:
    with pytest.raises(ArgumentError, match="at least 1 sequence, not 0"):
        step(make_network("vectors"), "vectors", LOSS, rows_for("vectors"), 0)


@pytest.fixture
def encoder(make_model: Callable[..., Path]) -> Callable[..., tuple[Encoder, Any]]:
    def load(kind: str = "bert", dropout: float = 0.0) -> tuple[Encoder, Any]:
        settings = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        options = {} if kind in ("modernbert", "qwen3") else settings
        folder = make_model(kind, pooling="mean", **options)
        transformer = load_transformer(folder, dtype=torch.float32)
        return Encoder(PackedBackbone(transformer), read_card(folder)).double().train(), transformer

    return load


def real_gradients(encoder: nn.Module, rows: Rows, chunk: int | None) -> dict[str, Tensor]:
    batches = [rows.queries, rows.passages]
    if chunk is None:
        plain_backward(encoder, batches, lambda *v: LOSS(*v, rows))
    else:
        cached_backward(encoder, batches, lambda *v: LOSS(*v, rows), chunk=chunk)
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    return found


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert", "qwen3"])
def test_transformers_with_and_without_checkpointing(encoder: Callable[..., Any], kind: str) -> None:
    network, transformer = encoder(kind)
    rows = make_rows([2, 1, 3], seed=4)
    expected = real_gradients(network, rows, None)
    assert_close(real_gradients(network, rows, 2), expected, 1e-6)
    transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_close(real_gradients(network, rows, None), expected, 1e-6)
    assert_close(real_gradients(network, rows, 2), expected, 1e-6)


def test_dropout_with_checkpointing(encoder: Callable[..., Any]) -> None:
    """Activations are computed three times, always with the same masks."""
    network, transformer = encoder("bert", dropout=0.2)
    rows = make_rows([2, 1, 3], seed=4)
    found = []
    for enable in (False, True):
        if enable:
            transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(2)
        found.append(real_gradients(network, rows, 3))
    assert_close(found[1], found[0], 1e-6)
