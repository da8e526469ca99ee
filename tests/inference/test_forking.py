"""Models in processes that were forked after they were loaded and used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bgekit.errors import ForkError
from bgekit.inference import engine

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PROGRAM = """
import os, signal, sys, warnings
import numpy as np
from bgekit import FlagModel

warnings.simplefilter("ignore")  # that Python 3.12 and later warn of forks with threads is right, but not the matter
folder, devices = sys.argv[1], sys.argv[2:]
some = [f"text number {n} of the river" for n in range(2200)]
model = FlagModel(folder, use_fp16=False, devices=devices)
alone, few, many = model.encode(some[0]), model.encode(some[:30]), model.encode(some)
workers = list(model._pool.workers)

def use(model):
    assert np.abs(model.encode(some[0]) - alone).max() < 1e-6
    assert np.abs(model.encode(some[:30]) - few).max() < 1e-6
    assert np.abs(model.encode(some) - many).max() < 1e-6

child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that hangs ends with a signal
    use(model)
    assert np.abs(FlagModel(folder, use_fp16=False, devices="cpu").encode(some[:30]) - few).max() < 1e-6
    model.close()
    print("child done", flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, f"the child ended with status {status}"
use(model)
assert all(worker.process.poll() is None for worker in workers)  # the parent's workers are left alone
print("parent done")
"""


@FORK
@pytest.mark.parametrize(("devices", "parallel"), [(["cpu"], None), (["cpu"], "true"), (["cpu", "cpu"], None)])
def test_a_forked_child_uses_the_model_of_its_parent(tiny_bert: Path, devices: list[str], parallel: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    if parallel is not None:
        environment["TOKENIZERS_PARALLELISM"] = parallel
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bert), *devices],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == "child done\nparent done\n"


@FORK
def test_children_of_a_process_without_a_model_are_left_alone() -> None:
    program = (
        "import os, sys, torch\nimport bgekit.inference.engine\nbefore = torch.get_num_threads()\n"
        "if os.fork() == 0:\n    same = before == torch.get_num_threads()\n"
        "    print(same, os.environ['TOKENIZERS_PARALLELISM'], flush=True)\n    os._exit(0)\nos.wait()\n"
    )
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "True true\n", result.stderr


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_a_gpu_after_a_fork_is_an_error_that_says_what_to_do(device: str) -> None:
    engine.check_process(torch.device(device), os.getpid())
    engine.check_process(torch.device("cpu"), os.getpid() - 1)
    with pytest.raises(ForkError, match=rf"loaded the model on {device}.*after the fork.*spawn"):
        engine.check_process(torch.device(device), os.getpid() - 1)
