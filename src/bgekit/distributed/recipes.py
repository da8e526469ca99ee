"""How a model is loaded, so that other processes can do the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from ..models.families import is_hosted

if TYPE_CHECKING:
    from ..inference.model import Embedder
    from ..inference.reranker import FlagReranker


@dataclass(frozen=True)
class ModelRecipe:
    """A model by its name and options: what crosses to another machine instead of weights.

    Attributes:
        name: A folder that all nodes see, a Hugging Face id, or `packaged:NAME`.
        options: Arguments of `FlagModel` (of `FlagReranker`, where a reranker is meant).

    Raises:
        ArgumentError: the model is hosted: its server computes, whoever asks.

    Example:
        >>> from bgekit.distributed import ModelRecipe
        >>> ModelRecipe("BAAI/bge-small-en-v1.5", {"max_length": 128}).load().card.name
        'BAAI/bge-small-en-v1.5'
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if is_hosted(self.name):
            raise ArgumentError(f"{self.name} is computed by its server: more machines that ask it make nothing faster")

    @classmethod
    def of(cls, model: Embedder) -> ModelRecipe:
        """The recipe of a model that was loaded here; its devices are not part of it.

        Raises:
            ArgumentError: it is not one that another process can load.
        """
        made_of = vars(model).get("made_of")
        if made_of is None:
            raise ArgumentError(f"{model.card.name} cannot be loaded by other machines: give a FlagModel")
        name, options = made_of
        return cls(name, {key: value for key, value in options.items() if key not in ("devices", "device")})

    def load(self) -> Embedder:
        """The embedder."""
        from ..inference import load_model

        return load_model(self.name, **self.options)

    def load_reranker(self) -> FlagReranker:
        """The reranker."""
        from ..inference import FlagReranker

        return FlagReranker(self.name, **self.options)
