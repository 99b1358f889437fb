"""Numerical functions that several modules share."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

AnyArray = TypeVar("AnyArray", Array, np.ndarray)
Scalar = float | Float[Array, ""]  # a hyperparameter, which may be a learned one
Margin = float | Float[Array, "..."]  # one for all, or one for each row or entry


def widen(array: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts half precision to float32. Other types are left unchanged.

    A gradient comes back in the type of the array. Where it is beyond the range of float16,
    it is the largest float16 instead of infinity. NaN stays NaN. (Float16 arrays have no
    forward-mode derivatives for this reason.)
    """
    if array.dtype == jnp.float16:
        return _widen_float16(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


@jax.custom_vjp
def _widen_float16(array: Array) -> Array:
    return array.astype(jnp.float32)


def _narrow(_: None, gradient: Array) -> tuple[Array]:
    largest = jnp.finfo(jnp.float16).max
    return (jnp.clip(gradient, -largest, largest).astype(jnp.float16),)


_widen_float16.defvjp(lambda array: (_widen_float16(array), None), _narrow)


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square root of a non-negative number, with gradient 0 at 0 instead of infinity.

    The root is masked inside as well as outside, since with the outer mask alone the
    gradient would be 0 times infinity. NaN stays NaN.
    """
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def safe_abs(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Absolute value, with gradient 0 at 0 instead of the 1 of `jnp.abs`."""
    return jnp.where(x == 0, 0, jnp.abs(x))


def centred(x: Float[Array, "*shape"], axis: int) -> Float[Array, "*shape"]:
    """Subtracts the mean along an axis, so that constant numbers become exactly 0.

    The first entry is subtracted before the mean. Otherwise constant numbers would keep the
    rounding error of their mean, which has a direction too.
    """
    first = lax.stop_gradient(lax.slice_in_dim(x, 0, min(1, x.shape[axis]), axis=axis))
    moved = x - first
    return moved - jnp.mean(moved, axis=axis, keepdims=True)


def add_angle(cosine: Float[Array, "*shape"], angle: Margin) -> Float[Array, "*shape"]:
    """cos(arccos(c) + angle) = c cos(angle) - sqrt(1 - c^2) sin(angle), in radians.

    The gradient is finite at c = 1 and c = -1, where that of arccos is not. A cosine beyond
    them, by rounding, counts as 1 or -1 under the root.
    """
    sine = safe_sqrt(jax.nn.relu(1 - cosine**2))
    return cosine * jnp.cos(angle) - sine * jnp.sin(angle)


class NodeCounts(NamedTuple):
    """Where numbers lie between the nodes of a histogram, and the counts at the nodes.

    Attributes:
      left: The node at or below each number.
      share: How far each number is on its way to the next node, from 0 to 1.
      counts: Sum of weights at each node.
    """

    left: Int[Array, "*shape"]
    share: Float[Array, "*shape"]
    counts: Float[Array, " nodes"]


def node_counts(
    places: Float[Array, "*shape"], weights: Float[Array, "*shape"], num_nodes: int
) -> NodeCounts:
    """Counts numbers from 0 to num_nodes - 1, each at its two neighbouring nodes.

    A number counts at either node in proportion to its nearness. Numbers of weight 0 may be
    NaN; the others make their counts NaN.

    >>> found = node_counts(jnp.array([0.25, 2.0]), jnp.array([1.0, 1.0]), 3)
    >>> print(found.counts)
    [0.75 0.25 1.  ]
    """
    left = jnp.clip(jnp.floor(lax.stop_gradient(places)), 0, num_nodes - 2)
    share = places - left
    left = jnp.where(jnp.isnan(left), 0, left).astype(jnp.int32)
    counted = jnp.where(weights == 0, 0, share)
    counts = jnp.zeros(num_nodes, share.dtype).at[left].add(weights * (1 - counted))
    return NodeCounts(left, share, counts.at[left + 1].add(weights * counted))


def row_has_nan(
    matrix: Float[Array, "n m"], where: Bool[Array, "n m"]
) -> Bool[Array, "n 1"]:
    """Whether a valid entry of each row is NaN, which sorting the row would hide.

    >>> print(row_has_nan(jnp.array([[1.0, jnp.nan]]), jnp.array([[True, False]])))
    [[False]]
    """
    return jnp.any(jnp.isnan(matrix) & where, axis=1, keepdims=True)


def just_below(x: AnyArray) -> AnyArray:
    """Returns numbers a little smaller than x, of the same type.

    The number before 0 is subnormal and would be flushed to 0, so that -tiny is taken.
    """
    numpy = np if isinstance(x, np.ndarray) else jnp
    return numpy.minimum(numpy.nextafter(x, -np.inf), x - jnp.finfo(x.dtype).tiny)
