"""Triplet losses: an anchor should be nearer to its positive than to its negative.

With the violation v = d_positive - d_negative + margin, a triplet costs max(0, v), or with
`soft=True` log(1 + exp(v)), which has a gradient everywhere; its margin is usually 0.

A margin is one number, or an array with as many axes as the values of the loss that
broadcasts against them: `margins[labels]` for one margin for each anchor's class.
"""

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import (
    check_at_least,
    check_broadcastable,
    check_floating,
    check_rank,
    check_same_shape,
    check_square,
    check_whole,
)
from siamese_jax._numerics import Margin, node_counts, row_has_nan, widen
from siamese_jax.miners import semi_hard_negatives, sides
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms


def triplet_loss(
    positive_distances: Float[Array, "*shape"],
    negative_distances: Float[Array, "*shape"],
    *,
    margin: Margin = 1.0,
    soft: bool = False,
    swapped_distances: Float[Array, "*shape"] | None = None,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Triplet loss of given triplets: max(0, d_positive - d_negative + margin).

    With the swap, the negative is compared with the nearer of anchor and positive.
    With the negatives of a miner it is a loss over a matrix: `triplet_loss(distances,
    negatives.distances, where=negatives.where)`.

    Args:
      positive_distances: Distances of anchor to positive, squared or not.
      negative_distances: Distances of anchor to negative, in the same units.
      margin: By how much the negative must be farther.
      soft: log(1 + exp(v)) in place of max(0, v).
      swapped_distances: Distances of positive to negative. The smaller of the two
        distances to the negative is then used.
      where: See `siamese_jax.losses`, also for `weights` (one per triplet) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per triplet.

    Reference:
      Schroff, Kalenichenko, Philbin. FaceNet. CVPR 2015, eq. 2, with squared distances.
      The swap: Balntas et al. Learning Local Feature Descriptors with Triplets. BMVC 2016,
      section 3.3; it is the loss of ivis (PN loss) too.

    >>> print(triplet_loss(jnp.array([1.0, 1.0]), jnp.array([1.5, 9.0]), margin=1.0))
    0.25
    """
    check_broadcastable("margin", margin, positive_distances)
    check_floating("positive_distances", positive_distances)
    negatives = {"negative_distances": negative_distances}
    if swapped_distances is not None:
        negatives["swapped_distances"] = swapped_distances
    for name, array in negatives.items():
        check_floating(name, array)
        check_same_shape(name, array, "positive_distances", positive_distances)
    nearest = reduce(jnp.minimum, map(widen, negatives.values()))
    positive = widen(positive_distances)
    values = _cost(positive - nearest + margin, soft)
    return reduce_terms(make_terms(values, where, weights=weights), reduce_fn)


def hard_triplet_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Margin = 1.0,
    soft: bool = False,
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
      soft: log(1 + exp(v)) in place of max(0, v).
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
    farthest = jnp.max(distances, axis=1, where=positive, initial=-jnp.inf)
    nearest = jnp.min(distances, axis=1, where=negative, initial=jnp.inf)
    complete = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    return triplet_loss(
        jnp.where(complete, farthest, 0),
        jnp.where(complete, nearest, 0),
        margin=margin,
        soft=soft,
        where=complete,
        weights=weights,
        reduce_fn=reduce_fn,
    )


def semi_hard_triplet_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Margin = 1.0,
    soft: bool = False,
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
      soft: log(1 + exp(v)) in place of max(0, v).
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
    check_floating("distances", distances)
    distances = widen(distances)  # once, as they are used twice
    negatives = semi_hard_negatives(distances, same, where=where)
    return triplet_loss(
        distances,
        negatives.distances,
        margin=margin,
        soft=soft,
        where=negatives.where,
        weights=weights,
        reduce_fn=reduce_fn,
    )


def all_triplets_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Margin = 1.0,
    soft: bool = False,
    swap: bool = False,
    active_only: bool = False,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Batch-all triplet loss: each positive with each negative of its anchor.

    The mean of max(0, d_ij - d_ik + margin) over all (i, j, k) where j is a positive and
    k a negative of anchor i. No array of n^3 triplets is made: the negatives of a row are
    sorted, and the sum of hinges of a positive follows from the number of nearer negatives
    and the sum of their distances. Memory is O(n m) and time O(n m log m). With `soft` or
    `swap` one anchor is computed after the other, in O(n m) memory and O(n m^2) time.

    Args:
      distances: A matrix whose rows are anchors; with `swap` of a batch with itself.
      same: True where the two are of one class.
      margin: By how much the negative must be farther: one number, or `[n, 1]` or `[n, m]`
        for each anchor or each positive.
      soft: log(1 + exp(v)) in place of max(0, v).
      swap: Use the smaller of the distances of anchor and of positive to the negative, even
        if `where` masks the entry of positive and negative.
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
    check_broadcastable("margin", margin, distances)
    positive, negative = sides(distances, same, where)
    d = widen(distances)
    if swap:
        check_whole("all_triplets_loss with swap=True")
        check_square("distances", distances)
    if soft or swap:
        costs, num_active = _costs_by_anchor(d, negative, margin, soft=soft, swap=swap)
    else:
        costs, num_active = _sorted_costs(d, negative, margin)
    num_negatives = jnp.sum(negative, axis=1, keepdims=True)
    partners = num_active if active_only else jnp.broadcast_to(num_negatives, d.shape)
    num_triplets = jnp.sum(jnp.where(positive, partners, 0), axis=1)
    sums = jnp.sum(jnp.where(positive, costs, 0), axis=1)
    values = sums / jnp.maximum(num_triplets, 1)
    has_nan = row_has_nan(distances, positive | negative)[:, 0]
    values = jnp.where(has_nan, jnp.nan, values)
    weights = jnp.ones(len(values), values.dtype) if weights is None else weights
    check_floating("weights", weights)
    check_same_shape("weights", weights, "the anchors", values)
    terms = make_terms(values, num_triplets > 0, weights=widen(weights) * num_triplets)
    return reduce_terms(terms, reduce_fn)


def quadruplet_loss(
    positive_distances: Float[Array, "*shape"],
    negative_distances: Float[Array, "*shape"],
    other_distances: Float[Array, "*shape"],
    *,
    margin: Margin = 1.0,
    other_margin: Margin = 0.5,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Quadruplet loss: the positive pair is also nearer than two other items.

    max(0, d_positive - d_negative + margin) + max(0, d_positive - d_other + other_margin),
    where `other` is the distance of two items of different classes, neither of them the
    anchor's.

    Args:
      positive_distances: Distances of anchor to positive; in the paper learnt and squared.
      negative_distances: Distances of anchor to negative.
      other_distances: Distances of a negative to an item of a third class.
      margin: By how much the negative must be farther.
      other_margin: By how much the two other items must be farther apart, in the paper less
        than the margin.
      where: See `siamese_jax.losses`, also for `weights` (one per quadruplet) and
        `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per quadruplet.

    Reference:
      Chen et al. Beyond Triplet Loss: A Deep Quadruplet Network for Person
      Re-identification. CVPR 2017, eq. 7.

    >>> one = jnp.array([1.0])
    >>> print(quadruplet_loss(one, one, one))  # 1 + 0.5
    1.5
    """
    check_floating("positive_distances", positive_distances)
    check_floating("other_distances", other_distances)
    check_same_shape(
        "other_distances", other_distances, "positive_distances", positive_distances
    )
    positive_distances = widen(positive_distances)  # once, as it is used twice
    first = triplet_loss(
        positive_distances, negative_distances, margin=margin, reduce_fn=None
    )
    second = triplet_loss(
        positive_distances, other_distances, margin=other_margin, reduce_fn=None
    )
    terms = make_terms(first.values + second.values, where, weights=weights)
    return reduce_terms(terms, reduce_fn)


class DynamicSoftMargin(NamedTuple):
    """The result of `dynamic_soft_margin_loss`.

    Attributes:
      loss: The reduced loss.
      histogram: The histogram to pass to the next step.
    """

    loss: Any
    histogram: Float[Array, " bins"]


def dynamic_soft_margin_loss(
    positive_distances: Float[Array, " n"],
    negative_distances: Float[Array, " n"],
    histogram: Float[Array, " bins"],
    *,
    momentum: float = 0.01,
    lowest: float = -2.0,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> DynamicSoftMargin:
    """Triplet loss whose weights are the ranks of the triplets, in place of a margin.

    With v = d_positive - d_negative, a triplet costs F(v) v, where F is the cumulative
    distribution of v: hard triplets count, easy ones hardly. F comes from a histogram that
    is carried from step to step, counts h <- (1 - momentum) h + momentum (counts of this
    batch), then divided by their sum. No gradient flows through F.

    Args:
      positive_distances: Distances of anchor to positive, of embeddings of length 1.
      negative_distances: Distances of anchor to negative, usually `miners.hard_negatives`.
      histogram: The histogram of the steps before, `jnp.zeros(num_bins)` at the start. Its
        nodes are evenly spaced from `lowest` in steps of 2 |lowest| / num_bins.
      momentum: How fast the histogram follows.
      lowest: The smallest v that is told from others.
      where: See `siamese_jax.losses`, also for `weights` (one per triplet) and `reduce_fn`.

    Raises:
      ValueError: If the histogram has fewer than 2 bins.

    Reference:
      Zhang, Rusinkiewicz. Learning Local Descriptors With a CDF-Based Dynamic Soft Margin.
      ICCV 2019, eq. 4 to 6.

    >>> one = jnp.array([1.0])
    >>> found = dynamic_soft_margin_loss(one, 2 * one, jnp.zeros(4))  # v = -1
    >>> print(found.loss, found.histogram)
    -1.0 [0. 1. 0. 0.]
    """
    check_floating("histogram", histogram)
    check_rank("histogram", histogram, 1)
    check_at_least("the number of bins", len(histogram), 2)
    check_floating("positive_distances", positive_distances)
    check_floating("negative_distances", negative_distances)
    check_same_shape(
        "negative_distances", negative_distances, "positive_distances", positive_distances
    )
    histogram = widen(histogram)
    violations = widen(positive_distances) - widen(negative_distances)
    terms = make_terms(violations, where, weights=weights)
    num_bins = len(histogram)
    place = (lax.stop_gradient(terms.values) - lowest) * num_bins / (2 * abs(lowest))
    place = jnp.clip(place, 0, num_bins - 1)
    left, _, counts = node_counts(place, terms.where.astype(place.dtype), num_bins)
    rate = jnp.where(jnp.any(histogram != 0), momentum, 1.0)
    mixed = (1 - rate) * histogram + rate * counts
    total = jnp.sum(mixed)
    new = lax.stop_gradient(mixed / jnp.where(total == 0, 1, total))
    ranked = terms._replace(values=jnp.cumsum(new)[left] * terms.values)
    return DynamicSoftMargin(reduce_terms(ranked, reduce_fn), new)


# Implementation -------------------------------------------------------------------------


def _cost(violation: Array, soft: bool) -> Array:
    return jax.nn.softplus(violation) if soft else jax.nn.relu(violation)


def _sorted_costs(
    distances: Float[Array, "n m"], negative: Bool[Array, "n m"], margin: Margin
) -> tuple[Float[Array, "n m"], Array]:
    """For each entry as the positive, the sum of hinges and the number of positive ones."""
    centred, ascending = _centre(distances, negative)
    sums = jnp.cumsum(jnp.where(jnp.isinf(ascending), 0, ascending), axis=1)
    sums = jnp.pad(sums, ((0, 0), (1, 0)))  # sums[:, k] is over the k nearest
    # sum_k max(0, reach - d_ik) = (number of nearer ones) * reach - (sum of nearer ones)
    reach = centred + margin
    nearer = jax.vmap(jnp.searchsorted)(ascending, lax.stop_gradient(reach))
    return nearer * reach - jnp.take_along_axis(sums, nearer, axis=1), nearer


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


def _costs_by_anchor(
    distances: Float[Array, "n m"],
    negative: Bool[Array, "n m"],
    margin: Margin,
    *,
    soft: bool,
    swap: bool,
) -> tuple[Float[Array, "n m"], Array]:
    """For each entry as the positive, the sum of costs and the number of positive ones."""

    @jax.checkpoint
    def one_anchor(row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        of_anchor, negatives, margins = row
        to_negatives = of_anchor[None, :]
        if swap:
            to_negatives = jnp.minimum(to_negatives, distances)
        violations = of_anchor[:, None] - to_negatives + margins[:, None]
        costs = jnp.where(negatives[None, :], _cost(violations, soft), 0)
        return jnp.sum(costs, axis=1), jnp.sum(costs > 0, axis=1)

    margins = jnp.broadcast_to(jnp.asarray(margin, distances.dtype), distances.shape)
    return lax.map(one_anchor, (distances, negative, margins))
