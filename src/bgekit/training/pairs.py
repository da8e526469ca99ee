"""Batches of a reranker: each passage of a row together with the row's query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..models.packing import Packed
from ..models.prompts import Prompt
from ..reranking.tokenization import PairRequest, PairTokenizer
from .collate import Batch, Collator, Limit
from .examples import Example, Row


@dataclass
class PairCollator(Collator):
    """Examples -> `Batch` whose passages are pairs of query and passage, as the reranker reads them.

    Attributes:
        max_len: Tokens of a pair, special tokens included; the query has three quarters of them at most, as when the
            reranker is used. Lengths of queries and passages of their own do not count.
        token_types: How many token types the network has.
    """

    max_len: int = 160
    token_types: int = 0
    _pairs: PairTokenizer | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_pairs": None}

    def __call__(self, examples: Sequence[Example], *, size: int, offset: int = 0, in_batch: bool = True) -> Batch:
        """The batch of some examples; rows are compared within their groups alone."""
        return super().__call__(examples, size=size, offset=offset, in_batch=False)

    def encode_queries(self, rows: Sequence[Row]) -> tuple[Packed, int]:
        """Nothing: a query is read together with each of its passages."""
        return Packed.of([]), 0

    def encode_passages(self, examples: Sequence[Example]) -> tuple[Packed, int]:
        """Token ids of all pairs, row by row, and how many were cut."""
        pairs = [
            (_in(self.prompt_of(example.row), example.row.query), _in(self.passage_prompt_of(example.row), passage))
            for example in examples
            for passage in example.passages
        ]
        if not pairs:
            return Packed.of([]), 0
        if self._pairs is None:
            request = PairRequest(Prompt(), Prompt(), self.max_len, token_types=self.token_types)
            self._pairs = PairTokenizer(self.tokenizer, request)
        tokens = self._pairs(pairs)
        return Packed.of(tokens.ids, token_types=tokens.types), len(tokens.truncated)

    def limits(self) -> tuple[Limit, ...]:
        """Where pairs are cut."""
        return (Limit("max_len", "pair", self.max_len, self.most),)


def _in(prompt: Prompt, text: str) -> str:
    return f"{prompt.prefix}{text}{prompt.suffix}"
