"""Search by words, by weights of tokens, token by token, and by several of these together."""

from __future__ import annotations

import hashlib
import random
import re

import numpy as np
import pytest

from bgekit.data.records import Record
from bgekit.errors import ArgumentError, DataError, OutputError
from bgekit.inference.pipeline import Encoded
from bgekit.inference.ragged import LEXICAL
from bgekit.inference.shards import encode_to_shards, load_shards
from bgekit.search import postings, storage, updates
from bgekit.search.bm25 import Bm25
from bgekit.search.build import index_records, index_shards, with_parts
from bgekit.search.fusion import FittedWeights, write_fusion
from bgekit.search.index import SearchIndex
from bgekit.search.results import write_results
from table_embedder import TableEmbedder

VOCABULARY = "alpha beta gamma delta epsilon zeta eta theta iota kappa 中文 模型 检索".split()
QUESTIONS = ["gamma 模型 zeta", "iota iota alpha", "unheard", "中文检索 beta unheard"]


class HeadedEmbedder(TableEmbedder):
    """A text's tokens are its words; each has a weight and a vector of its own."""

    outputs = ("dense", "sparse", "multi-vector")
    vocabulary, token_dimension = 1 << 16, 8

    def _check_heads(self, outputs):
        pass

    def output_fingerprint(self, output):
        return f"{self.fingerprint} {output}"

    @staticmethod
    def token(word):
        return int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big")

    def weights(self, text):
        found = {}
        for word in text.split():
            found[self.token(word)] = max(found.get(self.token(word), 0), (1 + len(word)) / (1 + len(text)))
        return np.array(sorted(found.items()), LEXICAL)

    def vectors(self, text):
        rows = [np.random.default_rng(self.token(word)).normal(size=8) for word in text.split()]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32).reshape(-1, 8)

    def _compute_outputs(self, blocks, prompt, max_length, batch_size, outputs):
        for texts in blocks:
            (dense,) = self._compute([texts], prompt, max_length, batch_size)
            ragged = {"sparse": list(map(self.weights, texts)), "multi-vector": list(map(self.vectors, texts))}
            own = {output: ragged[output] for output in outputs if output != "dense"}
            vectors = dense.vectors if "dense" in outputs else dense.vectors[:, :0]
            yield Encoded(vectors, len(texts), ragged=own)


def some_records(first, last, seed=0):
    draw = random.Random(f"{seed} {first}")
    texts = [" ".join(draw.choices(VOCABULARY, k=draw.randint(1, 9))) for _ in range(first, last)]
    return [
        Record(f"d{row}", text, metadata={"year": 1990 + row % 40})
        for row, text in zip(range(first, last), texts, strict=True)
    ]


def live_texts(index):
    return dict(index.live.rows())


def lexical_scores(model, texts, question):
    asked = dict(model.weights(question).tolist())
    return [sum(np.float64(asked.get(t, 0)) * w for t, w in model.weights(text).tolist()) for text in texts]


def token_score(model, text, question):
    return (model.vectors(question) @ model.vectors(text).astype(np.float16).astype(np.float32).T).max(1).mean()


@pytest.fixture(params=[1 << 20, 64])
def blocks(request, monkeypatch):
    """Postings are made in one block, or in many that wait on the disk."""
    monkeypatch.setattr(postings, "_BLOCK", request.param)
    monkeypatch.setattr(postings, "_FEW", 3 if request.param == 64 else 16)
    monkeypatch.setattr(postings, "_TERMS", 5 if request.param == 64 else 1 << 18)


@pytest.fixture
def model():
    return HeadedEmbedder()


PARTS = ("bm25", "lexical", "multi-vector")


@pytest.fixture
def index(model, tmp_path):
    return index_records(model, some_records(0, 120), tmp_path / "index", parts=PARTS)[0]


def check_all_modes(index, model, where=None):
    """Every mode gives what its formula gives over the rows that are there."""
    texts, kept = live_texts(index), set(live_texts(index))
    if where is not None:
        ids = list(texts)
        kept = {ids[row] for row in index.rows_where(where)}
    bm25 = Bm25.of_texts(texts.values())
    for question in QUESTIONS:
        expected = {
            "bm25": dict(zip(texts, bm25.scores(question, list(texts.values())), strict=True)),
            "lexical": dict(zip(texts, lexical_scores(model, texts.values(), question), strict=True)),
        }
        for mode, scores in expected.items():
            (hits,) = index.ask(model, [question], 10, mode=mode, where=where)
            best = sorted((score for name, score in scores.items() if name in kept and score > 0), reverse=True)[:10]
            assert [hit.score for hit in hits] == pytest.approx(best, rel=1e-5)
            assert all(hit.id in kept and hit.score == pytest.approx(scores[hit.id], rel=1e-5) for hit in hits)
            assert all(hit.text == texts[hit.id] for hit in hits)
        (hits,) = index.ask(model, [question], 10, mode="multi-vector", where=where)
        best = sorted((token_score(model, texts[name], question) for name in kept), reverse=True)[:10]
        assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-5)


def test_each_mode_gives_the_scores_of_its_formula(blocks, index, model):
    check_all_modes(index, model)
    check_all_modes(index, model, where="year < 2010")
    assert not list(index.folder.glob("building-*"))


def test_what_is_found_after_any_changes_is_what_a_new_index_finds(blocks, index, model, tmp_path):
    index.remove([f"d{row}" for row in range(30, 90)])
    check_all_modes(index, model)
    index.add(model, some_records(80, 150, seed=1))
    check_all_modes(index, model, where="year > 2000")
    for mode in (*PARTS, "hybrid"):
        before = index.ask(model, QUESTIONS, 5, mode=mode)
        again = SearchIndex.load(index.folder).ask(model, QUESTIONS, 5, mode=mode)
        assert before == again
    held = [Record(name, text, metadata=known) for (name, text), known in
            zip(index.live.rows(), index.metadata.to_pylist(), strict=True)]  # fmt: skip
    index.compact()
    check_all_modes(index, model)
    fresh, _ = index_records(model, held, tmp_path / "fresh", parts=PARTS)
    for mode in ("dense", *PARTS, "hybrid"):
        assert index.ask(model, QUESTIONS, 5, mode=mode) == fresh.ask(model, QUESTIONS, 5, mode=mode)


def test_an_index_follows_its_records_with_all_parts(index, model, tmp_path):
    encoded = model.encoded
    changed = [*some_records(0, 60), Record("new", some_records(70, 71)[0].text), Record("other", "kappa kappa")]
    index, _ = index_records(model, changed, index.folder)
    assert model.encoded == encoded + 2 and index.facts.parts.keys() == set(PARTS)
    check_all_modes(index, model)


def test_words_are_added_to_an_index_that_is_there_and_stay(model, tmp_path):
    index, _ = index_records(model, some_records(0, 50), tmp_path / "index")
    index.add(model, some_records(50, 60))
    with pytest.raises(ArgumentError, match="give --parts bm25 once"):
        index.ask(None, ["alpha"], mode="bm25")
    with pytest.raises(ArgumentError, match="vectors alone"):
        index.ask(model, ["alpha"], mode="hybrid")
    generation = index.facts.generation
    encoded = model.encoded
    with_parts(index.folder, ["bm25"])
    assert index.refresh() and model.encoded == encoded and index.facts.generation == generation + 1
    assert index.ask(None, ["alpha gamma"], 60, mode="bm25") != []
    with_parts(index.folder, ["bm25"])
    assert not index.refresh()
    with pytest.raises(ArgumentError, match="the model, which has to read all texts again"):
        with_parts(index.folder, ["lexical"])
    index, _ = index_records(model, some_records(0, 50), tmp_path / "index", parts=["lexical", "multi-vector"])
    assert index.facts.parts.keys() == set(PARTS)
    check_all_modes(index, model)
    with pytest.raises(ArgumentError, match="not 'colbert'"):
        with_parts(index.folder, ["colbert"])


def test_an_index_without_parts_is_what_it_was(model, tmp_path):
    index, _ = index_records(model, some_records(0, 20), tmp_path / "index")
    assert '"version": 1' in (index.folder / "index.json").read_text()
    index.add(model, some_records(20, 22))
    assert '"version": 2' in (index.folder / "index.json").read_text()
    with_parts(index.folder, ["bm25"])
    assert f'"version": {storage.VERSION}' in (index.folder / "index.json").read_text()
    assert storage.VERSION == 3


def test_a_change_that_is_interrupted_leaves_the_words_that_were_there(index, model, monkeypatch):
    before = index.ask(model, QUESTIONS, 5, mode="hybrid")

    def fail(*_):
        raise KeyboardInterrupt

    for module, name in ((updates, "commit"), (postings, "_header")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(KeyboardInterrupt):
                index.add(model, some_records(120, 140))
        assert SearchIndex.load(index.folder).ask(model, QUESTIONS, 5, mode="hybrid") == before
    index.add(model, some_records(120, 140))
    check_all_modes(index, model)
    index.compact()
    assert sorted(each.name for each in index.folder.glob("*/*") if each.is_dir()) == sorted(PARTS)


def test_a_damaged_part_is_named(index):
    file = index.folder / "bm25" / "rows.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(OutputError, match=re.escape(str(file))):
        SearchIndex.load(index.folder)


def test_hybrid_goes_by_reciprocal_ranks_without_weights(model, tmp_path, caplog):
    index, _ = index_records(model, some_records(0, 40), tmp_path / "index", parts=["bm25"])
    way = "reciprocal ranks (k = 60), as the index has no fitted weights"
    assert index.how("hybrid") == f"hybrid of dense and bm25 by {way}"
    dense, words = (index.ask(model, ["gamma zeta"], 40, mode=mode)[0] for mode in ("dense", "bm25"))
    ranks = {}
    for hits in (dense, words):
        for hit in hits:
            ranks[hit.id] = ranks.get(hit.id, 0) + 1 / (60 + hit.rank)
    (found,) = index.ask(model, ["gamma zeta"], 10, mode="hybrid")
    assert [hit.score for hit in found] == pytest.approx(sorted(ranks.values(), reverse=True)[:10])
    assert all(hit.score == pytest.approx(ranks[hit.id]) for hit in found)
    assert not caplog.records
    (alone,) = index.ask(model, ["unheard"], 10, mode="hybrid")
    assert [hit.id for hit in alone] == [hit.id for hit in index.ask(model, ["unheard"], 10)[0]]
    assert "bm25 says nothing of 1 of 1 questions" in caplog.text


def weights(model, **of_modes):
    scores = dict.fromkeys((*of_modes, "hybrid"), 50.0)
    return FittedWeights(
        of_modes, "table", model.similarity_facts(), "judged", "0" * 64, 30, "ndcg_at_10", scores
    )  # fmt: skip


def test_hybrid_goes_by_the_weights_of_the_index(model, tmp_path):
    index, _ = index_records(model, some_records(0, 40), tmp_path / "index", parts=["bm25"])
    write_fusion(index.folder, weights(model, dense=0.0, bm25=1.0))
    assert index.how("hybrid", model) == "hybrid of dense and bm25 by weights dense 0.00, bm25 1.00, fitted on judged"
    (found,), (by_words,) = (index.ask(model, ["gamma zeta"], 10, mode=mode) for mode in ("hybrid", "bm25"))
    assert [hit.id for hit in found] == [hit.id for hit in by_words]
    write_fusion(index.folder, weights(model, dense=0.4, bm25=0.6))
    (found,) = index.ask(model, ["gamma zeta"], 10, mode="hybrid")
    dense, words = ({hit.id: hit.score for hit in index.ask(model, ["gamma zeta"], 40, mode=mode)[0]}
                    for mode in ("dense", "bm25"))  # fmt: skip
    best = {name: 0.4 * score / max(dense.values()) + 0.6 * words.get(name, 0) / max(words.values())
            for name, score in dense.items()}  # fmt: skip
    assert [hit.score for hit in found] == pytest.approx(sorted(best.values(), reverse=True)[:10], rel=1e-5)
    write_fusion(index.folder, weights(model, dense=0.4, lexical=0.6))
    with pytest.raises(ArgumentError, match="has weights of lexical, which the index lacks"):
        index.ask(model, ["gamma"], mode="hybrid")
    write_fusion(index.folder, weights(HeadedEmbedder(dimension=8), dense=0.4, bm25=0.6))
    with pytest.raises(ArgumentError, match="another model"):
        index.ask(model, ["gamma"], mode="hybrid")


def test_documents_are_found_by_their_best_passage(model, tmp_path):
    records = [Record(f"doc#{n}" if n < 50 else f"d{n}#0", each.text) for n, each in enumerate(some_records(0, 60))]
    encode_to_shards(model, records, tmp_path / "shards", store_texts=True)
    manifest = (tmp_path / "shards" / "manifest.json").read_text()
    (tmp_path / "shards" / "manifest.json").write_text(manifest.replace('"kind":', '"chunk_size": 8, "kind":'))
    index = index_shards(load_shards(tmp_path / "shards"), tmp_path / "index", parts=["bm25"])
    scores = Bm25.of_texts(each.text for each in records).scores("gamma zeta", [each.text for each in records])
    (hits,) = index.ask(None, ["gamma zeta"], 5, mode="bm25")
    assert hits[0].score == pytest.approx(scores.max()) and len({hit.id for hit in hits}) == len(hits)
    assert len(index.ask(model, ["gamma zeta"], 5, mode="hybrid")[0]) == 5


def test_multi_vectors_of_an_index_without_them_are_computed_of_what_is_found(model, tmp_path):
    index, _ = index_records(model, some_records(0, 40), tmp_path / "index")
    assert "encoded now" in index.how("multi-vector", model)
    for question in QUESTIONS:
        (hits,) = index.ask(model, [question], 10, mode="multi-vector")
        best = [(model.vectors(question) @ model.vectors(text).T).max(1).mean() for text in live_texts(index).values()]
        assert [hit.score for hit in hits] == pytest.approx(sorted(best, reverse=True)[:10], abs=1e-6)


def test_what_a_model_or_an_index_lacks_is_said(index, model, embedder, tmp_path):
    with pytest.raises(ArgumentError, match="mode must be one of dense, lexical"):
        index.ask(model, ["a"], mode="words")
    with pytest.raises(ArgumentError, match="needs the model"):
        index.ask(None, ["a"], mode="hybrid")
    with pytest.raises(ArgumentError, match="give a list of these instead of vectors"):
        index.search(np.ones((1, 16)), mode="bm25")
    assert index.search(["alpha"], mode="bm25") == index.ask(None, ["alpha"], mode="bm25")
    plain = embedder()
    with pytest.raises(ArgumentError, match="table has no head for 'lexical'"):
        index.ask(plain, ["a"], mode="lexical")
    with pytest.raises(ArgumentError, match="table has no head for 'lexical'"):
        index_records(plain, some_records(0, 5), tmp_path / "other", parts=["lexical"])
    with pytest.raises(ArgumentError, match="no lexical weights"):
        index_records(model, some_records(0, 5), tmp_path / "dense")[0].ask(model, ["a"], mode="lexical")
    model.output_fingerprint = lambda output: "other"
    with pytest.raises(ArgumentError, match="another head"):
        index.ask(model, ["a"], mode="lexical")


def test_parts_of_shards_are_those_that_were_encoded(model, tmp_path):
    outputs = ("dense", "sparse", "multi-vector")
    encode_to_shards(model, some_records(0, 60), tmp_path / "all", store_texts=True, shard_size=7, outputs=outputs)
    check_all_modes(index_shards(load_shards(tmp_path / "all"), tmp_path / "index", parts=PARTS), model)
    encode_to_shards(model, some_records(0, 9), tmp_path / "bare")
    with pytest.raises(ArgumentError, match="no texts are kept"):
        index_shards(load_shards(tmp_path / "bare"), tmp_path / "none", parts=["bm25"])
    with pytest.raises(ArgumentError, match="--outputs dense sparse"):
        index_shards(load_shards(tmp_path / "bare"), tmp_path / "none", parts=["lexical"])


def test_an_empty_index_finds_nothing_in_any_mode(model, tmp_path):
    index, _ = index_records(model, [], tmp_path / "index", parts=PARTS)
    for mode in ("dense", *PARTS, "hybrid"):
        assert index.ask(model, ["alpha"], mode=mode) == [[]]
    index.add(model, some_records(0, 20))
    check_all_modes(index, model)


def test_a_run_of_trec(index, tmp_path):
    found = index.ask(None, ["gamma", "unheard", "beta"], 2, mode="bm25")
    assert write_results(tmp_path / "run.trec", zip("abc", found, strict=True)) == 4
    rows = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [row[:1] + row[2:4] for row in rows] == [
        [str(number), hit.id, str(hit.rank)] for number, hits in enumerate(found, 1) for hit in hits
    ]
    assert {(row[1], row[5]) for row in rows} == {("Q0", "bgekit")}
    assert [np.float32(row[4]) for row in rows] == [np.float32(hit.score) for hits in found for hit in hits]
    spaced, _ = index_records(HeadedEmbedder(), [Record("a b", "gamma")], tmp_path / "spaced", parts=["bm25"])
    with pytest.raises(DataError, match="white space"):
        write_results(tmp_path / "bad.trec", zip("a", spaced.ask(None, ["gamma"], mode="bm25"), strict=True))
