"""Tests of the agreement of clusters with classes."""

import math

import numpy as np
import pytest

from siamese_jax.evaluation import cluster_agreement
from siamese_jax.evaluation.whole import _cluster_figures

POINTS = np.repeat([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], 4, axis=0)
POINTS = POINTS + np.random.default_rng(0).normal(scale=0.1, size=POINTS.shape)


def test_clusters_that_are_the_classes_agree_wholly():
    found = cluster_agreement(POINTS, np.repeat([7, 3, 5], 4))
    assert found == (pytest.approx(1), pytest.approx(1), 3)


def test_agreement_by_hand():
    # two clusters of four, of which one holds half of each class: I = 0
    labels = np.array([0, 0, 1, 1] * 2)
    found = cluster_agreement(POINTS[:8], labels)
    assert found.normalized_mutual_information == pytest.approx(0, abs=1e-9)
    assert found.adjusted_mutual_information < 0
    # three clusters of four, of which the first is split: I / mean(H of 3, H of labels)
    labels = np.array([0, 0, 1, 1, *[1] * 4, *[2] * 4])
    shares = np.array([2, 6, 4]) / 12
    entropies = math.log(3), -sum(p * math.log(p) for p in shares)
    joint = -sum(p * math.log(p) for p in (1 / 6, 1 / 6, 1 / 3, 1 / 3))
    information = sum(entropies) - joint
    found = cluster_agreement(POINTS, labels)
    wanted = 2 * information / sum(entropies)
    assert found.normalized_mutual_information == pytest.approx(wanted)
    assert found.adjusted_mutual_information < wanted


@pytest.mark.parametrize("spread", [0, 1e-20])
def test_fewer_distinct_rows_than_classes_have_a_reason_and_no_warning(spread):
    embeddings = np.float32(np.ones((12, 2)) + spread * POINTS)
    embeddings[0] = 5
    labels = np.repeat([7, 3, 5], 4)
    found = cluster_agreement(embeddings, labels)  # a warning would be an error
    assert np.isnan(found[:2]).all()
    assert found.num_clusters == 3
    for figure in _cluster_figures(embeddings, labels, False, 0, []).values():
        assert figure.value is None
        assert figure.why == "the embeddings have fewer than 3 distinct rows"
    embeddings[1] = 9  # three distinct rows are enough
    assert np.isfinite(cluster_agreement(embeddings, labels)[:2]).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="labels must have one class for each of 12"):
        cluster_agreement(POINTS, np.zeros(3, int))
    with pytest.raises(ValueError, match="embeddings must be finite"):
        cluster_agreement(POINTS * np.nan, np.zeros(12, int))
