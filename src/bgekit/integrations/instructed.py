"""A model, here or behind a server, with an instruction for each role: what the classes of other frameworks wrap."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..inference.model import Embedder
from ..models.card import UNSET, Unset
from .served import TEXTS, ServedModel, is_address


class InstructedModel:
    """Texts of queries and documents -> vectors.

    Attributes:
        model: The embedder, or the served model.
        name: Its name, folder or address.
        instructions: Text before inputs of each role: UNSET for the model's own, None or "" for none.
        encode_kwargs: Arguments of every call of `encode`; of a served model `batch_size` and `normalize_embeddings`.
    """

    def __init__(
        self, model: str | os.PathLike[str] | Embedder, *, model_kwargs: Mapping[str, Any] | None,
        encode_kwargs: Mapping[str, Any] | None, query: str | Unset | None, document: str | Unset | None,
        cache_folder: str | None, api_key: str | None,
    ) -> None:  # fmt: skip
        """Load a model, take one that is loaded, or note the address of one.

        Raises:
            ArgumentError: there are arguments that a served model cannot have, or a key without a server.
            CheckpointError: there is no such model.
        """
        self.instructions: dict[str, str | Unset | None] = {"query": query, "document": document}
        self.encode_kwargs = dict(encode_kwargs or {})
        self.model: Embedder | ServedModel
        if isinstance(model, str) and is_address(model):
            names = [name for name, given in (("model_kwargs", model_kwargs), ("cache_folder", cache_folder)) if given]
            if names:
                raise ArgumentError(f"{model} is a server, which loads its models itself: leave out {', '.join(names)}")
            self.model, self.name = ServedModel(model, api_key), model
            return
        if api_key is not None:
            raise ArgumentError("api_key goes with the address of a server, http://HOST:PORT, in place of a model")
        if isinstance(model, Embedder):
            self.model = model
        else:
            from ..inference.embedder import load_model

            cache: dict[str, Any] = {} if cache_folder is None else {"cache_dir": cache_folder}
            self.model = load_model(model, **cache, **(model_kwargs or {}))
        self.name = self.model.card.name

    def instruction(self, role: str) -> str:
        """Text put before inputs of a role."""
        chosen = self.instructions[role]
        if not isinstance(chosen, Unset):
            return chosen or ""
        model = self.model
        return model.prompt(role) if isinstance(model, ServedModel) else model.card.prompt(role).prefix

    def embed(self, role: str, texts: Sequence[str], *, progress: bool = False) -> npt.NDArray[np.float32]:
        """Vectors [n, dimension] of texts of a role."""
        options = dict(self.encode_kwargs)
        unit_length = options.pop("normalize_embeddings", False)
        model, instruction = self.model, self.instructions[role]
        if isinstance(model, ServedModel):
            size = options.pop("batch_size", None) or TEXTS
            options.pop("convert_to_numpy", None)
            if options:
                raise ArgumentError(f"{self.name} is a server, which has no use for encode_kwargs {', '.join(options)}")
            if isinstance(instruction, Unset):
                vectors = model.embed(texts, role, batch_size=size)
            else:
                vectors = model.embed([f"{instruction or ''}{text}" for text in texts], batch_size=size)
            normalized = False
        else:
            options["convert_to_numpy"] = True
            if options.get("show_progress") is None and options.get("show_progress_bar") is None:
                options["show_progress"] = progress
            encode = model.encode_queries if role == "query" else model.encode_corpus
            vectors = np.asarray(encode(list(texts), instruction=instruction, **options))
            normalized = model.card.normalize
        if unit_length and not normalized and len(vectors):
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


#: Both frameworks' classes take it for "the model's own".
__all__ = ["UNSET", "InstructedModel"]
