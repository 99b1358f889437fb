"""Triplet losses: an anchor should be nearer to its positive than to its negative."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_floating, check_same_shape, check_scalar
from siamese_jax._masks import row_has_nan, sides
from siamese_jax._numerics import Scalar, widen
from siamese_jax.miners import semi_hard_negatives
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms


def triplet_loss(
    positive_distances: Float[Array, "*shape"],
    negative_distances: Float[Array, "*shape"],
    *,
    margin: Scalar = 1.0,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Triplet loss of given triplets: max(0, d_positive - d_negative + margin).

    With the negatives of a miner it is a loss over a matrix: `triplet_loss(distances,
    negatives.distances, where=negatives.where)`.

    Args:
      positive_distances: Distances of anchor to positive, squared or not.
      negative_distances: Distances of anchor to negative, in the same units.
      margin: By how much the negative must be farther.
      where: See `siamese_jax.losses`, also for `weights` (one per triplet) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per triplet.

    Reference:
      Schroff, Kalenichenko, Philbin. FaceNet. CVPR 2015, eq. 2, with squared distances.

    >>> print(triplet_loss(jnp.array([1.0, 1.0]), jnp.array([1.5, 9.0]), margin=1.0))
    0.25
    """
    check_scalar("margin", margin)
    check_floating("positive_distances", positive_distances)
    check_floating("negative_distances", negative_distances)
    check_same_shape(
        "negative_distances",
        negative_distances,
        "positive_distances",
        positive_distances,
    )
    difference = widen(positive_distances) - widen(negative_distances)
    values = jax.nn.relu(difference + margin)
    return reduce_terms(make_terms(values, where=where, weights=weights), reduce_fn)


def hard_triplet_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Scalar = 1.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Batch-hard triplet loss: farthest positive and nearest negative of each anchor.

    For anchor i:  max(0, max_j d_ij - min_k d_ik + margin)  over its positives j and its
    negatives k. An anchor without a positive or without a negative is left out.

    Args:
      distances: A matrix whose rows are anchors.
      same: True where the two are of one class.
      margin: By how much the negative must be farther.
      where: See `siamese_jax.losses`, also for `weights` (one per anchor) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per anchor.

    Reference:
      Hermans, Beyer, Leibe. In Defense of the Triplet Loss. 2017, eq. 5, which sums
      instead of averaging.

    >>> matrix = jnp.array([[0.0, 1.0, 3.0, 2.0]])
    >>> same = jnp.array([[True, True, False, False]])
    >>> print(hard_triplet_loss(matrix, same, margin=1.5))  # 1 - 2 + 1.5
    0.5
    """
    positive, negative = sides(distances, same, where)
    distances = widen(distances)
    farthest = jnp.max(jnp.where(positive, distances, -jnp.inf), axis=1)
    nearest = jnp.min(jnp.where(negative, distances, jnp.inf), axis=1)
    complete = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    return triplet_loss(
        jnp.where(complete, farthest, 0),
        jnp.where(complete, nearest, 0),
        margin=margin,
        where=complete,
        weights=weights,
        reduce_fn=reduce_fn,
    )


def semi_hard_triplet_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Scalar = 1.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, "n m"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Semi-hard triplet loss: each positive with the nearest negative farther than it.

    For anchor i and positive j:  max(0, d_ij - d_ik + margin), where k is chosen by
    `miners.semi_hard_negatives`.

    Args:
      distances: A matrix whose rows are anchors.
      same: True where the two are of one class.
      margin: By how much the negative must be farther.
      where: See `siamese_jax.losses`, also for `reduce_fn` and for `weights` (one per
        entry, of which those of the positives are used).

    Returns:
      The reduced loss, or `Terms` with one value per anchor-positive entry.

    Reference:
      Schroff, Kalenichenko, Philbin. FaceNet. CVPR 2015, eq. 2 and 4.

    >>> matrix = jnp.array([[1.0, 0.5, 1.5, 9.0]])
    >>> same = jnp.array([[True, False, False, False]])
    >>> print(semi_hard_triplet_loss(matrix, same, margin=1.0))  # 1 - 1.5 + 1
    0.5

    The mean is over all positives. `reductions.mean_of_active` leaves out those whose
    negative is beyond the margin:

    >>> from siamese_jax.reductions import mean_of_active
    >>> matrix = jnp.array([[0.5, 1.0, 1.5, 9.0]])
    >>> same = jnp.array([[True, True, False, False]])
    >>> print(semi_hard_triplet_loss(matrix, same))  # (0 + 0.5) / 2
    0.25
    >>> print(semi_hard_triplet_loss(matrix, same, reduce_fn=mean_of_active))
    0.5
    """
    negatives = semi_hard_negatives(distances, same, where=where)
    return triplet_loss(
        distances,
        negatives.distances,
        margin=margin,
        where=negatives.where,
        weights=weights,
        reduce_fn=reduce_fn,
    )


def all_triplets_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Scalar = 1.0,
    active_only: bool = False,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Batch-all triplet loss: each positive with each negative of its anchor.

    The mean of max(0, d_ij - d_ik + margin) over all (i, j, k) where j is a positive and
    k a negative of anchor i. No array of n^3 triplets is made: the negatives of a row are
    sorted, and the sum of hinges of a positive follows from the number of nearer negatives
    and the sum of their distances. Memory is O(n m) and time O(n m log m).

    Args:
      distances: A matrix whose rows are anchors.
      same: True where the two are of one class.
      margin: By how much the negative must be farther.
      active_only: Average only over the triplets with a positive hinge (BA != 0 in the
        paper) instead of over all.
      where: See `siamese_jax.losses`, also for `reduce_fn` and for `weights` (one per
        anchor, multiplied by the number of its triplets).

    Returns:
      The reduced loss, or `Terms` with one value per anchor. The value is the mean over the
      anchor's triplets and its weight their number, so that the mean over terms is the mean
      over triplets.

    Reference:
      Hermans, Beyer, Leibe. In Defense of the Triplet Loss. 2017, eq. 6, which sums
      instead of averaging.

    >>> matrix = jnp.array([[1.0, 0.5, 1.5, 9.0]])
    >>> same = jnp.array([[True, False, False, False]])
    >>> print(all_triplets_loss(matrix, same))  # (1.5 + 0.5 + 0) / 3
    0.6666667
    >>> print(all_triplets_loss(matrix, same, active_only=True))  # (1.5 + 0.5) / 2
    1.0
    """
    check_scalar("margin", margin)
    positive, negative = sides(distances, same, where)
    centred, ascending = _centre(widen(distances), negative)
    sums = jnp.cumsum(jnp.where(jnp.isinf(ascending), 0, ascending), axis=1)
    sums = jnp.pad(sums, ((0, 0), (1, 0)))  # sums[:, k] is over the k nearest

    # sum_k max(0, reach - d_ik) = (number of nearer ones) * reach - (sum of nearer ones)
    reach = centred + margin
    nearer = jax.vmap(jnp.searchsorted)(ascending, lax.stop_gradient(reach))
    hinges = nearer * reach - jnp.take_along_axis(sums, nearer, axis=1)
    hinges = jnp.sum(jnp.where(positive, hinges, 0), axis=1)

    num_negatives = jnp.sum(negative, axis=1, keepdims=True)
    partners = nearer if active_only else jnp.broadcast_to(num_negatives, nearer.shape)
    num_triplets = jnp.sum(jnp.where(positive, partners, 0), axis=1)
    values = hinges / jnp.maximum(num_triplets, 1)
    has_nan = row_has_nan(distances, positive | negative)[:, 0]
    values = jnp.where(has_nan, jnp.nan, values)
    weights = jnp.ones(len(values), values.dtype) if weights is None else weights
    check_floating("weights", weights)
    check_same_shape("weights", weights, "the anchors", values)
    terms = make_terms(
        values, where=num_triplets > 0, weights=widen(weights) * num_triplets
    )
    return reduce_terms(terms, reduce_fn)


def _centre(
    distances: Float[Array, "n m"], negative: Bool[Array, "n m"]
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    """Subtracts each row's median negative from its distances and its sorted negatives.

    Only differences matter, and prefix sums of numbers near 0 have smaller rounding errors.
    """
    ascending = jnp.sort(jnp.where(negative, distances, jnp.inf), axis=1)
    middle = jnp.sum(negative, axis=1, keepdims=True) // 2
    median = lax.stop_gradient(jnp.take_along_axis(ascending, middle, axis=1, mode="clip"))
    median = jnp.where(jnp.isinf(median), 0, median)
    return distances - median, ascending - median
