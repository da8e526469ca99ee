"""One device: windows of texts (or pairs) -> vectors (or scores), with tokenisation and computation overlapped.

A window is a list of inputs that is planned as one: its batches are cut from its own inputs alone, so the bytes of
its vectors do not depend on its neighbours. While one window is computed the next is being tokenised, and the
streams (threads that each compute whole batches) go on with it without waiting for the last batch before.
"""

from __future__ import annotations

import abc
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..models.card import ModelCard
from ..models.prompts import Prompt
from ..networks.encoder import Encoder, load_encoder
from ..networks.packing import Packed, plan_batches
from .embeddings import Encoded
from .forking import check_process, note_load
from .tokenization import TextTokenizer, Tokens, load_tokenizer, merged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
#: Up to this many tokens a window is small: all threads share each of its batches, and alone, as a single query is,
#: the calling thread computes it, because starting streams would cost more.
_SMALL: Final = 512
#: Windows tokenised and queued ahead of the one whose result is awaited.
_WINDOWS_AHEAD: Final = 2
#: A window of inputs -> their tokens.
Tokenise: TypeAlias = "Callable[[Sequence[Any]], Tokens]"


class Network(Protocol):
    """What computes a batch.

    Attributes:
        padded: Whether it computes padding too.
        config: The config of its transformer, None where that is of no use.
    """

    @property
    def padded(self) -> bool: ...  # noqa: D102

    @property
    def config(self) -> Any: ...  # noqa: D102

    def __call__(self, batch: Packed) -> Tensor:
        """[n, d] for n sequences."""
        ...


N_co = TypeVar("N_co", bound=Network, covariant=True)


class Spec(Protocol[N_co]):
    """All that is needed to build the same engine in this process or another; it can be pickled."""

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer."""
        ...

    def load_network(self, device: torch.device) -> N_co:
        """The network, ready to compute on a device."""
        ...

    def pack(self, tokens: Tokens, batch: Sequence[int]) -> Packed:
        """The sequences `batch` of a window as the network wants them."""
        ...


@dataclass(frozen=True, kw_only=True)
class AnyRequest(abc.ABC):
    """How inputs are to be computed.

    Attributes:
        batch_size: Most sequences in a batch.
    """

    batch_size: int | None = None

    @abc.abstractmethod
    def tokeniser(self, tokenizer: PreTrainedTokenizerFast) -> Tokenise:
        """What makes tokens of the inputs; `tokenizer` is left as it is."""


@dataclass(frozen=True)
class EngineSpec:
    """The engine of an embedder: texts -> vectors."""

    folder: Path
    card: ModelCard
    precision: str
    truncate_dim: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """See `Spec`."""
        return load_tokenizer(self.folder, lower_case=self.card.lower_case, trust_remote_code=self.trust_remote_code)

    def load_network(self, device: torch.device) -> Encoder:
        """See `Spec`."""
        return load_encoder(
            self.folder,
            self.card,
            precision=self.precision,
            device=device,
            truncate_dim=self.truncate_dim,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )

    def pack(self, tokens: Tokens, batch: Sequence[int]) -> Packed:
        """See `Spec`."""
        excluded = tokens.prompt_length if not self.card.include_prompt else 0
        skip = [excluded] * len(batch) if excluded else None
        return Packed.of([tokens.ids[row] for row in batch], skip)


@dataclass(frozen=True)
class Request(AnyRequest):
    """How texts are to be encoded."""

    prompt: Prompt
    max_length: int

    def tokeniser(self, tokenizer: PreTrainedTokenizerFast) -> TextTokenizer:
        """See `AnyRequest`."""
        return TextTokenizer(tokenizer, self.prompt, self.max_length)


@dataclass
class _Job:
    """A window on its way: its tokens, and the vectors of its batches as they come."""

    tokens: Tokens
    batches: list[list[int]]
    vectors: list[Future[Tensor]]


class Engine(Generic[N_co]):
    """A model on one device. Safe to use from several threads."""

    def __init__(self, spec: Spec[N_co], device: str, *, streams: int | None = None) -> None:
        """Load the model.

        Args:
            spec: The model.
            device: A torch device; on the CPU `torch.get_num_threads()` threads compute.
            streams: Batches computed at once, where other engines share the device; what a window's batches are does
                not depend on it.
        """
        self.spec = spec
        self.device = torch.device(device)
        self._process = os.getpid()
        note_load()
        self.tokenizer: PreTrainedTokenizerFast = spec.load_tokenizer()
        self.encoder: N_co = spec.load_network(self.device)
        self.padded = self.encoder.padded
        self._shares, self.threads_per_stream = _placement(self.device)
        self.streams = streams or self._shares
        self.token_budget = _token_budget(self.device, self.encoder)
        self._tokenisers = lru_cache(maxsize=16)(self._new_tokeniser)

    def _new_tokeniser(self, request: AnyRequest) -> Tokenise:
        tokenise = request.tokeniser(self.tokenizer)
        return lambda inputs: merged(tokenise(inputs))

    def _tokeniser(self, request: AnyRequest) -> Tokenise:
        return self._tokenisers(replace(request, batch_size=None))  # Tokens do not depend on it.

    def encode_windows(
        self, windows: Iterable[Sequence[Any]], request: AnyRequest, *, stop: threading.Event | None = None
    ) -> Iterator[Encoded]:
        """One result for each window, in order.

        Args:
            windows: Lists of inputs (valid Unicode texts, or pairs of them), not empty.
            request: How to compute them.
            stop: Once set, by another thread, no further batch is computed and CancelledError ends the call.

        Raises:
            ForkError: the process was forked after the model was loaded on a GPU.
        """
        check_process(self.device, self._process)
        tokenise = self._tokeniser(request)
        source = iter(windows)
        first = next(source, None)
        if first is None:
            return
        # Short input that is all there is, the case of a single query, goes without any thread.
        second = next(source, None)
        if second is None and len(first) <= _SMALL:
            tokens = tokenise(first)
            if _is_small(tokens):
                batches = self._plan(tokens, request)
                yield self._assemble(tokens, batches, [self._forward_or_split(tokens, batch) for batch in batches])
                return
            yield from self._overlapped([first], request, stop, tokenised=tokens)
            return
        rest = [first] if second is None else itertools.chain((first, second), source)
        yield from self._overlapped(rest, request, stop)

    def _overlapped(
        self,
        windows: Iterable[Sequence[Any]],
        request: AnyRequest,
        stop: threading.Event | None,
        *,
        tokenised: Tokens | None = None,
    ) -> Iterator[Encoded]:
        tokenise = self._tokeniser(request)
        compute = ThreadPoolExecutor(self.streams, "bgekit-compute")
        prepare = ThreadPoolExecutor(1, "bgekit-tokenise")
        all_threads = torch.get_num_threads()

        def forward(tokens: Tokens, batch: list[int], threads: int) -> Tensor:
            if stop is not None and stop.is_set():
                raise CancelledError
            _limit_threads(self.device, threads)
            return self._forward_or_split(tokens, batch)

        def start(window: Sequence[Any]) -> _Job:
            tokens = tokenise(window) if tokenised is None else tokenised
            batches = self._plan(tokens, request)
            # Sums are rounded otherwise with more threads: a small window must not get other bytes when it comes alone.
            threads = all_threads if _is_small(tokens) else self.threads_per_stream
            return _Job(tokens, batches, [compute.submit(forward, tokens, batch, threads) for batch in batches])

        ahead: deque[Future[_Job]] = deque()
        try:
            for window in windows:
                ahead.append(prepare.submit(start, window))
                if len(ahead) > _WINDOWS_AHEAD:
                    yield self._finish(ahead.popleft().result())
            while ahead:
                yield self._finish(ahead.popleft().result())
        finally:
            # Reached early on an error, Ctrl-C or a caller who stops reading: what is queued is dropped.
            prepare.shutdown(wait=True, cancel_futures=True)
            compute.shutdown(wait=True, cancel_futures=True)
            # The streams' limit is theirs alone for OpenMP, but MKL keeps one number for the process.
            torch.set_num_threads(torch.get_num_threads())

    def _finish(self, job: _Job) -> Encoded:
        return self._assemble(job.tokens, job.batches, [vectors.result() for vectors in job.vectors])

    def _plan(self, tokens: Tokens, request: AnyRequest) -> list[list[int]]:
        lengths = list(map(len, tokens.ids))
        # A small window is shared evenly between the streams of the device instead of filling the first one's budget.
        budget = min(self.token_budget, max(_SMALL, -(-sum(lengths) // self._shares)))
        return list(plan_batches(lengths, budget, batch_size=request.batch_size, padded=self.padded))

    def _forward_or_split(self, tokens: Tokens, batch: list[int]) -> Tensor:
        try:
            return self._forward(self.spec.pack(tokens, batch))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
            size = sum(len(tokens.ids[row]) for row in batch)
        # Outside the handler, where the failed batch's tensors are no longer held by the traceback.
        self.token_budget = min(self.token_budget, max(1, size // 2))
        logger.warning("%s is out of memory at %d tokens a batch: trying %d", self.device, size, self.token_budget)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = (len(batch) + 1) // 2
        return torch.cat([self._forward_or_split(tokens, part) for part in (batch[:middle], batch[middle:])])

    def _forward(self, batch: Packed) -> Tensor:
        with torch.inference_mode():
            vectors: Tensor = self.encoder(batch.to(self.device))
            return vectors

    def _assemble(self, tokens: Tokens, batches: list[list[int]], parts: list[Tensor]) -> Encoded:
        # Results stay on the device until the window is done: one copy instead of one a batch.
        order = np.concatenate([np.asarray(batch) for batch in batches])
        vectors = np.empty((len(order), parts[0].shape[1]), dtype=np.float32)
        vectors[order] = torch.cat(parts).float().cpu().numpy()
        if tokens.places is not None:
            vectors = vectors[tokens.places]
        if tokens.starts is not None:
            vectors = np.maximum.reduceat(vectors, tokens.starts, axis=0)
        return Encoded(vectors, sum(map(len, tokens.ids)), tokens.truncated, split=tokens.split, keys=tokens.keys)


def _is_small(tokens: Tokens) -> bool:
    return sum(map(len, tokens.ids)) <= _SMALL


def _limit_threads(device: torch.device, threads: int) -> None:
    # torch keeps this number for each thread; elsewhere than on the CPU it does not matter.
    if device.type == "cpu":
        torch.set_num_threads(threads)


def _placement(device: torch.device) -> tuple[int, int]:
    """Streams, and CPU threads of each."""
    if device.type != "cpu":
        return 1, torch.get_num_threads()
    from ..networks.cpu_inference import recommended_streams

    return recommended_streams()


def _token_budget(device: torch.device, network: Network) -> int:
    """Tokens of a batch: on CPUs what stays in cache, elsewhere what fits the free memory."""
    if device.type == "cpu":
        from ..networks.cpu_inference import TOKEN_BUDGET

        return TOKEN_BUDGET
    cap = 16_384 if network.padded else 131_072
    if device.type != "cuda":
        return 16_384
    config = network.config
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # Live at the widest point: the residual, q, k, v and two tensors of the feed-forward, in 4 bytes at most.
    bytes_per_token = 4 * (6 * config.hidden_size + 2 * wide)
    free, _ = torch.cuda.mem_get_info(device)
    return int(min(cap, max(2048, free // 2 // bytes_per_token)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was not enough, and nothing else."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in text or "MPS backend out of memory" in text
    )
