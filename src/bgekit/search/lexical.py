"""Rankings by the weights that a model gives to tokens: the sum of products over the tokens that two texts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .postings import Postings, token_term


class TokenWeights:
    """Scores of texts by the tokens that they share with a query.

    Args:
        parts: First row and postings of parts that follow one another.
        rows: Rows of all of them.
        deleted: Whether each row is deleted [rows]; None where none is.
    """

    def __init__(
        self, parts: Sequence[tuple[int, Postings]], rows: int, deleted: npt.NDArray[np.bool_] | None = None
    ) -> None:
        self._parts, self.rows, self._deleted = parts, rows, deleted

    def of_rows(self, query: npt.NDArray[Any]) -> npt.NDArray[np.float32] | None:
        """The score of every row, [rows], 0 where it shares no token with the query; None where no row does.

        Args:
            query: Its lexical weights (`LEXICAL`).
        """
        scores: npt.NDArray[np.float32] | None = None
        for token, weight in query.tolist():
            for first, part in self._parts:
                rows, weights = part.find(token_term(token))
                if not len(rows):
                    continue
                if scores is None:
                    scores = np.zeros(self.rows, np.float32)
                scores[rows + first if first else rows] += np.float32(weight) * weights
        if scores is not None and self._deleted is not None:
            scores[self._deleted] = 0
        return scores
