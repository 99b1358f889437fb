"""Checks of shapes and types, made when a function is traced, so free under `jit`."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

AnyArray = Array | np.ndarray


def check_rank(name: str, array: AnyArray, rank: int) -> None:
    """Raises ValueError unless `array` has exactly `rank` axes."""
    if jnp.ndim(array) != rank:
        raise ValueError(f"{name} must have {rank} axes; got shape {jnp.shape(array)}")


def check_same_shape(name: str, array: AnyArray, other_name: str, other: AnyArray) -> None:
    """Raises ValueError unless the two shapes are equal, since nothing is broadcast."""
    if jnp.shape(array) != jnp.shape(other):
        raise ValueError(
            f"{name} must have shape {jnp.shape(other)} to match {other_name}; "
            f"got {jnp.shape(array)}"
        )


def check_floating(name: str, array: AnyArray) -> None:
    """Raises TypeError unless `array` has a floating-point dtype."""
    _check_dtype(name, array, jnp.floating, "floating-point")


def check_boolean(name: str, array: AnyArray) -> None:
    """Raises TypeError unless `array` is boolean."""
    _check_dtype(name, array, jnp.bool_, "boolean")


def check_integer(name: str, array: AnyArray) -> None:
    """Raises TypeError unless `array` has an integer dtype."""
    _check_dtype(name, array, jnp.integer, "integer", "an")


def check_scalar(name: str, value: float | Array) -> None:
    """Raises ValueError unless `value` is a single number."""
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar; got shape {jnp.shape(value)}")


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raises ValueError unless the Python number `value` is at least `minimum`."""
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")


def _check_dtype(
    name: str, array: AnyArray, kind: type, words: str, article: str = "a"
) -> None:
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        raise TypeError(
            f"{name} must be {article} {words} array; got {type(array).__name__}"
        )
    if not jnp.issubdtype(dtype, kind):
        raise TypeError(f"{name} must be {article} {words} array; got dtype {dtype}")
