"""Which tokens the encoder does not see, and which tokens each position of the decoder sees."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids: TypeAlias = "npt.NDArray[np.int64]"

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
    """Which keys each position of the decoder sees: the paper's M, of which 0 is True and minus infinity False.

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
    rows = _mixed(seeds[:, None] ^ _mixed(position + 1)[None, :])
    columns = _mixed(words + 2)
    drawn = _mixed(rows[:, :, None] ^ columns[:, None, :]) < int(share * 2**32)
    seen = ~(drawn & (words >= 0)[:, None, :])
    seen[:, position, position] = False
    seen[:, :, 0] = True
    return seen


def _mixed(value: Tensor) -> Tensor:
    """A hash of 32 bits; products stay below 2**63."""
    for _ in range(2):
        value = ((value >> 16) ^ value) * 0x45D9F3B & _ALL
    return (value >> 16) ^ value
