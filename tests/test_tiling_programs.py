"""Tests of what programs with tiled losses need: closures, types, devices and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from siamese_jax import distances, losses, reductions, relations, tiling
from siamese_jax.relations import Items
from tests.tiles import (
    COSINES,
    DIM,
    EUCLIDEAN,
    M,
    N,
    assert_close,
    dense,
    first_batch,
    tiled,
    value_and_gradient,
)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss_fn", "matrix_fn"),
    [
        (losses.both_directions(losses.info_nce_loss), distances.dot_similarity_matrix),
        (losses.sigmoid_pair_loss, COSINES),
        (functools.partial(losses.contrastive_loss, apart=True), EUCLIDEAN),
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

    small, large = temporaries(2048), temporaries(8192)
    assert large < 4.5 * small
    assert large < 8192**2 * 4 / 16  # of one matrix
