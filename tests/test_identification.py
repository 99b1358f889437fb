"""Tests of nearest classes, thresholds and rates against values computed by hand."""

import numpy as np
import pytest

from siamese_jax import identification
from siamese_jax.verification import calibrate

LABELS = np.array(["a", "a", "b", "c"])


def nearest_of(*rows):
    return identification.nearest_classes(np.array(rows), LABELS)


def test_the_nearest_class_and_the_one_after_it():
    found = nearest_of([0.4, 0.2, 0.3, 0.9], [9.0, 8.0, 7.0, 6.0])
    assert found.labels.tolist() == ["a", "c"]
    assert found.distances.tolist() == [0.2, 6.0]
    assert found.positions.tolist() == [1, 3]
    assert found.runner_up_labels.tolist() == ["b", "b"]
    assert found.runner_up_distances.tolist() == [0.3, 7.0]


def test_of_equal_distances_the_first_image_counts():
    found = nearest_of([0.5, 0.5, 0.5, 0.5])
    assert (found.positions[0], found.runner_up_labels[0]) == (0, "b")


def test_labels_may_be_numbers():
    found = identification.nearest_classes(np.array([[2.0, 1.0]]), [7, 3])
    assert (found.labels[0], found.runner_up_labels[0]) == (3, 7)


def test_rates_by_hand():
    near = [0.4, 0.2, 0.3, 0.9]  # a, accepted
    far = [4.0, 2.0, 3.0, 9.0]  # a, not accepted
    found = nearest_of(near, far, near, near, near)
    rates = identification.identification_rates(found, list("aabxy"), LABELS, 1.0)
    assert rates == {
        "one_shot_accuracy": pytest.approx(2 / 3),
        "right_and_accepted_rate": pytest.approx(1 / 3),
        "false_reject_rate": pytest.approx(1 / 3),
        "false_accept_rate": 1.0,
    }
    without = identification.identification_rates(nearest_of(near), ["a"], LABELS, 0.1)
    assert without == {
        "one_shot_accuracy": 1.0,
        "right_and_accepted_rate": 0.0,
        "false_reject_rate": 1.0,
    }


def test_strangers_are_images_without_their_own_class():
    points = np.array([0.0, 0.1, 5.0, 5.2])
    distances = np.abs(points[:, None] - points[None, :])
    assert identification.strangers_let_in(distances, LABELS, 1.0) == 0.5  # b and c
    assert identification.strangers_let_in(distances, LABELS, 5.0) == 1.0  # at most 5
    assert identification.strangers_let_in(distances, LABELS, 0.1) == 0.0


def line_distances(points):
    points = np.asarray(points, float)
    return np.abs(points[:, None] - points[None, :])


def test_the_gallery_threshold_by_hand():
    # Nearest classes of 29 points with growing gaps: 1 for the first two, then 2, 3, ...
    distances = line_distances(np.cumsum(np.arange(29)))
    labels = np.arange(29)

    def let_in(rate):
        threshold = identification.gallery_threshold(distances, labels, rate)
        return round(29 * identification.strangers_let_in(distances, labels, threshold))

    assert identification.gallery_threshold(distances, labels, 1.9 / 30) is None
    assert identification.smallest_gallery_rate(29) == pytest.approx(2 / 30)
    # at most rate * 30 - 2 of the classes
    assert let_in(2 / 30) == 0
    assert let_in(3 / 30) == 0  # the first two are equally near: both or none
    assert let_in(4 / 30) == 2
    assert let_in(5 / 30) == 3
    assert let_in(15 / 30) == 13


def test_in_a_gallery_a_class_counts_by_the_share_of_its_images():
    points = np.concatenate([np.arange(19) ** 2, [200.5, 201, 202]])  # near 14 ** 2
    labels = np.concatenate([np.arange(19), [19, 19, 19]])
    distances = line_distances(points)
    threshold = identification.gallery_threshold(distances, labels, 0.25)
    # 20 classes: at most 3.25 let in; distances 1, 1, 3, then 4.5 + 4.5 / 3
    assert 3 < threshold < 5


def test_equal_distances_are_all_kept_out():
    distances = np.where(np.eye(40, dtype=bool), 0, np.float32(0.7))
    threshold = identification.gallery_threshold(distances, np.arange(40), 0.5)
    assert identification.strangers_let_in(distances, np.arange(40), threshold) == 0
    copies = np.zeros((40, 40), np.float32)  # every image is in every class
    threshold = identification.gallery_threshold(copies, np.arange(40), 0.5)
    assert identification.strangers_let_in(copies, np.arange(40), threshold) == 0
    assert identification.is_within(np.float32([threshold]), threshold).all()


def random_vectors(rng, num):
    """One embedding for each class; half of the classes are crowded in five places."""
    x = rng.normal(size=(num, 8))
    crowds = 2 * rng.normal(size=(5, 8))
    x[: num // 2] = crowds[rng.integers(5, size=num // 2)] + 0.7 * x[: num // 2]
    return rng.permutation(x)


def cosine_distances(x, y):
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return np.float32(1 - x @ y.T)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_classes", "rate", "source"),
    [
        (10, 0.1, "pairs"),
        (10, 0.01, "pairs"),
        (19, 0.1, "gallery"),
        (100, 0.1, "gallery"),
        (100, 0.01, "pairs"),
        (199, 0.01, "gallery"),
        (500, 0.1, "gallery"),
        (500, 0.01, "gallery"),
    ],
)
def test_strangers_are_let_in_as_often_as_asked(num_classes, rate, source):
    rng, shares = np.random.default_rng(0), []
    for _ in range(100 if num_classes < 200 else 30):
        x = random_vectors(rng, num_classes + 400)
        gallery, strangers, others = np.split(x, [num_classes, num_classes + 200])
        pairs = cosine_distances(others, others)[np.triu_indices(200, 1)]
        calibration = calibrate(
            np.float32([0, 1]), np.array([True, False]), pairs="toy pairs", different=pairs
        )
        threshold, found = identification.stranger_threshold(
            calibration,
            cosine_distances(gallery, gallery),
            np.arange(num_classes),
            rate,
        )
        assert found == source
        nearest = cosine_distances(strangers, gallery).min(axis=1)
        shares.append(identification.is_within(nearest, threshold).mean())
    mean, error = np.mean(shares), np.std(shares) / np.sqrt(len(shares))
    assert rate / 1.5 - 3 * error <= mean <= rate + 3 * error


@pytest.mark.slow
def test_several_images_of_a_class_let_in_no_more_than_asked():
    rng, shares = np.random.default_rng(1), []
    for _ in range(60):
        x = np.repeat(random_vectors(rng, 200), 4, axis=0)
        x += 0.3 * rng.normal(size=x.shape)
        gallery, strangers = x[:240], x[240:]
        threshold = identification.gallery_threshold(
            cosine_distances(gallery, gallery), np.repeat(np.arange(60), 4), 0.1
        )
        nearest = cosine_distances(strangers, gallery).min(axis=1)
        shares.append(identification.is_within(nearest, threshold).mean())
    error = np.std(shares) / np.sqrt(60)
    assert 0.05 <= np.mean(shares) <= 0.1 + 3 * error


def test_what_makes_no_sense_is_refused():
    matrix = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"columns of distances, \(2, 4\); got shape \(3,"):
        identification.nearest_classes(matrix, list("abc"))
    with pytest.raises(ValueError, match="two classes or more; got one, a"):
        identification.nearest_classes(matrix, list("aaaa"))
    with pytest.raises(ValueError, match="two classes or more; got none"):
        identification.strangers_let_in(np.zeros((0, 0)), np.array([], str), 1.0)
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"false_accept_rate must be in \(0, 1\)"):
            identification.gallery_threshold(np.zeros((4, 4)), LABELS, rate)
    found = nearest_of([0.4, 0.2, 0.3, 0.9])
    with pytest.raises(ValueError, match="truth must have one class for each of 1 queries"):
        identification.identification_rates(found, ["a", "b"], LABELS, 1.0)
    with pytest.raises(ValueError, match="truth must have a class of the gallery"):
        identification.identification_rates(found, ["x"], LABELS, 1.0)
