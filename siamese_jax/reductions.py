"""A loss is terms, then a mean.

Every loss first makes `Terms`: one value per pair or per anchor, which of them count, and
their weights. Its `reduce_fn` then turns terms into the result:

>>> import jax.numpy as jnp
>>> terms = make_terms(jnp.array([1.0, 3.0, 9.0]), where=jnp.array([True, True, False]))
>>> print(mean(terms), total(terms))
2.0 4.0
>>> print(mean_and_count(terms).num_terms)
2

* `mean` (the default) is sum(w v) / sum(w) over the valid terms, and 0 when there is none.
* `mean_and_count` gives the number of valid terms beside it, so that 0 is never a riddle.
* `total` is the numerator alone.
* `None` returns the `Terms`. To join tiles or devices, add numerators and denominators.

Any function of `Terms` serves as `reduce_fn`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from siamese_jax._checks import check_boolean, check_floating, check_same_shape
from siamese_jax._numerics import widen


class Terms(NamedTuple):
    """What a loss sums: values, which of them count, and how much each weighs.

    An invalid term has value 0 and weight 0, so plain sums over terms are right.
    """

    values: Float[Array, "*shape"]
    where: Bool[Array, "*shape"]
    weights: Float[Array, "*shape"]


class MeanAndCount(NamedTuple):
    """A mean and the number of valid terms behind it."""

    mean: Float[Array, ""]
    num_terms: Int[Array, ""]


ReduceFn = Callable[[Terms], Any]


def make_terms(
    values: Float[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
) -> Terms:
    """Terms of which the masked ones have no value, no weight and no gradient.

    Raises:
      ValueError: If `where` or `weights` has not the shape of the values.
      TypeError: If `where` is not boolean, or values or weights not floating-point.

    >>> print(make_terms(jnp.array([5.0, 7.0]), where=jnp.array([True, False])).values)
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
    return Terms(jnp.where(where, values, 0), where, jnp.where(where, weights, 0))


def total(terms: Terms) -> Float[Array, ""]:
    """Weighted sum of the valid terms: sum(w v).

    >>> print(total(make_terms(jnp.array([1.0, 2.0]), weights=jnp.array([1.0, 10.0]))))
    21.0
    """
    return _weighted_sum(terms).astype(terms.values.dtype)


def mean(terms: Terms) -> Float[Array, ""]:
    """Weighted mean of the valid terms: sum(w v) / sum(w); 0 when none is valid.

    >>> print(mean(make_terms(jnp.array([1.0, 4.0]), weights=jnp.array([2.0, 1.0]))))
    2.0
    """
    denominator = jnp.sum(widen(terms.weights))
    empty = denominator == 0
    quotient = _weighted_sum(terms) / jnp.where(empty, 1, denominator)
    return jnp.where(empty, 0, quotient).astype(terms.values.dtype)


def mean_and_count(terms: Terms) -> MeanAndCount:
    """`mean`, and how many terms were valid.

    >>> result = mean_and_count(make_terms(jnp.array([1.0]), where=jnp.array([False])))
    >>> print(result.mean, result.num_terms)
    0.0 0
    """
    return MeanAndCount(mean(terms), jnp.sum(terms.where))


def reduce_terms(terms: Terms, reduce_fn: ReduceFn | None) -> Any:
    """`reduce_fn(terms)`, or the terms themselves for None: the last line of a loss.

    >>> print(reduce_terms(make_terms(jnp.array([1.0, 3.0])), mean))
    2.0
    """
    return terms if reduce_fn is None else reduce_fn(terms)


def _weighted_sum(terms: Terms) -> Float[Array, ""]:
    return jnp.sum(widen(terms.weights) * widen(terms.values))
