"""Fine-tuning of an embedder: `bge finetune`, and `python -m bgekit.training.embedder` for launchers."""

from __future__ import annotations

import functools
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import ArgumentError, DataError
from ..evaluation.evaluator import Candidate, evaluate
from ..inference.embedder import FlagModel
from ..models.card import UNSET, ModelCard, Unset
from ..models.card_reading import declared_query
from ..models.head_files import stored_heads
from ..models.sentence_transformers_files import dense_folder
from ..networks.encoder import TrainableEncoder, add_lora, load_trainable
from ..networks.saving import as_stored
from ..networks.unified import TokenOutputs, UnifiedEncoder
from .batches.collator import Batch, Collator, StepDataset
from .batches.datasets import check_cosines
from .loop.arguments import EmbedderArguments
from .loop.checkpoints import ModelFiles, origin, save_encoder
from .loop.command_line import first_name
from .loop.diagnosis import Diagnosis, scores_of_all, without_copies
from .loop.dry_run import Lengths
from .loop.gradient_cache import Encoded, PackedGradient
from .loop.options import FINETUNE, DataArguments, ModelArguments
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
from .losses.contrastive import Contrastive, FalseNegatives, own_scores
from .losses.distributed import LossValue, world_size
from .losses.listwise import Groups
from .losses.matryoshka import Loss, Matryoshka
from .losses.sts import SCORED_LOSSES
from .unified import (
    HeadsSchedule,
    check_rows,
    head_places,
    measure_outputs,
    network_with_heads,
    together,
    unified_loss,
    warn_of_lost_heads,
)

logger = logging.getLogger(__name__)

_ADAPTERS: Final = "adapters.safetensors"


def finetune(model: ModelArguments, data: DataArguments, args: EmbedderArguments) -> Path | None:
    """Train an embedder.

    Returns:
        The folder of the trained model; None after a dry run, whose findings are printed.

    Raises:
        DataError: the data cannot be used; nothing was trained then.
        ArgumentError: arguments are impossible or contradict each other.
        OutputError: the output folder holds something already, or cannot be written.

    Example:
        >>> from bgekit.training import DataArguments, EmbedderArguments, ModelArguments, finetune
        >>> args = EmbedderArguments(output_dir="trained", max_steps=1, per_device_train_batch_size=2, report_to="none")
        >>> data = DataArguments(train_data=["train.jsonl"], train_group_size=2, cache_path="cache")
        >>> finetune(ModelArguments("BAAI/bge-small-en-v1.5"), data, args).name
        'trained'
    """
    resume = prepare_run(args)
    tasks = evaluation_tasks(args)
    start = _start(model, data, args)
    objective = _Objective(args, start, data.knowledge_distillation)
    rows = read_data(args, data, in_batch=args.use_inbatch_neg)
    if args.unified_finetuning:
        check_rows(rows)
    if args.scored_loss == "mse":
        check_cosines(rows)
    collator = Collator.of(
        start.tokenizer, start.card, query_format=data.query_instruction_format, query_max_len=data.query_max_len,
        passage_max_len=data.passage_max_len,
    )  # fmt: skip
    _warn_of_cuts(collator, data)
    steps = make_steps(args, data, rows, collator)
    idle = _idle(steps, args)
    network = _network(start, model, args, steps)
    if args.dry_run:
        show_dry_run(steps, network, network.transformer.config, args)
        return None
    from_base = origin(model.model_name_or_path, sum(map(len, rows.datasets)))
    files = _files(start, network, model, from_base, objective.matryoshka_dims)
    diagnosis = Diagnosis(objective.temperature, start.card.normalize)
    if args.process_index == 0:
        _diagnose(diagnosis, steps, start, data, idle)

    callbacks = []
    if isinstance(network, UnifiedEncoder):
        objective.schedule = HeadsSchedule(network, args)
        callbacks.append(objective.schedule)
    name = str(args.output_dir)  # Where it is saved for a while to be measured concerns nobody.

    def measure(folder: Path) -> dict[str, float]:
        # On the device of this process alone: the others' memory is taken.
        with FlagModel(str(folder), devices=str(args.device), use_fp16=True) as trained:
            trained.card = replace(trained.card, name=name)
            if objective.unified is not None:
                return measure_outputs(trained, tasks, objective.unified, progress=not args.disable_tqdm)
            report = evaluate(
                Candidate(name, trained), tasks, compare=False, progress=not args.disable_tqdm, log_scores=False
            )
        return scores_by_name(report.results)

    def table(batch: Batch) -> Tensor:
        if objective.unified is not None and isinstance(network, UnifiedEncoder):
            return without_copies(together(network, objective.unified, batch), batch)
        return scores_of_all(network(batch.queries), network(batch.passages), batch)

    return train_on_rows(
        network, args, steps,
        PackedGradient(lambda batch: (batch.queries, batch.passages), objective, args.grad_cache_chunk),
        files=files, diagnosis=diagnosis, table=table, tasks=tasks, measure=measure, resume=resume, parts=(model, data),
        following=functools.partial(_following, args.eval_data), callbacks=callbacks,
    )  # fmt: skip


main = functools.partial(
    train_as_given, finetune, (ModelArguments, DataArguments, EmbedderArguments), FINETUNE,
    prog="python -m bgekit.training.embedder",
)  # fmt: skip


def _following(data: Sequence[str], output: Path) -> str:
    """A command that uses the trained model."""
    if data:
        return f"bge eval --data {shlex.join(data)} --model {shlex.quote(str(output))}"
    return f'bge search FILE --model {shlex.quote(str(output))} -q "..."'


def _start(model: ModelArguments, data: DataArguments, args: EmbedderArguments) -> FlagModel:
    """The model to start from, with the card that the result will have; its weights are not read yet."""

    def given(value: Any) -> Any | Unset:
        return UNSET if value is None else value

    return _Start(
        model.model_name_or_path,
        pooling_method=given(args.sentence_pooling_method),
        normalize_embeddings=given(args.normalize_embeddings),
        query_instruction_for_retrieval=given(data.query_instruction_for_retrieval),
        query_instruction_format=data.query_instruction_format if data.query_instruction_for_retrieval else None,
        passage_instruction_for_retrieval=given(data.passage_instruction_for_retrieval),
        passage_instruction_format=data.passage_instruction_format if data.passage_instruction_for_retrieval else None,
        devices="cpu",
        cache_dir=model.cache_dir,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
    )


def _network(start: FlagModel, model: ModelArguments, args: EmbedderArguments, steps: StepDataset) -> TrainableEncoder:
    network = load_trainable(
        start.folder, start.card, fix_position_embedding=args.fix_position_embedding,
        trust_remote_code=model.trust_remote_code, allow_pickle=model.allow_pickle,
    )  # fmt: skip
    if model.use_lora:
        add_lora(
            network, rank=model.lora_rank, alpha=model.lora_alpha, dropout=model.lora_dropout,
            modules=model.target_modules or None,
        )  # fmt: skip
    if args.unified_finetuning:
        if args.fix_encoder and model.use_lora:
            raise ArgumentError("--use-lora trains the encoder, which --fix-encoder true keeps as it is: leave out one")
        return network_with_heads(network, start.folder, args, steps)
    warn_of_lost_heads(stored_heads(start.folder))
    return network


class _Start(FlagModel):
    """A model that is to be trained: that it is only pre-trained so far needs no warning."""

    _to_be_used = False


class _Objective:
    """The loss of a batch: contrastive, of one output or several, or that of scored pairs.

    Attributes:
        temperature: The number that similarities are divided by.
        unified: The loss of several outputs, None for dense vectors alone.
        schedule: Says what holds in which step, for several outputs.
    """

    def __init__(self, args: EmbedderArguments, start: FlagModel, teacher: bool) -> None:
        card = start.card
        self.temperature = _temperature(args, card)
        if args.kd_loss_type and not teacher:
            logger.warning("--kd-loss-type %s is not used without --knowledge-distillation", args.kd_loss_type)
        plain = Contrastive(
            temperature=self.temperature,
            both_ways=args.both_ways,
            across=args.negatives_cross_device,
            in_batch=args.use_inbatch_neg,
            false_negatives=FalseNegatives(args.false_negative_margin, args.false_negative_ratio),
            distillation=(args.kd_loss_type or "kl_div") if teacher else None,
        )
        contrastive: Loss = plain
        self.unified = unified_loss(plain, start.tokenizer, args) if args.unified_finetuning else None
        self.schedule: HeadsSchedule | None = None
        self.across = args.negatives_cross_device
        scored: Loss = SCORED_LOSSES[args.scored_loss]()
        self.matryoshka_dims: tuple[int, ...] = ()
        if args.matryoshka:
            whole = card.dimension
            dims = args.matryoshka_dims or [whole // 2, whole // 4, whole // 8]
            if max(dims) > whole:
                raise ArgumentError(
                    f"--matryoshka-dims {max(dims)} is more than the {whole} dimensions of the vectors of {card.name}"
                )
            every = sorted({whole, *dims}, reverse=True)
            self.matryoshka_dims = tuple(sorted(each for each in dims if each < whole))
            contrastive = Matryoshka(contrastive, every, normalized=card.normalize)
            scored = Matryoshka(scored, every, normalized=card.normalize)
        self.contrastive, self.scored = contrastive, scored

    def __call__(self, queries: Encoded, passages: Encoded, batch: Batch) -> LossValue:
        if isinstance(queries, TokenOutputs) or isinstance(passages, TokenOutputs):
            return self._of_outputs(queries, passages, batch)
        if batch.scores is not None:
            return self.scored(queries, passages, batch)
        return self._with_more(self.contrastive(queries, passages, batch), _suspects(queries, passages, batch), batch)

    def _of_outputs(self, queries: Any, passages: Any, batch: Batch) -> LossValue:
        assert self.unified is not None, "the network gives several outputs because of it"
        distil = self.schedule is not None and self.schedule.distil
        value = self.unified(queries, passages, batch, distil=distil)
        suspects = {} if queries.dense is None else _suspects(queries.dense, passages.dense, batch)
        return self._with_more(value, suspects, batch)

    def _with_more(self, value: LossValue, suspects: Mapping[str, Tensor], batch: Batch) -> LossValue:
        candidates = float(len(batch.passage_keys)) if batch.in_batch else float(max(batch.groups, default=1))
        if batch.in_batch and self.across:
            candidates *= world_size()
        return LossValue(
            value.loss,
            {**value.metrics, **suspects, "candidates": torch.tensor(candidates)},
        )


def _temperature(args: EmbedderArguments, card: ModelCard) -> float:
    """The number that similarities are divided by."""
    if card.normalize:
        return args.temperature
    # Dot products of vectors of any length need none (as in FlagEmbedding).
    if args.temperature != 1:
        logger.warning(
            "1 is used instead of --temperature %g: the vectors are not normalised, so the model itself learns the "
            "scale of their dot products (--normalize-embeddings true makes it count)",
            args.temperature,
        )
    return 1.0


@torch.no_grad()
def _suspects(queries: Tensor, passages: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Share of the rows of this process of which a negative of their own lies nearer than the positive."""
    groups = Groups(batch.groups, queries.device)
    table = groups.table(own_scores(queries.float(), passages.float(), batch), -torch.inf)
    negatives = (groups.valid & ~groups.known_positives(batch))[:, 1:]
    compared = negatives.any(1)
    if not bool(compared.any()):
        return {}
    nearer = ((table[:, 1:] > table[:, :1]) & negatives).any(1)
    return {"suspect": nearer[compared].float().mean()}


def _files(
    start: FlagModel, network: TrainableEncoder, model: ModelArguments, origin: str, matryoshka_dims: tuple[int, ...]
) -> ModelFiles:
    """The network on the disk; adapters are merged into the weights, and kept beside them to continue from."""
    # Trained in float32, kept in float32: a run that continues from a checkpoint must find what was there.
    card = replace(
        start.card, dtype="float32", selftest=None, calibration=None, pretrained_only=False,
        matryoshka_dims=matryoshka_dims,
    )  # fmt: skip

    def write(folder: Path, title: str | None) -> None:
        save_encoder(
            folder, title, network=network, weights=network.weights(), encoder=network.encoder, dense=network.dense(),
            tokenizer=start.tokenizer, card=card, source=start.folder, origin=origin, allow_pickle=model.allow_pickle,
            remote_code=model.trust_remote_code, heads=network.encoder.heads,
        )  # fmt: skip

    if not model.use_lora:
        dense = {dense_folder(number): f"encoder.head.layers.{number}." for number in range(len(card.dense))}
        heads = {} if network.encoder.heads is None else head_places(network.encoder.heads)
        return ModelFiles(network, write, {"": "encoder.backbone.model.", **dense}, heads=heads)

    def adapters() -> bytes:
        trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
        return save(as_stored(trained, "float32"))

    return ModelFiles(network, write, {}, beside=_ADAPTERS, further=adapters)


def _warn_of_cuts(collator: Collator, data: DataArguments) -> None:
    """Warn where texts may not be as long as was asked for."""
    for limit in collator.limits():
        asked = getattr(data, limit.name)
        if asked > limit.tokens:
            logger.warning(
                "%s %d is more than the model takes: %s are cut at %d tokens",
                first_name(limit.name), asked, limit.plural, limit.tokens,
            )  # fmt: skip


def _idle(steps: StepDataset, args: EmbedderArguments) -> dict[str, int]:
    """Number of rows without any negative, by dataset.

    Raises:
        DataError: no row has one.
    """
    datasets = steps.data.datasets
    counts = steps.without_negatives(across=args.negatives_cross_device)
    if sum(counts) < sum(map(len, datasets)):
        return {data.spec.name: count for data, count in zip(datasets, counts, strict=True)}
    own = "--train-group-size is 1" if steps.sampling.group_size == 1 else "no row has neg"
    if steps.sampling.group_size > 1 and any(copies.alone for copies in steps.copies):
        own = "no row has a neg that is not one of its positives"
    raise DataError(
        f"no query has a negative, so nothing would be learnt: {own}, and passages of other rows are not negatives "
        "either (--use-inbatch-neg false, files named no_in_batch_neg, or batches of one row). Let them be "
        "negatives, or give rows negatives of their own (bge mine)"
    )


def _diagnose(
    diagnosis: Diagnosis, steps: StepDataset, start: FlagModel, data: DataArguments, idle: Mapping[str, int]
) -> None:
    """Look at what can be said before the first step."""
    batch = steps[0]
    candidates = len(batch.passage_keys) if batch.in_batch else max(batch.groups, default=1)
    limits = steps.collator.limits()
    lengths = [Lengths.of(steps, number) for number in range(len(steps.data.datasets))]
    truncated = {limit: max(sample.cut(limit) for sample in lengths) for limit in limits}
    declared = declared_query(start.folder, start.card.name)
    trained = data.query_instruction_for_retrieval
    diagnosis.before(candidates, truncated, trained, str(declared) if declared else None, idle)


if __name__ == "__main__":
    sys.exit(launched(main))
