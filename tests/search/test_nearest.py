"""Exact search against the plain way: all scores, sorted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgekit.inference.similarity import unit
from bgekit.search.nearest import TopK, nearest


def blocks(vectors, size):
    return lambda: [(first, vectors[first : first + size]) for first in range(0, len(vectors), size)]


def pairs(found):
    """Scores and rows of each query, without what fills the arrays."""
    return [(own[rows >= 0], rows[rows >= 0]) for own, rows in zip(*found, strict=True)]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 60),
    size=st.integers(1, 70),
    top_k=st.integers(1, 80),
    cosine=st.booleans(),
)
def test_equals_sorting_all_scores(seed, count, size, top_k, cosine):
    generator = np.random.default_rng(seed)
    # Small whole numbers: many ties, and float32 is exact for dot products.
    vectors = generator.integers(-2, 3, size=(count, 3)).astype(np.float32)
    queries = generator.integers(-2, 3, size=(4, 3)).astype(np.float32)
    found = nearest(queries, blocks(vectors, size), top_k, cosine=cosine)
    for query, (scores, rows) in zip(queries, pairs(found), strict=True):
        if cosine:
            everything = (unit(vectors) * unit(query)).sum(axis=1)
            best = np.sort(everything)[::-1][:top_k]
            np.testing.assert_allclose(scores, best, atol=1e-6)
            np.testing.assert_allclose(everything[rows], best, atol=1e-6)
        else:
            everything = vectors @ query
            order = np.argsort(-everything, kind="stable")[:top_k]
            assert rows.tolist() == order.tolist()
            assert scores.tolist() == everything[order].tolist()


def test_half_precision_is_compared_in_float32():
    vectors = np.array([[60000, 60000], [1, 0]], dtype=np.float16)
    ((scores, rows),) = pairs(nearest(np.array([[2, 2]], np.float32), lambda: [(0, vectors)], 2, cosine=False))
    assert scores.dtype == np.float32
    assert rows.tolist() == [0, 1]
    assert scores[0] == pytest.approx(4 * float(vectors[0, 0]))


def test_zeros_have_no_direction():
    assert np.array_equal(unit(np.zeros((2, 3))), np.zeros((2, 3)))


@pytest.mark.parametrize(("width", "count", "size"), [(384, 4099, 4096), (31, 523, 100), (768, 37, 5), (1024, 4101, 9)])
@pytest.mark.parametrize("cosine", [False, True])
def test_of_equal_vectors_the_earliest_are_found(width, count, size, cosine):
    generator = np.random.default_rng(width)
    for _ in range(5):
        vector = 3 * generator.normal(size=width).astype(np.float32)
        query = vector + generator.normal(size=width).astype(np.float32)
        found = nearest(query[None], blocks(np.repeat(vector[None], count, axis=0), size), 5, cosine=cosine)
        assert found[1].tolist() == [[0, 1, 2, 3, 4]]
        assert len(set(found[0][0].tolist())) == 1


def test_groups_of_copies_between_other_vectors():
    generator = np.random.default_rng(3)
    several = unit(generator.normal(size=(40, 96)))
    rows = generator.integers(0, 40, 1501)
    queries = unit(generator.normal(size=(7, 96)))
    exact_scores = (several.astype(np.float64) @ queries.T.astype(np.float64)).T
    for query, (_, found) in zip(
        exact_scores, pairs(nearest(queries, blocks(several[rows], 64), 60, cosine=False)), strict=True
    ):
        assert found.tolist() == np.lexsort((np.arange(1501), -query[rows]))[:60].tolist()


def test_a_length_that_is_known_is_not_measured():
    vectors = unit(np.random.default_rng(1).normal(size=(300, 48)))
    plain, told = TopK(vectors[:9], 12, cosine=False), TopK(vectors[:9], 12, cosine=False, longest=1.001)
    for each in (plain, told):
        each.add(0, vectors)
    for (_, rows), (_, others) in zip(plain.found(), told.found(), strict=True):
        assert rows.tolist() == others.tolist()
