"""Merge models: check that they agree, find the weights, write the result with all that belongs to a checkpoint.

The functions of the package LM_Cocktail are here, too, by their names and arguments.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from ..data.formats import Dialect
from ..errors import ArgumentError
from ..evaluation.evaluator import tasks_of
from ..files.atomic import scratch_folder, target_folder
from ..inference.embedder import FlagModel
from ..inference.reranker import FlagReranker
from ..models.card_reading import is_classifier
from ..models.checkpoint_files import read_config
from .merge_weights import (
    ExampleData,
    Examples,
    Trial,
    Validation,
    Weights,
    best,
    measures,
    model_loss,
    read_examples,
    search,
    softmax_weights,
)
from .merged_model import Parts, adapted, named, save_merged
from .methods import METHODS, Method, checked_weights, described, finite_weights
from .sources import Kind, Options, agreed_cards, check_networks, open_source

if TYPE_CHECKING:
    from ..evaluation.tasks.base import Task

logger = logging.getLogger(__name__)
Name = str | os.PathLike[str]
#: Methods whose weights are shares of a whole.
_SHARES: Final = ("average", "slerp")


@dataclass(frozen=True)
class Merging:
    """A merge: the models, the base and the settings.

    Attributes:
        models: Folders, Hugging Face ids or `packaged:NAME`; LoRA adapters count as their base with what they add.
        model_type: `encoder` or `reranker`; None to see it from the first model.
        method: `average`, `slerp`, `task_arithmetic`, `ties` or `dare`.
        weights: Weights of each model; None for equal ones, or where examples or validation data decide.
        normalize: Divide weights by their sum.
        base: For the last three methods, the model that all were trained from.
        density: For `ties` and `dare`, the share of changes kept.
        scale: For `ties`, what the merged change is multiplied by.
        seed: Random seed.
        card_from: Number of the model whose prompts, pooling, normalisation, maximum length and tokenizer settings the
            result gets; None if all must agree.
        pooling_method: How embedders pool, None for what each says; of rerankers, how `Validation.first_stage` does.
        options: How models are found and trusted.
        device: Where losses and validation are computed.

    Example:
        >>> from bgekit.merging import Merging
        >>> Merging(["BAAI/bge-small-en-v1.5", "fine-tuned"], weights=[3, 1], normalize=True).method
        'average'
    """

    models: Sequence[str]
    model_type: Kind | None = None
    method: str = "average"
    weights: Sequence[float] | None = None
    normalize: bool = False
    base: str | None = None
    density: float = 0.2
    scale: float = 1.0
    seed: int = 0
    card_from: int | None = None
    pooling_method: str | None = None
    options: Options = field(default_factory=Options)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if isinstance(self.models, str) or not self.models:
            raise ArgumentError("models must be a list of names or folders with at least one")
        if self.model_type is not None and self.model_type not in get_args(Kind):
            raise ArgumentError(
                f"model_type={self.model_type!r} is not one of {', '.join(get_args(Kind))}; an embedder on top of a "
                "language model is an encoder, too, and models that generate text cannot be merged here"
            )
        if self.method not in METHODS:
            raise ArgumentError(f"method={self.method!r} is not one of {', '.join(METHODS)}")
        if METHODS[self.method].needs_base != (self.base is not None):
            need = "needs a base (--base), the model that all were trained from" if self.base is None else "has no base"
            raise ArgumentError(f"method {self.method} {need}")

    def way(self, weights: Sequence[float]) -> Method:
        """The method with weights.

        Raises:
            ArgumentError: they are impossible.
        """
        count = len(self.models)
        if self.method in _SHARES or self.normalize:
            found = checked_weights(weights, count, normalize=self.normalize)
        else:
            found = finite_weights(weights, count)
        method = METHODS[self.method]
        return method(found, **{each.name: getattr(self, each.name) for each in fields(method)[1:]})

    def given_weights(self) -> Sequence[float]:
        """The caller's weights, or equal ones where they are shares or votes."""
        if self.weights is not None:
            return self.weights
        if self.method in ("task_arithmetic", "dare"):
            raise ArgumentError(
                f"method {self.method} needs weights (--weights): factors of the models' changes, such as 0.5"
            )
        return (1 / len(self.models),) * len(self.models)


@dataclass
class Merged:
    """A merged model: where it is, how it came about, and, from its first use on, the model itself.

    Whatever `FlagModel` (of rerankers, `FlagReranker`) can do, this can: `merged.encode(...)`. It is loaded when that
    is first asked for, so that merging takes no more memory than it needs.

    Attributes:
        path: Its folder; without an output path a temporary one, which lasts as long as this object or its model.
        model_type: `encoder` or `reranker`.
        weights: Weights of each model.
        losses: Losses of each model on the examples, None without.
        trials: Trials of the search, None without.

    Example:
        >>> from bgekit.merging import mix_models
        >>> merged = mix_models(["BAAI/bge-small-en-v1.5", "fine-tuned"], "encoder", [0.5, 0.5], "merged")
        >>> merged.model.encode(["a text"]).shape
        (1, 384)
    """

    path: Path
    model_type: Kind
    weights: tuple[float, ...]
    losses: tuple[float, ...] | None = None
    trials: list[Trial] | None = None
    _options: Options = field(default_factory=Options, repr=False)
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    @cached_property
    def model(self) -> FlagModel | FlagReranker:
        """The loaded model."""
        trusted = self._options.trust_remote_code
        kind = FlagModel if self.model_type == "encoder" else FlagReranker
        model: FlagModel | FlagReranker = kind(self.path, trust_remote_code=trusted)
        if self._temporary is not None:
            weakref.finalize(model, self._temporary.cleanup)
        return model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.model, name)


def merge(
    task: Merging, output: str | os.PathLike[str] | None = None, *, examples: Examples | None = None,
    validation: Validation | None = None, overwrite: bool = False, show_progress: bool = False,
) -> Merged:  # fmt: skip
    """Merge models into a checkpoint.

    Memory holds a tensor of the result at a time, and at the end one model, whose self-test is computed. Finding the
    weights needs one loaded model at a time.

    Args:
        task: What is merged, and how.
        output: Folder to make; None for a temporary one.
        examples: Find the weights by losses on these.
        validation: Find the weights by a search on this; needs the extra `eval`.
        overwrite: Replace a model that is there.
        show_progress: Show bars while candidates are measured on validation data.

    Raises:
        CheckpointError: models cannot be found, are damaged, or have different networks or tokenizers.
        CardError: they are used differently, and `card_from` does not say whose use counts.
        ArgumentError: arguments are impossible or contradict each other.
        DataError: examples or validation data cannot be used.
        NumericalError: a merged weight is not finite.
        OutputError: the output exists or cannot be written; what was there before is unchanged.

    Example:
        >>> from bgekit.merging import Merging, merge
        >>> task = Merging(["BAAI/bge-small-en-v1.5", "fine-tuned"], method="slerp", weights=[0.5, 0.5])
        >>> merge(task, "merged-slerp").path.name
        'merged-slerp'
    """
    if (task.weights is not None) + (examples is not None) + (validation is not None) > 1:
        raise ArgumentError("weights are given, or found on examples, or on validation data: choose one")
    # What is impossible shows before anything is read.
    task.way((1 / len(task.models),) * len(task.models) if examples or validation else task.given_weights())
    if validation is not None and output is None:
        raise ArgumentError("a search on validation data needs an output, beside which its candidates are kept")
    if output is not None:
        target_folder(Path(output), overwrite)
    tasks: Sequence[Task] = ()
    if validation is not None:
        tasks = tasks_of(
            validation.data, split=validation.split, encoding=validation.encoding, quoting=validation.quoting
        )
    sources = [open_source(os.fspath(name), task.options) for name in task.models]
    kind: Kind = task.model_type or ("reranker" if is_classifier(read_config(sources[0].folder)) else "encoder")
    base = open_source(os.fspath(task.base), task.options) if task.base is not None else None
    check_networks([*sources, *([base] if base is not None else [])])
    if kind == "reranker" and task.pooling_method is not None and not (validation and validation.first_stage):
        raise ArgumentError("rerankers pool nothing: pooling_method= goes with embedders, or with their first_stage")
    card, cards = agreed_cards(sources, kind, task.card_from, task.pooling_method if kind == "encoder" else None)
    parts = Parts(sources, base, kind, card, cards, task.card_from or 0)
    temporary = tempfile.TemporaryDirectory(prefix="bgekit-merge-") if output is None else None
    path = Path(output) if output is not None else Path(temporary.name) / "merged"  # type: ignore[union-attr]
    losses = trials = None
    found: dict[str, Any] = {}
    if examples is not None:
        losses = _losses(parts, task, examples)
        weights: Sequence[float] = softmax_weights(losses, examples.temperature)
        file = os.fspath(examples.data) if isinstance(examples.data, str | os.PathLike) else None
        found["examples"] = {**vars(examples), "data": file, "seed": task.seed, "losses": list(losses)}
    elif validation is not None:
        trials = _search(parts, task, validation, tasks, path, show_progress)
        weights = best(trials).weights
        found["search"] = vars(validation) | {"trials": [vars(trial) for trial in trials]}
    else:
        weights = task.given_weights()
    way = task.way(weights)
    provenance = {
        "models": [
            {"name": source.name, "weight": weight, **source.digest()}
            for source, weight in zip(sources, way.weights, strict=True)
        ],
        "base": None if base is None else {"name": base.name, **base.digest()},
        "method": described(way),
        "model_type": kind,
        "card_from": task.card_from,
        **found,
    }
    with contextlib.nullcontext() if temporary is None else named(path, f"a folder in {tempfile.gettempdir()}"):
        save_merged(parts, way, path, provenance, trials=trials, overwrite=overwrite)
    return Merged(path, kind, way.weights, losses, trials, task.options, temporary)


def _losses(parts: Parts, task: Merging, examples: Examples) -> tuple[float, ...]:
    read = read_examples(
        examples.data, parts.kind, examples.neg_number, task.seed, Dialect(examples.encoding, examples.quoting)
    )
    if parts.kind == "encoder" and examples.batch_size == 1 and all(len(each.passages) == 1 for each in read):
        raise ArgumentError("batches of one example without negatives have nothing to compare: raise batch_size")
    found = []
    for number, source in enumerate(parts.sources):
        with adapted(parts, number) as folder:
            loss = model_loss(folder, parts.cards[number], read, examples, task.options, task.device)
        logger.info("%s: loss %.4f on %d examples", source.name, loss, len(read))
        found.append(loss)
    return tuple(found)


def _search(
    parts: Parts, task: Merging, validation: Validation, tasks: Sequence[Task], path: Path, show_progress: bool
) -> list[Trial]:
    if parts.kind == "reranker" and not validation.first_stage:
        raise ArgumentError(
            "validation of rerankers needs first_stage (--first-stage MODEL): the embedder whose best passages are put "
            "in order"
        )
    # Beside the output, where there must be room for a model anyway.
    target = path.expanduser().resolve()
    with scratch_folder(target) as scratch:
        measure = measures(
            parts.kind, tasks, scratch / "kept", validation, devices=task.device, pooling=task.pooling_method,
            show_progress=show_progress,
        )  # fmt: skip

        def judge(weights: Weights) -> Trial:
            with named(scratch, parts.title):
                save_merged(parts, task.way(weights), scratch / "model", None, overwrite=True)
                scores = measure(scratch / "model")
            trial = Trial(weights, sum(scores.values()) / len(scores), scores)
            logger.info("weights %s: %.2f", ", ".join(f"{each:.3f}" for each in weights), trial.score)
            return trial

        return search(judge, len(parts.sources), validation.points)


def mix_models(
    model_names_or_paths: Sequence[Name], model_type: Kind, weights: Sequence[float], output_path: Name | None = None,
    *, overwrite: bool = False, **settings: Any,
) -> Merged:  # fmt: skip
    """The weighted average of models.

    Args:
        model_names_or_paths: Folders, Hugging Face ids or `packaged:NAME`; LoRA adapters, too.
        model_type: `encoder` or `reranker`.
        weights: One for each model; they sum to 1.
        output_path: Folder to make; None for a temporary one that lasts as long as the result.
        overwrite: Replace a model that is there.
        settings: Further fields of `Merging`, such as `normalize`, `method` or `card_from`.

    Returns:
        The merged model, which has the methods of `FlagModel` or `FlagReranker` and is loaded when it is first used.

    Raises:
        CheckpointError: models cannot be found, are damaged, or have different networks or tokenizers.
        CardError: they are used differently, and `card_from` does not say whose use counts.
        ArgumentError: weights or other arguments are impossible.
        OutputError: the output exists or cannot be written.

    Example:
        >>> from bgekit.merging import mix_models
        >>> models = ["BAAI/bge-small-en-v1.5", "fine-tuned"]
        >>> merged = mix_models(models, "encoder", [0.4, 0.6], "merged-half")
        >>> merged.weights
        (0.4, 0.6)
    """
    return merge(_task(model_names_or_paths, model_type, weights, settings), output_path, overwrite=overwrite)


def mix_models_with_data(
    model_names_or_paths: Sequence[Name], model_type: Kind, example_data: ExampleData | None = None,
    temperature: float = 5.0, batch_size: int = 2, max_input_length: int = 2048, neg_number: int = 7,
    output_path: Name | None = None, *, example_ata: ExampleData | None = None, overwrite: bool = False,
    **settings: Any,
) -> Merged:  # fmt: skip
    """The average of models, weighted by softmax(-loss / temperature) of their losses on examples.

    Args:
        model_names_or_paths: As in `mix_models`.
        model_type: `encoder` or `reranker`.
        example_data: Rows `{"query": str, "pos": [str], "neg": [str]}`, or a file of such JSON lines.
        temperature: Temperature of the softmax over models.
        batch_size: Examples of a batch, whose passages are each other's negatives (embedders).
        max_input_length: Tokens where texts are cut, or fewer if the model takes fewer.
        neg_number: Negatives of each example, drawn at random by `seed`.
        output_path: Folder to make; None for a temporary one that lasts as long as the result.
        example_ata: The same as `example_data`, as LM_Cocktail's first release has it.
        overwrite: Replace a model that is there.
        settings: Further fields of `Merging`, such as `method` or `card_from`.

    Returns:
        As `mix_models`; `losses` and `weights` of the result are those found.

    Raises:
        DataError: examples cannot be used.
        CheckpointError, CardError, ArgumentError, OutputError: as `mix_models`.

    Example:
        >>> from bgekit.merging import mix_models_with_data
        >>> examples = [{"query": "a cat", "pos": ["The cat sat on the mat."], "neg": ["A dog ran.", "It rained."]}]
        >>> merged = mix_models_with_data(["BAAI/bge-small-en-v1.5", "fine-tuned"], "encoder", examples, neg_number=2)
        >>> round(sum(merged.weights), 6)
        1.0
    """
    if example_ata is not None:
        if example_data is not None:
            raise ArgumentError("example_ata is an old spelling of example_data: give one of the two")
        logger.warning("example_ata is an old spelling: write example_data")
        example_data = example_ata
    if example_data is None:
        raise ArgumentError("mix_models_with_data needs example_data")
    examples = Examples(example_data, temperature, batch_size, max_input_length, neg_number)
    task = _task(model_names_or_paths, model_type, None, settings)
    return merge(task, output_path, examples=examples, overwrite=overwrite)


def mix_models_by_layers(
    model_names_or_paths: Sequence[Name], model_type: Kind, weights: Sequence[float], output_path: Name | None = None,
    *, overwrite: bool = False, **settings: Any,
) -> Merged:  # fmt: skip
    """`mix_models`, which merges a tensor at a time anyway.

    Example:
        >>> from bgekit.merging import mix_models_by_layers
        >>> models = ["BAAI/bge-small-en-v1.5", "fine-tuned"]
        >>> mix_models_by_layers(models, "encoder", [0.5, 0.5], "merged-layers").weights
        (0.5, 0.5)
    """
    return mix_models(model_names_or_paths, model_type, weights, output_path, overwrite=overwrite, **settings)


def _task(
    models: Sequence[Name], model_type: Kind, weights: Sequence[float] | None, settings: dict[str, Any]
) -> Merging:
    if isinstance(models, str | os.PathLike):
        raise ArgumentError("model_names_or_paths must be a list of names or folders")
    if unknown := [name for name in settings if name not in Merging.__dataclass_fields__]:
        raise ArgumentError(
            f"{unknown[0]} is not an argument here; there are {', '.join(Merging.__dataclass_fields__)} and overwrite"
        )
    return Merging([os.fspath(name) for name in models], model_type, weights=weights, **settings)
