"""An encoder for pipelines of Ray Data: a callable for `map_batches`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from .recipes import ModelRecipe


class BgeEncoder:
    """Texts of batches -> the batches with vectors: a callable for `ray.data.Dataset.map_batches`.

    The model is loaded where the callable is constructed: once in each actor of the pool. What Ray Data does is so:
    rows of a batch stay in order, but blocks do not unless `DataContext.execution_options.preserve_order` is set; an
    actor that dies is restarted and its blocks are computed again; an exception, such as that of a column that is no
    text, ends the job. A vector depends on its text alone (BERT family, CPU), so batches may be cut in any way.

    Example:
        >>> import ray
        >>> from bgekit.distributed import BgeEncoder, read_texts
        >>> texts = read_texts("corpus.jsonl")  # doctest: +SKIP
        >>> vectors = texts.map_batches(  # doctest: +SKIP
        ...     BgeEncoder, fn_constructor_args=["BAAI/bge-small-en-v1.5"], batch_size=1024,
        ...     compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1,
        ... )
    """

    def __init__(
        self, model: str, *, column: str = "text", output: str = "embedding", role: str = "document",
        max_length: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """Load the model.

        Args:
            model: Its name, as `FlagModel` takes it.
            column: Column of the texts.
            output: Column that the vectors get, [n, dimension] float32.
            role: Which prompt and maximum length texts get, as in `Embedder.encode_blocks`.
            max_length: Cut texts at this many tokens.
            options: Further arguments of `FlagModel`.
        """
        self.model = ModelRecipe(model, options).load()
        self._column, self._output, self._role, self._max_length = column, output, role, max_length

    def __call__(self, batch: Any) -> Any:
        """The batch with a column of vectors.

        Args:
            batch: Of `batch_format` numpy, the default (a dict of arrays), or pyarrow (a table). It is not changed.

        Raises:
            ArgumentError: it has another form, or no such column.
            TextTypeError: an element of the column is not a string.
            NumericalError: a vector has NaN or infinity.
        """
        is_table = not isinstance(batch, Mapping)
        names = list(batch.column_names) if hasattr(batch, "column_names") else list(batch)
        if is_table and not hasattr(batch, "append_column"):
            raise ArgumentError(f"batches are of batch_format 'numpy' or 'pyarrow', not {type(batch).__name__}")
        if self._column not in names:
            raise ArgumentError(f"the batch has no column {self._column}; it has {', '.join(map(str, names))}")
        column = batch[self._column]
        texts = column.to_pylist() if is_table else column.tolist()
        vectors = self._encoded(texts)
        if not is_table:
            return {**batch, self._output: vectors}
        import pyarrow

        flat = pyarrow.array(vectors.ravel())
        return batch.append_column(self._output, pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))

    def _encoded(self, texts: list[str]) -> npt.NDArray[np.float32]:
        if not texts:
            return np.empty((0, self.model.dimension), dtype=np.float32)
        (encoded,) = self.model.encode_blocks([texts], role=self._role, max_length=self._max_length)
        return encoded.vectors
