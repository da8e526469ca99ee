"""One batching plan: longest first, filled to a token budget, results back in input order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def plan_batches(
    lengths: Sequence[int], token_budget: int, *, batch_size: int | None = None, padded: bool = False
) -> Iterator[list[int]]:
    """Positions of the sequences of each batch, longest sequences first.

    Longest first, because a budget that is too large for the device shows at the first batch, and because
    neighbours in length waste least in attention.

    Args:
        lengths: Tokens of each sequence.
        token_budget: Most tokens in a batch; a longer sequence stands alone.
        batch_size: Most sequences in a batch.
        padded: Count a batch as its longest sequence times its size, as architectures that pad compute it.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batch: list[int] = []
    tokens = 0
    for position in order:
        cost = lengths[batch[0]] if batch and padded else lengths[position]
        if batch and (tokens + cost > token_budget or len(batch) == batch_size):
            yield batch
            batch, tokens, cost = [], 0, lengths[position]
        batch.append(position)
        tokens += cost
    if batch:
        yield batch
