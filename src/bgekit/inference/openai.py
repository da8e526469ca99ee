"""Vectors from an API of the OpenAI kind, behind the methods of every embedder."""

from __future__ import annotations

import base64
import binascii
import functools
import http.client
import json
import logging
import os
import random
import re
import ssl
import threading
import urllib.error
import urllib.request
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Final, Literal, TypeVar, cast
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from ..errors import ApiError, ArgumentError, CardError
from ..files.hashing import digest
from ..models.card import UNSET, ModelCard, Pooling, Unset
from ..models.card_reading import prompt_doubt
from ..models.families import find_family, known_dimension, known_name
from ..models.prompts import Prompt
from .model import Embedder
from .openai_errors import Meaning, error_fields, meaning, most_texts
from .pipeline import Encoded

logger = logging.getLogger(__name__)
T = TypeVar("T")
#: Texts of a request unless the caller says otherwise: enough to hide the round trip, few enough to overlap.
DEFAULT_TEXTS: Final = 256
#: What the API takes of one text at most, for models that the family table does not know.
_DEFAULT_LENGTH: Final = 8192
#: What vectors can be asked for as; None asks for nothing.
_FORMATS: Final = ("base64", "float", None)


class OpenAIEmbedder(Embedder):
    """A hosted embedding model, or any server with the same protocol. Safe to use from several threads.

    A text's vector is what the API says of it: texts that are too long for the model are refused by the API instead
    of being cut, and empty and blank texts, which APIs refuse, are sent as one space (with a log line). How many texts
    the API takes in one request, in which number format it sends vectors, and how wide they are, is learnt from its
    answers.
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
            batch_size: Most texts in one request, at most 2,048; 256 by default.
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
            raise ArgumentError(f"{model_name_or_path} is computed by an API, which has no use for {names}")
        self.model = model_name_or_path
        self._family = find_family(model_name_or_path)
        if self._family is not None and self._family.kind == "reranker":
            raise CardError(f"{model_name_or_path} is a reranker: it scores pairs and has no text vectors")
        if self._family is None and isinstance(query_instruction_for_retrieval, Unset):
            _warn_of_prompts(model_name_or_path)
        if truncate_dim is not None:
            _check_number("truncate_dim", truncate_dim, self._table_dimension() or 1_000_000)
        _check_number("concurrency", concurrency, 256)
        _check_number("max_attempts", max_attempts, 100)
        if encoding_format not in _FORMATS:
            raise ArgumentError(f"encoding_format must be 'base64', 'float' or None, not {encoding_format!r}")
        self.batch_size = _request_size(batch_size)
        self.convert_to_numpy = convert_to_numpy
        self._truncate_dim = truncate_dim
        self._normalize = True if isinstance(normalize_embeddings, Unset) else normalize_embeddings
        if isinstance(query_instruction_format, Unset):
            query_instruction_format = (self._family.template if self._family else None) or "{}{}"
        self._prompts = {
            "query": self._prompt("query", query_instruction_for_retrieval, query_instruction_format),
            "document": self._prompt("document", passage_instruction_for_retrieval, passage_instruction_format),
        }
        self._endpoint = Endpoint(
            base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL,
            api_key if api_key is not None else os.environ.get(KEY_VARIABLE),
            Retries(attempts=max_attempts, timeout=timeout),
        )
        # What its answers have told: so far nothing.
        self._lock, self._first = threading.Lock(), threading.Lock()
        self._format = encoding_format
        self._most_texts: int | None = None
        self._taken = 0
        self._width: int | None = None
        self._slots = threading.BoundedSemaphore(concurrency)
        self._requests_ahead = 2 * concurrency
        self._stops: weakref.WeakSet[threading.Event] = weakref.WeakSet()

    @cached_property
    def dimension(self) -> int:
        """Width of the vectors; for a model that the family table does not know, one word is sent to find out.

        Where an answer has another width than the table, that of the answer counts from then on.
        """
        width = self._truncate_dim or self._table_dimension()
        return width or int(self._request(["dimension"], threading.Event()).vectors.shape[1])

    def settle(self) -> None:
        """See `Embedder`: at another address than the public one, a known name may be that of another model."""
        if self._width is None and self._truncate_dim is None and not self._endpoint.is_public:
            self._request(["dimension"], threading.Event())

    @property
    def precision(self) -> str:
        """Number format of the vectors as they come from the API."""
        return "float32"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides the vectors here. What the API changes behind a name is not seen."""
        prompts = repr(sorted((role, str(prompt)) for role, prompt in self._prompts.items()))
        return digest(self._endpoint.url, self.model, str(self._truncate_dim), str(self._normalize), prompts)

    @cached_property
    def card(self) -> ModelCard:  # type: ignore[override]
        """What is known of the model. How it pools is the API's own affair: `pooling` is `hosted`."""
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
        """End the calls that are under way in other threads, each with an ApiError."""
        for stop in list(self._stops):
            stop.set()

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self.model!r}, url={self._endpoint.url!r})"

    def _table_dimension(self) -> int | None:
        return known_dimension(self.model)

    def _prompt(self, role: str, instruction: str | Unset | None, template: str) -> Prompt:
        if not isinstance(instruction, Unset):
            return Prompt.from_format(instruction, template)
        return getattr(self._family, role) if self._family else Prompt()

    def _compute(
        self, blocks: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None
    ) -> Iterator[Encoded]:
        if max_length is not None:
            raise ArgumentError(
                f"max_length={max_length} cannot be kept by {self.model}: the API counts tokens and refuses texts that "
                "are too long; leave max_length out, and split long texts before"
            )
        size = _request_size(batch_size, self.batch_size)
        stop = threading.Event()
        self._stops.add(stop)
        jobs: deque[list[Future[Encoded]]] = deque()
        emptied = 0
        try:
            for block in blocks:
                texts = [sendable(text, prompt) for text in block]
                emptied += sum(text == " " != given for text, given in zip(texts, block, strict=True))
                jobs.append(self._start(texts, size, stop))
                while len(jobs) > 1 and sum(map(len, jobs)) > self._requests_ahead:
                    yield _joined(jobs.popleft())
            while jobs:
                yield _joined(jobs.popleft())
        finally:
            # Reached early on an error, Ctrl-C or a caller who stops reading: nothing waits for another try.
            stop.set()
        if emptied:
            logger.warning("%s takes no empty text: %d empty or blank ones were sent as a space", self.model, emptied)

    def _start(self, texts: Sequence[str], size: int, stop: threading.Event) -> list[Future[Encoded]]:
        """Send the texts of a block. Waits while enough requests are under way."""
        requests: list[Future[Encoded]] = []
        while texts:
            if any(request.done() and request.exception() for request in requests):
                break  # the others would most likely fail in the same way; _joined raises what happened
            batch = next(split_requests(texts, min(size, self._most_texts or size)))
            texts = texts[len(batch) :]
            if self._is_known_size(len(batch)):
                requests.append(self._submit(self._request, batch, stop))
                continue
            with self._first:  # A refusal tells what is taken: it is enough to be refused once.
                requests.append(self._submit(self._request, batch, stop))
                if not self._is_known_size(len(batch)):
                    wait(requests[-1:])
        return requests

    def _is_known_size(self, texts: int) -> bool:
        """Whether the API has taken as many texts in one request, or has said how many it takes."""
        return self._most_texts is not None or texts <= self._taken

    def _submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        # Daemon threads, unlike those of an executor, do not keep a process alive that wants to end: a request that
        # hangs must not hold up Ctrl-C.
        future: Future[T] = Future()
        self._slots.acquire()

        def run() -> None:
            try:
                future.set_result(work(*args))
            except BaseException as error:  # it is raised in the caller's thread
                future.set_exception(error)
            finally:
                self._slots.release()

        threading.Thread(target=run, name="bgekit-api", daemon=True).start()
        return future

    def _request(self, texts: list[str], stop: threading.Event) -> Encoded:
        """Vectors of the texts of one request, or of its parts where it is too large for the API."""
        most, encoding_format = self._most_texts or len(texts), self._format
        if len(texts) > most:
            parts = [texts[first : first + most] for first in range(0, len(texts), most)]
            return _concatenated([self._request(part, stop) for part in parts])
        payload: dict[str, Any] = {"model": self.model, "input": texts}
        if encoding_format is not None:
            payload["encoding_format"] = encoding_format
        if self._truncate_dim is not None and (known_name(self.model) or "").startswith("text-embedding-3"):
            payload["dimensions"] = self._truncate_dim
        try:
            answer = self._endpoint.post(payload, stop)
        except FormatRefusedError as error:
            if encoding_format is None:
                raise self._named(error, texts) from error
            self._ask_otherwise(encoding_format, error)
            return self._request(texts, stop)
        except RequestTooLargeError as error:
            return self._smaller(texts, error, stop)
        except ApiError as error:
            raise self._named(error, texts) from error
        vectors = decode_vectors(answer, len(texts), self._truncate_dim)
        self._note_answer(len(texts), vectors.shape[1])
        return Encoded(unit_length(vectors) if self._normalize else vectors, token_count(answer))

    def _smaller(self, texts: list[str], error: RequestTooLargeError, stop: threading.Event) -> Encoded:
        """Vectors of texts whose request was too large, from smaller ones."""
        if error.about == "length":  # Their number was no matter: it need not be tried alone again.
            with self._lock:
                self._taken = max(self._taken, len(texts))
        if len(texts) == 1:
            if error.about == "texts":
                raise self._named(error, texts) from error
            raise ApiError(
                f"a text of {len(texts[0]):,} characters is too long: {texts[0]!r:.80} ({error}). "
                "Split long texts, leave this one out, or have the server cut it"
            ) from error
        half = (len(texts) + 1) // 2
        if error.about == "texts" and error.most:
            self._keep_to(error.most)
            return self._request(texts, stop)
        logger.info("%s; sending it as two", error)
        found = _concatenated([self._request(part, stop) for part in (texts[:half], texts[half:])])
        if error.about != "length":
            self._keep_to(half)  # Both halves were small enough; a number that was not said is known from that alone.
        return found

    def _keep_to(self, most: int) -> None:
        with self._lock:
            if self._most_texts is None or most < self._most_texts:
                logger.info("%s takes at most %d texts in one request", self._endpoint.url, most)
                self._most_texts = most

    def _ask_otherwise(self, refused: str, error: ApiError) -> None:
        """Ask for vectors in the next format, unless another request has found that out."""
        with self._lock:
            if self._format == refused:
                self._format = "float" if refused == "base64" else None
                logger.info("%s; asking with encoding_format=%r from now on", error, self._format)

    def _note_answer(self, texts: int, width: int) -> None:
        """Keep in mind how many texts the server has taken, and how wide its vectors are.

        Raises:
            ApiError: they were of another width before.
        """
        with self._lock:
            if self._width is not None and self._width != width:
                raise ApiError(
                    f"{self._endpoint.url} answers with vectors of width {width}, those before had {self._width}: are "
                    f"there several models behind the name {self.model}?"
                )
            expected = self.__dict__.get("dimension") or self._truncate_dim or self._table_dimension()
            if self._width is None and expected is not None and expected != width:
                logger.warning(
                    "vectors of %s from %s have the width %d, the table of known models says %d: the server's counts",
                    self.model, self._endpoint.url, width, expected,
                )  # fmt: skip
                self.__dict__.pop("card", None)
            self._width = self.__dict__["dimension"] = width
            self._taken = max(self._taken, texts)

    def _named(self, error: ApiError, texts: Sequence[str]) -> ApiError:
        return ApiError(f"{error} [request of {len(texts)} texts, the first is {texts[0]!r:.80}]")


def _concatenated(parts: Sequence[Encoded]) -> Encoded:
    return Encoded(np.concatenate([part.vectors for part in parts]), sum(part.tokens for part in parts))


@functools.cache  # Once a process and model.
def _warn_of_prompts(name: str) -> None:
    """Say where a model that the table does not know may need an instruction."""
    if doubt := prompt_doubt(name, bge_like="bge" in name.lower()):
        logger.warning("%s: %s", name, doubt)


def _joined(requests: list[Future[Encoded]]) -> Encoded:
    """The result of a block from those of its requests; the first error is raised without waiting for the others."""
    done, _ = wait(requests, return_when=FIRST_EXCEPTION)
    for request in requests:
        if request in done and (error := request.exception()) is not None:
            raise error
    return _concatenated([request.result() for request in requests])


def _request_size(*sizes: int | None) -> int:
    size = next((size for size in sizes if size is not None), DEFAULT_TEXTS)
    _check_number("batch_size", size, MAX_TEXTS)
    return size


def _check_number(name: str, value: object, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise ArgumentError(f"{name} must be a whole number from 1 to {high:,}, not {value!r}")


Vectors = npt.NDArray[np.float32]
#: The API takes no more texts in one request.
MAX_TEXTS: Final = 2048
#: The API takes 300,000 tokens in one request; the estimate below is rough, so this stays clear of it.
TOKEN_BUDGET: Final = 250_000
#: UTF-8 bytes of a token, on the low side: English has about 4, Chinese characters (3 bytes) about 1 token each.
_BYTES_PER_TOKEN: Final = 2
#: White space of all kinds, and what is not seen at all: control characters, soft hyphens, marks of direction...
_BLANK: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u3164\ufeff]*")


def is_blank(text: str) -> bool:
    """Whether a text has nothing that can be seen."""
    return _BLANK.fullmatch(text) is not None


def sendable(text: str, prompt: Prompt) -> str:
    """The text as it goes out. APIs refuse empty texts, and many of them blank ones, so these go out as one space."""
    return f"{prompt.prefix}{'' if is_blank(text) else text}{prompt.suffix}" or " "


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
    try:
        vectors = _stacked(answer, count)
    except (LookupError, TypeError, ValueError) as error:
        raise ApiError(f"the API's answer cannot be read: {type(error).__name__}: {error}") from error
    if vectors.shape[1] < (width or 1):
        raise ApiError(f"the API answered with vectors of width {vectors.shape[1]}, but {width or 1} is needed")
    return np.ascontiguousarray(vectors[:, :width])


def _stacked(answer: Any, count: int) -> Vectors:
    rows: list[Vectors | None] = [None] * count
    for item in answer["data"]:
        index = item["index"]
        if not 0 <= index < count or rows[index] is not None:
            raise ValueError(f"the index {index} is out of range or comes twice")
        rows[index] = _vector(item["embedding"])
    missing = sum(row is None for row in rows)
    if missing:
        raise ValueError(f"{missing} of {count} vectors are missing")
    return np.stack(cast(list[Vectors], rows))


def _vector(embedding: Any) -> Vectors:
    # Asked for base64, which is a quarter of the size, some servers answer with numbers all the same.
    if not isinstance(embedding, str):
        vector = np.asarray(embedding, dtype=np.float32)
    else:
        try:
            vector = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
        except binascii.Error as error:
            raise ValueError(f"a vector is not base64 ({error})") from error
    if vector.ndim != 1:
        raise ValueError(f"a vector has the shape {vector.shape}")
    return vector


def token_count(answer: Any) -> int:
    """Tokens that the API counted, 0 when it does not say."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def unit_length(vectors: Vectors) -> Vectors:
    """[n, d] vectors with the Euclidean norm 1; zero vectors stay zero, infinity becomes NaN."""
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return cast(Vectors, vectors / np.maximum(norms, np.float32(1e-12)))


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
