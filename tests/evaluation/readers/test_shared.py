"""Every real data set that developers have: its counts are those that its description states."""

from __future__ import annotations

import json

import pytest

from bgekit.errors import DataError
from bgekit.evaluation.readers.detect import read_tasks

MEASURED = {
    "sts": lambda task: len(task.scores),
    "pair_classification": lambda task: len(task.labels),
    "classification": lambda task: len(task.labels),
    "bitext": lambda task: len(task.first),
    "clustering": lambda task: len(task.sets),
    "reranking": lambda task: len(task.groups) + sum(exclusion.count for exclusion in task.exclusions),
    "retrieval": lambda task: {"queries": len(task.qrels), "qrels": sum(map(len, task.qrels.values()))},
}


@pytest.fixture(scope="module")
def data(shared_path):
    return shared_path("data")


def described(folder):
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def test_all_of_them(data):
    expected = {
        facts["name"]: facts
        for path in data.glob("*/dataset.json")
        if (facts := json.loads(path.read_text(encoding="utf-8")))["task_type"] != "training"
    }
    tasks = {task.name: task for task in read_tasks(data)}
    assert set(tasks) == set(expected)
    for name, task in tasks.items():
        facts = expected[name]
        assert task.kind == facts["task_type"] and task.main_metric == facts["main_metric"]
        assert task.language == facts["language"] and task.query_instruction == facts["query_instruction_applies"]
        assert task.comparable == (facts["mteb_match"] == "exact")
        assert task.published == facts["published"] and task.split == facts.get("published_split", task.split)
        assert getattr(task, "skip_identical_ids", False) == (name == "MLQuestions")
        assert getattr(task, "samples_per_label", 32) == 32


def test_counts_of_every_split(data):
    for path in sorted(data.glob("*/dataset.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["task_type"] == "training":
            continue
        for split, count in facts["splits"].items():
            if facts["task_type"] == "classification" and split == "train":
                continue
            (task,) = read_tasks(path.parent, split=split)
            found = MEASURED[task.kind](task)
            expected = {key: count[key] for key in ("queries", "qrels")} if isinstance(count, dict) else count
            assert found == expected, (path, split)
            if task.kind == "retrieval":
                assert len(task.corpus) == facts["corpus"]
                positive = sum(value > 0 for found in task.qrels.values() for value in found.values())
                assert positive == count.get("qrels_positive", count["qrels"])
            if task.kind == "classification":
                assert len(task.train_texts) == facts["splits"]["train"]
            if "sentences" in facts:
                assert sum(len(texts) for texts, _ in task.sets) == facts["sentences"][split]


def test_corpora_read_again_as_they_were_checked(data):
    (task,) = read_tasks(data / "SciFact")
    records = list(task.corpus.read())
    assert [record.id for record in records] == task.corpus.ids and all(record.text.strip() for record in records)


def test_reranking_leaves_out_what_its_description_says(data):
    (task,) = read_tasks(data / "MSMARCODev600Reranking")
    assert len(task.groups) == 540
    assert [(each.reason, each.count) for each in task.exclusions] == [("queries without a positive", 60)]


@pytest.mark.parametrize("split", ["validation_3way", "train_3k_3way"])
def test_three_way_files_are_refused(data, split):
    with pytest.raises(DataError, match="is one of three"):
        read_tasks(data / "Ocnli", split=split)


def test_examples_of_flagembedding(data):
    examples = data / "flagembedding_examples"
    (task,) = read_tasks(examples / "research/old-examples/finetune/toy_evaluation_data")
    assert task.kind == "retrieval" and len(task.corpus) == 5
    assert task.qrels == {"0": {"0": 1, "4": 1}, "1": {"1": 1}, "2": {"2": 1}}
    (task,) = read_tasks(examples / "examples/finetune/embedder/example_data/retrieval/msmarco.jsonl")
    assert task.kind == "reranking" and len(task.groups) == 10


def test_training_rows_of_a_described_set(data):
    (task,) = read_tasks(data / "BGEFinetuneDataSTSB/train.jsonl.gz")
    assert task.kind == "reranking" and len(task.groups) == 2701
    with pytest.raises(DataError, match="807 queries without a negative"):
        read_tasks(data / "SciFact/train.jsonl")
    with pytest.raises(DataError, match="holds training data"):
        read_tasks(data / "SimCLUE")
