"""The four usages that FlagEmbedding documents run as they are written there, and give the same vectors.

Changed are only the name of the model, the device, and the place where LangChain has its class now.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from bgekit import FlagModel

FLAG_EMBEDDING = """
from FlagEmbedding import FlagModel
sentences_1 = ["样例数据-1", "样例数据-2"]
sentences_2 = ["样例数据-3", "样例数据-4"]
model = FlagModel('BAAI/bge-large-zh-v1.5',
                  query_instruction_for_retrieval="为这个句子生成表示以用于检索相关文章：",
                  use_fp16=True) # Setting use_fp16 to True speeds up computation with a slight performance degradation
embeddings_1 = model.encode(sentences_1)
embeddings_2 = model.encode(sentences_2)
similarity = embeddings_1 @ embeddings_2.T
print(similarity)

# for s2p(short query to long passage) retrieval task, suggest to use encode_queries() which will automatically add the instruction to each query
# corpus in retrieval task can still use encode() or encode_corpus(), since they don't need instruction
queries = ['query_1', 'query_2']
passages = ["样例文档-1", "样例文档-2"]
q_embeddings = model.encode_queries(queries)
p_embeddings = model.encode(passages)
scores = q_embeddings @ p_embeddings.T
"""  # noqa: E501

SENTENCE_TRANSFORMERS = """
from sentence_transformers import SentenceTransformer
sentences_1 = ["样例数据-1", "样例数据-2"]
sentences_2 = ["样例数据-3", "样例数据-4"]
model = SentenceTransformer('BAAI/bge-large-zh-v1.5')
embeddings_1 = model.encode(sentences_1, normalize_embeddings=True)
embeddings_2 = model.encode(sentences_2, normalize_embeddings=True)
similarity = embeddings_1 @ embeddings_2.T
print(similarity)
"""

SENTENCE_TRANSFORMERS_QUERIES = """
from sentence_transformers import SentenceTransformer
queries = ['query_1', 'query_2']
passages = ["样例文档-1", "样例文档-2"]
instruction = "为这个句子生成表示以用于检索相关文章："

model = SentenceTransformer('BAAI/bge-large-zh-v1.5')
q_embeddings = model.encode([instruction+q for q in queries], normalize_embeddings=True)
p_embeddings = model.encode(passages, normalize_embeddings=True)
scores = q_embeddings @ p_embeddings.T
"""

LANGCHAIN = """
from langchain.embeddings import HuggingFaceBgeEmbeddings
model_name = "BAAI/bge-large-en-v1.5"
model_kwargs = {'device': 'cuda'}
encode_kwargs = {'normalize_embeddings': True} # set True to compute cosine similarity
model = HuggingFaceBgeEmbeddings(
    model_name=model_name,
    model_kwargs=model_kwargs,
    encode_kwargs=encode_kwargs,
    query_instruction="为这个句子生成表示以用于检索相关文章："
)
model.query_instruction = "为这个句子生成表示以用于检索相关文章："
"""

TRANSFORMERS = """
from transformers import AutoTokenizer, AutoModel
import torch
# Sentences we want sentence embeddings for
sentences = ["样例数据-1", "样例数据-2"]

# Load model from HuggingFace Hub
tokenizer = AutoTokenizer.from_pretrained('BAAI/bge-large-zh-v1.5')
model = AutoModel.from_pretrained('BAAI/bge-large-zh-v1.5')
model.eval()

# Tokenize sentences
encoded_input = tokenizer(sentences, padding=True, truncation=True, return_tensors='pt')
# for s2p(short query to long passage) retrieval task, add an instruction to query (not add instruction for passages)
# encoded_input = tokenizer([instruction + q for q in queries], padding=True, truncation=True, return_tensors='pt')

# Compute token embeddings
with torch.no_grad():
    model_output = model(**encoded_input)
    # Perform pooling. In this case, cls pooling.
    sentence_embeddings = model_output[0][:, 0]
# normalize embeddings
sentence_embeddings = torch.nn.functional.normalize(sentence_embeddings, p=2, dim=1)
print("Sentence embeddings:", sentence_embeddings)
"""

PROGRAMS = [FLAG_EMBEDDING, SENTENCE_TRANSFORMERS, SENTENCE_TRANSFORMERS_QUERIES, LANGCHAIN, TRANSFORMERS]

pytestmark = pytest.mark.filterwarnings("ignore")


def run(program, folder, *, fp16=True, langchain="langchain_community.embeddings"):
    """The names that a program leaves behind."""
    program = re.sub(r"BAAI/bge-large-(zh|en)-v1.5", Path(folder).as_posix(), program)
    program = program.replace("'cuda'", "'cpu'").replace("langchain.embeddings", langchain)
    if not fp16:
        program = program.replace("use_fp16=True)", "use_fp16=False)")
    names = {"__name__": "__main__"}
    exec(compile(program, "usage", "exec"), names)
    return names


@pytest.fixture(scope="module", params=["tiny", "real"])
def source(request, make_model):
    if request.param == "tiny":
        return make_model(name="bge-large-zh-v1.5")
    return request.getfixturevalue("bge_small_zh")


@pytest.fixture(scope="module", params=["as published", "saved by bgekit"])
def folder(request, source, tmp_path_factory):
    if request.param == "as published":
        return source
    FlagModel(source).save(target := tmp_path_factory.mktemp("saved") / "my-model")
    return target


@pytest.fixture(scope="module")
def reference(folder):
    """What FlagModel gives in float32."""
    return run(FLAG_EMBEDDING, folder, fp16=False)


def same(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5, rtol=0)


def test_programs_are_those_of_the_seed(shared_path):
    (seed,) = shared_path("seed").glob("*.txt")
    text = re.sub(r" +$", "", seed.read_text("utf-8"), flags=re.MULTILINE)
    usage = text.split("\n## Usage")[1].split("\n## ")[0]
    assert [f"\n{block}" for block in re.findall(r"^```python\n(.*?)^```", usage, re.DOTALL | re.MULTILINE)] == PROGRAMS


def test_flag_embedding_as_written(folder, reference):
    names = run(FLAG_EMBEDDING, folder)
    assert names["FlagModel"] is FlagModel
    assert names["similarity"].shape == names["scores"].shape == (2, 2)
    for name in ("embeddings_1", "embeddings_2", "q_embeddings", "p_embeddings"):
        cosines = (names[name] * reference[name]).sum(1)
        assert cosines.min() > 0.999, name
    assert abs(names["scores"] - reference["scores"]).max() < 0.03


def test_sentence_transformers(folder, reference):
    pytest.importorskip("sentence_transformers")
    names = run(SENTENCE_TRANSFORMERS, folder)
    for name in ("embeddings_1", "embeddings_2", "similarity"):
        same(names[name], reference[name])
    names = run(SENTENCE_TRANSFORMERS_QUERIES, folder)
    for name in ("q_embeddings", "p_embeddings", "scores"):
        same(names[name], reference[name])


@pytest.mark.parametrize("home", ["langchain_community.embeddings", "bgekit.integrations.langchain"])
def test_langchain(folder, reference, home):
    pytest.importorskip("langchain_core")
    pytest.importorskip("langchain_community")
    program = LANGCHAIN
    if home.startswith("bgekit"):
        program = program.replace("{'device': 'cuda'}", "{'device': 'cuda', 'use_fp16': False}")
    model = run(program, folder, langchain=home)["model"]
    same(model.embed_documents(reference["sentences_1"]), reference["embeddings_1"])
    same(model.embed_documents(reference["passages"]), reference["p_embeddings"])
    same([model.embed_query(query) for query in reference["queries"]], reference["q_embeddings"])


def test_bgekit_in_langchain_as_written(folder, reference):
    pytest.importorskip("langchain_core")
    model = run(LANGCHAIN, folder, langchain="bgekit.integrations.langchain")["model"]
    found = np.asarray([model.embed_query(query) for query in reference["queries"]])
    assert (found * reference["q_embeddings"]).sum(1).min() > 0.999


def test_transformers(folder, reference):
    same(run(TRANSFORMERS, folder)["sentence_embeddings"], reference["embeddings_1"])
