"""The engine of one device: blocks of inputs -> results, with tokenisation and computation overlapped.

A block is a list of inputs that is planned as one: its batches are cut from its own inputs alone, so the bytes of
its results do not depend on its neighbours. While one block is computed the next is being tokenised, and the
streams (threads that each compute whole batches) go on with it without waiting for the last batch before.

A fork copies the memory of a process, but of all threads only the one that called it. Those of OpenMP (torch) and of
the tokenizer are missing in the child, where whoever counts on them would wait for ever: there the thread that forked
computes alone, and texts are tokenised by one thread. Streams and workers are made anew. A GPU cannot be shared.
"""

from __future__ import annotations

import abc
import itertools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import ForkError
from ..networks.cpu_inference import TOKEN_BUDGET, Trimmer
from ..networks.packing import Packed, plan_batches
from .pipeline import Encoded
from .tokenization import Preprocessor, Request, Tokens, merged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
#: Up to this many tokens a block is small: all threads share each of its batches, and alone, as a single query is,
#: the calling thread computes it, because starting streams would cost more.
_SMALL: Final = 512
#: Blocks tokenised and queued ahead of the one whose result is awaited.
_BLOCKS_AHEAD: Final = 2


class Network(Protocol):
    """A network that computes a batch.

    Attributes:
        padded: Whether it computes padding too.
        config: The config of its transformer, None where that is of no use.
    """

    @property
    def padded(self) -> bool: ...  # noqa: D102

    @property
    def config(self) -> Any: ...  # noqa: D102

    def __call__(self, batch: Packed) -> Tensor:
        """[n, d] for n sequences, or [n]: one number for each."""
        ...


N_co = TypeVar("N_co", bound=Network, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Spec(abc.ABC, Generic[N_co]):
    """All that is needed to build the same engine in this process or another; it can be pickled.

    Attributes:
        folder: The checkpoint.
        precision: Number format to compute in.
        trust_remote_code: Allow a checkpoint to bring its own Python code.
        allow_pickle: Allow weights in `.bin` files.
    """

    folder: Path
    precision: str
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @abc.abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer."""

    @abc.abstractmethod
    def load_network(self, device: torch.device) -> N_co:
        """The network, ready to compute on a device."""

    @abc.abstractmethod
    def pack(self, tokens: Tokens, batch: Sequence[int]) -> Packed:
        """The sequences `batch` of a block as the network wants them."""


@dataclass
class _Job:
    """A block on its way: its tokens, and the vectors of its batches as they come."""

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
            streams: Batches computed at once, where other engines share the device; what a block's batches are does
                not depend on it.
        """
        self.spec = spec
        self.device = torch.device(device)
        self._process = os.getpid()
        global _loaded
        _loaded = True
        self.tokenizer: PreTrainedTokenizerFast = spec.load_tokenizer()
        self.network: N_co = spec.load_network(self.device)
        self.padded = self.network.padded
        self._shares, self.threads_per_stream = _placement(self.device)
        self.streams = streams or self._shares
        self.token_budget = _token_budget(self.device, self.network)
        self._preprocessors = lru_cache(maxsize=16)(self._new_preprocessor)

    def _new_preprocessor(self, request: Request) -> Preprocessor:
        preprocess = request.preprocessor(self.tokenizer)
        return lambda inputs: merged(preprocess(inputs))

    def compute(
        self, blocks: Iterable[Sequence[Any]], request: Request, *, stop: threading.Event | None = None
    ) -> Iterator[Encoded]:
        """One result for each block, in order.

        Args:
            blocks: Lists of inputs that `request` can make tokens of, not empty.
            request: How to compute them.
            stop: Once set, by another thread, no further batch is computed and CancelledError ends the call.

        Raises:
            ForkError: the process was forked after the model was loaded on a GPU.
        """
        check_process(self.device, self._process)
        preprocess = self._preprocessors(replace(request, batch_size=None))  # Tokens do not depend on it.
        source = iter(blocks)
        head = list(itertools.islice(source, 2))
        tokens: Tokens | None = None
        # Short input that is all there is, the case of a single query, goes without any thread.
        if len(head) == 1 and len(head[0]) <= _SMALL:
            tokens = preprocess(head[0])
            if _is_small(tokens):
                batches = self._plan(tokens, request)
                vectors = [self._forward_or_split(tokens, batch) for batch in batches]
                return iter([self._assemble(tokens, batches, vectors)])
        return self._overlapped(itertools.chain(head, source), request, preprocess, tokens, stop) if head else iter([])

    def _overlapped(
        self,
        blocks: Iterable[Sequence[Any]],
        request: Request,
        preprocess: Preprocessor,
        first: Tokens | None,
        stop: threading.Event | None,
    ) -> Iterator[Encoded]:
        """Results of blocks, computed by threads; `first` are the tokens of the first block if they are known."""
        compute = ThreadPoolExecutor(self.streams, "bgekit-compute")
        prepare = ThreadPoolExecutor(1, "bgekit-tokenise")
        all_threads = torch.get_num_threads()
        trimmer = Trimmer()

        def forward(tokens: Tokens, batch: list[int], threads: int) -> Tensor:
            if stop is not None and stop.is_set():
                raise CancelledError
            _limit_threads(self.device, threads)
            return self._forward_or_split(tokens, batch)

        def start(block: Sequence[Any], tokens: Tokens | None) -> _Job:
            if tokens is None:
                tokens = preprocess(block)
            batches = self._plan(tokens, request)
            # Sums are rounded otherwise with more threads: a small block must not get other bytes when it comes alone.
            threads = all_threads if _is_small(tokens) else self.threads_per_stream
            return _Job(tokens, batches, [compute.submit(forward, tokens, batch, threads) for batch in batches])

        ahead: deque[Future[_Job]] = deque()
        try:
            for block in blocks:
                ahead.append(prepare.submit(start, block, first))
                first = None
                if len(ahead) > _BLOCKS_AHEAD:
                    yield self._finish(ahead.popleft().result())
                    trimmer.trim()
            while ahead:
                yield self._finish(ahead.popleft().result())
                trimmer.trim()
        finally:
            # Reached early on an error, Ctrl-C or a caller who stops reading: what is queued is dropped.
            prepare.shutdown(wait=True, cancel_futures=True)
            compute.shutdown(wait=True, cancel_futures=True)
            # The streams' limit is theirs alone for OpenMP, but MKL keeps one number for the process.
            torch.set_num_threads(torch.get_num_threads())

    def _finish(self, job: _Job) -> Encoded:
        return self._assemble(job.tokens, job.batches, [vectors.result() for vectors in job.vectors])

    def _plan(self, tokens: Tokens, request: Request) -> list[list[int]]:
        lengths = list(map(len, tokens.ids))
        # A small block is shared evenly between the streams of the device instead of filling the first one's budget.
        budget = min(self.token_budget, max(_SMALL, -(-sum(lengths) // self._shares)))
        return list(plan_batches(lengths, budget, batch_size=request.batch_size, padded=self.padded))

    def _forward_or_split(self, tokens: Tokens, batch: list[int]) -> Tensor:
        try:
            return self._forward(self.spec.pack(tokens, batch))
        except RuntimeError as error:  # torch.OutOfMemoryError is one.
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
            vectors: Tensor = self.network(batch.to(self.device))
            return vectors

    def _assemble(self, tokens: Tokens, batches: list[list[int]], parts: list[Tensor]) -> Encoded:
        # Results stay on the device until the block is done: one copy instead of one a batch.
        order = np.concatenate([np.asarray(batch) for batch in batches])
        computed = torch.cat(parts).float().cpu().numpy().reshape(len(order), -1)
        vectors = np.empty_like(computed)
        vectors[order] = computed
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
    threads = torch.get_num_threads()
    return (threads, 1) if device.type == "cpu" else (1, threads)


def _token_budget(device: torch.device, network: Network) -> int:
    """Tokens of a batch: on CPUs what stays in cache, elsewhere what fits the free memory."""
    if device.type == "cpu":
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


class _Forgetful(Protocol):
    def forget(self) -> None:
        """Let go, in the child, of what belongs to the parent."""
        ...


#: What a child must let go of.
_holders: weakref.WeakSet[_Forgetful] = weakref.WeakSet()
#: Whether this process, or its parent before it, has loaded a model: until then children are left alone.
_loaded = False


def forget_in_children(holder: _Forgetful) -> None:
    """Have `holder.forget()` called in every child forked from now on, as long as the holder lives."""
    _holders.add(holder)


def check_process(device: torch.device, loaded_in: int) -> None:
    """Raise ForkError if a device cannot be used here by a model that the process `loaded_in` has loaded."""
    if device.type != "cpu" and os.getpid() != loaded_in:
        raise ForkError(
            f"this process was forked from process {loaded_in}, which had loaded the model on {device}, and a GPU "
            "cannot be used on both sides of a fork: load the model after the fork, or start processes by "
            "multiprocessing.get_context('spawn')"
        )


def _after_fork() -> None:
    for holder in list(_holders):
        holder.forget()
    if not _loaded:
        return
    torch.set_num_threads(1)
    # Left to itself the tokenizer sees to this; told to use threads by the environment it does as it is told.
    if "TOKENIZERS_PARALLELISM" in os.environ:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
