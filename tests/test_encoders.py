"""Tests of the networks: their numbers of parameters, their outputs and gradients."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import encoders
from siamese_jax.distances import euclidean_distance
from siamese_jax.encoders import residual, tutorials
from siamese_jax.encoders._images_last import SWAP, PooledConv
from siamese_jax.siamese import TWIN_AXIS, twin

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


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
        (
            encoders.ResNet(stem=4, widths=(4, 8), num_blocks=2, dim=3),
            (24, 16),
            # kernels; scales and biases; what is left of 24 x 16 after four halvings
            (100 + 4 * 144 + 288 + 3 * 576 + 32) + 2 * (5 * 4 + 4 * 8) + 1 * 1 * 8 * 3 + 3,
            3,
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
    params = jax.jit(encoder.init)(KEY, jnp.zeros((1, 105, 105, 1)))["params"]
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
    np.testing.assert_array_equal(*(encoder.apply(variables, images) for _ in range(2)))
    train = jax.jit(
        lambda key: encoder.apply(variables, images, train=True, rngs={"dropout": key})
    )
    dropped = [train(jax.random.key(seed)) for seed in (0, 1)]
    assert (dropped[0] != dropped[1]).any()


def test_the_small_net_shares_statistics_between_twins():
    encoder = encoders.ConvNet(widths=(4,), dim=3, axis_name=TWIN_AXIS)
    pair = jnp.asarray(np.random.default_rng(0).random((2, 3, 4, 4, 1)), jnp.float32)
    variables = encoder.init(jax.random.key(0), pair[0])

    def apply_fn(encoder, x):
        out, updates = encoder.apply(variables, x, train=True, mutable=["batch_stats"])
        return out, updates["batch_stats"]

    joint, _ = twin(lambda _, x: apply_fn(encoder, x), has_statistics=True)((), pair)
    flat, _ = apply_fn(encoders.ConvNet(widths=(4,), dim=3), pair.reshape(6, 4, 4, 1))
    np.testing.assert_allclose(joint.reshape(6, 3), flat, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "window", "layout"),
    [
        (1, 1, "NHWC"),
        (1, 2, "NHWC"),
        (2, 1, "NHWC"),
        (2, 2, "NHWC"),
        (1, 1, "CHWN"),
        (1, 2, "CHWN"),
    ],
)
@pytest.mark.parametrize("channels", [1, 16])  # few: in one product; many: apart
def test_conv_is_the_convolution_of_flax_with_relu_and_pooling(
    stride, window, layout, channels
):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 13, 12, channels)))
    images = images.astype(jnp.float32)
    glorot, normal = nn.initializers.glorot_uniform(), nn.initializers.normal()
    if layout == "CHWN":
        conv = PooledConv(4, 3, window, glorot)
    else:
        conv = tutorials._conv(4, 3, stride=stride, window=window, bias_init=normal)
    plain = nn.Conv(
        4,
        (3, 3),
        stride,
        padding="VALID",
        kernel_init=glorot,
        bias_init=nn.initializers.zeros if layout == "CHWN" else normal,
    )
    turn = (3, 1, 2, 0) if layout == "CHWN" else (0, 1, 2, 3)  # its own inverse

    def ours(variables, images):
        x = conv.apply(variables, jnp.transpose(images, turn))
        return nn.relu(jnp.transpose(x, turn))

    def of_flax(variables, images):
        x = nn.relu(plain.apply(variables, images))
        return nn.max_pool(x, (window, window), (window, window))

    variables = plain.init(KEY, images)
    own = conv.init(KEY, jnp.transpose(images, turn))
    jax.tree.map(np.testing.assert_array_equal, own, variables)
    params = variables["params"]
    varied = params["bias"] + 0.3 * jax.random.normal(KEY, params["bias"].shape)
    variables = {"params": {**params, "bias": varied}}

    def loss(fn, *args):
        value = fn(*args)
        return jnp.sum(jnp.sin(value)), value

    def gradients(fn, *args):
        return jax.value_and_grad(partial(loss, fn), (0, 1), has_aux=True)(*args)

    run = jax.jit(lambda *args: [gradients(fn, *args) for fn in (ours, of_flax)])
    ((_, value), found), ((_, exact), wanted) = run(variables, images)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5 * np.abs(b).max())
    np.testing.assert_allclose(value, exact, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_net_of_faces_flattens_rows_columns_features(stride):
    # as Keras does: parameters of one layout serve the other
    encoder = encoders.OrlConv(stride, dim=5)
    images = jnp.asarray(np.random.default_rng(0).random((2, 56, 46, 1)), jnp.float32)
    variables = jax.jit(encoder.init)(KEY, images)

    def by_hand(params, x):
        for number, features in enumerate((6, 12)):
            conv = nn.Conv(features, (3, 3), stride, padding="VALID")
            x = nn.relu(conv.apply({"params": params[f"Conv_{number}"]}, x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(2, -1)
        for number in range(2):
            dense = params[f"Dense_{number}"]
            x = nn.relu(x @ dense["kernel"] + dense["bias"][None])
        return x

    found = jax.jit(encoder.apply)(variables, images)
    wanted = jax.jit(by_hand)(variables["params"], images)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert found.any()


@pytest.mark.parametrize(
    "encoder", [encoders.OrlConv(), encoders.MnistConv(), encoders.MnistMlp()]
)
def test_no_images_have_no_embeddings(encoder):
    size = (56, 46, 1) if isinstance(encoder, encoders.OrlConv) else (28, 28, 1)
    variables = shapes(encoder, jnp.zeros((1, *size)))
    found = jax.eval_shape(encoder.apply, variables, jnp.zeros((0, *size)))
    assert found.shape == (0, encoder.dim)


# Dropout --------------------------------------------------------------------------------


def drop(rate, key, x, train=True):
    return encoders.Dropout(rate).apply({}, x, train=train, rngs={"dropout": key})


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_dropout_keeps_entries_at_its_rate_independently(rate):
    shape = (64, 8, 16, 32)
    keys = jax.random.split(KEY, 3)
    dropped = jax.jit(jax.vmap(lambda key: drop(rate, key, jnp.full(shape, 3.0))))(keys)
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(dropped[kept], 3 / (1 - rate), rtol=1e-6)
    deviation = (rate * (1 - rate)) ** 0.5

    def assert_near_chance(sample, chance, spread):
        assert abs(sample.mean() - chance) < 4 * spread / sample.size**0.5

    for mask in kept:
        assert_near_chance(mask, 1 - rate, deviation)
        # of each line of entries too, none of which is favoured
        for axis in range(4):
            lines = mask.mean(axis=tuple(set(range(4)) - {axis}))
            count = mask.size / mask.shape[axis]
            assert (np.abs(lines - (1 - rate)) < 5 * deviation / count**0.5).all()
    # products of independent centred masks have mean 0 and deviation rate (1 - rate)
    centred = kept - (1 - rate)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert_near_chance(centred[a] * centred[b], 0, deviation**2)
    flat = centred[0].ravel()
    for distance in (1, 2, 3, 7, 32, 512, 4096):
        assert_near_chance(flat[distance:] * flat[:-distance], 0, deviation**2)


def test_dropout_depends_on_key_and_shape_alone():
    keys = jax.random.split(KEY)
    ones, numbers = jnp.ones((16, 32)), jnp.arange(1.0, 513.0).reshape(16, 32)
    first, again, other = (drop(0.5, key, ones) for key in (keys[0], keys[0], keys[1]))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(drop(0.5, keys[0], numbers), numbers * first)
    half = drop(0.5, keys[0], numbers.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half != 0, first != 0)


def test_dropout_gives_the_gradient_of_what_it_kept():
    (x,) = (jnp.asarray(np.random.default_rng(0).normal(size=(8, 9)), jnp.float32),)
    kept = drop(0.25, KEY, jnp.ones_like(x))
    gradient = jax.grad(lambda x: jnp.sum(drop(0.25, KEY, x) * x))(x)
    np.testing.assert_allclose(gradient, 2 * x * kept, rtol=1e-6)


def test_dropout_of_nothing_and_of_everything():
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(drop(0.0, KEY, x), x)
    np.testing.assert_array_equal(drop(0.5, KEY, x, train=False), x)
    np.testing.assert_array_equal(encoders.Dropout(0.5).apply({}, x, train=False), x)
    value, gradient = jax.value_and_grad(lambda x: drop(1.0, KEY, x).sum())(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, jnp.zeros_like(x))
    for rate in (1.5, -0.5):
        with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\]; got {rate}"):
            drop(rate, KEY, x)


def hashed(number, words):
    """Two rounds of MurmurHash3's finaliser, in Python's whole numbers."""
    low = 2**32 - 1

    def mixed(bits):
        bits ^= bits >> 16
        bits = bits * 0x85EBCA6B & low
        bits ^= bits >> 13
        bits = bits * 0xC2B2AE35 & low
        return bits ^ bits >> 16

    return mixed(mixed((number * 0x9E3779B9 + words[0]) & low) ^ words[-1])


class Words(nn.Module):
    """The key that a module at the root draws first."""

    @nn.compact
    def __call__(self):
        return jax.random.key_data(self.make_rng("dropout"))


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 5)])
def test_dropout_decides_by_the_hash_of_number_and_key(shape):
    words = Words().apply({}, rngs={"dropout": KEY}).tolist()
    assert len(set(words)) == 2
    bits = [hashed(number, words) for number in range(np.prod(shape))]
    for rate in (0.1, 0.5, 0.9):
        kept = drop(rate, KEY, jnp.ones(shape)) != 0
        wanted = [bit >= round(rate * 2**32) for bit in bits]
        np.testing.assert_array_equal(kept.ravel(), wanted)
    # to the bit: the entry of the least hash is the first to go
    least = min(bits) + 1
    dropped = drop(least / 2**32, KEY, jnp.ones(shape)).ravel() == 0
    assert np.flatnonzero(dropped).tolist() == [bits.index(min(bits))]
    assert drop(min(bits) / 2**32, KEY, jnp.ones(shape)).all()


def residual_by_hand(params, statistics, images):
    """`ResNet(4, (4, 8), 1)` in inference: NHWC, `lax`, formulas of the paper."""

    def convolve(x, name, stride=1):
        kernel = params[f"Conv_{name}"]["kernel"]
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=layout
        )

    def normalized(x, name):
        its, seen = params[f"BatchNorm_{name}"], statistics[f"BatchNorm_{name}"]
        scale = (its["scale"] / jnp.sqrt(seen["var"] + 1e-5))[None, None, None, :]
        mean, bias = seen["mean"][None, None, None, :], its["bias"][None, None, None, :]
        return nn.relu((x - mean) * scale + bias)

    def pooled(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    x = pooled(convolve(images, 0, stride=2))
    x = x + convolve(normalized(convolve(normalized(x, 0), 1), 1), 2)
    x = pooled(x)
    y = convolve(normalized(convolve(normalized(x, 2), 3), 3), 4)
    x = normalized(pooled(y + convolve(x, 5)), 4)
    dense = params["Dense_0"]
    return x.reshape(len(x), -1) @ dense["kernel"] + dense["bias"][None, :]


def test_the_residual_net_is_that_of_the_paper_and_bfloat16_is_near_it():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((3, 24, 16, 1)), jnp.float32)
    encoder = encoders.ResNet(stem=4, widths=(4, 8), dim=5)
    variables = jax.jit(encoder.init)(KEY, images)
    varied = jax.tree.map(
        lambda leaf: leaf + np.float32(0.3 * rng.random(leaf.shape)), variables
    )
    found = jax.jit(encoder.apply)(varied, images)
    by_hand = jax.jit(residual_by_hand)
    wanted = by_hand(varied["params"], varied["batch_stats"], images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    half = encoder.clone(dtype=jnp.bfloat16)
    near = jax.jit(half.apply)(varied, images)
    assert near.dtype == jnp.float32
    assert 0 < np.abs(near - found).max() < 0.03 * np.abs(found).max()


def test_the_residual_net_in_training_normalises_by_its_batch_and_keeps_count():
    images = jnp.asarray(np.random.default_rng(0).random((8, 16, 16, 1), np.float32))
    encoder = encoders.ResNet(stem=4, widths=(4,), dim=3, dtype=jnp.bfloat16)
    variables = jax.jit(encoder.init)(KEY, images)

    def loss(params):
        embeddings, changed = encoder.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(embeddings**2), changed["batch_stats"]

    gradients, changed = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(changed))
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
        assert leaf.any()
    kernel = variables["params"]["Conv_0"]["kernel"]

    @jax.jit
    def mean_of_the_stem(kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        stem = jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "SAME", dimension_numbers=layout
        )
        return jnp.mean(nn.max_pool(stem, (2, 2), (2, 2)), axis=(0, 1, 2))

    wanted = 0.1 * mean_of_the_stem(kernel)
    np.testing.assert_allclose(changed["BatchNorm_0"]["mean"], wanted, atol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "of_images", "is_last"),
    [
        (None, jnp.float32, False),
        (jnp.float32, jnp.bfloat16, False),
        (jnp.bfloat16, jnp.float32, True),
        (None, jnp.bfloat16, True),
    ],
)
def test_the_residual_net_has_the_images_last_in_half_precision_alone(
    dtype, of_images, is_last, monkeypatch
):
    """In float32 the convolution by Fourier transforms needs fewer multiplications."""
    by_platform, calls = residual.by_platform, []
    monkeypatch.setattr(
        residual,
        "by_platform",
        lambda *args, **options: calls.append(1) or by_platform(*args, **options),
    )
    encoder = encoders.ResNet(4, (4,), dim=3, dtype=dtype)
    images = jax.ShapeDtypeStruct((2, 16, 16, 1), of_images)
    jax.eval_shape(encoder.init, KEY, images)
    assert bool(calls) == is_last


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_residual_net_is_the_same_in_both_layouts(dtype):
    images = jnp.asarray(np.random.default_rng(0).random((4, 24, 16, 1), np.float32))
    layers = [
        residual._ResNetLayers(4, (4, 8), 2, 3, dtype, None, False, last)
        for last in (False, True)
    ]
    variables = jax.jit(layers[0].init)(KEY, images)
    own = jax.jit(layers[1].init)(KEY, images)
    jax.tree.map(np.testing.assert_array_equal, own, variables)

    def loss(net, params):
        embeddings, changed = net.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(embeddings**2), (embeddings, changed)

    wanted, found = (
        jax.jit(jax.value_and_grad(lambda p, net=net: loss(net, p), has_aux=True))(
            variables["params"]
        )
        for net in layers
    )
    limit = 4e-5 if dtype == jnp.float32 else 0.15  # each is 1e-5 from float64
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert np.abs(a - b).max() <= limit * max(np.abs(b).max(), 1e-2)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("stride", [1, 3])
def test_the_net_of_faces_is_the_same_in_both_layouts_and_drops_the_same(stride, train):
    images = jnp.asarray(np.random.default_rng(0).random((3, 56, 46, 1), np.float32))
    sizes = stride, (0.3, 0.3, 0.3), 5, None
    variables = jax.jit(tutorials._OrlLayers(*sizes).init)(KEY, images)
    variables = jax.tree.map(lambda a: a + 0.1 if a.ndim == 1 else a, variables)  # biases
    rngs = {"dropout": jax.random.key(1)}

    @jax.jit
    def apply(variables):
        return [
            tutorials._OrlLayers(*sizes, last).apply(
                variables, images, train=train, rngs=rngs
            )
            for last in (False, True)
        ]

    wanted, found = apply(variables)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert wanted.any()


def test_dropout_numbers_the_entries_in_the_order_of_its_axes():
    x = jnp.ones((3, 4, 5, 6))
    rngs = {"dropout": KEY}
    plain = encoders.Dropout(0.5).apply({}, x, train=True, rngs=rngs)
    swapped = encoders.Dropout(0.5, SWAP).apply(
        {}, jnp.transpose(x, SWAP), train=True, rngs=rngs
    )
    np.testing.assert_array_equal(jnp.transpose(swapped, SWAP), plain)
