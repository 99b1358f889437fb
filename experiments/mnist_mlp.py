"""Contrastive loss on MNIST pairs: the Keras siamese multilayer perceptron.

Source:  the Keras example "mnist_siamese" (2015): dense 128 x 3, dropout, contrastive loss
         of margin 1, RMSprop, batch 128, 20 epochs.
Run:     python -m experiments.mnist_mlp --dropout 0.1 --workdir runs/mnist_mlp
         python -m experiments.mnist_mlp --recipe tuned --dropout 0.1 --workdir runs/tuned
Expect:  pair_accuracy .9708 +- .0011 over three seeds (Keras: .972), .9303 with dropout .5;
         tuned .9857 +- .0011; some 45 s of training on two CPU cores
Quick:   python -m experiments.mnist_mlp --dataset digits --num-steps 900 --workdir runs/q

Needs MNIST in TFDS form (`python -m experiments.data mnist`); `--dataset digits` takes
scikit-learn's small digits instead. The tutorial's pairs are made once and shuffled each
epoch; `--pairs fresh` draws new ones of the same images at every step. Its accuracy is that
of "same if the distance is below .5"; as written for tf.keras it has dropout .1 in later
versions and .5 in the first; .5 is the default here.

`--recipe tuned` keeps the encoder and the number of images embedded: a step takes the 256
images of 128 pairs as ten digits x 25, compares all with all (supervised contrastive loss
of cosine similarities), and Adam's rate falls to zero.

Images beyond the size of the smallest class are in no tutorial pair. None is trained on;
they calibrate the tuned recipe's threshold and the probabilities of both.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import digits, optimizers, pairs, run
from experiments.model import Model
from siamese_jax import distances, losses, samplers, training
from siamese_jax.encoders import MnistMlp


@dataclasses.dataclass(frozen=True)
class Config(pairs.PairConfig):
    """The tutorial's settings."""

    experiment: ClassVar[str] = "mnist_mlp"

    num_steps: int = 16_940  # 20 epochs of 108,400 pairs
    steps_per_call: int = 847  # one epoch
    checkpoint_every: int = 3_388

    dataset: Literal["mnist", "digits"] = "mnist"
    recipe: Literal["tutorial", "tuned"] = "tutorial"
    pairs: Literal["fixed", "fresh"] = "fixed"  # the tutorial's, or new at each step
    dropout: float = 0.5  # .1 in later versions of the tutorial
    margin: float = 1.0
    learning_rate: float = 1e-3


TUTORIAL_THRESHOLD = 0.5


# Training -------------------------------------------------------------------------------


def make_encoder(config: Config) -> MnistMlp:
    """The tutorial's network."""
    return MnistMlp(dropout=config.dropout)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Keras's RMSprop; tuned: AdamW, one cosine cycle."""
    if config.recipe == "tutorial":
        return optimizers.rmsprop(config.learning_rate)
    schedule = optax.cosine_onecycle_schedule(config.num_steps, config.learning_rate, 0.1)
    return optax.adamw(schedule, weight_decay=1e-4)


def initial_state(config: Config) -> training.TrainState:
    """Random parameters from the seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # no step has it
    image = jnp.zeros((1, *digits.image_shape(config.dataset)))
    params = make_encoder(config).init(key, image)["params"]
    if config.recipe == "tuned":
        params = {"encoder": params, "log_temperature": jnp.log(0.1)}
    return training.init_state(params, make_optimizer(config))


def embed(config: Config, params: Any, images: jax.Array, key: jax.Array) -> Any:
    """Embeddings in training, with dropout."""
    rngs = {"dropout": key}
    return make_encoder(config).apply({"params": params}, images, train=True, rngs=rngs)


def loss_fn(
    config: Config, params: Any, statistics: Any, batch: pairs.Batch, key: jax.Array
) -> Any:
    """Contrastive loss without the factor 1/2, as the tutorial has it."""
    a, b = pairs.embed_both(config, partial(embed, config))(params, batch.images, key)
    loss = losses.contrastive_loss(
        distances.euclidean_distance(a, b),
        batch.same,
        margin=config.margin,
        factor=1.0,
        where=batch.where,
    )
    return loss, (statistics, {})


def tuned_loss_fn(
    config: Config, params: Any, statistics: Any, batch: digits.LabelledBatch, key: Any
) -> Any:
    """Each image finds the others of its digit among all of the batch."""
    encode = training.with_compute_dtype(partial(embed, config), config.compute_dtype)
    embeddings = encode(params["encoder"], batch.images, key)
    loss = digits.supervised_loss(embeddings, batch.labels, params["log_temperature"])
    return loss, (statistics, {"temperature": jnp.exp(params["log_temperature"])})


def train_steps(
    config: Config,
    key: jax.Array,
    state: training.TrainState,
    data: pairs.Data,
    num_steps: int,
) -> tuple[training.TrainState, training.Metrics]:
    """Many steps as one program."""
    optimizer = make_optimizer(config)
    if config.recipe == "tutorial":
        fn = partial(loss_fn, config)
        return pairs.train_steps(config, fn, optimizer, key, state, data, num_steps)

    return training.train_steps(
        key,
        state,
        data,
        num_steps=num_steps,
        batch_fn=partial(digits.sample_labelled, config),
        loss_fn=partial(tuned_loss_fn, config),
        optimizer=optimizer,
    )


# Use and evaluation ---------------------------------------------------------------------


def load_model(config: Config) -> Model:
    """The trained encoder; tuned, its embeddings are on the unit sphere."""
    tuned = config.recipe == "tuned"
    params = run.load_state(config, initial_state(config)).params

    def embed_fn(params: Any, images: jax.Array) -> Any:
        embeddings: Any = make_encoder(config).apply({"params": params}, images)
        return distances.normalize(embeddings) if tuned else embeddings

    params = params["encoder"] if tuned else params
    return Model(params, embed_fn, digits.image_shape(config.dataset))


def check(config: Config) -> None:
    """Refuses settings that make no sense."""
    if not 0 <= config.dropout < 1:
        raise run.UserError(f"dropout must be in [0, 1); got {config.dropout}")
    if config.margin <= 0:
        raise run.UserError(f"margin must be positive; got {config.margin}")
    if config.recipe == "tuned":
        digits.check_batch_size(config)


def main(config: Config) -> None:
    """Loads, trains, judges, reports."""
    check(config)
    if not run.start(config):
        return
    splits = digits.load_splits(config.dataset)
    seen, unseen = splits.seen, splits.unseen
    training_pairs = pairs.adjacent_pairs(seen.labels, np.random.default_rng(config.seed))
    fixed = config.pairs == "fixed" and config.recipe == "tutorial"
    data = pairs.Data(
        jnp.asarray(seen.images),
        pairs=jax.tree.map(jnp.asarray, training_pairs) if fixed else None,
        classes=None if fixed else samplers.class_index(seen.labels),
    )
    trained = run.train(
        config,
        initial_state(config),
        data,
        partial(train_steps, config),
        images_per_step=2 * config.batch_size,
    )
    rng = np.random.default_rng(digits.TEST_SEED)
    test_pairs = pairs.adjacent_pairs(unseen.labels, rng)
    threshold = TUTORIAL_THRESHOLD if config.recipe == "tutorial" else None
    conclusion = digits.conclude(
        config, splits, training_pairs, test_pairs, threshold=threshold
    )
    run.finish(config, conclusion.metrics, trained)  # first: a report can be made again
    title = f"Pairs of digits: {config.dataset}"
    digits.write_report(config, title, splits, conclusion)


if __name__ == "__main__":
    run.command_line(main, Config)
