"""Exact search against the plain way: all scores, sorted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgekit.inference.similarity import unit
from bgekit.search import nearest as module
from bgekit.search.nearest import TopK, _keys_of, _of_keys, _true_places, nearest, pair_scores


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


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(("width", "dtype"), [(384, np.float32), (31, np.float16), (5, np.float32)])
def test_the_score_of_a_pair_has_the_same_bits_in_any_company(width, dtype, cosine, monkeypatch, recwarn):
    generator = np.random.default_rng(width)
    wide, vectors = generator.normal(size=(20, width)), generator.normal(size=(300, width)).astype(dtype)
    queries, columns = np.nonzero(generator.random((20, 300)) < 0.3)
    scores = pair_scores(wide, queries, vectors, columns, cosine=cosine)
    everything = wide @ vectors.T.astype(np.float64)
    if cosine:
        everything /= np.linalg.norm(vectors.astype(np.float64), axis=1)
    np.testing.assert_allclose(scores, everything[queries, columns], rtol=1e-6, atol=1e-6)
    some = np.flatnonzero(generator.random(len(queries)) < 0.1)
    assert np.array_equal(pair_scores(wide, queries[some], vectors, columns[some], cosine=cosine), scores[some])
    for at in some[:20]:
        one = np.zeros(1, np.int64)
        alone = pair_scores(wide[queries[at]][None], one, vectors[columns[at]][None], one, cosine=cosine)
        assert alone == scores[at : at + 1]
    monkeypatch.setattr(module, "_WIDE", 8 * width * 7)
    assert np.array_equal(pair_scores(wide, queries, vectors, columns, cosine=cosine), scores)
    assert pair_scores(wide, one[:0], vectors, one[:0], cosine=cosine).shape == (0,)
    assert not list(recwarn)


@pytest.fixture(params=[True, False], ids=["16 bits", "32 bits"])
def fast_16(request, monkeypatch):
    monkeypatch.setattr("bgekit.search.nearest._fast_16", lambda: request.param)


def sorted_exactly(queries, vectors, top_k):
    """Scores and rows by sorting all scores in float64, rounded to float32."""
    scores = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(scores, order, axis=1), order


def gathered(vectors, rows, size=500):
    return [(part, lambda part=part: vectors[part]) for part in np.split(rows, range(size, len(rows), size))]


class TestManyQueries:
    """Products that only nominate: what is found is the same, to the bit, however it is divided."""

    @pytest.mark.parametrize("top_k", [10, 200])
    def test_the_bits_do_not_depend_on_blocks_threads_or_samples(self, fast_16, top_k):
        generator = np.random.default_rng(top_k)
        # As embeddings: all point into one direction, many are nearly alike, some are the same.
        vectors = generator.normal(size=(70_000, 24)) * 0.3 + generator.normal(size=24)
        vectors[::7] = vectors[:10_000]
        vectors = unit(vectors)
        queries = unit(vectors[generator.integers(0, 70_000, 30)] + 0.05 * generator.normal(size=(30, 24)))
        scores, rows = sorted_exactly(queries, vectors, top_k)
        vectors.flags.writeable = False
        before, every = torch.get_num_threads(), []

        def sample(size):
            return gathered(vectors, np.linspace(0, 69_999, size).astype(np.int64))

        try:
            for threads, size, given in ((1, 70_000, None), (2, 999, None), (2, 4096, sample), (1, 20_000, sample)):
                torch.set_num_threads(threads)
                found = nearest(queries, blocks(vectors, size), top_k, cosine=False, longest=1.001, count=70_000,
                                sample=given)  # fmt: skip
                few = nearest(queries[:3], blocks(vectors, size), top_k, cosine=False, longest=1.001)
                assert (found[0] == scores).mean() > 0.9999
                np.testing.assert_allclose(found[0], scores, atol=1e-7)
                assert (found[1] == rows).mean() > 0.999
                every.append(found)
                for own, there, other in zip(every[0], found, few, strict=True):
                    assert np.array_equal(own, there)
                    assert np.array_equal(own[:3], other)
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("cosine", [False, True])
    def test_vectors_of_any_length(self, fast_16, cosine):
        generator = np.random.default_rng(4)
        vectors = (generator.normal(size=(3000, 33)) * 10 ** generator.uniform(-3, 3, (3000, 1))).astype(np.float32)
        queries = (generator.normal(size=(20, 33)) * 10 ** generator.uniform(-3, 3, (20, 1))).astype(np.float32)
        compared = (unit(queries), vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True))
        wanted = sorted_exactly(*(compared if cosine else (queries, vectors)), 40)
        for signs in (1, -1):  # Of many negative scores none is above zero.
            if signs == -1:
                vectors, queries = np.abs(vectors), -np.abs(queries)
                compared = (unit(queries), vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True))
                wanted = sorted_exactly(*(compared if cosine else (queries, vectors)), 40)
            scores, rows = nearest(queries, blocks(vectors, 700), 40, cosine=cosine)
            np.testing.assert_allclose(scores, wanted[0], rtol=1e-6)
            assert (rows == wanted[1]).mean() > 0.995

    def test_what_is_expected_too_much_is_looked_for_again(self, fast_16):
        vectors = unit(np.random.default_rng(5).normal(size=(66_000, 16)))
        queries = unit(np.random.default_rng(6).normal(size=(12, 16)))
        best = sorted_exactly(queries, vectors, 30)
        asked = []

        def sample(size):
            asked.append(size)
            return [(0, np.tile(vectors[best[1][0]], (size // 30, 1)))]  # The best of one query alone.

        scores, rows = nearest(queries, blocks(vectors, 5000), 30, cosine=False, count=66_000, sample=sample)
        assert asked in ([8250], [2048])  # Products in float32 cost more than rows that pass in vain.
        np.testing.assert_allclose(scores, best[0], atol=1e-7)
        assert (rows == best[1]).mean() > 0.99

    def test_rows_that_must_not_be_found(self, fast_16):
        vectors = unit(np.random.default_rng(7).normal(size=(5000, 16)))
        queries = unit(np.random.default_rng(8).normal(size=(12, 16)))
        for hidden in (0.1, 0.9, 0.999):
            kept = np.flatnonzero(np.random.default_rng(9).random(5000) >= hidden)
            rows = np.full(5000, -1)
            rows[kept] = kept
            own = [(rows[first : first + 600], vectors[first : first + 600]) for first in range(0, 5000, 600)]
            for asked in (queries, queries[:1]):
                masked = nearest(asked, lambda own=own: own, 20, cosine=False)
                apart = nearest(asked, lambda kept=kept: gathered(vectors, kept), 20, cosine=False)
                for one, other in zip(masked, apart, strict=True):
                    assert np.array_equal(one, other)
                assert set(masked[1].ravel().tolist()) <= {-1, *kept.tolist()}
                assert (masked[1] >= 0).sum() == len(asked) * min(20, len(kept))

    def test_an_error_while_blocks_are_read_is_told(self):
        def damaged():
            raise OSError("the disk is gone")

        parts = [(0, np.ones((300, 4), np.float32)), (300, damaged)]
        with pytest.raises(OSError, match="the disk is gone"):
            nearest(np.ones((20, 4), np.float32), lambda: parts, 5, cosine=False)


def test_keys_are_in_the_order_of_the_best():
    scores = np.array([0.5, -0.5, 0.0, 0.25, -0.25, 0.5, np.float32(1e-40), -3e38], np.float32)
    rows = np.array([7, 6, 2**32 - 2, 4, 3, 1, 0, 9])
    order = np.argsort(_keys_of(scores, rows))
    assert order.tolist() == np.lexsort((rows, -scores)).tolist()
    for own, back in zip((scores, rows), _of_keys(_keys_of(scores, rows)), strict=True):
        assert np.array_equal(own, back)


@pytest.mark.parametrize("shape", [(1, 1), (3, 129), (7, 64), (2, 5)])
def test_true_places(shape):
    marks = np.random.default_rng(0).random(shape) < 0.2
    for own, other in zip(_true_places(marks), np.nonzero(marks), strict=True):
        assert np.array_equal(own, other)
