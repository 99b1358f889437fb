"""Tests of folds, open-set identification, score normalisation and templates by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import verification
from siamese_jax.verification import open_set_trials
from tests.contract import as_for_a_user

fold_accuracy = jax.jit(verification.fold_accuracy, static_argnames="num_folds")
open_set_rates = jax.jit(verification.open_set_rates, static_argnums=2)

# Folds --------------------------------------------------------------------------------


def test_a_fold_does_not_choose_its_own_threshold():
    # the best threshold of either fold is wrong for half of the other
    distances = jnp.array([1.0, 2.0, 4.0, 3.0, 4.5, 6.0])
    same = jnp.array([True, False, False, True, True, False])
    found = fold_accuracy(distances, same, jnp.array([0, 0, 0, 1, 1, 1]), num_folds=2)
    np.testing.assert_array_equal(found.thresholds, [5.25, 1.5])
    np.testing.assert_allclose(found.accuracies, [1 / 3, 1 / 3], rtol=1e-6)
    assert found.standard_error == pytest.approx(0, abs=1e-7)


@pytest.mark.slow
def test_folds_as_for_labeled_faces():
    rng = np.random.default_rng(0)
    same = np.tile(np.repeat([True, False], 30), 10)
    distances = np.float32(rng.normal(size=600) + np.where(same, 0, 2))
    folds = np.repeat(np.arange(10), 60)
    found = fold_accuracy(distances, same, folds)
    accuracies = []
    for fold in range(10):
        test, train = folds == fold, folds != fold
        best = verification.best_threshold(distances[train], same[train]).threshold
        accuracies.append(np.mean((distances[test] <= best) == same[test]))
    np.testing.assert_allclose(found.accuracies, accuracies, rtol=1e-6)
    assert found.mean == pytest.approx(np.mean(accuracies), rel=1e-6)
    error = np.std(accuracies, ddof=1) / np.sqrt(10)
    assert found.standard_error == pytest.approx(error, rel=1e-5)


def test_an_empty_fold_an_unknown_one_and_a_nan_are_not_hidden():
    distances, same = jnp.array([1.0, 3.0, 1.0, 3.0]), jnp.array([True, False] * 2)
    folds = jnp.array([0, 0, 1, 1])
    empty = fold_accuracy(distances, same, folds, num_folds=3)
    assert np.isnan(empty.accuracies).tolist() == [False, False, True]
    assert np.isnan(empty.mean)
    for broken in (
        (distances, same, folds.at[0].set(2)),
        (distances, same, folds.at[0].set(-1)),
        (distances.at[0].set(jnp.nan), same, folds),
    ):
        assert np.isnan(fold_accuracy(*broken, num_folds=2).accuracies).all()


def test_an_identity_in_two_folds_is_named():
    folds = np.array([0, 0, 1])
    verification.check_disjoint_folds(folds, np.array([[1, 2, 3], [2, 1, 4]]))
    with pytest.raises(ValueError, match="1 of 3 are in several, first identity 2"):
        verification.check_disjoint_folds(folds, np.array([[1, 2, 3], [2, 1, 2]]))
    with (
        as_for_a_user(),
        pytest.raises(ValueError, match=r"identities must have shape \(2, 3\)"),
    ):
        verification.check_disjoint_folds(folds, np.array([1, 2, 3]))
    with as_for_a_user(), pytest.raises(TypeError, match="identities must be an integer"):
        verification.check_disjoint_folds(folds, np.ones((2, 3)))


# Open sets ----------------------------------------------------------------------------


def open_set(seed=0, mated=30, strangers=20, size=50):
    """One gallery entry of each class; queries differ in how near they are to all."""
    rng = np.random.default_rng(seed)
    distances = np.float32(1 + rng.random((mated + strangers, size)))
    same = np.zeros(distances.shape, bool)
    classes = rng.integers(size, size=mated)
    same[np.arange(mated), classes] = True
    distances[np.arange(mated), classes] -= np.float32(rng.random(mated))
    distances[mated:] -= np.float32(rng.random((strangers, 1)) * 0.8)
    return jnp.asarray(distances), jnp.asarray(same)


def test_a_stranger_counts_with_its_nearest_entry():
    """Flattened, the strangers are 1,000 pairs, which let in four times as many of them."""
    distances, same = open_set()
    found = open_set_rates(distances, same, (0.1,))
    nearest = np.asarray(distances)[30:].min(axis=1)
    assert np.mean(nearest <= found.thresholds[0]) == pytest.approx(0.1)
    assert found.false_alarm_rate[0] == pytest.approx(0.1)
    flattened = verification.operating_points(
        distances[30:].reshape(-1), same[30:].reshape(-1), [0.1]
    )
    assert np.mean(nearest <= flattened.thresholds[0]) > 0.3


def test_the_rate_is_over_strangers_not_over_all_queries():
    """A tenth of all 50 queries would be 5 strangers of 20."""
    distances, same = open_set()
    found = open_set_rates(distances, same, (0.1,))
    nearest = np.sort(np.asarray(distances)[30:].min(axis=1))
    assert nearest[1] <= found.thresholds[0] < nearest[2]


def test_identified_are_those_of_the_right_class_and_near_enough():
    distances, same = open_set()
    found = open_set_rates(distances, same, (0.0, 0.25, 0.9))
    d, s = np.asarray(distances)[:30], np.asarray(same)[:30]
    right = s[np.arange(30), d.argmin(axis=1)]
    for threshold, rate in zip(found.thresholds, found.identification_rate, strict=True):
        assert rate == pytest.approx(np.mean(right & (d.min(axis=1) <= threshold)))
    assert found.identification_rate[0] < found.identification_rate[2] <= right.mean()


def test_ties_masks_and_galleries_of_one_kind_of_query():
    same = jnp.array([[True, False], [False, False]])
    tie = open_set_trials(jnp.array([[1.0, 1.0], [2.0, 3.0]]), same)
    assert tie.distances.tolist() == [np.inf, 2]
    assert tie.mated.tolist() == [True, False]
    # without its mate, the first query is a stranger; without entries, it is nothing
    hidden = open_set_trials(jnp.array([[1.0, 1.5], [2.0, 3.0]]), same, where=~same)
    assert hidden.distances.tolist() == [1.5, 2]
    assert not hidden.mated.any()
    none = open_set_rates(
        jnp.array([[jnp.nan, 1.0], [2.0, 3.0]]),
        same,
        (0.0,),
        where=jnp.array([[False, False], [True, True]]),
    )
    assert (none.thresholds[0] < 2, none.false_alarm_rate[0]) == (True, 0)
    assert np.isnan(none.identification_rate)
    mated = open_set_rates(jnp.array([[1.0, 1.5]]), same[:1], (0.0,))
    assert np.isnan(mated).all()
    far = jnp.array([[-jnp.inf, jnp.inf], [jnp.inf, jnp.inf]])
    assert open_set_rates(far, same, (0.0,)).identification_rate == 1


# Score normalisation ------------------------------------------------------------------


def test_normalised_matrices_are_those_of_pairs():
    rng = np.random.default_rng(0)
    distances, first, second = (
        jnp.float32(rng.normal(size=size)) for size in ((3, 4), (3, 9), (4, 9))
    )
    matrix = verification.as_norm(distances, first, second, num_nearest=5)
    rows, columns = np.indices((3, 4)).reshape(2, -1)
    flat = verification.as_norm(
        distances.reshape(-1), first[rows], second[columns], num_nearest=5
    )
    np.testing.assert_allclose(matrix.reshape(-1), flat, rtol=1e-5, atol=1e-6)
    square = verification.as_norm(distances @ distances.T, first, first)
    np.testing.assert_allclose(square, square.T, rtol=1e-5)


def test_a_cohort_that_says_nothing_gives_nan():
    distances = jnp.ones(5)
    cohort = jnp.array(
        [[1.0, 1, 1], [1, jnp.nan, 2], [1, -jnp.nan, 2], [1, jnp.inf, 2], [1, 2, 3]]
    )
    found = verification.z_norm(distances, cohort)
    assert np.isnan(found).tolist() == [True, True, True, True, False]
    # an infinite one is not among the nearest two
    nearest = verification.z_norm(distances, cohort, num_nearest=2)
    assert np.isnan(nearest).tolist() == [True, True, True, False, False]


# Templates ----------------------------------------------------------------------------


def test_a_long_video_counts_as_much_as_a_photo():
    frames = jnp.array([[1.0, 0.0]] * 9 + [[0.0, 1.0], [3.0, 4.0]])
    templates = jnp.array([0] * 10 + [1])
    pool = jax.jit(verification.pool_templates, static_argnames="num_templates")
    media = jnp.array([7] * 9 + [8, 7])
    found = pool(frames, templates, num_templates=3, media=media)
    np.testing.assert_allclose(found[:2], [[0.5**0.5] * 2, [0.6, 0.8]], rtol=1e-6)
    assert np.isnan(found[2]).all()
    by_image = pool(frames, templates, num_templates=3)
    np.testing.assert_allclose(by_image[0], np.array([9, 1]) / 82**0.5, rtol=1e-6)
    where = jnp.arange(11) != 9
    kept = pool(frames.at[9].set(jnp.nan), templates, num_templates=2, where=where)
    np.testing.assert_allclose(kept[0], [1, 0])
    assert np.isnan(pool(frames, templates, num_templates=1)).all()
    assert np.isnan(pool(frames, templates - 1, num_templates=2)).all()


@pytest.mark.parametrize(("number", "size"), [(0.1, 3), (1.1, 3), (0.3, 10), (3.3, 10)])
def test_a_cohort_of_equal_distances_tells_nothing(number, size):
    cohort = jnp.full((1, size), number, jnp.float32)
    assert jnp.isnan(verification.z_norm(jnp.array([0.5]), cohort))[0]
