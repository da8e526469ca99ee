"""LlamaIndex embeddings on bgekit's encoder, here or behind a server: `pip install 'bgekit[llama-index]'`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import import_extra
from ..inference.model import Embedder
from ..models.card import UNSET, Unset
from .instructed import InstructedModel

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from pydantic import PrivateAttr
else:
    BaseEmbedding = import_extra("llama_index.core.base.embeddings.base", "llama-index").BaseEmbedding
    PrivateAttr = import_extra("pydantic", "llama-index").PrivateAttr

__all__ = ["BgeEmbedding"]


class BgeEmbedding(BaseEmbedding):
    """A model as LlamaIndex embeddings, for `Settings.embed_model`.

    Pooling, length and instructions come from the model's card; LlamaIndex's own classes choose instructions by the
    model's name, and replace those that a folder has saved. In place of a model it takes the address of a server of
    `bge serve`: queries then go to `NAME:query`.

    Attributes:
        model_name: Name, folder or address of the model.
    """

    _model: InstructedModel = PrivateAttr()

    def __init__(
        self,
        model_name: str | os.PathLike[str] | Embedder,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        query_instruction: str | Unset | None = UNSET,
        text_instruction: str | Unset | None = UNSET,
        cache_folder: str | None = None,
        api_key: str | None = None,
        embed_batch_size: int = 256,
        **others: Any,
    ) -> None:
        """Load a model, or take one that is loaded or served.

        Args:
            model_name: A folder, a Hugging Face id, `packaged:NAME`, an embedder such as a `FlagModel`, or the address
                of a server, `http://HOST:PORT` for its first embedder or `http://HOST:PORT/NAME`.
            model_kwargs: Arguments of `FlagModel`, such as `{"device": "cuda"}`.
            encode_kwargs: Arguments of `FlagModel.encode`; of a server `batch_size` and `normalize_embeddings`.
            query_instruction: Text put before queries; the card's if left out, None or "" for none.
            text_instruction: Text put before documents; the card's if left out, None or "" for none.
            cache_folder: Where files from the hub are kept.
            api_key: Key of the server, the environment variable BGE_API_KEY by default.
            embed_batch_size: Texts that LlamaIndex hands over together.
            others: Arguments of LlamaIndex's base class, such as `callback_manager`.

        Raises:
            MissingExtraError: LlamaIndex is not installed (when this module is imported).
            CheckpointError: there is no such model.
            ArgumentError: there are arguments that a server has no use for, or a key without a server.
        """
        model = InstructedModel(
            model_name, model_kwargs=model_kwargs, encode_kwargs=encode_kwargs, query=query_instruction,
            document=text_instruction, cache_folder=cache_folder, api_key=api_key,
        )  # fmt: skip
        super().__init__(model_name=model.name, embed_batch_size=embed_batch_size, **others)
        self._model = model

    @classmethod
    def class_name(cls) -> str:
        """Its name in LlamaIndex's settings."""
        return "BgeEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._model.embed("query", [query])[0].tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._model.embed("document", [text])[0].tolist()

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._model.embed("document", texts).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
