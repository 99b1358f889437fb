"""Convolution as one matrix product: the shifted images side by side, times the kernel.

The images are [n, height, width, channels] and padded already. Strides and dilation of the
kernel only choose which numbers of the image are moved.

With few features, moving the numbers takes longer than the product. Two neighbouring
outputs then share a patch that is one column wider, and the matrix holds the kernel twice,
filled up with zeros. For a kernel of 3x3 a third fewer numbers are moved, for a third more
multiplications. The zeros take a NaN of the image to one more column.

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

# Features up to which two outputs share a patch. Forward and backward pass of a kernel of
# 3x3 were 1.3 to 1.8 times as fast with 16 and 32 features of 1 and 3 channels, and 1.1
# times as slow with 64, on one and on two cores with AVX-512.
_FEW_FEATURES = 32


def convolve(
    x: Float[Array, "n height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> Float[Array, "n out_height out_width features"]:
    """Computes the valid convolution by patches."""
    width, features = kernel.shape[1], kernel.shape[3]
    plain = tuple(strides) == tuple(dilation) == (1, 1)
    columns = x.shape[2] - width + 1
    if plain and columns % 2 == 0 and features <= _FEW_FEATURES:
        pair = [jnp.pad(kernel, ((0, 0), pad, (0, 0), (0, 0))) for pad in ((0, 1), (1, 0))]
        y = _convolve(x, jnp.concatenate(pair, axis=3), (1, 2), (1, 1))
        return y.reshape(*y.shape[:2], columns, features)
    return _convolve(x, kernel, strides, dilation)


def _convolve(
    x: Array, kernel: Array, strides: Sequence[int], dilation: Sequence[int]
) -> Array:
    def make_patches(x: Array) -> Array:
        moved = shifted(materialized(x), kernel.shape[:2], strides, dilation)
        return jnp.concatenate(moved, axis=-1)

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
