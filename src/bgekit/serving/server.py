"""The server: its settings, and what all requests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calls import Call
    from .models import Models


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
        max_body: Bytes of a body.
        max_inputs: Texts or pairs of a request.
        max_tokens: Tokens of a request.
        max_wait: Seconds that a request may have to wait in the queue; longer, it is refused.
        grace: Seconds for the work that is accepted when the server is told to end.
        stuck: Seconds after which a batch that is still being computed means that a worker is stuck.
        auto_truncate: Whether texts that are too long are cut where a request does not say.
        accept_token_ids: Whether token ids are taken as the model's own where a shape has them.
        hidden: Columns of the index that are never shown.
    """

    max_body: int = 32 * 1024 * 1024
    max_inputs: int = 4096
    max_tokens: int = 1_000_000
    max_wait: float = 10.0
    grace: float = 30.0
    stuck: float = 60.0
    auto_truncate: bool = True
    accept_token_ids: bool = False
    hidden: tuple[str, ...] = ()


class Server:
    """What all requests share.

    Attributes:
        settings: Its settings.
        models: The models.
        api_keys: Keys, of which a request must have one; empty if it needs none.
        index: Folder of the index that is searched, None without.
        metrics: Counters.
        draining: Whether it is being shut down.
        compute_type: What is computed on, such as `cpu`.
        state: For route modules, to keep what they made.
    """

    settings: Settings
    models: Models
    api_keys: Sequence[bytes]
    index: Path | None
    metrics: Any
    draining: bool
    compute_type: str
    state: dict[str, Any]

    def enter(self, call: Call, work: bool) -> None:
        """A request has come."""

    def leave(self, call: Call, work: bool) -> None:
        """It is answered."""

    def stats(self) -> dict[str, Any]:
        """Queue and throughput as plain values, for the page: `queued_requests`, `queued_tokens`, `tokens_per_second`,
        `running_batches`, `models`.
        """
        return {}
