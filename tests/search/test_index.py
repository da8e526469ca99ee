"""An index finds what it should, shows it, and refuses what does not fit."""

from __future__ import annotations

import datetime
import gc
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from bgekit.data.records import Record
from bgekit.errors import ArgumentError, OutputError
from bgekit.inference.shards import load_shards
from bgekit.search.build import index_records, index_shards
from bgekit.search.index import SearchIndex
from bgekit.search.where import Where

TYPES = ["exact", "hnsw", "ivf"]


@pytest.fixture(scope="module", autouse=True)
def faiss():
    return pytest.importorskip("faiss", reason="approximate indexes need the extra faiss")


def random_unit(count, dimension=24, seed=0):
    # A few directions with noise: as embeddings, not evenly spread.
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(20, dimension))
    vectors = centers[generator.integers(0, 20, count)] + 0.5 * generator.normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def ids(hits):
    return [hit.id for hit in hits]


@pytest.mark.parametrize("index_type", TYPES)
def test_types_agree(shards_of, tmp_path, index_type):
    vectors, queries = random_unit(3000), random_unit(50, seed=1)
    index = index_shards(load_shards(shards_of(vectors)), tmp_path / "index", index_type=index_type)
    answers = index.search(queries, 10)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    recall = np.mean(
        [len({str(row) for row in rows} & set(ids(hits))) / 10 for rows, hits in zip(best, answers, strict=True)]
    )
    assert recall == 1 if index_type == "exact" else recall > 0.95
    for query, hits in zip(queries, answers, strict=True):
        assert [hit.rank for hit in hits] == list(range(1, 11))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        np.testing.assert_allclose([hit.score for hit in hits], vectors[[int(i) for i in ids(hits)]] @ query, atol=1e-6)
        assert [hit.text for hit in hits] == [f"text {i}" for i in ids(hits)]


@pytest.mark.parametrize("index_type", TYPES)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_more_wanted_than_there_are(shards_of, tmp_path, index_type, count):
    folder = shards_of(random_unit(count))
    index = index_shards(load_shards(folder), tmp_path / "index", index_type=index_type)
    (hits,) = index.search(random_unit(1, seed=3), 50)
    assert len(index) == count
    assert sorted(ids(hits)) == [str(row) for row in range(count)]
    assert index.search(np.empty((0, 24)), 5) == []


def test_shards_are_searched_where_they_lie(shards_of, tmp_path):
    vectors, queries = random_unit(350), random_unit(3, seed=1)
    folder = shards_of(vectors, dtype="float16")
    found = SearchIndex.load(folder).search(queries, 5)
    assert found == index_shards(load_shards(folder), tmp_path / "index").search(queries, 5)
    assert [hit.text for hit in found[0]] == [f"text {hit.id}" for hit in found[0]]


def test_without_texts(shards_of):
    index = SearchIndex.load(shards_of(random_unit(5), store_texts=False))
    assert [hit.text for hit in index.search(random_unit(1), 2)[0]] == [None, None]


def test_equal_vectors_come_in_order_whatever_their_block(shards_of):
    vectors = np.repeat(random_unit(1), 333, axis=0)
    (hits,) = SearchIndex.load(shards_of(vectors, shard_size=50)).search(random_unit(1, seed=5), 333)
    assert ids(hits) == [str(row) for row in range(333)]
    assert len({hit.score for hit in hits}) == 1


@pytest.mark.parametrize("index_type", TYPES)
def test_of_more_copies_than_are_wanted_the_earliest_come(shards_of, tmp_path, index_type):
    others = random_unit(600)
    vectors = np.concatenate([others[:300], np.repeat(random_unit(1, seed=7), 211, axis=0), others[300:]])
    index = index_shards(load_shards(shards_of(vectors)), tmp_path / "index", index_type=index_type)
    for noise in range(4):
        query = vectors[300] + 0.02 * random_unit(1, seed=20 + noise)
        assert ids(index.search(query, 5)[0]) == ["300", "301", "302", "303", "304"]


@pytest.mark.parametrize("index_type", TYPES)
def test_dot_product_where_the_card_says_so(shards_of, tmp_path, index_type):
    vectors = np.array([[3, 0], [1, 1], [0, 9]], np.float32)
    for similarity, order in (("dot", ["2", "0", "1"]), ("cosine", ["1", "0", "2"])):
        folder = shards_of(vectors, similarity=similarity, normalize=False)
        index = index_shards(load_shards(folder), tmp_path / similarity, index_type=index_type)
        assert ids(index.search([1, 0.9], 3)[0]) == order


@pytest.mark.parametrize("index_type", TYPES)
def test_documents_are_ranked_by_their_best_passage(shards_of, tmp_path, index_type):
    # One document of 500 passages that are all nearer than the other documents: they must be found all the same.
    close, far = np.array([1, 0.01]), np.array([1, 1])
    names = [f"long#{number}" for number in range(500)] + ["b#1#0", "c#0", "c#1"]
    vectors = np.array([close] * 500 + [far, far * [1, 3], far * [1, 0.5]], np.float32)
    vectors[77] = [1, 0]
    index = index_shards(
        load_shards(shards_of(vectors, ids=names, chunked=True, normalize=False)), tmp_path / "i", index_type=index_type
    )
    (hits,) = index.search([1, 0], 10)
    assert [(hit.rank, hit.id, hit.passage) for hit in hits] == [(1, "long", 77), (2, "c", 1), (3, "b#1", 0)]
    assert hits[0].text == "text 77"
    assert hits[0].to_dict()["passage"] == 77
    assert len(index.search([[1, 0], [0, 1]], 1)[1]) == 1


@pytest.mark.parametrize("index_type", TYPES)
def test_nearest_gives_what_search_makes_hits_of(shards_of, tmp_path, index_type):
    vectors, queries = random_unit(700), random_unit(5, seed=1)
    metadata = [{"part": row % 7} for row in range(700)]
    index = index_shards(load_shards(shards_of(vectors, metadata=metadata)), tmp_path / "i", index_type=index_type)
    for where in (None, "part = 3"):
        scores, rows = index.nearest(queries, 30, where)
        assert (scores.dtype, rows.dtype, scores.shape, rows.shape) == (np.float32, np.int64, (5, 30), (5, 30))
        for hits, own, there in zip(index.search(queries, 30, where=where), scores, rows, strict=True):
            assert [hit.score for hit in hits] == own.tolist()
            assert [int(hit.id) for hit in hits] == there.tolist()


def test_nearest_fills_what_is_not_there_as_faiss_does(shards_of):
    index = SearchIndex.load(shards_of(random_unit(3)))
    scores, rows = index.nearest(random_unit(1, seed=2)[0], 5)
    assert sorted(rows[0, :3]) == [0, 1, 2]
    assert rows[0, 3:].tolist() == [-1, -1]
    assert scores[0, 3:].tolist() == [-np.inf, -np.inf]
    with pytest.raises(ArgumentError, match="k must"):
        index.nearest(random_unit(1), 0)
    with pytest.raises(ArgumentError, match="24 dimensions"):
        index.nearest(np.zeros((1, 3)), 5)


def test_queries_are_checked(shards_of):
    index = SearchIndex.load(shards_of(random_unit(5)))
    with pytest.raises(ArgumentError, match="24 dimensions"):
        index.search(np.zeros((1, 3)))
    with pytest.raises(ArgumentError, match="NaN"):
        index.search(np.full((1, 24), np.nan))
    with pytest.raises(ArgumentError, match="top_k"):
        index.search(np.zeros((1, 24)), 0)


class TestWhere:
    """With a condition, what is found is the nearest of the rows that meet it, whatever the type of index."""

    @pytest.fixture
    def rows(self):
        generator = np.random.default_rng(3)
        parts, langs = generator.integers(0, 100, 3000).tolist(), generator.choice(["en", "fr"], 3000).tolist()
        return [{"part": part, "lang": lang, "year": None if part == 7 else 2000 + part}
                for part, lang in zip(parts, langs, strict=True)]  # fmt: skip

    @pytest.mark.parametrize("index_type", TYPES)
    @pytest.mark.parametrize("most", [1, 5, 30, 80, 100])
    def test_the_nearest_of_those_that_meet_it(self, shards_of, tmp_path, rows, index_type, most, monkeypatch):
        # In so small an index it would be no more work to look at all.
        monkeypatch.setattr("bgekit.search.approximate.Approximate.worthwhile", lambda _, k, rows, __: k <= rows // 4)
        vectors, queries = random_unit(3000), random_unit(30, seed=1)
        folder = shards_of(vectors, metadata=rows)
        index = index_shards(load_shards(folder), tmp_path / "index", index_type=index_type)
        kept = np.array([row for row, known in enumerate(rows) if known["part"] < most])
        assert 0 < len(kept) <= 3000
        answers = index.search(queries, 10, where=f"part < {most}")
        best = kept[np.argsort(-(queries @ vectors[kept].T), axis=1, kind="stable")[:, :10]]
        recall = np.mean([len({str(row) for row in wanted} & set(ids(hits))) / len(wanted)
                          for wanted, hits in zip(best, answers, strict=True)])  # fmt: skip
        assert recall == 1 if index_type == "exact" else recall > 0.95
        for query, hits in zip(queries, answers, strict=True):
            assert [hit.rank for hit in hits] == list(range(1, min(10, len(kept)) + 1))
            assert all(hit.metadata == rows[int(hit.id)] and hit.metadata["part"] < most for hit in hits)
            own = [hit.score for hit in hits]
            np.testing.assert_allclose(own, vectors[[int(hit.id) for hit in hits]] @ query, atol=1e-6)

    @pytest.mark.parametrize("index_type", TYPES)
    def test_as_many_as_meet_it_are_found(self, shards_of, tmp_path, rows, index_type):
        index = index_shards(
            load_shards(shards_of(random_unit(3000), metadata=rows)), tmp_path / "i", index_type=index_type
        )
        for condition, count in (("part < 50", 1000), ("part = 3 and lang = 'fr'", 500), ("year is null", 99)):
            kept = [str(row) for row in np.flatnonzero(Where(condition).rows(index.metadata))]
            (hits,) = index.search(random_unit(1, seed=8), count, where=condition)
            assert len(hits) == min(count, len(kept)) > 10
            assert set(ids(hits)) <= set(kept)
        assert index.search(random_unit(2, seed=8), 5, where="part > 100") == [[], []]

    def test_shards_are_filtered_where_they_lie(self, shards_of, tmp_path, rows):
        folder = shards_of(random_unit(3000), metadata=rows, dtype="float16")
        query, condition = random_unit(1, seed=4), "lang = 'en' and year >= 2090"
        found = SearchIndex.load(folder).search(query, 7, where=condition)
        assert found == index_shards(load_shards(folder), tmp_path / "index").search(query, 7, where=condition)
        assert len(found[0]) == 7

    @pytest.mark.parametrize("index_type", TYPES)
    def test_of_copies_the_earliest_come(self, shards_of, tmp_path, index_type):
        vectors = np.concatenate([random_unit(300), np.repeat(random_unit(1, seed=7), 211, axis=0)])
        folder = shards_of(vectors, metadata=[{"even": row % 2 == 0} for row in range(511)])
        index = index_shards(load_shards(folder), tmp_path / "index", index_type=index_type)
        assert ids(index.search(vectors[300], 4, where="even = false")[0]) == ["301", "303", "305", "307"]

    @pytest.mark.parametrize("index_type", TYPES)
    def test_documents_count_not_passages(self, shards_of, tmp_path, index_type):
        close, far = np.array([1, 0.01]), np.array([1, 1])
        names = [f"long#{number}" for number in range(500)] + ["b#0", "c#0", "c#1", "d#0"]
        vectors = np.array([close] * 500 + [far, far * [1, 3], far * [1, 0.5], far * [1, -1]], np.float32)
        known = [{"lang": "en"}] * 502 + [{"lang": "en"}, {"lang": "fr"}]
        folder = shards_of(vectors, ids=names, chunked=True, normalize=False, metadata=known)
        index = index_shards(load_shards(folder), tmp_path / "i", index_type=index_type)
        (hits,) = index.search([1, 0], 3, where="lang = 'en'")
        assert [(hit.id, hit.passage, hit.metadata) for hit in hits] == [
            ("long", 0, {"lang": "en"}), ("c", 1, {"lang": "en"}), ("b", 0, {"lang": "en"}),
        ]  # fmt: skip

    def test_hits_as_json(self, shards_of):
        day = datetime.date(2024, 5, 31)
        index = SearchIndex.load(shards_of(random_unit(2), metadata=[{"day": day, "tags": ["a"]}, {"day": None}]))
        hits = {hit.id: hit for hit in index.search(random_unit(1), 2)[0]}
        assert hits["0"].metadata == {"day": day, "tags": ["a"]}
        assert hits["0"].to_dict()["metadata"] == {"day": "2024-05-31", "tags": ["a"]}
        assert hits["1"].to_dict()["metadata"] == {"day": None, "tags": None}
        assert hash(hits["0"])

    def test_asking_and_reranking(self, embedder, tmp_path):
        class Longest:
            def compute_score(self, pairs):
                return [len(passage) for _, passage in pairs]

        records = [Record(str(row), "x" * row, metadata={"n": row}) for row in range(1, 40)]
        index, _ = index_records(embedder(), records, tmp_path / "index")
        assert ids(index.ask(embedder(), ["q"], 2, where="n <= 20", reranker=Longest())[0]) == ["20", "19"]
        assert {hit.metadata["n"] <= 3 for hit in index.ask(embedder(), ["q"], 3, where="n <= 3")[0]} == {True}

    def test_errors(self, shards_of, rows):
        index = SearchIndex.load(shards_of(random_unit(3000), metadata=rows))
        with pytest.raises(ArgumentError, match=r"no column yaer \(did you mean year\?\)"):
            index.search(random_unit(1), where="yaer = 3")
        plain = SearchIndex.load(shards_of(random_unit(5)))
        assert plain.metadata is None
        assert plain.search(random_unit(1), 1)[0][0].to_dict().keys() == {"rank", "id", "score", "text"}
        with pytest.raises(ArgumentError, match=r"keeps no metadata .* \(--keep year 'a b'\)"):
            plain.search(random_unit(1), where='year = 3 and "a b" is null')


class TestModels:
    """Vectors of another model are not compared with those of the index."""

    @pytest.fixture
    def index(self, embedder, tmp_path):
        records = [Record(str(row), f"a text {row}") for row in range(20)]
        return index_records(embedder(), records, tmp_path / "index")[0]

    def test_queries_get_the_instruction(self, index, embedder, monkeypatch):
        model = embedder()
        seen, original = [], model._compute

        def watched(blocks, prompt, *rest):
            seen.append(prompt.prefix)
            return original(blocks, prompt, *rest)

        monkeypatch.setattr(model, "_compute", watched)
        assert ids(index.ask(model, ["a text 7"], 1)[0]) == ["7"]
        index.ask(model, ["a text 7"], 1, instruction=None)
        assert seen == ["q: ", ""]

    def test_another_precision_is_fine(self, index, embedder):
        assert ids(index.ask(embedder(precision="bfloat16"), ["a text 7"], 1)[0]) == ["7"]

    def test_another_model_is_refused(self, index, embedder):
        other = embedder(name="other")
        other.salt = "x"
        with pytest.raises(ArgumentError, match=r"made with table and cannot be searched with other.*--model table"):
            index.ask(other, ["a"])

    @pytest.mark.parametrize("card", [{"pooling": "mean"}, {"dimension": 8}])
    def test_another_card_is_refused(self, index, embedder, card):
        with pytest.raises(ArgumentError, match=r"pooling was cls|16 dimensions"):
            index.ask(embedder(**card), ["a"])

    @pytest.mark.parametrize("part", [lambda vectors: vectors, lambda vectors: vectors[1:], lambda vectors: vectors[0],
                                      list, lambda vectors: pickle.loads(pickle.dumps(vectors))])  # fmt: skip
    def test_vectors_of_another_model_are_refused(self, index, embedder, part):
        other, model = embedder(name="other"), embedder()
        other.salt = "x"
        with pytest.raises(ArgumentError, match=r"table.*(other|another model)"):
            index.search(part(other.encode_queries(["a text 7", "a text 8"])))
        assert len(index.search(part(model.encode_queries(["a text 7", "a text 8"])))) in (1, 2)

    def test_vectors_of_a_model_that_is_gone_are_refused_by_their_fingerprint(self, index, embedder):
        vectors = embedder(pooling="mean").encode_queries(["a"])
        gc.collect()
        with pytest.raises(ArgumentError, match=r"pooling|another model.*index.ask\(model, texts\)"):
            index.search(vectors)

    def test_vectors_of_the_model_in_another_precision_are_fine(self, index, embedder, caplog):
        model = embedder(precision="bfloat16")
        assert ids(index.search(model.encode_queries(["a text 7"], instruction=None), 1)[0]) == ["7"]
        assert not caplog.messages

    def test_vectors_of_nobody_are_searched_with_one_warning(self, index, embedder, caplog):
        vectors = embedder().encode_queries(["a text 7"])
        for plain in (np.asarray(vectors), torch.from_numpy(np.asarray(vectors)), vectors.tolist(), vectors * 1):
            assert ids(index.search(plain, 1)[0]) == ["7"]
        assert len(caplog.messages) == 1 and "index.ask(model, texts)" in caplog.text

    def test_a_model_that_is_named_is_checked(self, index, embedder, caplog):
        model, other = embedder(), embedder(pooling="mean")
        vectors = np.asarray(model.encode_queries(["a text 7"]))
        assert ids(index.search(vectors, 1, model=model)[0]) == ["7"]
        assert not caplog.messages
        for given in (vectors, other.encode_queries(["a text 7"])):
            with pytest.raises(ArgumentError, match="pooling was cls"):
                index.search(given, 1, model=other)
        with pytest.raises(ArgumentError, match="pooling was cls"):
            index.search(other.encode_queries(["a text 7"]), 1, model=model)

    def test_asking_needs_no_warning(self, index, embedder, caplog):
        index.ask(embedder(), ["a text 7"], 1)
        assert not caplog.messages

    def test_without_texts_nothing_can_tell(self, shards_of, embedder):
        index = SearchIndex.load(shards_of(random_unit(5, 16), store_texts=False))
        assert len(index.ask(embedder(), ["a"])[0]) == 5
        with pytest.raises(ArgumentError, match="keeps no texts"):
            index.ask(embedder(precision="bfloat16"), ["a"])


class TestDamage:
    """What is missing or damaged is an error that names the file."""

    @pytest.fixture
    def folder(self, shards_of, tmp_path):
        index_shards(load_shards(shards_of(random_unit(50))), tmp_path / "index", index_type="hnsw")
        return tmp_path / "index"

    @pytest.mark.parametrize("name", ["vectors.npy", "rows.jsonl", "offsets.npy", "index.faiss", "index.json"])
    @pytest.mark.parametrize("change", ["gone", "short", "empty"])
    def test_files(self, folder, name, change):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if change != "gone":
            (folder / name).write_bytes(content[: len(content) // 2 if change == "short" else 0])
        with pytest.raises(OutputError, match=name.replace(".", r"\.") if name != "index.json" else "index"):
            SearchIndex.load(folder)

    def test_an_index_of_another_corpus(self, folder, shards_of, tmp_path):
        index_shards(load_shards(shards_of(random_unit(40))), tmp_path / "other", index_type="hnsw")
        shutil.copy(tmp_path / "other" / "index.faiss", folder)
        with pytest.raises(OutputError, match="another index"):
            SearchIndex.load(folder)

    @pytest.mark.parametrize("change", ["gone", "short", "empty", "other"])
    def test_metadata(self, shards_of, tmp_path, change):
        folder, path = tmp_path / "with", tmp_path / "with" / "metadata.arrow"
        for number, place in enumerate((folder, tmp_path / "other")):
            shards = shards_of(random_unit(50), metadata=[{f"column{number}": row} for row in range(50)])
            index_shards(load_shards(shards), place)
        content = path.read_bytes()
        path.unlink()
        if change == "other":
            shutil.copy(tmp_path / "other" / "metadata.arrow", path)
        elif change != "gone":
            path.write_bytes(content[: len(content) // 2 if change == "short" else 0])
        with pytest.raises(OutputError, match=r"metadata\.arrow (is missing or damaged|belongs to another index)"):
            SearchIndex.load(folder)

    @pytest.mark.parametrize(("key", "value"), [("format", "x"), ("version", 99), ("extra", 1)])
    def test_facts(self, folder, key, value):
        facts = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(facts | {key: value}))
        with pytest.raises(OutputError, match="index"):
            SearchIndex.load(folder)

    def test_no_index(self, tmp_path):
        with pytest.raises(OutputError, match="does not exist"):
            SearchIndex.load(tmp_path / "nowhere")
        with pytest.raises(OutputError, match="is neither an index nor"):
            SearchIndex.load(tmp_path)
