"""Vectors from an API of the OpenAI kind, behind the methods of every embedder."""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import cached_property
from typing import Any, Final, TypeVar, cast

import numpy as np

from ..errors import ApiError, ArgumentError, CardError
from ..models.card import UNSET, ModelCard, Pooling, Unset, prompt_doubt
from ..models.families import find_family, known_dimension, known_name
from ..models.prompts import Prompt
from .base import Embedder, digest
from .openai_http import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE, Endpoint, RequestTooLargeError, Retries
from .openai_wire import MAX_TEXTS, decode_vectors, sendable, split_requests, token_count, unit_length
from .result import Encoded

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Texts of a request unless the caller says otherwise: enough to hide the round trip, few enough to overlap.
DEFAULT_TEXTS: Final = 256
#: What the API takes of one text at most, for models that the family table does not know.
_DEFAULT_LENGTH: Final = 8192


class OpenAIEmbedder(Embedder):
    """A hosted embedding model, or any server with the same protocol. Safe to use from several threads.

    A text's vector is what the API says of it: texts that are too long for the model are refused by the API instead
    of being cut, and empty texts, which the API refuses, are sent as one space (with a log line).
    """

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
        self._slots = threading.BoundedSemaphore(concurrency)
        self._requests_ahead = 2 * concurrency
        self._stops: weakref.WeakSet[threading.Event] = weakref.WeakSet()

    @cached_property
    def dimension(self) -> int:
        """Width of the vectors; for a model that the family table does not know, one word is sent to find out."""
        width = self._truncate_dim or self._table_dimension()
        return width or int(self._request(["dimension"], threading.Event()).vectors.shape[1])

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
                "dimension": "caller" if self._truncate_dim else table or "the API",
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

    def _encode_unique(
        self, windows: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None
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
            for window in windows:
                texts = [sendable(text, prompt) for text in window]
                emptied += sum(text == " " != given for text, given in zip(texts, window, strict=True))
                jobs.append(self._start(texts, size, stop))
                while len(jobs) > 1 and sum(map(len, jobs)) > self._requests_ahead:
                    yield _joined(jobs.popleft())
            while jobs:
                yield _joined(jobs.popleft())
        finally:
            # Reached early on an error, Ctrl-C or a caller who stops reading: nothing waits for another try.
            stop.set()
        if emptied:
            logger.warning("%s takes no empty text: one was sent as a space", self.model)

    def _start(self, texts: Sequence[str], size: int, stop: threading.Event) -> list[Future[Encoded]]:
        """Send the texts of a window. Blocks while enough requests are under way."""
        requests: list[Future[Encoded]] = []
        for batch in split_requests(texts, size):
            if any(request.done() and request.exception() for request in requests):
                break  # the others would most likely fail in the same way; _joined raises what happened
            requests.append(self._submit(self._request, batch, stop))
        return requests

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
        """Vectors of the texts of one request, or of its halves where it is too large for the API."""
        payload: dict[str, Any] = {"model": self.model, "input": texts, "encoding_format": "base64"}
        if self._truncate_dim is not None and (known_name(self.model) or "").startswith("text-embedding-3"):
            payload["dimensions"] = self._truncate_dim
        try:
            answer = self._endpoint.post(payload, stop)
        except RequestTooLargeError as error:
            if len(texts) == 1:
                raise ApiError(
                    f"a text of {len(texts[0]):,} characters is too long: {texts[0]!r:.80} ({error})"
                ) from error
            logger.info("%s; sending it as two", error)
            left, right = (self._request(half, stop) for half in _halves(texts))
            return Encoded(np.concatenate([left.vectors, right.vectors]), left.tokens + right.tokens)
        except ApiError as error:
            raise ApiError(f"{error} [request of {len(texts)} texts, the first is {texts[0]!r:.80}]") from error
        vectors = decode_vectors(answer, len(texts), self._truncate_dim)
        return Encoded(unit_length(vectors) if self._normalize else vectors, token_count(answer))


@functools.cache  # Once a process and model.
def _warn_of_prompts(name: str) -> None:
    """Say where a model that the table does not know may need an instruction."""
    if doubt := prompt_doubt(name, bge_like="bge" in name.lower()):
        logger.warning("%s: %s", name, doubt)


def _joined(requests: list[Future[Encoded]]) -> Encoded:
    """The result of a window from those of its requests; the first error is raised without waiting for the others."""
    done, _ = wait(requests, return_when=FIRST_EXCEPTION)
    for request in requests:
        if request in done and (error := request.exception()) is not None:
            raise error
    results = [request.result() for request in requests]
    return Encoded(np.concatenate([result.vectors for result in results]), sum(result.tokens for result in results))


def _halves(texts: list[str]) -> tuple[list[str], list[str]]:
    middle = (len(texts) + 1) // 2
    return texts[:middle], texts[middle:]


def _request_size(*sizes: int | None) -> int:
    size = next((size for size in sizes if size is not None), DEFAULT_TEXTS)
    _check_number("batch_size", size, MAX_TEXTS)
    return size


def _check_number(name: str, value: object, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise ArgumentError(f"{name} must be a whole number from 1 to {high:,}, not {value!r}")
