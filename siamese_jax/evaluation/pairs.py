"""Pairs of embeddings with their distances: all of them, or those of a list.

Up to `MOST_KEPT` pairs are kept one by one. Of more pairs, only the number of each distance
is kept, rounded to one of `NUM_STEPS` steps, so that the memory does not depend on the
number of pairs. With m the median distance of some pairs, the steps are even in
d / (d + m). So they are narrow up to a few m, and a row that is far from all others does
not widen them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from siamese_jax.distances import euclidean_distance_matrix
from siamese_jax.evaluation.distance import Distance
from siamese_jax.evaluation.sets import EmbeddingSet, Sets
from siamese_jax.relations import Items, SameFn, between, equal_labels
from siamese_jax.retrieval.neighbours import MatrixFn

MOST_KEPT = 2**20
NUM_STEPS = 2**16
NO_PART = -1
_ENTRIES_AT_ONCE = 2**22  # 16 MB of distances
_NUM_SAMPLED = 2**12  # pairs for the width of the steps


class Pairs(NamedTuple):
    """Pairs with their distances.

    Attributes:
      distances: Distance of each pair, or of all pairs that are counted together.
      same: True where the two are of one class.
      part: Part of the pairs for calibration: each part is judged by what is learnt from
        the others. -1 where a pair is of none.
      counts: Number of pairs that each entry stands for. None if each is one pair.
    """

    distances: Float[np.ndarray, " n"]
    same: Bool[np.ndarray, " n"]
    part: Int[np.ndarray, " n"]
    counts: Float[np.ndarray, " n"] | None = None

    def number(self, *, same: bool) -> int:
        """Number of the same or of the different pairs."""
        kind = self.same == same
        return int(np.sum(kind if self.counts is None else self.counts[kind]))


def all_pairs(
    sets: Sets,
    rows: Int[np.ndarray, " q"],
    *,
    distance: Distance,
    seed: int,
    most_kept: int = MOST_KEPT,
) -> Pairs:
    """All pairs of the queries at some rows with all references, each once.

    The classes are dealt out to two halves at random (the rows, if they have several
    labels). A pair within a half is of this part, and a pair across of none.

    Args:
      sets: Queries and references.
      rows: The queries to compare.
      distance: The distance of a pair.
      seed: Seed of the halves.
      most_kept: The largest number of pairs that are kept one by one.
    """
    halves = [_halves(sets, of, seed) for of in (sets.queries, sets.references)]
    is_query = np.zeros(len(sets.references.embeddings), bool)
    if sets.itself:
        is_query[rows] = True
    columns = _Side(
        jnp.asarray(sets.references.embeddings),
        sets.references.items,
        jnp.asarray(halves[1]),
        jnp.arange(len(is_query)),
    )
    tile_size = max(1, _ENTRIES_AT_ONCE // len(is_query))
    tiles = []
    for start in range(0, len(rows), tile_size):
        some = rows[start : start + tile_size]
        queries = sets.queries.rows(some)
        place = jnp.asarray(some, jnp.int32)
        side = _Side(
            jnp.asarray(queries.embeddings),
            queries.items,
            jnp.asarray(halves[0][some]),
            place,
        )
        tiles.append(side)
    options = {"matrix_fn": distance.matrix_fn, "same_fn": sets.same_fn}
    if len(rows) * len(is_query) <= most_kept:
        found = [_tile(side, columns, jnp.asarray(is_query), **options) for side in tiles]
        return _kept(found)
    middle = _middle(sets, distance, seed)
    total = np.zeros(3 * 2 * NUM_STEPS, np.int64)
    for side in tiles:
        total += np.asarray(
            _counts(side, columns, jnp.asarray(is_query), middle, **options)
        )
    return _counted(total, middle)


def _middle(sets: Sets, distance: Distance, seed: int) -> float:
    """The median of some distances above 0, or 1 if there are none."""
    rng = np.random.default_rng(seed)
    a, b = (
        jnp.asarray(of.embeddings[rng.integers(0, len(of.embeddings), _NUM_SAMPLED)])
        for of in (sets.queries, sets.references)
    )
    distances = np.asarray(jax.jit(distance.row_fn)(a, b))
    positive = distances[distances > np.finfo(np.float32).tiny]
    return float(np.median(positive)) if positive.size else 1.0


def _halves(sets: Sets, of: EmbeddingSet, seed: int) -> Int[np.ndarray, " n"]:
    """0 or 1 for each row."""
    rng = np.random.default_rng(seed)
    if sets.multi_label:
        return rng.integers(0, 2, len(of.labels)).astype(np.int32)
    num = len(sets.names)
    return rng.permutation(np.arange(num, dtype=np.int32) % 2)[of.labels]


class _Side(NamedTuple):
    """Rows or columns of a tile: embeddings, labels, halves and place among all rows."""

    embeddings: Float[Array, "n dim"]
    items: Items
    half: Int[Array, " n"]
    place: Int[Array, " n"]


_STATIC = ("matrix_fn", "same_fn")


@partial(jax.jit, static_argnames=_STATIC)
def _tile(
    rows: _Side,
    columns: _Side,
    is_query: Bool[Array, " m"],
    *,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
    same_fn: SameFn = equal_labels,
) -> tuple[Array, Array, Array, Array]:
    """Distances, same, part and which entries count, of some queries and all references."""
    same, where = between(rows.items, columns.items, same_fn=same_fn)
    # a pair of two queries is in two rows: the one whose query comes first counts
    second = is_query[None, :] & (columns.place[None, :] < rows.place[:, None])
    part = jnp.where(
        rows.half[:, None] == columns.half[None, :], rows.half[:, None], NO_PART
    )
    distances = matrix_fn(rows.embeddings, columns.embeddings)
    return distances, same, part, where & ~second


@partial(jax.jit, static_argnames=_STATIC)
def _counts(
    rows: _Side,
    columns: _Side,
    is_query: Bool[Array, " m"],
    middle: Float[Array, ""],
    *,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
    same_fn: SameFn = equal_labels,
) -> Int[Array, " places"]:
    """Number of pairs at each step, of each kind and part."""
    distances, same, part, where = _tile(
        rows, columns, is_query, matrix_fn=matrix_fn, same_fn=same_fn
    )
    share = distances / (distances + middle)
    at = jnp.clip((NUM_STEPS * share).astype(jnp.int32), 0, NUM_STEPS - 1)
    place = at + NUM_STEPS * (same + 2 * (part - NO_PART))
    size = 3 * 2 * NUM_STEPS
    place = jnp.where(where, place, size)
    return jnp.zeros(size, jnp.int32).at[place.reshape(-1)].add(1, mode="drop")


def _kept(tiles: list[tuple[Array, Array, Array, Array]]) -> Pairs:
    columns = []
    for position in range(3):
        kept = [np.asarray(tile[position])[np.asarray(tile[3])] for tile in tiles]
        columns.append(np.concatenate(kept))
    return Pairs(columns[0].astype(np.float64), columns[1], columns[2])


def _counted(total: Int[np.ndarray, " places"], middle: float) -> Pairs:
    """The steps that have pairs, at their middles."""
    places = np.flatnonzero(total)
    kind, at = np.divmod(places, NUM_STEPS)
    part, same = np.divmod(kind, 2)
    share = (at + 0.5) / NUM_STEPS
    return Pairs(
        distances=middle * share / (1 - share),
        same=same.astype(bool),
        part=(part + NO_PART).astype(np.int32),
        counts=total[places].astype(np.float64),
    )


def listed_pairs(
    embeddings: Float[np.ndarray, "n dim"],
    examples: Int[np.ndarray, "2 p"],
    *,
    distance: Distance,
) -> Float[np.ndarray, " p"]:
    """Distances of the pairs of a list, from the rows of their examples.

    >>> from siamese_jax.evaluation.distance import DISTANCES
    >>> rows = np.array([[0.0], [3.0]], np.float32)
    >>> listed_pairs(rows, np.array([[0], [1]]), distance=DISTANCES["euclidean"])
    array([3.], dtype=float32)
    """
    size = max(1, _ENTRIES_AT_ONCE // embeddings.shape[1])
    found = [
        np.asarray(jax.jit(distance.row_fn)(*embeddings[examples[:, start : start + size]]))
        for start in range(0, examples.shape[1], size)
    ]
    return np.concatenate(found)
