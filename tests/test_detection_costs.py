"""Tests of detection costs and reliability against scikit-learn, and of extreme values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import isotonic, metrics
from sklearn.calibration import calibration_curve as sklearn_curve

from siamese_jax import verification

det_curve = jax.jit(verification.det_curve)
cllr, min_cllr = jax.jit(verification.cllr), jax.jit(verification.min_cllr)
min_dcf, actual_dcf = jax.jit(verification.min_dcf), jax.jit(verification.actual_dcf)
BINS = ("num_bins", "equal_mass")
calibration_curve = jax.jit(verification.calibration_curve, static_argnames=BINS)
expected_calibration_error = jax.jit(
    verification.expected_calibration_error, static_argnames=BINS
)
INF = np.float32(np.inf)


def random_pairs(seed, num=300, decimals=1):
    rng = np.random.default_rng(seed)
    same = rng.random(num) < 0.4
    distances = np.float32(np.round(rng.normal(size=num) + np.where(same, 0, 1), decimals))
    return distances, same, np.float32(rng.uniform(0.1, 3, size=num))


def test_the_det_curve_has_the_points_of_scikit_learn():
    for seed in range(5):
        distances, same, weights = random_pairs(seed)
        found = det_curve(distances, same, weights=weights)
        false, missed, thresholds = metrics.det_curve(
            same, -distances, sample_weight=weights
        )
        place = np.searchsorted(found.thresholds[1:], -thresholds, side="right")
        np.testing.assert_allclose(found.false_match_rate[place], false, atol=2e-6)
        np.testing.assert_allclose(found.false_non_match_rate[place], missed, atol=2e-6)
    assert found.false_match_deviate[0] == -INF
    assert found.false_non_match_deviate[0] == INF
    deviates = det_curve(jnp.array([0.0, 1.0]), jnp.array([False, False]))[3]
    np.testing.assert_array_equal(deviates, [-INF, 0, INF])


def test_the_smallest_log_ratio_cost_is_that_of_isotonic_regression():
    for seed in range(5):
        distances, same, weights = random_pairs(seed, decimals=1 + seed % 3)
        fit = isotonic.IsotonicRegression(increasing=False, out_of_bounds="clip")
        share = fit.fit(distances, same, sample_weight=weights).predict(distances)
        prior = np.average(same, weights=weights)
        with np.errstate(divide="ignore"):
            ratios = np.log(share / (1 - share)) - np.log(prior / (1 - prior))
        wanted = cllr(np.float32(ratios), same, weights=weights)
        found = min_cllr(distances, same, weights=weights)
        assert found == pytest.approx(float(wanted), abs=1e-5)
        assert 0 < found < cllr(-distances, same, weights=weights)


def test_the_order_alone_decides_the_smallest_costs():
    same = jnp.array([True, True, False, False])
    for distances in ([1, 2, 3, 4], [-INF, 0, 1, INF], [1, 1, 2, 2]):
        distances = jnp.float32(jnp.array(distances))
        assert min_cllr(distances, same) == 0
        assert min_dcf(distances, same).cost == 0
        assert min_cllr(distances, ~same) == pytest.approx(1, abs=1e-6)
        assert min_dcf(distances, ~same).cost == 1
    # in float64 alone
    close = 1 + 1e-9 * np.arange(4)
    assert verification.min_cllr(close, np.asarray(same)) == 0
    with pytest.raises(ValueError, match="distances must differ in float32"):
        verification.min_dcf(close, np.asarray(same))


def test_costs_of_infinite_and_of_useless_ratios():
    same = jnp.array([True, False, True, False])
    right = jnp.array([INF, -INF, INF, -INF])
    assert cllr(right, same) == 0
    assert actual_dcf(right, same) == 0
    assert cllr(-right, same) == INF
    # all are called different: the costs of all false alarms are 99 times as high
    assert actual_dcf(jnp.zeros(4), same) == 1
    assert actual_dcf(-right, same) == pytest.approx(1 + 99)
    assert cllr(jnp.zeros(4), same) == 1
    where = jnp.array([True, True, True, False])
    assert cllr(right.at[3].set(INF), same, where=where) == 0
    # a pair at the threshold is called the same
    even = verification.actual_dcf(jnp.zeros(4), same, p_target=0.5)
    assert even == 1


@pytest.mark.parametrize("kind", [True, False])
def test_costs_of_one_kind_of_pairs_are_undefined(kind):
    distances, same = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.full(4, kind)
    for fn in (cllr, min_cllr, actual_dcf, lambda *pairs: min_dcf(*pairs).cost):
        assert np.isnan(fn(distances, same))
        assert np.isnan(fn(distances.at[1].set(jnp.nan), same.at[0].set(not kind)))
    assert np.isnan(min_dcf(distances, same).threshold)


# Reliability --------------------------------------------------------------------------


def probabilities(seed, num=300):
    rng = np.random.default_rng(seed)
    values = np.float32(rng.random(num))
    return values, rng.random(num) < values


@pytest.mark.parametrize("equal_mass", [False, True])
def test_the_calibration_curve_is_that_of_scikit_learn(equal_mass):
    for seed in range(4):
        values, same = probabilities(seed)
        found = calibration_curve(
            jnp.asarray(values), jnp.asarray(same), equal_mass=equal_mass
        )
        frequency, probability = sklearn_curve(
            same, values, n_bins=10, strategy="quantile" if equal_mass else "uniform"
        )
        np.testing.assert_allclose(found.probability, probability, rtol=1e-5)
        np.testing.assert_allclose(found.frequency, frequency, rtol=1e-5)
        assert np.sum(found.share) == pytest.approx(1)
        if equal_mass:
            np.testing.assert_allclose(found.share, 0.1, rtol=1e-6)
        error = expected_calibration_error(
            jnp.asarray(values), jnp.asarray(same), equal_mass=equal_mass
        )
        wanted = np.sum(np.asarray(found.share) * abs(frequency - probability))
        assert error == pytest.approx(wanted, rel=1e-5)


def test_probabilities_at_the_edges_of_bins():
    values = jnp.array([0.0, 0.25, 0.5, 0.50001, 1.0])
    same = jnp.array([False, False, False, True, True])
    found = calibration_curve(values, same, num_bins=2)
    np.testing.assert_allclose(found.share, [0.6, 0.4])
    np.testing.assert_allclose(found.probability, [0.25, 0.750005])
    np.testing.assert_array_equal(found.frequency, [0, 1])
    ties = calibration_curve(jnp.full(4, 0.5), same[:4], equal_mass=True)
    np.testing.assert_array_equal(ties.share[:1], 1)
    assert np.isnan(ties.probability[1:]).all()


def test_what_is_no_probability_makes_the_error_nan():
    same = jnp.array([True, False])
    for value in (-0.1, 1.1, np.nan, np.inf):
        values = jnp.array([0.5, value])
        assert np.isnan(expected_calibration_error(values, same))
        only = jnp.array([True, False])
        found = expected_calibration_error(values, same, where=only)
        assert found == 0.5
