"""Tests of large batches in chunks: gradients, dropout, memory, devices and refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from siamese_jax import distances, losses, relations, siamese
from tests.contract import as_for_a_user

KEY = jax.random.key(3)
X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 6)), jnp.float32)
LABELS = jnp.arange(16) % 4


class Noisy(nn.Module):
    """A small network with dropout."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Dense(32)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(4)(x)


class Normed(nn.Module):
    """A small network with batch normalization."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))


NOISY_INIT, NOISY_APPLY = siamese.from_flax(Noisy())
NORMED_INIT, NORMED_APPLY = siamese.from_flax(Normed())


def embed_one(params, x, key):
    embeddings, _ = NOISY_APPLY(params, x[None], key=key, train=True)
    return embeddings[0]


embed = jax.vmap(embed_one, in_axes=(None, 0, 0))


def label_loss(embeddings, labels=LABELS):
    same, where = relations.within(relations.Items(labels))
    matrix = distances.cosine_similarity_matrix(embeddings, embeddings)
    return losses.supervised_contrastive_loss(matrix, same, where=where)


def assert_close(found, wanted, **tolerance):
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.slow
def test_chunks_have_the_value_gradient_and_dropout_of_the_whole_batch():
    params, _ = NOISY_INIT(KEY, X)
    keys = jax.random.split(KEY, len(X))

    def value_and_gradient(fn):
        def loss(params, x):
            return label_loss(fn(params, x, keys))

        return jax.value_and_grad(loss, (0, 1))(params, X)

    numbers = (2, 16)
    wanted, *found = jax.jit(
        lambda: [
            value_and_gradient(fn)
            for fn in (embed, *(siamese.in_chunks(embed, number) for number in numbers))
        ]
    )()
    for of_chunks in found:
        assert_close(of_chunks, wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(wanted[1][1]).min(axis=1).max() > 1e-4  # each example has a gradient


@pytest.mark.slow
def test_the_gradient_needs_the_activations_of_one_chunk():
    params, x = jnp.ones((32, 256)) / 16, jnp.ones((1024, 32))

    def apply_fn(params, x):
        hidden = jnp.tanh(x @ params)
        for _ in range(6):
            hidden = jnp.tanh(hidden) + jnp.sin(hidden)
        return hidden[:, :4]

    def temporaries(num_chunks):
        encode = siamese.in_chunks(apply_fn, num_chunks)
        gradient = jax.jit(jax.grad(lambda params, x: jnp.sum(encode(params, x) ** 2)))
        return gradient.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    one, eight = temporaries(1), temporaries(8)
    activations = 4 * 1024 * 256  # bytes of one layer
    assert one > 4 * activations
    assert eight < one / 4


def test_each_input_of_a_twin_is_cut_and_trees_stay_trees():
    pair = {"x": jnp.stack([X, X + 1]), "id": jnp.arange(32).reshape(2, 16)}
    shifts = jnp.arange(32.0).reshape(2, 16)
    sizes = set()

    def apply_fn(params, inputs, shift):
        sizes.add(inputs["x"].shape)
        return params * inputs["x"] + shift[:, None], (inputs["id"],)

    chunked = siamese.twin(siamese.in_chunks(apply_fn, 4))
    embeddings, (ids,) = chunked(2.0, pair, shifts)
    np.testing.assert_array_equal(embeddings, 2 * pair["x"] + shifts[:, :, None])
    np.testing.assert_array_equal(ids, pair["id"])
    assert sizes == {(4, 6), (8, 6)}  # a chunk, and the trial of twice as many rows


def test_statistics_are_taken_as_given_and_refused_where_they_are_returned():
    params, statistics = NORMED_INIT(KEY, X)
    statistics = jax.tree.map(lambda leaf: leaf + 0.5, statistics)

    def as_given(params, x):
        return NORMED_APPLY(params, x, statistics=statistics)

    found = siamese.in_chunks(as_given, 4)(params, X)
    np.testing.assert_allclose(found, as_given(params, X), rtol=1e-5, atol=1e-6)

    def trained(params, x):
        return NORMED_APPLY(params, x, statistics=statistics, train=True)

    # with 4 chunks a chunk has 4 rows, as many as there are means
    with pytest.raises(ValueError, match=r"result.*batch_stats.*mean.*\(4,\) for 4 exam"):
        jax.eval_shape(siamese.in_chunks(trained, 4), params, X)


def test_a_network_without_statistics_may_return_none_of_them():
    params, _ = NOISY_INIT(KEY, X)

    def apply_fn(params, x):
        return NOISY_APPLY(params, x, key=KEY, train=True)

    embeddings, statistics = jax.eval_shape(siamese.in_chunks(apply_fn, 2), params, X)
    assert embeddings.shape == (16, 4)
    assert statistics == {}


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(0)], ids=["typed", "raw"])
def test_one_key_for_all_examples_is_refused_with_what_to_pass(key):
    with as_for_a_user(), pytest.raises(ValueError, match=r"one key for each example.*16"):
        siamese.in_chunks(embed, 2)({}, X, key)


def test_no_chunk_is_refused_before_any_input():
    with pytest.raises(ValueError, match="num_chunks must be at least 1; got 0"):
        siamese.in_chunks(embed, 0)


@pytest.mark.slow
def test_each_device_computes_rows_of_its_own_in_every_chunk():
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, Spec("devices")))
    encode = siamese.in_chunks(lambda params, x: jnp.tanh(x @ params), 4)
    params = jax.device_put(jnp.ones((6, 3)), NamedSharding(mesh, Spec()))
    gradient = jax.jit(jax.grad(lambda params, x: jnp.sum(encode(params, x) ** 2)))
    text = gradient.lower(params, x).compile().as_text()
    assert "all-reduce" in text  # of the gradient
    for movement in ("all-gather", "all-to-all", "collective-permute"):
        assert movement not in text
    np.testing.assert_allclose(
        gradient(params, x), gradient(jnp.ones((6, 3)), X), rtol=1e-5
    )
