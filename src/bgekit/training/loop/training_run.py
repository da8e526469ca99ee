"""A training run: data, steps, the loop, the result. Embedders, rerankers and pre-training have it in common."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from ..._version import package_versions
from ...display.option_names import option_of, spoken
from ...display.terminal import shown_command, write_line
from ...errors import BgekitError
from ...evaluation.evaluator import tasks_of
from ...models.sentence_transformers_files import short_names
from ...networks.cpu_training import keep_few_kernels
from ...networks.packing import PACKED_ATTENTION
from ..batches.collator import Batch, Collator, StepDataset
from ..batches.datasets import TrainingData, load_data
from ..batches.sampler import PlanOptions, Sampling
from ..losses.distributed import by_first
from .arguments import RerankerArguments, TrainerArguments
from .checkpoints import (
    FIRST_STAGE,
    JUDGING,
    ModelFiles,
    add_training,
    as_written,
    check_optimizer,
    check_same_run,
    prepare_output,
    save_final,
)
from .command_line import Command, parse
from .diagnosis import CollapseWatch, Diagnosis
from .dry_run import Footprint, dry_run
from .options import WITHOUT_EFFECT, DataArguments, default_of
from .trainer import EarlyStoppingCallback, Gradient, StepTrainer
from .training_log import outcome, shown_score
from .training_page import save_page

if TYPE_CHECKING:
    from ...evaluation.results import Result
    from ...evaluation.tasks.base import Task

logger = logging.getLogger(__name__)


def train_as_given(
    train: Callable[..., Any],
    kinds: Sequence[type[Any]],
    command: Command,
    arguments: Sequence[str] | None = None,
    *,
    prog: str,
) -> int:
    """The work of a command that trains: parse its arguments, and train.

    Args:
        train: Takes an instance of each kind of arguments.
        kinds: Dataclasses of arguments.
        command: The same on the command line.
        arguments: Those of the command line; by default those of this process.
        prog: The command, for `--help`.

    Returns:
        The exit code.

    Raises:
        BgekitError: what `train` raises, or an argument cannot be parsed.
    """
    train(*parse(command, sys.argv[1:] if arguments is None else arguments, prog=prog, kinds=kinds))
    return 0


def prepare_run(args: TrainerArguments) -> Path | None:
    """Check what can be checked before anything is loaded, prepare the output folder, and seed the generators.

    Returns:
        The checkpoint to continue from, None to start from the beginning.

    Raises:
        ArgumentError: the output folder holds something, and nothing says what to do with it.
        OutputError: it cannot be made or written.
    """
    resume = None
    if not args.dry_run:
        # Two that look at once could see what the other has just made.
        resume = by_first(
            lambda: prepare_output(str(args.output_dir), args.resume_from_checkpoint, args.overwrite_output_dir)
        )
    if resume is not None:
        # What was measured at the start was measured then; what early stopping has counted continues.
        args.eval_on_start = False
        args.restore_callback_states_from_checkpoint = True
    set_seed(args.seed)
    keep_few_kernels()
    return resume


def read_data(args: TrainerArguments, data: DataArguments, *, in_batch: bool) -> TrainingData:
    """All training rows, checked. The first process reads and the others find its cache."""
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
    """The batches of this process by step."""
    options = PlanOptions(
        batch_size=args.global_batch_size,
        seed=args.order_seed,
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


def evaluation_tasks(args: TrainerArguments) -> list[Task]:
    """Tasks of `--eval-data`; read before training starts, so that a mistake in them costs no time."""
    if not args.eval_data:
        return []
    return tasks_of(args.eval_data, split=args.eval_split, encoding=args.encoding, quoting=args.quoting)


def scores_by_name(results: Sequence[Result]) -> dict[str, float]:
    """Metrics of an evaluation by the names that a log has: `score` is the mean of the main scores."""
    found = {f"{result.task}_{result.main_metric}": result.main_score for result in results}
    return {"score": sum(found.values()) / len(found), **found}


def train_and_save(
    trainer: StepTrainer,
    *,
    resume: Path | None,
    data: Sequence[tuple[Sequence[str], int]],
    parts: Sequence[Any],
    following: Callable[[Path], str],
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Train, save the model into the output folder itself, draw the curves, and say what it brought.

    Args:
        trainer: Ready to train.
        resume: A checkpoint to continue from.
        data: Files and rows of each dataset.
        parts: The arguments of the model and of the data.
        following: A command that uses the model in a folder.
        more: Further content of training.json.

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
        history, findings = trainer.state.log_history, trainer.diagnosis.findings
        _compare_with_start(trainer)
        _compare_with_first_stage(trainer)
        provenance = {
            "base_model": parts[0].model_name_or_path or None,
            "model_arguments": asdict(parts[0]),
            "data_arguments": asdict(parts[1]),
            **(more or {}),
            "findings": findings,
            "data": {
                "fingerprint": trainer.identity["data"],
                "datasets": [{"files": list(files), "rows": rows} for files, rows in data],
            },
            "steps": result.global_step,
            "loss": result.training_loss,
            "seconds": time.perf_counter() - start,
            "best_checkpoint": trainer.state.best_model_checkpoint if args.load_best_model_at_end else None,
            "arguments": args.to_dict(),
            "command": sys.argv[:],
            "versions": package_versions("torch", "transformers", "accelerate", "numpy"),
            "threads": torch.get_num_threads(),
            "history": history,
        }
        arguments = _decisive_arguments(args, parts)
        best = trainer.state.best_global_step if provenance["best_checkpoint"] else None

        def write(folder: Path) -> None:
            name = output.resolve().name
            trainer.files.write(folder, name)
            drawn = save_page(
                folder, name=name, base=parts[0].model_name_or_path, datasets=data, facts=_page_facts(provenance),
                arguments={each: as_written(value) for each, value in arguments.items()}, history=history, kept=best,
                first_stage=FIRST_STAGE, findings=findings, pairs=isinstance(args, RerankerArguments),
            )  # fmt: skip
            add_training(
                folder / "README.md", datasets=data, arguments=arguments, history=history, kept=best,
                findings=findings, drawn=drawn,
            )  # fmt: skip

        save_final(output, write, provenance)
        sentence = outcome(
            history, output, steps=result.global_step, measure=_best_metric(args), kept=best,
            higher=args.greater_is_better is not False, drawn=(output / "training.html").exists(),
            following=following(output),
        )  # fmt: skip
        write_line(sentence)
    if args.world_size > 1:
        torch.distributed.barrier()
    return output


def train_on_rows(
    network: nn.Module,
    args: TrainerArguments,
    steps: StepDataset,
    gradient: Gradient,
    *,
    files: ModelFiles,
    diagnosis: Diagnosis,
    table: Callable[[Batch], Tensor],
    tasks: Sequence[Task],
    measure: Callable[[Path], Mapping[str, float]],
    resume: Path | None,
    parts: Sequence[Any],
    following: Callable[[Path], str],
    more: Mapping[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Train an embedder or a reranker, see `train_and_save`.

    Args:
        network: What is trained.
        args: How.
        steps: The rows by step.
        gradient: Gradient of a batch, see `StepTrainer`.
        files: Saves the network and reads its weights back.
        diagnosis: Watches the run.
        table: Scores by which a collapse is seen, see `CollapseWatch`.
        tasks: Measured while training.
        measure: Scores of a saved model on them.
        resume: A checkpoint to continue from.
        parts: The arguments of the model and of the data.
        following: A command that uses the model in a folder.
        more: Further content of training.json.
        callbacks: Callbacks of Trainer.

    Returns:
        The output folder.
    """
    rows = steps.data
    trainer = StepTrainer(
        network, args, steps, gradient, files=files, diagnosis=diagnosis,
        measure=files.measured(measure, Path(str(args.output_dir))) if tasks else None,
        identity=run_identity(args, rows.fingerprint, *parts, measured=[task.fingerprint for task in tasks] or None),
        callbacks=[*callbacks, CollapseWatch(diagnosis, network, steps, table)],
    )  # fmt: skip
    return train_and_save(
        trainer, resume=resume, data=[(each.spec.files, len(each)) for each in rows.datasets], parts=parts, more=more,
        following=following,
    )  # fmt: skip


def _best_metric(args: TrainerArguments) -> str:
    """The name in the log of the metric that says which model is the best."""
    return f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"


def _shown(name: str) -> str:
    return shown_score(name.removeprefix("eval_"))


def _compare_with_first_stage(trainer: StepTrainer) -> None:
    """Say so where the reranker makes the order of the first stage worse, however well it has been trained."""
    name = _best_metric(trainer.args)
    beside = name.replace("eval_", f"eval_{FIRST_STAGE}_", 1)
    scores = [(row["step"], row[name], row[beside]) for row in trainer.state.log_history if beside in row]
    if not scores:
        return
    step, best, alone = max(scores, key=lambda row: row[1])
    if best < alone:
        trainer.diagnosis.report({
            "first stage": f"the reranker makes the first stage's order worse: {_shown(name)} is {best:.2f} at best "
            f"(step {step}), and {alone:.2f} without a reranker. It is no use behind this first stage: train longer, "
            "on more rows or with negatives of this first stage (bge mine), or start from a model that is a reranker"
        })  # fmt: skip


def _compare_with_start(trainer: StepTrainer) -> None:
    """Say so where no evaluation was better than the one before the first step."""
    args, name = trainer.args, _best_metric(trainer.args)
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
    logger.warning(
        "training made it no better: %s was %.2f before it, %.2f at best%s", _shown(name), at_start, best, kept
    )


#: Arguments that a run which continues may change; all others, whoever's they are, have to be as they were.
_MAY_CHANGE: Final = frozenset({
    # Where things lie. Data count by their content, the weights are those of the checkpoint.
    "model_name_or_path", "cache_dir", "revision", "trust_remote_code", "allow_pickle", "train_data", "eval_data",
    "records", "include", "exclude", "delimiter",
    "cache_path", "output_dir", "logging_dir", "overwrite_output_dir", "resume_from_checkpoint", "first_stage",
    # When it ends.
    "num_train_epochs", "max_steps", "early_stopping_patience", "load_best_model_at_end",
    # What is logged, measured and saved, and when. The metric that says which is the best counts.
    "logging_strategy", "logging_first_step", "logging_steps", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "log_on_each_node", "disable_tqdm", "report_to", "run_name", "project",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_tokens_per_second",
    "save_strategy", "save_steps", "save_total_limit", "save_on_each_node", "save_only_model", "save_safetensors",
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_eval", "do_train", "do_predict", "dry_run",
    "restore_callback_states_from_checkpoint", "skip_memory_metrics", "debug",
    # How fast it is, and on what; the batch of all processes together is compared.
    "per_device_train_batch_size", "grad_cache_chunk", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "activation_checkpointing", "activation_checkpointing_kwargs", "torch_empty_cache_steps", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "full_determinism", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_persistent_workers",
    "dataloader_multiprocessing_context", "use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph", "accelerator_config",
    # Follow from another one, or have no effect.
    "data_seed", "warmup_ratio", "pad_to_multiple_of", "remove_unused_columns", "ignore_data_skip",
})  # fmt: skip


def run_identity(
    args: TrainerArguments, data: str, *more: Any, measured: Sequence[str] | None = None
) -> dict[str, Any]:
    """Values that a run that continues must have in common with the one that wrote a checkpoint.

    Args:
        args: Arguments of the training.
        data: Fingerprint of the training data.
        more: Instances of dataclasses whose values count, too, such as `ModelArguments`.
        measured: Fingerprints of the data that is measured while training, None without.
    """
    parts = (args, *more)
    values = {each.name: getattr(part, each.name) for part in parts for each in fields(part) if each.init}
    if isinstance(args.deepspeed, str):  # Its content counts, wherever the file is.
        values["deepspeed"] = json.loads(Path(args.deepspeed).read_text(encoding="utf-8"))
    if not args.judged:
        values |= dict.fromkeys(JUDGING & values.keys())
    return {
        "data": data,
        "global batch size": args.global_batch_size,
        "--data_seed": args.order_seed,
        "evaluation data": measured,
        **{f"--{name}": value for name, value in values.items() if name not in _MAY_CHANGE | WITHOUT_EFFECT.keys()},
    }


def _decisive_arguments(args: TrainerArguments, parts: Sequence[Any]) -> dict[str, Any]:
    """Arguments that made a model what it is: those that count for `run_identity` and are not as by default."""
    found: dict[str, Any] = {
        "--learning-rate": args.learning_rate,
        "batch size of all processes": args.global_batch_size,
        **({"--max-steps": args.max_steps} if args.max_steps > 0 else {"--num-train-epochs": args.num_train_epochs}),
    }
    for part in (*parts, args):
        for each in fields(part):
            value = getattr(part, each.name)
            counts = each.init and each.name not in _MAY_CHANGE | WITHOUT_EFFECT.keys() | JUDGING
            if counts and value != default_of(each):
                found.setdefault(option_of(each.name), value)
    return found


def _page_facts(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What a run's page says beside model, data and arguments."""
    seconds, arguments = provenance["seconds"], provenance["arguments"]
    time_taken = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    threads = "1 thread" if provenance["threads"] == 1 else f"{provenance['threads']} threads"
    return {
        "evaluation data": ", ".join(short_names(arguments.get("eval_data") or [])),
        "steps": f"{provenance['steps']:,}",
        "time": f"{time_taken}, evaluations included; {threads}",
        "command": shown_command(provenance["command"]),
        "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
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


def launched(main: Callable[[], int]) -> int:
    """Run a command with log lines on stderr; an error that its message explains is one line there."""
    # One process of several is enough to say a thing.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("bgekit").setLevel(level)
    try:
        return main()
    except BgekitError as error:
        print(f"error: {spoken(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
