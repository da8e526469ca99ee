"""Real models on real data: vectors of plain transformers, golden values, published scores.

Run as a program it prints the table: `python tests/test_published_scores.py`.
"""

from __future__ import annotations

import functools
import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from bgekit import FlagModel

#: model, data set, published score (x100), measured by the tests of `test_scores`.
STS = [
    ("bge-small-zh-v1.5", "STSB/test", 76.73),
    ("packaged:all-MiniLM-L6-v2", "STSBenchmark/test", 82.03),
    ("bge-small-en-v1.5", "STSBenchmark/test", 85.86),
    ("bge-small-zh-v1.5", "LCQMC/test", 72.19),
    ("bge-small-zh-v1.5", "AFQMC/validation", 33.42),
]
RETRIEVAL = [("packaged:all-MiniLM-L6-v2", "SciFact", 64.51), ("bge-small-en-v1.5", "SciFact", 71.27)]
PRECISIONS = {"float32": 0.1, "default": 0.3}


def read(path: Path) -> list[dict[str, Any]]:
    """Records of `path` + `.jsonl`, gzipped or not."""
    plain = path.with_name(path.name + ".jsonl")
    with plain.open(encoding="utf-8") if plain.exists() else gzip.open(f"{plain}.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load(name: str, models: Path, precision: str) -> FlagModel:
    path = name if name.startswith("packaged:") else models / name
    return FlagModel(path, use_fp16=precision == "default", devices="cpu")


def sts_score(model: FlagModel, records: list[dict[str, Any]]) -> float:
    """Spearman correlation (x100) of cosine and label."""
    a = model.encode([record["sentence1"] for record in records])
    b = model.encode([record["sentence2"] for record in records])
    return 100 * float(spearmanr((a * b).sum(1), [record["score"] for record in records]).statistic)


def ndcg_score(model: FlagModel, folder: Path) -> float:
    """nDCG@10 (x100) with binary relevance, ties by position."""
    corpus, queries = read(folder / "corpus"), {record["_id"]: record["text"] for record in read(folder / "queries")}
    relevant: dict[str, set[str]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0:
            relevant.setdefault(query, set()).add(document)
    documents = model.encode_corpus([f"{record['title']} {record['text']}".strip() for record in corpus])
    scores = model.encode_queries([queries[query] for query in relevant]) @ documents.T
    gains = []
    for row, wanted in zip(scores, relevant.values(), strict=True):
        best = np.argsort(-row, kind="stable")[:10]
        gained = sum(1 / np.log2(rank + 2) for rank, i in enumerate(best) if corpus[i]["_id"] in wanted)
        gains.append(gained / sum(1 / np.log2(rank + 2) for rank in range(min(10, len(wanted)))))
    return 100 * float(np.mean(gains))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "data", "published"), [STS[0], *(pytest.param(*row, marks=pytest.mark.slow) for row in STS[1:])]
)
def test_sts_scores(
    shared_path: Callable[..., Path], minilm: str, name: str, data: str, published: float, precision: str
) -> None:
    model = load(name, shared_path("models"), precision)
    folder, split = data.split("/")
    score = sts_score(model, read(shared_path("data", folder) / split))
    assert abs(score - published) < PRECISIONS[precision], score


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "data", "published"), RETRIEVAL)
def test_retrieval_scores(
    shared_path: Callable[..., Path], minilm: str, name: str, data: str, published: float, precision: str
) -> None:
    score = ndcg_score(load(name, shared_path("models"), precision), shared_path("data", data))
    assert abs(score - published) < PRECISIONS[precision], score


@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "bge-small-zh-v1.5"])
def test_golden_ids_and_vectors(shared_path: Callable[..., Path], name: str) -> None:
    golden = json.loads(shared_path("models", name, "golden.json").read_text(encoding="utf-8"))
    model = load(name, shared_path("models"), "float32")
    texts = [entry["text"] for entry in golden]
    ids = model.tokenizer(texts, truncation=True, max_length=512)["input_ids"]
    assert ids == [entry["input_ids"] for entry in golden]
    assert np.abs(model.encode(texts) - np.array([entry["vector"] for entry in golden])).max() < 1e-5


@functools.cache
def mixed_texts(data: Path, count: int) -> list[str]:
    """Real English and Chinese texts of 1 to more than 512 tokens."""
    pick = random.Random(0)
    english = [f"{record['title']} {record['text']}" for record in read(data / "SciFact" / "corpus")]
    chinese = [record["text"] for record in read(data / "CMRC2018Retrieval" / "corpus")]
    short = [record["sentence1"] for name in ("LCQMC", "STSBenchmark") for record in read(data / name / "test")]
    pool = [pick.sample(texts, min(len(texts), count)) for texts in (english, chinese, short)]
    texts = [text for group in pool for text in group]
    texts += [" ".join(pick.sample(english, 3)) for _ in range(count // 20)]
    texts += ["".join(text[: pick.randint(1, 12)]) for text in pick.sample(chinese, min(len(chinese), count // 10))]
    return pick.sample(texts, count)


def plain_vectors(folder: Path, texts: list[str], *, mean: bool, max_length: int) -> Iterator[np.ndarray]:
    """One text at a time through plain transformers in float32."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        for text in texts:
            batch = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
            hidden = model(**batch).last_hidden_state[0].double()
            vector = hidden.mean(0) if mean else hidden[0]
            yield (vector / vector.norm()).numpy()


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "bge-small-zh-v1.5", "packaged:all-MiniLM-L6-v2"])
def test_every_text_is_close_to_plain_transformers(
    shared_path: Callable[..., Path], minilm: str, name: str, count: int
) -> None:
    worst = worst_cosines(name, shared_path("models"), shared_path("data"), count)
    assert worst["float32"] >= 0.9999
    assert worst["default"] >= 0.999


def worst_cosines(name: str, models: Path, data: Path, count: int) -> dict[str, float]:
    texts, worst = mixed_texts(data, count), {}
    reference: np.ndarray | None = None
    for precision in PRECISIONS:
        model = load(name, models, precision)
        if reference is None:
            mean = model.card.pooling == "mean"
            vectors = plain_vectors(model.folder, texts, mean=mean, max_length=model.card.max_length)
            reference = np.stack(list(vectors))
        worst[precision] = float((model.encode(texts).astype(np.float64) * reference).sum(1).min())
    return worst


def main() -> None:
    shared = Path(__file__).resolve().parents[2] / "shared"
    print(f"{'model':28} {'data':18} {'precision':9} {'ours':>7} {'published':>9} {'diff':>6}")
    for name, data, published in [*STS, *RETRIEVAL]:
        for precision in PRECISIONS:
            model = load(name, shared / "models", precision)
            path = shared / "data" / data
            score = ndcg_score(model, path) if (name, data, published) in RETRIEVAL else sts_score(model, read(path))
            print(
                f"{name:28} {data:18} {precision:9} {score:7.2f} {published:9.2f} {score - published:+6.2f}", flush=True
            )
    for name in ("bge-small-en-v1.5", "bge-small-zh-v1.5", "packaged:all-MiniLM-L6-v2"):
        worst = worst_cosines(name, shared / "models", shared / "data", 2000)
        print(
            f"{name:28} worst cosine of 2,000 texts: {worst['float32']:.7f} fp32, {worst['default']:.5f} default",
            flush=True,
        )


if __name__ == "__main__":
    main()
