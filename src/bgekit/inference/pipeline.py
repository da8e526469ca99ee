"""The pipeline of an encode call: inputs -> blocks -> results -> rows; and the arrays that a call returns.

    inputs -> checked, repaired, equal ones found -> Block -> compute -> Encoded -> gathered by `inverse` -> rows

An input is a text, or a pair of texts, whose result is one score. A block is what is planned and computed together:
its batches are cut from its own inputs alone. While one block is computed the next is being read.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ..data.encodings import repair
from ..display.terminal import AT_END, title_now
from ..errors import ArgumentError, BgekitError, NumericalError, TextTypeError
from ..models.head_files import Output

logger = logging.getLogger(__name__)
#: Inputs of a block: enough for batches of nearly equal length, few enough to stream.
BLOCK_SIZE: Final = 2048
#: What to do where a vector has NaN or infinity.
ADVICE: Final = "Try use_fp16=False; if that does not help, the weights are damaged."
T = TypeVar("T", bound="str | tuple[str, str]")


@dataclass
class Encoded:
    """Results of the inputs of a block, and what happened to the inputs on the way.

    Every output of a model has a row for each input, so all of them are taken and joined alike.

    Attributes:
        vectors: [n, dim] float32, row i for input i.
        tokens: Tokens computed; a sequence that stands twice counts once.
        truncated: Rows whose text was cut at the maximum length, ascending.
        repaired: Rows whose lone surrogates were replaced by U+FFFD, ascending.
        split: Rows whose text was computed in several overlapping windows, ascending.
        keys: A digest for each row, the same where the token sequences are the same; none where tokens are not known,
            or where rows were taken or joined.
        ragged: Outputs with a number of rows of its own for each input: for `sparse` an array [m] of `LEXICAL` of each,
            for `multi-vector` an array [m, d] float32 of each. Where vectors were not asked for, their width is 0.
    """

    vectors: npt.NDArray[np.float32]
    tokens: int = 0
    truncated: list[int] = field(default_factory=list)
    repaired: list[int] = field(default_factory=list)
    split: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    ragged: dict[Output, list[npt.NDArray[Any]]] = field(default_factory=dict)

    def take(self, rows: npt.NDArray[np.int64]) -> Encoded:
        """The results of `rows` [m], which may repeat: row i of the result is that of `rows[i]`."""

        def places(marked: list[int]) -> list[int]:
            return np.flatnonzero(np.isin(rows, marked)).tolist() if marked else []

        chosen = rows.tolist()
        return Encoded(
            self.vectors[rows], self.tokens, places(self.truncated), places(self.repaired), places(self.split),
            ragged={output: [each[row] for row in chosen] for output, each in self.ragged.items()},
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: Sequence[Encoded]) -> Encoded:
        """The results of several inputs after each other."""
        starts = [0, *itertools.accumulate(len(part.vectors) for part in parts)]

        def places(name: str) -> list[int]:
            return [start + row for start, part in zip(starts, parts, strict=False) for row in getattr(part, name)]

        vectors = np.concatenate([part.vectors for part in parts])
        tokens = sum(part.tokens for part in parts)
        ragged = {output: [row for part in parts for row in part.ragged[output]] for output in parts[0].ragged}
        return cls(vectors, tokens, places("truncated"), places("repaired"), places("split"), ragged=ragged)


class Inputs(list[T], Generic[T]):
    """Inputs that are planned and computed together, as an engine gets them.

    Attributes:
        told: Whom to tell that a batch of them is computed, by its share of their tokens and its number of tokens; from
            any thread. None if nobody wants to know.
    """

    told: Callable[[float, int], None] | None = None


@dataclass
class Block(Generic[T]):
    """Inputs that are planned and computed together.

    Attributes:
        first: Row of its first input in the whole input.
        inputs: Its distinct inputs that have not been seen before.
        rows: int64 [d], ascending. For each of its distinct inputs the row, in the whole input, where it stood first:
            d - len(inputs) in earlier blocks, then those of `inputs`.
        inverse: int64 [n]. For each of its inputs the place in `rows` of the one that is equal to it.
        repaired: Which of its inputs had lone surrogates replaced, from 0, ascending.
        told: The share of it, and the tokens, that were told to be computed so far.
    """

    first: int
    inputs: Inputs[T]
    rows: npt.NDArray[np.int64]
    inverse: npt.NDArray[np.int64]
    repaired: list[int]
    told: tuple[float, int] = (0.0, 0)

    @property
    def earlier(self) -> npt.NDArray[np.int64]:
        """The part of `rows` that stands in earlier blocks."""
        return self.rows[: len(self.rows) - len(self.inputs)]


def valid_text(item: object, row: int) -> tuple[str, bool]:
    """An element of the input as valid Unicode, and whether it had to be repaired.

    Raises:
        TextTypeError: it is not a string; the message has its row.
    """
    if not isinstance(item, str):
        kind = type(item).__name__
        raise TextTypeError(f"texts must be strings, but the one at index {row} is {item!r:.80} ({kind})")
    return repair(item)


def not_texts(value: object) -> TextTypeError:
    """The error for something that is neither a text nor an iterable of texts."""
    return TextTypeError(f"texts must be a string or an iterable of strings, not {type(value).__name__}: {value!r:.80}")


class Pipeline(Generic[T]):
    """One call: inputs are checked, cleaned and cut into blocks, equal ones are found, results are put in their rows.

    It streams: a block is read when one is to be computed. It serves one call of `run` or `collect`.
    """

    def __init__(
        self,
        compute: Callable[[Iterator[list[T]]], Iterator[Encoded]],
        width: int,
        *,
        model: str,
        ragged: Sequence[Output] = (),
        valid: Callable[[object, int], tuple[T, bool]] = valid_text,  # type: ignore[assignment]
        noun: str = "texts",
        result: str = "the vector of the text",
        advice: str = ADVICE,
        progress: Callable[[float, int], None] | None = None,
    ) -> None:
        """Prepare a call.

        Args:
            compute: Lists of distinct inputs, none empty -> a result for each, in order.
            width: Columns of the vectors; 0 without vectors.
            model: Name of the model, for messages.
            ragged: The outputs that there are beside the vectors.
            valid: An input and its row -> the input to compute, and whether it had to be repaired; raises on others.
            noun: What the inputs are, for messages.
            result: What is computed of an input, for messages.
            advice: What to do where a result has NaN or infinity.
            progress: Called with the number of inputs and of tokens that were computed, batch by batch where the
                engine tells it, from any thread; of inputs a share counts. When a block is done, all of it was told.
        """
        self._compute, self._width, self._model, self._valid = compute, width, model, valid
        self._noun, self._result, self._advice, self._progress = noun, result, advice, progress
        self._lock = threading.Lock()
        # Inputs so far, and how many of them were cut and repaired.
        self._count = self._cut = self._mended = 0
        # What `collect` has written, and which rows of it are special.
        self._truncated: set[int] = set()
        self._split: set[int] = set()
        self._repaired: list[int] = []
        self._out: npt.NDArray[Any] | None = None
        self._rows: npt.NDArray[Any] = np.empty((0, width), dtype=np.float32)
        self._ragged: dict[Output, list[npt.NDArray[Any]]] = {output: [] for output in ragged}
        #: The row where a sequence of tokens stood first, by its digest.
        self._row_of: dict[bytes, int] = {}

    def run(self, blocks: Iterable[list[Any]]) -> Generator[Encoded, None, None]:
        """A result for each block, with a row for each of its inputs, in order.

        Equal inputs are computed once in a block, and the bytes of its results depend on its own inputs alone.

        Raises:
            TextTypeError: an element is not an input; the message has its index, counted from the first block.
            NumericalError: a result has NaN or infinity; the message names the input.
        """
        return self._results(blocks, across=False)

    def collect(self, inputs: Iterable[Any], *, out: npt.NDArray[Any] | None = None, size: int = BLOCK_SIZE) -> Encoded:
        """The results of all inputs in one array. Equal inputs, or those of equal tokens, are computed once.

        Args:
            inputs: The inputs; those of an iterable without a length are remembered by a digest of 16 bytes each.
            out: Array [n, width] of any float type to write into.
            size: Inputs of a block.

        Raises:
            TextTypeError: an element is not an input; the message has its index.
            ArgumentError: `out` does not fit.
            NumericalError: a result has NaN or infinity; the message names the input.
        """
        total = len(inputs) if isinstance(inputs, Sized) else None
        if out is not None:
            _check_out(out, total, self._width)
        self._out = out
        self._rows = out if out is not None else np.empty((total or 0, self._width), dtype=np.float32)
        source, tokens = iter(inputs), 0
        blocks = iter(lambda: list(itertools.islice(source, size)), [])
        with closing(self._results(blocks, across=True, key=_digest if total is None else None)) as results:
            for result in results:
                tokens += result.tokens
                if self._count > len(self._rows):
                    self._grow()
                self._rows[self._count - len(result.vectors) : self._count] = result.vectors
                for output, rows in self._ragged.items():
                    rows += result.ragged[output]
        if out is not None and self._count < len(out):
            raise ArgumentError(f"out has room for {len(out)} vectors, but there were only {self._count} {self._noun}")
        return Encoded(
            self._rows[: self._count], tokens, sorted(self._truncated), self._repaired, sorted(self._split),
            ragged=self._ragged,
        )  # fmt: skip

    def _results(
        self, blocks: Iterable[list[Any]], *, across: bool, key: Callable[[T], object] | None = None
    ) -> Generator[Encoded, None, None]:
        """A complete result for each block.

        Args:
            blocks: The inputs.
            across: Whether equal inputs are found across all blocks, or in each block for itself.
            key: What an input is remembered by, if not by itself.
        """
        waiting: deque[Block[T]] = deque()
        nothing = Encoded(np.empty((0, self._width), dtype=np.float32), ragged={output: [] for output in self._ragged})
        for encoded in self._compute(self._read(blocks, across, key, waiting)):
            while not waiting[0].inputs:
                yield self._gather(waiting.popleft(), nothing, across)
            yield self._gather(waiting.popleft(), encoded, across)
        while waiting:
            yield self._gather(waiting.popleft(), nothing, across)
        about = f"{title}: " if (title := title_now()) else ""
        if self._cut:
            logger.warning(
                "%s%d of %d %s were too long for %s and were cut", about, self._cut, self._count, self._noun,
                self._model, extra=AT_END,
            )  # fmt: skip
        if self._mended:
            logger.warning(
                "%s%d of %d %s held lone surrogates, now U+FFFD", about, self._mended, self._count, self._noun,
                extra=AT_END,
            )  # fmt: skip

    def _read(
        self, blocks: Iterable[list[Any]], across: bool, key: Callable[[T], object] | None, waiting: deque[Block[T]]
    ) -> Iterator[list[T]]:
        """The inputs to compute of each block that has any; every block is put into `waiting`."""
        seen: dict[object, int] = {}
        first = 0
        for items in blocks:
            if not across:
                seen.clear()
            inputs: Inputs[T] = Inputs()
            sources: list[int] = []
            repaired: list[int] = []
            for row, item in enumerate(items, first):
                value, changed = self._valid(item, row)
                if changed:
                    repaired.append(row - first)
                source = seen.setdefault(value if key is None else key(value), row)
                if source == row:
                    inputs.append(value)
                sources.append(source)
            rows = np.array(sources, dtype=np.int64)
            if len(inputs) < len(items):
                rows, inverse = np.unique(rows, return_inverse=True)
            else:
                inverse = np.arange(len(items))
            waiting.append(block := Block(first, inputs, rows, inverse, repaired))
            if self._progress is not None:
                inputs.told = partial(self._tell, block)
            first += len(items)
            if inputs:
                yield inputs

    def _gather(self, block: Block[T], encoded: Encoded, across: bool) -> Encoded:
        """The result of a block: a row for each of its inputs.

        Args:
            block: The block.
            encoded: The results of its new inputs.
            across: Whether rows of earlier blocks, where `collect` has written them, are taken for equal inputs.
        """
        earlier = block.earlier
        finite = np.isfinite(encoded.vectors).all(axis=1)
        for output, rows in encoded.ragged.items():
            values = (row["weight"] if output == "sparse" else row for row in rows)
            finite = finite & np.array([np.isfinite(each).all() for each in values], dtype=bool)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise NumericalError(
                f"{self._result} at index {block.rows[len(earlier) + bad]} has NaN or infinity: "
                f"{block.inputs[bad]!r:.200}. {self._advice}"
            )
        if across:
            if len(encoded.vectors) and encoded.vectors.shape[1] != self._width:
                self._take_width(encoded.vectors.shape[1])
            # Inputs of equal tokens are the same to the model: another batch only rounds them otherwise.
            for place, (row, digest) in enumerate(zip(block.rows[len(earlier) :].tolist(), encoded.keys, strict=False)):
                if (source := self._row_of.setdefault(digest, row)) < block.first:
                    encoded.vectors[place] = self._rows[source]
                    for output, each in encoded.ragged.items():
                        each[place] = self._ragged[output][source]
        if len(earlier):
            places = list(enumerate(earlier.tolist()))
            known = Encoded(
                self._rows[earlier],
                truncated=[place for place, row in places if row in self._truncated],
                split=[place for place, row in places if row in self._split],
                ragged={output: [each[row] for _, row in places] for output, each in self._ragged.items()},
            )
            encoded = Encoded.joined([known, encoded]) if block.inputs else known
        if len(block.inputs) < len(block.inverse):
            encoded = encoded.take(block.inverse)
        self._count += len(block.inverse)
        self._cut += len(encoded.truncated)
        self._mended += len(block.repaired)
        if across:
            self._truncated.update(block.first + row for row in encoded.truncated)
            self._split.update(block.first + row for row in encoded.split)
            self._repaired += [block.first + row for row in block.repaired]
        share, tokens = block.told
        self._tell(block, 1 - share, encoded.tokens - tokens)
        return replace(encoded, repaired=block.repaired)

    def _tell(self, block: Block[T], share: float, tokens: int) -> None:
        """A share of a block, and so many tokens, were computed."""
        if self._progress is not None:
            with self._lock:
                block.told = (block.told[0] + share, block.told[1] + tokens)
            self._progress(share * len(block.inverse), tokens)

    def _take_width(self, width: int) -> None:
        """Make room for vectors of another width than was expected: a server may know better than a table."""
        if self._out is not None or self._count:
            raise ArgumentError(
                f"the vectors have the width {width}, {'out has' if self._out is not None else 'those before had'} "
                f"{self._width}"
            )
        self._width = width
        self._rows = np.empty((len(self._rows), width), dtype=np.float32)

    def _grow(self) -> None:
        if self._out is not None:
            raise ArgumentError(f"out has room for {len(self._out)} vectors, but there are more {self._noun}")
        grown = np.empty((max(self._count, 2 * len(self._rows)), self._width), dtype=np.float32)
        grown[: len(self._rows)] = self._rows
        self._rows = grown


def _check_out(out: npt.NDArray[Any], total: int | None, dimension: int) -> None:
    if out.ndim != 2 or out.shape[1] != dimension or (total is not None and out.shape[0] != total):
        rows = "n" if total is None else total
        raise ArgumentError(f"out has the shape {out.shape}, the vectors need ({rows}, {dimension})")
    if not np.issubdtype(out.dtype, np.floating) or not out.flags.writeable:
        raise ArgumentError(f"out must be a writable array of a floating type, not {out.dtype}")


def _digest(value: str | tuple[str, str]) -> bytes:
    content = value if isinstance(value, str) else repr(value)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


class Origin:
    """The model that vectors come from: known by its fingerprint, which is computed only when somebody asks."""

    def __init__(self, compute: Callable[[], str], model: object | None = None) -> None:
        """Nothing computed yet.

        Args:
            compute: Computes the fingerprint; it lives as long as the vectors, so it should hold no weights.
            model: The model; it is not kept alive.
        """
        self._compute = compute
        self._model = None if model is None else weakref.ref(model)

    @classmethod
    def known(cls, fingerprint: str | None) -> Origin | None:
        """A model of which nothing else is known."""
        return None if fingerprint is None else cls(partial(str, fingerprint))

    @cached_property
    def fingerprint(self) -> str | None:
        """The model's fingerprint, None if its files are gone."""
        try:
            return self._compute()
        except (OSError, BgekitError) as error:
            logger.warning("nothing can tell any more which model some vectors are from: %s", error)
            return None

    @property
    def model(self) -> object | None:
        """The model, if it is still there."""
        return None if self._model is None else self._model()


class Embeddings(np.ndarray):  # type: ignore[type-arg]
    """An ordinary array of vectors that also knows its model, and which texts were changed before they were encoded.

    Attributes:
        truncated: Rows whose text was cut at the maximum length, ascending.
        repaired: Rows whose lone surrogates were replaced by U+FFFD, ascending.
        origin: The model that the vectors come from, None where that is not known.

    Of arrays derived from it, `truncated` and `repaired` are empty. Those that hold whole vectors (rows, slices of
    rows, copies, other number formats) keep the origin; what comes out of arithmetic, or was changed in place, has
    none.

    Example:
        >>> from bgekit import FlagModel
        >>> vectors = FlagModel("BAAI/bge-small-en-v1.5").encode(["one text", "word " * 600])
        >>> vectors.shape, vectors.dtype.name, vectors.truncated
        ((2, 384), 'float32', (1,))
    """

    truncated: tuple[int, ...]
    repaired: tuple[int, ...]
    origin: Origin | None

    @classmethod
    def of(
        cls,
        vectors: npt.NDArray[Any],
        truncated: tuple[int, ...] = (),
        repaired: tuple[int, ...] = (),
        origin: Origin | None = None,
    ) -> Embeddings:
        """View `vectors` as embeddings, without a copy."""
        view = vectors.view(cls)
        view.truncated, view.repaired, view.origin = truncated, repaired, origin
        return view

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model that the vectors come from, None where that is not known."""
        return None if self.origin is None else self.origin.fingerprint

    def __array_finalize__(self, obj: Any) -> None:
        self.truncated, self.repaired, self.origin = (), (), None

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] = (), **options: Any
    ) -> Any:
        for each in out:
            if isinstance(each, Embeddings):
                each.origin = None
        if method == "at" and isinstance(inputs[0], Embeddings):
            inputs[0].origin = None
        if out:
            options["out"] = tuple(map(_plain, out))
        if "where" in options:
            options["where"] = _plain(options["where"])
        found = getattr(ufunc, method)(*map(_plain, inputs), **options)
        if isinstance(found, tuple):
            places = out or (None,) * len(found)
            return tuple(_viewed(made) if there is None else there for made, there in zip(found, places, strict=True))
        return out[0] if out else _viewed(found)

    def __getitem__(self, key: Any) -> Any:
        return self._same_vectors(super().__getitem__(key), _takes_whole_rows(key, self.ndim))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.origin = None
        super().__setitem__(key, value)

    def fill(self, value: Any) -> None:
        """Set all values; the vectors have no origin then."""
        self[...] = value

    def put(self, *arguments: Any, **options: Any) -> None:
        """Change the array as numpy does; the vectors have no origin then."""
        self.origin = None
        super().put(*arguments, **options)

    def sort(self, *arguments: Any, **options: Any) -> None:
        """Change the array as numpy does; the vectors have no origin then."""
        self.origin = None
        super().sort(*arguments, **options)

    def copy(self, order: Any = "C") -> Embeddings:
        """A copy, of the same origin."""
        return self._same_vectors(super().copy(order))

    def __copy__(self) -> Embeddings:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any] | None, /) -> Embeddings:
        return self.copy()

    def astype(self, dtype: Any, *args: Any, **options: Any) -> Any:
        """The vectors in another number format, of the same origin."""
        return self._same_vectors(super().astype(dtype, *args, **options))

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """The vectors in another shape, of the same origin if whole vectors stay together."""
        found = super().reshape(*shape, **options)
        return self._same_vectors(found, found.shape[-1:] == self.shape[-1:] and options.get("order", "C") == "C")

    def __reduce__(self) -> tuple[Any, ...]:
        reduced: Any = super().__reduce__()
        make, arguments, state = reduced
        return make, arguments, (state, self.fingerprint)

    def __setstate__(self, state: tuple[Any, ...], /) -> None:
        array, fingerprint = state if len(state) == 2 else (state, None)  # 0.1.0 kept the array alone.
        super().__setstate__(array)
        self.origin = Origin.known(fingerprint)

    def _same_vectors(self, found: Any, same: bool = True) -> Any:
        if same and isinstance(found, Embeddings) and found is not self:
            found.origin = self.origin
        return found


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Embeddings) else value


def _viewed(value: Any) -> Any:
    return value.view(Embeddings) if isinstance(value, np.ndarray) and value.ndim else value


def _takes_whole_rows(key: Any, dimensions: int) -> bool:
    """Whether an index leaves the last axis as it is."""
    parts = [part for part in (key if isinstance(key, tuple) else (key,)) if part is not None]
    if dimensions == 2 and parts and parts[0] is not Ellipsis:
        rows = parts.pop(0)
        if not isinstance(rows, slice) and np.ndim(rows) > 1:
            return False
    return all(part is Ellipsis or (isinstance(part, slice) and part == slice(None)) for part in parts)
