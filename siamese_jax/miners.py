"""What counts: distances and a relation in, the negatives worth learning from out.

A triplet miner answers for each anchor-positive entry of the matrix with one negative: its
distance, and whether there is one. The result has the shape of the matrix, whatever the
mix of labels, so one compilation serves every batch and no n^3 array exists.

>>> import jax.numpy as jnp
>>> distances = jnp.array([[1.0, 0.5, 2.0, 3.0]])
>>> same = jnp.array([[True, False, False, False]])
>>> print(hard_negatives(distances, same).distances[0, 0])
0.5
>>> print(semi_hard_negatives(distances, same).distances[0, 0])
2.0

`same` and `where` are a relation of `siamese_jax.relations`; `where=None` counts all. NaN
among a row's valid distances makes the row's answers NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import (
    check_boolean,
    check_floating,
    check_rank,
    check_same_shape,
)


class Negatives(NamedTuple):
    """One negative for each entry `[anchor, positive]`; distance 0 where there is none.

    Attributes:
      distances: Distance of the anchor to the negative.
      where: The entry is a valid positive, and its anchor has a negative.
    """

    distances: Float[Array, "n m"]
    where: Bool[Array, "n m"]


class Sides(NamedTuple):
    """Which entries of a distance matrix are positives, which negatives."""

    positive: Bool[Array, "n m"]
    negative: Bool[Array, "n m"]


def sides(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    where: Bool[Array, "n m"] | None = None,
    *,
    name: str = "distances",
) -> Sides:
    """Splits the valid entries of a matrix into positives and negatives.

    Args:
      distances: Distances or similarities.
      same: True where the two are of one class.
      where: What counts; None counts everything.
      name: Of the matrix, for messages.

    Raises:
      ValueError: If `distances` is not a matrix or the shapes differ.
      TypeError: If `distances` is not floating-point, `same` or `where` not boolean.

    >>> same, where = jnp.array([[True, False]]), jnp.array([[True, False]])
    >>> print(sides(jnp.zeros((1, 2)), same, where).negative.tolist())
    [[False, False]]
    """
    check_floating(name, distances)
    check_rank(name, distances, 2)
    where = jnp.ones(distances.shape, bool) if where is None else where
    for mask_name, mask in (("same", same), ("where", where)):
        check_boolean(mask_name, mask)
        check_same_shape(mask_name, mask, name, distances)
    return Sides(same & where, ~same & where)


def hard_negatives(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    where: Bool[Array, "n m"] | None = None,
) -> Negatives:
    """The nearest negative of each anchor, for every positive of the anchor.

    Raises:
      ValueError: If `distances` is not a matrix or the shapes differ.
      TypeError: If `distances` is not floating-point, `same` or `where` not boolean.

    Reference:
      Hermans, Beyer, Leibe. In Defense of the Triplet Loss. 2017, eq. 5 (its inner min).

    >>> same = jnp.array([[True, False, False]])
    >>> print(hard_negatives(jnp.array([[2.0, 1.0, 3.0]]), same).distances)
    [[1. 0. 0.]]
    """
    positive, negative = sides(distances, same, where)
    nearest = jnp.min(jnp.where(negative, distances, jnp.inf), axis=1, keepdims=True)
    nearest = jnp.broadcast_to(nearest, distances.shape)
    exists = positive & jnp.any(negative, axis=1, keepdims=True)
    return Negatives(jnp.where(exists, nearest, 0), exists)


def semi_hard_negatives(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    where: Bool[Array, "n m"] | None = None,
) -> Negatives:
    """For each positive, the nearest negative that is farther than it.

    Where no negative is farther than the positive, the farthest negative is taken: the
    least wrong of those inside. An equal distance is not farther. A negative beyond the
    margin is returned too, and costs a hinge nothing.

    One sort a row and a binary search an entry: O(n m) memory.

    Raises:
      ValueError: If `distances` is not a matrix or the shapes differ.
      TypeError: If `distances` is not floating-point, `same` or `where` not boolean.

    Reference:
      Schroff, Kalenichenko, Philbin. FaceNet. CVPR 2015, eq. 4. The fallback is not in
      the paper; it is that of its TensorFlow implementations.

    >>> same = jnp.array([[True, False, False]])
    >>> print(semi_hard_negatives(jnp.array([[2.0, 1.0, 3.0]]), same).distances)
    [[3. 0. 0.]]
    """
    positive, negative = sides(distances, same, where)
    ascending = jnp.sort(jnp.where(negative, distances, jnp.inf), axis=1)
    num_negatives = jnp.sum(negative, axis=1, keepdims=True)
    farther = jax.vmap(lambda row, values: jnp.searchsorted(row, values, side="right"))
    index = jnp.minimum(farther(ascending, distances), num_negatives - 1)
    chosen = jnp.take_along_axis(ascending, jnp.maximum(index, 0), axis=1)
    chosen = jnp.where(row_has_nan(distances, positive | negative), jnp.nan, chosen)
    exists = positive & (num_negatives > 0)
    return Negatives(jnp.where(exists, chosen, 0), exists)


def row_has_nan(
    distances: Float[Array, "n m"], where: Bool[Array, "n m"]
) -> Bool[Array, "n 1"]:
    """Whether a valid entry of each row is NaN: a sort would hide it.

    >>> print(row_has_nan(jnp.array([[1.0, jnp.nan]]), jnp.array([[True, False]])))
    [[False]]
    """
    return jnp.any(jnp.isnan(distances) & where, axis=1, keepdims=True)
