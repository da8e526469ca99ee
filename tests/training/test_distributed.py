"""The gradient on N processes is that of one process with the whole batch: every loss, plain and cached."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import forked
from training import loss_cases
from training.loss_cases import CASES, RUNS, gradients, make_network, rows_for, step

#: Four processes take a minute; the laws are those of two, whose shares are uneven and empty, too.
WORLDS = (1, 2, pytest.param(4, marks=pytest.mark.slow))
Results = list[dict[tuple[Any, ...], tuple[float, dict[str, Tensor], dict[str, Tensor]]]]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Results]:
    """What each process of a world computed, by loss, split, precision and chunk."""

    @functools.cache
    def run(world: int) -> Results:
        folder = tmp_path_factory.mktemp(f"world-{world}")
        forked.finish([forked.start(loss_cases.main, rank, world, folder) for rank in range(world)], timeout=300)
        return [load(folder / f"{rank}.pt") for rank in range(world)]

    return run


def load(path: Path) -> Any:
    return torch.load(path, weights_only=False)  # written by this very test


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_gradient_is_that_of_the_whole_batch(processes: Callable[[int], Results], world: int, name: str) -> None:
    kind, loss = CASES[name]
    network = make_network(kind)
    value = step(network, kind, loss, rows_for(kind), None)
    expected = gradients(network)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    for number, dtype, chunk in RUNS[world]:
        tolerance = 1e-8 if dtype == torch.float64 else 1e-4
        shares = [result[name, number, dtype, chunk] for result in processes(world)]
        for share, metrics, found in shares:
            assert math.isfinite(share)
            assert found.keys() == expected.keys()
            for part, gradient in expected.items():
                assert (found[part] - gradient).abs().max() <= tolerance * largest, (number, dtype, chunk, part)
            for metric, wanted in value.metrics.items():
                assert float(metrics[metric]) == pytest.approx(float(wanted), rel=1e-4, abs=1e-5), metric
        mean = sum(share for share, _, _ in shares) / world
        assert mean == pytest.approx(value.loss.item(), rel=1e-9 if dtype == torch.float64 else 1e-4)


def test_gradients_are_not_divided_by_the_number_of_processes(processes: Callable[[int], Results]) -> None:
    """FlagEmbedding computes the global mean on each process and lets averaging divide it again: 1/2 for 2."""
    kind, loss = CASES["contrastive"]
    network = make_network(kind)
    step(network, kind, loss, rows_for(kind), None)
    expected = gradients(network)["out.weight"].norm()
    for world in (1, 2):
        found = processes(world)[0]["contrastive", 0, torch.float64, None][2]["out.weight"].norm()
        assert float(found / expected) == pytest.approx(1, abs=1e-9)


def test_own_device_only_is_another_loss_with_the_same_scale() -> None:
    """Without other processes' passages, each process has fewer negatives, and rows still weigh 1/size."""
    from bgekit.training.losses.contrastive import Contrastive

    whole = rows_for("vectors")
    network = make_network("vectors")
    total = torch.zeros((), dtype=torch.float64)
    for start, stop in ((0, 8), (8, 13)):
        rows = whole.part(start, stop)
        total += step(network, "vectors", Contrastive(0.05, across=False), rows, None).loss
    split = gradients(network)
    alone = Contrastive(0.05)
    reference = torch.zeros((), dtype=torch.float64)
    for start, stop in ((0, 8), (8, 13)):
        rows = whole.part(start, stop)
        rows.size = stop - start
        value = step(network, "vectors", alone, rows, None, backward=lambda t, n=stop - start: (t * n / 13).backward())
        reference += value.loss * (stop - start) / 13
    assert float(total) == pytest.approx(float(reference), rel=1e-12)
    for name, gradient in gradients(network).items():
        assert torch.allclose(split[name], gradient, rtol=1e-10, atol=1e-12)


def test_adapters_of_two_processes(tmp_path: Path) -> None:
    """Each of them gets a gradient, for which data-parallel training waits: none is in the pooler, which BERT has."""
    from conftest import make_tiny

    from .conftest import row, to_jsonl

    start = make_tiny(tmp_path / "tiny")
    (tmp_path / "rows.jsonl").write_text(to_jsonl(row(number) for number in range(12)))
    given = [
        "--model", str(start), "--train-data", str(tmp_path / "rows.jsonl"), "--output-dir", str(tmp_path / "out"),
        "--cache-path", str(tmp_path / "cache"), "--use-lora", "true", "--lora-rank", "2", "--max-steps", "3",
        "--per-device-train-batch-size", "2", "--train-group-size", "2", "--save-strategy", "no", "--report-to", "none",
        "--disable-tqdm", "true", "--use-cpu", "true",
    ]  # fmt: skip
    forked.torchrun("bgekit.training.embedder", given, world=2)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_what_the_first_process_finds_all_get(tmp_path: Path) -> None:
    """Its errors, too: the others would wait for ever."""
    script = f"""
import sys
import torch.distributed as dist
from bgekit.errors import ArgumentError
from bgekit.training.losses.distributed import by_first, rank
dist.init_process_group("gloo", init_method="file://{tmp_path}/meeting", rank=RANK, world_size=2)
assert by_first(lambda: ("found", rank())) == ("found", 0)
def fail():
    raise ArgumentError("wrong")
try:
    by_first(fail)
except ArgumentError as error:
    # A process that ends takes its connections with it.
    dist.barrier()
    dist.destroy_process_group()
    sys.exit(0 if str(error) == "wrong" else 1)
sys.exit(2)
"""
    forked.finish([forked.start(exec, script, {"RANK": rank}) for rank in range(2)], timeout=120)
