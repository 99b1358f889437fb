"""A whole set through a function, a batch at a time, with nothing dropped.

>>> import jax.numpy as jnp
>>> print(map_batches(lambda x: x * 10, jnp.arange(5), batch_size=2))
[ 0 10 20 30 40]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from siamese_jax._checks import check_at_least


def map_batches(
    fn: Callable[[PyTree], PyTree], inputs: PyTree, *, batch_size: int
) -> PyTree:
    """Applies `fn` to a whole set, a batch at a time; no example is ever dropped.

    The last batch is filled up with repeats, whose results are cut off again. One program
    with one shape of batch.

    Args:
      fn: Takes `inputs` cut to `batch_size` rows, returns arrays with as many rows. Each
        row of the result depends on its own row alone (no batch statistics).
      inputs: A tree of arrays with equally many rows.
      batch_size: Rows at a time.

    Raises:
      ValueError: If `batch_size` is below 1, the inputs have no rows or unequally many, or
        `fn` returns another number of rows than it is given.

    >>> print(map_batches(lambda x: x + 1, jnp.arange(3), batch_size=8))
    [1 2 3]
    """
    check_at_least("batch_size", batch_size, 1)
    inputs = jax.tree.map(jnp.asarray, inputs)
    lengths = {len(array) for array in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "inputs must be arrays with equally many rows, at least 1; "
            f"got {sorted(lengths)}"
        )
    num_rows = lengths.pop()
    num_batches = -(-num_rows // batch_size)
    rows = jnp.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    rows = jnp.minimum(rows, num_rows - 1)

    def one_batch(rows: Array) -> PyTree:
        return fn(jax.tree.map(lambda array: array[rows], inputs))

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
