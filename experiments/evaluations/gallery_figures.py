"""Figures of persons that a model was not trained on, from the distances of their images.

A gallery has one image of each person. Other images are recognised by the nearest image of
the gallery, and a stranger is an image of a person that the gallery does not have. Figures
are means over many galleries, which are drawn in the same way each time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.datasets import evaluation_rng
from experiments.evaluations.pair_metrics import equal_error_rate
from siamese_jax.identification import is_within
from siamese_jax.images import LabelledImages
from siamese_jax.model import Model
from siamese_jax.verification import Calibration

NUM_GALLERIES = 100


class Compared(NamedTuple):
    """The images of a test, compared with each other.

    Attributes:
      distances: Distance of each image to each, [n, n].
      person: The number of the person in each image, [n].
    """

    distances: np.ndarray
    person: np.ndarray


def compare(model: Model, test: LabelledImages) -> Compared:
    """Compares all images of a test."""
    embeddings = model.embed(test.images)
    distances = np.asarray(model.distances(embeddings, embeddings))
    return Compared(distances, np.unique(test.labels, return_inverse=True)[1])


def galleries(person: np.ndarray) -> list[np.ndarray]:
    """Draws many galleries: the numbers of one image of each person."""
    rng, persons = evaluation_rng("galleries of persons"), np.unique(person)
    return [
        np.array([rng.choice(np.flatnonzero(person == one)) for one in persons])
        for _ in range(NUM_GALLERIES)
    ]


def pair_error(compared: Compared) -> float:
    """The equal error rate over all pairs of images."""
    distances, person = compared
    first, second = np.triu_indices(len(person), 1)
    same = person[first] == person[second]
    return float(equal_error_rate(distances[first, second], same))


def pair_accuracy(compared: Compared, threshold: float) -> float:
    """The share of right decisions at a threshold; both kinds of pairs weigh alike."""
    distances, person = compared
    first, second = np.triu_indices(len(person), 1)
    same = person[first] == person[second]
    called_same = is_within(distances[first, second], threshold)
    return float((called_same[same].mean() + (~called_same[~same]).mean()) / 2)


def one_shot_accuracy(compared: Compared) -> float:
    """The share of images that are nearest to their person's image in a gallery."""
    distances, person = compared
    right = []
    for gallery in galleries(person):
        nearest = person[gallery][distances[:, gallery].argmin(axis=1)]
        right.append(np.delete(nearest == person, gallery))
    return float(np.mean(right))


def let_in(compared: Compared, calibration: Calibration, rate: float) -> np.ndarray:
    """How often a gallery of the others would take a person's images for whom, [k, k].

    The share of the images of person i that are let in as person j, who is the nearest.
    The threshold is that of `model.identify` for a gallery with one image of each of the
    other persons. The shares are means over many galleries.

    Args:
      compared: Images of persons that the calibration does not know.
      calibration: What the distances mean.
      rate: The share of strangers that is asked for.
    """
    distances, person = compared
    counts = np.bincount(person)
    threshold = calibration.threshold_at(rate, num_comparisons=len(counts) - 1)
    others = np.where(person[:, None] == person, np.inf, distances)
    shares = np.zeros((len(counts), len(counts)))
    for gallery in galleries(person):
        nearest = others[:, gallery].argmin(axis=1)
        accepted = is_within(others[:, gallery].min(axis=1), threshold)
        np.add.at(shares, (person[accepted], person[gallery][nearest[accepted]]), 1)
    return shares / counts[:, None] / NUM_GALLERIES


def mean_let_in(shares: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The mean share of strangers over the persons of several tests, and its interval.

    The 95 % interval is by resampling the persons of each test, both as strangers and as
    those whom a stranger is taken for: two persons who look alike are one accident, not
    as many as they have images.

    Args:
      shares: The result of `let_in` for each test.

    Returns:
      The mean, and the ends of the interval.
    """
    rng = evaluation_rng("bootstrap over strangers")

    def mean(weights_fn: Callable[[int], np.ndarray]) -> float:
        total = num = 0.0
        for matrix in shares:
            weights = weights_fn(len(matrix))
            pairs = np.outer(weights, weights) * (1 - np.eye(len(matrix)))
            total += np.sum(pairs * matrix)
            num += np.sum(pairs) / (len(matrix) - 1)
        return float(total / num)

    def resampled(num: int) -> np.ndarray:
        weights = rng.multinomial(num, np.full(num, 1 / num))
        # one person alone, several times, has no stranger
        return weights if np.count_nonzero(weights) > 1 else resampled(num)

    low, high = np.quantile([mean(resampled) for _ in range(2_000)], [0.025, 0.975])
    return mean(np.ones), float(low), float(high)
