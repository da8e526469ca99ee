"""BM25 against its formula, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bgekit.search.bm25 import Bm25
from bgekit.search.words import words


def by_formula(query, split, text):
    mean = sum(map(len, split)) / len(split)
    score = 0.0
    for word in words(query):
        df = sum(word in each for each in split)
        if df:
            tf = words(text).count(word)
            idf = math.log(1 + (len(split) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + 1.2 * (0.25 + 0.75 * len(words(text)) / mean))
    return score


def test_formula(texts):
    corpus = [*texts(150, longest=20), "", "模型 model 模型"]
    index = Bm25.of_texts(corpus)
    split = [words(each) for each in corpus]
    for query in [*texts(20, seed=1, longest=6), "模型向量 cat cat"]:
        expected = np.array([by_formula(query, split, text) for text in corpus])
        assert index.scores(query, corpus) == pytest.approx(expected, abs=1e-9)
        ranking = index.rank(query, 30)
        best = np.argsort(-expected.astype(np.float32), kind="stable")[:30]
        assert len(ranking) == min(30, (expected > 0).sum())
        assert expected[ranking] == pytest.approx(expected[best][: len(ranking)], abs=1e-5)
        assert len(set(ranking.tolist())) == len(ranking)
    assert len(index.rank("unheard", 5)) == 0
    assert len(Bm25.of_texts([]).rank("cat", 5)) == 0


def test_words():
    assert words("The CAT's 3 中文词 x") == ["the", "cat", "s", "3", "中", "文", "词", "中文", "文词", "x"]
