"""Arguments of transformers' Trainer work, or are refused in one line that names them."""

import dataclasses
from pathlib import Path

import pytest
from transformers import TrainingArguments

from bgekit.errors import ArgumentError, BgekitError
from bgekit.training.loop.arguments import EmbedderArguments
from bgekit.training.loop.command_line import parse
from bgekit.training.loop.options import FINETUNE, WITHOUT_EFFECT


def arguments(output: Path, *given: str) -> EmbedderArguments:
    (args,) = parse(
        FINETUNE, ["--output-dir", str(output), "--use-cpu", *given], prog="bge", kinds=(EmbedderArguments,)
    )
    return args


@pytest.mark.parametrize(
    "given",
    [
        "--label-smoothing-factor 0.1", "--label-names labels", "--include-num-input-tokens-seen true",
        "--average-tokens-across-devices false", "--auto-find-batch-size", "--neftune-noise-alpha 5",
        "--use-liger-kernel", "--use-cache true", "--per-device-eval-batch-size 3", "--prediction-loss-only",
        "--eval-accumulation-steps 2", "--eval-do-concat-batches false", "--include-for-metrics loss",
        "--batch-eval-metrics", "--bf16-full-eval", "--do-predict", "--train-sampling-strategy sequential",
        "--length-column-name x", "--dataloader-in-order false", "--fsdp full_shard", "--enable-jit-checkpoint",
        "--push-to-hub", "--hub-model-id x", "--optim lomo", "--optim galore_adamw_layerwise",
        "--optim schedule_free_adamw", '--accelerator-config {"split_batches":true}', "--fp16", "--eval-strategy steps",
        "--eval-steps 5", "--eval-on-start", "--do-eval", "--metric-for-best-model x", "--save-strategy best",
        "--load-best-model-at-end true", "--early-stopping-patience 2", "--lr-scheduler-type reduce_lr_on_plateau",
        "--seed x", "--no-such-thing 1",
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused_by_name(tmp_path, given):
    name = given.split()[0].removeprefix("--")
    known = {field.name.replace("_", "-") for field in dataclasses.fields(EmbedderArguments)}
    if name not in known and name != "no-such-thing":
        pytest.skip(f"this release of transformers has no {name}")
    with pytest.raises(BgekitError, match=name.replace("-", "[-_]")) as refused:  # Some words are transformers' own.
        arguments(tmp_path, *given.split())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        "--torch-empty-cache-steps 1", "--dataloader-pin-memory false", "--remove-unused-columns true",
        "--include-num-input-tokens-seen no", "--optim adafactor", "--do-train true",
        '--accelerator-config {"gradient_accumulation_kwargs":{"sync_each_batch":true}}', "--ignore-data-skip true",
    ],
)  # fmt: skip
def test_what_works_is_taken(tmp_path, given):
    assert arguments(tmp_path, *given.split()).output_dir == str(tmp_path)


def test_each_reason_is_of_an_argument_that_there_is():
    """A name that transformers drops is to be dropped here, too."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(WITHOUT_EFFECT) <= known


def test_logging_to_what_is_not_installed_is_refused(tmp_path, monkeypatch):
    import bgekit.training.loop.arguments as module

    monkeypatch.setattr(module, "get_available_reporting_integrations", list)
    with pytest.raises(ArgumentError, match="--report-to wandb"):
        arguments(tmp_path, "--report-to", "wandb")
