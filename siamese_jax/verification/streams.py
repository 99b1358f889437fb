"""Operating points of more pairs than fit into memory, which arrive in tiles.

A face benchmark compares 1.6e7 pairs, all pairs of 60,000 images are 1.8e9. Their
distances are computed twice, tile by tile, and only counts are kept. The float32 numbers
are counted by their first 16 bits, which tells in which of 65,536 ranges the wanted ranks
lie, and then by their last 16 bits in these ranges alone. The thresholds and rates are
those of `operating_points` for all pairs at once, for every rate and with ties. The number
of pairs that may match, r times all, is computed in 64 bits here and in 32 bits there,
which may differ for more than a million pairs. The counts take half a megabyte a rate.

The functions run on the host and count in 64 bits. The tiles are counted on the device.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_floating,
    check_rank,
    check_same_shape,
)
from siamese_jax._labels import fitting_items, traced_labels
from siamese_jax._numerics import just_below, widen
from siamese_jax.distances import euclidean_distance_matrix
from siamese_jax.relations import Items, Relation, between
from siamese_jax.verification.operating_points import OperatingPoints, check_rates

_RANGES = 2**16


class Tile(NamedTuple):
    """Some of the pairs.

    Attributes:
      distances: Distance of each pair, in float32 or half precision.
      same: True where the two examples of a pair are of one class.
      where: False where a pair is ignored. None uses every pair.
    """

    distances: Shaped[Array, "*shape"] | Shaped[np.ndarray, "*shape"]
    same: Shaped[Array, "*shape"] | Shaped[np.ndarray, "*shape"]
    where: Shaped[Array, "*shape"] | Shaped[np.ndarray, "*shape"] | None = None


TilesFn = Callable[[], Iterator[Tile]]


def pair_tiles(
    embeddings: Float[Array, "n dim"] | Float[np.ndarray, "n dim"],
    items: Items,
    *,
    columns: Float[Array, "m dim"] | Float[np.ndarray, "m dim"] | None = None,
    column_items: Items | None = None,
    matrix_fn: Callable[[Array, Array], Array] = euclidean_distance_matrix,
    relation_fn: Callable[[Items, Items], Relation] = between,
    tile_size: int = 256,
) -> TilesFn:
    """Returns a function that goes through all pairs of one or two sets, tile by tile.

    Args:
      embeddings: Embeddings of the first set.
      items: Their labels.
      columns: Embeddings of the second set. None pairs the first set with itself, each
        pair once and no embedding with itself.
      column_items: The labels of the second set.
      matrix_fn: Makes the distances of two sets, row by row.
      relation_fn: Makes `(same, where)` of two sets of items.
      tile_size: Largest number of rows of a tile; a tile has all columns.

    Raises:
      ValueError: If a shape is wrong, the labels are not as many as the embeddings, only
        one of `columns` and `column_items` is given, or `tile_size` is below 1.

    >>> tiles_fn = pair_tiles(jnp.array([[0.0], [1.0], [3.0]]), Items([7, 7, 8]))
    >>> tile, = tiles_fn()
    >>> print(tile.distances[tile.where], tile.same[tile.where])
    [1. 3. 2.] [ True False False]
    """
    check_at_least("tile_size", tile_size, 1)
    if (columns is None) != (column_items is None):
        raise ValueError("columns and column_items must be given together")
    rows = _checked_set("embeddings", embeddings, items)
    others = rows
    if columns is not None and column_items is not None:
        others = _checked_set("columns", columns, column_items)

    @jax.jit
    def tile_of(rows: Any, others: Any, start: Array) -> Tile:
        same, where = relation_fn(rows[1], others[1])
        if columns is None:
            place = start + jnp.arange(len(rows[0]))
            where &= place[:, None] < jnp.arange(len(others[0]))[None, :]
        return Tile(matrix_fn(rows[0], others[0]), same, where)

    def tiles_fn() -> Iterator[Tile]:
        for start in range(0, len(rows[0]), tile_size):
            end = start + tile_size
            part = jax.tree.map(lambda array, s=start, e=end: array[s:e], rows)
            yield tile_of(part, others, jnp.asarray(start))

    return tiles_fn


def streamed_operating_points(
    tiles_fn: TilesFn, false_match_rates: Sequence[float]
) -> OperatingPoints:
    """`operating_points` of all pairs of some tiles, without all pairs in memory.

    Args:
      tiles_fn: Called twice, it must give the same tiles, such as `pair_tiles(...)`. Tiles
        of one shape share a compiled program.
      false_match_rates: The rates.

    Returns:
      The thresholds in float32 and the rates in float64, NumPy arrays. All are NaN if a
      distance is NaN or there are no different pairs.

    Raises:
      ValueError: If a rate is not in [0, 1), a shape is wrong, or the tiles are not the
        same the second time.
      TypeError: If `tiles_fn` cannot be called, or distances are not floating-point or have
        64 bits.

    >>> tiles_fn = pair_tiles(jnp.array([[0.0], [1.0], [3.0]]), Items([7, 7, 8]))
    >>> found = streamed_operating_points(tiles_fn, [0.0, 0.5])
    >>> print(found.true_match_rate, found.false_match_rate)
    [1. 1.] [0.  0.5]
    """
    rates = check_rates("false_match_rates", false_match_rates)
    if not callable(tiles_fn):
        raise TypeError(
            "tiles_fn must be a function that gives the tiles, since they are needed "
            f"twice; got {type(tiles_fn).__name__}"
        )
    coarse = _counts(tiles_fn, np.zeros(_RANGES, np.int32), 1, first=True)
    if coarse is None or not coarse[0].any():
        return OperatingPoints(*np.full((4, len(rates)), np.nan))
    coarse = coarse[:, 0]
    num_different, num_same = coarse.sum(axis=1)
    ranks = np.floor(rates * num_different * (1 + 1e-12)).astype(np.int64)
    ranks = np.minimum(ranks, num_different - 1)
    ranges = np.searchsorted(np.cumsum(coarse[0]), ranks, side="right")

    looked_at, slot_of_rate = np.unique(ranges, return_inverse=True)
    # as many slots as rates, so that one program counts whatever the ranges are
    slots = np.full(_RANGES, len(rates), np.int32)
    slots[looked_at] = np.arange(len(looked_at))
    fine = _counts(tiles_fn, slots, len(rates), first=False)
    fine = None if fine is None else fine[:, : len(looked_at)]
    if fine is None or (fine.sum(axis=2) != coarse[:, looked_at]).any():
        raise ValueError("tiles_fn must give the same tiles each time that it is called")

    before = np.cumsum(coarse, axis=1) - coarse
    up_to = before[:, looked_at, None] + np.cumsum(fine, axis=2)
    nearer = up_to - fine
    last_bits = np.array(
        [
            np.searchsorted(up_to[0, slot], rank, side="right")
            for slot, rank in zip(slot_of_rate, ranks, strict=True)
        ]
    )
    nearest_out = _number(ranges * _RANGES + last_bits)
    different_in, same_in = nearer[:, slot_of_rate, last_bits]
    with np.errstate(invalid="ignore"):
        true_match_rate = same_in / num_same
        false_non_match_rate = (num_same - same_in) / num_same
        below = just_below(nearest_out)
    return OperatingPoints(
        thresholds=np.where(np.isneginf(nearest_out), np.float32(np.nan), below),
        false_match_rate=different_in / num_different,
        true_match_rate=true_match_rate,
        false_non_match_rate=false_non_match_rate,
    )


def _checked_set(name: str, embeddings: Any, items: Items) -> tuple[Array, Items]:
    check_floating(name, embeddings)
    check_rank(name, embeddings, 2)
    if not isinstance(items, Items):
        raise TypeError(
            f"the items of {name} must be Items(labels); got {type(items).__name__}"
        )
    if isinstance(items.labels, list | tuple):
        items = items._replace(labels=traced_labels("labels", items.labels))
    embeddings, items = jnp.asarray(embeddings), fitting_items("items", items)
    lengths = {len(array) for array in jax.tree.leaves(items)}
    if lengths != {len(embeddings)}:
        raise ValueError(
            f"the items of {name} must be {len(embeddings)}, one for each embedding; got "
            f"{sorted(lengths)}"
        )
    return embeddings, items


# Counting by bits ------------------------------------------------------------------------


def _counts(
    tiles_fn: TilesFn, slots: Int[np.ndarray, " ranges"], num_slots: int, *, first: bool
) -> Int[np.ndarray, "2 slots ranges"] | None:
    """Counts different and same pairs of all tiles, or returns None if one is NaN."""
    total = np.zeros((2, num_slots, _RANGES), np.int64)
    for tile in tiles_fn():
        check_floating("distances", tile.distances)
        if tile.distances.dtype.itemsize > 4:
            raise TypeError(
                f"distances must have at most 32 bits; got {tile.distances.dtype}"
            )
        counts, has_nan = _tile_counts(tile, slots, num_slots=num_slots, first=first)
        if has_nan:
            return None
        total += np.asarray(counts)
    return total


@partial(jax.jit, static_argnames=("num_slots", "first"))
def _tile_counts(
    tile: Tile, slots: Int[Array, " ranges"], *, num_slots: int, first: bool
) -> tuple[Int[Array, "2 slots ranges"], Bool[Array, ""]]:
    """Counts by the first 16 bits, or by the last 16 of those whose first have a slot."""
    distances, same, where = tile
    check_boolean("same", same)
    check_same_shape("same", same, "distances", distances)
    distances = widen(jnp.asarray(distances))
    counted = jnp.ones(distances.shape, bool) if where is None else where
    check_boolean("where", counted)
    check_same_shape("where", counted, "distances", distances)
    first_bits, last_bits = jnp.divmod(_order(distances), jnp.uint32(_RANGES))
    slot = slots[first_bits]
    digit = (first_bits if first else last_bits).astype(jnp.int32)
    place = (same * num_slots + slot) * _RANGES + digit
    size = 2 * num_slots * _RANGES
    place = jnp.where(counted & (slot < num_slots), place, size)
    counts = jnp.zeros(size, jnp.int32).at[place.reshape(-1)].add(1, mode="drop")
    has_nan = jnp.any(counted & jnp.isnan(distances))
    return counts.reshape(2, num_slots, _RANGES), has_nan


def _order(numbers: Float[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Whole numbers of 32 bits in the order of the float32 numbers; -0 is 0."""
    bits = lax.bitcast_convert_type(jnp.where(numbers == 0, 0.0, numbers), jnp.uint32)
    sign = jnp.uint32(2**31)
    return jnp.where(bits >= sign, ~bits, bits + sign)


def _number(order: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The numbers that `_order` gives these places."""
    sign = 2**31
    bits = np.where(order >= sign, order - sign, 2**32 - 1 - order)
    return bits.astype(np.uint32).view(np.float32)
