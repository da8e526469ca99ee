"""Folders of shards whose vectors are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgekit.data.records import Record
from bgekit.inference.shards import encode_to_shards


@pytest.fixture
def shards_of(tmp_path: Path, embedder: Callable[..., Any]) -> Callable[..., Path]:
    """A folder of shards with the given vectors, whose ids and texts are their numbers."""

    def make(
        vectors: np.ndarray, *, ids: list[str] | None = None, store_texts: bool = True, shard_size: int = 100,
        dtype: Any = "float32", chunked: bool = False, metadata: list[dict[str, Any]] | None = None, **card: Any,
    ) -> Path:  # fmt: skip
        model = embedder(vectors.shape[1], **card)
        model.table = {f"text {row}": vector for row, vector in enumerate(vectors)}
        names = ids or [str(row) for row in range(len(vectors))]
        known = metadata or [{} for _ in names]
        records = [Record(name, f"text {row}", metadata=known[row]) for row, name in enumerate(names)]
        folder = tmp_path / f"shards-{len(list(tmp_path.iterdir()))}"
        encode_to_shards(model, records, folder, store_texts=store_texts, shard_size=shard_size, dtype=dtype)
        if chunked:
            manifest = (folder / "manifest.json").read_text()
            (folder / "manifest.json").write_text(manifest.replace('"kind":', '"chunk_size": 8, "kind":'))
        return folder

    return make
