"""Identification: the nearest class of a gallery for each query, or none of them.

A gallery is a set of images with labels. The answer to a query is the class of the nearest
gallery image, if its distance is at most a threshold. A query of a class that the gallery
does not have is called a stranger here; it is answered rightly by "none of these".

A threshold for a given share of strangers comes from the gallery itself, if it has enough
classes: each of them plays strangers to the others (`gallery_threshold`). The nearest of
many distances is measured there as it is, however the distances depend on each other. For a
smaller gallery the threshold comes from pairs of other classes, each distance to an image
of the gallery counting as an independent chance of a match
(`verification.Calibration.threshold_at`).

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

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from siamese_jax._checks import check_between_0_and_1
from siamese_jax._labels import Labels, check_classes, host_labels
from siamese_jax._numerics import just_below
from siamese_jax.verification import Calibration

Source = Literal["gallery", "pairs"]


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
      threshold: The largest distance at which a class is the answer; minus infinity if
        neither the gallery nor the pairs can tell so small a rate of strangers.
      threshold_from: What the threshold was measured on: the gallery, the pairs of the
        calibration, or None without a threshold.
      smallest_rate: The smallest rate that the gallery or the pairs can tell.
      strangers_let_in: See the function of this name, for the gallery.
    """

    nearest: NearestClasses
    accepted: Bool[np.ndarray, " queries"]
    threshold: float
    threshold_from: Source | None
    smallest_rate: float
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


def stranger_threshold(
    calibration: Calibration,
    distances: Float[np.ndarray, "gallery gallery"],
    labels: Labels,
    false_accept_rate: float,
) -> tuple[float, Source | None]:
    """Threshold that lets in at most a share of strangers, and what it was measured on.

    It is `gallery_threshold`, if the gallery is large enough, else that of the calibration
    for as many comparisons as the gallery has images. If neither can tell so small a rate,
    it is minus infinity, which accepts nothing, and None.

    Args:
      calibration: What distances mean.
      distances: Distance of each image of the gallery to each.
      labels: Class of each image of the gallery.
      false_accept_rate: Share of strangers that may be accepted.

    Raises:
      ValueError: As for `gallery_threshold`.
    """
    threshold = gallery_threshold(distances, labels, false_accept_rate)
    if threshold is not None:
        return threshold, "gallery"
    num = len(labels)
    if false_accept_rate < calibration.smallest_rate(num_comparisons=num):
        return -np.inf, None
    return calibration.threshold_at(false_accept_rate, num_comparisons=num), "pairs"


def gallery_threshold(
    distances: Float[np.ndarray, "gallery gallery"],
    labels: Labels,
    false_accept_rate: float,
) -> float | None:
    """Threshold that lets in at most a share of strangers, measured on the gallery.

    Each image of the gallery plays a stranger, as for `strangers_let_in`. Let A(t) be the
    number of the N classes that would be let in at a distance of at most t, where a class
    counts by the share of its images. The threshold is the largest with

        A(t) <= rate * (N + 1) - 2

    The two classes that are subtracted are a new stranger's own and the one that it is
    nearest to, whose images would be nearer than without it. With one image for each class,
    the mean share of strangers let in is then at most the rate, over all draws of N + 1
    classes, of which one is the stranger's: if each plays the stranger in turn, at most
    A(t) + 2 of them are let in.

    Args:
      distances: Distance of each image of the gallery to each.
      labels: Class of each image of the gallery.
      false_accept_rate: Share of strangers that may be accepted.

    Returns:
      The threshold, or None if there are fewer than 2 / rate - 1 classes, which cannot tell
      so small a rate.

    Raises:
      ValueError: If the rate is not between 0 and 1, there is not one label for each
        column, or there are fewer than two classes.

    >>> points = np.arange(19.0) ** 2  # the nearest two are 0 and 1
    >>> distances = abs(points[:, None] - points[None, :])
    >>> 0.99 < gallery_threshold(distances, np.arange(19), 0.1) < 1
    True
    """
    check_between_0_and_1("false_accept_rate", false_accept_rate)
    labels = _check_gallery(distances, labels)
    classes, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    tolerated = false_accept_rate * (len(classes) + 1) - 2 + 1e-9  # as it is rounded
    if tolerated < 0:
        return None
    nearest = _nearest_of_others(distances, labels)
    order = np.argsort(nearest)
    let_in = np.cumsum((1 / sizes)[group[order]])
    first_too_many = nearest[order][np.argmax(let_in > tolerated)]
    return float(just_below(np.array([first_too_many]))[0])


def smallest_gallery_rate(num_classes: int) -> float:
    """Smallest share of strangers that a gallery of N classes can tell, 2 / (N + 1).

    >>> smallest_gallery_rate(19)
    0.1
    """
    return 2 / (num_classes + 1)


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
    return float(np.mean(is_within(_nearest_of_others(distances, labels), threshold)))


def is_within(
    distances: Float[np.ndarray, "*shape"], threshold: float
) -> Bool[np.ndarray, "*shape"]:
    """Whether distances are at most a threshold, compared in float64.

    NumPy would round the threshold to the type of the distances.

    >>> is_within(np.array([0.1], np.float32), 0.1).tolist()  # it is 0.1000000015
    [False]
    """
    return distances.astype(float) <= threshold


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
    accepted = is_within(nearest.distances, threshold)
    right = nearest.labels == truth
    rates = {
        "one_shot_accuracy": right[member].mean(),
        "right_and_accepted_rate": (right & accepted)[member].mean(),
        "false_reject_rate": (~accepted)[member].mean(),
    }
    if not member.all():
        rates["false_accept_rate"] = accepted[~member].mean()
    return {name: float(rate) for name, rate in rates.items()}


def _nearest_of_others(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Distance of each image of the gallery to the nearest image of another class."""
    same = labels[:, None] == labels[None, :]
    return np.where(same, np.inf, distances).min(axis=1)


def _check_gallery(distances: np.ndarray, labels: Labels) -> np.ndarray:
    labels = host_labels("labels", labels)
    num = distances.shape[1] if distances.ndim == 2 else -1
    check_classes("labels", labels, num, f"columns of distances, {distances.shape}")
    return labels
