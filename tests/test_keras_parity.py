"""Each experiment trains as its tutorial does: same numbers, same weights after ten steps.

Keras runs on JAX here. Our side is the experiment's own `loss_fn` and `make_optimizer`.
Answers are compared in float32. The ten steps are in float64: in float32 the signs of tiny
gradients differ by rounding, and Adam makes whole steps of them.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import dataclasses
import importlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from benchmarks import keras_reference
from experiments import mnist_conv, mnist_mlp, mnist_towers, omniglot_koch, orl_faces, pairs
from siamese_jax import encoders, training
from siamese_jax.distances import euclidean_distance
from siamese_jax.siamese import twin, two_towers

KEY = jax.random.key(0)
NUM_STEPS = 10
NUM_MASKED = 2  # pairs that fill up our batch, and do not count


class Row(NamedTuple):
    """A system in both forms, without dropout.

    `embed` maps our parameters and images [2, n, ...] to embeddings [2, n, dim], `answer`
    to what the Keras model gives, [n]. `seen` turns our images into what the net sees.
    `light` scales images so that distances lie on both sides of 1.
    """

    config: Any
    options: dict
    embed: Any
    answer: Any
    image_shape: tuple = (28, 28, 1)
    num_pairs: int = 8
    light: float = 1.0
    seen: Any = np.asarray


def apart(embed):
    return lambda params, images: euclidean_distance(*embed(params, images))


def mlp_row():
    config = mnist_mlp.Config(dropout=0.0)
    embed = twin(lambda params, x: mnist_mlp.embed(config, params, x, KEY))
    return Row(config, {"dropout": 0.0}, embed, apart(embed), light=0.33)


def conv_row(form):
    embed = twin(mnist_conv.embed)
    light = 0.28 if form == "literal" else 0.33
    config = mnist_conv.Config(form=form, distort=False)
    return Row(config, {"form": form}, embed, apart(embed), light=light)


def towers_row(variant):
    both = (two_towers if variant == "a" else twin)(mnist_towers.embed)

    def answer(params, images):
        return jax.nn.sigmoid(mnist_towers.logits(variant, params, images))

    return Row(
        mnist_towers.Config(variants=(variant,)),
        {"variant": variant},
        lambda params, images: both(params["towers"], images),
        answer,
        light=0.2,
    )


def orl_row(stride):
    still = (0.0, 0.0, 0.0)
    config = orl_faces.Config(stride=stride, dropout=still)
    encoder = orl_faces.make_encoder(config)
    embed = twin(lambda params, images: encoder.apply({"params": params}, images))
    options = {"stride": stride, "dropout": still}
    return Row(
        config,
        options,
        embed,
        apart(embed),
        image_shape=orl_faces.IMAGE_SHAPE,
        light=0.7 if stride == 1 else 1.0,
    )


def koch_row(size, options, **settings):
    config = omniglot_koch.Config(size=size)
    embed = twin(partial(omniglot_koch.embed, config))

    def answer(params, images):
        head = {"params": params["head"]}
        return jax.nn.sigmoid(encoders.WeightedL1Head().apply(head, *embed(params, images)))

    return Row(
        config,
        options,
        embed,
        answer,
        image_shape=omniglot_koch.image_shape(config),
        seen=lambda images: 1 - np.asarray(images),
        **settings,
    )


ROWS = {
    "mnist_mlp": mlp_row(),
    "mnist_conv literal": conv_row("literal"),
    "mnist_conv contrastive": conv_row("contrastive"),
    "orl_faces stride 1": orl_row(1),
    "orl_faces stride 3": orl_row(3),
    "omniglot_koch": koch_row(
        "half", {"image_size": 53, "kernel_sizes": (5, 4, 3, 3)}, num_pairs=2
    ),
    "mnist_towers a": towers_row("a"),
    "mnist_towers b": towers_row("b"),
    "mnist_towers c": towers_row("c"),
}


class System(NamedTuple):
    row: Row
    experiment: Any
    reference: keras_reference.Reference
    params: Any


@pytest.fixture(scope="module", params=[name for name in ROWS if name != "omniglot_koch"])
def system(request):
    return make_system(request.param.split()[0], ROWS[request.param])


@pytest.fixture(params=ROWS)
def system_in_float64(request):
    with jax.enable_x64(True):
        set_precision("float64")
        yield make_system(request.param.split()[0], ROWS[request.param])
        set_precision("float32")


def set_precision(dtype):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def make_system(name, row):
    """Parameters are drawn here: biases of 0 would hide that they are forgotten."""
    experiment = importlib.import_module(f"experiments.{name}")
    config = dataclasses.replace(row.config, compute_dtype=keras.config.floatx())
    row = row._replace(config=config)
    shapes = jax.eval_shape(partial(experiment.initial_state, row.config)).params
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: draw_weights(rng, leaf.shape), shapes)
    reference = keras_reference.build(name, **row.options)
    with keras_allowed():
        keras_reference.set_weights(reference, params)
    return System(row, experiment, reference, params)


def draw_weights(rng, shape):
    scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
    return jnp.asarray(scale * rng.standard_normal(shape), keras.config.floatx())


def make_batch(row, seed):
    rng = np.random.default_rng(seed)
    shape = (2, row.num_pairs + NUM_MASKED, *row.image_shape)
    images = row.light * rng.random(shape) * (rng.random(shape) < 0.3)
    number = np.arange(row.num_pairs + NUM_MASKED)
    same, where = rng.permutation(number % 2 == 0), number < row.num_pairs
    return pairs.Batch(
        jnp.asarray(images, keras.config.floatx()), jnp.array(same), jnp.array(where)
    )


def for_keras(row, batch):
    """Left and right as the net sees them, and targets; only the pairs that count."""
    counts = np.asarray(batch.where)
    inputs = [row.seen(side)[counts] for side in batch.images]
    return inputs, np.asarray(batch.same, np.float32)[counts][:, None]


def keras_allowed():
    """Keras adds biases by rank promotion."""
    return jax.numpy_rank_promotion("allow")


def largest_difference(found, wanted):
    """Relative to the largest number wanted."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    return np.max(np.abs(found - wanted)) / np.max(np.abs(wanted))


def length(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def subtract(a, b):
    return jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b)


def check_forward(system):
    """Embeddings, answers and the loss."""
    row, experiment, reference, params = system
    batch = make_batch(row, seed=0)
    inputs, same = for_keras(row, batch)
    with keras_allowed():
        *wanted, answers = with_embeddings(reference).predict_on_batch(inputs)
        wanted_loss = float(reference.model.test_on_batch(inputs, same))

    @jax.jit
    def ours(params, images):
        loss, _ = experiment.loss_fn(row.config, params, (), batch, KEY)
        return row.embed(params, images), row.answer(params, images), loss

    embeddings, found, loss = ours(params, batch.images[:, batch.where])
    assert largest_difference(embeddings, np.stack(wanted)) < 1e-5
    np.testing.assert_allclose(found, answers[:, 0], rtol=1e-5)
    assert np.ptp(answers) > 0.01
    assert loss == pytest.approx(wanted_loss, rel=1e-5)


def with_embeddings(reference):
    """The Keras model that gives both embeddings too."""
    left, right = reference.model.inputs
    embeddings = [reference.encoders[0](left), reference.encoders[-1](right)]
    return keras.Model([left, right], [*embeddings, reference.model.output])


def test_embeddings_answers_and_losses_are_equal(system):
    check_forward(system)


def test_koch_in_full():
    row = koch_row("full", {}, num_pairs=2)
    system = make_system("omniglot_koch", row)
    assert system.reference.model.count_params() == 38_951_745
    check_forward(system)
    check_weights(system)


def test_ten_steps_end_at_the_same_weights(system_in_float64):
    row, experiment, reference, params = system_in_float64
    optimizer = experiment.make_optimizer(row.config)
    state = training.init_state(params, optimizer)
    fn = partial(experiment.loss_fn, row.config)
    step = jax.jit(partial(training.train_step, loss_fn=fn, optimizer=optimizer))
    for seed in range(NUM_STEPS):
        batch = make_batch(row, seed)
        with keras_allowed():
            wanted_loss = float(reference.model.train_on_batch(*for_keras(row, batch)))
        state, metrics = step(KEY, state, batch)
        assert metrics["loss"] == pytest.approx(wanted_loss, rel=1e-6)
    wanted = keras_reference.get_weights(reference)
    apart = subtract(state.params, wanted)
    assert max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(apart)) < 1e-6
    assert length(apart) < 1e-6 * length(subtract(wanted, params))


def test_weights_come_back_as_they_went(system):
    check_weights(system)


def check_weights(system):
    found = keras_reference.get_weights(system.reference)
    jax.tree.map(np.testing.assert_array_equal, found, system.params)


def test_wrong_weights_and_systems_are_refused(system):
    _, _, reference, params = system
    wrong = jax.tree.map(lambda leaf: jnp.zeros((3, *leaf.shape)), params)
    with pytest.raises(ValueError, match="must have shape"):
        keras_reference.set_weights(reference, wrong)
    with pytest.raises(ValueError, match=r"params must have \["):
        keras_reference.set_weights(reference, {**params, "more": jnp.zeros(1)})
    with pytest.raises(ValueError, match="system must be one of mnist_mlp, mnist_conv"):
        keras_reference.build("mnist")
