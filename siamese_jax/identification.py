"""Identification: the nearest class of a gallery for each query, or none of them.

A gallery is a set of images with labels. The answer to a query is the class of the nearest
gallery image, if its distance is at most a threshold. A query of a class that the gallery
does not have is called a stranger here; it is answered rightly by "none of these".

>>> labels = np.array(["anna", "anna", "bert"])
>>> distances = np.array([[0.4, 0.2, 0.7], [5.0, 6.0, 4.0]])  # of two queries
>>> nearest = nearest_classes(distances, labels)
>>> nearest.labels.tolist(), nearest.distances.tolist()
(['anna', 'bert'], [0.2, 4.0])
>>> identification_rates(nearest, ["anna", "carl"], labels, 1.0)["false_accept_rate"]
0.0

The functions work on NumPy arrays on the host. `siamese_jax.model.Model.identify` puts them
together.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from siamese_jax._labels import Labels, host_labels


class NearestClasses(NamedTuple):
    """The nearest class of each query and the second nearest.

    Attributes:
      labels: Nearest class.
      distances: Distance to the nearest image of the nearest class.
      positions: Position of that image in the gallery.
      runner_up_labels: Second nearest class.
      runner_up_distances: Distance to the nearest image of the second nearest class.
    """

    labels: Shaped[np.ndarray, " queries"]
    distances: Float[np.ndarray, " queries"]
    positions: Int[np.ndarray, " queries"]
    runner_up_labels: Shaped[np.ndarray, " queries"]
    runner_up_distances: Float[np.ndarray, " queries"]


class Identification(NamedTuple):
    """Answers to queries.

    Attributes:
      nearest: The nearest class of each query, whether it is near enough or not.
      accepted: True where the distance is at most the threshold. The answer is "none of
        these" elsewhere.
      threshold: The largest distance at which a class is the answer.
      strangers_let_in: See the function of this name, for the gallery.
    """

    nearest: NearestClasses
    accepted: Bool[np.ndarray, " queries"]
    threshold: float
    strangers_let_in: float


def nearest_classes(
    distances: Float[np.ndarray, "queries gallery"], labels: Labels
) -> NearestClasses:
    """Finds the nearest and the second nearest class of each query.

    The distance of a class is that of its nearest image. Of equal distances the image that
    comes first in the gallery counts as the nearest.

    Args:
      distances: Distance of each query to each image of the gallery.
      labels: Class of each image of the gallery.

    Raises:
      ValueError: If there is not one label for each column, or there are fewer than two
        classes.

    >>> nearest = nearest_classes(np.array([[0.4, 0.2, 0.3]]), ["a", "a", "b"])
    >>> nearest.positions.tolist(), nearest.runner_up_labels.tolist()
    ([1], ['b'])
    """
    labels = _check_gallery(distances, labels)
    positions = np.argmin(distances, axis=1)
    rows = np.arange(len(distances))
    of_others = np.where(labels == labels[positions][:, None], np.inf, distances)
    second = np.argmin(of_others, axis=1)
    return NearestClasses(
        labels=labels[positions],
        distances=distances[rows, positions],
        positions=positions,
        runner_up_labels=labels[second],
        runner_up_distances=distances[rows, second],
    )


def comparison_rate(false_accept_rate: float, num_classes: int) -> float:
    """False match rate of one comparison that lets in a given share of strangers.

    A stranger is compared with N classes, and each comparison is a chance of a false match.
    If these were independent, a rate of r = 1 - (1 - R)^(1/N) for each comparison would let
    in the share R of the strangers.

    Raises:
      ValueError: If the rate is not between 0 and 1, or the number of classes is below 1.

    >>> round(comparison_rate(0.19, 2), 6)
    0.1
    """
    if not 0 < false_accept_rate < 1:
        raise ValueError(f"false_accept_rate must be in (0, 1); got {false_accept_rate}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1; got {num_classes}")
    return 1 - (1 - false_accept_rate) ** (1 / num_classes)


def strangers_let_in(
    distances: Float[np.ndarray, "gallery gallery"], labels: Labels, threshold: float
) -> float:
    """Share of gallery images that would match another class, were their own not there.

    Each image of the gallery plays a stranger: it is a query to the gallery without its own
    class. The share measures what a threshold does on this gallery.

    Args:
      distances: Distance of each image of the gallery to each.
      labels: Class of each image of the gallery.
      threshold: The largest distance that is accepted.

    Raises:
      ValueError: If there is not one label for each column, or there are fewer than two
        classes.

    >>> points = np.array([0.0, 0.1, 5.0, 5.2])
    >>> distances = abs(points[:, None] - points[None, :])
    >>> strangers_let_in(distances, ["a", "a", "b", "c"], 1.0)  # b and c
    0.5
    """
    labels = _check_gallery(distances, labels)
    of_others = np.where(labels[:, None] == labels[None, :], np.inf, distances)
    return float(np.mean(of_others.min(axis=1) <= threshold))


def identification_rates(
    nearest: NearestClasses, truth: Labels, gallery_labels: Labels, threshold: float
) -> dict[str, float]:
    """Shares of right and wrong answers to queries whose classes are known.

    Args:
      nearest: The nearest class of each query.
      truth: Class of each query. A class that the gallery does not have makes the query a
        stranger.
      gallery_labels: Class of each image of the gallery.
      threshold: The largest distance that is accepted.

    Returns:
      Of the queries that are no strangers: `one_shot_accuracy`, the share whose nearest
      class is right, `right_and_accepted_rate`, the share for which it also is near enough,
      and `false_reject_rate`, the share answered by "none of these". Of the strangers, if
      there are any: `false_accept_rate`, the share answered by a class.

    Raises:
      ValueError: If there is not one class for each query, or every query is a stranger.

    >>> nearest = nearest_classes(np.array([[0.1, 0.5], [0.9, 0.3]]), ["a", "b"])
    >>> identification_rates(nearest, ["a", "a"], ["a", "b"], 0.2)["one_shot_accuracy"]
    0.5
    """
    truth = host_labels("truth", truth)
    if truth.shape != nearest.labels.shape:
        raise ValueError(
            f"truth must have one class for each of {len(nearest.labels)} queries; got "
            f"shape {truth.shape}"
        )
    member = np.isin(truth, host_labels("gallery_labels", gallery_labels))
    if not member.any():
        raise ValueError("truth must have a class of the gallery; got none")
    accepted = nearest.distances <= threshold
    right = nearest.labels == truth
    rates = {
        "one_shot_accuracy": right[member].mean(),
        "right_and_accepted_rate": (right & accepted)[member].mean(),
        "false_reject_rate": (~accepted)[member].mean(),
    }
    if not member.all():
        rates["false_accept_rate"] = accepted[~member].mean()
    return {name: float(rate) for name, rate in rates.items()}


def _check_gallery(distances: np.ndarray, labels: Labels) -> np.ndarray:
    labels = host_labels("labels", labels)
    if distances.ndim != 2 or labels.shape != distances.shape[1:]:
        raise ValueError(
            f"labels must have one class for each of the columns of distances, "
            f"{distances.shape}; got shape {labels.shape}"
        )
    classes = np.unique(labels)
    if len(classes) < 2:
        found = "none" if not len(classes) else f"one, {classes[0]!s}"
        raise ValueError(f"labels must have two classes or more; got {found}")
    return labels
