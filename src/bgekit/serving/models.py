"""The models of a server: their names and aliases, loaded and let go, texts in and vectors or scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..models.card import ModelCard, RerankerCard

if TYPE_CHECKING:
    from .calls import Call

Kind = Literal["embedder", "reranker"]
#: What comes after a name: which prompt texts get.
Alias = Literal["query", "document"]
Side = Literal["right", "left"]


@dataclass(frozen=True)
class Embedded:
    """Vectors of the texts of a request.

    Attributes:
        vectors: [n, d] float32, finite.
        tokens: Of each text, special tokens and prompt included, after it was cut.
        truncated: Positions of texts that were cut, ascending.
    """

    vectors: npt.NDArray[np.float32]
    tokens: list[int]
    truncated: list[int]


@dataclass(frozen=True)
class Scored:
    """Scores of the pairs of a request.

    Attributes:
        scores: [n] float32, as the model gives them (no sigmoid), finite.
        tokens: Of each pair, special tokens included, after it was cut.
        truncated: Positions of pairs that were cut, ascending.
    """

    scores: npt.NDArray[np.float32]
    tokens: list[int]
    truncated: list[int]


class Served:
    """One model of a server.

    Attributes:
        name: By which requests name it.
        id: What it was started with: a folder, an id on the hub or `packaged:NAME`.
        kind: `embedder` or `reranker`.
        card: What its files say; known before it is loaded.
        max_length: Tokens at which its inputs are cut.
        created: When the server took it up, in seconds since 1970.
    """

    name: str
    id: str
    kind: Kind
    card: ModelCard | RerankerCard
    max_length: int
    created: int

    @property
    def dimension(self) -> int:
        """Width of the vectors of an embedder."""
        raise NotImplementedError

    @property
    def precision(self) -> str:
        """Number format that it computes in, such as `bfloat16`."""
        raise NotImplementedError

    @property
    def matryoshka_dims(self) -> tuple[int, ...]:
        """Widths that vectors may be cut to, by what the card says; empty where it says nothing."""
        raise NotImplementedError

    async def embed(
        self, texts: Sequence[str] | Sequence[Sequence[int]], *, call: Call, role: Alias | None = None,
        prompt_name: str | None = None, truncate: bool = True, side: Side = "right", max_length: int | None = None,
        normalize: bool | None = None, dimensions: int | None = None,
    ) -> Embedded:  # fmt: skip
        """Vectors of texts, those of `FlagModel.encode` to the bit.

        Args:
            texts: The texts, or the model's own token ids without special tokens.
            call: The request that they are for; it learns how many tokens they had, and which were cut.
            role: The alias that the model was named by; None encodes as `FlagModel.encode` does.
            prompt_name: A prompt of the card by its name, instead.
            truncate: Cut texts that are too long; if false, refuse them.
            side: Where to cut.
            max_length: Cut at fewer tokens than the model's own length.
            normalize: Scale to unit length, or not; by default as the card says.
            dimensions: Keep so many leading dimensions, scaled as before; those of `matryoshka_dims` or the full width.

        Raises:
            TooLarge: more texts or tokens than a request may have.
            Unprocessable: a text is too long and may not be cut, or an argument is impossible.
            NotFound: the card has no such prompt.
            Overloaded: the queue is full.
            Unready: the model cannot be had now.
            Internal: a vector has NaN, or workers died.
        """
        raise NotImplementedError

    async def score(
        self, pairs: Sequence[tuple[str, str]], *, call: Call, truncate: bool = True, max_length: int | None = None,
        query_max_length: int | None = None,
    ) -> Scored:  # fmt: skip
        """Scores of pairs of a query and a passage, those of `FlagReranker.compute_score`; see `embed`."""
        raise NotImplementedError

    async def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> list[Any]:
        """The `Encoding` of the library `tokenizers` of each text, nothing cut."""
        raise NotImplementedError

    async def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """The texts of token ids."""
        raise NotImplementedError


@dataclass(frozen=True)
class Listed:
    """A name that requests may use.

    Attributes:
        name: The name, with its alias.
        model: Whose it is.
        alias: None for the bare name.
    """

    name: str
    model: Served
    alias: Alias | None


class Models:
    """All models of a server."""

    def find(self, name: str | None, kind: Kind | None = None, *, call: Call | None = None) -> tuple[Served, Alias | None]:
        """A model by what a request calls it, and the alias in that.

        Args:
            name: The name, the full id, or either with `:query` or `:document`; None or "" is the first of its kind.
            kind: What the route needs, None if either will do.
            call: The request; a name in front of its path is believed before `name`.

        Raises:
            NotFound: there is no such model; the message names those that there are.
            Unprocessable: it is of the other kind.
        """
        raise NotImplementedError

    def first(self, kind: Kind) -> Served | None:
        """The first model of a kind."""
        raise NotImplementedError

    def listed(self) -> list[Listed]:
        """All names: of embedders the bare one and both aliases, of rerankers the bare one."""
        raise NotImplementedError
