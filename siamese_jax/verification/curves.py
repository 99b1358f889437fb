"""The ROC curve of verification, the area under it, and the equal error rate."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from siamese_jax._numerics import just_below
from siamese_jax.verification._pairs import (
    Flags,
    Numbers,
    check_representable,
    cumulative_weights,
    in_order,
    prepare,
    ratio,
)


class RocCurve(NamedTuple):
    """Rates at every threshold, from calling no pair the same to calling every pair so.

    Attributes:
      thresholds: Ascending thresholds. The first is below every distance.
      false_match_rate: Share of the different pairs that are called the same (the false
        positive rate).
      true_match_rate: Share of the same pairs that are called the same (the recall).
    """

    thresholds: Float[Array, " n_plus_1"]
    false_match_rate: Float[Array, " n_plus_1"]
    true_match_rate: Float[Array, " n_plus_1"]


def roc_curve(
    distances: Numbers,
    same: Flags,
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> RocCurve:
    """Receiver operating characteristic: both match rates at every threshold.

    Each distance is a threshold. Equal distances give the same point several times. Both
    rates begin at 0, never fall, and end at exactly 1.

    >>> curve = roc_curve(jnp.array([0.1, 0.2]), jnp.array([True, False]))
    >>> print(curve.false_match_rate, curve.true_match_rate)
    [0. 0. 1.] [0. 1. 1.]
    """
    check_representable("distances", distances)
    return _curve(distances, same, where, weights)


def roc_auc(
    distances: Numbers,
    same: Flags,
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> Float[Array, ""]:
    """Area under the ROC curve.

    It is the probability that a same pair is nearer than a different pair, with ties
    counted half: 0.5 is chance, 1 is perfect. It is computed as below / (below + above),
    from the areas below and above the curve, and is exactly 1 if all same pairs are nearer
    than all different ones.

    >>> print(roc_auc(jnp.array([0.1, 0.1]), jnp.array([True, False])))
    0.5
    """
    _, false, true = _curve(in_order(distances), same, where, weights)
    below = jnp.trapezoid(true, false)
    return ratio(below, below + jnp.trapezoid(1 - true, false))


def equal_error_rate(
    distances: Numbers,
    same: Flags,
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> Float[Array, ""]:
    """Error rate at the threshold where both kinds of error are equally frequent.

    The errors are false matches (different pairs called the same) and false non-matches
    (same pairs called different). The ROC curve is interpolated linearly between two
    thresholds.

    >>> distances = jnp.array([0.1, 0.3, 0.2, 0.4])
    >>> print(equal_error_rate(distances, jnp.array([True, True, False, False])))
    0.5
    """
    _, false, true = _curve(in_order(distances), same, where, weights)
    # False non-match rate minus false match rate falls from 1 to -1 along the curve.
    excess = (1 - true) - false
    after = jnp.argmax(excess <= 0)
    before = jnp.maximum(after - 1, 0)
    step = excess[before] - excess[after]
    share = jnp.where(step == 0, 0, excess[before] / jnp.where(step == 0, 1, step))
    return false[before] + share * (false[after] - false[before])


def _curve(
    distances: Numbers, same: Flags, where: Flags | None, weights: Numbers | None
) -> RocCurve:
    distances, weights = prepare(distances, same, where, weights)
    ascending, matches, mismatches = cumulative_weights(distances, same, weights)
    return RocCurve(
        thresholds=jnp.concatenate([just_below(ascending[:1]), ascending]),
        false_match_rate=ratio(mismatches, mismatches[-1]),
        true_match_rate=ratio(matches, matches[-1]),
    )
