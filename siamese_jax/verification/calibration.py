"""Calibration: turning a distance into a decision, a probability and a false match rate."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from siamese_jax.verification._pairs import prepare, ratio
from siamese_jax.verification.thresholds import best_threshold


class Logistic(NamedTuple):
    """P(same) = sigmoid(scale * (threshold - distance)), which is 1/2 at the threshold."""

    threshold: Float[Array, ""]
    scale: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a distance means, measured on pairs that the model was not trained on.

    Attributes:
      pairs: Description of the pairs, in words.
      num_pairs: Number of the pairs.
      threshold: Distance up to which two examples are called the same, chosen for the
        highest accuracy on the pairs.
      accuracy: Accuracy at that threshold on the pairs.
      even_distance: Distance at which same and different are equally likely.
      scale: P(same) = sigmoid(scale * (even_distance - distance)).
      false_match_rates: Ascending shares of different pairs that are called the same.
      distances: Threshold that gives each of these rates.
    """

    pairs: str
    num_pairs: int
    threshold: float
    accuracy: float
    even_distance: float
    scale: float
    false_match_rates: list[float]
    distances: list[float]

    def probability_same(self, distance: ArrayLike) -> np.ndarray | np.float64:
        """Probability that two examples at this distance are of one class.

        It assumes that same and different are as frequent as among the pairs of the
        calibration.
        """
        logits = self.scale * (self.even_distance - np.asarray(distance, float))
        return 1 / (1 + np.exp(-np.clip(logits, -50, 50)))

    def threshold_at(self, false_match_rate: float) -> float:
        """Threshold at which this share of different pairs is called the same.

        It is interpolated between the measured rates. Outside of them it is the threshold
        of the smallest or the largest measured rate.
        """
        return float(np.interp(false_match_rate, self.false_match_rates, self.distances))


def calibrate(distances: ArrayLike, same: ArrayLike, *, pairs: str) -> Calibration:
    """Fits a threshold, a probability and false match rates; runs on the host.

    Args:
      distances: Distance of each pair, `[n]`.
      same: True where the two examples of a pair are of one class, `[n]`.
      pairs: Description of the pairs in words, such as "all pairs of validation".

    Raises:
      ValueError: If a shape is wrong, the pairs are not of both kinds, or a distance is
        not finite.
      TypeError: If `distances` is not floating-point or `same` not boolean.

    >>> distances = np.array([1.0, 2.0, 3.0, 4.0])
    >>> same = np.array([True, True, False, False])
    >>> calibration = calibrate(distances, same, pairs="toy pairs")
    >>> print(calibration.threshold, calibration.accuracy)
    2.5 1.0
    >>> print(calibration.probability_same(calibration.even_distance))
    0.5
    """
    distances, same = np.asarray(distances), np.asarray(same)
    distances_jax, same_jax = jnp.asarray(distances), jnp.asarray(same)
    prepare(distances_jax, same_jax, None, None)
    if same.all() or not same.any() or not np.isfinite(distances).all():
        raise ValueError(
            f"{pairs} cannot calibrate: {same.sum()} same, {(~same).sum()} different, "
            f"{(~np.isfinite(distances)).sum()} distances not finite"
        )
    best = best_threshold(distances_jax, same_jax)
    fit = fit_logistic(distances_jax, same_jax)
    different = distances[~same]
    rates = np.geomspace(min(1 / len(different), 0.5), 0.5, 50)
    return Calibration(
        pairs=pairs,
        num_pairs=len(same),
        threshold=float(best.threshold),
        accuracy=float(best.accuracy),
        even_distance=float(fit.threshold),
        scale=float(fit.scale),
        false_match_rates=rates.tolist(),
        distances=np.quantile(different, rates).tolist(),
    )


def fit_logistic(
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> Logistic:
    """Fits P(same) as a function of the distance, by logistic regression.

    `siamese.threshold_logits(distance, threshold=..., scale=...)` is then the log-odds of
    "same", if same pairs are as frequent as among the given ones.

    The targets are (n_same + 1) / (n_same + 2) for same pairs and 1 / (n_different + 2)
    for different ones, where n is the sum of weights, so that the scale is finite for
    separable pairs too. If all distances are equal, or all pairs are of one kind, the
    scale is 0 and the threshold NaN.

    Reference:
      Platt. Probabilistic Outputs for Support Vector Machines. 1999, section 2.2. Fitted
      by Newton's method as in Lin, Lin, Weng. A Note on Platt's Probabilistic Outputs.
      2007.

    >>> distances = jnp.array([1.0, 2.0, 3.0, 4.0])
    >>> fit = fit_logistic(distances, jnp.array([True, True, False, False]))
    >>> print(f"{fit.threshold:.3f}")
    2.500
    """
    distances, weights = prepare(distances, same, where, weights)
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
        # Take the longest step that does not raise the loss; the last candidate is none.
        no_worse = jax.vmap(loss)(lines) <= tolerated
        return lines[jnp.argmax(no_worse)]

    offset, slope = lax.fori_loop(0, 50, newton, jnp.zeros(2))
    defined = (deviation > 0) & (num_same > 0) & (num_different > 0)
    has_nan = jnp.isnan(deviation) | jnp.isnan(slope)
    scale = jnp.where(defined, -slope / deviation, jnp.where(has_nan, jnp.nan, 0.0))
    threshold = mean - deviation * ratio(offset, slope)
    threshold = jnp.where(defined & (slope != 0), threshold, jnp.nan)
    return Logistic(threshold=threshold, scale=scale)
