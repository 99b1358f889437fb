"""Convolution and max-pooling whose gradients stay fast on a CPU inside `lax.scan`.

XLA gives CPU convolutions their fast form only outside loops: inside a scan the backward
pass falls to a naive loop, some ten times slower. A small kernel as patches and a matrix
product does not. On other platforms `lax` is the right call, and is made.

>>> images, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2))
>>> print(max_pool(convolution(images, kernel, (1, 1), "VALID"), 2))
[[[[9. 9.]]]]
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_LARGEST_PATCH = 25  # kernel area up to which the patches are worth their memory


def convolution(
    lhs: Float[Array, "n height width channels"],
    rhs: Float[Array, "kernel_height kernel_width channels features"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "n out_height out_width features"]:
    """`lax.conv_general_dilated` of NHWC images, as `flax.linen.Conv` calls it.

    `nn.Conv(features, (3, 3), conv_general_dilated=convolution)` is all it takes. Dilated,
    grouped, cropping and large-kernel convolutions go to `lax` unchanged.

    >>> images, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((2, 2, 1, 1))
    >>> print(convolution(images, kernel, (1, 1), "VALID")[0, :, :, 0])
    [[4. 4.]
     [4. 4.]]
    """
    options.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    direct = lax.conv_general_dilated
    crops = not isinstance(padding, str) and min(map(min, padding)) < 0
    if crops or not _suits_patches(lhs, rhs, options):
        return direct(lhs, rhs, window_strides, padding, **options)
    return lax.platform_dependent(
        lhs,
        rhs,
        cpu=lambda x, kernel: _by_patches(x, kernel, window_strides, padding, options),
        default=lambda x, kernel: direct(x, kernel, window_strides, padding, **options),
    )


def max_pool(
    x: Float[Array, "n height width channels"], window: int
) -> Float[Array, "n out_height out_width channels"]:
    """Largest value of each `window x window` block, without overlap or padding.

    Rows and columns that fill no block are dropped. Equal largest values share the
    gradient.

    Raises:
      ValueError: If the image is smaller than the window.

    >>> print(max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2).ravel())
    [4.]
    """
    n, height, width, channels = x.shape
    if not 1 <= window <= min(height, width):
        raise ValueError(f"window must be from 1 to {min(height, width)}; got {window}")
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    blocks = x.reshape(n, rows, window, columns, window, channels)
    return jnp.max(blocks, axis=(2, 4))


def _suits_patches(lhs: Array, rhs: Array, options: dict[str, Any]) -> bool:
    names = ("lhs_dilation", "rhs_dilation", "feature_group_count", "batch_group_count")
    numbers, canonical = (
        lax.conv_dimension_numbers(lhs.shape, rhs.shape, layout)
        for layout in (options["dimension_numbers"], ("NHWC", "HWIO", "NHWC"))
    )
    return (
        numbers == canonical
        and rhs.shape[0] * rhs.shape[1] <= _LARGEST_PATCH
        and all(_is_one(options.get(name)) for name in names)
    )


def _is_one(option: int | Sequence[int] | None) -> bool:
    return option is None or bool(np.all(np.asarray(option) == 1))


def _by_patches(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    options: dict[str, Any],
) -> Array:
    """The shifted images side by side, times the kernel as a matrix."""
    height, width, _, features = kernel.shape
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
    (top, bottom), (left, right) = padding
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows = x.shape[1] - height + 1
    columns = x.shape[2] - width + 1
    patches = [
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]]
        for i in range(height)
        for j in range(width)
    ]
    matrix = kernel.reshape(-1, features)
    return jnp.matmul(
        jnp.concatenate(patches, axis=-1),
        matrix,
        precision=options.get("precision"),
        preferred_element_type=options.get("preferred_element_type"),
    )
