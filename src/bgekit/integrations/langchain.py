"""LangChain embeddings on bgekit's encoder: `pip install 'bgekit[langchain]'`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import import_extra
from ..inference.model import Embedder
from ..models.card import UNSET, Unset
from .instructed import InstructedModel
from .served import ServedModel

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
else:
    Embeddings = import_extra("langchain_core.embeddings", "langchain").Embeddings

__all__ = ["BgeEmbeddings", "HuggingFaceBgeEmbeddings"]


class BgeEmbeddings(Embeddings):
    """A model as LangChain embeddings, with the arguments of LangChain's own `HuggingFaceBgeEmbeddings`.

    Pooling, length and instructions come from the model's card. The instruction of queries can be set at any time:
    `embeddings.query_instruction = "..."`. Safe to use from several threads; the asynchronous methods of the base
    class run in LangChain's thread pool. In place of a model it takes the address of a server of `bge serve`, which
    LangChain's own classes refuse by now: queries then go to `NAME:query`.

    Attributes:
        model: The `FlagModel` (or other embedder) that computes the vectors, or the served model.
        model_name: Its name, folder or address.
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
        api_key: str | None = None,
    ) -> None:
        """Load a model, or take one that is loaded or served.

        Args:
            model_name: A folder, a Hugging Face id, `packaged:NAME`, an embedder such as a `FlagModel`, or the address
                of a server, `http://HOST:PORT` for its first embedder or `http://HOST:PORT/NAME`.
            model_kwargs: Arguments of `FlagModel`, such as `{"device": "cuda"}`.
            encode_kwargs: Arguments of `FlagModel.encode`; of a server `batch_size` and `normalize_embeddings`.
            query_instruction: Text put before queries; the card's if left out, None or "" for none.
            embed_instruction: Text put before documents; the card's if left out, None or "" for none.
            cache_folder: Where files from the hub are kept.
            show_progress: Show a progress bar for documents.
            api_key: Key of the server, the environment variable BGE_API_KEY by default.

        Raises:
            MissingExtraError: LangChain is not installed (when this module is imported).
            CheckpointError: there is no such model.
            ArgumentError: there are arguments that a server has no use for, or a key without a server.
        """
        self._model = InstructedModel(
            model_name, model_kwargs=model_kwargs, encode_kwargs=encode_kwargs, query=query_instruction,
            document=embed_instruction, cache_folder=cache_folder, api_key=api_key,
        )  # fmt: skip
        self.model: Embedder | ServedModel = self._model.model
        self.model_name = self._model.name
        self.encode_kwargs = self._model.encode_kwargs
        self.show_progress = show_progress

    @property
    def query_instruction(self) -> str:
        """Text put before queries. Setting UNSET (from `bgekit.models.card`) brings the card's back."""
        return self._model.instruction("query")

    @query_instruction.setter
    def query_instruction(self, instruction: str | Unset | None) -> None:
        self._model.instructions["query"] = instruction

    @property
    def embed_instruction(self) -> str:
        """Text put before documents, to be set as `query_instruction`."""
        return self._model.instruction("document")

    @embed_instruction.setter
    def embed_instruction(self, instruction: str | Unset | None) -> None:
        self._model.instructions["document"] = instruction

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each document; none for an empty list."""
        return self._model.embed("document", texts, progress=self.show_progress).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._model.embed("query", [text])[0].tolist()


#: The name that LangChain has for it: a program changes one import line.
HuggingFaceBgeEmbeddings = BgeEmbeddings
