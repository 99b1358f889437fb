"""Same or different? Metrics of pairs that are decided by their distance."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siamese_jax import verification
from siamese_jax.errors import UserError
from siamese_jax.model import Model
from siamese_jax.samplers import Pairs

# From all pairs of this number of images come the rates of false matches: 100,000 pairs.
_NUM_STRANGERS = 450


# Compiled as a whole: called as they are, each of their operations is compiled by itself.
decision_rates = jax.jit(verification.decision_rates)
equal_error_rate = jax.jit(verification.equal_error_rate)
evaluate_threshold = jax.jit(verification.evaluate_threshold)
roc_auc = jax.jit(verification.roc_auc)
roc_curve = jax.jit(verification.roc_curve)
_rows = jax.jit(lambda array, numbers: tuple(array[numbers]))


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
    a, b = _rows(embeddings, pairs.examples)
    return PairDistances(model.pair_distances(a, b), jnp.asarray(pairs.same))


def calibrate(
    model: Model,
    pairs: PairDistances,
    description: str,
    embeddings: jax.Array,
    labels: np.ndarray,
) -> Model:
    """Returns the model with what its distances mean, measured on the given pairs.

    If they mean nothing, since they are all equal, for example, the model has no
    calibration, its details say why, and so does a printed line: the run goes on.

    Args:
      model: The model to calibrate.
      pairs: Pairs that the model was not trained on.
      description: What pairs these are, such as "pairs of the validation classes".
      embeddings: [n, dim], of the images that the pairs come from.
      labels: [n], class of each of these images. The rates of false matches come from all
        pairs of up to 450 of them.
    """
    try:
        calibration = verification.calibrate(
            *pairs,
            pairs=description,
            num_classes=len(np.unique(labels)),
            different=different_distances(model, embeddings, labels),
        )
    except UserError as error:
        print(f"no calibration: {error}")
        details = {**model.details, "no_calibration": str(error)}
        return dataclasses.replace(model, calibration=None, details=details)
    return dataclasses.replace(model, calibration=calibration)


def threshold_of(model: Model) -> float:
    """Returns the threshold of a model, NaN if it has no calibration."""
    return math.nan if model.calibration is None else model.calibration.threshold


def different_distances(
    model: Model, embeddings: jax.Array, labels: np.ndarray
) -> np.ndarray:
    """Returns the distances of different pairs of images, each pair once.

    These are all pairs of up to 450 images, as many of each class as possible: first one of
    each class, then a second, and so on, in an order that is the same each time.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    _, group = np.unique(labels[order], return_inverse=True)
    by_class = np.argsort(group, kind="stable")
    _, first = np.unique(group[by_class], return_index=True)
    number = np.empty(len(labels), int)  # of an image within its class
    number[by_class] = np.arange(len(labels)) - first[group[by_class]]
    chosen = order[np.argsort(number, kind="stable")[:_NUM_STRANGERS]]
    matrix = np.asarray(model.distances(embeddings[chosen], embeddings[chosen]))
    rows, columns = np.triu_indices(len(chosen), 1)
    different = labels[chosen][rows] != labels[chosen][columns]
    return matrix[rows[different], columns[different]]


def pair_metrics(test: PairDistances, threshold: float) -> dict[str, float]:
    """Returns accuracy, precision and recall at a threshold, and figures over all.

    A threshold that is NaN, that of a model without calibration, makes the first three NaN.
    A pair is called the same if its distance is at most the threshold. `pair_eer` (the
    equal error rate) and `roc_auc` do not depend on the threshold.
    """
    rates = decision_rates(*test, threshold)
    figures = {
        "pair_accuracy": rates.accuracy,
        "pair_precision": rates.precision,
        "pair_recall": rates.recall,
        "pair_eer": equal_error_rate(*test),
        "roc_auc": roc_auc(*test),
    }
    return {name: float(figure) for name, figure in figures.items()}


def chosen_threshold_metrics(train: PairDistances, test: PairDistances) -> dict[str, float]:
    """Returns the threshold that is best on training pairs, and its accuracy on both.

    All three are NaN if all training pairs are equally far apart.
    """
    chosen = evaluate_threshold(train, test)
    if not jnp.min(train.distances) < jnp.max(train.distances):
        chosen = chosen._replace(**dict.fromkeys(chosen._fields, jnp.array(jnp.nan)))
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
