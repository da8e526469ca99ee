"""What an encode call returns beside the numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class Encoded:
    """Vectors of one window of texts, and what happened to the texts on the way.

    Attributes:
        vectors: [n, dim] float32, row i for text i.
        tokens: Tokens computed; a sequence that stands twice counts once.
        truncated: Rows whose text was cut at the maximum length, ascending.
        repaired: Rows whose lone surrogates were replaced by U+FFFD, ascending.
        split: Rows whose text was computed in several parts, ascending.
        keys: A digest for each row, the same where the token sequences are the same; none where tokens are not known.
    """

    vectors: npt.NDArray[np.float32]
    tokens: int = 0
    truncated: list[int] = field(default_factory=list)
    repaired: list[int] = field(default_factory=list)
    split: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)


class Embeddings(np.ndarray):  # type: ignore[type-arg]
    """An ordinary array of vectors that also knows which texts were changed before they were encoded.

    Attributes:
        truncated: Rows whose text was cut at the maximum length, ascending.
        repaired: Rows whose lone surrogates were replaced by U+FFFD, ascending.

    Arrays derived from it (slices, sums) are plain: their `truncated` and `repaired` are empty.
    """

    truncated: tuple[int, ...]
    repaired: tuple[int, ...]

    @classmethod
    def of(
        cls, vectors: npt.NDArray[Any], truncated: tuple[int, ...] = (), repaired: tuple[int, ...] = ()
    ) -> Embeddings:
        """View `vectors` as embeddings, without a copy."""
        view = vectors.view(cls)
        view.truncated, view.repaired = truncated, repaired
        return view

    def __array_finalize__(self, obj: Any) -> None:
        self.truncated, self.repaired = (), ()
