"""Partners of each anchor, or of each anchor and positive, in O(n m) memory."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siamese_jax._checks import check_at_least, check_square, check_whole
from siamese_jax._numerics import Scalar, row_has_nan, widen
from siamese_jax.miners.pairs import sides

Choice = Literal["easy", "semi-hard", "hard"]
Range = tuple[float, float]


class Mined(NamedTuple):
    """One chosen example for each anchor, or for each entry `[anchor, positive]`.

    Attributes:
      distances: Distance from the anchor to it, 0 where there is none.
      indices: Its column in the matrix, 0 where there is none.
      where: True where there is one.
    """

    distances: Float[Array, "*shape"]
    indices: Int[Array, "*shape"]
    where: Bool[Array, "*shape"]


class Triplets(NamedTuple):
    """One triplet for each anchor.

    Attributes:
      positive: The positive of each anchor.
      negative: The negative of each anchor.
      where: True where the anchor has both.
    """

    positive: Mined
    negative: Mined
    where: Bool[Array, " n"]


def hard_negatives(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    where: Bool[Array, "n m"] | None = None,
) -> Mined:
    """For each positive, the nearest negative of its anchor.

    Reference:
      Hermans, Beyer, Leibe. In Defense of the Triplet Loss. 2017, eq. 5 (its inner min).

    >>> same = jnp.array([[True, False, False]])
    >>> print(hard_negatives(jnp.array([[2.0, 1.0, 3.0]]), same).distances)
    [[1. 0. 0.]]
    """
    positive, negative = sides(distances, same, where)
    nearest = _nearest(widen(distances), negative)
    return _for_each_positive(nearest, positive)


def semi_hard_negatives(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    where: Bool[Array, "n m"] | None = None,
) -> Mined:
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
    d = widen(distances)
    order = jnp.argsort(jnp.where(negative, d, jnp.inf), axis=1)
    masked = jnp.where(negative, d, jnp.inf)
    ascending = jnp.take_along_axis(masked, order, axis=1)
    num_negatives = jnp.sum(negative, axis=1, keepdims=True)
    farther = jax.vmap(lambda row, values: jnp.searchsorted(row, values, side="right"))
    place = jnp.minimum(farther(ascending, lax.stop_gradient(d)), num_negatives - 1)
    place = jnp.maximum(place, 0)
    chosen = jnp.take_along_axis(ascending, place, axis=1)
    chosen = jnp.where(row_has_nan(distances, positive | negative), jnp.nan, chosen)
    exists = positive & (num_negatives > 0)
    return _mined(chosen, jnp.take_along_axis(order, place, axis=1), exists)


def angular_negatives(
    distances: Float[Array, "n n"],
    same: Bool[Array, "n n"],
    *,
    angle: Scalar = 20.0,
    where: Bool[Array, "n n"] | None = None,
) -> Mined:
    """For each positive, the negative that sees the pair under the largest angle.

    With c the centre between anchor and positive, that is the negative nearest to c. It
    exists if arctan(d_ap / (2 d_nc)) exceeds the angle. The centres' distances follow from
    d_nc^2 = (2 d_an^2 + 2 d_pn^2 - d_ap^2) / 4. One anchor is computed after the other, in
    O(n^2) memory.

    Args:
      distances: Euclidean distances of a batch with itself.
      same: True where the two are of one class.
      angle: Smallest angle, in degrees.
      where: True where the entry is valid.

    Reference:
      Wang et al. Deep Metric Learning with Angular Loss. ICCV 2017, eq. 4 and 5.

    >>> points = jnp.array([0.0, 2.0, 1.5])  # the negative is .5 from the centre
    >>> matrix = jnp.abs(points[:, None] - points[None, :])
    >>> same = jnp.array([[True, True, False]] * 2 + [[False, False, True]])
    >>> mined = angular_negatives(matrix, same, where=~jnp.eye(3, dtype=bool))
    >>> print(mined.where[0, 1], mined.indices[0, 1], mined.distances[0, 1])
    True 2 1.5
    """
    check_whole("angular_negatives")
    check_square("distances", distances)
    positive, negative = sides(distances, same, where)
    d = widen(distances)
    if d.size == 0:
        return _mined(d, jnp.zeros(d.shape, int), positive)
    squared = d**2

    def nearest_to_centres(row: tuple[Array, Array]) -> tuple[Array, Array]:
        of_anchor, negatives = row  # the negative is a column, the positive a row
        to_centres = (2 * of_anchor[None, :] + 2 * squared - of_anchor[:, None]) / 4
        to_centres = jnp.where(negatives[None, :], to_centres, jnp.inf)
        return jnp.argmin(to_centres, axis=1), jnp.min(to_centres, axis=1)

    indices, to_centre = lax.map(nearest_to_centres, (lax.stop_gradient(squared), negative))
    seen = jnp.arctan2(d, 2 * jnp.sqrt(jnp.maximum(to_centre, 0)))
    exists = positive & jnp.any(negative, axis=1, keepdims=True)
    exists &= ~(seen <= jnp.deg2rad(angle))
    chosen = jnp.take_along_axis(d, indices, axis=1)
    chosen = jnp.where(row_has_nan(distances, positive | negative), jnp.nan, chosen)
    return _mined(chosen, indices, exists)


def distance_weighted_negatives(
    key: PRNGKeyArray,
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    dim: int,
    cutoff: float = 0.5,
    max_distance: float = 1.4,
    where: Bool[Array, "n m"] | None = None,
) -> Mined:
    """For each positive, a random negative, drawn evenly over distances.

    Distances of random points on the sphere in `dim` dimensions have the density
    q(d) ~ d^(dim - 2) (1 - d^2 / 4)^((dim - 3) / 2). A negative is drawn with a probability
    proportional to 1 / q(max(cutoff, d)), if d is below `max_distance`.

    Args:
      key: A JAX key.
      distances: Euclidean distances of embeddings of length 1.
      same: True where the two are of one class.
      dim: Dimension of the embeddings, at least 2.
      cutoff: Smaller distances count as this one.
      max_distance: Farther negatives are not drawn, since their loss is 0.
      where: True where the entry is valid.

    Raises:
      ValueError: If `dim` is below 2.

    Reference:
      Wu et al. Sampling Matters in Deep Embedding Learning. ICCV 2017, eq. 3 and 4.

    >>> same = jnp.array([[True, False, False]])
    >>> mined = distance_weighted_negatives(
    ...     jax.random.key(0), jnp.array([[0.5, 1.0, 1.9]]), same, dim=8)
    >>> print(mined.indices[0, 0], mined.where)
    1 [[ True False False]]
    """
    check_at_least("dim", dim, 2)
    positive, negative = sides(distances, same, where)
    d = widen(distances)
    clipped = jnp.clip(lax.stop_gradient(d), cutoff, 2 - 1e-6)
    log_density = (dim - 2) * jnp.log(clipped) + (dim - 3) / 2 * jnp.log1p(
        -(clipped**2) / 4
    )
    allowed = negative & (d < max_distance)
    exists = positive & jnp.any(allowed, axis=1, keepdims=True)
    indices = _drawn(key, -log_density, allowed)
    chosen = jnp.take_along_axis(d, indices, axis=1)
    has_nan = row_has_nan(distances, positive | negative)
    exists |= positive & has_nan & jnp.any(negative, axis=1, keepdims=True)
    return _mined(jnp.where(has_nan, jnp.nan, chosen), indices, exists)


def _drawn(
    key: PRNGKeyArray, logits: Float[Array, "n m"], allowed: Bool[Array, "n m"]
) -> Int[Array, "n m"]:
    """Draws m columns for each row from the softmax of its allowed logits.

    The cumulative probabilities of a row are inverted, in O(n m) memory. Rounding may let
    them stop short of an allowed column, or step at one that is not: then the allowed one
    before it is taken. The columns of a row without allowed ones mean nothing.
    """
    if logits.size == 0:
        return jnp.zeros(logits.shape, int)
    highest = jnp.max(logits, axis=1, keepdims=True, where=allowed, initial=-jnp.inf)
    shares = jnp.where(allowed, jnp.exp(jnp.where(allowed, logits - highest, 0)), 0)
    cumulative = jnp.cumsum(shares, axis=1)
    drawn = jax.random.uniform(key, shares.shape, shares.dtype) * cumulative[:, -1:]
    search = jax.vmap(lambda row, x: jnp.searchsorted(row, x, side="right"))
    columns = jnp.minimum(search(cumulative, drawn), shares.shape[1] - 1)
    numbers = jnp.where(allowed, jnp.arange(shares.shape[1])[None, :], 0)
    before = jnp.take_along_axis(lax.cummax(numbers, axis=1), columns, axis=1)
    return jnp.maximum(before, jnp.argmax(allowed, axis=1, keepdims=True))


def mine_triplets(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    positive: Choice = "hard",
    negative: Choice = "hard",
    positive_range: Range | None = None,
    negative_range: Range | None = None,
    where: Bool[Array, "n m"] | None = None,
) -> Triplets:
    """One positive and one negative for each anchor.

    A hard positive is the farthest, an easy one the nearest. A hard negative is the
    nearest, an easy one the farthest. A semi-hard negative is the nearest that is farther
    than the chosen positive, a semi-hard positive the farthest that is nearer than the
    chosen negative.

    Args:
      distances: A matrix whose rows are anchors.
      same: True where the two are of one class.
      positive: Which positive to choose.
      negative: Which negative to choose.
      positive_range: Smallest and largest distance of positives to choose from.
      negative_range: Smallest and largest distance of negatives to choose from.
      where: True where the entry is valid.

    Raises:
      ValueError: If there is no such choice, or both are semi-hard.

    Reference:
      Xuan, Stylianou, Pless. Improved Embeddings with Easy Positive Triplet Mining. WACV
      2020, section 3.

    >>> matrix = jnp.array([[1.0, 3.0, 0.5, 2.0]])
    >>> same = jnp.array([[True, True, False, False]])
    >>> found = mine_triplets(matrix, same, positive="easy", negative="semi-hard")
    >>> print(found.positive.distances, found.negative.distances, found.negative.indices)
    [1.] [2.] [3]
    """
    for name, choice in (("positive", positive), ("negative", negative)):
        if choice not in get_args(Choice):
            raise ValueError(
                f"{name} must be one of {', '.join(get_args(Choice))}; got {choice}"
            )
    if positive == negative == "semi-hard":
        raise ValueError("positive and negative must not both be semi-hard")
    positives, negatives = sides(distances, same, where)
    d = widen(distances)
    positives &= _in_range("positive_range", d, positive_range)
    negatives &= _in_range("negative_range", d, negative_range)

    def nearest_negative(mask: Array) -> Mined:
        return _farthest(d, mask) if negative == "easy" else _nearest(d, mask)

    def farthest_positive(mask: Array) -> Mined:
        return _nearest(d, mask) if positive == "easy" else _farthest(d, mask)

    if positive == "semi-hard":
        n = nearest_negative(negatives)
        p = farthest_positive(positives & ~(d >= n.distances[:, None]))
    else:
        p = farthest_positive(positives)
        if negative == "semi-hard":
            negatives &= ~(d <= p.distances[:, None])
        n = nearest_negative(negatives)
    return Triplets(p, n, p.where & n.where)


# Implementation -------------------------------------------------------------------------


def _mined(distances: Array, indices: Array, where: Array) -> Mined:
    return Mined(jnp.where(where, distances, 0), jnp.where(where, indices, 0), where)


def _nearest(distances: Array, mask: Array) -> Mined:
    """The nearest entry of each row under a mask; a NaN there counts as the nearest."""
    exists = jnp.any(mask, axis=1)
    if distances.shape[1] == 0:
        nothing = jnp.zeros(exists.shape)
        return _mined(nothing, nothing.astype(int), exists)
    masked = jnp.where(mask, distances, jnp.inf)
    indices = jnp.argmin(masked, axis=1)  # that of NaN, if there is one
    chosen = jnp.min(masked, axis=1)
    return _mined(chosen, indices, exists)


def _farthest(distances: Array, mask: Array) -> Mined:
    nearest = _nearest(-distances, mask)
    return nearest._replace(distances=-nearest.distances)


def _for_each_positive(mined: Mined, positive: Bool[Array, "n m"]) -> Mined:
    distances, indices, where = (
        jnp.broadcast_to(field[:, None], positive.shape) for field in mined
    )
    return _mined(distances, indices, positive & where)


def _in_range(name: str, distances: Array, bounds: Range | None) -> Bool[Array, "n m"]:
    if bounds is None:
        return jnp.ones(distances.shape, bool)
    low, high = bounds
    if not low <= high:
        raise ValueError(f"{name} must be (smallest, largest); got {bounds}")
    return ~((distances < low) | (distances > high))  # NaN stays
