"""OpenAIEmbedder against a real HTTP server on this machine."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from bgekit.data.records import Record
from bgekit.errors import ApiError, ArgumentError, CardError, CheckpointError, NumericalError, TextTypeError
from bgekit.inference import openai as openai_http
from bgekit.inference.openai import OpenAIEmbedder, meaning, most_texts, split_requests
from bgekit.inference.pipeline import Embeddings
from bgekit.inference.shards import encode_to_shards, load_shards

KEY = "sk-test-0123456789"
WIDTH = 6


def vector(text: str, width: int = WIDTH) -> np.ndarray:
    """The server's vector of a text: reproducible, not of unit length."""
    seed = int.from_bytes(text.encode("utf-8")[-8:] or b"\0", "little") % (2**32) + len(text)
    return (np.random.default_rng(seed).normal(size=width) * 3).astype(np.float32)


def unit(row: np.ndarray) -> np.ndarray:
    return row / np.linalg.norm(row)


def answer(payload: dict[str, Any], *, floats: bool = False) -> dict[str, Any]:
    rows = [vector(text, payload.get("dimensions", WIDTH)) for text in payload["input"]]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": row.tolist() if floats else base64.b64encode(row.tobytes()).decode(),
        }
        for index, row in enumerate(rows)
    ]
    # In reverse: the order of an answer must not matter.
    usage = {"prompt_tokens": sum(len(text) for text in payload["input"])}
    return {"object": "list", "data": data[::-1], "model": payload["model"], "usage": usage}


Reply = tuple[int, dict[str, str], Any]


class Server:
    """An embeddings server whose answers a test can script: `script(number, payload)` -> reply or None."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.active = self.most_active = 0
        self.script: Callable[[int, dict[str, Any]], Reply | None] = lambda number, payload: None
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.serve(self)

            do_GET = do_POST

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda request, address: None  # clients of time-out tests hang up
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        payload = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length") or 0)) or "{}")
        with self.lock:
            number = len(self.requests)
            self.requests.append(payload)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        try:
            reply = self.script(number, payload) or (200, {}, answer(payload))
        finally:
            with self.lock:
                self.active -= 1
        status, headers, content = reply
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)
        except ConnectionError:
            pass  # the client of a time-out test has gone

    @property
    def texts(self) -> list[str]:
        return [text for request in self.requests for text in request["input"]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", running.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(openai_http.Retries, "wait", lambda self, attempt: 0.01 * attempt)
    yield running
    running.http.shutdown()
    running.http.server_close()


def hosted(name: str = "m", **arguments: Any) -> OpenAIEmbedder:
    """A model of unknown family whose width need not be asked for first."""
    model = OpenAIEmbedder(name, **arguments)
    model.__dict__["dimension"] = arguments.get("truncate_dim") or WIDTH
    return model


def error(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, {"error": {"message": message, "type": "t", "param": None, "code": code}}


# --- what is asked, and what comes back


def test_request_and_shapes(server: Server):
    with hosted("my-model") as model:
        one = model.encode("hello")
        many = model.encode(["hello", "world"])
    assert one.shape == (WIDTH,)
    assert many.shape == (2, WIDTH)
    assert one.dtype == many.dtype == np.float32
    np.testing.assert_allclose(many, [unit(vector("hello")), unit(vector("world"))], atol=1e-6)
    np.testing.assert_array_equal(one, many[0])
    assert server.requests[0] == {"model": "my-model", "input": ["hello"], "encoding_format": "base64"}
    assert server.paths[0] == "/v1/embeddings"
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["Content-Type"] == "application/json"


def test_empty_list_has_the_dimension_and_asks_nothing_for_known_models(server: Server):
    empty = OpenAIEmbedder("text-embedding-3-large").encode([])
    assert empty.shape == (0, 3072)
    assert empty.dtype == np.float32
    assert server.requests == []


def test_dimension_of_unknown_models_is_asked_once(server: Server):
    model = OpenAIEmbedder("my-model")
    assert model.encode([]).shape == (0, WIDTH)
    assert model.dimension == WIDTH
    assert len(server.requests) == 1


def test_unnormalised_vectors_are_the_servers(server: Server):
    model = hosted("my-model", normalize_embeddings=False)
    np.testing.assert_array_equal(model.encode("hello"), vector("hello"))
    assert model.card.normalize is False


def test_numbers_instead_of_base64(server: Server):
    server.script = lambda number, payload: (200, {}, answer(payload, floats=True))
    np.testing.assert_allclose(hosted().encode("hello"), unit(vector("hello")), atol=1e-6)


def test_torch_tensor(server: Server):
    torch = pytest.importorskip("torch")
    tensor = hosted().encode(["a", "b"], convert_to_numpy=False)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == (2, WIDTH)


def test_out_takes_the_vectors(server: Server):
    model = hosted()
    out = np.zeros((2, WIDTH), dtype=np.float32)
    assert np.shares_memory(model.encode(["a", "b"], out=out), out)
    np.testing.assert_allclose(out, model.encode(["a", "b"]), atol=1e-6)
    for texts in (["a"], ["a", "b", "c"]):
        with pytest.raises(ArgumentError, match="shape"):
            model.encode(texts, out=out)


def test_prompts_go_to_their_side(server: Server):
    model = hosted(
        query_instruction_for_retrieval="find this", query_instruction_format="Instruct: {}\nQuery: {}",
        passage_instruction_for_retrieval="passage: ",
    )  # fmt: skip
    model.encode_queries(["q"])
    model.encode_query("q2")
    model.encode_corpus(["p"])
    model.encode_document("p2")
    model.encode(["plain"])
    model.encode(["x"], instruction="as: ")
    find = "Instruct: find this\nQuery: "
    assert server.texts == [f"{find}q", f"{find}q2", "passage: p", "passage: p2", "plain", "as: x"]


def test_a_hosted_model_of_the_table_gets_its_instruction(server: Server):
    hosted("BAAI/bge-small-en-v1.5").encode_queries(["q"])
    hosted("BAAI/bge-small-en-v1.5", query_instruction_for_retrieval=None).encode_queries(["q"])
    hosted("Qwen3-Embedding-0.6B", query_instruction_for_retrieval="T").encode_queries(["q"])
    assert server.texts == [
        "Represent this sentence for searching relevant passages: q", "q", "Instruct: T\nQuery:q"
    ]  # fmt: skip


def test_similarity_is_cosine(server: Server):
    model = hosted(normalize_embeddings=False)
    a, b = model.encode(["a", "b", "c"]), model.encode(["a", "d"])
    scores = model.similarity(a, b)
    assert scores.shape == (3, 2)
    assert scores[0, 0] == pytest.approx(1.0, abs=1e-6)
    assert model.similarity(a[0], b).shape == (1, 2)


# --- batches, order, equal texts


def test_batches_order_and_concurrency(server: Server):
    def slow(number: int, payload: dict[str, Any]) -> None:
        time.sleep(0.05 if number % 2 == 0 else 0.0)  # answers overtake each other

    server.script = slow
    texts = [f"text {i}" for i in range(53)]
    vectors = hosted(batch_size=5, concurrency=3).encode(texts)
    np.testing.assert_allclose(vectors, [unit(vector(text)) for text in texts], atol=1e-6)
    assert sorted(len(request["input"]) for request in server.requests) == [3, *[5] * 10]
    assert 2 <= server.most_active <= 3


def test_batch_size_of_a_call(server: Server):
    hosted().encode(["a", "b", "c"], batch_size=2)
    assert sorted(len(request["input"]) for request in server.requests) == [1, 2]


def test_equal_texts_are_sent_once(server: Server):
    texts = ["a", "b", "a", "c", "b", "a"] * 1000
    vectors = hosted().encode(texts)
    assert server.texts == ["a", "b", "c"]
    np.testing.assert_allclose(vectors, [unit(vector(text)) for text in texts], atol=1e-6)


def test_requests_keep_clear_of_the_token_limit():
    texts = ["x" * 100_000] * 12 + ["字" * 100_000] * 3
    requests = list(split_requests(texts, 2048))
    assert [text for request in requests for text in request] == texts
    assert all(sum(len(text.encode()) for text in request) <= 500_000 for request in requests)
    assert [len(request) for request in requests] == [4, 4, 4, 1, 1, 1]


def test_a_request_that_is_too_large_is_halved(server: Server):
    def limited(number: int, payload: dict[str, Any]) -> Reply | None:
        if len(payload["input"]) > 3:
            return error(400, "Requested 301000 tokens, max 300000 tokens per request", code="max_tokens_per_request")
        return None

    server.script = limited
    texts = [f"t{i}" for i in range(10)]
    vectors = hosted().encode(texts)
    np.testing.assert_allclose(vectors, [unit(vector(text)) for text in texts], atol=1e-6)
    assert max(len(request["input"]) for request in server.requests[1:]) <= 5


def test_generators_are_taken(server: Server):
    vectors = hosted(batch_size=2).encode(f"t{i}" for i in range(5))
    np.testing.assert_allclose(vectors, [unit(vector(f"t{i}")) for i in range(5)], atol=1e-6)


def test_windows_are_separate_and_in_order(server: Server):
    model = hosted(batch_size=2)
    windows = [["a", "b", "a"], [], ["a"], ["c", "", "\ud800x"]]
    results = list(model.encode_blocks(windows, role="plain"))
    assert [result.vectors.shape for result in results] == [(3, WIDTH), (0, WIDTH), (1, WIDTH), (3, WIDTH)]
    np.testing.assert_array_equal(results[0].vectors[0], results[0].vectors[2])
    np.testing.assert_array_equal(results[0].vectors[0], results[2].vectors[0])
    assert results[0].tokens == 2
    assert results[3].repaired == [2]
    assert server.texts.count("a") == 2


def test_windows_are_asked_for_ahead_but_not_all_at_once(server: Server):
    taken = []

    def windows() -> Iterator[list[str]]:
        for i in range(100):
            taken.append(i)
            yield [f"t{i}"]

    results = hosted(concurrency=2).encode_blocks(windows())
    next(results)
    assert 2 <= len(taken) <= 10
    results.close()


def test_many_threads_at_once(server: Server):
    model = hosted(batch_size=3, concurrency=4)
    wrong = []

    def work(base: int) -> None:
        texts = [f"{base}-{i}" for i in range(20)]
        if not np.allclose(model.encode(texts), [unit(vector(text)) for text in texts], atol=1e-6):
            wrong.append(base)

    threads = [threading.Thread(target=work, args=(base,)) for base in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert server.most_active <= 4


def test_progress_bar_counts_every_text(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bgekit.display.terminal.on_terminal", lambda: True)
    hosted().encode(["a", "b", "a"], show_progress=True)
    assert "3/3" in capsys.readouterr().err
    hosted().encode(["a"])
    assert capsys.readouterr().err == ""


# --- texts


def test_empty_text_is_sent_as_a_space_with_a_log_line(server: Server, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "bgekit"):
        vectors = hosted().encode(["a", "", " ", "\t"])
    assert server.texts == ["a", " ", " ", " "]
    np.testing.assert_array_equal(vectors[1], vectors[2])
    assert "m does not accept empty texts" in caplog.text
    # Behind an instruction an empty text is not empty.
    hosted(query_instruction_for_retrieval="q: ").encode_queries([""])
    assert server.texts[-1] == "q: "


def test_lone_surrogates_become_the_replacement_character(server: Server):
    vectors = hosted().encode(["ok", "bad \ud800", "null \0"])
    assert server.texts == ["ok", "bad \ufffd", "null \0"]
    assert isinstance(vectors, Embeddings)
    assert vectors.repaired == (1,)


@pytest.mark.parametrize("bad", [None, 3, 2.5, b"bytes", ["nested"]])
def test_what_is_no_string_is_named_with_its_index(server: Server, bad: object):
    with pytest.raises(TextTypeError, match="index 2"):
        hosted().encode(["a", "b", bad])
    assert server.requests == []


@pytest.mark.parametrize("bad", [None, 3, b"bytes"])
def test_what_is_no_collection(server: Server, bad: object):
    with pytest.raises(TextTypeError):
        hosted().encode(bad)


# --- truncate_dim


def test_dimensions_are_left_to_the_v3_models(server: Server):
    model = hosted("text-embedding-3-small", truncate_dim=4)
    vectors = model.encode(["a"])
    assert server.requests[0]["dimensions"] == 4
    assert vectors.shape == (1, 4)
    assert model.dimension == 4
    assert np.linalg.norm(vectors[0]) == pytest.approx(1.0, abs=1e-6)


def test_other_models_are_cut_here(server: Server):
    vectors = hosted(truncate_dim=4).encode(["a"])
    assert "dimensions" not in server.requests[0]
    np.testing.assert_allclose(vectors[0], unit(vector("a")[:4]), atol=1e-6)
    with pytest.raises(ApiError, match="width 6, but 7 is needed"):
        hosted(truncate_dim=7).encode(["a"])
    with pytest.raises(ArgumentError, match="from 1 to 1,536"):
        OpenAIEmbedder("text-embedding-ada-002", truncate_dim=2000)


# --- faults


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_passing_faults_are_tried_again(server: Server, status: int):
    server.script = lambda number, payload: error(status) if number < 2 else None
    np.testing.assert_allclose(hosted().encode("a"), unit(vector("a")), atol=1e-6)
    assert len(server.requests) == 3


def test_tries_are_bounded(server: Server):
    server.script = lambda number, payload: error(500, "the server\nhad an error")
    with pytest.raises(ApiError, match=r"500: the server had an error \(given up after 3 tries\)") as caught:
        hosted(max_attempts=3).encode("a")
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "1"}, {"retry-after-ms": "1000"}, {"Retry-After": "DATE"}],
    ids=["seconds", "milliseconds", "date"],
)
def test_retry_after_is_honoured(server: Server, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    def busy(number: int, payload: dict[str, Any]) -> Reply | None:
        now = {name: value.replace("DATE", formatdate(time.time() + 2, usegmt=True)) for name, value in headers.items()}
        return (429, now, {}) if number == 0 else None

    server.script = busy
    endpoint = openai_http.Endpoint(server.url, KEY, openai_http.Retries())
    asyncio.run(endpoint.post({"model": "m", "input": ["a"]}, endpoint.client()))
    (wait,) = (seconds for seconds in waited if seconds > 0.5)
    assert 0.9 <= wait <= 2.3


def test_too_long_a_wait_is_an_error_at_once(server: Server):
    server.script = lambda number, payload: error(429, "slow down", Retry_After="3600")
    with pytest.raises(ApiError, match="asks to wait 3600 s"):
        hosted().encode("a")
    assert len(server.requests) == 1


def test_backoff_grows_and_is_jittered():
    retries = openai_http.Retries(first_wait=1.0, longest_wait=8.0)
    for attempt, full in ((1, 1.0), (2, 2.0), (4, 8.0), (9, 8.0)):
        waits = {retries.wait(attempt) for _ in range(20)}
        assert len(waits) > 1
        assert all(full / 2 <= wait <= full for wait in waits)


def test_empty_quota_is_not_tried_again(server: Server):
    server.script = lambda number, payload: error(429, "You exceeded your quota", code="insufficient_quota")
    with pytest.raises(ApiError, match="exceeded your quota"):
        hosted().encode("a")
    assert len(server.requests) == 1


def test_wrong_key_names_the_variable_and_not_the_key(server: Server):
    server.script = lambda number, payload: error(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(ApiError, match="OPENAI_API_KEY") as caught:
        hosted().encode("a")
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "words"), [(400, "bad input"), (403, "OPENAI_API_KEY"), (404, "OPENAI_BASE_URL"), (422, "bad input")]
)
def test_refusals_are_not_tried_again(server: Server, status: int, words: str):
    server.script = lambda number, payload: error(status, f"bad input, key {KEY}")
    with pytest.raises(ApiError, match=words) as caught:
        hosted().encode(["a", "b"])
    assert "2 texts, the first is 'a'" in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "refusal", [error(413, "too large"), error(400, "This model's maximum context length is 8192 tokens, however ...")]
)
def test_a_text_that_is_too_long_is_named(server: Server, refusal: Reply):
    def limited(number: int, payload: dict[str, Any]) -> Reply | None:
        return refusal if any(len(text) > 50 for text in payload["input"]) else None

    server.script = limited
    with pytest.raises(ApiError, match="60 characters is too long: 'ccc"):
        hosted().encode(["a", "b", "c" * 60, "d"])


def test_the_first_refusal_ends_a_long_call(server: Server):
    server.script = lambda number, payload: error(400)
    with pytest.raises(ApiError):
        hosted(batch_size=1, concurrency=2).encode([f"t{i}" for i in range(500)])
    assert len(server.requests) < 20


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>proxy</html>", "not JSON"),
        ({"data": []}, "1 of 1 vectors are missing"),
        ({"object": "list"}, "cannot be read"),
        ([1, 2], "cannot be read"),
        ({"data": [{"index": 1, "embedding": [1.0]}]}, "out of range"),
        ({"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]}, "comes twice"),
        ({"data": [{"index": 0, "embedding": "%%%"}]}, "not base64"),
        ({"data": [{"index": 0, "embedding": "QUJD"}]}, "cannot be read"),
        ({"data": [{"index": 0, "embedding": ["x"]}]}, "cannot be read"),
        ({"data": [{"index": 0, "embedding": [[1.0]]}]}, "shape"),
        ({"data": [{"index": 0, "embedding": []}]}, "width 0"),
    ],
)
def test_malformed_answers(server: Server, body: Any, words: str):
    server.script = lambda number, payload: (200, {}, body)
    with pytest.raises(ApiError, match=words):
        hosted().encode("a")
    assert len(server.requests) == 1


def test_vectors_of_unequal_width(server: Server):
    rows = [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]
    server.script = lambda number, payload: (200, {}, {"data": rows})
    with pytest.raises(ApiError, match="cannot be read"):
        hosted().encode(["a", "b"])


# Some servers write NaN as null.
@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_nan_names_the_text(server: Server, value: float | None):
    def sick(number: int, payload: dict[str, Any]) -> Reply:
        content = answer(payload, floats=True)
        for item in content["data"]:
            if payload["input"][item["index"]] == "bad":
                item["embedding"][3] = value
        return 200, {}, content

    server.script = sick
    with pytest.raises(NumericalError, match="index 3"):
        hosted().encode(["a", "a", "b", "bad", "c"])


def test_an_answer_cut_short_is_tried_again(server: Server):
    def cut(number: int, payload: dict[str, Any]) -> Reply | None:
        return (200, {"Content-Length": "100000"}, b'{"data": [') if number == 0 else None

    server.script = cut
    np.testing.assert_allclose(hosted().encode("a"), unit(vector("a")), atol=1e-6)
    assert len(server.requests) == 2


def test_a_server_that_hangs_is_a_timeout(server: Server):
    server.script = lambda number, payload: time.sleep(1.0) if number == 0 else None
    begin = time.monotonic()
    np.testing.assert_allclose(hosted(timeout=0.2).encode("a"), unit(vector("a")), atol=1e-6)
    assert time.monotonic() - begin < 0.9
    server.script = lambda number, payload: time.sleep(1.0)
    with pytest.raises(ApiError, match="timed out"):
        hosted(timeout=0.1, max_attempts=2).encode("a")


def test_no_server(server: Server):
    with pytest.raises(ApiError, match=r"cannot reach http://127.0.0.1:1/v1/embeddings.*after 2 tries"):
        hosted(base_url="http://127.0.0.1:1/v1", max_attempts=2).encode("a")


def test_redirects_are_not_followed(server: Server):
    elsewhere = Server()
    try:
        server.script = lambda number, payload: (302, {"Location": elsewhere.url + "/embeddings"}, b"")
        with pytest.raises(ApiError, match="redirects are not followed"):
            hosted().encode("a")
        assert elsewhere.requests == []
    finally:
        elsewhere.http.shutdown()
        elsewhere.http.server_close()


def test_close_ends_waiting_calls(server: Server):
    server.script = lambda number, payload: error(429, Retry_After="30")
    model = hosted()
    caught: list[BaseException] = []

    def call() -> None:
        try:
            model.encode("a")
        except ApiError as stopped:
            caught.append(stopped)

    thread = threading.Thread(target=call)
    thread.start()
    while not server.requests:
        time.sleep(0.01)
    time.sleep(0.1)
    model.close()
    thread.join(5)
    assert not thread.is_alive()
    assert "stopped" in str(caught[0])
    server.script = lambda number, payload: None
    assert model.encode("a").shape == (WIDTH,)


def test_a_caller_who_stops_reading_waits_for_no_answer(server: Server):
    hang = threading.Event()
    server.script = lambda number, payload: hang.wait(20) and None if "slow" in payload["input"] else None
    model = hosted(timeout=20)
    results = model.encode_windows([["quick"], ["slow"]])
    next(results)
    begin = time.monotonic()
    results.close()
    model.close()
    assert time.monotonic() - begin < 2
    assert model.encode("after").shape == (WIDTH,)
    hang.set()


def test_a_model_that_is_dropped_leaves_no_thread(server: Server):
    before = threading.active_count()
    model = hosted()
    vectors, fingerprint = model.encode(["a"]), model.fingerprint
    assert any(thread.name == "bgekit-api" for thread in threading.enumerate())
    del model
    gc.collect()
    until = time.monotonic() + 5
    while any(thread.name == "bgekit-api" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert vectors.fingerprint == fingerprint


def test_proxies_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")  # Not for this address alone: left aside.
    monkeypatch.setenv("http_proxy", server.url.removeprefix("http://").removesuffix("/v1"))
    hosted(base_url="http://embeddings.invalid/v1").encode("a")
    assert server.paths == ["http://embeddings.invalid/v1/embeddings"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert hosted().encode("a").shape == (WIDTH,)
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv("http_proxy", "ftp://127.0.0.1:1")
    with pytest.raises(ApiError, match="proxy for http://127"):
        hosted().encode("a")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_a_connection_of_its_own(server: Server):
    model = hosted()
    expected = model.encode(["a", "b"])
    child = os.fork()
    if child == 0:  # pragma: no cover
        os._exit(0 if np.array_equal(model.encode(["a", "b"]), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(model.encode(["b"])[0], expected[1])


def test_ctrl_c_does_not_wait_for_a_server_that_hangs(server: Server):
    hang = threading.Event()
    server.script = lambda number, payload: hang.wait(20)
    code = (
        "from bgekit.inference.openai import OpenAIEmbedder\n"
        "OpenAIEmbedder('text-embedding-3-small').encode(['a', 'b'], batch_size=1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE,
        # As on a terminal: scripts start their background jobs, and so these tests, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        while not server.requests:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=3)
    finally:
        hang.set()
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert b"KeyboardInterrupt" in said


# --- construction


def test_key_and_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ApiError, match="OPENAI_API_KEY"):
        OpenAIEmbedder("text-embedding-3-small")
    assert "api.openai.com/v1/embeddings" in repr(OpenAIEmbedder(api_key=KEY))
    assert KEY not in repr(OpenAIEmbedder(api_key=KEY))
    with pytest.raises(ArgumentError, match="http"):
        hosted(base_url="file:///etc/passwd")
    with pytest.raises(ArgumentError, match="password"):
        hosted(base_url="https://me:secret@host/v1")
    with pytest.raises(ArgumentError, match="base URL"):
        hosted(base_url="https://host:port/v1")
    with pytest.raises(ArgumentError, match="key holds characters"):
        hosted(base_url="http://127.0.0.1/v1", api_key="a\nb")
    with pytest.raises(ArgumentError, match="key holds characters"):
        hosted(base_url="http://127.0.0.1/v1", api_key="sk-字")


def test_no_key_is_sent_where_there_is_none(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    hosted().encode("a")
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"batch_size": 2049}, {"concurrency": 0}, {"max_attempts": 0}, {"truncate_dim": 0}]
)
def test_impossible_numbers(server: Server, arguments: dict[str, int]):
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        hosted(**arguments)


def test_what_an_api_cannot_do(server: Server, tmp_path: Any):
    model = hosted()
    with pytest.raises(ArgumentError, match="max_length=512"):
        model.encode("a", max_length=512)
    with pytest.raises(ArgumentError, match="no weights"):
        model.save(tmp_path / "x")
    with pytest.raises(CardError, match="reranker"):
        OpenAIEmbedder("BAAI/bge-reranker-base")
    with pytest.raises(ArgumentError, match="devices=, dtype="):
        OpenAIEmbedder("m", devices="cpu", dtype="float32")
    with pytest.raises(TypeError, match="normalise"):
        model.encode("a", normalise=True)


def test_flag_model_of_a_hosted_name(server: Server):
    from bgekit import FlagModel

    model = FlagModel("text-embedding-3-small", use_fp16=True, query_instruction_for_retrieval="q: ")
    assert isinstance(model, OpenAIEmbedder)
    assert model.dimension == 1536


def test_the_factory_gives_either_kind(server: Server, tmp_path: Any):
    from bgekit import load_model

    model = load_model("text-embedding-3-small", truncate_dim=8)
    assert isinstance(model, OpenAIEmbedder) and model.dimension == 8
    with pytest.raises(CheckpointError, match="no such"):
        load_model(tmp_path / "no such")
    with pytest.raises(ArgumentError, match="does not use cache_dir="):
        load_model("text-embedding-3-small", cache_dir="/tmp")


def test_card_and_fingerprint(server: Server):
    model = OpenAIEmbedder("text-embedding-3-large", truncate_dim=256)
    card = model.card
    assert (card.name, card.dimension, card.max_length, card.pooling) == (
        "text-embedding-3-large", 256, 8192, "hosted",
    )  # fmt: skip
    assert json.loads(json.dumps(card.to_dict()))["family"] == "OpenAI"
    assert set(card.sources) >= {"pooling", "normalize", "max_length", "dimension", "query", "document"}
    assert model.precision == "float32"
    assert model.fingerprint == OpenAIEmbedder("text-embedding-3-large", truncate_dim=256).fingerprint
    assert model.fingerprint != OpenAIEmbedder("text-embedding-3-large", truncate_dim=128).fingerprint
    assert KEY not in model.fingerprint


# --- servers as they are


def fastapi(field: str, message: str) -> dict[str, Any]:
    """A refusal as pydantic words it, with the input in it."""
    return {"detail": [{"type": "x", "loc": ["body", field], "msg": message, "input": ["max 7 items", "base64"]}]}


#: Status, body of the answer to more texts than `cap`, cap. {n} is the number of texts sent.
CAPS: dict[str, tuple[int, Any, int]] = {
    "DashScope": (400, {"error": {"code": "InvalidParameter", "param": None, "type": "InvalidParameter", "message":
        "<400> InternalError.Algo.InvalidParameter: Value error, batch size is invalid, it should not be larger than "
        "10.: input.contents"}, "id": "318cff27-38bd-4289"}, 10),
    "DashScope v2": (400, {"error": {"message":
        "batch size is invalid, it should not be larger than 25.: payload.input.contents"}}, 25),
    "SiliconFlow": (413, {"code": 20042, "message": "input batch size {n} > maximum allowed batch size 64",
                          "data": None}, 64),
    "TEI": (422, {"error": "batch size {n} > maximum allowed batch size 32", "error_type": "Validation"}, 32),
    "TEI, OpenAI's form": (413, {"message": "batch size {n} > maximum allowed batch size 32", "code": 413,
                                 "type": "Validation"}, 32),
    "Zhipu": (400, {"error": {"code": "1214", "message": "input数组最大不得超过64条"}}, 64),
    "in Chinese": (400, {"error": {"code": "1210", "message": "请求的文本数量{n}超过上限16"}}, 16),
    "in other Chinese words": (400, {"error": "批量大小过大，每次最多支持25个文本"}, 25),
    "Gemini": (400, [{"error": {"code": 400, "message":
        "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"}}], 100),
    "Azure": (400, {"error": {"message": "Too many inputs. The max number of inputs is 16. We hope to increase the "
        "number of inputs per request soon. Please contact us at: https://go.microsoft.com/fwlink/?linkid=2213926",
        "type": "invalid_request_error"}}, 16),
    "Azure, once": (400, {"error": {"message": "Too many inputs. The max number of inputs is 1."}}, 1),
    "OpenAI": (400, {"error": {"message": "Invalid 'input': array too long. Expected an array with maximum length 48, "
        "but got an array with length {n} instead.", "code": "array_above_max_length"}}, 48),
    "Cohere": (400, {"message": "invalid request: total number of texts must be at most 96 - received {n}"}, 96),
    "pydantic": (422, fastapi("input", "List should have at most 100 items after validation, not {n}"), 100),
    "pydantic 1": (422, fastapi("input", "ensure this value has at most 32 items"), 32),
    "less than": (400, {"error": {"message": "number of input texts must be less than 21, got {n}"}}, 20),
    "a range": (422, {"detail": "batch size {n} is invalid: it must be in the range [1, 64]"}, 64),
    "one-api before Zhipu": (500, {"error": {"message":
        "invalid input length, zhipu only support one input (request id: 2024110719205175)"}}, 1),
    "no number": (400, {"error": {"message": "Too many texts in one request"}}, 60),
    "no number in Chinese": (400, {"error": {"message": "单次请求的文本条数过多"}}, 60),
    "no reason": (413, b"<html>413 Request Entity Too Large</html>", 60),
    "no words for it": (400, {"error": {"message": "'$.input' is invalid. Please check the API reference"}}, 60),
}  # fmt: skip


def filled(body: Any, sent: int) -> Any:
    return body if isinstance(body, bytes) else json.loads(json.dumps(body).replace("{n}", str(sent)))


@pytest.mark.parametrize("name", CAPS)
def test_how_many_texts_a_server_takes_is_learnt_once(server: Server, name: str):
    status, body, cap = CAPS[name]

    def capped(number: int, payload: dict[str, Any]) -> Reply | None:
        sent = len(payload["input"])
        return (status, {}, filled(body, sent)) if sent > cap else None

    server.script = capped
    texts = [f"t{i}" for i in range(130)]
    model = hosted(batch_size=128)
    np.testing.assert_allclose(model.encode(texts), [unit(vector(text)) for text in texts], atol=1e-6)
    sizes = [len(request["input"]) for request in server.requests]
    refused = [size for size in sizes if size > cap]
    if name.startswith("no "):
        assert refused == [128, 64]  # Halved until they were taken.
    else:
        assert refused == [128]
        assert max(size for size in sizes if size <= cap) == cap
    before = len(server.requests)
    model.encode([f"u{i}" for i in range(130)])
    assert all(len(request["input"]) <= cap for request in server.requests[before:])


def test_a_cap_is_learnt_once_after_the_width_was_asked_for(server: Server):
    server.script = lambda number, payload: error(400, "at most 10 inputs") if len(payload["input"]) > 10 else None
    OpenAIEmbedder("my-model", batch_size=50).encode([f"t{i}" for i in range(300)])
    sizes = [len(request["input"]) for request in server.requests]
    assert sizes[:2] == [1, 50] and max(sizes[2:]) == 10


def test_a_cap_is_learnt_once_by_requests_at_the_same_time(server: Server):
    def capped(number: int, payload: dict[str, Any]) -> Reply | None:
        time.sleep(0.01)
        return error(422, "batch size > maximum allowed batch size 10") if len(payload["input"]) > 10 else None

    server.script = capped
    texts = [f"t{i}" for i in range(300)]
    vectors = hosted(batch_size=50, concurrency=4).encode(texts)
    np.testing.assert_allclose(vectors, [unit(vector(text)) for text in texts], atol=1e-6)
    assert sum(len(request["input"]) > 10 for request in server.requests) == 1
    assert server.most_active > 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "rate limit: at most 3 texts per minute"}}),
        (422, {"detail": "unknown model for these inputs"}),
        (400, {"error": {"message": "input[2] must not be empty"}}),
    ],
)
def test_other_refusals_are_not_taken_for_a_cap(server: Server, status: int, body: Any):
    server.script = lambda number, payload: (status, {}, body)
    with pytest.raises(ApiError, match=r"request of 4 texts"):
        hosted().encode(list("abcd"))
    assert len(server.requests) == 1


#: Status and body of the answer to a text that is too long.
LENGTHS: dict[str, tuple[int, Any]] = {
    "OpenAI": (400, {"error": {"message": "Invalid 'input[2]': maximum input length is 8192 tokens."}}),
    "vLLM": (400, {"object": "error", "message": "This model's maximum context length is 512 tokens. However, you "
        "requested 1451 tokens in the input for embedding generation. Please reduce the length of the input.",
        "type": "BadRequestError", "code": 400}),
    "TEI": (413, {"message": "Input validation error: `inputs` must have less than 512 tokens. Given: 1038",
                  "code": 413, "type": "Validation"}),
    "TEI 422": (422, {"error": "`inputs` must have less than 32000 characters. Given: 67337",
                      "error_type": "Validation"}),
    "Ollama": (400, {"error": {"message": "the input length exceeds the context length", "type": "api_error"}}),
    "Ollama before": (500, {"error": "input length exceeds maximum context length"}),
    "llama.cpp": (500, {"error": {"code": 500, "type": "server_error", "message": "input (992 tokens) is too large to "
        "process. increase the physical batch size (current batch size: 512)"}}),
    "LocalAI": (500, {"error": {"code": 500, "message": "rpc error: code = Unknown desc = input is too large to "
        "process. increase the physical batch size", "type": ""}}),
    "DashScope": (400, {"error": {"message":
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 2048]"}}),
    "SiliconFlow": (413, {"code": 20042, "message": "input must have less than 512 tokens", "data": None}),
    "in Chinese": (400, {"error": {"code": "1210", "message": "单条文本长度超过3072 tokens"}}),
    "a code": (400, {"error": {"message": "Please adjust your input.", "code": "context_length_exceeded"}}),
    "no words": (413, b""),
}  # fmt: skip


@pytest.mark.parametrize("name", LENGTHS)
def test_a_text_that_is_too_long_is_found_at_once(server: Server, name: str):
    status, body = LENGTHS[name]
    limited = lambda number, payload: (status, {}, body) if max(map(len, payload["input"])) > 50 else None  # noqa: E731
    server.script = limited
    model = hosted(batch_size=64)
    texts = [f"t{i}" for i in range(100)]
    with pytest.raises(ApiError, match=r"60 characters is too long: 'ccc.*Split long texts"):
        model.encode([*texts[:37], "c" * 60, *texts[37:]])
    assert len(server.requests) < 20
    assert server.texts.count("c" * 60) == 7  # 64, 32, ... 1: never twice in one size.
    # What was long says nothing of how many texts are taken.
    before = len(server.requests)
    np.testing.assert_allclose(model.encode(texts), [unit(vector(text)) for text in texts], atol=1e-6)
    if name != "no words":
        assert max(len(request["input"]) for request in server.requests[before:]) == 64


#: Status and body of the answer to a request that names a format.
FORMATS: dict[str, tuple[int, Any]] = {
    "LiteLLM": (400, {"error": {"message": "litellm.UnsupportedParamsError: gemini does not support parameters: "
        "{'encoding_format': 'base64'}, for model=x. To drop these, set `litellm.drop_params=True`"}}),
    "pydantic": (422, fastapi("encoding_format", "Extra inputs are not permitted")),
    "in words": (500, {"error": "base64 encoding is not implemented"}),
    "a literal": (422, fastapi("encoding_format", "Input should be 'float'")),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_servers_without_base64_are_asked_for_numbers_once(server: Server, name: str):
    status, body = FORMATS[name]

    def numbers(number: int, payload: dict[str, Any]) -> Reply:
        if payload.get("encoding_format") == "base64":
            return status, {}, body
        return 200, {}, answer(payload, floats=True)

    server.script = numbers
    texts = [f"t{i}" for i in range(60)]
    model = hosted(batch_size=5)
    np.testing.assert_allclose(model.encode(texts), [unit(vector(text)) for text in texts], atol=1e-6)
    assert [request["encoding_format"] for request in server.requests].count("base64") == 1
    model.encode("another")
    assert server.requests[-1]["encoding_format"] == "float"


def test_servers_that_know_no_format_are_asked_without(server: Server):
    def strict(number: int, payload: dict[str, Any]) -> Reply:
        if "encoding_format" in payload:
            return 400, {}, {"error": {"message": "Unrecognized request argument supplied: encoding_format"}}
        return 200, {}, answer(payload, floats=True)

    server.script = strict
    np.testing.assert_allclose(hosted().encode("a"), unit(vector("a")), atol=1e-6)
    assert [request.get("encoding_format") for request in server.requests] == ["base64", "float", None]
    server.script = lambda number, payload: error(400, "encoding_format is missing")
    with pytest.raises(ApiError, match="encoding_format"):
        hosted(encoding_format=None).encode("a")


def test_the_format_is_an_option(server: Server):
    server.script = lambda number, payload: (200, {}, answer(payload, floats=True))
    hosted(encoding_format="float").encode("a")
    hosted(encoding_format=None).encode("a")
    assert server.requests[0]["encoding_format"] == "float"
    assert "encoding_format" not in server.requests[1]
    with pytest.raises(ArgumentError, match="encoding_format"):
        hosted(encoding_format="int8")


@pytest.mark.parametrize("blank", ["\n\n", "\t", "\xa0", "\u3000\u3000", "\u200b", "\ufeff", " \r\n\x00"])
def test_texts_of_blanks_alone_are_as_empty_ones(server: Server, blank: str, caplog: pytest.LogCaptureFixture):
    server.script = lambda number, payload: (
        error(400, "input must not be empty") if any(text in ("", blank) for text in payload["input"]) else None
    )
    with caplog.at_level(logging.WARNING, "bgekit"):
        vectors = hosted().encode(["a", blank, ""])
    assert server.texts == ["a", " ", " "]
    assert np.array_equal(vectors[1], vectors[2])
    assert "2 empty or blank ones" in caplog.text
    hosted(query_instruction_for_retrieval="q: ").encode_queries([blank])
    assert server.texts[-1] == "q: "


def test_words_between_blanks_are_sent_as_they_are(server: Server):
    texts = [" a ", "\n字\n", "\u3000.", "\u200bx"]
    hosted().encode(texts)
    assert server.texts == texts


def test_the_width_of_the_answer_counts(server: Server, caplog: pytest.LogCaptureFixture):
    model = OpenAIEmbedder("text-embedding-ada-002")  # As LocalAI calls any model.
    assert model.dimension == 1536
    with caplog.at_level(logging.WARNING, "bgekit"):
        vectors = model.encode([f"t{i}" for i in range(300)])
    assert vectors.shape == (300, WIDTH) and model.dimension == model.card.dimension == WIDTH
    assert "width 6" in caplog.text and "1536" in caplog.text
    np.testing.assert_allclose(vectors[7], unit(vector("t7")), atol=1e-6)
    assert model.encode([]).shape == (0, WIDTH)
    assert len(caplog.records) == 1


def test_shards_have_the_width_of_the_answer(server: Server, tmp_path: Any):
    records = [Record(str(i), f"t{i}") for i in range(5)]
    encode_to_shards(OpenAIEmbedder("BAAI/bge-small-en-v1.5"), records, tmp_path / "out", shard_size=2)
    shards = load_shards(tmp_path / "out")
    assert shards.dimension == WIDTH
    assert all(vectors.shape[1] == WIDTH for _, vectors in shards.iter_shards())


def test_a_width_that_changes_is_an_error_with_both(server: Server):
    model = hosted()
    model.encode("a")
    server.script = lambda number, payload: (200, {}, {"data": [{"index": 0, "embedding": [1.0] * 9}]})
    with pytest.raises(ApiError, match=r"width 9, those before had 6"):
        model.encode("b")
    with pytest.raises(ArgumentError, match=r"width 9.*out has 1536"):
        OpenAIEmbedder("text-embedding-ada-002").encode(["a"], out=np.zeros((1, 1536), np.float32))


@pytest.mark.parametrize("key", ["1", "10", "a", "size", "than", "EMPTY"])
def test_a_short_key_does_not_hide_what_a_message_says(server: Server, key: str):
    def capped(number: int, payload: dict[str, Any]) -> Reply | None:
        return (
            error(400, "batch size is invalid, it should not be larger than 10") if len(payload["input"]) > 10 else None
        )

    server.script = capped
    hosted(api_key=key, batch_size=100).encode([f"t{i}" for i in range(100)])
    assert sorted(len(request["input"]) for request in server.requests) == [*[10] * 10, 100]
    server.script = lambda number, payload: error(400, "the model has 10 faults of size 1 a day")
    with pytest.raises(ApiError, match=r"10 faults of .* 1 a day"):
        hosted(api_key=key).encode("a")


def test_advice_is_about_an_api(server: Server):
    nan = {"data": [{"index": 0, "embedding": [float("nan")] * WIDTH}]}
    server.script = lambda number, payload: (200, {}, nan)
    with pytest.raises(NumericalError, match="ask who runs it") as caught:
        hosted().encode("a")
    assert "use_fp16" not in str(caught.value) and "weights" not in str(caught.value)
    server.script = lambda number, payload: error(404, "no such model")
    with pytest.raises(ApiError, match="base_url="):
        hosted().encode("a")


@pytest.mark.parametrize("name", ["quentinz/bge-base-zh-v1.5:latest", "baai/bge-base-zh-v1.5:free"])
def test_tags_of_servers_leave_a_model_its_instruction(name: str, caplog: pytest.LogCaptureFixture):
    model = OpenAIEmbedder(name, api_key=KEY)
    assert str(model.card.prompt("query")) == "为这个句子生成表示以用于检索相关文章："
    assert model.dimension == 768
    assert not caplog.records


def test_a_hosted_model_of_the_bge_kind_without_known_prompts_is_warned_of_once(caplog: pytest.LogCaptureFixture):
    for _ in range(2):
        OpenAIEmbedder("court-bge-v7", api_key=KEY)
    OpenAIEmbedder("court-bge-v8", api_key=KEY, query_instruction_for_retrieval="")
    OpenAIEmbedder("some-embedder", api_key=KEY)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "court-bge-v7" in record.getMessage()


@pytest.mark.parametrize(
    ("message", "about"),
    [
        ("Input is too long.", "length"),
        ("输入文本过长，请缩短后重试", "length"),
        ("Text length exceeds limit 2048", "length"),
        ("Prompt is too long for this model", "length"),
        ("max length of texts is 25", "texts"),
        ("too many inputs: at most 1,024 are allowed", "texts"),
    ],
)
def test_what_a_refusal_is_about(message: str, about: str):
    assert meaning(400, message, "") == about


def test_numbers_have_their_thousands_and_what_a_text_says_is_no_refusal():
    assert most_texts("Too many inputs: at most 1,024 are allowed", 2000) == 1024
    assert most_texts("the number of texts should be less than or equal to 10", 50) == 10
    echoed = (
        "List should have at most 32 items after validation, not 64 [type=too_long, "
        "input_value=['how to decode base64'], input_type=list]"
    )
    assert meaning(422, echoed, "") == "texts" and most_texts(echoed, 64) == 32


@pytest.mark.parametrize(
    "body",
    [
        {"error_code": 336003, "error_msg": "the max number of texts is 16"},
        {"error": {"message": "too many inputs: at most 16", "code": 400}},
    ],
)
def test_a_refusal_with_the_status_of_success_is_one(server: Server, body: Any):
    server.script = lambda number, payload: (200, {}, body) if len(payload["input"]) > 16 else None
    assert hosted(batch_size=64).encode([f"t{i}" for i in range(64)]).shape[0] == 64
    assert sorted(len(request["input"]) for request in server.requests) == [16] * 4 + [64]
