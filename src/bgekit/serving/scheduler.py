"""The queue of a server: sequences of all requests to all models, and the threads that compute them.

A request is a `Job`: its sequences, and a deadline on the server's own clock, which counts the work that was handed
out. The deadline is the clock's time when the job came plus the job's own work, and the earliest goes first. So short
jobs overtake long ones, and none starves: what came later goes first only as long as the clock has not moved by the
difference of both jobs' work.

A batch holds sequences of one model, of the job that is first and of those that follow. Its size follows what waits,
and it stays small on a CPU, where large batches are no faster. Short jobs have a thread of their own beside those that
compute any: what they wait for is never a whole batch of others. Equal sequences that wait are one, whoever sent them.

Threads know nothing of event loops: a job ends in a `concurrent.futures.Future`.
"""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import WorkerError
from .errors import Internal, Overloaded, ServingError, Unready

if TYPE_CHECKING:
    from ..inference.tokenization import Tokens

logger = logging.getLogger(__name__)
#: Tokens of a job that counts as short: a query, or a few of them.
SHORT: Final = 96
#: Least and most tokens of a batch on a CPU; the least is what a query may have to wait for where nothing is short.
_LEAST: Final = 256
_MOST: Final = 512
#: Jobs whose sequences may share a batch.
_MIXED: Final = 16
#: Times that a sequence is computed where a worker dies with it.
_TRIES: Final = 2
#: Share of a new measurement in the estimate of a model's speed.
_WEIGHT: Final = 0.1
#: Seconds between looks at batches that take too long.
_LOOK: Final = 0.5


#: What is computed of a sequence: numbers, all finite, of any shape, or records of numbers.
Result: TypeAlias = "npt.NDArray[Any]"
#: Those of several sequences: rows of an array, or a list.
Results: TypeAlias = "npt.NDArray[Any] | Sequence[Result]"


class Computer(Protocol):
    """A loaded model, as the scheduler needs it.

    Attributes:
        name: Its name, for messages.
        seconds_per_token: What a token costs one stream; measured again and again.
        exact: Whether a result does not depend on the number of threads.
        most: Most tokens of a batch, None for the scheduler's own choice.
    """

    name: str
    seconds_per_token: float
    exact: bool
    most: int | None

    def compute(self, place: int, tokens: Tokens, *, output: str, threads: int) -> Results:
        """A result for each sequence of a batch, computed on a device by its place, 0 being that of this process."""
        ...

    def replace_worker(self, place: int) -> None:
        """Start the worker of a device again; it has died."""
        ...

    def kill_worker(self, place: int) -> bool:
        """End the worker of a device that is stuck; false where there is none."""
        ...


class Waiting:
    """A sequence of tokens that waits, and is computed once for all who wait for it."""

    __slots__ = ("ids", "key", "taken", "tries", "types", "waiters")

    def __init__(self, key: tuple[Any, ...], ids: list[int], types: list[int] | None) -> None:
        self.key, self.ids, self.types = key, ids, types
        self.taken = False
        self.tries = 0
        self.waiters: list[tuple[Job, int]] = []


class Job:
    """The sequences of a request.

    Attributes:
        computer: The model.
        output: What is wanted of each sequence, in the model's own words.
        prompt_length: See `Tokens`.
        tokens: Tokens of its sequences.
        future: Its results, one for each of its distinct sequences.
        deadline: On the scheduler's clock.
        unserved: Tokens of those of its sequences that wait.
        came: When it came, in seconds of `time.perf_counter`.
        begun: When the first of its sequences was handed out, 0 before.
        last: When the last of them was.
    """

    def __init__(self, computer: Computer, output: str, prompt_length: int, tokens: int, count: int) -> None:
        self.computer, self.output, self.prompt_length, self.tokens = computer, output, prompt_length, tokens
        self.future: Future[list[Result]] = Future()
        self.deadline = 0.0
        self.unserved = 0
        self.came = time.perf_counter()
        self.begun = self.last = 0.0
        #: Those that wait, shortest first: they are taken from the end, so neighbours in a batch are alike.
        self.waiting: list[Waiting] = []
        self.results: list[Result | None] = [None] * count
        self.left = count

    @property
    def short(self) -> bool:
        """Whether it is for the lane of short jobs, too."""
        return self.tokens <= SHORT

    @property
    def kind(self) -> tuple[Any, ...]:
        """What jobs must have in common to share a batch."""
        return id(self.computer), self.output, self.prompt_length, self.short

    def __lt__(self, other: Job) -> bool:
        return self.deadline < other.deadline


@dataclass
class _Running:
    """A batch that is being computed."""

    computer: Computer
    place: int
    output: str
    prompt_length: int
    sequences: list[Waiting]
    since: float
    told: bool = False


class Scheduler:
    """The queue, and the threads that compute what is in it. They start with the first job."""

    def __init__(
        self, streams: int, *, devices: int = 1, max_wait: float = 10.0, max_tokens: int = 4_000_000,
        stuck: float = 60.0, all_threads: int = 1, on_batch: Callable[[int, int], None] | None = None,
        on_shared: Callable[[int], None] | None = None, on_stuck: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        """Nothing started yet.

        Args:
            streams: Threads that compute batches in this process.
            devices: How many devices there are; each beyond the first is a worker process, served by a thread.
            max_wait: Seconds that a job may have to wait; one that would wait longer is refused.
            max_tokens: Tokens that may wait in all: what bounds the memory.
            stuck: Seconds after which a batch counts as stuck.
            all_threads: Threads that share a batch that is alone.
            on_batch: Told the sequences and tokens of each batch.
            on_shared: Told how many sequences of a job another one had in the queue already, where there are some.
            on_stuck: Told, in words, that a batch in this process is stuck.
        """
        self.streams, self.devices, self.max_wait, self.max_tokens = streams, devices, max_wait, max_tokens
        self.stuck, self._all_threads = stuck, all_threads
        self.on_batch, self.on_shared, self.on_stuck = on_batch, on_shared, on_stuck
        self._lock = threading.RLock()
        #: What threads wait for: those that compute any job, the last one that came to wait at the end; and that of
        #: the lane of short jobs.
        self._idle: list[threading.Condition] = []
        self._short = threading.Condition(self._lock)
        self._jobs: list[Job] = []
        self._known: dict[tuple[Any, ...], Waiting] = {}
        self._running: dict[int, _Running] = {}
        self._threads: list[threading.Thread] = []
        self._clock = 0.0
        self._closed = False
        #: Tokens that wait, of each model that has some.
        self._waiting: dict[Computer, int] = {}
        #: Tokens that were computed.
        self.computed_tokens = 0

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait."""
        with self._lock:
            return sum(self._waiting.values())

    @property
    def queued_jobs(self) -> int:
        """Jobs that have sequences that wait."""
        return len(self._jobs)

    @property
    def running_batches(self) -> int:
        """Batches that are being computed."""
        return len(self._running)

    @property
    def workers(self) -> int:
        """Streams of all devices together."""
        return self.streams + self.devices - 1

    def wait_for(self, computer: Computer, tokens: int) -> float:
        """Seconds that so many new tokens for a model would wait until their last one is computed, about."""
        with self._lock:
            own = tokens * computer.seconds_per_token
            deadline = self._clock + own
            ahead = sum(
                job.unserved * job.computer.seconds_per_token
                for job in self._jobs[: bisect.bisect_right(self._jobs, deadline, key=_deadline)]
            )
        return (ahead + own) / self.workers

    def admit(self, computer: Computer, tokens: int) -> None:
        """See whether a job of at least so many tokens would be taken.

        Raises:
            Overloaded: it would have to wait for too long.
            Unready: the server has ended.
        """
        with self._lock:
            if self._closed:
                raise Unready("the server is being shut down: ask another one")
            if not self._jobs:
                return
            own = tokens * computer.seconds_per_token / self.workers
            # A job that takes longer than all may wait is taken when it is not made to wait besides.
            most = max(self.max_wait, own)
            every = sum(size * each.seconds_per_token for each, size in self._waiting.items()) / self.workers
            # Only where the queue is long is added up, job by job, what would go first.
            late = self.wait_for(computer, tokens) - most if every + own > most else 0.0
            if late > 0:
                raise Overloaded(
                    f"the queue is full: {self.queued_tokens:,} tokens wait, this request would be answered in "
                    f"{most + late:.0f} s (--max-wait {self.max_wait:g})", retry_after=min(60.0, max(1.0, late)),
                )  # fmt: skip
            if self.queued_tokens + tokens > self.max_tokens:
                rest = self.queued_tokens * computer.seconds_per_token / self.workers
                raise Overloaded(
                    f"the queue is full: {self.queued_tokens:,} tokens wait", retry_after=max(1.0, rest / 2)
                )

    def submit(self, computer: Computer, tokens: Tokens, *, output: str) -> Job:
        """Queue the distinct sequences of a request; all of them or none.

        Args:
            computer: The model.
            tokens: Merged tokens: each sequence once.
            output: See `Job`.

        Raises:
            Overloaded: they would have to wait for too long.
            Unready: the server has ended.
        """
        size, shared = sum(map(len, tokens.ids)), 0
        with self._lock:
            self.admit(computer, size)
            job = Job(computer, output, tokens.prompt_length, size, len(tokens.ids))
            job.deadline = self._clock + size * computer.seconds_per_token
            keys = tokens.keys
            if tokens.places is not None:  # Keys are of inputs; of merged sequences, that of the first input of each.
                first: dict[int, bytes] = {}
                for digest, place in zip(tokens.keys, tokens.places, strict=True):
                    first.setdefault(place, digest)
                keys = [first[place] for place in range(len(tokens.ids))]
            for place, ids in enumerate(tokens.ids):
                key = id(computer), output, tokens.prompt_length, keys[place]
                sequence = self._known.get(key)
                if sequence is None:
                    types = None if tokens.types is None else tokens.types[place]
                    sequence = self._known[key] = Waiting(key, ids, types)
                    self._count(computer, len(ids))
                else:
                    shared += 1
                sequence.waiters.append((job, place))
                if not sequence.taken:
                    job.waiting.append(sequence)
                    job.unserved += len(ids)
            job.waiting.sort(key=_length)
            if job.waiting:
                bisect.insort(self._jobs, job)
            else:
                job.begun = job.last = job.came
            self._start()
            self._wake(job.short)
        if shared and self.on_shared is not None:
            self.on_shared(shared)
        return job

    def _count(self, computer: Computer, tokens: int) -> None:
        """More tokens of a model wait, or fewer."""
        self._waiting[computer] = self._waiting.get(computer, 0) + tokens
        if not self._waiting[computer]:
            del self._waiting[computer]

    def drop(self, job: Job) -> None:
        """Forget a job that nobody waits for any more; what others wait for, too, stays."""
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)
            for sequence in job.waiting:
                sequence.waiters = [waiter for waiter in sequence.waiters if waiter[0] is not job]
                if not sequence.waiters and not sequence.taken:
                    sequence.taken = True
                    self._count(job.computer, -len(sequence.ids))
                    self._known.pop(sequence.key, None)
            job.waiting = []
        _settle(job, error=Unready("the request was dropped"))

    def close(self, error: ServingError | None = None) -> None:
        """Take no more jobs, refuse those that wait, end the threads when they have finished their batches.

        Args:
            error: What those that wait are told.
        """
        with self._lock:
            self._closed = True
            jobs = list(self._jobs)
            self._wake(short=False)
            self._short.notify()
        for job in jobs:
            _settle(job, error=error or Unready("the server is being shut down: ask another one"))
            self.drop(job)

    # Threads.

    def _start(self) -> None:
        if self._threads:
            return
        places = [(0, False)] * self.streams + [(0, True)] + [(place, False) for place in range(1, self.devices)]
        for number, (place, short) in enumerate(places):
            name = f"bgekit-serve-{'short' if short else place}-{number}"
            thread = threading.Thread(target=self._work, args=(number, place, short), name=name, daemon=True)
            self._threads.append(thread)
        self._threads.append(threading.Thread(target=self._watch, name="bgekit-serve-watch", daemon=True))
        for thread in self._threads:
            thread.start()

    def _wake(self, short: bool) -> None:
        """Have threads look for work: for a short job one, and always the one that was busy last.

        A lone query after the other is so computed by one thread, whose helpers (OpenMP's) are still awake; those of
        another one would look for work on the cores that it needs.
        """
        if short and not self._idle:
            self._short.notify()
        for _ in range(min(1, len(self._idle)) if short else len(self._idle)):
            self._idle.pop().notify()

    def _work(self, number: int, place: int, only_short: bool) -> None:
        """Compute batches until the server ends."""
        import torch

        from ..networks.cpu_inference import Trimmer

        # Set once: torch keeps this number for each thread, but MKL may keep one for the process.
        torch.set_num_threads(1)
        trimmer = Trimmer()
        ready = self._short if only_short else threading.Condition(self._lock)
        while True:
            with self._lock:
                batch = self._take(number, place, only_short)
                while batch is None:
                    if self._closed:
                        return
                    if not only_short:
                        self._idle.append(ready)
                    ready.wait()
                    batch = self._take(number, place, only_short)
                # Where nothing else is there to do, all threads share the batch.
                alone = place == 0 and len(self._running) == 1 and not self._jobs and batch.computer.exact
                if self._jobs:
                    self._wake(self._jobs[0].short)
            self._compute(number, batch, self._all_threads if alone else 1)
            if not only_short:
                trimmer.trim()

    def _take(self, number: int, place: int, only_short: bool) -> _Running | None:
        """The next batch, marked as taken; None where there is none."""
        first = next((job for job in self._jobs if job.short or not only_short), None)
        if first is None:
            return None
        most = first.computer.most or min(_MOST, max(_LEAST, -(-self.queued_tokens // (2 * self.workers))))
        sequences: list[Waiting] = []
        size = 0
        for job in [each for each in self._jobs if each.kind == first.kind][:_MIXED]:
            # The first job fills half of a batch; the rest is of nearly the same length, whosever it is: faster.
            room = most // 2 if job is first else most
            longest = len(sequences[0].ids) if sequences else None
            shortest = len(sequences[-1].ids) if sequences else 0
            size += self._move(job, sequences, room - size, longest, shortest if job is not first else 0)
            if size >= most:
                break
        for job in [each for each in self._jobs if each.kind == first.kind]:
            size += self._move(job, sequences, most - size, None, 0)
            if size >= most or job.waiting:
                break
        now = time.perf_counter()
        for sequence in sequences:
            for waiter, _ in sequence.waiters:
                waiter.begun, waiter.last = waiter.begun or now, now
        self._jobs = [each for each in self._jobs if each.waiting]
        if not sequences:  # Others had taken all of them meanwhile; those jobs are gone now.
            return self._take(number, place, only_short)
        self._count(first.computer, -size)
        self._clock += size * first.computer.seconds_per_token
        running = self._running[number] = _Running(
            first.computer, place, first.output, first.prompt_length, sequences, time.monotonic()
        )
        return running

    @staticmethod
    def _move(job: Job, batch: list[Waiting], room: int, longest: int | None, shortest: int) -> int:
        """Take sequences of a job for a batch, longest first; their tokens.

        Args:
            job: The job.
            batch: What the batch has; a batch that has nothing takes one sequence, whatever the room.
            room: Tokens that the batch may take.
            longest: Most tokens of one, None for any.
            shortest: Least tokens of one.
        """
        moved = 0
        place = len(job.waiting) if longest is None else bisect.bisect_right(job.waiting, longest, key=_length)
        while place > 0:
            place -= 1
            sequence = job.waiting[place]
            if sequence.taken:  # By another job that waits for it, too.
                del job.waiting[place]
                continue
            size = len(sequence.ids)
            typed = (sequence.types is None) != (batch[0].types is None) if batch else False
            if size < shortest or typed or (batch and moved + size > room):
                break
            del job.waiting[place]
            sequence.taken = True
            for waiter, _ in sequence.waiters:
                waiter.unserved -= size
            batch.append(sequence)
            moved += size
        return moved

    def _compute(self, number: int, batch: _Running, threads: int) -> None:
        from ..inference.tokenization import Tokens

        sequences = batch.sequences
        typed = sequences[0].types is not None
        tokens = Tokens(
            [each.ids for each in sequences], prompt_length=batch.prompt_length,
            types=[each.types or [] for each in sequences] if typed else None,
        )  # fmt: skip
        size = sum(map(len, tokens.ids))
        start = time.perf_counter()
        error: Exception | None = None
        results: Results | None = None
        try:
            results = batch.computer.compute(batch.place, tokens, output=batch.output, threads=threads)
        except WorkerError as died:
            error = died
        except Exception as failed:
            logger.exception("a batch of %s failed", batch.computer.name)
            error = failed
        seconds = time.perf_counter() - start
        with self._lock:
            self._running.pop(number, None)
            if results is None:
                again = self._put_back(batch) if isinstance(error, WorkerError) else []
                sequences = [each for each in sequences if each not in again]
            else:
                self.computed_tokens += size
                if size >= _LEAST:
                    spent = seconds * threads / size
                    batch.computer.seconds_per_token += _WEIGHT * (spent - batch.computer.seconds_per_token)
            for sequence in sequences:
                self._known.pop(sequence.key, None)
            waiters = [list(each.waiters) for each in sequences]
        if results is not None and self.on_batch is not None:
            self.on_batch(len(sequences), size)
        self._hand_out(sequences, waiters, results, error)
        if isinstance(error, WorkerError):
            logger.error("%s; it is started again", error)
            self._revive(batch)

    def _revive(self, batch: _Running) -> None:
        while not self._closed:
            try:
                batch.computer.replace_worker(batch.place)
                return
            except Exception:
                if self._closed:
                    return
                logger.exception("the worker of device %d of %s does not start", batch.place, batch.computer.name)
                time.sleep(1)

    def _put_back(self, batch: _Running) -> list[Waiting]:
        """Queue the sequences of a batch again that a worker died with; returns those that were."""
        again = []
        for sequence in batch.sequences:
            sequence.tries += 1
            waiting = [job for job, _ in sequence.waiters if not job.future.done()]
            if sequence.tries >= _TRIES or self._closed or not waiting:
                continue
            again.append(sequence)
            sequence.taken = False
            self._count(batch.computer, len(sequence.ids))
            for job in waiting:
                bisect.insort(job.waiting, sequence, key=_length)
                job.unserved += len(sequence.ids)
                if job not in self._jobs:
                    bisect.insort(self._jobs, job)
        self._wake(short=False)
        self._short.notify()
        return again

    def _hand_out(
        self, sequences: list[Waiting], waiters: list[list[tuple[Job, int]]],
        results: Results | None, error: Exception | None,
    ) -> None:  # fmt: skip
        """Give results, or an error, to all jobs that wait for them."""
        finite = [] if results is None else _finite(results)
        for row, (sequence, jobs) in enumerate(zip(sequences, waiters, strict=True)):
            for job, place in jobs:
                if results is None:
                    said = "a worker died twice" if isinstance(error, WorkerError) else "the model failed"
                    _settle(job, error=Internal(f"{said} while it computed this request: the server's log has more"))
                    self.drop(job)
                elif not finite[row]:
                    logger.error("%s gives NaN or infinity for %d tokens", job.computer.name, len(sequence.ids))
                    _settle(job, error=Internal(
                        f"{job.computer.name} gives NaN or infinity for one of the inputs, so nothing is answered: "
                        "its weights are damaged, or its number format is too narrow (dtype: float32)"
                    ))  # fmt: skip
                    self.drop(job)
                else:
                    job.results[place] = results[row]
                    with self._lock:
                        job.left -= 1
                        done = job.left == 0
                    if done:
                        _settle(job, results=[each for each in job.results if each is not None])

    def _watch(self) -> None:
        """Notice batches that take too long."""
        while not self._closed:
            time.sleep(_LOOK)
            now = time.monotonic()
            with self._lock:
                late = [each for each in self._running.values() if now - each.since > self.stuck and not each.told]
            for each in late:
                each.told = True
                said = f"a batch of {each.computer.name} has been computed for more than {self.stuck:g} s"
                logger.error("%s", said)
                if not each.computer.kill_worker(each.place) and self.on_stuck is not None:
                    self.on_stuck(said)


def _finite(results: Results) -> list[bool]:
    """For each result, whether it has neither NaN nor infinity."""
    if isinstance(results, np.ndarray):
        rows: Any = np.isfinite(results).all(axis=1)
        return list(rows.tolist())
    parts = ([each] if each.dtype.names is None else [each[name] for name in each.dtype.names] for each in results)
    return [all(bool(np.isfinite(part).all()) for part in each) for each in parts]


def _deadline(job: Job) -> float:
    return job.deadline


def _length(sequence: Waiting) -> int:
    return len(sequence.ids)


def _settle(job: Job, results: list[Result] | None = None, error: ServingError | None = None) -> None:
    """End a job, if it has not ended."""
    try:
        if error is not None:
            job.future.set_exception(error)
        elif results is not None:
            job.future.set_result(results)
    except InvalidStateError:  # It was cancelled, or has failed before.
        logger.debug("a job had ended already")
