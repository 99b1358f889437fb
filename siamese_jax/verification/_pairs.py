"""Checks and sorts the distances of pairs, for all functions of the package."""

import jax.numpy as jnp
from jaxtyping import Array

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_floating,
    check_rank,
    check_same_shape,
)
from siamese_jax._numerics import widen


def prepare(
    distances: Array, same: Array, where: Array | None, weights: Array | None
) -> tuple[Array, Array]:
    """Returns distances, masked ones infinite, and weights, masked ones 0."""
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
    has_nan = jnp.any((jnp.isnan(distances) | jnp.isnan(weights)) & where)
    weights = jnp.where(where, jnp.where(has_nan, jnp.nan, weights), 0)
    return jnp.where(where, distances, jnp.inf), weights


def cumulative_weights(
    distances: Array, same: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """Sorts the distances and sums the weights of same and of different pairs up to each.

    Returns:
      The ascending distances [n], and for same and for different pairs the sum of weights
      [n + 1]: entry 0 is 0, entry i + 1 is the sum over all pairs at most as far as
      distance i. Equal distances therefore have equal sums.
    """
    order = jnp.argsort(distances)
    ascending, same, weights = distances[order], same[order], weights[order]
    through = jnp.searchsorted(ascending, ascending, side="right")
    through = jnp.concatenate([jnp.zeros(1, through.dtype), through])

    def sums(values: Array) -> Array:
        return jnp.pad(jnp.cumsum(values), (1, 0))[through]

    return ascending, sums(weights * same), sums(weights * ~same)


def just_below(x: Array) -> Array:
    """Returns a number a little smaller than x."""
    # The number before 0 is subnormal and would be flushed to 0.
    return jnp.minimum(jnp.nextafter(x, -jnp.inf), x - jnp.finfo(x.dtype).tiny)


def ratio(part: Array, whole: Array) -> Array:
    """Returns part / whole, or NaN where the whole is 0."""
    return jnp.where(whole == 0, jnp.nan, part / jnp.where(whole == 0, 1, whole))
