"""The ROC curve of verification, the area under it, and the equal error rate."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from siamese_jax.verification._pairs import (
    cumulative_weights,
    just_below,
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
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> RocCurve:
    """Receiver operating characteristic: both match rates at every threshold.

    Each distance is a threshold. Equal distances give the same point several times.

    >>> curve = roc_curve(jnp.array([0.1, 0.2]), jnp.array([True, False]))
    >>> print(curve.false_match_rate, curve.true_match_rate)
    [0. 0. 1.] [0. 1. 1.]
    """
    distances, weights = prepare(distances, same, where, weights)
    ascending, matches, mismatches = cumulative_weights(distances, same, weights)
    return RocCurve(
        thresholds=jnp.concatenate([just_below(ascending[:1]), ascending]),
        false_match_rate=ratio(mismatches, mismatches[-1]),
        true_match_rate=ratio(matches, matches[-1]),
    )


def roc_auc(
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Area under the ROC curve.

    It is the probability that a same pair is nearer than a different pair, with ties
    counted half: 0.5 is chance, 1 is perfect.

    >>> print(roc_auc(jnp.array([0.1, 0.1]), jnp.array([True, False])))
    0.5
    """
    curve = roc_curve(distances, same, where=where, weights=weights)
    return jnp.trapezoid(curve.true_match_rate, curve.false_match_rate)


def equal_error_rate(
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Error rate at the threshold where both kinds of error are equally frequent.

    The errors are false matches (different pairs called the same) and false non-matches
    (same pairs called different). The ROC curve is interpolated linearly between two
    thresholds.

    >>> distances = jnp.array([0.1, 0.3, 0.2, 0.4])
    >>> print(equal_error_rate(distances, jnp.array([True, True, False, False])))
    0.5
    """
    curve = roc_curve(distances, same, where=where, weights=weights)
    # False non-match rate minus false match rate falls from 1 to -1 along the curve.
    excess = (1 - curve.true_match_rate) - curve.false_match_rate
    after = jnp.argmax(excess <= 0)
    before = jnp.maximum(after - 1, 0)
    step = excess[before] - excess[after]
    share = jnp.where(step == 0, 0, excess[before] / jnp.where(step == 0, 1, step))
    rate = curve.false_match_rate
    return rate[before] + share * (rate[after] - rate[before])
