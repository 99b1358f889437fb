"""Tests that hold for every encoder: training, the twin, and programs for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config

from siamese_jax import encoders
from siamese_jax.siamese import from_flax, twin
from tests.test_encoders import KEY, count, shapes

pytestmark = pytest.mark.slow

# Every encoder --------------------------------------------------------------------------

SMALL = {
    "MnistConv": (encoders.MnistConv(8), (28, 28)),
    "MnistMlp": (encoders.MnistMlp(dim=8), (28, 28)),
    "MnistTower": (encoders.MnistTower(8), (28, 28)),
    "OrlConv": (encoders.OrlConv(dim=4), (56, 46)),
    "OrlConv, stride 3": (encoders.OrlConv(3, dim=4), (56, 46)),
    "KochConv": (encoders.KochConv(8, (5, 4, 3, 3)), (53, 53)),
    "ConvNet": (encoders.ConvNet((4, 8), 4), (12, 12)),
    "ResNet": (encoders.ResNet(4, (4, 8), dim=4), (24, 24)),
    "Standardized": (encoders.Standardized(encoders.ConvNet((4,), 4)), (8, 8)),
    "GradientMap": (encoders.GradientMap(), (24, 20)),
}
EVERY = pytest.mark.parametrize(("module", "size"), SMALL.values(), ids=SMALL)


def images_and_variables(module, num, size):
    """Random images, parameters and statistics, drawn without compiling `init`."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((num, *size, 1), np.float32))
    params, statistics = jax.eval_shape(from_flax(module).init, KEY, images)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1])
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(leaf.dtype)

    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), statistics)
    return images, jax.tree.map(draw, params), ones


@EVERY
def test_a_pair_by_vmap_is_the_flattened_batch(module, size):
    _, apply = from_flax(module)
    flat, params, statistics = images_and_variables(module, 6, size)
    pair = flat.reshape(2, 3, *size, 1)

    def embed(params, x):
        return apply(params, x, statistics=statistics)

    def loss(fn, params, x):
        return jnp.sum(jnp.sin(fn(params, x)))

    found = jax.jit(jax.value_and_grad(lambda p: loss(twin(embed), p, pair)))(params)
    wanted = jax.jit(jax.value_and_grad(lambda p: loss(embed, p, flat)))(params)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert np.abs(a - b).max() <= 2e-5 * max(1e-3, np.abs(b).max())


@EVERY
def test_training_gives_embeddings_and_statistics(module, size):
    _, apply = from_flax(module)
    x, params, statistics = images_and_variables(module, 3, size)
    embeddings, changed = jax.jit(
        lambda p, s: apply(p, x, statistics=s, key=KEY, train=True)
    )(params, statistics)
    in_use = jax.eval_shape(lambda p, s: apply(p, x, statistics=s), params, statistics)
    assert embeddings.shape == in_use.shape
    assert jax.tree.structure(changed) == jax.tree.structure(statistics)
    for a, b in zip(*map(jax.tree.leaves, (changed, statistics)), strict=True):
        assert (a != b).any()


@EVERY
def test_derivatives_may_go_forward(module, size):
    images, params, statistics = images_and_variables(module, 2, size)

    def embed(params):
        return from_flax(module).apply(params, images, statistics=statistics)

    def sum_of_changes(params):
        embeddings, changes = jax.jvp(embed, (params,), (params,))
        return jnp.sum(embeddings * changes)

    jax.eval_shape(jax.grad(sum_of_changes), params)


@EVERY
def test_on_accelerators_it_is_the_plain_network(module, size):
    """No transposes, no grouped convolutions, and a pair takes those of one batch."""
    init, apply = from_flax(module)
    params, statistics = jax.eval_shape(init, KEY, jnp.zeros((1, *size, 1)))

    def embed(params, statistics, x):
        return apply(params, x, statistics=statistics)

    def loss(fn, params, statistics, x):
        return jnp.sum(jnp.sin(fn(params, statistics, x)))

    def lowered(fn, *shape):
        x = jax.ShapeDtypeStruct((*shape, *size, 1), jnp.float32)
        exported = jax.export.export(jax.jit(fn), platforms=("cuda",))
        return exported(params, statistics, x).mlir_module()

    def gradient(fn):
        return jax.value_and_grad(lambda *args: loss(fn, *args))

    paired = jax.vmap(embed, in_axes=(None, None, 0))
    forward = lowered(embed, 6)
    if not isinstance(module, encoders.GradientMap):  # whose einsums have them
        assert "stablehlo.transpose" not in forward
    for text, pairs in (
        (forward, lowered(paired, 2, 3)),
        (lowered(gradient(embed), 6), lowered(gradient(paired), 2, 3)),
    ):
        assert text.count("stablehlo.convolution") == pairs.count("stablehlo.convolution")
        for line in (text + pairs).splitlines():
            if "stablehlo.convolution" in line:
                assert "batch_group_count = 1 " in line
                assert "feature_group_count = 1 " in line
    assert ("convolution" in forward) == any("Conv_" in str(k) for k in _paths(params))


def _paths(params):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]


@EVERY
def test_parameters_have_the_names_and_layout_of_flax(module, size):
    params = jax.eval_shape(from_flax(module).init, KEY, jnp.zeros((1, *size, 1)))[0]
    for path, leaf in jax.tree.leaves_with_path(params):
        *_, layer, name = (entry.key for entry in path)
        assert layer.rsplit("_", 1)[0] in ("Conv", "Dense", "BatchNorm")
        assert name in ("kernel", "bias", "scale")
        if layer.startswith("Conv") and name == "kernel":
            assert leaf.shape[0] == leaf.shape[1] <= leaf.shape[3] + 1


def test_the_width_of_the_perceptron_is_not_its_dimension():
    variables = shapes(encoders.MnistMlp(dim=5, width=7), jnp.zeros((1, 2, 3, 1)))
    assert count(variables) == 6 * 7 + 7 + 7 * 7 + 7 + 7 * 5 + 5
    variables = shapes(encoders.MnistMlp(dim=5), jnp.zeros((1, 2, 3, 1)))
    assert count(variables) == 6 * 128 + 128 + 128 * 128 + 128 + 128 * 5 + 5


# Strips of rows ------------------------------------------------------------------------


@pytest.mark.parametrize("height", [3, 7, 8])
def test_the_convolutional_net_embeds_strip_by_strip_as_it_does_in_training(height):
    encoder = encoders.MnistConv(5)
    images = jax.random.normal(KEY, (4, height, 6, 1))
    variables = jax.jit(encoder.init)(KEY, images)

    def loss(variables, *, train):
        return jnp.sum(jnp.sin(encoder.apply(variables, images, train=train)))

    of_strips, at_once = (
        jax.jit(jax.value_and_grad(partial(loss, train=train)))(variables)
        for train in (False, True)
    )
    for found, wanted in zip(*map(jax.tree.leaves, (of_strips, at_once)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert at_once[0] != 0


def test_the_convolutional_net_sums_its_strips_in_float32():
    encoder, images = encoders.MnistConv(5), jax.random.uniform(KEY, (4, 28, 28, 1))
    variables = jax.jit(encoder.init)(KEY, images)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (variables, images))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    found, wanted = jax.jit(encoder.apply)(*half), jax.jit(encoder.apply)(*wide)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, wanted.astype(jnp.bfloat16))


# Sizes ----------------------------------------------------------------------------------

LEAST = {
    "MnistConv": (encoders.MnistConv(8), (3, 3)),
    "MnistMlp": (encoders.MnistMlp(dim=8), (1, 1)),
    "MnistTower": (encoders.MnistTower(8), (1, 1)),
    "OrlConv": (encoders.OrlConv(dim=4), (10, 10)),
    "OrlConv, stride 2": (encoders.OrlConv(2, dim=4), (21, 21)),
    "OrlConv, stride 3": (encoders.OrlConv(3, dim=4), (36, 36)),
    "KochConv": (encoders.KochConv(8), (65, 65)),
    "KochConv, half": (encoders.KochConv(8, (5, 4, 3, 3)), (42, 42)),
    "KochConv, tiny": (encoders.KochConv(8, (1, 2, 1, 2)), (18, 18)),
    "ConvNet": (encoders.ConvNet(), (8, 8)),
    "ConvNet, no block": (encoders.ConvNet((), 4), (1, 1)),
    "ConvNet, five blocks": (encoders.ConvNet((2,) * 5, 4), (32, 32)),
    "ResNet": (encoders.ResNet(4, (4, 8), dim=4), (15, 15)),
    "ResNet, one stage": (encoders.ResNet(4, (4,), 2, dim=4), (7, 7)),
    "ResNet, three stages": (encoders.ResNet(2, (2, 2, 2), dim=4), (31, 31)),
    "Standardized": (encoders.Standardized(encoders.ConvNet((4, 4), 4)), (4, 4)),
    "GradientMap": (encoders.GradientMap(), (6, 5)),
    "GradientMap, one cell": (encoders.GradientMap((1, 3), 4), (2, 3)),
}


def test_every_encoder_has_a_least_size():
    networks = {type(module) for module, _ in LEAST.values()}
    for name in encoders.__all__:
        thing = getattr(encoders, name)
        if "least_size" in vars(thing):
            assert thing in networks
        else:  # a head, a layer or a function
            assert name.endswith("Head") or name in ("Dropout", "oriented_gradients")


@pytest.mark.parametrize(("module", "least"), LEAST.values(), ids=LEAST)
def test_images_that_are_too_small_are_refused_by_name(module, least, monkeypatch):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # as for a user
    assert module.least_size == least
    height, width = least
    init, apply = from_flax(module)

    def embed(*shape, dtype=jnp.float32):
        images = jnp.zeros(shape, dtype)
        params, statistics = init(KEY, images)
        return apply(params, images, statistics=statistics)

    def traced(*shape, **options):
        return jax.eval_shape(lambda: embed(*shape, **options))

    embeddings = jax.jit(lambda: embed(2, height, width, 1))()
    assert embeddings.shape[0] == 2
    assert embeddings.size > 0
    assert np.isfinite(embeddings).all()
    name = type(getattr(module, "net", module)).__name__
    for found in ((height - 1, width), (height, width - 1)):
        words = f"{name} needs images of at least {height} x {width}; got "
        with pytest.raises(ValueError, match=f"{words}{found[0]} x {found[1]}"):
            traced(2, *found, 1)
    with pytest.raises(ValueError, match=r"needs images \[n, height, width, channels\]"):
        traced(2, height, width)
    with pytest.raises(TypeError, match="images must be a floating-point array"):
        traced(2, height, width, 1, dtype=jnp.uint8)


def test_images_of_another_size_than_the_initial_ones_are_refused():
    encoder = encoders.MnistConv(4)
    variables = encoder.init(KEY, jnp.zeros((1, 6, 6, 1)))
    for shape, words in (
        ((2, 8, 8, 1), "got 8 x 8 with 1"),
        ((2, 6, 6, 3), "got 6 x 6 with 3"),
    ):
        for apply in (encoder.apply, jax.jit(encoder.apply)):
            with pytest.raises(ValueError, match=f"of the size and channels .* {words}"):
                apply(variables, jnp.zeros(shape))


def test_standardized_images_hide_light_and_contrast():
    net = encoders.Standardized(encoders.ConvNet((4,), 3))
    images, params, statistics = images_and_variables(net, 3, (8, 8))
    apply = jax.jit(lambda x: from_flax(net).apply(params, x, statistics=statistics))
    found, other = (apply(x) for x in (images, 0.5 * images + 0.3))
    np.testing.assert_allclose(found, other, atol=0.02)
    assert np.abs(found).max() > 0.1


def test_a_blank_image_is_standardized_with_a_gradient():
    net = encoders.Standardized(encoders.ConvNet((4,), 3))
    images, params, statistics = images_and_variables(net, 3, (8, 8))
    images = images.at[0].set(0.5)

    def loss(x):
        return jnp.sum(from_flax(net).apply(params, x, statistics=statistics) ** 2)

    gradient = jax.jit(jax.grad(loss))(images)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max(axis=(1, 2, 3))[1:].min() > 0


def test_oriented_gradients_by_hand():
    # lighter downwards, evenly: one direction of four, the same in every inner cell
    ramp = np.tile(np.linspace(0, 1, 24)[:, None], 20)[None, ..., None]
    ramp = jnp.asarray(ramp, jnp.float32)
    gradients = jax.jit(lambda images: encoders.oriented_gradients(images, (6, 5), 4))
    found = np.asarray(gradients(ramp)).reshape(6, 5, 4)
    np.testing.assert_allclose(found[..., 1], 1, atol=0.06)  # sin 90 degrees: down
    np.testing.assert_allclose(found[..., [0, 2, 3]], 0, atol=1e-5)
    upside_down = gradients(1 - ramp).reshape(6, 5, 4)
    np.testing.assert_allclose(upside_down[..., 3], found[..., 1], atol=1e-5)
    # contrast and brightness change next to nothing
    np.testing.assert_allclose(
        gradients(0.5 * ramp + 0.2).reshape(6, 5, 4),
        found,
        atol=0.1,
    )
    # the learnt map is the identity at first
    net = encoders.GradientMap(cells=(6, 5), num_directions=4)
    embedding, _ = jax.jit(net.init_with_output)(KEY, ramp)
    np.testing.assert_allclose(embedding.reshape(6, 5, 4), found, rtol=1e-5, atol=1e-6)


# Activations that are computed again ----------------------------------------------------

DEEP = {
    "KochConv": (encoders.KochConv(8, (5, 4, 3, 3)), (2, 53, 53, 1)),
    "ConvNet": (encoders.ConvNet((4, 8), 4), (3, 12, 12, 1)),
    "ResNet": (encoders.ResNet(4, (4, 8), 2, 4), (3, 24, 24, 1)),
}


@pytest.mark.parametrize(("plain", "shape"), DEEP.values(), ids=DEEP)
def test_less_is_kept_for_the_same_gradient_if_activations_are_computed_again(plain, shape):
    images = jax.random.uniform(KEY, shape)
    again = plain.clone(remat=True)
    variables, same = (jax.jit(from_flax(net).init)(KEY, images) for net in (plain, again))
    jax.tree.map(np.testing.assert_array_equal, same, variables)

    def loss(module, params):
        embeddings, changed = from_flax(module).apply(
            params, images, statistics=variables[1], key=KEY, train=True
        )
        return jnp.sum(jnp.sin(embeddings)), changed

    def gradient(module):
        return jax.value_and_grad(lambda params: loss(module, params), has_aux=True)

    both = jax.jit(lambda params: [gradient(net)(params) for net in (again, plain)])
    found, wanted = both(variables[0])
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())

    def kept(module):
        """Numbers in memory between the forward and the backward pass."""
        backward = jax.eval_shape(
            lambda p: jax.vjp(lambda p: loss(module, p)[0], p)[1], variables[0]
        )
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    params = sum(leaf.size for leaf in jax.tree.leaves(variables[0]))
    assert kept(again) - params < 0.7 * (kept(plain) - params)
