"""Several devices: one persistent worker each, blocks handed out as workers become free, results in order.

Workers are processes of their own (`serve`) that talk through their standard streams. They need
no import guard in the caller's script, start from threads, notebooks and daemonic processes alike, and end when
their parent does, because their input ends. The first device is served by the engine of this process.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import torch

from ..errors import ArgumentError, WorkerError
from ..networks.cpu_inference import Trimmer
from .engine import Engine, Spec, forget_in_children
from .pipeline import BLOCK_SIZE, Encoded
from .tokenization import Request

logger = logging.getLogger(__name__)
#: Blocks that wait for a device, for each device.
_QUEUED: Final = 2


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
        raise ArgumentError(f"{wanted!r} is no device: {error}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ArgumentError(f"there is no device {device}: {count} GPUs are visible")
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
        self._lock = threading.Lock()
        forget_in_children(self)

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
            self._start()
            yield from self._share(blocks, request)
        finally:
            self._lock.release()

    def _start(self) -> None:
        if self.workers:
            return
        cpus = sum(device.type == "cpu" for device in self.devices)
        threads = torch.get_num_threads()
        try:
            for device in self.devices[1:]:
                streams = max(1, threads // cpus) if device.type == "cpu" else None
                self.workers.append(Worker(self.engine.spec, str(device), threads, streams))
        except BaseException:
            self.close()
            raise

    def _share(self, blocks: Iterator[Sequence[Any]], request: Request) -> Iterator[Encoded]:
        tasks: SimpleQueue[tuple[int, Sequence[Any]] | None] = SimpleQueue()
        results: SimpleQueue[tuple[int, Encoded | BaseException]] = SimpleQueue()
        stop = threading.Event()
        local = partial(self._local, stop=stop, threads=torch.get_num_threads())
        runners = [local, *(worker.compute for worker in self.workers)]
        threads = [threading.Thread(target=_serve, args=(run, request, tasks, results), daemon=True) for run in runners]
        for thread in threads:
            thread.start()
        done: dict[int, Encoded] = {}
        sent = received = 0
        exhausted = completed = False
        try:
            while True:
                while not exhausted and sent - received < _QUEUED * len(runners):
                    block = next(blocks, None)
                    if block is None:
                        exhausted = True
                    else:
                        tasks.put((sent, block))
                        sent += 1
                if received == sent:
                    break
                while received not in done:
                    number, result = results.get()
                    if isinstance(result, BaseException):
                        raise result
                    done[number] = result
                yield done.pop(received)
                received += 1
            completed = True
        finally:
            for _ in threads:
                tasks.put(None)
            if completed:
                for thread in threads:
                    thread.join()
            else:
                # What is still being computed belongs to nobody. Workers are ended; they start again when needed.
                stop.set()
                self.close()

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


def _serve(run: Any, request: Request, tasks: SimpleQueue[Any], results: SimpleQueue[Any]) -> None:
    """Take blocks until there are none; an error is a result too, and ends this device's part."""
    while (task := tasks.get()) is not None:
        number, block = task
        try:
            results.put((number, run(block, request)))
        except BaseException as error:
            results.put((number, error))
            return


class Worker:
    """A process with the model on one device."""

    def __init__(self, spec: Spec[Any], device: str, threads: int, streams: int | None) -> None:
        """Start it.

        Args:
            spec: The model.
            device: The torch device.
            threads: What `torch.get_num_threads()` is to be there: as here, for equal bytes.
            streams: See `Engine`.
        """
        self.device = device
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from bgekit.inference.workers import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._send((spec, device, threads, streams))

    def compute(self, block: Sequence[Any], request: Request) -> Encoded:
        """The result of a block, computed by the process."""
        self._send((list(block), request))
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
            f"the worker of device {self.device} (process {self.process.pid}) {reason}. Its messages stand on stderr; "
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
    except EOFError:
        return
    engine: Engine[Any] | None = None
    trimmer = Trimmer()
    while True:
        try:
            block, request = pickle.load(tasks)
        except EOFError:
            return
        try:
            if engine is None:
                torch.set_num_threads(threads)
                engine = Engine(spec, device, streams=streams)
            answer: object = next(engine.compute([block], request))
        except Exception as error:
            answer = error
        try:
            message = pickle.dumps(answer, protocol=5)
            if isinstance(answer, Exception):
                pickle.loads(message)  # Some exceptions can be written but not read back.
        except Exception:
            message = pickle.dumps(RuntimeError(f"{type(answer).__name__}: {answer}"))
        answers.write(message)
        answers.flush()
        trimmer.trim()
