"""Tests of ROC curves as other programs use them, of float64 scores, and of magnitudes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn import metrics

from siamese_jax import verification

pytestmark = pytest.mark.slow

roc_curve, roc_auc = jax.jit(verification.roc_curve), jax.jit(verification.roc_auc)
equal_error_rate = jax.jit(verification.equal_error_rate)
fit_logistic = jax.jit(verification.fit_logistic)


def random_pairs(seed, num=512):
    rng = np.random.default_rng(seed)
    same = rng.random(num) < 0.5
    distances = np.float32(rng.normal(size=num) + np.where(same, 0, 1))
    weights = np.float32(rng.uniform(0.1, 3, size=num))
    return distances, same, weights, rng.random(num) < 0.8


@pytest.mark.parametrize("options", [(), ("weights",), ("where",), ("where", "weights")])
def test_scikit_learn_and_scipy_accept_the_curve(options):
    for seed in range(60):
        distances, same, weights, where = random_pairs(seed)
        given = {"weights": weights, "where": where}
        given = {name: given[name] for name in options}
        curve = roc_curve(distances, same, **given)
        false, true = np.asarray(curve.false_match_rate), np.asarray(curve.true_match_rate)
        for rate in (false, true):
            assert (np.diff(rate) >= 0).all()
            assert (rate[0], rate[-1]) == (0, 1)
        counted = given.get("where", np.ones(512, bool))
        wanted = metrics.roc_auc_score(
            same[counted],
            -distances[counted],
            sample_weight=weights[counted] if "weights" in given else None,
        )
        assert metrics.auc(false, true) == pytest.approx(wanted, abs=2e-5)
        assert roc_auc(distances, same, **given) == pytest.approx(wanted, abs=2e-5)
        assert 0 < brentq(lambda x, c=curve: 1 - x - np.interp(x, c[1], c[2]), 0, 1) < 0.5
        place, excess = np.arange(513), 1.0 - true - false
        root = brentq(np.interp, 0, 512, args=(place, excess))
        found = equal_error_rate(distances, same, **given)
        assert found == pytest.approx(np.interp(root, place, false), abs=1e-6)


@pytest.mark.parametrize("num", [2, 7, 100, 999, 12_345])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_perfect_split_is_exactly_1_and_the_reverse_exactly_0(num, weighted):
    rng = np.random.default_rng(num)
    same = rng.random(num) < 0.37
    same[:2] = True, False
    distances = jnp.float32(rng.random(num) + np.where(same, 0, 2))
    weights = jnp.float32(rng.uniform(0.1, 3, size=num)) if weighted else None
    assert roc_auc(distances, jnp.asarray(same), weights=weights) == 1
    assert roc_auc(distances, jnp.asarray(~same), weights=weights) == 0
    assert equal_error_rate(distances, jnp.asarray(same), weights=weights) == 0


def test_masked_pairs_count_nothing_at_all():
    distances, same, weights, where = random_pairs(1)
    for given in ({}, {"weights": weights}):
        kept = {name: value[where] for name, value in given.items()}
        masked = roc_curve(distances, same, where=where, **given)
        alone = roc_curve(distances[where], same[where], **kept)
        for a, b in zip(masked, alone, strict=True):
            np.testing.assert_allclose(a[: len(b)], b, rtol=1e-5)
    moved = np.where(where, distances, np.float32(-9))
    np.testing.assert_array_equal(
        roc_auc(moved, ~where | same, where=where),
        roc_auc(distances, same, where=where),
    )


def test_curves_of_many_sets_at_once():
    distances, same, weights, _ = random_pairs(2, num=60)
    many = distances.reshape(3, 20), same.reshape(3, 20), weights.reshape(3, 20)
    found = jax.vmap(lambda d, s, w: roc_auc(d, s, weights=w))(*map(jnp.asarray, many))
    wanted = [roc_auc(d, s, weights=w) for d, s, w in zip(*many, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("weight", [np.nan, -1.0])
def test_a_weight_without_a_meaning_makes_every_figure_nan(weight):
    distances, same = jnp.array([0.1, 0.2, 0.3]), jnp.array([True, False, True])
    weights = jnp.array([weight, 1.0, 1.0])
    assert np.isnan(roc_auc(distances, same, weights=weights))
    assert np.isnan(verification.best_threshold(distances, same, weights=weights)).all()
    broken = distances.at[0].set(jnp.nan)
    assert np.isnan(roc_auc(broken, same))
    assert np.isnan(equal_error_rate(broken, same))
    assert np.isnan(verification.decision_rates(broken, same, 0.1)).all()
    assert np.isnan(verification.decision_rates(distances, same, jnp.nan)).all()


# float64 arrays of NumPy ------------------------------------------------------------------


@pytest.mark.parametrize(
    "distances",
    [
        1 + 1e-9 * np.arange(6),
        1e-60 * np.arange(6),
        1e60 * (1.0 + np.arange(6)),
        1e-40 * np.arange(6),  # subnormal in float32
    ],
)
def test_figures_of_order_keep_the_order_of_float64(distances):
    same = np.arange(6) < 3
    assert verification.roc_auc(distances, same) == 1
    assert verification.roc_auc(distances, ~same) == 0
    assert verification.equal_error_rate(distances, same) == 0
    mixed = np.array([True, False, True, False, True, False])
    weights, where = np.array([1.0, 2, 3, 4, 5, 6]), np.array([True] * 5 + [False])
    found = verification.roc_auc(distances, mixed, weights=weights, where=where)
    wanted = metrics.roc_auc_score(mixed[:5], -np.arange(5), sample_weight=np.arange(1, 6))
    assert found == pytest.approx(wanted)
    broken = np.append(distances, np.nan)
    assert np.isnan(verification.roc_auc(broken, np.append(same, True)))


def test_equal_float64_distances_stay_equal():
    distances = 1 + 1e-9 * np.array([0.0, 1.0, 1.0, 2.0])
    same = np.array([True, True, False, False])
    assert verification.roc_auc(distances, same) == 0.875


def test_thresholds_of_float64_distances_are_exact_or_refused():
    same = np.arange(4) < 2
    close, apart = 1 + 1e-9 * np.arange(4), np.arange(4.0)
    words = "distances.* must differ in float32 where they differ in float64; 3 of . become"
    identities = np.array([[0, 1, 0, 1], [0, 1, 1, 0]])

    def bootstrap(distances, same):
        return verification.bootstrap_interval(
            jax.random.key(0),
            verification.roc_auc,
            distances,
            same,
            identities,
            num_identities=2,
            num_samples=2,
        )

    for fn in (
        verification.roc_curve,
        verification.best_threshold,
        verification.fit_logistic,
        bootstrap,
        lambda d, s: verification.decision_rates(d, s, 1.0),
        lambda d, s: verification.evaluate_threshold((d, s), (d, s)),
        lambda d, s: verification.evaluate_threshold((apart, s), (d, s)),
    ):
        fn(apart, same)
        with pytest.raises(ValueError, match=words):
            fn(close, same)
    with pytest.raises(ValueError, match="1 of 5 become equal to others or infinite"):
        verification.decision_rates(apart, same, 1 + 1e-9)
    assert verification.decision_rates(apart, same, 1.0).accuracy == 1


# Magnitudes -------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [2e-38, 1e-30, 1e-20, 1e-4, 1e4, 1e10, 1e18, 1e30, 2e37])
@pytest.mark.parametrize("shift", [0.0, 100.0, -100.0])
def test_a_logistic_fit_does_not_depend_on_scale_and_shift(unit, shift):
    distances = np.array([1.0, 2.0, 2.5, 3.0, 3.5, 4.0])
    same = jnp.array([True, True, False, True, False, False])
    wanted = fit_logistic(jnp.float32(distances), same)
    shift *= unit < 1e35  # else it would be infinite
    found = fit_logistic(jnp.float32(unit * (distances + shift)), same)
    assert float(found.threshold) / unit - shift == pytest.approx(
        float(wanted.threshold), rel=1e-3, abs=1e-2
    )
    assert float(found.scale) * unit == pytest.approx(float(wanted.scale), rel=1e-2)


@pytest.mark.parametrize("unit", [2e-38, 1e-20, 1.0, 1e18, 1e30])
def test_a_logistic_fit_ignores_masked_distances_of_other_magnitudes(unit):
    same = jnp.array([True, True, False, False, True])
    where = jnp.array([True, True, True, True, False])
    distances = jnp.float32(unit * np.array([1.0, 3.0, 2.0, 4.0, 0.0])).at[4].set(3e38)
    found = fit_logistic(distances, same, where=where)
    assert float(found.threshold) / unit == pytest.approx(2.5, rel=1e-3)
    assert 0 < found.scale < np.inf
