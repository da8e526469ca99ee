"""Near copies are found, and others are not."""

from __future__ import annotations

import numpy as np
import pytest

from bgekit.data.training_rows import InputRow, Row
from bgekit.errors import ArgumentError
from bgekit.mining.dedup import NearCopies, Removed, band_rows, distinct, jaccard, pieces


def test_jaccard():
    assert jaccard(pieces("abcdef"), pieces("ABCDEF ")) == 1
    assert jaccard(pieces("abcdef"), pieces("abcdeg")) == pytest.approx(1 / 3)
    assert jaccard(pieces("中文模型"), pieces("中文向量")) == pytest.approx(1 / 5)
    assert jaccard(pieces("a"), pieces("b")) == 0


def test_signatures_estimate_it(texts):
    near = NearCopies(0.8)
    for a, b in zip(texts(30, longest=30), texts(30, seed=1, longest=30), strict=True):
        a, b = pieces(a), pieces(f"{a} {b}")
        estimate = (near.signature(a) == near.signature(b)).mean()
        assert estimate == pytest.approx(jaccard(a, b), abs=0.2)


def test_planted_near_copies_are_found(texts):
    generator = np.random.default_rng(0)
    originals = [text for text in texts(300, longest=60) if len(text) > 150]
    near = NearCopies(0.8)
    for text in originals:
        near.add(text)
    planted = found = 0
    for number, text in enumerate(originals):
        words = text.split()
        words[generator.integers(len(words))] = "changed"
        copy = " ".join(words)
        if jaccard(pieces(text), pieces(copy)) >= 0.8:
            planted += 1
            found += near.add(copy) == number
    assert planted > 100
    assert found / planted > 0.98


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands(threshold):
    rows = band_rows(threshold)
    assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.995 or rows == 1


def test_distinct_rows():
    long = "the quick brown fox jumps over the lazy dog and then it runs away from the river to the mountain"
    rows = [
        ("q", ("a", "b")),
        ("Q ", ("B", " a")),
        ("q", ("a",)),
        ("why", (long,)),
        ("why", (long + "s",)),
        ("q2", (long,)),
    ]
    inputs = [InputRow(line, {}, Row(*row)) for line, row in enumerate(rows, 1)]
    removed = Removed()
    assert [each.line for each in distinct(inputs, removed)] == [1, 3, 4, 5, 6]
    assert (removed.rows, removed.copies, removed.near, removed.samples) == (6, 1, 0, [(2, 1)])
    removed = Removed()
    assert [each.line for each in distinct(inputs, removed, near=0.9)] == [1, 3, 4, 6]
    assert (removed.copies, removed.near, removed.samples) == (1, 1, [(2, 1), (5, 4)])
    with pytest.raises(ArgumentError, match="threshold"):
        NearCopies(0)


def test_many_questions_on_one_passage_stay():
    passage = "the quick brown fox jumps over the lazy dog and then it runs away from the river to the mountain " * 9
    queries = ["who jumps over the dog", "where does the fox run to", "Where does the fox run  to?", "why does it run"]
    inputs = [InputRow(line, {}, Row(query, (passage,))) for line, query in enumerate(queries, 1)]
    removed = Removed()
    assert [each.line for each in distinct(inputs, removed, near=0.8)] == [1, 2, 4]
    assert removed.samples == [(3, 2)]


def test_rows_alike_in_both_parts_are_found(texts):
    generator = np.random.default_rng(0)
    near = NearCopies(0.8)
    originals = [text for text in texts(300, longest=60) if len(text) > 150]
    parts = [(text[:70], text[40:]) for text in originals]
    for each in parts:
        near.add(*each)
    planted = found = 0
    for number, (query, passage) in enumerate(parts):
        copy = query[:-3], passage[: -int(generator.integers(1, 20))]
        if all(jaccard(pieces(a), pieces(b)) >= 0.8 for a, b in zip(copy, (query, passage), strict=True)):
            planted += 1
            found += near.add(*copy) == number
    assert planted > 100
    assert found / planted > 0.98
