"""The losses of a batch over 1, 2, 4 and 8 devices are those of one device, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from siamese_jax import distances, losses, miners, reductions, relations, sharding
from tests.cases import Reach
from tests.contract import as_for_a_user
from tests.sharded import (
    AXIS,
    BOTH,
    MINED,
    OPTIONS,
    Loss,
    assert_equal,
    batch,
    compiled,
    dense,
    encode,
    losses_of,
    matrix_of,
    mesh_of,
    parameters,
    run,
    sharded,
    stacked,
)

pytestmark = pytest.mark.slow

CUT = losses_of(Reach.ENTRY, Reach.ROW) | OPTIONS | MINED
WHOLE = losses_of(Reach.WHOLE)
FOLDED = [
    losses.contrastive_loss,
    losses.cosine_embedding_loss,
    losses.logistic_loss,
    losses.margin_loss,
    losses.threshold_consistent_margin_loss,
    losses.supervised_contrastive_loss,
    losses.info_nce_loss,
    losses.decoupled_contrastive_loss,
    losses.sigmoid_pair_loss,
    losses.hard_triplet_loss,
]
ONE_WAY = {fn.__name__: Loss(fn, matrix_of(fn)) for fn in FOLDED}
TWO_WAYS = {
    f"{fn.__name__}, both": Loss(losses.both_directions(fn), matrix_of(fn))
    for fn in FOLDED[5:]
}
ALL = CUT | WHOLE | BOTH | ONE_WAY | TWO_WAYS
GATHERED, RING = sharding.gathered, sharding.ring
MODES = ["check_vma", "no check_vma", "pmap"]


@functools.cache
def one_device():
    return run("one device", 1, stacked([dense(loss) for loss in ALL.values()]))


@functools.cache
def of_two_views():
    fns = [dense(ALL[name], views=name in VIEWS) for name in SOME]
    return run("one device", 1, stacked(fns))


@pytest.fixture(autouse=True)
def _float64_and_quickly_traced():
    with as_for_a_user(), jax.enable_x64(True):
        yield


def check(form, table, mode, num_devices, **options):
    fns = [sharded(form, loss, **options) for loss in table.values()]
    assert_equal(run(mode, num_devices, stacked(fns)), wanted(table), list(table))


def wanted(table):
    places = [list(ALL).index(name) for name in table]
    return jax.tree.map(lambda leaf: leaf[jnp.array(places)], one_device())


@pytest.mark.parametrize(("mode", "num_devices"), [("check_vma", 4), ("pmap", 8)])
def test_every_loss_and_miner_gathered(mode, num_devices):
    check(GATHERED, CUT | BOTH, mode, num_devices)


def test_every_loss_with_a_fold_in_a_ring():
    check(RING, ONE_WAY | TWO_WAYS, "check_vma", 4, tile_size=3)


# two means, and columns of another set that are anchors too
SOME = [
    "contrastive, apart",
    "info_nce_loss, both",
    "supervised_contrastive_loss, both",
]
VIEWS = SOME[1:]


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", MODES)
def test_on_devices_and_of_two_views_and_in_tiles(mode, num_devices):
    pair, clip, supervised = (ALL[name] for name in SOME)
    fns = [
        sharded(GATHERED, pair, tile_size=3),
        sharded(GATHERED, clip, views=True),
        sharded(RING, supervised, views=True, tile_size=2),
    ]
    assert_equal(run(mode, num_devices, stacked(fns)), of_two_views(), SOME)


def test_every_loss_as_written_under_jit_over_a_mesh():
    table = CUT | WHOLE | BOTH
    found = run("jit", 4, stacked([dense(loss) for loss in table.values()]))
    assert_equal(found, wanted(table), list(table))


def test_losses_as_written_over_a_mesh_of_explicit_axes():
    table = {name: ALL[name] for name in (*SOME, "lifted_structure_loss")}
    step = stacked([of_auto_axes(dense(loss)) for loss in table.values()])
    mesh = mesh_of(4, AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = jax.device_put(parameters(), jax.P())
        spread = jax.device_put(batch(), jax.P(AXIS))
        found = compiled(jax.jit(step), params, spread)(params, spread)
    assert_equal(found, wanted(table), list(table))


def of_auto_axes(value):
    return jax.sharding.auto_axes(value, out_sharding=jax.P())


# Reductions ------------------------------------------------------------------------------


def test_reductions_over_devices():
    """Of a loss of a matrix, in both forms, and of a loss of proxies."""
    triplets = ALL["hard_triplet_loss"]

    def number(reduced):
        return reduced.mean if isinstance(reduced, reductions.MeanAndCount) else reduced

    def proxy_loss(reduce_fn):
        def value(params, batch):
            z = encode(params, batch.inputs)
            labels, proxies = batch.items.labels, params["weights"][:4]
            options = {"where": batch.items.valid, "reduce_fn": reduce_fn}
            return number(losses.arc_face_loss(z, labels, proxies, **options))

        return value

    def of_device(form, reduce_fn):
        loss_fn = form(triplets.fn, triplets.matrix_fn, axis_name=AXIS)

        def value(params, batch):
            z = encode(params, batch.inputs)
            return number(loss_fn(z, batch.items, margin=0.5, reduce_fn=reduce_fn))

        return value

    def whole(reduce_fn):
        def value(params, batch):
            z = encode(params, batch.inputs)
            same, where = relations.between(batch.items, batch.items)
            options = {"where": where, "margin": 0.5, "reduce_fn": reduce_fn}
            return number(triplets.fn(triplets.matrix_fn(z, z), same, **options))

        return value

    active, added = reductions.mean_of_active, reductions.sum_terms
    counted = reductions.mean_and_count
    of_matrices = [active, added, counted]
    on_device = [of_device(GATHERED, fn) for fn in of_matrices]
    on_device += [of_device(RING, active)]
    on_device += [
        proxy_loss(sharding.over_devices(fn, axis_name=AXIS)) for fn in (active, counted)
    ]
    on_one = [whole(fn) for fn in (*of_matrices, active)]
    on_one += [proxy_loss(fn) for fn in (active, counted)]
    found = run("check_vma", 4, stacked(on_device))
    names = ["active", "added", "counted", "ring", "proxies", "counted proxies"]
    assert_equal(found, run("one device", 1, stacked(on_one)), names)


def test_counts_and_terms_of_devices():
    loss = ALL["hard_triplet_loss"]
    loss_fn = GATHERED(loss.fn, loss.matrix_fn, axis_name=AXIS)

    def on_device(embeddings, items):
        terms = loss_fn(embeddings, items, reduce_fn=None)
        counted = loss_fn(embeddings, items, reduce_fn=reductions.mean_and_count)
        return terms, counted.num_terms[None]

    rows, items = batch().inputs, batch().items
    spec = jax.P(AXIS)
    shares = jax.shard_map(on_device, mesh=mesh_of(4), in_specs=spec, out_specs=spec)
    terms, counts = compiled(jax.jit(shares), rows, items)(rows, items)
    same, where = relations.between(*[relations.Items(*map(jnp.asarray, items))] * 2)
    matrix = loss.matrix_fn(jnp.asarray(rows), jnp.asarray(rows))
    right = loss.fn(matrix, same, where=where, reduce_fn=None)
    for own, of_one in zip(terms, right, strict=True):
        np.testing.assert_allclose(own, of_one, rtol=1e-12)
    np.testing.assert_array_equal(counts, [jnp.sum(right.where)] * 4)


# Refusals --------------------------------------------------------------------------------

KEY = jax.random.key(0)
NEEDS_ALL = {
    **{name: loss.fn for name, loss in WHOLE.items()},
    "all_triplets_loss with swap": functools.partial(losses.all_triplets_loss, swap=True),
    "angular_negatives": miners.angular_negatives,
    "hardest_share_mask": miners.hardest_share_mask,
    "uniform_histogram_weights": functools.partial(miners.uniform_histogram_weights, KEY),
}


@pytest.mark.parametrize("name", NEEDS_ALL)
@pytest.mark.parametrize("tile_size", [None, 1])
def test_what_needs_all_rows_is_refused_inside_of_a_loss_of_ones_own(name, tile_size):
    def own_loss(matrix, same, *, where, reduce_fn):
        NEEDS_ALL[name](matrix, same, where=where)
        return losses.contrastive_loss(matrix, same, where=where, reduce_fn=reduce_fn)

    loss_fn = GATHERED(
        own_loss,
        distances.euclidean_distance_matrix,
        axis_name=AXIS,
        tile_size=tile_size,
    )
    shares = jnp.zeros((2, 3, 4)), relations.Items(jnp.zeros((2, 3), int))
    with pytest.raises(ValueError, match=f"{name}.* needs the whole matrix.*over a mesh"):
        jax.eval_shape(jax.vmap(loss_fn, axis_name=AXIS), *shares)
