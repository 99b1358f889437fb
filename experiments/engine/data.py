"""Images on the device: uint8 arrays that are scaled to [0, 1] when they are needed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from siamese_jax import samplers
from siamese_jax.images import LabelledImages


class ClassData(NamedTuple):
    """All training images on the device, and where the examples of each class are.

    Attributes:
      images: uint8 [num_images, height, width, channels].
      classes: The index of the classes, from which batches are drawn.
    """

    images: jax.Array
    classes: samplers.ClassIndex


class StreamedBatches(NamedTuple):
    """The batches of some consecutive steps on the device.

    Attributes:
      first: Number of the step of the first batch.
      images: uint8 [num_steps, n, height, width, channels].
      labels: [num_steps, n], the number of each image's class.
      examples: [num_steps, n], the number of each image in the training set.
    """

    first: Any
    images: Any
    labels: Any
    examples: Any


def class_data(dataset: LabelledImages) -> ClassData:
    """Moves a data set to the device."""
    return ClassData(jnp.asarray(dataset.images), samplers.class_index(dataset.labels))


def gather(images: jax.Array, examples: jax.Array) -> jax.Array:
    """The images with these numbers, scaled from bytes to [0, 1], in JAX's default type."""
    return _scaled(images.at[examples].get(mode="promise_in_bounds"))


def batch_of_step(
    batches: StreamedBatches, step: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The images of a step, scaled as `gather` does it, their labels and their numbers."""
    images, labels, examples = (
        lax.dynamic_index_in_dim(array, step - batches.first, keepdims=False)
        for array in (batches.images, batches.labels, batches.examples)
    )
    return _scaled(images), labels, examples


def _scaled(images: jax.Array) -> jax.Array:
    """Divides bytes by 255.

    They are copied before they are divided: on CPUs, XLA would otherwise fuse both and go
    through the images one number at a time.
    """
    return lax.optimization_barrier(images).astype(float) / 255
