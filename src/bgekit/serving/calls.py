"""One request on its way: what a route's handler is given, and all that is the same for every route around it.

Around a handler: the request's id, its key, the limit of its body, the server being shut down, a client that leaves,
errors as the shape's own JSON, headers, metrics and the access log.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import Response

from .errors import Gone, Internal, Overloaded, ServingError, TooLarge, Unauthorized, Unready
from .trace import Trace

if TYPE_CHECKING:
    from starlette.datastructures import Headers, QueryParams
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .server import Server

logger = logging.getLogger(__name__)
access = logging.getLogger("bgekit.access")
#: Ids that a client may give: what can stand in a header and in a line of a log.
_ID: Final = re.compile(r"[\w.:/+=-]{1,128}")
#: Positions in a header, at most.
_NAMED: Final = 1000


class Call(Trace):
    """A request, and what becomes known of it while it is answered.

    Attributes:
        server: The server.
        body: The whole body, b"" without one.
        headers: Its headers.
        query: Its query.
        path_params: Parameters of its path.
        method: Its HTTP method.
        path: Its path, without the name of a model in front.
    """

    def __init__(self, server: Server, request: Request, body: bytes = b"") -> None:
        given = request.headers.get("x-request-id", "")
        super().__init__(given if _ID.fullmatch(given) else uuid.uuid4().hex, request.scope.get("bge_name"))
        self.server, self.body = server, body
        self.headers: Headers = request.headers
        self.query: QueryParams = request.query_params
        self.path_params: dict[str, Any] = request.path_params
        self.method, self.path = request.method, request.url.path


Handler = Callable[[Call], Awaitable[Response]]
#: The JSON that a shape has for an error.
Problem = Callable[[ServingError], Response]


def plain_problem(error: ServingError) -> Response:
    """An error where no shape has its own JSON."""
    said = {"error": {"message": str(error), "type": type(error).__name__, "param": error.param, "code": error.status}}
    return Response(json.dumps(said), error.status, media_type="application/json")


class Endpoint:
    """A handler with all that is the same for every route, as an ASGI application for a `Route`."""

    def __init__(self, handler: Handler, problem: Problem, key: bool, work: bool) -> None:
        self.handler, self.problem, self.key, self.work = handler, problem, key, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        server: Server = scope["app"].state.server
        call = Call(server, Request(scope))
        response: Response | None = None
        server.enter(call, self.work)
        try:
            response = await self._answered(call, receive)
            if response is not None:
                self._label(call, response)
                await response(scope, receive, send)
        finally:
            server.leave(call, self.work)
            if self.work:
                server.metrics.finished(call, time.perf_counter() - call.started)
            _log(call, scope, 499 if response is None else response.status_code)

    async def _answered(self, call: Call, receive: Receive) -> Response | None:
        """The answer, None where the client has left."""
        try:
            if self.key:
                check_key(call)
            call.body = await _body(call, receive)
            if self.work and call.server.draining:  # With its body unread, the closed connection would lose the answer.
                raise Unready("the server is being shut down: ask another one")
            if self.work and not call.server.prepared:
                await call.server.prepare()
            if self.work and call.server.broken:
                raise Unready(call.server.broken)
            if self.work and call.server.working > call.server.settings.max_requests:
                raise Overloaded(f"{call.server.working:,} requests are being answered (--max-requests)", 1.0)
            return await self._handled(call, receive)
        except Gone as error:
            call.error = error
            return None
        except ServingError as error:
            call.error = error
        except Exception:
            logger.exception("request %s (%s %s) failed", call.id, call.method, call.path)
            call.error = Internal("something failed in the server; its log has the details under this request's id")
        return self.problem(call.error)

    async def _handled(self, call: Call, receive: Receive) -> Response:
        """What the handler answers; it is cancelled when the client leaves."""
        if not self.work:
            return await self.handler(call)
        handling = asyncio.ensure_future(self.handler(call))
        call.server.handling(handling)
        watching = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((handling, watching), return_when=asyncio.FIRST_COMPLETED)
            if not handling.done():
                raise Gone("the client has left")
            if handling.cancelled():
                raise Unready("the server was shut down before this was computed: ask another one")
            return handling.result()
        finally:
            for task in (handling, watching):
                if not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, ServingError):
                        await task

    def _label(self, call: Call, response: Response) -> None:
        """Put on the answer what every answer says."""
        headers = response.headers
        headers["x-request-id"] = call.id
        if call.error is not None and call.error.retry_after is not None:
            headers["retry-after"] = str(max(1, round(call.error.retry_after + 0.5)))
        if call.server.draining:
            headers["connection"] = "close"
        if call.truncated and call.error is None:
            named = ",".join(map(str, call.truncated[:_NAMED]))
            headers["x-truncated"] = named + (",..." if len(call.truncated) > _NAMED else "")
        if call.inputs and call.error is None:
            total = time.perf_counter() - call.started
            headers["x-compute-type"] = call.server.compute_type
            headers["x-compute-characters"] = str(call.characters)
            headers["x-compute-tokens"] = str(call.tokens)
            for name, seconds in (
                ("x-compute-time", total), ("x-total-time", total), ("x-tokenization-time", call.tokenized),
                ("x-queue-time", call.queued), ("x-inference-time", call.computed),
            ):  # fmt: skip
                headers[name] = str(round(1000 * seconds))


def endpoint(handler: Handler, *, problem: Problem = plain_problem, key: bool = True, work: bool = True) -> ASGIApp:
    """A handler as the endpoint of a `Route`.

    Args:
        handler: Takes a `Call`, returns a response, raises `ServingError`.
        problem: Makes the shape's JSON of an error, also of those before the handler runs (401, 413, 503).
        key: Whether it needs a key, where the server has keys.
        work: Whether it computes: it is refused while the server is being shut down, counts in the metrics of
            requests, and is cancelled when the client leaves.
    """
    return Endpoint(handler, problem, key, work)


def check_key(call: Call) -> None:
    """See to it that a request has one of the server's keys, if there are any.

    Raises:
        Unauthorized: it has not.
    """
    if not has_key(call.server, call.headers):
        raise Unauthorized("the key is missing or wrong: send it as `Authorization: Bearer KEY`")


def has_key(server: Server, headers: Headers) -> bool:
    """Whether a request has one of the server's keys, or needs none."""
    if not server.api_keys:
        return True
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not given:
        given = headers.get("api-key") or headers.get("x-api-key") or ""
    # All keys are compared, so that the time says nothing.
    return sum(hmac.compare_digest(given.strip().encode(), key) for key in server.api_keys) > 0


async def _body(call: Call, receive: Receive) -> bytes:
    """The body.

    Raises:
        TooLarge: it has more bytes than the server takes.
        Gone: the client left.
    """
    most = call.server.settings.max_body
    too_large = TooLarge(f"the body is larger than {most:,} bytes (--max-body): send fewer texts at once")
    if (length := call.headers.get("content-length", "")).isdigit() and int(length) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone("the client has left")
        size += len(part := message.get("body", b""))
        if size > most:
            raise too_large
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _log(call: Call, scope: Scope, status: int) -> None:
    """A line of JSON; texts never stand in it."""
    if not access.isEnabledFor(logging.INFO):
        return
    client = scope.get("client")
    line: dict[str, Any] = {
        "id": call.id, "client": client[0] if client else None, "method": call.method, "path": call.path,
        "status": status, "ms": round(1000 * (time.perf_counter() - call.started), 1),
    }  # fmt: skip
    if call.inputs:
        line |= {
            "model": call.model, "inputs": call.inputs, "tokens": call.tokens, "truncated": len(call.truncated),
            "queue_ms": round(1000 * call.queued, 1), "compute_ms": round(1000 * call.computed, 1),
        }  # fmt: skip
    if call.error is not None:
        line["error"] = type(call.error).__name__
    access.info("%s", json.dumps(line))
