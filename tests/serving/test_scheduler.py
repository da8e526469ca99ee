"""The queue alone, with a model that takes the time it is told."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from bgekit.errors import WorkerError
from bgekit.inference.tokenization import Tokens, merged
from bgekit.networks.cpu_inference import return_freed_memory
from bgekit.serving.errors import Internal, Overloaded, Unready
from bgekit.serving.scheduler import Scheduler

assert return_freed_memory  # What threads import: by now it is there.


class Model:
    """Each sequence's result is its first id; batches wait for `go`, and are recorded."""

    name, exact, most = "fake", True, None

    def __init__(self, seconds_per_token=1e-4):
        self.seconds_per_token = seconds_per_token
        self.go = threading.Event()
        self.batches, self.places, self.threads = [], [], []
        self.die = self.nan = 0
        self.killed = threading.Event()
        self.replaced = []

    def compute(self, place, tokens, *, output, threads):
        self.batches.append([ids[0] for ids in tokens.ids])
        self.places.append(place)
        self.threads.append(threading.current_thread().name)
        # A worker that took the place of another is not stuck again.
        while not self.go.wait(0.01) and not (place and (self.killed.is_set() or self.replaced)):
            pass
        if place and self.killed.is_set():
            raise WorkerError("the worker was killed")
        if self.die:
            self.die -= 1
            raise WorkerError("the worker died")
        rows = np.array([[ids[0]] for ids in tokens.ids], dtype=np.float32)
        return np.full_like(rows, np.nan) if self.nan else rows

    def replace_worker(self, place):
        self.replaced.append(place)
        self.killed.clear()

    def kill_worker(self, place):
        if place:
            self.killed.set()
        return place > 0


def texts(*firsts, length=200):
    return merged(Tokens([[first, *range(length - 1)] for first in firsts]))


def submit(scheduler, model, tokens):
    return scheduler.submit(model, tokens, output="vector")


def values(job):
    return [each[0] for each in job.future.result(60)]


@pytest.fixture
def started():
    made = []

    def make(streams=1, **options):
        made.append(Scheduler(streams, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_short_jobs_overtake_and_long_ones_do_not_starve(started):
    model, scheduler = Model(), started()
    first = submit(scheduler, model, texts(1, length=400))
    wait_until(lambda: model.batches == [[1]])
    bulk = submit(scheduler, model, texts(*range(10, 20), length=200))
    query = submit(scheduler, model, texts(2, length=10))  # The lane of short ones takes it at once.
    wait_until(lambda: [2] in model.batches)
    middle = submit(scheduler, model, texts(3, length=150))
    model.go.set()
    for job in (first, bulk, query, middle):
        job.future.result(60)
    order = [first for batch in model.batches for first in batch]
    assert order.index(3) < order.index(10)
    assert values(bulk) == list(range(10, 20))
    # What comes after so much work that the long job's turn has come goes behind it.
    model.go.clear()
    blocking = submit(scheduler, model, texts(4, length=400))
    wait_until(lambda: scheduler.running_batches == 1)
    old = submit(scheduler, model, texts(5, 6, length=300))
    scheduler._clock += 600 * model.seconds_per_token
    new = submit(scheduler, model, texts(7, length=120))
    model.go.set()
    for job in (blocking, old, new):
        job.future.result(60)
    order = [first for batch in model.batches for first in batch]
    assert order.index(5) < order.index(7) and order.index(6) < order.index(7)


def test_lone_jobs_are_computed_by_one_thread_after_the_other(started):
    model, scheduler = Model(), started(3)
    model.go.set()
    submit(scheduler, model, texts(0, length=10)).future.result(60)
    for first in range(1, 6):
        wait_until(lambda: len(scheduler._idle) == 3)
        submit(scheduler, model, texts(first, length=10)).future.result(60)
    assert len(set(model.threads[1:])) == 1


def test_equal_sequences_in_the_queue_are_computed_once(started):
    model, shared = Model(), []
    scheduler = started(on_shared=shared.append)
    blocking = submit(scheduler, model, texts(1, length=300))
    wait_until(lambda: model.batches)
    jobs = [
        submit(scheduler, model, texts(5, 6)),
        submit(scheduler, model, texts(6, 7)),
        submit(scheduler, model, texts(1, length=300)),
    ]
    scheduler.drop(jobs[0])  # The other one still waits for 6.
    with pytest.raises(Unready):
        jobs[0].future.result(60)
    model.go.set()
    assert [values(job) for job in jobs[1:]] == [[6, 7], [1]]
    assert values(blocking) == [1]
    computed = sorted(first for batch in model.batches for first in batch)
    assert computed == [1, 6, 7] and shared == [1, 1]
    assert scheduler.queued_tokens == scheduler.queued_jobs == 0 and not scheduler._known


def test_a_full_queue_refuses_whole_requests_and_says_when_to_come_back(started):
    model, scheduler = Model(seconds_per_token=1e-3), started(max_wait=1.0)
    running = submit(scheduler, model, texts(1, length=2000))  # Longer than anyone may wait, but nobody is before it.
    wait_until(lambda: model.batches)
    taken = submit(scheduler, model, texts(2, 3, length=400))
    with pytest.raises(Overloaded) as refused:
        submit(scheduler, model, texts(*range(10, 20), length=400))
    assert 1 <= refused.value.retry_after <= 60 and refused.value.status == 429
    short = submit(scheduler, model, texts(4, length=20))  # It does not wait behind the long ones.
    model.go.set()
    assert [len(values(job)) for job in (running, taken, short)] == [1, 2, 1]
    assert not any(10 <= first < 20 for batch in model.batches for first in batch)


def test_what_a_worker_died_with_is_computed_once_more(started):
    model, scheduler = Model(), started(1, devices=2)
    model.die = 1
    job = submit(scheduler, model, texts(*range(10)))
    model.go.set()
    assert values(job) == list(range(10))
    wait_until(lambda: model.replaced)
    model.die = 2**30
    with pytest.raises(Internal, match="died twice"):
        submit(scheduler, model, texts(50)).future.result(60)
    model.die = 0
    assert submit(scheduler, model, texts(51)).future.result(60)[0][0] == 51


def test_what_a_worker_died_with_is_forgotten_where_nobody_waits_for_it(started):
    model, scheduler = Model(), started(1, devices=2, stuck=3600)
    jobs = [submit(scheduler, model, texts(first)) for first in (1, 2)]
    wait_until(lambda: set(model.places) == {0, 1})
    for job in jobs:
        scheduler.drop(job)
    model.killed.set()
    wait_until(lambda: model.replaced == [1])
    assert scheduler.queued_tokens == scheduler.queued_jobs == 0 and len(scheduler._known) == 1
    model.go.set()


def test_nan_is_an_error_for_those_alone_whose_text_it_is(started):
    model, scheduler = Model(), started()
    model.go.set()
    model.nan = 1
    with pytest.raises(Internal, match="NaN"):
        submit(scheduler, model, texts(1)).future.result(60)
    model.nan = 0
    assert submit(scheduler, model, texts(1)).future.result(60)[0][0] == 1


def test_a_batch_that_takes_too_long_is_noticed(started):
    model, said = Model(), []
    scheduler = started(stuck=0.2, on_stuck=said.append)
    job = submit(scheduler, model, texts(1))
    wait_until(lambda: said)
    assert "0.2 s" in said[0]
    model.go.set()
    job.future.result(60)


def test_a_worker_that_is_stuck_is_ended_and_its_batch_computed_elsewhere(started):
    model, said = Model(), []
    scheduler = started(1, devices=2, stuck=0.3, on_stuck=said.append)
    job = submit(scheduler, model, texts(*range(8), length=200))
    wait_until(lambda: set(model.places) == {0, 1})
    wait_until(lambda: model.replaced and said)  # The one in this process cannot be ended.
    model.go.set()
    assert values(job) == list(range(8))
    wait_until(lambda: model.replaced == [1])


def test_what_waits_is_counted_whoever_takes_it(started):
    model, scheduler = Model(), started()
    blocking = submit(scheduler, model, texts(1, length=400))
    wait_until(lambda: model.batches)
    one, other = submit(scheduler, model, texts(5, 6)), submit(scheduler, model, texts(6, 7, 8))
    assert (one.unserved, other.unserved, scheduler.queued_tokens) == (400, 600, 800)
    assert scheduler.wait_for(model, 1000) == pytest.approx(2000 * model.seconds_per_token)
    model.go.set()
    for job in (blocking, one, other):
        job.future.result(60)
        assert job.unserved == 0


def test_the_end_refuses_what_waits_and_finishes_what_runs(started):
    model, scheduler = Model(), started()
    running = submit(scheduler, model, texts(1))
    wait_until(lambda: model.batches)
    waiting = submit(scheduler, model, texts(2))
    scheduler.close()
    with pytest.raises(Unready, match="shut down"):
        waiting.future.result(60)
    with pytest.raises(Unready):
        submit(scheduler, model, texts(3))
    model.go.set()
    assert running.future.result(60)[0][0] == 1
