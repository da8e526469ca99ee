"""Several devices: shared work, ordered results. What happens when a worker dies is in tests/test_faults.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bgekit import FlagModel
from bgekit.data.records import Record
from bgekit.errors import ArgumentError
from bgekit.inference import engine as devices
from bgekit.inference.shards import encode_to_shards

Texts = Callable[..., list[str]]


def test_devices_are_found_or_refused() -> None:
    cpu = torch.device("cpu")
    assert devices.resolve_devices("cpu") == (cpu,)
    assert devices.resolve_devices(["cpu", "cpu"]) == (cpu, cpu)
    if not torch.cuda.is_available():
        assert devices.resolve_devices(None)[0].type in ("cpu", "mps")
        with pytest.raises(ArgumentError, match=r"0 GPUs are visible to torch .*'cpu', or none"):
            devices.resolve_devices("cuda:0")
        with pytest.raises(ArgumentError, match="cuda:3"):
            devices.resolve_devices(3)
    for wrong in ("gpu0", []):
        with pytest.raises(ArgumentError):
            devices.resolve_devices(wrong)


def test_two_workers_give_what_one_gives(tiny_bert: Path, texts: Texts) -> None:
    some = [*texts(2500), *map(str.upper, texts(2500))]
    one = FlagModel(tiny_bert, use_fp16=False, devices="cpu")
    with FlagModel(tiny_bert, use_fp16=False, devices=["cpu", "cpu"]) as two:
        small = two.encode(some[:100])
        assert not two._pool.workers
        assert np.abs(small - one.encode(some[:100])).max() < 1e-6
        expected = one.encode(some)
        shared = two.encode(some)
        assert np.abs(shared - expected).max() < 1e-6
        # The same tokens in both halves, but not in the same windows, nor on the same device.
        assert np.array_equal(shared[:2500], shared[2500:])
        process = two._pool.workers[0].process
        assert np.abs(two.encode(iter(some)) - expected).max() < 1e-6
        assert two._pool.workers[0].process is process  # persistent
    assert process.poll() is not None  # closed with the model


@pytest.mark.parametrize("devices", ["cpu", ["cpu", "cpu"]])
def test_progress_is_told_within_a_block(tiny_bert: Path, texts: Texts, devices: str | list[str]) -> None:
    """Also by a worker, through its pipe; in sum it is all texts and all tokens."""
    some = [texts(2048), texts(2048, seed=7), texts(100, seed=8)]
    told: list[tuple[float, int]] = []
    with FlagModel(tiny_bert, use_fp16=False, devices=devices) as model:
        results = list(model.encode_blocks(some, progress=lambda *each: told.append(each)))
    assert len(told) > 2 * len(some) and all(count >= -1e-6 and tokens >= 0 for count, tokens in told)
    assert sum(count for count, _ in told) == pytest.approx(sum(map(len, some)))
    assert sum(tokens for _, tokens in told) == sum(result.tokens for result in results)


def test_shards_have_the_same_bytes_whichever_device_makes_them(
    make_model: Callable[..., Path], texts: Texts, tmp_path: Path
) -> None:
    """Windows of a few hundred tokens, which is where the number of streams and of threads shows."""
    folder = make_model("bert", hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=1)
    records = [Record(str(number), text) for number, text in enumerate(texts(2400, longest=20))]
    one = FlagModel(folder, use_fp16=False, devices="cpu")
    encode_to_shards(one, records, tmp_path / "one", shard_size=70)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    with FlagModel(folder, use_fp16=False, devices=["cpu", "cpu"]) as two:
        out = tmp_path / "two"
        encode_to_shards(two, records, out, shard_size=70)
        assert two._pool.workers
        assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
        # Resumed, most shards are computed by another device than before; the rest of a run by the first one alone.
        for kept in (3, 30):
            for path in sorted(out.glob("shard-*.json"))[kept:]:
                path.unlink()
            report = encode_to_shards(two, records, out, shard_size=70)
            assert report.kept == 70 * kept
            assert {path.name: path.read_bytes() for path in out.iterdir()} == whole


def test_an_error_in_a_worker_reaches_the_caller(tiny_bert: Path, texts: Texts, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    with FlagModel(folder, use_fp16=False, devices=["cpu", "cpu"]) as model:
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match="no weights"):
            model.encode(f"text {number} of the river" for number in range(10**7))
