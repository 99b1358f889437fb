"""A journey of the columns of all devices around a ring, in blocks, past the rows of each.

Each device keeps its rows. Its block of columns visits every device and is back home after
as many hops as there are devices, with what the rows of all devices have left in its
columns. The gradient is a second journey: each block is received again, its numbers are
computed again, and the gradient by its columns travels with it. Nothing of a block is kept
between the hops, so that the memory of a device does not depend on the number of devices.
Autodiff of the loop would keep every block that was received, which is why the gradient is
written here.

A block is cut into tiles of columns, one after the other, so that a device holds
rows x tile entries of the matrix at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PyTree

from siamese_jax._folds import State, combine, nothing
from siamese_jax._numerics import widen
from siamese_jax.relations import Items

AxisName = str | tuple[str, ...]


class Share(NamedTuple):
    """Rows or columns of one device.

    Attributes:
      numbers: Floating-point arrays of leading axis n: the embeddings and what a sweep has
        found before. They are differentiated.
      items: What the relation is made from.
    """

    numbers: PyTree
    items: Items


class Columns(NamedTuple):
    """The columns of one device in tiles: every array has the leading axes [tiles, size].

    Attributes:
      share: The columns. The last tile is filled with copies of the last column.
      real: False for the copies.
    """

    share: Share
    real: Bool[Array, "tiles size"]


Options = dict[str, Array]
# (options, rows, a tile of columns, which of it are real) -> states of rows and of columns
BlockFn = Callable[[Options, Share, Share, Bool[Array, " size"]], tuple[State, State]]


def sweep(
    block_fn: BlockFn,
    options: Options,
    rows: Share,
    columns: Share,
    *,
    axis_name: AxisName,
    tile_size: int | None = None,
) -> tuple[State, State]:
    """States of this device's rows and columns, of all columns and all rows there are.

    Args:
      block_fn: What a tile leaves. It may use other arrays, such as the parameters of a
        learnt distance, which are differentiated too.
      options: Floating-point arrays that all tiles share, such as a learnt temperature.
      rows: The rows of this device.
      columns: The columns of this device.
      axis_name: The axis of the devices.
      tile_size: Number of columns of a tile. None takes all columns of a device.
    """
    num_columns = len(jax.tree.leaves(columns.numbers)[0])
    options, rows, tiled = _varying(
        (options, rows, _in_tiles(columns, tile_size)), axis_name
    )
    tile = jax.tree.map(lambda leaf: leaf[0], tiled)
    block_fn, constants = jax.closure_convert(block_fn, options, rows, *tile)
    of_rows, of_columns = _journey(
        partial(_visit, block_fn),
        axis_name,
        ((options, constants), rows.numbers, tiled.share.numbers),
        (rows.items, tiled.share.items, tiled.real),
    )
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1)[:num_columns], of_columns)
    return of_rows, flat


Numbers = tuple[PyTree, PyTree, PyTree]  # shared ones, of rows, of columns: differentiated
Others = tuple[Items, Items, Array]  # items of rows and of columns, which are real
VisitFn = Callable[[Numbers, Others], tuple[State, State]]


def _visit(block_fn: Callable[..., Any], numbers: Numbers, others: Others) -> Any:
    (options, constants), of_rows, of_tile = numbers
    rows, tile = Share(of_rows, others[0]), Share(of_tile, others[1])
    return block_fn(options, rows, tile, others[2], *constants)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _journey(
    visit_fn: VisitFn,
    axis_name: AxisName,
    numbers: Numbers,
    others: Others,
) -> tuple[State, State]:
    shared, rows, columns = numbers
    row_items, column_items, real = others
    first = jax.tree.map(lambda leaf: leaf[0], (columns, column_items, real))
    shapes = jax.eval_shape(visit_fn, (shared, rows, first[0]), (row_items, *first[1:]))
    of_rows, of_tile = _varying(tuple(map(nothing, shapes)), axis_name)
    of_columns = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (len(real), *leaf.shape)), of_tile
    )

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        of_rows, block, of_columns = carry

        def visit(of_rows: State, tile: Any) -> tuple[State, State]:
            (numbers, items, real), before = tile
            found = visit_fn((shared, rows, numbers), (row_items, items, real))
            return combine(of_rows, found[0]), combine(before, found[1])

        of_rows, of_columns = lax.scan(visit, of_rows, (block, of_columns))
        block, of_columns = _passed_on((block, of_columns), axis_name)
        return (of_rows, block, of_columns), None

    block = columns, column_items, real
    carry = of_rows, block, of_columns
    (of_rows, _, of_columns), _ = lax.scan(hop, carry, length=lax.axis_size(axis_name))
    return of_rows, of_columns


def _forward(
    visit_fn: VisitFn, axis_name: AxisName, numbers: Numbers, others: Others
) -> tuple[tuple[State, State], Any]:
    states = _journey(visit_fn, axis_name, numbers, others)
    return states, (numbers, others, jax.tree.map(lax.stop_gradient, states))


def _backward(
    visit_fn: VisitFn, axis_name: AxisName, kept: Any, slopes: Any
) -> tuple[Numbers, None]:
    (shared, rows, columns), (row_items, column_items, real), states = kept
    rows_at_end, columns_at_end = map(_without_sums, states)
    row_slopes, column_slopes = map(_floats, slopes)

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        gradients, travelling, column_gradients = carry

        def visit(gradients: Any, tile: Any) -> tuple[Any, Any]:
            (numbers, items, real, at_end, slopes), gradient = tile

            def contribution(*numbers: PyTree) -> list[Array]:
                of_rows, of_tile = visit_fn(numbers, (row_items, items, real))
                of_rows, of_tile = combine(of_rows, rows_at_end), combine(of_tile, at_end)
                return _floats((of_rows, of_tile))

            _, pull = jax.vjp(contribution, shared, rows, numbers)
            *own, of_columns = pull([*row_slopes, *slopes])
            return _sum(gradients, tuple(own)), _sum(gradient, of_columns)

        gradients, column_gradients = lax.scan(
            visit, gradients, (travelling, column_gradients)
        )
        moved = _passed_on((travelling, column_gradients), axis_name)
        return (gradients, *moved), None

    travelling = columns, column_items, real, columns_at_end, column_slopes
    zeros = _wide_zeros((shared, rows, columns))
    carry = zeros[:2], travelling, zeros[2]
    (own, _, of_columns), _ = lax.scan(hop, carry, length=lax.axis_size(axis_name))
    gradients = jax.tree.map(
        lambda leaf, gradient: gradient.astype(leaf.dtype),
        (shared, rows, columns),
        (*own, of_columns),
    )
    return gradients, None


_journey.defvjp(_forward, _backward)


# Blocks ----------------------------------------------------------------------------------


def _in_tiles(columns: Share, tile_size: int | None) -> Columns:
    num_columns = len(jax.tree.leaves(columns.numbers)[0])
    size = min(tile_size or num_columns, num_columns)
    num_tiles = -(-num_columns // size)
    place = jnp.arange(num_tiles * size)
    taken = jnp.minimum(place, num_columns - 1)

    def cut(leaf: Array) -> Array:
        leaf = leaf if num_tiles * size == num_columns else leaf[taken]
        return leaf.reshape(num_tiles, size, *leaf.shape[1:])

    real = (place < num_columns).reshape(num_tiles, size)
    return Columns(jax.tree.map(cut, columns), real)


def _passed_on(tree: PyTree, axis_name: AxisName) -> PyTree:
    """What the next device has had."""
    size = lax.axis_size(axis_name)
    order = [(device, (device - 1) % size) for device in range(size)]
    return jax.tree.map(lambda leaf: lax.ppermute(leaf, axis_name, order), tree)


def _varying(tree: PyTree, axis_name: AxisName) -> PyTree:
    """The same numbers, of a type that may be another on each device.

    The loops need it, since what they carry is another on each device after the first hop.
    """
    always = lax.axis_index(axis_name) >= 0
    return jax.tree.map(lambda leaf: jnp.where(always, leaf, leaf), tree)


# States ----------------------------------------------------------------------------------


def _without_sums(state: State) -> State:
    """The state with the largest numbers alone, to which a block adds its sums."""
    return {
        name: part._replace(
            **{
                field: jnp.zeros_like(getattr(part, field))
                for field in part._fields
                if field != "top"
            }
        )
        for name, part in state.items()
    }


def _floats(tree: PyTree) -> list[Array]:
    return [
        leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]


def _wide_zeros(tree: PyTree) -> PyTree:
    """Zeros in which gradients are added: float32 for numbers of half precision.

    They are computed from the numbers, so that they vary over the devices if these do.
    """
    return jax.tree.map(
        lambda leaf: jnp.where(jnp.isnan(leaf), 0.0, jnp.zeros_like(widen(leaf))), tree
    )


def _sum(totals: PyTree, more: PyTree) -> PyTree:
    return jax.tree.map(lambda total, x: total + x.astype(total.dtype), totals, more)
