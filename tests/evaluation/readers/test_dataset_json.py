"""Folders whose `dataset.json` says what they are."""

from __future__ import annotations

import pytest

from bgekit.errors import DataError
from bgekit.evaluation.readers.detect import read_tasks

from .conftest import CORPUS, QRELS, QUERIES

STS = [{"sentence1": "a", "sentence2": "b", "score": 1.5}, {"sentence1": "c", "sentence2": "d", "score": 3}]
LABELLED = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
TRAINING = [{"query": "q", "pos": ["a"], "neg": ["b"]}]
DESCRIBED = {
    "name": "Name", "task_type": "sts", "language": "zh", "main_metric": "cosine_pearson",
    "splits": {"test": 2, "validation": 2}, "query_instruction_applies": False, "mteb_match": "exact",
    "published": {"m": 80.5, "n": 79}, "published_split": "test", "published_metric": "cosine_pearson",
    "published_other": {"validation": {"m": 70.5}},
}  # fmt: skip


def read(path, **options):
    (task,) = read_tasks(path, **options)
    return task


@pytest.fixture
def sts(tree):
    def write(**changes):
        files = {"test.jsonl": STS, "validation.jsonl.gz": STS, "test_3way.jsonl": STS, "train_bge.jsonl": TRAINING}
        return tree({**files, "dataset.json": DESCRIBED | changes})

    return write


def test_the_description_decides(sts):
    task = read(sts())
    assert (task.kind, task.name, task.split, task.language) == ("sts", "Name", "test", "zh")
    assert (task.main_metric, task.query_instruction, task.comparable) == ("cosine_pearson", False, True)
    assert task.published == {"m": 80.5, "n": 79.0}
    assert read(sts(query_instruction_applies=True)).query_instruction
    assert not read(sts(mteb_match="close")).comparable


def test_published_scores_are_those_of_the_split_and_metric(sts):
    assert read(sts(), split="validation").published == {"m": 70.5}
    assert read(sts(published_split="trial")).published == {}
    assert read(sts(published_metric="other")).published == {}


def test_a_short_description_is_enough(tree):
    task = read(tree({"test.jsonl": STS, "dataset.json": {"task_type": "sts"}}))
    assert (task.name, task.main_metric, task.language, task.published) == ("Data", "cosine_spearman", "", {})
    assert not task.comparable


def test_file_of_a_described_folder(sts):
    root = sts()
    task = read(root / "validation.jsonl.gz")
    assert (task.name, task.split, task.published) == ("Name", "validation", {"m": 70.5})
    assert read(root / "dataset.json").split == "test"
    assert read(root / "train_bge.jsonl").kind == "reranking"  # Not one of its splits.


def test_splits_are_those_that_are_listed(sts):
    root = sts()
    with pytest.raises(DataError, match=r"Data has no split 'trial'; it has test, validation$"):
        read(root, split="trial")
    with pytest.raises(DataError, match=r"train_bge.jsonl has the fields query, pos, neg; sts needs \{\"sentence1\""):
        read(root, split="train_bge")


def test_three_way_labels_are_told(tree):
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (1, 0)]
    three = [row | {"label": "entailment"} for row in rows]
    described = {"name": "N", "task_type": "pair_classification", "splits": {"validation": 2}}
    root = tree({"validation.jsonl": rows, "validation_3way.jsonl": three, "dataset.json": described})
    assert read(root).split == "validation"
    for options in ({"path": root, "split": "validation_3way"}, {"path": root / "validation_3way.jsonl"}):
        with pytest.raises(DataError, match=r"validation_3way.jsonl, line 1: the label 'entailment' is one of three"):
            read(**options)


def test_training_data_is_no_task(tree):
    described = {"name": "T", "task_type": "training", "main_metric": "-"}
    root = tree({"T/train.jsonl": TRAINING, "T/dataset.json": described, "S/test.jsonl": STS})
    with pytest.raises(DataError, match=r"T holds training data \(task_type training .*nothing to score"):
        read(root / "T")
    with pytest.raises(DataError, match="holds training data"):
        read(root, tasks=["T"])
    assert read(root).name == "S"
    assert read(root / "T" / "train.jsonl").kind == "reranking"


def test_retrieval(tree):
    described = {"name": "MLQuestions", "task_type": "retrieval", "main_metric": "ndcg_at_10", "corpus": 3}
    files = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/dev.tsv": QRELS, "train.jsonl": TRAINING}
    task = read(tree({**files, "dataset.json": described}))
    assert (task.name, task.split, task.query_instruction, task.skip_identical_ids) == (
        "MLQuestions",
        "dev",
        True,
        True,
    )


def test_retrieval_without_its_files(tree):
    with pytest.raises(
        DataError, match=r"should hold retrieval data, and has corpus.jsonl. Expected a folder with corpus.jsonl"
    ):
        read(tree({"corpus.jsonl": CORPUS, "dataset.json": {"task_type": "retrieval"}}))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, 8),
        ({"name": "TNews"}, 32),
        ({"samples_per_label": 16, "name": "TNews"}, 16),
        ({"measured": {"m": {"test": {"accuracy": 20.7, "samples_per_label": 32}}}}, 32),
        ({"measured": {"m": {"validation": {"samples_per_label": 32}}}}, 8),
    ],
)
def test_texts_drawn_of_each_label(tree, facts, expected):
    described = {"name": "Mine", "task_type": "classification"} | facts
    task = read(tree({"test.jsonl": LABELLED, "train.jsonl": LABELLED, "dataset.json": described}))
    assert (task.samples_per_label, task.experiments) == (expected, 10)


@pytest.mark.parametrize("kind", ["bitext", "clustering", "reranking", "summarization"])
def test_other_kinds_are_checked_against_the_description(tree, kind):
    with pytest.raises(DataError, match=rf"test.jsonl has the fields text, label; {kind} needs"):
        read(tree({"test.jsonl": LABELLED, "dataset.json": {"task_type": kind}}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{bad", r"dataset.json is not valid JSON"),
        ("[]", r"dataset.json has no task_type: it has \[\] \(list\). Expected one object such as"),
        ({"name": "x"}, r"dataset.json has no task_type: it has the fields name"),
        ({"task_type": "qa"}, r"dataset.json has the task_type 'qa'; known are retrieval, sts"),
        ({"task_type": ["sts"]}, r"dataset.json: task_type must be of type str, not \['sts'\]"),
        ({"task_type": "sts", "published": {"m": "high"}}, r"published score of m must be a number, not 'high'"),
        ({"task_type": "sts", "language": None}, r"language must be of type str, not null"),
        ({"task_type": "classification", "samples_per_label": 0}, r"samples_per_label must be a whole number of at"),
    ],
)
def test_descriptions_that_cannot_be_used(tree, content, message):
    with pytest.raises(DataError, match=message):
        read(tree({"test.jsonl": STS, "dataset.json": content}))


def test_description_without_data(tree):
    with pytest.raises(DataError, match=r"Data has no data: expected <split>.jsonl with \{\"sentence1\""):
        read(tree({"dataset.json": {"task_type": "sts"}}))


def test_keys_that_change_nothing_are_named(sts, caplog):
    task = read(sts(samples_per_label=16, skip_identical_ids=True, top_k=10, licence="MIT", notes=["told"]))
    told = "dataset.json has samples_per_label, skip_identical_ids, top_k: not known for sts, the score does not depend"
    assert task.remarks[0].startswith(told) and told in caplog.text
    assert read(sts(licence="MIT", query_instruction_applies=False)).notes == ()


def test_keys_that_are_obeyed(tree):
    described = {"task_type": "classification", "n_experiments": 3, "seed": 7, "samples_per_label": 2}
    task = read(tree({"test.jsonl": LABELLED, "train.jsonl": LABELLED, "dataset.json": described}))
    assert (task.experiments, task.seed, task.samples_per_label) == (3, 7, 2)
    assert task.notes == ("2 texts of each label are drawn, 3 times",)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"skip_identical_ids": "yes"}, "skip_identical_ids must be of type bool"),
        ({"skip_identical_ids": True, "ignore_identical_ids": False}, "keep one of the two"),
    ],
)
def test_a_protocol_that_cannot_be(tree, facts, message):
    files = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
    with pytest.raises(DataError, match=message):
        read(tree({**files, "dataset.json": {"task_type": "retrieval", **facts}}))
