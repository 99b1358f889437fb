"""Sums over the terms of a loss, which tiles and devices add before they divide once."""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from siamese_jax._checks import parts_of_a_matrix
from siamese_jax.reductions import (
    MeanAndCount,
    ReduceFn,
    Terms,
    _unreduced,
    mean,
    mean_and_count,
    mean_of_active,
    sum_terms,
)


class Totals(NamedTuple):
    """Sums over terms, of all of them or of each row.

    Attributes:
      numerator: sum(w v).
      denominator: sum(w).
      active: sum(w) over the terms that are not 0.
      num_terms: Number of valid terms.
    """

    numerator: Float[Array, "*rows"]
    denominator: Float[Array, "*rows"]
    active: Float[Array, "*rows"]
    num_terms: Int[Array, "*rows"]


Parts = tuple[Terms, ...]  # of which each has a denominator of its own


def entries(terms: Terms) -> Totals:
    """What each term adds to the totals.

    >>> from siamese_jax.reductions import make_terms
    >>> terms = make_terms(jnp.array([3.0, 0.0]), None, weights=jnp.array([2.0, 1.0]))
    >>> print(entries(terms).numerator, entries(terms).active)
    [6. 0.] [2. 0.]
    """
    active = jnp.where(terms.values == 0, 0, terms.weights)
    return Totals(
        terms.weights * terms.values, terms.weights, active, terms.where.astype(int)
    )


def unreduced_terms(loss_fn: Callable[..., Any], *args: Any, **options: Any) -> Parts:
    """The terms of a loss, in a tuple.

    Raises:
      ValueError: If the loss returns something else than `reduce_fn(terms)`, or uses a
        function that needs the whole matrix.

    >>> from siamese_jax.losses import contrastive_loss
    >>> d, same = jnp.array([[0.5]]), jnp.array([[True]])
    >>> print(unreduced_terms(contrastive_loss, d, same)[0].values)
    [[0.125]]
    """
    with parts_of_a_matrix():
        terms = loss_fn(*args, reduce_fn=_unreduced, **options)
    parts = (terms,) if isinstance(terms, Terms) else terms
    kept = isinstance(parts, tuple) and all(isinstance(part, Terms) for part in parts)
    if not kept or not all(part.where.dtype == bool for part in parts):
        name = getattr(loss_fn, "__name__", repr(loss_fn))
        raise ValueError(
            f"{name} must return reduce_fn(terms) of siamese_jax.reductions and nothing "
            "more, so that its terms can be added over parts of a matrix"
        )
    return parts


def totals(terms: Terms | tuple[Terms | Totals, ...]) -> tuple[Totals, ...]:
    """Sums over terms, or over the totals of rows.

    Of several terms with denominators of their own there is one for each.

    >>> from siamese_jax.reductions import make_terms
    >>> (total,) = totals(make_terms(jnp.array([3.0, 0.0]), None))
    >>> print(total.numerator, total.denominator, total.active, total.num_terms)
    3.0 2.0 1.0 2
    """
    parts = (terms,) if isinstance(terms, Terms) else terms
    each = (entries(part) if isinstance(part, Terms) else part for part in parts)
    return tuple(jax.tree.map(jnp.sum, part) for part in each)


def check_reduction(reduce_fn: ReduceFn | None) -> None:
    """Raises ValueError unless the reduction is one whose sums can be added, or None."""
    if reduce_fn is not None and reduce_fn not in _REDUCTIONS:
        names = ", ".join(fn.__name__ for fn in _REDUCTIONS)
        name = getattr(reduce_fn, "__name__", repr(reduce_fn))
        raise ValueError(
            f"reduce_fn must be one of {names} of siamese_jax.reductions, whose numerators "
            f"and denominators can be added, or None; got {name}"
        )


def reduce_totals(sums: tuple[Totals, ...], reduce_fn: ReduceFn) -> Any:
    """The reduction of all terms, from the sums of all parts.

    >>> one = jnp.array(1.0)
    >>> print(reduce_totals((Totals(6 * one, 3 * one, 2 * one, jnp.array(3)),), mean))
    2.0
    """
    check_reduction(reduce_fn)
    value = reduce(jnp.add, [_divided(part, reduce_fn) for part in sums])
    if reduce_fn is mean_and_count:
        return MeanAndCount(value, reduce(jnp.add, [part.num_terms for part in sums]))
    return value


def _divided(part: Totals, reduce_fn: ReduceFn) -> Array:
    if reduce_fn is sum_terms:
        return part.numerator
    whole = part.active if reduce_fn is mean_of_active else part.denominator
    empty = whole == 0
    return jnp.where(empty, 0, part.numerator / jnp.where(empty, 1, whole))


_REDUCTIONS = (mean, mean_of_active, mean_and_count, sum_terms)
