"""A model of a server of `bge serve`, by its address, for the classes of other frameworks."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
import numpy as np
import numpy.typing as npt

from ..errors import ApiError, ArgumentError

#: Where the key is looked for.
KEY_VARIABLE: Final = "BGE_API_KEY"
#: Texts of a request unless told; a server splits it as it needs.
TEXTS: Final = 256
#: Statuses that another try may change.
_PASSING: Final = frozenset({429, 502, 503, 504})
#: Tries of a request, and the most seconds that a server may ask to wait before the next.
_TRIES: Final = 6
_LONGEST_WAIT: Final = 60.0


def is_address(name: object) -> bool:
    """Whether a model's name is the address of a server."""
    return isinstance(name, str) and name.lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class _Known:
    """What a server has said.

    Attributes:
        root: Its address, without the name of a model.
        name: Name of the model.
        prompts: Prompt of each role.
    """

    root: str
    name: str
    prompts: dict[str, str]


class ServedModel:
    """An embedder behind the address `http://HOST:PORT` (the first one there) or `http://HOST:PORT/NAME`.

    Roles are asked for by the model's name, `NAME:query` and `NAME:document`, so the instruction is the server's. Safe
    to use from several threads.
    """

    def __init__(self, address: str, api_key: str | None = None, *, timeout: float = 60.0) -> None:
        """Prepare to ask; nothing is sent yet.

        Args:
            address: The address.
            api_key: The key, the environment variable BGE_API_KEY by default.
            timeout: Seconds without a byte after which a try has failed.

        Raises:
            ArgumentError: the address is none.
        """
        try:
            url = httpx.URL(address)
        except httpx.InvalidURL as error:
            raise ArgumentError(f"{address!r} is not an address: {error}") from error
        if not url.host or url.userinfo or url.query or url.fragment:
            raise ArgumentError(
                f"the address of a server is http://HOST:PORT or http://HOST:PORT/NAME, not {address!r}; a key goes "
                f"into api_key= or {KEY_VARIABLE}"
            )
        self.address = address.rstrip("/")
        key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, pool=None))
        self._known: _Known | None = None

    def embed(
        self, texts: Sequence[str], role: str | None = None, *, batch_size: int = TEXTS
    ) -> npt.NDArray[np.float32]:
        """Vectors [n, dimension] of texts.

        Args:
            texts: The texts.
            role: `query` or `document`; None for texts as they are.
            batch_size: Texts of a request.

        Raises:
            ApiError: the server refused, or did not answer after several tries.
        """
        known = self._ask_once()
        body: dict[str, Any] = {"model": f"{known.name}:{role}" if role else known.name, "encoding_format": "base64"}
        found: list[bytes] = []
        for first in range(0, len(texts), batch_size):
            answer = self._ask(
                "POST", f"{known.root}/v1/embeddings", body | {"input": list(texts[first : first + batch_size])}
            )
            data = sorted(answer["data"], key=lambda each: each["index"])
            if len(data) != len(texts[first : first + batch_size]):
                raise ApiError(
                    f"{known.root} answered {len(data)} vectors for {len(texts[first : first + batch_size])} texts"
                )
            found += [base64.b64decode(each["embedding"]) for each in data]
        if not found:
            return np.empty((0, 0), np.float32)
        return np.stack([np.frombuffer(each, dtype="<f4").astype(np.float32) for each in found])

    def prompt(self, role: str) -> str:
        """The text that the server puts before texts of a role."""
        return self._ask_once().prompts.get(role, "")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask_once(self) -> _Known:
        if self._known is None:
            listed = {each["id"]: each for each in self._ask("GET", f"{self.address}/v1/models")["data"]}
            root, _, last = self.address.rpartition("/")
            name = last if last in listed else next((each for each in listed if f"{each}:query" in listed), None)
            if name is None or f"{name}:query" not in listed:
                raise ApiError(f"{self.address} serves no embedder by this name; it has {', '.join(listed) or 'none'}")
            prompts = {role: listed[f"{name}:{role}"].get("prompt", "") for role in ("query", "document")}
            self._known = _Known(root if last in listed else self.address, name, prompts)
        return self._known

    def _ask(self, method: str, url: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer."""
        content = None if body is None else json.dumps(body).encode()  # Lone surrogates as escapes.
        headers = {} if content is None else {"Content-Type": "application/json"}
        for attempt in range(1, _TRIES + 1):
            try:
                answer = self._client.request(method, url, content=content, headers=headers)
            except httpx.TransportError as error:
                reason: str = str(error) or type(error).__name__
                wait = 0.25 * 2**attempt
                if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
                    raise ApiError(f"{url} has not answered in time: {reason}") from error
            else:
                if answer.is_success:
                    return answer.json()
                reason = f"status {answer.status_code}: {_message(answer)}"
                if answer.status_code not in _PASSING:
                    raise ApiError(f"{url} refused ({reason})")
                given = answer.headers.get("retry-after", "")
                wait = float(given) if given.isdigit() else 0.25 * 2**attempt
            if attempt == _TRIES or wait > _LONGEST_WAIT:
                raise ApiError(f"{url} cannot be asked (given up after {attempt} tries): {reason}")
            time.sleep(wait)
        raise AssertionError  # The last try returns or raises.


def _message(answer: httpx.Response) -> str:
    """What an error says."""
    try:
        return str(answer.json()["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return answer.text[:200] or "without a message"
