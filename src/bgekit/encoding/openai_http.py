"""Talks to an embeddings API of the OpenAI kind: one call is one request, tried again where that can help."""

from __future__ import annotations

import http.client
import json
import logging
import random
import re
import ssl
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

from ..errors import ApiError, ArgumentError
from .openai_refusals import Meaning, error_fields, meaning, most_texts

logger = logging.getLogger(__name__)

KEY_VARIABLE: Final = "OPENAI_API_KEY"
URL_VARIABLE: Final = "OPENAI_BASE_URL"
DEFAULT_URL: Final = "https://api.openai.com/v1"

#: Answers that another try may change; so may every other 5xx.
_PASSING_STATUS: Final = frozenset({408, 409, 429})
#: Codes of answers that look passing and are not.
_FINAL_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})

#: Characters of an API's message that are shown.
_SHOWN: Final = 300
#: From so many characters on, a key is taken out of messages wherever it stands, or as a word of its own.
_SECRET, _WORD = 12, 4


class RequestTooLargeError(ApiError):
    """The API wants fewer texts, or less text, in one request.

    Attributes:
        about: `texts`: their number; `length`: how long they are; `size`: it does not say.
        most: The number of texts that it takes, None if it does not say.
    """

    def __init__(self, message: str, about: Meaning = "size", most: int | None = None) -> None:
        super().__init__(message)
        self.about, self.most = about, most


class FormatRefusedError(ApiError):
    """The API does not know the number format that vectors were asked for in."""


@dataclass(frozen=True)
class Retries:
    """How long to be patient.

    Attributes:
        attempts: Tries of one request, the first included.
        first_wait: Seconds before the second try; doubled for each further one.
        longest_wait: Most seconds before a try. An API that asks for more gets no further try.
        timeout: Seconds without a byte after which a try has failed.
    """

    attempts: int = 6
    first_wait: float = 0.5
    longest_wait: float = 60.0
    timeout: float = 60.0

    def wait(self, attempt: int) -> float:
        """Seconds to wait after try `attempt` (from 1), jittered so that many clients spread out."""
        full = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 1))
        return full * random.uniform(0.5, 1.0)


class Endpoint:
    """The embeddings address of an API. Safe to use from several threads."""

    def __init__(self, base_url: str, api_key: str | None, retries: Retries) -> None:
        """Check the address and the key; nothing is sent yet.

        Raises:
            ArgumentError: the address is no http or https URL.
            ApiError: the public OpenAI API is meant, and there is no key.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            # Without this check urllib would open file: and others as well.
            raise ArgumentError(f"the API's base URL must be http://... or https://..., not {base_url!r}")
        if parts.username or parts.password:
            raise ArgumentError(f"the API's base URL must not hold a password; put the key into {KEY_VARIABLE}")
        self.url = base_url.rstrip("/") + "/embeddings"
        self._key = (api_key or "").strip()
        if not self._key and base_url.rstrip("/") == DEFAULT_URL:
            raise ApiError(f"there is no API key: set the environment variable {KEY_VARIABLE} or pass api_key=")
        if self._key and not self._key.isprintable():
            raise ArgumentError(f"the API key holds characters that no key has; check {KEY_VARIABLE}")
        self._retries = retries
        self._opener = urllib.request.build_opener(_NoRedirects)

    @property
    def is_public(self) -> bool:
        """Whether this is OpenAI's own API."""
        return self.url == f"{DEFAULT_URL}/embeddings"

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def post(self, payload: dict[str, Any], stop: threading.Event) -> Any:
        """The decoded JSON answer to a request.

        Args:
            payload: Body of the request.
            stop: Ends waiting for the next try when set.

        Raises:
            RequestTooLargeError: fewer texts may work.
            FormatRefusedError: another `encoding_format` may work.
            ApiError: refused, or no good answer after all tries.
        """
        body = json.dumps(payload).encode("ascii")
        for attempt in range(1, self._retries.attempts + 1):
            if stop.is_set():
                raise ApiError("stopped before the request was sent")
            answer = self._try(body, len(payload["input"]))
            if not isinstance(answer, _Failure):
                return answer
            if not answer.passing:
                raise answer.error
            if attempt == self._retries.attempts:
                raise ApiError(f"{answer.error} (given up after {attempt} tries)") from answer.error
            self._pause(answer, attempt, stop)
        raise ApiError("no try was allowed: max_attempts must be at least 1")

    def _pause(self, failure: _Failure, attempt: int, stop: threading.Event) -> None:
        wait = self._retries.wait(attempt)
        if failure.retry_after is not None:
            if failure.retry_after > self._retries.longest_wait:
                raise ApiError(
                    f"{failure.error} (it asks to wait {failure.retry_after:.0f} s, "
                    f"more than the {self._retries.longest_wait:.0f} s allowed)"
                ) from failure.error
            wait = failure.retry_after + self._retries.first_wait * random.uniform(0.0, 0.5)
        logger.info("%s; next try in %.1f s", failure.error, wait)
        if stop.wait(wait):
            raise ApiError("stopped while waiting for the API") from failure.error

    def _try(self, body: bytes, texts: int) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "bgekit"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._retries.timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error.code, error.headers, _read_quietly(error), texts)
        except urllib.error.URLError as error:
            passing = not isinstance(error.reason, ssl.SSLCertVerificationError)
            return _Failure(ApiError(f"cannot reach {self.url}: {error.reason}"), passing)
        except (OSError, http.client.HTTPException) as error:
            return _Failure(ApiError(f"no complete answer from {self.url}: {error or type(error).__name__}"), True)
        try:
            answer = json.loads(content)
        except ValueError as error:
            failure = ApiError(f"{self.url} answered with something that is not JSON: {content[:80]!r}")
            failure.__cause__ = error
            return _Failure(failure, False)
        if isinstance(answer, dict) and "data" not in answer and {"error", "error_code", "error_msg"} & answer.keys():
            # A refusal that says so in its content alone, as Baidu's and OpenRouter's do.
            stated = answer.get("error")
            code = stated.get("code") if isinstance(stated, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 400
            return self._refused(status, response.headers, content, texts)
        return answer

    def _refused(self, status: int, headers: Message, content: bytes, texts: int) -> _Failure:
        message, code = error_fields(content)
        about = meaning(status, message, code)
        most = most_texts(message, texts) if about == "texts" else None
        message = self._without_key(message)[:_SHOWN]
        if about == "format":
            return _Failure(FormatRefusedError(self._explain(status, message)), False)
        if about is not None:
            error = RequestTooLargeError(f"{self.url} finds the request too large ({status}): {message}", about, most)
            return _Failure(error, False)
        passing = (status in _PASSING_STATUS or status >= 500) and code not in _FINAL_CODES
        return _Failure(ApiError(self._explain(status, message)), passing, _retry_after(headers))

    def _without_key(self, message: str) -> str:
        """The message for people; a key that could be an ordinary word or number is none, and stays."""
        if len(self._key) >= _SECRET:
            return message.replace(self._key, "<key>")
        if len(self._key) >= _WORD:
            return re.sub(rf"(?<!\w){re.escape(self._key)}(?!\w)", "<key>", message)
        return message

    def _explain(self, status: int, message: str) -> str:
        if status == 401:
            # The API's own words repeat parts of the key.
            return f"{self.url} does not accept the API key (401): check the variable {KEY_VARIABLE}, or api_key="
        advice = {
            403: f"; check what the key (api_key=, {KEY_VARIABLE}) may do",
            404: f"; check the model's name and the address (base_url=, {URL_VARIABLE})",
        }.get(status, "")
        if 300 <= status < 400:
            # Followed, a redirect would carry the key to another host.
            advice = f"; redirects are not followed, give the final address as base_url= or {URL_VARIABLE}"
        return f"{self.url} answered {status}: {message or 'without a message'}{advice}"


@dataclass(frozen=True)
class _Failure:
    """A try without a result: why, whether another may help, and how long the API asks to wait."""

    error: ApiError
    passing: bool
    retry_after: float | None = None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _read_quietly(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read(65536)
    except (OSError, http.client.HTTPException):
        # The status alone says enough; the connection broke before the explanation was complete.
        return b""


def _retry_after(headers: Message) -> float | None:
    """Seconds that the API asks to wait, None when it does not say."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * unit)
        except ValueError:
            pass  # retry-after may also be a date
        try:
            until = parsedate_to_datetime(value)
        except (TypeError, ValueError):
            continue
        until = until if until.tzinfo else until.replace(tzinfo=timezone.utc)
        return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())
    return None
