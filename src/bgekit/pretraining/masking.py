"""Masks of RetroMAE: tokens that the encoder does not see, and those that each position of the decoder sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ..networks.packing import Packed
from ..training.batches.sampler import DatasetShare, GlobalBatch, PlanOptions, StepBatch, StepBatches
from .token_store import Ids, Texts, Tokenization

#: Of the masked tokens, those that become the mask token, and those that become a random one; the rest stay (BERT).
_MASKED: Final = 0.8
_RANDOM: Final = 0.1
#: 32 bits.
_ALL: Final = 0xFFFFFFFF


def draw_words(words: Ids, share: float, generator: np.random.Generator) -> Ids:
    """Positions of the tokens of words drawn at random, whole words only.

    Words are taken in random order up to `share` of all tokens that belong to words. The word that would pass it is
    taken with the probability that makes the share exact on average, so that long words are drawn as often as short.

    Args:
        words: [L] the number of each token's word, from 0; -1 for special tokens, which are never drawn.
        share: Share of the tokens.
        generator: Of the draw.

    Returns:
        [m] int64, ascending.
    """
    sizes = np.bincount(words[words >= 0])
    order = generator.permutation(len(sizes))
    total = np.cumsum(sizes[order])
    budget = share * float(sizes.sum())
    count = int(np.searchsorted(total, budget + 1e-9, side="right"))
    if count < len(order):
        rest = budget - float(total[count - 1] if count else 0)
        count += bool(generator.random() * sizes[order[count]] < rest)
    drawn = np.zeros(len(sizes) + 1, dtype=np.bool_)  # The last is for the number -1.
    drawn[order[:count]] = True
    return np.flatnonzero(drawn[words])


def corrupt(ids: Ids, positions: Ids, mask: int, ordinary: Ids, generator: np.random.Generator) -> Ids:
    """The ids with those at some positions masked: 80 % as the mask token, 10 % as another token, 10 % as they are.

    Args:
        ids: [L].
        positions: [m] what is masked.
        mask: Id of the mask token.
        ordinary: Ids that random tokens are drawn from.
        generator: Of the draw.
    """
    result = ids.copy()
    fate = generator.random(len(positions))
    result[positions[fate < _MASKED]] = mask
    replaced = positions[(fate >= _MASKED) & (fate < _MASKED + _RANDOM)]
    result[replaced] = generator.choice(ordinary, len(replaced))
    return result


def visible(words: Tensor, seeds: Tensor, share: float) -> Tensor:
    """Keys that each position of the decoder sees: the paper's M, of which 0 is True and minus infinity False.

    Position i sees the first key, which is the text's vector, and of the others those whose words are drawn for it,
    each with probability `1 - share`; never itself. Special tokens are always seen. Each position has a draw of its
    own, which is a hash of the text's seed, the position and the word: nothing is stored or sent, and every device
    draws the same.

    Args:
        words: [n, L] int64, the number of each token's word, -1 for special tokens.
        seeds: [n] int64 from 0 to 2**32 - 1, one for each text.
        share: Share of the words that a position does not see.

    Returns:
        [n, L, L] bool: text, position, key.
    """
    length = words.shape[1]
    position = torch.arange(length, device=words.device)
    rows = _hash32(seeds[:, None] ^ _hash32(position + 1)[None, :])
    columns = _hash32(words + 2)
    drawn = _hash32(rows[:, :, None] ^ columns[:, None, :]) < int(share * 2**32)
    seen = ~(drawn & (words >= 0)[:, None, :])
    seen[:, position, position] = False
    seen[:, :, 0] = True
    return seen


def _hash32(value: Tensor) -> Tensor:
    """A hash of 32 bits; products stay below 2**63."""
    for _ in range(2):
        value = ((value >> 16) ^ value) * 0x45D9F3B & _ALL
    return (value >> 16) ^ value


#: A part of the seed, so that no two uses draw the same numbers.
_MASKS: Final = 12


@dataclass(frozen=True, eq=False)
class MaskedBatch(StepBatch):
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


@dataclass(frozen=True)
class Masking:
    """Sequences -> `MaskedBatch`.

    Attributes:
        tokens: The tokenizer.
        share: Share of the tokens that the encoder does not see.
        seed: Of all draws.
    """

    tokens: Tokenization
    share: float
    seed: int

    def __call__(self, texts: Texts, rows: Sequence[int], passes: Sequence[int]) -> MaskedBatch:
        """The batch of some sequences; masks depend on the seed, the sequence's number and the pass alone.

        Args:
            texts: All sequences.
            rows: Numbers of those of this batch.
            passes: How often each was drawn before.
        """
        before, after = list(self.tokens.before), list(self.tokens.after)
        original, masked, words, seeds, hidden = [], [], [], [], []
        start = 0
        for row, earlier in zip(rows, passes, strict=True):
            content, begins = texts.sequence(int(row))
            generator = np.random.default_rng([self.seed, _MASKS, int(earlier), int(row)])
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
        return MaskedBatch(
            Packed(torch.from_numpy(np.concatenate(original)), lengths),
            Packed(torch.from_numpy(np.concatenate(masked)), lengths),
            torch.from_numpy(numbers),
            torch.tensor(seeds, dtype=torch.long),
            _tensor(hidden),
            torch.from_numpy(np.flatnonzero(numbers >= 0)),
        )


def _tensor(parts: Sequence[Ids]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *parts]))


class PretrainSteps(StepBatches[MaskedBatch]):
    """Batches of masked sequences by step, see `StepBatches`.

    Args:
        texts: All sequences.
        options: How they form batches.
        masking: How they are masked.
        rank: This process.
        world: Processes in all.
    """

    def __init__(self, texts: Texts, options: PlanOptions, masking: Masking, *, rank: int = 0, world: int = 1) -> None:
        self.texts, self.masking = texts, masking
        super().__init__([DatasetShare(np.arange(len(texts)))], options, rank=rank, world=world)

    def batch(self, rows: GlobalBatch) -> MaskedBatch:
        """This process's part of a global batch."""
        part = rows.part(self.rank, self.world)
        return self.masking(self.texts, rows.rows[part].tolist(), rows.passes[part].tolist())
