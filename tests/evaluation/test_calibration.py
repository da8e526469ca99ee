"""Thresholds keep their promise on pairs not seen yet, scores mean what they say, and nothing is applied wrongly."""

import dataclasses
import json
import zlib

import numpy as np
import pytest

from bgekit import FlagModel, read_card
from bgekit.data.records import Record
from bgekit.errors import ArgumentError, CardError, CheckpointError, DataError
from bgekit.evaluation.calibration import calibrate, fit_logistic, scored_pairs
from bgekit.evaluation.tasks.bitext import BitextTask
from bgekit.evaluation.tasks.clustering import ClusteringTask
from bgekit.evaluation.tasks.pairs import PairClassificationTask, StsTask
from bgekit.evaluation.tasks.reranking import RerankingGroup, RerankingTask
from bgekit.evaluation.tasks.retrieval import Corpus, RetrievalTask
from bgekit.evaluation.text_pairs import pairs_of_lists, pairs_of_task
from bgekit.evaluation.thresholds import (
    ScoredPairs,
    chance,
    choose_threshold,
    independent_groups,
    needed_groups,
    promised,
    rate,
)
from bgekit.inference.model import Embedder
from bgekit.inference.pipeline import Encoded
from bgekit.models.calibration_map import LogisticMap, QuantileMap, read_map
from bgekit.models.card import ModelCard, Prompt

DIMENSION = 24


class TopicModel(Embedder):
    """A text `3.17` is number 17 of topic 3: texts of a topic are near each other, more or less."""

    dimension = DIMENSION
    precision = "float32"

    def __init__(self, *, query="", noise=0.8, similarity="cosine"):
        self.card = ModelCard(
            name="topics", pooling="cls", normalize=True, max_length=8, dimension=DIMENSION, similarity=similarity,
            prompts={"query": Prompt(query), "document": Prompt()},
        )  # fmt: skip
        self.noise = noise
        self.prompts = []

    @property
    def fingerprint(self):
        return f"topics {self.noise}"

    def _compute(self, blocks, prompt, max_length, batch_size):
        for texts in blocks:
            self.prompts += [prompt.prefix] * len(texts)
            yield Encoded(np.stack([self._vector(text) for text in texts]).astype(np.float32))

    def _vector(self, text):
        topic, own = (
            np.random.default_rng(zlib.crc32(key.encode())).normal(size=DIMENSION) for key in (text.split(".")[0], text)
        )
        vector = topic + self.noise * own
        return vector / np.linalg.norm(vector)


def labelled(number, seed, *, topics=1000):
    """Pairs of texts, of one topic (1) or of two (0)."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, topics, (2, number))
    labels = rng.integers(0, 2, number)
    second = np.where(labels == 1, first, second)
    texts = [[f"{topic}.{rng.integers(10**9)}" for topic in side] for side in (first, second)]
    return texts[0], texts[1], [int(a == b) for a, b in zip(first, second, strict=True)]


def drawn(number, rng, *, share=0.5):
    """Pairs whose similarities are normal: around 0.8 for related ones, around 0.6 for the others."""
    related = rng.random(number) < share
    similarity = np.where(related, rng.normal(0.8, 0.08, number), rng.normal(0.6, 0.08, number))
    return ScoredPairs(similarity, related, np.stack([np.arange(number)] * 2))


def true_rates(value, share=0.5):
    """Precision, false-positive rate and recall of `drawn` at a threshold."""
    from scipy.stats import norm

    recall, false = norm.sf(value, 0.8, 0.08), norm.sf(value, 0.6, 0.08)
    return {
        "precision": share * recall / (share * recall + (1 - share) * false),
        "false_positive_rate": false,
        "recall": recall,
    }


# --- the promise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "wanted"), [("precision", 0.9), ("precision", 0.96), ("false_positive_rate", 0.02), ("recall", 0.9)]
)
def test_the_promise_holds_on_unseen_pairs_as_often_as_it_says(monkeypatch, target, wanted):
    monkeypatch.setattr("bgekit.evaluation.thresholds._RESAMPLES", 2)
    trials, broken, plainly_broken, given = 40, 0, 0, 0
    for seed in range(trials):
        pairs = drawn(1500, np.random.default_rng(seed))
        try:
            found = choose_threshold(pairs, target, wanted, confidence=0.95, prevalence=0.5, seed=0)
        except DataError:
            continue
        given += 1
        fits = (lambda rate: rate <= wanted) if target == "false_positive_rate" else (lambda rate: rate >= wanted)
        broken += not fits(true_rates(found.value)[target])
        plainly_broken += not fits(true_rates(found.plain)[target])
    assert given > trials * 0.6
    # 5 % of 40 are 2; more than 6 would happen once in two hundred runs if each broke with just that chance.
    assert broken <= 6
    # What just fits the pairs at hand does not fit the next ones.
    assert plainly_broken > trials * 0.3


def test_precision_is_promised_at_the_prevalence_asked_for():
    pairs = drawn(20_000, np.random.default_rng(0))
    even = choose_threshold(pairs, "precision", 0.9, confidence=0.95, prevalence=0.5, seed=0)
    rare = choose_threshold(pairs, "precision", 0.9, confidence=0.95, prevalence=0.05, seed=0)
    assert rare.value > even.value
    for found, share in ((even, 0.5), (rare, 0.05)):
        true = true_rates(found.value, share)
        assert 0.9 <= true["precision"] < 0.985
        assert found.precision.low <= true["precision"] <= found.precision.high
        assert found.recall.low <= true["recall"] <= found.recall.high
        assert found.false_positive_rate.low <= true["false_positive_rate"] <= found.false_positive_rate.high
    assert even.low <= even.plain <= even.high <= even.value + 0.01


def test_more_pairs_bring_the_threshold_nearer_to_the_true_one(monkeypatch):
    from scipy.stats import norm

    monkeypatch.setattr("bgekit.evaluation.thresholds._RESAMPLES", 2)

    def excess(number):
        found = (
            choose_threshold(
                drawn(number, np.random.default_rng(seed)), "false_positive_rate", 0.05,
                confidence=0.95, prevalence=None, seed=0,
            )
            for seed in range(5)
        )  # fmt: skip
        return np.mean([each.value for each in found]) - norm.isf(0.05, 0.6, 0.08)

    assert excess(400) > excess(2_000) > excess(20_000) > 0
    assert excess(20_000) < 0.01


def test_fewest_pairs_for_a_false_positive_rate():
    need = needed_groups(0.05, 0.05)
    assert need == 59  # 0.95^59 < 0.05 <= 0.95^58
    rng = np.random.default_rng(0)

    def pairs(number):
        return ScoredPairs(rng.random(number), np.zeros(number, dtype=bool), np.stack([np.arange(number)] * 2))

    enough, few = pairs(need), pairs(need - 1)
    found = choose_threshold(enough, "false_positive_rate", 0.05, confidence=0.95, prevalence=None, seed=0)
    assert found.false_positive_rate.value == 0
    assert found.recall is None and found.precision is None
    with pytest.raises(DataError, match=r"58 unrelated pairs .* too few .* at least 59 are needed"):
        choose_threshold(few, "false_positive_rate", 0.05, confidence=0.95, prevalence=None, seed=0)


def test_too_few_pairs_for_a_precision_says_how_many_are_needed():
    with pytest.raises(DataError, match=r"related pairs are too few.*about [\d,]+ pairs"):
        choose_threshold(
            drawn(60, np.random.default_rng(0)), "precision", 0.99, confidence=0.95, prevalence=0.5, seed=0
        )


def test_a_precision_out_of_reach_says_what_is_reached():
    rng = np.random.default_rng(0)
    pairs = ScoredPairs(rng.random(3000), rng.random(3000) < 0.5, np.stack([np.arange(3000)] * 2))
    with pytest.raises(DataError, match=r"the most that is seen is \d\d\.\d%, from a similarity of"):
        choose_threshold(pairs, "precision", 0.9, confidence=0.95, prevalence=0.5, seed=0)


def test_equal_similarities_are_all_accepted_or_none():
    similarity = np.repeat([0.9, 0.5], 500)
    related = np.repeat([True, False], 500)
    pairs = ScoredPairs(similarity, related, np.stack([np.arange(1000)] * 2))
    for target in ("precision", "false_positive_rate"):
        found = choose_threshold(pairs, target, 0.1, confidence=0.95, prevalence=0.5, seed=0)
        assert 0.5 <= found.value <= 0.9 or target == "precision"
        assert found.recall.value == 1
    assert found.false_positive_rate.value == 0


# --- pairs that share texts -------------------------------------------------------------------------------------


def of_queries(queries, pairs, rng, *, rates=None, similarity=None):
    """Unrelated pairs of queries with documents of their own; a query of rate p errs from similarity 0 on with p."""
    query = np.repeat(np.arange(queries), pairs)
    if similarity is None:
        similarity = np.log(np.maximum(rates, 1e-12))[query] - np.log(rng.random(len(query)))
    return ScoredPairs(similarity, np.zeros(len(query), dtype=bool), np.stack([query, np.arange(len(query))]))


@pytest.mark.parametrize("name", ["beta", "few bad queries"])
def test_a_promise_over_queries_holds_as_often_as_it_says(name):
    wanted, trials, broken = 0.05, 120, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        # The mean of either is just what is promised, at similarity 0: a threshold below 0 breaks the promise.
        rates = rng.beta(0.45, 8.55, 80) if name == "beta" else np.where(rng.random(80) < 0.045, 1.0, 0.005 / 0.955)
        pairs = of_queries(80, 20, rng, rates=rates)
        broken += promised(pairs, "false_positive_rate", wanted, confidence=0.95, prevalence=None) < 0
    # 5 % of 120 are 6; more than 11 would happen once in sixty runs if each broke with just that chance.
    assert broken <= 11


@pytest.mark.parametrize("errors", [0, 1, 40])
def test_many_pairs_of_few_queries_promise_nothing_whether_or_not_any_errs(errors):
    similarity = np.full(5000, 0.3)
    similarity[:errors] = 0.9
    pairs = of_queries(50, 100, None, similarity=similarity + 1e-6 * np.arange(5000))
    for target, related in (("false_positive_rate", False), ("recall", True)):
        sort = dataclasses.replace(pairs, related=np.full(5000, related))
        wanted = 0.99 if related else 0.01
        with pytest.raises(DataError, match=r"only 50 groups .* too few .* at least 299 .*other queries.*, 0\.\d+ at"):
            choose_threshold(sort, target, wanted, confidence=0.95, prevalence=None, seed=0)
    # What is said to be possible is.
    found = choose_threshold(pairs, "false_positive_rate", 0.0583, confidence=0.95, prevalence=None, seed=0)
    assert (found.groups, found.false_positive_rate.groups, found.false_positive_rate.of) == (50, 50, 5000)
    assert "Gaffke" in found.method


def test_more_pairs_of_the_same_queries_help_up_to_the_number_of_queries():
    def threshold(queries, pairs):
        values = [
            promised(
                of_queries(queries, pairs, rng, rates=rng.beta(1, 19, queries)), "false_positive_rate", 0.05,
                confidence=0.95, prevalence=None,
            )
            for rng in map(np.random.default_rng, range(5))
        ]  # fmt: skip
        return np.mean(values)

    assert threshold(100, 1) > threshold(100, 10) > threshold(1000, 10) > 0


def test_a_precision_of_few_queries_is_promised_by_queries():
    rng = np.random.default_rng(0)
    query = np.repeat(np.arange(100), 20)
    related = np.tile(np.arange(20) < 4, 100)
    similarity = 4.0 * related + rng.normal(size=100)[query] + rng.normal(size=2000)
    pairs = ScoredPairs(similarity, related, np.stack([query, np.arange(2000)]))
    found = choose_threshold(pairs, "precision", 0.6, confidence=0.95, prevalence=0.2, seed=0)
    assert (found.groups, found.precision.groups) == (100, 100)
    assert found.precision.low >= 0.55 and found.recall.value > 0.5
    with pytest.raises(DataError, match=r"100 groups with related pairs are too few.*about [\d,]+ groups like these"):
        choose_threshold(pairs, "precision", 0.9, confidence=0.95, prevalence=0.2, seed=0)


def test_copies_of_pairs_count_once():
    rng = np.random.default_rng(0)
    hits = rng.random(2000) < 0.3
    alone, copies = np.stack([np.arange(2000)] * 2), np.repeat(hits, 5)
    groups = np.stack([np.repeat(np.arange(2000), 5), np.arange(10_000)])
    one = rate(hits, alone, 0.95)
    for five in (rate(copies, groups, 0.95), rate(copies, groups[::-1], 0.95)):
        assert (five.low, five.high) == pytest.approx((one.low, one.high), abs=1e-6)
        assert (five.count, five.of, five.groups) == (5 * one.count, 10_000, 2000)
    # Where the pairs of a query have nothing in common, their mean is known better than that of single ones.
    spread = rate(rng.random(10_000) < 0.3, groups, 0.95)
    assert 0.4 < (spread.high - spread.low) / (one.high - one.low) < 0.6


def grouped(pairs, *, one_list, related=None):
    texts = np.array(pairs).T
    related = np.zeros(len(pairs), dtype=bool) if related is None else np.array(related)
    return independent_groups(texts, related, one_list=one_list).tolist()


def test_groups_share_no_text():
    # Two queries with two documents each; then one document of both, whose second pair joins two groups.
    assert grouped([(0, 0), (0, 1), (1, 2), (1, 3)], one_list=False) == [0, 0, 1, 1]
    joined = grouped([(0, 0), (0, 1), (1, 1), (1, 3)], one_list=False)
    assert sorted(joined) in ([-1, 0, 1, 1], [-1, 0, 0, 1]) and joined[0] != joined[3]
    # A chain of one list; the same numbers of two lists are pairs without a text in common.
    assert grouped([(0, 1), (1, 2), (2, 3)], one_list=True) == [0, -1, 1]
    assert grouped([(0, 1), (1, 2), (2, 3)], one_list=False) == [0, 1, 2]
    # A text with itself, and a pair twice.
    assert grouped([(0, 0), (1, 2), (1, 2)], one_list=True) == [0, 1, 1]
    rng = np.random.default_rng(0)
    texts, related = rng.integers(0, 100, (2, 1500)), rng.random(1500) < 0.5
    group = independent_groups(texts, related, one_list=True)
    of_text: dict[int, set[int]] = {}
    for number, pair in zip(group, texts.T, strict=True):
        if number >= 0:
            for text in pair.tolist():
                of_text.setdefault(text, set()).add(int(number))
    assert all(len(found) == 1 for found in of_text.values())
    assert group.max() + 1 >= 45  # Of 50 at most.
    assert set(group[group >= 0]) == set(range(group.max() + 1))
    begun = [len(set(group[(group >= 0) & (related == sort)])) for sort in (False, True)]
    assert min(begun) > 20


def test_the_bound_over_groups_is_exact_for_single_pairs_and_holds_for_shares():
    from scipy.stats import beta, multinomial

    for size, errors, share in ((299, 0, 0.01), (5000, 34, 0.01), (50, 3, 0.1), (1000, 400, 0.45), (2, 0, 0.5)):
        wrong = (np.arange(size) < errors).astype(float)
        assert chance(wrong, 1 - wrong, share) == pytest.approx(beta.sf(share, errors + 1, size - errors), abs=1e-9)
    # Groups of two, one of them wrong, and five groups that are wrong altogether.
    halves = np.full(20, 0.5)
    wrong, right = np.append(halves, np.ones(5)), np.append(halves, np.zeros(5))
    for share in (0.6, 0.8, 0.9):
        odds = (share - 0.5) / (1 - share)
        assert chance(wrong, right, share) == pytest.approx(beta.sf(odds / (1 + odds), 6, 20), abs=1e-9)
    # Groups with shares of 1 %, 30 % and 100 %, with a mean of just 10 %: every possible sample of 32 of them.
    values, wanted, size = np.array([0.01, 0.3, 1.0]), 0.1, 32
    counts = [(a, b, size - a - b) for a in range(size + 1) for b in range(size + 1 - a)]
    refuted = [count for count in counts if refutes(np.repeat(values, count), wanted)]
    assert refuted
    for middle in (0.0, 0.1, 0.2, 0.3):
        worst = (wanted - 0.01 - 0.29 * middle) / 0.99
        assert multinomial.pmf(refuted, size, [1 - middle - worst, middle, worst]).sum() <= 0.05


def refutes(wrong, share):
    """A share of errors is refuted at 5 %."""
    return chance(wrong, 1 - wrong, share) <= 0.05


def test_a_rate_is_the_exact_binomial_interval():
    from scipy.stats import binomtest

    found = rate(np.arange(200) < 12, np.stack([np.arange(200)] * 2), 0.9)
    exact = binomtest(12, 200).proportion_ci(0.9, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


# --- which pairs ------------------------------------------------------------------------------------------------


def texts_of(pairs, rows):
    return [(pairs.first[a], pairs.second[b]) for a, b in rows.T]


def test_labelled_pairs_are_kept_and_random_ones_are_not_related():
    first, second, labels = labelled(300, 0)
    pairs = pairs_of_task(
        PairClassificationTask(name="p", main_metric="max_ap", first=first, second=second, labels=labels), 1000
    )
    found = {pair: bool(label) for pair, label in zip(texts_of(pairs, pairs.rows), pairs.related, strict=True)}
    assert found == {(a, b): label == 1 for a, b, label in zip(first, second, labels, strict=True)}
    assert pairs.share == pytest.approx(np.mean(labels))
    assert pairs.sides == ("plain", "plain")
    random = texts_of(pairs, pairs.random)
    assert len(set(random)) == len(random) > 250
    assert all(a != b and not found.get((a, b)) for a, b in random)
    assert {a for a, _ in random} <= set(first)  # no text that would have to be encoded besides


def test_at_most_so_many_pairs_of_each_sort_are_drawn_and_the_share_stays_that_of_all():
    first, second, labels = labelled(900, 0)
    labels[:300] = [0] * 300
    task = PairClassificationTask(name="p", main_metric="max_ap", first=first, second=second, labels=labels)
    pairs = pairs_of_task(task, 100, seed=3)
    assert (pairs.related.sum(), (~pairs.related).sum(), pairs.random.shape[1]) == (100, 100, 100)
    assert pairs.share == pytest.approx(np.mean(labels))
    again, other = pairs_of_task(task, 100, seed=3), pairs_of_task(task, 100, seed=4)
    assert texts_of(again, again.rows) == texts_of(pairs, pairs.rows) != texts_of(other, other.rows)


def test_graded_scores_count_as_related_from_four_of_five_on():
    task = StsTask(name="s", first=list("abcd"), second=list("efgh"), scores=[5.0, 4.0, 3.9, 0.0])
    assert pairs_of_task(task, 10).related.tolist() == [True, True, False, False]
    assert pairs_of_task(task, 10, related_from=3).related.tolist() == [True, True, True, False]
    binary = StsTask(name="s", first=list("abcd"), second=list("efgh"), scores=[0.0, 1.0, 0.0, 1.0])
    assert sorted(pairs_of_task(binary, 10).related.tolist()) == [False, False, True, True]


def test_bitext_has_related_pairs_and_random_others():
    pairs = pairs_of_task(BitextTask(name="b", first=list("abc"), second=list("xyz")), 10)
    assert sorted(texts_of(pairs, pairs.rows)) == [("a", "x"), ("b", "y"), ("c", "z")]
    assert pairs.related.all() and pairs.share is None
    assert not set(texts_of(pairs, pairs.random)) & {("a", "x"), ("b", "y"), ("c", "z")}


def test_retrieval_pairs_are_judged_ones_and_random_documents():
    records = [Record(f"d{number}", f"text {number}") for number in range(50)]
    task = RetrievalTask(
        name="r", queries={"q1": "one", "q2": "two", "q3": "not judged"},
        corpus=Corpus([record.id for record in records], lambda: iter(records), "digest"),
        qrels={"q1": {"d1": 1, "d2": 0}, "q2": {"d3": 2}},
    )  # fmt: skip
    pairs = pairs_of_task(task, 30)
    assert pairs.sides == ("query", "document")
    labels = dict(zip(texts_of(pairs, pairs.rows), pairs.related.tolist(), strict=True))
    assert labels == {("one", "text 1"): True, ("one", "text 2"): False, ("two", "text 3"): True}
    random = texts_of(pairs, pairs.random)
    assert len(random) == 30 and {a for a, _ in random} == {"one", "two"}
    assert not {pair for pair, related in labels.items() if related} & set(random)


def test_reranking_groups_become_pairs_of_query_and_document():
    groups = [RerankingGroup("q", ["good"], ["bad", "worse"]), RerankingGroup("r", ["fine"], [])]
    pairs = pairs_of_task(RerankingTask(name="r", groups=groups), 10)
    assert dict(zip(texts_of(pairs, pairs.rows), pairs.related.tolist(), strict=True)) == {
        ("q", "good"): True, ("q", "bad"): False, ("q", "worse"): False, ("r", "fine"): True,
    }  # fmt: skip


def test_of_other_kinds_only_the_texts_count():
    task = ClusteringTask(name="c", sets=[(["a", "b", "c"], ["1", "1", "2"])])
    pairs = pairs_of_task(task, 10)
    assert pairs.rows.shape == (2, 0) and pairs.random.shape[1] == 3


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match="different lengths"):
        pairs_of_lists(["a"], ["b", "c"], None, 10)
    with pytest.raises(ArgumentError, match="must be 1"):
        pairs_of_lists(["a"], ["b"], [2], 10)
    with pytest.raises(DataError, match="no two different texts"):
        pairs_of_lists(["a", "a"], None, None, 10)


# --- calibrate --------------------------------------------------------------------------------------------------


def test_probabilities_are_right_on_unseen_pairs():
    model = TopicModel()
    calibration = calibrate(model, labelled(3000, 0), precision=0.9)
    assert calibration.meaning == "probability"
    assert calibration.unrelated_are == "labelled"
    assert set(calibration.distributions) == {"unrelated", "related", "random"}
    first, second, labels = labelled(3000, 1)
    a, b = model.encode(first), model.encode(second)
    raw, truth = np.einsum("nd,nd->n", a, b), np.array(labels)
    chances = calibration(raw)
    assert chances.dtype == np.float32 and np.all((chances >= 0) & (chances <= 1))
    for low in (0.0, 0.25, 0.5, 0.75):
        part = (chances >= low) & (chances < low + 0.25)
        assert chances[part].mean() == pytest.approx(truth[part].mean(), abs=0.08)
    accepted = raw >= calibration.threshold.value
    assert truth[accepted].mean() >= 0.9
    assert accepted.mean() > 0.1


def test_without_labels_a_score_is_the_share_of_less_similar_random_pairs():
    model = TopicModel()
    texts = [f"{number}.0" for number in range(1200)]
    calibration = calibrate(model, texts, pairs=3000)
    assert calibration.meaning == "percentile"
    assert (calibration.threshold.target, calibration.threshold.wanted) == ("false_positive_rate", 0.01)
    vectors = model.encode([f"{number}.1" for number in range(1000, 1300)])
    raw = (vectors @ vectors.T)[np.triu_indices(300, 1)]
    for share in (0.1, 0.5, 0.9, 0.99):
        assert np.mean(calibration(raw) <= share) == pytest.approx(share, abs=0.02)
    assert np.mean(raw >= calibration.threshold.value) <= 0.01
    assert calibration([-2.0, 2.0]).tolist() == [0.0, 1.0]


def test_related_pairs_alone_need_a_prevalence_for_precision():
    pairs = ([f"{number}.0" for number in range(1000)], [f"{number}.1" for number in range(1000)])
    with pytest.raises(ArgumentError, match="prevalence"):
        calibrate(TopicModel(), pairs, precision=0.9)
    assert calibrate(TopicModel(), pairs).meaning == "percentile"
    calibration = calibrate(TopicModel(), pairs, precision=0.9, prevalence=0.2)
    assert (calibration.meaning, calibration.prevalence) == ("probability", 0.2)
    assert calibration.unrelated_are == "random"


def test_queries_are_encoded_as_queries():
    model = TopicModel(query="Q: ")
    groups = [RerankingGroup(f"{n}.0", [f"{n}.1"], [f"{n + 1}.2"]) for n in range(500)]
    calibration = calibrate(model, RerankingTask(name="r", groups=groups))
    assert model.prompts.count("Q: ") == 500 and model.prompts.count("") == 1000
    assert calibration.made_for["prompt query"] == "Q: "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": 0.9, "recall": 0.9}, "two thresholds"),
        ({"precision": 95}, "precision must be between 0 and 1"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1"),
        ({"prevalence": 0}, "prevalence must be between 0 and 1"),
        ({"pairs": 0}, "pairs must be a positive number"),
    ],
)
def test_impossible_wishes(options, message):
    with pytest.raises(ArgumentError, match=message):
        calibrate(TopicModel(), ["a", "b"], **options)


def test_wishes_that_the_data_cannot_fulfil():
    with pytest.raises(DataError, match="names no related pairs"):
        calibrate(TopicModel(), ["1.0", "2.0", "3.0"], precision=0.9, prevalence=0.5)
    with pytest.raises(ArgumentError, match="data must be"):
        calibrate(TopicModel(), 3)


def test_everything_is_plain_json_and_the_same_again():
    model, data = TopicModel(), labelled(800, 0)
    content = calibrate(model, data, false_positive_rate=0.05).to_dict()
    again = calibrate(model, data, false_positive_rate=0.05).to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == json.loads(json.dumps(again))
    assert (
        sum(content["distributions"]["related"]["histogram"]["counts"]) == content["distributions"]["related"]["count"]
    )


def test_unrelated_pairs_that_are_more_similar_are_an_error():
    pairs = drawn(500, np.random.default_rng(0))
    with pytest.raises(DataError, match="not more similar"):
        fit_logistic(dataclasses.replace(pairs, similarity=-pairs.similarity), 0.5)


def test_probabilities_rise_with_the_similarity_whatever_the_pairs():
    values = np.linspace(-1, 1, 2001)
    for seed in range(30):
        fitted = fit_logistic(drawn(100, np.random.default_rng(seed)), 0.5)
        assert (np.diff(fitted(values)) >= 0).all()
        assert min(fitted.slope, fitted.edge) >= 0


def test_similarities_beyond_1_are_no_nearness():
    pairs = drawn(500, np.random.default_rng(0))
    fitted = fit_logistic(dataclasses.replace(pairs, similarity=50 * pairs.similarity), 0.5, bounded=False)
    assert fitted.edge == 0
    assert 50 * fitted.slope == pytest.approx(fit_logistic(pairs, 0.5, bounded=False).slope, rel=1e-4)


def test_pairs_without_any_overlap_give_finite_probabilities():
    pairs = ScoredPairs(np.repeat([0.9, 0.1], 50), np.repeat([True, False], 50), np.stack([np.arange(100)] * 2))
    fitted = fit_logistic(pairs, 0.5)
    assert np.isfinite([fitted.slope, fitted.edge, fitted.intercept]).all()
    assert fitted([0.1, 0.9]) == pytest.approx([1 / 52, 51 / 52], abs=1e-3)


@pytest.mark.parametrize("apart", [0.05, 0.3, 0.9])
def test_the_fit_is_the_best_one_for_smoothed_labels(apart):
    rng = np.random.default_rng(3)
    related = np.arange(200) < 80
    similarity = np.clip(np.where(related, 0.2 + apart / 2, 0.2 - apart / 2) + rng.normal(0, 0.1, 200), -1, 0.99)
    fitted = fit_logistic(ScoredPairs(similarity, related, np.stack([np.arange(200)] * 2)), 0.4, bounded=False)
    targets = np.where(related, 81 / 82, 1 / 122)
    left = 1 / (1 + np.exp(-(fitted.slope * similarity + fitted.intercept))) - targets
    assert abs(left.sum()) < 1e-4 and abs((left * (similarity - similarity.mean())).sum()) < 1e-4


def test_maps_survive_json_and_damaged_ones_are_refused():
    for given in (LogisticMap(20.5, 1.5, -3.25), QuantileMap((0.1, 0.5), (0.0, 1.0))):
        assert read_map(json.loads(json.dumps(given.to_dict()))) == given
    for damaged in (None, {}, {"kind": "logistic"}, {"kind": "quantiles", "similarity": [2, 1], "share": [0, 1]}, []):
        with pytest.raises(CheckpointError, match="bge calibrate"):
            read_map(damaged)


# --- in the model card ------------------------------------------------------------------------------------------


def test_similarity_uses_the_calibration_of_the_card():
    model = TopicModel()
    a, b = model.encode(["1.0", "2.0"]), model.encode(["1.1", "2.1", "3.1"])
    with pytest.raises(CardError, match="no calibration"):
        model.similarity(a, b, calibrated=True)
    calibration = calibrate(model, labelled(1000, 0))
    calibration.attach(model)
    assert np.array_equal(model.similarity(a, b, calibrated=True), calibration(model.similarity(a, b)))
    model.noise = 0.5
    with pytest.raises(CardError, match="other weights"):
        model.similarity(a, b, calibrated=True)


def test_another_use_of_the_model_is_refused():
    model = TopicModel(query="Q: ")
    groups = [RerankingGroup(f"{n}.0", [f"{n}.1"], [f"{n + 1}.2"]) for n in range(400)]
    calibrate(model, RerankingTask(name="r", groups=groups)).attach(model)
    vectors = model.encode(["1.0"])
    for change, message in (
        ({"similarity": "dot"}, "similarity was 'cosine' and is 'dot'"),
        ({"prompts": {"query": Prompt(), "document": Prompt()}}, "prompt query was 'Q: ' and is ''"),
    ):
        other = TopicModel()
        other.card = dataclasses.replace(model.card, **change)
        with pytest.raises(CardError, match=message):
            other.similarity(vectors, vectors, calibrated=True)


def test_the_card_says_how_many_groups_promise_and_how(tmp_path):
    model = TopicModel()
    groups = [RerankingGroup(f"{n}.0", [f"{n}.1"], [f"{n + 1}.{k}" for k in range(3)]) for n in range(400)]
    calibration = calibrate(model, RerankingTask(name="r", groups=groups), false_positive_rate=0.02)
    calibration.attach(model)
    # Each query is a group: no document is another query's.
    stored = model.card.calibration["threshold"]
    assert (model.card.calibration["format"], stored["groups"], stored["wanted"]) == (2, 400, 0.02)
    assert "Gaffke" in stored["method"]
    assert calibration.to_dict()["threshold"]["false_positive_rate"]["groups"] == 400
    with pytest.raises(DataError, match=r"1,200 unrelated pairs are only 400 groups .* at least 598 are needed"):
        calibrate(model, RerankingTask(name="r", groups=groups), false_positive_rate=0.005)


def test_a_card_of_before_still_gives_scores_and_one_of_a_later_version_is_refused():
    model = TopicModel()
    calibrate(model, labelled(1000, 0)).attach(model)
    vectors = model.encode(["1.0", "2.0"])
    expected = model.similarity(vectors, vectors, calibrated=True)
    card = dict(model.card.calibration)
    threshold = {key: card["threshold"][key] for key in ("value", "target", "wanted", "confidence")}
    model.card = dataclasses.replace(model.card, calibration={**card, "format": 1, "threshold": threshold})
    assert np.array_equal(model.similarity(vectors, vectors, calibrated=True), expected)
    for other in (3, "2", None):
        model.card = dataclasses.replace(model.card, calibration={**card, "format": other})
        with pytest.raises(CheckpointError, match=r"another version.*bge calibrate"):
            model.similarity(vectors, vectors, calibrated=True)


def test_random_pairs_of_few_texts_share_as_few_as_can_be():
    pairs = pairs_of_lists([f"text {number}" for number in range(100)], None, None, 50)
    assert pairs.random.shape == (2, 50)
    assert len(np.unique(pairs.random)) == 100


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_pairs_are_compared_as_the_model_compares_them(kind):
    model = TopicModel(similarity=kind)
    first, second, labels = labelled(100, 0)
    texts = pairs_of_lists(first, second, labels, 1000)
    pairs, _ = scored_pairs(model, texts, False)
    vectors = model.encode(texts.first)
    expected = model.similarity(vectors, vectors)[pairs.groups[0], pairs.groups[1]]
    assert pairs.similarity == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def calibrated(tiny_bert, texts):
    model = FlagModel(tiny_bert, use_fp16=False)
    calibrate(model, texts(120, longest=6), false_positive_rate=0.3).attach(model)
    return model


def test_save_and_load_keep_it(calibrated, tmp_path):
    calibrated.save(tmp_path / "saved")
    loaded = FlagModel(tmp_path / "saved", use_fp16=False)
    assert loaded.card.calibration == calibrated.card.calibration
    vectors = loaded.encode(["a cat", "a dog", "the river"])
    expected = calibrated.similarity(vectors, vectors, calibrated=True)
    assert np.array_equal(loaded.similarity(vectors, vectors, calibrated=True), expected)
    loaded.save(tmp_path / "again")
    assert read_card(tmp_path / "again").calibration == calibrated.card.calibration
    # It has no part in what a vector is: indexes of the same model stay valid.
    assert loaded.fingerprint == FlagModel(tmp_path / "again", use_fp16=False).fingerprint


def test_it_is_not_applied_to_other_weights(calibrated, make_model, tmp_path, caplog):
    calibrated.save(tmp_path / "saved")
    other = make_model("bert", seed=1)
    (tmp_path / "saved" / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    trained = FlagModel(tmp_path / "saved", use_fp16=False)
    vectors = trained.encode(["a cat", "a dog"])
    with pytest.raises(CardError, match="other weights"):
        trained.similarity(vectors, vectors, calibrated=True)
    caplog.clear()
    trained.save(tmp_path / "again")
    assert "belongs to other weights and is not saved" in caplog.text
    assert read_card(tmp_path / "again").calibration is None


def test_new_weights_lose_it(calibrated, tmp_path, caplog):
    from safetensors.torch import load_file

    from bgekit.networks.saving import write_checkpoint

    weights = load_file(calibrated.folder / "model.safetensors")
    write_checkpoint(tmp_path / "new", card=calibrated.card, source=calibrated.folder, weights=weights)
    assert read_card(tmp_path / "new").calibration is None
    assert "is not saved" in caplog.text


# --- real data --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_promised_precision_holds_on_data_not_seen(bge_small_zh, shared_path):
    from bgekit.evaluation.readers.detect import read_tasks

    model = FlagModel(bge_small_zh)
    seen, unseen = (read_tasks(shared_path("data", "LCQMC"), split=split)[0] for split in ("validation", "test"))
    calibration = calibrate(model, seen, precision=0.9, pairs=1500)
    pairs = pairs_of_task(unseen, 1500)
    vectors = model.encode(pairs.first)
    raw = np.einsum("nd,nd->n", vectors[pairs.rows[0]], vectors[pairs.rows[1]])
    accepted = raw >= calibration.threshold.value
    assert pairs.related[accepted].mean() >= 0.9
    assert accepted.mean() > 0.1


def test_a_model_that_finds_all_texts_alike_is_said_plainly():
    class Collapsed(TopicModel):
        def _vector(self, text):
            return np.eye(1, DIMENSION)[0]

    lines = [f"{number % 9}.{number}" for number in range(400)]
    for data in (lines, (lines[:200], lines[200:], [number % 2 for number in range(200)])):
        with pytest.raises(DataError, match=r"topics gives all .* pairs the same similarity \(1\.0000\).* collapsed"):
            calibrate(Collapsed(), data, false_positive_rate=0.2)
