"""Outputs with a number of their own for each text: lexical weights and multi-vectors, text by text and end to end.

Of a text, lexical weights are an array [m] of `LEXICAL`, ascending by token, and multi-vectors are an array [m, d].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import import_extra

#: A distinct token of a text and its weight, which is above 0.
LEXICAL: Final = np.dtype([("token", np.int32), ("weight", np.float32)])


@dataclass(frozen=True, eq=False)
class Ragged:
    """Arrays of n texts laid end to end; `ragged[i]` is that of text i, without a copy.

    Attributes:
        values: [N, ...] all of them.
        offsets: [n + 1] int64: text i has `values[offsets[i]:offsets[i + 1]]`.

    Example:
        >>> import numpy as np
        >>> from bgekit.inference import Ragged
        >>> vectors = Ragged.of([np.ones((2, 4)), np.zeros((3, 4))])
        >>> vectors.offsets.tolist(), len(vectors), vectors[1].shape
        ([0, 2, 5], 2, (3, 4))
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[npt.NDArray[Any]], empty: npt.NDArray[Any] | None = None) -> Ragged:
        """The arrays of some texts; those of no texts look like `empty`."""
        offsets = np.fromiter(itertools.accumulate(map(len, rows), initial=0), np.int64, len(rows) + 1)
        if rows:
            return cls(np.concatenate(rows), offsets)
        return cls(np.empty(0) if empty is None else empty[:0], offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, text: int) -> npt.NDArray[Any]:
        place = range(len(self))[text]
        return self.values[self.offsets[place] : self.offsets[place + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[text] for text in range(len(self)))


@dataclass(frozen=True, eq=False)
class LexicalCsr:
    """Lexical weights of n texts as the three arrays of a sparse matrix of rows (CSR); columns are token ids.

    Attributes:
        data: [N] float32 weights.
        indices: [N] int32 token ids, ascending in each row.
        indptr: [n + 1] int64: row i has the places from `indptr[i]` to `indptr[i + 1]`.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.inference import LexicalCsr
        >>> model = FlagModel("BAAI/bge-m3")
        >>> rows = model.encode_outputs(["one text", "another"], ("sparse",)).ragged["sparse"]
        >>> len(LexicalCsr.of(rows).indptr)
        3
    """

    data: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[npt.NDArray[Any]]) -> LexicalCsr:
        """Those of the lexical weights of some texts."""
        joined = Ragged.of(rows, np.empty(0, LEXICAL))
        data, indices = (np.ascontiguousarray(joined.values[name]) for name in ("weight", "token"))
        return cls(data, indices, joined.offsets)

    def matrix(self, vocabulary: int) -> Any:
        """The `csr_array` [n, vocabulary] of SciPy, without a copy.

        Raises:
            MissingExtraError: SciPy is not installed.
        """
        sparse: Any = import_extra("scipy.sparse", "eval")
        return sparse.csr_array((self.data, self.indices, self.indptr), (len(self.indptr) - 1, vocabulary))


def as_dict(weights: npt.NDArray[Any]) -> dict[str, float]:
    """Lexical weights of a text by token id, as FlagEmbedding has them: `{"4865": 0.0836, ...}`."""
    return dict(zip(map(str, weights["token"].tolist()), weights["weight"].tolist(), strict=True))
