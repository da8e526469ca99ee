"""Data as the hub, its cache and the package `datasets` lay it out, made small: each layout of the benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bgekit.errors import DataError
from bgekit.evaluation.benchmarks.local_folders import benchmark_tasks, find_tasks
from bgekit.evaluation.readers.detect import read_tasks

from .conftest import jsonl

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

HASH = "7d0fe9e5e5b2b2d0"
DOCUMENTS = [{"id": f"d{i}", "text": f"文档 {i}"} for i in range(5)]
QUERIES = [{"id": "q1", "text": "问题一"}, {"id": "q2", "text": "问题二"}]
JUDGED = [{"qid": "q1", "pid": "d0", "score": 1}, {"qid": "q2", "pid": "d3", "score": 2}]
BEIR_JUDGED = [{"query-id": row["qid"], "corpus-id": row["pid"], "score": row["score"]} for row in JUDGED]
RANKED = [{"query-id": "q1", "corpus-ids": ["d0", "d1", "d2"]}, {"query-id": "q2", "corpus-ids": ["d4", "d3"]}]
PAIRS = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "score": float(i)} for i in range(4)]
LISTS = [{"sent1": ["a", "b", "c"], "sent2": ["x", "y", "z"], "labels": [1, 0, 1]}]
CLASSES = [{"text": f"t{i}", "label": i % 2, "label_text": "no yes".split()[i % 2]} for i in range(6)]
PROBLEMS = [{"sentences": ["a", "b", "c"], "labels": ["x", "y", "x"]}] * 2
GROUPS = [{"query": "q", "positive": ["p", "r"], "negative": ["n"]}]
SUMMARIES = [{
    "text": "t", "human_summaries": ["h"], "machine_summaries": ["m", "n"], "relevance": [1.0, 4.5],
    "coherence": [1.0, 2.0], "id": "s1",
}]  # fmt: skip


def write(root: Path, files: dict[str, list[dict[str, Any]] | str]) -> Path:
    """Files below a folder: rows as Parquet, Arrow or JSON lines, as their names say; texts as they are."""
    for name, rows in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, str):
            path.write_text(rows, encoding="utf-8")
        elif name.endswith(".parquet"):
            parquet.write_table(pa.Table.from_pylist(rows), path)
        elif name.endswith(".arrow"):
            table = pa.Table.from_pylist(rows)
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
        else:
            path.write_text(jsonl(rows), encoding="utf-8")
    return root


@dataclass(frozen=True)
class Layout:
    """Files of a task of a benchmark as they lie below a data root."""

    benchmark: str
    task: str
    files: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """Where the package `datasets` keeps what it makes of files: not in the user's own cache."""
    config = pytest.importorskip("datasets.config")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def shards(stem: str, *parts: list[dict[str, Any]], hashed: bool = True) -> dict[str, Any]:
    """Shards under the names that `datasets` gives them, each with a hash of its own."""
    return {
        f"{stem}-{i:05d}-of-{len(parts):05d}{f'-{i}{HASH}' if hashed else ''}.parquet": rows
        for i, rows in enumerate(parts)
    }


def below(folder: str, files: dict[str, Any]) -> dict[str, Any]:
    return {f"{folder}/{name}": rows for name, rows in files.items()}


CLASSIC = {
    **below("T2Retrieval/data", {**shards("corpus", DOCUMENTS[:2], DOCUMENTS[2:]), **shards("queries", QUERIES)}),
    "T2Retrieval/README.md": "---\nlicense: apache-2.0\n---\n",
}
CLASSIC_QRELS = below("T2Retrieval-qrels/data", shards("dev", JUDGED))
CONFIGS = {
    **shards("corpus/dev", DOCUMENTS, hashed=False), **shards("queries/dev", QUERIES, hashed=False),
    **shards("qrels/dev", BEIR_JUDGED, hashed=False),
}  # fmt: skip
CACHED = "datasets--C-MTEB--T2Retrieval"
README = """---
configs:
- config_name: default
  data_files:
  - split: dev
    path: qrels/dev.jsonl
- config_name: corpus
  data_files:
  - split: corpus
    path: all_documents.jsonl
- config_name: queries
  data_files:
  - split: queries
    path: [all_questions.jsonl]
---
A collection.
"""
RETRIEVAL = {
    "two repositories, shards with hashes": {**CLASSIC, **CLASSIC_QRELS},
    "two repositories of an owner": below("C-MTEB", {**CLASSIC, **CLASSIC_QRELS}),
    "two repositories in the cache": {
        **{f"{CACHED}/snapshots/abc/{name.partition('/')[2]}": rows for name, rows in CLASSIC.items()},
        **{f"{CACHED}-qrels/snapshots/def/{name.partition('/')[2]}": rows for name, rows in CLASSIC_QRELS.items()},
        f"{CACHED}/refs/main": "abc", f"{CACHED}/snapshots/older/data/corpus.jsonl": DOCUMENTS[:1],
        "models--BAAI--bge-small-zh/snapshots/abc/config.json": "{}",
    },
    "a folder for each configuration": below("T2Retrieval", CONFIGS),
    "judgements as the default configuration": {
        **below("T2Retrieval", {name: rows for name, rows in CONFIGS.items() if "qrels" not in name}),
        **below("T2Retrieval/data", shards("dev", BEIR_JUDGED, hashed=False)),
    },
    "judgements in a folder default": {
        **below("t2retrieval", {name: rows for name, rows in CONFIGS.items() if "qrels" not in name}),
        **below("t2retrieval/default", shards("dev", BEIR_JUDGED, hashed=False)),
    },
    "splits of parts with names of their own": below("T2Retrieval", {
        **shards("corpus/corpus", DOCUMENTS, hashed=False), **shards("queries/queries", QUERIES, hashed=False),
        **shards("qrels/dev", BEIR_JUDGED, hashed=False), **shards("qrels/train", BEIR_JUDGED[:1], hashed=False),
    }),
    "JSON lines of the hub": below("T2Retrieval", {
        "corpus.jsonl": DOCUMENTS, "queries.jsonl": QUERIES, "qrels/dev.jsonl": BEIR_JUDGED,
    }),
    "configurations in the README": below("T2Retrieval", {
        "README.md": README, "all_documents.jsonl": DOCUMENTS, "all_questions.jsonl": QUERIES,
        "qrels/dev.jsonl": BEIR_JUDGED,
    }),
    "Parquet that the hub converted": below("T2Retrieval", {
        "corpus/dev/0000.parquet": DOCUMENTS[:3], "corpus/dev/0001.parquet": DOCUMENTS[3:],
        "queries/dev/0000.parquet": QUERIES, "default/dev/0000.parquet": BEIR_JUDGED,
    }),
    "BEIR's own repositories": {
        "BeIR/T2Retrieval/corpus/corpus-00000-of-00001.parquet": [
            {"_id": row["id"], "title": "", "text": row["text"]} for row in DOCUMENTS],
        "BeIR/T2Retrieval/queries/queries-00000-of-00001.parquet": [
            {"_id": row["id"], "title": "", "text": row["text"]} for row in QUERIES],
        "BeIR/T2Retrieval-qrels/validation.tsv": "query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td3\t2\n",
        "BeIR/T2Retrieval-qrels/train.tsv": "query-id\tcorpus-id\tscore\nq1\td2\t1\n",
    },
    "cache of the package datasets": below("C-MTEB___t2_retrieval", {
        "corpus/0.0.0/abc/t2_retrieval-dev-00000-of-00002.arrow": DOCUMENTS[:2],
        "corpus/0.0.0/abc/t2_retrieval-dev-00001-of-00002.arrow": DOCUMENTS[2:],
        "corpus/0.0.0/abc/dataset_info.json": "{}", "queries/0.0.0/abc/t2_retrieval-dev.arrow": QUERIES,
        "default/0.0.0/abc/t2_retrieval-dev.arrow": BEIR_JUDGED,
    }),
    "save_to_disk": below("T2Retrieval", {
        f"{part}/dev/data-00000-of-00001.arrow": rows
        for part, rows in (("corpus", DOCUMENTS), ("queries", QUERIES), ("qrels", BEIR_JUDGED))
    } | {"corpus/dataset_dict.json": '{"splits": ["dev"]}', "corpus/dev/state.json": "{}"}),
}  # fmt: skip


@pytest.mark.parametrize("files", RETRIEVAL.values(), ids=list(RETRIEVAL))
def test_retrieval(tmp_path, files):
    write(tmp_path, files)
    ((task,), _) = benchmark_tasks("c-mteb", data_root=tmp_path)
    assert (task.name, task.kind, task.exclusions) == ("T2Retrieval", "retrieval", ())
    assert task.split in ("dev", "validation", "t2_retrieval-dev")
    assert task.qrels == {"q1": {"d0": 1}, "q2": {"d3": 2}} and task.skip_identical_ids
    assert task.queries == {"q1": "问题一", "q2": "问题二"}
    assert [(r.id, r.text) for r in task.corpus.read()] == [(row["id"], row["text"]) for row in DOCUMENTS]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("T2Retrieval", "two repositories, shards with hashes"),
        (CACHED, "two repositories in the cache"),
        (f"{CACHED}/snapshots/abc", "two repositories in the cache"),
        ("T2Retrieval", "save_to_disk"),
        ("", "two repositories, shards with hashes"),
    ],
)
def test_such_a_folder_is_data_of_ones_own_as_well(tmp_path, given, name, caplog):
    write(tmp_path, RETRIEVAL[name])
    (task,) = read_tasks(tmp_path / given)
    assert (task.name, task.kind, len(task.corpus), task.qrels["q2"]) == ("T2Retrieval", "retrieval", 5, {"d3": 2})
    assert "left out" not in caplog.text


ROWS = {
    "STS, shards with hashes": Layout("c-mteb", "AFQMC", below("AFQMC/data", shards(
        "validation", PAIRS[:1], PAIRS[1:]))),
    "STS of an owner, zipped lines": Layout("mteb-en", "STSBenchmark", {"mteb/stsbenchmark-sts/test.jsonl": PAIRS}),
    "STS, rows of several languages": Layout("mteb-en", "STS17", below("sts17-crosslingual-sts/data", shards(
        "test", [row | {"lang": lang} for row in PAIRS for lang in ("ko-ko", "en-en")]))),
    "STS, a file for each language": Layout("mteb-en", "STS22", {
        "sts22-crosslingual-sts/test/en.jsonl": PAIRS, "sts22-crosslingual-sts/test/de.jsonl": PAIRS[:2]}),
    "STS of a language by its folder": Layout("c-mteb", "STS22", {
        "STS22/zh/test-00000-of-00001.parquet": PAIRS, "STS22/en/test-00000-of-00001.parquet": PAIRS[:2]}),
    "pairs as lists in one row": Layout("c-mteb", "Ocnli", below("OCNLI/data", shards("validation", LISTS))),
    "pairs as lists, lines": Layout("mteb-en", "TwitterURLCorpus", {
        "twitterurlcorpus-pairclassification/test.jsonl": LISTS}),
    "classification": Layout("c-mteb", "TNews", below("TNews-classification/data", {
        **shards("train", CLASSES), **shards("validation", CLASSES), **shards("test", CLASSES[:2])})),
    "classification, languages by folder": Layout("mteb-en", "AmazonReviewsClassification", {
        f"amazon_reviews_multi/{lang}/{split}.jsonl": CLASSES for lang in ("en", "de") for split in ("train", "test")}),
    "classification, languages by name": Layout("mteb-en", "MTOPDomainClassification", {
        f"MTOPDomainClassification/data/{split}_{lang}.jsonl": CLASSES
        for lang in ("en", "de") for split in ("train", "test")}),
    "classification, languages by row": Layout("mteb-en", "MassiveIntentClassification", {
        f"amazon_massive_intent/{split}.jsonl": [row | {"lang": lang} for lang in ("af", "en") for row in CLASSES]
        for split in ("train", "test")}),
    "classification, languages in the README": Layout("c-mteb", "MassiveScenarioClassification", {
        "amazon_massive_scenario/README.md": json.dumps({"configs": [
            {"config_name": lang, "data_files": [
                {"split": split, "path": f"x/{split}.{lang}*.jsonl"} for split in ("train", "test")]}
            for lang in ("zh-CN", "en")]}).join(("---\n", "\n---\n")),
        **{f"amazon_massive_scenario/x/{split}.{lang}.jsonl": CLASSES
           for lang in ("zh-CN", "en") for split in ("train", "test")}}),
    "clustering": Layout("c-mteb", "CLSClusteringP2P", below("CLSClusteringP2P/data", shards("test", PROBLEMS))),
    "clustering in the cache": Layout("mteb-en", "ArxivClusteringS2S", {
        "datasets--mteb--arxiv-clustering-s2s/snapshots/abc/test.jsonl": PROBLEMS}),
    "clustering, a text a row": Layout("mteb-en", "RedditClustering", below("reddit-clustering/data", shards(
        "test", [{"sentences": f"s{i}", "labels": f"l{i % 2}"} for i in range(4)]))),
    "reranking, rows": Layout("c-mteb", "T2Reranking", below("T2Reranking/data", shards("dev", GROUPS))),
    "reranking, another name": Layout("c-mteb", "MMarcoReranking", below("Mmarco-reranking/data", shards(
        "dev", GROUPS))),
    "summaries": Layout("mteb-en", "SummEval", below("summeval/data", shards("test", SUMMARIES))),
    "cache of the package datasets": Layout("c-mteb", "Cmnli", {
        "C-MTEB___cmnli/default/0.0.0/abc/cmnli-validation.arrow": LISTS,
        "C-MTEB___cmnli/default/0.0.0/abc/dataset_info.json": "{}",
        "C-MTEB___cmnli/default/0.0.0/abc_builder.lock": ""}),
    "the README says which of two forms counts": Layout("mteb-en", "BIOSSES", {
        "biosses-sts/README.md": "---\nconfigs:\n- config_name: default\n  data_files: data/test-*\n---\n",
        "biosses-sts/test.jsonl": PAIRS[:2], **below("biosses-sts/data", shards("test", PAIRS))}),
    "save_to_disk": Layout("c-mteb", "ATEC", {
        "ATEC/dataset_dict.json": '{"splits": ["validation", "test"]}', "ATEC/test/state.json": "{}",
        "ATEC/test/dataset_info.json": "{}", "ATEC/test/data-00000-of-00002.arrow": PAIRS[:2],
        "ATEC/test/data-00001-of-00002.arrow": PAIRS[2:], "ATEC/validation/data-00000-of-00001.arrow": PAIRS[:3]}),
}  # fmt: skip


@pytest.mark.parametrize("layout", ROWS.values(), ids=list(ROWS))
def test_rows(tmp_path, layout):
    write(tmp_path, layout.files)
    ((task,), _) = benchmark_tasks(layout.benchmark, [layout.task], tmp_path)
    assert task.name == layout.task and task.exclusions == ()
    content = {
        "sts": lambda: [*zip(task.first, task.second, task.scores, strict=True)] == [tuple(r.values()) for r in PAIRS],
        "pair_classification": lambda: (task.first, task.second, task.labels) == (list("abc"), list("xyz"), [1, 0, 1]),
        "classification": lambda: len(task.texts) == len(task.train_texts) == 6 and set(task.labels) == {"0", "1"},
        "clustering": lambda: task.sets in (
            [(list("abc"), list("xyx"))] * 2, [(["s0", "s1", "s2", "s3"], ["l0", "l1", "l0", "l1"])]
        ),
        "reranking": lambda: (list(task.groups[0].positives), list(task.groups[0].negatives)) == (["p", "r"], ["n"]),
        "summarization": lambda: list(task.groups[0].scores) == [1.0, 4.5],
    }  # fmt: skip
    assert content[task.kind]()


GRADED = [
    {"query-id": "q1", "corpus-id": "d0", "score": 3}, {"query-id": "q1", "corpus-id": "d1", "score": 0},
    {"query-id": "q1", "corpus-id": "d2", "score": 1}, {"query-id": "q2", "corpus-id": "d3", "score": 2},
    {"query-id": "q2", "corpus-id": "d0", "score": 1},
]  # fmt: skip
PARTS = {
    **shards("corpus/test", DOCUMENTS, hashed=False), **shards("queries/test", QUERIES, hashed=False),
    **shards("qrels/test", GRADED, hashed=False), **shards("top_ranked/test", RANKED, hashed=False),
}  # fmt: skip
STATED = "---\n" + json.dumps({"configs": [
    {"config_name": name, "data_files": [{"split": "test", "path": f"{folder}/test-*"}]}
    for name, folder in (("default", "qrels"), *((each, each) for each in ("corpus", "queries", "top_ranked")))
]}) + "\n---\n"  # fmt: skip


@pytest.mark.parametrize(
    ("files", "missed"),
    [
        (PARTS, [1]),
        ({**PARTS, "README.md": STATED}, [1]),
        ({name: rows for name, rows in PARTS.items() if "top" not in name} | {
            "candidates.tsv": "query-id\tcorpus-id\trank\nq1\td2\t1\nq1\td0\t2\nq1\td1\t3\nq2\td3\t1\nq2\td4\t2\n",
            "dataset.json": '{"task_type": "reranking", "main_metric": "ndcg_at_10"}'}, [1]),
        ({name: rows for name, rows in PARTS.items() if "top" not in name} | {
            "dataset.json": '{"task_type": "reranking"}'}, []),
    ],
    ids=["top_ranked", "in the README", "candidates", "what is judged"],
)  # fmt: skip
def test_graded_reranking(tmp_path, files, missed):
    (task,) = read_tasks(write(tmp_path / "Mine", files))
    assert (task.kind, task.name, task.exclusions) == ("reranking", "Mine", ())
    first, second = task.groups
    assert dict(zip(first.positives, first.grades, strict=True)) == {"文档 0": 3, "文档 2": 1}
    assert list(first.negatives) == ["文档 1"] and list(second.missed) == missed
    assert "2 of 2 queries have passages of several grades" in task.notes[0]


def test_graded_reranking_scores_as_mteb_loads_and_scores_it(tmp_path, embedder, datasets_cache):
    loaders = pytest.importorskip("mteb.abstasks.retrieval_dataset_loaders")
    from bgekit.evaluation.benchmarks.mteb_bridge import MtebEncoder, evaluate_mteb, local_mteb_task
    from bgekit.evaluation.judged_model import JudgedModel

    root = write(tmp_path / "Mine", {**PARTS, "README.md": STATED})
    (task,) = read_tasks(root)
    theirs = local_mteb_task(task)
    theirs.dataset = {"default": {"test": loaders.RetrievalDatasetLoader(str(root), None, split="test").load()}}
    model = embedder()
    expected = evaluate_mteb(theirs, MtebEncoder(model), "test", "ndcg_at_10").metrics
    found = task.score(JudgedModel(model)).metrics
    for name in ("ndcg_at_10", "map_at_10", "mrr_at_10", "recall_at_3", "precision_at_1"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
    assert 0 < found["ndcg_at_10"] < 0.999


SCORED = {
    "Ocnli": ("max_ap", shards("data/validation", [{
        "sent1": [f"a {i % 5}" for i in range(20)], "sent2": [f"b {i}" for i in range(20)],
        "labels": [0, 1, 1, 0] * 5}])),
    "AFQMC": ("cosine_spearman", shards("data/validation", [
        {"sentence1": f"a {i % 3}", "sentence2": f"b {i}", "score": float(i % 4)} for i in range(9)], PAIRS)),
    "ThuNewsClusteringS2S": ("v_measure", shards("data/test", [
        {"sentences": [f"s{i}" for i in range(30)], "labels": [f"l{i % 3}" for i in range(30)]}])),
    "CovidRetrieval": ("ndcg_at_10", {
        **shards("corpus/dev", DOCUMENTS[:2], DOCUMENTS[2:], hashed=False), **shards("queries/dev", QUERIES),
        **shards("qrels/dev", BEIR_JUDGED), "README.md": "---\n" + json.dumps({"configs": [
            {"config_name": name, "data_files": [{"split": "dev", "path": f"{folder}/dev-*"}]}
            for name, folder in (("corpus", "corpus"), ("queries", "queries"), ("default", "qrels"))
        ]}) + "\n---\n"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORED)
def test_tasks_of_mteb_score_alike_on_the_same_files(tmp_path, embedder, name, datasets_cache):
    mteb = pytest.importorskip("mteb")
    from bgekit.evaluation.benchmarks.mteb_bridge import MtebEncoder, evaluate_mteb
    from bgekit.evaluation.judged_model import JudgedModel

    metric, files = SCORED[name]
    root = write(tmp_path / name, files)
    theirs = mteb.get_task(name)
    theirs.metadata = theirs.metadata.model_copy(update={"dataset": {"path": str(root), "revision": None}})
    theirs.load_data()
    model = embedder()
    ((task,), _) = benchmark_tasks("c-mteb", [name], tmp_path)
    expected = evaluate_mteb(theirs, MtebEncoder(model, dtype="float64"), task.split, metric).metrics[metric]
    assert task.score(JudgedModel(model)).metrics[metric] == pytest.approx(expected, abs=1e-5)
    assert expected not in (0, 1)


def test_rows_are_those_that_datasets_loads(tmp_path):
    datasets = pytest.importorskip("datasets")
    files = {**shards("data/test", PAIRS[:1], PAIRS[1:3], PAIRS[3:]), **shards("data/train", PAIRS[:2])}
    root = write(tmp_path / "Mine", files)
    (task,) = read_tasks(root)
    loaded = datasets.load_dataset(str(root), split="test", cache_dir=str(tmp_path / "cache"))
    assert task.first == list(loaded["sentence1"]) and task.scores == list(loaded["score"])
    datasets.DatasetDict(test=loaded).save_to_disk(tmp_path / "saved", num_shards={"test": 2})
    loaded.save_to_disk(tmp_path / "alone")
    for place in ("saved", "alone", "saved/test/data-00001-of-00002.arrow"):
        (again,) = read_tasks(tmp_path / place)
        assert (again.first, again.scores) == (task.first, task.scores)


def test_languages_of_one_collection(tmp_path):
    for lang in ("sw", "zh"):
        texts = [{"id": row["id"], "text": f"{lang} {row['text']}"} for row in QUERIES]
        write(tmp_path / "MIRACLRetrieval", {
            **shards(f"{lang}-corpus/dev", DOCUMENTS), **shards(f"{lang}-queries/dev", texts),
            **shards(f"{lang}-qrels/dev", BEIR_JUDGED),
        })  # fmt: skip
    found = find_tasks("miracl", data_root=tmp_path)
    assert {task.name: task.queries["q1"] for task in found.tasks} == {
        "MIRACLRetrieval-sw": "sw 问题一", "MIRACLRetrieval-zh": "zh 问题一",
    }  # fmt: skip
    assert len(found.missing) == 16


def test_several_queries_a_group(tmp_path, embedder):
    from bgekit.evaluation.judged_model import JudgedModel

    model = embedder()
    rows = write(tmp_path / "old" / "mind_small", {"test.jsonl": [{**GROUPS[0], "query": ["q", "other"]}]}).parent
    parts = write(tmp_path / "new" / "MindSmallReranking", {
        "corpus.jsonl": [{"id": name, "text": name} for name in "prn"],
        "queries.jsonl": [{"id": "1_0", "text": "q"}, {"id": "1_1", "text": "other"}],
        "qrels/test.jsonl": [
            {"query-id": f"1_{i}", "corpus-id": c, "score": int(c != "n")} for i in "01" for c in "prn"],
        "top_ranked.jsonl": [{"query-id": f"1_{i}", "corpus-ids": ["p", "r", "n"]} for i in "01"],
    }).parent  # fmt: skip
    best = [max(float(model.vector(q) @ model.vector(p)) for q in ("q", "other")) for p in "prn"]
    ranks = sorted(range(3), key=lambda place: -best[place])
    hits = [place + 1 for place, row in enumerate(ranks) if row < 2]
    expected = sum((number + 1) / place for number, place in enumerate(hits)) / 2
    for root in (rows, parts):
        ((task,), _) = benchmark_tasks("mteb-en", ["MindSmallReranking"], root)
        assert task.score(JudgedModel(model)).metrics["map"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (CLASSIC, r"without qrels\. Looked for: qrels\.\*.*default/<split>.*T2Retrieval-qrels beside it"),
        ({name: rows for name, rows in CLASSIC.items() if "corpus" not in name}
         | below("T2Retrieval", shards("qrels/dev", BEIR_JUDGED)), r"without corpus\. Looked for: corpus\.\*"),
        ({**CLASSIC_QRELS, **{name: rows for name, rows in CLASSIC.items() if "corpus-00001" not in name}},
         r"corpus-00000-of-00002-0\w+\.parquet is one of 2 shards, and 1 of 0 to 1 are missing"),
        ({**RETRIEVAL["a folder for each configuration"], **below("T2Retrieval", shards("corpus/train", DOCUMENTS)),
          **{f"T2Retrieval/corpus/{name}": DOCUMENTS for name in ("x.jsonl",)}}, None),
    ],
    ids=["judgements", "corpus", "a shard", "none"],
)  # fmt: skip
def test_what_is_missing_is_named_with_where_it_was_looked_for(tmp_path, files, told):
    write(tmp_path, files)
    if told is None:
        assert len(benchmark_tasks("c-mteb", data_root=tmp_path)[0]) == 1
        return
    with pytest.raises(DataError, match=told):
        benchmark_tasks("c-mteb", data_root=tmp_path)


def test_a_readme_reaches_no_file_outside(tmp_path):
    write(tmp_path, {"test.jsonl": PAIRS[:2]})
    head = {"configs": [{"config_name": "default", "data_files": [{"split": "test", "path": "../*.jsonl"}]}]}
    root = write(tmp_path / "Mine", {"README.md": f"---\n{json.dumps(head)}\n---\n", "test.jsonl": PAIRS})
    (task,) = read_tasks(root)
    assert len(task.first) == 4


def test_pointers_of_git_lfs_are_told(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
    for name in ("test.jsonl", "data/test-00000-of-00001.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(pointer)
        with pytest.raises(DataError, match=r"is a pointer of Git LFS.*git lfs pull"):
            read_tasks(tmp_path / name)
