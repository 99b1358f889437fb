"""Tests of memory queues: order, exclusion, devices, checkpoints and moving averages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as Spec

from experiments.engine import checkpoints
from siamese_jax import distances, losses, memory, relations, training
from siamese_jax.relations import Items
from tests.cases.memory import batch
from tests.oracles import memory as oracles

push = jax.jit(memory.push)


def in_order(queue):
    """What a queue holds as `(embedding, label, id)`, the oldest first."""
    embeddings, labels, ids, valid = (
        np.roll(np.asarray(leaf), -int(queue.position), axis=0).tolist()
        for leaf in (queue.embeddings, *queue.items)
    )
    rows = zip(embeddings, labels, ids, valid, strict=True)
    return [(tuple(x), label, id_) for x, label, id_, held in rows if held]


@pytest.mark.parametrize("num_rows", [1, 3, 5, 12], ids=lambda n: f"batches of {n}")
def test_a_queue_holds_the_last_valid_items_in_order(num_rows):
    rng = np.random.default_rng(num_rows)
    queue, pushed = memory.make_queue(5, 2), []
    assert in_order(queue) == []
    for _ in range(12):
        pushed.append(batch(rng, num_rows))
        queue = push(queue, *pushed[-1])
        assert in_order(queue) == oracles.last_items(pushed, 5)
    assert int(queue.items.valid.sum()) == 5


def test_the_queue_keeps_its_types_and_takes_items_as_they_come():
    queue = memory.make_queue(3, 2, dtype=jnp.bfloat16)
    after = memory.push(queue, jnp.ones((2, 2)), Items([4, 5], ids=jnp.arange(2)))
    for found, wanted in zip(*map(jax.tree.leaves, (after, queue)), strict=True):
        assert found.dtype == wanted.dtype
        assert found.weak_type == wanted.weak_type
    assert after.items.labels.tolist() == [4, 5, 0]

    sets = Items(jnp.eye(2, dtype=bool), ids=jnp.arange(2))
    queue = memory.push(memory.make_queue(3, 2, like=sets), jnp.ones((2, 2)), sets)
    same, where = relations.between(sets, queue.items, same_fn=relations.shared_label)
    assert same[:, :2].tolist() == np.eye(2, dtype=bool).tolist()
    assert where.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.slow
def test_a_loss_over_batch_and_queue_is_that_of_all_columns_without_their_gradient():
    rng = np.random.default_rng(0)
    queue = memory.make_queue(8, 2)
    earlier, items = batch(rng, 4)
    queue = push(queue, earlier, items._replace(valid=None, ids=jnp.arange(4)))
    embeddings, items = batch(rng, 4)
    items = items._replace(valid=None, ids=10 + jnp.arange(4))

    def loss(embeddings, queue):
        columns = memory.joined(queue, embeddings, items)
        same, where = relations.between(items, columns.items)
        matrix = distances.cosine_similarity_matrix(embeddings, columns.embeddings)
        return losses.supervised_contrastive_loss(matrix, same, where=where)

    def plain(embeddings, earlier):
        """Eight items without a queue; the last four are no anchors."""
        both = jnp.concatenate([embeddings, earlier])
        labels = jnp.concatenate([items.labels, queue.items.labels[:4]])
        same, where = relations.within(relations.Items(labels))
        matrix = distances.cosine_similarity_matrix(both, both)
        return losses.supervised_contrastive_loss(matrix[:4], same[:4], where=where[:4])

    def pushed(embeddings):
        return jnp.sum(memory.push(queue, embeddings, items).embeddings ** 2)

    found, wanted, of_queue, of_push = jax.jit(
        lambda embeddings, earlier: (
            jax.value_and_grad(loss)(embeddings, queue),
            jax.value_and_grad(plain)(embeddings, earlier),
            jax.grad(lambda held: loss(embeddings, queue._replace(embeddings=held)))(
                queue.embeddings
            ),
            jax.grad(pushed)(embeddings),
        )
    )(embeddings, earlier)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5, atol=1e-7)
    assert not of_queue.any()
    assert not of_push.any()


def test_the_batch_itself_in_the_queue_is_not_compared():
    embeddings, items = jnp.ones((2, 1)), Items(jnp.array([1, 1]), ids=jnp.array([7, 8]))
    queue = push(memory.make_queue(3, 1), embeddings, items)
    where = relations.between(items, queue.items).where
    assert where.tolist() == [[False, True, False], [True, False, False]]
    columns = memory.joined(queue, embeddings, items).items
    where = relations.between(items, columns).where
    others = [[False, True], [True, False]]
    assert where.tolist() == [[*row, *row, False] for row in others]


# Devices -------------------------------------------------------------------------------


def _on_two_devices(mode):
    """`push` with the batch on two devices and the queue on both."""
    gathering = partial(memory.push, axis_name="devices")
    if mode == "pmap":

        def of_pmap(queue, *rows):
            halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), rows)
            mapped = jax.pmap(
                gathering, axis_name="devices", in_axes=(None, 0, 0), out_axes=0
            )
            both = mapped(queue, *halves)
            for leaf in jax.tree.leaves(both):
                np.testing.assert_array_equal(leaf[0], leaf[1])
            return jax.tree.map(lambda leaf: leaf[0], both)

        return of_pmap
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, Spec("devices"))
    if mode == "jit":
        return lambda queue, *batch: push(queue, *jax.device_put(batch, rows))
    return jax.jit(
        jax.shard_map(
            gathering,
            mesh=mesh,
            in_specs=(Spec(), Spec("devices"), Spec("devices")),
            out_specs=Spec(),
            check_vma=mode == "checked shard_map",
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "shard_map", "checked shard_map", "jit"])
def test_all_devices_hold_the_queue_of_one_device(mode):
    rng = np.random.default_rng(1)
    on_two = _on_two_devices(mode)
    found = wanted = memory.make_queue(7, 2)
    for _ in range(4):
        rows = batch(rng, 4)
        wanted, found = push(wanted, *rows), on_two(found, *rows)
        for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_array_equal(a, b)
            shards = [np.asarray(shard.data) for shard in a.addressable_shards]
            assert all(np.array_equal(shards[0], shard) for shard in shards)
    assert 0 < int(found.position)


# Training ------------------------------------------------------------------------------

OPTIMIZER = optax.adam(0.05)
DATA = batch(np.random.default_rng(2), 20)


def batch_fn(key, step, data):
    rows = jax.random.choice(key, 20, (4,), replace=False)
    return jax.tree.map(lambda leaf: leaf[rows], data[0]), Items(
        data[1].labels[rows], ids=4 * step + jnp.arange(4)
    )


def loss_fn(params, statistics, batch, key):
    """Momentum contrast with labels: a batch against what the second network embedded."""
    x, items = batch
    target = memory.momentum_update(statistics["target"], params, 0.9)
    columns = memory.joined(statistics["queue"], x @ target, items)
    same, where = relations.between(items, columns.items)
    matrix = distances.cosine_similarity_matrix(x @ params, columns.embeddings)
    loss = losses.supervised_contrastive_loss(matrix, same, where=where)
    queue = memory.push(statistics["queue"], x @ target, items)
    num_held = jnp.sum(queue.items.valid)
    return loss, ({"target": target, "queue": queue}, {"num_held": num_held})


@pytest.mark.slow
def test_a_run_that_is_resumed_from_a_checkpoint_ends_as_an_unbroken_one(tmp_path):
    params = jnp.eye(2, 3) + 0.1
    statistics = {"target": params, "queue": memory.make_queue(10, 3)}
    first = training.init_state(params, OPTIMIZER, statistics=statistics)
    step = partial(
        training.train_steps, batch_fn=batch_fn, loss_fn=loss_fn, optimizer=OPTIMIZER
    )
    run = jax.jit(partial(step, num_steps=2))
    key = jax.random.key(0)

    halfway, metrics = run(key, first, DATA)
    assert metrics["num_held"].tolist() == [4, 8]
    unbroken, metrics = run(key, halfway, DATA)
    assert metrics["num_held"].tolist() == [10, 10]
    with checkpoints.open_checkpoints(tmp_path) as saved:
        checkpoints.save(saved, 2, halfway)
    restored = checkpoints.load_state(tmp_path, first)
    assert int(restored.statistics["queue"].position) == 8
    assert int(restored.statistics["queue"].items.valid.sum()) == 8
    resumed, _ = run(key, restored, DATA)
    for a, b in zip(*map(jax.tree.leaves, (resumed, unbroken)), strict=True):
        np.testing.assert_array_equal(a, b)
    ids = unbroken.statistics["queue"].items.ids.tolist()
    assert sorted(ids) == list(range(6, 16))


def test_a_moving_average_of_half_precision_moves_if_it_is_kept_in_float32():
    source = jnp.array([1.01, 2.0], jnp.bfloat16)
    narrow = wide = jnp.array([1.0, 2.0], jnp.bfloat16)
    wide = wide.astype(jnp.float32)
    for _ in range(20):
        narrow = memory.momentum_update(narrow, source, 0.999)
        wide = memory.momentum_update(wide, source, 0.999)
    assert (narrow.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
    assert narrow.tolist() == [1.0, 2.0]
    gap = float(source[0]) - 1
    np.testing.assert_allclose(wide, [1 + gap * (1 - 0.999**20), 2], rtol=1e-6)


def test_the_moving_average_has_no_gradient():
    gradient = jax.grad(
        lambda source: memory.momentum_update(jnp.array(1.0), source, 0.5) * source
    )
    assert float(gradient(3.0)) == 2.0  # of the second factor alone
