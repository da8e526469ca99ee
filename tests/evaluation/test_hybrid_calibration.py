"""Modes of search compared, and weights fitted to judged queries: of a task, and of an index."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from bgekit.data.records import Record
from bgekit.errors import ArgumentError, DataError
from bgekit.evaluation import Candidate, Setting, calibrate_hybrid, evaluate
from bgekit.evaluation.tasks.pairs import StsTask
from bgekit.evaluation.tasks.retrieval import Corpus, RetrievalTask
from bgekit.search import SearchIndex, index_records
from bgekit.search.fusion import read_fusion, write_fusion
from search.test_modes import HeadedEmbedder

QUERIES = 120


@pytest.fixture
def task() -> RetrievalTask:
    texts = {f"d{number:03}": f"word{number} of page {number % 7}" for number in range(QUERIES)}
    queries = {f"q{number}": f"where is {'word' if number % 3 else 'nothing'}{number}" for number in range(QUERIES)}
    qrels = {f"q{number}": {f"d{number:03}": 1} for number in range(QUERIES)}
    corpus = Corpus(list(texts), lambda: [Record(name, text) for name, text in texts.items()], repr(texts))
    return RetrievalTask(name="pages", queries=queries, corpus=corpus, qrels=qrels)


@pytest.fixture
def model(embedder, task):
    """Near to the right page for queries of even numbers; words tell two pages of three."""
    found, random = embedder(24), np.random.default_rng(1)
    documents = {record.id: record.text for record in task.corpus.read()}
    for number, text in enumerate(task.queries.values()):
        own = found.vector(documents[f"d{number:03}"])
        noise = random.normal(size=24) / np.sqrt(24)
        vector = (own if number % 2 == 0 else 0) + (0.9 if number % 2 == 0 else 1) * noise
        found.table[text] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return found


SETTINGS = (Setting(), Setting(mode="bm25"), Setting(mode="hybrid"))


def test_each_mode_is_a_row_of_its_own_and_hybrid_is_scored_on_queries_that_it_was_not_fitted_on(model, task):
    report = evaluate(Candidate("m", model, settings=SETTINGS), task, progress=False)
    assert [(each.mode, each.label) for each in report.results] == [
        ("dense", "m [dense]"), ("bm25", "m [bm25]"), ("hybrid", "m [hybrid]"),
    ]  # fmt: skip
    assert [each.to_dict()["mode"] for each in report.results] == ["dense", "bm25", "hybrid"]
    dense, bm25, hybrid = report.results
    assert hybrid.main_score > max(dense.main_score, bm25.main_score)
    assert hybrid.setting["weights"] == "cross-fitted" and len(hybrid.details["weights of folds"]) == 5
    assert any("cross-fitted" in note for note in hybrid.notes) and not any("cross" in note for note in dense.notes)
    assert [(each.a, each.b) for each in report.comparisons] == [
        ("m [dense]", "m [bm25]"), ("m [dense]", "m [hybrid]"), ("m [bm25]", "m [hybrid]"),
    ]  # fmt: skip
    assert "scores" in dense.details and "scores" not in bm25.details
    json.dumps(report.to_dict())


def test_a_corpus_is_encoded_once_for_all_modes(model, task):
    evaluate(Candidate("m", model, settings=SETTINGS[::-1]), task, progress=False)
    assert model.encoded == QUERIES + len(task.queries)


def test_bm25_is_measured_once_however_many_models_there_are(model, task, embedder):
    candidates = [Candidate(name, each, settings=SETTINGS[:2]) for name, each in (("m", model), ("n", embedder(8)))]
    report = evaluate(candidates, task, progress=False, compare=False)
    assert [(each.mode, each.label) for each in report.results] == [
        ("dense", "m [dense]"), ("bm25", "m [bm25]"), ("dense", "n"),
    ]  # fmt: skip


def test_scores_of_modes_come_from_the_cache(model, task, tmp_path):
    pytest.importorskip("matplotlib")
    candidate = Candidate("m", model, settings=SETTINGS)
    first, again = (evaluate(candidate, task, output=tmp_path, progress=False) for _ in range(2))
    assert [each.cached for each in again.results] == [True] * 3
    assert [each.main_score for each in again.results] == [each.main_score for each in first.results]
    assert again.results[2].notes == first.results[2].notes
    page = (tmp_path / "report.html").read_text()
    assert "m [hybrid]" in page and "cross-fitted" in page
    assert "Evaluation: 3 modes of m on pages" in page


def test_tasks_that_do_not_search_are_measured_by_vectors_alone(model, task):
    pairs = StsTask(
        name="pairs", first=[f"a {n}" for n in range(9)], second=[f"b {n}" for n in range(9)], scores=range(9)
    )
    report = evaluate(Candidate("m", model, settings=SETTINGS), [task, pairs], progress=False, compare=False)
    assert [(each.task, each.mode) for each in report.results] == [
        ("pages", "dense"), ("pages", "bm25"), ("pages", "hybrid"), ("pairs", "dense"),
    ]  # fmt: skip
    assert "measured in the mode dense alone: pairs" in report.notes
    with pytest.raises(ArgumentError, match=r"the mode bm25 of search cannot be measured on pairs \(sts\)"):
        evaluate(Candidate("m", model, settings=SETTINGS), pairs, progress=False)


def test_weights_are_fitted_and_say_what_they_bring(model, task):
    found = calibrate_hybrid(model, task, show_progress=False)
    fitted = found.fitted
    assert sum(fitted.weights.values()) == pytest.approx(1.0) and 0 < fitted.weights["dense"] < 1
    assert fitted.queries == QUERIES and fitted.metric == "ndcg_at_10" and fitted.data_fingerprint == task.fingerprint
    assert fitted.scores["hybrid"] > max(fitted.scores["dense"], fitted.scores["bm25"])
    gain = fitted.over_better
    assert gain.difference == pytest.approx(min(each.difference for each in fitted.gains.values()))
    assert gain.low == min(each.low for each in fitted.gains.values()) > 0
    assert gain.high == min(each.high for each in fitted.gains.values())
    assert "hybrid beats bm25 alone, the better part (+" in found.conclusion


def test_where_a_mode_adds_nothing_the_weights_say_so(embedder, task):
    model = embedder(24)
    documents = {record.id: record.text for record in task.corpus.read()}
    model.table = {text: model.vector(documents[f"d{n:03}"]) for n, text in enumerate(task.queries.values())}
    found = calibrate_hybrid(model, replace(task, queries={name: f"{name}?" for name in task.queries}))
    assert "cannot be concluded" in found.conclusion or "add nothing" in found.conclusion


def test_stored_weights_are_used_where_they_are_of_the_model(model, task, embedder):
    fitted = calibrate_hybrid(model, task, show_progress=False).fitted
    other = replace(fitted, data_fingerprint="of other queries", weights={"dense": 1.0, "bm25": 0.0})
    report = evaluate(
        Candidate("m", model, settings=(Setting(), Setting(mode="hybrid", weights=other))), task, progress=False
    )
    assert report.results[1].main_score == report.results[0].main_score
    assert report.results[1].setting["weights"] == {"dense": 1.0, "bm25": 0.0}
    with pytest.raises(ArgumentError, match="fitted for another model"):
        evaluate(embedder(8), task, settings=[Setting(mode="hybrid", weights=fitted)], progress=False)


def test_weights_fitted_on_the_judged_queries_themselves_are_fitted_anew(model, task):
    fitted = calibrate_hybrid(model, task, show_progress=False).fitted
    settings = [Setting(mode="hybrid"), Setting(mode="hybrid", weights=fitted)]
    crossed, given = evaluate(model, task, settings=settings, progress=False, compare=False).results
    assert given.main_score == crossed.main_score
    assert "fitted on these very queries" in given.notes[-1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "sparse"}, "mode must be one of"),
        ({"mode": "hybrid", "fused": ("dense",)}, "two or more different modes"),
        ({"mode": "hybrid", "fused": ("dense", "dense")}, "two or more different modes"),
        ({"mode": "hybrid", "fused": ("dense", "hybrid")}, "two or more different modes"),
    ],
)
def test_settings_of_modes_that_mean_nothing_are_refused(given, said):
    with pytest.raises(ArgumentError, match=said):
        Setting(**given)


def indexed(model, task, folder, *, name=lambda name: name, **options) -> SearchIndex:
    records = (Record(name(record.id), record.text) for record in task.corpus.read())
    index, _ = index_records(model, records, folder, parts=["bm25"], **options)
    return index


def test_weights_of_an_index_are_those_of_the_documents_and_its_search_takes_them(model, task, tmp_path):
    index = indexed(model, task, tmp_path / "index")
    found = calibrate_hybrid(model, task, index=index, show_progress=False)
    assert found.fitted.weights == pytest.approx(calibrate_hybrid(model, task, show_progress=False).fitted.weights)
    write_fusion(index.folder, found.fitted)
    assert read_fusion(index.folder) == found.fitted
    assert f"fitted on {task.name}" in index.how("hybrid", model)
    # What it says of hybrid is what its searches find, but for the weights of folds.
    texts = list(task.queries.values())
    hits = index.ask(model, texts, mode="hybrid")
    first = np.mean([hit[0].id in task.qrels[query] for query, hit in zip(task.queries, hits, strict=True)])
    hybrid = next(each for each in found.report.results if each.mode == "hybrid")
    assert 100 * first == pytest.approx(hybrid.metrics["hit_rate_at_1"], abs=3)


def test_documents_that_the_index_lacks_count_as_not_found_and_none_at_all_is_an_error(model, task, tmp_path):
    index = indexed(model, task, tmp_path / "index")
    index.remove(["d000", "d001"])
    found = calibrate_hybrid(model, task, index=index, show_progress=False)
    assert any("2 of 120 relevant documents are not in the index" in n for n in found.report.results[0].notes)
    other = indexed(model, task, tmp_path / "other", name=lambda name: f"other-{name}")
    with pytest.raises(DataError, match="the judgements name d000, d001, d002, the index has other-d000"):
        calibrate_hybrid(model, task, index=other, show_progress=False)


def test_weights_that_cannot_be_used_any_more_are_fitted_anew(model, task, tmp_path):
    index = indexed(model, task, tmp_path / "index")
    (index.folder / "fusion.json").write_text("{")
    fitted = calibrate_hybrid(model, task, index=index, show_progress=False).fitted
    write_fusion(index.folder, fitted)
    assert read_fusion(index.folder) == fitted


def test_passages_are_fused_and_documents_judged(embedder, task, tmp_path):
    long = {
        record.id: " ".join([record.text, *(f"filler{record.id} {n}" for n in range(30))])
        for record in task.corpus.read()
    }
    model = embedder(24)
    records = [Record(f"{id}#{part}", text[50 * part : 50 * part + 50]) for id, text in long.items() for part in (0, 1)]
    index, _ = index_records(model, records, tmp_path / "index", parts=["bm25"])
    index.facts.settings["chunk_size"] = 50  # As `chunk_records` would have said.
    found = calibrate_hybrid(model, task, index=index, show_progress=False)
    bm25 = next(each for each in found.report.results if each.mode == "bm25")
    assert bm25.metrics["hit_rate_at_10"] == pytest.approx(100 * 2 / 3, abs=1)


def test_an_index_without_words_has_nothing_to_put_together(model, task, tmp_path):
    index, _ = index_records(model, task.corpus.read(), tmp_path / "index")
    with pytest.raises(ArgumentError, match="--parts bm25"):
        calibrate_hybrid(model, task, index=index, show_progress=False)


MODES = ("dense", "lexical", "bm25", "multi-vector")


def test_weights_of_tokens_and_their_vectors_are_measured_as_an_index_searches_by_them(task, tmp_path):
    model = HeadedEmbedder(16)
    alone = evaluate(model, task, settings=[Setting(mode=mode) for mode in MODES], progress=False, compare=False)
    records = list(task.corpus.read())
    index, _ = index_records(model, records, tmp_path / "index", parts=["lexical", "bm25", "multi-vector"])
    for result in alone.results:
        hits = index.ask(model, list(task.queries.values()), mode=result.mode)
        relevant = [next(iter(found)) for found in task.qrels.values()]
        ranks = [[hit.id for hit in found].index(id) + 1 if id in {hit.id for hit in found} else 0
                 for found, id in zip(hits, relevant, strict=True)]  # fmt: skip
        # Of equal scores trec_eval takes the later id first, and an index the earlier row.
        assert result.metrics["hit_rate_at_10"] == pytest.approx(100 * np.mean([rank > 0 for rank in ranks]), abs=6)
    found = calibrate_hybrid(model, task, index=index, show_progress=False)
    assert {*found.fitted.weights} == {*MODES} and sum(found.fitted.weights.values()) == pytest.approx(1)
    few = calibrate_hybrid(model, task, modes=("lexical", "multi-vector"), show_progress=False)
    assert {*few.fitted.weights} == {"lexical", "multi-vector"}


class CountingEmbedder(HeadedEmbedder):
    """Counts how often each text is computed, and for which outputs."""

    def __init__(self, dimension):
        super().__init__(dimension)
        self.computed = Counter()

    def _compute(self, blocks, prompt, max_length, batch_size):
        for texts in blocks:
            self.computed.update((text, ("dense",)) for text in texts)
            yield from super()._compute([texts], prompt, max_length, batch_size)

    def _compute_outputs(self, blocks, prompt, max_length, batch_size, outputs):
        for texts in blocks:
            before = self.computed.copy()
            found = list(super()._compute_outputs([texts], prompt, max_length, batch_size, outputs))
            self.computed = before + Counter((text, tuple(outputs)) for text in texts)
            yield from found


FUSED = Setting(mode="hybrid", fused=MODES)


@pytest.mark.parametrize(
    "settings",
    [
        [*(Setting(mode=mode) for mode in MODES), FUSED],
        [FUSED, *(Setting(mode=mode) for mode in MODES)],
        [Setting(mode="multi-vector"), Setting(mode="hybrid", fused=("lexical", "multi-vector"))],
        [FUSED],
    ],
)
def test_what_modes_take_from_a_document_is_computed_in_two_passes_and_scores_are_those_of_each_alone(task, settings):
    model = CountingEmbedder(16)
    report = evaluate(model, task, settings=settings, progress=False, compare=False)
    documents = {record.text for record in task.corpus.read()}
    computed = {key: count for key, count in model.computed.items() if key[0] in documents}
    assert {*computed.values()} == {1}
    assert {outputs for _, outputs in computed} == {("dense", "sparse"), ("multi-vector",)}
    for setting, result in zip(settings, report.results, strict=True):
        (alone,) = evaluate(HeadedEmbedder(16), task, settings=[setting], progress=False, compare=False).results
        assert result.metrics == alone.metrics
        assert result.details["top"] == alone.details["top"]


def test_vectors_of_a_run_with_lexical_weights_serve_a_later_run_without(task, tmp_path):
    model = CountingEmbedder(16)
    both = [Setting(), Setting(mode="lexical")]
    evaluate(model, task, settings=both, output=tmp_path, keep_vectors=True, progress=False, compare=False)
    model.computed.clear()
    later = replace(task, queries={name: f"{text}?" for name, text in task.queries.items()})
    report = evaluate(model, later, output=tmp_path, keep_vectors=True, progress=False, compare=False)
    documents = {record.text for record in task.corpus.read()}
    assert report.results[0].reused and not documents & {text for text, _ in model.computed}


def test_a_model_without_heads_is_refused_before_anything_is_computed(model, task):
    with pytest.raises(ArgumentError, match="has no head for 'lexical'"):
        evaluate(model, task, settings=[Setting(mode="lexical")], progress=False)
    assert model.encoded == 0
