"""Cohere's embeddings: `/v2/embed`, and `/v1/embed` for its first client. Its rerankers are in `rerank.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from starlette.responses import Response
from starlette.routing import Route

from ..bodies import as_json, decode, written
from ..calls import Call, endpoint
from ..errors import BadRequest, Unprocessable
from ..models import Side
from ..server import Server
from .embedding import embed
from .openai import problem, to_base64


class CohereEmbed(msgspec.Struct, kw_only=True):
    """Body of `/v2/embed`.

    Attributes:
        texts: The texts.
        inputs: The same as lists of contents, of which only texts are taken.
        images: Refused.
        model: Name of the model.
        input_type: `search_query` and `search_document` pick the prompts of these; others are a prompt of that name
            where the model has one.
        embedding_types: `float`, `base64`, `binary` and `ubinary`; `float` unless told.
        output_dimension: Leading dimensions to keep.
        max_tokens: Cut texts at so many tokens.
        truncate: `END` (unless told), `START`, or `NONE` to refuse texts that are too long.
    """

    texts: list[str] | None = None
    inputs: list[dict[str, Any]] | None = None
    images: list[Any] | None = None
    model: str | None = None
    input_type: str | None = None
    embedding_types: list[str] | None = None
    output_dimension: int | None = None
    max_tokens: int | None = None
    truncate: str | None = None


def _packed(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A bit for each dimension, set from 0 on, the first dimension the highest bit."""
    return np.packbits(vector >= 0)


#: Type of embeddings -> what is made of a vector.
_TYPES: Final[dict[str, Callable[[npt.NDArray[np.float32]], Any]]] = {
    "float": np.ndarray.tolist,
    "base64": to_base64,
    "ubinary": lambda vector: _packed(vector).tolist(),
    "binary": lambda vector: (_packed(vector).astype(np.int16) - 128).tolist(),
}
#: Types that take ranges of each dimension, measured by whoever trained the model.
_CALIBRATED: Final = ("int8", "uint8")
_SIDES: Final[dict[str, tuple[bool | None, Side]]] = {
    "END": (True, "right"), "START": (True, "left"), "NONE": (False, "right"),
}  # fmt: skip


async def embed_v2(call: Call) -> Response:
    """Answer `/v2/embed`."""
    body = decode(call, CohereEmbed)
    types = list(dict.fromkeys(body.embedding_types or ["float"]))
    return as_json({**await _answer(call, body, types), "response_type": "embeddings_by_type"})


async def embed_v1(call: Call) -> Response:
    """Answer `/v1/embed`: without `embedding_types` a list of vectors."""
    body = decode(call, CohereEmbed)
    if body.embedding_types is not None:
        return await embed_v2(call)
    answer = await _answer(call, body, ["float"])
    return as_json({**answer, "embeddings": answer["embeddings"]["float"], "response_type": "embeddings_floats"})


async def _answer(call: Call, body: CohereEmbed, types: Sequence[str]) -> dict[str, Any]:
    texts = _texts(body)
    for name in types:
        if name not in _TYPES:
            why = "" if name not in _CALIBRATED else ": Cohere does not publish the ranges that it makes these with"
            raise Unprocessable(
                f"`embedding_types`: {name!r:.80} is not served{why}; ask for {', '.join(_TYPES)}",
                param="embedding_types",
            )
    if body.truncate is not None and body.truncate.upper() not in _SIDES:
        raise Unprocessable(f"`truncate`: expected NONE, START or END, got {body.truncate!r:.80}", param="truncate")
    if body.max_tokens is not None and body.max_tokens < 1:
        raise Unprocessable(f"`max_tokens`: expected a number of tokens, got {body.max_tokens}", param="max_tokens")
    truncate, side = (None, "right") if body.truncate is None else _SIDES[body.truncate.upper()]
    call.batch = True
    _, found = await embed(
        call, body.model, texts, input_type=body.input_type, truncate=truncate, side=side,  # type: ignore[arg-type]
        max_length=body.max_tokens, dimensions=body.output_dimension,
    )  # fmt: skip
    if found.vectors.shape[1] % 8 and any(name.endswith("binary") for name in types):
        raise Unprocessable(f"vectors of {found.vectors.shape[1]} dimensions do not fill whole bytes: ask for float")
    return {
        "id": call.id,
        "embeddings": {name: await written(map(_TYPES[name], found.vectors), found.vectors.size) for name in types},
        "texts": [text.encode("utf-8", "replace").decode("utf-8") for text in texts],
        "meta": {
            "api_version": {"version": call.path.strip("/")[1:2]},
            "billed_units": {"input_tokens": sum(found.tokens)},
        },
    }


def _texts(body: CohereEmbed) -> list[str]:
    """The texts of a request."""
    if body.images:
        raise Unprocessable("`images`: only texts are served", param="images")
    if body.texts is not None and body.inputs is not None:
        raise Unprocessable("give `texts` or `inputs`, not both", param="inputs")
    texts = body.texts
    if body.inputs is not None:
        texts = [_content(each, place) for place, each in enumerate(body.inputs)]
    if not texts:
        raise BadRequest("`texts` cannot be empty", param="texts")
    return texts


def _content(entry: dict[str, Any], place: int) -> str:
    contents = entry.get("content")
    parts = contents if isinstance(contents, list) else [contents]
    texts: list[Any] = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in parts
    ]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Unprocessable(f"`inputs[{place}]`: expected contents of the type text", param="inputs")
    return "\n".join(texts)


def routes(server: Server) -> list[Route]:
    """The routes of this shape."""
    work = {"/v2/embed": embed_v2, "/v1/embed": embed_v1}
    return [Route(path, endpoint(handler, problem=problem), methods=["POST"]) for path, handler in work.items()]
