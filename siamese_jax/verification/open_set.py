"""Open-set identification: queries whose class the gallery may not have.

A query of a class that the gallery has is mated. A query of another class, a stranger, is
accepted as soon as one of the gallery's entries is near enough, so that it counts with its
nearest entry, and the rate of false alarms is over strangers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_floating,
    check_rank,
    check_same_shape,
)
from siamese_jax._numerics import widen
from siamese_jax.verification.operating_points import check_rates, operating_points


class OpenSetTrials(NamedTuple):
    """One number for each query.

    Attributes:
      distances: Of a stranger the distance to its nearest entry of the gallery. Of a mated
        query the same, or infinity if this entry is of another class.
      mated: True where the gallery has the query's class.
      where: False where a query has no entry to be compared with, and is ignored.
    """

    distances: Float[Array, " queries"]
    mated: Bool[Array, " queries"]
    where: Bool[Array, " queries"]


class OpenSetRates(NamedTuple):
    """Thresholds for given rates of false alarms, and the rates that are reached there.

    Attributes:
      thresholds: Largest threshold at which no more strangers are accepted than asked.
      false_alarm_rate: Share of the strangers that are accepted (FPIR).
      identification_rate: Share of the mated queries that are accepted and whose nearest
        entry is of their class (DIR, detection and identification rate at rank 1).
    """

    thresholds: Float[Array, " rates"]
    false_alarm_rate: Float[Array, " rates"]
    identification_rate: Float[Array, " rates"]


def open_set_trials(
    distances: Float[Array, "queries gallery"],
    same: Bool[Array, "queries gallery"],
    *,
    where: Bool[Array, "queries gallery"] | None = None,
) -> OpenSetTrials:
    """Reduces the distances of each query to the gallery to the one that decides.

    A mated query is identified if an entry of its class is nearer than all entries of other
    classes. A tie is a miss, whatever the order of the gallery. Queries may be reduced in
    tiles; `operating_points` of all of them gives the rates.

    Args:
      distances: Distance of each query to each entry of the gallery.
      same: True where the two are of one class.
      where: False where an entry is not compared with, such as padding.

    Raises:
      ValueError: If a shape is wrong or the gallery is empty.
      TypeError: If distances are not floating-point or a mask not boolean.

    >>> same = jnp.array([[True, False], [True, False], [False, False]])
    >>> distances = jnp.array([[0.1, 0.5], [0.6, 0.4], [0.9, 0.3]])
    >>> print(open_set_trials(distances, same).distances)
    [0.1 inf 0.3]
    """
    check_floating("distances", distances)
    check_rank("distances", distances, 2)
    check_at_least("the number of gallery entries", distances.shape[1], 1)
    check_boolean("same", same)
    check_same_shape("same", same, "distances", distances)
    distances, same = widen(jnp.asarray(distances)), jnp.asarray(same)
    counted = jnp.ones(distances.shape, bool) if where is None else jnp.asarray(where)
    check_boolean("where", counted)
    check_same_shape("where", counted, "distances", distances)
    mated = jnp.any(same & counted, axis=1)
    of_class = jnp.min(jnp.where(same & counted, distances, jnp.inf), axis=1)
    of_others = jnp.min(jnp.where(~same & counted, distances, jnp.inf), axis=1)
    known = ~(jnp.isnan(of_class) | jnp.isnan(of_others))
    identified = jnp.where(of_class < of_others, of_class, jnp.inf)
    deciding = jnp.where(mated, identified, of_others)
    return OpenSetTrials(
        jnp.where(known, deciding, jnp.nan), mated, jnp.any(counted, axis=1)
    )


def open_set_rates(
    distances: Float[Array, "queries gallery"],
    same: Bool[Array, "queries gallery"],
    false_alarm_rates: Sequence[float],
    *,
    where: Bool[Array, "queries gallery"] | None = None,
) -> OpenSetRates:
    """Detection and identification rate (rank 1) at rates of false alarms.

    See `open_set_trials` for what counts of a query, and `operating_points` for the rule of
    the threshold. All rates are NaN without strangers, the identification rate is NaN
    without mated queries.

    Args:
      distances: Distance of each query to each entry of the gallery.
      same: True where the two are of one class.
      false_alarm_rates: The shares of strangers that may be accepted.
      where: False where an entry is not compared with.

    Raises:
      ValueError: If a rate is not in [0, 1), a shape is wrong or the gallery is empty.
      TypeError: If distances are not floating-point or a mask not boolean.

    Reference:
      Phillips, Grother, Micheals. Evaluation Methods in Face Recognition. Handbook of Face
      Recognition, 2nd edition, 2011, section 21.2.

    >>> same = jnp.array([[True, False], [True, False], [False, False]])
    >>> distances = jnp.array([[0.1, 0.5], [0.6, 0.4], [0.9, 0.3]])
    >>> print(open_set_rates(distances, same, [0.0]).identification_rate)
    [0.5]
    """
    check_rates("false_alarm_rates", false_alarm_rates)
    trials = open_set_trials(distances, same, where=where)
    points = operating_points(
        trials.distances, trials.mated, false_alarm_rates, where=trials.where
    )
    thresholds, false_alarm_rate, identification_rate, _ = map(jnp.asarray, points)
    return OpenSetRates(thresholds, false_alarm_rate, identification_rate)
