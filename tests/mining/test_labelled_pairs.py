"""Labelled pairs become rows."""

from __future__ import annotations

import json

import pytest

from bgekit.errors import ArgumentError, DataError
from bgekit.mining.labelled_pairs import PairCounts, rows_of_pairs


def pair(first, second, label):
    return {"sentence1": first, "sentence2": second, "label": label}


def test_groups(write):
    file = write("pairs.jsonl", [
        pair("a", "p1", 1), pair("b", "n", 0), pair("A ", "n1", "0"), pair("a", "P1", 1), pair("a", "p 1", 0),
        pair("a", "a", 0), pair("c", "p", 1.0), pair("a", "x", 2),
    ])  # fmt: skip
    counts = PairCounts()
    assert list(rows_of_pairs(file, counts)) == [
        {"query": "a", "pos": ["p1"], "neg": ["n1"]}, {"query": "c", "pos": ["p"], "neg": []}
    ]  # fmt: skip
    assert counts == PairCounts(8, {"2": 1}, conflicts=1, copies=2, rows=2, without_positives=1, negatives=1)
    with pytest.raises(ArgumentError, match="label 1"):
        list(rows_of_pairs(file, counts, negative_labels=("1",)))


def test_bad_lines(write):
    file = write("pairs.jsonl", [pair("a", "b", 1), pair("a", "", 1), {"sentence1": "a", "sentence2": "b"}])
    with pytest.raises(DataError, match=r"(?s)line 2: sentence2 must be .*line 3: no field label") as failed:
        list(rows_of_pairs(file, PairCounts()))
    assert "2 lines cannot be used" in str(failed.value)


def test_ocnli(shared_path):
    file = shared_path("data", "Ocnli", "train_3k_3way.jsonl")
    pairs = [json.loads(line) for line in file.open(encoding="utf-8")]
    label_of = {}
    for each in pairs:
        label_of.setdefault((each["sentence1"], each["sentence2"]), set()).add(each["label"])
    counts = PairCounts()
    rows = list(rows_of_pairs(str(file), counts))
    assert counts.pairs == len(pairs)
    assert len(rows) == counts.rows > 500
    assert counts.negatives > 200
    assert counts.other_labels == {"neutral": sum(each["label"] == "neutral" for each in pairs)}
    for row in rows:
        assert all("entailment" in label_of.get((row["query"], text), {"entailment"}) for text in row["pos"])
        assert all("contradiction" in label_of.get((row["query"], text), {"contradiction"}) for text in row["neg"])
    wide = PairCounts()
    list(rows_of_pairs(str(file), wide, negative_labels=("contradiction", "neutral")))
    assert wide.negatives > counts.negatives
    assert not wide.other_labels


def test_labels_as_tables_have_them(write):
    file = write("pairs.jsonl", [pair("a", "p", "1.0"), pair("a", "n", "0.0"), pair("a", "q", " Entailment ")])
    assert list(rows_of_pairs(file, PairCounts())) == [{"query": "a", "pos": ["p", "q"], "neg": ["n"]}]


def test_labels_of_another_set_are_an_error(write):
    file = write("pairs.jsonl", [pair("a", "p", "yes"), pair("a", "n", "no"), pair("a", "o", 0)])
    with pytest.raises(DataError, match=r"pairs.jsonl has no pair with .* \(1, entailment\).*: no, yes\. Name yours"):
        list(rows_of_pairs(file, PairCounts()))
    assert list(rows_of_pairs(file, PairCounts(), positive_labels=["Yes"], negative_labels=["NO"])) == [
        {"query": "a", "pos": ["p"], "neg": ["n"]}
    ]
