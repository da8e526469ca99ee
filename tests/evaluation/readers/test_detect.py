"""What a path leads to: forms, splits, folders of folders, and data of no known form."""

from __future__ import annotations

import logging
import os

import pytest

from bgekit.errors import DataError
from bgekit.evaluation.readers.detect import read_tasks
from bgekit.evaluation.readers.rows import EXAMPLES

STS = [{"sentence1": "a", "sentence2": "b", "score": 1.5}, {"sentence1": "c", "sentence2": "d", "score": 3}]
BITEXT = [{"sentence1": "a", "sentence2": "b"}]
PAIRS = [{"sentence1": "a", "sentence2": "b", "label": 1}, {"sentence1": "c", "sentence2": "d", "label": 0}]
BAD = [{"foo": 1, "bar": 2}]


def splits(path, **options):
    return [(task.name, task.kind, task.split) for task in read_tasks(path, **options)]


# --- splits


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["train", "dev", "test", "validation"], "test"),
        (["train", "validation"], "validation"),
        (["train", "dev"], "dev"),
        (["train"], "train"),
        (["train", "hard"], "hard"),
        (["hard"], "hard"),
        (["sts-train", "sts-dev", "sts-test"], "sts-test"),
        (["test", "test_3way"], "test"),
    ],
)
def test_default_split(tree, there, chosen):
    assert splits(tree({f"{split}.jsonl": STS for split in there})) == [("Data", "sts", chosen)]


def test_wanted_split(tree):
    root = tree({"test.jsonl": STS, "dev.jsonl": PAIRS})
    assert splits(root, split="dev") == splits(root, split="validation") == [("Data", "pair_classification", "dev")]
    with pytest.raises(DataError, match=r"Data has no split 'trial'; it has dev, test"):
        splits(root, split="trial")


def test_split_that_is_not_clear(tree):
    with pytest.raises(DataError, match=r"has the splits a, b: say which with --split"):
        splits(tree({"a.jsonl": STS, "b.jsonl": STS}))


def test_files_beside_the_splits_are_no_splits(tree):
    root = tree({"pairs.jsonl": STS, "config.json": '{\n "a": 1\n}', "LICENSE": "x", ".hidden.jsonl": STS})
    assert splits(root) == [("Data", "sts", "pairs")]


def test_broken_test_split_is_not_passed_over(tree):
    with pytest.raises(DataError, match=r"test.jsonl, line 1: not valid JSON"):
        splits(tree({"test.jsonl": "{broken\n", "train.jsonl": STS}))


def test_the_same_split_twice(tree):
    with pytest.raises(DataError, match=r"test.csv and .*test.jsonl stand side by side"):
        splits(tree({"test.jsonl": STS, "test.csv": "a,b\n1,2\n"}))


# --- files


def test_file(tree, monkeypatch):
    root = tree({"test.jsonl": STS, "mine.jsonl": PAIRS, "odd-name": "x"})
    assert splits(root / "test.jsonl") == splits(str(root / "test.jsonl"), split="test") == [("Data", "sts", "test")]
    assert splits(root / "mine.jsonl") == [("mine", "pair_classification", "test")]
    with pytest.raises(DataError, match=r"mine.jsonl is one file, of split 'test': there is no split 'dev' in it"):
        splits(root / "mine.jsonl", split="dev")
    monkeypatch.chdir(root)
    assert splits("test.jsonl") == [("Data", "sts", "test")]


def test_classification_file_finds_its_train_split(tree):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert splits(tree({"dev.jsonl": rows, "train.jsonl": rows}) / "dev.jsonl") == [("Data", "classification", "dev")]


@pytest.mark.parametrize("name", ["corpus.jsonl", "qrels/test.tsv"])
def test_part_of_a_collection(beir, name):
    with pytest.raises(DataError, match=r"part of a test collection: give the folder"):
        splits(beir() / name)


# --- folders of folders


def test_folder_of_folders(tree, caplog):
    root = tree({"B/test.jsonl": STS, "A/dev.jsonl": BITEXT, "C/notes.jsonl": BAD, "D/x.png": "x", "README.md": "x"})
    with caplog.at_level(logging.WARNING, "bgekit"):
        assert splits(root) == [("A", "bitext", "dev"), ("B", "sts", "test")]
    assert "C fits no known form" in caplog.text and "fields foo, bar" in caplog.text
    caplog.clear()
    assert splits(root, split="test") == [("B", "sts", "test")]
    assert "A has no split 'test'; it has dev" in caplog.text
    with pytest.raises(DataError, match="has no split 'x'"):
        splits(root, split="x")


def test_tasks_by_name(tree):
    described = {"name": "Long Name", "task_type": "bitext"}
    root = tree({"A/test.jsonl": STS, "B/dev.jsonl": BITEXT, "C/test.jsonl": BITEXT, "C/dataset.json": described})
    assert splits(root, tasks=["b", "LONG NAME"]) == [("B", "bitext", "dev"), ("Long Name", "bitext", "test")]
    assert splits(root, tasks=["C"]) == [("Long Name", "bitext", "test")]
    with pytest.raises(DataError, match=r"has no task 'Z'; it has A, B, Long Name"):
        splits(root, tasks=["A", "Z"])
    with pytest.raises(DataError, match="has no split 'test'"):
        splits(root, tasks=["A", "B"], split="test")


def test_equal_names_are_told_apart(tree):
    described = {"name": "T", "task_type": "bitext"}
    files = {f"T-{part}/{file}": content for part in ("de", "fr")
             for file, content in (("test.jsonl", BITEXT), ("dataset.json", described))}  # fmt: skip
    assert splits(tree(files)) == [("T (T-de)", "bitext", "test"), ("T (T-fr)", "bitext", "test")]


def test_broken_data_among_others_is_an_error(tree):
    broken = [*STS, {"sentence1": "a", "sentence2": "b", "score": "?"}]
    with pytest.raises(DataError, match=r"B/test.jsonl, line 3"):
        splits(tree({"A/test.jsonl": STS, "B/test.jsonl": broken}))


# --- no known form


@pytest.mark.parametrize(
    ("files", "name", "seen"),
    [
        ({"data.jsonl": BAD}, "", r"data.jsonl fits no known form.* Seen: .*data.jsonl with the fields foo, bar\."),
        ({"test.csv": "text\nx\n"}, "test.csv", r"test.csv with the fields text\."),
        ({"notes.txt": "x", "pic.png": "x"}, "", r"Data fits no known form .* Seen: notes.txt, pic.png\."),
        ({"deep/er/test.jsonl": STS}, "", r"Data fits no known form .* Seen: deep/\."),
        ({"test": "just text\n"}, "test", r"Data/test with the fields text\."),
    ],
)
def test_unfit_data_is_told_what_would_fit(tree, files, name, seen):
    with pytest.raises(DataError, match=seen) as caught:
        splits(tree(files) / name)
    for example in EXAMPLES.values():
        assert example in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"test.jsonl is empty: it has no rows"),
        ("[1, 2]\n", r"test.jsonl, line 1: a JSON object is expected"),
        ('[{"a": 1', r"test.jsonl, line 1: not valid JSON: Expecting"),
        (b"\x1f\x8b\x08\x00", r"test.jsonl is damaged or cut off after line 0"),
        (b'{"text": "\xff"}\n', r"test.jsonl, line 1: not valid UTF-8"),
    ],
)
def test_unreadable_files(tree, content, message):
    root = tree({"test.jsonl": content})
    for path in (root, root / "test.jsonl"):
        with pytest.raises(DataError, match=message):
            splits(path)


def test_empty_table(tree):
    with pytest.raises(DataError, match=r"test.csv is empty"):
        splits(tree({"test.csv": "sentence1,sentence2,score\n"}))


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist: expected a file or folder"):
        splits(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty fits no known form of evaluation data. Seen: nothing\."):
        splits(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe is neither a file nor a folder"):
        splits(tmp_path / "pipe")
