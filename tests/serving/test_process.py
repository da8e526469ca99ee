"""`bge serve` as a process: a worker that dies, the end by a signal, what is wrong before it listens."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from bgekit.cli import serve
from bgekit.cli.main import main

#: A server whose batches take so many seconds once it is ready.
SLOW = """
import importlib, sys, time
from bgekit.inference.engine import Engine
from bgekit.serving import create_app, run
model, seconds, settings, port = sys.argv[1], float(sys.argv[2]), eval(sys.argv[3]), int(sys.argv[-1])
importlib.import_module("bgekit.serving.run")._LEAVE = 0.5
app, computed = create_app({"tiny": model}, **settings), Engine.batch
def slow(self, tokens, **options):
    time.sleep(seconds if app.server.prepared else 0)
    return computed(self, tokens, **options)
Engine.batch = slow
sys.exit(run(app, port=port))
"""


@pytest.fixture(autouse=True)
def no_access_log():
    """The access log is this process's; what a test had `bge serve` set up here, no later one is to write to."""
    access = logging.getLogger("bgekit.access")
    before = access.handlers[:], access.level, access.propagate
    yield
    access.handlers[:], access.propagate = before[0], before[2]
    access.setLevel(before[1])


@contextmanager
def served(*arguments, start=("-m", "bgekit", "serve")):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *start, *map(str, arguments), "--port", str(port)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except ConnectionRefusedError:
        return None


def stats(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/-/stats")
    return json.load(connection.getresponse())


def embed(port, texts):
    """Status and vectors; None where no answer came to what was sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return "refused", None
    try:
        body = json.dumps({"input": texts, "encoding_format": "base64"})
        connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    except OSError:
        return None, None
    if answer.status != 200:
        return answer.status, None
    data = json.loads(content)["data"]
    return 200, np.stack([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data])


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def test_a_worker_may_be_killed_and_sigterm_loses_nothing(bge_small_en):
    from bgekit import FlagModel

    texts = [f"text {number} " + "of several words " * 12 for number in range(160)]
    wanted = np.asarray(FlagModel(bge_small_en, devices="cpu").encode(texts))
    with served(bge_small_en, "--devices", "cpu", "cpu") as (process, port):
        wait_for(lambda: get(port, "/live") == 200)
        wait_for(lambda: get(port, "/health") == 200)
        found = []

        def ask(number):
            order = list(range(16 * number, 16 * number + 32))
            status, vectors = embed(port, [texts[row] for row in order])
            found.append((status, vectors is None or np.array_equal(vectors, wanted[order])))

        def load(count):
            found.clear()
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
            for thread in threads:
                thread.start()
            return threads

        threads = load(4)
        (worker,) = children(process.pid)
        os.kill(worker, signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert found == [(200, True)] * 4  # Computed again, by the other one.
        wait_for(lambda: children(process.pid) not in ([], [worker]), 20)
        assert embed(port, texts[:2])[0] == 200

        threads = load(8)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: get(port, "/health") in (503, None), 5)
        status, _ = embed(port, ["late"])
        assert status in (503, "refused")
        for thread in threads:
            thread.join()
        # What had been received is answered; what came with the signal is told to go elsewhere.
        assert {status for status, _ in found} <= {200, 503} and all(right for _, right in found)
        assert sum(status == 200 for status, _ in found) >= 1
        _, said = process.communicate(timeout=30)
        print(said)
        assert process.returncode == 0 and "SIGTERM" in said and "Traceback" not in said


@pytest.mark.parametrize("seconds", [0.4, 1000])
def test_what_is_not_done_within_the_grace_is_refused(tiny_bert, seconds):
    """Be it work that waits, or a batch that never ends."""
    with served(tiny_bert, seconds, {"grace": 0.6, "stuck": 3600}, start=("-c", SLOW)) as (process, port):
        wait_for(lambda: get(port, "/health") == 200)
        found = []

        def ask(count):
            found.append((count, *embed(port, [f"{number} " + "cat " * 80 for number in range(count)])))

        threads = [threading.Thread(target=ask, args=(count,)) for count in (1, 60)]
        for thread in threads:
            thread.start()
        wait_for(lambda: stats(port)["open_requests"] == 3 and stats(port)["queued_requests"] > 0)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        answers = {count: (status, vectors) for count, status, vectors in found}
        assert answers[60] == (503, None)
        assert answers[1][0] == (503 if seconds > 1 else 200)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0 and "were not done within 0.6 s" in said and "Traceback" not in said


def test_a_stuck_batch_ends_the_process_so_that_it_is_started_again(tiny_bert):
    with served(tiny_bert, 1000, {"stuck": 0.5}, start=("-c", SLOW)) as (process, port):
        wait_for(lambda: get(port, "/health") == 200)
        assert embed(port, ["cat"]) == (503, None)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 70 and "has been computed for more than 0.5 s" in said
        assert "so that it can be started again" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_worker_that_is_stuck_is_replaced_and_its_texts_are_computed_again(tiny_bert):
    with served(tiny_bert, "--devices", "cpu", "cpu", "--stuck", "4") as (process, port):
        wait_for(lambda: get(port, "/health") == 200)
        texts = [f"text {number} " + "cat " * 80 for number in range(400)]
        wanted = embed(port, texts)
        (worker,) = children(process.pid)
        os.kill(worker, signal.SIGSTOP)
        found = embed(port, texts[::-1])
        assert found[0] == 200 and np.array_equal(found[1], wanted[1][::-1])
        wait_for(lambda: children(process.pid) not in ([], [worker]), 20)
        assert np.array_equal(embed(port, texts)[1], wanted[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name at least one model"),
        (["no/such/model"], "there is no folder no/such/model"),
        (["TINY", "a=TINY", "--config", "missing.yaml"], "missing.yaml cannot be read"),
        (["x:y=TINY"], "cannot be a model's name"),
        (["TINY", "TINY"], "two models are called"),
        (["TINY", "--api-key-file", "EMPTY"], "has no key"),
        (["TINY", "--port", "TAKEN"], "cannot be listened on"),
        (["text-embedding-3-small"], "hosted model"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, said, tiny_bert, tmp_path, capsys):
    (tmp_path / "empty").write_text("# none\n")
    before = threading.enumerate()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        meant = {"EMPTY": str(tmp_path / "empty"), "TAKEN": str(taken.getsockname()[1])}
        assert main(["serve", *(meant.get(each, each.replace("TINY", str(tiny_bert))) for each in arguments)])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("bge: error: ") and said in line
    left = [each.name for each in threading.enumerate() if each not in before]
    assert not [name for name in left if name.startswith("bgekit-load")]


def test_a_missing_extra_is_named(monkeypatch, capsys, tiny_bert):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else found(name, *more)
    )
    assert main(["serve", str(tiny_bert)]) == 1
    assert (
        capsys.readouterr().err.strip() == "bge: error: this needs the package 'uvicorn': pip install 'bgekit[serve]'"
    )


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_of_openmp_sleep_soon_unless_the_user_said_how(monkeypatch, given, count):
    monkeypatch.setattr(os, "environ", given)
    serve._spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == count
