"""Sequences -> the batch that one process computes: what the encoder sees, and what is to be found out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..models.packing import Packed
from ..training.batches import Plan, PlanOptions, Portion, plan
from .masking import Ids, corrupt, draw_words
from .texts import Texts, Tokenization

#: A part of the seed, so that no two uses draw the same numbers.
_MASKS: Final = 12


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's part of a global batch: n sequences of T tokens in all, laid end to end.

    Attributes:
        original: The sequences.
        masked: What the encoder sees of them.
        words: [T] int64, number of each token's word in its sequence, -1 for special tokens.
        seeds: [n] int64, what the decoder's draws depend on.
        hidden: [m] int64, tokens that the encoder has to find.
        content: [k] int64, tokens that the decoder has to find: all but special ones.
        totals: Tokens that the encoder, and the decoder, have to find in one of the micro-batches of an optimiser's
            step, over all processes, on average; None where this batch is all there is.
    """

    original: Packed
    masked: Packed
    words: Tensor
    seeds: Tensor
    hidden: Tensor
    content: Tensor
    totals: tuple[float, float] | None = None

    @property
    def tokens(self) -> int:
        """Tokens, special ones included."""
        return self.original.input_ids.numel()

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens that the encoder, and the decoder, have to find here."""
        return self.hidden.numel(), self.content.numel()

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU copies from without waiting (a loader calls this)."""
        return self._with(Tensor.pin_memory)

    def _with(self, move: Callable[[Tensor], Tensor]) -> Batch:
        def packed(part: Packed) -> Packed:
            return Packed(move(part.input_ids), part.lengths)

        return replace(
            self, original=packed(self.original), masked=packed(self.masked), words=move(self.words),
            seeds=move(self.seeds), hidden=move(self.hidden), content=move(self.content),
        )  # fmt: skip


@dataclass(frozen=True)
class Masking:
    """Sequences -> `Batch`.

    Attributes:
        tokens: The tokenizer.
        share: Share of the tokens that the encoder does not see.
        seed: Of all draws.
    """

    tokens: Tokenization
    share: float
    seed: int

    def __call__(self, texts: Texts, rows: Sequence[int], visits: Sequence[int]) -> Batch:
        """The batch of some sequences; masks depend on the seed, the sequence's number and the visit alone.

        Args:
            texts: All sequences.
            rows: Numbers of those of this batch.
            visits: How often each was visited before.
        """
        before, after = list(self.tokens.before), list(self.tokens.after)
        original, masked, words, seeds, hidden = [], [], [], [], []
        start = 0
        for row, visit in zip(rows, visits, strict=True):
            content, begins = texts.sequence(int(row))
            generator = np.random.default_rng([self.seed, _MASKS, int(visit), int(row)])
            seeds.append(int(generator.integers(1 << 32)))
            ids = np.concatenate([before, content, after]).astype(np.int64)
            numbers = np.full(len(ids), -1, dtype=np.int64)
            numbers[len(before) : len(before) + len(content)] = np.cumsum(begins) - 1
            drawn = draw_words(numbers, self.share, generator)
            original.append(ids)
            masked.append(corrupt(ids, drawn, self.tokens.mask, self.tokens.ordinary, generator))
            words.append(numbers)
            hidden.append(drawn + start)
            start += len(ids)
        if not original:
            # No sequence for this process in a short batch: one without content stands in, which teaches nothing.
            original = masked = [np.array([*before, *after], dtype=np.int64)]
            words, seeds = [np.full(len(original[0]), -1, dtype=np.int64)], [0]
        numbers = np.concatenate(words)
        lengths = tuple(map(len, original))
        return Batch(
            Packed(torch.from_numpy(np.concatenate(original)), lengths),
            Packed(torch.from_numpy(np.concatenate(masked)), lengths),
            torch.from_numpy(numbers),
            torch.tensor(seeds, dtype=torch.long),
            _tensor(hidden),
            torch.from_numpy(np.flatnonzero(numbers >= 0)),
        )


def _tensor(parts: Sequence[Ids]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *parts]))


class PretrainSteps(Dataset[Batch]):
    """Item k is this process's batch of step k; item (e, k) that of step k of epoch e.

    As in fine-tuning, nothing is remembered from one item to the next: a run is resumed by asking for later items.

    Args:
        texts: All sequences.
        options: How they form batches.
        masking: How they are masked.
        rank: This process.
        world: Processes in all.
    """

    def __init__(self, texts: Texts, options: PlanOptions, masking: Masking, *, rank: int = 0, world: int = 1) -> None:
        self.texts, self.options, self.masking = texts, options, masking
        self.rank, self.world = rank, world
        self._portions = [Portion(np.arange(len(texts)))]
        self._plan = plan(self._portions, options, 0)

    def __len__(self) -> int:
        return len(self._plan)

    def plan(self, epoch: int | None = None) -> Plan:
        """The global batches of an epoch, by default of the last one asked for."""
        if epoch is not None and epoch != self._plan.epoch:
            self._plan = plan(self._portions, self.options, epoch)
        return self._plan

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        """The batch of a step."""
        if get_worker_info() is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        epoch, index = key if isinstance(key, tuple) else (None, key)
        step = self.plan(epoch)[index]
        part = step.part(self.rank, self.world)
        return self.masking(self.texts, step.rows[part].tolist(), step.visits[part].tolist())
