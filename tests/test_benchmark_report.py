"""The benchmark's table compares like with like."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "report.py"
SPEEDS = {
    "bgekit": 7600,
    "bgekit int8": 8500,
    "bgekit fp32": 4000,
    "FlagEmbedding, batch 32": 2800,
    "sentence-transformers": 2400,
    "sentence-transformers bf16, batch 8": 4300,
    "sentence-transformers OpenVINO": 5200,
    "sentence-transformers OpenVINO int8, batch 8": 7650,
}


@pytest.fixture
def report() -> Any:
    if not PATH.exists():
        pytest.skip("needs benchmarks/, which the source distribution does not have")
    spec = importlib.util.spec_from_file_location("benchmark_report", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(speeds: dict[str, int]) -> dict[str, Any]:
    """What encode.py writes: 100,000 tokens, and a limit of 10,000 tokens/s."""
    start = {"import_seconds": 1.0, "load_seconds": 1.0}
    peers = {
        peer: {"seconds": [100_000 / speed], "starts": [start], "latency_ms": [5.0, 6.0], "peak_mib": 900.0,
               "worst_cosine": 0.999}
        for peer, speed in speeds.items()
    }  # fmt: skip
    rates = {"float32": [2e12], "bfloat16": [4e12]}
    model = {"texts": 1200, "tokens": 100_000, "flops_per_token": 4e8, "rates": rates, "peers": peers}
    return {"cpu": "some CPU", "models": {"small": model}}


def test_8_bits_are_compared_with_8_bits(report: Any) -> None:
    table = report.table(results(SPEEDS))
    ratios = {row.split("|")[1].strip(): row.split("|")[3].strip() for row in table.splitlines() if row.count("|") > 9}
    assert ratios["sentence-transformers OpenVINO"] == "1.46x"
    assert ratios["bgekit fp32"] == "1.90x"
    assert ratios["sentence-transformers OpenVINO int8, batch 8"] == "1.11x"
    assert ratios["bgekit"] == ratios["bgekit int8"] == "1.00x"
    assert (
        "bgekit is 3.17x sentence-transformers, 1.46x sentence-transformers OpenVINO (the best of them in 16 or 32 "
        "bits), at 76% of the limit." in table
    )
    assert (
        "bgekit int8 is 1.11x sentence-transformers OpenVINO int8, batch 8 (the best of them in int8), at 85% of the "
        "limit." in table
    )


def test_a_class_without_a_counterpart_has_no_verdict(report: Any) -> None:
    speeds = {peer: speed for peer, speed in SPEEDS.items() if peer != "bgekit int8"}
    table = report.table(results(speeds))
    assert "the best of them in int8" not in table
    (row,) = (line for line in table.splitlines() if line.startswith("| sentence-transformers OpenVINO int8"))
    assert row.split("|")[3].strip() == ""
    alone = report.table(results({"bgekit": 7600}))
    assert "the best of them" not in alone
