"""Models behind one server: names, prompts, bits, keys, reloading, clients that leave. Real sockets, a real model."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import struct
import threading
import time

import numpy as np
import pytest

from bgekit.errors import UsageError
from serving.running_server import running

KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def folder(bge_small_en, tmp_path_factory):
    """A copy, whose files a test may change."""
    copy = tmp_path_factory.mktemp("served") / "bge-small-en-v1.5"
    shutil.copytree(bge_small_en, copy)
    return copy


@pytest.fixture(scope="module")
def app(folder):
    from bgekit.serving import create_app

    return create_app({"small": folder}, api_keys=["other", "secret"])


@pytest.fixture(scope="module")
def address(app):
    with running(app) as address:
        yield address


@pytest.fixture(scope="module")
def model(folder):
    from bgekit import FlagModel

    return FlagModel(folder, devices="cpu")


def ask(address, path, body=None, headers=KEY, method=None):
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    content = None if body is None else json.dumps(body)
    connection.request(
        method or ("POST" if body is not None else "GET"),
        path,
        content,
        {"content-type": "application/json", **headers},
    )
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, (json.loads(text) if text[:1] in b"{[" and text else text.decode()), answer.headers


def vectors(address, texts, model="small", path="/v1/embeddings", **more):
    status, answer, _ = ask(address, path, {"model": model, "input": texts, "encoding_format": "base64", **more})
    assert status == 200, answer
    return np.stack([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in answer["data"]])


def test_vectors_have_the_bits_of_encode_whoever_shares_the_batch(address, model, folder):
    texts = [f"text {number} " + "of several words " * (number % 23) for number in range(60)] + ["", "same", "same"]
    wanted = np.asarray(model.encode(texts))
    found = {}

    def bulk():
        found["bulk"] = vectors(address, texts)

    def single(number):
        found[number] = vectors(address, texts[number])

    threads = [threading.Thread(target=bulk), *(threading.Thread(target=single, args=(n,)) for n in range(0, 60, 6))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(found.pop("bulk"), wanted)
    assert len(found) == 10 and all(np.array_equal(each[0], wanted[number]) for number, each in found.items())


def test_the_name_says_which_prompt(address, model, folder):
    query = "what is a cat?"
    plain, asked = np.asarray(model.encode(query)), np.asarray(model.encode_queries(query))
    assert not np.array_equal(plain, asked)
    for name, path, wanted in (
        ("small", "/v1/embeddings", plain), ("small:query", "/v1/embeddings", asked),
        (str(folder), "/embeddings", plain), (f"{folder}:query", "/embeddings", asked),
        ("small:document", "/v1/embeddings", np.asarray(model.encode_corpus(query))),
        ("", "/small:query/v1/embeddings", asked), ("any", "/small/embeddings", plain),
    ):  # fmt: skip
        assert np.array_equal(vectors(address, query, name, path)[0], wanted), (name, path)
    status, answer, _ = ask(address, "/v1/embeddings", {"model": "large", "input": "x"})
    assert status == 404 and "small" in json.dumps(answer)
    status, answer, _ = ask(address, "/large/v1/embeddings", {"input": "x"})
    assert status == 404 and "small" in json.dumps(answer)
    listed = [each["id"] for each in ask(address, "/v1/models")[1]["data"]]
    assert listed == ["small", "small:query", "small:document"]


def test_what_is_cut_is_told_or_refused(address, model):
    texts = ["short", "word " * 600]
    status, _, headers = ask(address, "/v1/embeddings", {"input": texts})
    assert status == 200 and headers["x-truncated"] == "1"
    assert int(headers["x-compute-tokens"]) == 3 + 512
    status, answer, headers = ask(address, "/embed", {"inputs": texts, "truncate": False})
    assert status == 422 and "602" in answer["error"] and "x-truncated" not in headers
    status, answer, _ = ask(
        address, "/embed", {"inputs": ["begin " + "word " * 600 + "end"], "truncation_direction": "Left"}
    )
    left = model.encode("word " * 509 + "end")
    assert np.abs(np.array(answer[0]) - np.asarray(left)).max() < 1e-6


def test_keys_are_asked_for_where_work_is_done(address):
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
        status, _, answered = ask(address, "/v1/embeddings", {"input": "x"}, headers)
        assert status == 401 and answered["x-request-id"]
        status, answer, _ = ask(address, "/large/v1/embeddings", {"input": "x"}, headers)
        assert status == 404 and "small" not in json.dumps(answer)  # What is served is not told to everybody.
    assert ask(address, "/v1/embeddings", {"input": "x"}, {"authorization": "Bearer other"})[0] == 200
    for path in ("/", "/health", "/live", "/ready", "/metrics"):
        assert ask(address, path, headers={})[0] == 200
    assert ask(address, "/v1/embeddings", {"input": "x"}, {**KEY, "x-request-id": "my-1"})[2]["x-request-id"] == "my-1"


def test_metrics_have_the_names_of_dashboards(address):
    vectors(address, ["a", "b"])
    page = ask(address, "/metrics", headers={})[1]
    assert "# TYPE te_request_count counter\n" in page and "te_request_count_total" not in page
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(lines['te_request_count{method="batch"}']) >= 1
    assert 'te_request_duration_bucket{le="1.5e-05"}' in lines and "te_queue_size" in lines
    assert float(lines["te_embed_inference_duration_count"]) > 0 and float(lines["bge_tokens_total"]) > 0


def test_a_client_that_leaves_is_dropped_from_the_queue(address, app):
    scheduler = app.server.scheduler
    body = json.dumps({"input": [f"leaving {number} " + "word " * 400 for number in range(300)]}).encode()
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as leaving:
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaving.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        end = time.monotonic() + 20
        while not scheduler.queued_tokens:
            assert time.monotonic() < end
            time.sleep(0.002)
    while scheduler.queued_tokens:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert app.server.metrics._counters["te_request_failure"][(("err", "dropped"),)] == 1
    assert scheduler.computed_tokens < 300 * 400
    assert len(vectors(address, "after")) == 1


def test_reloading_takes_new_files_only_if_they_are_right(address, folder, model):
    before = vectors(address, "a text")
    assert ask(address, "/-/models/small/reload", {}, {})[0] == 401
    weights = folder / "model.safetensors"
    kept = folder / "kept"
    shutil.copy(weights, kept)
    weights.unlink()  # Its pages are mapped: what is there stays whole.
    weights.write_bytes(kept.read_bytes()[:1000])
    status, answer, _ = ask(address, "/-/models/small/reload", {})
    assert status == 503 and "the one before goes on" in json.dumps(answer)
    assert np.array_equal(vectors(address, "a text"), before)
    weights.unlink()
    kept.rename(weights)
    first = [True]

    def asked():
        while first:
            assert np.array_equal(vectors(address, "a text"), before)

    asking = threading.Thread(target=asked)
    asking.start()
    assert ask(address, "/-/models/small/reload", {})[0] == 200
    first.clear()
    asking.join()


def test_reloading_refuses_nan_and_takes_what_lies_beside_the_weights(make_model, make_reranker, tmp_path):
    from safetensors.torch import load_file, save_file
    from starlette.testclient import TestClient

    from bgekit.serving import create_app

    model, judge = tmp_path / "tiny", tmp_path / "judge"
    shutil.copytree(make_model(), model)
    shutil.copytree(make_reranker("bert", labels=2), judge)
    with TestClient(create_app({"tiny": model, "judge": judge}, api_keys=["secret"]), headers=KEY) as client:
        before = client.post("/embed", json={"inputs": "cat"}).json()
        weights = load_file(model / "model.safetensors")
        weights["embeddings.LayerNorm.weight"][0] = float("nan")
        (model / "model.safetensors").unlink()
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        answer = client.post("/-/models/tiny/reload")
        assert answer.status_code == 503 and "gives NaN" in answer.text
        assert client.post("/embed", json={"inputs": "cat"}).json() == before
        config = json.loads((judge / "config.json").read_text())
        names = {"0": "no", "1": "yes"}
        config |= {"id2label": names, "label2id": {name: int(place) for place, name in names.items()}}
        (judge / "config.json").write_text(json.dumps(config))
        assert client.post("/-/models/judge/reload").status_code == 200
        assert client.get("/judge/info").json()["model_type"]["reranker"]["id2label"] == names


def test_a_lazy_model_is_loaded_when_asked_for_and_let_go(make_model):
    from starlette.testclient import TestClient

    from bgekit.serving import create_app

    app = create_app({"tiny": make_model()}, lazy=True, keep_alive=0.2)
    client = TestClient(app)  # Which starts no lifespan.
    (served,) = app.server.models
    assert client.get("/health").status_code == 200 and served.state == "unloaded"
    first = client.post("/embed", json={"inputs": "cat"}).json()
    assert served.state == "loaded"
    end = time.monotonic() + 10
    while served.state == "loaded":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert client.post("/embed", json={"inputs": "cat"}).json() == first
    app.server.end()
    assert client.post("/embed", json={"inputs": "cat"}).status_code == 503


def test_names_that_could_mean_two_things_are_refused(make_model, tmp_path):
    from bgekit.serving import create_app
    from bgekit.serving.config import named, read_config

    tiny = make_model()
    for name in ("a/b", "a:query", "", "embed", "v1", "-", "a b"):
        with pytest.raises(UsageError, match="cannot be a model's name"):
            create_app({name: tiny})
    with pytest.raises(UsageError, match="two models are called"):
        named(["one/same", "two/same"])
    assert named(["packaged:all-MiniLM-L6-v2", "./x=y/m", "n=m"]) == {
        "all-MiniLM-L6-v2": "packaged:all-MiniLM-L6-v2", "m": "./x=y/m", "n": "m",
    }  # fmt: skip
    config = tmp_path / "serve.yaml"
    config.write_text(f"models:\n  t: {{path: {tiny}, max_length: 16, pooling: mean}}\nmax-wait: 3\n")
    models, options, settings = read_config(config)
    app = create_app(models, options=options, **settings)
    (served,) = app.server.models
    assert served.max_length == 16 and served.card.pooling == "mean" and app.server.settings.max_wait == 3
    app.server.end()


def test_an_index_needs_its_model(make_model, index_of):
    from starlette.testclient import TestClient

    from bgekit.serving import create_app

    own, other = make_model(), make_model(seed=7)
    index = index_of(own)
    with TestClient(create_app({"other": other, "own": own}, index=index)) as client:
        assert client.post("/v1/search", json={"query": "cat", "top_k": 2}).status_code == 200
    with TestClient(create_app({"other": other}, index=index)) as client:
        assert client.get("/").status_code == 503
        answer = client.post("/v1/search", json={"query": "cat"})
        assert answer.status_code == 503 and "is not served" in answer.text
        assert client.get("/health").status_code == 503
