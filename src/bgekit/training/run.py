"""What embedders and rerankers have in common when they are trained: data, steps, the loop, the results."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from transformers import EarlyStoppingCallback, set_seed

from ..encoding.memory import keep_few_kernels
from ..models.packing import PACKED_ATTENTION
from .arguments import DataArguments, ModelArguments, TrainerArguments
from .batches import PlanOptions
from .collate import Collator, StepDataset
from .curves import save_curves
from .data import TrainingData, load_data
from .distributed import by_first
from .dry_run import Footprint, dry_run
from .examples import Sampling
from .output import check_output, save_final, scratch
from .trainer import ContrastiveTrainer, check_optimizer, check_same_run

if TYPE_CHECKING:
    from ..evaluation.task import Task

logger = logging.getLogger(__name__)


def begin(args: TrainerArguments) -> Path | None:
    """Check what can be checked before anything is loaded; returns the checkpoint to go on from."""
    resume = None
    if not args.dry_run:
        # Two that look at once could see what the other has just made.
        resume = by_first(
            lambda: check_output(str(args.output_dir), args.resume_from_checkpoint, args.overwrite_output_dir)
        )
    if resume is not None:
        # What was measured at the start was measured then; what early stopping has counted goes on.
        args.eval_on_start = False
        args.restore_callback_states_from_checkpoint = True
    set_seed(args.seed)
    keep_few_kernels()
    return resume


def read_data(args: TrainerArguments, data: DataArguments, *, in_batch: bool) -> TrainingData:
    """All rows, checked. The first process reads and the others find its cache."""
    with args.main_process_first(desc="checking the training data"):
        return load_data(
            data.train_data,
            weights=data.dataset_weights,
            cache=data.cache_path,
            teacher=data.knowledge_distillation,
            max_rows=data.max_example_num_per_dataset,
            seed=args.seed,
            same_dataset=data.same_dataset_within_batch,
            small_threshold=data.small_threshold,
            drop_threshold=data.drop_threshold,
            drop_duplicates=data.drop_duplicates,
            in_batch_negatives=in_batch,
            encoding=args.encoding,
            quoting=args.quoting,
        )


def make_steps(args: TrainerArguments, data: DataArguments, rows: TrainingData, collator: Collator) -> StepDataset:
    """The steps of this process."""
    options = PlanOptions(
        batch_size=args.per_device_train_batch_size * args.world_size,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        drop_last=args.dataloader_drop_last,
        same_dataset=data.same_dataset_within_batch,
        temperature=data.sampling_temperature,
        devices=args.world_size,
        group_by_length=data.group_by_length,
    )
    sampling = Sampling(
        data.train_group_size, shuffle_ratio=data.shuffle_ratio, teacher=data.knowledge_distillation, seed=options.seed
    )
    return StepDataset(rows, options, sampling, collator, rank=args.process_index, world=args.world_size)


def eval_tasks(args: TrainerArguments) -> list[Task]:
    """What is measured while training; read before it starts, so that a mistake in it costs no time."""
    if not args.eval_data:
        return []
    from ..evaluation.reading import read_tasks

    return [
        task
        for path in args.eval_data
        for task in read_tasks(path, split=args.eval_split, encoding=args.encoding, quoting=args.quoting)
    ]


def scores_of(results: Sequence[Any]) -> dict[str, float]:
    """Metrics of an evaluation by the names that a log has: `score` is the mean of the main scores."""
    found = {f"{result.task}_{result.main_metric}": result.main_score for result in results}
    return {"score": sum(found.values()) / len(found), **found}


def run(
    trainer: ContrastiveTrainer,
    write: Callable[[Path], None],
    *,
    resume: Path | None,
    rows: TrainingData,
    facts: Mapping[str, Any],
) -> Path:
    """Train, save the model into the output folder itself, draw the curves.

    Args:
        trainer: Ready to train.
        write: Saves the network as it is into a folder.
        resume: A checkpoint to go on from.
        rows: The data.
        facts: What else the result should say of how it came about.

    Returns:
        The output folder.
    """
    args, start = trainer.args, time.perf_counter()
    if resume is not None:
        check_same_run(resume, trainer.identity)
        check_optimizer(resume, deepspeed=trainer.is_deepspeed_enabled)
    if args.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
    result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    output = Path(str(args.output_dir))
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        _compare_with_start(trainer)
        provenance = {
            **facts,
            "findings": trainer.diagnosis.findings,
            "data": {
                "fingerprint": trainer.identity["data"],
                "datasets": [{"files": list(each.spec.files), "rows": len(each)} for each in rows.datasets],
            },
            "steps": result.global_step,
            "loss": result.training_loss,
            "seconds": time.perf_counter() - start,
            "best_checkpoint": trainer.state.best_model_checkpoint if args.load_best_model_at_end else None,
            "arguments": args.to_dict(),
            "command": sys.argv[:],
            "versions": _versions(),
            "threads": torch.get_num_threads(),
            "history": history,
        }
        save_final(output, write, provenance)
        save_curves(history, output)
    if args.world_size > 1:
        torch.distributed.barrier()
    return output


def _compare_with_start(trainer: ContrastiveTrainer) -> None:
    """Say so where no evaluation was better than the one before the first step."""
    args = trainer.args
    name = str(args.metric_for_best_model)
    name = name if name.startswith("eval_") else f"eval_{name}"
    scores = [(row["step"], row[name]) for row in trainer.state.log_history if name in row]
    at_start = next((score for step, score in scores if step == 0), None)
    later = [score for step, score in scores if step > 0]
    if at_start is None or not later:
        return
    best = max(later) if args.greater_is_better else min(later)
    if best > at_start if args.greater_is_better else best < at_start:
        return
    back = args.load_best_model_at_end and trainer.state.best_global_step == 0
    kept = "; the result has the weights that it began with" if back else ""
    logger.warning("training made it no better: %s was %.2f before it, %.2f at best%s", name, at_start, best, kept)


#: Arguments that a run which goes on may change: where things lie, how fast it is, what is shown, when it ends.
_FREE: Final = (
    "model_name_or_path", "cache_dir", "revision", "trust_remote_code", "allow_pickle", "train_data", "cache_path",
    "pad_to_multiple_of", "grad_cache_chunk", "first_stage", "rerank_top_k",
)  # fmt: skip
#: Arguments of Trainer that it may not change: they decide about batches, or the optimiser's state has them.
_BOUND: Final = (
    "seed", "dataloader_drop_last", "optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon",
)  # fmt: skip


def identity(args: TrainerArguments, rows: TrainingData, *more: Any) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that wrote a checkpoint.

    Args:
        args: Of the training.
        rows: The data.
        more: Instances of dataclasses whose values count, too, such as `ModelArguments`.
    """
    own = fields(args)[len(fields(TrainerArguments)) :]
    return {
        "data": rows.fingerprint,
        "global batch size": args.per_device_train_batch_size * args.world_size,
        "--gradient_accumulation_steps": args.gradient_accumulation_steps,
        "--data_seed": args.data_seed if args.data_seed is not None else args.seed,
        **{f"--{name}": getattr(args, name) for name in _BOUND},
        **{f"--{each.name}": getattr(args, each.name) for each in own if each.name not in _FREE},
        **{f"--{name}": value for part in more for name, value in asdict(part).items() if name not in _FREE},
    }


def judge_by(
    write: Callable[[Path], None], measure: Callable[[Path], Sequence[Any]], output: Path
) -> Callable[[], dict[str, float]]:
    """Measures a network by what it would be if it were saved now: exactly what users will get.

    Args:
        write: Saves the network into a folder.
        measure: Results of the model in a folder.
        output: Where there is room for it for a while.
    """

    def judge() -> dict[str, float]:
        with scratch(output) as folder:
            write(folder / "model")
            return scores_of(measure(folder / "model"))

    return judge


def facts_of(model: ModelArguments, data: DataArguments) -> dict[str, Any]:
    """What the result says of its beginnings."""
    return {
        "base_model": model.model_name_or_path,
        "model_arguments": asdict(model),
        "data_arguments": asdict(data),
    }


def show_dry_run(steps: StepDataset, network: nn.Module, config: Any, args: Any) -> None:
    """Print what training would do, with an estimate of the memory it would take.

    Args:
        steps: The steps of this process.
        network: What would be trained.
        config: The configuration of its transformer.
        args: `EmbedderArguments` or `RerankerArguments`.
    """
    footprint = Footprint.of(
        config,
        sum(each.numel() for each in network.parameters()),
        sum(each.numel() for each in network.parameters() if each.requires_grad),
        half=args.fp16 or args.bf16,
        checkpointing=args.gradient_checkpointing,
        chunk=args.grad_cache_chunk,
        world=args.world_size,
        lean=args.device.type == "cpu" and config._attn_implementation == PACKED_ATTENTION,
    )
    if args.process_index == 0:
        text = dry_run(
            steps, epochs=args.num_train_epochs, accumulation=args.gradient_accumulation_steps,
            max_steps=args.max_steps, footprint=footprint,
        )  # fmt: skip
        print(text)  # noqa: T201


def _versions() -> dict[str, str]:
    import importlib.metadata

    names = ("bgekit", "torch", "transformers", "accelerate", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
