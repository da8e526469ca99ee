"""Several devices: shared work, ordered results, dead workers named within seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bgekit import FlagModel
from bgekit.encoding import devices
from bgekit.errors import ArgumentError, WorkerError

Texts = Callable[..., list[str]]


def test_devices_are_found_or_refused() -> None:
    cpu = torch.device("cpu")
    assert devices.resolve_devices("cpu") == (cpu,)
    assert devices.resolve_devices(["cpu", "cpu"]) == (cpu, cpu)
    if not torch.cuda.is_available():
        assert devices.resolve_devices(None)[0].type in ("cpu", "mps")
        with pytest.raises(ArgumentError, match="0 GPUs are visible"):
            devices.resolve_devices("cuda:0")
        with pytest.raises(ArgumentError, match="cuda:3"):
            devices.resolve_devices(3)
    for wrong in ("gpu0", []):
        with pytest.raises(ArgumentError):
            devices.resolve_devices(wrong)


def test_two_workers_give_what_one_gives(tiny_bert: Path, texts: Texts) -> None:
    some = texts(9000)
    one = FlagModel(tiny_bert, use_fp16=False, devices="cpu")
    with FlagModel(tiny_bert, use_fp16=False, devices=["cpu", "cpu"]) as two:
        small = two.encode(some[:100])
        assert two._pool is not None
        assert not two._pool._workers
        assert np.abs(small - one.encode(some[:100])).max() < 1e-6
        expected = one.encode(some)
        assert np.abs(two.encode(some) - expected).max() < 1e-6
        process = two._pool._workers[0]._process
        assert np.abs(two.encode(iter(some)) - expected).max() < 1e-6
        assert two._pool._workers[0]._process is process  # persistent
    assert process.poll() is not None  # closed with the model


def test_a_killed_worker_is_an_error_that_names_its_device(tiny_bert: Path, texts: Texts) -> None:
    with FlagModel(tiny_bert, use_fp16=False, devices=["cpu", "cpu"]) as model:
        model.encode(texts(4100))
        process = model._pool._workers[0]._process
        threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
        start = time.monotonic()
        with pytest.raises(WorkerError, match=r"device cpu .*killed by signal 9"):
            model.encode(f"text {number} of the river" for number in range(10**7))
        assert time.monotonic() - start < 10
        assert model.encode(texts(4100)).shape == (4100, 32)  # new workers


def test_an_error_in_a_worker_reaches_the_caller(tiny_bert: Path, texts: Texts, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    with FlagModel(folder, use_fp16=False, devices=["cpu", "cpu"]) as model:
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match="no weights"):
            model.encode(f"text {number} of the river" for number in range(10**7))


@pytest.mark.parametrize("devices", ["'cpu'", "['cpu', 'cpu']"])
def test_ctrl_c_ends_an_encode_and_its_workers(tiny_bert: Path, devices: str) -> None:
    program = (
        "import sys\nfrom bgekit import FlagModel\n"
        f"model = FlagModel({str(tiny_bert)!r}, devices={devices})\n"
        "print('ready', flush=True)\n"
        "model.encode(f'text number {i} of the river' for i in range(10**9))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - start < 5
    assert "KeyboardInterrupt" in errors
