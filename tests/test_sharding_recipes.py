"""Recipes for a gradient over devices: which are wrong, by which factor, and what ours is.

The example is the mean of (w x)^2 over 8 rows x, of which each of 4 devices has two. With
w = 1 its gradient is twice the mean of x^2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from siamese_jax import distances, losses, reductions, relations, sharding
from siamese_jax.relations import Items
from tests.sharded import AXIS, batch, compiled, encode, mesh_of, parameters

pytestmark = pytest.mark.slow

NUM_DEVICES = 4
X = np.arange(1.0, 9.0)
W = jnp.float32(1.0)
TRUE = 2 * np.mean(X**2)
MEAN = sharding.over_devices(reductions.mean, axis_name=AXIS)
ROWS, ALL_OF_IT = jax.P(AXIS), jax.P()


def part(w, x):
    """The part of this device in the mean."""
    return jnp.sum((w * x) ** 2) / len(X)


def summed(w, x):
    return lax.psum(part(w, x), AXIS)


def ours(w, x):
    terms = reductions.make_terms((w * x) ** 2, None)
    return MEAN(terms)


def varying(w):
    return lax.pcast(w, AXIS, to="varying")


RECIPES = {
    "the sum of the parts, nothing more": lambda w, x: jax.grad(summed)(w, x),
    "the part, nothing more": lambda w, x: jax.grad(part)(w, x),
    "the part, summed": lambda w, x: lax.psum(jax.grad(part)(w, x), AXIS),
    "the sum of the parts, averaged": lambda w, x: lax.pmean(jax.grad(summed)(w, x), AXIS),
    "the part by a varying w, summed": lambda w, x: lax.psum(
        jax.grad(part)(varying(w), x), AXIS
    ),
    "ours": lambda w, x: lax.pmean(jax.grad(ours)(w, x), AXIS),
    "ours, summed": lambda w, x: lax.psum(jax.grad(ours)(w, x), AXIS),
}
NOT_A_FACTOR = None  # another number on each device, none of them the gradient
FACTORS = {
    # name: with check_vma, without it and under pmap
    "the sum of the parts, nothing more": (1, NOT_A_FACTOR),
    "the part, nothing more": (1, NOT_A_FACTOR),
    "the part, summed": (NUM_DEVICES, 1),
    "the sum of the parts, averaged": (1, 1),
    "the part by a varying w, summed": (1, 1),
    "ours": (1, 1),
    "ours, summed": (NUM_DEVICES, NUM_DEVICES),
}


def by_mode(recipes, *arrays):
    """The gradients of all devices, of each recipe, in each mode."""

    def on_device(w, *shares):
        return [jnp.asarray(recipe(w, *shares))[None] for recipe in recipes]

    for check_vma in (True, False):
        program = jax.jit(
            jax.shard_map(
                on_device,
                mesh=mesh_of(NUM_DEVICES),
                in_specs=(ALL_OF_IT, *[ROWS] * len(arrays)),
                out_specs=ROWS,
                check_vma=check_vma,
            )
        )
        yield check_vma, compiled(program, W, *arrays)(W, *arrays)
    program = jax.pmap(
        on_device,
        axis_name=AXIS,
        in_axes=(None, *[0] * len(arrays)),
        devices=jax.devices()[:NUM_DEVICES],
    )
    shares = [x.reshape(NUM_DEVICES, -1) for x in arrays]
    yield False, compiled(program, W, *shares)(W, *shares)


def test_recipes_and_their_factors():
    for check_vma, gradients in by_mode(list(RECIPES.values()), X.astype(np.float32)):
        for name, found in zip(RECIPES, gradients, strict=True):
            factor = FACTORS[name][0 if check_vma else 1]
            if factor is NOT_A_FACTOR:
                assert len(np.unique(found)) == NUM_DEVICES, name
                assert not np.isclose(found, TRUE).any(), name
            else:
                np.testing.assert_allclose(found.ravel(), factor * TRUE, 1e-6, err_msg=name)


def test_a_gradient_from_outside_of_shard_map_is_right_too():
    for check_vma in (True, False):
        loss = jax.shard_map(
            ours,
            mesh=mesh_of(NUM_DEVICES),
            in_specs=(ALL_OF_IT, ROWS),
            out_specs=ALL_OF_IT,
            check_vma=check_vma,
        )
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(W, X), TRUE, 1e-6)


def test_a_mean_of_means_is_wrong_where_devices_have_different_numbers_of_valid_rows():
    valid = np.array([1, 1, 1, 0, 0, 0, 1, 1]) > 0
    right = 2 * np.mean(X[valid] ** 2)

    def mean_of_means(w, x, valid):
        terms = reductions.make_terms((w * x) ** 2, valid)
        return lax.pmean(reductions.mean(terms), AXIS)

    def by_terms(w, x, valid):
        return MEAN(reductions.make_terms((w * x) ** 2, valid))

    recipes = [
        lambda w, *shares, fn=fn: lax.pmean(jax.grad(fn)(w, *shares), AXIS)
        for fn in (mean_of_means, by_terms)
    ]
    for _, (wrong, found) in by_mode(recipes, X.astype(np.float32), valid):
        # twice the mean of the means 2.5, 9, 0 of no row, and 56.5
        np.testing.assert_allclose(wrong.ravel(), 34, 1e-6)
        np.testing.assert_allclose(found.ravel(), right, 1e-6)


def test_columns_without_a_gradient_lose_half_of_it():
    """Of distances (w a - w b)^2 half of the gradient is that of the columns."""
    labels = np.zeros(len(X), np.int32)

    def squares(rows, columns):
        return distances.squared_euclidean_distance_matrix(rows, columns)

    def loss(matrix_fn):
        loss_fn = sharding.gathered(
            lambda d, same, *, where, reduce_fn: reduce_fn(reductions.make_terms(d, where)),
            matrix_fn,
            axis_name=AXIS,
        )
        return lambda w, x, labels: loss_fn(w * x[:, None], Items(labels))

    fixed = loss(lambda rows, columns: squares(rows, lax.stop_gradient(columns)))
    recipes = [
        lambda w, *shares, fn=fn: lax.pmean(jax.grad(fn)(w, *shares), AXIS)
        for fn in (fixed, loss(squares))
    ]
    apart = (X[:, None] - X[None, :]) ** 2
    right = 2 * apart.sum() / (len(X) * (len(X) - 1))
    for _, (wrong, found) in by_mode(recipes, X.astype(np.float32), labels):
        np.testing.assert_allclose(wrong.ravel(), right / 2, 1e-5)
        np.testing.assert_allclose(found.ravel(), right, 1e-5)


# Memory ----------------------------------------------------------------------------------


def temporary_memory(form, num_devices, **options):
    """Bytes of a device for the loss and its gradient of 256 rows on each device."""
    loss_fn = form(
        losses.both_directions(losses.info_nce_loss),
        distances.cosine_similarity_matrix,
        axis_name=AXIS,
        **options,
    )

    def step(w, x, labels):
        def loss(w):
            return loss_fn(x @ w, Items(labels))

        value, gradient = jax.value_and_grad(loss)(w)
        return value, lax.pmean(gradient, AXIS)

    program = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh_of(num_devices),
            in_specs=(ALL_OF_IT, ROWS, ROWS),
            out_specs=ALL_OF_IT,
        )
    )
    rows = 256 * num_devices
    args = jnp.zeros((4, 16)), jnp.zeros((rows, 4)), jnp.zeros(rows, jnp.int32)
    return compiled(program, *args).memory_analysis().temp_size_in_bytes


def test_the_memory_of_a_ring_does_not_grow_with_the_devices():
    few, many = (temporary_memory(sharding.ring, n) for n in (2, 8))
    assert many <= few


@pytest.mark.parametrize(("form", "num_devices"), [("ring", 1), ("gathered", 8)])
def test_tiles_take_less_memory(form, num_devices):
    fn = getattr(sharding, form)
    whole = temporary_memory(fn, num_devices)
    assert temporary_memory(fn, num_devices, tile_size=16) < whole / 2


# Parameters, axes and modes --------------------------------------------------------------


@pytest.mark.parametrize("form", [sharding.gathered, sharding.ring])
@pytest.mark.parametrize("check_vma", [True, False])
def test_learnt_distances_and_temperatures_over_two_axes_of_a_mesh(form, check_vma):
    """Parameters over which the matrix closes, an option, and a batch over both axes."""
    rng = np.random.default_rng(0)
    head, temperature = rng.normal(size=(3, 3)), np.array(0.3)
    params = {"encoder": parameters(), "head": head, "temperature": temperature}
    axes = ("a", "b")
    loss_fn = losses.both_directions(losses.info_nce_loss)

    def matrix_of(params):
        return lambda a, b: distances.cosine_similarity_matrix(
            jnp.tanh(a @ params["head"]), jnp.tanh(b @ params["head"])
        )

    def whole(params, data):
        z = encode(params["encoder"], data.inputs)
        same, where = relations.between(data.items, data.items)
        return loss_fn(
            matrix_of(params)(z, z), same, where=where, temperature=params["temperature"]
        )

    def share(params, data):
        fn = form(loss_fn, matrix_of(params), axis_name=axes, tile_size=3)
        z = encode(params["encoder"], data.inputs)
        return fn(z, data.items, temperature=params["temperature"])

    def on_device(params, data):
        value, gradient = jax.value_and_grad(share)(params, data)
        return value, lax.pmean(gradient, axes)

    mesh = jax.make_mesh(
        (2, 2),
        axes,
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:4],
    )
    with jax.enable_x64(True):
        args = params, batch()
        wanted = compiled(jax.jit(jax.value_and_grad(whole)), *args)(*args)
        program = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(ALL_OF_IT, jax.P(axes)),
            out_specs=ALL_OF_IT,
            check_vma=check_vma,
        )
        found = compiled(jax.jit(program), *args)(*args)
    for own, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(own, right, rtol=1e-12, atol=1e-12)
