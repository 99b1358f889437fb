"""The few numerical tools the formulas share: wide accumulation, a root with a gradient."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = float | Float[Array, ""]  # a hyperparameter, which may be learnt


def widen(array: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Half precision to float32, so that sums are taken there; the rest unchanged."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Root of a non-negative number whose gradient at 0 is 0 instead of infinite.

    The mask sits inside the root as well as outside, since a mask outside alone still
    multiplies the infinite gradient by zero. NaN stays NaN.
    """
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))
