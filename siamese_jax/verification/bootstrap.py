"""Confidence intervals of verification figures, by resampling identities."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from siamese_jax._checks import check_at_least, check_between_0_and_1, check_integer
from siamese_jax.verification._pairs import Flags, Numbers, check_representable, prepare

StatisticFn = Callable[..., Float[Array, "*figures"]]


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: Float[Array, "*figures"]
    high: Float[Array, "*figures"]


def bootstrap_interval(
    key: PRNGKeyArray,
    statistic_fn: StatisticFn,
    distances: Numbers,
    same: Flags,
    identities: Int[Array, "2 n"] | Int[np.ndarray, "2 n"],
    *,
    num_identities: int,
    num_samples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a figure, resampling identities instead of pairs.

    Pairs that share a person, letter or image are not independent, so the identities are
    drawn with replacement, not the pairs. With c_i the number of times identity i is
    drawn, a pair within identity i has weight c_i, a pair of i and j has weight c_i c_j.

    Args:
      key: A JAX key.
      statistic_fn: `statistic_fn(distances, same, weights=...)`, such as `roc_auc`. It may
        return an array of several figures, each of which gets its interval.
      distances: Distance of each pair.
      same: True where the two examples of a pair are of one class.
      identities: Identity of the first and of the second example of each pair, numbered
        from 0.
      num_identities: Number of identities. An identity outside of it makes the interval
        NaN.
      num_samples: Number of bootstrap samples. Samples whose figure is NaN are left out.
      level: Confidence level of the interval.

    Raises:
      ValueError: If a shape is wrong, a count is below 2 or `level` not in (0, 1).
      TypeError: If `identities` is not integer.

    Reference:
      Bolle, Ratha, Pankanti. Error analysis of pattern recognition systems: the subsets
      bootstrap. CVIU 2004.

    >>> from siamese_jax.verification import roc_auc
    >>> distances, same = jnp.array([0.1, 0.2, 0.9]), jnp.array([True, True, False])
    >>> people = jnp.array([[0, 1, 0], [0, 1, 1]])
    >>> interval = bootstrap_interval(
    ...     jax.random.key(0), roc_auc, distances, same, people, num_identities=2)
    >>> print(interval.low, interval.high)
    1.0 1.0
    """
    check_at_least("num_identities", num_identities, 2)
    check_at_least("num_samples", num_samples, 2)
    check_between_0_and_1("level", level)
    check_representable("distances", distances)
    prepare(distances, same, None, None)
    check_integer("identities", identities)
    if identities.shape != (2, *distances.shape):
        raise ValueError(
            f"identities must have shape {(2, *distances.shape)}, two for each distance; "
            f"got {identities.shape}"
        )

    figures = _bootstrap_figures(
        key, statistic_fn, distances, same, identities, num_identities, num_samples
    )
    tail = (1 - level) / 2
    ends = jnp.nanquantile(figures, jnp.array([tail, 1 - tail]), axis=0)
    known = (identities >= 0) & (identities < num_identities)
    valid = ~jnp.any(jnp.isnan(distances)) & jnp.all(known)
    low, high = jnp.where(valid, ends, jnp.nan)
    return Interval(low, high)


@partial(jax.jit, static_argnums=(1, 5, 6))  # compiled once, not once a call
def _bootstrap_figures(
    key: PRNGKeyArray,
    statistic_fn: StatisticFn,
    distances: Array,
    same: Array,
    identities: Array,
    num_identities: int,
    num_samples: int,
) -> Float[Array, "samples ..."]:
    def one_sample(key: PRNGKeyArray) -> Float[Array, "*figures"]:
        drawn = jax.random.randint(key, (num_identities,), 0, num_identities)
        times = jnp.zeros(num_identities, jnp.float32).at[drawn].add(1)
        first, second = times[identities]
        weights = jnp.where(identities[0] == identities[1], first, first * second)
        return statistic_fn(distances, same, weights=weights)

    return lax.map(one_sample, jax.random.split(key, num_samples))
