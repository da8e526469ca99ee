"""Weights from a few examples: each model's loss on them, and softmax(-loss / T) over the models (LM-Cocktail).

The loss of an embedder is the cross entropy of each query's positive against all passages of its batch, over vectors of
length 1 at a temperature of 0.05; that of a reranker is the cross entropy of the positive within its own group. The
formula is that of LM-Cocktail (arXiv:2311.13534) as its package computes it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch.nn.functional import cross_entropy, normalize

from ..data.columns import BadLines, Line, read_file
from ..data.formats import USUAL, Dialect
from ..data.training_rows import EXAMPLE_LINE, Row, row_of
from ..errors import ArgumentError, DataError, NumericalError
from ..inference.tokenization import load_tokenizer
from ..models.card import ModelCard, RerankerCard
from ..training.batches.collator import Collator, PairCollator
from ..training.batches.sampler import Example, Sampling
from .compatibility import Card, Kind
from .sources import Options

logger = logging.getLogger(__name__)
ExampleData: TypeAlias = "str | os.PathLike[str] | Iterable[Mapping[str, Any]]"
#: Temperature of the similarities.
TAU: Final = 0.05


def softmax_weights(losses: Sequence[float], temperature: float) -> tuple[float, ...]:
    """softmax(-loss / temperature): the weights of models by their losses.

    Raises:
        ArgumentError: the temperature is not above 0.
        NumericalError: a loss is NaN or infinite.
    """
    if not temperature > 0:
        raise ArgumentError(f"the temperature must be above 0, not {temperature:g}")
    if not all(map(math.isfinite, losses)):
        raise NumericalError(f"a model's loss on the examples is not finite: {list(losses)}")
    least = min(losses)
    parts = [math.exp((least - loss) / temperature) for loss in losses]
    return tuple(part / math.fsum(parts) for part in parts)


def read_examples(data: ExampleData, kind: Kind, neg_number: int, seed: int, dialect: Dialect = USUAL) -> list[Example]:
    """The examples: of each row its first positive and so many of its negatives, drawn at random.

    A row with fewer negatives has them repeated.

    Args:
        data: A file of training data, or its rows.
        kind: Of the models.
        neg_number: Negatives of each example.
        seed: Of the draws.
        dialect: How the file is written.

    Raises:
        DataError: rows cannot be used, or none has what a loss needs.
    """
    if neg_number < 0:
        raise ArgumentError(f"neg_number must not be negative, but it is {neg_number}")
    sampling = Sampling(neg_number + 1, seed=seed)
    rows = _rows(data, dialect)
    if not rows:
        raise DataError(f"there are no examples; each is an object such as {EXAMPLE_LINE}")
    examples = [sampling.draw(replace(row, positives=row.positives[:1]), 0) for row in rows]
    bare = sum(len(example.passages) == 1 for example in examples)
    if kind == "reranker" and bare == len(examples):
        raise DataError("no example has negatives: a reranker's loss compares a positive with them")
    if bare and kind == "reranker":
        logger.warning("%d of %d examples have no negatives and say nothing of a reranker", bare, len(examples))
    return examples


def _rows(data: ExampleData, dialect: Dialect) -> list[Row]:
    bad, found = BadLines(), list[Row]()
    if isinstance(data, str | os.PathLike):
        lines: Iterable[Line] = read_file(data, dialect, bad=bad)
    else:
        lines = (Line("the examples", number, fields) for number, fields in enumerate(data, 1))
    for line, row in bad.usable(lines, _row):
        if row.score is not None:
            bad.add(line.file, line.number, "a scored pair (with `score`) has no negatives to compare with")
            continue
        found.append(replace(row, index=len(found)))
    bad.check("example", "cannot be used")
    return found


def _row(line: Line) -> Row:
    if not isinstance(line.fields, Mapping):
        raise line.error(f"an object with query, pos and neg is expected, not {type(line.fields).__name__}")
    return row_of(line)


def model_loss(
    folder: Path, card: Card, examples: Sequence[Example], *, batch_size: int, max_input_length: int, options: Options,
    device: str | torch.device = "cpu",
) -> float:  # fmt: skip
    """The mean loss of a model over examples, in float32.

    Args:
        folder: Its checkpoint.
        card: Its card: pooling and prompts are what it says; a row's `prompt` stands in for that of its query.
        examples: The examples.
        batch_size: Examples of a batch; in-batch negatives are those of the batch.
        max_input_length: Texts (a reranker's: pairs) are cut at so many tokens, or at what the model takes.
        options: How far the checkpoint is trusted.
        device: Where to compute.
    """
    if batch_size < 1 or max_input_length < 1:
        raise ArgumentError("batch_size and max_input_length must be at least 1")
    if isinstance(card, RerankerCard):
        of_batch = _reranker(folder, card, max_input_length, options, torch.device(device))
    else:
        of_batch = _embedder(folder, card, max_input_length, options, torch.device(device))
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(examples), batch_size):
            total += of_batch(examples[start : start + batch_size])
    return total / len(examples)


def in_batch_loss(queries: torch.Tensor, passages: torch.Tensor, groups: Sequence[int]) -> float:
    """Sum over queries [n, d] of the cross entropy of their positive among all passages [m, d] of the batch.

    Args:
        queries: Vectors.
        passages: Vectors, row by row, the positive of each row first.
        groups: Passages of each row.
    """
    queries, passages = (normalize(vectors.cpu().double(), dim=-1) for vectors in (queries, passages))
    scores = queries @ passages.T / TAU
    sizes = torch.tensor(groups)
    return float(cross_entropy(scores, sizes.cumsum(0) - sizes, reduction="sum"))


def group_loss(scores: torch.Tensor, groups: Sequence[int]) -> float:
    """Sum over groups of the cross entropy of their first score within them.

    Args:
        scores: Of all groups, one after the other [m].
        groups: Size of each.
    """
    parts = scores.cpu().double().split(list(groups))
    return float(sum(part.logsumexp(0) - part[0] for part in parts))


def _embedder(folder: Path, card: ModelCard, length: int, options: Options, device: torch.device) -> Any:
    from ..networks.encoder import load_trainable

    network = load_trainable(
        folder, card, trust_remote_code=options.trust_remote_code, allow_pickle=options.allow_pickle
    )
    encoder = network.eval().to(device)
    tokenizer = load_tokenizer(folder, lower_case=card.lower_case, trust_remote_code=options.trust_remote_code)
    collate = Collator.of(tokenizer, card, query_max_len=length, passage_max_len=length)

    def loss(examples: Sequence[Example]) -> float:
        batch = collate(examples, size=len(examples)).to(device)
        return in_batch_loss(encoder(batch.queries), encoder(batch.passages), batch.groups)

    return loss


def _reranker(folder: Path, card: RerankerCard, length: int, options: Options, device: torch.device) -> Any:
    from ..networks.cross_encoder import load_trainable

    network = load_trainable(folder, trust_remote_code=options.trust_remote_code, allow_pickle=options.allow_pickle)
    scorer = network.eval().to(device)
    length = min(length, card.max_length)
    collate = PairCollator(
        load_tokenizer(folder, trust_remote_code=options.trust_remote_code), card.query, card.document, "{}{}",
        max_len=length, token_types=network.token_types,
    )  # fmt: skip

    def loss(examples: Sequence[Example]) -> float:
        batch = collate(examples, size=len(examples)).to(device)
        return group_loss(scorer(batch.passages), batch.groups)

    return loss
