"""The OpenAPI document of all shapes, made of the types of their bodies: `/openapi.json`."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from ..._version import __version__
from ..calls import Call, endpoint
from ..server import Server
from . import cohere, openai, pooling, rerank, search, tei

_V: Final = list[list[float]]
#: Path -> what it does, the types of its body, and that of its answer.
_POSTS: Final[dict[str, tuple[str, tuple[Any, ...], Any]]] = {
    "/v1/embeddings": ("Vectors of texts, as OpenAI has it", (openai.Embeddings,), openai.EmbeddingList),
    "/embeddings": ("The same", (openai.Embeddings,), openai.EmbeddingList),
    "/v2/embed": ("Vectors of texts, as Cohere has it", (cohere.CohereEmbed,), dict[str, Any]),
    "/v1/embed": ("The same, as its first version has it", (cohere.CohereEmbed,), dict[str, Any]),
    "/embed": ("Vectors of texts, as TEI has it", (tei.TeiEmbed,), _V),
    "/embed_all": ("Vectors of each token, as TEI has it", (tei.TeiOutputs,), list[list[list[float]]]),
    "/embed_sparse": ("Weights of tokens, as TEI has it", (tei.TeiOutputs,), list[list[tei.SparseValue]]),
    "/pooling": ("Vectors or weights of each token, as vLLM has it", (pooling.Pooling,), pooling.PoolingList),
    "/similarity": ("Cosines of sentences to a text", (tei.Similarity,), list[float]),
    "/predict": ("Classes of pairs", (tei.Predict,), list[Any]),
    "/tokenize": ("Tokens of texts", (tei.Tokenize,), list[list[tei.Token]]),
    "/decode": ("Texts of token ids", (tei.Decode,), list[str]),
    "/": ("Whatever the body shows", (tei.TeiEmbed, tei.Similarity, tei.Predict, rerank.TeiRerank), list[Any]),
    "/invocations": ("The same", (tei.TeiEmbed, tei.Similarity, tei.Predict, rerank.TeiRerank), list[Any]),
    "/rerank": ("Texts in the order of a reranker", (rerank.Rerank, rerank.TeiRerank), Any),
    "/v1/rerank": ("The same", (rerank.Rerank, rerank.TeiRerank), Any),
    "/v2/rerank": ("The same", (rerank.Rerank, rerank.TeiRerank), Any),
    "/score": ("Scores of pairs, as vLLM has it", (rerank.Score,), rerank.ScoreList),
    "/v1/score": ("The same", (rerank.Score,), rerank.ScoreList),
    "/v1/search": ("Hits in the index", (search.Search,), search.SearchResults),
}
_GETS: Final[dict[str, tuple[str, Any]]] = {
    "/v1/models": ("The models by all their names", openai.ModelList),
    "/models": ("The same", openai.ModelList),
    "/v1/models/{id}": ("A model", openai.Model),
    "/v1/search/info": ("The index", search.Info),
    "/info": ("The model, as TEI has it", dict[str, Any]),
}
_ERRORS: Final = {
    "400": "the body is not JSON, or has an impossible value", "401": "the key is missing or wrong",
    "404": "no such model", "413": "too large", "415": "the body is not said to be JSON",
    "422": "a field has another type, or a text is too long", "429": "the queue is full: see `Retry-After`",
    "503": "not ready",
}  # fmt: skip


@cache
def document() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    types = [kind for _, bodies, answer in _POSTS.values() for kind in (*bodies, answer)]
    types += [answer for _, answer in _GETS.values()]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    found = iter(schemas)
    paths: dict[str, Any] = {}
    for path, (summary, bodies, _) in _POSTS.items():
        several = [next(found) for _ in bodies]
        schema = several[0] if len(several) == 1 else {"anyOf": several}
        paths[path] = {"post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": _responses(next(found)),
        }}  # fmt: skip
    for path, (summary, _) in _GETS.items():
        paths.setdefault(path, {})["get"] = {"summary": summary, "responses": _responses(next(found))}
    paths["/v1/models/{id}"]["get"]["parameters"] = [
        {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "bgekit", "version": __version__, "description": (
            "Every path is also there below a model's name: `/NAME/embed`. `NAME:query` and `NAME:document` pick the "
            "prompts of a model."
        )},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }  # fmt: skip


def _responses(schema: Any) -> dict[str, Any]:
    good = {"description": "done", "content": {"application/json": {"schema": schema}}}
    return {"200": good, **{status: {"description": reason} for status, reason in _ERRORS.items()}}


async def openapi(call: Call) -> Response:
    """Answer `/openapi.json`."""
    return Response(msgspec.json.encode(document()), media_type="application/json")


def routes(server: Server) -> list[Route]:
    """The route of the document; it needs no key."""
    return [Route("/openapi.json", endpoint(openapi, work=False, key=False), methods=["GET"])]
