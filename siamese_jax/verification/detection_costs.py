"""Detection error trade-off, detection costs, and the cost of log-likelihood ratios.

A log-likelihood ratio is log p(pair | same) - log p(pair | different), natural: larger is
more alike. From distances it is made by `fit_logistic` on other pairs, where both kinds of
pairs have the same total weight: it is `scale * (threshold - distance)` then.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.nn import softplus
from jax.scipy.special import ndtri, xlogy
from jaxtyping import Array, Float

from siamese_jax._checks import check_between_0_and_1
from siamese_jax.verification._pairs import (
    Flags,
    Numbers,
    check_representable,
    cumulative_weights,
    in_order,
    prepare,
    ratio,
)
from siamese_jax.verification.curves import roc_curve


class DetCurve(NamedTuple):
    """Both error rates at every threshold, from calling no pair the same to every pair.

    Attributes:
      thresholds: Ascending thresholds. The first is below every distance.
      false_match_rate: Share of the different pairs that are called the same.
      false_non_match_rate: Share of the same pairs that are called different.
      false_match_deviate: The place of the rate on the curve's axis, the normal deviate
        (probit) of it: minus infinity at rate 0, infinity at rate 1.
      false_non_match_deviate: The same for the other rate.
    """

    thresholds: Float[Array, " n_plus_1"]
    false_match_rate: Float[Array, " n_plus_1"]
    false_non_match_rate: Float[Array, " n_plus_1"]
    false_match_deviate: Float[Array, " n_plus_1"]
    false_non_match_deviate: Float[Array, " n_plus_1"]


class MinDcf(NamedTuple):
    """The smallest detection cost, and the smallest threshold that has it."""

    cost: Float[Array, ""]
    threshold: Float[Array, ""]


def det_curve(
    distances: Numbers,
    same: Flags,
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> DetCurve:
    """Detection error trade-off: both error rates at every threshold, and their deviates.

    Each distance is a threshold. Equal distances give the same point several times.

    Reference:
      Martin, Doddington, Kamm, Ordowski, Przybocki. The DET Curve in Assessment of
      Detection Task Performance. Eurospeech 1997.

    >>> curve = det_curve(jnp.array([0.1, 0.2]), jnp.array([True, False]))
    >>> print(curve.false_match_rate, curve.false_non_match_rate)
    [0. 0. 1.] [1. 0. 0.]
    """
    thresholds, false, true = roc_curve(distances, same, where=where, weights=weights)
    missed = 1 - true
    return DetCurve(thresholds, false, missed, ndtri(false), ndtri(missed))


def min_dcf(
    distances: Numbers,
    same: Flags,
    *,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> MinDcf:
    """Smallest normalised detection cost over all thresholds.

    With the rates of misses (same pairs called different) and of false alarms (different
    pairs called the same), the cost is

        (c_miss p_target P_miss + c_fa (1 - p_target) P_fa)
            / min(c_miss p_target, c_fa (1 - p_target))

    It is at most 1, which the better one of "all the same" and "none the same" costs.

    Args:
      distances: Distance of each pair.
      same: True where the two examples of a pair are of one class.
      p_target: How probable a same pair is where the system is used.
      c_miss: Cost of a miss.
      c_fa: Cost of a false alarm.
      where: False where a pair is ignored.
      weights: Weight of each pair.

    Raises:
      ValueError: If `p_target` is not in (0, 1) or a cost is not positive.

    Reference:
      NIST 2016 Speaker Recognition Evaluation Plan, section 3.

    >>> distances = jnp.array([0.1, 0.3, 0.2, 0.4])
    >>> same = jnp.array([True, True, False, False])
    >>> print(min_dcf(distances, same, p_target=0.5).cost)  # one of two is missed
    0.5
    """
    miss, false_alarm = _relative_costs(p_target, c_miss, c_fa)
    curve = roc_curve(distances, same, where=where, weights=weights)
    costs = miss * (1 - curve.true_match_rate) + false_alarm * curve.false_match_rate
    best = jnp.argmin(costs)
    cost = costs[best]
    threshold = jnp.where(jnp.isnan(cost), jnp.nan, curve.thresholds[best])
    return MinDcf(cost, threshold)


def actual_dcf(
    log_ratios: Numbers,
    same: Flags,
    *,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> Float[Array, ""]:
    """Normalised detection cost at the threshold that calibrated ratios should have.

    A pair is called the same if its log-likelihood ratio is at least
    log(c_fa (1 - p_target) / (c_miss p_target)). For the cost see `min_dcf`; what is above
    the smallest cost was lost by calibration. The cost may exceed 1.

    Args:
      log_ratios: Log-likelihood ratio of each pair, larger for more alike.
      same: True where the two examples of a pair are of one class.
      p_target: How probable a same pair is where the system is used.
      c_miss: Cost of a miss.
      c_fa: Cost of a false alarm.
      where: False where a pair is ignored.
      weights: Weight of each pair.

    Raises:
      ValueError: If `p_target` is not in (0, 1) or a cost is not positive.

    >>> log_ratios = jnp.array([2.0, -1.0, 1.0, -2.0])
    >>> same = jnp.array([True, True, False, False])
    >>> print(actual_dcf(log_ratios, same, p_target=0.5))  # a half each, from 0 on
    1.0
    """
    miss, false_alarm = _relative_costs(p_target, c_miss, c_fa)
    least = math.log(c_fa * (1 - p_target)) - math.log(c_miss * p_target)
    log_ratios, same, weights = _prepared_ratios(log_ratios, same, where, weights)
    called = log_ratios >= least
    missed = ratio(jnp.sum(weights * (same & ~called)), jnp.sum(weights * same))
    false = ratio(jnp.sum(weights * (~same & called)), jnp.sum(weights * ~same))
    return miss * missed + false_alarm * false


def cllr(
    log_ratios: Numbers,
    same: Flags,
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> Float[Array, ""]:
    """Cost of log-likelihood ratios: how much they inform, over all costs and priors.

        (mean over same of log2(1 + e^-l) + mean over different of log2(1 + e^l)) / 2

    It is 0 if all ratios are right and infinite, 1 if all are 0 (they say nothing), and
    infinite if one is infinite and wrong. Without same or without different pairs it is
    NaN.

    Reference:
      Brümmer, du Preez. Application-independent evaluation of speaker detection. Computer
      Speech and Language 2006, section 6.

    >>> print(cllr(jnp.array([0.0, 0.0]), jnp.array([True, False])))
    1.0
    """
    log_ratios, same, weights = _prepared_ratios(log_ratios, same, where, weights)
    bits = softplus(jnp.where(same, -log_ratios, log_ratios)) / math.log(2)

    def mean_over(kind: Array) -> Array:
        counted = jnp.where(kind & (weights != 0), weights * bits, 0)
        return ratio(jnp.sum(counted), jnp.sum(weights * kind))

    return (mean_over(same) + mean_over(~same)) / 2


def min_cllr(
    distances: Numbers,
    same: Flags,
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> Float[Array, ""]:
    """Smallest `cllr` that any calibration in the order of the distances can have.

    The ratios are those of isotonic regression on the same pairs: neighbouring distances
    are pooled until the share of same pairs falls with the distance (pool adjacent
    violators). It depends on the order alone: 0 if all same pairs are nearer than all
    different ones, 1 if the order tells nothing. `cllr` minus this is lost by calibration.

    Reference:
      Brümmer, du Preez. Application-independent evaluation of speaker detection. Computer
      Speech and Language 2006, section 7.

    >>> print(min_cllr(jnp.array([0.1, 0.2]), jnp.array([False, True])))
    1.0
    """
    distances, weights = prepare(in_order(distances), same, where, weights)
    _, matches, mismatches = cumulative_weights(distances, same, weights)
    target = ratio(jnp.diff(matches), matches[-1])
    other = ratio(jnp.diff(mismatches), mismatches[-1])
    target, other = _pooled(target, other)
    both = target + other
    nats = xlogy(target, both) - xlogy(target, target)
    nats += xlogy(other, both) - xlogy(other, other)
    return jnp.sum(nats) / (2 * math.log(2))


_Pooling = tuple[Array, Array, Array, Array, Array]


def _pooled(
    target: Float[Array, " n"], other: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Adds up neighbours until target / other falls; what was added elsewhere is 0."""

    def add(i: Array, stack: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        def rises(state: _Pooling) -> Array:
            targets, others, top, t, o = state
            last = jnp.maximum(top - 1, 0)
            return (top > 0) & (targets[last] * o <= t * others[last])

        def pool(state: _Pooling) -> _Pooling:
            targets, others, top, t, o = state
            t, o = t + targets[top - 1], o + others[top - 1]
            return targets, others, top - 1, t, o

        targets, others, top, t, o = lax.while_loop(
            rises, pool, (*stack, target[i], other[i])
        )
        return targets.at[top].set(t), others.at[top].set(o), top + 1

    zeros = jnp.zeros_like(target)
    targets, others, num = lax.fori_loop(0, len(target), add, (zeros, zeros, 0))
    kept = jnp.arange(len(target)) < num
    return jnp.where(kept, targets, 0), jnp.where(kept, others, 0)


def _relative_costs(p_target: float, c_miss: float, c_fa: float) -> tuple[float, float]:
    """Costs of all misses and of all false alarms, the smaller of which is 1."""
    check_between_0_and_1("p_target", p_target)
    for name, cost in (("c_miss", c_miss), ("c_fa", c_fa)):
        if not 0 < cost < math.inf:
            raise ValueError(f"{name} must be positive and finite; got {cost}")
    miss, false_alarm = c_miss * p_target, c_fa * (1 - p_target)
    smaller = min(miss, false_alarm)
    return miss / smaller, false_alarm / smaller


def _prepared_ratios(
    log_ratios: Numbers, same: Flags, where: Flags | None, weights: Numbers | None
) -> tuple[Array, Array, Array]:
    check_representable("log_ratios", log_ratios)
    log_ratios, weights = prepare(log_ratios, same, where, weights, name="log_ratios")
    return log_ratios, jnp.asarray(same), weights
