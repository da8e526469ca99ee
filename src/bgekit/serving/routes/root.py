"""The address itself: a POST is told apart by its body, as clients of the Hugging Face hub send all requests there."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..bodies import decode
from ..calls import Call, endpoint
from ..errors import Unprocessable
from ..server import Server
from .rerank import tei as tei_rerank
from .tei import embed_route, predict, problem, similarity


class _Anything(msgspec.Struct, kw_only=True):
    """What tells the bodies of `/` apart."""

    inputs: Any = None
    query: Any = None
    texts: Any = None


async def anything(call: Call) -> Response:
    """Answer a POST to the address itself: what is asked for, the body shows."""
    body = decode(call, _Anything)
    if isinstance(body.inputs, dict):
        return await similarity(call)
    if body.texts is not None and body.query is not None:
        return await tei_rerank(call)
    if body.inputs is None:
        raise Unprocessable("`inputs` is missing", param="inputs")
    served, _ = call.server.models.find(None, None, call=call)
    return await (embed_route if served.kind == "embedder" else predict)(call)


async def front(call: Call) -> Response:
    """Answer a GET of the address itself: a person gets the page, a client hears whether the server is ready."""
    if "text/html" in call.headers.get("accept", ""):
        return RedirectResponse("ui")
    return Response(status_code=503 if await call.server.readiness() else 200)


def routes(server: Server) -> list[Route]:
    """The routes of the address itself."""
    posts = [Route(path, endpoint(anything, problem=problem), methods=["POST"]) for path in ("/", "/invocations")]
    return [*posts, Route("/", endpoint(front, problem=problem, work=False, key=False), methods=["GET"])]
