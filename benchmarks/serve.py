"""What a server of embeddings does under load: this one, infinity, and sentence-transformers behind FastAPI.

    python benchmarks/serve.py setup --envs DIR              make the peers' environments
    python benchmarks/serve.py run --envs DIR --out serve.json
    python benchmarks/serve.py table serve.json

Scenarios, each with a fresh server, one at a time:

- start: from the start of the process until the first right vector, --rounds times.
- alone: one query after the other over one connection, against `FlagModel.encode` of the same queries in a process of
  the same settings, by turns of 25.
- saturation: 16 clients with 32 texts each, one request after the other; against `FlagModel.encode` of the same texts,
  by turns in slices of some seconds. Tokens are counted once, by the model's tokenizer.
- tool: saturation again, and one query after the other over one connection, with the closed loop of wrk (Debian),
  which takes little CPU time.
- mixed: queries that come at random (a Poisson process, 20 a second unless told), alone and with 4 clients of 32 texts.
  What counts is from the time a query was due, whether or not the ones before it were answered.
- overload: requests of 32 texts at 4 times the rate that 4 clients reach just before; every vector is compared.
- rerank: queries with 100 passages each, one request after the other; against `FlagReranker.compute_score` by turns.
  Without --reranker, of a cross-encoder of MiniLM's shape with random weights: it takes as long as a real one.
- soak: --minutes of requests of 32 texts and of one query, by turns, at --load (0.8) of the tokens a second that 4
  clients reach just before; every vector is compared, and resident memory is read every ten seconds.
- profile: which share of the server's CPU time at saturation is spent outside of tokenisation and computation.

The load comes from this process: asyncio, bodies made beforehand, plain HTTP/1.1 over kept connections, answers read to
their end and looked into afterwards. Its share of CPU time is part of the result.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encode import HERE, SHARED, _cpu, environment_of, real_texts, setup

ROOT = HERE.parent
PEERS = ("bgekit", "infinity", "fastapi")
CLIENTS, TEXTS = 16, 32
#: The text whose vector ends the start of a server.
FIRST = "a first text"
BULK_CLIENTS, RATE = 4, 20.0
#: Clients that show what a server can do: they keep it busy, and none of their requests waits for long.
CAPACITY_CLIENTS = 4
#: Queries of a turn of the scenario alone, and seconds between turns.
_TURN, _PAUSE = 25, 0.05
#: Seconds after which a client that was refused asks again.
_AGAIN = 0.1
#: Seconds between looks at memory, and after which it counts as settled.
_LOOK, _SETTLED = 10.0, 300.0
#: Values of a list that is shown.
_FEW = 10
#: Passages of a query that a reranker reads, and queries.
PASSAGES, RERANKED = 100, 20
#: Layers, hidden size, heads and inner size of the random reranker: those of ms-marco-MiniLM-L6.
MINILM = (6, 384, 12, 1536)


# Servers.


class Running:
    """A server's process."""

    def __init__(self, peer: str, model: str, envs: Path | None, *more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile()
        self.started = time.perf_counter()
        ours = peer in ("bgekit", "profiled")
        python = sys.executable if ours else str(_environment(peer, envs) / "bin" / "python")
        port = str(self.port)
        command = {
            "bgekit": ["-m", "bgekit", "serve", f"small={model}", "--port", port, "--quiet", *more],
            "infinity": [
                "-c", "from infinity_emb.cli import cli; cli()", "v2", "--model-id", model, "--device", "cpu",
                "--served-model-name", "small", "--port", port, "--url-prefix", "/v1", "--no-bettertransformer",
            ],
            "fastapi": [str(HERE / "fastapi_service.py"), model, port],
            "profiled": [str(HERE / "serve.py"), "profiled", model, port],
        }[peer]  # fmt: skip
        environment = environment_of(ROOT if ours else None) | {"DO_NOT_TRACK": "1"}
        if peer == "profiled":  # Threads of the tokenizer's own would be nobody's.
            environment["TOKENIZERS_PARALLELISM"] = "false"
        self.peer = peer
        self.process = subprocess.Popen([python, *command], env=environment, stdout=self.log, stderr=self.log)

    def wait(self, first: bytes | None = None) -> tuple[float, bytes]:
        """Seconds until the first answer, that to a text unless another request is given, and the answer."""
        body = first or body_of([FIRST])
        while True:
            if self.process.poll() is not None:
                self.log.seek(0)
                raise SystemExit(f"{self.peer} has ended: {self.log.read().decode(errors='replace')[-2000:]}")
            with contextlib.suppress(OSError, RuntimeError):
                status, answer, _ = asyncio.run(_one(self.port, body))
                if status == 200:
                    return time.perf_counter() - self.started, answer
            time.sleep(0.02)

    def cpu(self) -> float:
        """CPU seconds of it and its children so far."""
        return sum(_cpu_of(pid) for pid in self.family())

    def resident(self) -> float:
        """MiB of its memory and that of its children."""
        total = 0.0
        for pid in self.family():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                total += int(status.split("VmRSS:")[1].split()[0]) / 1024
        return total

    def family(self) -> list[int]:
        """Process ids of it and its children."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, (task / "children").read_text().split())
        return found

    def close(self) -> float:
        """End it; seconds that took."""
        start = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return time.perf_counter() - start


@contextlib.contextmanager
def server(peer: str, args: argparse.Namespace, *more: str, first: bytes | None = None) -> Iterator[Running]:
    running = Running(peer, args.model, args.envs, *more)
    try:
        running.wait(first)
        yield running
    finally:
        running.close()


def _environment(peer: str, envs: Path | None) -> Path:
    if envs is None or not (envs / peer / "bin" / "python").exists():
        raise SystemExit(f"{peer} needs an environment: run setup, then pass --envs")
    return envs / peer


def _cpu_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Load.


def body_of(texts: Sequence[str], path: str = "/v1/embeddings", **more: Any) -> bytes:
    """A whole request."""
    content = json.dumps(more or {"model": "small", "input": list(texts)}).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode() + content


@dataclass
class Connection:
    """A kept connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of the answer to a whole request."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int((await self.reader.readline()).strip(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readline()
            await self.reader.readline()
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(lines[0].split()[1]), body, headers


async def opened(port: int) -> Connection:
    return Connection(*await asyncio.open_connection("127.0.0.1", port, limit=2**26))


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    connection = await opened(port)
    try:
        yield connection
    finally:
        connection.writer.close()


async def _one(port: int, request: bytes) -> tuple[int, bytes, dict[str, str]]:
    async with connected(port) as connection:
        return await connection.ask(request)


@dataclass
class Load:
    """What came of some load."""

    seconds: float = 0.0
    answered: int = 0
    tokens: int = 0
    delays: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    wrong: int = 0
    own_cpu: float = 0.0
    server_cpu: float = 0.0

    def took(self, status: int, delay: float, tokens: int = 0) -> None:
        """An answer came."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.answered += 1
            self.tokens += tokens
            self.delays.append(delay)

    def facts(self) -> dict[str, Any]:
        """All as plain values."""
        return {
            "seconds": round(self.seconds, 2), "answered": self.answered,
            "tokens_per_second": round(self.tokens / self.seconds, 1) if self.seconds else 0,
            "p50_ms": _quantile(self.delays, 0.5), "p99_ms": _quantile(self.delays, 0.99),
            "max_ms": _quantile(self.delays, 1.0), "statuses": self.statuses, "wrong": self.wrong,
            "generator_cpu_share": round(self.own_cpu / max(1e-9, self.own_cpu + self.server_cpu), 3),
            "server_cpu": round(self.server_cpu, 2),
            "tokens_per_cpu_second": round(self.tokens / self.server_cpu, 1) if self.server_cpu else 0,
        }  # fmt: skip


def _quantile(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    return round(1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))], 2)


async def closed_loop(
    port: int, requests: Sequence[tuple[bytes, int]], clients: int, seconds: float, load: Load,
    check: Callable[[int, bytes], bool] | None = None,
) -> None:  # fmt: skip
    """Clients that ask one request after the other for some seconds; each begins at a place of its own."""
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        turn = number * len(requests) // clients
        while time.perf_counter() < end:
            try:
                async with connected(port) as connection:
                    while time.perf_counter() < end:
                        await asked(connection, turn % len(requests))
                        turn += 1
            except (OSError, asyncio.IncompleteReadError):  # The server has closed the connection: another one.
                load.took(0, 0.0)
                await asyncio.sleep(_AGAIN)

    async def asked(connection: Connection, place: int) -> None:
        request, tokens = requests[place]
        start = time.perf_counter()
        status, body, _ = await connection.ask(request)
        load.took(status, time.perf_counter() - start, tokens)
        if status != 200:
            await asyncio.sleep(_AGAIN)
        elif check is not None and not check(place, body):
            load.wrong += 1

    await asyncio.gather(*(client(number) for number in range(clients)))


async def open_loop(
    port: int, requests: Sequence[tuple[bytes, int]], rate: float, count: int, load: Load, *,
    check: Callable[[int, bytes], bool] | None = None, seed: int = 0,
) -> None:  # fmt: skip
    """Requests that are due at random times, however long those before them take."""
    draw = random.Random(seed)
    free: list[Connection] = []
    tasks: list[asyncio.Task[None]] = []

    async def ask(place: int, due: float) -> None:
        request, tokens = requests[place % len(requests)]
        while True:
            kept = free.pop() if free else None
            try:
                connection = kept or await opened(port)
                status, body, headers = await connection.ask(request)
                break
            except (OSError, asyncio.IncompleteReadError):
                if kept is None:
                    load.took(0, 0.0)
                    return
                kept.writer.close()  # The server had closed it, as some do after seconds: another one.
        load.took(status, time.perf_counter() - due, tokens)
        if status == 200 and check is not None and not check(place % len(requests), body):
            load.wrong += 1
        if headers.get("connection") != "close":
            free.append(connection)

    due = time.perf_counter()
    for place in range(count):
        due += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(place, due)))
    await asyncio.gather(*tasks)
    for connection in free:
        connection.writer.close()


async def remembered(running: Running, work: Awaitable[None], load: Load, every: float) -> list[tuple[int, float]]:
    """Do some work; seconds and MiB of the server meanwhile, which are told every minute."""
    memory: list[tuple[int, float]] = []
    begin = time.perf_counter()

    async def watch() -> None:
        told = 0
        while True:
            seconds = time.perf_counter() - begin
            memory.append((round(seconds), round(running.resident(), 1)))
            if seconds >= 60 * (told + 1):
                told = int(seconds / 60)
                print(f"minute {told}: {memory[-1][1]} MiB, {load.statuses}, {load.wrong} wrong", flush=True)
            await asyncio.sleep(every)

    watching = asyncio.create_task(watch())
    await work
    watching.cancel()
    memory.append((round(time.perf_counter() - begin), round(running.resident(), 1)))
    return memory


@contextlib.contextmanager
def measured(running: Running, load: Load) -> Iterator[None]:
    own, cpu, start = time.process_time(), running.cpu(), time.perf_counter()
    yield
    load.seconds += time.perf_counter() - start
    load.own_cpu += time.process_time() - own
    load.server_cpu += running.cpu() - cpu


# What is asked.


class Material:
    """Texts, their tokens and requests."""

    def __init__(self, model: str, count: int) -> None:
        from bgekit import FlagModel

        self.model = FlagModel(model, devices="cpu")
        self.texts = real_texts(count)
        backend = self.model.tokenizer
        self.lengths = [len(ids) for ids in backend(self.texts, truncation=True, max_length=512)["input_ids"]]
        self.groups = [list(range(start, start + TEXTS)) for start in range(0, count - TEXTS + 1, TEXTS)]
        self.requests = [
            (body_of([self.texts[row] for row in rows]), sum(self.lengths[row] for row in rows)) for rows in self.groups
        ]
        # Queries of a few words, no two alike: nothing can be answered from a memory.
        words = [text.split() for text in self.texts if len(text.split()) > 12]
        draw = random.Random(1)
        self.queries = []
        for number in range(4000):
            source = words[number % len(words)]
            first = draw.randrange(len(source) - 8)
            self.queries.append(f"{' '.join(source[first : first + 8])} {number}")
        self.single = [
            (body_of([query]), len(ids))
            for query, ids in zip(self.queries, backend(self.queries)["input_ids"], strict=True)
        ]

    def vectors_of(self, texts: Sequence[str]) -> Any:
        """Those of `FlagModel.encode`, [n, d]."""
        import numpy as np

        return np.asarray(self.model.encode(list(texts), show_progress=False))

    def of_groups(self) -> list[Any]:
        """The vectors of each request of 32 texts; they are computed before anything is due."""
        vectors = self.vectors_of(self.texts)
        return [vectors[rows] for rows in self.groups]

    def of_queries(self, count: int) -> list[Any]:
        """The vector of each query, [1, d]."""
        return [vector[None] for vector in self.vectors_of(self.queries[:count])]


def vectors_in(body: bytes) -> Any:
    """The vectors of an answer, [n, d]."""
    import numpy as np

    found = [each["embedding"] for each in json.loads(body)["data"]]
    return np.asarray(
        [np.frombuffer(base64.b64decode(each), "<f4") if isinstance(each, str) else each for each in found], np.float32
    )


def compared(expected: Sequence[Any]) -> Callable[[int, bytes], bool]:
    """What says of the answer to a request by its place whether its vectors are the right ones, to 1e-6."""
    import numpy as np

    def right(place: int, body: bytes) -> bool:
        different = np.abs(vectors_in(body) - expected[place]).max(axis=1)
        if different.max() < 1e-6:
            return True
        told = [(row, float(each)) for row, each in enumerate(different) if not each < 1e-6]
        print(f"request {place}: of texts (place, difference) {told}", flush=True)
        return False

    return right


def start(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Seconds from the start of a process to its first vector, which is compared."""
    expected = material.vectors_of([FIRST])[0]
    rounds, cosines, cpu, resident = [], [], [], []
    for _ in range(args.rounds):
        running = Running(peer, args.model, args.envs)
        try:
            seconds, answer = running.wait()
            cpu.append(running.cpu())
            resident.append(running.resident())
        finally:
            running.close()
        rounds.append(seconds)
        cosines.append(float(vectors_in(answer)[0] @ expected))
    return {
        "seconds": round(statistics.median(rounds), 2), "seconds_rounds": [round(each, 2) for each in rounds],
        "cpu": round(statistics.median(cpu), 2), "resident_mib": round(statistics.median(resident)),
        "least_cosine": round(min(cosines), 6),
    }  # fmt: skip


def alone(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Delays of queries over one connection and in process, by turns."""
    over: list[float] = []
    within: list[float] = []
    queries = material.queries[: args.queries]
    with server(peer, args) as running:

        async def ask() -> None:
            async with connected(running.port) as connection:
                for first in range(0, len(queries), _TURN):
                    for query in queries[first : first + _TURN]:
                        request = body_of([query])
                        begin = time.perf_counter()
                        status, _, _ = await connection.ask(request)
                        over.append(time.perf_counter() - begin)
                        assert status == 200
                    # Threads of the one that was asked last still look for work for a moment.
                    time.sleep(_PAUSE)
                    for query in queries[first : first + _TURN] if peer == "bgekit" else ():
                        begin = time.perf_counter()
                        material.model.encode(query)
                        within.append(time.perf_counter() - begin)
                    time.sleep(_PAUSE)

        asyncio.run(ask())
    found = {"http_p50_ms": _quantile(over, 0.5), "http_p99_ms": _quantile(over, 0.99)}
    if within:
        found |= {
            "in_process_p50_ms": _quantile(within, 0.5),
            "overhead_p50_ms": _quantile([a - b for a, b in zip(over, within, strict=True)], 0.5),
        }
    return found


def saturation(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Tokens a second under 16 clients; for this project's server, against encoding in process by turns."""
    load, within = Load(), Load()
    patient = ("--max-wait", "600") if peer == "bgekit" else ()
    with server(peer, args, *patient) as running:
        asyncio.run(closed_loop(running.port, material.requests, args.clients, args.slice / 2, Load()))  # Warm.
        ratios, by_cpu = [], []
        for turn in range(args.rounds):
            part = Load()
            with measured(running, part):
                asyncio.run(closed_loop(running.port, material.requests, args.clients, args.slice, part))
            load.seconds += part.seconds
            load.tokens += part.tokens
            load.answered += part.answered
            load.own_cpu += part.own_cpu
            load.server_cpu += part.server_cpu
            load.delays += part.delays
            for status, count in part.statuses.items():
                load.statuses[status] = load.statuses.get(status, 0) + count
            if peer == "bgekit":
                begin, cpu = time.perf_counter(), time.process_time()
                tokens = done = 0
                while time.perf_counter() - begin < args.slice:
                    rows = range(done % len(material.texts), min(len(material.texts), done % len(material.texts) + 512))
                    material.model.encode([material.texts[row] for row in rows], show_progress=False)
                    tokens += sum(material.lengths[row] for row in rows)
                    done += 512
                seconds, spent = time.perf_counter() - begin, time.process_time() - cpu
                within.tokens += tokens
                within.seconds += seconds
                ratios.append(part.tokens / part.seconds / (tokens / seconds))
                by_cpu.append(part.tokens / part.server_cpu / (tokens / spent))
            del turn
        found = load.facts()
    if ratios:
        found |= {
            "in_process_tokens_per_second": round(within.tokens / within.seconds, 1),
            "of_in_process": round(statistics.median(ratios), 3), "of_in_process_rounds": [round(r, 3) for r in ratios],
            "of_in_process_by_cpu": round(statistics.median(by_cpu), 3),
            "of_in_process_by_cpu_rounds": [round(r, 3) for r in by_cpu],
        }  # fmt: skip
    return found


#: What wrk asks: a request after the other of those in a folder, whichever connection is free.
_WRK = """
local bodies, turn = {}, 0
for number = 0, COUNT - 1 do
  local file = io.open("FOLDER/" .. number)
  bodies[number + 1] = file:read("*a")
  file:close()
end
request = function()
  turn = turn % COUNT + 1
  return wrk.format("POST", "/v1/embeddings", {["content-type"] = "application/json"}, bodies[turn])
end
"""
#: Its units of time in milliseconds.
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def tool(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Saturation, and one query after the other, as wrk sees them."""
    if shutil.which("wrk") is None:
        return {"skipped": "no wrk: apt-get install wrk"}
    patient = ("--max-wait", "600") if peer == "bgekit" else ()
    with server(peer, args, *patient) as running:
        asyncio.run(closed_loop(running.port, material.requests, args.clients, args.slice / 2, Load()))  # Warm.
        seconds = args.slice * args.rounds
        batches = wrk(running, [request for request, _ in material.requests], args.clients, seconds)
        time.sleep(1)
        single = wrk(running, [request for request, _ in material.single[: args.queries]], 1, seconds)
    tokens = statistics.mean(size for _, size in material.requests)
    batches["tokens_per_second"] = round(batches["requests_per_second"] * tokens, 1)
    return {"batches": batches, "single_queries": single}


def wrk(running: Running, requests: Sequence[bytes], connections: int, seconds: float) -> dict[str, Any]:
    """What wrk says of some seconds of requests over kept connections."""
    with tempfile.TemporaryDirectory() as folder:
        for number, request in enumerate(requests):
            (Path(folder) / str(number)).write_bytes(request.partition(b"\r\n\r\n")[2])
        script = Path(folder) / "ask.lua"
        script.write_text(_WRK.replace("COUNT", str(len(requests))).replace("FOLDER", folder))
        cpu, begin = running.cpu(), time.perf_counter()
        said = subprocess.run(
            ["wrk", "-t", "1", "-c", str(connections), "-d", f"{math.ceil(seconds)}s", "--timeout", "120s", "--latency",
             "-s", str(script), f"http://127.0.0.1:{running.port}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        cpu, spent = running.cpu() - cpu, time.perf_counter() - begin
    found = {
        name: float(value) * _UNITS[unit]
        for name, value, unit in re.findall(r"^\s+(50|99)%\s+([\d.]+)([a-z]+) *$", said, re.MULTILINE)
    }
    others, broken = re.search(r"Non-2xx or 3xx responses: (\d+)", said), re.search(r"Socket errors: (.*)", said)
    return {
        "requests_per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]),  # type: ignore[index]
        "p50_ms": round(found["50"], 2), "p99_ms": round(found["99"], 2),
        "other_statuses": int(others[1]) if others else 0, "socket_errors": broken[1] if broken else "none",
        "server_cpu": round(cpu, 2), "seconds": round(spent, 2),
    }  # fmt: skip


def mixed(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Delays of queries that come at random, alone and with bulk clients."""
    queries = material.single[: args.queries]
    check = compared(material.of_queries(args.queries)) if peer == "bgekit" else None
    found: dict[str, Any] = {}
    with server(peer, args) as running:
        for name in ("without_bulk", "with_bulk"):
            load, bulk = Load(), Load()

            async def both(name: str = name, load: Load = load, bulk: Load = bulk) -> None:
                working = None
                if name == "with_bulk":
                    working = asyncio.create_task(closed_loop(running.port, material.requests, BULK_CLIENTS, 1e9, bulk))
                    await asyncio.sleep(2)
                await open_loop(running.port, queries, args.rate, args.queries, load, check=check)
                if working is not None:
                    working.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await working

            with measured(running, load):
                asyncio.run(both())
            found[name] = load.facts()
            if name == "with_bulk":
                found["bulk_tokens_per_second"] = round(bulk.tokens / load.seconds, 1)
                found["bulk_statuses"] = bulk.statuses
    with_bulk, without = found["with_bulk"]["p99_ms"], found["without_bulk"]["p99_ms"]
    found["p99_ratio"] = round(with_bulk / without, 2) if with_bulk and without else None
    return found


def capacity(running: Running, args: argparse.Namespace, material: Material) -> Load:
    """What a server can do: it has just become warm."""
    load = Load()
    asyncio.run(closed_loop(running.port, material.requests, CAPACITY_CLIENTS, args.slice / 2, Load()))
    with measured(running, load):
        asyncio.run(closed_loop(running.port, material.requests, CAPACITY_CLIENTS, args.slice, load))
    return load


def overload(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Four times what it can do: what it answers, and its memory."""
    check = compared(material.of_groups())
    with server(peer, args, "--max-wait", "3") as running:
        most = capacity(running, args, material)
        rate = 4 * most.answered / most.seconds
        load = Load()
        with measured(running, load):
            work = open_loop(running.port, material.requests, rate, int(rate * args.slice * 3), load, check=check)
            memory = asyncio.run(remembered(running, work, load, 1.0))
        again = Load()
        asyncio.run(closed_loop(running.port, material.requests[:4], 4, 2.0, again, check))
    sizes = [size for _, size in memory]
    return load.facts() | {
        "rate": round(rate, 2), "resident_mib": [round(sizes[0]), round(max(sizes)), round(sizes[-1])],
        "afterwards": again.statuses, "afterwards_wrong": again.wrong,
    }  # fmt: skip


def rerank(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Queries with 100 passages each, by turns with `FlagReranker.compute_score` of the same pairs in process."""
    import numpy as np

    from bgekit import FlagReranker

    with tempfile.TemporaryDirectory() as folder:
        reranker = args.reranker or str(random_reranker(Path(args.model), Path(folder)))
        judge = FlagReranker(reranker, devices="cpu", use_fp16=False)
        draw = random.Random(2)
        asked = [(query, draw.sample(material.texts, PASSAGES)) for query in material.queries[:RERANKED]]
        requests = [
            body_of((), "/v1/rerank", model="small", query=query, documents=passages) for query, passages in asked
        ]
        load, within, different = Load(), [], []
        with server(peer, argparse.Namespace(**{**vars(args), "model": reranker}), first=requests[0]) as running:

            async def ask() -> None:
                async with connected(running.port) as connection:
                    for request, (query, passages) in zip(requests, asked, strict=True):
                        with measured(running, load):
                            begin = time.perf_counter()
                            status, body, _ = await connection.ask(request)
                            load.took(status, time.perf_counter() - begin)
                        time.sleep(_PAUSE)
                        begin = time.perf_counter()
                        scores = judge.compute_score([(query, each) for each in passages], normalize=True)
                        within.append(time.perf_counter() - begin)
                        time.sleep(_PAUSE)
                        found = {each["index"]: each["relevance_score"] for each in json.loads(body)["results"]}
                        different.append(max(abs(found[place] - score) for place, score in enumerate(scores)))

            asyncio.run(ask())
    return {key: value for key, value in load.facts().items() if "tokens" not in key} | {
        "reranker": Path(args.reranker).name if args.reranker else "MiniLM's shape, random weights",
        "pairs_per_second": round(PASSAGES * load.answered / load.seconds, 1),
        "in_process_p50_ms": _quantile(within, 0.5), "largest_difference": float(np.format_float_scientific(
            max(different), 2
        )),
    }  # fmt: skip


def random_reranker(source: Path, folder: Path) -> Path:
    """A cross-encoder of MiniLM's shape with the tokenizer of a model and random weights."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification
    from transformers.utils import logging

    layers, hidden, heads, inner = MINILM
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=inner, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def soak(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Resident memory over --minutes of load at --load."""
    count = len(material.requests)
    requests = [each for both in zip(material.requests, material.single[:count], strict=True) for each in both]
    vectors = zip(material.of_groups(), material.of_queries(count), strict=True)
    check = compared([each for both in vectors for each in both])
    with server(peer, args) as running:
        most = capacity(running, args, material)
        rate = args.load * most.tokens / most.seconds / statistics.mean(tokens for _, tokens in requests)
        load = Load()
        with measured(running, load):
            work = open_loop(running.port, requests, rate, int(rate * 60 * args.minutes), load, check=check)
            memory = asyncio.run(remembered(running, work, load, _LOOK))
    settled = [size for at, size in memory if at >= min(_SETTLED, 30 * args.minutes)]
    growth = statistics.median(settled[-6:]) / statistics.median(settled[:6]) - 1
    return load.facts() | {
        "minutes": args.minutes, "load": args.load, "requests_due_per_second": round(rate, 2),
        "capacity_tokens_per_second": round(most.tokens / most.seconds, 1),
        "resident_mib_after_five_minutes": statistics.median(settled[:6]),
        "resident_mib_at_the_end": statistics.median(settled[-6:]),
        "growth_after_five_minutes": round(growth, 4), "resident_mib": memory,
    }  # fmt: skip


def profile(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Where CPU time goes at saturation."""
    running = Running("profiled", args.model, args.envs)
    load = Load()
    try:
        running.wait()
        asyncio.run(closed_loop(running.port, material.requests, args.clients, args.slice, Load()))
        running.process.send_signal(signal.SIGUSR1)  # What came before is not counted.
        time.sleep(0.1)
        with measured(running, load):
            asyncio.run(closed_loop(running.port, material.requests, args.clients, 2 * args.slice, load))
    finally:
        running.close()
    running.log.seek(0)
    spent = json.loads(running.log.read().decode().strip().splitlines()[-1])
    rest = 1 - (spent["forward"] + spent["tokenisation"]) / spent["all"]
    return {name: round(value, 2) for name, value in spent.items()} | {"outside": round(rest, 4), **load.facts()}


def profiled(model: str, port: int) -> None:
    """A server that counts the CPU time of tokenisation and computation, and prints it when it ends."""
    import functools

    from bgekit.inference import engine, tokenization
    from bgekit.serving import create_app
    from bgekit.serving import run as serve

    spent = {"forward": 0.0, "tokenisation": 0.0}
    begun = [time.process_time()]

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*given, **named)
            finally:
                spent[name] += time.thread_time() - start

        return timed

    def again(*_: Any) -> None:
        spent.update(forward=0.0, tokenisation=0.0)
        begun[0] = time.process_time()

    engine.Engine.batch = counted("forward", engine.Engine.batch)  # type: ignore[method-assign]
    tokenization.TextTokenizer.__call__ = counted("tokenisation", tokenization.TextTokenizer.__call__)  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, again)
    serve(create_app({"small": model}, max_wait=600), port=port)
    print("\n" + json.dumps(spent | {"all": time.process_time() - begun[0]}), flush=True)


SCENARIOS = {
    "start": start, "alone": alone, "saturation": saturation, "tool": tool, "mixed": mixed, "overload": overload,
    "rerank": rerank, "soak": soak, "profile": profile,
}  # fmt: skip
#: Those that only this project's server can pass.
OURS_ALONE = ("overload", "soak", "profile")


def run(args: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    material = Material(args.model, args.texts)
    results: dict[str, Any] = {
        "cpu": _cpu(), "model": Path(args.model).name, "texts": args.texts, "load_before": os.getloadavg(),
        "nice": os.nice(0), "scenarios": {},
    }  # fmt: skip
    for scenario in args.scenarios:
        for peer in args.peers if scenario not in OURS_ALONE else [each for each in args.peers if each == "bgekit"]:
            facts = SCENARIOS[scenario](peer, args, material)
            results["scenarios"].setdefault(scenario, {})[peer] = facts
            Path(args.out).write_text(json.dumps(results, indent=1) + "\n")
            shown = {key: value for key, value in facts.items() if not (isinstance(value, list) and len(value) > _FEW)}
            print(f"{scenario}, {peer}: {json.dumps(shown)}", flush=True)


def table(results: dict[str, Any]) -> str:
    """The results as markdown: of each scenario a row for each fact, a column for each server."""
    lines = [f"{results['model']}, {results['cpu']}", ""]
    for scenario, facts in results["scenarios"].items():
        peers = {peer: _flat(each) for peer, each in facts.items()}
        lines += [f"**{scenario}**", "", f"| | {' | '.join(peers)} |", "|---|" + "--:|" * len(peers)]
        lines += [
            f"| {row} | {' | '.join(str(each.get(row, '')) for each in peers.values())} |"
            for row in dict.fromkeys(row for each in peers.values() for row in each)
        ]
        lines.append("")
    return "\n".join(lines)


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts by their names, those within others with these in front; long lists are left out."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            found |= {f"{key}: {name}": each for name, each in _flat(value).items()}
        elif isinstance(value, list):
            found |= {key: ", ".join(map(str, value))} if len(value) <= _FEW else {}
        else:
            found[key] = value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("setup", help="make the peers' environments")
    make.add_argument("--envs", type=Path, required=True)
    measure = verbs.add_parser("run", help="measure")
    measure.add_argument("--envs", type=Path, help="folder that setup filled; not needed for bgekit alone")
    measure.add_argument("--out", default="serve.json")
    measure.add_argument("--model", default=str(SHARED / "models" / "bge-small-en-v1.5"))
    measure.add_argument("--reranker", help="folder of a cross-encoder, for the scenario rerank [random weights]")
    measure.add_argument(
        "--scenarios", nargs="+", choices=list(SCENARIOS), default=["start", "alone", "saturation", "mixed", "overload"]
    )
    measure.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    measure.add_argument("--rounds", type=int, default=5)
    measure.add_argument("--slice", type=float, default=8.0, help="seconds of a turn")
    measure.add_argument("--clients", type=int, default=CLIENTS, help="clients that saturate the server")
    measure.add_argument("--texts", type=int, default=2048)
    measure.add_argument("--queries", type=int, default=1000)
    measure.add_argument("--rate", type=float, default=RATE, help="queries a second")
    measure.add_argument("--minutes", type=float, default=30.0, help="of the scenario soak")
    measure.add_argument("--load", type=float, default=0.8, help="of the scenario soak, as a share of what it can do")
    inner = verbs.add_parser("profiled", help="the server of the scenario profile")
    inner.add_argument("model")
    inner.add_argument("port", type=int)
    show = verbs.add_parser("table")
    show.add_argument("results", type=Path)
    args = parser.parse_args()
    if args.verb == "run":  # However this ends, servers end with it.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.verb == "setup":
        setup(args.envs, ("infinity", "fastapi"))
    elif args.verb == "run":
        run(args)
    elif args.verb == "profiled":
        profiled(args.model, args.port)
    else:
        print(table(json.loads(args.results.read_text())))


if __name__ == "__main__":
    main()
