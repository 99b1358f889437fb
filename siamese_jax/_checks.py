"""Checks of shapes and types, made when a function is traced, so free under `jit`."""

import jax.numpy as jnp
from jaxtyping import Array


def check_rank(name: str, array: Array, rank: int) -> None:
    """Raises ValueError unless `array` has exactly `rank` axes."""
    if jnp.ndim(array) != rank:
        raise ValueError(f"{name} must have {rank} axes; got shape {jnp.shape(array)}")


def check_same_shape(name: str, array: Array, other_name: str, other: Array) -> None:
    """Raises ValueError unless the two shapes are equal, since nothing is broadcast."""
    if jnp.shape(array) != jnp.shape(other):
        raise ValueError(
            f"{name} must have shape {jnp.shape(other)} to match {other_name}; "
            f"got {jnp.shape(array)}"
        )


def check_shape(name: str, array: Array, shape: tuple[int, ...], words: str) -> None:
    """Raises ValueError unless `array` has the shape, which the words explain."""
    if jnp.shape(array) != shape:
        raise ValueError(f"{name} must have shape {shape}, {words}; got {jnp.shape(array)}")


def check_square(name: str, matrix: Array) -> None:
    """Raises ValueError unless a matrix has as many rows as columns."""
    shape = jnp.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"{name} must be the matrix of a batch with itself, [n, n]; got shape {shape}"
        )


def check_broadcastable(name: str, value: float | Array, other: Array) -> None:
    """Raises ValueError unless a value is a scalar or broadcasts to `other`.

    It needs as many axes, since `[n]` could mean the rows or the columns of a matrix.
    """
    shape, wanted = jnp.shape(value), jnp.shape(other)
    fits = len(shape) == len(wanted) and all(
        found in (1, length) for found, length in zip(shape, wanted, strict=True)
    )
    if shape and not fits:
        raise ValueError(
            f"{name} must be a scalar or broadcast to shape {wanted}, with as many axes; "
            f"got shape {shape}"
        )


def check_floating(name: str, array: Array) -> None:
    """Raises TypeError unless `array` has a floating-point dtype."""
    _check_dtype(name, array, jnp.floating, "floating-point")


def check_boolean(name: str, array: Array) -> None:
    """Raises TypeError unless `array` is boolean."""
    _check_dtype(name, array, jnp.bool_, "boolean")


def check_integer(name: str, array: Array) -> None:
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
    name: str, array: Array, kind: type, words: str, article: str = "a"
) -> None:
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        raise TypeError(
            f"{name} must be {article} {words} array; got {type(array).__name__}"
        )
    if not jnp.issubdtype(dtype, kind):
        raise TypeError(f"{name} must be {article} {words} array; got dtype {dtype}")
