"""Each method against its formula, written once more over whole arrays in float64."""

import math

import numpy as np
import pytest
import torch

from bgekit.errors import ArgumentError
from bgekit.merging import methods
from bgekit.merging.methods import Average, Dare, Slerp, Stack, TaskArithmetic, Ties, checked_weights, drops

SHAPE = (57, 13)


def arrays(count, seed=0, shape=SHAPE):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32).astype(np.float64) for _ in range(count)]


def combined(method, models, base=None, step=10):
    def reader(array):
        return lambda rows: torch.from_numpy(array)[rows].clone()

    blocks = [slice(start, min(start + step, len(models[0]))) for start in range(0, len(models[0]), step)]
    stack = Stack("layer.weight", blocks, [reader(each) for each in models], None if base is None else reader(base))
    return torch.cat(list(method.combine(stack))).numpy()


def test_average():
    a, b, c = arrays(3)
    np.testing.assert_allclose(combined(Average((0.2, 0.3, 0.5)), [a, b, c]), 0.2 * a + 0.3 * b + 0.5 * c, rtol=1e-14)


def test_average_keeps_the_sign_of_zero():
    zeros = [np.full((2, 2), -0.0)] * 2
    assert np.signbit(combined(Average((0.5, 0.5)), zeros)).all()


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_slerp(t, shift):
    a, b = arrays(2)
    b = b + shift * a
    angle = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    expected = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    np.testing.assert_allclose(combined(Slerp((1 - t, t)), [a, b]), expected, rtol=1e-9, atol=1e-12)


def test_slerp_on_a_sphere_stays_on_it():
    a, b = (each / np.linalg.norm(each) for each in arrays(2))
    assert np.linalg.norm(combined(Slerp((0.5, 0.5)), [a, b])) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("second", [lambda a: a, lambda a: 3 * a, lambda a: -a, lambda a: 0 * a])
def test_slerp_without_an_arc_is_the_average(second):
    (a,) = arrays(1)
    np.testing.assert_allclose(combined(Slerp((0.25, 0.75)), [a, second(a)]), 0.25 * a + 0.75 * second(a), atol=1e-6)


def test_slerp_is_of_two():
    with pytest.raises(ArgumentError, match="two models"):
        Slerp((0.2, 0.3, 0.5))


def test_task_arithmetic():
    base, a, b = arrays(3)
    expected = base + 0.4 * (a - base) - 1.5 * (b - base)
    np.testing.assert_allclose(combined(TaskArithmetic((0.4, -1.5)), [a, b], base), expected, rtol=1e-12)


def brute_ties(models, base, weights, density, scale):
    trimmed = []
    for model in models:
        delta = (model - base).ravel()
        size = np.abs(delta.astype(np.float32))
        least = np.sort(size)[::-1][max(1, math.ceil(density * len(delta))) - 1]
        trimmed.append(np.where(size >= least, delta, 0))
    merged = np.zeros_like(trimmed[0])
    for place in range(len(merged)):
        values = [delta[place] for delta in trimmed]
        elected = np.sign(sum(w * value for w, value in zip(weights, values, strict=True)))
        agreeing = [(w, v) for w, v in zip(weights, values, strict=True) if elected and np.sign(v) == elected]
        if sum(w for w, _ in agreeing) > 0:
            merged[place] = sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing)
    return base + scale * merged.reshape(base.shape)


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.2, 0.0)])
def test_ties(density, weights):
    base, *models = arrays(4)
    got = combined(Ties(weights, density, 0.7), models, base)
    np.testing.assert_allclose(got, brute_ties(models, base, weights, density, 0.7), rtol=1e-12, atol=1e-15)


def test_ties_keeps_all_of_equal_changes_and_none_of_no_change():
    (base,) = arrays(1)
    np.testing.assert_allclose(combined(Ties((1.0, 1.0), 0.1), [base + 1, base + 1], base), base + 1, rtol=1e-12)
    np.testing.assert_array_equal(combined(Ties((1.0, 1.0), 0.1), [base, base], base), base)


def test_ties_does_not_hide_what_is_no_number():
    base, *models = arrays(3)
    models[1][0, 0] = np.nan
    got = combined(Ties((0.5, 0.5), 0.5), models, base)
    assert np.isnan(got[0, 0]) and np.isnan(got).sum() == 1


def test_ties_has_no_negative_votes():
    with pytest.raises(ArgumentError, match=r"ties must not be negative: 1, -0\.5"):
        Ties((1.0, -0.5))


def test_dare():
    base, a, b = arrays(3)
    expected = base.copy()
    for number, (model, weight) in enumerate(((a, 0.6), (b, 0.8))):
        kept = drops(5, number, "layer.weight").random(base.size).reshape(SHAPE) < 0.3
        expected += weight * np.where(kept, model - base, 0) / 0.3
    np.testing.assert_allclose(combined(Dare((0.6, 0.8), 0.3, 5), [a, b], base), expected, rtol=1e-12)


def test_dare_does_not_depend_on_blocks_and_does_on_the_seed():
    base, a = arrays(2)
    one = combined(Dare((1.0,), 0.5, 1), [a], base, step=3)
    np.testing.assert_array_equal(one, combined(Dare((1.0,), 0.5, 1), [a], base, step=57))
    assert (one != combined(Dare((1.0,), 0.5, 2), [a], base)).any()


def test_dare_keeps_the_mean_of_changes():
    base = np.zeros((1000, 100))
    assert combined(Dare((1.0,), 0.1, 0), [base + 1], base, step=100).mean() == pytest.approx(1, abs=0.03)


def test_dare_with_all_kept_is_task_arithmetic():
    base, a = arrays(2)
    np.testing.assert_allclose(combined(Dare((0.4,), 1.0), [a], base), base + 0.4 * (a - base), rtol=1e-12)


@pytest.mark.parametrize("density", [0.0, 1.1, -1.0])
def test_density_is_a_share(density):
    with pytest.raises(ArgumentError, match="density"):
        Ties((1.0,), density)
    with pytest.raises(ArgumentError, match="density"):
        Dare((1.0,), density)


@pytest.mark.parametrize("density", [0.0001, 0.01, 0.3, 0.99, 1.0])
def test_threshold_is_that_of_a_sort(density):
    values = np.concatenate([np.random.default_rng(0).normal(size=(5000, 1)), np.zeros((50, 1)), np.full((50, 1), 2.5)])
    blocks = [slice(start, start + 100) for start in range(0, len(values), 100)]
    got = methods._threshold(lambda rows: torch.from_numpy(values)[rows], blocks, density)
    size = np.sort(np.abs(values.astype(np.float32).ravel()))[::-1]
    assert got == size[math.ceil(density * len(size)) - 1]


# --- weights ----------------------------------------------------------------------------------------------------


def test_weights_that_sum_to_one():
    assert checked_weights([0.5, 0.5], 2) == (0.5, 0.5)
    assert math.fsum(checked_weights([0.333, 0.333, 0.333], 3)) == pytest.approx(1, abs=1e-15)
    assert checked_weights([2, 6], 2, normalize=True) == (0.25, 0.75)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([0.3, 0.3], "sum to 0.6"),
        ([0.7, 0.7], "sum to 1.4"),
        ([0.5], "1 weights for 2 models"),
        ([1.5, -0.5], "negative"),
        ([float("nan"), 1], "finite"),
        ([0, 0], "sum to 0"),
    ],
)
def test_other_weights_are_an_error(weights, words):
    with pytest.raises(ArgumentError, match=words):
        checked_weights(weights, 2)
