"""The losses of a batch over 1, 2, 4 and 8 devices are those of one device, in float64."""

import functools

import jax
import jax.numpy as jnp
import pytest

from siamese_jax import losses, sharding
from tests.cases import Reach
from tests.sharded import (
    BOTH,
    MINED,
    OPTIONS,
    Loss,
    assert_equal,
    dense,
    losses_of,
    matrix_of,
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
def _float64():
    with jax.enable_x64(True):
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


# two means, the row of an anchor, and columns of another set that are anchors too
SOME = [
    "contrastive, apart",
    "semi_hard_triplet_loss",
    "info_nce_loss, both",
    "supervised_contrastive_loss, both",
]
VIEWS = SOME[2:]


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", MODES)
def test_on_devices_and_of_two_views_and_in_tiles(mode, num_devices):
    pair, row, clip, supervised = (ALL[name] for name in SOME)
    fns = [
        sharded(GATHERED, pair),
        sharded(GATHERED, row, tile_size=3),
        sharded(GATHERED, clip, views=True),
        sharded(RING, supervised, views=True, tile_size=2),
    ]
    assert_equal(run(mode, num_devices, stacked(fns)), of_two_views(), SOME)


def test_every_loss_as_written_under_jit_over_a_mesh():
    table = CUT | WHOLE | BOTH
    found = run("jit", 4, stacked([dense(loss) for loss in table.values()]))
    assert_equal(found, wanted(table), list(table))
