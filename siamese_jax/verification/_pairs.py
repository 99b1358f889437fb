"""Checks and sorts the distances of pairs, for all functions of the package."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_floating,
    check_rank,
    check_same_shape,
)
from siamese_jax._numerics import widen

Numbers = Float[Array, " n"] | Float[np.ndarray, " n"]
Flags = Bool[Array, " n"] | Bool[np.ndarray, " n"]


class Cumulative(NamedTuple):
    """Pairs in the order of their distance, and how many there are up to each.

    Entry 0 of `matches` and `mismatches` is 0, entry i + 1 counts all pairs that are at
    most as far as `ascending[i]`. Equal distances therefore have equal counts.

    Attributes:
      ascending: The distances.
      matches: Number of the same pairs, or the sum of their weights.
      mismatches: Number of the different pairs, or the sum of their weights.
    """

    ascending: Array
    matches: Array
    mismatches: Array


def prepare(
    distances: Numbers,
    same: Flags,
    where: Flags | None,
    weights: Numbers | None,
    *,
    name: str = "distances",
) -> tuple[Array, Array]:
    """Returns distances, masked ones infinite, and weights, masked ones 0.

    `name` is what error messages call the distances.

    Without weights these are the integers 1 and 0, so that sums of them are exact. All are
    0 if a distance or a weight is NaN or a weight is negative: every rate is then one over
    nothing.
    """
    check_floating(name, distances)
    check_rank(name, distances, 1)
    check_at_least(f"the number of {name}", len(distances), 1)
    check_boolean("same", same)
    check_same_shape("same", same, name, distances)
    distances = widen(jnp.asarray(distances))
    counted = jnp.ones(distances.shape, bool) if where is None else jnp.asarray(where)
    check_boolean("where", counted)
    check_same_shape("where", counted, name, distances)
    undefined = jnp.isnan(distances)
    if weights is None:
        weights = jnp.ones(distances.shape, jnp.int32)
    else:
        check_floating("weights", weights)
        check_same_shape("weights", weights, name, distances)
        weights = widen(jnp.asarray(weights))
        counted &= weights != 0
        undefined |= ~(weights >= 0)
    defined = ~jnp.any(undefined & counted)
    return jnp.where(counted, distances, jnp.inf), jnp.where(counted & defined, weights, 0)


def cumulative_weights(distances: Array, same: Flags, weights: Array) -> Cumulative:
    """Sorts the distances and sums the weights of same and of different pairs up to each.

    The sums never fall. Sums of floating-point weights are computed in a tree, whose
    rounding differs from entry to entry, so that the largest sum so far is taken.
    """
    order = jnp.argsort(distances)
    ascending, weights = distances[order], weights[order]
    same = jnp.asarray(same)[order]
    through = jnp.searchsorted(ascending, ascending, side="right")
    through = jnp.concatenate([jnp.zeros(1, through.dtype), through])

    def sums(values: Array) -> Array:
        return jnp.pad(jax.lax.cummax(jnp.cumsum(values)), (1, 0))[through]

    return Cumulative(ascending, sums(weights * same), sums(weights * ~same))


def ratio(part: Array, whole: Array) -> Array:
    """Returns part / whole, or NaN where the whole is 0.

    Compiled programs multiply by the reciprocal, so that x / x may fall short of 1.
    """
    share = jnp.where(part == whole, 1, part / jnp.where(whole == 0, 1, whole))
    return jnp.where(whole == 0, jnp.nan, share)


# float64 arrays of NumPy, which JAX rounds to float32 unless jax_enable_x64 is set ------


def in_order(distances: Numbers) -> Numbers:
    """Returns numbers that JAX can hold and that are in the order of the distances.

    These are the distances themselves, or their dense ranks if rounding them would make
    different distances equal. NaN stays NaN.
    """
    if not _num_merged(distances):
        return distances
    values, ranks = np.unique(np.asarray(distances), return_inverse=True)
    check_representable("the ranks of distances", np.arange(len(values), dtype=float))
    return np.where(np.isnan(distances), np.nan, ranks).astype(np.float32)


def check_representable(name: str, distances: Numbers) -> None:
    """Raises ValueError if JAX would make different distances equal by rounding them."""
    num_merged = _num_merged(distances)
    if num_merged:
        dtype = jax.dtypes.canonicalize_dtype(distances.dtype)
        raise ValueError(
            f"{name} must differ in {dtype} where they differ in {distances.dtype}; "
            f"{num_merged} of {len(distances)} become equal to others or infinite. Set "
            f"jax_enable_x64, subtract a constant, or pass np.{dtype}(...) if these "
            "differences mean nothing"
        )


def _num_merged(distances: Numbers) -> int:
    if not isinstance(distances, np.ndarray) or distances.dtype.kind != "f":
        return 0
    dtype = jax.dtypes.canonicalize_dtype(distances.dtype)
    if dtype == distances.dtype:
        return 0
    with np.errstate(over="ignore", under="ignore"):
        rounded = distances.astype(dtype)
    # XLA flushes subnormal numbers to 0
    rounded = np.where(np.abs(rounded) < np.finfo(dtype).tiny, 0, rounded)
    num_infinite = np.sum(np.isinf(rounded) & np.isfinite(distances))
    return int(max(num_infinite, len(np.unique(distances)) - len(np.unique(rounded))))
