from __future__ import annotations

import json
from pathlib import Path

import pytest

from bgekit import demo as pydocs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pydocs") / "pairs"
    pydocs.write_pairs(str(folder))
    return folder


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
