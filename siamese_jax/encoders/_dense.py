"""What a dense layer takes, and its product, for which `vmap` costs nothing on CPUs.

nn.Dense(128, dot_general=dot_general)

The inputs are joined to one product, or each has its own. XLA computes one small product on
one core, but two of them on two cores at once, which is faster where they have many rows.
It saves a tenth of the time of a training step of `mnist_mlp` on two cores with AVX-512.
"""

import math
from typing import Any

from jax import lax
from jaxtyping import Array, Shaped

from siamese_jax._cpu.maps import Bilinear, bilinear

_joined = Bilinear(
    forward=lambda x, kernel: x @ kernel,
    to_images=lambda y, kernel: y @ kernel.T,
    to_kernel=lambda x, y: x.T @ y,
)
_one_by_one = _joined._replace(image_axes=None)

# Products with at least so many rows, and with kernels of at most so many numbers, are
# computed one by one. XLA computes larger ones on several cores.
_FEWEST_ROWS = 64
_LARGEST_KERNEL = 2**18


def flatten(x: Shaped[Array, "n ..."]) -> Shaped[Array, "n features"]:
    """Makes one row of each input, also if their number is symbolic or 0."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def dot_general(lhs: Array, rhs: Array, dimension_numbers: Any, **options: Any) -> Array:
    """Computes `lax.dot_general`; on CPUs, `vmap` over the rows of lhs joins them."""

    def by_lax(x: Array, kernel: Array) -> Array:
        return lax.dot_general(x, kernel, dimension_numbers, **options)

    is_product = lhs.ndim == rhs.ndim == 2 and dimension_numbers == (((1,), (0,)), ((), ()))
    if not is_product or any(value is not None for value in options.values()):
        return by_lax(lhs, rhs)

    def on_cpu(x: Array, kernel: Array) -> Array:
        rows, size = x.shape[0], kernel.size  # may be symbolic, in an exported program
        known = isinstance(rows, int) and isinstance(size, int)
        apart = known and rows >= _FEWEST_ROWS and size <= _LARGEST_KERNEL
        return bilinear(_one_by_one if apart else _joined, x, kernel)

    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=by_lax)
