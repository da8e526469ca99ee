"""Arguments of transformers' Trainer work, or are refused in one line that names them."""

import dataclasses
from pathlib import Path

import pytest
from transformers import TrainingArguments

from bgekit.errors import ArgumentError, BgekitError
from bgekit.training.loop.arguments import WITHOUT_EFFECT, EmbedderArguments, parse


def arguments(output: Path, *given: str) -> EmbedderArguments:
    (args,) = parse(
        (EmbedderArguments,), ["--output_dir", str(output), "--use_cpu", *given], prog="bge", description=""
    )
    return args


@pytest.mark.parametrize(
    "given",
    [
        "--label_smoothing_factor 0.1", "--label_names labels", "--include_num_input_tokens_seen true",
        "--average_tokens_across_devices false", "--auto_find_batch_size", "--neftune_noise_alpha 5",
        "--use_liger_kernel", "--use_cache true", "--per_device_eval_batch_size 3", "--prediction_loss_only",
        "--eval_accumulation_steps 2", "--eval_do_concat_batches false", "--include_for_metrics loss",
        "--batch_eval_metrics", "--bf16_full_eval", "--do_predict", "--train_sampling_strategy sequential",
        "--length_column_name x", "--dataloader_in_order false", "--fsdp full_shard", "--enable_jit_checkpoint",
        "--push_to_hub", "--hub_model_id x", "--optim lomo", "--optim galore_adamw_layerwise",
        "--optim schedule_free_adamw", '--accelerator_config {"split_batches":true}', "--fp16", "--eval_strategy steps",
        "--eval_steps 5", "--eval_on_start", "--do_eval", "--metric_for_best_model x", "--save_strategy best",
        "--load_best_model_at_end true", "--early_stopping_patience 2", "--lr_scheduler_type reduce_lr_on_plateau",
        "--seed x", "--no_such_thing 1",
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused_by_name(tmp_path, given):
    name = given.split()[0].removeprefix("--")
    if not any(field.name == name for field in dataclasses.fields(EmbedderArguments)) and name != "no_such_thing":
        pytest.skip(f"this release of transformers has no {name}")
    with pytest.raises(BgekitError, match=name) as refused:
        arguments(tmp_path, *given.split())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        "--torch_empty_cache_steps 1", "--dataloader_pin_memory false", "--remove_unused_columns true",
        "--include_num_input_tokens_seen no", "--optim adafactor", "--do_train true",
        '--accelerator_config {"gradient_accumulation_kwargs":{"sync_each_batch":true}}', "--ignore_data_skip true",
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
    with pytest.raises(ArgumentError, match="--report_to wandb"):
        arguments(tmp_path, "--report_to", "wandb")
