"""Angular loss: triplets seen from the centre between anchor and positive."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp, softplus
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_scalar, check_square, check_whole
from siamese_jax._numerics import Scalar, widen
from siamese_jax.miners import sides
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms


def angular_loss(
    similarities: Float[Array, "n n"],
    same: Bool[Array, "n n"],
    *,
    angle: Scalar = 40.0,
    where: Bool[Array, "n n"] | None = None,
    weights: Float[Array, "n n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Angular loss: bounds the angle at the negative of each triplet.

    For anchor a, positive p and negatives N, with t = tan(angle):
    log(1 + sum_N exp(4 t^2 (x_a + x_p) x_n - 2 (1 + t^2) x_a x_p)).
    The sums over negatives are one matrix product, or for large angles computed for one
    anchor after the other: memory is O(n^2), time O(n^3). The product of a positive and a
    negative is used even if `where` masks their own entry.

    Args:
      similarities: Dot products of embeddings of length 1 with themselves.
      same: True where the two are of one class.
      angle: Upper bound of the angle, in degrees.
      where: See `siamese_jax.losses`, also for `reduce_fn` and for `weights` (one per
        entry, of which those of the positives are used).

    Returns:
      The reduced loss, or `Terms` with one value per anchor-positive entry whose anchor has
      a negative.

    Reference:
      Wang et al. Deep Metric Learning with Angular Loss. ICCV 2017, eq. 8, with every
      positive of an anchor in place of one.

    >>> same = jnp.array([[True, True, False]] * 2 + [[False, False, True]])
    >>> where = ~jnp.eye(3, dtype=bool)
    >>> loss = angular_loss(jnp.zeros((3, 3)), same, where=where)
    >>> print(f"{loss:.4f}")  # log(1 + exp(0))
    0.6931
    """
    check_whole("angular_loss")
    check_scalar("angle", angle)
    check_square("similarities", similarities)
    positive, negative = sides(similarities, same, where, name="similarities")
    s = widen(similarities)
    squared_tangent = jnp.tan(jnp.deg2rad(angle)) ** 2

    exists = positive & jnp.any(negative, axis=1, keepdims=True)
    largest = _log_sum_over_negatives(4 * squared_tangent * s, negative)
    values = softplus(largest - 2 * (1 + squared_tangent) * s)
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)


def _log_sum_over_negatives(
    x: Float[Array, "n n"], negative: Bool[Array, "n n"]
) -> Float[Array, "n n"]:
    """Computes log sum_k exp(x_ak + x_pk) over the negatives k of a, 0 if it has none.

    It is one matrix product of exponentials where these cannot underflow, which they do not
    for unit vectors and an angle up to 65 degrees, else one anchor after the other.
    """
    some = jnp.any(negative, axis=1, keepdims=True)
    highest = lax.stop_gradient(jnp.max(x))
    width = highest - lax.stop_gradient(jnp.min(x))

    def product(x: Array) -> Array:
        powers = jnp.exp(x - highest)
        sums = jnp.matmul(
            jnp.where(negative, powers, 0), powers.T, precision=lax.Precision.HIGHEST
        )
        return jnp.where(some, jnp.log(jnp.where(some, sums, 1)) + 2 * highest, 0)

    @jax.checkpoint
    def one_anchor(row: tuple[Array, Array], x: Array) -> Array:
        of_anchor, negatives = row
        negatives = jnp.broadcast_to(negatives, x.shape)
        return logsumexp(of_anchor[None, :] + x, axis=1, where=negatives)

    def by_anchor(x: Array) -> Array:
        sums = lax.map(lambda row: one_anchor(row, x), (x, negative))
        return jnp.where(some, sums, 0)

    return lax.cond(width < 40, product, by_anchor, x)
