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
from jaxtyping import Array, PyTree

from siamese_jax._folds import Part, State, Sum, combine, nothing
from siamese_jax._numerics import widen
from siamese_jax._tiles import Rows, _axes, _first, _split, _varying, cut

AxisName = str | tuple[str, ...]
Options = dict[str, Array]
# (options, rows, a tile of columns) -> what the tile leaves in its rows and its columns
BlockFn = Callable[[Options, Rows, Rows], tuple[State, State]]


def journey(
    block_fn: BlockFn,
    options: Options,
    rows: Rows,
    columns: Rows,
    *,
    axis_name: AxisName,
    tile_size: int | None = None,
) -> tuple[State, State]:
    """States of this device's rows and columns, of all columns and all rows there are.

    Args:
      block_fn: What a tile leaves. It may use other arrays, such as the parameters of a
        learnt distance, which are differentiated too.
      options: Arrays that all tiles share, such as a learnt temperature.
      rows: The rows of this device.
      columns: The columns of this device.
      axis_name: The axis of the devices.
      tile_size: Largest number of columns of a tile. None takes all columns of a device.
    """
    num_columns = len(columns.embeddings)
    shared = options, rows
    tiles = cut(columns, tile_size or num_columns)
    axes = _axes((shared, tiles, lax.axis_index(axis_name)))
    shared, tiles = _varying((shared, tiles), axes)
    block_fn, constants = jax.closure_convert(block_fn, *shared, _first(tiles))
    numbers, others, join = _split(shared)
    tile_numbers, tile_others, join_tile = _split(tiles)

    def visit(numbers: Numbers, others: Others) -> tuple[State, State]:
        own, constants, of_tile = numbers
        tile = join_tile(of_tile, others[1])
        return block_fn(*join(own, others[0]), tile, *constants)

    of_rows, of_columns = _states(
        visit, axis_name, (numbers, constants, tile_numbers), (others, tile_others)
    )
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1)[:num_columns], of_columns)
    return of_rows, flat


Numbers = tuple[list, list, list]  # of the rows, closed over, of tiles: differentiated
Others = tuple[list, list]  # of the rows, of tiles


class Block(NamedTuple):
    """Columns on their journey, in tiles, and what is added up for them on the way."""

    numbers: list
    others: list
    sums: PyTree


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _states(
    visit: Callable[..., Any], axis_name: AxisName, numbers: Numbers, others: Others
) -> tuple[State, State]:
    own, constants, columns = numbers
    one = (own, constants, _first(columns)), (others[0], _first(others[1]))
    empty = map(nothing, jax.eval_shape(visit, *one))
    of_rows, of_tile = _varying(
        tuple(empty), _axes((own, columns, lax.axis_index(axis_name)))
    )
    num_tiles = len(columns[0])
    of_columns = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (num_tiles, *leaf.shape)), of_tile
    )

    def tile(of_rows: State, block: Block) -> tuple[State, State]:
        found = visit((own, constants, block.numbers), (others[0], block.others))
        return combine(of_rows, found[0]), combine(block.sums, found[1])

    return _around(tile, of_rows, Block(columns, others[1], of_columns), axis_name)


def _forward(
    visit: Callable[..., Any], axis_name: AxisName, numbers: Numbers, others: Others
) -> tuple[tuple[State, State], Any]:
    states = _states(visit, axis_name, numbers, others)
    return states, (numbers, others, states)


def _backward(
    visit: Callable[..., Any], axis_name: AxisName, kept: Any, slopes: Any
) -> tuple[Numbers, None]:
    (own, constants, columns), others, states = kept
    rows_at_end, columns_at_end = map(_without_sums, states)
    row_slopes, column_slopes = map(_floats, slopes)

    def tile(gradients: Any, block: Block) -> tuple[Any, Any]:
        of_tile, at_end, tile_slopes = block.others

        def contribution(*numbers: list) -> list[Array]:
            of_rows, of_columns = visit(numbers, (others[0], of_tile))
            return _floats((combine(of_rows, rows_at_end), combine(of_columns, at_end)))

        _, pull = jax.vjp(contribution, own, constants, block.numbers)
        *more, of_columns = pull([*row_slopes, *tile_slopes])
        return _sum(gradients, more), _sum(block.sums, of_columns)

    zeros = _wide_zeros([own, constants, columns])
    travelling = [others[1], columns_at_end, column_slopes]
    block = Block(columns, travelling, zeros[2])
    gradients, of_columns = _around(tile, zeros[:2], block, axis_name)
    narrow = jax.tree.map(
        lambda leaf, gradient: gradient.astype(leaf.dtype),
        [own, constants, columns],
        [*gradients, of_columns],
    )
    return tuple(narrow), None


_states.defvjp(_forward, _backward)


def _around(
    tile: Callable[[Any, Block], tuple[Any, Any]],
    of_rows: Any,
    block: Block,
    axis_name: AxisName,
) -> tuple[Any, Any]:
    """Sums of the rows and of the columns after all hops.

    `tile(sums of the rows, tile of a block)` returns the sums of the rows and of the tile.
    """
    size = lax.axis_size(axis_name)
    order = [(device, (device - 1) % size) for device in range(size)]

    def hop(carry: tuple[Any, Block], _: None) -> tuple[tuple[Any, Block], None]:
        of_rows, block = carry
        of_rows, sums = lax.scan(tile, of_rows, block)
        block = jax.tree.map(
            lambda leaf: lax.ppermute(leaf, axis_name, order), block._replace(sums=sums)
        )
        return (of_rows, block), None

    (of_rows, block), _ = lax.scan(hop, (of_rows, block), length=size)
    return of_rows, block.sums


# States and gradients --------------------------------------------------------------------


def _without_sums(state: State) -> State:
    """The largest numbers of a state alone, to which a block adds its sums."""

    def without(part: Part) -> Part:
        zeros = jax.tree.map(jnp.zeros_like, part)
        return zeros if isinstance(part, Sum) else zeros._replace(top=part.top)

    return {name: without(part) for name, part in state.items()}


def _floats(tree: PyTree) -> list[Array]:
    return [
        leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]


def _wide_zeros(tree: PyTree) -> PyTree:
    """Zeros in which gradients are added, in float32 for numbers of half precision.

    They are computed from the numbers, so that they differ along the axes of the mesh along
    which the gradients will.
    """
    return jax.tree.map(
        lambda leaf: jnp.where(jnp.isfinite(leaf), 0 * widen(leaf), 0), tree
    )


def _sum(totals: PyTree, more: PyTree) -> PyTree:
    return jax.tree.map(lambda total, x: total + x.astype(total.dtype), totals, more)
