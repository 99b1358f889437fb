"""The product of a dense layer, for which `vmap` over its inputs costs nothing on CPUs.

nn.Dense(128, dot_general=dot_general)
"""

from typing import Any

from jax import lax
from jaxtyping import Array

from siamese_jax._cpu.maps import Bilinear, bilinear

_product = Bilinear(
    forward=lambda x, kernel: x @ kernel,
    to_images=lambda y, kernel: y @ kernel.T,
    to_kernel=lambda x, y: x.T @ y,
)


def dot_general(lhs: Array, rhs: Array, dimension_numbers: Any, **options: Any) -> Array:
    """Computes `lax.dot_general`; on CPUs, `vmap` over the rows of lhs joins them."""

    def by_lax(x: Array, kernel: Array) -> Array:
        return lax.dot_general(x, kernel, dimension_numbers, **options)

    is_product = lhs.ndim == rhs.ndim == 2 and dimension_numbers == (((1,), (0,)), ((), ()))
    if not is_product or any(value is not None for value in options.values()):
        return by_lax(lhs, rhs)

    def on_cpu(x: Array, kernel: Array) -> Array:
        return bilinear(_product, x, kernel)

    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=by_lax)
