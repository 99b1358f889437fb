"""Tests of the classifiers of few examples, and of their accuracies over episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import episodes, samplers

KEY = jax.random.key(0)
SIMPLE_SHOT = functools.partial(episodes.simple_shot_logits, base_mean=jnp.full(4, 0.1))
INDUCTIVE = {
    "neighbour": episodes.neighbour_logits,
    "prototype": episodes.prototype_logits,
    "simple_shot": SIMPLE_SHOT,
    "matching": episodes.matching_logits,
    "ridge": episodes.ridge_logits,
    "logistic": episodes.logistic_logits,
}
TRANSDUCTIVE = {
    "laplacian_shot": episodes.laplacian_shot_logits,
    "transport": episodes.transport_logits,
}
ALL = INDUCTIVE | TRANSDUCTIVE


def examples(seed, num_classes=6, num_each=8, noise=0.05):
    """Points of classes on a sphere, and their index."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(num_classes, num_classes)))[0]
    labels = np.repeat(np.arange(num_classes), num_each)
    points = centres[labels] + noise * rng.normal(size=(len(labels), num_classes))
    return jnp.float32(points), samplers.class_index(labels.tolist())


@jax.jit
def logits_of_all(support, queries, where):
    return {name: fn(support, queries, where=where) for name, fn in ALL.items()}


def test_ignored_examples_count_nothing_and_a_class_needs_one():
    rng = np.random.default_rng(0)
    support, queries = (jnp.float32(rng.normal(size=n)) for n in ((3, 4, 4), (5, 4)))
    where = jnp.array([[True] * 2 + [False] * 2] * 3)
    found = logits_of_all(support, queries, where)
    # NaN behind the mask is not seen, one before it is
    hidden = logits_of_all(support.at[:, 3].set(jnp.nan), queries, where)
    broken = logits_of_all(support.at[1, 0].set(jnp.nan), queries, where)
    query = logits_of_all(support, queries.at[0, 0].set(jnp.nan), where)
    empty = logits_of_all(support, queries, where.at[2].set(False))
    fewer = logits_of_all(support[:, :2], queries, where[:, :2])
    for name in ALL:
        np.testing.assert_array_equal(hidden[name], found[name])
        np.testing.assert_allclose(fewer[name], found[name], rtol=1e-4, atol=1e-5)
        assert np.isnan(empty[name]).all(), name
        assert np.isnan(broken[name]).any(axis=1).all(), name
        assert np.isnan(query[name][0]).any(), name
        others_know = not np.isnan(query[name][1:]).any()
        assert others_know == (name in INDUCTIVE), name


def test_the_plan_has_equally_many_of_each_class():
    rng = np.random.default_rng(0)
    support, queries = (jnp.float32(rng.normal(size=n)) for n in ((3, 2, 4), (12, 4)))
    plan = np.exp(episodes.transport_logits(support, queries, temperature=1.0))
    np.testing.assert_allclose(plan.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(axis=0), 4, rtol=1e-3)


def test_neighbours_move_a_query_and_without_strength_they_do_not():
    support = jnp.array([[[0.0]], [[1.0]]])
    # the first is nearer to class 0 by a little, and its neighbours are of class 1
    queries = jnp.array([[0.45], [0.6], [0.65], [-0.5], [-0.6]])
    alone = episodes.laplacian_shot_logits(support, queries, strength=0.0, num_neighbours=2)
    moved = episodes.laplacian_shot_logits(support, queries, num_neighbours=2)
    assert np.argmax(alone, axis=1).tolist() == [0, 1, 1, 0, 0]
    assert np.argmax(moved, axis=1).tolist() == [1, 1, 1, 0, 0]


# Episodes -----------------------------------------------------------------------------


def accuracy(points, index, **options):
    return episodes.episode_accuracy(KEY, points, index, num_episodes=128, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_classifier_is_right_on_classes_that_are_apart(name):
    fn = ALL[name]
    if name == "simple_shot":
        fn = functools.partial(episodes.simple_shot_logits, base_mean=jnp.full(6, 0.1))
    points, index = examples(0)
    kwargs = {"num_ways": 4, "num_shots": 3, "num_queries": 4, "logits_fn": fn}
    assert accuracy(points, index, **kwargs).mean == 1
    noise = jax.random.normal(KEY, points.shape)
    found = accuracy(noise, index, min_shots=1, **kwargs)
    assert found.low < 0.27
    assert found.high > 0.23
    assert np.isnan(accuracy(points.at[:].set(jnp.nan), index, **kwargs).mean)


def test_without_a_function_the_nearest_prototype_answers():
    points, index = examples(1, noise=0.6)
    kwargs = {"num_ways": 3, "num_shots": 2, "num_queries": 2}
    found = accuracy(points, index, **kwargs)
    assert 0.5 < found.mean < 0.95
    by_name = accuracy(points, index, logits_fn=episodes.prototype_logits, **kwargs)
    np.testing.assert_array_equal(found.accuracies, by_name.accuracies)
    # all shots are as without a mask, fewer are worse
    all_shots = accuracy(points, index, min_shots=2, **kwargs)
    np.testing.assert_array_equal(found.accuracies, all_shots.accuracies)
    assert accuracy(points, index, min_shots=1, **kwargs).mean < found.mean


@pytest.mark.slow
def test_transductive_classifiers_learn_from_the_queries():
    points, index = examples(2, num_each=20, noise=0.3)
    kwargs = {"num_ways": 5, "num_shots": 1, "num_queries": 15}
    alone = accuracy(points, index, **kwargs)
    for fn in TRANSDUCTIVE.values():
        together = accuracy(points, index, logits_fn=fn, **kwargs)
        assert together.low > alone.high
