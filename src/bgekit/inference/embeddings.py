"""What an encode call returns beside the numbers."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import BgekitError

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


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
        """As of any array."""
        self[...] = value

    def put(self, *arguments: Any, **options: Any) -> None:
        """As of any array."""
        self.origin = None
        super().put(*arguments, **options)

    def sort(self, *arguments: Any, **options: Any) -> None:
        """As of any array."""
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
        """As of any array; of the same origin if whole vectors stay together."""
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
