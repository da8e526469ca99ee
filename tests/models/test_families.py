"""The family table: every instruction string is written out here, not imported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bgekit.models.card import POOLINGS, Prompt, listed
from bgekit.models.families import FAMILIES, find_family, known_dimension, known_matryoshka, known_name, model_name

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："
INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
BGE_LLM = "<instruct>Given a web search query, retrieve relevant passages that answer the query.\n<query>"

# title of the family -> query prefix, query suffix, document prefix, document suffix
PROMPTS: dict[str, tuple[str, str, str, str]] = {
    "BGE v1.5, English": (EN, "", "", ""),
    "BGE v1.5, Chinese": (ZH, "", "", ""),
    "BGE v1, English": (EN, "", "", ""),
    "BGE v1, Chinese": (ZH, "", "", ""),
    "LLM-Embedder": (
        "Represent this query for retrieving relevant documents: ",
        "",
        "Represent this document for retrieval: ",
        "",
    ),
    "BGE on Gemma 2, multilingual": (BGE_LLM, "", "", ""),
    "BGE-ICL, English": (BGE_LLM, "\n<response>", "", ""),
    "E5, English": ("query: ", "", "passage: ", ""),
    "E5, multilingual": ("query: ", "", "passage: ", ""),
    "E5, multilingual, with instructions": (INSTRUCT, "", "", ""),
    "E5 on Mistral": (INSTRUCT, "", "", ""),
    "SFR on Mistral": (INSTRUCT, "", "", ""),
    "GTE on Qwen": (INSTRUCT, "", "", ""),
    "Qwen3-Embedding": (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
        "",
        "",
        "",
    ),
    "INSTRUCTOR": (
        "Represent the question for retrieving supporting documents: ",
        "",
        "Represent the document for retrieval: ",
        "",
    ),
    "Nomic on ModernBERT": ("search_query: ", "", "search_document: ", ""),
    "LightOn on ModernBERT, large": ("search_query: ", "", "search_document: ", ""),
    "Nomic Embed": ("search_query: ", "", "search_document: ", ""),
    "Nomic Embed v2": ("search_query: ", "", "search_document: ", ""),
    "Snowflake Arctic Embed": (EN, "", "", ""),
    "Snowflake Arctic Embed, long": (EN, "", "", ""),
    "Snowflake Arctic Embed v2, large": ("query: ", "", "", ""),
    "Snowflake Arctic Embed v2, medium": ("query: ", "", "", ""),
    "mxbai and UAE, large": (EN, "", "", ""),
    "EmbeddingGemma": ("task: search result | query: ", "", "title: none | text: ", ""),
    "Stella v5, English": (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query.\nQuery: ",
        "",
        "",
        "",
    ),
    "SGPT for retrieval": ("[", "]", "{", "}"),
}

TEMPLATES = {
    "BGE on Gemma 2, multilingual": "<instruct>{}\n<query>{}",
    "BGE-ICL, English": "<instruct>{}\n<query>{}\n<response>",
    "BGE-Code": "<instruct>{}\n<query>{}",
    "BGE-Reasoner": "Instruct: {}\nQuery: {}",
    "E5, multilingual, with instructions": "Instruct: {}\nQuery: {}",
    "E5 on Mistral": "Instruct: {}\nQuery: {}",
    "SFR on Mistral": "Instruct: {}\nQuery: {}",
    "Linq on Mistral": "Instruct: {}\nQuery: {}",
    "GTE on Qwen": "Instruct: {}\nQuery: {}",
    "Qwen3-Embedding": "Instruct: {}\nQuery:{}",
    "Stella v5, English": "Instruct: {}\nQuery: {}",
}

POOLING = {
    "bge-small-en-v1.5": "cls",
    "bge-large-zh": "cls",
    "bge-large-zh-noinstruct": "cls",
    "bge-m3": "cls",
    "bge-m3-unsupervised": "cls",
    "bge-m3-retromae": "cls",
    "llm-embedder": "cls",
    "bge-multilingual-gemma2": "last_token",
    "bge-en-icl": "last_token",
    "bge-code-v1": "last_token",
    "gte-large": "mean",
    "gte-base-zh": "cls",
    "gte-large-en-v1.5": "cls",
    "gte-Qwen2-7B-instruct": "last_token",
    "gte-modernbert-base": "cls",
    "e5-large": "mean",
    "e5-small-v2": "mean",
    "multilingual-e5-large": "mean",
    "multilingual-e5-large-instruct": "mean",
    "e5-mistral-7b-instruct": "last_token",
    "instructor-xl": "mean",
    "sentence-t5-xxl": "mean",
    "all-mpnet-base-v2": "mean",
    "all-MiniLM-L6-v2": "mean",
    "all-MiniLM-L12-v2": "mean",
    "multi-qa-mpnet-base-dot-v1": "cls",
    "multi-qa-MiniLM-L6-cos-v1": "mean",
    "paraphrase-multilingual-MiniLM-L12-v2": "mean",
    "sgpt-bloom-7b1-msmarco": "weighted_mean",
    "SGPT-125M-weightedmean-nli-bitfit": "weighted_mean",
    "SGPT-5.8B-weightedmean-msmarco-specb-bitfit": "weighted_mean",
    "m3e-base": "mean",
    "luotuo-bert-medium": "cls",
    "text2vec-base-chinese": "mean",
    "text2vec-large-chinese": "mean",
    "Qwen3-Embedding-0.6B": "last_token",
    "modernbert-embed-base": "mean",
    "nomic-embed-text-v1.5": "mean",
    "snowflake-arctic-embed-m": "cls",
    "mxbai-embed-large-v1": "cls",
}

# The two tables of the FlagEmbedding README that the project started from: name -> width.
SEED_MODELS = {
    "bge-large-en-v1.5": 1024, "bge-base-en-v1.5": 768, "bge-small-en-v1.5": 384, "bge-large-en": 1024,
    "bge-base-en": 768, "gte-large": 1024, "gte-base": 768, "e5-large-v2": 1024, "bge-small-en": 384,
    "instructor-xl": 768, "e5-base-v2": 768, "gte-small": 384, "text-embedding-ada-002": 1536,
    "e5-small-v2": 384, "sentence-t5-xxl": 768, "all-mpnet-base-v2": 768, "sgpt-bloom-7b1-msmarco": 4096,
    "bge-large-zh-v1.5": 1024, "bge-base-zh-v1.5": 768, "bge-small-zh-v1.5": 512, "bge-large-zh": 1024,
    "bge-large-zh-noinstruct": 1024, "bge-base-zh": 768, "multilingual-e5-large": 1024, "bge-small-zh": 512,
    "m3e-base": 768, "m3e-large": 1024, "multilingual-e5-base": 768, "multilingual-e5-small": 384,
    "luotuo-bert-medium": 1024, "text2vec-base-chinese": 768, "text2vec-large-chinese": 1024,
}  # fmt: skip

BY_TITLE = {family.title: family for family in FAMILIES}


def test_titles_and_names_are_unique():
    assert len(BY_TITLE) == len(FAMILIES)
    names = [name.lower() for family in FAMILIES for name in family.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("title", [family.title for family in FAMILIES])
def test_every_prompt_is_pinned(title: str):
    family = BY_TITLE[title]
    prompts = (family.query.prefix, family.query.suffix, family.document.prefix, family.document.suffix)
    assert prompts == PROMPTS.get(title, ("", "", "", ""))
    assert family.template == TEMPLATES.get(title)


def test_nothing_pinned_is_gone():
    assert set(PROMPTS) | set(TEMPLATES) <= set(BY_TITLE)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_families_are_well_formed(family):
    assert family.names
    assert family.source
    assert family.kind in ("embedder", "reranker", "api")
    assert set(family.dimensions) <= set(family.names)
    assert (family.pooling is not None) == (family.kind == "embedder")
    assert family.pooling in (None, *POOLINGS)
    assert family.similarity in (None, "cosine", "dot")
    assert family.notice is None or "\n" not in family.notice
    if family.template and family.query:
        # The default prompt is the template around an instruction, so both say the same.
        head, middle, tail = family.template.split("{}")
        assert family.query.prefix.startswith(head)
        assert family.query.prefix.endswith(middle)
        assert family.query.suffix == tail


@pytest.mark.parametrize(("name", "pooling"), POOLING.items())
def test_pooling_is_pinned(name: str, pooling: str):
    family = find_family(name)
    assert family is not None
    assert family.pooling == pooling


@pytest.mark.parametrize(("name", "width"), SEED_MODELS.items())
def test_models_of_the_published_tables(name: str, width: int):
    family = find_family(name)
    assert family is not None
    assert family.dimensions[name] == width


def test_seed_tables_as_they_stand(shared_path):
    (seed,) = shared_path("seed").glob("*.txt")
    row = re.compile(r"^\| \[\W*([^]*]+)\W*\]\(([^)]+)\)\s*\|\s*(\d+)", re.MULTILINE)
    rows = row.findall(seed.read_text(encoding="utf-8"))
    assert len(rows) == 33
    for label, url, width in rows:
        name = model_name(label.removesuffix("(OpenAI)"))
        if find_family(name) is None:
            name = model_name(url)
        family = find_family(name)
        assert family is not None, f"{label} is missing"
        assert family.dimensions[name] == int(width), label


@pytest.mark.parametrize(
    "name",
    ["bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3", "bge-reranker-v2-gemma",
     "bge-reranker-v2-minicpm-layerwise", "bge-reranker-v2.5-gemma2-lightweight"],
)  # fmt: skip
def test_rerankers_are_known_as_such(name: str):
    family = find_family(f"BAAI/{name}")
    assert family is not None
    assert family.kind == "reranker"


@pytest.mark.parametrize(
    ("name", "width"),
    [("text-embedding-ada-002", 1536), ("text-embedding-3-small", 1536), ("text-embedding-3-large", 3072)],
)
def test_hosted_models(name: str, width: int):
    family = find_family(name)
    assert family is not None
    assert (family.kind, family.dimensions[name], family.max_length) == ("api", width, 8192)


def test_v1_advises_v1_5_and_v1_5_does_not():
    for name in ("bge-small-en", "bge-base-zh", "bge-large-zh-noinstruct"):
        notice = find_family(name).notice
        assert "[0.6, 1]" in notice
        assert "v1.5" in notice
    for name in ("bge-small-en-v1.5", "bge-base-zh-v1.5", "bge-m3"):
        assert find_family(name).notice is None


def test_facts_that_files_do_not_say():
    assert find_family("instructor-large").include_prompt is False
    assert all(family.include_prompt is None for family in FAMILIES if family.title != "INSTRUCTOR")
    assert find_family("bge-m3").max_length == 8192
    assert find_family("bge-m3").query == find_family("bge-m3").document == Prompt()
    dot = find_family("multi-qa-mpnet-base-dot-v1")
    assert (dot.similarity, dot.normalize) == ("dot", False)
    assert find_family("all-MiniLM-L6-v2").max_length == 256


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("BAAI/bge-m3", "bge-m3"),
        ("bge-m3", "bge-m3"),
        ("BAAI/BGE-M3", "BGE-M3"),
        ("/tmp/copy/bge-m3/", "bge-m3"),
        ("./bge-m3", "bge-m3"),
        ("runs\\bge-m3", "bge-m3"),
        ("runs/bge-m3/checkpoint-500", "bge-m3"),
        ("/home/me/hub/models--BAAI--bge-m3/snapshots/5617a9f", "bge-m3"),
        ("packaged:bge-m3", "bge-m3"),
    ],
)
def test_names_and_paths(given: str, name: str):
    assert model_name(given) == name
    assert find_family(given) is find_family("bge-m3") is not None


@pytest.mark.parametrize("given", ["", ".", "/", "my-own-model", "bge-m3-finetuned", "checkpoint-500"])
def test_unknown_names(given: str):
    assert find_family(given) is None


def test_the_page_for_people_lists_every_model():
    page = Path(__file__).parents[2] / "docs" / "models.md"
    text = page.read_text(encoding="utf-8")
    for family in FAMILIES:
        assert family.title in text
        for name in family.names:
            assert f"`{name}`" in text, f"{name} is missing in docs/models.md"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("/root/.cache/modelscope/hub/models/BAAI/bge-base-zh-v1___5", "bge-base-zh-v1.5"),
        ("Qwen/Qwen3-Embedding-0___6B", "Qwen3-Embedding-0.6B"),
        ("BAAI_bge-large-en-v1.5", "bge-large-en-v1.5"),
        ("downloads/BAAI--bge-large-en-v1.5", "bge-large-en-v1.5"),
        ("intfloat_multilingual-e5-large-instruct", "multilingual-e5-large-instruct"),
        ("Alibaba-NLP__gte-Qwen2-1.5B-instruct", "gte-Qwen2-1.5B-instruct"),
        ("BAAI%2Fbge-code-v1", "bge-code-v1"),
        ("cache/models--mixedbread-ai--mxbai-embed-large-v1", "mxbai-embed-large-v1"),
        ("cache/models--BAAI--bge-m3/snapshots/main/", "bge-m3"),
        ("models/multilingual-e5-small/7999e1d3359715c523056ef9478215996d62a620", "multilingual-e5-small"),
        ("e5-base-v2-main", "e5-base-v2"),
        ("snowflake_arctic_embed_m_v1.5-master", "snowflake-arctic-embed-m-v1.5"),
        ("BGE_SMALL_EN_V15", "bge-small-en-v1.5"),
        ("stella-en-400M-v5", "stella_en_400M_v5"),
        ("llm-embedder/model", "llm-embedder"),
        ("serving/embeddinggemma-300m/1/model/", "embeddinggemma-300m"),
        ("nomic-embed-text-v1.5/checkpoint", "nomic-embed-text-v1.5"),
        (r"D:\weights\bge-large-zh\weights", "bge-large-zh"),
        ("quentinz/bge-large-zh-v1.5:f16", "bge-large-zh-v1.5"),
        ("qwen/qwen3-embedding-8b:free", "Qwen3-Embedding-8B"),
        ("text-embedding-bge-base-en-v1.5@q8_0", "bge-base-en-v1.5"),
        ("openai/text-embedding-3-small", "text-embedding-3-small"),
        ("BAAI_bge-reranker-v2___5-gemma2-lightweight", "bge-reranker-v2.5-gemma2-lightweight"),
    ],
)
def test_a_name_is_known_as_downloads_and_servers_write_it(written: str, name: str):
    assert known_name(written) == name
    assert find_family(written) is find_family(name)
    assert known_dimension(written) == find_family(name).dimensions.get(name)


@pytest.mark.parametrize("owner", ["BAAI_", "BAAI--", "baai/", ""])
@pytest.mark.parametrize("behind", ["", "-main", ":latest", "/model"])
def test_every_name_of_the_table_is_known_with_what_stands_around_it(owner: str, behind: str):
    for family in FAMILIES:
        for name in family.names:
            for written in (name, name.replace(".", "___"), name.replace("-", "_").upper()):
                assert known_name(f"{owner}{written}{behind}") == name


@pytest.mark.parametrize(
    "name",
    ["my-bge-base-zh-v1.5", "bge-base-zh-v1.5-finetuned-legal", "somebody_bge-base-zh-v1.5", "bge-base-zh-v1.5-lora",
     "bge-base-zh-v1.5/output", "bge-base-zh-v2", "e5", "model", "/", ".", "", "checkpoint-500"],
)  # fmt: skip
def test_another_word_makes_it_another_model(name: str):
    assert known_name(name) is None
    assert find_family(name) is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("bge-small-en-v1.5", "BAAI/bge-small-en-v1.5"), ("BAAI/bge-smal-en-v1.5", "BAAI/bge-small-en-v1.5"),
        ("baai/bge-m4", "BAAI/bge-m3"), ("BAAI/bge-small-en-v1.5", None), ("my-own-model", None),
        ("text-embedding-3-small", None), ("text-embedding-3-smal", "text-embedding-3-small"),
        ("UAE-Large-V1", "WhereIsAI/UAE-Large-V1"),
    ],
)  # fmt: skip
def test_the_id_that_was_meant(typed, meant):
    from bgekit.models.families import nearest_id

    assert nearest_id(typed) == meant


def test_owners_are_of_models_that_there_are():
    from bgekit.models.families import FAMILIES

    assert not [name for family in FAMILIES for name in family.owners if name not in family.names]


def test_models_that_may_be_cut_and_to_what():
    widths = {name: dims for family in FAMILIES for name, dims in family.matryoshka.items()}
    assert widths["embeddinggemma-300m"] == (128, 256, 512)
    assert widths["Qwen3-Embedding-0.6B"] == tuple(range(32, 1024)) and "nomic-embed-text-v1.5" not in widths
    assert known_matryoshka("Snowflake/snowflake-arctic-embed-m-v1.5") == (256,)
    assert known_matryoshka("snowflake-arctic-embed-m") is None and known_matryoshka("BAAI/bge-m3") is None
    for family in FAMILIES:
        for name, dims in family.matryoshka.items():
            assert list(dims) == sorted(set(dims)) and 0 < dims[0] and dims[-1] < family.dimensions[name]
    assert listed((64, 128, *range(256, 768))) == "64, 128, 256 to 767" and listed(()) == ""
