"""Shapes of requests and answers: what is answered is what `FlagModel.encode` and `FlagReranker.compute_score` give."""

import base64
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from bgekit import FlagModel, FlagReranker
from bgekit.serving import bodies, create_app

EN = "Represent this sentence for searching relevant passages: "
TEXTS = ["the cat sat", "", "a line\nand 样例 \U0001f600", "river " * 90]
LONG = 3
PASSAGES = ["dogs bark", "the cat sat on the mat", "a tree", "dogs bark"]


@pytest.fixture(scope="module")
def model(bge_name):
    return FlagModel(bge_name)


@pytest.fixture(scope="module")
def judge(tiny_reranker):
    return FlagReranker(tiny_reranker)


@pytest.fixture(scope="module")
def matryoshka(make_model):
    """A tiny model that says that it was trained to be cut."""
    folder = make_model(name="doll")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"bgekit": {"matryoshka_dims": [8, 16]}, "prompts": {"query": "q: ", "topic": "t: "}}))
    return folder


@pytest.fixture(scope="module")
def two_classes(make_reranker, tmp_path_factory):
    """A tiny reranker of two classes that have names."""
    folder = tmp_path_factory.mktemp("models") / "classes"
    shutil.copytree(make_reranker("bert", labels=2), folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"0": "irrelevant", "1": "relevant"}
    config |= {"id2label": names, "label2id": {name: int(place) for place, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def ask(bge_name, tiny_reranker, matryoshka, two_classes):
    """Ask the server: `ask("/embed", {...})` posts, `ask("/info")` gets."""
    app = create_app({"tiny": bge_name, "doll": matryoshka, "judge": tiny_reranker, "classes": two_classes})
    with TestClient(app, raise_server_exceptions=False) as client:

        def answer(path, body=None, status=200, kind="application/json"):
            options = {}
            if body is not None:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                options = {"content": content, "headers": {"content-type": kind} if kind else {}}
            response = client.request("GET" if body is None else "POST", path, **options)
            assert response.status_code == status, response.text[:500]
            answer.headers = response.headers
            return response.json() if "json" in response.headers.get("content-type", "") else response.text

        yield answer


def vectors(answer):
    assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
    return np.asarray([each["embedding"] for each in answer["data"]], dtype=np.float32)


def ranks(results, score="relevance_score"):
    return [(each["index"], pytest.approx(each[score], abs=1e-7)) for each in results]


def ordered(scores):
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    return [(place, scores[place]) for place in order]


def test_openai_is_what_encode_gives(ask, model):
    expected = np.asarray(model.encode(TEXTS))
    for path in ("/v1/embeddings", "/embeddings", "/tiny/v1/embeddings"):
        answer = ask(path, {"input": TEXTS, "model": "tiny"})
        np.testing.assert_array_equal(vectors(answer), expected)
    assert ask.headers["x-truncated"] == str(LONG) and answer["usage"]["truncated"] == [LONG]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 64
    assert (answer["object"], answer["model"], answer["data"][0]["object"]) == ("list", "tiny", "embedding")
    packed = ask("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64", "dimensions": 32})
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in packed["data"]]
    np.testing.assert_array_equal(decoded, expected)
    one = ask("/v1/embeddings", {"input": TEXTS[0], "encoding_format": None, "dimensions": None, "user": None,
                                 "model": None, "drop_params": True})  # fmt: skip
    np.testing.assert_array_equal(vectors(one), expected[:1])
    assert "truncated" not in one["usage"] and "x-truncated" not in ask.headers


@pytest.mark.parametrize(
    "written",
    ["cat", f"{EN}cat", f"{EN} cat", "Represent this question for searching relevant passages:  cat", f"  {EN}cat"],
)
def test_the_instruction_never_stands_twice(written, ask, model):
    expected = np.asarray(model.encode_queries(["cat"]))
    for body in ({"model": "tiny:query"}, {"model": "tiny", "prompt_name": "query"}, {"input_type": "query"}):
        np.testing.assert_array_equal(vectors(ask("/v1/embeddings", {"input": written, **body})), expected)
    np.testing.assert_array_equal(ask("/tiny:query/embed", {"inputs": [written]}), expected)
    np.testing.assert_array_equal(ask("/embed", {"inputs": written, "prompt_name": "query"}), expected)
    for name in ("tiny", "tiny:document"):  # Letter for letter.
        plain = vectors(ask("/v1/embeddings", {"input": written, "model": name}))
        np.testing.assert_array_equal(plain, np.asarray(model.encode([written])))


def test_other_prompts_and_contradictions(ask, matryoshka):
    own = FlagModel(matryoshka)
    for body in ({"model": "doll", "prompt_name": "topic"}, {"model": "doll", "input_type": "topic"}):
        np.testing.assert_array_equal(
            vectors(ask("/v1/embeddings", {"input": "cat", **body})),
            np.asarray(own.encode(["cat"], prompt_name="topic")),
        )
    error = ask("/v1/embeddings", {"input": "cat", "model": "doll", "prompt_name": "other"}, 422)["error"]
    assert "query, document, topic" in error["message"] and error["param"] == "prompt_name"
    message = ask("/v1/embeddings", {"input": "a", "model": "tiny:query", "input_type": "document"}, 422)["message"]
    assert "leave one of them out" in message
    listed = {each["id"]: each for each in ask("/v1/models")["data"]}
    assert list(listed) == ["tiny", "tiny:query", "tiny:document", "doll", "doll:query", "doll:document", "judge",
                            "classes"]  # fmt: skip
    assert listed["tiny:query"]["prompt"] == EN and "prompt" not in listed["tiny"]
    assert ask("/v1/models/doll:query")["prompt"] == "q: "
    assert ask("/models/judge")["object"] == "model"
    assert "tiny" in ask("/v1/models/nobody", status=404)["error"]["message"]


def test_widths_that_the_model_was_trained_for(ask, matryoshka):
    cut = vectors(ask("/v1/embeddings", {"input": TEXTS, "model": "doll", "dimensions": 16}))
    np.testing.assert_allclose(cut, np.asarray(FlagModel(matryoshka, truncate_dim=16).encode(TEXTS)), atol=1e-7)
    np.testing.assert_array_equal(ask("/doll/embed", {"inputs": TEXTS, "dimensions": 16}), cut)
    answer = ask("/v2/embed", {"texts": TEXTS, "model": "doll", "output_dimension": 16, "embedding_types": ["float"]})
    np.testing.assert_array_equal(answer["embeddings"]["float"], cut)
    for name, width, said in (("doll", 12, "trained to be cut to 8, 16"), ("tiny", 16, "was not trained to be cut")):
        error = ask("/v1/embeddings", {"input": "a", "model": name, "dimensions": width}, 400)["error"]
        assert said in error["message"] and error["param"] == "dimensions"


def test_token_ids(ask, bge_name, model):
    for body in ({"input": [[15339, 1917]]}, {"input": [5, 6]}):
        assert "check_embedding_ctx_length=False" in ask("/v1/embeddings", body, 400)["error"]["message"]
    assert "check_embedding_ctx_length" in ask("/embed", {"inputs": [[5, 6]]}, 400)["error"]
    with TestClient(create_app({"tiny": bge_name}, accept_token_ids=True)) as client:
        ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS[:3]]
        long = client.post("/embed", json={"inputs": [5] * 63, "truncate": False})
        assert long.status_code == 422 and "has 65 tokens" in long.json()["error"]
        found = vectors(client.post("/v1/embeddings", json={"input": ids}).json())
        np.testing.assert_array_equal(found, np.asarray(model.encode(TEXTS[:3])))


def test_tei_shapes(ask, model, judge, two_classes):
    expected = np.asarray(model.encode(TEXTS))
    np.testing.assert_array_equal(ask("/embed", {"inputs": TEXTS, "truncate": None}), expected)
    assert int(ask.headers["x-compute-tokens"]) > 64 and int(ask.headers["x-compute-characters"]) == sum(
        map(len, TEXTS)
    )
    np.testing.assert_array_equal(ask("/", {"inputs": TEXTS[0], "normalize": True}), expected[:1])
    raw = FlagModel(model.folder, normalize_embeddings=False).encode(TEXTS)
    np.testing.assert_allclose(ask("/embed", {"inputs": TEXTS, "normalize": False}), np.asarray(raw), atol=1e-6)
    cosines = ask("/", {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}, "parameters": {}})
    np.testing.assert_allclose(cosines, expected[1:] @ expected[0], atol=1e-6)
    kept = ask("/embed", {"inputs": "dog " * 90 + "cat", "truncation_direction": "Left"})
    np.testing.assert_array_equal(kept, np.asarray(model.encode(["dog " * 61 + "cat"])))
    scores = judge.compute_score([("cat", each) for each in PASSAGES], normalize=True)
    body = {"query": "cat", "texts": PASSAGES, "raw_scores": False, "truncation_direction": "Right"}
    for path in ("/rerank", "/judge/rerank", "/judge/", "/"):
        assert ranks(ask(path, body), "score") == ordered(scores)
    found = ask("/rerank", {**body, "raw_scores": True, "return_text": True})
    assert [each["text"] for each in found] == [PASSAGES[place] for place, _ in ordered(scores)]
    raw_scores = judge.compute_score([("cat", each) for each in PASSAGES])
    assert ranks(found, "score") == ordered(raw_scores)
    assert ask("/predict", {"inputs": ["cat", PASSAGES[0]]}) == [
        {"score": pytest.approx(scores[0]), "label": "LABEL_0"}
    ]
    pairs = [["cat", each] for each in PASSAGES]
    found = ask("/predict", {"inputs": pairs, "raw_scores": True})
    assert [each[0]["score"] for each in found] == pytest.approx(raw_scores, abs=1e-6)
    of_two = FlagReranker(two_classes).compute_score([("cat", each) for each in PASSAGES], normalize=True)
    for predicted, score in zip(ask("/classes/predict", {"inputs": pairs}), of_two, strict=True):
        found = {each["label"]: each["score"] for each in predicted}
        assert found == {"relevant": pytest.approx(score), "irrelevant": pytest.approx(1 - score)}
        assert [each["score"] for each in predicted] == sorted(found.values(), reverse=True)
    assert "two classes" in ask("/classes/predict", {"inputs": pairs, "raw_scores": True}, 422)["error"]
    assert ask("/classes/info")["model_type"]["reranker"]["id2label"] == {"0": "irrelevant", "1": "relevant"}
    info = ask("/judge/info")
    assert list(info["model_type"]) == ["reranker"] and info["max_input_length"] == 64
    assert ask("/info")["model_type"] == {"embedding": {"pooling": "cls"}}


def test_tei_tokens(ask, model):
    [tokens] = ask("/tokenize", {"inputs": "dés 样 cat"})
    assert [token["id"] for token in tokens] == model.tokenizer("dés 样 cat")["input_ids"]
    assert tokens[0] == {"id": tokens[0]["id"], "text": "[CLS]", "special": True, "start": None, "stop": None}
    text = "dés 样 cat".encode()
    assert all(text[token["start"] : token["stop"]].decode() == token["text"] for token in tokens[1:-1])
    [plain] = ask("/tokenize", {"inputs": ["cat"], "add_special_tokens": False})
    [prompted] = ask("/tokenize", {"inputs": ["cat"], "prompt_name": "query"})
    assert len(plain) == 1 and len(prompted) == len(model.tokenizer(f"{EN}cat")["input_ids"])
    assert ask("/decode", {"ids": [token["id"] for token in prompted]}) == [model.tokenizer.decode(
        [token["id"] for token in prompted], skip_special_tokens=True)]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "said"),
    [
        ("/embed", {"inputs": []}, 400, "Empty", "`inputs` cannot be empty"),
        ("/embed", {"inputs": "river " * 90, "truncate": False}, 422, "Validation", "64"),
        ("/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "Validation", "'Right' or 'Left'"),
        ("/embed", {"inputs": ["a", None]}, 422, "Validation", "`inputs[1]`: expected"),
        ("/embed", {"input": "a"}, 422, "Validation", "inputs"),
        ("/embed", b"{", 400, "Validation", "not JSON"),
        ("/judge/embed", {"inputs": "a"}, 424, "Backend", "judge"),
        ("/tiny/rerank", {"query": "a", "texts": ["b"]}, 424, "Backend", "tiny"),
        ("/embed_sparse", {"inputs": "a"}, 424, "Backend", "has no head for sparse"),
        ("/predict", {"inputs": "a"}, 422, "Validation", "[query, text]"),
    ],
)
def test_tei_errors(path, body, status, kind, said, ask):
    error = ask(path, body, status)
    assert error["error_type"] == kind and said in error["error"]


def test_rerank_shapes(ask, judge):
    scores = judge.compute_score([("cat", each) for each in PASSAGES], normalize=True)
    body = {"query": "cat", "documents": PASSAGES, "model": "judge"}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        answer = ask(path, {**body, "top_n": None, "rank_fields": None})
        assert ranks(answer["results"]) == ordered(scores)
        assert "document" not in answer["results"][0] and answer["id"] and answer["usage"]["total_tokens"] > 0
    objects = [{"text": each, "title": "x"} for each in PASSAGES]
    answer = ask("/v1/rerank", {**body, "documents": objects, "return_documents": True, "top_n": 2})
    assert ranks(answer["results"]) == ordered(scores)[:2]
    assert answer["results"][0]["document"] == {"text": PASSAGES[ordered(scores)[0][0]]}
    for off in ({"raw_scores": True}, {"use_activation": False}):
        raw = judge.compute_score([("cat", each) for each in PASSAGES])
        assert ranks(ask("/rerank", {**body, **off})["results"]) == ordered(raw)
    short = ask("/rerank", {**body, "documents": "cat dog bird", "max_tokens_per_doc": 1})["results"][0]
    assert short["relevance_score"] == pytest.approx(judge.compute_score(("cat", "cat"), normalize=True))
    for wrong, status, said in (
        ({"documents": []}, 400, "empty"), ({"documents": [{"a": 1}]}, 422, "`documents[0]`"),
        ({"top_n": -1}, 422, "top_n"), ({"model": "tiny"}, 422, "tiny"), ({"documents": None}, 422, "documents"),
    ):  # fmt: skip
        assert said in ask("/rerank", {**body, **wrong}, status)["message"]


def test_scores_of_pairs(ask, judge, model):
    pairs = [("cat", each) for each in PASSAGES]
    for names in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")):
        answer = ask("/score", {names[0]: "cat", names[1]: PASSAGES})
        assert [each["score"] for each in answer["data"]] == pytest.approx(judge.compute_score(pairs, normalize=True))
    assert answer["data"][1]["object"] == "score"
    expected = np.asarray(model.encode(PASSAGES))
    answer = ask("/v1/score", {"model": "tiny", "text_1": PASSAGES, "text_2": PASSAGES[::-1]})
    found = [each["score"] for each in answer["data"]]
    np.testing.assert_allclose(found, (expected * expected[::-1]).sum(axis=1), atol=1e-6)
    assert "2 texts" in ask("/score", {"text_1": ["a", "b"], "text_2": ["c"] * 3}, 422)["message"]
    assert "text_1" in ask("/score", {"text_1": "a"}, 422)["message"]


def test_cohere_shapes(ask, model):
    body = {"model": "tiny", "texts": TEXTS, "input_type": "search_document"}
    expected = np.asarray(model.encode_corpus(TEXTS))
    answer = ask("/v2/embed", {**body, "embedding_types": ["float", "base64", "ubinary", "binary"], "truncate": "END"})
    np.testing.assert_array_equal(answer["embeddings"]["float"], expected)
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(answer["embeddings"]["base64"][0]), "<f4"), expected[0]
    )
    bits = np.unpackbits(np.asarray(answer["embeddings"]["ubinary"], np.uint8), axis=1)
    np.testing.assert_array_equal(bits, expected >= 0)
    signed = np.asarray(answer["embeddings"]["ubinary"], np.int16) - 128
    np.testing.assert_array_equal(answer["embeddings"]["binary"], signed)
    query = ask("/v2/embed", {"model": "tiny", "inputs": [{"content": [{"type": "text", "text": "cat"}]}],
                              "input_type": "search_query"})  # fmt: skip
    np.testing.assert_array_equal(query["embeddings"]["float"], np.asarray(model.encode_queries(["cat"])))
    plain = ask("/v1/embed", {"texts": TEXTS, "input_type": "classification", "model": "tiny"})
    np.testing.assert_array_equal(plain["embeddings"], np.asarray(model.encode(TEXTS)))
    for wrong, status, said in (
        ({"truncate": "NONE"}, 422, "64"), ({"truncate": "MIDDLE"}, 422, "NONE, START or END"),
        ({"embedding_types": ["int8"]}, 422, "'int8' is not served: Cohere does not publish"),
        ({"embedding_types": ["float", "half"]}, 422, "'half' is not served; ask for float"),
        ({"texts": None}, 400, "empty"), ({"images": ["x"]}, 422, "texts"),
    ):  # fmt: skip
        assert said in ask("/v2/embed", {**body, **wrong}, status)["message"]
    kept = {"model": "tiny", "texts": ["dog " * 90 + "cat"], "truncate": "START", "max_tokens": 10**6}
    np.testing.assert_array_equal(
        ask("/v2/embed", kept)["embeddings"]["float"], np.asarray(model.encode(["dog " * 61 + "cat"]))
    )


def test_a_long_answer_is_that_of_its_texts(ask, model):
    texts = [f"cat {number}" for number in range(1100)]
    expected = np.asarray(model.encode(texts))
    assert expected.size > bodies._SHORT
    np.testing.assert_array_equal(vectors(ask("/v1/embeddings", {"input": texts})), expected)
    np.testing.assert_array_equal(ask("/embed", {"inputs": texts}), expected)
    answer = ask("/v2/embed", {"texts": texts, "embedding_types": ["float", "ubinary"]})["embeddings"]
    np.testing.assert_array_equal(answer["float"], expected)
    np.testing.assert_array_equal(np.unpackbits(np.asarray(answer["ubinary"], np.uint8), axis=1), expected >= 0)


def test_bodies_that_are_none(ask, model):
    lone = b'{"input": ["a \\ud800 b", "\\ud83d\\ude00"]}'
    np.testing.assert_array_equal(
        vectors(ask("/v1/embeddings", lone)), np.asarray(model.encode(["a � b", "\U0001f600"]))
    )
    answer = ask("/rerank", b'{"query": "\\udfff", "documents": ["\\ud800"], "return_documents": true}')
    assert answer["results"][0]["document"]["text"] == "�"
    for body, said in (
        (b"", "JSON"),
        (b"{", "JSON"),
        (b'{"x": ' + b"[" * 100_000, "nested"),
        (b'{"input": "\xff"}', "UTF-8"),
    ):
        assert said in ask("/v1/embeddings", body, 400)["error"]["message"]
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        error = ask("/v1/embeddings", b'{"input": "a"}', 415, kind=kind)
        assert "Content-Type: application/json" in error["error"]["message"]
    ask("/v1/embeddings", b'{"input": "a"}', kind="application/json; charset=utf-8")


def test_the_document_names_every_route(ask):
    document = ask("/openapi.json")
    for path, methods in document["paths"].items():
        for method in methods:
            wrong = {"/v1/embeddings": 400, "/embeddings": 400, "/pooling": 400, "/v1/search": 404}.get(path, 422)
            status = 404 if path == "/v1/search/info" else 200 if method == "get" else wrong
            ask(path.replace("{id}", "tiny"), None if method == "get" else b"[]", status)
