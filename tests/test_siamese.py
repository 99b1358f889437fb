"""Tests of one set of parameters for several inputs: plain functions, linen and NNX."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from siamese_jax import losses, siamese, training
from siamese_jax.distances import euclidean_distance
from siamese_jax.encoders import MnistTower

KEY = jax.random.key(5)
PAIR = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 3)), jnp.float32)


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


# NNX --------------------------------------------------------------------------------------


class Noisy(nnx.Module):
    """Dense, batch normalisation, two dropouts of one shape, and a count of the calls."""

    def __init__(self, rngs, *, axis_name=None):
        self.layers = nnx.List([nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, momentum=0.5, axis_name=axis_name, rngs=rngs)
        self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])
        self.num_calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.num_calls[...] += 1
        x = self.norm(self.layers[0](x))
        return self.layers[1](self.dropouts[0](x) + self.dropouts[1](x))


def nnx_loss(apply):
    def loss_fn(params, statistics, batch, key):
        def embed(params, x, key):
            return apply(params, x, statistics=statistics, key=key, train=True)

        twin = siamese.twin(embed, has_statistics=True)
        (a, b), after = twin(params, batch, jax.random.split(key))
        loss = losses.contrastive_loss(euclidean_distance(a, b), jnp.arange(6) < 3)
        return loss, (after, {"embedding": a[0, 0]})

    return loss_fn


def test_an_nnx_module_becomes_trees_and_a_function():
    module = Noisy(nnx.Rngs(0))
    params, statistics, apply = siamese.from_nnx(module)
    assert set(params) == {"layers", "norm"}
    assert set(statistics) == {"norm", "num_calls"}

    def evaluate(params, x):
        return apply(params, x, statistics=statistics)

    found = jax.jit(siamese.twin(evaluate))(params, PAIR)
    moved = jax.tree.map(lambda leaf: leaf + 1, params)
    other = evaluate(moved, PAIR[0])
    module.eval()
    for x, embeddings in zip(PAIR, found, strict=True):
        np.testing.assert_allclose(embeddings, module(x), rtol=1e-5, atol=1e-6)
    assert (np.abs(other - module(PAIR[0])) > 0.1).any()


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_an_nnx_module_is_trained_with_statistics_and_new_masks(compiled):
    params, statistics, apply = siamese.from_nnx(Noisy(nnx.Rngs(0)))
    loss_fn, optimizer = nnx_loss(apply), optax.sgd(0.0)
    step = partial(training.train_step, loss_fn=loss_fn, optimizer=optimizer)
    if compiled:
        step = jax.jit(step, donate_argnums=1)
    state = training.init_state(params, optimizer, statistics=statistics)
    means, embeddings = [state.statistics["norm"]["mean"].copy()], set()
    for number in range(3):
        assert state.statistics["num_calls"] == number
        state, metrics = step(jax.random.key(1), state, PAIR)
        means.append(state.statistics["norm"]["mean"].copy())
        embeddings.add(float(metrics["embedding"]))
    assert len(embeddings) == 3  # another mask in each step, as nothing else changes
    dense = PAIR @ state.params["layers"][0]["kernel"]
    np.testing.assert_allclose(means[1], dense.mean(axis=(0, 1)) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(means[2], 1.5 * means[1], rtol=1e-5)

    run = jax.jit(
        lambda key, state: training.train_steps(
            key,
            state,
            PAIR,
            num_steps=4,
            batch_fn=lambda key, step, data: data,
            loss_fn=loss_fn,
            optimizer=optimizer,
        )
    )
    state, metrics = run(jax.random.key(1), state)
    assert state.statistics["num_calls"] == 7
    assert len(set(metrics["embedding"].tolist())) == 4


@pytest.mark.slow
def test_gradients_of_an_nnx_module_are_those_of_its_own():
    module = Noisy(nnx.Rngs(0))
    params, statistics, apply = siamese.from_nnx(module)

    def loss(params):
        embeddings, _ = apply(params, PAIR[0], statistics=statistics, key=KEY, train=True)
        return jnp.sum(embeddings**2)

    gradients = jax.jit(jax.grad(loss))(params)
    change = jax.tree.map(lambda g: 1e-2 * g / optax.tree.norm(gradients), gradients)
    ahead, behind = (
        loss(jax.tree.map(lambda p, c, sign=sign: p + sign * c, params, change))
        for sign in (1, -1)
    )
    np.testing.assert_allclose(
        (ahead - behind) / 2, 1e-2 * optax.tree.norm(gradients), rtol=1e-3
    )


def test_no_two_inputs_and_layers_share_a_mask():
    class Dropouts(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(3)])

        def __call__(self, x):
            return jnp.stack([dropout(x) for dropout in self.dropouts])

    params, statistics, apply = siamese.from_nnx(Dropouts())
    assert (params, statistics) == ({}, {})

    def embed(params, x, key):
        return apply(params, x, key=key, train=True)

    x = jnp.ones((2, 64))
    keys = jax.random.split(KEY)
    masks, after = siamese.twin(embed, has_statistics=True)(params, x, keys)
    assert after == {}
    assert len({tuple(row) for row in np.reshape(masks, (-1, 64)).tolist()}) == 6
    old_style, _ = apply(params, x[0], key=jax.random.key_data(keys[0]), train=True)
    np.testing.assert_array_equal(old_style, masks[0])
    np.testing.assert_array_equal(apply(params, x), jnp.stack([x] * 3))
    with pytest.raises(ValueError, match="key must be given to train"):
        apply(params, x, train=True)


def test_nnx_trees_of_another_structure_are_refused():
    params, _, apply = siamese.from_nnx(Noisy(nnx.Rngs(0)))
    with pytest.raises(ValueError, match="statistics must have the shapes"):
        apply(params, PAIR[0])
    params, _, apply = siamese.from_nnx(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="params must have the shapes"):
        apply({"kernel": params["kernel"]}, PAIR[0])


@pytest.mark.slow
def test_joint_batch_statistics_of_an_nnx_module():
    joint = siamese.from_nnx(Noisy(nnx.Rngs(0), axis_name=siamese.TWIN_AXIS))
    alone = siamese.from_nnx(Noisy(nnx.Rngs(0)))

    def updated(encoder, x):
        return encoder.apply(
            encoder.params, x, statistics=encoder.statistics, key=KEY, train=True
        )

    twin = siamese.twin(lambda _, x: updated(joint, x), has_statistics=True)
    _, found = twin((), PAIR)
    _, wanted = updated(alone, PAIR.reshape(12, 3))
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            found["norm"][name], wanted["norm"][name], rtol=1e-5, atol=1e-7
        )


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


def test_counters_and_flags_are_not_averaged():
    def apply_fn(params, x):
        odd = x[0] > 0
        return x, {
            "count": jnp.where(odd, 7, 4),
            "bytes": jnp.where(odd, 1, 4).astype(jnp.uint8),
            "seen": odd,
            "mean": x[0].astype(jnp.bfloat16),
        }

    inputs = jnp.array([[1.0], [0.0]])
    _, found = siamese.twin(apply_fn, has_statistics=True)((), inputs)
    assert found == {"count": 7, "bytes": 4, "seen": True, "mean": 0.5}
    dtypes = {name: value.dtype for name, value in found.items()}
    assert dtypes == {
        "count": jnp.int32,
        "bytes": jnp.uint8,
        "seen": jnp.bool_,
        "mean": jnp.bfloat16,
    }


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
