"""Convolution by the Fourier transform, as nothing but matrix products.

A correlation of size t is diagonal in Fourier space. For the small t of image tiles a
transform is cheapest as a product with its matrix: it runs at the speed of `matmul`, needs
only the rows of what is not zero and not thrown away, and turns the axes where they are
needed. Differentiating the products gives the same form, and keeps the transforms of image
and kernel for the backward pass.

    X = T_h (T_w x)      [frequencies, images, channels]
    K = T_h (T_w k)      [frequencies, channels, features]
    y = S_w (S_h (X K))

The real input needs the frequencies 0 to t/2 of one axis only. A product of complex
numbers (a + bi)(c + di) takes three real ones, ac, bd and (a + b)(c + d): the last
transform gives a, b and a + b at once, and the first inverse takes the three products.

Larger images are cut into overlapping tiles that give t - k + 1 rows each (overlap-save).
"""

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


class Tiling(NamedTuple):
    """How one axis is cut.

    Attributes:
      size: Of a tile, and of its transform.
      kernel: Size of the kernel.
      outputs: Rows that the whole axis gives.
    """

    size: int
    kernel: int
    outputs: int

    @property
    def step(self) -> int:
        """Rows that a tile gives."""
        return self.size - self.kernel + 1

    @property
    def num_tiles(self) -> int:
        """Tiles that cover the axis."""
        return -(-self.outputs // self.step)


class Matrices(NamedTuple):
    """Transforms along the width (real input) and the height (complex)."""

    image_width: np.ndarray  # [frequencies, 2, size]
    image_height: np.ndarray  # [frequencies, 3, 2, size]
    kernel_width: np.ndarray  # [frequencies, 2, kernel]
    kernel_height: np.ndarray  # [frequencies, 3, 2, kernel]
    inverse_height: np.ndarray  # [2, step, frequencies, 3]
    inverse_width: np.ndarray  # [step, frequencies, 2]


@lru_cache
def matrices(height: Tiling, width: Tiling) -> Matrices:
    """In float64."""
    half, full = np.arange(width.size // 2 + 1), np.arange(height.size)

    def waves(rows: np.ndarray, columns: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
        angles = 2 * np.pi * np.outer(rows, columns) / size
        return np.cos(angles), np.sin(angles)

    def complex_rows(cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """(cos - i sin)(a + bi): its real part, its imaginary part, their sum."""
        real, imaginary = np.stack([cos, sin], 1), np.stack([-sin, cos], 1)
        return np.stack([real, imaginary, real + imaginary], 1)

    cos, sin = waves(half, np.arange(width.size), width.size)
    image_width = np.stack([cos, -sin], 1)
    cos, sin = waves(full, np.arange(height.size), height.size)
    image_height = complex_rows(cos, sin)
    # a correlation wants the kernel's conjugate
    cos, sin = waves(half, np.arange(width.kernel), width.size)
    kernel_width = np.stack([cos, sin], 1)
    cos, sin = waves(full, np.arange(height.kernel), height.size)
    kernel_height = complex_rows(cos, -sin)
    # p, q, r = ac, bd, (a + b)(c + d): the product is (p - q) + (r - p - q) i
    cos, sin = waves(np.arange(height.step), full, height.size)
    real = np.stack([cos + sin, sin - cos, -sin], -1)
    imaginary = np.stack([sin - cos, -sin - cos, cos], -1)
    inverse_height = np.stack([real, imaginary]) / height.size
    cos, sin = waves(np.arange(width.step), half, width.size)
    count = np.where((half == 0) | (2 * half == width.size), 1, 2) / width.size
    inverse_width = np.stack([cos * count, -sin * count], -1)
    return Matrices(
        image_width,
        image_height,
        kernel_width,
        kernel_height,
        inverse_height,
        inverse_width,
    )


class Work(NamedTuple):
    """What one image takes, there and back.

    Attributes:
      products: Multiplications.
      numbers: That are written to memory and read again.
    """

    products: float
    numbers: float


def work(height: Tiling, width: Tiling, channels: int, features: int) -> Work:
    """Of one image of 64, which share the transform of the kernel."""
    half, full = width.size // 2 + 1, 3 * height.size
    tiles = height.num_tiles * width.num_tiles
    of_image = width.size * height.size * 2 * half + half * full * 2 * height.size
    of_output = half * 2 * height.step * full + width.step * height.step * 2 * half
    between = half * full * channels * features
    numbers = half * (
        full * (channels + features) + 2 * (height.size * channels + height.step * features)
    )
    return Work(
        tiles * (of_image * channels + between + of_output * features),
        tiles * numbers + between / 64,
    )


def convolve(
    x: Float[Array, "n rows columns channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    height: Tiling,
    width: Tiling,
) -> Float[Array, "n out_height out_width features"]:
    """The valid correlation, stride 1, by tiles."""
    as_arrays = partial(jnp.asarray, dtype=x.dtype)
    by = jax.tree.map(as_arrays, matrices(height, width))
    n, rows, columns, channels = x.shape
    more = [
        (0, t.num_tiles * t.step + t.kernel - 1 - length)
        for t, length in ((height, rows), (width, columns))
    ]
    x = jnp.transpose(jnp.pad(x, ((0, 0), *more, (0, 0))), (2, 1, 0, 3))
    x = _tiles(_tiles(x, width, 0), height, 1)  # [width, height, tiles, tiles, n, channels]
    num = width.num_tiles * height.num_tiles * n
    x = x.reshape(width.size, height.size, num, channels)
    kernel = lax.optimization_barrier(kernel)  # a constant one is not folded for minutes
    image = _transform(by.image_width, by.image_height, x)
    weights = _transform(by.kernel_width, by.kernel_height, jnp.swapaxes(kernel, 0, 1))
    y = _invert(by.inverse_height, by.inverse_width, image @ weights)
    shape = (width.step, height.step, width.num_tiles, height.num_tiles, n, y.shape[3])
    y = jnp.transpose(y.reshape(shape), (4, 3, 1, 2, 0, 5))
    y = y.reshape(n, shape[3] * shape[1], shape[2] * shape[0], shape[5])
    return y[:, : height.outputs, : width.outputs]


def _tiles(x: Array, tiling: Tiling, axis: int) -> Array:
    """Cuts a leading axis; the number of the tile comes before the last two axes."""
    if tiling.num_tiles == 1:
        return jnp.expand_dims(x, -3)
    first = range(0, tiling.num_tiles * tiling.step, tiling.step)
    every = (slice(None),) * axis
    return jnp.stack([x[(*every, slice(i, i + tiling.size))] for i in first], -3)


def _transform(along_width: Array, along_height: Array, x: Array) -> Array:
    """[width, height, a, b] to [frequencies, a, b]; each has its three real numbers."""
    columns, rows, a, b = x.shape
    half, full = along_width.shape[0], along_height.shape[0] * 3
    x = along_width.reshape(2 * half, columns) @ x.reshape(columns, rows * a * b)
    x = _each(along_height.reshape(full, 2 * rows), x.reshape(half, 2 * rows, a * b))
    return x.reshape(half * full, a, b)


def _invert(along_height: Array, along_width: Array, y: Array) -> Array:
    """[frequencies, a, b] to [width, height, a, b]."""
    _, a, b = y.shape
    columns, half, _ = along_width.shape
    _, rows, full, _ = along_height.shape
    y = y.reshape(half, 3 * full, a * b)
    y = _each(along_height.reshape(2 * rows, 3 * full), y)
    y = along_width.reshape(columns, 2 * half) @ y.reshape(2 * half, rows * a * b)
    return y.reshape(columns, rows, a, b)


def _each(matrix: Array, x: Array) -> Array:
    """The matrix times each of x[i]; a batched product keeps the axes where they are."""
    return jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape)) @ x
