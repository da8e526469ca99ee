"""The server as an ASGI application: models, queue and routes put together."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import BgekitError, OutputError, UsageError, require_extra
from .calls import Call, endpoint, has_key, plain_problem
from .errors import NotFound, Unauthorized, Unprocessable
from .models import Models
from .routes import MODULES
from .scheduler import Scheduler
from .server import Server
from .settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)
#: What a name must not be: the first parts of paths.
_SEPARATORS: Final = "/:?#%"
#: Format of Prometheus' pages.
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    models: Mapping[str, Any],
    index: str | os.PathLike[str] | None = None,
    api_keys: Iterable[str] = (),
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> ASGIApp:
    """A server as an ASGI application, for uvicorn or any other server.

    Models are loaded when the application starts (its lifespan), or with the first request where nobody starts it.
    `app.state.server` is what it shares between requests.

    Args:
        models: Name -> folder, Hugging Face id or `packaged:NAME`, embedders and rerankers; or a model that is loaded.
        index: Folder of an index of `bge search`, which is searched at `/v1/search`; its model must be among `models`.
            One at a URL is copied when the application starts.
        api_keys: Keys, of which requests must have one; none if empty.
        options: Name -> `dtype`, `max_length`, `pooling`, `revision`, ... of that model.
        settings: Of `Settings`: `max_wait=5`, `lazy=True`, ...

    Raises:
        BgekitError: a model cannot be used, or a name is impossible.

    Example:
        >>> from bgekit.serving import create_app
        >>> app = create_app({"small": "BAAI/bge-small-en-v1.5"}, api_keys=["secret"])
    """
    require_extra("serve", "starlette", "msgspec", "prometheus_client")
    unknown = [name for name in settings if name not in Settings.__dataclass_fields__]
    if unknown:
        raise UsageError(f"there is no setting {unknown[0]!r}; there are {', '.join(Settings.__dataclass_fields__)}")
    chosen = Settings(**settings)
    if strange := [name for name in options or {} if name not in models]:
        raise UsageError(f"there are settings for {strange[0]}, which is not served; served are {', '.join(models)}")
    return App(models, None if index is None else os.fspath(index), tuple(api_keys), options, chosen)


class App:
    """The application: requests to `/NAME/...` go where those to `/...` go, with the model's name noted."""

    def __init__(
        self, models: Mapping[str, Any], index: str | None, api_keys: tuple[str, ...],
        options: Mapping[str, Mapping[str, Any]] | None, settings: Settings,
    ) -> None:  # fmt: skip
        import torch

        from ..inference.engine import resolve_devices

        devices = resolve_devices(settings.devices)
        given = [each for each in models.values() if not isinstance(each, str | os.PathLike)]
        if given and any(len(each.devices) > 1 for each in given):
            raise UsageError("a model that is given loaded must be on one device: name its folder, and devices=")
        cpus = sum(device.type == "cpu" for device in devices)
        threads = torch.get_num_threads()
        streams = max(1, threads // cpus) if devices[0].type == "cpu" else 1
        scheduler = Scheduler(
            streams, devices=len(devices), max_wait=settings.max_wait, stuck=settings.stuck, all_threads=threads
        )
        _check_names(models)
        found = Models(models, settings, scheduler, options)
        self.server = Server(settings, found, scheduler, api_keys, index, devices[0].type)
        routes = [*_own_routes(), *(
            route for module in MODULES
            for route in importlib.import_module(f"{__package__}.routes.{module}").routes(self.server)
        )]  # fmt: skip
        _check_names(models, routes)
        self._preparation = _Preparation(self.server)
        self.server.prepare = self._preparation.wait
        self.app = Starlette(
            routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: self._not_found}
        )
        self.app.state.server = self.server
        self.state = self.app.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or start and end with the server that runs this."""
        if scope["type"] == "http":
            first, _, rest = scope["path"].removeprefix("/").partition("/")
            if first and self.server.models.has(first):
                scope = {**scope, "path": f"/{rest}", "bge_name": first}
                scope.pop("raw_path", None)
        await self.app(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        if not self._preparation.held:
            self._preparation.start()
        try:
            yield
        finally:
            self.server.end()

    async def _not_found(self, request: Request, error: Exception) -> Response:
        """What is answered where no route fits."""
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 405:
            said = f"{path} does not take {request.method}"
        else:
            said = f"there is no route {path}; docs/serve.md has them, and /openapi.json"
            if has_key(self.server, request.headers):  # Others need not know what is served here.
                said += f". Models are {', '.join(each.name for each in self.server.models)}"
        problem = plain_problem(NotFound(said))
        problem.status_code = error.status_code
        return problem


class _Preparation:
    """The loading of all models, once, by a thread, for all who wait for it."""

    def __init__(self, server: Server) -> None:
        self._server, self._lock = server, threading.Lock()
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        #: Whether whoever runs the application begins it later, when it is known that there is an address to listen on.
        self.held = False
        self.on_failure: Callable[[BaseException], None] | None = None

    def start(self) -> None:
        """Begin, if it has not begun."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bgekit-load", daemon=True)
                self._thread.start()

    async def wait(self) -> None:
        """Wait for the end, be it a failure."""
        self.start()
        while not self._done.is_set():
            await asyncio.sleep(0.01)

    def _run(self) -> None:
        server = self._server
        try:
            server.models.load()
            if server.index is not None:
                _bind_index(server)
        except BaseException as error:
            server.broken = str(error)
            if not isinstance(error, BgekitError):
                logger.exception("models cannot be loaded")
            if self.on_failure is not None:
                self.on_failure(error)
        finally:
            server.prepared = True
            self._done.set()


def _bind_index(server: Server) -> None:
    """Find the model of the index among those that are served.

    That is the very one, or one that makes the same vectors in another number format or with other instructions.

    Raises:
        OutputError: it is not among them.
    """
    open_index = server.state["index"]
    reasons, alike = [], None
    embedders = [served for served in server.models if served.kind == "embedder"]
    for served in sorted(embedders, key=lambda each: each.id != open_index.model_name):
        served.load()
        try:
            open_index.check_model(served.model)
        except BgekitError as error:
            reasons.append(f"{served.name}: {error}")
            continue
        alike = alike or served
        if open_index.made_by(served.model):
            alike = served
            break
    if alike is None:
        raise OutputError(f"the model of the index in {server.index} is not served. " + " ".join(reasons))
    open_index.served = alike


def _check_names(models: Mapping[str, Any], routes: Iterable[Route] = ()) -> None:
    """See to it that names can be told apart from aliases, other names and routes.

    Raises:
        UsageError: one cannot.
    """
    taken = {part for route in routes for part in route.path.strip("/").split("/")[:1] if part}
    for name in models:
        if not name or any(letter in _SEPARATORS or letter.isspace() for letter in name):
            raise UsageError(f"{name!r} cannot be a model's name: it must not hold {' '.join(_SEPARATORS)} or spaces")
        if name in taken:
            raise UsageError(f"{name!r} cannot be a model's name: /{name} is a route; give another, such as my-{name}")


async def _live(call: Call) -> Response:
    """Whether the process can go on: 503 only where it must be started again."""
    if call.server.failed:
        said = {"reason": call.server.failed} if has_key(call.server, call.headers) else {}
        return JSONResponse({"status": "failed", **said}, 503)
    return JSONResponse({"status": "alive"})


async def _ready(call: Call) -> Response:
    """Whether it takes work."""
    reason = await call.server.readiness()
    if reason:
        said = {"reason": reason} if has_key(call.server, call.headers) else {}
        return JSONResponse({"status": "not ready", **said}, 503, headers={"retry-after": "1"})
    return JSONResponse({"status": "ready"})


async def _health(call: Call) -> Response:
    """The same as text-embeddings-inference says it: by the status alone."""
    reason = await call.server.readiness()
    return Response(status_code=503 if reason else 200)


async def _metrics(call: Call) -> Response:
    return Response(call.server.metrics.page(), media_type=_PROMETHEUS)


async def _stats(call: Call) -> Response:
    return JSONResponse(call.server.stats())


async def _reload(call: Call) -> Response:
    """Load a model's files again, without a pause."""
    if not call.server.api_keys:
        raise Unauthorized("models are loaded again only by who has a key: start the server with --api-key-file")
    served, alias = call.server.models.find(call.path_params["name"])
    if alias is not None:
        raise Unprocessable(f"name the model without {alias!r}")
    await served.reload()
    return JSONResponse({"model": served.name, "state": served.state})


def _own_routes() -> list[Route]:
    """Routes for those who run the server."""
    paths = {
        "/health": _health, "/ping": _health, "/ready": _ready, "/readyz": _ready, "/live": _live, "/livez": _live,
        "/metrics": _metrics,
    }  # fmt: skip
    made = [Route(path, endpoint(answer, key=False, work=False), methods=["GET"]) for path, answer in paths.items()]
    made.append(Route("/-/stats", endpoint(_stats, work=False), methods=["GET"]))
    made.append(Route("/-/models/{name}/reload", endpoint(_reload, work=False), methods=["POST"]))
    return made
