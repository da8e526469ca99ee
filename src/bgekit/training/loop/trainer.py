"""transformers' Trainer for networks whose batches are steps and whose loss is that of the global batch.

It is used through its public methods and callbacks. Two private methods are replaced, and one is called, since no
public way leads there: how weights are read back into a network that is not a model of transformers (when a run is
continued, and when it ends with its best checkpoint), and a checkpoint before the first step.
"""

from __future__ import annotations

import functools
import json
import logging
import operator
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
import transformers
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...errors import ArgumentError, MissingExtraError
from ...networks.cpu_inference import Trimmer
from ..batches.sampler import StepBatches
from ..losses.distributed import LossValue, by_first, sum_over_processes
from .checkpoints import ModelFiles, is_whole, keep_best_alone, mark_whole, remove_oldest
from .diagnosis import Findings
from .training_log import ReadableLog

logger = logging.getLogger(__name__)
#: The only batch of a list, as a loader wants it that puts several together.
_only_item: Final = operator.itemgetter(0)
#: Adds the gradient of a batch to the parameters and returns its loss. Takes the network (what it encodes -> vectors,
#: scores or losses), the batch, what goes back from a scalar, and a context in which processes exchange no gradients.
Gradient: TypeAlias = Callable[
    [Callable[[Any], Tensor], Any, Callable[[Tensor], None], Callable[[], AbstractContextManager[Any]]], LossValue
]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The steps of an epoch as keys (epoch, step), each as a list of its own, as a loader's batch sampler.

    Trainer resumes by leaving out the first lists. Keys name the epoch, so that a step's batch depends on nothing that
    happened before.
    """

    def __init__(self, steps: StepBatches[Any]) -> None:
        self._steps, self._epoch = steps, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(self._epoch, step)] for step in range(len(self))])

    def __len__(self) -> int:
        return len(self._steps.plan(self._epoch))


class StepLoader(DataLoader[Any]):
    """A loader with one item per step. Trainer tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class MeasuredAtTheEnd(TrainerCallback):
    """Measures the network that training ends with, whatever `--eval-delay` says."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for it, unless it is or has just been asked for."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            measured = [row["step"] for row in state.log_history if any(name.startswith("eval_") for name in row)]
            control.should_evaluate = control.should_evaluate or state.global_step not in measured


class EarlyStoppingCallback(transformers.EarlyStoppingCallback):
    """transformers' own, with the patience that is asked for now where a run continues with what it has counted.

    Checkpoints keep that under the name of the class.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take the patience of the arguments."""
        self.early_stopping_patience = args.early_stopping_patience
        super().on_train_begin(args, state, control, **more)


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole when all of it is written, and removes the oldest ones after that, not before.

    Args:
        identity: What a run that continues from it must have in common with this one.
        limit: Checkpoints that stay, None for all.
    """

    def __init__(self, identity: Mapping[str, Any], limit: int | None) -> None:
        self._identity, self._limit = identity, limit

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the best checkpoint so far in the output folder, which may have been moved since.

        Raises:
            ArgumentError: it is needed and not there.
        """
        if state.best_global_step is None or not args.load_best_model_at_end:
            return
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        if not is_whole(folder):
            raise ArgumentError(
                f"{folder}, the best checkpoint so far, is not there any more: put it back, or continue with "
                "--load-best-model-at-end false"
            )
        state.best_model_checkpoint = str(folder)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint of this step."""
        if args.world_size > 1:
            torch.distributed.barrier()
        if args.should_save:
            output = Path(str(args.output_dir))
            mark_whole(output / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", self._identity)
            remove_oldest(output, self._limit, state.best_model_checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the best checkpoint alone where one may stay."""
        if args.should_save and self._limit == 1 and state.best_model_checkpoint is not None:
            keep_best_alone(Path(str(args.output_dir)), state.best_model_checkpoint)


class StepTrainer(Trainer):
    """Trains a network whose batches are steps, and whose loss is that of the global batch.

    Attributes:
        steps: The data.
        diagnosis: Watches the run.
        identity: What a run that continues must have in common with this one.
        files: The network on the disk.
    """

    control: Any

    def __init__(
        self,
        network: nn.Module,
        args: Any,
        steps: StepBatches[Any],
        gradient: Gradient,
        *,
        files: ModelFiles,
        measure: Callable[[], Mapping[str, float]] | None,
        diagnosis: Findings,
        identity: Mapping[str, Any],
        callbacks: Sequence[Any] = (),
    ) -> None:
        """Nothing is trained yet.

        Args:
            network: What is trained.
            args: `TrainerArguments`.
            steps: The data. A batch has `tokens`, and `to` that moves it to a device.
            gradient: Goes through the network and back, for one batch.
            files: Saves the network and reads its weights back.
            measure: Scores of the network as it is; called on the first process alone. None to measure nothing.
            diagnosis: Watches the run.
            identity: What a run that continues must have in common with the one that wrote a checkpoint.
            callbacks: Callbacks of Trainer.
        """
        self.steps, self.files, self.diagnosis, self.identity = steps, files, diagnosis, identity
        self._gradient, self._measure = gradient, measure
        self._metrics: dict[str, list[Tensor]] = defaultdict(list)
        self._memory = Trimmer()
        own = [WholeCheckpoints(identity, args.save_total_limit), *([MeasuredAtTheEnd()] if measure else [])]
        super().__init__(
            model=network, args=args, train_dataset=steps, data_collator=_only_item,
            # Trainer wants to see something to evaluate on; `evaluate` knows what.
            eval_dataset=[] if measure is not None else None, callbacks=[*own, *callbacks],
        )  # fmt: skip
        # Trainer's own print dictionaries.
        for shown in (ProgressCallback, PrinterCallback):
            self.remove_callback(shown)
        self.add_callback(ReadableLog())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; but Trainer itself removes no checkpoint, which it would before the new one is whole."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super().train(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimiser of `--optim`; a package that it lacks is named in one line."""
        try:
            return super().create_optimizer(model)
        except ImportError as error:
            raise MissingExtraError(f"--optim {self.args.optim.value}: {' '.join(str(error).split())}") from error

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's part of each step, in order."""
        workers = self.args.dataloader_num_workers
        return StepLoader(
            self.steps,
            batch_sampler=StepSampler(self.steps),
            collate_fn=_only_item,
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
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """The batches of one step of the optimiser."""
        return list(islice(epoch_iterator, num_batches)), None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
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

        value = self._gradient(encode, batch, backward, functools.partial(self.accelerator.no_sync, model))
        for name, metric in value.metrics.items():
            if name != "loss":
                self._metrics[name].append(metric)
        self._metrics["tokens"].append(torch.tensor(float(batch.tokens)))
        self._memory.trim()
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return value.loss / steps

    def floating_point_ops(self, inputs: Any) -> int:
        """Operations of one forward and backward pass, counted as 6 per token and parameter."""
        return 6 * inputs.tokens * sum(parameter.numel() for parameter in self.model.parameters())

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
        found = by_first(self._measure) if self._measure is not None else {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        wanted = self.args.metric_for_best_model
        if self._measure is not None and wanted is not None and {wanted, f"eval_{wanted}"}.isdisjoint(metrics):
            raise ArgumentError(f"--metric-for-best-model {wanted} is not measured; there are {', '.join(metrics)}")
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self._measure is not None and wanted is not None:
            self._note_best(metrics[f"eval_{wanted.removeprefix('eval_')}"])
        return metrics

    def _note_best(self, score: float) -> None:
        """See to it that the best network is saved where it is wanted in the end, whatever `--save-steps` says.

        Trainer compares with the best so far as well, after this, but for what was measured before the first step.
        """
        args, state = self.args, self.state
        worst = float("-inf") if args.greater_is_better else float("inf")
        best = worst if state.best_metric is None else state.best_metric
        if not (score > best if args.greater_is_better else score < best):
            return
        if state.global_step == 0:
            state.best_metric = score
            state.best_global_step = 0
        if not args.load_best_model_at_end:
            return
        state.best_global_step = state.global_step
        state.best_model_checkpoint = str(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        self.control.should_save = True
        if state.global_step == 0:
            # The first step would begin with nothing to be saved.
            self._save_checkpoint(self.model_wrapped, None)
            self.control = self.callback_handler.on_save(args, state, self.control)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the network; no process continues before it is there, since all put files of theirs beside it."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            if _internal_call and folder.exists():
                # A checkpoint that a run which was killed has left here.
                shutil.rmtree(folder)
            self.files.write(folder)
            arguments = json.dumps(self.args.to_dict(), indent=1, default=str) + "\n"
            (folder / "training_args.json").write_text(arguments, encoding="utf-8")
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.files.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        logger.debug("going back to %s, the best by %s", best, self.args.metric_for_best_model)
        self.files.load(Path(best))
