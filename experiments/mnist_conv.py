"""A convolutional siamese net on MNIST pairs, as a public tutorial has it and put right.

Source:  a Keras sketch of one-shot learning: conv 32 of 3x3, dense 128, Euclidean distance,
         Adam, batch 128, 10 epochs.
Run:     python -m experiments.mnist_conv --workdir runs/mnist_conv
         python -m experiments.mnist_conv --form literal --workdir runs/mnist_conv_literal
Expect:  pair_accuracy .988 (one seed), 41 minutes of training on two busy CPU cores;
         the literal form is at chance, .49 after one epoch (--num-steps 847)
Quick:   python -m experiments.mnist_conv --dataset digits --num-steps 300 --workdir runs/q

The tutorial compiles its model with binary cross-entropy on the raw distance, and labels
same pairs 1. So it reads the distance as the probability of "same": the polarity is upside
down, a distance is no probability, and beyond 1 the clipped cross-entropy has no gradient.
`--form literal` does just that. The forms that are right:

contrastive  Hadsell's loss: same pairs are pulled together, others pushed to the margin
logistic     the log-odds of "same" are scale * (threshold - distance), both learnt
supervised   the 256 images of 128 pairs as ten digits x 25, all compared with all by the
             supervised contrastive loss of cosine similarities

They draw the same images afresh at every step, slightly distorted (`--no-distort`: as they
are), and Adam's rate falls to zero. Their `pair_accuracy` is at the threshold that is best
on validation pairs; the literal form's is that of the tutorial, "same if the distance is
above .5".
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
from siamese_jax import augment, distances, losses, samplers, training
from siamese_jax.encoders import MnistConv
from siamese_jax.siamese import threshold_logits


@dataclasses.dataclass(frozen=True)
class Config(pairs.PairConfig):
    """The tutorial's settings."""

    experiment: ClassVar[str] = "mnist_conv"

    num_steps: int = 8_470  # 10 epochs of 108,400 pairs
    steps_per_call: int = 77
    checkpoint_every: int = 847  # an epoch

    dataset: Literal["mnist", "digits"] = "mnist"
    form: Literal["supervised", "contrastive", "logistic", "literal"] = "supervised"
    distort: bool = True  # not in the literal form
    margin: float = 1.0
    learning_rate: float = 1e-3


DISTORTION = augment.Affine(
    max_rotation=10.0, max_shear=0.1, scale_range=(0.9, 1.1), max_shift=2.0
)


# Training -------------------------------------------------------------------------------


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Keras's Adam; the forms that are right let its rate fall to zero."""
    if config.form == "literal":
        return optimizers.adam(config.learning_rate)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    return optimizers.adam(schedule, eps=1e-8)


def initial_state(config: Config) -> training.TrainState:
    """Random parameters from the seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # no step has it
    image = jnp.zeros((1, *digits.image_shape(config.dataset)))
    params = {"encoder": MnistConv().init(key, image)["params"]}
    if config.form == "supervised":
        params |= {"log_temperature": jnp.log(0.1)}
    elif config.form == "logistic":
        params |= {"threshold": jnp.ones(()), "log_scale": jnp.zeros(())}
    return training.init_state(params, make_optimizer(config))


def embed(params: Any, images: jax.Array) -> Any:
    """Embeddings of the tutorial's network."""
    return MnistConv().apply({"params": params["encoder"]}, images)


def distort(config: Config, key: jax.Array, images: jax.Array) -> jax.Array:
    """A little affine distortion of every image of a batch [..., height, width, 1]."""
    if config.form == "literal" or not config.distort:
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    return augment.random_affine(key, flat, DISTORTION).reshape(images.shape)


def cross_entropy_of_distance(distance: jax.Array, same: jax.Array) -> jax.Array:
    """The tutorial's loss: a distance, clipped as Keras does, taken for P(same)."""
    probability = jnp.clip(distance, 1e-7, 1 - 1e-7)
    return -jnp.where(same, jnp.log(probability), jnp.log1p(-probability))


def loss_fn(
    config: Config, params: Any, statistics: Any, batch: pairs.Batch, key: jax.Array
) -> Any:
    """The loss of the form that is asked for."""
    images = distort(config, key, batch.images)
    a, b = pairs.embed_both(config, embed)(params, images)
    distance = distances.euclidean_distance(a, b)
    if config.form == "literal":
        values = cross_entropy_of_distance(distance, batch.same)
        loss = jnp.sum(values * batch.where) / jnp.sum(batch.where)
    elif config.form == "contrastive":
        loss = losses.contrastive_loss(
            distance, batch.same, margin=config.margin, factor=1.0, where=batch.where
        )
    else:
        logits = threshold_logits(
            distance, threshold=params["threshold"], scale=jnp.exp(params["log_scale"])
        )
        loss = losses.logistic_loss(logits, batch.same, where=batch.where)
    return loss, (statistics, {})


def supervised_loss_fn(
    config: Config, params: Any, statistics: Any, batch: digits.LabelledBatch, key: Any
) -> Any:
    """Each image finds the others of its digit among all of the batch."""
    encode = training.with_compute_dtype(embed, config.compute_dtype)
    embeddings = encode(params, distort(config, key, batch.images))
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
    if config.form != "supervised":
        fn = partial(loss_fn, config)
        return pairs.train_steps(config, fn, optimizer, key, state, data, num_steps)
    return training.train_steps(
        key,
        state,
        data,
        num_steps=num_steps,
        batch_fn=partial(digits.sample_labelled, config),
        loss_fn=partial(supervised_loss_fn, config),
        optimizer=optimizer,
    )


# Use ------------------------------------------------------------------------------------


def load_model(config: Config) -> Model:
    """The trained encoder; in the literal form the farthest are the most alike."""
    params = run.load_state(config, initial_state(config)).params

    def embed_fn(params: Any, images: jax.Array) -> Any:
        embeddings = embed(params, images)
        return (
            distances.normalize(embeddings) if config.form == "supervised" else embeddings
        )

    fitted = Model(params, embed_fn, digits.image_shape(config.dataset))
    if config.form != "literal":
        return fitted
    return fitted._replace(distance_fn=minus_distance, matrix_fn=minus_distance_matrix)


def minus_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """The tutorial's answer, with the sign that makes smaller closer."""
    return -distances.euclidean_distance(a, b)


def minus_distance_matrix(a: jax.Array, b: jax.Array) -> jax.Array:
    """The same for all pairs."""
    return -distances.euclidean_distance_matrix(a, b)


def main(config: Config) -> None:
    """Loads, trains, judges, reports."""
    if config.margin <= 0:
        raise run.UserError(f"margin must be positive; got {config.margin}")
    if config.form == "supervised":
        digits.check_batch_size(config)
    if not run.start(config):
        return
    splits = digits.load_splits(config.dataset)
    seen, unseen = splits.seen, splits.unseen
    training_pairs = pairs.adjacent_pairs(seen.labels, np.random.default_rng(config.seed))
    literal = config.form == "literal"
    data = pairs.Data(
        jnp.asarray(seen.images),
        pairs=jax.tree.map(jnp.asarray, training_pairs) if literal else None,
        classes=None if literal else samplers.class_index(seen.labels),
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
    threshold = -0.5 if literal else None
    conclusion = digits.conclude(
        config, splits, training_pairs, test_pairs, threshold=threshold
    )
    run.finish(config, conclusion.metrics, trained)  # first: a report can be made again
    title = f"Pairs of digits, convolutional: {config.form}"
    digits.write_report(config, title, splits, conclusion)


if __name__ == "__main__":
    run.command_line(main, Config)
