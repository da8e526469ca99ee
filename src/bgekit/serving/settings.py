"""The settings of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
        max_body: Bytes of a body.
        max_inputs: Texts or pairs of a request.
        max_tokens: Tokens of a request.
        max_wait: Seconds that a request may have to wait in the queue; longer, it is refused.
        max_requests: Requests that are answered at the same time.
        grace: Seconds for the work that is accepted when the server is told to end.
        stuck: Seconds after which a batch that is still being computed means that a worker is stuck.
        keep_alive: Seconds after which a model that nobody uses is let go; None never.
        lazy: Whether models are loaded when they are first asked for, not at the start.
        auto_truncate: Whether texts that are too long are cut where a request does not say.
        accept_token_ids: Whether token ids are taken as the model's own where a shape has them.
        hidden: Columns of the index that are never shown.
        devices: Where models compute; None for what there is.

    Example:
        >>> from bgekit.serving import Settings
        >>> Settings(max_wait=5).grace
        30.0
    """

    max_body: int = 32 * 1024 * 1024
    max_inputs: int = 4096
    max_tokens: int = 1_000_000
    max_wait: float = 10.0
    max_requests: int = 4096
    grace: float = 30.0
    stuck: float = 60.0
    keep_alive: float | None = None
    lazy: bool = False
    auto_truncate: bool = True
    accept_token_ids: bool = False
    hidden: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = None
