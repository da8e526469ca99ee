"""The families that BAAI published: BGE embedders of every generation, and the BGE rerankers."""

from __future__ import annotations

from typing import Final

from .family import Family
from .prompts import Prompt

_ENGLISH: Final = Prompt("Represent this sentence for searching relevant passages: ")
_CHINESE: Final = Prompt("为这个句子生成表示以用于检索相关文章：")

#: How the BGE models on top of language models take an instruction; a caller may name any task.
_INSTRUCT: Final = "<instruct>{}\n<query>{}"
_INSTRUCT_ICL: Final = "<instruct>{}\n<query>{}\n<response>"
_WEB_SEARCH: Final = "Given a web search query, retrieve relevant passages that answer the query."

_V1_NOTICE: Final = (
    "the scores of BGE v1 models lie in about [0.6, 1], even for unrelated texts; "
    "the v1.5 model of the same size has the better similarity distribution and is used in the same way"
)
_README: Final = "FlagEmbedding README, model list and usage"

FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        title="BGE v1.5, English",
        names=("bge-small-en-v1.5", "bge-base-en-v1.5", "bge-large-en-v1.5"),
        pooling="cls",
        normalize=True,
        query=_ENGLISH,
        max_length=512,
        dimensions={"bge-small-en-v1.5": 384, "bge-base-en-v1.5": 768, "bge-large-en-v1.5": 1024},
        source=_README,
    ),
    Family(
        title="BGE v1.5, Chinese",
        names=("bge-small-zh-v1.5", "bge-base-zh-v1.5", "bge-large-zh-v1.5"),
        pooling="cls",
        normalize=True,
        query=_CHINESE,
        max_length=512,
        dimensions={"bge-small-zh-v1.5": 512, "bge-base-zh-v1.5": 768, "bge-large-zh-v1.5": 1024},
        source=_README,
    ),
    Family(
        title="BGE v1, English",
        names=("bge-small-en", "bge-base-en", "bge-large-en"),
        pooling="cls",
        normalize=True,
        query=_ENGLISH,
        max_length=512,
        dimensions={"bge-small-en": 384, "bge-base-en": 768, "bge-large-en": 1024},
        notice=_V1_NOTICE,
        source=_README,
    ),
    Family(
        title="BGE v1, Chinese",
        names=("bge-small-zh", "bge-base-zh", "bge-large-zh"),
        pooling="cls",
        normalize=True,
        query=_CHINESE,
        max_length=512,
        dimensions={"bge-small-zh": 512, "bge-base-zh": 768, "bge-large-zh": 1024},
        notice=_V1_NOTICE,
        source=_README,
    ),
    Family(
        title="BGE v1, Chinese, without instruction",
        names=("bge-large-zh-noinstruct",),
        pooling="cls",
        normalize=True,
        max_length=512,
        dimensions={"bge-large-zh-noinstruct": 1024},
        notice=_V1_NOTICE,
        source=_README,
    ),
    Family(
        title="BGE-M3 (dense vectors)",
        names=("bge-m3", "bge-m3-unsupervised"),
        pooling="cls",
        normalize=True,
        max_length=8192,
        dimensions={"bge-m3": 1024, "bge-m3-unsupervised": 1024},
        source="FlagEmbedding README, BGE-M3: no instruction on either side",
    ),
    Family(
        title="BGE-M3, pre-trained only",
        names=("bge-m3-retromae",),
        pooling="cls",
        normalize=True,
        max_length=8192,
        dimensions={"bge-m3-retromae": 1024},
        notice="bge-m3-retromae is only pre-trained: its similarities mean nothing before it is fine-tuned",
        source="FlagEmbedding README, BGE-M3",
    ),
    Family(
        title="LLM-Embedder",
        names=("llm-embedder",),
        pooling="cls",
        normalize=True,
        query=Prompt("Represent this query for retrieving relevant documents: "),
        document=Prompt("Represent this document for retrieval: "),
        max_length=512,
        dimensions={"llm-embedder": 768},
        notice=(
            "llm-embedder has instructions for six tasks; these are the ones for question answering, "
            "pass query_instruction_for_retrieval= and passage_instruction_for_retrieval= for another task"
        ),
        source="FlagEmbedding, LLMEmbedder, task qa",
    ),
    Family(
        title="BGE on Gemma 2, multilingual",
        names=("bge-multilingual-gemma2",),
        pooling="last_token",
        normalize=True,
        query=Prompt.from_format(_WEB_SEARCH, _INSTRUCT),
        template=_INSTRUCT,
        max_length=8192,
        dimensions={"bge-multilingual-gemma2": 3584},
        source="model card of BAAI/bge-multilingual-gemma2; format in FlagEmbedding's table of models",
    ),
    Family(
        title="BGE-ICL, English",
        names=("bge-en-icl",),
        pooling="last_token",
        normalize=True,
        query=Prompt.from_format(_WEB_SEARCH, _INSTRUCT_ICL),
        template=_INSTRUCT_ICL,
        max_length=32768,
        dimensions={"bge-en-icl": 4096},
        source="model card of BAAI/bge-en-icl, zero-shot use; FlagEmbedding's FlagICLModel for the suffix",
    ),
    Family(
        title="BGE-Code",
        names=("bge-code-v1",),
        pooling="last_token",
        normalize=True,
        template=_INSTRUCT,
        dimensions={"bge-code-v1": 1536},
        notice=(
            "bge-code-v1 expects an instruction that names the task, such as query_instruction_for_retrieval="
            "'Given a question in text, retrieve SQL queries that are appropriate responses to the question.'"
        ),
        source="FlagEmbedding research/BGE_Coder README",
    ),
    Family(
        title="BGE-Reasoner",
        names=("bge-reasoner-embed-qwen3-8b-0923",),
        pooling="last_token",
        normalize=True,
        template="Instruct: {}\nQuery: {}",
        max_length=8192,
        dimensions={"bge-reasoner-embed-qwen3-8b-0923": 4096},
        notice="bge-reasoner-embed wants an instruction for the task: pass query_instruction_for_retrieval=",
        source="FlagEmbedding research/BGE_Reasoner README",
    ),
    Family(
        title="BGE rerankers",
        names=(
            "bge-reranker-base",
            "bge-reranker-large",
            "bge-reranker-v2-m3",
            "bge-reranker-v2-gemma",
            "bge-reranker-v2-minicpm-layerwise",
            "bge-reranker-v2.5-gemma2-lightweight",
        ),
        kind="reranker",
        source="FlagEmbedding README, rerankers",
    ),
)
