"""Convolution as one matrix product: the shifted images side by side, times the kernel.

The images are [n, height, width, channels] and padded already. Strides and dilation of the
kernel only choose which numbers of the image are moved.

>>> images, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((2, 2, 1, 1))
>>> print(convolve(images, kernel, (1, 1), (1, 1))[0, :, :, 0])
[[4. 4.]
 [4. 4.]]
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from siamese_jax._cpu.maps import Bilinear, bilinear, linear_by_transposition


def convolve(
    x: Float[Array, "n height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> Float[Array, "n out_height out_width features"]:
    """Computes the valid convolution by patches."""
    size = kernel.shape[:2]

    def make_patches(x: Array) -> Array:
        return jnp.concatenate(shifted(materialized(x), size, strides, dilation), axis=-1)

    patches = linear_by_transposition(make_patches, x)
    return bilinear(_product, patches, kernel.reshape(patches.shape[3], -1))


def shifted(
    x: Shaped[Array, "a height width b"],
    size: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[Shaped[Array, "a rows columns b"]]:
    """Returns what each number of the kernel is multiplied with, row by row."""
    reach = [(size[i] - 1) * dilation[i] for i in range(2)]
    rows, columns = ((x.shape[1 + i] - reach[i] - 1) // strides[i] + 1 for i in range(2))
    ends = (rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1
    return [
        x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(0, reach[0] + 1, dilation[0])
        for j in range(0, reach[1] + 1, dilation[1])
    ]


def materialized(x: Array) -> Array:
    """Makes XLA compute x once, here.

    A fusion would compute it again for every slice it reads.
    """
    return lax.optimization_barrier(x)


def _as_rows(x: Array) -> Array:
    # with more than two axes XLA copies the operands of the kernel's gradient
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


_product = Bilinear(
    forward=lambda x, kernel: (_as_rows(x) @ kernel).reshape(*x.shape[:3], kernel.shape[1]),
    to_images=lambda y, kernel: (_as_rows(y) @ kernel.T).reshape(
        *y.shape[:3], kernel.shape[0]
    ),
    to_kernel=lambda x, y: _as_rows(x).T @ _as_rows(y),
)
