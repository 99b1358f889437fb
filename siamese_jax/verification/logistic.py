"""Logistic regression of "same" on the distance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax.verification._pairs import (
    Flags,
    Numbers,
    check_representable,
    prepare,
    ratio,
)


class Logistic(NamedTuple):
    """P(same) = sigmoid(scale * (threshold - distance)), which is 1/2 at the threshold."""

    threshold: Float[Array, ""]
    scale: Float[Array, ""]


def fit_logistic(
    distances: Numbers,
    same: Flags,
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> Logistic:
    """Fits P(same) as a function of the distance, by logistic regression.

    `siamese.threshold_logits(distance, threshold=..., scale=...)` is then the log-odds of
    "same", if same pairs are as frequent as among the given ones.

    The targets are (n_same + 1) / (n_same + 2) for same pairs and 1 / (n_different + 2)
    for different ones, where n is the sum of weights, so that the scale is finite for
    separable pairs too. If all distances are equal, or all pairs are of one kind, the
    scale is 0 and the threshold NaN. Distances of any size are fitted equally well; a scale
    above the largest number of their type becomes that number.

    Reference:
      Platt. Probabilistic Outputs for Support Vector Machines. 1999, section 2.2. Fitted
      by Newton's method as in Lin, Lin, Weng. A Note on Platt's Probabilistic Outputs.
      2007.

    >>> distances = jnp.array([1.0, 2.0, 3.0, 4.0])
    >>> fit = fit_logistic(distances, jnp.array([True, True, False, False]))
    >>> print(f"{fit.threshold:.3f}")
    2.500
    """
    check_representable("distances", distances)
    distances, weights = prepare(distances, same, where, weights)
    same = jnp.asarray(same)
    counted, total = weights != 0, jnp.sum(weights)
    # Scaled and shifted to [0, 2] first: squares of small or large distances have no value.
    unit = jnp.max(jnp.where(counted, jnp.abs(distances), 0))
    unit = jnp.where(unit == 0, 1, unit)
    scaled = jnp.where(counted, distances / unit, jnp.inf)
    nearest = jnp.min(scaled)
    above = jnp.where(counted, scaled - nearest, 0)
    mean = jnp.sum(weights * above) / total
    centred = jnp.where(counted, above - mean, 0)
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
        # Take the longest step that does not raise the loss; the last candidate is none.
        no_worse = jax.vmap(loss)(lines) <= tolerated
        return lines[jnp.argmax(no_worse)]

    offset, slope = lax.fori_loop(0, 50, newton, jnp.zeros(2))
    defined = (deviation > 0) & (num_same > 0) & (num_different > 0)
    has_nan = jnp.isnan(deviation) | jnp.isnan(slope)
    largest = jnp.finfo(distances.dtype).max
    scale = jnp.clip(-slope / deviation / unit, -largest, largest)
    scale = jnp.where(defined, scale, jnp.where(has_nan, jnp.nan, 0.0))
    threshold = unit * (nearest + mean - deviation * ratio(offset, slope))
    threshold = jnp.where(defined & (slope != 0), threshold, jnp.nan)
    return Logistic(threshold=threshold, scale=scale)
