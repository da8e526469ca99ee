import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import permutation_test, spearmanr
from sklearn.metrics import average_precision_score

from bgekit.errors import ArgumentError, NumericalError
from bgekit.evaluation.comparison import compare, compare_all
from bgekit.evaluation.metrics import average_precision
from bgekit.evaluation.results import Result
from bgekit.evaluation.tasks.base import Items
from bgekit.evaluation.tasks.pairs import StsTask


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
    assert found.conclusion.startswith("a is better than b on t: 100.00 points of nDCG@10 (p < 0.001; ")
    # Whoever of the two is better: the interval is that of the gain.
    x, y = random.random((2, 80))
    (found,) = compare_all([means("a", x), means("b", x + 0.5 + 0.1 * y)], {("t", "test"): task})
    low, high = map(float, re.search(r"95 % interval (\S+) to (\S+)\)", found.conclusion).groups())
    assert found.conclusion.startswith("b is better") and 0 < low < -found.difference < high
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


def equal_models(count: int, items: int, random: np.random.Generator, task="t") -> list[Result]:
    base = random.normal(size=items)
    results = [means(f"m{number}", base + 0.5 * random.normal(size=items)) for number in range(count)]
    return [replace(each, task=task, fingerprints={"model": each.label}) for each in results]


def known(*names: str) -> dict:
    return {(name, "test"): StsTask(name=name, first=[], second=[], scores=[]) for name in names}


def test_six_equal_models_are_rarely_found_to_differ():
    random, wrong = np.random.default_rng(11), 0
    for seed in range(80):
        found = compare_all(equal_models(6, 60, random), known("t"), seed=seed, count=499)
        wrong += any(each.p_adjusted < 0.05 for each in found)
        assert {each.together for each in found} == {15}
    # At 5 %, more than 9 of 80 come once in 80 times; corrected by tasks alone it is some 30.
    assert wrong <= 9


def test_the_correction_counts_models_and_tasks_together():
    random = np.random.default_rng(12)
    results = [each for task in ("t", "u") for each in equal_models(3, 60, random, task)]
    found = compare_all(results, known("t", "u"))
    assert [each.over_tasks for each in found] == [0] * 6 + [2] * 3
    assert all(each.p_adjusted >= each.p_value and each.together == 9 for each in found)
    assert "corrected for 9 comparisons" in found[0].conclusion
    # It is never more careful than Holm's, which counts comparisons alone.
    smallest = min(found, key=lambda each: each.p_value)
    assert smallest.p_adjusted <= 9 * smallest.p_value + 0.01


def test_a_correction_over_many_tasks_still_finds_a_large_difference():
    random = np.random.default_rng(13)
    names = [f"t{number}" for number in range(60)]
    results = [each for name in names for each in equal_models(3, 50, random, name)]
    better = results[0].items.columns["value"] + 0.8
    results[0] = replace(results[0], items=replace(results[0].items, columns={"value": better}))
    found = compare_all(results, known(*names))
    assert [each.task for each in found if each.p_adjusted < 0.05] == ["t0", "t0"]


def test_the_mean_over_tasks_has_an_interval_and_a_test():
    random = np.random.default_rng(14)
    results = []
    for name in ("t", "u", "v"):
        a, b = equal_models(2, 80, random, name)
        results += [replace(a, items=replace(a.items, columns={"value": a.items.columns["value"] + 0.3})), b]
    *each_task, mean = compare_all(results, known("t", "u", "v"))
    assert mean.difference == pytest.approx(np.mean([each.difference for each in each_task]))
    assert mean.ci_low < 30 < mean.ci_high
    assert mean.ci_high - mean.ci_low < min(each.ci_high - each.ci_low for each in each_task)
    assert mean.p_value < 0.01 and (mean.wins + mean.losses, mean.over_tasks) == (3, 3)
    assert mean.conclusion.startswith("m0 is better than m1 on the mean over 3 tasks")
    assert [each.over_tasks for each in compare_all(results[:-1], known("t", "u", "v"))] == [0, 0]


def test_a_mean_over_a_task_of_one_number_concludes_nothing():
    random = np.random.default_rng(15)
    results = [*equal_models(2, 80, random, "t"), *equal_models(2, 1, random, "u")]
    mean = compare_all(results, known("t", "u"))[-1]
    assert (mean.p_value, mean.ci_low) == (1.0, None) and "nothing can be concluded" in mean.conclusion


def test_items_that_stand_together_count_as_one():
    random = np.random.default_rng(16)
    groups = np.repeat(np.arange(60), 5)
    wrong, alone = 0, 0
    for seed in range(60):
        a, b = random.normal(size=(2, 60))[:, groups] + 0.1 * random.normal(size=(2, 300))
        bare = [means("a", a), means("b", b)]
        own = [replace(each, items=replace(each.items, groups=groups.tolist())) for each in bare]
        found = compare(*own, seed=seed, count=199)
        assert (found.n, found.units) == (300, 60)
        wrong += found.p_value < 0.05
        alone += compare(*bare, seed=seed, count=199).p_value < 0.05
    assert wrong <= 8 < 15 < alone


def test_correlations_of_items_that_stand_together_are_exchanged_together():
    random = np.random.default_rng(17)
    groups = np.repeat(np.arange(60), 4)
    truth, noise = random.normal(size=60)[groups], random.normal(size=(2, 60))[:, groups]
    a, b = (correlated(label, truth + each, truth) for label, each in zip("ab", noise, strict=True))
    bare = compare(a, b, count=199)
    found = compare(*(replace(each, items=replace(each.items, groups=groups.tolist())) for each in (a, b)), count=199)
    assert found.units == 60 and found.difference == pytest.approx(bare.difference)
    assert found.ci_high - found.ci_low > 1.5 * (bare.ci_high - bare.ci_low)


@pytest.mark.parametrize("changed", [0, 1, 9, 10])
def test_an_interval_needs_items_on_which_the_models_differ(changed):
    a = np.zeros(50)
    a[:changed] = 1
    found = compare(replace(means("a", a), fingerprints={"model": "a"}), means("b", np.zeros(50)))
    if changed < 10:
        assert (found.ci_low, found.ci_high) == (None, None) and "too few items" in found.doubt
    else:
        assert found.ci_low < 20 < found.ci_high and not found.doubt


def test_average_precision_has_as_many_items_as_the_rarer_label():
    random = np.random.default_rng(19)
    label = (np.arange(300) % 10 == 0).astype(float)
    a, b = (correlated(name, label + random.normal(size=300), label, "average_precision") for name in "ab")
    found = compare(a, b, count=99)
    assert found.units == 300 and found.ci_low is None
    assert found.doubt == "too few items with the rarer label (30 independent ones; an interval needs 50)"


def test_intervals_of_skewed_gains_hold():
    random, held = np.random.default_rng(18), 0
    for _ in range(200):
        found = compare(means("a", np.exp(0.7 * random.normal(size=50))), means("b", np.zeros(50)), count=49)
        held += found.ci_low <= 100 * np.exp(0.245) <= found.ci_high
    # 95 % of 200 is 190; fewer than 181 come once in 200 times.
    assert held >= 181


def test_the_mean_over_tasks_has_no_interval_where_a_task_is_too_small():
    from bgekit.evaluation.evidence import contrasts, mean_contrast

    random = np.random.default_rng(0)

    def of(size: int):
        names = [str(number) for number in range(size)]
        a, b = (Items(names, "mean", {"value": random.normal(size=size)}) for _ in "ab")
        return contrasts([(a, b)], 200, random)[0]

    assert not mean_contrast([of(60), of(80)]).doubt
    small = mean_contrast([of(60), of(80), of(5)])
    assert small.doubt == "too few items in 1 of the tasks" and 0 < small.p_value <= 1


def test_what_is_no_number_is_an_error_and_no_rank():
    values = np.linspace(0, 1, 60)
    broken = values.copy()
    broken[7] = np.nan
    good, bad = means("good", values), means("bad", broken)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(NumericalError, match="bad on t: the value of 1 items is not a number, first of '7'"):
            compare(*pair)
        with pytest.raises(NumericalError):
            compare_all(pair, known("t"))
    truth = np.arange(60.0)
    with pytest.raises(NumericalError, match="bad on t: the predicted"):
        compare(correlated("good", truth, truth), correlated("bad", broken, truth))
    with pytest.raises(NumericalError, match="bad on t: ndcg_at_10 is nan"):
        compare(good, replace(means("bad", values), main_score=float("nan")))


def test_an_interval_reaches_as_far_as_the_best_weights_of_a_hybrid_may():
    """On the side of the hybrid alone, and nothing else changes: neither the difference nor its p value."""
    random = np.random.default_rng(0)
    plain, other = random.random((2, 300))
    most = plain + 0.1 * random.random(300)
    hybrid = Items([str(i) for i in range(300)], "mean", {"value": plain, "most": most})
    with_most, without = (compare(one, means("b", other)) for one in (result("a", hybrid), means("a", plain)))
    assert with_most.difference == without.difference and with_most.p_value == without.p_value
    assert with_most.ci_low == without.ci_low
    assert with_most.ci_high == compare(means("a", most), means("b", other)).ci_high > without.ci_high
    turned = compare(means("b", other), result("a", hybrid))
    assert (turned.ci_low, turned.ci_high) == (-with_most.ci_high, -with_most.ci_low)
