"""Tests of losses from blocks of columns against the loss of the whole matrix."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import _folds, losses
from siamese_jax._totals import reduce_totals, totals
from siamese_jax.losses._direction import plain
from siamese_jax.reductions import mean, mean_and_count, mean_of_active, sum_terms

NUM_ROWS, CUTS = 6, [0, 2, 3, 7, 11]
LABELS = np.array([0, 0, 1, 1, 2, 3])
COLUMN_LABELS = np.array([0, 1, 0, 0, 1, 2, 4, 4, 1, 0, 2])  # none of class 3

FOLDS = {
    "supervised contrastive": (losses.supervised_contrastive_loss, {"temperature": 0.3}),
    "supervised contrastive inside": (
        functools.partial(losses.supervised_contrastive_loss, inside=True),
        {"temperature": 0.3},
    ),
    "info nce": (losses.info_nce_loss, {"temperature": 0.3}),
    "decoupled": (losses.decoupled_contrastive_loss, {"temperature": 0.3}),
    "sigmoid": (losses.sigmoid_pair_loss, {"scale": 2.0, "bias": -1.0}),
    "hard triplet": (losses.hard_triplet_loss, {"margin": 1.5}),
    "soft hard triplet": (
        functools.partial(losses.hard_triplet_loss, soft=True),
        {"margin": 0.1},
    ),
    "contrastive": (losses.contrastive_loss, {"margin": 1.5}),
    "contrastive apart": (
        functools.partial(losses.contrastive_loss, apart=True),
        {"margin": 1.5},
    ),
    "threshold": (losses.threshold_consistent_margin_loss, {"positive_margin": 0.3}),
}


KINDS = ["mixed", "nothing", "no positive", "one positive"]


def masks():
    """Same and where of each kind of matrix, stacked."""
    same = LABELS[:, None] == COLUMN_LABELS[None]
    where = np.random.default_rng(0).random(same.shape) < 0.8
    where[1] = False
    where[:, 4] = False
    kinds = {
        "mixed": (same, where),
        "nothing": (same, np.zeros_like(where)),
        "no positive": (np.zeros_like(same), where),
        "one positive": (np.eye(*same.shape, dtype=bool), np.ones_like(where)),
    }
    return tuple(jnp.asarray(np.stack(x)) for x in zip(*kinds.values(), strict=True))


def in_blocks(loss_fn, matrix, same, where, reduce_fn, *, one_sweep=False, **options):
    fn, _, given = plain(loss_fn)
    options = given | options
    fold = _folds.fold_of(fn)
    blocks = [
        (matrix[:, a:b], same[:, a:b], where[:, a:b]) for a, b in itertools.pairwise(CUTS)
    ]

    def sweep(pieces):
        states = [_folds.of_block(pieces(*block)) for block in blocks]
        return _folds.numbers(functools.reduce(_folds.combine, states))

    found = sweep(functools.partial(fold.pieces, **options))
    if fold.second and one_sweep:
        found |= fold.second_of_one(found, **options)
    elif fold.second:
        found |= sweep(lambda *block: fold.second(*block, found, **options))
    return reduce_totals(totals(fold.finish(found, **options)), reduce_fn)


def inputs(name):
    rng = np.random.default_rng(1)
    matrix = rng.uniform(-1, 1, size=(NUM_ROWS, CUTS[-1]))
    matrix[:, ::2] = matrix[:, :1]  # ties in and between blocks
    return matrix, FOLDS[name][1]


@pytest.mark.parametrize("name", FOLDS)
def test_blocks_give_the_loss_and_the_gradient_of_the_whole_matrix(name):
    loss_fn, _ = FOLDS[name]
    reductions = (mean, sum_terms, mean_of_active)

    def values_and_gradient(in_one_way):
        def weighted(arguments, masks):
            matrix, options = arguments
            values = [in_one_way(matrix, *masks, f, **options) for f in reductions]
            return jnp.dot(jnp.array([1.0, 0.3, 0.1]), jnp.stack(values)), values

        return jax.vmap(jax.value_and_grad(weighted, has_aux=True), (None, 0))

    def whole(matrix, same, where, reduce_fn, **options):
        return loss_fn(matrix, same, where=where, reduce_fn=reduce_fn, **options)

    @jax.jit
    def both(*args):
        blocks = functools.partial(in_blocks, loss_fn)
        return [values_and_gradient(in_one_way)(*args) for in_one_way in (blocks, whole)]

    with jax.enable_x64(True):
        found, wanted = both(jax.tree.map(jnp.asarray, inputs(name)), masks())
    assert np.abs(wanted[0][0]).max() > 0.01
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["info nce", "decoupled"])
def test_rows_with_one_positive_need_no_second_sweep(name):
    loss_fn, _ = FOLDS[name]
    same, where = (mask[KINDS.index("one positive")] for mask in masks())
    matrix, options = inputs(name)
    matrix = jnp.asarray(matrix, jnp.float32)
    one, two = (
        in_blocks(loss_fn, matrix, same, where, mean_and_count, one_sweep=x, **options)
        for x in (True, False)
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert two.num_terms == NUM_ROWS


def test_a_log_sum_exp_of_very_different_blocks_neither_overflows_nor_vanishes():
    values = jnp.array([[-1e4, -1e4, 3e4, 3e4], [-jnp.inf, 1.0, 2.0, jnp.nan]])
    where = jnp.array([[True, True, True, True], [False, False, False, True]])

    def found(order):
        pieces = [
            {"x": _folds.Piece(_folds.LogSumExp, values[:, k : k + 1], where[:, k : k + 1])}
            for k in order
        ]
        return _folds.numbers(
            functools.reduce(_folds.combine, map(_folds.of_block, pieces))
        )["x"]

    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        np.testing.assert_allclose(found(order), [3e4 + np.log(2), np.nan], rtol=1e-7)
