"""Convolution by the Fourier transform, as nothing but matrix products.

A correlation of size t is diagonal in Fourier space. For the small t of image tiles a
transform is cheapest as a product with its matrix. It runs at the speed of `matmul`, it
skips rows that are zero or thrown away, and it puts the axes where they are needed.
Differentiating the products gives products again, and keeps the transforms of image and
kernel for the backward pass.

    X = T_h (T_w x)      [frequencies, images, channels]
    K = T_h (T_w k)      [frequencies, channels, features]
    y = S_w (S_h (X K))

The real input needs the frequencies 0 to t/2 of one axis only. A product of complex
numbers (a + bi)(c + di) takes three real products, ac, bd and (a + b)(c + d). The last
transform gives a, b and a + b at once, and the first inverse takes the three products.

Larger images are cut into overlapping tiles that give t - k + 1 rows each (overlap-save).
The float32 error is of the size of the direct sum's own: about 1e-6 of the largest sum of
|image| |kernel|.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._cpu.maps import Bilinear, bilinear, linear_by_transposition

# Multiplications in the time of writing a number and reading it again: of a Fourier form,
# whose rows are long, and of patches. Measured on two cores with AVX-512. Twice or half of
# both would choose the same form for every layer that was tried.
_MOVED = 25
_MOVED_IN_PATCHES = 70
# Multiplications by patches, of an image, below which the number of operations counts: the
# Fourier form has five times as many.
_FEW = 2**16


class Tiling(NamedTuple):
    """How one axis of the images is cut into tiles.

    Attributes:
      size: Number of rows of a tile, which is the size of its transform.
      kernel: Number of rows of the kernel.
      outputs: Number of rows of the result.
    """

    size: int
    kernel: int
    outputs: int

    @property
    def step(self) -> int:
        """Number of rows of the result that one tile gives."""
        return self.size - self.kernel + 1

    @property
    def num_tiles(self) -> int:
        """Number of tiles that cover the axis."""
        return -(-self.outputs // self.step)


class Matrices(NamedTuple):
    """Matrices of the transforms along the width (real input) and height (complex)."""

    image_width: np.ndarray  # [frequencies, 2, size]
    image_height: np.ndarray  # [frequencies, 3, 2, size]
    kernel_width: np.ndarray  # [frequencies, 2, kernel]
    kernel_height: np.ndarray  # [frequencies, 3, 2, kernel]
    inverse_height: np.ndarray  # [2, step, frequencies, 3]
    inverse_width: np.ndarray  # [step, frequencies, 2]


@lru_cache
def matrices(height: Tiling, width: Tiling) -> Matrices:
    """Returns the forward and inverse DFT matrices for these tile sizes, in float64."""
    half, full = np.arange(width.size // 2 + 1), np.arange(height.size)

    def waves(rows: np.ndarray, columns: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
        angles = 2 * np.pi * np.outer(rows, columns) / size
        return np.cos(angles), np.sin(angles)

    def complex_rows(cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """Returns real part, imaginary part and their sum of (cos - i sin)(a + bi)."""
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
    """Forward and backward cost of one image.

    Attributes:
      products: Number of multiplications.
      numbers: Number of values that are written to memory and read again.
    """

    products: float
    numbers: float


def work(height: Tiling, width: Tiling, channels: int, features: int) -> Work:
    """Estimates the cost per image, assuming a batch of 64.

    The batch shares the transform of the kernel.
    """
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


def best_tilings(
    image: Sequence[int], kernel: Sequence[int]
) -> tuple[Tiling, Tiling] | None:
    """Returns the tiles of the fastest Fourier form, or None if patches are faster.

    Args:
      image: Height, width and channels of the padded images.
      kernel: Shape of the kernel, HWIO.
    """
    outputs = [image[i] - kernel[i] + 1 for i in range(2)]
    if min(outputs) < 1:
        return None
    patch_numbers = math.prod(outputs) * math.prod(kernel[:3])
    if patch_numbers * kernel[3] < _FEW:
        return None
    best, least = None, float(patch_numbers * (kernel[3] + _MOVED_IN_PATCHES))
    choices = (_even_tilings(kernel[i], outputs[i]) for i in range(2))
    for height, width in itertools.product(*choices):
        found = work(height, width, kernel[2], kernel[3])
        cost = found.products + _MOVED * found.numbers
        if cost < least:
            best, least = (height, width), cost
    return best


def _even_tilings(kernel: int, outputs: int) -> list[Tiling]:
    """Returns the tilings that cut an axis evenly: whole, in halves, in thirds ..."""
    steps = {-(-outputs // num) for num in range(1, outputs + 1)}
    return [Tiling(step + kernel - 1, kernel, outputs) for step in sorted(steps)]


def convolve(
    x: Float[Array, "n rows columns channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    height: Tiling,
    width: Tiling,
) -> Float[Array, "n out_height out_width features"]:
    """Computes the valid correlation with stride 1, by tiles."""
    by = Matrices(*(matrix.astype(x.dtype) for matrix in matrices(height, width)))
    kernel = lax.optimization_barrier(kernel)  # a constant one is not folded for minutes
    weights = _transform(by.kernel_width, by.kernel_height, jnp.swapaxes(kernel, 0, 1))

    def to_frequencies(x: Array) -> Array:
        return _transformed_tiles(by, height, width, x)

    def to_images(y: Array) -> Array:
        return _inverted_tiles(by, height, width, y)

    image = linear_by_transposition(to_frequencies, x, image_axes=(0, 2))
    y = bilinear(_product, image, weights)
    return linear_by_transposition(to_images, y, image_axes=(2, 0))


def _transformed_tiles(by: Matrices, height: Tiling, width: Tiling, x: Array) -> Array:
    """[n, rows, columns, channels] to [frequencies, tiles, n, channels]."""
    n, rows, columns, channels = x.shape
    more = [
        (0, t.num_tiles * t.step + t.kernel - 1 - length)
        for t, length in ((height, rows), (width, columns))
    ]
    x = jnp.transpose(jnp.pad(x, ((0, 0), *more, (0, 0))), (2, 1, 0, 3))
    x = _tiles(_tiles(x, width, 0), height, 1)  # [width, height, tiles, tiles, n, channels]
    tiles = width.num_tiles * height.num_tiles
    x = x.reshape(width.size, height.size, tiles * n, channels)
    x = _transform(by.image_width, by.image_height, x)
    return x.reshape(x.shape[0], tiles, n, channels)


def _inverted_tiles(by: Matrices, height: Tiling, width: Tiling, y: Array) -> Array:
    """[frequencies, tiles, n, features] to [n, rows, columns, features]."""
    frequencies, tiles, n, features = y.shape
    y = y.reshape(frequencies, tiles * n, features)
    y = _invert(by.inverse_height, by.inverse_width, y)
    shape = (width.step, height.step, width.num_tiles, height.num_tiles, n, features)
    y = jnp.transpose(y.reshape(shape), (4, 3, 1, 2, 0, 5))
    y = y.reshape(n, shape[3] * shape[1], shape[2] * shape[0], features)
    return y[:, : height.outputs, : width.outputs]


def _of_each_frequency(x: Array) -> Array:
    """[frequencies, tiles, n, k] to [frequencies, tiles * n, k]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])


_product = Bilinear(
    forward=lambda x, k: (_of_each_frequency(x) @ k).reshape(*x.shape[:3], k.shape[2]),
    to_images=lambda y, k: (_of_each_frequency(y) @ jnp.swapaxes(k, 1, 2)).reshape(
        *y.shape[:3], k.shape[1]
    ),
    to_kernel=lambda x, y: (
        jnp.swapaxes(_of_each_frequency(x), 1, 2) @ _of_each_frequency(y)
    ),
    image_axes=(2, 2),
)


def _tiles(x: Array, tiling: Tiling, axis: int) -> Array:
    """Cuts a leading axis into tiles, whose number comes before the last two axes."""
    if tiling.num_tiles == 1:
        return jnp.expand_dims(x, -3)
    first = range(0, tiling.num_tiles * tiling.step, tiling.step)
    every = (slice(None),) * axis
    return jnp.stack([x[(*every, slice(i, i + tiling.size))] for i in first], -3)


def _transform(along_width: np.ndarray, along_height: np.ndarray, x: Array) -> Array:
    """[width, height, a, b] to [frequencies, a, b], of three real numbers each."""
    columns, rows, a, b = x.shape
    half, full = along_width.shape[0], along_height.shape[0] * 3
    x = jnp.matmul(along_width.reshape(2 * half, columns), x.reshape(columns, rows * a * b))
    x = _each(along_height.reshape(full, 2 * rows), x.reshape(half, 2 * rows, a * b))
    return x.reshape(half * full, a, b)


def _invert(along_height: np.ndarray, along_width: np.ndarray, y: Array) -> Array:
    """[frequencies, a, b] to [width, height, a, b]."""
    _, a, b = y.shape
    columns, half, _ = along_width.shape
    _, rows, full, _ = along_height.shape
    y = y.reshape(half, 3 * full, a * b)
    y = _each(along_height.reshape(2 * rows, 3 * full), y)
    y = jnp.matmul(
        along_width.reshape(columns, 2 * half), y.reshape(2 * half, rows * a * b)
    )
    return y.reshape(columns, rows, a, b)


def _each(matrix: np.ndarray, x: Array) -> Array:
    """Returns matrix @ x[i] for each i, as a product that keeps the axes in place."""
    return jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape)) @ x
