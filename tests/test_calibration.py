"""Tests of `verification.calibrate`: thresholds for rates, probabilities, refusals."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import verification
from siamese_jax.errors import UserError

SAME = np.array([True, True, False, False])


def of_different(different, **options):
    """A calibration whose different pairs have the given distances."""
    different = np.asarray(different)
    nearer = np.full(3, different.min() - 1, different.dtype)
    distances = np.concatenate([nearer, different])
    same = np.arange(len(distances)) < 3
    return verification.calibrate(distances, same, pairs="toy pairs", **options)


def share_let_in(k, n, num):
    """Mean of 1 - (1 - p) ** num for p ~ Beta(k, n + 1 - k), by its gamma functions."""

    def log_beta(a, b):
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    return 1 - math.exp(log_beta(k, n + 1 - k + num) - log_beta(k, n + 1 - k))


def test_thresholds_lie_just_below_the_distance_of_their_rank():
    for dtype in (np.float32, np.float64):
        different = np.random.default_rng(0).permutation(np.arange(1, 100)).astype(dtype)
        calibration = of_different(different)
        for rank in (1, 2, 10, 19):
            threshold = calibration.threshold_at(rank / 100)
            assert threshold == np.nextafter(dtype(rank), dtype(0))
        assert calibration.threshold_at(0.0999) == calibration.threshold_at(0.09)
        assert calibration.threshold_at(1.0) == np.nextafter(dtype(99), dtype(0))


def test_pairs_that_cannot_tell_a_rate_say_so():
    calibration = of_different(np.arange(1, 2001, dtype=np.float32))
    assert calibration.smallest_rate() == 1 / 2001
    assert calibration.threshold_at(5e-4) < 1
    for rate in (4.9e-4, 1e-12):
        with pytest.raises(UserError, match=r"2000 different pairs cannot tell a rate of"):
            calibration.threshold_at(rate)
    assert calibration.smallest_rate(num_comparisons=1000) == 1000 / 3000
    words = r"0.1 for 1000 comparisons; the smallest that they can tell is 0.333"
    with pytest.raises(UserError, match=words):
        calibration.threshold_at(0.1, num_comparisons=1000)
    for rate in (0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"false_match_rate must be in \(0, 1\]"):
            calibration.threshold_at(rate)
    with pytest.raises(ValueError, match="num_comparisons must be at least 1; got 0"):
        calibration.smallest_rate(num_comparisons=0)


@pytest.mark.parametrize("num_tied", [1, 2, 300, 999])
@pytest.mark.parametrize("tied", [0.0, 0.5])
def test_no_more_match_than_asked_however_many_distances_are_equal(num_tied, tied):
    rng = np.random.default_rng(num_tied)
    different = np.float32(rng.uniform(1, 2, 1000))
    different[:num_tied] = tied
    calibration = of_different(different)
    for rate in (0.001, 0.0011, 0.01, 0.299, 0.3, 0.301, 0.31, 0.5, 0.999):
        threshold = calibration.threshold_at(rate)
        assert np.mean(different <= threshold) <= rate
        # also where JAX compares, which flushes the number before 0 to 0
        assert jnp.mean(jnp.asarray(different) <= threshold) <= rate


def test_the_rank_for_many_comparisons_is_the_largest_that_keeps_the_rate():
    n = 2000
    calibration = of_different(np.arange(1, n + 1, dtype=np.float32))
    for num in (1, 2, 10, 100, 222):
        for rate in (0.01, 0.1, 0.5):
            fitting = [k for k in calibration.ranks if share_let_in(k, n, num) <= rate]
            if fitting:
                threshold = calibration.threshold_at(rate, num_comparisons=num)
                assert np.ceil(threshold) == fitting[-1]
                assert share_let_in(fitting[-1] + 1 + fitting[-1] // 15, n, num) > rate
            else:
                assert calibration.smallest_rate(num_comparisons=num) > rate


def test_the_mean_share_over_calibrations_is_what_the_formula_says():
    """Uniform distances: a threshold t lets in t, and with N comparisons 1 - (1 - t)^N."""
    rng = np.random.default_rng(0)
    for n, num, rate in ((99, 1, 0.1), (200, 10, 0.1), (1000, 100, 0.3)):
        shares = []
        for _ in range(500):
            calibration = of_different(rng.random(n))
            threshold = calibration.threshold_at(rate, num_comparisons=num)
            shares.append(1 - (1 - threshold) ** num)
        error = np.std(shares) / np.sqrt(500)
        assert rate / 1.5 <= np.mean(shares) <= rate + 3 * error


@pytest.mark.parametrize("num", [1, 2, 3, 25, 1000, 100_000])
def test_few_ranks_are_stored_and_none_far_from_the_next(num):
    calibration = of_different(np.linspace(1, 2, num))
    ranks = np.array(calibration.ranks)
    assert (ranks[0], ranks[-1]) == (1, num) == (1, calibration.num_different)
    assert len(ranks) < 240
    steps = np.diff(ranks)
    assert (steps <= 1 + 0.05 * ranks[:-1]).all()
    assert (steps[ranks[:-1] < 20] == 1).all()
    assert (np.diff(calibration.thresholds) > 0).all()


def test_calibration_by_hand():
    rng = np.random.default_rng(0)
    same = np.arange(4000) % 2 == 0
    distances = np.where(same, rng.uniform(0, 1, 4000), rng.uniform(0.5, 2.5, 4000))
    calibration = verification.calibrate(
        distances.astype(np.float32), same, pairs="toy", num_classes=7
    )
    assert calibration.pairs == "toy"
    assert (calibration.num_pairs, calibration.num_classes) == (4000, 7)
    best = verification.best_threshold(jnp.float32(distances), jnp.asarray(same))
    assert calibration.threshold == best.threshold
    assert calibration.accuracy == pytest.approx(float(best.accuracy))
    # of different distances, uniform from .5 to 2.5, a tenth lies below .7
    assert calibration.threshold_at(0.1) == pytest.approx(0.7, abs=0.03)
    assert calibration.probability_same(calibration.threshold) == 0.5
    low, high = calibration.probability_same(np.array([0.1, 2.0]))
    assert low > 0.95
    assert high < 0.05
    apart = verification.calibrate(
        distances, same, pairs="toy", different=np.array([3.0, 4.0, 5.0])
    )
    assert apart.num_different == 3
    assert 3 < apart.threshold_at(0.5) < 4
    assert verification.calibrate(distances, same, pairs="toy").num_classes is None


def test_the_scale_is_that_of_a_logistic_regression_through_the_threshold():
    rng = np.random.default_rng(0)
    distances = rng.normal(size=20_000)
    same = rng.random(20_000) < 1 / (1 + np.exp(-3 * (0.4 - distances)))
    calibration = verification.calibrate(distances, same, pairs="toy")
    assert calibration.scale == pytest.approx(3, abs=0.15)
    # the cross-entropy is no smaller for scales nearby
    scales = calibration.scale * np.array([0.98, 1.0, 1.02])
    losses = [
        -np.mean(
            np.log(
                np.where(
                    same,
                    dataclasses.replace(calibration, scale=scale).probability_same(
                        distances
                    ),
                    1
                    - dataclasses.replace(calibration, scale=scale).probability_same(
                        distances
                    ),
                )
            )
        )
        for scale in scales
    ]
    assert np.argmin(losses) == 1


@pytest.mark.parametrize("seed", range(40))
def test_the_probability_never_contradicts_the_decision(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(12, 60))
    same = np.arange(num) % int(rng.integers(2, 6)) == 0
    unit = 10.0 ** rng.integers(-30, 30)
    distances = unit * (rng.gamma(2, size=num) + np.where(same, 0, rng.uniform(1, 3)))
    distances = distances.astype(rng.choice([np.float32, np.float64]))
    calibration = verification.calibrate(distances, same, pairs="toy")
    threshold = calibration.threshold
    asked = np.concatenate(
        [
            distances,
            unit * rng.normal(size=100),
            [threshold, np.nextafter(threshold, np.inf), np.nextafter(threshold, -np.inf)],
            [-math.inf, math.inf, 0.0],
        ]
    ).astype(float)
    probability = calibration.probability_same(asked)
    np.testing.assert_array_equal(asked <= threshold, probability >= 0.5)
    assert (np.diff(calibration.probability_same(np.sort(asked))) <= 0).all()
    flat = dataclasses.replace(calibration, scale=0.0)
    np.testing.assert_array_equal(asked <= threshold, flat.probability_same(asked) >= 0.5)


def test_float64_distances_are_calibrated_in_float64():
    distances = 1 + 1e-9 * np.array([1.0, 2.0, 3.0, 4.0])
    calibration = verification.calibrate(distances, SAME, pairs="toy")
    assert distances[1] < calibration.threshold < distances[2]
    assert calibration.accuracy == 1
    assert (calibration.probability_same(distances) >= 0.5).tolist() == SAME.tolist()


@pytest.mark.parametrize("unit", [1e-300, 1e-38, 1e-20, 1.0, 1e18, 1e30, 1e300])
def test_distances_of_any_size_calibrate_alike(unit):
    distances = unit * np.array([1.0, 2.5, 2.0, 4.0])
    calibration = verification.calibrate(distances, SAME, pairs="toy")
    wanted = verification.calibrate(distances / unit, SAME, pairs="toy")
    np.testing.assert_allclose(
        calibration.probability_same(distances),
        wanted.probability_same(distances / unit),
        rtol=1e-6,
    )
    assert calibration.threshold == pytest.approx(unit * wanted.threshold)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 0.7, 1e30])
def test_a_model_that_tells_nothing_apart_is_refused(value):
    words = (
        f"toy cannot calibrate: the model tells nothing apart, all 4 distances are {value}"
    )
    with pytest.raises(UserError) as caught:
        verification.calibrate(np.full(4, value, np.float32), SAME, pairs="toy")
    assert str(caught.value).startswith(words.split("are")[0])
    assert float(str(caught.value).split()[-1]) == pytest.approx(value)


def test_a_model_without_order_is_refused():
    words = r"no nearer than different ones \(area under the ROC curve {}"
    for distances, area in (
        ([0.0, 1.0, 0.0, 1.0], "0.500"),
        ([3.0, 4.0, 1.0, 2.0], "0.000"),
        ([2.0, 2.0, 2.0, 1.0], "0.250"),
    ):
        with pytest.raises(UserError, match=words.format(area)):
            verification.calibrate(np.array(distances), SAME, pairs="toy")
    nearly = 0.7 + 1e-6 * np.array([0.0, 1.0, 1.0, 2.0])  # nearly collapsed, but in order
    assert verification.calibrate(nearly, SAME, pairs="toy").accuracy == 0.75


def test_what_cannot_calibrate_is_refused():
    with pytest.raises(UserError, match="toy cannot calibrate: 3 same, 0 different"):
        verification.calibrate(np.ones(3), np.ones(3, bool), pairs="toy")
    for infinite in (np.inf, -np.inf, np.nan):
        distances = np.array([1, infinite])
        with pytest.raises(UserError, match="1 same, 1 different, 1 distances not finite"):
            verification.calibrate(distances, np.array([True, False]), pairs="toy")
    with pytest.raises(ValueError, match=r"same must have shape \(3,\)"):
        verification.calibrate(np.ones(3), np.ones(2, bool), pairs="toy")
    with pytest.raises(TypeError, match="distances must be a floating-point array"):
        verification.calibrate(np.ones(2, int), np.ones(2, bool), pairs="toy")
    with pytest.raises(TypeError, match="same must be a boolean array"):
        verification.calibrate(np.ones(2), np.ones(2), pairs="toy")


def test_a_calibration_holds_no_nan():
    calibration = of_different(np.array([1.0, 2.0]))
    for name in ("threshold", "accuracy", "scale"):
        for value in (math.nan, math.inf):
            with pytest.raises(ValueError, match=f"{name} must be finite"):
                dataclasses.replace(calibration, **{name: value})
    with pytest.raises(ValueError, match="scale must be at least 0"):
        dataclasses.replace(calibration, scale=-1.0)
    with pytest.raises(ValueError, match="equally many; got 2 and 1"):
        dataclasses.replace(calibration, thresholds=[1.0])
