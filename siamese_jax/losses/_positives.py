"""How many items are before each positive of a row, by work for the positives alone.

The number of positives is known only when the program runs, and rows have different
numbers. A loop handles the first positive of every row, then the second of every row, and
so on up to the row with the most. With P positives per row it takes P steps over an n x m
matrix, while all comparisons of a row with itself would take m.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid
from jaxtyping import Array, Bool, Float, Int

from siamese_jax._numerics import Scalar

Masks = tuple[Bool[Array, "n m"], ...]
Counts = tuple[Float[Array, "n m"], ...]


def num_before(
    s: Float[Array, "n m"],
    positive: Bool[Array, "n m"],
    counted: Masks,
    temperature: Scalar,
) -> Counts:
    """The smooth number of counted items before each positive, 0 for other entries.

    For positive j of row i: sum_{k counted, k != j} sigmoid((s_ik - s_ij) / temperature).
    Memory is O(n m), time O(n m P) with the largest number P of positives of a row. Reverse
    mode repeats the loop. Forward mode alone raises TypeError, and reverse mode over
    reverse mode ValueError; forward over reverse, as in `jax.hessian`, is defined.

    Args:
      s: Similarities, of which only positive or counted entries are used.
      positive: True for the items whose places are asked for.
      counted: Masks of the items that count. Each has its own numbers in the result.
      temperature: Divides the differences of similarities.

    >>> s, all_items = jnp.array([[1.0, 0.0, 0.0]]), jnp.ones((1, 3), bool)
    >>> positive = jnp.array([[False, True, False]])
    >>> print(num_before(s, positive, (all_items,), 0.01)[0])  # one before, one beside it
    [[0.  1.5 0. ]]
    """
    # With these two lines all arrays of the loop vary over devices if one of them does.
    s = jnp.where(jnp.any(jnp.stack([positive, *counted]), axis=0), s, 0)
    temperatures = jnp.zeros_like(s[:, :1]) + jnp.asarray(temperature, s.dtype)
    return _num_before(s, temperatures, positive, counted)


def _count(
    s: Float[Array, "n m"],
    temperatures: Float[Array, "n 1"],
    positive: Bool[Array, "n m"],
    counted: Masks,
) -> Counts:
    columns = jnp.arange(s.shape[1])[None, :]

    def step(j: Int[Array, "n 1"], counts: Counts) -> Counts:
        ahead = sigmoid(_difference(s, j) / temperatures)
        totals = (
            jnp.sum(jnp.where(mask & (columns != j), ahead, 0), axis=1, keepdims=True)
            for mask in counted
        )
        pairs = zip(totals, counts, strict=True)
        return tuple(jnp.where(columns == j, total, so_far) for total, so_far in pairs)

    return for_each_positive(step, positive, tuple(jnp.zeros_like(s) for _ in counted))


def _backward(args: tuple, gradients: Counts) -> tuple:
    s, temperatures, positive, counted = args
    columns = jnp.arange(s.shape[1])[None, :]

    def step(j: Int[Array, "n 1"], so_far: tuple[Array, Array]) -> tuple[Array, Array]:
        of_s, of_temperatures = so_far
        difference = _difference(s, j)
        ahead = sigmoid(difference / temperatures)
        of_ahead = sum(
            jnp.where(mask & (columns != j), _entry(gradient, j), 0)
            for mask, gradient in zip(counted, gradients, strict=True)
        )
        pull = of_ahead * ahead * (1 - ahead) / temperatures
        push = jnp.where(columns == j, jnp.sum(pull, axis=1, keepdims=True), 0)
        growth = jnp.sum(pull * difference / temperatures, axis=1, keepdims=True)
        return of_s + pull - push, of_temperatures - growth

    zeros = jnp.zeros_like(s), jnp.zeros_like(temperatures)
    return *for_each_positive(step, positive, zeros), None, None


_num_before = jax.custom_vjp(_count)
_num_before.defvjp(lambda *args: (_count(*args), args), _backward)


def _difference(s: Float[Array, "n m"], j: Int[Array, "n 1"]) -> Float[Array, "n m"]:
    return s - _entry(s, j)


def _entry(x: Float[Array, "n m"], j: Int[Array, "n 1"]) -> Float[Array, "n 1"]:
    """The entry of each row in its column j, 0 where there is no such column."""
    return jnp.take_along_axis(x, j, axis=1, mode="fill", fill_value=0)


def for_each_positive(
    step: Callable[[Int[Array, "n 1"], Any], Any], positive: Bool[Array, "n m"], state: Any
) -> Any:
    """Repeats state = step(j, state) until j has been every positive of every row.

    j has the column of one positive for each row, or m for rows that have no more.
    """
    num_columns = positive.shape[1]
    columns = jnp.arange(num_columns)[None, :]

    def next_positive(j: Int[Array, "n 1"]) -> Int[Array, "n 1"]:
        later = jnp.where(positive & (columns > j), columns, num_columns)
        return jnp.min(later, axis=1, keepdims=True)

    def some(loop: tuple[Array, Any]) -> Array:
        return jnp.any(loop[0] < num_columns)

    def body(loop: tuple[Array, Any]) -> tuple[Array, Any]:
        j, so_far = loop
        return next_positive(j), step(j, so_far)

    first = next_positive(jnp.full((len(positive), 1), -1))
    return lax.while_loop(some, body, (first, state))[1]
