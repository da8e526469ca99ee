"""transformers' Trainer with what contrastive training needs: its batches, losses, gradient cache and checkpoints."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...errors import ArgumentError, CheckpointError, MissingExtraError
from ...networks.cpu_inference import Trimmer
from ..batches.collator import Batch, StepDataset
from ..insight.diagnosis import Diagnosis
from ..losses.distributed import LossValue, by_first, sum_over_processes
from .checkpoints import is_whole, mark_whole, rotate
from .gradient_cache import cached_backward, plain_backward

logger = logging.getLogger(__name__)
#: What is encoded of a batch, and the loss of what came out.
Parts = Callable[[Batch], Sequence[Any]]
LossOf = Callable[..., LossValue]


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The steps of an epoch as keys (epoch, step), each as a list of its own, as a loader's batch sampler.

    Trainer resumes by leaving out the first lists. Keys name the epoch, so that a step's batch depends on nothing that
    happened before.
    """

    def __init__(self, steps: StepDataset) -> None:
        self._steps, self._epoch = steps, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(self._epoch, step)] for step in range(len(self))])

    def __len__(self) -> int:
        return len(self._steps.plan(self._epoch))


class StepLoader(DataLoader[Batch]):
    """One item a step. Trainer tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class MeasuredAtTheEnd(TrainerCallback):
    """The network that training ends with is measured, whatever `--eval_delay` says."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for it, unless it is or has just been asked for."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            measured = [row["step"] for row in state.log_history if any(name.startswith("eval_") for name in row)]
            control.should_evaluate = control.should_evaluate or state.global_step not in measured


def first(items: list[Batch]) -> Batch:
    """The only item of a list."""
    return items[0]


class ContrastiveTrainer(Trainer):
    """Trains a network whose loss is that of the global batch.

    Attributes:
        steps: The data.
        diagnosis: Watches the run.
        identity: What a run that goes on must have in common with this one.
    """

    control: Any

    def __init__(
        self,
        network: nn.Module,
        args: Any,
        steps: StepDataset,
        parts: Parts,
        loss: LossOf,
        *,
        write: Callable[[Path], None],
        read: Callable[[Path], Mapping[str, Tensor]],
        judge: Callable[[], Mapping[str, float]] | None,
        diagnosis: Diagnosis,
        identity: Mapping[str, Any],
        callbacks: Sequence[Any] = (),
    ) -> None:
        """Nothing is trained yet.

        Args:
            network: Packed sequences -> vectors or scores.
            args: `TrainerArguments` with `grad_cache_chunk`.
            steps: The data.
            parts: What of a batch goes through the network.
            loss: Takes what came out of each part, and the batch.
            write: Saves the network as a checkpoint.
            read: Reads the weights of a checkpoint by the network's own names.
            judge: Measures the network as it is; called on the first process alone.
            diagnosis: Watches the run.
            identity: What a run that goes on must have in common with the one that wrote a checkpoint.
            callbacks: Of Trainer.
        """
        self.steps, self._parts, self._loss, self.identity = steps, parts, loss, identity
        self._write, self._read, self._judge, self.diagnosis = write, read, judge, diagnosis
        self._metrics: dict[str, list[Tensor]] = defaultdict(list)
        self._memory = Trimmer()
        super().__init__(
            model=network, args=args, train_dataset=steps, data_collator=first,
            # Trainer wants to see something to evaluate on; `evaluate` knows what.
            eval_dataset=[] if judge is not None else None,
            callbacks=[*([MeasuredAtTheEnd()] if judge is not None else []), *callbacks],
        )  # fmt: skip

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As Trainer does; a package that it lacks is named in one line."""
        try:
            return super().create_optimizer(model)
        except ImportError as error:
            raise MissingExtraError(f"--optim {self.args.optim.value}: {' '.join(str(error).split())}") from error

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """This process's part of each step, in order."""
        workers = self.args.dataloader_num_workers
        return StepLoader(
            self.steps,
            batch_sampler=StepBatches(self.steps),
            collate_fn=first,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            # Not in the arguments of all releases.
            multiprocessing_context=(getattr(self.args, "dataloader_multiprocessing_context", None) or "spawn")
            if workers
            else None,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """The batches of one step of the optimiser."""
        return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)], None

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Add the gradient of one batch; returns its loss, whose mean over processes is that of the global batch."""
        model.train()
        batch = inputs.to(self.args.device)
        steps = self.current_gradient_accumulation_steps

        def encode(packed: Any) -> Tensor:
            with self.compute_loss_context_manager():
                return model(packed)

        def backward(value: Tensor) -> None:
            # DeepSpeed would divide by the steps of the accumulation once more.
            more = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
            self.accelerator.backward(value / steps, **more)

        value = self._gradient(model, encode, batch, backward)
        for name, metric in value.metrics.items():
            if name != "loss":
                self._metrics[name].append(metric)
        self._metrics["tokens"].append(torch.tensor(float(batch.tokens)))
        self._memory.trim()
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return value.loss / steps

    def _gradient(
        self, model: nn.Module, encode: Callable[[Any], Tensor], batch: Batch, backward: Callable[[Tensor], None]
    ) -> LossValue:
        """Go through the network and back."""
        loss = functools.partial(self._loss_of, batch)
        chunk = self.args.grad_cache_chunk
        if chunk is None:
            return plain_backward(encode, self._parts(batch), loss, backward=backward)
        silent = functools.partial(self.accelerator.no_sync, model)
        return cached_backward(encode, self._parts(batch), loss, chunk=chunk, backward=backward, no_sync=silent)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Of one forward and backward pass, counted as 6 a token and parameter."""
        return 6 * inputs.tokens * sum(parameter.numel() for parameter in self.model.parameters())

    def _loss_of(self, batch: Batch, *encoded: Tensor) -> LossValue:
        return self._loss(*encoded, batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was seen since the last time, and look whether something is wrong."""
        if "loss" in logs and self._metrics:
            tokens = self._metrics.pop("tokens", [])
            logs |= {name: float(torch.stack(values).mean()) for name, values in self._metrics.items()}
            logs["tokens"] = float(sum_over_processes(torch.stack(tokens).sum().to(self.args.device)))
            self._metrics.clear()
            if self.is_world_process_zero():
                self.diagnosis.after(logs)
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the network on the evaluation data; every process gets the result."""
        judge = self._judge
        found = by_first(judge) if judge is not None else {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        wanted = self.args.metric_for_best_model
        if judge is not None and wanted is not None and {wanted, f"eval_{wanted}"}.isdisjoint(metrics):
            raise ArgumentError(f"--metric_for_best_model {wanted} is not measured; there are {', '.join(metrics)}")
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """As Trainer does; but what was measured before the first step can be the best, too."""
        metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if self.state.global_step == 0:
            self._determine_best_metric(metrics, trial)
            if self.args.load_best_model_at_end:
                self._save_checkpoint(self.model_wrapped, trial)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As Trainer does; but a best model that is wanted in the end is saved, whatever --save_steps says."""
        is_better: bool = super()._determine_best_metric(metrics, trial)
        if is_better and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_better

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the network as a checkpoint that everybody can load; one process writes for all.

        Trainer itself calls this on one process up to transformers 5.20, on every one in 5.24.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self._write(folder)
        arguments = json.dumps(self.args.to_dict(), indent=1, default=str) + "\n"
        (folder / "training_args.json").write_text(arguments, encoding="utf-8")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the network; no process goes on before it is there, since all put files of theirs beside it."""
        super().save_model(output_dir, _internal_call)
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step:
            # Trainer notes it for some --save_strategy only, and takes step 0 for no step at all.
            self.state.best_model_checkpoint = str(checkpoint)
        if self.args.should_save and checkpoint.exists():
            # What a run that was killed here left; this process alone removes it, and the others wait in `save_model`.
            shutil.rmtree(checkpoint)
        # Older checkpoints go after the new one is whole, not before.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.world_size > 1:
            torch.distributed.barrier()
        if self.args.should_save:
            mark_whole(checkpoint, self.identity)
            rotate(folder, limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = self._read(Path(resume_from_checkpoint))
        own = self.model.state_dict()
        missing = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        missing = [name for name in missing if name not in weights]
        if missing:
            raise CheckpointError(f"{resume_from_checkpoint} lacks {len(missing)} weights, such as {missing[0]}")
        self.model.load_state_dict({name: value for name, value in weights.items() if name in own}, strict=False)

    def _load_callback_state(self) -> None:
        """As Trainer does; but what was asked for now counts: this patience, and the best checkpoint in this folder."""
        stored = self.state.stateful_callbacks.get(EarlyStoppingCallback.__name__) or []
        for each in stored if isinstance(stored, list) else [stored]:
            each["args"]["early_stopping_patience"] = self.args.early_stopping_patience
        super()._load_callback_state()
        best = self.state.best_global_step
        if best is None or not self.args.load_best_model_at_end:
            return
        folder = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{best}"
        if not is_whole(folder):
            raise ArgumentError(
                f"{folder}, the best checkpoint so far, is not there any more: put it back, or go on with "
                "--load_best_model_at_end false"
            )
        self.state.best_model_checkpoint = str(folder)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        logger.info("going back to %s, the best by %s", best, self.args.metric_for_best_model)
        self._load_from_checkpoint(best)
