"""Texts of any shape -> vectors: the model, its prompt and width found, checked and asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...models.card import listed
from ..calls import Call
from ..errors import BadRequest, Unprocessable
from ..instructions import ROLES, choose_role, without_instruction
from ..models import Alias, Embedded, Served, Side


async def embed(
    call: Call, model: str | None | tuple[Served, Alias | None], texts: Sequence[Any], *, prompt_name: str | None = None,
    input_type: str | None = None, truncate: bool | None = None, side: Side = "right", max_length: int | None = None,
    normalize: bool | None = None, dimensions: int | None = None,
) -> tuple[Served, Embedded]:  # fmt: skip
    """Vectors of the texts of a request, and the model that they are from.

    Args:
        call: The request.
        model: What it calls the model, None or "" for the first embedder; or the model that was found.
        texts: Texts, or lists of token ids, which are refused unless the server was started to take them.
        prompt_name: A prompt of the card.
        input_type: The same as Cohere says it.
        truncate: Whether to cut what is too long; by default as the server was started.
        side: Where to cut.
        max_length: Cut at fewer tokens.
        normalize: Scale to unit length, or not; by default as the card says.
        dimensions: Leading dimensions to keep.

    Raises:
        ServingError: no such model or prompt, a text that is too long, token ids, or a width that the model was not
            trained to be cut to.
    """
    served, alias = model if isinstance(model, tuple) else call.server.models.find(model, "embedder", call=call)
    card: Any = served.card
    role = choose_role(card, alias, prompt_name=prompt_name, input_type=input_type)
    if texts and not isinstance(texts[0], str):
        _check_token_ids(call, role)
    elif role == "query":
        texts = without_instruction(texts, card.prompt("query").prefix)
    dimensions = _checked_dimensions(served, dimensions)
    call.batch = call.batch or len(texts) > 1
    found = await served.embed(
        texts, call=call, role=role if role in ROLES else None,  # type: ignore[arg-type]
        prompt_name=None if role in ROLES else role,
        truncate=call.server.settings.auto_truncate if truncate is None else truncate, side=side,
        max_length=max_length, normalize=normalize, dimensions=dimensions,
    )  # fmt: skip
    return served, found


def _check_token_ids(call: Call, role: str | None) -> None:
    if not call.server.settings.accept_token_ids:
        raise BadRequest(
            "the input is token ids, most likely of another tokenizer (OpenAI's), which would give wrong vectors: send "
            "texts. In LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False). A server started with "
            "--accept-token-ids takes them as the model's own",
            param="input",
        )
    if role is not None:
        raise Unprocessable("a prompt cannot be put before token ids: send texts, or ids with the prompt's own")


def _checked_dimensions(served: Served, dimensions: int | None) -> int | None:
    """The width that vectors are cut to, None for all of it."""
    whole = served.dimension
    if dimensions is None or dimensions == whole:
        return None
    allowed = tuple(each for each in served.matryoshka_dims if each < whole)
    if dimensions not in allowed:
        trained = f"it was trained to be cut to {listed(allowed)}" if allowed else "it was not trained to be cut"
        raise BadRequest(
            f"`dimensions`: the vectors of {served.name} have {whole} dimensions, and {trained}", param="dimensions"
        )
    return dimensions
