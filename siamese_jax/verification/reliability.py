"""Whether probabilities of "same" are what happens: calibration curve and its error."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from siamese_jax._checks import check_at_least
from siamese_jax.verification._pairs import Flags, Numbers, prepare, ratio


class CalibrationCurve(NamedTuple):
    """The pairs in bins of their probability. An empty bin has NaN, and the share 0.

    Attributes:
      probability: Mean probability of the pairs in each bin.
      frequency: Share of the pairs in each bin that are the same.
      share: Share of all pairs that is in each bin.
    """

    probability: Float[Array, " bins"]
    frequency: Float[Array, " bins"]
    share: Float[Array, " bins"]


def calibration_curve(
    probabilities: Numbers,
    same: Flags,
    *,
    num_bins: int = 10,
    equal_mass: bool = False,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> CalibrationCurve:
    """How often pairs are the same, against the probability that was given to them.

    Args:
      probabilities: Probability of "same" for each pair.
      same: True where the two examples of a pair are of one class.
      num_bins: Number B of bins.
      equal_mass: False divides [0, 1] into bins of equal width, (b / B, (b + 1) / B], of
        which the first has 0 too. True divides the pairs into bins of equal weight: a pair
        is in bin floor(B s), where s is the share of pairs with a smaller probability, so
        that pairs of equal probability share a bin.
      where: False where a pair is ignored.
      weights: Weight of each pair.

    Returns:
      The curve, all NaN if a probability is NaN or not in [0, 1], or all pairs are ignored.

    Raises:
      ValueError: If a shape is wrong or `num_bins` is below 1.

    >>> curve = calibration_curve(
    ...     jnp.array([0.25, 0.25, 0.75]), jnp.array([False, True, True]), num_bins=2)
    >>> print(curve.probability, curve.frequency)
    [0.25 0.75] [0.5 1. ]
    """
    check_at_least("num_bins", num_bins, 1)
    values, weights = prepare(probabilities, same, where, weights, name="probabilities")
    outside = (weights != 0) & ~((values >= 0) & (values <= 1))
    weights = jnp.where(jnp.any(outside), 0, weights)
    bins = _equal_mass_bins if equal_mass else _equal_width_bins
    place = bins(values, weights, num_bins)
    total = jnp.sum(weights)

    def sums(numbers: Array) -> Array:
        return jnp.zeros(num_bins, numbers.dtype).at[place].add(numbers)

    of_bin = sums(weights)
    expected = sums(jnp.where(weights == 0, 0, weights * values))
    share = ratio(of_bin, jnp.full(num_bins, total))
    return CalibrationCurve(
        probability=ratio(expected, of_bin),
        frequency=ratio(sums(weights * jnp.asarray(same)), of_bin),
        share=share,
    )


def expected_calibration_error(
    probabilities: Numbers,
    same: Flags,
    *,
    num_bins: int = 10,
    equal_mass: bool = False,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> Float[Array, ""]:
    """Mean difference between the probability of "same" and how often it is so.

    It is sum_b share_b |frequency_b - probability_b| over the bins of `calibration_curve`,
    whose arguments it has. It depends on the bins: report their number and kind beside it.

    Raises:
      ValueError: If a shape is wrong or `num_bins` is below 1.

    Reference:
      Naeini, Cooper, Hauskrecht. Obtaining Well Calibrated Probabilities Using Bayesian
      Binning. AAAI 2015. They have bins of equal width. Of equal mass: Nguyen, O'Connor.
      Posterior calibration and exploratory analysis for NLP models. EMNLP 2015.

    >>> same = jnp.array([False, True, True])
    >>> print(expected_calibration_error(jnp.array([0.5, 0.5, 0.25]), same))  # .75 / 3
    0.25
    """
    probability, frequency, share = calibration_curve(
        probabilities,
        same,
        num_bins=num_bins,
        equal_mass=equal_mass,
        where=where,
        weights=weights,
    )
    return jnp.sum(jnp.where(share == 0, 0, share * jnp.abs(frequency - probability)))


def _equal_width_bins(values: Array, weights: Array, num_bins: int) -> Int[Array, " n"]:
    del weights
    edges = jnp.arange(1, num_bins) / num_bins
    return jnp.searchsorted(edges.astype(values.dtype), values, side="left")


def _equal_mass_bins(values: Array, weights: Array, num_bins: int) -> Int[Array, " n"]:
    order = jnp.argsort(values)
    before = jnp.pad(jnp.cumsum(weights[order]), (1, 0))
    smaller = before[jnp.searchsorted(values[order], values, side="left")]
    total = before[-1]
    place = num_bins * smaller // jnp.where(total == 0, 1, total)
    return jnp.minimum(place, num_bins - 1).astype(jnp.int32)
