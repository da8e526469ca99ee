"""The highest scores, in a fixed order."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Rows: TypeAlias = "npt.NDArray[np.int64]"


def best_rows(scores: npt.NDArray[np.float32], top_k: int) -> Rows:
    """The rows of the highest scores, best first; of equal ones the earlier first."""
    if len(scores) <= top_k:
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    rows = np.flatnonzero(scores >= least)
    best: Rows = rows[np.argsort(-scores[rows], kind="stable")[:top_k]]
    return best
