"""Tests that a similarity is refused where a distance is wanted, and no distance is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import distances, episodes, samplers
from siamese_jax._checks import check_distance_fn
from siamese_jax.images import Preparation
from siamese_jax.model import pixel_model
from siamese_jax.verification import calibrate
from tests.cases.case import f32

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


def blobs(dim=16, num_classes=8, *, gap=4.0):
    rng = np.random.default_rng(0)
    centres = gap * np.repeat(rng.normal(size=(num_classes, dim)), 6, axis=0)
    return f32(centres + rng.normal(size=centres.shape))


def minus(matrix_fn):
    return lambda x, y: -matrix_fn(x, y)


def koch(bias, *, sign=-1.0):
    """Log-odds of "same" with learnt weights, or their negative."""
    weights = f32(-np.random.default_rng(1).uniform(0, 1, size=16))

    def matrix_fn(x, y):
        gaps = jnp.abs(x[:, None] - y[None])
        return sign * (jnp.sum(weights[None, None] * gaps, axis=2) + bias)

    return matrix_fn


def noisy(x, y):
    """A distance to oneself is a positive number of the size of rounding errors."""
    matrix = distances.squared_euclidean_distance_matrix(x, y)
    return matrix + 1e-4 * jnp.abs(jnp.sin(1e4 * (x @ y.T)))


SIMILARITIES = {
    "cosine": distances.cosine_similarity_matrix,
    "dot": distances.dot_similarity_matrix,
    "kernel": lambda x, y: jnp.exp(-distances.euclidean_distance_matrix(x, y)),
    "log-odds": koch(3.0, sign=1.0),
    "probability": lambda x, y: jax.nn.sigmoid(koch(3.0, sign=1.0)(x, y)),
}
PROPER = {
    "euclidean": distances.euclidean_distance_matrix,
    "squared": distances.squared_euclidean_distance_matrix,
    "manhattan": distances.manhattan_distance_matrix,
    "cosine": distances.cosine_distance_matrix,
    "negative log-odds": koch(3.0),
    "negative log-odds of a rare match": koch(-3.0),
    "a probability": lambda x, y: jax.nn.sigmoid(koch(3.0)(x, y)),
    "with an offset": lambda x, y: 2 + distances.euclidean_distance_matrix(x, y),
    "noisy": noisy,
    "negative dot": minus(distances.dot_similarity_matrix),
    "constant": lambda x, y: jnp.ones((len(x), len(y))),
    "of a sum": lambda x, y: jnp.sum(x, axis=1)[:, None] + 2 * jnp.sum(y, axis=1)[None],
    "not a number": lambda x, y: jnp.full((len(x), len(y)), jnp.nan),
}
SETS = {
    "blobs": blobs(),
    "not negative": jax.nn.relu(blobs()),
    "of one class": blobs(num_classes=1),
    "nearly one point": 1 + 1e-4 * blobs(),
    "one point": jnp.ones((6, 16)),
    "zero": jnp.zeros((6, 16)),
    "some zero": blobs().at[::12].set(0),
    "a pair": blobs()[:2],
    "one": blobs()[:1],
}


@pytest.mark.parametrize("points", SETS.values(), ids=SETS)
@pytest.mark.parametrize("matrix_fn", PROPER.values(), ids=PROPER)
def test_no_distance_is_taken_for_a_similarity(matrix_fn, points):
    for rows in (points, points[:2]):
        check_distance_fn("matrix_fn", matrix_fn, rows)


@pytest.mark.parametrize(
    "points", ["blobs", "not negative", "some zero", "a pair", "of one class"]
)
@pytest.mark.parametrize("matrix_fn", SIMILARITIES.values(), ids=SIMILARITIES)
def test_a_similarity_is_refused_where_a_distance_is_wanted(matrix_fn, points):
    points = SETS[points]
    if len(points) < 10:
        with pytest.raises(ValueError, match="matrix_fn must give distances, smaller for"):
            check_distance_fn("matrix_fn", matrix_fn, points)
        return
    labels = np.repeat(np.arange(len(points) // 6), 6)
    settings = {"num_episodes": 20, "num_ways": 5}

    def accuracy(matrix_fn):
        index = samplers.class_index(labels)
        return episodes.episode_accuracy(
            KEY, points, index, matrix_fn=matrix_fn, **settings
        ).mean

    with pytest.raises(ValueError, match="matrix_fn must give distances, smaller for"):
        accuracy(matrix_fn)
    assert accuracy(minus(matrix_fn)) > 0.7


def test_traced_embeddings_are_not_looked_at():
    index = samplers.class_index(np.repeat(np.arange(8), 6))

    @jax.jit
    def mean(points):
        return episodes.episode_accuracy(
            KEY,
            points,
            index,
            num_episodes=20,
            num_ways=5,
            matrix_fn=distances.cosine_similarity_matrix,
        ).mean

    assert mean(blobs()) < 0.1  # the farthest class


def test_a_model_with_a_similarity_neither_verifies_nor_identifies():
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 1), np.uint8)
    model = dataclasses.replace(
        pixel_model(Preparation((5, 4))),
        calibration=calibrate(np.arange(6.0), np.arange(6) < 3, pairs="toy pairs"),
    )
    labels = list("aabbcc")
    assert model.identify(images, labels, images).nearest.labels.tolist() == labels
    assert model.verify(images[0], images[0]).distance == 0
    cosine = dataclasses.replace(
        model, matrix_fn=lambda params, x, y: distances.cosine_similarity_matrix(x, y)
    )
    with pytest.raises(ValueError, match="matrix_fn must give distances"):
        cosine.identify(images, labels, images)
    for other in images[:2]:
        with pytest.raises(ValueError, match="matrix_fn must give distances"):
            cosine.verify(images[0], other)
