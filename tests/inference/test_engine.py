"""One device: plans, overlapping, memory that runs out, and bytes that depend on a block's own texts alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bgekit import FlagModel
from bgekit.inference.embedder import EmbedderSpec
from bgekit.inference.engine import Engine, is_out_of_memory
from bgekit.inference.tokenization import TextRequest, TextTokenizer
from bgekit.models.card import Prompt
from bgekit.models.card_reading import read_card
from bgekit.networks.packing import Packed
from precisions import BFLOAT16

Texts = Callable[..., list[str]]
PLAIN = TextRequest(Prompt(), 64)


def make_engine(folder: Path, precision: str = "float32") -> Engine:
    return Engine(EmbedderSpec(folder=folder, card=read_card(folder), precision=precision), "cpu")


@pytest.fixture(scope="module")
def engine(tiny_bert: Path) -> Engine:
    return make_engine(tiny_bert)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Lengths of the sequences of every batch that is computed."""
    seen: list[tuple[int, ...]] = []
    original = Engine._forward

    def recording(self: Engine, batch: Packed) -> torch.Tensor:
        seen.append(batch.lengths)
        return original(self, batch)

    monkeypatch.setattr(Engine, "_forward", recording)
    return seen


def test_batches_keep_to_the_budget_and_the_batch_size(
    engine: Engine, batches: list[tuple[int, ...]], texts: Texts
) -> None:
    some = texts(700)
    list(engine.compute([some], PLAIN))
    assert sum(map(len, batches)) == 700
    # Equal batches for several streams may be half a sequence over it at either end.
    assert all(sum(lengths) <= engine.token_budget + max(lengths) for lengths in batches)
    batches.clear()
    list(engine.compute([some], TextRequest(Prompt(), 64, batch_size=5)))
    assert max(map(len, batches)) == 5 and sum(map(len, batches)) == 700


@pytest.mark.parametrize("cores", [2, 3])
def test_cores_share_a_call_equally(
    engine: Engine, batches: list[tuple[int, ...]], texts: Texts, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(engine, "_shares", cores)
    list(engine.compute([texts(300)], PLAIN))
    sizes = list(map(sum, batches))
    assert len(sizes) % cores == 0 and max(sizes) - min(sizes) <= 2 * max(map(max, batches))


def test_nothing_is_padded(engine: Engine, batches: list[tuple[int, ...]], texts: Texts) -> None:
    some = texts(300)
    (encoded,) = engine.compute([some], PLAIN)
    lengths = list(map(len, TextTokenizer(engine.tokenizer, Prompt(), 64)(some).ids))
    assert encoded.tokens == sum(lengths) == sum(map(sum, batches))


def test_no_blocks_and_single_texts(engine: Engine) -> None:
    assert list(engine.compute([], PLAIN)) == []
    results = list(engine.compute([["a"], ["b", "c"], ["d"]], PLAIN))
    assert [len(result.vectors) for result in results] == [1, 2, 1]


@pytest.mark.parametrize("precision", ["float32", BFLOAT16])
def test_the_bytes_of_a_block_are_its_own(tiny_bert: Path, precision: str, texts: Texts) -> None:
    """Shards that are encoded after a restart must be those of an uninterrupted run."""
    engine = make_engine(tiny_bert, precision)
    check_own_bytes(engine, texts, 64)


@pytest.mark.parametrize("precision", ["float32", BFLOAT16])
def test_the_bytes_of_a_block_are_its_own_in_a_real_model(bge_small_en: Path, precision: str, texts: Texts) -> None:
    check_own_bytes(make_engine(bge_small_en, precision), texts, 512)


def check_own_bytes(engine: Engine, texts: Texts, max_length: int) -> None:
    blocks = [texts(count, seed=count) for count in (24, 1, 3, 17, 9)]
    request = TextRequest(Prompt(), max_length)
    together = [result.vectors.tobytes() for result in engine.compute(blocks, request)]
    for block, expected in zip(blocks, together, strict=True):
        (alone,) = engine.compute([block], request)
        assert alone.vectors.tobytes() == expected, f"a block of {len(block)} texts"
    assert [r.vectors.tobytes() for r in engine.compute(reversed(blocks), request)] == together[::-1]


def limited(monkeypatch: pytest.MonkeyPatch, engine: Engine, most: int, error: Exception) -> list[int]:
    """The network raises `error` for batches of more than `most` tokens; returns the sizes that were tried."""
    tried: list[int] = []
    backbone = engine.network.backbone

    def small_device(batch: Packed, select: Any) -> torch.Tensor:
        tried.append(batch.input_ids.numel())
        if batch.input_ids.numel() > most:
            raise error
        return backbone(batch, select)

    monkeypatch.setattr(engine.network, "backbone", small_device)
    return tried


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "mps"])
def test_memory_that_runs_out_halves_the_budget_for_good(
    tiny_bert: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    engine, some = make_engine(tiny_bert), texts(300)
    (expected,) = engine.compute([some], PLAIN)
    tried = limited(monkeypatch, engine, 200, error)
    with caplog.at_level(logging.WARNING, "bgekit"):
        (got,) = engine.compute([some], PLAIN)
    assert np.abs(got.vectors - expected.vectors).max() < 1e-6
    assert got.tokens == expected.tokens and got.truncated == expected.truncated
    assert 64 <= engine.token_budget <= 400
    assert "out of memory" in caplog.text and "cpu" in caplog.text
    for _ in range(3):  # remembered: soon no batch is too large any more
        list(engine.compute([some], PLAIN))
    tried.clear()
    list(engine.compute([some], PLAIN))
    assert max(tried) <= 200


def test_one_text_that_does_not_fit_is_the_callers_to_know(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, texts: Texts
) -> None:
    engine = make_engine(tiny_bert)
    limited(monkeypatch, engine, 20, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        list(engine.compute([["word " * 60, "a"]], PLAIN))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: device-side assert"),
        ValueError("no"),
    ],
)
def test_other_errors_pass_unchanged_and_change_nothing(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, texts: Texts, error: Exception
) -> None:
    engine = make_engine(tiny_bert)
    budget = engine.token_budget
    tried = limited(monkeypatch, engine, 0, error)
    for some in (texts(300), ["a"]):
        tried.clear()
        with pytest.raises(type(error)) as caught:
            list(engine.compute([some], PLAIN))
        assert caught.value is error
        tokens = TextTokenizer(engine.tokenizer, Prompt(), 64)(some).ids
        assert 0 < sum(tried) <= sum(map(len, tokens))  # nothing is tried again in smaller parts
    assert engine.token_budget == budget


def test_what_counts_as_out_of_memory() -> None:
    assert all(is_out_of_memory(error) for error in OUT_OF_MEMORY)
    for other in (RuntimeError("out of range"), MemoryError(), ValueError("out of memory"), KeyboardInterrupt()):
        assert not is_out_of_memory(other)


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("bgekit")}


def test_threads_end_with_the_call_however_it_ends(
    tiny_bert: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, before = make_engine(tiny_bert), own_threads()  # Those of other tests in this process, if any.

    def endless() -> Iterator[list[str]]:
        while True:
            yield texts(50)

    stream = engine.compute(endless(), PLAIN)
    next(stream)
    assert own_threads() > before
    stream.close()
    assert own_threads() == before

    abandoned = engine.compute(endless(), PLAIN)
    next(abandoned)
    del abandoned
    assert own_threads() == before

    def failing() -> Iterator[list[str]]:
        yield texts(50)
        yield texts(50)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(engine.compute(failing(), PLAIN))
    assert own_threads() == before

    limited(monkeypatch, engine, 0, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        list(engine.compute(endless(), PLAIN))
    assert own_threads() == before


def test_the_threads_of_torch_stay_as_they_were(engine: Engine, texts: Texts) -> None:
    before = torch.get_num_threads()
    for count in (1, 500):
        list(engine.compute([texts(count)], PLAIN))
        assert torch.get_num_threads() == before


def test_no_text_waits_for_the_end_of_the_stream(engine: Engine, texts: Texts) -> None:
    """A stream is read a few blocks ahead, not to its end."""
    read = 0

    def counted() -> Iterator[list[str]]:
        nonlocal read
        for seed in range(100):
            read += 1
            yield texts(20, seed=seed)

    stream = engine.compute(counted(), PLAIN)
    for expected in range(1, 20):
        next(stream)
        assert read <= expected + 4
    stream.close()


@pytest.mark.parametrize("kind", ["mpnet", "t5"])
def test_padded_architectures_count_their_padding(
    make_model: Callable[..., Path], kind: str, batches: list[tuple[int, ...]], texts: Texts
) -> None:
    engine = make_engine(make_model(kind, pooling="mean"))
    list(engine.compute([texts(200)], PLAIN))
    assert engine.padded
    assert all(max(lengths) * len(lengths) <= engine.token_budget for lengths in batches)


def test_no_gradients_are_kept(tiny_bert: Path) -> None:
    vectors = FlagModel(tiny_bert, devices="cpu").encode(["a"], convert_to_numpy=False)
    assert isinstance(vectors, torch.Tensor) and not vectors.requires_grad
