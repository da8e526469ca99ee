"""The engine: blocks of inputs -> results, on one device or several, with tokenisation and computation overlapped.

A block is a list of inputs that is planned as one: its batches are cut from its own inputs alone, so the bytes of
its results do not depend on its neighbours. While one block is computed the next is being tokenised, and the
streams (threads that each compute whole batches) continue with it without waiting for the last batch before.

Several devices have one persistent worker each; blocks are handed out as workers become free, results come in order.
Workers are processes of their own (`serve`) that talk through their standard streams. They need no import guard in the
caller's script, start from threads, notebooks and daemonic processes alike, and end when their parent does, because
their input ends. The first device is served by the engine of this process.

A fork copies the memory of a process, but of all threads only the one that called it. Those of OpenMP (torch) and of
the tokenizer are missing in the child, where whoever counts on them would wait for ever: there the thread that forked
computes alone, and texts are tokenised by one thread. Streams and workers are made again. A GPU cannot be shared.
"""

from __future__ import annotations

import abc
import copy
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ArgumentError, ForkError, WorkerError
from ..models.head_files import DENSE
from ..networks.cpu_inference import Trimmer, keep_freed_memory, kernels, return_freed_memory
from ..networks.cpu_products import threads_of
from ..networks.heads import Outputs
from ..networks.packing import Packed, plan_batches
from ..networks.sharing import SharedWeights, opened, share
from .pipeline import BLOCK_SIZE, Encoded, Inputs
from .ragged import LEXICAL
from .tokenization import Preprocessor, Request, TokenRequest, Tokens, load_tokenizer, merged, open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..models.head_files import Output
    from .tokenization import AnyTokenizer

logger = logging.getLogger(__name__)
#: Up to this many tokens a block is small: all threads share each of its batches, and alone, as a single query is,
#: the calling thread computes it, because starting streams would cost more.
_SMALL: Final = 512
#: Blocks tokenised and queued ahead of the one whose result is awaited.
_BLOCKS_AHEAD: Final = 2
#: Blocks that wait for a device, for each device.
_QUEUED: Final = 2
#: Takes the share of a block that a batch is of it, and the tokens of the batch.
Told = Callable[[float, int], None]


class Network(Protocol):
    """A network that computes a batch.

    Attributes:
        padded: Whether it computes padding too.
        exact: Whether the bits of a result depend on its own sequence alone, not on batches or threads.
        config: The config of its transformer, None where that is of no use.
    """

    @property
    def padded(self) -> bool: ...  # noqa: D102

    @property
    def exact(self) -> bool: ...  # noqa: D102

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

    @property
    def lower_case(self) -> bool:
        """Whether texts are lowercased, where the tokenizer does not do so by itself."""
        return False

    def open_tokenizer(self) -> AnyTokenizer:
        """The tokenizer, as encoding needs it."""
        return open_tokenizer(self.folder, lower_case=self.lower_case, trust_remote_code=self.trust_remote_code)

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of transformers."""
        return load_tokenizer(self.folder, lower_case=self.lower_case, trust_remote_code=self.trust_remote_code)

    @abc.abstractmethod
    def load_network(self, device: torch.device) -> N_co:
        """The network, ready to compute on a device."""

    @abc.abstractmethod
    def pack(self, tokens: Tokens, batch: Sequence[int]) -> Packed:
        """The sequences `batch` of a block as the network wants them."""

    def prepare(self, network: Any, request: Request) -> None:
        """Have the network load what only such requests need."""

    def outputs(self, network: Any, batch: Packed, request: Request) -> Outputs:
        """What the network makes of a batch on its device."""
        return Outputs(network(batch))


@dataclass
class _Results:
    """What was computed of a batch: vectors stay on the device, as one copy of a block is quicker than many.

    Attributes:
        dense: [n, d], or [n]; None without.
        ragged: See `Encoded`.
    """

    dense: Tensor | None
    ragged: dict[Output, list[npt.NDArray[Any]]]

    @classmethod
    def of(cls, outputs: Outputs) -> _Results:
        """Those of a network's outputs."""
        ragged: dict[Output, list[npt.NDArray[Any]]] = {}
        if (sparse := outputs.sparse) is not None:
            rows = np.empty(len(sparse.tokens), LEXICAL)
            rows["token"], rows["weight"] = sparse.tokens.cpu().numpy(), sparse.weights.cpu().numpy()
            ragged["sparse"] = _split(rows, sparse.counts)
        if (vectors := outputs.multi_vector) is not None:
            ragged["multi-vector"] = _split(vectors.values.cpu().numpy(), vectors.counts)
        return cls(outputs.dense, ragged)

    @classmethod
    def joined(cls, parts: Sequence[_Results]) -> _Results:
        """The results of several batches after each other."""
        dense = [part.dense for part in parts if part.dense is not None]
        ragged = {output: [row for part in parts for row in part.ragged[output]] for output in parts[0].ragged}
        return cls(torch.cat(dense) if dense else None, ragged)


def _split(rows: npt.NDArray[Any], counts: Tensor) -> list[npt.NDArray[Any]]:
    """Rows of several texts, text by text."""
    return np.split(rows, counts.cumsum(0)[:-1].cpu().numpy())


@dataclass
class _Job:
    """A block on its way: its tokens, and the results of its batches as they come."""

    tokens: Tokens
    batches: list[list[int]]
    results: list[Future[_Results]]


class Engine(Generic[N_co]):
    """A model on one device. Safe to use from several threads."""

    def __init__(
        self, spec: Spec[N_co], device: str, *, streams: int | None = None, network: N_co | None = None
    ) -> None:
        """Load the model.

        Args:
            spec: The model.
            device: A torch device; on the CPU `torch.get_num_threads()` threads compute.
            streams: Batches computed at once, where other engines share the device; what a block's batches are does
                not depend on it.
            network: The network, where another process has made its weights.
        """
        self.spec = spec
        self.device = torch.device(device)
        self._process = os.getpid()
        global _loaded
        _loaded = True
        self.tokenizer: AnyTokenizer = spec.open_tokenizer()
        self.network: N_co = spec.load_network(self.device) if network is None else network
        self.padded = self.network.padded
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            keep_freed_memory()
        threads = torch.get_num_threads()
        self._shares, self.threads_per_stream = (threads, 1) if on_cpu else (1, threads)
        self.streams = streams or self._shares
        self.token_budget = _token_budget(self.device, self.network)
        self._preprocessors = lru_cache(maxsize=16)(self._new_preprocessor)
        self._lock, self._short_calls = threading.Lock(), 0

    def share(self) -> SharedWeights | None:
        """Weights for other processes on this device, which from now on are those of this one, too; None without."""
        if self.device.type != "cpu":
            return None
        network: Any = self.network
        shared = share(network, network.backbone)
        if shared is not None:
            self.network = opened(shared.handle, shared.size, shared.content, self.spec.folder)
            return_freed_memory()
        return shared

    def _new_preprocessor(self, request: Request) -> Preprocessor:
        preprocess = request.preprocessor(self.tokenizer)
        return lambda inputs: merged(preprocess(inputs))

    def compute(
        self, blocks: Iterable[Sequence[Any]], request: Request, *, stop: threading.Event | None = None
    ) -> Iterator[Encoded]:
        """One result for each block, in order.

        Args:
            blocks: Lists of inputs that `request` can make tokens of, not empty. `Inputs` are told batch by batch.
            request: How to compute them.
            stop: Once set, by another thread, no further batch is computed and CancelledError ends the call.

        Raises:
            ForkError: the process was forked after the model was loaded on a GPU.
        """
        check_process(self.device, self._process)
        self.spec.prepare(self.network, request)
        preprocess = self._preprocessors(request.for_tokens)
        source = iter(blocks)
        head = list(itertools.islice(source, 2))
        tokens: Tokens | None = None
        # Short input that is all there is, the case of a single query, goes without any thread.
        if len(head) == 1 and len(head[0]) <= _SMALL:
            tokens = preprocess(head[0])
            if _is_small(tokens):
                batches = self._plan(tokens, request)
                with self._threads_of_a_short_call():
                    results = [self._forward_or_split(tokens, batch, request) for batch in batches]
                return iter([self._assemble(tokens, batches, results)])
        return self._overlapped(itertools.chain(head, source), request, preprocess, tokens, stop) if head else iter([])

    def batch(self, tokens: Tokens, *, threads: int = 1, raw: bool = False, request: Request | None = None) -> Encoded:
        """Results of sequences that somebody else has put together, in the calling thread.

        Args:
            tokens: The sequences; all are one batch.
            threads: Threads that share its operations, on a CPU.
            raw: Leave the vectors of an embedder as they are before they are scaled to unit length.
            request: What is computed of them, by default their vectors.

        Raises:
            ForkError: the process was forked after the model was loaded on a GPU.
        """
        check_process(self.device, self._process)
        request = TokenRequest() if request is None else request
        self.spec.prepare(self.network, request)
        rows = list(range(len(tokens.ids)))
        with threads_of(threads) if self.device.type == "cpu" else nullcontext():
            if raw:
                results = self._outputs(self.spec.pack(tokens, rows), request, self._raw_network)
            else:
                results = self._forward_or_split(tokens, rows, request)
        return self._assemble(tokens, [rows], [results])

    def each_token(self, tokens: Tokens, *, threads: int = 1, weights: bool = False) -> list[npt.NDArray[np.float32]]:
        """What is computed of every token, special ones included, before anything is made of the whole text.

        Args:
            tokens: The sequences; all are one batch.
            threads: Threads that share its operations, on a CPU.
            weights: Whether the lexical weight of each token where it stands is wanted, as the head for `sparse` has
                it, instead of the vectors of the last layer.

        Returns:
            For each sequence [m, hidden], or [m] weights.

        Raises:
            ForkError: the process was forked after the model was loaded on a GPU.
            CheckpointError: there is no head for weights, or it is damaged.
        """
        check_process(self.device, self._process)
        network: Any = self.network
        if weights:
            self.spec.prepare(network, TokenRequest(outputs=("sparse",)))
        batch = self.spec.pack(tokens, list(range(len(tokens.ids)))).to(self.device)
        with threads_of(threads) if self.device.type == "cpu" else nullcontext(), torch.inference_mode():
            values = network.backbone(batch, "all")
            if weights:
                values = network.heads.token_weights(values, batch)
            return _split(values.float().cpu().numpy(), batch.lengths_tensor)

    @property
    def _raw_network(self) -> Any:
        """The network with the same weights, without the last step."""
        network: Any = copy.copy(self.network)
        network.normalize = False
        return network

    @contextmanager
    def _threads_of_a_short_call(self) -> Iterator[None]:
        """All threads for a call that is alone; one for each of several at once, which would fight for the cores."""
        with self._lock:
            self._short_calls += 1
            shared = self._short_calls > 1
        try:
            with threads_of(1) if shared and self.network.exact else nullcontext():
                yield
        finally:
            with self._lock:
                self._short_calls -= 1

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

        def forward(tokens: Tokens, batch: list[int], threads: int, told: Told | None, total: int) -> _Results:
            if stop is not None and stop.is_set():
                raise CancelledError
            if self.device.type == "cpu":  # torch keeps this number for each thread.
                torch.set_num_threads(threads)
            results = self._forward_or_split(tokens, batch, request)
            if told is not None:
                size = sum(len(tokens.ids[row]) for row in batch)
                told(size / total, size)
            return results

        def start(block: Sequence[Any], tokens: Tokens | None) -> _Job:
            if tokens is None:
                tokens = preprocess(block)
            batches = self._plan(tokens, request)
            # Where threads change how sums are rounded, a small block must not get other bytes when it comes alone.
            threads = all_threads if _is_small(tokens) and not self.network.exact else self.threads_per_stream
            told, total = getattr(block, "told", None), sum(map(len, tokens.ids))
            results = [compute.submit(forward, tokens, batch, threads, told, total) for batch in batches]
            return _Job(tokens, batches, results)

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
        return self._assemble(job.tokens, job.batches, [results.result() for results in job.results])

    def _plan(self, tokens: Tokens, request: Request) -> list[list[int]]:
        lengths = list(map(len, tokens.ids))
        # Few tokens are not worth a stream of their own.
        streams = max(1, min(self._shares, -(-sum(lengths) // _SMALL)))
        return list(
            plan_batches(lengths, self.token_budget, batch_size=request.batch_size, padded=self.padded, streams=streams)
        )

    def _forward_or_split(self, tokens: Tokens, batch: list[int], request: Request) -> _Results:
        try:
            packed = self.spec.pack(tokens, batch)
            if request.outputs == DENSE:
                return _Results(self._forward(packed), {})
            return self._outputs(packed, request, self.network)
        except RuntimeError as error:  # torch.OutOfMemoryError is one.
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
            size = sum(len(tokens.ids[row]) for row in batch)
        # Outside the handler, where the failed batch's tensors are no longer held by the traceback.
        self.token_budget = min(self.token_budget, max(1, size // 2))
        logger.warning("%s is out of memory at %d tokens per batch: trying %d", self.device, size, self.token_budget)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = (len(batch) + 1) // 2
        parts = batch[:middle], batch[middle:]
        return _Results.joined([self._forward_or_split(tokens, part, request) for part in parts])

    def _forward(self, batch: Packed) -> Tensor:
        with torch.inference_mode():
            vectors: Tensor = self.network(batch.to(self.device))
            return vectors

    def _outputs(self, batch: Packed, request: Request, network: Any) -> _Results:
        with torch.inference_mode():
            return _Results.of(self.spec.outputs(network, batch.to(self.device), request))

    def _assemble(self, tokens: Tokens, batches: list[list[int]], parts: list[_Results]) -> Encoded:
        order = np.concatenate([np.asarray(batch) for batch in batches])
        results = _Results.joined(parts)
        if results.dense is None:
            vectors = np.empty((len(order), 0), dtype=np.float32)
        else:
            computed = results.dense.float().cpu().numpy().reshape(len(order), -1)
            vectors = np.empty_like(computed)
            vectors[order] = computed
        ragged = results.ragged
        if ragged:
            places = np.argsort(order)
            places = places if tokens.places is None else places[tokens.places]
            ragged = {output: [rows[place] for place in places.tolist()] for output, rows in ragged.items()}
        if tokens.places is not None:
            vectors = vectors[tokens.places]
        if tokens.starts is not None:
            vectors = np.maximum.reduceat(vectors, tokens.starts, axis=0)
        return Encoded(
            vectors, sum(map(len, tokens.ids)), tokens.truncated, split=tokens.split, keys=tokens.keys, ragged=ragged
        )


def _is_small(tokens: Tokens) -> bool:
    return sum(map(len, tokens.ids)) <= _SMALL


def _token_budget(device: torch.device, network: Network) -> int:
    """Tokens of a batch: on CPUs what stays in cache, elsewhere what fits the free memory."""
    if device.type == "cpu":
        return kernels().batch
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


def resolve_devices(
    devices: str | int | torch.device | Sequence[str | int | torch.device] | None,
) -> tuple[torch.device, ...]:
    """The devices to use: those asked for, by default every visible GPU, else the CPU.

    An int is the GPU of that number. `CUDA_VISIBLE_DEVICES` counts as everywhere.

    Raises:
        ArgumentError: a device does not exist.
    """
    if devices is None:
        if torch.cuda.is_available():
            return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
        return (torch.device("mps" if torch.backends.mps.is_available() else "cpu"),)
    wanted = [devices] if isinstance(devices, str | int | torch.device) else list(devices)
    if not wanted:
        raise ArgumentError("devices is empty: name at least one, such as 'cpu' or 'cuda:0'")
    return tuple(_existing(device) for device in wanted)


def _existing(wanted: str | int | torch.device) -> torch.device:
    try:
        device = torch.device("cuda", wanted) if isinstance(wanted, int) else torch.device(wanted)
    except RuntimeError as error:
        raise ArgumentError(f"{wanted!r} is not a device: {error}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ArgumentError(
                f"there is no device {device}: {count} GPUs are visible to torch {torch.__version__}; give another, "
                "such as 'cpu', or none, which takes what there is"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ArgumentError("there is no device mps on this machine")
    return device


class WorkerPool:
    """Several devices that share the blocks of one input; one of fewer than 2,048 inputs is left to the first device.

    One input at a time has the workers. Another one that comes meanwhile is computed by the first device until they
    are free: nobody waits for a caller who reads slowly, or for himself.
    """

    def __init__(self, spec: Spec[Any], devices: Sequence[torch.device]) -> None:
        """Load the model on the first device; workers of the others start with the first input that is large enough.

        Args:
            spec: The model.
            devices: Where it is to be computed.
        """
        self.devices = tuple(devices)
        #: That of the first device.
        self.engine = Engine(spec, str(self.devices[0]))
        self.workers: list[Worker] = []
        self._shared: SharedWeights | None = None
        self._lock = threading.Lock()
        _pools.add(self)

    def compute(self, blocks: Iterable[Sequence[Any]], request: Request) -> Iterator[Encoded]:
        """One result for each block, in order; see `Engine.compute`.

        Raises:
            WorkerError: a worker died; the message names its device.
        """
        source = iter(blocks)
        head: list[Sequence[Any]] = []
        while sum(map(len, head)) < BLOCK_SIZE:
            block = next(source, None)
            if block is None:
                yield from self.engine.compute(head, request)
                return
            head.append(block)
        blocks = itertools.chain(head, source)
        while not self._lock.acquire(blocking=False):
            block = next(blocks, None)
            if block is None:
                return
            yield from self.engine.compute([block], request)
        try:
            self.start()
            yield from self._share(blocks, request)
        finally:
            self._lock.release()

    def start(self) -> None:
        """Start the workers of all devices but the first, if they are not there."""
        if self.workers:
            return
        cpus = sum(device.type == "cpu" for device in self.devices)
        if self._shared is None and cpus > 1:
            self._shared = self.engine.share()
        try:
            for place in range(1, len(self.devices)):
                self.workers.append(self.started(place))
        except BaseException:
            self.close()
            raise

    def started(self, place: int) -> Worker:
        """A worker for a device by its place, the first being that of this process; it is not one of `workers` yet."""
        device = self.devices[place]
        threads = torch.get_num_threads()
        cpus = sum(each.type == "cpu" for each in self.devices)
        on_cpu = device.type == "cpu"
        streams, shared = (max(1, threads // cpus), self._shared) if on_cpu else (None, None)
        return Worker(self.engine.spec, str(device), threads, streams, shared)

    def _share(self, blocks: Iterator[Sequence[Any]], request: Request) -> Iterator[Encoded]:
        stop = threading.Event()
        free: SimpleQueue[Callable[[Sequence[Any], Request], Encoded]] = SimpleQueue()
        free.put(partial(self._local, stop=stop, threads=torch.get_num_threads()))
        for worker in self.workers:
            free.put(worker.compute)

        def compute(block: Sequence[Any]) -> Encoded:
            device = free.get()
            try:
                return device(block, request)
            finally:
                free.put(device)

        ahead: deque[Future[Encoded]] = deque()
        pool = ThreadPoolExecutor(len(self.devices), "bgekit-device")
        completed = False
        try:
            for block in blocks:
                ahead.append(pool.submit(compute, block))
                if len(ahead) == _QUEUED * len(self.devices):
                    yield _first(ahead)
            while ahead:
                yield _first(ahead)
            completed = True
        finally:
            if not completed:
                # What is still being computed belongs to nobody. Workers are ended; they start again when needed.
                stop.set()
                self.close()
            pool.shutdown(wait=completed, cancel_futures=True)

    def _local(self, block: Sequence[Any], request: Request, stop: threading.Event, threads: int) -> Encoded:
        # torch keeps this number for each thread, and small blocks are computed by this very one: all devices must
        # do it with equally many threads, or a block's bytes would depend on who took it.
        torch.set_num_threads(threads)
        return next(self.engine.compute([block], request, stop=stop))

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.close()
        self.workers = []

    def forget(self) -> None:
        """Let go of the workers, in a forked child: they are its parent's."""
        for worker in self.workers:
            worker.forget()
        self.workers, self._lock = [], threading.Lock()


def _first(ahead: deque[Future[Encoded]]) -> Encoded:
    """Wait for the first of some results and take it; an error of another one is raised at once."""
    while True:
        pending = [future for future in ahead if not future.done()]
        for future in ahead:
            if future not in pending:
                future.result()
        if ahead[0] not in pending:
            return ahead.popleft().result()
        wait(pending, return_when=FIRST_COMPLETED)


class Worker:
    """A process with the model on one device."""

    def __init__(
        self, spec: Spec[Any], device: str, threads: int, streams: int | None, shared: SharedWeights | None = None
    ) -> None:
        """Start it.

        Args:
            spec: The model.
            device: The torch device.
            threads: What `torch.get_num_threads()` is to be there: as here, for equal bytes.
            streams: See `Engine`.
            shared: Weights that this process has made; None where it makes its own.
        """
        self.device = device
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from bgekit.inference.engine import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=() if shared is None else (shared.handle,),
        )
        self._send((spec, device, threads, streams))
        self._send(None if shared is None else (shared.handle, shared.size, shared.content))

    def compute(self, block: Sequence[Any], request: Request) -> Encoded:
        """The result of a block, computed by the process."""
        told: Told | None = getattr(block, "told", None)
        self._send((list(block), request, told is not None))
        answer = self._receive()
        while isinstance(answer, tuple):  # Of a batch; the result comes last.
            if told is not None:
                told(*answer)
            answer = self._receive()
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]

    def _send(self, message: Any) -> None:
        assert self.process.stdin is not None
        try:
            pickle.dump(message, self.process.stdin, protocol=5)
            self.process.stdin.flush()
        except OSError:
            raise self._death() from None

    def _receive(self) -> Any:
        assert self.process.stdout is not None
        try:
            return pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._death() from None

    def _death(self) -> WorkerError:
        try:
            code = self.process.wait(timeout=5)
            reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            reason = "closed its output"
        return WorkerError(
            f"the worker of device {self.device} (process {self.process.pid}) {reason}. Its messages are on stderr; "
            "signal 9 most often means that memory ran out. What was finished before is kept by bge encode."
        )

    def forget(self) -> None:
        """Close the pipes, in a forked child, so that the parent's end is still the worker's; send nothing."""
        self.process.returncode = 0  # Not a child of this process, which therefore must not wait for it.
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.raw.close()  # type: ignore[attr-defined]

    def close(self) -> None:
        """End the process, at once: it has nothing to save, and a thread may be waiting for its answer."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    # A dead worker's pipe breaks when what it never read is flushed: nothing is lost by it.
                    logger.debug("pipe of the worker of %s was broken", self.device)


def serve() -> None:
    """Serve until the input ends, which it does when the parent closes it or dies."""
    # Ctrl-C reaches the whole group; the parent decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks = sys.stdin.buffer
    # What libraries print must not end up between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    try:
        spec, device, threads, streams = pickle.load(tasks)
        shared = pickle.load(tasks)
    except EOFError:
        return
    engine: Engine[Any] | None = None
    trimmer = Trimmer()
    lock = threading.Lock()

    def tell(share: float, size: int) -> None:
        with lock:
            pickle.dump((share, size), answers, protocol=5)
            answers.flush()

    while True:
        try:
            inputs, request, wanted = pickle.load(tasks)
        except EOFError:
            return
        block: Inputs[Any] = Inputs(inputs)
        block.told = tell if wanted else None
        try:
            if engine is None:
                torch.set_num_threads(threads)
                network = None
                if shared is not None:
                    handle, size, content = shared
                    network = opened(handle, size, content, spec.folder)
                engine = Engine(spec, device, streams=streams, network=network)
            answer: object = next(engine.compute([block], request))
        except Exception as error:
            answer = error
        try:
            message = pickle.dumps(answer, protocol=5)
            if isinstance(answer, Exception):
                pickle.loads(message)  # Some exceptions can be written but not read back.
        except Exception:
            message = pickle.dumps(RuntimeError(f"{type(answer).__name__}: {answer}"))
        with lock:
            answers.write(message)
            answers.flush()
        trimmer.trim()


#: Workers that a child must let go of.
_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
#: Whether this process, or its parent before it, has loaded a model: until then children are left alone.
_loaded = False


def check_process(device: torch.device, loaded_in: int) -> None:
    """Raise ForkError if a device cannot be used here by a model that the process `loaded_in` has loaded."""
    if device.type != "cpu" and os.getpid() != loaded_in:
        raise ForkError(
            f"this process was forked from process {loaded_in}, which had loaded the model on {device}, and a GPU "
            "cannot be used on both sides of a fork: load the model after the fork, or start processes by "
            "multiprocessing.get_context('spawn')"
        )


def _after_fork() -> None:
    for pool in list(_pools):
        pool.forget()
    if not _loaded:
        return
    torch.set_num_threads(1)
    # Left to itself the tokenizer sees to this; told to use threads by the environment it does as it is told.
    if "TOKENIZERS_PARALLELISM" in os.environ:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
