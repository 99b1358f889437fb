"""A recipe for small sets of images: P x K batches, distortions, one softmax over a batch.

What `image_folder` and `orl_faces` train with. A batch has several images of each of some
classes, each distorted anew; each image is to find the others of its class among all of the
batch (supervised contrastive loss of cosine similarities, learnt temperature). The encoder
is a `ConvNet`, or where there is too little to learn it from, a linear map of oriented
gradients; embeddings are compared on the unit sphere.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import model, pairs, run
from experiments.data import Dataset
from experiments.gradients import GradientMap
from experiments.model import Model
from siamese_jax import (
    augment,
    distances,
    episodes,
    losses,
    relations,
    samplers,
    training,
)
from siamese_jax import verification as verify
from siamese_jax.encoders import ConvNet


@dataclasses.dataclass(frozen=True)
class RecipeConfig(run.RunConfig):
    """What can be asked of the recipe."""

    num_classes: int = 16  # P: classes in a batch
    num_images: int = 4  # K: images of each
    features: Literal["learnt", "gradients"] = "learnt"  # a ConvNet, or `gradients`
    widths: tuple[int, ...] = (16, 32, 64, 128)  # of the ConvNet's blocks
    dim: int = 64  # of the ConvNet's embedding
    learning_rate: float = 2e-3  # peak of a one-cycle schedule
    weight_decay: float = 1e-4
    temperature: float = 0.1  # at first; it is learnt
    max_rotation: float = 10.0  # degrees
    max_shear: float = 0.1
    max_scale: float = 0.15  # smaller or larger by this share
    max_shift: float = 0.08  # share of the height
    flip: bool = True  # a class may be shown mirrored, all of it


class Data(NamedTuple):
    """What stays on the device."""

    images: jax.Array
    classes: samplers.ClassIndex


def make_data(dataset: Dataset) -> Data:
    """The training images and where their classes are."""
    return Data(jnp.asarray(dataset.images), samplers.class_index(dataset.labels))


def check_batch(labels: np.ndarray, num_classes: int, num_images: int) -> None:
    """Refuses batches that the training classes cannot give."""
    names, counts = np.unique(labels, return_counts=True)
    if num_classes > len(names):
        raise run.UserError(
            f"num_classes: there are {len(names)} training classes; got {num_classes}"
        )
    if num_images > counts.min():
        raise run.UserError(
            f"num_images: class {names[counts.argmin()]!s} has {counts.min()}; "
            f"got {num_images}"
        )
    if num_images < 2 or num_classes < 2:
        raise run.UserError(
            "num_classes and num_images must be at least 2; "
            f"got {num_classes} and {num_images}"
        )


# Training -------------------------------------------------------------------------------


def distort(config: RecipeConfig, key: jax.Array, images: jax.Array) -> jax.Array:
    """Affine distortion of each image, and mirroring of each class as a whole.

    A mirrored face is another face: the batch has as many classes, training has more.
    """
    affine_key, flip_key = jax.random.split(key)
    distortion = augment.Affine(
        max_rotation=config.max_rotation,
        max_shear=config.max_shear,
        scale_range=(1 - config.max_scale, 1 + config.max_scale),
        max_shift=config.max_shift * images.shape[1],
    )
    images = augment.random_affine(affine_key, images, distortion, fill=0.5)
    if not config.flip:
        return images
    flipped = jax.random.bernoulli(flip_key, 0.5, (len(images) // config.num_images,))
    flipped = jnp.repeat(flipped, config.num_images)[:, None, None, None]
    return jnp.where(flipped, images[:, :, ::-1], images)


def sample(config: RecipeConfig, key: jax.Array, step: jax.Array, data: Data) -> Any:
    """P classes, K images of each, all distorted."""
    batch_key, distortion_key = jax.random.split(key)
    batch = samplers.sample_batch(
        batch_key, data.classes, config.num_classes, config.num_images
    )
    images = distort(config, distortion_key, pairs.gather(data.images, batch.examples))
    return images, batch.labels


class Standardized(nn.Module):
    """A network that sees each image with mean 0 and deviation 1: light tells nothing."""

    net: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Any:
        """Embeds images."""
        axes = (1, 2, 3)
        mean = jnp.mean(images, axes, keepdims=True)
        deviation = jnp.std(images, axes, keepdims=True)
        return self.net((images - mean) / (deviation + 1e-3), train=train)


def make_encoder(config: RecipeConfig) -> nn.Module:
    """A linear map of oriented gradients, or blocks of convolution learnt from scratch."""
    if config.features == "gradients":
        return GradientMap()
    return Standardized(ConvNet(widths=config.widths, dim=config.dim))


def loss_fn(
    config: RecipeConfig, params: Any, statistics: Any, batch: Any, key: jax.Array
) -> Any:
    """Each image finds the others of its class among all of the batch."""
    images, labels = batch
    variables = {"params": params["encoder"], **statistics}
    embeddings, statistics = make_encoder(config).apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    same, where = relations.within(relations.Items(labels))
    temperature = jnp.exp(params["log_temperature"])
    loss = losses.supervised_contrastive_loss(
        distances.cosine_similarity_matrix(embeddings, embeddings),
        same,
        where=where,
        temperature=temperature,
    )
    return loss, (dict(statistics), {"temperature": temperature})


def make_optimizer(config: RecipeConfig) -> optax.GradientTransformation:
    """AdamW on a one-cycle cosine schedule."""
    schedule = optax.cosine_onecycle_schedule(config.num_steps, config.learning_rate, 0.1)
    return optax.adamw(schedule, weight_decay=config.weight_decay)


def initial_state(
    config: RecipeConfig, image_shape: tuple[int, ...]
) -> training.TrainState:
    """Random parameters from the seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # no step has it
    image = jnp.zeros((1, *image_shape))
    variables = dict(jax.jit(make_encoder(config).init)(key, image))
    params = {
        "encoder": variables.pop("params"),
        "log_temperature": jnp.log(config.temperature),
    }
    return training.init_state(params, make_optimizer(config), statistics=variables)


train_steps = run.make_steps(sample, loss_fn, make_optimizer)


# Use ------------------------------------------------------------------------------------


def load_model(config: RecipeConfig, image_shape: tuple[int, int, int]) -> Model:
    """The trained encoder, with embeddings on the unit sphere."""
    state = run.load_state(config, initial_state(config, image_shape))
    variables = {"params": state.params["encoder"], **state.statistics}

    def embed_fn(variables: Any, images: jax.Array) -> Any:
        embeddings: Any = make_encoder(config).apply(variables, images)
        return distances.normalize(embeddings)

    return Model(variables, embed_fn, image_shape)


# Judging classes never seen -------------------------------------------------------------

_JUDGE_SEED = 0  # pairs and galleries are the same for every seed
_MOST_PAIRED = 1_000  # images up to which every two of them are compared


def all_pairs(labels: np.ndarray) -> pairs.Pairs:
    """Every two images, once; of a large set balanced pairs at random."""
    if len(labels) > _MOST_PAIRED:
        return pairs.random_pairs(jax.random.key(_JUDGE_SEED), labels, 100_000)
    first, second = np.triu_indices(len(labels), 1)
    return pairs.Pairs(np.stack([first, second]), labels[first] == labels[second])


def judge_unseen(
    learnt: Model, dataset: Dataset, threshold: float
) -> tuple[dict[str, float], pairs.Judged]:
    """Verification over all pairs, and identification from one image a class.

    Same and different pairs count equally in the accuracy. The gallery of an
    identification holds one image of each class, or of 20 of them; the queries are others.
    """
    embeddings = model.embed(learnt, dataset.images)
    judged = model.judge(learnt, embeddings, all_pairs(dataset.labels))
    same = judged.same
    weights = jnp.where(same, 1 / jnp.sum(same), 1 / jnp.sum(~same))
    rates = verify.decision_rates(*judged, threshold, weights=weights)
    index = samplers.class_index(dataset.labels)
    identified = episodes.episode_accuracy(
        jax.random.key(_JUDGE_SEED),
        embeddings,
        index,
        num_episodes=1_000,
        num_ways=min(20, index.num_classes),
        num_queries=min(9, index.smallest_class[1] - 1),
        matrix_fn=learnt.matrix_fn,
    )
    figures = {
        "pair_accuracy": rates.accuracy,
        "pair_eer": verify.equal_error_rate(*judged),
        "roc_area": verify.roc_area(*judged),
        "one_shot_accuracy": identified.mean,
    }
    return {name: float(figure) for name, figure in figures.items()}, judged


def calibrate(learnt: Model, dataset: Dataset, which: str) -> model.Calibration:
    """What distances mean, from pairs of classes neither trained on nor tested."""
    drawn = pairs.random_pairs(jax.random.key(_JUDGE_SEED), dataset.labels, 4_000)
    embeddings = model.embed(learnt, dataset.images)
    return model.calibrate(model.judge(learnt, embeddings, drawn), which)
