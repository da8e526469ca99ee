"""What becomes known of a request while it is answered: for its answer's headers, metrics and the access log."""

from __future__ import annotations

import time

from .errors import ServingError


class Trace:
    """What becomes known of a request while it is answered.

    Attributes:
        id: Its id.
        name: The model's name that its path began with, an alias such as `NAME:query` included; None without.
        started: When it came, in seconds of `time.perf_counter`.
        model: The name of the model that answers it, once that is known.
        inputs: Texts or pairs that were computed for it.
        characters: Characters of those.
        tokens: Tokens of those.
        truncated: Positions of those that were cut.
        embed: Whether it was answered by an embedder (True) or a reranker (False), None as long as that is not known.
        batch: Whether the client gave several inputs.
        tokenized: Seconds that tokenisation took.
        queued: Seconds in the queue until its first input was taken.
        computed: Seconds from then to its last result.
        error: Why it failed.
    """

    def __init__(self, identity: str, name: str | None) -> None:
        self.id, self.name = identity, name
        self.started = time.perf_counter()
        self.model = ""
        self.inputs = self.characters = self.tokens = 0
        self.truncated: list[int] = []
        self.embed: bool | None = None
        self.batch = False
        self.tokenized = self.queued = self.computed = 0.0
        self.error: ServingError | None = None
