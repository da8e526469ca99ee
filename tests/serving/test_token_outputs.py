"""What is answered for each token: TEI's `/embed_all` and `/embed_sparse`, vLLM's `/pooling`. Real sockets."""

from __future__ import annotations

import base64
import http.client
import json
import threading

import numpy as np
import pytest

pytest.importorskip("starlette")

from bgekit import BGEM3FlagModel
from bgekit.serving import create_app
from m3_models import make_m3
from serving.running_server import running

TEXTS = ["what is bge m3?", "the cat sat on the mat, and sat and sat", "", "词汇 matching of words"]


@pytest.fixture(scope="module")
def m3(tmp_path_factory):
    return make_m3(tmp_path_factory.mktemp("models") / "bge-m3", TEXTS, vocabulary=128)


@pytest.fixture(scope="module")
def expected(m3):
    return BGEM3FlagModel(m3, devices="cpu").encode(TEXTS, return_sparse=True, return_colbert_vecs=True)


@pytest.fixture(scope="module")
def address(m3, tiny_bert, tiny_reranker):
    models = {"m3": m3, "plain": tiny_bert, "judge": tiny_reranker}
    with running(create_app(models, auto_truncate=False, options={"plain": {"dtype": "float32"}})) as address:
        yield address


def ask(address, path, body, status=200):
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read().decode()
    assert answer.status == status, content
    return json.loads(content)


def of_transformers(folder, text):
    """[tokens, hidden] of the last layer, by transformers alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True, max_length=64)
    with torch.no_grad():
        return AutoModel.from_pretrained(folder, dtype=torch.float32)(**inputs).last_hidden_state[0].numpy()


def test_weights_of_tokens_are_those_of_the_model(address, expected):
    found = ask(address, "/embed_sparse", {"inputs": TEXTS})
    assert [{str(each["index"]): each["value"] for each in row} for row in found] == expected["lexical_weights"]
    [one] = ask(address, "/m3:query/embed_sparse", {"inputs": TEXTS[0], "truncate": None})
    assert one == found[0] and one
    error = ask(address, "/plain/embed_sparse", {"inputs": "a"}, 424)
    assert error["error_type"] == "Backend" and "plain has no head for sparse" in error["error"]


def test_vectors_of_tokens_are_those_of_the_last_layer(address, tiny_bert, m3):
    for name, folder in (("plain", tiny_bert), ("m3", m3)):
        found = ask(address, f"/{name}/embed_all", {"inputs": TEXTS})
        for text, rows in zip(TEXTS, found, strict=True):
            wanted = of_transformers(folder, text)
            if name == "plain":
                np.testing.assert_allclose(rows, wanted, atol=1e-4)
            else:  # In 16 bits.
                cosines = (
                    np.sum(np.asarray(rows) * wanted, 1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted, axis=1)
                )
                assert cosines.min() > 0.999
    long = "the cat " * 60
    assert "tokens" in ask(address, "/plain/embed_all", {"inputs": long}, 422)["error"]
    [cut] = ask(address, "/plain/embed_all", {"inputs": long, "truncate": True})
    assert len(cut) == 64
    assert ask(address, "/judge/embed_all", {"inputs": "a"}, 424)["error_type"] == "Backend"


def test_bits_of_token_vectors_depend_on_the_text_alone(address):
    alone = [ask(address, "/plain/embed_all", {"inputs": [text]})[0] for text in TEXTS]
    found = {}

    def together(number):
        found[number] = ask(address, "/plain/embed_all", {"inputs": [f"{number} " * 30, *TEXTS]})[1:]

    threads = [threading.Thread(target=together, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == alone for number in range(4))


def test_pooling_as_vllm_has_it(address, expected):
    answer = ask(address, "/pooling", {"model": "m3", "input": TEXTS, "task": "token_embed"})
    assert [answer["object"], answer["model"], answer["data"][1]["object"], answer["data"][1]["index"]] == [
        "list", "m3", "pooling", 1,
    ]  # fmt: skip
    assert answer["usage"]["prompt_tokens"] > 8
    for each, vectors in zip(answer["data"], expected["colbert_vecs"], strict=True):
        np.testing.assert_array_equal(np.asarray(each["data"], np.float32).reshape(vectors.shape), vectors)
    [packed] = ask(address, "/pooling", {"model": "m3", "input": TEXTS[0], "encoding_format": "base64"})["data"]
    vectors = expected["colbert_vecs"][0]
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(packed["data"]), "<f4").reshape(vectors.shape), vectors
    )
    # As vLLM's own tests make lexical weights of it: tokens without the first, weights without both special ones.
    weights = ask(address, "/pooling", {"model": "m3", "input": TEXTS, "task": "token_classify"})["data"]
    for text, each, wanted in zip(TEXTS, weights, expected["lexical_weights"], strict=True):
        ids = [token["id"] for token in ask(address, "/m3/tokenize", {"inputs": text})[0]]
        assert len(each["data"]) == len(ids) - 2
        largest: dict[str, float] = {}
        for number, weight in zip(ids[1:], each["data"], strict=False):
            largest[str(number)] = max(weight, largest.get(str(number), 0.0))
        for number, weight in wanted.items():
            assert largest[number] == weight
    whole = ask(address, "/pooling", {"model": "m3", "input": TEXTS, "task": "embed"})["data"]
    np.testing.assert_array_equal(np.asarray([each["data"] for each in whole], np.float32), expected["dense_vecs"])


def test_pooling_of_a_plain_model_scales_vectors_of_tokens(address):
    raw = ask(address, "/embed_all", {"inputs": TEXTS, "model": "plain"})
    for body in ({}, {"task": "token_embed", "use_activation": True}, {"use_activation": False}):
        found = ask(address, "/plain/pooling", {"input": TEXTS, **body})["data"]
        for each, rows in zip(found, raw, strict=True):
            rows = np.asarray(rows, np.float32)
            if body.get("use_activation", True):
                rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            np.testing.assert_allclose(np.asarray(each["data"], np.float32), rows, atol=1e-6)
    for body, status, said in (
        ({"task": "classify"}, 422, "'token_embed', 'token_classify', 'embed'"),
        ({"task": "token_classify"}, 422, "plain has no head for sparse"), ({"encoding_format": "bytes"}, 400, "bytes"),
        ({"model": "m3", "use_activation": False}, 422, "use_activation"), ({"truncate_prompt_tokens": 0}, 400, "0"),
        ({"truncation_side": "up"}, 422, "Left"), ({"input": []}, 400, "empty"),
    ):  # fmt: skip
        assert said in ask(address, "/pooling", {"model": "plain", "input": "a", **body}, status)["message"]


def test_answers_of_hundreds_of_megabytes_are_refused(address, monkeypatch):
    from bgekit.serving import models

    monkeypatch.setattr(models, "_NUMBERS", 64 * 20)
    error = ask(address, "/m3/embed_all", {"inputs": ["cat " * 30]}, 413)
    assert "vectors of at most 20 tokens" in error["error"]
    assert ask(address, "/m3/embed_sparse", {"inputs": ["cat " * 30]})


def test_a_damaged_head_is_an_error_at_the_start(m3, tmp_path):
    import shutil

    from bgekit.errors import CheckpointError

    folder = tmp_path / "bge-m3"
    shutil.copytree(m3, folder)
    for path in (*folder.rglob("sparse_linear*"),):
        path.write_bytes(b"nothing")
    app = create_app({"m3": folder})
    with pytest.raises(CheckpointError, match="sparse_linear"):
        next(iter(app.server.models)).load()
    app.server.end()
