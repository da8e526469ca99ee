"""Training of a reranker: `bge finetune-reranker`, and `python -m bgekit.training.reranker` for launchers."""

from __future__ import annotations

import itertools
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import ArgumentError, DataError
from ..evaluation.tasks.base import check_rerankable
from ..models.config import position_limit, read_config
from ..models.hub import resolve
from ..models.prompts import Prompt
from ..models.reranker_card import RerankerCard, is_classifier, read_reranker_card
from ..models.weights import read_tensors, weight_files
from ..networks.cross_encoder import CrossEncoder, load_trainable
from ..networks.saving import write_reranker
from .batches.collator import Batch, PairCollator, StepDataset
from .batches.datasets import TrainingData
from .insight.diagnosis import CollapseWatch, Diagnosis, scores_of_groups
from .loop.arguments import DataArguments, ModelArguments, RerankerArguments, RerankerDataArguments, parse
from .loop.checkpoints import FIRST_STAGE, origin
from .loop.trainer import ContrastiveTrainer
from .loop.training_run import (
    begin,
    eval_tasks,
    identity,
    judge_by,
    make_steps,
    read_data,
    run,
    scores_of,
    show_dry_run,
)
from .losses.distributed import LossValue
from .losses.listwise import GroupLoss

logger = logging.getLogger(__name__)

_DESCRIPTION: Final = """\
Train a cross-encoder on jsonl of {"query", "pos", "neg"}: from a reranker, or from a bare encoder, which gets a new
head. Arguments are those of transformers' Trainer, those of FlagEmbedding by their names, and the ones below."""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m bgekit.training.reranker") -> int:
    """Parse arguments and train."""
    given = sys.argv[1:] if arguments is None else arguments
    model, data, args = parse(
        (ModelArguments, RerankerDataArguments, RerankerArguments), given, prog=prog, description=_DESCRIPTION
    )
    finetune_reranker(model, data, args)
    return 0


def finetune_reranker(model: ModelArguments, data: DataArguments, args: RerankerArguments) -> Path | None:
    """Train a reranker.

    Returns:
        The folder of the trained model; None after a dry run, whose findings are printed.

    Raises:
        DataError: the data cannot be used; nothing was trained then.
        ArgumentError: arguments are impossible or contradict each other.
        OutputError: the output folder holds something already, or cannot be written.
    """
    if model.use_lora:
        raise ArgumentError("--use_lora is for embedders; a reranker is trained as a whole")
    resume = begin(args)
    tasks = eval_tasks(args)
    check_rerankable(tasks)
    rows = read_data(args, data, in_batch=False)
    _check_rows(rows, data)
    folder = resolve(
        model.model_name_or_path, revision=model.revision, cache_dir=model.cache_dir, allow_pickle=model.allow_pickle,
        trust_remote_code=model.trust_remote_code,
    )  # fmt: skip
    network = load_trainable(folder, trust_remote_code=model.trust_remote_code, allow_pickle=model.allow_pickle)
    length = _length(folder, args)
    card = _card(folder, network, model, data, length)
    steps = make_steps(args, data, rows, _collator(folder, card, network, model, data, length))
    idle = _idle(steps)
    if args.dry_run:
        show_dry_run(steps, network, network.config, args)
        return None
    trained_on = origin(model.model_name_or_path, sum(map(len, rows.datasets)))
    output = _Output(folder, card, network, model, trained_on)
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
        trainer = ContrastiveTrainer(
            network, args, steps, lambda batch: (batch.passages,), loss_of, write=output.write, read=output.read,
            identity=identity(args, rows, model, data, measured=[task.fingerprint for task in tasks] or None),
            judge=judge_by(output.write, _measure(args, tasks, kept), Path(str(args.output_dir))) if tasks else None,
            diagnosis=diagnosis, callbacks=[CollapseWatch(diagnosis, network, steps, table)],
        )  # fmt: skip
        return run(
            trainer, output.write, resume=resume, rows=rows, parts=(model, data), facts={"kind": "reranker"}
        )  # fmt: skip


def _card(folder: Path, network: CrossEncoder, model: ModelArguments, data: DataArguments, length: int) -> RerankerCard:
    """What the result will say of itself."""
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


def _length(folder: Path, args: RerankerArguments) -> int:
    """Tokens of a pair."""
    limit = position_limit(read_config(folder))
    if limit is not None and args.max_len > limit:
        raise ArgumentError(f"--max_len {args.max_len} is more than the model can take: {limit} tokens")
    return args.max_len


def _check_rows(rows: TrainingData, data: DataArguments) -> None:
    """Rows from which a reranker can learn: it compares passages of a row, so there must be two."""
    if data.train_group_size < 2:
        raise ArgumentError("--train_group_size must be at least 2: a reranker compares a positive with negatives")
    if scored := [dataset.spec.name for dataset in rows.datasets if dataset.scored]:
        raise DataError(f"{', '.join(scored)} has scored pairs, from which embedders learn; a reranker needs neg")


def _idle(steps: StepDataset) -> dict[str, int]:
    """Rows without any negative, by dataset.

    Raises:
        DataError: no row has one.
    """
    counts = steps.without_negatives()
    if sum(counts) == sum(map(len, steps.data.datasets)):
        copies = any(each.alone for each in steps.copies)
        some = "negatives that are none of its positives" if copies else "negatives"
        raise DataError(f"no row has {some}, so a reranker learns nothing: mine some (bge mine)")
    return {data.spec.name: count for data, count in zip(steps.data.datasets, counts, strict=True)}


def _collator(
    folder: Path, card: RerankerCard, network: CrossEncoder, model: ModelArguments, data: DataArguments, length: int
) -> PairCollator:
    from ..inference.tokenization import load_tokenizer

    return PairCollator(
        load_tokenizer(folder, trust_remote_code=model.trust_remote_code), card.query, card.document,
        data.query_instruction_format, max_len=length, most=position_limit(read_config(folder)),
        token_types=network.token_types,
    )  # fmt: skip


def _measure(args: RerankerArguments, tasks: Sequence[Any], kept: str) -> Callable[[Path], dict[str, float]]:
    """Scores of the first stage's best passages in the reranker's order, beside those of the first stage alone."""
    numbers = itertools.count()
    first_stage: dict[str, float] = {}

    def scores(setting: Any) -> dict[str, float]:
        from ..evaluation import Candidate, evaluate

        options = {"devices": str(args.device)} | ({} if args.pooling is None else {"pooling_method": args.pooling})
        candidate = Candidate(str(args.first_stage), options=options, settings=[setting])
        report = evaluate(candidate, tasks, output=kept, keep_vectors=True, compare=False, progress=False)
        return scores_of(report.results)

    def measure(folder: Path) -> dict[str, float]:
        from ..evaluation import Setting
        from ..inference.reranker import FlagReranker

        if not first_stage:
            first_stage.update({f"{FIRST_STAGE}_{name}": score for name, score in scores(Setting()).items()})
        name = f"reranker {next(numbers)}"
        # On the device of this process alone: the others' memory is taken.
        with FlagReranker(folder, use_fp16=True, devices=str(args.device)) as reranker:
            reranked = scores(Setting(reranker=reranker, reranker_name=name, rerank_top_k=args.rerank_top_k))
        return reranked | first_stage

    return measure


class _Output:
    """Writes the network as a checkpoint, and reads its weights back."""

    def __init__(
        self, source: Path, card: RerankerCard, network: CrossEncoder, model: ModelArguments, origin: str
    ) -> None:
        self._source, self._card, self._network, self._model, self._origin = source, card, network, model, origin

    def write(self, folder: Path) -> None:
        """The network as it is, as a folder that transformers and bgekit load."""
        write_reranker(
            folder, card=self._card, source=self._source, network=self._network, origin=self._origin,
            overwrite=True, allow_pickle=self._model.allow_pickle, remote_code=self._model.trust_remote_code,
        )  # fmt: skip

    def read(self, folder: Path) -> Mapping[str, Tensor]:
        """Weights by the network's own names."""
        return {f"model.{name}": value for file in weight_files(folder) for name, value in read_tensors(file)}


if __name__ == "__main__":
    from .loop.training_run import launched

    sys.exit(launched(main))
