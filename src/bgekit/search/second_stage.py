"""What was found, put in a new order by something that reads query and text together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from ..errors import ArgumentError

if TYPE_CHECKING:
    from .index import Hit


class PairScorer(Protocol):
    """What scores pairs of query and passage together, such as `FlagReranker`."""

    def compute_score(self, sentence_pairs: list[tuple[str, str]]) -> Sequence[float]:
        """One score for each pair; higher is more relevant."""
        ...


def reranked(scorer: PairScorer, queries: Sequence[str], found: Sequence[Sequence[Hit]], top_k: int) -> list[list[Hit]]:
    """The best of what was found for each query, by the scorer; of equal scores what was found first.

    Args:
        scorer: Scores the pairs, all in one call.
        queries: The queries, without instructions of the first stage.
        found: What the first stage found for each.
        top_k: How many are wanted of each.

    Raises:
        ArgumentError: the index keeps no texts.
    """
    pairs = []
    for query, hits in zip(queries, found, strict=True):
        for hit in hits:
            if hit.text is None:
                raise ArgumentError("the index keeps no texts to rerank: encode with --store-texts, or index the files")
            pairs.append((query, hit.text))
    scores = iter(scorer.compute_score(pairs) if pairs else ())
    answers = []
    for hits in found:
        scored = [replace(hit, score=float(next(scores)), retrieval_score=hit.score) for hit in hits]
        scored.sort(key=lambda hit: -hit.score)
        answers.append([replace(hit, rank=rank) for rank, hit in enumerate(scored[:top_k], 1)])
    return answers
