"""The losses of a batch over 1, 2, 4 and 8 devices are those of one device, in float64."""

import functools

import jax
import pytest

from siamese_jax import losses, sharding
from tests.cases import Reach
from tests.sharded import (
    BOTH,
    COSINE,
    EUCLIDEAN,
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
# two Terms, a row-wise loss, and one whose columns are anchors too
FEW = {
    "contrastive, apart": OPTIONS["contrastive, apart"],
    "semi-hard": Loss(losses.semi_hard_triplet_loss, EUCLIDEAN),
    "both": Loss(losses.both_directions(losses.info_nce_loss), COSINE),
}
FEW_OF_A_RING = {
    "hard, both": Loss(losses.both_directions(losses.hard_triplet_loss), EUCLIDEAN),
    "both": FEW["both"],
}
MODES = ["check_vma", "no check_vma", "pmap"]


@functools.cache
def one_device(names, *, views=False):
    table = CUT | WHOLE | BOTH | ONE_WAY | TWO_WAYS | FEW | FEW_OF_A_RING
    step = stacked([dense(table[name], views=views) for name in names])
    return run("one device", 1, step)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def check(form, table, mode, num_devices, *, views=False, **options):
    fns = [sharded(form, loss, views=views, **options) for loss in table.values()]
    found = run(mode, num_devices, stacked(fns))
    assert_equal(found, one_device(tuple(table), views=views), list(table))


@pytest.mark.parametrize(
    ("mode", "num_devices"), [("check_vma", 4), ("no check_vma", 2), ("pmap", 8)]
)
def test_every_loss_and_miner_gathered(mode, num_devices):
    check(sharding.gathered, CUT | BOTH, mode, num_devices)


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", MODES)
def test_gathered_on_devices(mode, num_devices):
    check(sharding.gathered, FEW, mode, num_devices)


@pytest.mark.parametrize(("mode", "num_devices"), [("check_vma", 2), ("pmap", 4)])
def test_gathered_columns_of_another_set(mode, num_devices):
    check(sharding.gathered, FEW, mode, num_devices, views=True)


@pytest.mark.parametrize(
    ("mode", "num_devices", "tile_size"), [("check_vma", 4, 3), ("no check_vma", 2, None)]
)
def test_every_loss_with_a_fold_in_a_ring(mode, num_devices, tile_size):
    table = ONE_WAY | TWO_WAYS
    check(sharding.ring, table, mode, num_devices, tile_size=tile_size)


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", MODES)
def test_a_ring_of_devices(mode, num_devices):
    check(sharding.ring, FEW_OF_A_RING, mode, num_devices)


@pytest.mark.parametrize(("mode", "num_devices"), [("check_vma", 2), ("pmap", 4)])
def test_columns_of_another_set_in_a_ring(mode, num_devices):
    check(sharding.ring, FEW_OF_A_RING, mode, num_devices, views=True, tile_size=2)


def test_every_loss_as_written_under_jit_over_a_mesh():
    table = CUT | WHOLE | BOTH
    found = run("jit", 4, stacked([dense(loss) for loss in table.values()]))
    assert_equal(found, one_device(tuple(table)), list(table))
