"""Neighbours of all rows: as by comparing all with all, whatever finds them."""

import numpy as np
import pytest

from bgekit.inference.similarity import unit
from bgekit.search.build import index_shards
from bgekit.search.index import SearchIndex
from bgekit.search.neighbors import find_neighbors

RNG = np.random.default_rng(3)


def vectors_with_copies(rows=700, width=24):
    vectors = RNG.standard_normal((rows, width)).astype(np.float32)
    vectors[[5, 300, 699]] = vectors[40]
    return vectors


def brute_force(vectors, count):
    cosines = unit(vectors).astype(np.float64) @ unit(vectors).astype(np.float64).T
    cosines = cosines.round(7)  # Copies are equal, whatever a product of matrices makes of them.
    np.fill_diagonal(cosines, 3)
    ids = np.argsort(-cosines, axis=1, kind="stable")[:, : count + 1]
    distances = 1 - np.take_along_axis(cosines, ids, axis=1)
    distances[:, 0] = 0
    return ids, distances


@pytest.mark.parametrize("normalize", [True, False])
def test_exact_neighbours(shards_of, tmp_path, normalize):
    vectors = vectors_with_copies() * (1 if normalize else 7)
    stored = unit(vectors) if normalize else vectors
    index = SearchIndex.load(shards_of(stored, normalize=normalize))
    done = []
    found = find_neighbors(index, 6, tmp_path, advance=done.append)
    ids, distances = brute_force(stored, 6)
    assert found.method == "exact"
    assert sum(done) == 700
    assert found.ids.dtype == np.int32 and found.distances.dtype == np.float32
    assert (found.ids == ids).all()
    np.testing.assert_allclose(found.distances, distances, atol=1e-6)
    # The row itself comes first although copies of it stand before it, and copies come next, the earlier ones first.
    assert found.ids[699, :4].tolist() == [699, 5, 40, 300]
    assert (found.distances[699, :4] < 1e-6).all()


@pytest.mark.parametrize(("index_type", "least"), [("hnsw", 0.95), ("ivf", 0.7)])
def test_above_the_limit_the_approximate_index_names_candidates(shards_of, tmp_path, index_type, least):
    vectors = unit(vectors_with_copies(2000))
    shards = SearchIndex.load(shards_of(vectors)).stored._shards
    index = index_shards(shards, tmp_path / "index", index_type=index_type)
    exact = find_neighbors(index, 5, tmp_path)
    ids = exact.ids.copy()
    found = find_neighbors(index, 5, tmp_path, exact_up_to=100)
    assert (exact.method, found.method) == ("exact", index_type)
    assert (found.ids[:, 0] == np.arange(2000)).all()
    assert np.mean([len(set(a) & set(b)) / 6 for a, b in zip(ids, found.ids, strict=True)]) > least


def test_without_an_approximate_index_a_graph_is_made_or_all_are_compared(shards_of, tmp_path, monkeypatch, caplog):
    index = SearchIndex.load(shards_of(unit(vectors_with_copies())))
    assert find_neighbors(index, 3, tmp_path, exact_up_to=10).method == "hnsw"
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    monkeypatch.setattr("bgekit.errors.importlib.import_module", _no_faiss)
    assert find_neighbors(index, 3, tmp_path, exact_up_to=10).method == "exact"
    assert "comparing 700 texts with each other" in caplog.text
    assert "bgekit[faiss]" in caplog.text


def _no_faiss(name, package=None):
    raise ModuleNotFoundError("No module named 'faiss'", name="faiss")


def test_fewer_rows_than_neighbours_wanted(shards_of, tmp_path):
    index = SearchIndex.load(shards_of(unit(vectors_with_copies())[:1]))
    found = find_neighbors(index, 15, tmp_path)
    assert found.ids.tolist() == [[0]] and found.distances.tolist() == [[0]]
