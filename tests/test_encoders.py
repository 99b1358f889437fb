"""Every network has the parameters its source says, and runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import encoders
from siamese_jax.convolution import convolution, max_pool
from siamese_jax.distances import euclidean_distance
from siamese_jax.siamese import twin


def count(variables):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def shapes(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)


@pytest.mark.parametrize(
    ("encoder", "size", "num_parameters", "dim"),
    [
        (encoders.MnistConv(), (28, 28), 320 + 21_632 * 128 + 128, 128),
        (encoders.MnistMlp(), (28, 28), 784 * 128 + 128 + 2 * (128 * 128 + 128), 128),
        (encoders.OrlConv(stride=1), (56, 46), 60 + 660 + 1440 * 128 + 128 + 6_450, 50),
        (encoders.OrlConv(stride=3), (56, 46), 60 + 660 + 12 * 128 + 128 + 6_450, 50),
        (encoders.KochConv(), (105, 105), 38_951_745 - 4_097, 4_096),
        (encoders.KochConv(kernel_sizes=(5, 4, 3, 3)), (53, 53), 4_774_016, 4_096),
        (encoders.MnistTower(), (28, 28), 100_480, 128),
        (
            encoders.ConvNet(widths=(8, 16), dim=4),
            (12, 12),
            72 + 16 + 8 * 9 * 16 + 32 + 16 * 9 * 4 + 4,
            4,
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "init") else None,
)
def test_number_of_parameters_and_shape(encoder, size, num_parameters, dim):
    images = jnp.zeros((2, *size, 1))
    variables = shapes(encoder, images)
    assert count(variables) == num_parameters
    assert jax.eval_shape(encoder.apply, variables, images).shape == (2, dim)


@pytest.mark.parametrize(
    ("encoder", "head", "towers", "num_parameters"),
    [
        (encoders.KochConv(), encoders.WeightedL1Head(), 1, 38_951_745),
        (encoders.MnistTower(), encoders.ConcatenationHead(), 2, 201_217),
        (encoders.MnistTower(), encoders.ConcatenationHead(), 1, 100_737),
        (encoders.MnistTower(), encoders.DistanceHead(), 1, 100_482),
    ],
)
def test_number_of_parameters_with_the_head(encoder, head, towers, num_parameters):
    size = 105 if isinstance(encoder, encoders.KochConv) else 28
    variables = shapes(encoder, jnp.zeros((1, size, size, 1)))
    embedding = jnp.zeros((1, encoder.dim))
    assert towers * count(variables) + count(shapes(head, embedding, embedding)) == (
        num_parameters
    )


def test_koch_is_initialised_as_the_paper_says():
    encoder = encoders.KochConv(dim=64)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 105, 105, 1)))["params"]
    assert abs(np.std(params["Conv_1"]["kernel"]) - 0.01) < 1e-3
    assert not params["Conv_0"]["bias"].any()
    assert abs(np.mean(params["Conv_1"]["bias"]) - 0.5) < 0.01
    assert abs(np.mean(params["Dense_0"]["bias"]) - 0.5) < 0.01


def test_heads_compute_what_they_say():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in range(2))
    head = encoders.DistanceHead()
    params = {"params": {"Dense_0": {"kernel": jnp.array([[-2.0]]), "bias": jnp.ones(1)}}}
    np.testing.assert_allclose(
        head.apply(params, a, b), 1 - 2 * euclidean_distance(a, b), rtol=1e-6
    )
    head = encoders.WeightedL1Head()
    params = {"params": {"weights": jnp.arange(4.0), "bias": jnp.array(0.5)}}
    wanted = np.abs(np.asarray(a - b)) @ np.arange(4.0) + 0.5
    np.testing.assert_allclose(head.apply(params, a, b), wanted, rtol=1e-5)
    head = encoders.ConcatenationHead()
    variables = head.init(jax.random.key(0), a, b)
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"])[:, 0]
    wanted = np.concatenate([a, b], axis=1) @ kernel
    np.testing.assert_allclose(head.apply(variables, a, b), wanted, rtol=1e-4, atol=1e-6)


def test_dropout_only_when_training():
    encoder = encoders.MnistMlp(dropout=0.5, dim=16)
    images = jnp.ones((2, 4, 4, 1))
    variables = encoder.init(jax.random.key(0), images)
    still = [encoder.apply(variables, images) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    dropped = [
        encoder.apply(variables, images, train=True, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 1)
    ]
    assert (dropped[0] != dropped[1]).any()


def test_the_small_net_shares_statistics_between_twins():
    encoder = encoders.ConvNet(widths=(4,), dim=3, joint=True)
    pair = jnp.asarray(np.random.default_rng(0).random((2, 3, 4, 4, 1)), jnp.float32)
    variables = encoder.init(jax.random.key(0), pair[0])

    def apply_fn(encoder, x):
        out, updates = encoder.apply(variables, x, train=True, mutable=["batch_stats"])
        return out, updates["batch_stats"]

    joint, _ = twin(lambda _, x: apply_fn(encoder, x), has_statistics=True)((), pair)
    flat, _ = apply_fn(encoders.ConvNet(widths=(4,), dim=3), pair.reshape(6, 4, 4, 1))
    np.testing.assert_allclose(joint.reshape(6, 3), flat, atol=1e-5)


def test_the_convolution_keeps_the_options_of_lax():
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.random((1, 5, 5, 2)), jnp.bfloat16)
    kernel = jnp.asarray(rng.random((3, 3, 2, 2)), jnp.bfloat16)
    numbers = ("NHWC", "HWIO", "NHWC")
    for padding in ("SAME", "VALID", ((-1, 0), (1, 1))):
        found = convolution(
            images, kernel, (1, 1), padding, preferred_element_type=jnp.float32
        )
        wanted = jax.lax.conv_general_dilated(
            images,
            kernel,
            (1, 1),
            padding,
            dimension_numbers=numbers,
            preferred_element_type=jnp.float32,
        )
        assert found.dtype == wanted.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-2)
    with pytest.raises(ValueError, match="window must be from 1 to 5; got 6"):
        max_pool(images, 6)
