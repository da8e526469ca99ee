"""Rerankers behind HTTP: `/rerank` as Cohere (v1, v2), Jina, vLLM, infinity and TEI have it, and vLLM's `/score`.

One answer serves all but TEI: each client finds the fields that it knows. TEI's body is told by its `texts`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from starlette.responses import Response
from starlette.routing import Route

from ...inference.reranker import sigmoid
from ...models.card import ModelCard
from ..bodies import as_json, decode
from ..calls import Call, endpoint
from ..errors import BadRequest, Gone, ServingError, Unprocessable
from ..models import Scored, Served
from ..server import Server
from .embedding import embed, length_of, truncate_of
from .openai import Usage, problem
from .tei import check_right
from .tei import problem as tei_problem


class Rerank(msgspec.Struct, kw_only=True):
    """Body of `/rerank`, `/v1/rerank` and `/v2/rerank`.

    Attributes:
        query: The query.
        documents: Texts, or objects with a text (`rank_fields` names others of their fields); or one text alone.
        model: Name of the reranker.
        top_n: How many are wanted; null or 0 for all.
        return_documents: Whether results have their texts.
        rank_fields: Fields of documents that are objects, which are joined line by line.
        raw_scores: Whether scores are as the model gives them, not between 0 and 1.
        use_activation: The same, the other way round, as vLLM has it.
        max_tokens_per_query: Cut queries at so many tokens.
        max_tokens_per_doc: Cut documents at so many tokens.
        truncate_prompt_tokens: Cut pairs at so many tokens, -1 for the model's length.
        truncate: Whether what is too long is cut, or refused.
    """

    query: str
    documents: str | list[str | dict[str, Any]]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    raw_scores: bool | None = None
    use_activation: bool | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    truncate_prompt_tokens: int | None = None
    truncate: bool | None = None


class Document(msgspec.Struct, kw_only=True):
    """Text of a result."""

    text: str


class Result(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A document in the order of its score."""

    index: int
    relevance_score: float
    document: Document | None = None


class Results(msgspec.Struct, kw_only=True):
    """Answer of all shapes but TEI's."""

    id: str
    object: Literal["rerank"] = "rerank"
    created: int
    model: str
    results: list[Result]
    usage: Usage
    meta: dict[str, Any]


class TeiRerank(msgspec.Struct, kw_only=True):
    """Body of TEI's `/rerank`."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: str | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    top_n: int | None = None
    model: str | None = None


class TeiRank(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A text of TEI's answer."""

    index: int
    text: str | None = None
    score: float


class Score(msgspec.Struct, kw_only=True):
    """Body of `/score`: one text with one or several, or several with as many. Each pair of names is the same."""

    model: str | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None


class ScoreObject(msgspec.Struct, kw_only=True):
    """Score of a pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreList(msgspec.Struct, kw_only=True):
    """Answer of `/score`."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreObject]
    usage: Usage


class _Kind(msgspec.Struct, kw_only=True):
    """What tells TEI's body from the others."""

    texts: Any = None
    documents: Any = None


async def rerank(call: Call) -> Response:
    """Answer `/rerank`, `/v1/rerank` and `/v2/rerank`."""
    kind = decode(call, _Kind)
    if kind.documents is None and kind.texts is not None:
        try:
            return await tei(call)
        except Gone:
            raise
        except ServingError as error:
            call.error = error
            return tei_problem(error)
    body = decode(call, Rerank)
    served, _ = call.server.models.find(body.model, "reranker", call=call)
    if not body.documents:
        raise BadRequest("`documents` cannot be empty", param="documents")
    top_n = _checked_count(body.top_n)
    call.batch = True
    given = [body.documents] if isinstance(body.documents, str) else body.documents
    texts = [_text(each, body.rank_fields, place) for place, each in enumerate(given)]
    [query] = await _cut(served, [body.query], body.max_tokens_per_query, "max_tokens_per_query")
    pairs = [(query, text) for text in await _cut(served, texts, body.max_tokens_per_doc, "max_tokens_per_doc")]
    found = await served.score(
        pairs, call=call, max_length=length_of(body.truncate_prompt_tokens),
        truncate=True if body.truncate_prompt_tokens is not None else truncate_of(call, body.truncate),
    )  # fmt: skip
    raw = bool(body.raw_scores) if body.use_activation is None else not body.use_activation
    scores = scores_of(found, raw=raw)
    results = [
        Result(
            index=place, relevance_score=scores[place],
            document=Document(text=texts[place]) if body.return_documents else None,
        )
        for place in best_first(found)[:top_n]
    ]  # fmt: skip
    version = "1" if call.path.startswith("/v1") else "2"
    return as_json(Results(
        id=f"rerank-{call.id}", created=int(time.time()), model=body.model or served.name, results=results,
        usage=Usage.of(found.tokens, found.truncated), meta={"api_version": {"version": version}},
    ))  # fmt: skip


async def tei(call: Call) -> Response:
    """Answer `/rerank` in TEI's shape: a list, best first."""
    body = decode(call, TeiRerank)
    served, _ = call.server.models.find(body.model, "reranker", call=call)
    if not body.texts:
        raise BadRequest("`texts` cannot be empty", param="texts")
    check_right(body.truncation_direction)
    top_n = _checked_count(body.top_n)
    call.batch = True
    pairs = [(body.query, text) for text in body.texts]
    found = await served.score(pairs, call=call, truncate=truncate_of(call, body.truncate))
    scores = scores_of(found, raw=bool(body.raw_scores))
    return as_json([
        TeiRank(index=place, text=body.texts[place] if body.return_text else None, score=scores[place])
        for place in best_first(found)[:top_n]
    ])  # fmt: skip


async def score(call: Call) -> Response:
    """Answer `/score`: of a reranker its scores, of an embedder cosines."""
    body = decode(call, Score)
    first, second = _sides(body)
    pairs = list(zip(first * (len(second) if len(first) == 1 else 1), second, strict=True))
    call.batch = len(pairs) > 1
    wanted = None if body.model else "reranker"
    found_model = call.server.models.find(body.model, wanted, call=call)  # type: ignore[arg-type]
    served, _ = found_model
    length = length_of(body.truncate_prompt_tokens)
    if isinstance(served.card, ModelCard):
        _, both = await embed(
            call, found_model, [*first, *second], normalize=True, max_length=length, truncate=True if length else None
        )
        one, other = both.vectors[: len(first)], both.vectors[len(first) :]
        scores, tokens, truncated = (one * other).sum(axis=1, dtype=np.float32).tolist(), both.tokens, both.truncated
    else:
        found = await served.score(
            pairs, call=call, max_length=length, truncate=True if length else truncate_of(call, None)
        )
        scores, tokens, truncated = scores_of(found, raw=body.use_activation is False), found.tokens, found.truncated
    return as_json(ScoreList(
        id=f"score-{call.id}", created=int(time.time()), model=body.model or served.name,
        data=[ScoreObject(index=place, score=value) for place, value in enumerate(scores)],
        usage=Usage.of(tokens, truncated),
    ))  # fmt: skip


def _sides(body: Score) -> tuple[list[str], list[str]]:
    """The texts of both sides of a `/score`."""
    names = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
    for pair in names:
        given = [getattr(body, name) for name in pair]
        if None not in given:
            first, second = ([each] if isinstance(each, str) else each for each in given)
            if not first or not second:
                raise BadRequest(f"`{pair[0]}` and `{pair[1]}` cannot be empty")
            if len(first) not in (1, len(second)):
                raise Unprocessable(
                    f"`{pair[0]}` has {len(first)} texts and `{pair[1]}` {len(second)}: give one, or as many"
                )
            return first, second
    raise Unprocessable("`text_1` and `text_2` are missing (or `queries` and `documents`)")


def best_first(found: Scored) -> list[int]:
    """Positions by score; of equal ones the earlier first."""
    return np.argsort(-found.scores, kind="stable").tolist()


def scores_of(found: Scored, *, raw: bool) -> list[float]:
    """Scores between 0 and 1, or as the model gives them."""
    return (found.scores if raw else sigmoid(found.scores)).tolist()


def _text(document: str | dict[str, Any], fields: Sequence[str] | None, place: int) -> str:
    """The text of a document."""
    if isinstance(document, str):
        return document
    wanted = fields or ["text"]
    parts = [document.get(name) for name in wanted]
    if not all(isinstance(part, str) for part in parts):
        missing = next(name for name, part in zip(wanted, parts, strict=True) if not isinstance(part, str))
        raise Unprocessable(f"`documents[{place}]`: expected a text in its field {missing!r:.80}", param="documents")
    return "\n".join(parts)  # type: ignore[arg-type]


async def _cut(served: Served, texts: list[str], most: int | None, name: str) -> list[str]:
    """Texts of at most so many tokens."""
    if most is None or most >= served.max_length:
        return texts
    if most < 1:
        raise Unprocessable(f"`{name}`: expected a positive number of tokens, got {most}", param=name)
    found = await served.tokenize(texts, add_special_tokens=False)
    return [
        text[: encoding.offsets[most - 1][1]] if len(encoding.ids) > most else text
        for text, encoding in zip(texts, found, strict=True)
    ]


def _checked_count(top_n: int | None) -> int | None:
    """How many results are wanted, None for all."""
    if top_n is not None and top_n < 0:
        raise Unprocessable(f"`top_n`: expected a number of documents, got {top_n}", param="top_n")
    return top_n or None


def routes(server: Server) -> list[Route]:
    """The routes of these shapes."""
    work = {
        "/rerank": rerank, "/v1/rerank": rerank, "/v2/rerank": rerank, "/score": score, "/v1/score": score,
    }  # fmt: skip
    return [Route(path, endpoint(handler, problem=problem), methods=["POST"]) for path, handler in work.items()]
