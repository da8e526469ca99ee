"""The functions of the package LM_Cocktail, by their names and arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError
from .compatibility import Kind
from .example_weights import ExampleData
from .merging import Examples, Merged, Merging, merge

logger = logging.getLogger(__name__)

Name = str | os.PathLike[str]


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
        temperature: Of the softmax over models.
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
    """`mix_models`, which merges one block of one tensor at a time anyway."""
    return mix_models(model_names_or_paths, model_type, weights, output_path, overwrite=overwrite, **settings)


def _task(
    models: Sequence[Name], model_type: Kind, weights: Sequence[float] | None, settings: dict[str, Any]
) -> Merging:
    if isinstance(models, str | os.PathLike):
        raise ArgumentError("model_names_or_paths must be a list of names or folders")
    if unknown := [name for name in settings if name not in Merging.__dataclass_fields__]:
        raise ArgumentError(
            f"{unknown[0]} is no argument here; there are {', '.join(Merging.__dataclass_fields__)} and overwrite"
        )
    return Merging([os.fspath(name) for name in models], model_type, weights=weights, **settings)
