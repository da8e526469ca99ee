"""Codes and cells: what they find, how wide they search, builds that are interrupted, and what is refused."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from bgekit.errors import ArgumentError, MissingExtraError, OutputError
from bgekit.inference.shards import load_shards
from bgekit.search import SearchIndex, approximate, approximate_build, index_shards
from bgekit.search.approximate import Measured, Tuning, eight_bits
from bgekit.search.build import check_type, choose_type, with_type

pytest.importorskip("faiss", reason="cells need the extra faiss")
ROWS, WIDTH = 3000, 64


def vectors_of(count, seed=0):
    """Noisy copies of a few directions, and queries nearer to these than the copies are to each other."""
    generator = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(150, WIDTH))
    vectors = directions[generator.integers(0, 150, count)] + 0.6 * generator.normal(size=(count, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def folder(shards_of, tmp_path):
    metadata = [{"part": row % 100} for row in range(ROWS)]
    index_shards(load_shards(shards_of(vectors_of(ROWS), shard_size=ROWS, metadata=metadata)), tmp_path / "index")
    return tmp_path / "index"


def recall_of(index, kept, **where):
    vectors, queries = vectors_of(ROWS), vectors_of(60, seed=1)
    scores, rows = index.nearest(queries, 10, **where)
    for query, own, there in zip(queries, scores, rows, strict=True):
        np.testing.assert_allclose(own, vectors[there] @ query, atol=1e-6)  # Those of the whole vectors.
    best = kept[np.argsort(-(queries @ vectors[kept].T), axis=1)[:, :10]]
    return np.mean([np.isin(one, other).mean() for one, other in zip(best, rows, strict=True)])


@pytest.mark.parametrize(("kind", "files"), [("int8", 2), ("binary", 1), ("int8 in cells", 1)])
def test_what_is_found(folder, monkeypatch, kind, files):
    monkeypatch.setattr(approximate, "_CELLS_FROM", 0 if kind == "int8 in cells" else 1 << 40)
    # In so small an index it would be no more work to look at all.
    monkeypatch.setattr(approximate.Approximate, "worthwhile", lambda *_: True)
    with_type(folder, kind.split()[0], recall=0.98)
    index = SearchIndex.load(folder)
    (segment,) = index.facts.segments
    assert len(segment.structure["files"]) == files
    every = np.arange(ROWS)
    assert recall_of(index, every) > 0.95
    for most in (50, 10, 1):
        assert recall_of(index, every[every % 100 < most], where=f"part < {most}") > 0.93
    measured = index.describe()["measured"]
    assert (measured["wanted"], measured["sample"], measured["queries"]) == (0.98, 256, False)
    assert all(point["recall"] >= 0.98 for point in measured["points"])
    before = (folder / segment.structure["files"][0]).stat().st_mtime_ns
    with_type(folder, kind.split()[0], recall=0.6)
    points = SearchIndex.load(folder).describe()["measured"]["points"]
    assert points[0]["candidates"] <= measured["points"][0]["candidates"]
    assert (folder / segment.structure["files"][0]).stat().st_mtime_ns == before  # Only measured again.


@pytest.mark.parametrize("segments", [1, 2, 3])
@pytest.mark.parametrize("most", [1, 3, 20])
def test_rows_that_are_all_looked_at_are_not_added_up_one_by_one(folder, monkeypatch, most, segments):
    """Where a condition keeps so little that cells are of no use, one pass compares what it keeps."""
    with_type(folder, "int8")
    monkeypatch.setattr(approximate.Approximate, "worthwhile", lambda *_: False)
    monkeypatch.setattr(SearchIndex, "_scored", None)
    index, every, size = SearchIndex.load(folder), np.arange(ROWS), ROWS // segments
    ((_, _, structure),) = index._state.structures
    index._state.structures[:] = [(first, size, structure) for first in range(0, ROWS, size)]
    assert recall_of(index, every[every % 100 < most], where=f"part < {most}") == 1


def test_what_meets_a_condition_and_lies_elsewhere_than_the_query(folder, monkeypatch):
    """More cells are looked into until enough of the rows that may be found are."""
    monkeypatch.setattr(approximate.Approximate, "worthwhile", lambda *_: True)
    with_type(folder, "ivf")
    index, vectors = SearchIndex.load(folder), vectors_of(ROWS)
    query = vectors_of(1, seed=3)
    far = np.sort(np.argsort(vectors @ query[0])[:400])
    found = index._nearest(query, 10, far)[1]
    best = far[np.argsort(-(vectors[far] @ query[0]))[:10]]
    assert np.isin(best, found).mean() >= 0.7


def test_mapped_cells_are_read_by_those_who_search(folder):
    """faiss would start up to 32 threads for every search, which read its cells once more."""
    import faiss

    with_type(folder, "binary")
    (segment,) = SearchIndex.load(folder).facts.segments
    opened = approximate.open_structure(folder, segment.structure, ROWS, WIDTH)
    for each in (opened._index, opened._again):
        lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(each).invlists)
        assert isinstance(lists, faiss.OnDiskInvertedLists) and lists.prefetch_nthread == 0


def test_a_build_that_was_interrupted_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate_build, "_PART", 700)
    with_type(folder, "binary")
    whole = (folder / "index.faiss").read_bytes()
    with_type(folder, "exact")
    added, add = [], approximate_build.add_to_cells

    def interrupted(index, rows, *rest):
        added.append(int(rows[0]))
        if added == [0, 700, 1400]:
            raise KeyboardInterrupt
        add(index, rows, *rest)

    monkeypatch.setattr(approximate_build, "add_to_cells", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with_type(folder, "binary")
    assert SearchIndex.load(folder).facts.index_type == "exact"
    with_type(folder, "binary")
    assert added == [0, 700, 1400, 1400, 2100, 2800]
    (segment,) = SearchIndex.load(folder).facts.segments
    assert (folder / segment.structure["files"][0]).read_bytes() == whole
    assert not list(folder.glob("building-*"))


def test_queries_that_are_given_are_what_it_is_measured_with(shards_of, tmp_path):
    shards = load_shards(shards_of(vectors_of(500)))
    index = index_shards(shards, tmp_path / "index", index_type="int8", queries=vectors_of(40, seed=5))
    measured = index.describe()["measured"]
    assert (measured["sample"], measured["queries"]) == (40, True)
    with pytest.raises(ArgumentError, match=r"queries must be vectors \[n, 64\]"):
        index_shards(shards, tmp_path / "other", index_type="int8", queries=np.zeros((3, 7)))


@pytest.mark.parametrize("change", ["gone", "short", "long", "other"])
@pytest.mark.parametrize(
    ("kind", "name"), [("int8", "index.int8"), ("int8", "index.scales"), ("binary", "index.faiss")]
)
def test_damage(shards_of, tmp_path, kind, name, change):
    index_shards(load_shards(shards_of(vectors_of(60))), tmp_path / "index", index_type=kind)
    path = tmp_path / "index" / name
    content = path.read_bytes()
    path.unlink()
    if change != "gone":
        changed = {"short": content[:-9], "long": content + b"12345678", "other": b"?" * len(content)}[change]
        path.write_bytes(changed)
    with pytest.raises(OutputError, match=name.replace(".", r"\.")):
        SearchIndex.load(tmp_path / "index")


def test_without_faiss(shards_of, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "faiss" else find(name, *rest))
    for kind in ("binary", "hnsw", "ivf"):
        with pytest.raises(MissingExtraError, match=r"bgekit\[faiss\]"):
            check_type(kind)
    monkeypatch.setattr(approximate, "_CELLS_FROM", 0)
    index = index_shards(load_shards(shards_of(vectors_of(300))), tmp_path / "index", index_type="int8")
    assert index.facts.segments[0].structure["files"] == ["index.int8", "index.scales"]
    assert choose_type(10_000_000, 384)[0] == "int8"


def test_auto(shards_of, tmp_path):
    assert choose_type(100_000, 384)[0] == "exact"
    kind, reason = choose_type(10_000_000, 384)
    assert kind == "binary" and "10,000,000 vectors of 384 dimensions, 15,360 MB" in reason and "faiss" in reason
    assert (
        index_shards(load_shards(shards_of(vectors_of(9))), tmp_path / "i", index_type="auto").facts.index_type
        == "exact"
    )


@pytest.mark.parametrize("recall", [0, 0.3, 1, 1.5, float("nan")])
def test_a_recall_that_cannot_be(recall):
    with pytest.raises(ArgumentError, match="recall must be at least"):
        check_type("int8", recall)


def test_a_recall_of_an_exact_index(folder):
    with pytest.raises(ArgumentError, match="an exact index finds all"):
        with_type(folder, "exact", recall=0.9)


def test_an_index_that_keeps_no_measurement_opens(folder):
    with_type(folder, "hnsw")
    facts = json.loads((folder / "index.json").read_text())
    version_1 = {key: value for key, value in facts.items() if key not in ("segments", "generation")} | {"version": 1}
    (folder / "index.json").write_text(json.dumps(version_1))
    index = SearchIndex.load(folder)
    assert index.describe()["measured"] is None
    assert recall_of(index, np.arange(ROWS)) > 0.95


def test_effort_grows_with_what_is_wanted_and_with_what_is_left_out():
    tuning = Tuning(0.99, 256, False, (Measured(10, 20, 40, 0.99), Measured(100, 80, 250, 0.99)))
    assert (tuning.effort(10).width, tuning.effort(10).candidates) == (20, 40)
    assert tuning.effort(10, share=0.1).width == 80
    efforts = [tuning.effort(k) for k in (1, 10, 30, 100, 1000, 5000)]
    assert [each.width for each in efforts] == sorted(each.width for each in efforts)
    assert all(each.candidates > k for each, k in zip(efforts, (1, 10, 30, 100, 1000, 5000), strict=True))


def test_eight_bits_keep_the_scores():
    vectors = vectors_of(200) * np.linspace(0.01, 30, 200, dtype=np.float32)[:, None]
    codes, scales = eight_bits(vectors)
    np.testing.assert_allclose(codes * scales[:, None], vectors, atol=float(np.abs(vectors).max()) / 250)
    assert eight_bits(np.zeros((2, 5), np.float32))[0].tolist() == [[0] * 5] * 2
