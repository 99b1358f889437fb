"""Rows of the contract table for losses in tiles."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import distances, losses, tiling
from siamese_jax.relations import Items
from tests import oracles
from tests.cases.case import Case, Inputs, Kind, Refusal, f32


def _labelled(rng):
    labels = jnp.asarray([3, 3, 0, 0, 0, 5, 3])
    valid = jnp.asarray([True, True, True, True, False, True, True])
    return Inputs((f32(rng.normal(size=(7, 3))), labels, valid))


def _tiled(embeddings, labels, valid, **options):
    loss_fn = tiling.tiled(
        losses.contrastive_loss, distances.euclidean_distance_matrix, tile_size=3
    )
    return loss_fn(embeddings, Items(labels, valid=valid), **options)


def _oracle(embeddings, labels, valid, **options):
    ids = range(len(labels))
    same, where = oracles.between(labels, labels, ids, ids, valid, valid)
    matrix = oracles.matrix(oracles.euclidean)(embeddings, embeddings)
    return oracles.contrastive(matrix, same, where=where, **options)


_ZEROS = (jnp.zeros((3, 2)), jnp.zeros(3, int), jnp.ones(3, bool))

TILING = [
    Case(
        "tiling.tiled",
        _tiled,
        Kind.MAP,
        _labelled,
        options=({}, {"margin": 2.5}),
        oracle=_oracle,
        keeps_dtype=False,
        refusals=(
            Refusal(
                "labels are numbers",
                (_ZEROS[0], jnp.zeros(3), _ZEROS[2]),
                {},
                TypeError,
                "items.labels must be an integer",
            ),
            Refusal(
                "validity is too short",
                (*_ZEROS[:2], jnp.ones(2, bool)),
                {},
                ValueError,
                r"items must have 3 places, one for each of embeddings; got shape \(2,\)",
            ),
            Refusal(
                "embeddings are integers",
                (np.zeros((3, 2), int), *_ZEROS[1:]),
                {},
                TypeError,
                "embeddings must be a floating",
            ),
            Refusal(
                "there is no embedding",
                (jnp.zeros((0, 2)), jnp.zeros(0, int), jnp.ones(0, bool)),
                {},
                ValueError,
                "the number of embeddings must be at least 1; got 0",
            ),
            Refusal(
                "weights are too short",
                _ZEROS,
                {"weights": jnp.ones(2)},
                ValueError,
                r"weights must have one row for each of 3 embeddings; got shape \(2,\)",
            ),
            Refusal(
                "the reduction is another function",
                _ZEROS,
                {"reduce_fn": jnp.max},
                ValueError,
                "reduce_fn must be one of mean, mean_of_active, mean_and_count, sum_terms",
            ),
            Refusal(
                "terms of all entries are wanted",
                _ZEROS,
                {"reduce_fn": None},
                ValueError,
                "reduce_fn=None needs a loss with one term per anchor",
            ),
        ),
    ),
]
