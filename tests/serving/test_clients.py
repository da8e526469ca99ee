"""Real clients, each in an environment of its own, against a server on a socket: `make clients` prints the table.

The environments are made by clients/environment.sh in build/clients (BGEKIT_CLIENTS names another folder) and kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette")
from serving.running_server import running

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "clients"
ROOT = Path(__file__).resolve().parents[2]
PLACE = Path(os.environ.get("BGEKIT_CLIENTS", ROOT / "build" / "clients"))
KEY = "a-key-of-the-test"
CLIENTS = [
    "openai",
    "openai_node",
    "cohere",
    "huggingface_hub",
    "langchain_openai",
    "llama_index",
    "litellm",
    "haystack",
]
TEXTS = [
    "The cat sat on the mat.",
    "",
    "a line\nand another one",
    "Ünïcødé, 文本向量 \U0001f600",
    "rivers run to the sea " * 9,
]
QUERIES = ["where did the cat sit?", "文本"]
PASSAGES = ["rivers run to the sea", "the cat sat on the mat", "dogs bark", "a tree has leaves"]
QUERY = "where is the cat?"
#: Clients that replace a line break by a space before they send a text.
ONE_LINE = {"llama_index", "haystack"}


@pytest.fixture(scope="module")
def served(request, tiny_reranker):
    """A server with a key, its models, and what clients are told of it."""
    from bgekit import FlagModel, FlagReranker
    from bgekit.serving import create_app

    shared = Path(os.environ.get("BGEKIT_SHARED", ROOT.parent / "shared")) / "models" / "bge-small-en-v1.5"
    folder = shared if shared.exists() else request.getfixturevalue("bge_name")
    model, judge = FlagModel(folder), FlagReranker(tiny_reranker, use_fp16=False)
    app = create_app({"bge-small-en-v1.5": folder, "judge": tiny_reranker}, api_keys=(KEY,))
    with running(app) as url:
        told = {
            "url": url, "key": KEY, "name": "bge-small-en-v1.5", "judge": "judge", "texts": TEXTS, "queries": QUERIES,
            "query": QUERY, "passages": PASSAGES, "dimension": model.dimension, "paths": sys.path,
        }  # fmt: skip
        yield model, judge, told


def expected(model, judge, client):
    """What an answer of each kind must be."""
    texts = [text.replace("\n", " ") for text in TEXTS] if client in ONE_LINE else TEXTS
    plain = np.asarray(model.encode(texts))
    scores = np.asarray(judge.compute_score([(QUERY, each) for each in PASSAGES], normalize=True))
    order = np.argsort(-scores, kind="stable")
    ranked = [[int(place), float(scores[place])] for place in order]
    bits = np.packbits(plain >= 0, axis=1)
    return {
        "plain": plain, "first": plain[:1], "query": np.asarray(model.encode_queries(QUERIES)),
        "document": np.asarray(model.encode_corpus(texts)),
        "unnormalised": np.asarray(type(model)(model.folder, normalize_embeddings=False).encode(texts)),
        "similarity": plain[1:] @ plain[0], "ubinary": bits, "binary": bits.astype(np.int16) - 128,
        "rerank": ranked, "rerank 3": ranked[:3],
    }  # fmt: skip


def result(call, right):
    """What the table says of an answer; an AssertionError where it is wrong."""
    kind, values = call["kind"], call["values"]
    if kind == "message":
        assert "check_embedding_ctx_length=False" in values or "dimensions" in values
        return (
            "refused: " + values.partition("message': ")[2][:60]
            if "message': " in values
            else f"refused: {values[:60]}"
        )
    if kind == "names":
        assert values and all(name.startswith(("bge-small-en-v1.5", "judge")) for name in values)
        return ", ".join(values)
    if kind == "texts":
        assert all(text == PASSAGES[place] for place, text in values)
        return "the texts"
    exact = kind.endswith(" exactly")
    wanted, found = np.asarray(right[kind.removesuffix(" exactly")]), np.asarray(values)
    assert found.shape == wanted.shape, (call["call"], found.shape, wanted.shape)
    difference = float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max())
    assert difference <= (0 if exact or kind.endswith("binary") else 1e-6), (call["call"], kind, difference)
    return "equal" if difference == 0 else f"within {difference:.0e}"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_vectors_of_flag_model(client, served, record_property):
    model, judge, told = served
    needed = "npm" if client.endswith("_node") else "bash"
    if shutil.which(needed) is None:
        pytest.skip(f"needs {needed} on the PATH")
    made = subprocess.run(
        ["bash", str(HERE / "environment.sh"), client, str(PLACE)], capture_output=True, text=True, timeout=580
    )
    if made.returncode:
        pytest.skip(f"the environment of {client} cannot be made here: {made.stderr[-300:]}")
    script = next(HERE.glob(f"use_{client}.*"))
    # As a user's program has it: without the switches of the tests.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "OMP_"))}
    done = subprocess.run(
        [made.stdout.split()[-1], str(script)], input=json.dumps(told), capture_output=True, text=True, timeout=300,
        env=clean, cwd=PLACE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    right = expected(model, judge, client)
    package = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    rows = [(package, call["call"], call["kind"], result(call, right)) for call in said["answers"]]
    assert rows
    _note(rows)


def test_bodies_of_programs_that_are_not_packages(served):
    """Dify's plugin, RAGFlow and Open WebUI send these."""
    model, judge, told = served
    right, url, name = expected(model, judge, ""), told["url"], told["name"]

    def ask(path, body=None, **headers):
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **headers}
        with urllib.request.urlopen(urllib.request.Request(url + path, content, headers), timeout=30) as answer:
            return json.loads(answer.read())

    info = ask(f"/{name}/info")
    assert next(iter(info["model_type"])) == "embedding" and info["max_input_length"] == model.card.max_length
    assert info["max_client_batch_size"] >= 32
    tokens = ask(f"/{name}/tokenize", {"inputs": TEXTS})
    ids = [[token["id"] for token in each] for each in tokens]
    assert ids == [model.tokenizer(text)["input_ids"] for text in TEXTS]
    rows = [
        (
            "Dify (TEI plugin)",
            "/info, /tokenize, /embed",
            "plain",
            _vectors(ask(f"/{name}/embed", {"inputs": TEXTS}), right["plain"]),
        )
    ]
    assert next(iter(ask("/judge/info")["model_type"])) == "reranker"
    found = ask("/judge/rerank", {"query": QUERY, "texts": PASSAGES})
    rows.append(
        ("Dify (TEI plugin)", "/rerank", "rerank", _ranks([[e["index"], e["score"]] for e in found], right["rerank"]))
    )
    found = ask(f"/{name}/embed", {"inputs": TEXTS, "truncate": True})
    rows.append(("RAGFlow (TEI)", "/embed", "plain", _vectors(found, right["plain"])))
    found = ask("/judge/rerank", {"query": QUERY, "texts": PASSAGES, "raw_scores": False, "truncate": True})
    rows.append(
        ("RAGFlow (TEI)", "/rerank", "rerank", _ranks([[e["index"], e["score"]] for e in found], right["rerank"]))
    )
    body = {"input": TEXTS, "model": name, "encoding_format": "float", "drop_params": True}
    found = [each["embedding"] for each in ask("/v1/embeddings", body)["data"]]
    rows.append(("RAGFlow (OpenAI)", "/v1/embeddings", "plain", _vectors(found, right["plain"])))
    user = {"X-OpenWebUI-User-Name": "me", "X-OpenWebUI-User-Id": "1"}
    found = [each["embedding"] for each in ask("/embeddings", {"input": TEXTS, "model": name}, **user)["data"]]
    rows.append(("Open WebUI", "/embeddings", "plain", _vectors(found, right["plain"])))
    found = ask("/v1/embeddings", {"input": QUERIES, "model": name, "prompt_name": "query"}, **user)["data"]
    rows.append(("Open WebUI", "/v1/embeddings with RAG_EMBEDDING_PREFIX_FIELD_NAME=prompt_name", "query",
                 _vectors([each["embedding"] for each in found], right["query"])))  # fmt: skip
    body = {"model": "judge", "query": QUERY, "documents": PASSAGES, "top_n": len(PASSAGES)}
    found = [[each["index"], each["relevance_score"]] for each in ask("/v1/rerank", body, **user)["results"]]
    rows.append(("Open WebUI", "/v1/rerank", "rerank", _ranks(found, right["rerank"])))
    _note(rows)


def _vectors(values, wanted):
    return result({"kind": "plain", "values": values}, {"plain": wanted})


def _ranks(values, wanted):
    return result({"kind": "rerank", "values": values}, {"rerank": wanted})


def _note(rows):
    """Add rows to the table that `make clients` shows."""
    for row in rows:
        print(" | ".join(row))
    if path := os.environ.get("BGEKIT_CLIENTS_TABLE"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.writelines("| " + " | ".join(re.sub(r"[|\n]", " ", cell) for cell in row) + " |\n" for row in rows)
