"""Same or different? How well a distance tells, over all thresholds or at one.

Two examples are called the same if their distance is at most the threshold.

>>> import jax.numpy as jnp
>>> distances = jnp.array([0.1, 0.2, 0.3, 0.4])
>>> same = jnp.array([True, False, True, False])
>>> print(roc_area(distances, same))
0.75
>>> print(decision_rates(distances, same, 0.15))
DecisionRates(accuracy=0.75, precision=1.0, recall=0.5)

Arguments that all functions share:

* `same`: True = of one class.
* `where`: what counts; a masked pair is as if it were deleted.
* `weights`: of each pair, 1 by default.

A rate over nothing (the recall of no positive pair, the precision of no pair called the
same) is NaN, since no number would be true. A NaN distance makes every figure NaN. Half
precision is judged in float32.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_floating,
    check_integer,
    check_rank,
    check_same_shape,
)
from siamese_jax._numerics import Scalar, widen


class DecisionRates(NamedTuple):
    """What a threshold gives.

    Attributes:
      accuracy: Share of the pairs that are judged rightly.
      precision: Share of the pairs called the same that are the same.
      recall: Share of the same pairs that are called the same.
    """

    accuracy: Float[Array, ""]
    precision: Float[Array, ""]
    recall: Float[Array, ""]

    def __repr__(self) -> str:
        """Plain numbers read better than arrays."""
        fields = (f"{k}={v}" for k, v in self._asdict().items())
        return f"DecisionRates({', '.join(fields)})"


class RocCurve(NamedTuple):
    """Rates at each threshold, from calling nothing the same to calling everything so.

    Attributes:
      thresholds: Ascending; the first is below every distance.
      false_match_rate: Share of the different pairs called the same.
      true_match_rate: Share of the same pairs called the same.
    """

    thresholds: Float[Array, " n_plus_1"]
    false_match_rate: Float[Array, " n_plus_1"]
    true_match_rate: Float[Array, " n_plus_1"]


class BestThreshold(NamedTuple):
    """The threshold of the highest accuracy, and that accuracy."""

    threshold: Float[Array, ""]
    accuracy: Float[Array, ""]


class TransferredThreshold(NamedTuple):
    """A threshold chosen on one set of pairs and applied to another.

    Attributes:
      threshold: The best where it was chosen.
      accuracy_where_chosen: Optimistic, since the threshold has seen these pairs.
      accuracy_where_applied: The honest figure.
    """

    threshold: Float[Array, ""]
    accuracy_where_chosen: Float[Array, ""]
    accuracy_where_applied: Float[Array, ""]


class Logistic(NamedTuple):
    """P(same) = sigmoid(scale * (threshold - distance)); even odds at the threshold."""

    threshold: Float[Array, ""]
    scale: Float[Array, ""]


class Interval(NamedTuple):
    """Ends of a bootstrap interval."""

    low: Float[Array, ""]
    high: Float[Array, ""]


StatisticFn = Callable[..., Float[Array, ""]]


def decision_rates(
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    threshold: Scalar,
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> DecisionRates:
    """Accuracy, precision and recall of "same if the distance is at most the threshold".

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If `distances` is not floating-point, `same` or `where` not boolean.

    >>> rates = decision_rates(jnp.array([0.2, 0.9]), jnp.array([True, True]), 0.5)
    >>> print(rates)
    DecisionRates(accuracy=0.5, precision=1.0, recall=0.5)
    """
    distances, weights = _prepare(distances, same, where, weights)
    called_same = distances <= threshold
    true_matches = jnp.sum(weights * (called_same & same))
    return DecisionRates(
        accuracy=_ratio(jnp.sum(weights * (called_same == same)), jnp.sum(weights)),
        precision=_ratio(true_matches, jnp.sum(weights * called_same)),
        recall=_ratio(true_matches, jnp.sum(weights * same)),
    )


def roc_curve(
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> RocCurve:
    """Receiver operating characteristic; equal distances make one step, repeated.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If `distances` is not floating-point, `same` or `where` not boolean.

    >>> curve = roc_curve(jnp.array([0.1, 0.2]), jnp.array([True, False]))
    >>> print(curve.false_match_rate, curve.true_match_rate)
    [0. 0. 1.] [0. 1. 1.]
    """
    distances, weights = _prepare(distances, same, where, weights)
    ascending, matches, mismatches = _cumulative(distances, same, weights)
    return RocCurve(
        thresholds=jnp.concatenate([_just_below(ascending[:1]), ascending]),
        false_match_rate=_ratio(mismatches, mismatches[-1]),
        true_match_rate=_ratio(matches, matches[-1]),
    )


def roc_area(
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Area under the ROC curve: how likely a same pair is nearer than a different one.

    Ties count half. 0.5 is chance, 1 is perfect.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If `distances` is not floating-point, `same` or `where` not boolean.

    >>> print(roc_area(jnp.array([0.1, 0.1]), jnp.array([True, False])))
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
    """The rate at which false matches and false non-matches are equally frequent.

    Between two thresholds the ROC curve is taken as straight.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If `distances` is not floating-point, `same` or `where` not boolean.

    >>> distances = jnp.array([0.1, 0.3, 0.2, 0.4])
    >>> print(equal_error_rate(distances, jnp.array([True, True, False, False])))
    0.5
    """
    curve = roc_curve(distances, same, where=where, weights=weights)
    # false non-matches less false matches: falls from 1 to -1 along the curve
    excess = (1 - curve.true_match_rate) - curve.false_match_rate
    after = jnp.argmax(excess <= 0)
    before = jnp.maximum(after - 1, 0)
    step = excess[before] - excess[after]
    share = jnp.where(step == 0, 0, excess[before] / jnp.where(step == 0, 1, step))
    rate = curve.false_match_rate
    return rate[before] + share * (rate[after] - rate[before])


def best_threshold(
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> BestThreshold:
    """The threshold of the highest accuracy, halfway between two distances.

    The smallest of equally good ones. Its accuracy is that of the pairs it was chosen on.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If `distances` is not floating-point, `same` or `where` not boolean.

    >>> print(best_threshold(jnp.array([1.0, 3.0]), jnp.array([True, False])).threshold)
    2.0
    """
    distances, weights = _prepare(distances, same, where, weights)
    ascending, matches, mismatches = _cumulative(distances, same, weights)
    right = matches + (mismatches[-1] - mismatches)
    best = jnp.argmax(right)
    # candidate i calls the first i distances the same; masked ones lie at infinity
    padded = jnp.concatenate([_just_below(ascending[:1]), ascending, ascending[-1:]])
    lower = padded[best]
    # the whole run of equal distances is called the same: the next one is truly farther
    upper = jnp.min(jnp.where(ascending > lower, ascending, jnp.inf))
    halfway = lower + (upper - lower) / 2
    apart = (halfway < upper) & (best > 0)  # not for neighbouring numbers, nor infinity
    accuracy = _ratio(right[best], matches[-1] + mismatches[-1])
    threshold = jnp.where(apart, halfway, lower)
    return BestThreshold(jnp.where(jnp.isnan(accuracy), jnp.nan, threshold), accuracy)


def transferred_threshold(
    chosen_on: tuple[Float[Array, " n"], Bool[Array, " n"]],
    applied_to: tuple[Float[Array, " m"], Bool[Array, " m"]],
) -> TransferredThreshold:
    """Chooses the best threshold on one set of pairs and judges another with it.

    Args:
      chosen_on: `(distances, same)`, training or validation pairs.
      applied_to: `(distances, same)`, test pairs.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If distances are not floating-point, or `same` not boolean.

    >>> train = jnp.array([1.0, 3.0]), jnp.array([True, False])
    >>> test = jnp.array([1.5, 1.8]), jnp.array([True, False])
    >>> print(transferred_threshold(train, test).accuracy_where_applied)
    0.5
    """
    threshold, accuracy = best_threshold(*chosen_on)
    applied = decision_rates(*applied_to, threshold)
    return TransferredThreshold(threshold, accuracy, applied.accuracy)


def fit_logistic(
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> Logistic:
    """Turns distances into probabilities: logistic regression of `same` on the distance.

    `siamese.threshold_logits(distance, threshold=..., scale=...)` is then the log-odds of
    "same", given that it is as frequent as among these pairs. The targets are
    (n_same + 1) / (n_same + 2) and 1 / (n_different + 2), counts by weight, so that
    separable pairs have a finite scale too. Where nothing can be told (all distances
    equal, all pairs the same or all different) the scale is 0 and the threshold NaN.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If `distances` is not floating-point, `same` or `where` not boolean.

    Reference:
      Platt. Probabilistic Outputs for Support Vector Machines. 1999, section 2.2; by
      Newton's method as in Lin, Lin, Weng. A Note on Platt's Probabilistic Outputs. 2007.

    >>> distances = jnp.array([1.0, 2.0, 3.0, 4.0])
    >>> fit = fit_logistic(distances, jnp.array([True, True, False, False]))
    >>> print(f"{fit.threshold:.3f}")
    2.500
    """
    distances, weights = _prepare(distances, same, where, weights)
    total = jnp.sum(weights)
    mean = jnp.sum(jnp.where(weights == 0, 0, weights * distances)) / total
    centred = jnp.where(weights == 0, 0, distances - mean)
    deviation = jnp.sqrt(jnp.sum(weights * centred**2) / total)
    z = centred / jnp.where(deviation == 0, 1, deviation)
    num_same, num_different = jnp.sum(weights * same), jnp.sum(weights * ~same)
    target = jnp.where(same, (num_same + 1) / (num_same + 2), 1 / (num_different + 2))

    def loss(line: Array) -> Array:
        logits = line[0] + line[1] * z
        return jnp.sum(weights * (jax.nn.softplus(logits) - target * logits)) / total

    shares = jnp.concatenate([0.5 ** jnp.arange(12.0), jnp.zeros(1)])

    def newton(_: Array, line: Array) -> Array:
        curvature = jax.hessian(loss)(line) + 1e-6 * jnp.eye(2)
        step = jnp.linalg.solve(curvature, jax.grad(loss)(line))
        lines = line[None, :] - shares[:, None] * step[None, :]
        tolerated = loss(line) * (1 + 8 * jnp.finfo(line.dtype).eps)
        no_worse = jax.vmap(loss)(lines) <= tolerated  # the last, no step, always is
        return lines[jnp.argmax(no_worse)]

    offset, slope = lax.fori_loop(0, 50, newton, jnp.zeros(2))
    told = (deviation > 0) & (num_same > 0) & (num_different > 0)
    unknown = jnp.isnan(deviation) | jnp.isnan(slope)
    scale = jnp.where(told, -slope / deviation, jnp.where(unknown, jnp.nan, 0.0))
    even = jnp.where(told & (slope != 0), mean - deviation * _ratio(offset, slope), jnp.nan)
    return Logistic(threshold=even, scale=scale)


def bootstrap_interval(
    key: PRNGKeyArray,
    statistic_fn: StatisticFn,
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    identities: Int[Array, "2 n"],
    *,
    num_identities: int,
    num_samples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a figure under resampling of the identities.

    Pairs that share a person, letter or image are not independent, so identities are
    drawn with replacement, not pairs. With c_i the times identity i is drawn, a pair of
    one identity weighs c_i, a pair of two weighs c_i c_j.

    Args:
      key: A JAX key.
      statistic_fn: `statistic_fn(distances, same, weights=...)`, such as `roc_area`.
      distances: Of each pair.
      same: True = of one class.
      identities: Of the two members of each pair, numbered from 0.
      num_identities: How many there are; an identity beyond makes the interval NaN.
      num_samples: Bootstrap samples; one without a defined figure is left out.
      level: Coverage.

    Raises:
      ValueError: If a shape is wrong, a count is below 2 or `level` not in (0, 1).
      TypeError: If `distances` is not floating-point, `same` not boolean or `identities`
        not integer.

    Reference:
      Bolle, Ratha, Pankanti. Error analysis of pattern recognition systems: the subsets
      bootstrap. CVIU 2004.

    >>> distances, same = jnp.array([0.1, 0.2, 0.9]), jnp.array([True, True, False])
    >>> people = jnp.array([[0, 1, 0], [0, 1, 1]])
    >>> interval = bootstrap_interval(
    ...     jax.random.key(0), roc_area, distances, same, people, num_identities=2)
    >>> print(interval.low, interval.high)
    1.0 1.0
    """
    check_at_least("num_identities", num_identities, 2)
    check_at_least("num_samples", num_samples, 2)
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1); got {level}")
    _prepare(distances, same, None, None)
    check_integer("identities", identities)
    if identities.shape != (2, *distances.shape):
        raise ValueError(
            f"identities must have shape {(2, *distances.shape)}, two for each distance; "
            f"got {identities.shape}"
        )

    figures = _resampled(
        key, statistic_fn, distances, same, identities, num_identities, num_samples
    )
    tail = (1 - level) / 2
    ends = jnp.nanquantile(figures, jnp.array([tail, 1 - tail]))
    inside = (identities >= 0) & (identities < num_identities)
    sound = ~jnp.any(jnp.isnan(distances)) & jnp.all(inside)
    low, high = jnp.where(sound, ends, jnp.nan)
    return Interval(low, high)


@partial(jax.jit, static_argnums=(1, 5, 6))  # compiled once, not once a call
def _resampled(
    key: PRNGKeyArray,
    statistic_fn: StatisticFn,
    distances: Array,
    same: Array,
    identities: Array,
    num_identities: int,
    num_samples: int,
) -> Float[Array, " samples"]:
    def one_sample(key: PRNGKeyArray) -> Float[Array, ""]:
        drawn = jax.random.randint(key, (num_identities,), 0, num_identities)
        times = jnp.zeros(num_identities, jnp.float32).at[drawn].add(1)
        first, second = times[identities]
        weights = jnp.where(identities[0] == identities[1], first, first * second)
        return statistic_fn(distances, same, weights=weights)

    return lax.map(one_sample, jax.random.split(key, num_samples))


def _prepare(
    distances: Array, same: Array, where: Array | None, weights: Array | None
) -> tuple[Array, Array]:
    """Distances with the masked ones at infinity, and weights with theirs at 0."""
    check_floating("distances", distances)
    check_rank("distances", distances, 1)
    check_at_least("the number of distances", len(distances), 1)
    check_boolean("same", same)
    check_same_shape("same", same, "distances", distances)
    distances = widen(distances)
    weights = jnp.ones_like(distances) if weights is None else weights
    check_floating("weights", weights)
    check_same_shape("weights", weights, "distances", distances)
    weights = widen(weights)
    where = jnp.ones(distances.shape, bool) if where is None else where
    check_boolean("where", where)
    check_same_shape("where", where, "distances", distances)
    where = where & (weights != 0)
    broken = jnp.any((jnp.isnan(distances) | jnp.isnan(weights)) & where)
    weights = jnp.where(where, jnp.where(broken, jnp.nan, weights), 0)
    return jnp.where(where, distances, jnp.inf), weights


def _cumulative(
    distances: Array, same: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """Ascending distances [n]; weight of same and of different pairs up to each [n + 1].

    Entry 0 is nothing; the entries of equal distances hold the sum of the whole run.
    """
    order = jnp.argsort(distances)
    ascending, same, weights = distances[order], same[order], weights[order]
    through = jnp.searchsorted(ascending, ascending, side="right")
    through = jnp.concatenate([jnp.zeros(1, through.dtype), through])

    def sums(values: Array) -> Array:
        return jnp.pad(jnp.cumsum(values), (1, 0))[through]

    return ascending, sums(weights * same), sums(weights * ~same)


def _just_below(x: Array) -> Array:
    # the number before 0 is subnormal and would be flushed to 0
    return jnp.minimum(jnp.nextafter(x, -jnp.inf), x - jnp.finfo(x.dtype).tiny)


def _ratio(part: Array, whole: Array) -> Array:
    return jnp.where(whole == 0, jnp.nan, part / jnp.where(whole == 0, 1, whole))
