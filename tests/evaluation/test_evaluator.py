import json

import pytest

from bgekit.data.records import Record
from bgekit.errors import ArgumentError, CheckpointError, NumericalError, OutputError
from bgekit.evaluation import Candidate, Setting, Task, evaluate
from bgekit.evaluation.tasks.pairs import StsTask
from bgekit.evaluation.tasks.retrieval import Corpus, RetrievalTask


def sts(name="pairs", size=30, **more) -> StsTask:
    first, second = [f"a{i}" for i in range(size)], [f"b{i}" for i in range(size)]
    return StsTask(name=name, first=first, second=second, scores=[float(i % 6) for i in range(size)], **more)


def retrieval(name="find", count=8, documents=40) -> RetrievalTask:
    texts = {f"d{i}": f"document {i}" for i in range(documents)}
    corpus = Corpus(list(texts), lambda: [Record(id, text) for id, text in texts.items()], "digest of " + name)
    queries = {f"q{i}": f"query {i}" for i in range(count)}
    return RetrievalTask(
        name=name, queries=queries, corpus=corpus, qrels={query: {f"d{i}": 1} for i, query in enumerate(queries)}
    )


def test_results_json_has_what_was_promised(embedder, tmp_path):
    model, other = embedder(name="one"), embedder(name="two")
    other.salt = "other"
    tasks = [sts(size=60), retrieval(count=60, documents=60)]
    report = evaluate([model, other], tasks, output=tmp_path / "out", progress=False)
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["version"] == 2
    assert [(r["model"], r["task"]) for r in content["results"]] == [
        ("one", "pairs"), ("two", "pairs"), ("one", "find"), ("two", "find"),
    ]  # fmt: skip
    for result in content["results"]:
        assert result["main_score"] == pytest.approx(result["metrics"][result["main_metric"]])
        assert {"model", "task", "split", "main_metric", "main_score", "metrics", "card", "fingerprints"} <= set(result)
    assert [(c["a"], c["b"], c["task"]) for c in content["comparisons"]] == [
        ("one", "two", "pairs"), ("one", "two", "find"),
    ]  # fmt: skip
    for comparison in content["comparisons"]:
        scores = {r["model"]: r["main_score"] for r in content["results"] if r["task"] == comparison["task"]}
        assert comparison["difference"] == pytest.approx(scores["one"] - scores["two"], abs=1e-6)
        assert comparison["ci_low"] <= comparison["difference"] <= comparison["ci_high"]
        assert 0 < comparison["p_value"] <= 1
        assert comparison["metric"] in ("cosine_spearman", "ndcg_at_10")
    assert content["environment"]["seed"] == 0 and content["environment"]["versions"]["bgekit"]
    assert report.to_dict()["results"] == content["results"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "per_item.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (60 + 60)
    (mean,) = content["mean_comparisons"]
    differences = [comparison["difference"] for comparison in content["comparisons"]]
    assert mean["difference"] == pytest.approx(sum(differences) / 2)
    assert mean["ci_low"] <= mean["difference"] <= mean["ci_high"] and mean["over_tasks"] == 2
    assert {comparison["together"] for comparison in [mean, *content["comparisons"]]} == {3}
    assert "all 3 comparisons of this report together" in content["correction"]
    assert not (tmp_path / "out" / "cache" / "vectors").exists()
    for name in ("report.md", "report.html"):
        assert "find" in (tmp_path / "out" / name).read_text(encoding="utf-8")


def test_few_items_have_no_interval_and_the_report_says_so(embedder, tmp_path):
    model, other = embedder(name="one"), embedder(name="two")
    other.salt = "other"
    evaluate([model, other], [sts(), retrieval()], output=tmp_path, progress=False)
    content = json.loads((tmp_path / "results.json").read_text())
    for comparison, count in zip(content["comparisons"], (30, 8), strict=True):
        assert comparison["ci_low"] is None and comparison["ci_high"] is None
        assert comparison["doubt"] == f"too few items ({count} independent ones; an interval needs 50)"
        assert comparison["doubt"] in comparison["conclusion"]
    for name in ("report.md", "report.html"):
        assert "too few items" in (tmp_path / name).read_text(encoding="utf-8")


def test_scores_of_an_older_layout_are_computed_anew(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr("bgekit.evaluation.evaluator.PROTOCOL", "1")
    evaluate(embedder(), sts(), output=tmp_path, progress=False)
    monkeypatch.undo()
    assert not evaluate(embedder(), sts(), output=tmp_path, progress=False).results[0].cached
    assert evaluate(embedder(), sts(), output=tmp_path, progress=False).results[0].cached


def test_what_was_computed_is_not_computed_again(embedder, tmp_path):
    model = embedder()
    first = evaluate(model, [sts(), retrieval()], output=tmp_path, progress=False)
    encoded = model.encoded
    second = evaluate(model, [sts("renamed"), sts(), retrieval()], output=tmp_path, progress=False, compare=False)
    # By content, never by name.
    assert [result.cached for result in second.results] == [True, True, True]
    assert model.encoded == encoded
    assert [r.main_score for r in second.results[1:]] == [r.main_score for r in first.results]
    model.salt = "trained since"
    third = evaluate(model, sts(), output=tmp_path, progress=False)
    assert not third.results[0].cached


def test_an_interrupted_run_goes_on(embedder, tmp_path):
    class Stops(StsTask):
        def score(self, model):
            raise KeyboardInterrupt

    model, broken = embedder(), Stops(name="stops", first=["a"], second=["b"], scores=[1.0])
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, [retrieval(), broken], output=tmp_path, progress=False)
    assert not (tmp_path / "results.json").exists()
    assert evaluate(model, [retrieval(), sts()], output=tmp_path, progress=False).results[0].cached


def test_documents_are_encoded_once_for_all_settings(embedder, tmp_path):
    model = embedder()
    settings = [Setting(), Setting(instruction=None), Setting(dimension=8), Setting(dimension=4)]
    report = evaluate(model, [retrieval(), sts()], settings=settings, output=tmp_path, progress=False)
    # 40 documents, 8 queries with and without instruction, 60 texts of pairs.
    assert model.encoded == 40 + 8 + 8 + 60
    assert [result.label for result in report.results[:4]] == [
        "table", "table [no instruction]", "table [8 dimensions]", "table [4 dimensions]",
    ]  # fmt: skip
    assert report.results[0].model == "table"
    assert report.results[2].setting["dimension"] == 8
    assert len(report.comparisons) == 12


def test_vectors_can_be_kept(embedder, tmp_path):
    evaluate(embedder(), retrieval(), output=tmp_path, progress=False, keep_vectors=True)
    assert list((tmp_path / "cache" / "vectors").glob("*/shard-00000.npy"))


def test_a_damaged_cache_is_computed_anew(embedder, tmp_path, caplog):
    evaluate(embedder(), sts(), output=tmp_path, progress=False)
    (stored,) = (tmp_path / "cache").glob("*.json")
    stored.write_text(stored.read_text()[:50])
    assert not evaluate(embedder(), sts(), output=tmp_path, progress=False).results[0].cached
    assert "computed again" in caplog.text


def test_a_second_writer_is_refused(embedder, tmp_path):
    class Nested(StsTask):
        def score(self, model):
            evaluate(embedder(), sts(), output=tmp_path, progress=False)

    with pytest.raises(OutputError, match="process"):
        evaluate(embedder(), Nested(name="n", first=[], second=[], scores=[]), output=tmp_path, progress=False)


def test_arguments_that_make_no_sense(embedder):
    with pytest.raises(ArgumentError, match="twice"):
        evaluate(embedder(), [sts(), sts()])
    with pytest.raises(ArgumentError, match="no task"):
        evaluate(embedder(), [])
    with pytest.raises(ArgumentError, match="max_length"):
        evaluate(embedder(), sts(), max_length=3)


def test_a_published_score_of_this_model_is_put_beside_ours(embedder):
    task: Task = sts(published={"all-MiniLM-L6-v2": 82.03, "other": 1.0})
    names = {"packaged:all-MiniLM-L6-v2": 82.03, "/models/all-minilm-l6-v2/": 82.03, "unknown": None}
    for name, expected in names.items():
        report = evaluate(Candidate(name, embedder()), task, progress=False)
        assert report.results[0].reference == expected
        assert report.results[0].model == name


def test_a_model_given_twice_does_not_differ_from_itself(embedder):
    report = evaluate([embedder(), embedder()], sts(), progress=False).to_dict()
    assert [result["model"] for result in report["results"]] == ["table", "table"]
    (comparison,) = report["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("table", "table")
    assert (comparison["difference"], comparison["p_value"]) == (0, 1)


def test_a_score_that_is_no_number_is_an_error(embedder):
    model = embedder()
    model.table = {text: model.vector("same") for text in ("a0", "a1", "b0", "b1")}
    with pytest.raises(NumericalError, match="alike"):
        evaluate(model, StsTask(name="t", first=["a0", "a1"], second=["b0", "b1"], scores=[1.0, 2.0]), progress=False)


def test_the_published_score_is_no_reference_for_another_setting(embedder):
    task = sts(published={"table": 50.0})
    settings = [Setting(), Setting(dimension=4)]
    assert [r.reference for r in evaluate(embedder(), task, settings=settings, progress=False).results] == [50.0, None]


class Lengths:
    """A reranker that likes long passages."""

    def compute_score(self, pairs):
        return [float(len(text)) for _, text in pairs]


def test_a_reranker_is_measured_on_tasks_that_have_passages(embedder):
    setting = Setting(reranker=Lengths(), reranker_name="lengths")
    assert not sts().rerankable and retrieval().rerankable
    report = evaluate(embedder(), [sts(), retrieval()], settings=[Setting(), setting], progress=False)
    assert [(result.task, result.label) for result in report.results] == [
        ("pairs", "table"), ("find", "table"), ("find", "table [reranked by lengths]"),
    ]  # fmt: skip
    assert [comparison.task for comparison in report.comparisons] == ["find"]
    assert report.notes == ["not measured with a reranker: pairs"]
    model = embedder()
    with pytest.raises(ArgumentError, match=r"a reranker cannot be measured on pairs \(sts\), more \(sts\)"):
        evaluate(model, [sts(), sts("more", 20)], settings=[Setting(), setting], progress=False)
    assert model.encoded == 0


@pytest.mark.parametrize("count", [0, -2])
def test_a_reranker_has_to_see_a_passage(count):
    with pytest.raises(ArgumentError, match="rerank_top_k must be a positive number of passages"):
        Setting(reranker=Lengths(), reranker_name="lengths", rerank_top_k=count)


@pytest.mark.parametrize("wrong", ["/nowhere/model", "dimension"])
def test_what_is_wrong_with_the_last_model_shows_before_the_first_is_used(embedder, wrong, monkeypatch):
    first = embedder(name="one")
    monkeypatch.setattr(first, "encode", lambda *texts, **options: pytest.fail("a text was encoded"))
    last = wrong if wrong != "dimension" else Candidate("one", first, settings=[Setting(dimension=4000)])
    with pytest.raises((CheckpointError, ArgumentError), match=r"/nowhere/model|dimension 4000"):
        evaluate([first, last], sts(size=60), progress=False)
