"""Errors of the server that a client is told: each has a status, a kind, and a message that names what to do.

ServingError
├── BadRequest      400   the body is not what the route takes
├── Unauthorized    401   the key is missing or wrong
├── NotFound        404   no such model, route or prompt
├── TooLarge        413   the body, the number of texts or of tokens is over a limit
├── Unprocessable   422   a text is too long with truncation off, a value is impossible
├── Overloaded      429   the queue is full: `retry_after` seconds
├── Internal        500   NaN, a worker that died twice
├── Unready         503   the model is being loaded, or the server is being shut down
└── Gone            499   the client left; nobody reads it

Each shape of API (`routes/`) makes its own JSON of them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ..errors import BgekitError

#: Why a request failed, as text-embeddings-inference counts it in `te_request_failure{err=...}`.
Failure = Literal[
    "batch_size", "dropped", "inference", "missing_values", "model_type", "overloaded", "tokenization", "validation"
]


class ServingError(BgekitError):
    """A request that is not answered as it was meant.

    Attributes:
        status: HTTP status.
        failure: What metrics count it as.
        retry_after: Seconds after which the client may try again, None if that makes no difference.
        param: The field that is wrong, None if it is none.
    """

    status: ClassVar[int] = 500
    failure: Failure = "validation"
    retry_after: float | None = None

    def __init__(self, message: str, *, param: str | None = None, failure: Failure | None = None) -> None:
        super().__init__(message)
        self.param = param
        if failure is not None:
            self.failure = failure


class BadRequest(ServingError):
    """The body is not what the route takes."""

    status = 400


class Unauthorized(ServingError):
    """The key is missing or wrong."""

    status = 401


class NotFound(ServingError):
    """There is no such model, route or prompt; the message names those that there are."""

    status = 404


class TooLarge(ServingError):
    """The body, the number of texts or the number of tokens is over a limit."""

    status = 413
    failure: Failure = "batch_size"


class Unprocessable(ServingError):
    """A text is too long with truncation off, or a value is impossible."""

    status = 422


class Overloaded(ServingError):
    """The request would wait for too long."""

    status = 429
    failure: Failure = "overloaded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Internal(ServingError):
    """Something failed here; the client's request was right."""

    status = 500
    failure: Failure = "inference"


class Unready(ServingError):
    """The model is being loaded, or the server is being shut down."""

    status = 503
    failure: Failure = "inference"

    def __init__(self, message: str, retry_after: float | None = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Gone(ServingError):
    """The client has left."""

    status = 499
    failure: Failure = "dropped"
