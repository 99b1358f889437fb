"""Max-pooling whose gradient goes to the first of equal largest values.

>>> largest, place = first_largest([jnp.array([1.0, 5.0]), jnp.array([2.0, 5.0])])
>>> print(largest, place)
[2. 5.] [1 0]
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

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


def changes_of_largest(place: Array, changes: Sequence[Array]) -> Array:
    """Returns the changes of largest values, from the changes of all arrays."""
    change = changes[0]
    for number, other in enumerate(changes[1:], 1):
        change = jnp.where(place == jnp.asarray(number, place.dtype), other, change)
    return change


class _Comparison(NamedTuple):
    """How arrays that are compared lie in one array.

    Attributes:
      cut: Cuts them out.
      join: Undoes it.
      num: Their number.
      image_axes: The axis of the images in the array and in the largest values, or None if
        `vmap` is not to join images.
    """

    cut: Callable[[Array], list[Array]]
    join: Callable[[list[Array]], Array]
    num: int
    image_axes: tuple[int, int] | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _largest(comparison: _Comparison, x: Array) -> Array:
    return _largest_and_place(comparison, x)[0]


def _largest_and_place(comparison: _Comparison, x: Array) -> list[Array]:
    axes = comparison.image_axes
    return elementwise(
        lambda x: first_largest(comparison.cut(x)),
        x,
        image_axes=axes and ((axes[0],), (axes[1], axes[1])),
    )


@_largest.defjvp
def _largest_jvp(
    comparison: _Comparison, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    largest, place = _largest_and_place(comparison, *primals)
    axes = comparison.image_axes

    def forward(place: Array, change: Array) -> tuple[Array]:
        return (changes_of_largest(place, comparison.cut(change)),)

    def backward(place: Array, gradient: Array) -> tuple[Array]:
        return (comparison.join(gradients_of_largest(place, gradient, comparison.num)),)

    (change,) = elementwise(
        forward,
        place,
        *tangents,
        image_axes=axes and ((axes[1], axes[0]), (axes[1],)),
        transposed=backward,
    )
    return largest, change


def largest_along(x: Array, axis: int, image_axis: int | None) -> Array:
    """Returns the largest values along an axis, which is removed.

    Args:
      x: Numbers.
      axis: The axis of what is compared.
      image_axis: The axis of the images in the result, or None if `vmap` is not to join
        images.
    """
    num = x.shape[axis]

    def cut(x: Array) -> list[Array]:
        return [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(num)]

    axes = None if image_axis is None else (image_axis + (axis <= image_axis), image_axis)
    return _largest(_Comparison(cut, partial(jnp.stack, axis=axis), num, axes), x)


def _largest_of_blocks(blocks: Array) -> Array:
    """Returns the largest over axes 2 and 4 of [a, rows, window, columns, window, b]."""
    window = blocks.shape[2]

    def cut(blocks: Array) -> list[Array]:
        return [blocks[:, :, i, :, j] for i in range(window) for j in range(window)]

    def join(parts: list[Array]) -> Array:
        rows = [jnp.stack(parts[i : i + window], 3) for i in range(0, len(parts), window)]
        return jnp.stack(rows, 2)

    return _largest(_Comparison(cut, join, window * window, (0, 0)), blocks)
