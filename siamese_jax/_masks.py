"""Masks of the positives and the negatives of a matrix, for miners and losses."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import (
    check_boolean,
    check_floating,
    check_rank,
    check_same_shape,
)


class Sides(NamedTuple):
    """Which valid entries of a matrix are positives and which are negatives."""

    positive: Bool[Array, "n m"]
    negative: Bool[Array, "n m"]


def sides(
    matrix: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    where: Bool[Array, "n m"] | None,
    *,
    name: str = "distances",
) -> Sides:
    """Splits the valid entries of a matrix into positives and negatives.

    Args:
      matrix: Distances or similarities.
      same: True where the two are of one class.
      where: True where the entry is valid. None means that all entries are.
      name: Name of the matrix in error messages.

    Raises:
      ValueError: If the matrix has not two axes or the shapes differ.
      TypeError: If the matrix is not floating-point, `same` or `where` not boolean.

    >>> same, where = jnp.array([[True, False]]), jnp.array([[True, False]])
    >>> print(sides(jnp.zeros((1, 2)), same, where).negative.tolist())
    [[False, False]]
    """
    check_floating(name, matrix)
    check_rank(name, matrix, 2)
    where = jnp.ones(matrix.shape, bool) if where is None else where
    for mask_name, mask in (("same", same), ("where", where)):
        check_boolean(mask_name, mask)
        check_same_shape(mask_name, mask, name, matrix)
    return Sides(same & where, ~same & where)


def row_has_nan(
    matrix: Float[Array, "n m"], where: Bool[Array, "n m"]
) -> Bool[Array, "n 1"]:
    """Whether a valid entry of each row is NaN, which sorting the row would hide.

    >>> print(row_has_nan(jnp.array([[1.0, jnp.nan]]), jnp.array([[True, False]])))
    [[False]]
    """
    return jnp.any(jnp.isnan(matrix) & where, axis=1, keepdims=True)
