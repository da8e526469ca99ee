"""Each kind's protocol against an independent computation, on vectors that are given."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support, v_measure_score

from bgekit.data.records import Record
from bgekit.errors import ArgumentError, DataError, NumericalError
from bgekit.evaluation import JudgedModel, Setting
from bgekit.evaluation.evidence import contrasts
from bgekit.evaluation.tasks.base import Items
from bgekit.evaluation.tasks.bitext import BitextTask
from bgekit.evaluation.tasks.classification import ClassificationTask, _answered, _measures
from bgekit.evaluation.tasks.clustering import ClusteringTask
from bgekit.evaluation.tasks.pairs import PairClassificationTask, StsTask, best_thresholds
from bgekit.evaluation.tasks.reranking import RerankingGroup, RerankingTask
from bgekit.evaluation.tasks.retrieval import Corpus, RetrievalTask
from bgekit.evaluation.tasks.summarization import SummarizationTask, SummaryGroup


def corpus_of(texts: dict[str, str]) -> Corpus:
    return Corpus(list(texts), lambda: [Record(id, text) for id, text in texts.items()], repr(texts))


def retrieval(queries=6, documents=300, **more) -> RetrievalTask:
    texts = {f"d{number}": f"document {number}" for number in range(documents)}
    names = {f"q{number}": f"query {number}" for number in range(queries)}
    qrels = {query: {f"d{7 * number}": 1, f"d{number}": 2} for number, query in enumerate(names)}
    return RetrievalTask(name="toy", queries=names, corpus=corpus_of(texts), qrels=qrels, **more)


def ndcg(model, task: RetrievalTask, k=10) -> list[float]:
    ids = task.corpus.ids
    vectors = np.stack([model.vector(f"document {number}") for number in range(len(ids))]).astype(np.float64)
    found = []
    for query, judged in task.qrels.items():
        scores = vectors @ model.vector(task.queries[query]).astype(np.float64)
        order = sorted(range(len(ids)), key=lambda row: -scores[row])[:k]
        gain = sum(judged.get(ids[row], 0) / math.log2(rank + 2) for rank, row in enumerate(order))
        best = sum(value / math.log2(rank + 2) for rank, value in enumerate(sorted(judged.values(), reverse=True)))
        found.append(gain / best)
    return found


def test_retrieval_is_exact_search_and_trec_eval(embedder):
    model, task = embedder(4), retrieval(documents=3000)
    scores = task.score(JudgedModel(model))
    expected = ndcg(model, task)
    assert scores.items.columns["value"].tolist() == pytest.approx(expected, abs=1e-9)
    assert scores.metrics["ndcg_at_10"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert scores.details["recall_curve"]["recall"][-1] == scores.metrics["recall_at_1000"]


def test_retrieval_drops_the_query_itself_when_told(embedder):
    texts = {"a": "same", "b": "other"}
    task = RetrievalTask(name="t", queries={"a": "same"}, corpus=corpus_of(texts), qrels={"a": {"b": 1}})
    model = JudgedModel(embedder())
    assert task.score(model).metrics["mrr_at_10"] == 0.5
    skipping = RetrievalTask(
        name="t", queries={"a": "same"}, corpus=corpus_of(texts), qrels={"a": {"b": 1}}, skip_identical_ids=True
    )
    assert skipping.score(model).metrics["mrr_at_10"] == 1.0
    assert skipping.fingerprint != task.fingerprint


def test_retrieval_uses_the_instruction_or_another_or_none(embedder):
    model = embedder()
    model.sees_prompts = True
    model.table = {
        "q: hello": model.vector("first"),
        "hello": model.vector("second"),
        "ask hello": model.vector("third"),
    }
    texts = {"1": "first", "2": "second", "3": "third"}
    task = RetrievalTask(name="t", queries={"q": "hello"}, corpus=corpus_of(texts), qrels={"q": {"1": 1}})
    found = [
        task.score(JudgedModel(model, setting)).details["top"]["q"][0]
        for setting in (Setting(), Setting(instruction=None), Setting(instruction="ask "))
    ]
    assert found == ["1", "2", "3"]


def test_a_reranker_orders_the_first_passages_and_leaves_the_others_behind(embedder):
    class Backwards:
        def compute_score(self, pairs):
            return [-float(passage.split()[1]) for _, passage in pairs]

    task = retrieval(queries=1, documents=50)
    plain = task.score(JudgedModel(embedder())).details["top"]["q0"]
    setting = Setting(reranker=Backwards(), reranker_name="backwards", rerank_top_k=3)
    reranked = task.score(JudgedModel(embedder(), setting))
    assert reranked.details["top"]["q0"] == sorted(plain, key=lambda id: int(id[1:]))
    assert reranked.metrics["recall_at_1000"] == 1.0
    with pytest.raises(ArgumentError, match="name"):
        Setting(reranker=Backwards())


def test_nan_vectors_are_an_error(embedder):
    model = embedder()
    model.table = {"document 3": np.full(16, np.nan, np.float32)}
    with pytest.raises(NumericalError):
        retrieval().score(JudgedModel(model))


def test_fewer_dimensions_are_cut_and_normalised_again(embedder):
    model, task = embedder(), retrieval()
    cut = JudgedModel(model, Setting(dimension=5)).queries(["x"], "retrieval", "t")
    expected = model.vector("x")[:5] / np.linalg.norm(model.vector("x")[:5])
    assert np.allclose(cut[0], expected)
    assert task.score(JudgedModel(model, Setting(dimension=5))).metrics["ndcg_at_10"] <= 1
    with pytest.raises(ArgumentError, match="99"):
        JudgedModel(model, Setting(dimension=99))


def test_sts_is_spearman_of_similarity(embedder):
    model = embedder()
    first, second = [f"a{i}" for i in range(40)], [f"b{i}" for i in range(40)]
    labels = list(np.random.default_rng(1).integers(0, 6, 40).astype(float))
    scores = StsTask(name="t", first=first, second=second, scores=labels).score(JudgedModel(model))
    cosine = [float(model.vector(a) @ model.vector(b)) for a, b in zip(first, second, strict=True)]
    assert scores.metrics["cosine_spearman"] == pytest.approx(spearmanr(cosine, labels).statistic, abs=1e-6)
    assert scores.metrics["pearson"] == pytest.approx(pearsonr(cosine, labels).statistic, abs=1e-6)
    distance = [float(np.abs(model.vector(a) - model.vector(b)).sum()) for a, b in zip(first, second, strict=True)]
    assert scores.metrics["manhattan_spearman"] == pytest.approx(-spearmanr(distance, labels).statistic, abs=1e-6)
    with pytest.raises(ArgumentError, match="cosine_spearman"):
        StsTask(name="t", first=first, second=second, scores=labels, main_metric="nope").score(JudgedModel(model))


def test_pair_classification_is_average_precision(embedder):
    model = embedder()
    first, second = [f"a{i}" for i in range(60)], [f"b{i}" for i in range(60)]
    labels = [int(i % 3 == 0) for i in range(60)]
    scores = PairClassificationTask(name="t", first=first, second=second, labels=labels).score(JudgedModel(model))
    cosine = [float(model.vector(a) @ model.vector(b)) for a, b in zip(first, second, strict=True)]
    assert scores.metrics["cosine_ap"] == pytest.approx(average_precision_score(labels, cosine), abs=1e-6)
    assert scores.metrics["max_ap"] == max(
        scores.metrics[f"{n}_ap"] for n in ("cosine", "dot", "euclidean", "manhattan")
    )
    assert scores.items.statistic == "average_precision"


def test_best_thresholds_equal_a_search_over_all():
    random = np.random.default_rng(3)
    label, score = random.integers(0, 2, 50), random.integers(0, 9, 50) / 8
    found = best_thresholds(label, score)
    accuracies = {t: ((score >= t) == (label == 1)).mean() for t in set(score.tolist())}
    assert found["accuracy"] == pytest.approx(max(accuracies.values()))
    assert accuracies[found["accuracy_threshold"]] == pytest.approx(found["accuracy"])
    f1s = {t: f1_score(label, score >= t) for t in set(score.tolist())}
    assert found["f1"] == pytest.approx(max(f1s.values()))
    assert f1s[found["f1_threshold"]] == pytest.approx(found["f1"])


def test_reranking_is_mean_average_precision(embedder):
    model = embedder()
    groups = [
        RerankingGroup(f"query {n}", [f"p{n} {i}" for i in range(2)], [f"n{n} {i}" for i in range(5)]) for n in range(9)
    ]
    scores = RerankingTask(name="t", groups=groups).score(JudgedModel(model))
    expected = []
    for group in groups:
        passages = [*group.positives, *group.negatives]
        cosine = [float(model.vector(group.query) @ model.vector(passage)) for passage in passages]
        expected.append(average_precision_score([1, 1, 0, 0, 0, 0, 0], cosine))
    assert scores.items.columns["value"].tolist() == pytest.approx(expected, abs=1e-6)
    assert scores.metrics["map"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_model_that_cannot_tell_passages_apart_gains_nothing(embedder):
    group = RerankingGroup("q", ["same"], ["same", "same"])
    assert RerankingTask(name="t", groups=[group]).score(JudgedModel(embedder())).metrics["map"] == pytest.approx(1 / 3)


def test_grades_decide_ndcg_and_nothing_else(embedder):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    model = embedder()
    groups = [
        RerankingGroup(f"query {n}", [f"p{n} {i}" for i in range(3)], [f"n{n} {i}" for i in range(4)], grades=[3, 1, 2])
        for n in range(6)
    ]
    task = RerankingTask(name="t", groups=groups, main_metric="ndcg_at_10")
    scores = task.score(JudgedModel(model))
    qrels, run = {}, {}
    for group in groups:
        passages = [*group.positives, *group.negatives]
        qrels[group.query] = dict(zip(passages, (3, 1, 2, 0, 0, 0, 0), strict=True))
        run[group.query] = {each: float(model.vector(group.query) @ model.vector(each)) for each in passages}
    judged = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map_cut.1000"}).evaluate(run)
    expected = [judged[group.query]["ndcg_cut_10"] for group in groups]
    assert scores.items.columns["value"].tolist() == pytest.approx(expected, abs=1e-6)
    assert scores.metrics["map"] == pytest.approx(np.mean([each["map_cut_1000"] for each in judged.values()]), abs=1e-6)
    binary = RerankingTask(name="t", groups=[replace(group, grades=()) for group in groups])
    before = binary.score(JudgedModel(model)).metrics
    assert before["map"] == scores.metrics["map"] and before["ndcg_at_10"] != scores.metrics["ndcg_at_10"]
    assert binary.fingerprint != task.fingerprint


def test_the_less_relevant_of_equal_scores_come_first(embedder):
    group = RerankingGroup("q", ["same", "same"], ["same"], grades=[1, 3])
    found = RerankingTask(name="t", groups=[group]).score(JudgedModel(embedder())).metrics
    worst = (0 / 1 + 1 / math.log2(3) + 3 / 2) / (3 + 1 / math.log2(3))
    assert found["ndcg_at_10"] == pytest.approx(worst)


def test_classification_draws_fits_and_averages(embedder):
    model = embedder()
    train = [f"train {i}" for i in range(60)]
    labels = ["yes" if i % 2 else "no" for i in range(60)]
    texts, truth = [f"test {i}" for i in range(30)], ["yes" if i % 3 else "no" for i in range(30)]
    task = ClassificationTask(
        name="t", train_texts=train, train_labels=labels, texts=texts, labels=truth, samples_per_label=4, experiments=3
    )
    scores = task.score(JudgedModel(model))
    accuracies, order = [], list(range(60))
    for _ in range(3):
        np.random.RandomState(42).shuffle(order)
        draw = [r for r in order if labels[r] == "yes"][:4] + [r for r in order if labels[r] == "no"][:4]
        fitted = LogisticRegression(max_iter=100, random_state=42).fit(
            [model.vector(train[r]) for r in draw], [labels[r] for r in draw]
        )
        accuracies.append(np.mean(fitted.predict([model.vector(text) for text in texts]) == np.array(truth)))
    assert scores.metrics["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-9)
    assert scores.items.columns["value"].mean() == pytest.approx(np.mean(accuracies))
    assert all(len(draw) == 8 for draw in task.draws())
    with pytest.raises(DataError, match="one label"):
        ClassificationTask(name="t", train_texts=["a"], train_labels=["x"], texts=["b"], labels=["x"]).score(
            JudgedModel(model)
        )


def drawn(embedder, main_metric="accuracy", labels=("no", "yes"), pool=20, count=60, salt="", **more):
    """Scores of a classification task by a model of random vectors, around a centre for each label."""
    model = embedder(8)
    model.salt = salt
    train, texts = [f"train {i}" for i in range(len(labels) * pool)], [f"test {i}" for i in range(count)]
    names, truth = ([labels[i % len(labels)] for i in range(len(each))] for each in (train, texts))
    for place, text in [*enumerate(train), *enumerate(texts)]:
        model.table[text] = 3 * model.vector(text) + 2 * np.eye(8, dtype=np.float32)[place % len(labels)]
    task = ClassificationTask(
        name="t", train_texts=train, train_labels=names, texts=texts, labels=truth, main_metric=main_metric,
        samples_per_label=4, experiments=4, **more,
    )  # fmt: skip
    return task, task.score(JudgedModel(model))


@pytest.mark.parametrize("metric", ["accuracy", "f1", "f1_weighted", "precision", "recall_weighted", "ap"])
def test_what_texts_add_in_each_draw_makes_up_the_metric(embedder, metric):
    task, scores = drawn(embedder, metric)
    assert scores.items.columns["draws"].shape == (60, 4)
    assert scores.items.columns["draws"].mean(axis=0) == pytest.approx(scores.details["experiments"])
    assert len(scores.items.ids) == len(scores.items.texts) == 60
    draws = [set(draw) for draw in task.draws()]
    common = np.mean([len(a & b) / 8 for a, b in itertools.combinations(draws, 2)])
    assert scores.items.overlap == pytest.approx(common)


def test_metrics_of_a_table_are_those_of_scikit_learn():
    random = np.random.default_rng(7)
    for there, given in ((2, 2), (5, 3), (4, 7)):
        truth = np.array([f"l{n}" for n in random.integers(0, there, 90)])
        answer = np.where(random.random(90) < 0.4, truth, [f"l{n}" for n in random.integers(0, given, 90)])
        names = np.unique([*truth, *answer, "never"])
        found = _measures(_answered(truth, answer, names))
        for average, end in (("macro", ""), ("weighted", "_weighted")):
            expected = precision_recall_fscore_support(truth, answer, average=average, zero_division=0)[:3]
            assert [found[f"{name}{end}"] for name in ("precision", "recall", "f1")] == pytest.approx(list(expected))
        assert ("ap" in found) == (there == 2)
        if there == 2:
            assert found["ap"] == pytest.approx(average_precision_score(truth == "l1", answer == "l1"))


def test_equal_models_are_not_told_apart_by_their_draws_of_training_texts(embedder):
    wrong, by_texts = 0, 0
    for number in range(15):
        items = [drawn(embedder, count=600, salt=f"{side} {number}", seed=number)[1].items for side in "ab"]
        wrong += contrasts([tuple(items)], 499, np.random.default_rng(number))[0].p_value < 0.05
        alone = [Items(each.ids, "mean", {"value": each.columns["value"]}) for each in items]
        by_texts += contrasts([tuple(alone)], 499, np.random.default_rng(number))[0].p_value < 0.05
    assert wrong <= 3 and by_texts >= 5, (wrong, by_texts)


def test_draws_of_the_same_texts_say_nothing_of_others(embedder):
    items = [drawn(embedder, pool=4, salt=side)[1].items for side in "ab"]
    assert items[0].overlap == 1
    (found,) = contrasts([tuple(items)], 99, np.random.default_rng(0))
    assert found.p_value == 1 and math.isnan(found.low) and "draws of the same texts" in found.doubt


def test_clustering_problems_of_the_same_texts_count_for_less(embedder):
    texts, labels = [f"text {i}" for i in range(40)], [str(i % 2) for i in range(40)]
    shared = [(texts[n : n + 20], labels[n : n + 20]) for n in (0, 10, 20)]
    scores = ClusteringTask(name="t", sets=shared).score(JudgedModel(embedder()))
    assert scores.items.overlap == pytest.approx(1 / 3)
    assert ClusteringTask(name="t", sets=shared[::2]).score(JudgedModel(embedder())).items.overlap == 0
    a, b = (Items(["0", "1", "2"], "mean", {"value": np.array(v)}, overlap=1 / 3) for v in ([0.5, 0.7, 0.6], [0.3] * 3))
    (found,) = contrasts([(a, b)], 99, np.random.default_rng(0))
    assert found.scale == pytest.approx(0.1 * math.sqrt(1 / 3 + 1 / 2))


def test_items_that_share_texts_or_answers_are_one_group(embedder):
    model = JudgedModel(embedder())
    first, second = ["a", "b", "c", "a", "d", "e"], ["x", "y", "z", "y", "w", "v"]
    expected = [0, 0, 1, 0, 2, 3]
    scores = [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]
    assert StsTask(name="t", first=first, second=second, scores=scores).score(model).items.groups == expected
    labels = [0, 1, 0, 1, 0, 1]
    for metric in ("max_ap", "max_accuracy"):
        pairs = PairClassificationTask(name="t", first=first, second=second, labels=labels, main_metric=metric)
        assert pairs.score(model).items.groups == expected
    assert BitextTask(name="t", first=first, second=second).score(model).items.groups == expected
    groups = [RerankingGroup(query, [f"p{n}"], ["other"]) for n, query in enumerate(["q", "r", "q"])]
    assert RerankingTask(name="t", groups=groups).score(model).items.groups == [0, 1, 0]
    # Questions on the same paragraph, the same question twice, and one of its own.
    task = RetrievalTask(
        name="t", queries={"1": "how", "2": "why", "3": "who", "4": "how", "5": "when"},
        corpus=corpus_of({"a": "first", "b": "second", "c": "third"}),
        qrels={"1": {"a": 1}, "2": {"b": 1, "c": 0}, "3": {"b": 2}, "4": {"c": 1}, "5": {"a": 1, "c": 1}},
    )  # fmt: skip
    assert task.score(model).items.groups == [0, 1, 1, 0, 2]
    assert StsTask(name="t", first=["a", "b"], second=["c", "d"], scores=[1.0, 2.0]).score(model).items.groups is None


def test_clustering_finds_clusters_that_are_there(embedder):
    model, random = embedder(), np.random.default_rng(0)
    texts, labels = [], []
    for label, number in itertools.product(range(4), range(30)):
        center = np.eye(16)[label]
        model.table[f"{label} {number}"] = (center + 0.01 * random.normal(size=16)).astype(np.float32)
        texts.append(f"{label} {number}")
        labels.append(str(label))
    task = ClusteringTask(name="t", sets=[(texts, labels), (["only"], ["one"]), (texts, list(reversed(labels)))])
    scores = task.score(JudgedModel(model))
    assert scores.items.columns["value"].tolist() == pytest.approx([1.0, 1.0, v_measure_score(labels, labels[::-1])])
    assert scores.metrics["v_measure"] == pytest.approx(scores.items.columns["value"].mean())


def test_bitext_is_weighted_f1(embedder):
    model = embedder(2)
    first, second = [f"a{i}" for i in range(30)], [f"b{i}" for i in range(30)]
    scores = BitextTask(name="t", first=first, second=second).score(JudgedModel(model))
    similarity = np.array([[model.vector(a) @ model.vector(b) for b in second] for a in first])
    expected = f1_score(range(30), similarity.argmax(1), average="weighted", zero_division=0)
    assert scores.metrics["f1"] == pytest.approx(expected)
    assert scores.items.columns["value"].mean() == pytest.approx(expected)


def test_summarization_is_the_mean_correlation_of_each_text(embedder):
    model = embedder()
    groups = [
        SummaryGroup(
            f"text {n}", [f"h{n} {i}" for i in range(3)], [f"m{n} {i}" for i in range(6)], [1.0, 2, 3, 4, 5, n]
        )
        for n in range(4)
    ]
    flat = SummaryGroup("flat", ["h"], ["m", "n"], [1.0, 1.0])
    scores = SummarizationTask(name="t", groups=[*groups, flat]).score(JudgedModel(model))
    expected = []
    for group in groups:
        best = [max(float(model.vector(m) @ model.vector(h)) for h in group.human) for m in group.machine]
        expected.append(spearmanr(group.scores, best).statistic)
    assert scores.items.columns["value"].tolist() == pytest.approx(expected, abs=1e-6)
    assert scores.items.ids == ["0", "1", "2", "3"]
    with pytest.raises(DataError, match="rated"):
        SummarizationTask(name="t", groups=[flat]).score(JudgedModel(model))


def test_fingerprints_see_data_and_protocol_but_not_the_name():
    pairs = {"first": ["a"], "second": ["b"]}
    one = StsTask(name="x", scores=[1.0], **pairs)
    assert one.fingerprint == StsTask(name="y", scores=[1.0], **pairs).fingerprint
    assert one.fingerprint != StsTask(name="x", scores=[2.0], **pairs).fingerprint
    assert one.fingerprint != BitextTask(name="x", **pairs).fingerprint
