"""Tests of one set of parameters for several inputs: plain functions, linen and NNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from siamese_jax import siamese
from siamese_jax.distances import euclidean_distance
from siamese_jax.encoders import MnistTower

PAIR = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 3)), jnp.float32)


def test_twin_works_for_nnx_through_split_and_merge():
    graph, params = nnx.split(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))

    def apply_fn(params, x):
        return nnx.merge(graph, params)(x)

    def loss(params):
        return jnp.mean(euclidean_distance(*siamese.twin(apply_fn)(params, PAIR)))

    value, gradient = jax.value_and_grad(loss)(params)
    a, b = (apply_fn(params, x) for x in PAIR)
    np.testing.assert_allclose(value, jnp.mean(euclidean_distance(a, b)), rtol=1e-6)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(gradient)[1:])


def test_three_inputs_make_triplets():
    triplet = jnp.concatenate([PAIR, PAIR[:1] + 1])
    out = siamese.twin(lambda w, x: x * w)(2.0, triplet)
    np.testing.assert_array_equal(out, 2 * triplet)


def test_each_input_has_its_own_dropout_key():
    module = nn.Dropout(0.5, deterministic=False)

    def apply_fn(params, x, key):
        return module.apply(params, x, rngs={"dropout": key})

    same_input = jnp.ones((2, 8, 8))
    keys = jax.random.split(jax.random.key(0))
    a, b = siamese.twin(apply_fn)({}, same_input, keys)
    assert (a != b).any()
    np.testing.assert_array_equal(a, apply_fn({}, same_input[0], keys[0]))
    np.testing.assert_array_equal(b, apply_fn({}, same_input[1], keys[1]))


@pytest.mark.parametrize("num_inputs", [1, 2, 3])
def test_the_twin_equals_one_flattened_batch(num_inputs):
    inputs = jnp.concatenate([PAIR, PAIR[:1] + 1])[:num_inputs]
    module = nn.Dense(4)
    params = module.init(jax.random.key(0), inputs[0])

    def flattened(params, inputs):
        embeddings = module.apply(params, inputs.reshape(-1, inputs.shape[-1]))
        return embeddings.reshape(*inputs.shape[:-1], 4)

    def total(fn):
        return lambda *args: jnp.sum(jnp.sin(fn(*args)))

    found, wanted = (
        jax.value_and_grad(total(fn), (0, 1))(params, inputs)
        for fn in (siamese.twin(module.apply), flattened)
    )
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    twin = siamese.twin(module.apply)(params, inputs)
    np.testing.assert_allclose(twin, flattened(params, inputs), atol=1e-6)


def test_the_twin_takes_and_gives_trees():
    inputs = {"image": PAIR, "name": jnp.arange(12).reshape(2, 6)}

    def apply_fn(params, x):
        assert x["image"].shape == (6, 3)
        assert x["name"].shape == (6,)
        return params * x["image"].sum(axis=1), (x["name"],)

    sums, (names,) = siamese.twin(apply_fn)(2.0, inputs)
    np.testing.assert_allclose(sums, 2 * PAIR.sum(axis=2), rtol=1e-6)
    np.testing.assert_array_equal(names, inputs["name"])


# Flax -------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Dense, batch normalisation and dropout."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(4)(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_a_flax_module_becomes_two_pure_functions():
    init, apply = siamese.from_flax(Everything())
    params, statistics = init(jax.random.key(0), PAIR[0])
    assert set(params) == {"Dense_0", "BatchNorm_0"}
    assert set(statistics) == {"batch_stats"}
    wanted = Everything().apply({"params": params, **statistics}, PAIR[0])
    np.testing.assert_array_equal(apply(params, PAIR[0], statistics=statistics), wanted)

    key = jax.random.key(1)
    options = {"statistics": statistics, "key": key, "train": True}
    embeddings, updated = apply(params, PAIR[0], **options)
    dense = nn.Dense(4).apply({"params": params["Dense_0"]}, PAIR[0])
    means = updated["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(means, dense.mean(axis=0) / 2, rtol=1e-5)
    other, _ = apply(params, PAIR[0], **options | {"key": jax.random.key(2)})
    assert (embeddings != other).any()  # another dropout mask

    # under the twin, the updated statistics of both inputs are averaged
    def embed(params, x, key):
        return apply(params, x, statistics=statistics, key=key, train=True)

    both = siamese.twin(embed, has_statistics=True)
    _, averaged = both(params, PAIR, jax.random.split(key))
    separate = [apply(params, x, **options)[1] for x in PAIR]
    wanted = jax.tree.map(lambda *leaves: sum(leaves) / 2, *separate)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), averaged, wanted)


def test_a_module_without_statistics_has_none():
    init, apply = siamese.from_flax(MnistTower())
    params, statistics = init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert statistics == {}
    embeddings, after = apply(params, jnp.ones((3, 8, 8, 1)), train=True)
    assert after == {}
    np.testing.assert_array_equal(embeddings, apply(params, jnp.ones((3, 8, 8, 1))))


# Batch statistics -------------------------------------------------------------------------


class Normed(nn.Module):
    axis_name: str | None

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(
            use_running_average=False, momentum=0.9, axis_name=self.axis_name
        )
        return norm(nn.Dense(4)(x))


def with_statistics(module):
    variables = module.init(jax.random.key(0), PAIR[0])

    def apply_fn(params, x):
        out, updates = module.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            x,
            mutable=["batch_stats"],
        )
        return out, updates["batch_stats"]

    return variables["params"], apply_fn


def test_joint_batch_statistics_equal_those_of_the_flattened_batch():
    _, flat_fn = with_statistics(Normed(None))
    # the axis exists only under the twin, so parameters come from the nameless module
    params, _ = with_statistics(Normed(None))
    joint = Normed(siamese.TWIN_AXIS)

    def joint_fn(params, x):
        statistics = {"BatchNorm_0": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}
        out, updates = joint.apply(
            {"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"]
        )
        return out, updates["batch_stats"]

    out, statistics = siamese.twin(joint_fn, has_statistics=True)(params, PAIR)
    flat_out, flat_statistics = flat_fn(params, PAIR.reshape(12, 3))
    np.testing.assert_allclose(out.reshape(12, 4), flat_out, atol=1e-5)
    for found, wanted in zip(
        jax.tree.leaves(statistics), jax.tree.leaves(flat_statistics), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_separate_batch_statistics_are_averaged_into_one_set():
    params, apply_fn = with_statistics(Normed(None))
    out, statistics = siamese.twin(apply_fn, has_statistics=True)(params, PAIR)
    singles = [apply_fn(params, x) for x in PAIR]
    np.testing.assert_allclose(out, np.stack([single[0] for single in singles]), atol=1e-6)
    for found, a, b in zip(
        *map(jax.tree.leaves, (statistics, singles[0][1], singles[1][1])), strict=True
    ):
        np.testing.assert_allclose(found, (a + b) / 2, rtol=1e-5)


def test_two_towers_learn_apart():
    module = nn.Dense(4)
    params = jax.vmap(module.init, in_axes=(0, None))(
        jax.random.split(jax.random.key(0)), PAIR[0]
    )
    out = siamese.two_towers(module.apply)(params, PAIR)
    for i in range(2):
        single = module.apply(jax.tree.map(lambda leaf, i=i: leaf[i], params), PAIR[i])
        np.testing.assert_allclose(out[i], single, rtol=1e-6)
    gradient = jax.grad(lambda p: siamese.two_towers(module.apply)(p, PAIR)[0].sum())(
        params
    )
    kernel = gradient["params"]["kernel"]
    assert np.abs(kernel[0]).sum() > 0
    assert not kernel[1].any()


def test_stacked_towers_come_from_single_ones():
    stacked = siamese.stack_towers({"w": jnp.zeros(2)}, {"w": jnp.ones(2)})
    np.testing.assert_array_equal(stacked["w"], [[0, 0], [1, 1]])
    with pytest.raises(ValueError, match="towers 0 and 1 differ"):
        siamese.stack_towers({"w": jnp.zeros(2)}, {"v": jnp.ones(2)})
