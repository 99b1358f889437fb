"""Losses that stand for a figure of retrieval: average precision, precision, neighbours.

Each row of the matrix is a query. The ranks of its positives are made differentiable, by
sigmoids of differences or by histograms.

`smooth_ap_loss`, `pnp_loss` and `recall_loss` compare every positive with every item of its
row. They handle the first positive of all rows, then the second, and so on, so that memory
is O(n m), and time O(n m P) with the largest number P of positives of a row. They have
gradients and, by `jax.hessian`, second derivatives; forward mode alone (`jax.jvp`) raises
TypeError.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import relu, sigmoid
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import (
    check_at_least,
    check_floating,
    check_rank,
    check_same_shape,
    check_scalar,
)
from siamese_jax._numerics import Scalar, widen
from siamese_jax.losses._positives import num_before
from siamese_jax.losses.softmax import matching_loss
from siamese_jax.miners import sides
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms

Growth = Literal["linear", "log", "x log x", "saturating", "bounded"]


def nca_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    temperature: Scalar = 1.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Neighbourhood components analysis: -log of the share of neighbours of one class.

    For anchor i, with the stochastic neighbours p_ij = exp(-d_ij / t) / sum_k exp(-d_ik /
    t):  -log sum_{j in P(i)} p_ij. It is known as the soft nearest neighbour loss too.

    Args:
      distances: A matrix whose rows are anchors, in the papers of squared Euclidean
        distances.
      same: True where the two are of one class.
      temperature: t, which divides the distances; 1 in the first paper.
      where: See `siamese_jax.losses`, also for `weights` (one per anchor) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per anchor that has a positive.

    Reference:
      Goldberger et al. Neighbourhood Components Analysis. NIPS 2004, section 2, the variant
      g(A). Frosst, Papernot, Hinton. Analyzing and Improving Representations with the Soft
      Nearest Neighbor Loss. ICML 2019, eq. 1.

    >>> same = jnp.array([[True, False]])
    >>> print(f"{nca_loss(jnp.ones((1, 2)), same):.4f}")  # log 2
    0.6931
    """
    check_floating("distances", distances)
    check_rank("distances", distances, 2)
    check_same_shape("same", same, "distances", distances)
    return matching_loss(
        -widen(distances),
        same,
        temperature=temperature,
        where=where,
        weights=weights,
        reduce_fn=reduce_fn,
    )


def fast_ap_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    num_bins: int = 10,
    max_distance: float = 4.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """FastAP: one minus the average precision of a row, from histograms of distances.

    Distances are counted at num_bins + 1 nodes from 0 to max_distance, each at its two
    neighbouring nodes in proportion: h+_l for positives, h_l for all. With the cumulative
    counts H+_l and H_l of n+ positives:  1 - 1/n+ sum_l h+_l H+_l / H_l.

    Args:
      distances: A matrix whose rows are queries, in the paper of squared Euclidean
        distances of embeddings of length 1, which are at most 4.
      same: True where the two are of one class.
      num_bins: Number of intervals between the nodes.
      max_distance: The last node. Distances farther than one step beyond it are counted
        nowhere.
      where: See `siamese_jax.losses`, also for `weights` (one per query) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per query that has a positive.

    Raises:
      ValueError: If `num_bins` is below 1.

    Reference:
      Cakir et al. Deep Metric Learning to Rank. CVPR 2019, eq. 6.

    >>> matrix, same = jnp.array([[0.0, 4.0]]), jnp.array([[False, True]])
    >>> print(f"{fast_ap_loss(matrix, same):.4f}")  # the positive is second: 1 - 1/2
    0.5000
    """
    check_at_least("num_bins", num_bins, 1)
    positive, negative = sides(distances, same, where)
    d = widen(distances)
    step = max_distance / num_bins

    def counts_at(node: Array) -> tuple[Array, Array]:
        share = relu(1 - jnp.abs(d - node) / step)
        of_positives = jnp.sum(jnp.where(positive, share, 0), axis=1)
        return of_positives, jnp.sum(jnp.where(positive | negative, share, 0), axis=1)

    of_positives, of_all = lax.map(
        jax.checkpoint(counts_at),
        jnp.linspace(0, max_distance, num_bins + 1, dtype=d.dtype),
    )
    up_to_positives, up_to_all = (jnp.cumsum(x, axis=0) for x in (of_positives, of_all))
    precision = up_to_positives / jnp.where(up_to_all == 0, 1, up_to_all)
    num_positives = jnp.sum(positive, axis=1)
    average = jnp.sum(of_positives * precision, axis=0) / jnp.maximum(num_positives, 1)
    terms = make_terms(1 - average, num_positives > 0, weights=weights)
    return reduce_terms(terms, reduce_fn)


def smooth_ap_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    temperature: Scalar = 0.01,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Smooth-AP: one minus the average precision of a row, with sigmoids for ranks.

    For query i, with g(x) = sigmoid(x / t), positives P and negatives N::

        1 - 1/|P| sum_{j in P} (1 + sum_{k in P, k != j} g(s_ik - s_ij))
                             / (1 + sum_{k in P or N, k != j} g(s_ik - s_ij))

    Classes may have different numbers of items.

    Args:
      similarities: A matrix of cosine similarities whose rows are queries.
      same: True where the two are of one class.
      temperature: t. With a smaller one the loss is nearer to the average precision, and
        fewer items have a gradient.
      where: See `siamese_jax.losses`, also for `weights` (one per query) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per query that has a positive.

    Reference:
      Brown et al. Smooth-AP. ECCV 2020, eq. 6.

    >>> matrix, same = jnp.array([[1.0, 0.0]]), jnp.array([[False, True]])
    >>> print(smooth_ap_loss(matrix, same))  # the positive is second: precision 1/2
    0.5
    """
    check_scalar("temperature", temperature)

    positive, negative = sides(similarities, same, where, name="similarities")
    of_positives, of_negatives = num_before(
        widen(similarities), positive, (positive, negative), temperature
    )
    precision = (1 + of_positives) / (1 + of_positives + of_negatives)
    average, exists = _mean_over_positives(precision, positive)
    return reduce_terms(make_terms(1 - average, exists, weights=weights), reduce_fn)


def pnp_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    growth: Growth = "linear",
    temperature: Scalar = 0.01,
    power: Scalar = 1.0,
    slope: Scalar = 2.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """PNP: penalises the negatives before each positive.

    With the number of negatives before positive j of query i, made smooth by
    R = sum_{k in N(i)} sigmoid((s_ik - s_ij) / t), the value of the query is the mean over
    its positives of one of these functions of R, named as in the paper:

    * "linear" (PNP-O): R
    * "log" (PNP-Ds): log(1 + R)
    * "x log x" (PNP-Iu): (1 + R) log(1 + R)
    * "saturating" (PNP-Ib): (b R - log(1 + b R)) / b^2, with the slope b
    * "bounded" (PNP-Dq): 1 - (1 + R)^-a, with the power a

    Args:
      similarities: A matrix of cosine similarities whose rows are queries.
      same: True where the two are of one class.
      growth: Which function of R.
      temperature: t.
      power: a of "bounded".
      slope: b of "saturating".
      where: See `siamese_jax.losses`, also for `weights` (one per query) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per query that has a positive.

    Raises:
      ValueError: If there is no such growth.

    Reference:
      Li et al. Rethinking the Optimization of Average Precision: Only Penalizing Negative
      Instances before Positive Ones is Enough. AAAI 2022, eq. 6 to 13. Their code counts
      the query among its own positives, as `where` can, too.

    >>> matrix, same = jnp.array([[1.0, 0.0]]), jnp.array([[False, True]])
    >>> print(pnp_loss(matrix, same))  # one negative is before the positive
    1.0
    """
    check_scalar("temperature", temperature)
    functions: dict[str, Callable[[Array], Array]] = {
        "linear": lambda r: r,
        "log": jnp.log1p,
        "x log x": lambda r: (1 + r) * jnp.log1p(r),
        "saturating": lambda r: (slope * r - jnp.log1p(slope * r)) / slope**2,
        "bounded": lambda r: 1 - (1 + r) ** -power,
    }
    if growth not in functions:
        raise ValueError(
            f"growth must be one of {', '.join(get_args(Growth))}; got {growth}"
        )

    positive, negative = sides(similarities, same, where, name="similarities")
    (before,) = num_before(widen(similarities), positive, (negative,), temperature)
    values, exists = _mean_over_positives(functions[growth](before), positive)
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)


def recall_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    num_retrieved: int = 1,
    rank_temperature: Scalar = 1.0,
    temperature: Scalar = 0.01,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Surrogate of recall at k, or of precision at k: positives among the k nearest.

    For query i with positives P, and the smooth number of items before positive j
    r_ij = sum_{k != j} sigmoid((s_ik - s_ij) / t):
    1 - sum_{j in P} sigmoid((K - 1 - r_ij) / t_r) / min(K, |P|).

    Args:
      similarities: A matrix of cosine similarities whose rows are queries.
      same: True where the two are of one class.
      num_retrieved: K, the number of items that are retrieved.
      rank_temperature: t_r, in ranks.
      temperature: t, in similarities.
      where: See `siamese_jax.losses`, also for `weights` (one per query) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per query that has a positive.

    Raises:
      ValueError: If `num_retrieved` is below 1.

    Reference:
      Patel, Tolias, Matas. Recall@k Surrogate Loss with Large Batches and Similarity Mixup.
      CVPR 2022, eq. 5, there with several k, whose mean is taken.

    >>> matrix, same = jnp.array([[1.0, 0.0]]), jnp.array([[True, False]])
    >>> print(recall_loss(matrix, same))  # first, so 1 - sigmoid(0)
    0.5
    """
    check_at_least("num_retrieved", num_retrieved, 1)
    check_scalar("rank_temperature", rank_temperature)
    check_scalar("temperature", temperature)

    positive, negative = sides(similarities, same, where, name="similarities")
    valid = positive | negative
    (before,) = num_before(widen(similarities), positive, (valid,), temperature)
    is_retrieved = sigmoid((num_retrieved - 1 - before) / rank_temperature)
    share, exists = _mean_over_positives(is_retrieved, positive)
    num_positives = jnp.sum(positive, axis=1)
    recall = share * num_positives / jnp.clip(num_positives, 1, num_retrieved)
    return reduce_terms(make_terms(1 - recall, exists, weights=weights), reduce_fn)


def _mean_over_positives(
    values: Float[Array, "n m"], positive: Bool[Array, "n m"]
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """The mean of each row over its positives, and which rows have one."""
    num_positives = jnp.sum(positive, axis=1)
    total = jnp.sum(jnp.where(positive, values, 0), axis=1)
    return total / jnp.maximum(num_positives, 1), num_positives > 0
