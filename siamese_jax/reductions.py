"""A loss computes one term per pair or anchor and then reduces the terms to a number.

`Terms` are the values, which of them are valid, and their weights. The argument
`reduce_fn` of every loss is a function of these terms:

>>> import jax.numpy as jnp
>>> terms = make_terms(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]))
>>> print(mean(terms), sum_terms(terms))
2.0 4.0
>>> print(mean_and_count(terms).num_terms)
2

* `mean` (the default) is sum(w v) / sum(w) over the valid terms, and 0 if there is none.
* `mean_of_active` is the same over the valid terms that are not 0.
* `mean_and_count` also returns the number of valid terms, which tells a loss of 0 from an
  empty batch.
* `sum_terms` is sum(w v), the numerator of the mean.
* `None` returns the `Terms` themselves. To combine tiles or devices, add numerators and
  denominators, not means.

Any other function of `Terms` can be passed as `reduce_fn` too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from siamese_jax._checks import check_boolean, check_floating, check_same_shape
from siamese_jax._numerics import widen


class Terms(NamedTuple):
    """The terms of a loss.

    Attributes:
      values: One value per pair or anchor, 0 where it is not valid.
      where: True where the value is valid.
      weights: Weight of each value in the mean, 0 where it is not valid.
    """

    values: Float[Array, "*shape"]
    where: Bool[Array, "*shape"]
    weights: Float[Array, "*shape"]


class MeanAndCount(NamedTuple):
    """A mean and the number of valid terms."""

    mean: Float[Array, ""]
    num_terms: Int[Array, ""]


ReduceFn = Callable[[Terms], Any]


def make_terms(
    values: Float[Array, "*shape"],
    where: Bool[Array, "*shape"] | None,
    *,
    weights: Float[Array, "*shape"] | None = None,
) -> Terms:
    """Makes terms whose value, weight and gradient are 0 where masked.

    The mask is a required argument, since a loss that forgets which of its values count
    averages over padding too.

    Values and weights of half precision become float32, in which they can be summed.

    Args:
      values: One value per pair or anchor.
      where: True where the value is valid. None if all values are.
      weights: Weight of each value. None gives every value weight 1.

    Raises:
      ValueError: If `where` or `weights` has another shape than the values.
      TypeError: If `where` is not boolean, or values or weights are not floating-point.

    >>> print(make_terms(jnp.array([5.0, 7.0]), jnp.array([True, False])).values)
    [5. 0.]
    """
    check_floating("values", values)
    if where is None:
        where = jnp.ones(values.shape, bool)
    if weights is None:
        weights = jnp.ones(values.shape, values.dtype)
    check_boolean("where", where)
    check_same_shape("where", where, "the terms", values)
    check_floating("weights", weights)
    check_same_shape("weights", weights, "the terms", values)
    return Terms(
        jnp.where(where, widen(values), 0), where, jnp.where(where, widen(weights), 0)
    )


def sum_terms(terms: Terms) -> Float[Array, ""]:
    """Weighted sum of the valid terms: sum(w v).

    >>> print(sum_terms(make_terms(jnp.ones(2), None, weights=jnp.array([1.0, 10.0]))))
    11.0
    """
    return _weighted_sum(terms)


def mean(terms: Terms) -> Float[Array, ""]:
    """Weighted mean of the valid terms: sum(w v) / sum(w), or 0 if none is valid.

    >>> print(mean(make_terms(jnp.array([1.0, 4.0]), None, weights=jnp.array([2.0, 1.0]))))
    2.0
    """
    denominator = jnp.sum(widen(terms.weights))
    empty = denominator == 0
    quotient = _weighted_sum(terms) / jnp.where(empty, 1, denominator)
    return jnp.where(empty, 0, quotient)


def mean_of_active(terms: Terms) -> Float[Array, ""]:
    """Weighted mean of the valid terms other than 0, such as active triplets, or 0 if none.

    The loss of a triplet whose negative is beyond the margin is 0. With training there are
    more and more of these, and they make the plain `mean` and its gradient small.

    >>> print(mean_of_active(make_terms(jnp.array([0.0, 1.0, 3.0, 0.0]), None)))
    2.0
    """
    weights = jnp.where(terms.values == 0, 0, terms.weights)
    return mean(terms._replace(weights=weights))


def mean_and_count(terms: Terms) -> MeanAndCount:
    """Returns the `mean` and the number of valid terms.

    The number is an integer of 32 bits where 64-bit types are not enabled, and is wrong
    above 2,147,483,647 terms, which only losses of all entries in tiles or over devices
    can have. `mean` has no such bound.

    >>> result = mean_and_count(make_terms(jnp.array([1.0]), jnp.array([False])))
    >>> print(result.mean, result.num_terms)
    0.0 0
    """
    return MeanAndCount(mean(terms), jnp.sum(terms.where))


def reduce_terms(terms: Terms | tuple[Terms, ...], reduce_fn: ReduceFn | None) -> Any:
    """Returns `reduce_fn(terms)`, or the terms themselves if `reduce_fn` is None.

    Several terms with denominators of their own are reduced apart and added.

    Raises:
      TypeError: If `reduce_fn` is something else, such as the name of a reduction.

    >>> print(reduce_terms(make_terms(jnp.array([1.0, 3.0]), None), mean))
    2.0
    """
    if reduce_fn is None or reduce_fn is _unreduced:
        return terms
    if not callable(reduce_fn):
        raise TypeError(
            "reduce_fn must be a function, such as reductions.sum_terms, or None; "
            f"got {reduce_fn!r}"
        )
    if isinstance(terms, Terms):
        return reduce_fn(terms)
    parts = [reduce_fn(part) for part in terms]
    return jax.tree.map(lambda *numbers: sum(numbers), *parts)


def _unreduced(terms: Terms) -> Terms:
    """Like None, and also for a loss that calls `reduce_fn` itself."""
    return terms


def _weighted_sum(terms: Terms) -> Float[Array, ""]:
    return jnp.sum(widen(terms.weights) * widen(terms.values))
