"""Texts of any shape -> vectors: the model, its prompt and width found, checked and asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from ...models.card import listed
from ..calls import Call
from ..errors import BadRequest, ServingError, Unprocessable
from ..instructions import ROLES, choose_role, without_instruction
from ..models import Alias, Embedded, Output, Outputs, Served, Side

#: A model that was found, and the alias that it was named by.
Named: TypeAlias = tuple[Served, Alias | None]


async def embed(
    call: Call, model: str | Named | None, texts: Sequence[Any], *, prompt_name: str | None = None,
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
    served, role, texts = _meant(call, model, texts, prompt_name, input_type)
    dimensions = _checked_dimensions(served, dimensions)
    found = await served.embed(
        texts, call=call, **_prompt(role), truncate=truncate_of(call, truncate), side=side, max_length=max_length,
        normalize=normalize, dimensions=dimensions,
    )  # fmt: skip
    return served, found


async def outputs(
    call: Call, model: str | Named | None, texts: Sequence[Any], output: Output, *, prompt_name: str | None = None,
    truncate: bool | None = None, side: Side = "right", max_length: int | None = None,
) -> Outputs:  # fmt: skip
    """What is computed of the texts of a request where it is not a vector of each; arguments and errors as `embed`."""
    served, role, texts = _meant(call, model, texts, prompt_name, None)
    return await served.outputs(
        texts, output, call=call, **_prompt(role), truncate=truncate_of(call, truncate), side=side,
        max_length=max_length,
    )  # fmt: skip


def truncate_of(call: Call, given: bool | None) -> bool:
    """Whether to cut what is too long; by default as the server was started."""
    return call.server.settings.auto_truncate if given is None else given


def length_of(tokens: int | None, wrong: type[ServingError] = Unprocessable) -> int | None:
    """The length that texts are cut at where vLLM's clients say it, None for the model's own.

    Args:
        tokens: `truncate_prompt_tokens`.
        wrong: The error where that is no length.
    """
    if tokens is None or tokens == -1:
        return None
    if tokens < 1:
        raise wrong(f"`truncate_prompt_tokens`: expected a number of tokens or -1, got {tokens}")
    return tokens


def _meant(
    call: Call, model: str | Named | None, texts: Sequence[Any], prompt_name: str | None, input_type: str | None
) -> tuple[Served, str | None, Sequence[Any]]:
    """The model that a request means, the role or prompt of its texts, and these without an instruction in front."""
    served, alias = model if isinstance(model, tuple) else call.server.models.find(model, "embedder", call=call)
    card: Any = served.card
    role = choose_role(card, alias, prompt_name=prompt_name, input_type=input_type)
    if texts and not isinstance(texts[0], str):
        _check_token_ids(call, role)
    elif role == "query":
        texts = without_instruction(texts, card.prompt("query").prefix)
    call.batch = call.batch or len(texts) > 1
    return served, role, texts


def _prompt(role: str | None) -> dict[str, Any]:
    """A role, or a prompt that is none, as arguments of `Served`."""
    return {"role": role, "prompt_name": None} if role in ROLES else {"role": None, "prompt_name": role}


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
