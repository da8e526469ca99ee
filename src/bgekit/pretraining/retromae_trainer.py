"""The trainer of pre-training: losses as means over the tokens of an optimiser's step, whoever computes them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..training.insight.diagnosis import Findings
from ..training.loop.trainer import StepTrainer
from ..training.losses.distributed import LossValue, sum_over_processes, world_size
from .masking import MaskedBatch
from .retromae import RetroMAE
from .token_store import Facts


def loss_of(sums: Tensor, batch: MaskedBatch) -> LossValue:
    """The loss of a global batch from the sums that this process has.

    Args:
        sums: [4] of `RetroMAE.forward`.
        batch: The batch; its `totals` are what the sums are divided by.
    """
    counts = batch.totals
    if counts is None:
        counts = tuple(sum_over_processes(torch.tensor(batch.counts, device=sums.device)).tolist())
    encoder, decoder = (max(count, 1.0) for count in counts)
    loss = (sums[0] / encoder + sums[1] / decoder) * world_size()
    every = sum_over_processes(sums)
    metrics = {
        "loss": every[0] / encoder + every[1] / decoder,
        "encoder_loss": every[0] / encoder,
        "decoder_loss": every[1] / decoder,
        "encoder_accuracy": every[2] / encoder,
        "decoder_accuracy": every[3] / decoder,
    }
    return LossValue(loss, metrics)


def whole_gradient(
    encode: Callable[[MaskedBatch], Tensor], batch: MaskedBatch, backward: Callable[[Tensor], None], no_sync: Any
) -> LossValue:
    """Add the gradient of a batch to the parameters, all at once (a `Gradient` of `StepTrainer`)."""
    value = loss_of(encode(batch), batch)
    backward(value.loss)
    return LossValue(value.loss.detach(), value.metrics)


class PretrainingTrainer(StepTrainer):
    """`StepTrainer` whose micro-batches weigh by their tokens, and that logs its speed. Takes the same arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._since: float | None = None
        super().__init__(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[MaskedBatch], num_batches: int, device: torch.device
    ) -> tuple[list[MaskedBatch], None]:
        """The micro-batches of one step, which know how many tokens the step has: each token weighs the same."""
        if self._since is None:
            self._since = time.perf_counter()
        batches = list(islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        counts = sum_over_processes(torch.tensor([batch.counts for batch in batches], device=self.args.device).sum(0))
        encoder, decoder = (count / len(batches) for count in counts.tolist())
        return [replace(batch, totals=(encoder, decoder)) for batch in batches], None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how fast it goes."""
        if "loss" in logs and (counted := self._metrics.get("tokens")):
            now = time.perf_counter()
            tokens = float(sum_over_processes(torch.stack(counted).sum().to(self.args.device)))
            logs["tokens_per_second"] = tokens / max(now - (self._since or 0.0), 1e-9)
            self._since = now
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure; the time that it takes is not counted as training."""
        start = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        if self._since is not None:
            self._since += time.perf_counter() - start
        return metrics


def measured_losses(
    network: RetroMAE, batches: Iterable[MaskedBatch], context: contextlib.AbstractContextManager[Any]
) -> dict[str, float]:
    """Mean losses and accuracies of a network as it is, without dropout.

    Args:
        network: The network.
        batches: What it is measured on.
        context: Of the computation, such as automatic precision.
    """
    training, device = network.training, next(network.parameters()).device
    sums, counts = torch.zeros(4, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    network.eval()
    try:
        with torch.no_grad(), context:
            for batch in batches:
                sums += network(batch.to(device)).double().cpu()
                counts += torch.tensor(batch.counts, dtype=torch.float64)
    finally:
        network.train(training)
    encoder, decoder, encoder_right, decoder_right = (sums / counts.clamp(min=1)[[0, 1, 0, 1]]).tolist()
    return {
        "loss": encoder + decoder, "encoder_loss": encoder, "decoder_loss": decoder,
        "encoder_accuracy": encoder_right, "decoder_accuracy": decoder_right,
    }  # fmt: skip


@dataclass
class PretrainDiagnosis(Findings):
    """Findings of pre-training."""

    def before(self, facts: Facts, max_length: int, cut: bool) -> list[str]:
        """Look at the data.

        Args:
            facts: Counts of the texts and their tokens.
            max_length: Tokens of a sequence.
            cut: Whether longer texts lose their end.

        Returns:
            The new findings.
        """
        found = {}
        if cut and facts.long > 0.1 * facts.texts:
            found["cut"] = (
                f"{facts.long / facts.texts:.0%} of the texts are longer than --max-seq-length {max_length} and lose "
                "their end: raise it, or --long-texts split"
            )
        if facts.unknown > 0.02 * facts.tokens:
            found["unknown"] = (
                f"{facts.unknown / facts.tokens:.0%} of the tokens are unknown to the vocabulary: is the tokenizer "
                "meant for this language? --tokenizer-name takes another one"
            )
        if facts.tokens < 8 * facts.sequences:
            found["short"] = (
                f"the texts have {facts.tokens / facts.sequences:.1f} tokens on average: a vector that has so little "
                "to hold learns little; passages are better"
            )
        return self.report(found)

    def after(self, logs: Mapping[str, Any]) -> list[str]:
        """Look at the losses of a logged step; returns the new findings."""
        if all(math.isfinite(float(logs.get(name, 0.0))) for name in ("loss", "encoder_loss", "decoder_loss")):
            return []
        return self.report({
            "not finite": "the loss is no number any more: take a lower --learning-rate, --warmup-ratio 0.1, or --bf16 "
            "instead of --fp16"
        })  # fmt: skip
