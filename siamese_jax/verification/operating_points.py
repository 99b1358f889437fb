"""Operating points: how many pairs are missed where few strangers may match."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siamese_jax._numerics import just_below
from siamese_jax.verification._pairs import (
    Flags,
    Numbers,
    check_representable,
    cumulative_weights,
    prepare,
    ratio,
)


class OperatingPoints(NamedTuple):
    """Thresholds for given false match rates, and the rates that are reached there.

    Attributes:
      thresholds: Largest threshold at which no more different pairs match than asked.
      false_match_rate: Share of the different pairs that match (the false accept rate).
      true_match_rate: Share of the same pairs that match: the true accept rate (TAR) at the
        asked false accept rate.
      false_non_match_rate: Share of the same pairs that do not match (FNMR).
    """

    thresholds: Float[Array, " rates"] | Float[np.ndarray, " rates"]
    false_match_rate: Float[Array, " rates"] | Float[np.ndarray, " rates"]
    true_match_rate: Float[Array, " rates"] | Float[np.ndarray, " rates"]
    false_non_match_rate: Float[Array, " rates"] | Float[np.ndarray, " rates"]


def operating_points(
    distances: Numbers,
    same: Flags,
    false_match_rates: Sequence[float],
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> OperatingPoints:
    """False non-match rate at false match rates, also known as TAR at FAR.

    The threshold for the rate r lies just below the smallest distance d up to which more
    than the share r of the different pairs match. Nothing is interpolated: the rate that is
    reached is at most r, and pairs of equal distance match all or not at all. A rate that
    is met up to rounding counts as met.

    If there are no different pairs, the thresholds and all rates but the given ones are
    NaN. Without same pairs the match rates of the same pairs are NaN. The threshold is NaN
    too if d is minus infinity, which no threshold keeps out.

    Args:
      distances: Distance of each pair.
      same: True where the two examples of a pair are of one class.
      false_match_rates: The rates r, such as `[1e-4, 1e-3]`.
      where: False where a pair is ignored.
      weights: Weight of each pair.

    Raises:
      ValueError: If a rate is not in [0, 1), or there is none.

    >>> distances = jnp.array([0.1, 0.2, 0.3, 0.4, 0.5])
    >>> same = jnp.array([True, False, True, True, False])
    >>> found = operating_points(distances, same, [0.0, 0.5])
    >>> print(found.true_match_rate, found.false_match_rate)
    [0.33333334 1.        ] [0.  0.5]
    """
    rates = check_rates("false_match_rates", false_match_rates)
    check_representable("distances", distances)
    distances, weights = prepare(distances, same, where, weights)
    ascending, matches, mismatches = cumulative_weights(distances, same, weights)
    total = mismatches[-1]
    tolerated = jnp.asarray(rates, distances.dtype) * total
    tolerated *= 1 + 4 * jnp.finfo(distances.dtype).eps
    if jnp.issubdtype(total.dtype, jnp.integer):
        tolerated = jnp.minimum(jnp.floor(tolerated).astype(total.dtype), total - 1)
    else:
        tolerated = jnp.minimum(tolerated, just_below(total))
    # the first distance that lets in too many; what is counted before it is nearer
    first_out = jnp.searchsorted(mismatches[1:], tolerated, side="right")
    first_out = jnp.minimum(first_out, len(ascending) - 1)
    nearest_out = ascending[first_out]
    undefined = (total == 0) | jnp.isneginf(nearest_out)
    missed = ratio(matches[-1] - matches[first_out], matches[-1])
    return OperatingPoints(
        thresholds=jnp.where(undefined, jnp.nan, just_below(nearest_out)),
        false_match_rate=ratio(mismatches[first_out], total),
        true_match_rate=_if_any(total, ratio(matches[first_out], matches[-1])),
        false_non_match_rate=_if_any(total, missed),
    )


def check_rates(name: str, rates: Sequence[float]) -> Float[np.ndarray, " rates"]:
    """Returns the rates as an array, or raises ValueError if one is not in [0, 1)."""
    found = np.asarray(rates, float)
    if found.ndim != 1 or not found.size or not ((found >= 0) & (found < 1)).all():
        raise ValueError(f"{name} must be a list of rates in [0, 1); got {rates}")
    return found


def _if_any(total: Array, rates: Array) -> Array:
    return jnp.where(total == 0, jnp.nan, rates)
