"""Supervised contrastive training: each image finds the others of its class in the batch.

A batch has several images of each of some classes. The similarity of two images is the
cosine of their embeddings, and the loss is the supervised contrastive loss of Khosla et
al. 2020 with a learnt temperature.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.datasets.sources import ImageSource
from experiments.engine.config import RunConfig, setting, stream
from experiments.engine.data import ClassData, StreamedBatches, batch_of_step, gather
from experiments.engine.health import EMBEDDED, Embedded
from experiments.engine.init_from import MEMORY
from experiments.engine.streams import Stream
from experiments.engine.system import System
from siamese_jax import (
    augment,
    distances,
    losses,
    memory,
    reductions,
    relations,
    samplers,
    sharding,
    training,
)
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation, small_classes
from siamese_jax.model import Model
from siamese_jax.siamese import from_flax

if TYPE_CHECKING:
    import flax.linen as nn

SupConConfigT = TypeVar("SupConConfigT", bound="SupConConfig")


class LabelledBatch(NamedTuple):
    """Images and what they show.

    Attributes:
      images: Images [n, height, width, channels] in [0, 1].
      labels: The number of each one's class.
      examples: The number of each one in the training set.
    """

    images: jax.Array
    labels: jax.Array
    examples: jax.Array


class Memory(NamedTuple):
    """Embeddings of earlier batches, and the encoder that makes them (momentum contrast).

    The embeddings of the trained encoder itself will not do: it changes so fast that all
    new embeddings move away from all old ones, and no longer differ from one another.

    Attributes:
      queue: Embeddings of earlier batches, computed by the averaged encoder.
      encoder: Moving average of the encoder's parameters.
    """

    queue: memory.Queue
    encoder: Any


MOMENTUM = 0.99  # of the averaged encoder


def class_counts(labels: np.ndarray) -> dict[Any, int]:
    """The number of examples of each class, in the order of their labels."""
    names, counts = np.unique(labels, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def check_batch(labels: np.ndarray, num_classes: int, num_images: int) -> None:
    """Refuses batches that the training classes cannot fill.

    Raises:
      UserError: If there are too few classes, or a class has too few images.
    """
    counts = class_counts(labels)
    if num_classes > len(counts):
        raise UserError(
            f"--num-classes: a batch would need {num_classes} training classes; there are "
            f"{len(counts)}"
        )
    if few := small_classes(counts, num_images):
        raise UserError(f"--num-images: {few}; got {num_images}")


def fit_batch(config: SupConConfigT, labels: np.ndarray) -> SupConConfigT:
    """Makes batches smaller where there are fewer classes or images, and says so.

    Args:
      config: The settings, with the batches that are asked for.
      labels: The labels of the training images.

    Raises:
      UserError: If there are fewer than two classes, or a class has a single image. All
        such classes are named.
    """
    counts = class_counts(labels)
    if few := small_classes(counts, 2):
        raise UserError(f"training classes need 2 images: {few}")
    if len(counts) < 2:
        raise UserError(f"2 training classes are needed; there are {len(counts)}")
    fitted = dataclasses.replace(
        config,
        num_classes=min(config.num_classes, len(counts)),
        num_images=min(config.num_images, *counts.values()),
    )
    if fitted != config:
        print(
            f"batches have {fitted.num_classes} classes of {fitted.num_images} images, "
            f"which is all there are, instead of {config.num_classes} of "
            f"{config.num_images}"
        )
    return fitted


def sample_classes(
    key: jax.Array,
    data: ClassData,
    num_classes: int,
    num_images: int,
    *,
    max_groups: int | None = None,
) -> LabelledBatch:
    """Draws `num_classes` classes and `num_images` images of each, in turns.

    Args:
      key: A JAX key.
      data: The training images.
      num_classes: Number of classes in the batch.
      num_images: Number of images of each class.
      max_groups: Largest number of groups, such as alphabets, that the classes come from.
    """
    batch = samplers.sample_batch(
        key, data.classes, num_classes, num_images, max_groups=max_groups
    )
    images = gather(data.images, batch.examples)
    return LabelledBatch(images, batch.classes, batch.examples)


def make_init(
    encoder_init: Callable[..., Any],
    image_shape: tuple[int, ...],
    temperature: float,
    *,
    queue_shape: tuple[int, int] | None = None,
) -> Callable[[jax.Array], tuple[Any, Any]]:
    """Returns `init(key) -> (params, statistics)`: an encoder and a log-temperature.

    Args:
      encoder_init: The `init` function that `siamese.from_flax` returns.
      image_shape: Height, width and channels of the encoder's images.
      temperature: The temperature before training.
      queue_shape: Number of embeddings and of their dimensions in a memory queue, which
        stands among the statistics. None for no queue.
    """

    def init(key: jax.Array) -> tuple[Any, Any]:
        params, statistics = encoder_init(key, jnp.zeros((1, *image_shape)))
        if queue_shape is not None:
            remembered = Memory(memory.make_queue(*queue_shape), params)
            statistics = {**statistics, MEMORY: remembered}
        return {"encoder": params, "log_temperature": jnp.log(temperature)}, statistics

    return init


def make_loss(
    apply_fn: Callable[..., Any],
    *,
    compute_dtype: str | None = None,
    axis_name: str | None = None,
) -> training.LossFn:
    """Returns the loss function of a system that trains on `LabelledBatch`.

    With a memory queue among the statistics, the images of a batch are compared with what
    the averaged encoder makes of the batch and has made of earlier ones, apart from the
    same examples. Then the batch is pushed.

    Args:
      apply_fn: The `apply` function that `siamese.from_flax` returns.
      compute_dtype: Type of the encoder's activations and products. None leaves it to the
        encoder.
      axis_name: The axis of the devices, if each has a share of the batch under that name.
        The images of a share are compared with those of all devices.
    """

    def embed(params: Any, images: jax.Array, statistics: Any, key: jax.Array) -> Any:
        return apply_fn(params, images, statistics=statistics, key=key, train=True)

    if compute_dtype is not None:
        embed = training.with_compute_dtype(embed, compute_dtype)
    of_batch, of_queue = _batch_terms(axis_name), _queue_terms(axis_name)
    mean: Callable[[reductions.Terms], Any] = reductions.mean
    if axis_name is not None:
        mean = sharding.over_devices(mean, axis_name=axis_name)

    def loss(params: Any, statistics: Any, batch: LabelledBatch, key: jax.Array) -> Any:
        given, remembered = without_memory(statistics)
        embeddings, statistics = embed(params["encoder"], batch.images, given, key)
        temperature = jnp.exp(params["log_temperature"])
        if remembered is None:
            terms = of_batch(embeddings, batch.labels, temperature=temperature)
        else:
            queue, encoder = remembered
            is_empty = ~jnp.any(jnp.asarray(queue.items.valid))  # then the average starts
            momentum = jnp.where(is_empty, 0, MOMENTUM)
            encoder = memory.momentum_update(encoder, params["encoder"], momentum)
            averaged, _ = embed(encoder, batch.images, given, key)
            # the queue's types, also where 64-bit types are enabled
            labels, ids = (x.astype(jnp.int32) for x in (batch.labels, batch.examples))
            items = relations.Items(labels, ids=ids)
            terms, queue = of_queue(
                queue, embeddings, averaged, items, temperature=temperature
            )
            statistics = {**statistics, MEMORY: Memory(queue, encoder)}
        valid = jnp.ones(batch.labels.shape, bool)
        embedded = Embedded(embeddings, batch.labels, valid, terms)
        metrics = {"temperature": temperature, EMBEDDED: embedded}
        return mean(terms), (statistics, metrics)

    return loss


def without_memory(statistics: Any) -> tuple[Any, Memory | None]:
    """The statistics of the encoder alone, and the memory if there is one."""
    others = {name: tree for name, tree in statistics.items() if name != MEMORY}
    return others, statistics.get(MEMORY)


def _batch_terms(axis_name: str | None) -> Callable[..., Any]:
    """Returns `(embeddings, labels, *, temperature) -> terms` of a batch with itself."""
    loss_fn = losses.supervised_contrastive_loss
    matrix_fn = distances.cosine_similarity_matrix
    if axis_name is None:
        return partial(losses.on_labels(loss_fn, matrix_fn), reduce_fn=None)
    of_shares = sharding.gathered(loss_fn, matrix_fn, axis_name=axis_name)
    return lambda embeddings, labels, **options: of_shares(
        embeddings, relations.Items(labels), reduce_fn=None, **options
    )


def _queue_terms(axis_name: str | None) -> Callable[..., Any]:
    """Returns `(queue, embeddings, averaged, items, *, temperature) -> (terms, queue)`.

    The columns are the embeddings of the averaged encoder: those of the batch, and of the
    queue. The batch is pushed after it was compared.
    """

    def terms_of(
        queue: memory.Queue,
        embeddings: jax.Array,
        averaged: jax.Array,
        items: relations.Items,
        *,
        temperature: jax.Array,
    ) -> tuple[reductions.Terms, memory.Queue]:
        batch = jax.lax.stop_gradient(averaged), items
        if axis_name is not None:
            batch = jax.lax.all_gather(batch, axis_name, tiled=True)
        columns, of_columns = memory.joined(queue, *batch)
        same, where = relations.between(items, of_columns)
        terms = losses.supervised_contrastive_loss(
            distances.cosine_similarity_matrix(embeddings, columns),
            same,
            where=where,
            temperature=temperature,
            reduce_fn=None,
        )
        return terms, memory.push(queue, *batch)

    return terms_of


def make_system(
    encoder: "nn.Module",
    preparation: Preparation,
    *,
    sample: Callable[..., LabelledBatch],
    optimizer: optax.GradientTransformation,
    temperature: float = 0.1,
    compute_dtype: str | None = None,
    axis_name: str | None = None,
    queue_shape: tuple[int, int] | None = None,
) -> System:
    """Returns a system whose model normalises the encoder's embeddings to length 1.

    Args:
      encoder: The network to train.
      preparation: How its images are prepared.
      sample: The sampler of the batches.
      optimizer: The optimiser, from optax.
      temperature: The temperature before training.
      compute_dtype: As in `make_loss`.
      axis_name: As in `make_loss`. The encoder has to know it too.
      queue_shape: As in `make_init`.
    """
    encoder_init, encode = from_flax(encoder)
    init = make_init(
        encoder_init, preparation.image_shape, temperature, queue_shape=queue_shape
    )
    loss = make_loss(encode, compute_dtype=compute_dtype, axis_name=axis_name)
    return System(init, sample, loss, optimizer, normalized_model(encode, preparation))


def normalized_model(
    encode: Callable[..., Any], preparation: Preparation
) -> Callable[[training.TrainState], Model]:
    """Returns `model(state) -> Model` of an encoder, with embeddings of length 1.

    Args:
      encode: The `apply` function that `siamese.from_flax` returns.
      preparation: How the encoder's images are prepared.
    """

    def embed_fn(variables: Any, images: jax.Array) -> jax.Array:
        params, statistics = variables["params"], variables["statistics"]
        return distances.normalize(encode(params, images, statistics=statistics))

    def model(state: training.TrainState) -> Model:
        statistics, _ = without_memory(state.statistics)
        variables = {"params": state.params["encoder"], "statistics": statistics}
        return Model(variables, embed_fn, preparation)

    return model


# Small sets of photographs --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SupConConfig(RunConfig):
    """The settings of systems that train on small sets of photographs.

    Attributes:
      num_classes: Number of classes in a batch.
      num_images: Number of images of each class in a batch.
      learning_rate: Peak of the one-cycle schedule.
      weight_decay: Weight decay of AdamW.
      temperature: Temperature of the loss before training; it is learnt.
      max_rotation: Largest rotation of a training image, in degrees.
      max_shear: Largest shear.
      max_scale: Images are made smaller or larger by up to this fraction.
      max_shift: Largest shift, as a fraction of the height.
      flip: Whether all images of a class in a batch may be mirrored together. A mirrored
        face is another face, so this adds training classes.
    """

    num_classes: int = setting(16, at_least=2)
    num_images: int = setting(4, at_least=2)
    learning_rate: float = setting(2e-3, above=0)
    weight_decay: float = setting(1e-4, at_least=0)
    temperature: float = setting(0.1, above=0)
    max_rotation: float = setting(10.0, at_least=0)
    max_shear: float = setting(0.1, at_least=0, below=1)
    max_scale: float = setting(0.15, at_least=0, below=1)
    max_shift: float = setting(0.08, at_least=0, at_most=1)
    flip: bool = True


def make_sampler(config: SupConConfig) -> Callable[..., LabelledBatch]:
    """Returns a sampler of distorted batches from `ClassData`, or from `class_stream`."""

    def sample(
        key: jax.Array, step: jax.Array, data: ClassData | StreamedBatches
    ) -> LabelledBatch:
        batch_key, distortion_key = jax.random.split(key)
        if isinstance(data, StreamedBatches):
            batch = LabelledBatch(*batch_of_step(data, step))
        else:
            batch = sample_classes(batch_key, data, config.num_classes, config.num_images)
        # what follows is compiled alike wherever the batch comes from
        batch, distortion_key = jax.lax.optimization_barrier((batch, distortion_key))
        return batch._replace(images=distort(config, distortion_key, batch.images))

    return sample


def class_stream(config: SupConConfig, source: ImageSource) -> Stream:
    """Streams the batches that `make_sampler` draws from the same images in memory.

    They are drawn on the CPU, which is free while an accelerator trains.
    """
    index = samplers.class_index(source.labels)
    cpu = jax.local_devices(backend="cpu")[0]
    arguments = jax.device_put((stream(config, "train"), index), cpu)

    @jax.jit
    def draw(key: jax.Array, index: samplers.ClassIndex, step: jax.Array) -> jax.Array:
        batch_key, _ = jax.random.split(training.batch_key(key, step))
        return samplers.sample_batch(
            batch_key, index, config.num_classes, config.num_images
        ).examples

    has_wide_types = jnp.result_type(float) == jnp.float64  # in this thread, not in others

    def order(step: int) -> np.ndarray:
        with jax.enable_x64(has_wide_types):
            return np.asarray(draw(*arguments, np.int32(step)))

    return Stream(source, np.asarray(index.class_of), order)


def distort(config: SupConConfig, key: jax.Array, images: jax.Array) -> jax.Array:
    """Distorts each image, and mirrors the images of each class together or not at all.

    The images are in the order of `samplers.sample_batch`.
    """
    affine_key, flip_key = jax.random.split(key)
    distortion = augment.Affine(
        max_rotation=config.max_rotation,
        max_shear=config.max_shear,
        scale_range=(1 - config.max_scale, 1 + config.max_scale),
        max_shift=config.max_shift * images.shape[1],
    )
    affine = partial(augment.random_affine, distortion=distortion, fill=0.5)
    images = jax.vmap(affine)(jax.random.split(affine_key, len(images)), images)
    if not config.flip:
        return images
    flipped = jax.random.bernoulli(flip_key, 0.5, (len(images) // config.num_images,))
    flipped = jnp.tile(flipped, config.num_images)[:, None, None, None]
    return jnp.where(flipped, images[:, :, ::-1], images)
