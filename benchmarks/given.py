"""An embedder whose vectors are given: what search and evaluation cost without a model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bgekit.inference.model import Embedder
from bgekit.inference.pipeline import Encoded
from bgekit.models.card import ModelCard, Prompt


class Given(Embedder):
    """An embedder that asks a function for its vectors.

    Attributes:
        seconds: CPU time that the function has taken.
    """

    precision = "float32"

    def __init__(self, name: str, width: int, vectors_of: Callable[[list[str]], npt.NDArray[np.float32]]) -> None:
        """Nothing computed yet.

        Args:
            name: Name of the model; with the width it tells it from others.
            width: Of the vectors.
            vectors_of: Vectors [n, width] of n texts.
        """
        self.card = ModelCard(
            name=name, dimension=width, pooling="cls", normalize=True, max_length=512,
            prompts={"query": Prompt(), "document": Prompt()},
        )  # fmt: skip
        self._vectors_of, self.seconds = vectors_of, 0.0

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.card.dimension

    @property
    def fingerprint(self) -> str:
        """Tells the model from others."""
        return hashlib.sha256(f"{self.card.name} {self.dimension}".encode()).hexdigest()

    def _compute(self, blocks: Iterable[list[str]], *_: Any) -> Iterator[Encoded]:
        for texts in blocks:
            start = time.process_time()
            vectors = self._vectors_of(texts)
            self.seconds += time.process_time() - start
            yield Encoded(vectors, len(texts))
