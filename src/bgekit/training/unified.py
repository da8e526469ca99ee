"""Unified fine-tuning: the network with its heads, its loss, what learns in which step, and how it is judged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from ..errors import DataError
from ..evaluation.evaluator import Candidate, evaluate
from ..evaluation.judged_model import Setting
from ..evaluation.tasks.retrieval import RetrievalTask
from ..inference.embedder import FlagModel
from ..inference.tokenization import special_ids
from ..models.calibration_map import made_for_facts
from ..models.head_files import OUTPUTS, Output, head_paths, stored_heads
from ..networks.cpu_products import has_bfloat16
from ..networks.encoder import TrainableEncoder
from ..networks.heads import TokenHeads
from ..networks.packing import Packed
from ..networks.unified import UnifiedEncoder, unified_encoder, wake
from ..search.fusion import FittedWeights
from ..search.modes import Mode
from .loop.arguments import EmbedderArguments
from .loop.training_run import scores_by_name
from .losses.contrastive import Contrastive
from .losses.unified import LOSS_WEIGHTS, SCORE_WEIGHTS, Unified

if TYPE_CHECKING:
    from ..evaluation.results import Result
    from ..evaluation.tasks.base import Task
    from .batches.collator import Batch, StepDataset
    from .batches.datasets import TrainingData

logger = logging.getLogger(__name__)
#: The mode of search that compares by an output.
MODES: Final[dict[Output, Mode]] = {"dense": "dense", "sparse": "lexical", "multi-vector": "multi-vector"}
#: Rows that say how a new lexical head begins, and tokens of each of their passages.
_PROBED_ROWS: Final = 16
_PROBED_TOKENS: Final = 128


def network_with_heads(
    network: TrainableEncoder, folder: Path, args: EmbedderArguments, steps: StepDataset
) -> UnifiedEncoder:
    """The network of a model with the heads that are trained, and of the model's others those that stay right.

    Args:
        network: The encoder of the model.
        folder: The model.
        args: How it is trained.
        steps: What it is trained on.

    Raises:
        ArgumentError: the model's multi-vectors have other dimensions than `--colbert-dim` says.
        CheckpointError: a head is damaged, or of another shape; the message names its file.
    """
    width = None if args.colbert_dim == -1 else args.colbert_dim
    others = [output for output in stored_heads(folder) if output not in args.heads]
    made = unified_encoder(network, folder, outputs_of(args), width, kept=others if args.fix_encoder else ())
    if "sparse" in args.heads and "sparse" not in stored_heads(folder):
        wake(made, _probe(steps), torch.tensor(special_ids(steps.collator.tokenizer)))
    if args.fix_encoder:
        made.fix_for_good(args.device, "bfloat16" if args.bf16 and has_bfloat16() else "float32")
    else:
        warn_of_lost_heads(others)
    return made


def _probe(steps: StepDataset) -> Packed:
    """The beginnings of texts of a few training rows: the same in every process, however many there are."""
    rows = np.concatenate([dataset.rows for dataset in steps.data.datasets])
    chosen = rows[np.linspace(0, len(rows) - 1, min(_PROBED_ROWS, len(rows))).astype(int)]
    texts, _ = steps.collator.encode_passages([steps.sampling.draw(steps.data[int(row)], 0) for row in chosen])
    return Packed.of([ids[:_PROBED_TOKENS].tolist() for ids in texts.input_ids.split(texts.lengths)])


def outputs_of(args: EmbedderArguments) -> tuple[Output, ...]:
    """What is trained, as its type says it."""
    return tuple(output for output in OUTPUTS if output in args.heads)


def warn_of_lost_heads(heads: Sequence[Output]) -> None:
    """Say that heads of the model are not in the result, as they do not fit an encoder that has learnt without them."""
    if heads:
        logger.warning(
            "the heads of the model for %s are not trained along, so the result will lack them (--unified-finetuning "
            "true with all --heads trains them)",
            " and ".join(heads),
        )


def unified_loss(contrastive: Contrastive, tokenizer: Any, args: EmbedderArguments) -> Unified:
    """The loss that arguments ask for.

    Args:
        contrastive: The loss of each score.
        tokenizer: The model's, whose special tokens have no lexical weights.
        args: Heads and weights.
    """
    return Unified(
        contrastive, torch.tensor(special_ids(tokenizer)), outputs_of(args),
        args.loss_weights or LOSS_WEIGHTS, args.score_weights or SCORE_WEIGHTS,
    )  # fmt: skip


def check_rows(rows: TrainingData) -> None:
    """Raise DataError if rows have a score, which is one of dense vectors alone."""
    if names := [each.spec.name for each in rows.datasets if each.scored]:
        raise DataError(
            f"rows with a score train dense vectors alone, and {', '.join(names)} has such: leave them out, or train "
            "without --unified-finetuning"
        )


class HeadsSchedule(TrainerCallback):
    """When the encoder learns, and when heads learn from all of them together: by the step alone, so resuming is exact.

    Args:
        network: What is trained.
        args: `--heads-warmup-steps`, `--fix-encoder`, `--use-self-distill` and `--self-distill-start-step`.
    """

    def __init__(self, network: UnifiedEncoder, args: EmbedderArguments) -> None:
        self._network, self._args = network, args
        #: Whether heads learn from all of them together in this step.
        self.distil = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set what holds in the step that begins."""
        step, given = state.global_step, self._args
        self._network.fix(given.fix_encoder or step < given.heads_warmup_steps)
        self.distil = given.use_self_distill and step > given.self_distill_start_step


def together(network: UnifiedEncoder, loss: Unified, batch: Batch) -> Tensor:
    """[n, m]: the sum of all scores of the queries and passages of a batch."""
    scores = loss.scores(network(batch.queries), network(batch.passages), batch)
    return torch.stack([loss.score_weight[head] * table for head, table in scores.items()]).sum(0)


def head_places(heads: TokenHeads) -> dict[str, str]:
    """Where a network has the weights of its heads: what comes before their names, by the path of their file."""
    places: dict[Output, str] = {"sparse": "encoder.heads.sparse.", "multi-vector": "encoder.heads.multi_vector."}
    none = Path()
    return {str(head_paths(none, output)[1]): places[output] for output in heads.outputs}


def measure_outputs(trained: FlagModel, tasks: Sequence[Task], loss: Unified, *, progress: bool) -> dict[str, float]:
    """Scores (x100) of a trained model on tasks: on retrieval of each output and of all together, else as it is used.

    They are those of `bge eval --modes`, of a hybrid that has the weights of the loss for each score. `score` is the
    mean over tasks, of all outputs together where there are several.
    """
    searches = [task for task in tasks if isinstance(task, RetrievalTask)]
    others = [task for task in tasks if not isinstance(task, RetrievalTask)]

    def measured(some: Sequence[Task], settings: Sequence[Setting]) -> Sequence[Result]:
        candidate = Candidate(trained.card.name, trained, settings=settings)
        return evaluate(candidate, some, compare=False, progress=progress, log_scores=False).results

    found: dict[str, float] = {}
    main = []
    names: dict[str, Output] = {MODES[output]: output for output in loss.heads}
    for result in measured(searches, _settings(trained, loss)) if searches else ():
        name = f"{result.task}_{result.main_metric}"
        if result.mode == "hybrid" or len(names) == 1:
            main.append(result.main_score)
            found[name] = result.main_score
        if result.mode != "hybrid" and len(names) > 1:
            found[f"{names[result.mode]} {name}"] = result.main_score
    if others:
        scores = scores_by_name(measured(others, (Setting(),)))
        del scores["score"]
        main += scores.values()
        found |= scores
    return {"score": sum(main) / len(main), **found}


def _settings(trained: FlagModel, loss: Unified) -> list[Setting]:
    """A setting for each output, and one for all together where there are several."""
    modes = [MODES[output] for output in loss.heads]
    settings = [Setting(mode=mode) for mode in modes]
    if len(modes) > 1:
        weights = FittedWeights(
            weights={MODES[output]: loss.score_weight[output] for output in loss.heads}, model=trained.card.name,
            made_for=made_for_facts(trained.similarity_facts(), trained.card), data="--score-weights",
            data_fingerprint="", queries=0, metric="", scores={},
        )  # fmt: skip
        settings.append(Setting(mode="hybrid", fused=tuple(modes), weights=weights))
    return settings
