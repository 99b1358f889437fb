"""Masks of the positives and negatives of a matrix, and of those that are to count."""

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_broadcastable,
    check_floating,
    check_rank,
    check_same_shape,
    check_whole,
)
from siamese_jax._numerics import Margin, widen


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


def pair_margin_mask(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    positive_margin: Margin = 0.2,
    negative_margin: Margin = 0.8,
    where: Bool[Array, "n m"] | None = None,
) -> Bool[Array, "n m"]:
    """Positives farther than one margin, and negatives nearer than the other.

    >>> matrix, same = jnp.array([[0.1, 0.5, 0.5, 0.9]]), jnp.array([[1, 1, 0, 0]]) > 0
    >>> print(pair_margin_mask(matrix, same))
    [[False  True  True False]]
    """
    positive, negative = sides(distances, same, where)
    check_broadcastable("positive_margin", positive_margin, distances)
    check_broadcastable("negative_margin", negative_margin, distances)
    d = widen(distances)
    return (positive & ~(d <= positive_margin)) | (negative & ~(d >= negative_margin))


def multi_similarity_mask(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Margin = 0.1,
    where: Bool[Array, "n m"] | None = None,
) -> Bool[Array, "n m"]:
    """Positives less similar than some negative of the row, and the reverse, with a margin.

    A positive is kept if s_ip - margin < max_n s_in, a negative if s_in + margin >
    min_p s_ip. A row without a positive keeps none of its negatives, and the reverse.

    Reference:
      Wang et al. Multi-Similarity Loss with General Pair Weighting. CVPR 2019, eq. 11 and
      12.

    >>> s, same = jnp.array([[0.9, 0.4, 0.5, 0.1]]), jnp.array([[1, 1, 0, 0]]) > 0
    >>> print(multi_similarity_mask(s, same))
    [[False  True  True False]]
    """
    positive, negative = sides(similarities, same, where, name="similarities")
    check_broadcastable("margin", margin, similarities)
    s = widen(similarities)
    most = jnp.max(s, axis=1, keepdims=True, where=negative, initial=-jnp.inf)
    least = jnp.min(s, axis=1, keepdims=True, where=positive, initial=jnp.inf)
    is_nan = jnp.isnan(s) & (positive | negative)
    hard = (positive & (s - margin < most)) | (negative & (s + margin > least))
    return hard | is_nan


def nearest_mask(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    num_positives: int | None = None,
    num_negatives: int | None = None,
    where: Bool[Array, "n m"] | None = None,
) -> Bool[Array, "n m"]:
    """The farthest positives and the nearest negatives of each row, so many of each.

    Args:
      distances: A matrix whose rows are anchors.
      same: True where the two are of one class.
      num_positives: Number of positives of a row to keep. None keeps all.
      num_negatives: Number of negatives of a row to keep. None keeps all.
      where: True where the entry is valid.

    Of equal distances, those of the first columns are kept.

    >>> matrix, same = jnp.array([[0.1, 0.5, 0.5, 0.9]]), jnp.array([[1, 1, 0, 0]]) > 0
    >>> print(nearest_mask(matrix, same, num_positives=1, num_negatives=1))
    [[False  True  True False]]
    """
    positive, negative = sides(distances, same, where)
    d = widen(distances)
    return _nearest(-d, positive, "num_positives", num_positives) | _nearest(
        d, negative, "num_negatives", num_negatives
    )


def hardest_share_mask(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    share: float = 0.5,
    where: Bool[Array, "n m"] | None = None,
) -> Bool[Array, "n m"]:
    """The hardest share of all positives and of all negatives of a batch.

    Of k positive entries the ceil(share k) farthest are kept, of the negative entries the
    nearest. Entries as far as the last one that is kept are kept too. The share is taken as
    the nearest fraction of at most 10,000 parts.

    Reference:
      Yuan, Yang, Zhang. Hard-Aware Deeply Cascaded Embedding. ICCV 2017, section 3.3.

    >>> matrix, same = jnp.array([[0.1, 0.5, 0.5, 0.9]]), jnp.array([[1, 1, 0, 0]]) > 0
    >>> print(hardest_share_mask(matrix, same))
    [[False  True  True False]]
    """
    check_whole("hardest_share_mask")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1]; got {share}")
    positive, negative = sides(distances, same, where)
    if distances.size == 0:
        return positive
    taken, parts = Fraction(float(share)).limit_denominator(10_000).as_integer_ratio()

    def hardest(hardness: Array, mask: Array) -> Array:
        ascending = jnp.sort(jnp.where(mask, hardness, jnp.inf).ravel())
        whole, rest = jnp.divmod(jnp.sum(mask), parts)
        num = taken * whole + (taken * rest + parts - 1) // parts  # ceil, without rounding
        return mask & ~(hardness > ascending[jnp.maximum(num - 1, 0)])

    d = widen(distances)
    return hardest(-d, positive) | hardest(d, negative)


def false_negative_mask(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    margin: Margin = 0.0,
    where: Bool[Array, "n m"] | None = None,
) -> Bool[Array, "n m"]:
    """All valid entries but negatives nearer than the anchor's nearest positive.

    Such negatives are likely of the anchor's class: unlabelled, or labelled wrongly.

    Args:
      distances: A matrix whose rows are anchors, often of a second, trained encoder.
      same: True where the two are known to be of one class.
      margin: How much nearer than the nearest positive a negative must be to be left out.
      where: True where the entry is valid.

    Reference:
      Solatorio. GISTEmbed: Guided In-sample Selection of Training Negatives. 2024, eq. 2.

    >>> matrix, same = jnp.array([[0.5, 0.4, 0.9]]), jnp.array([[True, False, False]])
    >>> print(false_negative_mask(matrix, same))
    [[ True False  True]]
    """
    positive, negative = sides(distances, same, where)
    check_broadcastable("margin", margin, distances)
    d = widen(distances)
    nearest = jnp.min(d, axis=1, keepdims=True, where=positive, initial=jnp.inf)
    nearest = jnp.where(jnp.any(positive, axis=1, keepdims=True), nearest, -jnp.inf)
    return positive | (negative & ~(d < nearest - margin))


def uniform_histogram_weights(
    key: PRNGKeyArray,
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    num_bins: int = 100,
    num_positives: int = 10,
    num_negatives: int = 10,
    where: Bool[Array, "n m"] | None = None,
) -> Float[Array, "n m"]:
    """Draws pairs evenly over all distances, and returns how often each was drawn.

    The distances of the positives are cut into bins of equal width between the smallest and
    the largest. From each bin that is not empty `num_positives` entries are drawn with
    replacement; in the same way `num_negatives` of the negatives. Pass the result to a loss
    as `weights`.

    Raises:
      ValueError: If a count is below 1.

    Reference:
      The miner of this name in pytorch-metric-learning, after the histogram loss of
      Ustinova, Lempitsky. NIPS 2016.

    >>> matrix, same = jnp.array([[0.1, 0.9, 0.5]]), jnp.array([[True, True, False]])
    >>> print(uniform_histogram_weights(jax.random.key(0), matrix, same, num_bins=2))
    [[10. 10. 10.]]
    """
    check_whole("uniform_histogram_weights")
    for name, count in (
        ("num_bins", num_bins),
        ("num_positives", num_positives),
        ("num_negatives", num_negatives),
    ):
        check_at_least(name, count, 1)
    positive, negative = sides(distances, same, where)
    d = widen(distances)
    if d.size == 0:
        return d

    def counts(key: PRNGKeyArray, mask: Array, num: int) -> Array:
        low = jnp.min(jnp.where(mask, d, jnp.inf))
        high = jnp.max(jnp.where(mask, d, -jnp.inf))
        width = jnp.where(high > low, high - low, 1) / num_bins
        bins = jnp.clip((d - low) / width, 0, num_bins - 1)
        bins = jnp.where(mask, bins, num_bins).astype(jnp.int32).ravel()
        order = jnp.argsort(bins)
        sizes = jnp.bincount(bins, length=num_bins + 1)[:num_bins]
        starts = jnp.cumsum(sizes) - sizes
        ranks = jax.random.randint(key, (num, num_bins), 0, jnp.maximum(sizes, 1)[None, :])
        drawn = order[jnp.minimum(starts[None, :] + ranks, len(order) - 1)]
        times = jnp.broadcast_to(sizes[None, :] > 0, drawn.shape).astype(d.dtype)
        return jnp.zeros(d.size, d.dtype).at[drawn].add(times).reshape(d.shape)

    positive_key, negative_key = jax.random.split(key)
    return counts(positive_key, positive, num_positives) + counts(
        negative_key, negative, num_negatives
    )


def _nearest(x: Array, mask: Array, name: str, num: int | None) -> Bool[Array, "n m"]:
    """The entries of each row with the smallest numbers, under a mask."""
    if num is None:
        return mask
    check_at_least(name, num, 1)
    order = jnp.argsort(jnp.where(mask, x, jnp.inf), axis=1)
    ranks = jnp.argsort(order, axis=1)
    return mask & ((ranks < num) | jnp.isnan(x))
