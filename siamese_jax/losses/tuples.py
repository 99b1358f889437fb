"""Losses of each anchor with all its positives and negatives, from one matrix.

Two forms recur. Of the values x_k of an anchor's positives or negatives,

    log sum_k exp(x_k)        is a smooth maximum,
    log(1 + sum_k exp(x_k))   is a smooth maximum of the values and 0.

`jax.nn.logsumexp(x, axis=1, where=mask)` computes the first for each row, and its softplus
the second. Without a member the first is minus infinity and the second 0, both with
gradient 0.

`lifted_structure_loss`, `angular_loss`, `intra_pair_variance_loss` and `histogram_loss`
need the matrix of a batch with itself: they use the row of each positive too, or figures of
the whole batch. The other losses compute each row by itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp, relu, softplus
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_at_least, check_scalar, check_square, check_whole
from siamese_jax._numerics import Scalar, add_angle, node_counts, widen
from siamese_jax.miners import sides
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms


def multi_similarity_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    positive_scale: Scalar = 2.0,
    negative_scale: Scalar = 50.0,
    base: Scalar = 0.5,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Multi-similarity loss: pulls the least similar positives, pushes similar negatives.

    For anchor i with positives P and negatives N, and scales a and b:
    log(1 + sum_P exp(-a (s_ip - base))) / a + log(1 + sum_N exp(b (s_in - base))) / b.

    Args:
      similarities: A matrix whose rows are anchors, in the paper of cosine similarities.
      same: True where the two are of one class.
      positive_scale: a, sharpness of the smooth maximum over positives.
      negative_scale: b, sharpness of the smooth maximum over negatives.
      base: The similarity from which both sides are measured.
      where: See `siamese_jax.losses`, also for `weights` (one per anchor) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per anchor that has any valid entry.

    Reference:
      Wang et al. Multi-Similarity Loss with General Pair Weighting. CVPR 2019, eq. 15.
      The pairs that the paper mines first are `miners.multi_similarity_mask`.

    >>> same = jnp.array([[True, False]])
    >>> loss = multi_similarity_loss(
    ...     jnp.full((1, 2), 0.5), same, positive_scale=1.0, negative_scale=1.0)
    >>> print(f"{loss:.4f}")  # log 2 + log 2
    1.3863
    """
    check_scalar("positive_scale", positive_scale)
    check_scalar("negative_scale", negative_scale)
    check_scalar("base", base)
    positive, negative = sides(similarities, same, where, name="similarities")
    s = widen(similarities) - base
    pull = softplus(logsumexp(-positive_scale * s, axis=1, where=positive))
    push = softplus(logsumexp(negative_scale * s, axis=1, where=negative))
    values = pull / positive_scale + push / negative_scale
    anchors = jnp.any(positive | negative, axis=1)
    return reduce_terms(make_terms(values, anchors, weights=weights), reduce_fn)


def circle_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Scalar = 0.4,
    scale: Scalar = 80.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Circle loss: each similarity is weighted by how far it is from its optimum.

    For anchor i with positives P and negatives N, margin m and scale g:
    log(1 + sum_N exp(g a_n (s_in - m)) sum_P exp(-g a_p (s_ip - (1 - m)))), where
    a_p = max(0, 1 + m - s_ip) and a_n = max(0, s_in + m) are constants for the gradient.

    Args:
      similarities: A matrix of cosine similarities whose rows are anchors.
      same: True where the two are of one class.
      margin: m. The optimum of positives is 1 + m, that of negatives -m.
      scale: g, sharpness of the smooth maxima. The paper uses 80 for image retrieval and
        256 for faces, there with the margin 0.25.
      where: See `siamese_jax.losses`, also for `weights` (one per anchor) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per anchor that has both a positive and a
      negative.

    Reference:
      Sun et al. Circle Loss. CVPR 2020, eq. 6 and 8.

    >>> same = jnp.array([[True, False]])
    >>> loss = circle_loss(jnp.full((1, 2), 0.5), same, margin=0.5)
    >>> print(f"{loss:.4f}")  # log(1 + exp(0) exp(0))
    0.6931
    """
    check_scalar("margin", margin)
    check_scalar("scale", scale)
    positive, negative = sides(similarities, same, where, name="similarities")
    s = widen(similarities)
    fixed = lax.stop_gradient(s)
    pull = -scale * relu(1 + margin - fixed) * (s - (1 - margin))
    push = scale * relu(fixed + margin) * (s - margin)
    complete = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    smooth_maxima = logsumexp(pull, axis=1, where=positive) + logsumexp(
        push, axis=1, where=negative
    )
    values = softplus(jnp.where(complete, smooth_maxima, 0))
    return reduce_terms(make_terms(values, complete, weights=weights), reduce_fn)


def tuplet_margin_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    angle: Scalar = 5.73,
    scale: Scalar = 64.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, "n m"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Tuplet margin loss: each positive against all negatives, with an angular slack.

    For anchor i, positive p and negatives N, with the angles t between embeddings:
    log(1 + sum_N exp(scale (cos t_in - cos(t_ip - angle)))).

    Args:
      similarities: A matrix of cosine similarities whose rows are anchors.
      same: True where the two are of one class.
      angle: Slack that keeps the loss from focussing on the hardest positives, in degrees;
        0.1 radians by default.
      scale: Sharpness of the smooth maximum.
      where: See `siamese_jax.losses`, also for `reduce_fn` and for `weights` (one per
        entry, of which those of the positives are used).

    Returns:
      The reduced loss, or `Terms` with one value per anchor-positive entry whose anchor has
      a negative.

    Reference:
      Yu, Tao. Deep Metric Learning with Tuplet Margin Loss. ICCV 2019, eq. 5.

    >>> same = jnp.array([[True, False]])
    >>> loss = tuplet_margin_loss(jnp.zeros((1, 2)), same, angle=0.0)
    >>> print(f"{loss:.4f}")  # log(1 + exp(0))
    0.6931
    """
    check_scalar("angle", angle)
    check_scalar("scale", scale)
    positive, negative = sides(similarities, same, where, name="similarities")
    s = widen(similarities)
    slackened = scale * add_angle(s, -jnp.deg2rad(angle))
    largest = logsumexp(scale * s, axis=1, where=negative, keepdims=True)
    values = softplus(largest - slackened)
    exists = positive & jnp.any(negative, axis=1, keepdims=True)
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)


def lifted_structure_loss(
    distances: Float[Array, "n n"],
    same: Bool[Array, "n n"],
    *,
    margin: Scalar = 1.0,
    where: Bool[Array, "n n"] | None = None,
    weights: Float[Array, "n n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Lifted structure loss: each positive pair against all negatives of both its ends.

    For a positive pair (i, j) with the negatives N(i) and N(j):
    max(0, d_ij + log(sum_N(i) exp(m - d_ik) + sum_N(j) exp(m - d_jl)))^2 / 2.

    Args:
      distances: Distances of a batch with itself.
      same: True where the two are of one class.
      margin: m.
      where: See `siamese_jax.losses`, also for `reduce_fn` and for `weights` (one per
        entry, of which those of the positives are used).

    Returns:
      The reduced loss, or `Terms` with one value per positive entry of which an end has a
      negative.

    Reference:
      Song et al. Deep Metric Learning via Lifted Structured Feature Embedding. CVPR 2016,
      eq. 4.

    >>> same = jnp.array([[True, True, False]] * 2 + [[False, False, True]])
    >>> where = ~jnp.eye(3, dtype=bool)
    >>> loss = lifted_structure_loss(jnp.ones((3, 3)), same, where=where)
    >>> print(f"{loss:.4f}")  # (1 + log 2)^2 / 2
    1.4334
    """
    check_whole("lifted_structure_loss")
    check_scalar("margin", margin)
    check_square("distances", distances)
    positive, negative = sides(distances, same, where)
    d = widen(distances)
    has_negative = jnp.any(negative, axis=1)
    exists = positive & (has_negative[:, None] | has_negative[None, :])
    largest = logsumexp(margin - d, axis=1, where=negative)
    # exp of both at once; two minus infinities would have the gradient NaN
    ends = jnp.stack(jnp.broadcast_arrays(largest[:, None], largest[None, :]))
    mask = jnp.stack(jnp.broadcast_arrays(has_negative[:, None], has_negative[None, :]))
    both = logsumexp(ends, axis=0, where=mask)
    values = relu(jnp.where(exists, both + d, 0)) ** 2 / 2
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)


def generalized_lifted_structure_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Scalar = 1.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Generalised lifted structure loss: the farthest positive against near negatives.

    For anchor i with positives P and negatives N:
    max(0, log sum_P exp(d_ip) + log sum_N exp(margin - d_in)).

    Args:
      distances: A matrix whose rows are anchors.
      same: True where the two are of one class.
      margin: By how much negatives must be farther.
      where: See `siamese_jax.losses`, also for `weights` (one per anchor) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per anchor that has both a positive and a
      negative.

    Reference:
      Hermans, Beyer, Leibe. In Defense of the Triplet Loss. 2017, eq. 8, which sums
      instead of averaging.

    >>> same = jnp.array([[True, False]])
    >>> print(generalized_lifted_structure_loss(jnp.array([[2.0, 2.5]]), same))
    0.5
    """
    check_scalar("margin", margin)
    positive, negative = sides(distances, same, where)
    d = widen(distances)
    complete = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    smooth_maxima = logsumexp(d, axis=1, where=positive) + logsumexp(
        margin - d, axis=1, where=negative
    )
    values = relu(jnp.where(complete, smooth_maxima, 0))
    return reduce_terms(make_terms(values, complete, weights=weights), reduce_fn)


def intra_pair_variance_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    positive_slack: Scalar = 0.01,
    negative_slack: Scalar = 0.01,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, "n m"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Intra-pair variance loss: keeps similarities of one kind near their batch mean.

    With the means p of the positive and n of the negative similarities:
    max(0, (1 - positive_slack) p - s)^2 for a positive entry,
    max(0, s - (1 + negative_slack) n)^2 for a negative one. The two kinds are averaged
    apart and added. It is meant to be added to another loss.

    Args:
      similarities: A matrix, in the paper of cosine similarities.
      same: True where the two are of one class.
      positive_slack: Share of the mean by which a positive may be less similar.
      negative_slack: Share of the mean by which a negative may be more similar.
      where: See `siamese_jax.losses`, also for `weights` (one per entry) and `reduce_fn`.

    Returns:
      The reduced loss, or two `Terms` with one value per entry, of positives and of
      negatives.

    Reference:
      Yu, Tao. Deep Metric Learning with Tuplet Margin Loss. ICCV 2019, eq. 10 and 11.

    >>> matrix = jnp.array([[1.0, 3.0, 5.0]])  # the mean of the positives is 2
    >>> same = jnp.array([[True, True, False]])
    >>> print(intra_pair_variance_loss(matrix, same, positive_slack=0.0))  # (1 + 0) / 2
    0.5
    """
    check_whole("intra_pair_variance_loss")
    check_scalar("positive_slack", positive_slack)
    check_scalar("negative_slack", negative_slack)
    positive, negative = sides(similarities, same, where, name="similarities")
    s = widen(similarities)
    positives = make_terms(s, positive, weights=weights)
    negatives = make_terms(s, negative, weights=weights)
    below = relu((1 - positive_slack) * mean(positives) - s) ** 2
    above = relu(s - (1 + negative_slack) * mean(negatives)) ** 2
    terms = (
        make_terms(below, positive, weights=weights),
        make_terms(above, negative, weights=weights),
    )
    return reduce_terms(terms, reduce_fn)


def ranked_list_loss(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Scalar = 0.4,
    boundary: Scalar = 1.2,
    positive_scale: Scalar = 0.0,
    negative_scale: Scalar = 10.0,
    balance: Scalar = 0.5,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Ranked list loss: positives inside a ball around the anchor, negatives outside.

    For anchor i, over the positives with d > boundary - margin and the negatives with
    d < boundary, weighted means
    of d - (boundary - margin) with weights exp(positive_scale (d - (boundary - margin))),
    of boundary - d with weights exp(negative_scale (boundary - d)).
    The loss is (1 - balance) times the first plus balance times the second.

    Args:
      distances: A matrix whose rows are anchors, in the paper of Euclidean distances of
        embeddings of length 1.
      same: True where the two are of one class.
      margin: Distance between the two boundaries.
      boundary: Distance that negatives should exceed.
      positive_scale: How much more the farthest positives weigh.
      negative_scale: How much more the nearest negatives weigh.
      balance: Weight of the negatives in the sum.
      where: See `siamese_jax.losses`, also for `weights` (one per anchor) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per anchor that has any valid entry.

    Reference:
      Wang et al. Ranked List Loss for Deep Metric Learning. CVPR 2019 and its extension of
      2021, which weights the positives too. The weights are differentiated.

    >>> matrix = jnp.array([[1.0, 0.2]])
    >>> same = jnp.array([[True, False]])
    >>> loss = ranked_list_loss(matrix, same)
    >>> print(f"{loss:.2f}")  # (0.2 + 1.0) / 2
    0.60
    """
    names = ("margin", "boundary", "positive_scale", "negative_scale", "balance")
    numbers = (margin, boundary, positive_scale, negative_scale, balance)
    for name, number in zip(names, numbers, strict=True):
        check_scalar(name, number)
    positive, negative = sides(distances, same, where)
    d = widen(distances)

    def weighted_mean(excess: Array, mask: Array, scale: Scalar) -> Array:
        active = mask & ~(excess <= 0)  # NaN stays
        shares = jax.nn.softmax(scale * excess, axis=1, where=active)
        return jnp.sum(jnp.where(active, shares * excess, 0), axis=1)

    pull = weighted_mean(d - (boundary - margin), positive, positive_scale)
    push = weighted_mean(boundary - d, negative, negative_scale)
    values = (1 - balance) * pull + balance * push
    anchors = jnp.any(positive | negative, axis=1)
    return reduce_terms(make_terms(values, anchors, weights=weights), reduce_fn)


def histogram_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    num_bins: int = 100,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, "n m"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Histogram loss: how often a positive is less similar than a negative.

    The similarities of the positives make a histogram on num_bins + 1 nodes from -1 to 1,
    each counted at its two neighbouring nodes in proportion. The value of a negative is the
    cumulative histogram at its similarity, interpolated in the same way.

    Args:
      similarities: A matrix of cosine similarities. Values outside [-1, 1] count as its
        ends.
      same: True where the two are of one class.
      num_bins: Number of intervals between the nodes.
      where: See `siamese_jax.losses`, also for `weights` (one per entry) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per negative entry, if there is a
      positive.

    Raises:
      ValueError: If `num_bins` is below 1.

    Reference:
      Ustinova, Lempitsky. Learning Deep Embeddings with Histogram Loss. NIPS 2016, eq. 2 to
      4.

    >>> matrix = jnp.array([[0.0, -1.0, 1.0]])
    >>> same = jnp.array([[True, False, False]])
    >>> print(histogram_loss(matrix, same, num_bins=2))  # (0 + 1) / 2
    0.5
    """
    check_whole("histogram_loss")
    check_at_least("num_bins", num_bins, 1)
    positive, negative = sides(similarities, same, where, name="similarities")
    place = (jnp.clip(widen(similarities), -1, 1) + 1) * (num_bins / 2)
    counted = make_terms(place, positive, weights=weights).weights
    total = jnp.sum(counted)
    left, share, counts = node_counts(place, counted, num_bins + 1)
    cumulative = jnp.cumsum(counts) / jnp.where(total == 0, 1, total)
    values = (1 - share) * cumulative[left] + share * cumulative[left + 1]
    exists = negative & jnp.any(positive)
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)
