"""OpenAI's shape: `/v1/embeddings` and `/v1/models`, with and without `/v1`, and its form of errors."""

from __future__ import annotations

import base64
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from starlette.responses import Response
from starlette.routing import Route

from ...models.card import ModelCard
from ..bodies import as_json, decode, inputs_of, written
from ..calls import Call, endpoint
from ..errors import BadRequest, NotFound, ServingError
from ..models import Listed
from ..server import Server
from .embedding import embed, length_of


class Embeddings(msgspec.Struct, kw_only=True):
    """Body of `/v1/embeddings`.

    Attributes:
        input: A text or several; token ids only where the server was started to take them.
        model: Name of the model, `NAME`, `NAME:query` or `NAME:document`.
        encoding_format: `float` unless told; `base64` is little-endian float32.
        dimensions: Leading dimensions to keep.
        prompt_name: A prompt of the model (not in OpenAI's own API).
        input_type: `query` or `document` (as Voyage and NVIDIA have it).
        truncate_prompt_tokens: Cut at so many tokens, -1 for the model's length (as vLLM has it).
        truncate: Whether a text that is too long is cut, or refused.
    """

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    truncate_prompt_tokens: int | None = None
    truncate: bool | None = None


class EmbeddingObject(msgspec.Struct, kw_only=True):
    """A vector of the answer."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Tokens of a request, prompts and special tokens included, and the positions of texts that were cut."""

    prompt_tokens: int
    total_tokens: int
    truncated: list[int] | None = None

    @classmethod
    def of(cls, tokens: list[int], truncated: list[int]) -> Usage:
        """Usage of an answer."""
        total = sum(tokens)
        return cls(prompt_tokens=total, total_tokens=total, truncated=truncated or None)


class EmbeddingList(msgspec.Struct, kw_only=True):
    """Answer of `/v1/embeddings`, in the order of the input."""

    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: Usage


class Model(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A name of `/v1/models`, with the text that it puts before inputs."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    prompt: str = ""


class ModelList(msgspec.Struct, kw_only=True):
    """Answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


def problem(error: ServingError) -> Response:
    """An error as OpenAI says it; Cohere's clients read `message`."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    said = {"message": str(error), "type": kind, "param": error.param, "code": type(error).__name__.lower()}
    return as_json({"error": said, "message": str(error)}, error.status)


async def embeddings(call: Call) -> Response:
    """Answer `/v1/embeddings`."""
    body = decode(call, Embeddings, BadRequest)
    texts, call.batch = inputs_of(body.input, "input")
    in_base64 = wants_base64(body.encoding_format)
    cut = body.truncate_prompt_tokens
    served, found = await embed(
        call, body.model, texts, prompt_name=body.prompt_name, input_type=body.input_type,
        truncate=body.truncate if cut is None else True, max_length=length_of(cut, BadRequest),
        dimensions=body.dimensions,
    )  # fmt: skip
    encoded = to_base64 if in_base64 else np.ndarray.tolist
    rows = (EmbeddingObject(index=index, embedding=encoded(each)) for index, each in enumerate(found.vectors))
    return as_json(EmbeddingList(
        data=await written(rows, found.vectors.size), model=body.model or served.name,
        usage=Usage.of(found.tokens, found.truncated),
    ))  # fmt: skip


def wants_base64(encoding_format: str | None) -> bool:
    """Whether vectors are to be answered in base64; as floats unless told.

    Raises:
        BadRequest: there is no such format.
    """
    if encoding_format not in (None, "float", "base64"):
        raise BadRequest(
            f"`encoding_format`: expected 'float' or 'base64', got {encoding_format!r:.80}", param="encoding_format"
        )
    return encoding_format == "base64"


def to_base64(numbers: npt.NDArray[np.float32]) -> str:
    """Numbers as the bytes of little-endian float32, row after row, in base64."""
    return base64.b64encode(np.ascontiguousarray(numbers, dtype="<f4").tobytes()).decode("ascii")


async def models(call: Call) -> Response:
    """Answer `/v1/models`."""
    return as_json(ModelList(data=[_model(each) for each in call.server.models.listed()]))


async def model(call: Call) -> Response:
    """Answer `/v1/models/NAME`."""
    wanted = call.path_params["id"]
    for each in call.server.models.listed():
        if each.name == wanted:
            return as_json(_model(each))
    served, alias = call.server.models.find(wanted)  # By its full id; where there is none, this says which there are.
    if alias is not None and served.kind == "reranker":
        raise NotFound(f"{served.name} is a reranker: there is no {wanted!r}")
    return as_json(_model(Listed(wanted, served, alias)))


def _model(each: Listed) -> Model:
    served, card = each.model, each.model.card
    prompt = card.prompt(each.alias or card.default_prompt) if isinstance(card, ModelCard) else ""
    return Model(
        id=each.name, object="model", created=served.created, owned_by="bgekit", max_model_len=served.max_length,
        prompt=str(prompt),
    )  # fmt: skip


def routes(server: Server) -> list[Route]:
    """The routes of this shape."""
    made = []
    for prefix in ("/v1", ""):
        made += [
            Route(f"{prefix}/embeddings", endpoint(embeddings, problem=problem), methods=["POST"]),
            Route(f"{prefix}/models", endpoint(models, problem=problem, work=False), methods=["GET"]),
            Route(f"{prefix}/models/{{id:path}}", endpoint(model, problem=problem, work=False), methods=["GET"]),
        ]
    return made
