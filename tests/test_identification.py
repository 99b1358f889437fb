"""Tests of nearest classes, thresholds and rates against values computed by hand."""

import numpy as np
import pytest

from siamese_jax import identification

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


def test_comparisons_together_let_in_the_rate():
    for num_classes in (1, 2, 30):
        rate = identification.comparison_rate(0.1, num_classes)
        assert 1 - (1 - rate) ** num_classes == pytest.approx(0.1)


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
            identification.comparison_rate(rate, 2)
    with pytest.raises(ValueError, match="num_classes must be at least 1; got 0"):
        identification.comparison_rate(0.1, 0)
    found = nearest_of([0.4, 0.2, 0.3, 0.9])
    with pytest.raises(ValueError, match="truth must have one class for each of 1 queries"):
        identification.identification_rates(found, ["a", "b"], LABELS, 1.0)
    with pytest.raises(ValueError, match="truth must have a class of the gallery"):
        identification.identification_rates(found, ["x"], LABELS, 1.0)
