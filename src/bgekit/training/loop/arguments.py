"""Arguments of fine-tuning as training takes them: those of transformers' Trainer, with the options of ours."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ...errors import ArgumentError, require_extra
from ...networks.loading import slow_bfloat16
from .options import EmbedderOptions, RerankerOptions, TrainerOptions, plain

logger = logging.getLogger(__name__)
#: Values of `--report-to` whose package has the same name.
_TRACKERS: Final = frozenset({"tensorboard", "wandb", "mlflow", "trackio", "swanlab", "clearml"})


@dataclass
class TrainerArguments(TrainerOptions, TrainingArguments):
    """Arguments of transformers' Trainer, with the names that its earlier releases had."""

    @property
    def global_batch_size(self) -> int:
        """Rows of a batch, of all processes together."""
        return self.per_device_train_batch_size * self.world_size

    @property
    def order_seed(self) -> int:
        """Seed of the order of the rows, and of what is drawn of them."""
        return self.seed if self.data_seed is None else self.data_seed

    def __post_init__(self) -> None:
        self.check()
        own: Any = self
        if self.judged:
            self._judge()
        if self.warmup_ratio is not None:
            # As in transformers: a number of steps counts more than a share.
            own.warmup_steps = own.warmup_steps or self.warmup_ratio
        if self.dry_run:
            own.output_dir = own.output_dir or "."  # Nothing is written.
        # What a batch holds is not a dictionary of columns.
        self.remove_unused_columns = False
        if own.ddp_find_unused_parameters is None:
            # What gets no gradient is frozen; to look for it costs a walk over the graph in each step.
            own.ddp_find_unused_parameters = False
        for name in ("", "_kwargs"):
            # The old name gives a warning from transformers 5.24 on, the new one is unknown before.
            if getattr(own, f"activation_checkpointing{name}", own) is None:
                setattr(own, f"activation_checkpointing{name}", getattr(own, f"gradient_checkpointing{name}"))
        if own.deepspeed:
            require_extra("deepspeed", "deepspeed")
        if not torch.accelerator.is_available():
            # Otherwise transformers takes --bf16 for a wish that only a GPU can grant.
            self.use_cpu = True
        # The best checkpoint is saved when it comes, so transformers need not see to it that others are saved with it.
        best, own.load_best_model_at_end = own.load_best_model_at_end, False
        super().__post_init__()
        own.load_best_model_at_end = best
        self._check_environment()
        if self.n_gpu > 1:
            # Trainer would copy the network to all of them in one process, which packed batches cannot be split for.
            logger.warning("one of %d GPUs is used; torchrun -m bgekit.training... uses all", self.n_gpu)
            self._n_gpu = 1

    def _check_environment(self) -> None:
        """Check what transformers has found out: devices, packages, and what a launcher says of DeepSpeed."""
        own: Any = self
        if own.fp16 and own.device.type == "cpu":
            raise ArgumentError("--fp16 needs a GPU; --bf16 works on a CPU, too")
        if own.bf16 and (remark := slow_bfloat16(own.device)):
            logger.warning("--bf16: %s", remark)
        known = get_available_reporting_integrations()
        if missing := [name for name in own.report_to if name in INTEGRATION_TO_CALLBACK and name not in known]:
            remedy = f": pip install {missing[0]}" if missing[0] in _TRACKERS else ""
            raise ArgumentError(f"--report-to {missing[0]} needs a package that is not installed{remedy}")
        plugin = own.deepspeed_plugin
        if plugin is None:
            return
        if plugin.zero_stage == 3:
            raise ArgumentError(
                "ZeRO stage 3 is not supported: no process has the whole network, which is measured and saved while it "
                "trains; stage 2 (examples/deepspeed/zero2.json) shares gradients and the optimiser's state"
            )
        if getattr(own, "grad_cache_chunk", None):
            raise ArgumentError("--grad-cache-chunk does not work with --deepspeed: it would step after each chunk")

    def _judge(self) -> None:
        """Use the data to judge by: at the start, after each epoch, and to tell which checkpoint is best."""
        own: Any = self
        own.eval_on_start = True
        if plain(own.eval_strategy) is None:
            own.eval_strategy = "steps" if own.eval_steps else "epoch"
        if plain(own.eval_strategy) == "steps":
            own.eval_steps = own.eval_steps or own.logging_steps
        own.metric_for_best_model = own.metric_for_best_model or "eval_score"
        if own.greater_is_better is None:
            own.greater_is_better = not own.metric_for_best_model.endswith("loss")


@dataclass
class EmbedderArguments(EmbedderOptions, TrainerArguments):
    """Training of an embedder. Defaults are those of FlagEmbedding 1.2.9.

    Example:
        >>> from bgekit.training import EmbedderArguments
        >>> EmbedderArguments(output_dir="trained", temperature=0.02, report_to="none").temperature
        0.02
    """

    def __post_init__(self) -> None:
        own: Any = self
        if self.heads_warmup_steps and own.ddp_find_unused_parameters is None:
            # The encoder has no gradient in some steps, for which the exchange of gradients would wait.
            own.ddp_find_unused_parameters = True
        super().__post_init__()
        if self.heads_warmup_steps and own.deepspeed:
            raise ArgumentError("--heads-warmup-steps does not work with --deepspeed: it waits for all gradients")
        if not self.use_inbatch_neg and self.negatives_cross_device:
            logger.warning("--negatives-cross-device has no effect with --use-inbatch-neg false")


@dataclass
class RerankerArguments(RerankerOptions, TrainerArguments):
    """Training of a reranker.

    Example:
        >>> from bgekit.training import RerankerArguments
        >>> RerankerArguments(output_dir="trained", learning_rate=6e-5, report_to="none").learning_rate
        6e-05
    """
