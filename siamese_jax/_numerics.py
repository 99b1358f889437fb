"""Numerical functions that several modules share."""

from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

AnyArray = TypeVar("AnyArray", Array, np.ndarray)
Scalar = float | Float[Array, ""]  # a hyperparameter, which may be a learned one


def widen(array: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts half precision to float32, for sums. Other types are left unchanged."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square root of a non-negative number, with gradient 0 at 0 instead of infinity.

    The root is masked inside as well as outside, since with the outer mask alone the
    gradient would be 0 times infinity. NaN stays NaN.
    """
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def just_below(x: AnyArray) -> AnyArray:
    """Returns numbers a little smaller than x, of the same type.

    The number before 0 is subnormal and would be flushed to 0, so that -tiny is taken.
    """
    numpy = np if isinstance(x, np.ndarray) else jnp
    return numpy.minimum(numpy.nextafter(x, -np.inf), x - jnp.finfo(x.dtype).tiny)
