"""Batches of a reranker: each passage of a row together with the row's query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..models.packing import Packed
from ..models.prompts import Prompt
from ..reranking.tokenization import PairRequest, PairTokenizer
from .collate import Batch, Collator
from .examples import Example


@dataclass
class PairCollator(Collator):
    """Examples -> `Batch` whose passages are pairs of query and passage, as the reranker reads them.

    Attributes:
        max_len: Tokens of a pair, special tokens included; the query has three quarters of them at most, as when the
            reranker is used.
        token_types: How many token types the network has.
    """

    max_len: int = 160
    token_types: int = 0
    _pairs: PairTokenizer | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_pairs": None}

    def __call__(self, examples: Sequence[Example], *, size: int, offset: int = 0, in_batch: bool = True) -> Batch:
        """The batch of some examples; rows are compared within their groups alone."""
        batch = super().__call__(examples, size=size, offset=offset, in_batch=False)
        pairs = [
            (_in(self.prompt_of(example.row), example.row.query), _in(self.passage_prompt_of(example.row), passage))
            for example in examples
            for passage in example.passages
        ]
        if not pairs:
            return batch
        if self._pairs is None:
            request = PairRequest(Prompt(), Prompt(), self.max_len, token_types=self.token_types)
            self._pairs = PairTokenizer(self.tokenizer, request)
        tokens = self._pairs(pairs)
        packed = Packed.of(tokens.ids, token_types=tokens.types)
        return replace(batch, passages=packed, truncated=(0, len(tokens.truncated)))


def _in(prompt: Prompt, text: str) -> str:
    return f"{prompt.prefix}{text}{prompt.suffix}"
