"""The server as a process: uvicorn, signals, and the end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from ..errors import BgekitError, OutputError
from .errors import Unready

if TYPE_CHECKING:
    from .app import App

logger = logging.getLogger(__name__)
#: Exit code where a batch is stuck: whoever watches the process starts it again.
STUCK: Final = 70
#: Seconds that a connection is kept without a request: longer than clients keep theirs, so that they close them.
_KEPT: Final = 75
#: Connections that wait to be accepted.
_BACKLOG: Final = 2048
#: Seconds that answers have to leave after the work is done.
_LEAVE: Final = 5
#: Seconds between looks at what is still being answered.
_LOOK: Final = 0.02
#: Seconds that the process stays to say that it is not ready, where nothing is left to do.
_LINGER: Final = 0.3


def run(app: Any, *, host: str = "127.0.0.1", port: int = 8080, **options: Any) -> int:
    """Serve until a signal ends it.

    SIGTERM and SIGINT: from then on `/health` and new work are answered with 503, what was accepted is finished (for
    `grace` seconds at most, then it is refused with 503), then the process ends. A second signal ends it at once.

    Args:
        app: What `create_app` makes.
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free, which is logged.
        options: Of uvicorn's `Config`, such as `fd` or `uds`.

    Returns:
        The exit code.

    Raises:
        BgekitError: the address is taken, or a model cannot be loaded.

    Example:
        >>> from bgekit.serving import create_app, run
        >>> app = create_app({"small": "BAAI/bge-small-en-v1.5"})
        >>> run(app, port=8080)  # doctest: +SKIP
        0
    """
    config = uvicorn.Config(
        app, host=host, port=port, backlog=_BACKLOG, log_config=None, access_log=False, server_header=False,
        lifespan="on", timeout_graceful_shutdown=_LEAVE, timeout_keep_alive=_KEPT, **options,
    )  # fmt: skip
    server = _Server(config, app)
    try:
        server.run()
    except SystemExit:  # So uvicorn says that it cannot listen.
        raise OutputError(
            f"{host}:{port} cannot be listened on: another program has it, or it is not allowed"
        ) from None
    if server.error is not None:
        raise server.error
    return STUCK if app.server.failed else 0


class _Server(uvicorn.Server):
    """uvicorn, which accepts connections until the work is done, so that it can say that it is not ready."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._shared = app.server
        self._preparation = app._preparation
        self._preparation.on_failure = self._not_loaded
        self._preparation.held = True
        self.error: BaseException | None = None
        self._ending: asyncio.Task[None] | None = None

    def _not_loaded(self, error: BaseException) -> None:
        self.error = error if isinstance(error, BgekitError) else OutputError(f"models cannot be loaded: {error}")
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Listen, say where, and only then load the models: where the address is taken, none is."""
        await super().startup(sockets)
        for listening in getattr(self, "servers", []):
            for each in listening.sockets:
                address = each.getsockname()
                where = address if isinstance(address, str) else f"http://{address[0]}:{address[1]}"
                logger.info("listening on %s (process %d)", where, os.getpid())
        if not self.should_exit:
            self._preparation.start()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: end where a batch is stuck."""
        if self._shared.failed and not self.should_exit:
            logger.error(
                "%s: the process ends, with code %d, so that it can be started again", self._shared.failed, STUCK
            )
            self._shared.abandon()
            # A thread that is stuck in a computation would keep Python from ending.
            threading.Timer(1.0, os._exit, (STUCK,)).start()
            return True
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """Handle signals; unlike uvicorn, end with code 0 where they were obeyed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _signalled(self, number: int) -> None:
        if self._ending is not None:
            logger.warning("a second signal: ending at once")
            os._exit(128 + number)
        logger.info(
            "%s: no more work is taken, %d requests are finished", signal.Signals(number).name, self._shared.working
        )
        self._shared.draining = True
        self._ending = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """Wait for the work that was accepted, then have uvicorn end."""
        shared, loop = self._shared, asyncio.get_running_loop()
        start = loop.time()
        while shared.working and loop.time() - start < shared.settings.grace:
            await asyncio.sleep(_LOOK)
        if shared.working:
            logger.warning(
                "%d requests are refused: they were not done within %g s", shared.working, shared.settings.grace
            )
            late = Unready("the server was shut down before this was computed: ask another one")
            shared.scheduler.close(late)  # Batches that are being computed are finished.
            while shared.working and loop.time() - start < shared.settings.grace + _LEAVE:
                await asyncio.sleep(_LOOK)
            shared.abandon()
            while shared.working and loop.time() - start < shared.settings.grace + 2 * _LEAVE:
                await asyncio.sleep(_LOOK)
        await asyncio.sleep(_LINGER)
        self.should_exit = True
