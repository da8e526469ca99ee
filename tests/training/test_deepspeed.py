"""DeepSpeed trains what two processes train without it, saves whole models, and goes on where it stopped."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bgekit import FlagModel

pytest.importorskip("deepspeed", reason="needs the extra deepspeed")

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "deepspeed"


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train two steps with a checkpoint after each, on two processes: `train("name", "--optim", "sgd")`."""
    from conftest import make_tiny

    base = tmp_path_factory.mktemp("deepspeed")
    start = make_tiny(base / "tiny", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = [
        f'{{"query": "a cat {number}", "pos": ["the bird {number}"], "neg": ["some tree {number}"]}}\n'
        for number in range(12)
    ]
    (base / "train.jsonl").write_text("".join(rows))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def train(name: str, *more: str) -> Path:
        command = [
            *launcher, "-m", "bgekit.training.embedder", "--model", str(start),
            "--train-data", str(base / "train.jsonl"), "--output-dir", str(base / name), "--cache-path",
            str(base / "cache"), "--per-device-train-batch-size", "3", "--train-group-size", "2", "--use-cpu",
            "--negatives-cross-device", "true", "--learning-rate", "1e-2", "--max-steps", "2", "--logging-steps", "1",
            "--save-strategy", "steps", "--save-steps", "1", "--report-to", "none", "--disable-tqdm", "true", *more,
        ]  # fmt: skip
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300)
        return base / name

    return train


@pytest.fixture(scope="module")
def plain(train):
    return weights(train("plain", "--optim", "sgd"))


def weights(folder: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_it_trains_what_plain_processes_train_and_goes_on(train, plain, stage):
    given = ["--optim", "sgd", "--deepspeed", str(CONFIGS / f"zero{stage}.json")]
    output = train(f"zero{stage}", *given)
    first = weights(output)
    for name, value in plain.items():
        assert np.allclose(value, first[name], atol=1e-6), name
    for name in ("checkpoint-2", "config.json", "model.safetensors"):
        path = output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    second = weights(train(f"zero{stage}", *given, "--resume-from-checkpoint", "true"))
    assert all(np.array_equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_half_precision_and_adapters_are_saved_as_a_model_that_loads(train):
    more = ["--bf16", "true", "--use-lora", "true", "--lora-rank", "4"]
    output = train("half", *more, "--deepspeed", str(CONFIGS / "zero2.json"))
    # Its self-test is checked when it is loaded.
    assert np.isfinite(FlagModel(output, use_fp16=False).encode(["the cat"])).all()


def test_a_network_in_shards_is_refused(tmp_path):
    from bgekit.errors import ArgumentError
    from bgekit.training.loop.arguments import EmbedderArguments

    config = (CONFIGS / "zero2.json").read_text().replace('"stage": 2', '"stage": 3')
    (tmp_path / "zero3.json").write_text(config)
    with pytest.raises(ArgumentError, match="stage 3"):
        EmbedderArguments(output_dir=str(tmp_path), deepspeed=str(tmp_path / "zero3.json"), use_cpu=True)
    with pytest.raises(ArgumentError, match="grad_cache_chunk"):
        EmbedderArguments(
            output_dir=str(tmp_path), deepspeed=str(CONFIGS / "zero2.json"), use_cpu=True, grad_cache_chunk=4
        )
