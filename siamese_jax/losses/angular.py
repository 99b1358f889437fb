"""Angular loss: triplets seen from the centre between anchor and positive."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.nn import softplus
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_scalar, check_square, check_whole
from siamese_jax._numerics import Scalar, widen
from siamese_jax.losses._positives import log_sum_over_negatives
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
    The sums over negatives are computed for the positives alone where an anchor has few,
    or for large angles, and else by one matrix product. Memory is O(n^2), time O(n^2 P)
    with the largest number P of positives of an anchor. The product of a positive and a
    negative is used even if `where` masks their own entry. There are gradients and, by
    `jax.hessian`, second derivatives; forward mode alone (`jax.jvp`) raises TypeError.

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
    largest = _log_sums(4 * squared_tangent * s, positive, negative)
    values = softplus(largest - 2 * (1 + squared_tangent) * s)
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)


def _log_sums(
    x: Float[Array, "n n"], positive: Bool[Array, "n n"], negative: Bool[Array, "n n"]
) -> Float[Array, "n n"]:
    """Computes log sum_k exp(x_ak + x_pk) over the negatives k of a, 0 if it has none.

    For few positives it is computed for these alone. For many it is one matrix product of
    exponentials where these cannot underflow, which they do not for unit vectors and an
    angle up to 65 degrees.
    """
    if x.size == 0:
        return x
    some = jnp.any(negative, axis=1, keepdims=True)
    highest = lax.stop_gradient(jnp.max(x))
    width = highest - lax.stop_gradient(jnp.min(x))
    most = jnp.maximum(*(jnp.max(jnp.sum(positive, axis=axis)) for axis in (0, 1)))

    def product(x: Array) -> Array:
        powers = jnp.exp(x - highest)
        sums = jnp.matmul(
            jnp.where(negative, powers, 0), powers.T, precision=lax.Precision.HIGHEST
        )
        return jnp.log(jnp.where(some, sums, 1)) + 2 * highest

    def by_positive(x: Array) -> Array:
        return log_sum_over_negatives(x, positive, negative)

    many = most > len(x) / 64  # from there on the product is faster
    return jnp.where(some, lax.cond(many & (width < 40), product, by_positive, x), 0)
