"""Apply a function to a whole data set in fixed-size batches, padding the last.

>>> import jax.numpy as jnp
>>> print(map_batches(lambda x: x * 10, jnp.arange(5), batch_size=2))
[ 0 10 20 30 40]

Where a mesh of devices is set (`jax.set_mesh`), the rows of each batch are spread over it.
`use_devices_of(params)` sets the mesh that the parameters are on.
"""

import contextlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree

from siamese_jax._checks import check_at_least


def map_batches(
    fn: Callable[[PyTree], PyTree], inputs: PyTree, *, batch_size: int
) -> PyTree:
    """Applies `fn` to all rows of the inputs, `batch_size` rows at a time.

    The last batch is padded with copies of the last row, whose results are removed again.
    So `fn` is compiled for one shape and no row is dropped. In a mesh whose axes are of
    type Auto and whose size divides `batch_size`, each device computes its share of the
    rows of a batch, and the result is on every device.

    Args:
      fn: Takes `batch_size` rows of the inputs and returns arrays with as many rows. Each
        row of its result must depend on the same row of its input alone.
      inputs: A tree of arrays with the same number of rows.
      batch_size: Number of rows in a batch.

    Raises:
      ValueError: If `batch_size` is below 1, the inputs have no rows or different numbers
        of rows, or `fn` returns another number of rows than it is given.

    >>> print(map_batches(lambda x: x + 1, jnp.arange(3), batch_size=8))
    [1 2 3]
    """
    check_at_least("batch_size", batch_size, 1)
    inputs = jax.tree.map(jnp.asarray, inputs)
    lengths = {len(array) for array in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "inputs must be arrays with the same number of rows, at least 1; "
            f"got {sorted(lengths)}"
        )
    num_rows = lengths.pop()
    num_batches = -(-num_rows // batch_size)
    rows = jnp.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    rows = jnp.minimum(rows, num_rows - 1)

    mesh = jax.sharding.get_abstract_mesh()
    is_auto = set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    spread = is_auto and batch_size % mesh.size == 0

    def place(tree: PyTree, *axes: Any) -> PyTree:
        spec = jax.sharding.PartitionSpec(*axes)
        return lax.with_sharding_constraint(tree, spec) if spread else tree

    def one_batch(rows: Array) -> PyTree:
        # XLA would fuse the reading with what follows, and read number by number on CPUs
        batch = lax.optimization_barrier(jax.tree.map(lambda array: array[rows], inputs))
        return place(fn(place(batch, mesh.axis_names)))

    outputs = lax.map(one_batch, rows)
    for output in jax.tree.leaves(outputs):
        if output.shape[1:2] != (batch_size,):
            raise ValueError(
                f"fn must return {batch_size} rows for {batch_size} rows; "
                f"got shape {output.shape[1:]}"
            )
    return jax.tree.map(
        lambda array: array.reshape(-1, *array.shape[2:])[:num_rows], outputs
    )


def use_devices_of(tree: PyTree) -> contextlib.AbstractContextManager[Any]:
    """Sets the mesh that the arrays of a tree are on, for the length of a `with` block.

    Without an array on several devices, or inside a compiled function, it does nothing.

    >>> with use_devices_of({"w": jnp.ones(3)}):
    ...     print(map_batches(lambda x: x + 1, jnp.arange(3), batch_size=8))
    [1 2 3]
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            sharding = leaf.sharding
            if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
                return jax.set_mesh(cast(Mesh, sharding.mesh))
    return contextlib.nullcontext()
