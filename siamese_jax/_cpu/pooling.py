"""Max-pooling whose gradient goes to the first of equal largest values.

>>> largest, place = first_largest([jnp.array([1.0, 5.0]), jnp.array([2.0, 5.0])])
>>> print(largest, place)
[2. 5.] [1 0]
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._cpu.maps import elementwise
from siamese_jax._cpu.patches import materialized

LARGEST_WINDOW = 8  # XLA compiles larger ones for many seconds


def check_window(window: int, rows: int, columns: int) -> None:
    """Raises ValueError if a window does not fit into what is pooled."""
    largest = min(rows, columns)
    if not 1 <= window <= largest:
        raise ValueError(
            f"window must be from 1 to {largest}, the smaller side of what is pooled; got "
            f"{window}"
        )


def max_pool(
    x: Float[Array, "a height width b"], window: int
) -> Float[Array, "a rows columns b"]:
    """Pools the two middle axes by blocks of window x window, without overlap."""
    rows, columns = (size // window for size in x.shape[1:3])
    x = x[:, : rows * window, : columns * window]
    return _largest_of_blocks(
        x.reshape(x.shape[0], rows, window, columns, window, x.shape[3])
    )


def first_largest(values: Sequence[Array]) -> tuple[Array, Array]:
    """Returns the largest of arrays, and the number of the first array that has it."""
    largest = values[0]
    place = jnp.zeros(largest.shape, jnp.uint8)
    for number, value in enumerate(values[1:], 1):
        place = jnp.where(value > largest, jnp.asarray(number, place.dtype), place)
        largest = jnp.maximum(largest, value)
    return largest, place


def gradients_of_largest(place: Array, gradient: Array, num: int) -> list[Array]:
    """Returns the gradients of `num` arrays, from the gradient of their largest values."""
    gradient, zero = materialized(gradient), jnp.zeros((), gradient.dtype)
    return [
        jnp.where(place == jnp.asarray(number, place.dtype), gradient, zero)
        for number in range(num)
    ]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def largest_along(x: Array, axis: int, image_axis: int | None) -> Array:
    """Returns the largest values along an axis, which goes.

    Args:
      x: Numbers.
      axis: The axis of what is compared.
      image_axis: The axis of the images in the result, or None if `vmap` is not to join
        images.
    """
    return _largest_along_forward(x, axis, image_axis)[0]


def _largest_along_forward(
    x: Array, axis: int, image_axis: int | None
) -> tuple[Array, tuple[Array, int]]:
    num = x.shape[axis]

    def largest_and_place(x: Array) -> tuple[Array, Array]:
        return first_largest(
            [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(num)]
        )

    axes = _axes(axis, image_axis)
    largest, place = elementwise(largest_and_place, x, image_axes=axes)
    return largest, (place, num)


def _largest_along_backward(
    axis: int, image_axis: int | None, residuals: tuple[Array, int], gradient: Array
) -> tuple[Array]:
    place, num = residuals

    def to_x(place: Array, gradient: Array) -> tuple[Array]:
        return (jnp.stack(gradients_of_largest(place, gradient, num), axis),)

    axes = _axes(axis, image_axis)
    axes = axes and axes[::-1]
    (found,) = elementwise(to_x, place, gradient, image_axes=axes)
    return (found,)


def _axes(axis: int, image_axis: int | None) -> Any:
    """Returns the axes of images before and after the comparison."""
    if image_axis is None:
        return None
    return (image_axis + (axis <= image_axis),), (image_axis, image_axis)


largest_along.defvjp(_largest_along_forward, _largest_along_backward)


@jax.custom_vjp
def _largest_of_blocks(blocks: Array) -> Array:
    """Returns the largest over axes 2 and 4 of [a, rows, window, columns, window, b]."""
    return _largest_of_blocks_forward(blocks)[0]


def _largest_of_blocks_forward(blocks: Array) -> tuple[Array, tuple[Array, int]]:
    window = blocks.shape[2]

    def largest_and_place(blocks: Array) -> tuple[Array, Array]:
        return first_largest(
            [blocks[:, :, i, :, j] for i in range(window) for j in range(window)]
        )

    largest, place = elementwise(largest_and_place, blocks, image_axes=((0,), (0, 0)))
    return largest, (place, window)


def _largest_of_blocks_backward(
    residuals: tuple[Array, int], gradient: Array
) -> tuple[Array]:
    place, window = residuals

    def to_blocks(place: Array, gradient: Array) -> tuple[Array]:
        parts = gradients_of_largest(place, gradient, window * window)
        rows = [jnp.stack(parts[i : i + window], 3) for i in range(0, len(parts), window)]
        return (jnp.stack(rows, 2),)

    (found,) = elementwise(to_blocks, place, gradient, image_axes=((0, 0), (0,)))
    return (found,)


_largest_of_blocks.defvjp(_largest_of_blocks_forward, _largest_of_blocks_backward)
