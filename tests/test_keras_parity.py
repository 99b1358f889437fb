"""Tests that each system and its Keras model compute and train the same.

Keras runs on JAX here. The systems are made by `build(config)`, as for training.
Embeddings, outputs and losses are compared in float32, and the weights after ten steps in
float64. In float32 rounding changes the sign of tiny gradients, and Adam makes full-size
steps of them.
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
from experiments.engine import health
from experiments.engine.pair_batches import PairBatch
from experiments.engine.system import System
from experiments.systems import (
    mnist_conv,
    mnist_mlp,
    mnist_towers,
    omniglot_koch,
    orl_tutorial,
)
from siamese_jax import encoders, training
from siamese_jax.distances import euclidean_distance
from siamese_jax.siamese import from_flax, twin, two_towers

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
NUM_STEPS = 10
NUM_MASKED = 2  # pairs that pad our batch and must not count


class Row(NamedTuple):
    """A system in both forms, without dropout.

    Attributes:
      name: The name of the system.
      config: Our settings.
      options: The settings of the Keras model.
      encoder: Our encoder, a Flax module.
      answer_fn: `answer_fn(params, images)` gives what the Keras model gives, [n]. Without
        it the answer is the Euclidean distance.
      image_shape: Height, width and channels.
      num_pairs: Number of pairs that count in a batch.
      light: Scales the images so that distances lie on both sides of 1.
      own_towers: Whether each input has its own parameters.
    """

    name: str
    config: Any
    options: dict
    encoder: Any
    answer_fn: Any = None
    image_shape: tuple = (28, 28, 1)
    num_pairs: int = 8
    light: float = 1.0
    own_towers: bool = False

    def embed(self, params, images):
        """Images [2, n, ...] to embeddings [2, n, dim]."""
        both = two_towers if self.own_towers else twin
        return both(from_flax(self.encoder).apply)(params["encoder"], images)

    def answer(self, params, images):
        if self.answer_fn is not None:
            return self.answer_fn(params, images)
        return euclidean_distance(*self.embed(params, images))


def mlp_row():
    config = mnist_mlp.Config(dropout=0.0)
    return Row("mnist_mlp", config, {"dropout": 0.0}, encoders.MnistMlp(), light=0.33)


def conv_row(form):
    distort = {} if form == "literal" else {"distort": False}
    return Row(
        "mnist_conv",
        mnist_conv.Config(form=form, **distort),
        {"form": form},
        encoders.MnistConv(),
        light=0.28 if form == "literal" else 0.33,
    )


def towers_row(variant):
    def answer(params, images):
        tower = from_flax(encoders.MnistTower()).apply
        embeddings = mnist_towers.embed_fn(variant, tower)(params["encoder"], images)
        odds = mnist_towers.same_logits(variant, params["head"], embeddings)
        return jax.nn.sigmoid(odds)

    return Row(
        "mnist_towers",
        mnist_towers.Config(variants=(variant,)),
        {"variant": variant},
        encoders.MnistTower(),
        answer,
        light=0.2,
        own_towers=variant == "a",
    )


def orl_row(stride):
    still = (0.0, 0.0, 0.0)
    return Row(
        "orl_tutorial",
        orl_tutorial.Config(stride=stride, dropout=still),
        {"stride": stride, "dropout": still},
        encoders.OrlConv(stride=stride, dropout=still),
        image_shape=(56, 46, 1),
        light=0.7 if stride == 1 else 1.0,
    )


def koch_row(size, options, **settings):
    full = size == "full"
    encoder = encoders.KochConv() if full else encoders.KochConv(kernel_sizes=(5, 4, 3, 3))

    def answer(params, images):
        head = {"params": params["head"]}
        a, b = twin(from_flax(encoder).apply)(params["encoder"], images)
        return jax.nn.sigmoid(encoders.WeightedL1Head().apply(head, a, b))

    side = 105 if full else 53
    return Row(
        "omniglot_koch",
        omniglot_koch.Config(size=size, pixels="ink-1"),  # Keras is fed the same
        options,
        encoder,
        answer,
        image_shape=(side, side, 1),
        **settings,
    )


ROWS = {
    "mnist_mlp": mlp_row(),
    "mnist_conv literal": conv_row("literal"),
    "mnist_conv contrastive": conv_row("contrastive"),
    "orl_tutorial stride 1": orl_row(1),
    "orl_tutorial stride 3": orl_row(3),
    "omniglot_koch": koch_row(
        "half", {"image_size": 53, "kernel_sizes": (5, 4, 3, 3)}, num_pairs=2
    ),
    "mnist_towers a": towers_row("a"),
    "mnist_towers b": towers_row("b"),
    "mnist_towers c": towers_row("c"),
}


class Parity(NamedTuple):
    row: Row
    system: System
    reference: keras_reference.Reference
    params: Any


@pytest.fixture(scope="module", params=[name for name in ROWS if name != "omniglot_koch"])
def parity(request):
    return make_parity(ROWS[request.param])


@pytest.fixture(params=ROWS)
def parity_in_float64(request):
    with jax.enable_x64(True):
        set_precision("float64")
        yield make_parity(ROWS[request.param])
        set_precision("float32")


def set_precision(dtype):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def make_parity(row):
    """Parameters are drawn here: biases of 0 would hide that they are forgotten."""
    config = dataclasses.replace(row.config, compute_dtype=keras.config.floatx())
    row = row._replace(config=config)
    system = importlib.import_module(f"experiments.systems.{row.name}").build(config)
    shapes, _ = jax.eval_shape(system.init, KEY)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: draw_weights(rng, leaf.shape), shapes)
    reference = keras_reference.build(row.name, **row.options)
    with keras_allowed():
        keras_reference.set_weights(reference, params)
    return Parity(row, system, reference, params)


def draw_weights(rng, shape):
    scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
    return jnp.asarray(scale * rng.standard_normal(shape), keras.config.floatx())


def make_batch(row, seed):
    rng = np.random.default_rng(seed)
    shape = (2, row.num_pairs + NUM_MASKED, *row.image_shape)
    images = row.light * rng.random(shape) * (rng.random(shape) < 0.3)
    number = np.arange(row.num_pairs + NUM_MASKED)
    same, where = rng.permutation(number % 2 == 0), number < row.num_pairs
    return PairBatch(
        jnp.asarray(images, keras.config.floatx()), jnp.array(same), jnp.array(where)
    )


def for_keras(batch):
    """Left and right images and targets of the pairs that count."""
    counts = np.asarray(batch.where)
    inputs = [np.asarray(side)[counts] for side in batch.images]
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


def check_forward(parity):
    """Embeddings, answers and the loss."""
    row, system, reference, params = parity
    batch = make_batch(row, seed=0)
    inputs, same = for_keras(batch)
    with keras_allowed():
        *wanted, answers = with_embeddings(reference).predict_on_batch(inputs)
        wanted_loss = float(reference.model.test_on_batch(inputs, same))

    @jax.jit
    def ours(params, images):
        loss, _ = system.loss(params, {}, batch, KEY)
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


def test_embeddings_answers_and_losses_are_equal(parity):
    check_forward(parity)


def test_koch_in_full():
    row = koch_row("full", {}, num_pairs=2)
    parity = make_parity(row)
    assert parity.reference.model.count_params() == 38_951_745
    check_forward(parity)
    check_weights(parity)


def test_ten_steps_end_at_the_same_weights(parity_in_float64):
    row, system, reference, params = parity_in_float64
    state = training.init_state(params, system.optimizer, statistics={})
    loss_fn = health.unmeasured(system.loss)
    step = partial(training.train_step, loss_fn=loss_fn, optimizer=system.optimizer)
    step = jax.jit(step)
    for seed in range(NUM_STEPS):
        batch = make_batch(row, seed)
        with keras_allowed():
            wanted_loss = float(reference.model.train_on_batch(*for_keras(batch)))
        state, metrics = step(KEY, state, batch)
        assert metrics["loss"] == pytest.approx(wanted_loss, rel=1e-6)
    wanted = keras_reference.get_weights(reference)
    apart = subtract(state.params, wanted)
    assert max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(apart)) < 1e-6
    assert length(apart) < 1e-6 * length(subtract(wanted, params))


def test_weights_come_back_as_they_went(parity):
    check_weights(parity)


def check_weights(parity):
    found = keras_reference.get_weights(parity.reference)
    jax.tree.map(np.testing.assert_array_equal, found, parity.params)


def test_wrong_weights_and_systems_are_refused(parity):
    _, _, reference, params = parity
    wrong = jax.tree.map(lambda leaf: jnp.zeros((3, *leaf.shape)), params)
    with pytest.raises(ValueError, match="must have shape"):
        keras_reference.set_weights(reference, wrong)
    with pytest.raises(ValueError, match=r"params must have \["):
        keras_reference.set_weights(reference, {**params, "more": jnp.zeros(1)})
    with pytest.raises(ValueError, match="system must be one of mnist_mlp, mnist_conv"):
        keras_reference.build("mnist")
