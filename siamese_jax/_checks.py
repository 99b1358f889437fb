"""Checks of shapes and types, made when a function is traced, so free under `jit`."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

AnyArray = Array | np.ndarray


def check_rank(name: str, array: AnyArray, rank: int) -> None:
    """Raises ValueError unless `array` has exactly `rank` axes."""
    if jnp.ndim(array) != rank:
        axes = "axis" if rank == 1 else "axes"
        raise ValueError(f"{name} must have {rank} {axes}; got shape {jnp.shape(array)}")


def check_same_shape(name: str, array: AnyArray, other_name: str, other: AnyArray) -> None:
    """Raises ValueError unless the two shapes are equal, since nothing is broadcast."""
    if jnp.shape(array) != jnp.shape(other):
        raise ValueError(
            f"{name} must have shape {jnp.shape(other)} to match {other_name}; "
            f"got {jnp.shape(array)}"
        )


def check_shape(name: str, array: AnyArray, shape: tuple[int, ...], words: str) -> None:
    """Raises ValueError unless `array` has the shape, which the words explain."""
    if jnp.shape(array) != shape:
        raise ValueError(f"{name} must have shape {shape}, {words}; got {jnp.shape(array)}")


def check_mask(name: str, mask: Array, values: Array) -> None:
    """Raises unless `mask` is boolean and has the shape of the values that it is for."""
    check_boolean(name, mask)
    check_same_shape(name, mask, "the terms", values)


def check_square(name: str, matrix: Array) -> None:
    """Raises ValueError unless a matrix has as many rows as columns."""
    shape = jnp.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"{name} must be the matrix of a batch with itself, [n, n]; got shape {shape}"
        )


_in_parts = ContextVar("_in_parts", default=False)


@contextlib.contextmanager
def parts_of_a_matrix() -> Iterator[None]:
    """While a loss is traced that sees some rows only, what needs all rows is refused."""
    token = _in_parts.set(True)
    try:
        yield
    finally:
        _in_parts.reset(token)


def check_whole(name: str) -> None:
    """Raises ValueError where a function that needs the whole matrix sees some rows only.

    Its result would be that of these rows, and nobody would notice.
    """
    if _in_parts.get():
        raise ValueError(whole_matrix_words(name))


def whole_matrix_words(name: str) -> str:
    """The error of a function that parts of a matrix cannot compute."""
    return (
        f"{name} needs the whole matrix and cannot be cut into rows; over several devices, "
        "jit over a mesh computes it exactly, as it is written"
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


def check_between_0_and_1(name: str, value: float) -> None:
    """Raises ValueError unless the Python number `value` is between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1); got {value}")


def check_distance_fn(
    name: str,
    matrix_fn: Callable[[Array, Array], Float[Array, "n n"]],
    embeddings: Float[Array, "n dim"],
) -> None:
    """Raises ValueError if a function that should give distances gives similarities.

    The signs of a similarity are those of an inner product: of something to itself it is
    positive, and between two no larger than sqrt(s_ii s_jj), as for cosines, dot products,
    probabilities and log-odds of "same". A distance has nothing smaller than that to
    itself, whether this is 0 or not. Similarities that are never positive, such as negated
    distances, pass. So does whatever is traced or not finite.

    Some embeddings are tried, and copies whose coordinates are shuffled, so that two that
    are nearly equal are told apart from them.
    """
    if isinstance(embeddings, jax.core.Tracer) or not len(embeddings):
        return
    rng = np.random.default_rng(0)
    few = np.asarray(embeddings)[rng.permutation(len(embeddings))[:_FEW]]
    tried = jnp.asarray(np.concatenate([few, *(rng.permuted(few, axis=1) for _ in "abc")]))
    matrix = jax.jit(matrix_fn)(tried, tried)
    if isinstance(matrix, jax.core.Tracer):
        return
    found = np.asarray(matrix, np.float64)
    zero = ~(found.any(axis=0) | found.any(axis=1))  # as cosines of zero vectors are
    found = found[~zero][:, ~zero]
    own = np.diag(found)
    if not np.isfinite(found).all() or not (own > 0).all():
        return
    relative = found / np.sqrt(own[:, None] * own[None, :])
    if (relative <= 1.0001).all() and (relative < 0.99).any():
        i, j = np.unravel_index(np.argmin(relative), relative.shape)
        raise ValueError(
            f"{name} must give distances, smaller for nearer; it gives, like a similarity, "
            f"{own[i]:.3g} for an embedding and itself and {found[i, j]:.3g} for two others"
        )


_FEW = 8  # embeddings that are tried


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
