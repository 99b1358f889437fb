"""One network for several inputs, or one network for each, through `vmap`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

ApplyFn = Callable[..., Any]
"""A network as a function: `apply_fn(params, x)` returns the embeddings of inputs x."""

TWIN_AXIS = "twin"
"""Name of the axis of the inputs in `twin`, for batch statistics over all of them."""


def twin(apply_fn: ApplyFn, *, has_statistics: bool = False) -> ApplyFn:
    """Applies one parameter tree to every input: `vmap(apply_fn, in_axes=(None, 0))`.

    Args:
      apply_fn: `apply_fn(params, x, *extras) -> embeddings`, on any pytrees. The mapped
        axis is named "twin".
      has_statistics: Whether `apply_fn` returns `(embeddings, statistics)`. The statistics
        are averaged over the inputs, so that one set comes back. Of integers and booleans,
        such as counters and flags, the largest comes back: they have no mean, and a counter
        never goes back. (A counter of calls goes up by 1, whatever the number of inputs.)

    Returns:
      A function of `(params, inputs, *extras)`. The inputs and each of the extras (one
      dropout key for each input, for example) have a leading axis of the same length.

    >>> pair = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> print(twin(lambda params, x: params + x)(10.0, pair).tolist())
    [[11.0, 12.0], [13.0, 14.0]]
    """
    mapped = _over_inputs(apply_fn, params_axis=None)

    def apply(params: PyTree, inputs: PyTree, *extras: PyTree) -> Any:
        outputs = mapped(params, inputs, *extras)
        if not has_statistics:
            return outputs
        embeddings, statistics = outputs
        return embeddings, jax.tree.map(_one_of_inputs, statistics)

    return apply


def two_towers(apply_fn: ApplyFn) -> ApplyFn:
    """Applies to each input its own parameters: `vmap(apply_fn, in_axes=(0, 0))`.

    The parameters of all towers are stacked in one tree, as `jax.vmap(init)(keys)` or
    `stack_towers(left, right)` make it.

    Args:
      apply_fn: The same function that `twin` takes. If it returns statistics too, they
        are returned stacked, one set for each tower.

    Returns:
      A function of `(stacked_params, inputs, *extras)`.

    >>> params = stack_towers(jnp.array(1.0), jnp.array(10.0))
    >>> pair = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> print(two_towers(lambda params, x: params * x)(params, pair).tolist())
    [[1.0, 2.0], [30.0, 40.0]]
    """
    return _over_inputs(apply_fn, params_axis=0)


def stack_towers(*towers: PyTree) -> PyTree:
    """Stacks the parameter trees of several towers on a new leading axis.

    Raises:
      ValueError: If no tree is given, or their structures or shapes differ.

    >>> print(stack_towers({"w": jnp.zeros(3)}, {"w": jnp.ones(3)})["w"].shape)
    (2, 3)
    """
    if not towers:
        raise ValueError("stack_towers needs at least one parameter tree; got none")
    described = [jax.tree.map(jnp.shape, tower) for tower in towers]
    for number, other in enumerate(described[1:], 1):
        if other != described[0]:
            raise ValueError(
                f"the trees of towers 0 and {number} differ in structure or shapes: "
                f"{described[0]} and {other}"
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *towers)


def _over_inputs(apply_fn: ApplyFn, *, params_axis: int | None) -> ApplyFn:
    def apply(params: PyTree, inputs: PyTree, *extras: PyTree) -> Any:
        in_axes = (params_axis, 0) + (0,) * len(extras)
        mapped = jax.vmap(apply_fn, in_axes=in_axes, axis_name=TWIN_AXIS)
        return mapped(params, inputs, *extras)

    return apply


def _one_of_inputs(stacked: Array) -> Array:
    """The mean of floating-point numbers, the largest of integers and booleans."""
    if jnp.issubdtype(stacked.dtype, jnp.inexact):
        return jnp.mean(stacked, axis=0)
    return jnp.max(stacked, axis=0)
