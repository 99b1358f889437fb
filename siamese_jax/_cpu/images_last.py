"""Convolution of images [channels, height, width, n], for half precision.

With the batch axis last, memory copies are contiguous, and every matrix product, also in
the gradient, has a layout that the CPU's bfloat16 units accept. Without strides the columns
of the images are moved before the product and the rows of the result after it, which moves
less than patches would. Rows of zeros above and below an image are never multiplied. Half
precision is summed in float32.

>>> x, kernel = jnp.ones((1, 2, 2, 5)), jnp.ones((3, 3, 1, 2))
>>> print(convolve(x, kernel).shape, convolve(x, kernel)[0, 0, 0, 0])
(2, 2, 2, 5) 4.0
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._cpu.maps import alike
from siamese_jax._cpu.patches import materialized, shifted

_Pads = Sequence[tuple[int, int]]  # zeros before and after the rows, and the columns


def convolve(
    x: Float[Array, "channels height width n"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    *,
    stride: int = 1,
) -> Float[Array, "features out_height out_width n"]:
    """Computes the convolution with padding "SAME", in the type of x.

    What was moved before the product is kept for the gradient: kernel_width times x, or
    with strides all patches.
    """
    features_first = jnp.transpose(kernel.astype(x.dtype), (3, 0, 1, 2))
    return _convolve(stride, *alike(x, features_first))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(stride: int, x: Array, kernel: Array) -> Array:
    """Convolves by rows of the kernel OHWI, or with strides by patches."""
    return _convolve_forward(stride, x, kernel)[0]


def _convolve_forward(stride: int, x: Array, kernel: Array) -> tuple[Array, Any]:
    pads = _same_pads(stride, x, kernel)
    if stride == 1:
        columns = _moved_columns(pads, kernel, x)
        return _sum_over_rows(pads, columns, kernel), (None, kernel, columns)
    patches, shape = _long_patches(stride, pads, kernel, x)
    y = _product(kernel.reshape(len(kernel), -1), patches, 0)
    return y.astype(x.dtype).reshape(len(kernel), *shape), (x, kernel, patches)


def _convolve_backward(stride: int, kept: Any, gradient: Array) -> tuple[Array, Array]:
    x, kernel, moved = kept
    if stride == 1:
        # the same convolution with the flipped kernel and swapped padding
        pads = _same_pads(1, gradient, kernel)
        turned = jnp.swapaxes(kernel[:, ::-1, ::-1], 0, 3)
        turned_pads = [pad[::-1] for pad in pads]
        back = _moved_columns(turned_pads, turned, gradient)
        x_gradient = _sum_over_rows(turned_pads, back, turned)
        return x_gradient, _kernel_gradient(pads, moved, kernel, gradient)
    pads = _same_pads(stride, x, kernel)
    flat = gradient.reshape(len(kernel), -1)
    kernel_gradient = _product(flat, moved, 1).reshape(kernel.shape).astype(kernel.dtype)
    patch_gradient = _product(kernel.reshape(len(kernel), -1).T, flat, 0).astype(x.dtype)
    _, to_x = jax.vjp(lambda x: _long_patches(stride, pads, kernel, x)[0], x)
    return *to_x(patch_gradient), kernel_gradient


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _sum_over_rows(pads: _Pads, columns: Array, kernel: Array) -> Array:
    """y[r] = sum_i (K_i A)[r + i - pad], with kernel rows K_i and the moved columns A."""
    features, height = kernel.shape[:2]
    rows_of_kernel = jnp.swapaxes(kernel, 0, 1).reshape(height * features, -1)
    products = _product(rows_of_kernel, columns.reshape(rows_of_kernel.shape[1], -1), 0)
    products = products.reshape(height, features, *columns.shape[1:])
    moved = [_moved_rows(products[i], i - pads[0][0]) for i in range(height)]
    return sum(moved[1:], moved[0]).astype(columns.dtype)


def _kernel_gradient(pads: _Pads, columns: Array, kernel: Array, gradient: Array) -> Array:
    """K_i' = sum_r g[r - i + pad] A[r], with gradients g and the moved columns A."""
    features, height, width, channels = kernel.shape

    def move(g: Array) -> Array:
        g = materialized(g)
        moved = [_moved_rows(g, pads[0][0] - i) for i in range(height)]
        return jnp.concatenate(moved, axis=0)

    rows = _by_words(move, gradient).reshape(height * features, -1)
    found = _product(rows, columns.reshape(width * channels, -1), 1)
    found = found.reshape(height, features, width, channels)
    return jnp.swapaxes(found, 0, 1).astype(kernel.dtype)


def _moved_rows(x: Array, shift: int) -> Array:
    """Returns x[:, r + shift] in row r, and zeros where there is no such row."""
    before, after = (min(max(0, s), x.shape[1]) for s in (-shift, shift))
    kept = x[:, after : x.shape[1] - before]
    return jnp.pad(kept, ((0, 0), (before, after), (0, 0), (0, 0)))


def _same_pads(stride: int, x: Array, kernel: Array) -> _Pads:
    return lax.padtype_to_pads(x.shape[1:3], kernel.shape[1:3], (stride, stride), "SAME")


def _moved_columns(pads: _Pads, kernel: Array, x: Array) -> Array:
    """Returns what each column of a kernel meets, [width * channels, rows, columns, n]."""
    width = kernel.shape[2]

    def move(x: Array) -> Array:
        x = materialized(jnp.pad(x, ((0, 0), (0, 0), pads[1], (0, 0))))
        columns = x.shape[2] - width + 1
        moved = [x[:, :, j : j + columns] for j in range(width)]
        return jnp.concatenate(moved, axis=0)

    return _by_words(move, x)


def _long_patches(
    stride: int, pads: _Pads, kernel: Array, x: Array
) -> tuple[Array, tuple[Any, ...]]:
    """Returns patches [height * width * channels, outputs], and the outputs' shape."""

    def patches(x: Array) -> Array:
        x = materialized(jnp.pad(x, ((0, 0), *pads, (0, 0))))
        moved = shifted(x, kernel.shape[1:3], (stride, stride), (1, 1))
        return jnp.concatenate(moved, axis=0)

    moved = _by_words(patches, x)
    return moved.reshape(len(moved), -1), moved.shape[1:]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_words(move: Callable[[Array], Array], x: Array) -> Array:
    """Moves half precision numbers as integers, since XLA moves halves one by one."""
    if x.dtype.itemsize != 2:
        return move(x)
    return lax.bitcast_convert_type(move(lax.bitcast_convert_type(x, jnp.uint16)), x.dtype)


@_by_words.defjvp
def _by_words_jvp(
    move: Callable[[Array], Array], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """Moves the tangents: integers would have no derivative."""
    return _by_words(move, *primals), move(*tangents)


def _product(a: Array, b: Array, contracted: int) -> Array:
    """Multiplies matrices over columns of a and an axis of b, in float32 or wider."""
    a, b = (
        materialized(a),
        materialized(b),
    )  # XLA on CPU has no bfloat16 product of a transpose
    wide = jnp.promote_types(a.dtype, jnp.float32)
    dimensions = (((1,), (contracted,)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=wide)
