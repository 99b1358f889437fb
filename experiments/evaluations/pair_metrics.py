"""Same or different? Metrics of pairs that are decided by their distance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siamese_jax import verification
from siamese_jax.errors import UserError
from siamese_jax.model import Model
from siamese_jax.samplers import Pairs
from siamese_jax.verification import Calibration


class PairDistances(NamedTuple):
    """Pairs of examples with their distances.

    Attributes:
      distances: [n].
      same: bool [n], whether the two examples of a pair are of the same class.
    """

    distances: jax.Array
    same: jax.Array


def pair_distances(model: Model, embeddings: jax.Array, pairs: Pairs) -> PairDistances:
    """Returns the distances of pairs of embeddings, by the model's distance."""
    a, b = embeddings[pairs.examples]
    return PairDistances(model.pair_distances(a, b), jnp.asarray(pairs.same))


def calibrate_pairs(pairs: PairDistances, description: str) -> Calibration:
    """Returns what distances mean, measured on the given pairs.

    Args:
      pairs: Pairs that the model was not trained on.
      description: What pairs these are, such as "pairs of the validation classes".

    Raises:
      UserError: If not both kinds of pairs are there, or a distance is not finite.
    """
    try:
        return verification.calibrate(*pairs, pairs=description)
    except ValueError as error:
        raise UserError(str(error)) from error


def pair_metrics(test: PairDistances, threshold: float) -> dict[str, float]:
    """Returns accuracy, precision and recall at a threshold, and figures over all.

    A pair is called the same if its distance is at most the threshold. `pair_eer` (the
    equal error rate) and `roc_auc` do not depend on the threshold.
    """
    rates = verification.decision_rates(*test, threshold)
    figures = {
        "pair_accuracy": rates.accuracy,
        "pair_precision": rates.precision,
        "pair_recall": rates.recall,
        "pair_eer": verification.equal_error_rate(*test),
        "roc_auc": verification.roc_auc(*test),
    }
    return {name: float(figure) for name, figure in figures.items()}


def chosen_threshold_metrics(train: PairDistances, test: PairDistances) -> dict[str, float]:
    """Returns the threshold that is best on training pairs, and its accuracy on both."""
    chosen = verification.evaluate_threshold(train, test)
    return {
        "chosen_threshold": float(chosen.threshold),
        "pair_accuracy_at_chosen_threshold": float(chosen.test_accuracy),
        "pair_accuracy_at_chosen_threshold_training_pairs": float(
            chosen.validation_accuracy
        ),
    }


def called_the_same(labels: np.ndarray, pairs: Pairs, called: np.ndarray) -> np.ndarray:
    """Returns how often pairs of two different classes are called the same.

    Args:
      labels: [n], class of each example, from 0 to the number of classes less 1.
      pairs: Pairs of the examples. Pairs of the same class are left out.
      called: bool, for each pair whether it is called the same.

    Returns:
      Shares [classes, classes], symmetric; 0 for two classes without a pair.
    """
    same = np.asarray(pairs.same)
    first, second = labels[np.asarray(pairs.examples)[:, ~same]]
    num_classes = int(labels.max()) + 1
    sums, counts = np.zeros((2, num_classes, num_classes))
    for rows, columns in ((first, second), (second, first)):
        np.add.at(sums, (rows, columns), called[~same])
        np.add.at(counts, (rows, columns), 1)
    return sums / np.maximum(counts, 1)
