"""Convolution and max-pooling that are fast on CPUs too, also inside `lax.scan`.

On GPU and TPU, and for grouped convolutions or dilated images, this calls
`lax.conv_general_dilated` and `lax.reduce_window`. On a CPU a convolution is made of matrix
products, in one of two ways, chosen by the shapes of image and kernel:

patches   the kernel as a matrix, times the shifted images side by side: for few channels,
          strides or dilation
Fourier   products in Fourier space, tile by tile: for many channels, with a fraction of the
          multiplications (a tenth for 7x7 kernels)

`vmap` over images [2, n, height, width, channels], with one kernel, is as fast as the same
images in one batch.

>>> images, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2))
>>> print(max_pool(convolution(images, kernel, (1, 1), "VALID"), 2))
[[[[9. 9.]]]]

In Flax: `nn.Conv(features, (3, 3), conv_general_dilated=convolution)`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._checks import check_at_least
from siamese_jax._cpu import fourier, patches, pooling


def convolution(
    lhs: Float[Array, "n height width channels"],
    rhs: Float[Array, "kernel_height kernel_width group_channels features"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "_ out_height out_width _"]:
    """Computes `lax.conv_general_dilated` of NHWC images and HWIO kernels.

    Equal to `lax.conv_general_dilated` for finite numbers, up to rounding. On a CPU the
    error of an output is relative to the largest sum near it, and NaN or infinity in an
    image may spread to outputs that do not see it. The way depends on static shapes alone,
    never on the number of images, which may be symbolic. Half precision is summed in
    float32.

    Args:
      lhs: Images.
      rhs: Kernel.
      window_strides: Rows and columns from one output to the next.
      padding: "SAME", "SAME_LOWER", "VALID", or the padding before and after each axis.
      **options: The other options of `lax.conv_general_dilated`.

    Raises:
      ValueError: If `lax.conv_general_dilated` refuses the shapes or options, or a stride
        or dilation is below 1.
      TypeError: If it refuses the dtypes, or does not know an option.

    >>> images, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((2, 2, 1, 1))
    >>> print(convolution(images, kernel, (1, 1), "VALID")[0, :, :, 0])
    [[4. 4.]
     [4. 4.]]
    """
    options.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))

    def by_lax(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)

    if not _is_plain(lhs, rhs, options):
        return by_lax(lhs, rhs)
    strides = tuple(map(int, window_strides))
    dilation = tuple(map(int, options.get("rhs_dilation") or (1, 1)))
    check_at_least("window_strides", min(strides, default=1), 1)
    check_at_least("rhs_dilation", min(dilation, default=1), 1)
    jax.eval_shape(by_lax, lhs, rhs)  # for its refusals, also where only on_cpu is traced
    extent = [(rhs.shape[i] - 1) * dilation[i] + 1 for i in range(2)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], extent, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if any(lhs.shape[1 + i] + sum(pads[i]) < extent[i] for i in range(2)):
        return by_lax(lhs, rhs)  # which is empty

    def on_cpu(x: Array, kernel: Array) -> Array:
        wanted = options.get("preferred_element_type") or jnp.result_type(x)
        x, kernel = (_at_least_float32(a) for a in (x, kernel))
        none = (0, 0, 0)
        x = lax.pad(x, jnp.zeros((), x.dtype), (none, *((*pad, 0) for pad in pads), none))
        plain = _is_one(strides) and _is_one(dilation)
        tilings = fourier.best_tilings(x.shape[1:], kernel.shape) if plain else None
        if tilings is None:
            return patches.convolve(x, kernel, strides, dilation).astype(wanted)
        return fourier.convolve(x, kernel, *tilings).astype(wanted)

    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=by_lax)


def max_pool(x: Float[Array, "n height width c"], window: int) -> Float[Array, "n h w c"]:
    """Returns the largest value of each block of window x window, without overlap.

    Rows and columns that fill no block are dropped. Of equal largest values the first, row
    by row, gets the gradient, as in `lax.reduce_window`. NaN in a block gives NaN.

    Raises:
      ValueError: If the image is smaller than the window, or `window` is below 1.

    >>> print(max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2).ravel())
    [4.]
    """
    pooling.check_window(window, *x.shape[1:3])

    def by_lax(x: Array) -> Array:
        size = (1, window, window, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, size, size, "VALID")

    if window > pooling.LARGEST_WINDOW:
        return by_lax(x)
    return lax.platform_dependent(
        x, cpu=partial(pooling.max_pool, window=window), default=by_lax
    )


def _is_plain(lhs: Array, rhs: Array, options: dict[str, Any]) -> bool:
    """Tells whether the convolution is NHWC, HWIO, without groups or image dilation."""
    names = ("lhs_dilation", "feature_group_count", "batch_group_count")
    numbers, canonical = (
        lax.conv_dimension_numbers(lhs.shape, rhs.shape, layout)
        for layout in (options["dimension_numbers"], ("NHWC", "HWIO", "NHWC"))
    )
    return numbers == canonical and all(_is_one(options.get(name)) for name in names)


def _is_one(option: int | Sequence[int] | None) -> bool:
    return option is None or bool(np.all(np.asarray(option) == 1))


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
