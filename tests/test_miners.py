"""Tests of miners that draw, and of NaN among distances, which masks keep.

What the others choose is in `tests/cases/miners.py`.
"""

import functools

import jax
import numpy as np
import pytest

from siamese_jax import miners

NUM_POSITIVES = 4000
NEGATIVES = np.array([0.2, 0.5, 0.9, 1.2, 1.39, 1.5], np.float32)


def one_anchor():
    """A row of many positives, each of which draws a negative, and the negatives."""
    row = np.concatenate([np.full(NUM_POSITIVES, 0.7, np.float32), NEGATIVES])
    return row[None], np.arange(len(row))[None] < NUM_POSITIVES


@pytest.mark.parametrize("dim", [8, 2])
def test_negatives_are_drawn_evenly_over_distances(dim):
    matrix, same = one_anchor()
    draw = jax.jit(functools.partial(miners.distance_weighted_negatives, dim=dim))
    mined = draw(jax.random.key(0), matrix, same)
    np.testing.assert_array_equal(mined.where, same)
    chosen = np.asarray(mined.indices)[same]
    np.testing.assert_array_equal(np.asarray(mined.distances)[same], matrix[0, chosen])
    clipped = np.maximum(NEGATIVES.astype(np.float64), 0.5)
    density = clipped ** (dim - 2) * (1 - clipped**2 / 4) ** ((dim - 3) / 2)
    wanted = np.where(NEGATIVES < 1.4, 1 / density, 0)
    shares = np.bincount(chosen - NUM_POSITIVES, minlength=6) / NUM_POSITIVES
    np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=0.03)


def test_histogram_weights_draw_as_often_from_each_bin():
    rng = np.random.default_rng(0)
    matrix = rng.beta(2, 9, size=(20, 20)).astype(np.float32)
    same, where = rng.random((20, 20)) < 0.4, rng.random((20, 20)) < 0.9
    counts = {"num_bins": 5, "num_positives": 7, "num_negatives": 3}
    draw = jax.jit(functools.partial(miners.uniform_histogram_weights, **counts))
    weights = np.asarray(draw(jax.random.key(0), matrix, same, where=where))
    assert not weights[~where].any()
    for side, num in ((same & where, 7), (~same & where, 3)):
        edges = np.linspace(matrix[side].min(), matrix[side].max(), 6)
        bins = np.clip(np.searchsorted(edges, matrix, side="right") - 1, 0, 4)
        for number in range(5):
            inside = side & (bins == number)
            assert weights[inside].sum() == (num if inside.any() else 0)


@pytest.mark.parametrize(
    "mask_fn",
    [
        miners.pair_margin_mask,
        miners.multi_similarity_mask,
        functools.partial(miners.nearest_mask, num_positives=1, num_negatives=1),
        miners.hardest_share_mask,
        miners.false_negative_mask,
    ],
    ids=lambda fn: getattr(fn, "__name__", "nearest_mask"),
)
def test_masks_keep_what_is_nan(mask_fn):
    """So that the loss is NaN, too."""
    matrix = np.array([[0.1, 0.5, np.nan, 0.9], [0.1, np.nan, 0.3, 0.9]], np.float32)
    same = np.array([[True, True, False, False]] * 2)
    assert np.asarray(jax.jit(mask_fn)(matrix, same))[np.isnan(matrix)].all()
