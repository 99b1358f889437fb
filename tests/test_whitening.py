"""Tests of whitening within classes, against plain loops and the covariance after it."""

import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import distances, whitening
from tests.contract import as_for_a_user

pytestmark = pytest.mark.quick

NAMES = np.repeat(np.array(["b", "a", "c"]), [40, 30, 50])


def made(seed=0):
    """Classes far apart, with a covariance of their own that is the same for all."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(120, 3)) @ np.array([[1, 2, 0], [0, 5, 1], [0, 0, 0.2]]) + 7
    return x + 10 * np.repeat(rng.normal(size=(3, 3)), [40, 30, 50], axis=0)


def covariance_within(x, labels):
    """The covariance within classes, by a loop."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for name in set(labels):
        members = x[labels == name]
        for row in members - members.mean(axis=0):
            total += np.outer(row, row)
    return total / len(x)


def test_what_is_within_classes_is_white_afterwards():
    x = made()
    factor = whitening.within_class_factor(x, NAMES, shrinkage=0.0)
    assert factor.dtype == np.float64
    found = covariance_within(x @ factor.T, NAMES)
    np.testing.assert_allclose(found, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(factor, np.tril(factor), atol=1e-12)


@pytest.mark.parametrize("shrinkage", [0.3, 4.0])
def test_the_shrunk_covariance_becomes_the_identity(shrinkage):
    x = made()
    covariance = covariance_within(x, NAMES)
    shrunk = covariance + shrinkage * np.trace(covariance) / 3 * np.eye(3)
    factor = whitening.within_class_factor(x, NAMES, shrinkage=shrinkage)
    np.testing.assert_allclose(factor @ shrunk @ factor.T, np.eye(3), atol=1e-9)


def test_order_names_and_lonely_examples_change_nothing():
    x = made()
    wanted = whitening.within_class_factor(x, NAMES)
    order = np.random.default_rng(1).permutation(len(x))
    numbers = (np.unique(NAMES, return_inverse=True)[1] * 7)[order]
    found = whitening.within_class_factor(jnp.asarray(x[order]), numbers.tolist())
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    doubled = whitening.within_class_factor(np.concatenate([x, x]), np.tile(NAMES, 2))
    np.testing.assert_allclose(doubled, wanted, rtol=1e-9)
    lonely = np.concatenate([x, [[1e3, 0, 0]]])  # adds an example and no covariance
    found = whitening.within_class_factor(lonely, [*NAMES.tolist(), "alone"])
    np.testing.assert_allclose(found, wanted * np.sqrt(121 / 120), rtol=1e-9)


def test_the_factor_is_that_of_the_mahalanobis_distance():
    x = jnp.asarray(made(), jnp.float32)
    factor = whitening.within_class_factor(x, NAMES)
    white = np.asarray(x, np.float64) @ factor.T
    wanted = np.linalg.norm(white[:, None] - white[None], axis=2)
    found = distances.mahalanobis_distance_matrix(x, x, jnp.asarray(factor, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_new_classes_are_easier_to_tell_apart():
    rng = np.random.default_rng(0)
    nuisance = np.diag([20.0, 1.0, 1.0, 1.0])

    def draw(num_classes):
        centers = np.repeat(6 * rng.normal(size=(num_classes, 4)), 10, axis=0)
        labels = np.repeat(np.arange(num_classes), 10)
        return centers + rng.normal(size=centers.shape) @ nuisance, labels

    def share_of_right_neighbours(x, labels):
        squared = np.sum((x[:, None] - x[None]) ** 2, axis=2)
        np.fill_diagonal(squared, np.inf)
        return np.mean(labels[squared.argmin(axis=1)] == labels)

    factor = whitening.within_class_factor(*draw(40), shrinkage=0.01)
    x, labels = draw(20)
    before = share_of_right_neighbours(x, labels)
    assert share_of_right_neighbours(x @ factor.T, labels) > before + 0.1


@pytest.mark.parametrize(
    ("x", "labels", "shrinkage", "words"),
    [
        (made(), NAMES[:-1], 1.0, "labels must have one for each of 120; got 119"),
        (made()[0], NAMES, 1.0, "embeddings must have 2 axes"),
        (made(), NAMES, -0.1, "shrinkage must be finite and at least 0; got -0.1"),
        (made(), NAMES, np.nan, "shrinkage must be finite"),
        (made(), NAMES, np.inf, "shrinkage must be finite"),
        (1e200 * made(), NAMES, 1.0, "no inverse"),
        (np.full((120, 3), 0.1), NAMES, 1.0, "no inverse"),
        (np.ones((120, 0)), NAMES, 1.0, "no inverse"),
        (made() @ np.diag([1.0, 1.0, 0.0]), NAMES, 0.0, "no inverse"),
        (np.full((120, 3), np.nan), NAMES, 1.0, "embeddings must be finite"),
        (made(), np.arange(120), 1.0, "no inverse.*120 examples of 3 dimensions and 120"),
        (np.ones((120, 3)), NAMES, 1.0, "the covariance within classes has no inverse"),
        (made()[:2], [0, 0], 0.0, "no inverse.*2 examples of 3 dimensions.*shrinkage 0"),
        (np.ones((0, 3)), [], 1.0, "the covariance within classes has no inverse"),
    ],
)
def test_what_cannot_be_fitted_is_refused(x, labels, shrinkage, words):
    with as_for_a_user(), pytest.raises(ValueError, match=words):
        whitening.within_class_factor(x, labels, shrinkage=shrinkage)


@pytest.mark.parametrize("seed", range(20))
def test_no_useless_factor_comes_of_a_covariance_without_inverse(seed):
    rng = np.random.default_rng(seed)
    equal = np.tile(rng.normal(size=5), (12, 1))
    flat = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 5))  # of rank 4
    for x, shrinkage in ((equal, 1.0), (np.float32(equal), 1.0), (flat, 0.0)):
        with pytest.raises(ValueError, match="no inverse"):
            whitening.within_class_factor(x, np.arange(len(x)) // 4, shrinkage=shrinkage)
    factor = whitening.within_class_factor(flat, np.arange(40) // 4)
    assert 0 < np.abs(factor).max() < 10


def test_integers_are_refused():
    with as_for_a_user(), pytest.raises(TypeError, match="embeddings must be"):
        whitening.within_class_factor(np.ones((4, 2), int), [0, 0, 1, 1])
