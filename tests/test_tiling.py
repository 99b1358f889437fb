"""Tests of losses in tiles against the losses of the whole matrix."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import losses, reductions, tiling
from siamese_jax._numerics import Margin, Scalar
from siamese_jax._reach import ENTRY_WISE, ROW_WISE, WHOLE_MATRIX
from siamese_jax.losses._direction import plain
from siamese_jax.relations import Items
from tests.cases import CASES, Kind, Reach
from tests.contract import as_for_a_user
from tests.tiles import (
    COSINES,
    EUCLIDEAN,
    M,
    N,
    assert_close,
    batch_of_kind,
    batches,
    dense,
    first_batch,
    items_of,
    tiled,
    value_and_gradient,
)


def assert_same_loss(loss_fn, matrix_fn, options, batch, *tile_sizes, stacked=True):
    """In float64, with the options as arrays that have gradients."""

    def run(batch, options):
        forms = [dense(loss_fn, matrix_fn)]
        forms += [tiled(loss_fn, matrix_fn, size) for size in tile_sizes]
        return [value_and_gradient(form)(batch, options) for form in forms]

    with jax.enable_x64(True):
        batch, options = jax.tree.map(jnp.asarray, (batch, options))
        run = jax.vmap(run, (0, None)) if stacked else run
        wanted, *found = jax.jit(run)(batch, options)
    assert np.any(np.abs(wanted[0]) > 1e-3)
    for one in found:
        assert_close(one, wanted)


def learnable(loss_fn):
    """The options of a loss that may be learnt, with their defaults."""
    parameters = inspect.signature(plain(loss_fn).fn).parameters
    return {
        name: np.float64(parameter.default)
        for name, parameter in parameters.items()
        if any(parameter.annotation is kind for kind in (Scalar, Margin))
    }


def matrix_fn_of(loss_fn):
    first = next(iter(inspect.signature(plain(loss_fn).fn).parameters))
    return EUCLIDEAN if first == "distances" else COSINES


SINGLE = {loss_fn.__name__: loss_fn for loss_fn in ENTRY_WISE | ROW_WISE} | {
    "contrastive apart": functools.partial(losses.contrastive_loss, apart=True),
    "supervised inside": functools.partial(losses.supervised_contrastive_loss, inside=True),
    "all triplets soft": functools.partial(losses.all_triplets_loss, soft=True),
    "active triplets": functools.partial(losses.all_triplets_loss, active_only=True),
}
BOTH = {
    "info_nce": losses.info_nce_loss,
    "decoupled": losses.decoupled_contrastive_loss,
    "supervised": losses.supervised_contrastive_loss,
    "supervised inside": SINGLE["supervised inside"],
    "sigmoid": losses.sigmoid_pair_loss,
    "contrastive apart": SINGLE["contrastive apart"],
    "hard triplet": losses.hard_triplet_loss,
    "multi similarity": losses.multi_similarity_loss,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SINGLE))
def test_value_and_gradient_are_those_of_the_matrix(name):
    loss_fn = SINGLE[name]
    assert_same_loss(loss_fn, matrix_fn_of(loss_fn), learnable(loss_fn), batches(), 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_both_directions_are_those_of_the_matrix(name):
    loss_fn = losses.both_directions(BOTH[name])
    assert_same_loss(loss_fn, matrix_fn_of(loss_fn), learnable(loss_fn), batches(), 4)


@pytest.mark.slow
@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("name", ["info_nce", "decoupled"])
def test_columns_of_one_positive_and_of_several(name, several):
    # without vmap, which would compute both cases
    batch = batch_of_kind(0 if several else 3)
    loss_fn = losses.both_directions(BOTH[name])
    assert_same_loss(loss_fn, COSINES, learnable(loss_fn), batch, 4, stacked=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss_fn",
    [losses.semi_hard_triplet_loss, losses.both_directions(losses.info_nce_loss)],
    ids=["row-wise", "both directions"],
)
def test_any_size_of_tiles(loss_fn):
    matrix_fn = matrix_fn_of(loss_fn)
    batch, options = batch_of_kind(0), learnable(loss_fn)
    assert_same_loss(loss_fn, matrix_fn, options, batch, 1, 5, 12, stacked=False)


def test_a_batch_with_itself_in_float32():
    batch = first_batch()
    embeddings = batch.embeddings.astype(jnp.float32)
    loss_fn = losses.supervised_contrastive_loss
    in_tiles = tiling.tiled(loss_fn, COSINES, tile_size=4)

    def whole(embeddings):
        return losses.on_labels(loss_fn, COSINES)(embeddings, batch.labels, batch.valid)

    def tiles(embeddings):
        return in_tiles(embeddings, Items(batch.labels, valid=batch.valid))

    found, wanted = (jax.jit(jax.value_and_grad(f))(embeddings) for f in (tiles, whole))
    assert_close(found, wanted, rtol=3e-6, atol=3e-7)


def test_nt_xent_is_info_nce_of_both_views():
    a, b = (x[:M] for x in first_batch()[:2])
    in_tiles = tiling.tiled(losses.info_nce_loss, COSINES, tile_size=5)

    def tiles(views):
        return in_tiles(jnp.concatenate(views), Items(jnp.tile(jnp.arange(M), 2)))

    found = jax.jit(jax.value_and_grad(tiles))((a, b))
    wanted = jax.jit(jax.value_and_grad(lambda views: losses.nt_xent_loss(*views)))((a, b))
    assert_close(found, wanted, rtol=3e-6, atol=3e-7)


REDUCTIONS = [
    reductions.mean,
    reductions.sum_terms,
    reductions.mean_of_active,
    reductions.mean_and_count,
]


@pytest.mark.parametrize("name", ["semi_hard_triplet_loss", "contrastive apart"])
def test_reductions_are_of_all_terms(name):
    loss_fn = SINGLE[name]
    forms = dense(loss_fn, EUCLIDEAN), tiled(loss_fn, EUCLIDEAN, 3)

    @jax.jit
    def run(batch):
        return [[form(batch, {}, reduce_fn=fn) for fn in REDUCTIONS] for form in forms]

    with jax.enable_x64(True):
        wanted, found = run(first_batch())
    assert isinstance(found[3], reductions.MeanAndCount)
    assert_close(found, wanted)
    assert len({float(x) for x in wanted[:3]}) == 3


@pytest.mark.slow
def test_weights_and_margins_of_rows_are_cut_with_the_rows():
    rng = np.random.default_rng(1)
    of_rows = {"weights": rng.uniform(size=N), "margin": rng.uniform(size=N)}
    check = functools.partial(assert_same_loss, stacked=False)
    check(losses.hard_triplet_loss, EUCLIDEAN, of_rows, batch_of_kind(0), 4)
    of_entries = {
        "weights": rng.uniform(size=(N, M)),
        "margin": rng.uniform(size=(N, 1)),
        "positive_margin": rng.uniform(size=(1, M)) / 2,
    }
    check(losses.contrastive_loss, EUCLIDEAN, of_entries, batch_of_kind(0), 4)


def test_unreduced_terms_are_those_of_the_anchors():
    loss_fn = losses.supervised_contrastive_loss
    batch = first_batch()
    forms = tiled(loss_fn, COSINES, 4), dense(loss_fn, COSINES)
    run = jax.jit(lambda batch: [form(batch, {}, reduce_fn=None) for form in forms])
    found, wanted = run(batch)
    assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert found.values.shape == (N,)


# Refusals --------------------------------------------------------------------------------


def test_the_reach_of_losses_is_as_declared_for_the_contracts():
    matrices = [case for case in CASES if case.kind is Kind.MATRIX_LOSS]
    matrices = [case for case in matrices if case.fn in vars(losses).values()]
    entries = [
        case for case in CASES if case.kind is Kind.PAIR_LOSS and case.reach is Reach.ENTRY
    ]
    assert {case.fn for case in entries} == ENTRY_WISE
    assert {case.fn for case in matrices if case.reach is Reach.ROW} == ROW_WISE
    assert {case.fn for case in matrices if case.reach is Reach.WHOLE} == WHOLE_MATRIX


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (losses.lifted_structure_loss, "lifted_structure_loss needs the whole matrix"),
        (losses.both_directions(losses.angular_loss), "angular_loss needs the whole"),
        (functools.partial(losses.all_triplets_loss, swap=True), "swap=True needs the"),
        (losses.quadruplet_loss, "quadruplet_loss is not a loss of a matrix"),
        (losses.nt_xent_loss, "take info_nce_loss of both views"),
    ],
)
def test_a_loss_of_the_whole_matrix_is_refused_by_name(loss_fn, words):
    with pytest.raises(ValueError, match=words):
        tiling.tiled(loss_fn, COSINES)


def test_wrong_calls_are_refused():
    batch = first_batch()
    rows, columns = items_of(batch)
    a, b = batch[:2]
    swapped = tiling.tiled(losses.all_triplets_loss, EUCLIDEAN)
    with pytest.raises(ValueError, match="swap=True needs the whole matrix"):
        swapped(a, rows, swap=True)
    both = tiling.tiled(losses.both_directions(losses.info_nce_loss), COSINES)
    for reduce_fn in (None, reductions.mean_and_count):
        with pytest.raises(ValueError, match="reduce_fn must return a number"):
            both(a, rows, reduce_fn=reduce_fn)
    with pytest.raises(ValueError, match="weights must be None"):
        both(a, rows, weights=jnp.ones(N))
    with pytest.raises(ValueError, match="must be given together"):
        both(a, rows, b)
    with as_for_a_user(), pytest.raises(TypeError, match="items must be Items"):
        both(a, batch.labels)
    with pytest.raises(ValueError, match="column_items must have 8 places"):
        both(a, rows, b, rows)
    with pytest.raises(ValueError, match="tile_size must be at least 1; got 0"):
        tiling.tiled(losses.info_nce_loss, COSINES, tile_size=0)
    twice = tiling.tiled(
        lambda *args, **options: 2 * losses.info_nce_loss(*args, **options), COSINES
    )
    with pytest.raises((ValueError, TypeError)):
        twice(a, rows, b, columns)
