"""LangChain embeddings on bgekit's encoder: `pip install 'bgekit[langchain]'`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import import_extra
from ..inference.model import Embedder
from ..models.card import UNSET, Unset

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
else:
    Embeddings = import_extra("langchain_core.embeddings", "langchain").Embeddings

__all__ = ["BgeEmbeddings", "HuggingFaceBgeEmbeddings"]


class BgeEmbeddings(Embeddings):
    """A model as LangChain embeddings, with the arguments of LangChain's own `HuggingFaceBgeEmbeddings`.

    Pooling, length and instructions come from the model's card. The instruction of queries can be set at any time:
    `embeddings.query_instruction = "..."`. Safe to use from several threads; the asynchronous methods of the base
    class run in LangChain's thread pool.

    Attributes:
        model: The `FlagModel` (or other embedder) that computes the vectors.
        model_name: Its name or folder.
        encode_kwargs: Arguments of every call of the model's `encode`, such as `batch_size`. `normalize_embeddings`
            is accepted: True gives unit length whatever the card says, False leaves it to the card.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | Embedder,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        query_instruction: str | Unset | None = UNSET,
        embed_instruction: str | Unset | None = UNSET,
        cache_folder: str | None = None,
        show_progress: bool = False,
    ) -> None:
        """Load a model, or take one that is loaded.

        Args:
            model_name: A folder, a Hugging Face id, `packaged:NAME`, or an embedder such as a `FlagModel`.
            model_kwargs: Arguments of `FlagModel`, such as `{"device": "cuda"}`.
            encode_kwargs: Arguments of `FlagModel.encode`.
            query_instruction: Text put before queries; the card's if left out, None or "" for none.
            embed_instruction: Text put before documents; the card's if left out, None or "" for none.
            cache_folder: Where files from the hub are kept.
            show_progress: Show a progress bar for documents.

        Raises:
            MissingExtraError: LangChain is not installed (when this module is imported).
            CheckpointError: there is no such model.
        """
        if isinstance(model_name, Embedder):
            self.model: Embedder = model_name
        else:
            from ..inference.embedder import load_model

            cache: dict[str, Any] = {} if cache_folder is None else {"cache_dir": cache_folder}
            self.model = load_model(model_name, **cache, **(model_kwargs or {}))
        self.model_name = self.model.card.name
        self.encode_kwargs = dict(encode_kwargs or {})
        self.show_progress = show_progress
        self._instructions: dict[str, str | Unset | None] = {"query": query_instruction, "document": embed_instruction}

    @property
    def query_instruction(self) -> str:
        """Text put before queries. Setting UNSET (from `bgekit.models.card`) brings the card's back."""
        return self._instruction("query")

    @query_instruction.setter
    def query_instruction(self, instruction: str | Unset | None) -> None:
        self._instructions["query"] = instruction

    @property
    def embed_instruction(self) -> str:
        """Text put before documents, to be set as `query_instruction`."""
        return self._instruction("document")

    @embed_instruction.setter
    def embed_instruction(self, instruction: str | Unset | None) -> None:
        self._instructions["document"] = instruction

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each document; none for an empty list."""
        return self._embed("document", texts, self.show_progress).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._embed("query", [text], False)[0].tolist()

    def _instruction(self, role: str) -> str:
        chosen = self._instructions[role]
        return self.model.card.prompt(role).prefix if isinstance(chosen, Unset) else (chosen or "")

    def _embed(self, role: str, texts: list[str], progress: bool) -> npt.NDArray[np.float32]:
        options = {**self.encode_kwargs, "convert_to_numpy": True}
        unit_length = options.pop("normalize_embeddings", False)
        if options.get("show_progress") is None and options.get("show_progress_bar") is None:
            options["show_progress"] = progress
        encode = self.model.encode_queries if role == "query" else self.model.encode_corpus
        vectors = np.asarray(encode(texts, instruction=self._instructions[role], **options))
        if unit_length and not self.model.card.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


#: The name that LangChain has for it: a program changes one import line.
HuggingFaceBgeEmbeddings = BgeEmbeddings
