"""Memory that batches leave behind goes back to the system while a long call runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgekit import FlagModel
from bgekit.networks import memory


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When memory was given back, on a clock that stands still until a test sets it."""
    times: list[float] = []
    monkeypatch.setattr(memory, "return_freed_memory", lambda: times.append(memory.time.monotonic()))
    return times


def test_memory_is_given_back_every_few_seconds(trims: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(memory.time, "monotonic", lambda: now)
    trimmer = memory.Trimmer()
    for step in range(200):
        now = 100.0 + step / 10
        trimmer.trim()
    assert trims == [105.0, 110.0, 115.0]


def test_long_calls_do_it_and_short_ones_do_not(
    tiny_bert: Path, trims: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FlagModel(tiny_bert, use_fp16=False, devices="cpu")
    some = [f"text {number}" for number in range(4200)]
    model.encode("a query")
    assert not trims
    monkeypatch.setattr(memory, "_SECONDS", 0.0)
    model.encode(some)
    assert len(trims) == 3  # after each window
    list(model.encode_windows([some[:10], some[10:20]]))
    assert len(trims) == 5


def test_it_can_be_done_here() -> None:
    memory.return_freed_memory()
