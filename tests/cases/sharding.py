"""Rows of the losses of a batch that is spread over devices, here over two."""

import jax
import jax.numpy as jnp
import numpy as np

from siamese_jax import distances, losses, miners, reductions, sharding
from siamese_jax.relations import Items
from tests import oracles
from tests.cases.case import Case, Inputs, Kind, Refusal, entry_arrays, f32

NUM_DEVICES = 2


def _on_devices(fn, *arrays):
    mesh = jax.make_mesh(
        (NUM_DEVICES,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    spec = jax.P("devices")
    on_device = jax.shard_map(
        lambda *shares: fn(*shares)[None], mesh=mesh, in_specs=spec, out_specs=spec
    )
    return on_device(*arrays)


def _loss(form):
    """The loss of shares, as a function of the arrays of all devices."""

    def call(
        embeddings,
        labels,
        valid,
        loss_fn=losses.contrastive_loss,
        axis_name="devices",
        columns=None,
        tile_size=None,
        **options,
    ):
        fn = form(
            loss_fn,
            distances.euclidean_distance_matrix,
            axis_name=axis_name,
            tile_size=tile_size,
        )

        def share(embeddings, labels, valid):
            return fn(embeddings, Items(labels, valid=valid), columns, **options)

        return _on_devices(share, embeddings, labels, valid)

    return call


def _inputs(rng):
    labels = jnp.asarray([3, 3, 0, 0, 0, 5])
    valid = jnp.asarray([True, True, True, True, False, True])
    return Inputs((f32(rng.normal(size=(6, 3))), labels, valid))


def _oracle(embeddings, labels, valid, tile_size=None, **options):
    ids = range(len(labels))
    same, where = oracles.between(labels, labels, ids, ids, valid, valid)
    matrix = oracles.matrix(oracles.euclidean)(embeddings, embeddings)
    return np.full(NUM_DEVICES, oracles.contrastive(matrix, same, where=where, **options))


def _reduced(distances, same, where, weights, reduce_fn=reductions.mean):
    reduce_fn = sharding.over_devices(reduce_fn, axis_name="devices")

    def share(distances, same, where, weights):
        return losses.contrastive_loss(
            distances, same, where=where, weights=weights, reduce_fn=reduce_fn
        )

    return _on_devices(share, distances, same, where, weights)


def _reduced_oracle(distances, same, where, weights):
    value = oracles.contrastive(distances, same, where=where, weights=weights)
    return np.full(NUM_DEVICES, value)


def _pairs(rng):
    numbers = f32(rng.uniform(0, 2, size=6)), jnp.asarray(rng.random(6) < 0.5)
    return Inputs((*numbers, *entry_arrays(rng, 6).values()))


def _own_loss(distances, same, *, where, reduce_fn):
    """A loss of a user, with a miner of the whole batch."""
    mask = miners.hardest_share_mask(distances, same, where=where)
    return losses.contrastive_loss(distances, same, where=mask, reduce_fn=reduce_fn)


ZEROS = (jnp.zeros((4, 2)), jnp.zeros(4, int), jnp.ones(4, bool))
_NO_REDUCTION = "reduce_fn must be one of mean, mean_of_active, mean_and_count, sum_terms"


def _refusal(name, words, error=ValueError, args=ZEROS, **options):
    return Refusal(name, args, options, error, words)


REFUSALS = (
    _refusal(
        "the loss needs the whole matrix",
        "histogram_loss needs the whole matrix.*jit over a mesh",
        loss_fn=losses.histogram_loss,
    ),
    _refusal(
        "both directions of a loss of the whole matrix",
        "lifted_structure_loss needs the whole matrix",
        loss_fn=losses.both_directions(losses.lifted_structure_loss),
    ),
    _refusal(
        "triplets are swapped",
        "all_triplets_loss with swap=True needs the whole matrix",
        loss_fn=losses.all_triplets_loss,
        swap=True,
    ),
    _refusal("sums cannot be added", _NO_REDUCTION, reduce_fn=jnp.max),
    _refusal("there is no such axis", "axis_name must be an axis", axis_name="rows"),
    _refusal(
        "columns have no items", "columns and column_items", columns=jnp.zeros((2, 2))
    ),
    _refusal("a tile is empty", "tile_size must be at least 1", tile_size=0),
    _refusal(
        "both directions are counted",
        "reduce_fn must return a number; got mean_and_count for both_directions",
        loss_fn=losses.both_directions(losses.contrastive_loss),
        reduce_fn=reductions.mean_and_count,
    ),
    _refusal(
        "labels are numbers",
        "labels must be an integer",
        TypeError,
        args=(ZEROS[0], jnp.zeros(4), ZEROS[2]),
    ),
)

SHARDING = [
    Case(
        "sharding.gathered",
        _loss(sharding.gathered),
        Kind.MAP,
        _inputs,
        options=({}, {"margin": 2.5, "tile_size": 2}),
        oracle=_oracle,
        keeps_dtype=False,
        refusals=(
            *REFUSALS,
            _refusal(
                "a miner needs the whole matrix",
                "hardest_share_mask needs the whole matrix.*jit over a mesh",
                loss_fn=_own_loss,
            ),
            _refusal(
                "a miner needs the whole matrix, in tiles",
                "hardest_share_mask needs the whole matrix",
                loss_fn=_own_loss,
                tile_size=1,
            ),
        ),
    ),
    Case(
        "sharding.ring",
        _loss(sharding.ring),
        Kind.MAP,
        _inputs,
        options=({}, {"margin": 2.5, "tile_size": 2}),
        oracle=_oracle,
        keeps_dtype=False,
        refusals=(
            *(refusal for refusal in REFUSALS if refusal.name != "triplets are swapped"),
            _refusal(
                "the loss has no blocks",
                "semi_hard_triplet_loss cannot be put together from blocks.*gathered",
                loss_fn=losses.semi_hard_triplet_loss,
            ),
            _refusal("terms are wanted", "reduce_fn must not be None", reduce_fn=None),
            _refusal(
                "rows have margins of their own, in both directions",
                "margin must be a scalar in a ring of both directions",
                loss_fn=losses.both_directions(losses.contrastive_loss),
                margin=jnp.ones((len(ZEROS[1]), 1)),
            ),
        ),
    ),
    Case(
        "sharding.over_devices",
        _reduced,
        Kind.MAP,
        _pairs,
        oracle=_reduced_oracle,
        keeps_dtype=False,
        refusals=(
            _refusal(
                "sums cannot be added",
                _NO_REDUCTION,
                args=(jnp.zeros(4), *[jnp.ones(4, bool)] * 2, jnp.ones(4)),
                reduce_fn=jnp.max,
            ),
            _refusal(
                "nothing is reduced",
                "reduce_fn must not be None",
                args=(jnp.zeros(4), *[jnp.ones(4, bool)] * 2, jnp.ones(4)),
                reduce_fn=None,
            ),
        ),
    ),
]
