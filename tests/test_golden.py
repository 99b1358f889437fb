"""Tests of losses and miners against pytorch-metric-learning.

Its values are made by golden/make_pytorch_metric_learning.py.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import distances, losses, reductions, relations

GOLDEN = json.loads(
    (Path(__file__).parent / "golden" / "pytorch_metric_learning.json").read_text()
)
MATRIX_FNS = {
    "euclidean": distances.euclidean_distance_matrix,
    "squared_euclidean": distances.squared_euclidean_distance_matrix,
    "manhattan": distances.manhattan_distance_matrix,
    "lp_3": partial(distances.lp_distance_matrix, order=3),
    "cosine_similarity": distances.cosine_similarity_matrix,
    "dot_similarity": distances.dot_similarity_matrix,
}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def assert_agrees(ours, theirs):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=0)


def matrix_of(fn):
    embeddings = jnp.array(GOLDEN["embeddings"])
    return fn(embeddings, embeddings)


def relation():
    return relations.within(relations.Items(jnp.array(GOLDEN["labels"])))


def with_gaps(numbers):
    """The array, and where it has no null."""
    array = np.array(numbers, dtype=np.float64)
    return np.nan_to_num(array), ~np.isnan(array)


def cases(name, *parameters):
    """Each golden case, named by its parameters."""
    return pytest.mark.parametrize(
        "case",
        GOLDEN[name],
        ids=lambda case: "-".join(f"{key}={case[key]}" for key in parameters),
    )


@pytest.mark.parametrize("name", MATRIX_FNS)
def test_matrices(name):
    assert_agrees(matrix_of(MATRIX_FNS[name]), GOLDEN["matrices"][name])


@pytest.mark.parametrize("order", [1, 2])
def test_lp_distance_of_the_named_orders(order):
    theirs = GOLDEN["matrices"][{1: "manhattan", 2: "euclidean"}[order]]
    assert_agrees(matrix_of(partial(distances.lp_distance_matrix, order=order)), theirs)


@cases("contrastive", "positive_margin", "margin")
def test_contrastive_loss_is_their_hinges_squared(case):
    positive_hinges, positive = with_gaps(case["positive_hinges"])
    negative_hinges, negative = with_gaps(case["negative_hinges"])
    same, where = relation()
    np.testing.assert_array_equal(same & where, positive)
    np.testing.assert_array_equal(~same & where, negative)

    loss_fn = partial(
        losses.contrastive_loss,
        matrix_of(distances.euclidean_distance_matrix),
        same,
        margin=case["margin"],
        positive_margin=case["positive_margin"],
        where=where,
    )
    squares = positive_hinges**2 + negative_hinges**2  # one of the two is 0
    assert_agrees(loss_fn(factor=1.0, reduce_fn=None).values, squares)
    assert_agrees(loss_fn(), 0.5 * squares.sum() / (positive | negative).sum())


@cases("triplet", "margin")
@pytest.mark.parametrize(("active_only", "key"), [(False, "all"), (True, "all_active")])
def test_all_triplets_loss(case, active_only, key):
    same, where = relation()
    matrix = matrix_of(distances.euclidean_distance_matrix)
    loss = losses.all_triplets_loss(
        matrix, same, margin=case["margin"], active_only=active_only, where=where
    )
    assert_agrees(loss, case[key])


@cases("triplet", "margin")
def test_hard_triplet_loss(case):
    same, where = relation()
    matrix = matrix_of(distances.euclidean_distance_matrix)
    loss_fn = partial(
        losses.hard_triplet_loss, matrix, same, margin=case["margin"], where=where
    )
    assert_agrees(loss_fn(), case["hard"])
    per_anchor, counted = with_gaps(case["hard_per_anchor"])
    terms = loss_fn(reduce_fn=None)
    np.testing.assert_array_equal(terms.where, counted)
    assert_agrees(terms.values, per_anchor)


@cases("supervised_contrastive", "temperature")
def test_supervised_contrastive_loss(case):
    same, where = relation()
    similarities = matrix_of(distances.cosine_similarity_matrix)
    terms = losses.supervised_contrastive_loss(
        similarities, same, temperature=case["temperature"], where=where, reduce_fn=None
    )
    assert_agrees(terms.values, case["per_anchor"])
    assert_agrees(reductions.mean(terms), case["mean_of_positive"])
    assert_agrees(reductions.sum_terms(terms) / len(terms.values), case["mean_of_all"])
