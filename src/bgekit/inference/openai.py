"""Vectors from an API of the OpenAI kind, behind the methods of every embedder.

The model is on top; below it the connection, what is sent and how often, and last what refusals mean. Servers agree on
no status and no code, so refusals are understood by their words: too many texts in one request, a text (or all of them
together) that is too long, or a number format of vectors that the server does not know. The wordings are those of
OpenAI, Azure, DashScope, SiliconFlow, Zhipu, Cohere, Gemini, text-embeddings-inference, vLLM, llama.cpp, Ollama,
LiteLLM, and of what FastAPI and pydantic say.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import functools
import itertools
import json
import logging
import os
import random
import re
import ssl
import threading
import urllib.request
import weakref
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from typing import Any, Final, Literal, cast

import httpx
import numpy as np
import numpy.typing as npt

from ..errors import ApiError, ArgumentError, CardError
from ..files.hashing import digest
from ..models.card import UNSET, ModelCard, Pooling, Prompt, Unset
from ..models.card_reading import prompt_doubt
from ..models.families import find_family, known_dimension, known_name
from .model import Embedder, optional_prompt
from .pipeline import Encoded, Origin
from .similarity import unit

logger = logging.getLogger(__name__)
Vectors = npt.NDArray[np.float32]
KEY_VARIABLE: Final = "OPENAI_API_KEY"
URL_VARIABLE: Final = "OPENAI_BASE_URL"
DEFAULT_URL: Final = "https://api.openai.com/v1"
#: Texts of a request unless the caller says otherwise: enough to hide the round trip, few enough to overlap.
DEFAULT_TEXTS: Final = 256
#: The API takes no more texts in one request.
MAX_TEXTS: Final = 2048
#: The API takes 300,000 tokens in one request; the estimate from bytes is rough, so this stays clear of it.
TOKEN_BUDGET: Final = 250_000
#: UTF-8 bytes of a token, on the low side: English has about 4, Chinese characters (3 bytes) about 1 token each.
_BYTES_PER_TOKEN: Final = 2
#: Tokens that the API takes of one text at most, for models that the family table does not know.
_DEFAULT_LENGTH: Final = 8192
#: Number formats that vectors can be asked for in, the next one tried where one is refused; None asks for nothing.
_FORMATS: Final = ("base64", "float", None)
#: White space of all kinds, and what is not seen at all: control characters, soft hyphens, marks of direction...
_BLANK: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u3164\ufeff]*")
#: Statuses that another try may change; so may every other 5xx.
_PASSING_STATUS: Final = frozenset({408, 409, 429})
#: Codes of answers that look passing and are not.
_FINAL_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
#: Characters of an API's message that are shown.
_SHOWN: Final = 300
#: From so many characters on, a key is taken out of messages wherever it stands, or as a word of its own.
_SECRET, _WORD = 12, 4


class OpenAIEmbedder(Embedder):
    """A hosted embedding model, or any server with the same protocol. Safe to use from several threads.

    A text's vector is what the API says of it: texts that are too long for the model are refused by the API instead
    of being cut, and empty and blank texts, which APIs refuse, are sent as one space (with a log line). How many texts
    the API takes in one request, in which number format it sends vectors, and how wide they are, is learnt from its
    answers.

    Example:
        >>> from bgekit import OpenAIEmbedder
        >>> model = OpenAIEmbedder("text-embedding-3-small", api_key="sk-...")
        >>> vectors = model.encode(["a text"])  # doctest: +SKIP
    """

    _advice = "The API answered so: ask who runs it, or leave this text out."

    def __init__(
        self,
        model_name_or_path: str = "text-embedding-3-small",
        *,
        normalize_embeddings: bool | Unset = UNSET,
        query_instruction_for_retrieval: str | Unset | None = UNSET,
        query_instruction_format: str | Unset = UNSET,
        passage_instruction_for_retrieval: str | Unset | None = UNSET,
        passage_instruction_format: str = "{}{}",
        use_fp16: bool = True,
        convert_to_numpy: bool = True,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        concurrency: int = 4,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float = 60.0,
        max_attempts: int = 6,
        encoding_format: Literal["base64", "float"] | None = "base64",
        **others: Any,
    ) -> None:
        """Prepare to ask; nothing is sent yet.

        Args:
            model_name_or_path: Name of the model, as the API knows it.
            normalize_embeddings: Whether vectors get unit length, by default yes.
            query_instruction_for_retrieval: Text before queries; left out means the known one of the model.
            query_instruction_format: Template of instruction and query, two slots `{}`; by default the model's.
            passage_instruction_for_retrieval: Text before passages; left out means the known one of the model.
            passage_instruction_format: Template of instruction and passage, two slots `{}`.
            use_fp16: Nothing; how the API computes is its own affair.
            convert_to_numpy: Whether `encode` returns arrays by default, or tensors.
            truncate_dim: Width of the vectors, at most the model's own.
            batch_size: Maximum number of texts per request, at most 2,048; 256 by default.
            concurrency: Requests under way at once.
            api_key: The key, the environment variable OPENAI_API_KEY by default.
            base_url: Address of the API, OPENAI_BASE_URL or the public API by default.
            timeout: Seconds without a byte after which a try has failed.
            max_attempts: Tries of one request, the first included.
            encoding_format: How vectors are asked for: `base64`, a quarter of the size, `float`, or None to leave the
                field out. Where the API refuses one, the next is taken.
            others: Arguments of `FlagModel` about weights on this machine are refused by name.

        Raises:
            ArgumentError: an argument is unknown or has an impossible value.
            CardError: the model is a reranker.
            ApiError: the public API is meant, and there is no key.
        """
        if others:
            names = ", ".join(f"{name}=" for name in others)
            raise ArgumentError(f"{model_name_or_path} is computed by an API, which does not use {names}")
        self.model = model_name_or_path
        self._family = family = find_family(model_name_or_path)
        if family is not None and family.kind == "reranker":
            raise CardError(f"{model_name_or_path} is a reranker: it scores pairs and has no text vectors")
        if family is None and isinstance(query_instruction_for_retrieval, Unset):
            _warn_of_prompts(model_name_or_path)
        self.batch_size = DEFAULT_TEXTS if batch_size is None else batch_size
        _check_number("batch_size", self.batch_size, MAX_TEXTS)
        if truncate_dim is not None:
            _check_number("truncate_dim", truncate_dim, known_dimension(self.model) or 1_000_000)
        _check_number("concurrency", concurrency, 256)
        _check_number("max_attempts", max_attempts, 100)
        if encoding_format not in _FORMATS:
            raise ArgumentError(f"encoding_format must be 'base64', 'float' or None, not {encoding_format!r}")
        self.convert_to_numpy = convert_to_numpy
        self._truncate_dim = truncate_dim
        self._normalize = True if isinstance(normalize_embeddings, Unset) else normalize_embeddings
        if isinstance(query_instruction_format, Unset):
            query_instruction_format = (family.template if family else None) or "{}{}"
        given = {
            "query": optional_prompt(query_instruction_for_retrieval, query_instruction_format),
            "document": optional_prompt(passage_instruction_for_retrieval, passage_instruction_format),
        }
        self._prompts: dict[str, Prompt] = {
            role: getattr(family, role, Prompt()) if isinstance(prompt, Unset) else prompt
            for role, prompt in given.items()
        }
        self._endpoint = Endpoint(
            base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL,
            api_key if api_key is not None else os.environ.get(KEY_VARIABLE),
            Retries(attempts=max_attempts, timeout=timeout),
        )
        self._concurrency = concurrency
        self._connection: Connection | None = None
        self._connecting = threading.Lock()
        # Learnt from the answers, which one thread reads: the format that is taken, the most texts of a request if it
        # is known, the most that were taken so far, and the width of the vectors.
        self._format = encoding_format
        self._most_texts: int | None = None
        self._taken = 0
        self._width: int | None = None

    @cached_property
    def dimension(self) -> int:
        """Width of the vectors; for a model that the family table does not know, one word is sent to find out.

        Where an answer has another width than the table, that of the answer counts from then on.
        """
        return self._truncate_dim or known_dimension(self.model) or self._ask_for_width()

    def settle(self) -> None:
        """See `Embedder`: at another address than the public one, a known name may be that of another model."""
        if self._width is None and self._truncate_dim is None and self._endpoint.url != f"{DEFAULT_URL}/embeddings":
            self._ask_for_width()

    def _ask_for_width(self) -> int:
        connection = self._connected()
        return int(connection.result(connection.start(self._embed(["dimension"], 1, connection))).vectors.shape[1])

    @property
    def precision(self) -> str:
        """Number format of the vectors as they come from the API."""
        return "float32"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides the vectors here. What the API changes behind a name is not seen."""
        prompts = repr(sorted((role, str(prompt)) for role, prompt in self._prompts.items()))
        return digest(self._endpoint.url, self.model, str(self._truncate_dim), str(self._normalize), prompts)

    @property
    def _origin(self) -> Origin:
        # Vectors that are kept must not keep the connection.
        return Origin(partial(str, self.fingerprint), self)

    @cached_property
    def card(self) -> ModelCard:  # type: ignore[override]
        """The card of the model. How it pools is the API's own affair: `pooling` is `hosted`."""
        family = self._family
        table = f"family table ({family.title})" if family else ""
        length = family.max_length if family else None
        return ModelCard(
            name=self.model,
            pooling=cast(Pooling, "hosted"),
            normalize=self._normalize,
            prompts=self._prompts,
            max_length=length or _DEFAULT_LENGTH,
            dimension=self.dimension,
            family=family.title if family else None,
            sources={
                "pooling": "the API",
                "normalize": "caller or default",
                "query": "caller or family table",
                "document": "caller or family table",
                "max_length": table if length else "OpenAI API reference",
                "dimension": "caller" if self._truncate_dim else "the API" if self._width else table or "the API",
                "similarity": "default",
            },
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Not possible: the weights are the API's."""
        raise ArgumentError(f"{self.model} is behind an API and has no weights that could be saved to {path}")

    def close(self) -> None:
        """End the calls that are under way in other threads, each with an ApiError, and close the connections."""
        with self._connecting:
            if self._connection is not None:
                self._connection.close()

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self.model!r}, url={self._endpoint.url!r})"

    def _connected(self) -> Connection:
        """The open connection; a new one where there is none, in a forked process above all."""
        with self._connecting:
            connection = self._connection
            if connection is None or connection.closed or connection.process != os.getpid():
                connection = self._connection = Connection(self._endpoint.client(), self._concurrency)
                weakref.finalize(self, connection.close)
            return connection

    def _compute(
        self, blocks: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None
    ) -> Iterator[Encoded]:
        if max_length is not None:
            raise ArgumentError(
                f"max_length={max_length} cannot be kept by {self.model}: the API counts tokens and refuses texts that "
                "are too long; leave max_length out, and split long texts before"
            )
        size = self.batch_size if batch_size is None else batch_size
        _check_number("batch_size", size, MAX_TEXTS)
        connection = self._connected()
        #: The results that are awaited, in order, each with the number of its requests.
        waiting: deque[tuple[Future[Encoded], int]] = deque()
        blank = 0
        try:
            for block in blocks:
                texts = [sendable(text, prompt) for text in block]
                blank += sum(text == " " != given for text, given in zip(texts, block, strict=True))
                waiting.append((connection.start(self._embed(texts, size, connection)), -(-len(texts) // size)))
                while len(waiting) > 1 and sum(requests for _, requests in waiting) > 2 * self._concurrency:
                    yield connection.result(waiting[0][0])
                    waiting.popleft()
            while waiting:
                yield connection.result(waiting[0][0])
                waiting.popleft()
        finally:
            # Reached early on an error, Ctrl-C or a caller who stops reading: requests under way are given up.
            for future, _ in waiting:
                future.cancel()
        if blank:
            logger.warning(
                "%s does not accept empty texts: %d empty or blank ones were sent as a space", self.model, blank
            )

    async def _embed(self, texts: Sequence[str], size: int, connection: Connection) -> Encoded:
        """Vectors of texts, from requests of at most `size` texts at the same time."""
        requests: list[asyncio.Task[Encoded]] = []

        async def request(batch: list[str]) -> Encoded:
            async with connection.slots:
                return await self._request(batch, connection.client)

        try:
            while texts:
                async with connection.first:
                    batch = next(split_requests(texts, min(size, self._most_texts or size)))
                    texts = texts[len(batch) :]
                    requests.append(asyncio.create_task(request(batch)))
                    if self._most_texts is None and len(batch) > self._taken:
                        # A refusal tells how many texts are taken: it is enough to be refused once.
                        await asyncio.wait(requests[-1:])
                        if requests[-1].exception():
                            break
            return Encoded.joined(await asyncio.gather(*requests))
        finally:
            for task in requests:
                task.cancel()

    async def _request(self, texts: list[str], client: httpx.AsyncClient) -> Encoded:
        """Vectors of the texts of one request, or of its parts where it is too large for the API."""
        most, encoding_format = self._most_texts or len(texts), self._format
        if len(texts) > most:
            parts = [texts[first : first + most] for first in range(0, len(texts), most)]
            return Encoded.joined([await self._request(part, client) for part in parts])
        payload: dict[str, Any] = {"model": self.model, "input": texts}
        if encoding_format is not None:
            payload["encoding_format"] = encoding_format
        if self._truncate_dim is not None and (known_name(self.model) or "").startswith("text-embedding-3"):
            payload["dimensions"] = self._truncate_dim
        try:
            answer = await self._endpoint.post(payload, client)
        except RefusedError as error:
            if error.about != "format":
                return await self._smaller(texts, error, client)
            if encoding_format is None:
                raise _with_texts(error, texts) from error
            if self._format == encoding_format:  # Otherwise another request has found that out.
                self._format = _FORMATS[_FORMATS.index(encoding_format) + 1]
                logger.info("%s; asking with encoding_format=%r from now on", error, self._format)
            return await self._request(texts, client)
        except ApiError as error:
            raise _with_texts(error, texts) from error
        vectors = decode_vectors(answer, len(texts), self._truncate_dim)
        self._note_answer(len(texts), vectors.shape[1])
        if self._normalize:
            with np.errstate(invalid="ignore"):  # Infinity becomes NaN, which is an error of its own.
                vectors = unit(vectors)
        usage = answer.get("usage")
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        return Encoded(vectors, tokens if isinstance(tokens, int) else 0)

    async def _smaller(self, texts: list[str], error: RefusedError, client: httpx.AsyncClient) -> Encoded:
        """Vectors of texts whose request was too large, from smaller ones."""
        if error.about == "length":  # Their number was no matter: it need not be tried alone again.
            self._taken = max(self._taken, len(texts))
        if len(texts) == 1:
            if error.about == "texts":
                raise _with_texts(error, texts) from error
            raise ApiError(
                f"a text of {len(texts[0]):,} characters is too long: {texts[0]!r:.80} ({error}). "
                "Split long texts, leave this one out, or have the server cut it"
            ) from error
        half = (len(texts) + 1) // 2
        if error.about == "texts" and error.most:
            self._keep_to(error.most)
            return await self._request(texts, client)
        logger.info("%s; sending it as two", error)
        halves = Encoded.joined([await self._request(part, client) for part in (texts[:half], texts[half:])])
        if error.about != "length":
            self._keep_to(half)  # Both halves were small enough; a number that was not said is known from that alone.
        return halves

    def _keep_to(self, most: int) -> None:
        if self._most_texts is None or most < self._most_texts:
            logger.info("%s takes at most %d texts in one request", self._endpoint.url, most)
            self._most_texts = most

    def _note_answer(self, texts: int, width: int) -> None:
        """Keep in mind how many texts the server has taken, and how wide its vectors are.

        Raises:
            ApiError: they were of another width before.
        """
        if self._width is not None and self._width != width:
            raise ApiError(
                f"{self._endpoint.url} answers with vectors of width {width}, those before had {self._width}: are "
                f"there several models behind the name {self.model}?"
            )
        expected = self.__dict__.get("dimension") or self._truncate_dim or known_dimension(self.model)
        if self._width is None and expected is not None and expected != width:
            logger.warning(
                "vectors of %s from %s have the width %d, the table of known models says %d: the server's counts",
                self.model, self._endpoint.url, width, expected,
            )  # fmt: skip
            self.__dict__.pop("card", None)
        self._width = self.__dict__["dimension"] = width
        self._taken = max(self._taken, texts)


def _with_texts(error: ApiError, texts: Sequence[str]) -> ApiError:
    return ApiError(f"{error} [request of {len(texts)} texts, the first is {texts[0]!r:.80}]")


@functools.cache  # Once a process and model.
def _warn_of_prompts(name: str) -> None:
    """Say where a model that the table does not know may need an instruction."""
    if doubt := prompt_doubt(name, bge_like="bge" in name.lower()):
        logger.warning("%s: %s", name, doubt)


def _check_number(name: str, value: object, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise ArgumentError(f"{name} must be a whole number from 1 to {high:,}, not {value!r}")


def sendable(text: str, prompt: Prompt) -> str:
    """The text as it goes out. APIs refuse empty texts, and many of them blank ones, so these go out as one space."""
    return f"{prompt.prefix}{'' if _BLANK.fullmatch(text) else text}{prompt.suffix}" or " "


def split_requests(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Texts, in order, in requests of at most `size` texts and of the token budget by estimate."""
    batch: list[str] = []
    estimate = 0
    for text in texts:
        tokens = len(text.encode("utf-8")) // _BYTES_PER_TOKEN + 1
        if batch and (len(batch) == size or estimate + tokens > TOKEN_BUDGET):
            yield batch
            batch, estimate = [], 0
        batch.append(text)
        estimate += tokens
    if batch:
        yield batch


def decode_vectors(answer: Any, count: int, width: int | None) -> Vectors:
    """The vectors of an answer, in the order of the request, whatever order they came in.

    Args:
        answer: The decoded JSON.
        count: Texts of the request.
        width: Columns to keep, None for all.

    Returns:
        [count, width] float32; NaN where the API said so.

    Raises:
        ApiError: the answer has not the documented form, or is not about these texts.
    """
    rows: dict[int, Vectors] = {}
    try:
        for item in answer["data"]:
            index, embedding = item["index"], item["embedding"]
            if not 0 <= index < count or index in rows:
                raise ValueError(f"the index {index} is out of range or comes twice")
            # Asked for base64, which is a quarter of the size, some servers answer with numbers all the same.
            if isinstance(embedding, str):
                embedding = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
            rows[index] = np.asarray(embedding, dtype=np.float32)
            if rows[index].ndim != 1:
                raise ValueError(f"a vector has the shape {rows[index].shape}")
        if len(rows) < count:
            raise ValueError(f"{count - len(rows)} of {count} vectors are missing")
        vectors = np.stack([rows[index] for index in range(count)])
    except binascii.Error as error:
        raise ApiError(f"the API's answer cannot be read: a vector is not base64 ({error})") from error
    except (LookupError, TypeError, ValueError) as error:
        raise ApiError(f"the API's answer cannot be read: {type(error).__name__}: {error}") from error
    if vectors.shape[1] < (width or 1):
        raise ApiError(f"the API answered with vectors of width {vectors.shape[1]}, but {width or 1} is needed")
    return np.ascontiguousarray(vectors[:, :width])


class Connection:
    """An event loop in a daemon thread with an HTTP client on it. Safe to use from several threads.

    A request that hangs is cancelled when its caller goes away, and neither holds up Ctrl-C nor the end of the process.

    Attributes:
        client: To be used on the loop only.
        slots: A place for each request that may be under way at once.
        first: Held by a request of more texts than the API has taken so far.
        process: Id of the process that has the thread: a fork has it not.
        closed: Whether nothing can be started any more.
    """

    def __init__(self, client: httpx.AsyncClient, concurrency: int) -> None:
        self.client = client
        self.slots, self.first, self._ended = asyncio.Semaphore(concurrency), asyncio.Lock(), asyncio.Event()
        self.process, self.closed = os.getpid(), False
        self._loop, self._lock = asyncio.new_event_loop(), threading.Lock()
        threading.Thread(target=self._run, name="bgekit-api", daemon=True).start()

    def start(self, work: Coroutine[Any, Any, Encoded]) -> Future[Encoded]:
        """Run a coroutine on the loop.

        Raises:
            ApiError: the connection was closed.
        """
        with self._lock:
            if not self.closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise ApiError("stopped: the model was closed")

    def result(self, future: Future[Encoded]) -> Encoded:
        """Wait for what was started.

        Raises:
            ApiError: the API refuses, gives no good answer, or the connection was closed.
        """
        try:
            return future.result()
        except CancelledError:
            raise ApiError("stopped while waiting for the API: the model was closed") from None
        finally:
            future.cancel()  # After Ctrl-C nobody waits for it any more.

    def close(self) -> None:
        """Cancel all that is under way."""
        with self._lock:
            if not self.closed and self.process == os.getpid():
                self._loop.call_soon_threadsafe(self._ended.set)
            self.closed = True

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with self.client:
            await self._ended.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class RefusedError(ApiError):
    """The API wants fewer texts, or less text, in one request, or does not know the number format of vectors.

    Attributes:
        about: What it is about.
        most: The number of texts that it takes, None if it does not say.
    """

    def __init__(self, message: str, about: Meaning, most: int | None = None) -> None:
        super().__init__(message)
        self.about, self.most = about, most


class _PassingError(ApiError):
    """A try without a result, after which another may have one; the API may ask for a wait in seconds before it."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Retries:
    """Limits of retrying: attempts and times.

    Attributes:
        attempts: Tries of one request, the first included.
        first_wait: Seconds before the second try; doubled for each further one.
        longest_wait: Maximum number of seconds before a try. An API that asks for more is not asked again.
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
    """The embeddings address of an API: what is sent to it, how often, and what its refusals mean."""

    def __init__(self, base_url: str, api_key: str | None, retries: Retries) -> None:
        """Check the address and the key; nothing is sent yet.

        Raises:
            ArgumentError: the address is not an http or https URL, or the key cannot be one.
            ApiError: the public OpenAI API is meant, and there is no key.
        """
        try:
            parts = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise ArgumentError(f"the API's base URL is not a URL ({error}): {base_url!r}") from error
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ArgumentError(f"the API's base URL must be http://... or https://..., not {base_url!r}")
        if parts.userinfo:
            raise ArgumentError(f"the API's base URL must not hold a password; put the key into {KEY_VARIABLE}")
        self.url = base_url.rstrip("/") + "/embeddings"
        self._key = (api_key or "").strip()
        if not self._key and base_url.rstrip("/") == DEFAULT_URL:
            raise ApiError(f"there is no API key: set the environment variable {KEY_VARIABLE} or pass api_key=")
        if not (self._key.isascii() and self._key.isprintable()):
            raise ArgumentError(f"the API key holds characters that no key has; check {KEY_VARIABLE}")
        self._retries = retries

    def client(self) -> httpx.AsyncClient:
        """A new HTTP client, through the proxy of the environment for this address. It follows no redirect.

        Raises:
            ApiError: the proxy's address cannot be used.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "bgekit"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        address = httpx.URL(self.url)
        # httpx itself would open every proxy of the environment, and fail on a SOCKS one that is not for this address.
        proxy = urllib.request.getproxies().get(address.scheme) or None
        if proxy is not None and urllib.request.proxy_bypass(address.netloc.decode("ascii")):
            proxy = None
        if proxy is not None and "://" not in proxy:
            proxy = f"http://{proxy}"
        try:
            return httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(self._retries.timeout, pool=None),
                limits=httpx.Limits(),  # None: the slots of a connection bound them.
                proxy=proxy,
                trust_env=False,
                # The system's certificates, and those of SSL_CERT_FILE: a company's own are not among httpx's.
                verify=ssl.create_default_context(),
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise ApiError(f"the proxy for {self.url} in the environment cannot be used: {error}") from error

    async def post(self, payload: dict[str, Any], client: httpx.AsyncClient) -> Any:
        """The decoded JSON answer to a request.

        Args:
            payload: Body of the request.
            client: One that `client` has made.

        Raises:
            RefusedError: fewer texts, or another `encoding_format`, may work.
            ApiError: refused, or no good answer after all tries.
        """
        body = json.dumps(payload).encode("ascii")
        for attempt in itertools.count(1):
            try:
                return await self._try(body, len(payload["input"]), client)
            except _PassingError as failure:
                if attempt == self._retries.attempts:
                    raise ApiError(f"{failure} (given up after {attempt} tries)") from failure
                wait, longest = self._retries.wait(attempt), self._retries.longest_wait
                if failure.retry_after is not None:
                    if failure.retry_after > longest:
                        raise ApiError(
                            f"{failure} (it asks to wait {failure.retry_after:.0f} s, "
                            f"more than the {longest:.0f} s allowed)"
                        ) from failure
                    wait = failure.retry_after + self._retries.first_wait * random.uniform(0.0, 0.5)
                logger.info("%s; next try in %.1f s", failure, wait)
            await asyncio.sleep(wait)

    async def _try(self, body: bytes, texts: int, client: httpx.AsyncClient) -> Any:
        try:
            response = await client.post(self.url, content=body)
        except httpx.HTTPError as error:
            reason = "timed out" if isinstance(error, httpx.TimeoutException) else _reason(error)
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
                message = f"cannot reach {self.url}: {reason}"
                raise (ApiError if "CERTIFICATE_VERIFY_FAILED" in reason else _PassingError)(message) from error
            raise _PassingError(f"no complete answer from {self.url}: {reason}") from error
        if not response.is_success:
            raise self._refusal(response, response.status_code, texts)
        try:
            answer = json.loads(response.content)
        except ValueError as error:
            raise ApiError(f"{self.url} answered with something that is not JSON: {response.content[:80]!r}") from error
        if isinstance(answer, dict) and "data" not in answer and {"error", "error_code", "error_msg"} & answer.keys():
            # A refusal that says so in its content alone, as Baidu's and OpenRouter's do.
            stated = answer.get("error")
            code = stated.get("code") if isinstance(stated, dict) else None
            raise self._refusal(response, code if isinstance(code, int) and 400 <= code < 600 else 400, texts)
        return answer

    def _refusal(self, response: httpx.Response, status: int, texts: int) -> ApiError:
        message, code = error_fields(response.content)
        about = meaning(status, message, code)
        most = most_texts(message, texts) if about == "texts" else None
        # Without the key; one that could be an ordinary word or number is none, and stays.
        if len(self._key) >= _SECRET:
            message = message.replace(self._key, "<key>")
        elif len(self._key) >= _WORD:
            message = re.sub(rf"(?<!\w){re.escape(self._key)}(?!\w)", "<key>", message)
        message = message[:_SHOWN]
        advice = {
            403: f"; check what the key (api_key=, {KEY_VARIABLE}) may do",
            404: f"; check the model's name and the address (base_url=, {URL_VARIABLE})",
        }.get(status, "")
        if 300 <= status < 400:
            # Followed, a redirect would carry the key to another host.
            advice = f"; redirects are not followed, give the final address as base_url= or {URL_VARIABLE}"
        text = f"{self.url} answered {status}: {message or 'without a message'}{advice}"
        if about == "format":
            return RefusedError(text, about)
        if about is not None:
            return RefusedError(f"{self.url} finds the request too large ({status}): {message}", about, most)
        if status == 401:
            # The API's own words repeat parts of the key.
            return ApiError(
                f"{self.url} does not accept the API key (401): check the variable {KEY_VARIABLE}, or api_key="
            )
        if (status in _PASSING_STATUS or status >= 500) and code not in _FINAL_CODES:
            return _PassingError(text, _retry_after(response.headers))
        return ApiError(text)


def _reason(error: BaseException) -> str:
    """The words of the error that another one stands for, at the end of the chain."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = cast(BaseException, error.__cause__ or error.__context__)
    return str(error) or type(error).__name__


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that the API asks to wait, None when it does not say."""
    for name, seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        with contextlib.suppress(ValueError):
            return max(0.0, float(value) * seconds)
        with contextlib.suppress(TypeError, ValueError):  # retry-after may also be a date
            until = parsedate_to_datetime(value)
            until = until if until.tzinfo else until.replace(tzinfo=timezone.utc)
            return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())
    return None


#: `texts`: too many in one request; `length`: too much text; `size`: one of the two; `format`: of the vectors.
Meaning = Literal["texts", "length", "size", "format"]
#: Statuses about who asks, where, and how often: never about what was asked.
_OF_THE_CALLER: Final = frozenset({401, 403, 404, 407, 408, 409, 429})
_RATE: Final = re.compile(r"rate.?limit|per (?:minute|second|hour|day)|quota")
_FORMAT: Final = re.compile(r"encoding[_ ]?format|base64")
#: What can only be about the number of texts.
_TEXTS: Final = re.compile(
    r"(?<!physical )\bbatch[_ -]?size\b.*(?:>|larger|exceed|max|invalid|limit|超)|max[_ ]?batch[_ -]?size|批"
    r"|\barrays? (?:is |are )?too (?:long|large)|array with maximum length|array length|数组"
    r"|list should have at most|at most \d+ items|too many (?:inputs?|texts|items|documents|sentences)"
    r"|only supports? (?:one|1|a single)\b"
)
_LENGTH: Final = re.compile(
    r"token|context[_ ](?:length|size|window)|model[_ ]len|input length|length of the input|sequence length|characters"
    r"|physical batch|kv size|too (?:large|big|long) (?:to process|for)"
    r"|\b(?:text|input|prompt|sequence|content|document)s? (?:is |are )?(?:too long|longer than)"
    r"|(?:text|content|input text)[ _](?:exceeds? the maximum )?length|exceeds? the maximum length of \d"
    r"|max_length|maximum length of each|text exceeds|字符|字数|长度|上下文|过长|太长|超长|最长"
)
#: The same where a status says that the server has failed: it must be plain that another try is of no use.
_LENGTH_FOR_SURE: Final = re.compile(
    r"context[_ ](?:length|size|window)|model[_ ]len|input length|too (?:large|big|long)|physical batch"
    r"|tokens?\b.*(?:exceed|max|limit|less than)|(?:exceed|max|limit).*\btokens?\b"
)
_THINGS: Final = re.compile(
    r"\b(?:inputs?|texts?|items|documents?|sentences|strings|elements|entries|arrays?|lists?|batch\w*|contents|prompts"
    r"|embeddings)\b|[条个篇]|数量|列表"
)
_LIMITS: Final = (
    r"(?:max\w*|at most|limit\w*|exceed\w*|(?:larger|greater|more|longer|bigger) than|up to|too (?:many|large|long|big)"
    r"|(?P<below>(?:less|fewer|smaller) than(?! or equal)|小于|少于)|only supports?|>=?|<=?|≤"
    r"|longer than|between \d+ and|over|最大|最多|最长|超过|超出|上限|限制|大于|多于|过多|过大|过长|太长|超长)"
)
_LIMIT: Final = re.compile(_LIMITS)
_NUMBERED_LIMIT: Final = re.compile(_LIMITS + r"[^\d]{0,40}?(?P<number>\d+)")
#: What the API says of too many texts, and of other things that halving makes plain, without saying which.
_VAGUE: Final = re.compile(r"\$\.input\W* is invalid|not valid under any of the given schemas")


def meaning(status: int, message: str, code: str) -> Meaning | None:
    """Meaning of a refusal; None if it is none of those known here.

    Args:
        status: The HTTP status.
        message: What the API said, whole.
        code: Its own code, "" without one.
    """
    words = f"{_own_words(message)} {code.replace('_', ' ')}".lower()
    if status in _OF_THE_CALLER or status < 400 or _RATE.search(words):
        return None
    if _FORMAT.search(words):
        return "format"
    if _TEXTS.search(words):
        return "texts"
    if (_LENGTH_FOR_SURE if status >= 500 else _LENGTH).search(words) and _LIMIT.search(words + " too large"):
        return "length"
    if status < 500 and _THINGS.search(words) and _LIMIT.search(words):
        return "texts"
    return "size" if status == 413 or _VAGUE.search(words) else None


def most_texts(message: str, sent: int) -> int | None:
    """The number of texts that the API takes in one request, as its message says it; None if it does not.

    Args:
        message: What the API said of a request that had too many.
        sent: Texts in it: what is allowed is less.
    """
    words = re.sub(r"<\d+>", "", re.sub(r"(?<=\d),(?=\d{3}\b)", "", _own_words(message).lower()))
    if re.search(r"only supports? (?:one|a single)\b", words):
        return 1
    place = 0
    while (found := _NUMBERED_LIMIT.search(words, place)) is not None:
        most = int(found["number"]) - (found["below"] is not None)
        if 1 <= most < sent:
            return most
        place = found.start() + 1
    others = [number for number in map(int, re.findall(r"\d+", words)) if 1 <= number < sent]
    return max(others, default=None)


def _own_words(message: str) -> str:
    """A message without the input that pydantic repeats in it: what texts say is not what the API says."""
    return re.sub(r"input_value=.*?, input_type=\w+", "", message)


def error_fields(content: bytes) -> tuple[str, str]:
    """Message, on one line, and code of an error answer, whatever its form."""
    text = content.decode("utf-8", "replace")
    try:
        error = json.loads(content)
    except ValueError:
        return " ".join(text.split()), ""
    code = ""
    if isinstance(error, dict):
        inner = error.get("error")
        if isinstance(inner, dict):
            error = inner
        elif isinstance(inner, str) and not error.get("message"):
            error = error | {"message": inner}
        code = str(error.get("code") or error.get("error_code") or error.get("type") or error.get("error_type") or "")
    return " ".join((_message(error) or text).split()), code


def _message(error: Any) -> str:
    """The words of an error: a string, or what stands under one of the usual names."""
    if isinstance(error, str):
        return error
    if isinstance(error, list):
        return "; ".join(filter(None, map(_message, error)))
    if not isinstance(error, dict):
        return ""
    for name in ("message", "msg", "error_msg", "detail", "errors"):
        if found := _message(error.get(name)):
            # FastAPI names the field apart.
            where = error.get("loc")
            return f"{'.'.join(map(str, where))}: {found}" if isinstance(where, list) else found
    return ""
