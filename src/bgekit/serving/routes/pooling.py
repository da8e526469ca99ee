"""vLLM's `/pooling`: what is computed of each token of a text, beside the vector of the whole of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from starlette.responses import Response
from starlette.routing import Route

from ..bodies import as_json, decode, inputs_of, written
from ..calls import Call, endpoint
from ..errors import BadRequest, Unprocessable
from ..models import Output, unit
from ..server import Server
from .embedding import Named, embed, length_of, outputs
from .openai import Usage, problem, to_base64, wants_base64
from .tei import side_of


class Pooling(msgspec.Struct, kw_only=True):
    """Body of `/pooling`.

    Attributes:
        input: A text or several.
        model: Name of the model.
        task: `token_embed` (unless told): a vector of each token, of unit length; of a model with BGE-M3's head those
            of the head, without the first token. `token_classify`: the lexical weight of each token but special ones,
            of a model with the head for it. `embed`: a vector of the whole text.
        encoding_format: `float` unless told; `base64` is little-endian float32, row after row.
        use_activation: Whether vectors are scaled to unit length: those of tokens are unless told, that of a text as
            the model has it.
        truncate_prompt_tokens: Cut at so many tokens, -1 for the model's length.
        truncation_side: `right` or `left`.
    """

    input: str | list[str | int | list[int]]
    model: str | None = None
    task: str | None = None
    encoding_format: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None


class PoolingObject(msgspec.Struct, kw_only=True):
    """What was computed of a text: numbers for each token, a number for each, or a vector; or all that in base64."""

    object: Literal["pooling"] = "pooling"
    index: int
    data: list[float | list[float]] | str


class PoolingList(msgspec.Struct, kw_only=True):
    """Answer of `/pooling`, in the order of the input."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PoolingObject]
    usage: Usage


_TASKS: Final = ("token_embed", "token_classify", "embed")


async def pooling(call: Call) -> Response:
    """Answer `/pooling`."""
    body = decode(call, Pooling, BadRequest)
    texts, call.batch = inputs_of(body.input, "input")
    task = body.task or _TASKS[0]
    if task not in _TASKS:
        raise Unprocessable(f"`task`: expected {', '.join(map(repr, _TASKS))}, got {task!r:.80}", param="task")
    in_base64 = wants_base64(body.encoding_format)
    found = call.server.models.find(body.model, "embedder", call=call)
    results, tokens, truncated = await _computed(call, found, texts, task, body)
    encoded = to_base64 if in_base64 else np.ndarray.tolist
    rows = (PoolingObject(index=index, data=encoded(each)) for index, each in enumerate(results))
    return as_json(PoolingList(
        id=f"pool-{call.id}", created=int(time.time()), model=body.model or found[0].name,
        data=await written(rows, sum(each.size for each in results)), usage=Usage.of(tokens, truncated),
    ))  # fmt: skip


async def _computed(
    call: Call, found: Named, texts: list[Any], task: str, body: Pooling
) -> tuple[Sequence[npt.NDArray[np.float32]], list[int], list[int]]:
    """What a task is of each text, tokens of each, and the texts that were cut."""
    cut = body.truncate_prompt_tokens
    options: dict[str, Any] = {
        "truncate": None if cut is None else True, "side": side_of(body.truncation_side),
        "max_length": length_of(cut, BadRequest),
    }  # fmt: skip
    if task == "embed":
        _, whole = await embed(call, found, texts, normalize=body.use_activation, **options)
        return list(whole.vectors), whole.tokens, whole.truncated
    output: Output = "weights"
    if task == "token_embed":
        output = "multi-vector" if "multi-vector" in found[0].heads else "hidden"
    if body.use_activation is False and output != "hidden":
        raise Unprocessable("`use_activation`: what this model's heads give has it always", param="use_activation")
    each = await outputs(call, found, texts, output, **options)
    values = each.values
    if output == "weights":  # vLLM leaves out both special tokens.
        values = [row[1:-1] for row in values]
    elif output == "hidden" and body.use_activation is not False:
        values = [unit(row) for row in values]
    return values, each.tokens, each.truncated


def routes(server: Server) -> list[Route]:
    """The route of this shape."""
    return [Route("/pooling", endpoint(pooling, problem=problem), methods=["POST"])]
