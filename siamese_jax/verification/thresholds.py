"""Accuracy, precision and recall at one threshold, and the threshold of best accuracy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_scalar
from siamese_jax._numerics import Scalar, just_below
from siamese_jax.verification._pairs import (
    Flags,
    Numbers,
    check_representable,
    cumulative_weights,
    prepare,
    ratio,
)


class DecisionRates(NamedTuple):
    """How good the decisions at one threshold are.

    Attributes:
      accuracy: Share of the pairs that are decided correctly.
      precision: Share of the pairs called the same that are the same.
      recall: Share of the same pairs that are called the same.
    """

    accuracy: Float[Array, ""]
    precision: Float[Array, ""]
    recall: Float[Array, ""]

    def __repr__(self) -> str:
        """Shows the fields as plain numbers instead of arrays."""
        fields = (f"{k}={v}" for k, v in self._asdict().items())
        return f"DecisionRates({', '.join(fields)})"


class BestThreshold(NamedTuple):
    """The threshold with the highest accuracy, and that accuracy."""

    threshold: Float[Array, ""]
    accuracy: Float[Array, ""]


class EvaluatedThreshold(NamedTuple):
    """A threshold chosen on validation pairs, with its accuracy there and on test pairs.

    Attributes:
      threshold: The threshold with the highest accuracy on the validation pairs.
      validation_accuracy: Optimistic, since the threshold was chosen on these pairs.
      test_accuracy: The figure to report.
    """

    threshold: Float[Array, ""]
    validation_accuracy: Float[Array, ""]
    test_accuracy: Float[Array, ""]


def decision_rates(
    distances: Numbers,
    same: Flags,
    threshold: Scalar,
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> DecisionRates:
    """Accuracy, precision and recall of "same if the distance is at most the threshold".

    If the threshold is NaN, so are all rates.

    Raises:
      ValueError: If the threshold is not a single number, or a shape is wrong.

    >>> rates = decision_rates(jnp.array([0.2, 0.9]), jnp.array([True, True]), 0.5)
    >>> print(rates)
    DecisionRates(accuracy=0.5, precision=1.0, recall=0.5)
    """
    check_scalar("threshold", threshold)
    if isinstance(distances, np.ndarray) and not isinstance(threshold, jax.Array):
        beside = np.asarray(threshold, distances.dtype)
        check_representable("distances and threshold", np.append(distances, beside))
    check_representable("distances", distances)
    distances, weights = prepare(distances, same, where, weights)
    weights = jnp.where(jnp.isnan(threshold), 0, weights)
    called_same, same = distances <= threshold, jnp.asarray(same)
    true_matches = jnp.sum(weights * (called_same & same))
    return DecisionRates(
        accuracy=ratio(jnp.sum(weights * (called_same == same)), jnp.sum(weights)),
        precision=ratio(true_matches, jnp.sum(weights * called_same)),
        recall=ratio(true_matches, jnp.sum(weights * same)),
    )


def best_threshold(
    distances: Numbers,
    same: Flags,
    *,
    where: Flags | None = None,
    weights: Numbers | None = None,
) -> BestThreshold:
    """The threshold with the highest accuracy on the given pairs.

    It lies halfway between two neighbouring distances. Of several equally good thresholds
    the smallest is returned.

    >>> print(best_threshold(jnp.array([1.0, 3.0]), jnp.array([True, False])).threshold)
    2.0
    """
    check_representable("distances", distances)
    distances, weights = prepare(distances, same, where, weights)
    ascending, matches, mismatches = cumulative_weights(distances, same, weights)
    correct = matches + (mismatches[-1] - mismatches)
    best = jnp.argmax(correct)
    # Candidate i calls the first i distances the same; masked pairs are at infinity.
    padded = jnp.concatenate([just_below(ascending[:1]), ascending, ascending[-1:]])
    lower = padded[best]
    # Equal distances are all called the same, so take the next larger distance.
    upper = jnp.min(jnp.where(ascending > lower, ascending, jnp.inf))
    halfway = lower + (upper - lower) / 2
    # There is no number halfway between neighbouring floats, nor up to infinity.
    apart = (halfway < upper) & (best > 0)
    accuracy = ratio(correct[best], matches[-1] + mismatches[-1])
    threshold = jnp.where(apart, halfway, lower)
    return BestThreshold(jnp.where(jnp.isnan(accuracy), jnp.nan, threshold), accuracy)


def evaluate_threshold(
    validation: tuple[Numbers, Flags],
    test: tuple[
        Float[Array, " m"] | Float[np.ndarray, " m"],
        Bool[Array, " m"] | Bool[np.ndarray, " m"],
    ],
) -> EvaluatedThreshold:
    """Chooses the best threshold on validation pairs and applies it to test pairs.

    Args:
      validation: `(distances, same)` of the pairs on which the threshold is chosen.
      test: `(distances, same)` of the pairs on which it is evaluated.

    >>> validation = jnp.array([1.0, 3.0]), jnp.array([True, False])
    >>> test = jnp.array([1.5, 1.8]), jnp.array([True, False])
    >>> print(evaluate_threshold(validation, test).test_accuracy)
    0.5
    """
    threshold, accuracy = best_threshold(*validation)
    return EvaluatedThreshold(
        threshold, accuracy, decision_rates(*test, threshold).accuracy
    )
