"""The classes for other frameworks with a server's address in place of a model."""

import numpy as np
import pytest

pytest.importorskip("starlette")

from bgekit import FlagModel
from bgekit.errors import ApiError, ArgumentError
from bgekit.integrations.served import ServedModel
from serving.running_server import running

ZH = "为这个句子生成表示以用于检索相关文章："
DOCUMENTS = ["the cat sleeps", "a river runs to the sea", "样例数据-1", "", "a lone \ud800 surrogate"]


@pytest.fixture(scope="module")
def folder(make_model):
    return make_model(name="bge-small-zh-v1.5")


@pytest.fixture(scope="module")
def model(folder):
    return FlagModel(folder)


@pytest.fixture(scope="module")
def address(folder, tiny_reranker, tiny_bert):
    from bgekit.serving import create_app

    models = {"judge": tiny_reranker, "zh": folder, "other": tiny_bert}
    with running(create_app(models, api_keys=("a-key",))) as address:
        yield address


@pytest.fixture
def bge(monkeypatch):
    pytest.importorskip("langchain_core")
    from bgekit.integrations.langchain import BgeEmbeddings

    monkeypatch.setenv("BGE_API_KEY", "a-key")
    return BgeEmbeddings


@pytest.mark.parametrize("named", ["", "/zh", "/zh/"])
def test_langchain_gets_the_vectors_of_the_model(named, bge, address, model):
    embeddings = bge(address + named)
    np.testing.assert_array_equal(embeddings.embed_documents(DOCUMENTS), np.asarray(model.encode_corpus(DOCUMENTS)))
    np.testing.assert_array_equal(embeddings.embed_query("样例"), np.asarray(model.encode_queries("样例")))
    assert embeddings.embed_documents([]) == []
    assert (embeddings.query_instruction, embeddings.embed_instruction) == (ZH, "")
    assert embeddings.model_name == address + named


def test_instructions_of_the_caller(bge, address, model):
    embeddings = bge(f"{address}/zh", query_instruction="find: ", encode_kwargs={"batch_size": 2})
    np.testing.assert_array_equal(embeddings.embed_query("cat"), np.asarray(model.encode("find: cat")))
    embeddings.query_instruction = None
    np.testing.assert_array_equal(embeddings.embed_query("cat"), np.asarray(model.encode("cat")))
    np.testing.assert_array_equal(embeddings.embed_documents(DOCUMENTS), np.asarray(model.encode_corpus(DOCUMENTS)))


def test_what_cannot_be(bge, address, monkeypatch, folder):
    with pytest.raises(ArgumentError, match="leave out model_kwargs"):
        bge(address, model_kwargs={"device": "cpu"})
    with pytest.raises(ArgumentError, match="goes with the address"):
        bge(str(folder), api_key="a-key")
    with pytest.raises(ArgumentError, match="api_key="):
        ServedModel("http://user:password@host:1")
    with pytest.raises(ArgumentError, match="no use for encode_kwargs max_length"):
        bge(address, encode_kwargs={"max_length": 8}).embed_query("a")
    with pytest.raises(ApiError, match=r"no embedder by this name.*zh"):
        bge(f"{address}/judge").embed_query("a")
    with pytest.raises(ApiError, match="401"):
        bge(address, api_key="another").embed_query("a")
    monkeypatch.setattr("bgekit.integrations.served._TRIES", 1)
    with pytest.raises(ApiError, match="cannot be asked"):
        ServedModel("http://127.0.0.1:9").embed(["a"])


def test_a_full_queue_is_asked_again(monkeypatch):
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    asked, waited = [], []

    async def models(request):
        return JSONResponse({"data": [{"id": "m"}, {"id": "m:query", "prompt": "q: "}, {"id": "m:document"}]})

    async def embeddings(request):
        body = await request.json()
        asked.append((body["model"], body["input"]))
        if len(asked) == 1:
            return JSONResponse({"error": {"message": "full"}}, 429, {"retry-after": "3"})
        return JSONResponse({"data": [{"index": 0, "embedding": "AACAPwAAAEA="}]})

    monkeypatch.setattr("time.sleep", waited.append)
    routes = [Route("/v1/models", models), Route("/v1/embeddings", embeddings, methods=["POST"])]
    with running(Starlette(routes=routes)) as address:
        served = ServedModel(address)
        assert served.prompt("query") == "q: "
        assert served.embed(["a"], "query").tolist() == [[1.0, 2.0]]
    assert asked == [("m:query", ["a"])] * 2 and 3.0 in waited


def test_llama_index(address, model, folder):
    pytest.importorskip("llama_index.core")
    from bgekit.integrations.llama_index import BgeEmbedding

    for embeddings in (BgeEmbedding(f"{address}/zh", api_key="a-key"), BgeEmbedding(folder)):
        found = embeddings.get_text_embedding_batch(DOCUMENTS)
        np.testing.assert_array_equal(found, np.asarray(model.encode_corpus(DOCUMENTS)))
        np.testing.assert_array_equal(embeddings.get_query_embedding("样例"), np.asarray(model.encode_queries("样例")))
