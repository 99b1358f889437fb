"""Tests of `episodes` and `verification` against plain loops and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from siamese_jax import episodes, samplers, verification
from siamese_jax.distances import cosine_distance_matrix
from tests.key_ledger import every_key_is_used_once

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)

# Compiled as a whole: called as they are, each of their operations is compiled by itself.
best_threshold = jax.jit(verification.best_threshold)
decision_rates = jax.jit(verification.decision_rates)
equal_error_rate = jax.jit(verification.equal_error_rate)
fit_logistic = jax.jit(verification.fit_logistic)
roc_auc = jax.jit(verification.roc_auc)
roc_curve = jax.jit(verification.roc_curve)


def test_separated_classes_are_always_recognised_and_noise_is_at_chance():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 5)
    index = samplers.class_index(labels, groups=labels // 4)
    apart = jnp.asarray(10 * np.eye(12)[labels] + rng.normal(size=(60, 12)), jnp.float32)
    kwargs = {"num_episodes": 2000, "num_ways": 4, "max_groups": 1}
    result = episodes.episode_accuracy(KEY, apart, index, **kwargs)
    assert result.mean == 1.0
    noise = jnp.asarray(rng.normal(size=(60, 3)), jnp.float32)
    result = episodes.episode_accuracy(KEY, noise, index, num_queries=2, **kwargs)
    assert result.accuracies.shape == (2000,)
    assert abs(result.mean - 0.25) < 0.06
    deviation = np.std(result.accuracies, ddof=1)
    np.testing.assert_allclose(
        result.high - result.mean, 1.96 * deviation / np.sqrt(2000), rtol=1e-4
    )
    np.testing.assert_allclose(
        result.mean - result.low, result.high - result.mean, rtol=1e-3
    )


def test_one_query_an_episode_is_right_or_wrong():
    rng = np.random.default_rng(0)
    index = samplers.class_index(np.repeat(np.arange(6), 4))
    points = jnp.asarray(rng.normal(size=(24, 2)), jnp.float32)
    kwargs = {"num_episodes": 2000, "num_ways": 5}
    one = episodes.episode_accuracy(KEY, points, index, num_query_classes=1, **kwargs)
    assert set(np.unique(one.accuracies)) == {0.0, 1.0}
    # one of the five queries of the same episodes
    all_classes = episodes.episode_accuracy(KEY, points, index, **kwargs)
    assert bool(jnp.all(one.accuracies <= 5 * all_classes.accuracies + 1e-6))
    assert abs(one.mean - all_classes.mean) < 0.04
    # a constant embedding is at chance, whichever class the query is of
    constant = episodes.episode_accuracy(
        KEY, 0 * points, index, num_query_classes=1, **kwargs
    )
    assert abs(constant.mean - 0.2) < 0.03
    assert one.high - one.mean > all_classes.high - all_classes.mean


@pytest.mark.parametrize(
    ("distances", "same"),
    [([1.0, 1.0, 1.0], [True, False, True]), ([1.0, 2.0, 3.0], [True, True, True])],
)
def test_where_the_fit_is_undefined_the_scale_is_0(distances, same):
    fit = fit_logistic(jnp.array(distances), jnp.array(same))
    assert fit.scale == 0
    assert jnp.isnan(fit.threshold)


def test_probabilities_are_those_of_a_logistic_regression():
    rng = np.random.default_rng(0)
    distances = rng.normal(size=4000)
    same = rng.random(4000) < 1 / (1 + np.exp(-3 * (0.4 - distances)))
    fit = fit_logistic(jnp.asarray(distances, jnp.float32), jnp.asarray(same))
    assert abs(fit.scale - 3) < 0.2
    assert abs(fit.threshold - 0.4) < 0.05
    # separable, and at any scale of the distances
    for unit in (1e-4, 1e4):
        apart = fit_logistic(
            unit * jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([True, True, False, False])
        )
        np.testing.assert_allclose(apart.threshold, 2.5 * unit, rtol=1e-3)
        assert 0 < apart.scale < np.inf


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(6), 4)
    index = samplers.class_index(labels)
    points = jnp.asarray(np.eye(6)[labels] + 0.6 * rng.normal(size=(24, 6)), jnp.float32)

    def accuracy(key, num_episodes):
        return episodes.episode_accuracy(
            key, points, index, num_episodes=num_episodes, num_ways=3
        )

    truth = accuracy(jax.random.key(9), 40_000).mean
    results = jax.jit(jax.vmap(lambda key: accuracy(key, 200)[:3]))(
        jax.random.split(jax.random.key(2), 200)
    )
    covered = (results[1] <= truth) & (truth <= results[2])
    assert 0.90 <= covered.mean() <= 0.99


def test_other_distances_and_more_shots():
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(5), 8)
    directions = rng.normal(size=(5, 4))
    points = directions[labels] * rng.uniform(0.1, 10, size=(40, 1))
    result = episodes.episode_accuracy(
        KEY,
        jnp.asarray(points + 0.01 * rng.normal(size=points.shape), jnp.float32),
        samplers.class_index(labels),
        num_episodes=200,
        num_ways=5,
        num_shots=5,
        num_queries=3,
        matrix_fn=cosine_distance_matrix,
    )
    assert result.mean > 0.98


def test_no_key_of_an_episode_is_used_twice(monkeypatch):
    monkeypatch.setattr(
        episodes.accuracy, "_EPISODES_AT_ONCE", 3
    )  # no padding, which repeats keys
    index = samplers.class_index(np.repeat(np.arange(4), 3))
    embeddings = jnp.arange(12.0)[:, None]
    with every_key_is_used_once():
        episodes.episode_accuracy(
            KEY, embeddings, index, num_episodes=3, num_ways=3, num_query_classes=1
        )


def test_nan_embeddings_are_not_silent():
    labels = np.repeat(np.arange(3), 2)
    embeddings = jnp.ones((6, 2)).at[0].set(jnp.nan)
    index = samplers.class_index(labels)
    result = episodes.episode_accuracy(KEY, embeddings, index, num_episodes=20, num_ways=3)
    assert np.isnan(result.mean)
    support = jnp.ones((2, 1, 2))
    assert episodes.classify(support, jnp.full((1, 2), jnp.nan))[0] == -1


def example_pairs(seed, num=300, ties=True):
    rng = np.random.default_rng(seed)
    same = rng.random(num) < 0.4
    distances = rng.normal(size=num) + np.where(same, 0.0, 1.0)
    if ties:
        distances = np.round(distances, 1)
    return np.float32(distances), same, np.float32(rng.uniform(0.2, 2, size=num))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weighted", [False, True])
def test_roc_auc_equals_scikit_learn(seed, weighted):
    distances, same, weights = example_pairs(seed)
    weights = weights if weighted else None
    found = roc_auc(
        jnp.asarray(distances),
        jnp.asarray(same),
        weights=None if weights is None else jnp.asarray(weights),
    )
    wanted = metrics.roc_auc_score(same, -distances, sample_weight=weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_roc_curve_passes_through_scikit_learn_s_points():
    distances, same, _ = example_pairs(0)
    curve = roc_curve(jnp.asarray(distances), jnp.asarray(same))
    false, true, _ = metrics.roc_curve(same, -distances, drop_intermediate=False)
    found = np.unique(np.stack([curve.false_match_rate, curve.true_match_rate]), axis=1)
    wanted = np.unique(np.float32(np.stack([false, true])), axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_threshold_rates_equal_scikit_learn():
    distances, same, _ = example_pairs(1)
    rates = decision_rates(jnp.asarray(distances), jnp.asarray(same), 0.5)
    called = distances <= 0.5
    np.testing.assert_allclose(
        rates.accuracy, metrics.accuracy_score(same, called), rtol=1e-6
    )
    np.testing.assert_allclose(
        rates.precision, metrics.precision_score(same, called), rtol=1e-6
    )
    np.testing.assert_allclose(rates.recall, metrics.recall_score(same, called), rtol=1e-6)


def test_error_rates_are_equal_at_the_equal_error_rate():
    distances, same, _ = example_pairs(2, num=4000, ties=False)
    rate = float(equal_error_rate(jnp.asarray(distances), jnp.asarray(same)))
    false, true, _ = metrics.roc_curve(same, -distances, drop_intermediate=False)
    nearest = np.argmin(np.abs((1 - true) - false))
    assert abs(rate - false[nearest]) < 1e-3


def test_perfect_and_inverted_distances():
    distances = jnp.array([0.1, 0.2, 0.8, 0.9])
    same = jnp.array([True, True, False, False])
    assert equal_error_rate(distances, same) == 0
    assert roc_auc(distances, same) == 1
    assert roc_auc(distances, ~same) == 0
    assert equal_error_rate(distances, ~same) == 1
    best = best_threshold(distances, same)
    np.testing.assert_allclose(best, (0.5, 1.0))


def test_no_threshold_beats_the_best_one():
    for seed in range(5):
        distances, same, _ = example_pairs(seed, num=60)
        best = best_threshold(jnp.asarray(distances), jnp.asarray(same))
        every = np.concatenate([distances, [distances.min() - 1]])
        accuracies = [((distances <= t) == same).mean() for t in every]
        np.testing.assert_allclose(best.accuracy, max(accuracies), rtol=1e-6)
        again = decision_rates(jnp.asarray(distances), jnp.asarray(same), best.threshold)
        np.testing.assert_allclose(again.accuracy, best.accuracy, rtol=1e-6)


@pytest.mark.parametrize("same", [True, False])
def test_one_sided_sets_choose_the_trivial_threshold(same):
    distances = jnp.array([0.5, 0.7])
    best = best_threshold(distances, jnp.array([same, same]))
    assert best.accuracy == 1
    assert (distances <= best.threshold).all() == same


def test_a_rate_over_nothing_is_nan():
    distances, none = jnp.array([0.5, 0.7]), jnp.array([False, False])
    rates = decision_rates(distances, none, 0.1)
    assert rates.accuracy == 1
    assert np.isnan(rates.precision)
    assert np.isnan(rates.recall)
    assert np.isnan(roc_auc(distances, none))
    assert np.isnan(equal_error_rate(distances, none))


def test_an_evaluated_threshold_has_both_accuracies():
    distances, same, _ = example_pairs(3)
    validation = jnp.asarray(distances), jnp.asarray(same)
    distances, same, _ = example_pairs(4)
    test = jnp.asarray(distances), jnp.asarray(same)
    result = verification.evaluate_threshold(validation, test)
    best = best_threshold(*validation)
    assert result.threshold == best.threshold
    assert result.validation_accuracy == best.accuracy
    np.testing.assert_allclose(
        result.test_accuracy,
        ((distances <= float(best.threshold)) == same).mean(),
        rtol=1e-6,
    )


def test_bootstrap_is_wider_over_identities_than_over_pairs():
    """Each identity has its own offset, so its pairs move together."""
    rng = np.random.default_rng(5)
    identities = rng.integers(20, size=(2, 2000))
    identities[1, ::2] = identities[0, ::2]
    same = identities[0] == identities[1]
    offset = rng.normal(size=20)
    distances = offset[identities[0]] + np.where(same, 0, 1.5) + 0.3 * rng.normal(size=2000)

    def width(identities, num_identities):
        low, high = verification.bootstrap_interval(
            KEY,
            verification.roc_auc,
            jnp.asarray(distances, jnp.float32),
            jnp.asarray(same),
            jnp.asarray(identities),
            num_identities=num_identities,
            num_samples=200,
        )
        area = roc_auc(jnp.asarray(distances, jnp.float32), jnp.asarray(same))
        assert low < area < high
        return high - low

    alone = np.stack([np.arange(2000), np.arange(2000)])
    assert width(identities, 20) > 2 * width(alone, 2000)


def test_bootstrap_weighs_pairs_by_how_often_both_are_drawn():
    """Against the same draws, counted by hand."""
    rng = np.random.default_rng(6)
    identities = rng.integers(8, size=(2, 60))
    identities[1, ::3] = identities[0, ::3]
    same = identities[0] == identities[1]
    distances = np.float32(rng.normal(size=60) + np.where(same, 0, 1))
    low, high = verification.bootstrap_interval(
        KEY,
        verification.roc_auc,
        jnp.asarray(distances),
        jnp.asarray(same),
        jnp.asarray(identities),
        num_identities=8,
        num_samples=40,
        level=0.8,
    )
    areas = []
    for key in jax.random.split(KEY, 40):
        drawn = np.asarray(jax.random.randint(key, (8,), 0, 8)).tolist()
        weights = [
            drawn.count(a) * (1 if a == b else drawn.count(b)) for a, b in identities.T
        ]
        counted = np.array(weights) > 0
        areas.append(
            metrics.roc_auc_score(
                same[counted], -distances[counted], sample_weight=np.array(weights)[counted]
            )
        )
    np.testing.assert_allclose([low, high], np.quantile(areas, [0.1, 0.9]), rtol=1e-4)


def test_bootstrap_hides_neither_nan_nor_an_unknown_identity():
    distances, same, _ = example_pairs(7, num=50)
    identities = jnp.asarray(np.random.default_rng(0).integers(5, size=(2, 50)))

    def interval(distances, identities):
        return verification.bootstrap_interval(
            KEY,
            verification.roc_auc,
            jnp.asarray(distances),
            jnp.asarray(same),
            identities,
            num_identities=5,
            num_samples=20,
        )

    assert np.isfinite(interval(distances, identities)).all()
    broken = distances.copy()
    broken[3] = np.nan
    assert np.isnan(interval(broken, identities)).all()
    assert np.isnan(interval(distances, identities.at[0, 0].set(5))).all()


@pytest.mark.parametrize("same", [True, False])
def test_thresholds_hold_where_the_smallest_distance_is_zero(same):
    distances, labels = jnp.array([0.0, 0.0, 0.5]), jnp.array([same] * 3)
    best = best_threshold(distances, labels)
    again = decision_rates(distances, labels, best.threshold)
    assert again.accuracy == best.accuracy == 1
    assert roc_curve(distances, labels).thresholds[0] < 0


def test_the_best_threshold_holds_between_neighbouring_numbers():
    distances = jnp.array([1 + 2**-23, 1 + 2**-22], jnp.float32)
    same = jnp.array([True, False])
    best = best_threshold(distances, same)
    assert decision_rates(distances, same, best.threshold).accuracy == 1


def test_no_pairs_are_nan_or_refused():
    same, where = jnp.array([True, False]), jnp.zeros(2, bool)
    best = best_threshold(jnp.ones(2), same, where=where)
    assert np.isnan(best).all()
    with pytest.raises(ValueError, match="number of distances must be at least 1"):
        verification.best_threshold(jnp.ones(0), jnp.ones(0, bool))


def test_weights_may_be_nan_or_negative_but_never_ignored():
    distances, same = jnp.array([0.1, 0.2, 0.3]), jnp.array([True, False, True])
    weights = jnp.array([jnp.nan, 1.0, 1.0])
    assert np.isnan(roc_auc(distances, same, weights=weights))


def test_episodes_of_the_same_rank_are_classified_like_any_other():
    labels = np.repeat(np.arange(5), 4)
    drawers = np.tile(np.arange(4), 5)
    # the drawer dominates: among candidates of one drawer the letter still decides
    points = np.concatenate([np.eye(5)[labels], 10 * np.eye(4)[drawers]], axis=1)
    result = episodes.episode_accuracy(
        KEY,
        jnp.asarray(points, jnp.float32),
        samplers.class_index(labels),
        num_episodes=100,
        num_ways=5,
        same_rank=True,
    )
    assert result.mean == 1
