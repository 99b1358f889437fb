"""Batches of image pairs: from a fixed list that is shuffled each epoch, or drawn anew."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine.config import RunConfig, setting, stream
from experiments.engine.data import ClassData, gather
from experiments.engine.health import EMBEDDED, Embedded, embedded_pairs
from siamese_jax import distances, losses, reductions, samplers, sharding
from siamese_jax.errors import UserError
from siamese_jax.reductions import Terms
from siamese_jax.samplers import Pairs
from siamese_jax.siamese import twin
from siamese_jax.training import LossFn, with_compute_dtype


@dataclasses.dataclass(frozen=True)
class PairConfig(RunConfig):
    """The settings of every system that trains on pairs.

    Attributes:
      batch_size: Number of pairs in a batch.
    """

    batch_size: int = setting(128, at_least=1)


class PairData(NamedTuple):
    """All training images on the device, and a fixed list of pairs of them.

    Attributes:
      images: uint8 [num_images, height, width, channels].
      pairs: Numbers of the images of each pair [2, num_pairs], and whether they are of the
        same class [num_pairs].
    """

    images: jax.Array
    pairs: Pairs


class PairBatch(NamedTuple):
    """A batch of pairs.

    Attributes:
      images: Floats [2, batch_size, height, width, channels] in [0, 1].
      same: [batch_size], whether both images are of the same class.
      where: [batch_size], False for the padding of an epoch's last batch.
    """

    images: jax.Array
    same: jax.Array
    where: jax.Array


# Lists of pairs -------------------------------------------------------------------------


def adjacent_pairs(labels: np.ndarray, rng: np.random.Generator) -> Pairs:
    """The pairs of the Keras tutorial on MNIST, made once before training.

    For each class c, and each i below the size of the smallest class minus one, images i
    and i + 1 of class c are a same pair. Image i of c and image i of another class, drawn
    at random, are a different pair.

    Raises:
      UserError: If a class has fewer than two images.
    """
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    num = min(map(len, by_class)) - 1
    if num < 1:
        smallest = np.unique(labels)[np.argmin([len(rows) for rows in by_class])]
        raise UserError(f"every class needs 2 images; class {smallest} has too few")
    left, right, same = [], [], []
    for number, rows in enumerate(by_class):
        others = (number + rng.integers(1, len(by_class), size=num)) % len(by_class)
        different = np.array([by_class[other][i] for i, other in enumerate(others)])
        left += [rows[:num], rows[:num]]
        right += [rows[1 : num + 1], different]
        same += [np.ones(num, bool), np.zeros(num, bool)]
    examples = np.stack([np.concatenate(left), np.concatenate(right)])
    return Pairs(jnp.asarray(examples, jnp.int32), jnp.asarray(np.concatenate(same)))


# compiled as a whole
draw_pairs = jax.jit(samplers.sample_pairs, static_argnames=("num_pairs", "same_group"))


def random_pairs(key: jax.Array, labels: np.ndarray, num_pairs: int) -> Pairs:
    """Draws pairs evenly from all classes with two images, half of them of the same class.

    Raises:
      UserError: If fewer than two classes have two images.
    """
    names, counts = np.unique(labels, return_counts=True)
    rows = np.flatnonzero(np.isin(labels, names[counts >= 2]))
    if (counts >= 2).sum() < 2:
        raise UserError("pairs need two classes with two images each")
    drawn = draw_pairs(key, samplers.class_index(labels[rows]), num_pairs)
    return drawn._replace(examples=jnp.asarray(rows[np.asarray(drawn.examples)]))


# Training -------------------------------------------------------------------------------


def epoch_sampler(config: PairConfig) -> Callable[..., PairBatch]:
    """Returns a sampler that goes through `PairData`, in a new order in each epoch."""
    epoch_key = stream(config, "epochs")

    def sample(key: jax.Array, step: jax.Array, data: PairData) -> PairBatch:
        num_pairs = data.pairs.same.shape[0]
        numbers, where = samplers.epoch_batch(epoch_key, step, num_pairs, config.batch_size)
        examples, same = data.pairs.examples[:, numbers], data.pairs.same[numbers]
        return PairBatch(gather(data.images, examples), same, where)

    return sample


def fresh_sampler(config: PairConfig) -> Callable[..., PairBatch]:
    """Returns a sampler that draws new pairs from `ClassData` at each step."""

    def sample(key: jax.Array, step: jax.Array, data: ClassData) -> PairBatch:
        pairs = samplers.sample_pairs(key, data.classes, config.batch_size)
        where = jnp.ones(config.batch_size, bool)
        return PairBatch(gather(data.images, pairs.examples), pairs.same, where)

    return sample


def embed_pairs(apply_fn: Callable[..., Any], config: PairConfig) -> Callable[..., Any]:
    """Returns `(params, images, key) -> embeddings` [2, n, dim] of both images of pairs.

    The same parameters are applied to both images through `vmap`, in training mode and in
    the precision of the run. Each image has a dropout key of its own.

    Args:
      apply_fn: The `apply` function that `siamese.from_flax` returns.
      config: The settings of the run.
    """

    def embed(params: Any, images: jax.Array, key: jax.Array) -> Any:
        embeddings, _ = apply_fn(params, images, key=key, train=True)
        return embeddings

    both = twin(with_compute_dtype(embed, config.compute_dtype))
    return lambda params, images, key: both(params, images, jax.random.split(key))


def make_init(
    encoder_init: Callable[..., Any], image_shape: tuple[int, ...], **beside: jax.Array
) -> Callable[[jax.Array], tuple[Any, Any]]:
    """Returns `init(key) -> (params, statistics)` of an encoder.

    Args:
      encoder_init: The `init` function that `siamese.from_flax` returns.
      image_shape: Height, width and channels of the encoder's images.
      **beside: The initial values of what is learnt beside the encoder, by name.
    """

    def init(key: jax.Array) -> tuple[Any, Any]:
        params, statistics = encoder_init(key, jnp.zeros((1, *image_shape)))
        return {"encoder": params, **beside}, statistics

    return init


def batch_mean(config: PairConfig) -> Callable[[Terms], Any]:
    """Returns the mean over the whole batch, also where each device has a share of it."""
    if config.axis_name is None:
        return reductions.mean
    return sharding.over_devices(reductions.mean, axis_name=config.axis_name)


def embedded(
    config: PairConfig, embeddings: jax.Array, batch: PairBatch, terms: Terms
) -> dict[str, Embedded]:
    """What the loss of a batch was given, for its metrics."""
    of_pairs = embedded_pairs(
        embeddings, batch.same, batch.where, terms, axis_name=config.axis_name
    )
    return {EMBEDDED: of_pairs}


def contrastive_loss(
    apply_fn: Callable[..., Any], config: PairConfig, *, margin: float
) -> LossFn:
    """Returns the contrastive loss of the Keras tutorials, which has no factor 1/2.

    Args:
      apply_fn: The `apply` function that `siamese.from_flax` returns.
      config: The settings of the run.
      margin: Different pairs are pushed apart up to this distance.
    """
    embed = embed_pairs(apply_fn, config)

    def loss(params: Any, statistics: Any, batch: PairBatch, key: jax.Array) -> Any:
        embeddings = embed(params["encoder"], batch.images, key)
        terms = losses.contrastive_loss(
            distances.euclidean_distance(*embeddings),
            batch.same,
            margin=margin,
            factor=1.0,
            where=batch.where,
            reduce_fn=None,
        )
        metrics = embedded(config, embeddings, batch, terms)
        return batch_mean(config)(terms), (statistics, metrics)

    return loss
