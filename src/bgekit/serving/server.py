"""The server: its settings, and what all requests share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from .metrics import Metrics

if TYPE_CHECKING:
    from .models import Models
    from .scheduler import Scheduler
    from .settings import Settings
    from .trace import Trace

#: Seconds between looks at models that nobody has used for long.
_LOOK: Final = 1.0


class Server:
    """What all requests share.

    Attributes:
        settings: Its settings.
        models: The models.
        scheduler: The queue.
        api_keys: Keys, of which a request must have one; empty if it needs none.
        index: Folder of the index that is searched, or its URL; None without.
        metrics: Counters.
        draining: Whether it is being shut down.
        failed: Why it cannot go on, "" as long as it can.
        broken: Why models could not be loaded at the start.
        compute_type: What is computed on, such as `cpu`.
        state: For route modules, to keep what they made.
    """

    def __init__(
        self, settings: Settings, models: Models, scheduler: Scheduler, api_keys: Iterable[str | bytes],
        index: str | None, compute_type: str,
    ) -> None:  # fmt: skip
        self.settings, self.models, self.scheduler, self.index = settings, models, scheduler, index
        self.api_keys = tuple(key.encode() if isinstance(key, str) else key for key in api_keys)
        self.compute_type = compute_type
        self.draining = False
        self.failed = self.broken = ""
        #: Whether models have been loaded, or nothing can be done about it.
        self.prepared = False
        #: Waits until then; the application has it.
        self.prepare: Callable[[], Awaitable[None]]
        self.state: dict[str, Any] = {}
        self.started = time.time()
        #: Requests that are being answered, and those of them that compute.
        self.open = self.working = 0
        self._handlers: set[asyncio.Future[Any]] = set()
        self._lock = threading.Lock()
        self.metrics = Metrics(self._gauges)
        scheduler.on_batch = self.metrics.batch
        scheduler.on_shared = self.metrics.shared
        scheduler.on_stuck = self.fail
        self._ended = threading.Event()
        if settings.keep_alive is not None:
            threading.Thread(target=self._let_go, name="bgekit-serve-idle", daemon=True).start()

    def enter(self, call: Trace, work: bool) -> None:
        """A request has come."""
        with self._lock:
            self.open += 1
            self.working += work

    def leave(self, call: Trace, work: bool) -> None:
        """It is answered."""
        with self._lock:
            self.open -= 1
            self.working -= work

    def handling(self, handler: asyncio.Future[Any]) -> None:
        """A handler has begun to compute an answer."""
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    def abandon(self) -> None:
        """Have what is still being answered refused, whatever it waits for: a model, a tokenizer, a stuck batch."""
        for handler in list(self._handlers):
            handler.cancel()

    def fail(self, reason: str) -> None:
        """Say that the server cannot go on: it is no longer alive."""
        self.failed = reason

    @property
    def not_ready(self) -> str:
        """Why it takes no work, "" if it does."""
        if self.failed:
            return self.failed
        if self.draining:
            return "the server is being shut down"
        if self.broken:
            return self.broken
        return self.models.not_ready

    async def readiness(self) -> str:
        """`not_ready`; where nobody has started the application, it is started first."""
        if not self.prepared and not self.models.loading:
            await self.prepare()
        return self.not_ready

    def end(self) -> None:
        """Take no more work, end threads and worker processes."""
        self.draining = True
        self._ended.set()
        self.scheduler.close()
        self.models.close()

    def stats(self) -> dict[str, Any]:
        """Queue and throughput as plain values, for the page."""
        scheduler = self.scheduler
        return {
            "queued_requests": scheduler.queued_jobs,
            "queued_tokens": scheduler.queued_tokens,
            "running_batches": scheduler.running_batches,
            "open_requests": self.open,
            "computed_tokens": scheduler.computed_tokens,
            "tokens_per_second": round(self.models.speed(scheduler.workers)),
            "uptime": round(time.time() - self.started, 1),
            "models": {each.name: each.state for each in self.models},
        }

    def _gauges(self) -> Iterable[tuple[str, str, float]]:
        stats: Mapping[str, Any] = self.stats()
        return (
            ("te_queue_size", "Requests that wait in the queue", stats["queued_requests"]),
            ("bge_queue_tokens", "Tokens that wait in the queue", stats["queued_tokens"]),
            ("bge_running_batches", "Batches that are being computed", stats["running_batches"]),
            ("bge_tokens_per_second", "Speed of the first model, measured", stats["tokens_per_second"]),
            ("bge_models_loaded", "Models in memory", sum(each == "loaded" for each in stats["models"].values())),
        )

    def _let_go(self) -> None:
        assert self.settings.keep_alive is not None
        while not self._ended.wait(min(_LOOK, max(0.05, self.settings.keep_alive / 4))):
            self.models.let_go(self.settings.keep_alive)
