"""Convolution and max-pooling in one matrix product, for few channels.

A block of window x window outputs sees a patch of the image that is a little larger than
the kernel. One matrix product gives all outputs of each block from its patch: the matrix
holds the kernel once for each place of the block, shifted to that place and filled up with
zeros. The largest of the block is all that remains of the convolution.

    sums[place, ...] = kernel_at[place] @ patches       [window^2, ...]
    result = max(sums, over places)

>>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
>>> print(convolve_and_pool(x, jnp.ones((1, 1, 1, 2)), 2)[0, :, :, 0])
[[ 5.  7.]
 [13. 15.]]
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from siamese_jax._cpu.maps import Bilinear, bilinear
from siamese_jax._cpu.patches import materialized
from siamese_jax._cpu.pooling import LARGEST_WINDOW, check_window, largest_along

_LARGEST_PATCH = 160  # numbers of an image that a block of outputs may see


class _Sizes(NamedTuple):
    """Static sizes of a blocked convolution.

    Attributes:
      window: Rows and columns of a block.
      image: Height, width and channels.
      kernel: Height and width.
      images_last: Images are [channels, height, width, n] and sums are [places, features,
        rows, columns, n], else [n, height, width, channels] and [rows, columns, n, places,
        features].
    """

    window: int
    image: tuple[int, int, int]
    kernel: tuple[int, int]
    images_last: bool

    @property
    def num_places(self) -> int:
        """Outputs of a block."""
        return self.window**2

    @property
    def num_blocks(self) -> tuple[int, ...]:
        """Rows and columns of blocks."""
        return tuple((self.image[i] - self.kernel[i] + 1) // self.window for i in range(2))

    @property
    def patch(self) -> tuple[int, ...]:
        """Rows and columns of the image that a block sees."""
        return tuple(size + self.window - 1 for size in self.kernel)


def is_faster(kernel: Sequence[int], window: int) -> bool:
    """Tells by the shape of the kernel, HWIO, whether this way is the faster one."""
    patch = math.prod(size + window - 1 for size in kernel[:2])
    return kernel[2] * patch <= _LARGEST_PATCH and window <= LARGEST_WINDOW


def convolve_and_pool(
    x: Float[Array, "a height width b"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    window: int,
    *,
    images_last: bool = False,
) -> Float[Array, "c rows columns d"]:
    """Computes the valid convolution and pools its blocks of window x window.

    Args:
      x: Images [n, height, width, channels], or with `images_last`, which is faster for
        few features, [channels, height, width, n]; so is the result.
      kernel: Kernel, HWIO.
      window: Rows and columns of a block.
      images_last: Layout of images and result.

    Raises:
      ValueError: If the convolution is smaller than the window.
    """
    outputs = (x.shape[1 + i] - kernel.shape[i] + 1 for i in range(2))
    check_window(window, *outputs)
    image = x.shape[1], x.shape[2], x.shape[0 if images_last else 3]
    sizes = _Sizes(window, image, (kernel.shape[0], kernel.shape[1]), images_last)
    maps = Bilinear(
        forward=partial(_sums, sizes),
        to_images=partial(_to_images, sizes),
        to_kernel=partial(_to_kernel, sizes),
        image_axes=None if images_last else (0, 2),
    )
    sums = bilinear(maps, x, kernel)
    if images_last:
        return largest_along(sums, 0, None)
    return jnp.transpose(largest_along(sums, 3, 2), (2, 0, 1, 3))


# The bilinear map -----------------------------------------------------------------------


def _sums(sizes: _Sizes, x: Array, kernel: Array) -> Array:
    """Returns the convolution, by the places of the blocks."""
    patches = _patches(sizes, x)
    matrix = _kernel_at_places(sizes, kernel)
    if sizes.images_last:
        shape = (sizes.num_places, kernel.shape[3], *sizes.num_blocks, x.shape[3])
        return (matrix @ patches).reshape(shape)
    shape = (*sizes.num_blocks, x.shape[0], sizes.num_places, kernel.shape[3])
    return jnp.einsum("kp,fk->pf", patches, matrix).reshape(shape)


def _to_images(sizes: _Sizes, y: Array, kernel: Array) -> Array:
    matrix = _kernel_at_places(sizes, kernel)
    height, width, channels = sizes.image
    if sizes.images_last:
        patches = matrix.T @ _flat(sizes, y)
        shape = (channels, height, width, y.shape[4])
    else:
        patches = jnp.einsum("fk,pf->kp", matrix, _flat(sizes, y))
        shape = (y.shape[2], height, width, channels)
    zeros = jnp.zeros_like(y, shape=shape)
    return materialized(jax.vjp(partial(_patches, sizes), zeros)[1](patches)[0])


def _to_kernel(sizes: _Sizes, x: Array, y: Array) -> Array:
    patches, flat = _patches(sizes, x), _flat(sizes, y)
    matrix = flat @ patches.T if sizes.images_last else (patches @ flat).T
    shape = (*sizes.kernel, sizes.image[2], matrix.shape[0] // sizes.num_places)
    zeros = jnp.zeros_like(matrix, shape=shape)
    return jax.vjp(partial(_kernel_at_places, sizes), zeros)[1](matrix)[0]


def _flat(sizes: _Sizes, y: Array) -> Array:
    """Returns sums as a matrix, of which one axis is places and features."""
    if sizes.images_last:
        return y.reshape(y.shape[0] * y.shape[1], math.prod(y.shape[2:]))
    return y.reshape(math.prod(y.shape[:3]), y.shape[3] * y.shape[4])


def _patches(sizes: _Sizes, x: Array) -> Array:
    """Returns what each block sees: [numbers of a patch, rows * columns * n]."""
    x = materialized(x if sizes.images_last else jnp.transpose(x, (3, 1, 2, 0)))
    rows, columns = sizes.num_blocks
    step = sizes.window
    ends = (rows - 1) * step + 1, (columns - 1) * step + 1
    patches = [
        x[:, i : i + ends[0] : step, j : j + ends[1] : step]
        for i in range(sizes.patch[0])
        for j in range(sizes.patch[1])
    ]
    numbers = len(patches) * x.shape[0]
    return jnp.stack(patches).reshape(numbers, rows * columns * x.shape[3])


def _kernel_at_places(sizes: _Sizes, kernel: Array) -> Array:
    """Returns the kernel at each place of a block: [places * features, numbers]."""
    last = sizes.window - 1
    places = [
        jnp.pad(kernel, ((i, last - i), (j, last - j), (0, 0), (0, 0)))
        for i in range(sizes.window)
        for j in range(sizes.window)
    ]
    matrix = jnp.transpose(jnp.stack(places), (0, 4, 1, 2, 3))
    return matrix.reshape(sizes.num_places * kernel.shape[3], -1)
