"""The shape of text-embeddings-inference (TEI): its routes, its errors, its names of fields.

`/rerank` is in `rerank.py`, which has other shapes of that path, too, and `/` in `root.py`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from starlette.responses import Response
from starlette.routing import Route

from ..._version import __version__
from ...inference.reranker import sigmoid
from ...models.card import ModelCard
from ...models.sentence_transformers_files import shown_name
from ..bodies import as_json, decode, inputs_of, written
from ..calls import Call, endpoint
from ..errors import BadRequest, ServingError, Unprocessable
from ..instructions import choose_role
from ..models import Output, Outputs, Served, Side
from ..server import Server
from .embedding import embed, outputs, truncate_of


class TeiEmbed(msgspec.Struct, kw_only=True):
    """Body of `/embed`, and of `/` with an embedder.

    Attributes:
        inputs: A text or several; token ids only where the server was started to take them.
        truncate: Whether a text that is too long is cut, or refused; by default as the server was started.
        truncation_direction: `Right` or `Left`.
        prompt_name: A prompt of the model.
        normalize: Whether vectors have unit length; by default as the model has them.
        dimensions: Leading dimensions to keep.
        model: Name of the model (not in TEI's own API).
    """

    inputs: str | list[str | int | list[int]]
    truncate: bool | None = None
    truncation_direction: str | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    model: str | None = None


class TeiOutputs(msgspec.Struct, kw_only=True):
    """Body of `/embed_all` and `/embed_sparse`: that of `/embed` without what is of whole vectors."""

    inputs: str | list[str | int | list[int]]
    truncate: bool | None = None
    truncation_direction: str | None = None
    prompt_name: str | None = None
    model: str | None = None


class SparseValue(msgspec.Struct, kw_only=True):
    """A token and its weight."""

    index: int
    value: float


class Sentences(msgspec.Struct, kw_only=True):
    """Texts of `/similarity`."""

    source_sentence: str
    sentences: list[str]


class Parameters(msgspec.Struct, kw_only=True):
    """Parameters of `/similarity`."""

    truncate: bool | None = None
    truncation_direction: str | None = None
    prompt_name: str | None = None


class Similarity(msgspec.Struct, kw_only=True):
    """Body of `/similarity`, and of `/` with such inputs."""

    inputs: Sentences
    parameters: Parameters | None = None
    model: str | None = None


class Predict(msgspec.Struct, kw_only=True):
    """Body of `/predict`: a pair, or a list of pairs."""

    inputs: str | list[str | list[str]]
    truncate: bool | None = None
    truncation_direction: str | None = None
    raw_scores: bool | None = None
    model: str | None = None


class Prediction(msgspec.Struct, kw_only=True):
    """Score of a class."""

    score: float
    label: str


class Tokenize(msgspec.Struct, kw_only=True):
    """Body of `/tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool | None = None
    prompt_name: str | None = None
    model: str | None = None


class Token(msgspec.Struct, kw_only=True):
    """A token; `start` and `stop` count bytes of the text in UTF-8, null for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Decode(msgspec.Struct, kw_only=True):
    """Body of `/decode`."""

    ids: list[int | list[int]]
    skip_special_tokens: bool | None = None
    model: str | None = None


#: Texts that clients are told to send at once, as TEI tells them; more are taken, but clients do not wait for long.
_CLIENT_BATCH: Final = 32
#: Status -> what TEI calls it.
_KINDS: Final = {
    400: "Validation", 404: "Validation", 413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy",
}  # fmt: skip


def problem(error: ServingError) -> Response:
    """An error as TEI says it; what it calls `Backend` has the status 424."""
    if error.status == 401:
        return Response(status_code=401)
    status = 424 if error.status == 500 or error.failure == "model_type" else error.status
    kind = "Empty" if "cannot be empty" in str(error) else _KINDS.get(status, "Backend")
    return as_json({"error": str(error), "error_type": kind}, status)


async def embed_route(call: Call) -> Response:
    """Answer `/embed`: a list of vectors, for one text, too."""
    body = decode(call, TeiEmbed)
    texts, call.batch = inputs_of(body.inputs, "inputs")
    _, found = await embed(
        call, body.model, texts, prompt_name=body.prompt_name, truncate=body.truncate,
        side=side_of(body.truncation_direction), normalize=body.normalize, dimensions=body.dimensions,
    )  # fmt: skip
    return as_json(await written(map(np.ndarray.tolist, found.vectors), found.vectors.size))


async def embed_all(call: Call) -> Response:
    """Answer `/embed_all`: what the last layer gives for each token of each text, special ones included."""
    body = decode(call, TeiOutputs)
    found = await _outputs(call, body, "hidden")
    return as_json(await written((each.tolist() for each in found.values), sum(each.size for each in found.values)))


async def embed_sparse(call: Call) -> Response:
    """Answer `/embed_sparse`: of each text its distinct tokens with their weights, ascending by token id."""
    body = decode(call, TeiOutputs)
    found = await _outputs(call, body, "sparse")
    return as_json([
        [SparseValue(index=token, value=weight) for token, weight in each.tolist()] for each in found.values
    ])  # fmt: skip


async def _outputs(call: Call, body: TeiOutputs, output: Output) -> Outputs:
    texts, call.batch = inputs_of(body.inputs, "inputs")
    return await outputs(
        call, body.model, texts, output, prompt_name=body.prompt_name, truncate=body.truncate,
        side=side_of(body.truncation_direction),
    )  # fmt: skip


async def similarity(call: Call) -> Response:
    """Answer `/similarity`: the cosine of each sentence to the first text."""
    body = decode(call, Similarity)
    given = body.parameters or Parameters()
    if not body.inputs.sentences:
        raise BadRequest("`inputs.sentences` cannot be empty", param="inputs")
    call.batch = True
    _, found = await embed(
        call, body.model, [body.inputs.source_sentence, *body.inputs.sentences], prompt_name=given.prompt_name,
        truncate=given.truncate, side=side_of(given.truncation_direction), normalize=True,
    )  # fmt: skip
    return as_json((found.vectors[1:] @ found.vectors[0]).tolist())


async def predict(call: Call) -> Response:
    """Answer `/predict`: the classes of each pair with their scores, best first."""
    body = decode(call, Predict)
    served, _ = call.server.models.find(body.model, "reranker", call=call)
    pairs, call.batch = _pairs(body.inputs)
    check_right(body.truncation_direction)
    several = len(served.classes) > 1
    if several and body.raw_scores:
        raise Unprocessable(
            f"{served.name} has two classes, and of their raw scores only the difference is known: leave out raw_scores"
        )
    found = await served.score(pairs, call=call, truncate=truncate_of(call, body.truncate))
    scores = [[score] for score in (found.scores.tolist() if body.raw_scores else sigmoid(found.scores).tolist())]
    if several:
        scores = [[1 - score, score] for [score] in scores]
    answers = [
        sorted((Prediction(score=score, label=label) for score, label in zip(each, served.classes, strict=True)),
               key=lambda prediction: -prediction.score)
        for each in scores
    ]  # fmt: skip
    return as_json(answers if call.batch else answers[0])


def _pairs(inputs: str | list[str | list[str]]) -> tuple[list[tuple[str, str]], bool]:
    """Pairs, and whether there were several."""
    several = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], list)
    given: list[Any] = inputs if several else [inputs]  # type: ignore[assignment]
    if not inputs:
        raise BadRequest("`inputs` cannot be empty", param="inputs")
    for place, each in enumerate(given):
        if not isinstance(each, list) or len(each) != 2 or not all(isinstance(text, str) for text in each):
            where = f"inputs[{place}]" if several else "inputs"
            raise Unprocessable(f"`{where}`: a reranker scores pairs, [query, text], and this is none", param="inputs")
    return [(each[0], each[1]) for each in given], several


async def tokenize(call: Call) -> Response:
    """Answer `/tokenize`: the tokens of each text, nothing cut."""
    body = decode(call, Tokenize)
    texts, _ = inputs_of(body.inputs, "inputs")
    served, alias = call.server.models.find(body.model, None, call=call)
    role: str | None = None
    before = ""
    if isinstance(served.card, ModelCard):
        role = choose_role(served.card, alias, prompt_name=body.prompt_name) or served.card.default_prompt
        before = served.card.prompt(role).prefix
    elif body.prompt_name is not None:
        raise Unprocessable(f"{served.name} is a reranker and has no prompts", param="prompt_name")
    special = True if body.add_special_tokens is None else body.add_special_tokens
    found = await served.tokenize(texts, add_special_tokens=special, prompt_name=role)
    return as_json([_tokens(encoding, before + text) for encoding, text in zip(found, texts, strict=True)])


def _tokens(encoding: Any, text: str) -> list[Token]:
    """Tokens of a text; the tokenizer counts characters, TEI bytes."""
    ends = np.concatenate(([0], np.cumsum([len(letter.encode("utf-8", "replace")) for letter in text]))).tolist()
    return [
        Token(id=id_, text=token, special=True, start=None, stop=None) if special else
        Token(id=id_, text=text[start:stop], special=False, start=ends[start], stop=ends[stop])
        for id_, token, special, (start, stop) in zip(
            encoding.ids, encoding.tokens, map(bool, encoding.special_tokens_mask), encoding.offsets, strict=True
        )
    ]  # fmt: skip


async def decode_route(call: Call) -> Response:
    """Answer `/decode`: the text of each list of token ids."""
    body = decode(call, Decode)
    ids, _ = inputs_of(body.ids, "ids")
    served, _ = call.server.models.find(body.model, None, call=call)
    skip = True if body.skip_special_tokens is None else body.skip_special_tokens
    return as_json(await served.decode(ids, skip_special_tokens=skip))


async def info(call: Call) -> Response:
    """Answer `/info`, by which clients choose what they send and how much of it."""
    served, _ = call.server.models.find(None, None, call=call)
    settings = call.server.settings
    return as_json({
        "model_id": shown_name(served.id),
        "model_sha": None,
        "model_dtype": served.precision,
        "served_model_name": served.name,
        "model_type": _model_type(served),
        "max_concurrent_requests": settings.max_requests,
        "max_input_length": served.max_length,
        "max_batch_tokens": settings.max_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": min(settings.max_inputs, _CLIENT_BATCH),
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    })  # fmt: skip


def _model_type(served: Served) -> dict[str, Any]:
    card = served.card
    if isinstance(card, ModelCard):
        return {"embedding": {"pooling": card.pooling}}
    by_id = {str(place): name for place, name in enumerate(served.classes)}
    return {"reranker": {"id2label": by_id, "label2id": {name: place for place, name in enumerate(served.classes)}}}


def side_of(direction: str | None) -> Side:
    """Where to cut; by default on the right.

    Raises:
        Unprocessable: it is neither side.
    """
    if direction is None or direction.lower() == "right":
        return "right"
    if direction.lower() == "left":
        return "left"
    raise Unprocessable(
        f"`truncation_direction`: expected 'Right' or 'Left', got {direction!r:.80}", param="truncation_direction"
    )


def check_right(direction: str | None) -> None:
    """Refuse to cut pairs on the left.

    Raises:
        Unprocessable: that is asked for.
    """
    if side_of(direction) == "left":
        raise Unprocessable(
            "`truncation_direction`: pairs are cut at the end of their texts; leave it out",
            param="truncation_direction",
        )


def routes(server: Server) -> list[Route]:
    """The routes of this shape."""
    work = {
        "/embed": embed_route, "/similarity": similarity, "/predict": predict, "/tokenize": tokenize,
        "/decode": decode_route, "/embed_all": embed_all, "/embed_sparse": embed_sparse,
    }  # fmt: skip
    made = [Route(path, endpoint(handler, problem=problem), methods=["POST"]) for path, handler in work.items()]
    made.append(Route("/info", endpoint(info, problem=problem, work=False), methods=["GET"]))
    return made
