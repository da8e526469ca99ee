"""An embedder without a model: a text's vector comes from the text itself, or from a table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgekit.encoding.base import Embedder
from bgekit.encoding.records import Record
from bgekit.encoding.result import Encoded
from bgekit.encoding.shards import encode_to_shards
from bgekit.models.card import ModelCard
from bgekit.models.prompts import Prompt


class TableEmbedder(Embedder):
    def __init__(self, dimension: int = 16, *, name: str = "table", precision: str = "float32", **card: Any) -> None:
        facts = {"pooling": "cls", "normalize": True, "prompts": {"query": Prompt("q: ")}, "max_length": 64} | card
        self.card = ModelCard(name=name, dimension=dimension, **facts)
        self.table: dict[str, np.ndarray] = {}
        self.encoded = 0
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

    def _encode_unique(
        self, windows: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None
    ) -> Iterator[Encoded]:
        for texts in windows:
            self.encoded += len(texts)
            yield Encoded(np.stack([self.vector(text) for text in texts]).astype(np.float32), len(texts))


@pytest.fixture
def embedder() -> Callable[..., TableEmbedder]:
    return TableEmbedder


@pytest.fixture
def shards_of(tmp_path: Path) -> Callable[..., Path]:
    """A folder of shards with the given vectors, whose ids and texts are their numbers."""

    def make(
        vectors: np.ndarray, *, ids: list[str] | None = None, store_texts: bool = True, shard_size: int = 100,
        dtype: Any = "float32", chunked: bool = False, **card: Any,
    ) -> Path:  # fmt: skip
        model = TableEmbedder(vectors.shape[1], **card)
        model.table = {f"text {row}": vector for row, vector in enumerate(vectors)}
        names = ids or [str(row) for row in range(len(vectors))]
        records = [Record(name, f"text {row}") for row, name in enumerate(names)]
        folder = tmp_path / f"shards-{len(list(tmp_path.iterdir()))}"
        encode_to_shards(model, records, folder, store_texts=store_texts, shard_size=shard_size, dtype=dtype)
        if chunked:
            manifest = (folder / "manifest.json").read_text()
            (folder / "manifest.json").write_text(manifest.replace('"kind":', '"chunk_size": 8, "kind":'))
        return folder

    return make
