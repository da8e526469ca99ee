"""The demo's corpus is real, large enough, and read without running anything; what is written of it is a task."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest

from bgekit import demo as pydocs
from bgekit.cli.main import main


@pytest.fixture(scope="module")
def records():
    """All records, read once: that takes seconds."""
    before = set(sys.modules)
    found = list(pydocs.standard_library())
    # Modules in Python are parsed, not imported: nothing that opens a window or a browser came in.
    assert not {"antigravity", "turtle", "tkinter", "this", "webbrowser", "idlelib"} & (set(sys.modules) - before)
    return found


@pytest.fixture(scope="module")
def corpus(records):
    return {record.id: record.text for record in records}


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory) -> Path:
    folder, said = tmp_path_factory.mktemp("pydocs") / "pairs", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(pydocs, "standard_library", lambda: iter(records))
        assert main(["recipe", "pydocs", "--output", str(folder)]) == 0
    assert "train 1," in said.getvalue()
    return folder


def test_thousands_of_entries(corpus):
    assert 3000 < len(corpus) < 10_000
    assert len(set(corpus.values())) == len(corpus)


@pytest.mark.parametrize(
    "name",
    ["str.split", "csv.reader", "shutil.copytree", "json", "os.listdir", "functools.lru_cache", "topic: with",
     "pathlib.Path", "pathlib.Path.glob", "pathlib.Path.read_text", "pathlib.PurePath.with_suffix",
     "datetime.datetime.fromisoformat", "collections.abc.Mapping.get", "concurrent.futures.Future.result"],
)  # fmt: skip
def test_what_everybody_uses_is_there(corpus, name):
    assert corpus[name].startswith(name + " ")
    assert len(corpus[name]) > len(name) + 30


def test_private_names_and_tests_are_not(corpus):
    assert not [name for name in corpus if any(part.startswith("_") for part in name.split("."))]
    assert not [name for name in corpus if name.startswith(("test.", "idlelib", "distutils", "site-packages"))]


def lines(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_written(folder):
    train, texts = lines(folder / "train.jsonl"), lines(folder / "texts.jsonl")
    corpus, queries = lines(folder / "eval" / "corpus.jsonl"), lines(folder / "eval" / "queries.jsonl")
    assert len(train) > 1000 and len(texts) > 2000 and len(corpus) > len(train) + 200
    assert all(20 <= len(row["query"]) <= 200 and len(row["pos"]) == 1 and row["neg"] == [] for row in train)
    assert all(row["query"] not in row["pos"][0] for row in train[:200])
    assert len({row["query"] for row in train}) == len(train) and len({row["_id"] for row in corpus}) == len(corpus)
    judged = [(folder / "eval" / "qrels" / f"{split}.tsv").read_text().splitlines()[1:] for split in ("dev", "test")]
    assert len(judged[0]) > 50 and len(judged[1]) > 200
    assert sum(map(len, judged)) == len(queries)
    ids = {row["_id"] for row in corpus}
    assert all(
        line.split("\t")[0] == line.split("\t")[1] and line.split("\t")[1] in ids for part in judged for line in part
    )


def test_modules_are_held_out_as_a_whole(folder):
    queries = lines(folder / "eval" / "queries.jsonl")
    held = {row["_id"].partition(".")[0] for row in queries}
    trained = {row["pos"][0].partition(" ")[0].partition(".")[0] for row in lines(folder / "train.jsonl")}
    read = {row["text"].partition(" ")[0].partition(".")[0] for row in lines(folder / "texts.jsonl")}
    assert not held & trained and not held & read
    assert {pydocs.split_of("a.b"), pydocs.split_of("a.c.d")} == {pydocs.split_of("a")}


def test_it_is_an_evaluation_task(folder):
    from bgekit.evaluation.readers.detect import read_tasks

    (task,) = read_tasks(str(folder / "eval"), split="test")
    assert task.kind == "retrieval"
