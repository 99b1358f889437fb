"""Oriented gradients and a linear map of them: for sets too small to learn features from.

Source:  Dalal, Triggs. Histograms of Oriented Gradients for Human Detection. CVPR 2005,
         in a smooth form: directions and cells overlap, so nothing is binned.

A grid of cells sees in which directions the image gets lighter, and how strongly compared
with its neighbourhood. What is learnt is which of these numbers tell classes apart: one
square matrix, the identity at first.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def oriented_gradients(
    images: jax.Array, cells: tuple[int, int], num_directions: int
) -> jax.Array:
    """Strength of the gradient in each direction and cell, [n, features].

    With g the gradient of the image blurred by half a pixel and u_k the k-th direction:
    max(0, g . u_k), averaged over each cell by a Gaussian of half a cell, divided by the
    root of the energy (sum of squares over directions, plus 1e-4) of the cells around it.

    Args:
      images: [n, height, width, channels] in [0, 1]; channels are averaged.
      cells: Rows and columns of the grid.
      num_directions: How many directions, evenly over the circle.
    """
    height, width = images.shape[1:3]
    rows, columns = cells
    gray = jnp.mean(images, axis=3)
    gray = smooth(gray[..., None], (height, width), 0.5, 0.5)[..., 0]
    down, right = jnp.gradient(gray, axis=(1, 2))
    angles = jnp.arange(num_directions) * (2 * jnp.pi / num_directions)
    directions = jnp.stack([jnp.sin(angles), jnp.cos(angles)])
    gradient = jnp.stack([down, right], axis=-1)
    strength = nn.relu(jnp.einsum("nhwg,gk->nhwk", gradient, directions))
    in_cells = smooth(strength, cells, height / rows / 2, width / columns / 2)
    energy = smooth(jnp.sum(in_cells**2, axis=-1, keepdims=True), cells, 1.0, 1.0)
    return (in_cells / jnp.sqrt(energy + 1e-4)).reshape(images.shape[0], -1)


def smooth(maps: jax.Array, size: tuple[int, int], down: float, across: float) -> jax.Array:
    """Maps [n, height, width, k] seen at `size` places, through Gaussians."""
    height, width = maps.shape[1:3]
    left = _gaussians(height, size[0], down)
    right = _gaussians(width, size[1], across)
    return jnp.einsum("nhwk,hi,wj->nijk", maps, left, right)


def _gaussians(size: int, num: int, deviation: float) -> jax.Array:
    """[size, num]: each column a Gaussian about its place, summing to 1."""
    places = (np.arange(num) + 0.5) * size / num - 0.5
    weights = np.exp(-0.5 * ((np.arange(size)[:, None] - places) / deviation) ** 2)
    return jnp.asarray(weights / weights.sum(axis=0), jnp.float32)


def _identity(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.eye(shape[0], shape[1], dtype=dtype)


class GradientMap(nn.Module):
    """A learnt square matrix times the oriented gradients."""

    cells: tuple[int, int] = (6, 5)
    num_directions: int = 8

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeds images in [0, 1]."""
        features = oriented_gradients(images, self.cells, self.num_directions)
        dim = features.shape[-1]
        return nn.Dense(dim, use_bias=False, kernel_init=_identity)(features)
