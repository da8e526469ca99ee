"""Arguments of transformers' Trainer that would have no effect, or a wrong one, on this kind of training.

Each is refused with the reason, so that no run differs in silence from what its command line says.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields
from typing import Any, Final

from transformers import TrainingArguments

from ..errors import ArgumentError

_OWN_LOSS: Final = "the loss is one of vectors or scores: no tokens are labelled or counted"
_OWN_EVALUATION: Final = "--eval_data is measured by bgekit, not by Trainer's own loop"
_OWN_BATCHES: Final = "batches follow from the seed and the epoch; --group_by_length puts similar lengths together"
_OWN_LOADER: Final = "each process makes its own part of a batch, in order"
_NO_HUB: Final = "nothing is uploaded while training; upload the finished folder with `hf upload`"
_HALF: Final = "--bf16 and --fp16 are for training; the model is measured as it would be saved"

#: Why an argument is refused when it is not what it is by default.
REASONS: Final = {
    "label_smoothing_factor": _OWN_LOSS,
    "label_names": _OWN_LOSS,
    "include_num_input_tokens_seen": "the log has `tokens`",
    "average_tokens_across_devices": "the loss is that of the global batch in any case",
    "auto_find_batch_size": "another batch size has other negatives; --grad_cache_chunk fits any batch into memory",
    "neftune_noise_alpha": "its noise goes by the length of padded batches, and nothing is padded here",
    "use_liger_kernel": "its kernels are for language models that generate",
    "liger_kernel_config": "its kernels are for language models that generate",
    "use_cache": "it is for models that generate",
    "per_device_eval_batch_size": _OWN_EVALUATION,
    "prediction_loss_only": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "bf16_full_eval": _HALF,
    "fp16_full_eval": _HALF,
    "do_predict": "`bge encode` and `bge eval` use the finished model",
    "train_sampling_strategy": _OWN_BATCHES,
    "length_column_name": _OWN_BATCHES,
    "dataloader_in_order": _OWN_LOADER,
    "parallelism_config": "data are parallel, the network is not",
    "fsdp": "the saved model would hold a part of the weights; --deepspeed shares the optimiser's memory",
    "fsdp_config": "the saved model would hold a part of the weights; --deepspeed shares the optimiser's memory",
    "enable_jit_checkpoint": "processes could stop at different steps; --save_steps bounds what is lost",
    "push_to_hub": _NO_HUB,
    "hub_token": _NO_HUB,
    "hub_private_repo": _NO_HUB,
    "hub_model_id": _NO_HUB,
    "hub_strategy": _NO_HUB,
    "hub_always_push": _NO_HUB,
    "hub_revision": _NO_HUB,
}

#: Optimisers that need another training loop than that of this kind of training.
_OPTIMIZERS: Final = {
    "lomo": "it steps within the backward pass",
    "layerwise": "it steps within the backward pass",
    "schedule_free": "its weights in training are not those to save",
}
#: Parts of --accelerator_config that are used; the others are about loaders that accelerate makes.
_ACCELERATOR: Final = frozenset({"gradient_accumulation_kwargs"})


def check_supported(args: Any) -> None:
    """Refuse what has no effect here.

    Args:
        args: `TrainingArguments` as given, before it has filled in its own values.

    Raises:
        ArgumentError: an argument is set that this kind of training has no use for.
    """
    for field in fields(TrainingArguments):
        if field.name in REASONS and _plain(getattr(args, field.name)) != _plain(_default(field)):
            raise ArgumentError(f"--{field.name} is not supported: {REASONS[field.name]}")
    optimizer = str(getattr(args.optim, "value", args.optim))
    for part, reason in _OPTIMIZERS.items():
        if part in optimizer:
            raise ArgumentError(f"--optim {optimizer} is not supported: {reason}")
    _check_accelerator(args.accelerator_config)
    if not args.judged:
        _check_unjudged(args)


def _check_accelerator(given: Any) -> None:
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ArgumentError(f"--accelerator_config is no JSON object: {error}") from error
    if isinstance(given, dict) and (unused := sorted(given.keys() - _ACCELERATOR)):
        raise ArgumentError(f"--accelerator_config with {unused[0]} is not supported: {_OWN_LOADER}")


def _check_unjudged(args: Any) -> None:
    asked = {
        "load_best_model_at_end": args.load_best_model_at_end,
        "early_stopping_patience": args.early_stopping_patience is not None,
        "save_strategy best": _plain(args.save_strategy) == "best",
        "eval_strategy": _plain(args.eval_strategy) is not None,
        "eval_steps": args.eval_steps is not None,
        "eval_delay": args.eval_delay > 0,
        "eval_on_start": args.eval_on_start,
        "do_eval": args.do_eval,
        "metric_for_best_model": args.metric_for_best_model is not None,
        "greater_is_better": args.greater_is_better is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ArgumentError(f"--{name} needs {args.judged_by}")


def _default(field: Field[Any]) -> Any:
    made: Any = field.default_factory
    return made() if field.default is MISSING else field.default


def _plain(value: Any) -> Any:
    """A value as users write it: that of an enum; nothing for what says nothing."""
    value = getattr(value, "value", value)
    if isinstance(value, str) and value.lower() in ("false", "true"):
        value = value.lower() == "true"
    return value if value not in ("", [], {}, "no", False) else None
