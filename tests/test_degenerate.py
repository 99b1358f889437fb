"""Tests of empty matrices, constant features, opposite vectors and half precision."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import distances, episodes, losses, miners, relations
from siamese_jax._numerics import centred
from siamese_jax.relations import Items
from siamese_jax.tiling import tiled
from tests.contract.jaxprs import largest_result

CONSTANT = jnp.full((7, 4), 0.1)  # its mean is not exactly 0.1
VARIED = jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)), jnp.float32)


# Empty matrices -------------------------------------------------------------------------


def of_a_matrix(module, names):
    """Functions of (distances, same), and whether they need a square matrix."""
    found = {name: getattr(module, name) for name in names}
    return [
        pytest.param(fn, id=name)
        for name, fn in found.items()
        if inspect.isfunction(fn) and "same" in list(inspect.signature(fn).parameters)[1:3]
    ]


def shapes_of(fn):
    """The empty shapes that a function takes: it may need a square matrix."""
    square = fn.__name__ in ("angular_loss", "lifted_structure_loss", "angular_negatives")
    return ((0, 0),) if square else ((3, 0), (0, 3), (0, 0))


@pytest.mark.parametrize("fn", of_a_matrix(losses, losses.__all__))
def test_the_loss_of_an_empty_matrix_is_zero(fn):
    takes = list(inspect.signature(fn).parameters)
    if takes[1] != "same":
        pytest.skip("its third argument is the relation")
    for shape in shapes_of(fn):
        same = jnp.zeros(shape, bool)
        value, gradient = jax.jit(jax.value_and_grad(fn))(jnp.zeros(shape), same)
        assert value == 0
        assert gradient.shape == shape


@pytest.mark.parametrize("fn", of_a_matrix(miners, sorted({*miners.__all__} - {"sides"})))
def test_nothing_is_mined_from_an_empty_matrix(fn):
    takes = list(inspect.signature(fn).parameters)
    key = (jax.random.key(0),) if takes[0] == "key" else ()
    options = {"dim": 8} if "dim" in takes else {}
    for shape in shapes_of(fn):
        found = fn(*key, jnp.zeros(shape), jnp.zeros(shape, bool), **options)
        flags = [leaf for leaf in jax.tree.leaves(found) if leaf.dtype == bool]
        assert not any(flag.any() for flag in flags)


# Constant features ----------------------------------------------------------------------


def test_constant_numbers_are_exactly_zero_without_their_mean():
    for axis in (0, 1):
        np.testing.assert_array_equal(centred(CONSTANT, axis), 0)
        wanted = VARIED - VARIED.mean(axis, keepdims=True)
        np.testing.assert_allclose(centred(VARIED, axis), wanted, atol=1e-6)
    gradient = jax.jacobian(lambda x: centred(x, 0))(VARIED[:, 0])
    np.testing.assert_allclose(gradient, np.eye(7) - 1 / 7, atol=1e-6)


def test_barlow_twins_does_not_take_a_constant_feature_for_a_perfect_one():
    assert losses.barlow_twins_loss(CONSTANT, CONSTANT) == 4
    x = VARIED.at[:, 2].set(0.1)
    terms = losses.barlow_twins_loss(x, x, reduce_fn=None)
    np.testing.assert_allclose(np.diag(terms.values), [0, 0, 1, 0], atol=1e-6)


def test_a_constant_anchor_is_infinitely_far_from_all_that_vary():
    anchors = jnp.full((2, 7), 0.1)
    others = jnp.stack([anchors[0] + 1.3, jnp.arange(7.0)])
    wanted = [0, np.inf]
    found = distances.signal_to_noise_distance(anchors, others)
    np.testing.assert_array_equal(found, wanted)
    found = distances.signal_to_noise_distance_matrix(anchors, others)
    np.testing.assert_array_equal(found, [wanted] * 2)


# Opposite vectors -----------------------------------------------------------------------


def both_forms(a, b):
    """Angles by rows, and the same as the diagonal of the matrix."""
    yield distances.angular_distance(a, b)
    yield jnp.diag(distances.angular_distance_matrix(a, b))


def test_angles_of_opposite_vectors_are_pi_with_finite_gradients():
    x = jax.random.normal(jax.random.key(0), (200, 16))
    for scale in (-1.0, -3.7):
        for angles in both_forms(x, scale * x):
            np.testing.assert_allclose(angles, np.pi, rtol=1e-6)
    for fn in (distances.angular_distance, distances.angular_distance_matrix):
        gradient = jax.grad(lambda a, fn=fn: jnp.sum(fn(a, -3.7 * x)))(x)
        assert np.isfinite(gradient).all()


def test_angles_near_pi_are_as_exact_as_small_ones():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 50, 16))
    x, y = np.float32(x), np.float32(-x + 1e-3 * noise)
    wide, away = np.float64(x), np.float64(y)
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (wide, away)]
    wanted = 2 * np.arcsin(np.linalg.norm(units[0] + units[1], axis=1) / 2)
    for angles in both_forms(jnp.asarray(x), jnp.asarray(y)):
        np.testing.assert_allclose(np.pi - np.float64(angles), wanted, rtol=0.01)


# Half precision -------------------------------------------------------------------------


def test_classes_are_chosen_in_float32():
    rng = np.random.default_rng(0)
    support = jnp.asarray(3 + 0.05 * rng.normal(size=(5, 5, 16)), jnp.bfloat16)
    queries = jnp.asarray(3 + 0.05 * rng.normal(size=(500, 16)), jnp.bfloat16)
    wanted = episodes.classify(support.astype(jnp.float32), queries.astype(jnp.float32))
    np.testing.assert_array_equal(episodes.classify(support, queries), wanted)


def test_proxies_are_compared_in_float32():
    x, w = (jnp.asarray(rows, jnp.bfloat16) for rows in (VARIED, VARIED[:3]))
    labels = jnp.arange(7) % 3
    wanted = losses.proxy_nca_loss(x.astype(jnp.float32), labels, w.astype(jnp.float32))
    assert losses.proxy_nca_loss(x, labels, w) == wanted


# Memory, counts and numbers that do not fit ---------------------------------------------


def test_distance_weighted_negatives_take_the_memory_of_the_matrix():
    n = 64
    d, same = jnp.ones((n, n)), jnp.eye(n, dtype=bool)
    traced = jax.make_jaxpr(
        lambda key: miners.distance_weighted_negatives(key, d, same, dim=8)
    )(jax.random.key(0))
    assert largest_result(traced.jaxpr) <= 4 * n * n


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 1 / 3, 1.0])
def test_the_hardest_share_is_not_one_too_many(share):
    matrix, different = jnp.arange(1.0, 400)[None, :], jnp.zeros((1, 399), bool)

    def num_kept(num):
        counted = jnp.arange(399)[None, :] < num
        return miners.hardest_share_mask(
            matrix, different, share=share, where=counted
        ).sum()

    nums = np.arange(1, 400)
    found = jax.jit(jax.vmap(num_kept))(nums)
    np.testing.assert_array_equal(found, np.ceil((share * nums).round(9)))


def test_ids_that_do_not_fit_are_refused_and_not_wrapped():
    items = Items(np.array([7, 7]), ids=np.array([5, 2**32 + 5]))
    loss = tiled(losses.contrastive_loss, distances.euclidean_distance_matrix)
    with pytest.raises(ValueError, match=r"items\.ids must fit int32; got numbers from 5"):
        loss(jnp.array([[0.0], [1.0]]), items)


def test_the_largest_number_without_a_sign_is_not_minus_one():
    rows, columns = jnp.array([2**32 - 1, 3], jnp.uint32), jnp.array([-1, 3])
    wanted = [[False, False], [False, True]]
    np.testing.assert_array_equal(relations.equal_labels(rows, columns), wanted)
    np.testing.assert_array_equal(relations.equal_labels(columns, rows), wanted)
