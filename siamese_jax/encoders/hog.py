"""Oriented gradients and a linear map of them, for sets too small to learn features from.

A grid of cells measures in which directions the image gets lighter, and how strongly
compared with its neighbourhood. What is learnt is one square matrix, the identity at first,
which weighs these numbers by how well they tell classes apart.

>>> ramp = jnp.broadcast_to(jnp.linspace(0, 1, 24)[:, None], (24, 20))[None, :, :, None]
>>> features = oriented_gradients(ramp, (6, 5), 4).reshape(6, 5, 4)
>>> print(features[3, 2].round(1).tolist())  # right, down, left, up
[0.0, 1.0, 0.0, 0.0]

Source:
  Dalal, Triggs. Histograms of Oriented Gradients for Human Detection. CVPR 2005, in a
  smooth form: directions and cells overlap, so nothing is binned.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siamese_jax._checks import check_at_least
from siamese_jax.encoders._sizes import check_images


def oriented_gradients(
    images: Float[Array, "n height width channels"],
    cells: tuple[int, int],
    num_directions: int,
) -> Float[Array, "n features"]:
    """Measures the strength of the gradient in each direction and cell.

    With g the gradient of the image blurred by half a pixel and u_k the k-th direction:
    max(0, g . u_k), averaged over each cell by a Gaussian of half a cell, divided by the
    root of the energy (sum of squares over directions, plus 1e-4) of the cells around it.

    Args:
      images: Images with values in [0, 1], whose channels are averaged.
      cells: Rows and columns of the grid.
      num_directions: Number of directions, evenly over the circle from right to down.

    Raises:
      ValueError: If images are not [n, height, width, channels], or have fewer rows or
        columns than the grid, or than the 2 that make a gradient, or if `cells` or
        `num_directions` are below 1.
      TypeError: If images are not floating-point.
    """
    if len(cells) != 2 or min(cells) < 1:
        raise ValueError(f"cells must be rows and columns of at least 1; got {cells}")
    check_at_least("num_directions", num_directions, 1)
    check_images("oriented_gradients", images, _least_size(cells))
    height, width = images.shape[1:3]
    rows, columns = cells
    gray = jnp.mean(images, axis=3)
    gray = _smooth(gray[..., None], (height, width), 0.5, 0.5)[..., 0]
    down, right = jnp.gradient(gray, axis=(1, 2))
    angles = jnp.arange(num_directions) * (2 * jnp.pi / num_directions)
    directions = jnp.stack([jnp.sin(angles), jnp.cos(angles)])
    gradient = jnp.stack([down, right], axis=-1)
    strength = nn.relu(jnp.einsum("nhwg,gk->nhwk", gradient, directions))
    in_cells = _smooth(strength, cells, height / rows / 2, width / columns / 2)
    energy = _smooth(jnp.sum(in_cells**2, axis=-1, keepdims=True), cells, 1.0, 1.0)
    features = in_cells / jnp.sqrt(energy + 1e-4)
    return features.reshape(images.shape[0], rows * columns * num_directions)


def _least_size(cells: tuple[int, int]) -> tuple[int, int]:
    rows, columns = cells
    return max(rows, 2), max(columns, 2)


def _smooth(
    maps: Float[Array, "n height width k"],
    size: tuple[int, int],
    down: float,
    across: float,
) -> Float[Array, "n rows columns k"]:
    """Samples maps at `size` places, through Gaussians of the given deviations."""
    height, width = maps.shape[1:3]
    dtype = jnp.promote_types(maps.dtype, jnp.float32)
    left = jnp.asarray(_gaussians(height, size[0], down), dtype)
    right = jnp.asarray(_gaussians(width, size[1], across), dtype)
    return jnp.einsum("nhwk,hi,wj->nijk", maps, left, right)


def _gaussians(size: int, num: int, deviation: float) -> Float[np.ndarray, "size num"]:
    """Returns columns that are Gaussians about evenly spaced places, summing to 1."""
    places = (np.arange(num) + 0.5) * size / num - 0.5
    weights = np.exp(-0.5 * ((np.arange(size)[:, None] - places) / deviation) ** 2)
    return weights / weights.sum(axis=0)


def _identity(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    return jnp.eye(shape[0], shape[1], dtype=dtype)


class GradientMap(nn.Module):
    """A learnt square matrix times the oriented gradients.

    Attributes:
      cells: Rows and columns of the grid.
      num_directions: Number of directions.
    """

    cells: tuple[int, int] = (6, 5)
    num_directions: int = 8

    @property
    def least_size(self) -> tuple[int, int]:
        """Least height and width of its images."""
        return _least_size(self.cells)

    @nn.compact
    def __call__(
        self, images: Float[Array, "n height width channels"], *, train: bool = False
    ) -> Float[Array, "n dim"]:
        """Embeds images with values in [0, 1]."""
        check_images(type(self).__name__, images, self.least_size)
        features = oriented_gradients(images, self.cells, self.num_directions)
        dim = features.shape[-1]
        return nn.Dense(dim, use_bias=False, kernel_init=_identity)(features)
