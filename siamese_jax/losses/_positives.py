"""Numbers for each positive of a row, by work for the positives alone.

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
from jax.nn import logsumexp, sigmoid
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
    if s.shape[1] == 0:
        return tuple(jnp.zeros_like(s) for _ in counted)
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


def log_sum_over_negatives(
    x: Float[Array, "n n"], positive: Bool[Array, "n n"], negative: Bool[Array, "n n"]
) -> Float[Array, "n n"]:
    """The sums log sum_k exp(x_ik + x_jk) over the negatives k of i, for its positives j.

    Other entries are 0. Memory is O(n^2), time O(n^2 P) with the largest number P of
    positives of a row or column. See `num_before` for its derivatives.

    >>> positive = jnp.array([[False, True], [False, False]])
    >>> print(log_sum_over_negatives(jnp.eye(2), positive, ~positive)[0])  # 1 + 0
    [0. 1.]
    """
    return _log_sum(x, positive, negative)


def _log_sum_values(
    x: Float[Array, "n n"], positive: Bool[Array, "n n"], negative: Bool[Array, "n n"]
) -> Float[Array, "n n"]:
    columns = jnp.arange(x.shape[1])[None, :]

    def step(j: Int[Array, "n 1"], sums: Array) -> Array:
        of_pair = logsumexp(x + _row(x, j), axis=1, where=negative, keepdims=True)
        return jnp.where(columns == j, of_pair, sums)

    return for_each_positive(step, positive, jnp.zeros_like(x))


def _log_sum_backward(saved: tuple, gradient: Float[Array, "n n"]) -> tuple:
    x, positive, negative, sums = saved

    def share(j: Array, sums: Array, gradient: Array, negatives: Array) -> Array:
        weights = jnp.exp(x + _row(x, j) - _entry(sums, j, fill_value=jnp.inf))
        return jnp.where(negatives, weights * _entry(gradient, j), 0)

    def of_anchors(j: Int[Array, "n 1"], so_far: Array) -> Array:
        return so_far + share(j, sums, gradient, negative)

    def of_positives(j: Int[Array, "n 1"], so_far: Array) -> Array:
        return so_far + share(j, sums.T, gradient.T, _row(negative, j))

    of_x = for_each_positive(of_anchors, positive, jnp.zeros_like(x))
    return for_each_positive(of_positives, positive.T, of_x), None, None


def _log_sum_forward(*args: Array) -> tuple[Array, tuple]:
    sums = _log_sum_values(*args)
    return sums, (*args, sums)


_log_sum = jax.custom_vjp(_log_sum_values)
_log_sum.defvjp(_log_sum_forward, _log_sum_backward)


def _entry(
    x: Float[Array, "n m"], j: Int[Array, "n 1"], fill_value: float = 0
) -> Float[Array, "n 1"]:
    """The entry of each row in its column j, the filling where there is no such column."""
    return jnp.take_along_axis(x, j, axis=1, mode="fill", fill_value=fill_value)


def _row(x: Array, j: Int[Array, "n 1"]) -> Array:
    """Row j of x for each row, the last one where there is no such row."""
    return jnp.take(x, j[:, 0], axis=0, mode="clip")


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
        return jnp.min(later, axis=1, keepdims=True, initial=num_columns)

    def some(loop: tuple[Array, Any]) -> Array:
        return jnp.any(loop[0] < num_columns)

    def body(loop: tuple[Array, Any]) -> tuple[Array, Any]:
        j, so_far = loop
        return next_positive(j), step(j, so_far)

    first = next_positive(jnp.full((len(positive), 1), -1))
    return lax.while_loop(some, body, (first, state))[1]
