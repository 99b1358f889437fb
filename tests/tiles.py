"""Batches with labels, and a loss of them in tiles and of the whole matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siamese_jax import distances, relations, tiling
from siamese_jax.relations import Items

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
