from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import permutation_test, spearmanr
from sklearn.metrics import average_precision_score

from bgekit.errors import ArgumentError
from bgekit.evaluation.comparison import compare, compare_all
from bgekit.evaluation.correlations import average_precision
from bgekit.evaluation.kinds.pairs import StsTask
from bgekit.evaluation.results import Result
from bgekit.evaluation.task import Items


def result(label: str, items: Items, task="t") -> Result:
    return Result(
        model=label, setting={}, label=label, task=task, kind="retrieval", split="test", language="",
        main_metric="ndcg_at_10", main_score=0.0, metrics={}, count=len(items.ids), exclusions=(), published={},
        comparable=True, reference=None, card={}, fingerprints={}, seconds=0.0, items=items,
    )  # fmt: skip


def means(label: str, values) -> Result:
    return result(label, Items([str(i) for i in range(len(values))], "mean", {"value": np.asarray(values, float)}))


def correlated(label: str, predicted, truth, statistic="spearman") -> Result:
    columns = {"predicted": np.asarray(predicted, float), "label": np.asarray(truth, float)}
    return result(label, Items([str(i) for i in range(len(truth))], statistic, columns))


def test_a_planted_difference_is_found_and_its_size_is_inside_the_interval():
    random = np.random.default_rng(0)
    base = random.random(300)
    found = compare(means("a", base + 0.05 + 0.1 * random.normal(size=300)), means("b", base))
    assert found.p_value < 0.001
    assert found.ci_low < 5 < found.ci_high
    assert found.ci_low > 0


def test_a_model_and_itself_do_not_differ():
    values = np.random.default_rng(0).random(50)
    one = replace(means("a", values), fingerprints={"model": "m", "data": "d"})
    found = compare(one, replace(one, label="b"))
    assert (found.difference, found.ci_low, found.ci_high, found.p_value) == (0, 0, 0, 1)
    assert (found.wins, found.losses, found.ties) == (0, 0, 50)


def test_noise_is_significant_as_rarely_as_promised():
    random = np.random.default_rng(1)
    p_values = []
    for _ in range(120):
        a, b = random.random((2, 60))
        p_values.append(compare(means("a", a), means("b", b)).p_value)
    assert 0.0 < np.mean(np.array(p_values) < 0.05) < 0.11
    assert 0.4 < np.mean(p_values) < 0.6


def test_the_p_value_is_that_of_scipy():
    random = np.random.default_rng(2)
    a = random.random(40)
    b = a + random.normal(0.03, 0.1, 40)
    expected = permutation_test(
        (a, b), lambda x, y: x.mean() - y.mean(), permutation_type="samples", n_resamples=20_000, rng=0
    ).pvalue
    assert compare(means("a", a), means("b", b)).p_value == pytest.approx(expected, abs=0.015)


def test_correlations_are_computed_anew_and_scales_may_differ():
    random = np.random.default_rng(3)
    truth = random.random(400)
    good, bad = truth + 0.3 * random.normal(size=400), 1000 * (truth + 1.5 * random.normal(size=400))
    found = compare(correlated("good", good, truth), correlated("bad", bad, truth))
    expected = 100 * (spearmanr(good, truth).statistic - spearmanr(bad, truth).statistic)
    assert found.difference == pytest.approx(expected, abs=1e-6)
    assert found.ci_low < expected < found.ci_high
    assert found.p_value < 0.01
    assert found.wins > found.losses
    rescaled = compare(correlated("a", good, truth), correlated("b", 7 * good - 2, truth))
    assert (rescaled.difference, rescaled.p_value) == (0, 1)


def test_average_precision_is_scikit_learns():
    random = np.random.default_rng(4)
    label, predicted = random.integers(0, 2, 80).astype(float), random.integers(0, 10, 80).astype(float)
    assert average_precision(predicted, label) == pytest.approx(average_precision_score(label, predicted))
    found = compare(
        correlated("a", label + 0.4 * random.normal(size=80), label, "average_precision"),
        correlated("b", random.random(80), label, "average_precision"),
    )
    assert found.difference > 0
    assert found.p_value < 0.05


def test_items_that_both_have_are_compared():
    assert compare(means("a", [1, 2]), means("b", [1, 2, 3])).n == 2
    with pytest.raises(ArgumentError, match="same items"):
        compare(means("a", [1, 2]), correlated("b", [1, 2], [1, 2]))


def test_pearson_does_not_see_the_scale():
    random = np.random.default_rng(6)
    truth = random.random(100)
    good, bad = truth + 0.3 * random.normal(size=100), truth + 0.7 * random.normal(size=100)
    found = compare(correlated("a", good, truth, "pearson"), correlated("b", bad, truth, "pearson"))
    rescaled = compare(correlated("a", good, truth, "pearson"), correlated("b", 0.1 * bad + 3, truth, "pearson"))
    assert found.p_value == rescaled.p_value < 0.05


def test_a_large_difference_survives_the_correction_for_many_tasks():
    random = np.random.default_rng(7)
    truth = random.random(200)
    good, bad = truth + 0.1 * random.normal(size=200), random.random(200)
    assert compare(correlated("a", good, truth), correlated("b", bad, truth)).p_value * 56 < 0.05


def test_the_conclusion_says_what_cannot_be_concluded():
    random = np.random.default_rng(5)
    task = StsTask(name="t", first=[], second=[], scores=[])
    a, b = random.random((2, 30))
    (found,) = compare_all([means("a", a), means("b", b)], {("t", "test"): task})
    assert "No difference" in found.conclusion and "Nor can it be concluded that they are equal" in found.conclusion
    (found,) = compare_all([means("a", a + 1), means("b", a)], {("t", "test"): task})
    assert found.conclusion.startswith("a is better than b on t: 100.00 points")
    pairs = compare_all([means("a", a), means("b", a), means("c", b)], {("t", "test"): task})
    assert [(pair.a, pair.b) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert "the same on every item" in pairs[0].conclusion
    assert all(pair.p_adjusted >= pair.p_value for pair in pairs)


def test_the_worst_regressions_are_listed():
    a, b = np.full(30, 0.5), np.full(30, 0.5)
    a[3], a[7], b[9] = 0.1, 0.4, 0.2
    found = compare(means("a", a), means("b", b))
    assert [change.id for change in found.regressions] == ["3", "7"]
    assert [change.id for change in found.improvements] == ["9"]
    assert (found.wins, found.losses, found.ties) == (1, 2, 27)
    assert found.regressions[0].a == pytest.approx(10)
