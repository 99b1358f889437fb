"""Convolution and max-pooling as one function that `nn.Conv` takes.

    nn.Conv(6, (3, 3), padding="VALID", conv_general_dilated=pooled_convolution(2))

`nn.Conv` adds its bias to what comes back. Adding a bias and a ReLU keep the order of
numbers, so that both may as well follow the pooling: there are fewer numbers then.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from siamese_jax._cpu import blocks
from siamese_jax.convolution import convolution, max_pool


def pooled_convolution(window: int) -> Callable[..., Array]:
    """Returns a convolution like `lax.conv_general_dilated` that pools its result.

    Equal to `max_pool(convolution(...), window)`. On CPUs, with few channels, both are one
    matrix product, and the convolution, which is much larger than its maxima, is not kept.
    """
    return partial(_convolve_and_pool, window)


def _convolve_and_pool(
    window: int,
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    def apart(x: Array, kernel: Array) -> Array:
        y = convolution(x, kernel, window_strides, padding, **options)
        return max_pool(y, window)

    def on_cpu(x: Array, kernel: Array) -> Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = blocks.convolve_and_pool(x.astype(wide), kernel.astype(wide), window)
        return y.astype(x.dtype)

    steps = window_strides, options.get("rhs_dilation") or 1
    plain = padding == "VALID" and all(np.all(np.asarray(step) == 1) for step in steps)
    if not plain or not blocks.is_faster(rhs.shape, window):
        return apart(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=apart)
