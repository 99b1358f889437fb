"""Images on the device: uint8 arrays that are scaled to [0, 1] when they are needed."""

from typing import NamedTuple

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


def class_data(dataset: LabelledImages) -> ClassData:
    """Moves a data set to the device."""
    return ClassData(jnp.asarray(dataset.images), samplers.class_index(dataset.labels))


def gather(images: jax.Array, examples: jax.Array) -> jax.Array:
    """The images with these numbers, scaled from bytes to [0, 1], in JAX's default type.

    The bytes are copied before they are divided: on CPUs, XLA would otherwise fuse both and
    go through the images one number at a time.
    """
    chosen = images.at[examples].get(mode="promise_in_bounds")
    return lax.optimization_barrier(chosen).astype(float) / 255
