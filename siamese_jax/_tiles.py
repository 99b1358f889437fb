"""Totals of a loss from tiles of rows, with gradients that keep no tile.

A tile is some rows of the matrix with all their columns. Three sweeps over the tiles differ
in how they make the gradient:

* `row_totals` of a loss of the library makes it in the forward sweep, while the tile is
  there: 6 n m dim operations, as many as the dense form. The terms of a row need this row
  alone, and their weights do not depend on the embeddings.
* `recomputed_totals` and `terms_of_rows` compute each tile again, which takes 8 n m dim
  operations. They serve any loss, and can be differentiated twice and forwards.
* `symmetric_totals` adds the column direction, whose rows are complete only after the last
  tile. It computes each tile again, once for both directions: 8 n m dim operations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from siamese_jax import _folds
from siamese_jax._folds import Fold, Found, State
from siamese_jax._reach import ENTRY_WISE, ROW_WISE
from siamese_jax._totals import Parts, Totals, totals, unreduced_terms
from siamese_jax.reductions import Terms
from siamese_jax.relations import Items, Relation

MatrixFn = Callable[[Array, Array], Float[Array, "n m"]]
RelationFn = Callable[[Items, Items], Relation | tuple[Array, Array]]


class Loss(NamedTuple):
    """A loss of embeddings: what makes the matrix, its relation and its terms.

    Attributes:
      fn: The loss of one direction.
      matrix_fn: Makes the matrix of two sets of embeddings.
      relation_fn: Makes `(same, where)` of two sets of items.
      fixed: Options that are not arrays.
    """

    fn: Callable[..., Any]
    matrix_fn: MatrixFn
    relation_fn: RelationFn
    fixed: dict[str, Any]


def turned(loss: Loss) -> Loss:
    """The same loss with columns for rows."""
    matrix_fn = loss.matrix_fn

    def relation_fn(rows: Items, columns: Items) -> Relation:
        same, where = loss.relation_fn(columns, rows)
        return Relation(same.T, where.T)

    return loss._replace(matrix_fn=lambda a, b: matrix_fn(b, a).T, relation_fn=relation_fn)


class Whole(NamedTuple):
    """What all tiles share: the columns, and options that are arrays."""

    columns: Float[Array, "m dim"]
    items: Items
    options: dict[str, Array]


class Rows(NamedTuple):
    """Rows with their items and the options that have one number per row.

    Attributes:
      embeddings: Embeddings of one tile, or of all tiles along a first axis.
      items: The items of the rows.
      real: False for rows that fill the last tile up.
      options: The part of each option that belongs to the rows.
    """

    embeddings: Float[Array, "*tiles rows dim"]
    items: Items
    real: Bool[Array, "*tiles rows"]
    options: dict[str, Array]


Matrix = tuple[Array, Array, Array]  # numbers, same, where


def cut(rows: Rows, tile_size: int) -> Rows:
    """Cuts rows into tiles of equal size, of at most `tile_size`.

    The last tile is filled up with copies of the last row, which are not `real`. Their
    distances are ordinary ones, so that no function sees a number that is not in the
    matrix anyway.
    """
    n = len(rows.embeddings)
    num_tiles = -(-n // tile_size)
    size = -(-n // num_tiles)
    missing = num_tiles * size - n

    def tiles(x: Array) -> Array:
        copies = jnp.broadcast_to(x[-1:], (missing, *x.shape[1:]))
        filled = jnp.concatenate([x, copies]) if missing else x
        return filled.reshape(num_tiles, size, *x.shape[1:])

    real = np.arange(num_tiles * size).reshape(num_tiles, size) < n
    return jax.tree.map(tiles, rows)._replace(real=jnp.asarray(real))


# Terms of a tile -------------------------------------------------------------------------


def _matrix_of(loss: Loss, rows: Rows, columns: Array, column_items: Items) -> Matrix:
    matrix = loss.matrix_fn(rows.embeddings, columns)
    same, where = loss.relation_fn(rows.items, column_items)
    return matrix, same, where & rows.real[:, None]


def _terms(loss: Loss, matrix: Matrix, rows: Rows, options: dict[str, Array]) -> Parts:
    """The terms of a tile, of which those of copied rows do not count."""
    numbers, same, where = matrix
    options = {**loss.fixed, **options, **rows.options}
    parts = unreduced_terms(loss.fn, numbers, same, where=where, **options)
    for part in parts:
        if part.values.shape[:1] != rows.real.shape:
            raise ValueError(
                f"the terms of a loss in tiles must have one row per anchor, "
                f"{len(rows.real)}; got shape {part.values.shape}"
            )
    return tuple(_only_real(part, rows.real) for part in parts)


def _only_real(terms: Terms, real: Bool[Array, " rows"]) -> Terms:
    counts = terms.where & real.reshape(-1, *[1] * (terms.where.ndim - 1))
    return Terms(
        jnp.where(counts, terms.values, 0), counts, jnp.where(counts, terms.weights, 0)
    )


def terms_of_rows(loss: Loss, tiles: Rows, whole: Whole, num_rows: int) -> Any:
    """The terms of all rows, computed again for the gradient, as `reduce_fn=None` gives."""
    parts = _recomputed(loss, lambda parts: parts, tiles, whole)
    for part in parts:
        if part.values.ndim != 2:
            raise ValueError(
                "reduce_fn=None needs a loss with one term per anchor, since terms of all "
                f"entries are as large as the matrix; got {part.values.ndim - 1} axes"
            )
    parts = jax.tree.map(lambda x: x.reshape(-1)[:num_rows], parts)
    return parts[0] if len(parts) == 1 else parts


def recomputed_totals(loss: Loss, tiles: Rows, whole: Whole) -> tuple[Totals, ...]:
    """The totals of all tiles, computed again for the gradient."""
    return _sum_tiles(_recomputed(loss, totals, tiles, whole))


def _recomputed(loss: Loss, take: Callable[..., Any], tiles: Rows, whole: Whole) -> Any:
    @jax.checkpoint
    def tile(rows: Rows) -> Any:
        matrix = _matrix_of(loss, rows, whole.columns, whole.items)
        return take(_terms(loss, matrix, rows, whole.options))

    return lax.map(tile, tiles)


def _sum_tiles(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), tree)


# The gradient in the forward sweep -------------------------------------------------------


def row_totals(loss: Loss, tiles: Rows, whole: Whole) -> tuple[Totals, ...]:
    """The totals of all tiles, whose gradient is made in the forward sweep if it can be.

    The gradient of the numerator is kept, so there must be one numerator. Weights have a
    gradient through the denominator too, which is not kept.
    """

    def parts(rows: Rows, whole: Whole) -> tuple[Totals, ...]:
        matrix = _matrix_of(loss, rows, whole.columns, whole.items)
        return totals(_terms(loss, matrix, rows, whole.options))

    known = loss.fn in ENTRY_WISE | ROW_WISE
    num_parts = len(jax.eval_shape(parts, _first(tiles), whole))
    if not known or num_parts > 1 or "weights" in tiles.options:
        return recomputed_totals(loss, tiles, whole)
    inputs, tile_of = _inputs(loss, tiles, whole)
    if any(_axes(number) != _axes(inputs) for number in inputs[1]):
        # JAX adds gradients by parameters of a learned distance over the devices, where the
        # factor of each device has to come first
        return recomputed_totals(loss, tiles, whole)

    def numerator(*of_tile: list) -> tuple[Array, Totals]:
        rows, whole, matrix = tile_of(*of_tile)
        (total,) = totals(_terms(loss, matrix, rows, whole.options))
        return total.numerator, total

    @jax.custom_vjp
    def sweep(tiles: list, whole: list, fixed_tiles: list, fixed: list) -> Totals:
        def one(xs: tuple[list, list]) -> Totals:
            return numerator(xs[0], whole, xs[1], fixed)[1]

        return _sum_tiles(lax.map(one, (tiles, fixed_tiles)))

    def forward(tiles: list, whole: list, fixed_tiles: list, fixed: list) -> Any:
        def one(sums: list, xs: tuple[list, list]) -> tuple[list, tuple[Totals, list]]:
            gradient = jax.grad(numerator, argnums=(0, 1), has_aux=True)
            (of_tile, of_whole), total = gradient(xs[0], whole, xs[1], fixed)
            return jax.tree.map(jnp.add, sums, of_whole), (total, of_tile)

        start = jax.tree.map(jnp.zeros_like, whole)
        of_whole, (sums, of_tiles) = lax.scan(one, start, (tiles, fixed_tiles))
        return _sum_tiles(sums), (of_tiles, of_whole)

    def backward(gradients: tuple[list, list], cotangent: Totals) -> tuple:
        factor = cotangent.numerator
        scaled = jax.tree.map(lambda g: (factor * g).astype(g.dtype), gradients)
        return *scaled, None, None

    sweep.defvjp(forward, backward)
    return (sweep(*inputs),)


# Both directions in one sweep ------------------------------------------------------------


def symmetric_totals(
    loss: Loss, fold: Fold, tiles: Rows, whole: Whole, *, num_rows: int
) -> tuple[tuple[Totals, ...], ...]:
    """The totals by rows and by columns, from one sweep over the tiles.

    A tile has whole rows, and a block of each column. Backwards, a tile is computed again,
    and the gradient of both directions made of it. If a column has several positives and
    the loss has a value for each of them, there is a second forward sweep.

    Args:
      loss: A loss of the library that has a fold.
      fold: The fold of the loss.
      tiles: The rows.
      whole: The columns. Its options are all that are arrays, for either direction.
      num_rows: Number of rows without those that fill the last tile.
    """
    inputs, tile_of = _inputs(loss, tiles, whole)

    def directions(xs: tuple, whole: list, fixed: list) -> tuple[tuple, tuple]:
        rows, shared, matrix = tile_of(xs[0], whole, xs[1], fixed)
        of_columns = {**loss.fixed, **shared.options}
        of_rows = {**of_columns, **rows.options}
        return (matrix, of_rows), (tuple(x.T for x in matrix), of_columns)

    def forward(tiles: list, whole: list, fixed_tiles: list, fixed: list) -> Any:
        def first(xs: tuple) -> tuple[State, tuple[State, Found]]:
            (matrix, of_rows), (turned, of_columns) = directions(xs, whole, fixed)
            state = _folds.of_block(fold.pieces(*matrix, **of_rows))
            found = _both_sweeps(
                fold, state, lambda one: _second(fold, one, matrix, of_rows)
            )
            return _folds.of_block(fold.pieces(*turned, **of_columns)), (state, found)

        def second(found: Found) -> State:
            def block(xs: tuple) -> tuple[State, None]:
                _, direction = directions(xs, whole, fixed)
                return _second(fold, found, *direction), None

            return _folded(block, (tiles, fixed_tiles))[0]

        state, by_rows = _folded(first, (tiles, fixed_tiles))
        by_columns = state, _both_sweeps(fold, state, second)
        kept = (tiles, whole, fixed_tiles, fixed), by_rows, by_columns
        return (by_rows[1], by_columns[1]), kept

    def backward(kept: tuple, slopes: tuple[Found, Found]) -> tuple:
        (tiles, whole, fixed_tiles, fixed), by_rows, by_columns = kept
        of_rows, of_columns = map(_floats, slopes)

        def tangent(tile: list, whole: list, fixed_tile: list, rows: tuple) -> Array:
            matrix, turned = directions((tile, fixed_tile), whole, fixed)
            columns = (*by_columns, of_columns)
            return _folds.tangent(fold, matrix[0], *rows, **matrix[1]) + _folds.tangent(
                fold, turned[0], *columns, **turned[1]
            )

        def one(sums: list, xs: tuple) -> tuple[list, list]:
            tile, fixed_tile, rows = xs
            gradient = jax.grad(tangent, argnums=(0, 1))
            of_tile, of_whole = gradient(tile, whole, fixed_tile, rows)
            return jax.tree.map(jnp.add, sums, of_whole), of_tile

        start = jax.tree.map(jnp.zeros_like, whole)
        xs = (tiles, fixed_tiles, (*by_rows, of_rows))
        of_whole, of_tiles = lax.scan(one, start, xs)
        return of_tiles, of_whole, None, None

    @jax.custom_vjp
    def sweep(*inputs: list) -> tuple[Found, Found]:
        return forward(*inputs)[0]

    sweep.defvjp(forward, backward)
    by_rows, by_columns = sweep(*inputs)
    by_rows = {name: x.ravel()[:num_rows] for name, x in by_rows.items()}
    options = {**loss.fixed, **whole.options}
    return tuple(totals(fold.finish(x, **options)) for x in (by_rows, by_columns))


def _second(fold: Fold, found: Found, matrix: Matrix, options: dict[str, Any]) -> State:
    assert fold.second is not None
    return _folds.of_block(fold.second(*matrix, found, **options))


def _both_sweeps(fold: Fold, state: State, second: Callable[[Found], State]) -> Found:
    """What is found; a second sweep is made if a row has more than one positive."""
    found, of_one = _folds.numbers(state), fold.second_of_one
    if of_one is None:
        return found
    several = jnp.any(found["num_positives"] > 1)
    more = lax.cond(several, lambda: _folds.numbers(second(found)), lambda: of_one(found))
    return {**found, **more}


def _floats(found: Found) -> Found:
    """Those of the derivatives that are not of integers, which have none."""
    return {k: x for k, x in found.items() if jnp.issubdtype(x.dtype, jnp.floating)}


def _folded(block: Callable[[Any], tuple[State, Any]], xs: Any) -> tuple[State, Any]:
    """The state of all blocks, and what each of them gives besides."""

    def one(state: State, x: Any) -> tuple[State, Any]:
        of_block, more = block(x)
        return _folds.combine(state, of_block), more

    like, _ = jax.eval_shape(block, _first(xs))
    return lax.scan(one, _varying(_folds.nothing(like), _axes(xs)), xs)


# Inputs of a sweep -----------------------------------------------------------------------


def _inputs(loss: Loss, tiles: Rows, whole: Whole) -> tuple[tuple, Callable[..., Any]]:
    """What a function with a gradient of its own takes, and what it makes of a tile.

    Returns:
      Four lists of arrays: numbers of the tiles, numbers that all tiles share, and of both
      what is not a number and has no gradient. Numbers over which `matrix_fn` closes, such
      as parameters of a learned distance, are among those that all tiles share.
      And a function that takes the same for one tile, and returns its rows, `whole` and the
      matrix.
    """
    axes = _axes((tiles, whole))
    tiles, whole = _varying((tiles, whole), axes)

    def matrix(rows: Rows, columns: Array, items: Items) -> Matrix:
        return _matrix_of(loss, rows, columns, items)

    matrix_of, closed_over = jax.closure_convert(
        matrix, _first(tiles), whole.columns, whole.items
    )
    tile_numbers, tile_others, join_tile = _split(tiles)
    numbers, others, join = _split((whole, closed_over))

    def tile_of(
        tile_numbers: list, numbers: list, tile_others: list, others: list
    ) -> tuple[Rows, Whole, Matrix]:
        rows, (whole, closed_over) = (
            join_tile(tile_numbers, tile_others),
            join(numbers, others),
        )
        return rows, whole, matrix_of(rows, whole.columns, whole.items, *closed_over)

    return (tile_numbers, numbers, tile_others, others), tile_of


def _split(tree: Any) -> tuple[list, list, Callable[[list, list], Any]]:
    """The leaves that are floating-point, the others, and a function that joins them."""
    leaves, treedef = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def join(floats: list, others: list) -> Any:
        sources = iter(floats), iter(others)
        return jax.tree.unflatten(treedef, [next(sources[not flag]) for flag in is_float])

    floats = [leaf for leaf, flag in zip(leaves, is_float, strict=True) if flag]
    others = [leaf for leaf, flag in zip(leaves, is_float, strict=True) if not flag]
    return floats, others, join


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)


def _axes(tree: Any) -> frozenset:
    """Axes of the mesh, inside of `shard_map`, along which some array differs."""
    return frozenset().union(
        *(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree))
    )


def _varying(tree: Any, axes: frozenset) -> Any:
    """Declares that all arrays differ along the axes, as sums over tiles will."""

    def vary(x: Array) -> Array:
        missing = axes - jax.typeof(x).manual_axis_type.varying
        return lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(vary, tree)
