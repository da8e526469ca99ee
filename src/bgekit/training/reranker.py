"""Training of a reranker: `bge finetune-reranker`, and `python -m bgekit.training.reranker` for launchers."""

from __future__ import annotations

import functools
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, DataError
from ..evaluation.evaluator import FirstStage
from ..evaluation.tasks.base import Task, check_rerankable
from ..inference.tokenization import load_tokenizer
from ..models.card import Prompt, RerankerCard
from ..models.card_reading import is_classifier, read_reranker_card
from ..models.checkpoint_files import position_limit, read_config
from ..models.hub import resolve
from ..networks.cross_encoder import CrossEncoder, load_trainable
from ..networks.saving import write_reranker
from .batches.collator import Batch, PairCollator, StepDataset
from .batches.datasets import TrainingData
from .loop.arguments import RerankerArguments
from .loop.checkpoints import FIRST_STAGE, ModelFiles, origin
from .loop.diagnosis import Diagnosis, scores_of_groups
from .loop.gradient_cache import PackedGradient
from .loop.options import FINETUNE_RERANKER, DataArguments, ModelArguments, RerankerDataArguments
from .loop.training_run import (
    evaluation_tasks,
    launched,
    make_steps,
    prepare_run,
    read_data,
    scores_by_name,
    show_dry_run,
    train_as_given,
    train_on_rows,
)
from .losses.distributed import LossValue
from .losses.listwise import GroupLoss

logger = logging.getLogger(__name__)


def finetune_reranker(model: ModelArguments, data: DataArguments, args: RerankerArguments) -> Path | None:
    """Train a reranker.

    Returns:
        The folder of the trained model; None after a dry run, whose findings are printed.

    Raises:
        DataError: the data cannot be used; nothing was trained then.
        ArgumentError: arguments are impossible or contradict each other.
        OutputError: the output folder holds something already, or cannot be written.

    Example:
        >>> from bgekit.training import RerankerArguments, finetune_reranker
        >>> from bgekit.training import ModelArguments, RerankerDataArguments
        >>> args = RerankerArguments("reranker", max_steps=1, per_device_train_batch_size=2, report_to="none")
        >>> data = RerankerDataArguments(train_data=["train.jsonl"], train_group_size=2, cache_path="cache")
        >>> finetune_reranker(ModelArguments("BAAI/bge-reranker-base"), data, args).name
        'reranker'
    """
    if model.use_lora:
        raise ArgumentError("--use-lora is for embedders; a reranker is trained as a whole")
    resume = prepare_run(args)
    tasks = evaluation_tasks(args)
    check_rerankable(tasks)
    rows = read_data(args, data, in_batch=False)
    _check_rows(rows, data)
    source = resolve(
        model.model_name_or_path, revision=model.revision, cache_dir=model.cache_dir, allow_pickle=model.allow_pickle,
        trust_remote_code=model.trust_remote_code,
    )  # fmt: skip
    network = load_trainable(source, trust_remote_code=model.trust_remote_code, allow_pickle=model.allow_pickle)
    limit = position_limit(read_config(source))
    if limit is not None and args.max_len > limit:
        raise ArgumentError(f"--max-length {args.max_len} is more than the model can take: {limit} tokens")
    card = _card(source, network, model, data, args.max_len)
    collator = PairCollator(
        load_tokenizer(source, trust_remote_code=model.trust_remote_code), card.query, card.document,
        data.query_instruction_format, max_len=args.max_len, most=limit, token_types=network.token_types,
    )  # fmt: skip
    steps = make_steps(args, data, rows, collator)
    idle = _idle(steps)
    if args.dry_run:
        show_dry_run(steps, network, network.config, args)
        return None
    trained_on = origin(model.model_name_or_path, sum(map(len, rows.datasets)))

    def write(folder: Path, title: str | None) -> None:
        write_reranker(
            folder, card=card, source=source, network=network, origin=trained_on, overwrite=True, title=title,
            allow_pickle=model.allow_pickle, remote_code=model.trust_remote_code,
        )  # fmt: skip

    diagnosis = Diagnosis(1.0, normalized=False)
    if args.process_index == 0:
        diagnosis.before(data.train_group_size, {}, None, None, idle)
    loss = GroupLoss(distillation=1.0 if data.knowledge_distillation else 0.0)

    def loss_of(scores: Tensor, batch: Batch) -> LossValue:
        value = loss(scores, batch)
        candidates = torch.tensor(float(max(batch.groups, default=1)))
        return LossValue(value.loss, {**value.metrics, "candidates": candidates})

    def table(batch: Batch) -> Tensor:
        return scores_of_groups(network(batch.passages), batch)

    with tempfile.TemporaryDirectory(prefix="bgekit-") as kept:
        return train_on_rows(
            network, args, steps, PackedGradient(lambda batch: (batch.passages,), loss_of, args.grad_cache_chunk),
            files=ModelFiles(network, write, {"": "model."}), diagnosis=diagnosis, table=table, tasks=tasks,
            measure=_measure(args, tasks, kept), resume=resume, parts=(model, data), more={"kind": "reranker"},
            following=functools.partial(_following, args),
        )  # fmt: skip


main = functools.partial(
    train_as_given, finetune_reranker, (ModelArguments, RerankerDataArguments, RerankerArguments), FINETUNE_RERANKER,
    prog="python -m bgekit.training.reranker",
)  # fmt: skip


def _card(folder: Path, network: CrossEncoder, model: ModelArguments, data: DataArguments, length: int) -> RerankerCard:
    """The card of the result."""
    if is_classifier(read_config(folder)):
        card = read_reranker_card(folder, model.model_name_or_path)
    else:  # A bare encoder: only what its config says is known.
        card = RerankerCard(
            model.model_name_or_path, 1, length, architecture=network.config.model_type,
            position_limit=position_limit(read_config(folder)),
        )  # fmt: skip
    changes: dict[str, Any] = {"dtype": "float32", "max_length": max(length, card.max_length)}
    if data.query_instruction_for_retrieval is not None:
        instruction = data.query_instruction_for_retrieval
        changes["query"] = Prompt.from_format(instruction, data.query_instruction_format)
    if data.passage_instruction_for_retrieval is not None:
        instruction = data.passage_instruction_for_retrieval
        changes["document"] = Prompt.from_format(instruction, data.passage_instruction_format)
    return replace(card, **changes)


def _check_rows(rows: TrainingData, data: DataArguments) -> None:
    """Check that a reranker can learn from the rows: it compares passages of a row, so there must be two."""
    if data.train_group_size < 2:
        raise ArgumentError("--train-group-size must be at least 2: a reranker compares a positive with negatives")
    if scored := [dataset.spec.name for dataset in rows.datasets if dataset.scored]:
        raise DataError(f"{', '.join(scored)} has scored pairs, from which embedders learn; a reranker needs neg")


def _idle(steps: StepDataset) -> dict[str, int]:
    """Number of rows without any negative, by dataset.

    Raises:
        DataError: no row has one.
    """
    counts = steps.without_negatives()
    if sum(counts) == sum(map(len, steps.data.datasets)):
        copies = any(each.alone for each in steps.copies)
        some = "negatives that are none of its positives" if copies else "negatives"
        raise DataError(f"no row has {some}, so a reranker learns nothing: mine some (bge mine)")
    return {data.spec.name: count for data, count in zip(steps.data.datasets, counts, strict=True)}


def _measure(args: RerankerArguments, tasks: Sequence[Task], kept: str) -> Callable[[Path], dict[str, float]]:
    """Scores of the first stage's best passages in the reranker's order, beside those of the first stage alone."""
    # On the device of this process alone: the others' memory is taken.
    first_stage = FirstStage(
        str(args.first_stage), tasks, Path(kept), devices=str(args.device), pooling=args.pooling,
        progress=not args.disable_tqdm,
    )  # fmt: skip

    def measure(folder: Path) -> dict[str, float]:
        alone = {f"{FIRST_STAGE}_{name}": score for name, score in scores_by_name(first_stage.alone.results).items()}
        report = first_stage.reranked_by(folder, args.rerank_top_k, name=str(args.output_dir))
        return scores_by_name(report.results) | alone

    return measure


def _following(args: RerankerArguments, output: Path) -> str:
    """A command that uses the trained reranker."""
    folder = shlex.quote(str(output))
    if args.eval_data:
        stage = shlex.quote(str(args.first_stage))
        return f"bge eval --data {shlex.join(args.eval_data)} --model {stage} --reranker {folder}"
    return f"bge rerank CANDIDATES.jsonl --model {folder}"


if __name__ == "__main__":
    sys.exit(launched(main))
