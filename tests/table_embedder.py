"""An embedder without a model: a text's vector comes from the text itself, or from a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bgekit.inference.model import Embedder
from bgekit.inference.pipeline import Encoded
from bgekit.models.card import ModelCard, Prompt


class TableEmbedder(Embedder):
    def __init__(self, dimension: int = 16, *, name: str = "table", precision: str = "float32", **card: Any) -> None:
        facts = {
            "pooling": "cls",
            "normalize": True,
            "prompts": {"query": Prompt("q: "), "document": Prompt()},
            "max_length": 64,
        } | card
        self.card = ModelCard(name=name, dimension=dimension, **facts)
        self.table: dict[str, np.ndarray] = {}
        self.encoded = 0
        self.sees_prompts = False
        self._precision, self.salt = precision, ""

    @property
    def dimension(self) -> int:
        return self.card.dimension

    @property
    def precision(self) -> str:
        return self._precision

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(
            f"{self.salt} {self._precision} {self.card.pooling} {self.dimension}".encode()
        ).hexdigest()

    def vector(self, text: str) -> np.ndarray:
        if text in self.table:
            return self.table[text]
        seed = int.from_bytes(hashlib.sha256((self.salt + text).encode()).digest()[:8], "little")
        vector = np.random.default_rng(seed).normal(size=self.dimension)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def _compute(
        self, blocks: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None
    ) -> Iterator[Encoded]:
        for texts in blocks:
            self.encoded += len(texts)
            prefix = prompt.prefix if self.sees_prompts else ""
            yield Encoded(np.stack([self.vector(prefix + text) for text in texts]).astype(np.float32), len(texts))
