"""Tests of errors: each names the argument, what was wanted and what was found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import (
    distances,
    losses,
    memory,
    miners,
    samplers,
    tiling,
    verification,
)
from siamese_jax.reductions import mean_and_count
from siamese_jax.relations import Items
from tests.contract import as_for_a_user

KEY = jax.random.key(0)
INDEX = samplers.class_index([0, 0, 1, 1, 2, 2])
MATRIX, SAME = jnp.zeros((3, 3)), jnp.eye(3, dtype=bool)
ROWS, LABELS = jnp.ones((3, 2)), jnp.arange(3)
ANCHORS = jnp.array([0, 3, 1])
both = losses.both_directions(losses.info_nce_loss)


def tiled(**options):
    loss = tiling.tiled(losses.contrastive_loss, distances.euclidean_distance_matrix)
    return loss(ROWS, Items(LABELS), **options)


def rates(threshold):
    return verification.decision_rates(jnp.zeros(2), jnp.zeros(2, bool), threshold)


def partners(anchors, same):
    return samplers.sample_partners(KEY, INDEX, anchors, same)


REFUSED = {
    "weights of both directions": (
        lambda: both(MATRIX, SAME, weights=MATRIX),
        "both_directions takes no weights; weights must be None",
    ),
    "weights bound before": (
        lambda: losses.both_directions(
            lambda *args, **options: losses.info_nce_loss(*args, **options)
        )(MATRIX, SAME, weights=MATRIX),
        "both_directions takes no weights; weights must be None",
    ),
    "mean and count of both directions": (
        lambda: both(MATRIX, SAME, reduce_fn=mean_and_count),
        "must return a number; got mean_and_count for both_directions",
    ),
    "no reduction of both directions": (
        lambda: both(MATRIX, SAME, reduce_fn=None),
        "reduce_fn must return a number; got None for both_directions",
    ),
    "terms of both directions": (
        lambda: both(MATRIX, SAME, reduce_fn=lambda terms: terms),
        "reduce_fn must return a number; got Terms for both_directions",
    ),
    "a mask of tiles": (lambda: tiled(where=SAME), "where must not be given: it is made"),
    "several thresholds": (
        lambda: rates(jnp.array([0.1, 0.2])),
        r"threshold must be a scalar; got shape \(2,\)",
    ),
    "partners in a column": (
        lambda: partners(ANCHORS, jnp.ones((3, 1), bool)),
        r"same must have shape \(3,\) to match anchors; got \(3, 1\)",
    ),
    "partners of numbers": (
        lambda: partners(ANCHORS, ANCHORS),
        "same must be a boolean array; got dtype int32",
    ),
    "anchors that are no numbers": (
        lambda: partners(ANCHORS.astype(float), ANCHORS > 0),
        "anchors must be an integer array; got dtype float32",
    ),
    "no examples of hard classes": (
        lambda: samplers.sample_hard_batch(KEY, INDEX, jnp.ones((3, 3)), 2, 0),
        "num_per_class must be at least 1; got 0",
    ),
    "no examples of repeated classes": (
        lambda: samplers.class_epoch_batch(KEY, 0, INDEX, 2, -1, repeat=True),
        "num_per_class must be at least 1; got -1",
    ),
    "no classes of an epoch": (
        lambda: samplers.class_epoch_batch(KEY, 0, INDEX, 0, 1),
        "num_classes must be at least 1; got 0",
    ),
    "no other pairs": (
        lambda: verification.calibrate(
            np.ones(2), np.array([True, False]), pairs="toy", different=np.zeros(0)
        ),
        "the number of distances in different must be at least 1; got 0",
    ),
    "labels in place of items": (
        lambda: verification.pair_tiles(ROWS, [0, 1, 2]),
        r"the items of embeddings must be Items\(labels\); got list",
    ),
    "half an angle": (
        lambda: losses.large_margin_softmax_loss(ROWS, LABELS, ROWS, margin=2.5),
        "margin must be an integer; got 2.5",
    ),
    "predictions that are no numbers": (
        lambda: losses.negative_cosine_loss(LABELS[:, None], ROWS[:, :1]),
        "predictions must be a floating-point array; got dtype int32",
    ),
    "a relation of another shape": (
        lambda: losses.nca_loss(MATRIX, SAME[:2]),
        r"same must have shape \(3, 3\) to match distances; got \(2, 3\)",
    ),
    "no negatives": (
        lambda: miners.nearest_mask(MATRIX, SAME, num_negatives=0),
        "num_negatives must be at least 1; got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_error_names_the_argument(name):
    call, words = REFUSED[name]
    with as_for_a_user(), pytest.raises((ValueError, TypeError), match=words):
        call()


def test_averages_of_plain_numbers_are_taken():
    found = memory.momentum_update({"a": 1.0}, {"a": 3.0}, 0.5)
    assert found["a"] == 2


def test_templates_without_images_are_unknown():
    empty = jnp.zeros((0, 3))
    found = verification.pool_templates(empty, jnp.zeros(0, int), num_templates=2)
    assert found.shape == (2, 3)
    assert np.isnan(found).all()


def test_infinite_confusion_is_still_drawn_from_at_random():
    confusion = jnp.full((6, 6), jnp.inf)
    index = samplers.class_index(np.arange(12) // 2)
    draw = jax.jit(lambda key: samplers.sample_hard_batch(key, index, confusion, 2, 1))
    drawn = jax.vmap(draw)(jax.random.split(KEY, 100)).classes
    assert len(np.unique(drawn, axis=0)) > 20
