"""Select which negatives each anchor-positive pair is compared with.

In a matrix of distances the rows are anchors. A triplet miner returns one negative for each
anchor-positive entry: its distance, and whether there is one. The result has the shape of
the matrix whatever the labels are, so that one compilation serves every batch, and no array
of n^3 triplets is made.

>>> import jax.numpy as jnp
>>> distances = jnp.array([[1.0, 0.5, 2.0, 3.0]])
>>> same = jnp.array([[True, False, False, False]])
>>> print(hard_negatives(distances, same).distances[0, 0])
0.5
>>> print(semi_hard_negatives(distances, same).distances[0, 0])
2.0

`same` and `where` come from `siamese_jax.relations`: `same` is True where the two are of
one class, `where` is True where the entry is valid, and None means that all entries are.
Another shape than that of the matrix raises ValueError, another type of number TypeError.
The distances of negatives are float32 if those of the matrix are of half precision.
A NaN among the valid distances of a row makes all results of the row NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from siamese_jax._masks import row_has_nan, sides
from siamese_jax._numerics import widen


class Negatives(NamedTuple):
    """One negative for each entry `[anchor, positive]` of a matrix.

    Attributes:
      distances: Distance from the anchor to the negative, 0 where there is none.
      where: True where the entry is a valid positive whose anchor has a negative.
    """

    distances: Float[Array, "n m"]
    where: Bool[Array, "n m"]


def hard_negatives(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    where: Bool[Array, "n m"] | None = None,
) -> Negatives:
    """For each positive, the nearest negative of its anchor.

    Reference:
      Hermans, Beyer, Leibe. In Defense of the Triplet Loss. 2017, eq. 5 (its inner min).

    >>> same = jnp.array([[True, False, False]])
    >>> print(hard_negatives(jnp.array([[2.0, 1.0, 3.0]]), same).distances)
    [[1. 0. 0.]]
    """
    positive, negative = sides(distances, same, where)
    distances = widen(distances)
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
    """For each positive, the nearest negative that is farther from the anchor than it.

    If no negative is farther than the positive, the farthest negative is taken. A negative
    at the same distance is not farther. A negative beyond the margin is returned too; the
    hinge of the triplet loss is then 0.

    Each row is sorted and each entry found by binary search, in O(n m) memory.

    Reference:
      Schroff, Kalenichenko, Philbin. FaceNet. CVPR 2015, eq. 4. The paper does not say
      what to do if no negative is farther; TensorFlow implementations take the farthest.

    >>> same = jnp.array([[True, False, False]])
    >>> print(semi_hard_negatives(jnp.array([[2.0, 1.0, 3.0]]), same).distances)
    [[3. 0. 0.]]
    """
    positive, negative = sides(distances, same, where)
    distances = widen(distances)
    ascending = jnp.sort(jnp.where(negative, distances, jnp.inf), axis=1)
    num_negatives = jnp.sum(negative, axis=1, keepdims=True)
    farther = jax.vmap(lambda row, values: jnp.searchsorted(row, values, side="right"))
    index = jnp.minimum(farther(ascending, distances), num_negatives - 1)
    chosen = jnp.take_along_axis(ascending, jnp.maximum(index, 0), axis=1)
    chosen = jnp.where(row_has_nan(distances, positive | negative), jnp.nan, chosen)
    exists = positive & (num_negatives > 0)
    return Negatives(jnp.where(exists, chosen, 0), exists)
