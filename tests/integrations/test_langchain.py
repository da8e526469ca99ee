"""Our LangChain class, and LangChain's own classes on folders that we saved."""

import asyncio
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bgekit import FlagModel
from bgekit.errors import MissingExtraError
from bgekit.models.card import UNSET

pytest.importorskip("langchain_core")

from bgekit.integrations.langchain import BgeEmbeddings, HuggingFaceBgeEmbeddings

ZH = "为这个句子生成表示以用于检索相关文章："
FP32 = {"device": "cpu", "use_fp16": False}
DOCUMENTS = ["the cat sleeps", "a river runs to the sea", "样例数据-1"]


@pytest.fixture(scope="module")
def folder(make_model):
    return make_model(name="bge-small-zh-v1.5")


@pytest.fixture(scope="module")
def model(folder):
    return FlagModel(folder, use_fp16=False)


@pytest.fixture
def embeddings(folder):
    return BgeEmbeddings(model_name=str(folder), model_kwargs=FP32, encode_kwargs={"normalize_embeddings": True})


def test_documents_and_queries(embeddings, model):
    documents = embeddings.embed_documents(DOCUMENTS)
    assert type(documents) is list
    assert type(documents[0]) is list
    assert type(documents[0][0]) is float
    np.testing.assert_allclose(documents, model.encode_corpus(DOCUMENTS), atol=1e-6)
    query = embeddings.embed_query("样例")
    assert type(query) is list
    np.testing.assert_allclose(query, model.encode_queries("样例"), atol=1e-6)
    assert embeddings.embed_documents([]) == []


def test_the_instruction_is_the_cards_and_can_be_set(embeddings, model):
    assert (embeddings.query_instruction, embeddings.embed_instruction) == (ZH, "")
    embeddings.query_instruction = "find: "
    assert embeddings.query_instruction == "find: "
    np.testing.assert_allclose(embeddings.embed_query("cat"), model.encode("find: cat"), atol=1e-6)
    for none in (None, ""):
        embeddings.query_instruction = none
        np.testing.assert_allclose(embeddings.embed_query("cat"), model.encode("cat"), atol=1e-6)
    embeddings.query_instruction = UNSET
    np.testing.assert_allclose(embeddings.embed_query("cat"), model.encode(f"{ZH}cat"), atol=1e-6)
    embeddings.embed_instruction = "read: "
    np.testing.assert_allclose(embeddings.embed_documents(["cat"]), model.encode(["read: cat"]), atol=1e-6)


def test_instructions_of_the_constructor(folder, model):
    embeddings = BgeEmbeddings(str(folder), model_kwargs=FP32, query_instruction="q: ", embed_instruction="d: ")
    np.testing.assert_allclose(embeddings.embed_query("cat"), model.encode("q: cat"), atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_documents(["cat"]), model.encode(["d: cat"]), atol=1e-6)
    assert BgeEmbeddings(str(folder), query_instruction=None).query_instruction == ""


@pytest.mark.parametrize(("asked", "stored", "unit"), [(True, False, True), (False, False, False), (False, True, True)])
def test_normalize_embeddings_means_what_it_does_in_langchain(folder, asked, stored, unit):
    model = FlagModel(folder, use_fp16=False, normalize_embeddings=stored)
    vectors = BgeEmbeddings(model, encode_kwargs={"normalize_embeddings": asked}).embed_documents(DOCUMENTS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) == unit


def test_takes_a_loaded_model(model):
    embeddings = BgeEmbeddings(model, encode_kwargs={"batch_size": 2, "convert_to_numpy": False})
    assert (embeddings.model, embeddings.model_name) == (model, model.card.name)
    np.testing.assert_allclose(embeddings.embed_documents(DOCUMENTS), model.encode_corpus(DOCUMENTS), atol=1e-6)


def test_a_folder_and_unknown_arguments(folder):
    assert BgeEmbeddings(folder, model_kwargs={"truncate_dim": 8}, cache_folder="unused").model.dimension == 8
    with pytest.raises(TypeError, match="nonsense"):
        BgeEmbeddings(folder, model_kwargs={"nonsense": 1})
    with pytest.raises(TypeError, match="nonsense"):
        BgeEmbeddings(folder, encode_kwargs={"nonsense": 1}).embed_query("a")


def test_asynchronous_and_from_threads(embeddings):
    expected = embeddings.embed_documents(DOCUMENTS)

    async def together():
        return await asyncio.gather(embeddings.aembed_documents(DOCUMENTS), embeddings.aembed_query("cat"))

    documents, query = asyncio.run(together())
    np.testing.assert_allclose(documents, expected, atol=1e-6)
    np.testing.assert_allclose(query, embeddings.embed_query("cat"), atol=1e-6)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(embeddings.embed_documents, [DOCUMENTS] * 8):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_as_a_retriever(minilm):
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore.from_texts(["Cats sleep all day.", "Granite is a rock."], BgeEmbeddings(minilm))
    assert store.as_retriever(search_kwargs={"k": 1}).invoke("a lazy pet")[0].page_content == "Cats sleep all day."


def test_langchains_name_is_there_too():
    assert HuggingFaceBgeEmbeddings is BgeEmbeddings


def test_without_langchain_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain_core.embeddings", None)
    monkeypatch.delitem(sys.modules, "bgekit.integrations.langchain")
    with pytest.raises(MissingExtraError, match=r"bgekit\[langchain\]"):
        importlib.import_module("bgekit.integrations.langchain")


@pytest.fixture(scope="module", params=["tiny", "bge_small_zh", "minilm"])
def saved(request, tmp_path_factory):
    """A folder that bgekit saved, and its model in float32."""
    source = request.getfixturevalue("folder" if request.param == "tiny" else request.param)
    target = tmp_path_factory.mktemp("saved") / "model"
    FlagModel(source).save(target)
    return str(target), FlagModel(target, use_fp16=False)


@pytest.mark.filterwarnings("ignore")
def test_the_class_of_langchain_community(saved):
    community = pytest.importorskip("langchain_community.embeddings")
    folder, model = saved
    theirs = community.HuggingFaceBgeEmbeddings(
        model_name=folder, model_kwargs={"device": "cpu"}, encode_kwargs={"normalize_embeddings": True},
        query_instruction=model.card.prompt("query").prefix,
    )  # fmt: skip
    np.testing.assert_allclose(theirs.embed_documents(DOCUMENTS), model.encode_corpus(DOCUMENTS), atol=1e-5)
    np.testing.assert_allclose(theirs.embed_query("cat"), model.encode_queries("cat"), atol=1e-5)
    ours = BgeEmbeddings(model)
    np.testing.assert_allclose(theirs.embed_query("cat"), ours.embed_query("cat"), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_class_of_langchain_huggingface(saved):
    huggingface = pytest.importorskip("langchain_huggingface")
    folder, model = saved
    theirs = huggingface.HuggingFaceEmbeddings(
        model_name=folder, model_kwargs={"device": "cpu"}, query_encode_kwargs={"prompt_name": "query"}
    )
    np.testing.assert_allclose(theirs.embed_documents(DOCUMENTS), model.encode_corpus(DOCUMENTS), atol=1e-5)
    np.testing.assert_allclose(theirs.embed_query("cat"), model.encode_queries("cat"), atol=1e-5)
