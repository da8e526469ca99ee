"""What a server of embeddings does under load: this one, infinity, and sentence-transformers behind FastAPI.

    python benchmarks/serve.py setup --envs DIR              make the peers' environments
    python benchmarks/serve.py run --envs DIR --out serve.json
    python benchmarks/serve.py table serve.json

Scenarios, each with a fresh server, one at a time:

- start: from the start of the process until the first vector.
- alone: one query after the other over one connection, against `FlagModel.encode` of the same queries in a process of
  the same settings, by turns of 25.
- saturation: 16 clients with 32 texts each, one request after the other; against `FlagModel.encode` of the same texts,
  by turns in slices of some seconds. Tokens are counted once, by the model's tokenizer.
- tool: saturation again, with the closed loop of wrk (Debian), which takes little CPU time.
- mixed: queries that come at random (a Poisson process, 20 a second unless told), alone and with 4 clients of 32 texts.
  What counts is from the time a query was due, whether or not the ones before it were answered.
- overload: requests of 32 texts at 4 times the rate that saturation reached; every vector is compared.
- rerank: a query with 100 passages, one request after the other.
- soak: --minutes of queries and texts at 80 % of the saturated rate; resident memory is read every ten seconds.
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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encode import HERE, SHARED, _cpu, environment_of, real_texts, setup

ROOT = HERE.parent
PEERS = ("bgekit", "infinity", "fastapi")
CLIENTS, TEXTS = 16, 32
BULK_CLIENTS, RATE = 4, 20.0
#: Queries of a turn of the scenario alone, and seconds between turns.
_TURN, _PAUSE = 25, 0.05


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

    def wait(self, first: bytes | None = None) -> float:
        """Seconds until the first answer, that to a text unless another request is given."""
        body = first or body_of(["a first text"])
        while True:
            if self.process.poll() is not None:
                self.log.seek(0)
                raise SystemExit(f"{self.peer} has ended: {self.log.read().decode(errors='replace')[-2000:]}")
            with contextlib.suppress(OSError, RuntimeError):
                status, _, _ = asyncio.run(_one(self.port, body))
                if status == 200:
                    return time.perf_counter() - self.started
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


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**26)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


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
        async with connected(port) as connection:
            turn = number * len(requests) // clients
            while time.perf_counter() < end:
                place = turn % len(requests)
                request, tokens = requests[place]
                start = time.perf_counter()
                status, body, _ = await connection.ask(request)
                load.took(status, time.perf_counter() - start, tokens)
                if status == 200 and check is not None and not check(place, body):
                    load.wrong += 1
                turn += 1

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
        try:
            if free:
                connection = free.pop()
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**26)
                connection = Connection(reader, writer)
            status, body, headers = await connection.ask(request)
        except (OSError, asyncio.IncompleteReadError):
            load.took(0, 0.0)
            return
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

    def vectors(self) -> Any:
        """Those of `FlagModel.encode`, [n, d]."""
        import numpy as np

        if not hasattr(self, "_vectors"):
            self._vectors = np.asarray(self.model.encode(self.texts, show_progress=False))
        return self._vectors

    def right(self, place: int, body: bytes) -> bool:
        """Whether the vectors of an answer are those of `FlagModel.encode`."""
        import numpy as np

        data = json.loads(body)["data"]
        first = data[0]["embedding"]
        rows = [
            np.frombuffer(base64.b64decode(each["embedding"]), "<f4") if isinstance(first, str) else each["embedding"]
            for each in data
        ]
        different = np.abs(np.asarray(rows, np.float32) - self.vectors()[self.groups[place]]).max(axis=1)
        if not (right := bool(different.max() < 1e-6)):
            tokens = [self.lengths[row] for row in self.groups[place]]
            told = [(row, tokens[row], float(each)) for row, each in enumerate(different) if not each < 1e-6]
            print(f"request {place}: of texts (place, tokens, difference) {told}", flush=True)
        return right


def start(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    running = Running(peer, args.model, args.envs)
    try:
        seconds = running.wait()
        return {"seconds": round(seconds, 2), "cpu": round(running.cpu(), 2), "resident_mib": round(running.resident())}
    finally:
        running.close()


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


def tool(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Saturation as wrk sees it."""
    if shutil.which("wrk") is None:
        return {"skipped": "no wrk: apt-get install wrk"}
    patient = ("--max-wait", "600") if peer == "bgekit" else ()
    with server(peer, args, *patient) as running, tempfile.TemporaryDirectory() as folder:
        for number, (request, _) in enumerate(material.requests):
            (Path(folder) / str(number)).write_bytes(request.partition(b"\r\n\r\n")[2])
        script = Path(folder) / "ask.lua"
        script.write_text(_WRK.replace("COUNT", str(len(material.requests))).replace("FOLDER", folder))
        asyncio.run(closed_loop(running.port, material.requests, args.clients, args.slice / 2, Load()))  # Warm.
        cpu, begin = running.cpu(), time.perf_counter()
        said = subprocess.run(
            ["wrk", "-t", "1", "-c", str(args.clients), "-d", f"{round(args.slice * args.rounds)}s", "--timeout",
             "120s", "--latency", "-s", str(script), f"http://127.0.0.1:{running.port}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        cpu, seconds = running.cpu() - cpu, time.perf_counter() - begin
    tokens = statistics.mean(size for _, size in material.requests)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])  # type: ignore[index]
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    return {
        "requests_per_second": rate, "tokens_per_second": round(rate * tokens, 1),
        "other_statuses": int(others[1]) if others else 0, "server_cpu": round(cpu, 2), "seconds": round(seconds, 2),
        "latency": dict(re.findall(r"^\s+(50|99)%\s+(\S+)", said, re.MULTILINE)),
    }  # fmt: skip


def mixed(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Delays of queries that come at random, alone and with bulk clients."""
    queries = [(body_of([query]), 0) for query in material.queries[: args.queries]]
    found: dict[str, Any] = {}
    with server(peer, args) as running:
        for name in ("without_bulk", "with_bulk"):
            load, bulk = Load(), Load()

            async def both(name: str = name, load: Load = load, bulk: Load = bulk) -> None:
                working = None
                if name == "with_bulk":
                    working = asyncio.create_task(closed_loop(running.port, material.requests, BULK_CLIENTS, 1e9, bulk))
                    await asyncio.sleep(2)
                await open_loop(running.port, queries, args.rate, args.queries, load)
                if working is not None:
                    working.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await working

            with measured(running, load):
                asyncio.run(both())
            found[name] = load.facts()
            if name == "with_bulk":
                found["bulk_tokens_per_second"] = round(bulk.tokens / load.seconds, 1)
    with_bulk, without = found["with_bulk"]["p99_ms"], found["without_bulk"]["p99_ms"]
    found["p99_ratio"] = round(with_bulk / without, 2) if with_bulk and without else None
    return found


def overload(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Four times what it can do: what it answers, and its memory."""
    material.vectors()  # Before anything is due.
    with server(peer, args, *(("--max-wait", "3") if peer == "bgekit" else ())) as running:
        capacity = Load()
        with measured(running, capacity):
            asyncio.run(closed_loop(running.port, material.requests, args.clients, args.slice, capacity))
        rate = 4 * capacity.answered / capacity.seconds
        before, load = running.resident(), Load()
        with measured(running, load):
            check = material.right if peer == "bgekit" else None
            asyncio.run(open_loop(
                running.port, material.requests, rate, int(rate * args.slice * 3), load, check=check
            ))  # fmt: skip
        after = running.resident()
        again = Load()
        asyncio.run(closed_loop(running.port, material.requests[:4], 4, 2.0, again, check))
    return load.facts() | {
        "rate": round(rate, 2), "resident_mib": [round(before), round(after)], "afterwards": again.statuses,
    }  # fmt: skip


def rerank(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """A query with 100 passages, again and again."""
    if args.reranker is None:
        return {"skipped": "no --reranker"}
    if peer == "fastapi":
        return {"skipped": "it has embeddings alone"}
    args = argparse.Namespace(**{**vars(args), "model": args.reranker})
    load = Load()
    request = body_of(
        (), "/v1/rerank", model="small", query=material.queries[0], documents=material.texts[:100], top_n=10
    )
    with server(peer, args, first=request) as running:
        with measured(running, load):
            asyncio.run(closed_loop(running.port, [(request, sum(material.lengths[:100]))], 1, args.slice, load))
    return load.facts()


def soak(peer: str, args: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Resident memory over --minutes of load at 80 %."""
    material.vectors()  # Before anything is due.
    with server(peer, args) as running:
        capacity = Load()
        with measured(running, capacity):
            asyncio.run(closed_loop(running.port, material.requests, args.clients, args.slice, capacity))
        rate = 0.8 * capacity.answered / capacity.seconds
        load, memory = Load(), []

        async def watched() -> None:
            async def watch() -> None:
                while True:
                    memory.append((round(time.perf_counter() - begin), round(running.resident(), 1)))
                    await asyncio.sleep(10)

            begin = time.perf_counter()
            watching = asyncio.create_task(watch())
            check = material.right if peer == "bgekit" else None
            await open_loop(running.port, material.requests, rate, int(rate * 60 * args.minutes), load, check=check)
            watching.cancel()

        with measured(running, load):
            asyncio.run(watched())
    settled = [value for at, value in memory if at >= min(300, 30 * args.minutes)] or [memory[-1][1]]
    growth = statistics.median(settled[-6:]) / statistics.median(settled[:6]) - 1
    return load.facts() | {
        "rate": round(rate, 2),
        "resident_mib": memory,
        "growth_after_five_minutes": round(growth, 4),
    }


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
            shown = {key: value for key, value in facts.items() if not (isinstance(value, list) and len(value) > 10)}
            print(f"{scenario}, {peer}: {json.dumps(shown)}", flush=True)


def table(results: dict[str, Any]) -> str:
    """The results as markdown."""
    lines = [f"{results['model']}, {results['cpu']}", ""]
    for scenario, peers in results["scenarios"].items():
        columns = dict.fromkeys(
            key for facts in peers.values() for key, value in facts.items() if isinstance(value, int | float | str)
        )
        lines += [f"**{scenario}**", "", f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        lines += [
            f"| {peer} | {' | '.join(str(facts.get(column, '')) for column in columns)} |"
            for peer, facts in peers.items()
        ]
        for peer, facts in peers.items():
            lines += [
                f"| {peer}, {key} | p50 {value['p50_ms']} ms, p99 {value['p99_ms']} ms |"
                for key, value in facts.items() if isinstance(value, dict) and "p50_ms" in value
            ]  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("setup", help="make the peers' environments")
    make.add_argument("--envs", type=Path, required=True)
    measure = verbs.add_parser("run", help="measure")
    measure.add_argument("--envs", type=Path, help="folder that setup filled; not needed for bgekit alone")
    measure.add_argument("--out", default="serve.json")
    measure.add_argument("--model", default=str(SHARED / "models" / "bge-small-en-v1.5"))
    measure.add_argument("--reranker", help="folder of a cross-encoder, for the scenario rerank")
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
