"""Tests of lists and batches of pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import pair_batches
from experiments.systems import mnist_mlp
from siamese_jax import samplers
from siamese_jax.errors import UserError

pytestmark = pytest.mark.slow

# Pairs -----------------------------------------------------------------------------------


def test_tutorial_pairs_are_the_tutorial_s():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    drawn = pair_batches.adjacent_pairs(labels, np.random.default_rng(0))
    drawn = samplers.Pairs(*map(np.asarray, drawn))
    num = 2  # the smallest class has three
    assert drawn.examples.shape == (2, 3 * 2 * num)
    left, right = labels[drawn.examples]
    np.testing.assert_array_equal(left == right, drawn.same)
    same = drawn.examples[:, drawn.same].T.tolist()
    assert same == [[0, 1], [1, 2], [4, 5], [5, 6], [7, 8], [8, 9]]
    # a different pair takes the same place in its other class
    rank = np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3])
    left, right = rank[drawn.examples[:, ~drawn.same]]
    np.testing.assert_array_equal(left, right)
    with pytest.raises(UserError, match="class 1 has too few"):
        pair_batches.adjacent_pairs(np.array([0, 0, 1]), np.random.default_rng(0))


def test_fixed_pairs_are_each_seen_once_an_epoch_in_a_new_order_each():
    config = mnist_mlp.Config(batch_size=4)
    sample = pair_batches.epoch_sampler(config)
    pairs = samplers.Pairs(jnp.arange(20).reshape(2, 10), jnp.arange(10) % 2 == 0)
    images = jnp.arange(20, dtype=jnp.uint8)[:, None, None, None]
    data = pair_batches.PairData(images, pairs)
    orders = []
    for epoch in (1, 2):  # epochs of three batches, the last one with two pairs
        order = []
        for step in range(3 * epoch, 3 * epoch + 3):
            batch = sample(jax.random.key(step), jnp.asarray(step), data)
            left, right = np.rint(np.asarray(batch.images[:, :, 0, 0, 0]) * 255)
            np.testing.assert_array_equal(right, left + 10)
            np.testing.assert_array_equal(batch.same, left % 2 == 0)
            order += left[np.asarray(batch.where)].tolist()
        assert sorted(order) == list(range(10))
        orders.append(order)
    assert orders[0] != orders[1]
    # the order depends on the seed and the step alone
    other = pair_batches.epoch_sampler(dataclasses.replace(config, seed=1))
    batches = [
        fn(jax.random.key(9), jnp.asarray(3), data) for fn in (sample, sample, other)
    ]
    np.testing.assert_array_equal(batches[0].images, batches[1].images)
    assert (np.asarray(batches[0].images) != np.asarray(batches[2].images)).any()


def test_random_pairs_leave_out_classes_of_one_image():
    labels = np.array(["a", "a", "b", "c", "c", "c"])
    drawn = pair_batches.random_pairs(jax.random.key(0), labels, 60)
    assert "b" not in labels[np.asarray(drawn.examples)]
    left, right = labels[np.asarray(drawn.examples)]
    np.testing.assert_array_equal(left == right, drawn.same)
    with pytest.raises(UserError, match="two classes with two images each"):
        pair_batches.random_pairs(jax.random.key(0), labels[:3], 10)
