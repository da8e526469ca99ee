"""The page of a server: `/ui`, one file without anything from elsewhere; its script asks the other routes."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ..._version import __version__
from ...display.pages import render_page
from ...models.card import ModelCard
from ..bodies import as_json
from ..calls import Call, endpoint
from ..server import Server
from .openai import problem


@cache
def html() -> str:
    """The page. It says nothing of the server, which its script asks, with a key if that is needed."""
    files = resources.files(__package__)
    code, css = (files.joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    return render_page("serving/routes/page.html.jinja", "Embedding server", code=code, css=css)


async def page(call: Call) -> Response:
    """Answer `/ui`."""
    headers = {"x-frame-options": "SAMEORIGIN", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
    return Response(html(), media_type="text/html", headers=headers)


async def state(call: Call) -> Response:
    """Answer `/ui/state`: what the page shows of models, index, queue and throughput."""
    models = [_model(each.model) for each in call.server.models.listed() if each.alias is None]
    index = call.server.state.get("index")
    load = {name: value for name, value in call.server.stats().items() if name != "models"}
    found = None if index is None else await index.info()
    return as_json({"version": __version__, "models": models, "index": found, "load": load})


def _model(served: Any) -> dict[str, Any]:
    embedder = isinstance(served.card, ModelCard)
    return {
        "name": served.name, "kind": served.kind, "max_length": served.max_length,
        "dimension": served.dimension if embedder else None,
    }  # fmt: skip


def routes(server: Server) -> list[Route]:
    """The page, which needs no key, and what it shows, which does."""
    return [
        Route("/ui", endpoint(page, work=False, key=False), methods=["GET"]),
        Route("/ui/state", endpoint(state, problem=problem, work=False), methods=["GET"]),
    ]
