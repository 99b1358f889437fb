"""Tests of losses in tiles against the losses of the whole matrix."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from siamese_jax import distances, losses, reductions, relations, tiling
from siamese_jax._numerics import Margin, Scalar
from siamese_jax._reach import ENTRY_WISE, ROW_WISE, WHOLE_MATRIX, plain
from siamese_jax.relations import Items
from tests.cases import CASES, Kind, Reach
from tests.contract import as_for_a_user

COSINES = distances.cosine_similarity_matrix
EUCLIDEAN = distances.euclidean_distance_matrix
N, M, DIM = 11, 8, 3


class Batch(NamedTuple):
    """Two sets with labels; some rows are not valid, and three ids are in both."""

    embeddings: np.ndarray | jax.Array
    columns: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
    column_labels: np.ndarray | jax.Array
    valid: np.ndarray | jax.Array


def batches():
    """Several batches, stacked: ordinary, one class, no positive, one positive, nothing."""
    rng = np.random.default_rng(0)
    labels, column_labels = rng.integers(0, 3, N), rng.integers(0, 3, M)
    valid = np.arange(N) != 4
    kinds = [
        (labels, column_labels, valid),
        (np.zeros(N, int), np.zeros(M, int), valid),
        (np.zeros(N, int), np.ones(M, int), valid),
        (np.arange(N), np.arange(M), valid),
        (labels, column_labels, np.zeros(N, bool)),
    ]
    a, b = rng.normal(size=(5, N, DIM)), rng.normal(size=(5, M, DIM))
    b[:, 2] = b[:, 1]  # ties
    columns = (np.stack(x) for x in zip(*kinds, strict=True))
    return Batch(a, b, *columns)


def batch_of_kind(number):
    return jax.tree.map(lambda x: x[number], batches())


def first_batch():
    return jax.tree.map(jnp.asarray, batch_of_kind(0))


def items_of(batch):
    rows = Items(batch.labels, jnp.arange(N), batch.valid)
    return rows, Items(batch.column_labels, jnp.arange(M) + N - 3)


def dense(loss_fn, matrix_fn):
    def loss(batch, options, **more):
        same, where = relations.between(*items_of(batch))
        matrix = matrix_fn(batch.embeddings, batch.columns)
        return loss_fn(matrix, same, where=where, **options, **more)

    return loss


def tiled(loss_fn, matrix_fn, tile_size):
    in_tiles = tiling.tiled(loss_fn, matrix_fn, tile_size=tile_size)

    def loss(batch, options, **more):
        rows, columns = items_of(batch)
        return in_tiles(batch.embeddings, rows, batch.columns, columns, **options, **more)

    return loss


def value_and_gradient(loss):
    """By embeddings, columns and options."""

    def of_numbers(numbers, batch):
        a, b, options = numbers
        return loss(batch._replace(embeddings=a, columns=b), options)

    def run(batch, options):
        numbers = (batch.embeddings, batch.columns, options)
        return jax.value_and_grad(of_numbers)(numbers, batch)

    return run


def assert_close(found, wanted, rtol=1e-12, atol=1e-13):
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


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
    options = learnable(loss_fn)
    assert_same_loss(
        loss_fn, matrix_fn, options, first_batch(), 1, 5, 11, 12, stacked=False
    )


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


# What is closed over, traced, and of what type -------------------------------------------


@pytest.mark.parametrize("both", [False, True])
def test_a_learned_matrix_has_its_gradient(both):
    loss_fn = losses.supervised_contrastive_loss
    loss_fn = losses.both_directions(loss_fn) if both else loss_fn
    batch = first_batch()

    def loss(form, scales):
        return form(loss_fn, lambda a, b: COSINES(a * scales, b))(batch, {})

    forms = dense, functools.partial(tiled, tile_size=4)
    with jax.default_matmul_precision("highest"):
        wanted, found = (
            jax.jit(jax.value_and_grad(functools.partial(loss, form)))(jnp.ones((1, DIM)))
            for form in forms
        )
    assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_labels_that_the_relation_closes_over_may_be_mapped():
    batch = first_batch()

    def loss(form, labels):
        def relation_fn(rows, columns):
            same = labels[rows.labels] == labels[columns.labels].T
            return same, jnp.ones(same.shape, bool)

        return form(relation_fn)

    def dense_form(relation_fn):
        places = Items(jnp.arange(N)[:, None]), Items(jnp.arange(M)[:, None])
        same, where = relation_fn(*places)
        return losses.contrastive_loss(
            EUCLIDEAN(batch.embeddings, batch.columns), same, where=where
        )

    def tiled_form(relation_fn):
        places = Items(jnp.arange(N)[:, None]), Items(jnp.arange(M)[:, None])
        in_tiles = tiling.tiled(
            losses.contrastive_loss, EUCLIDEAN, relation_fn=relation_fn, tile_size=4
        )
        return in_tiles(batch.embeddings, places[0], batch.columns, places[1])

    labels = jnp.asarray(np.random.default_rng(2).integers(0, 2, (3, N)))
    wanted, found = (
        jax.vmap(functools.partial(loss, form))(labels) for form in (dense_form, tiled_form)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len(set(np.asarray(wanted))) == 3


def test_a_second_call_is_not_traced():
    calls = []

    def counted(a, b):
        calls.append(a.shape)
        return COSINES(a, b)

    loss_fn = tiled(losses.both_directions(losses.info_nce_loss), counted, 4)
    step = jax.jit(value_and_gradient(loss_fn))
    batch = first_batch()
    step(batch, {"temperature": jnp.array(0.1)})
    num_calls = len(calls)
    step(batch, {"temperature": jnp.array(0.2)})
    assert len(calls) == num_calls
    assert {shape[0] for shape in calls} == {4}


def test_gradients_come_back_in_the_type_of_the_embeddings():
    batch = first_batch()
    a, b = (x.astype(jnp.bfloat16) for x in batch[:2])
    loss_fn = losses.supervised_contrastive_loss
    runs = (
        value_and_gradient(f) for f in (dense(loss_fn, COSINES), tiled(loss_fn, COSINES, 4))
    )
    wanted, found = (
        jax.jit(run)(batch._replace(embeddings=a, columns=b), {}) for run in runs
    )
    assert found[0].dtype == jnp.float32
    assert found[1][1].dtype == jnp.bfloat16
    assert_close(
        *(jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in (found, wanted)),
        rtol=1e-2,
        atol=1e-4,
    )


def test_nan_is_not_silent():
    batch = first_batch()
    batch = batch._replace(columns=batch.columns.at[3, 0].set(jnp.nan))
    loss_fn = losses.both_directions(losses.info_nce_loss)
    assert np.isnan(jax.jit(tiled(loss_fn, COSINES, 4))(batch, {}))


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_tiles_within_a_shard(check_vma):
    """Rows of one device, columns of all: sums and gradients are those of one device."""
    rng = np.random.default_rng(3)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    embeddings = jnp.asarray(rng.normal(size=(10, DIM)), jnp.float32)
    labels, ids = jnp.asarray(rng.integers(0, 3, 10)), jnp.arange(10)
    both = losses.both_directions(losses.supervised_contrastive_loss)
    for loss_fn in (losses.supervised_contrastive_loss, both):
        in_tiles = tiling.tiled(loss_fn, COSINES, tile_size=2)

        def on_device(embeddings, labels, ids, temperature, in_tiles=in_tiles):
            every = functools.partial(jax.lax.all_gather, axis_name="d", tiled=True)
            columns = jax.lax.stop_gradient(every(embeddings))
            items, column_items = Items(labels, ids), Items(every(labels), every(ids))
            total = in_tiles(
                *(embeddings, items, columns, column_items),
                temperature=temperature,
                reduce_fn=reductions.sum_terms,
            )
            return jax.lax.psum(total, "d")

        spread = PartitionSpec("d")
        on_devices = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(spread, spread, spread, PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )

        def on_one(embeddings, labels, ids, temperature, loss_fn=loss_fn):
            columns = jax.lax.stop_gradient(embeddings)
            parts = []
            for k in (slice(0, 5), slice(5, 10)):
                same, where = relations.between(
                    Items(labels[k], ids[k]), Items(labels, ids)
                )
                parts.append(
                    loss_fn(
                        COSINES(embeddings[k], columns),
                        same,
                        where=where,
                        temperature=temperature,
                        reduce_fn=reductions.sum_terms,
                    )
                )
            return sum(parts)

        args = (embeddings, labels, ids, jnp.array(0.3))
        found, wanted = (
            jax.jit(jax.value_and_grad(fn, argnums=(0, 3)))(*args)
            for fn in (on_devices, on_one)
        )
        assert_close(found, wanted, rtol=1e-5, atol=1e-5)


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


# Memory ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss_fn", "matrix_fn"),
    [
        (losses.both_directions(losses.info_nce_loss), distances.dot_similarity_matrix),
        (losses.sigmoid_pair_loss, COSINES),
        (SINGLE["contrastive apart"], EUCLIDEAN),
    ],
    ids=["both directions", "in the forward sweep", "recomputed"],
)
def test_memory_grows_linearly(loss_fn, matrix_fn):
    in_tiles = tiling.tiled(loss_fn, matrix_fn, tile_size=32)

    def temporaries(n):
        items = Items(jnp.arange(n))
        run = jax.jit(jax.value_and_grad(lambda a, b: in_tiles(a, items, b, items), (0, 1)))
        shape = jax.ShapeDtypeStruct((n, 16), jnp.float32)
        return run.lower(shape, shape).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(512), temporaries(2048)
    assert large < 4.5 * small
    assert large < 2048**2 * 4 / 4  # a quarter of one matrix
