"""Losses of rows whose columns arrive in blocks, without the whole row at any time.

A `Fold` says what is kept of a block: sums, log-sum-exps and maxima over its columns, one
of each per row. `of_block` computes them, `combine` puts those of two blocks together, in
any order, and `numbers` reads what the rows have over all blocks:

>>> import jax.numpy as jnp
>>> from siamese_jax import losses
>>> fold = fold_of(losses.supervised_contrastive_loss)
>>> s, same, where = jnp.zeros((1, 4)), jnp.arange(4)[None, :] < 1, jnp.ones((1, 4), bool)
>>> halves = [
...     of_block(fold.pieces(s[:, k], same[:, k], where[:, k], temperature=0.5))
...     for k in (slice(0, 2), slice(2, 4))]
>>> terms = fold.finish(numbers(combine(*halves)))
>>> print(f"{terms.values[0]:.4f}")  # log 4
1.3863

Everything is differentiable. The largest number of a log-sum-exp is a constant to the
gradient, and so is which entries are a maximum. The rest of a state is a sum. So the
gradient by an entry is that of the dense form: exp(entry - total) for a log-sum-exp, and an
equal share among ties for a maximum. With `jax.checkpoint` around a block, the block is
computed again for its gradient, and only one number per row is kept of it.

A loss with one value per positive, such as `info_nce_loss`, needs the log-sum-exp of its
row first. Its fold has `second`, the pieces of a second sweep over the blocks, which takes
what the first has found. Where no row has more than one positive, `second_of_one` gives the
same without a second sweep.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import softplus
from jaxtyping import Array, Bool, Float, Shaped

from siamese_jax import losses
from siamese_jax._checks import check_scalar
from siamese_jax._numerics import widen
from siamese_jax._reach import ENTRY_WISE
from siamese_jax._totals import Totals, entries
from siamese_jax.miners import sides
from siamese_jax.reductions import Terms, make_terms

# What a block leaves ---------------------------------------------------------------------


class Sum(NamedTuple):
    """A sum over the columns so far."""

    total: Shaped[Array, " n"]


class LogSumExp(NamedTuple):
    """log sum exp over the columns so far, as top + log(total).

    Attributes:
      top: The largest number, minus infinity without any. A constant to the gradient.
      total: sum exp(number - top).
    """

    top: Float[Array, " n"]
    total: Float[Array, " n"]


class Maximum(NamedTuple):
    """The largest number of the columns so far.

    Attributes:
      top: The number, minus infinity without any. A constant to the gradient.
      slope: 0, whose gradient is 1 for each entry that equals the top.
      ties: The number of these entries.
    """

    top: Float[Array, " n"]
    slope: Float[Array, " n"]
    ties: Float[Array, " n"]


Part = Sum | LogSumExp | Maximum
State = dict[str, Part]
Found = dict[str, Array]


class Piece(NamedTuple):
    """Numbers of a block, which of them count, and what is kept of them for each row."""

    kind: type[Sum] | type[LogSumExp] | type[Maximum]
    values: Shaped[Array, "n k"]
    where: Bool[Array, "n k"]


def of_block(pieces: dict[str, Piece]) -> State:
    """What is kept of a block."""
    return {name: _part(piece) for name, piece in pieces.items()}


def combine(one: State, other: State) -> State:
    """The state of the columns of both."""
    return {name: _combined(part, other[name]) for name, part in one.items()}


def nothing(like: State) -> State:
    """The state before any block, with the shapes and types of another state."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return {
        name: part if isinstance(part, Sum) else part._replace(top=part.top - jnp.inf)
        for name, part in zeros.items()
    }


def numbers(state: State) -> Found:
    """Sum, log-sum-exp or maximum of each row, for each name; -inf without any entry."""
    return {name: _value(part) for name, part in state.items()}


def tangent(
    fold: "Fold",
    block: tuple[Array, Array, Array],
    state: State,
    found: Found,
    slopes: Found,
    **options: Any,
) -> Float[Array, ""]:
    """A number whose gradient by a block is that of the loss.

    With it a block is computed once for the gradient, after the state of all is known. A
    maximum has no such number, since an entry that is computed again may differ from it by
    rounding.

    Args:
      fold: The fold of the loss.
      block: Numbers, `same` and `where` of the block.
      state: What the first sweep leaves of all blocks, a constant.
      found: What both sweeps have found, constants.
      slopes: The derivative of the loss by each number of `found`.
      options: Options of the loss.
    """
    pieces = fold.pieces(*block, **options)
    if fold.second is not None:
        of_rows = slopes["numerator"] * found["slope"]
        slopes = {**slopes, "against": slopes["against"] + of_rows}
        second = fold.second(*block, found, **options)
        pieces, state = pieces | second, state | {name: Sum(found[name]) for name in second}
    products = [
        _tangent(piece, state[name], slopes[name])
        for name, piece in pieces.items()
        if jnp.issubdtype(piece.values.dtype, jnp.floating)
    ]
    return functools.reduce(jnp.add, products)


def _tangent(piece: Piece, part: Part, slopes: Float[Array, " n"]) -> Float[Array, ""]:
    """The sums of a block, as they count among all blocks, times the slopes."""
    _, values, where = piece
    if isinstance(part, LogSumExp):
        shifted = jnp.where(where, values - _finite(part.top)[:, None], -jnp.inf)
        values, slopes = (
            jnp.exp(shifted),
            slopes / jnp.where(part.total == 0, 1, part.total),
        )
    return jnp.sum(slopes * jnp.sum(jnp.where(where, values, 0), axis=1))


def _part(piece: Piece) -> Part:
    kind, values, where = piece
    if kind is Sum:
        return Sum(jnp.sum(jnp.where(where, values, 0), axis=1))
    constant = lax.stop_gradient(values)
    top = jnp.max(constant, axis=1, where=where, initial=-jnp.inf)
    if kind is LogSumExp:
        shifted = jnp.where(where, values - _finite(top)[:, None], -jnp.inf)
        return LogSumExp(top, jnp.sum(jnp.exp(shifted), axis=1))
    tied = where & (values == top[:, None])
    slopes = jnp.where(tied, values - constant, 0)
    return Maximum(top, jnp.sum(slopes, axis=1), jnp.sum(tied, axis=1, dtype=top.dtype))


def _combined(one: Part, other: Part) -> Part:
    if isinstance(one, Sum) or isinstance(other, Sum):
        return Sum(one[-1] + other[-1])
    top = jnp.maximum(one.top, other.top)
    sums = map(jnp.add, _moved(one, top), _moved(other, top))
    return type(one)(top, *sums)


def _moved(part: LogSumExp | Maximum, top: Float[Array, " n"]) -> tuple[Array, ...]:
    """The sums of a part as they count for rows with another, larger or equal, top."""
    same = part.top == top
    if isinstance(part, LogSumExp):
        return (jnp.where(same, 1, jnp.exp(part.top - top)) * part.total,)
    return tuple(jnp.where(same, sums, 0) for sums in part[1:])


def _value(part: Part) -> Array:
    if isinstance(part, Sum):
        return part.total
    if isinstance(part, LogSumExp):
        empty = part.total == 0
        total = jnp.where(empty, 1, part.total)
        return jnp.where(empty, -jnp.inf, _finite(part.top) + jnp.log(total))
    return part.top + part.slope / jnp.maximum(part.ties, 1)


def _finite(top: Array) -> Array:
    return jnp.where(jnp.isfinite(top), top, 0)


# Folds of losses -------------------------------------------------------------------------


class Fold(NamedTuple):
    """How a loss is computed from blocks of columns.

    Attributes:
      pieces: `pieces(matrix, same, where, **options)` of a block.
      finish: `finish(found, weights=None, **options)` with what both sweeps have found.
        `Terms` with one value per row, or one or two `Totals` for each row.
      second: `second(matrix, same, where, found, **options)`, the pieces of the second
        sweep. None if the loss needs none. Among them, "slope" is the derivative of
        "numerator" by `found["against"]`.
      second_of_one: `second_of_one(found, **options)`, what the second sweep finds in rows
        whose `found["num_positives"]` is at most 1.
    """

    pieces: Callable[..., dict[str, Piece]]
    finish: Callable[..., Terms | tuple[Totals, ...]]
    second: Callable[..., dict[str, Piece]] | None = None
    second_of_one: Callable[..., Found] | None = None


def fold_of(loss_fn: Callable[..., Any]) -> Fold | None:
    """The fold of a plain loss, or None if it has none."""
    if loss_fn in ENTRY_WISE:
        return _by_entry(loss_fn)
    return _FOLDS.get(loss_fn)


def _by_entry(loss_fn: Callable[..., Any]) -> Fold:
    def pieces(
        matrix: Array, same: Array, where: Array, **options: Any
    ) -> dict[str, Piece]:
        terms = loss_fn(matrix, same, where=where, reduce_fn=None, **options)
        return {
            f"{name}{k}": Piece(Sum, values, part.where)
            for k, part in enumerate((terms,) if isinstance(terms, Terms) else terms)
            for name, values in zip(Totals._fields, entries(part), strict=True)
        }

    def finish(
        found: Found, weights: Array | None = None, **options: Any
    ) -> tuple[Totals, ...]:
        _refuse_weights(loss_fn, weights)
        return tuple(
            Totals(*(found[f"{name}{k}"] for name in Totals._fields))
            for k in range(len(found) // len(Totals._fields))
        )

    return Fold(pieces, finish)


def _supervised_contrastive(
    s: Array, same: Array, where: Array, *, temperature: Any = 0.1, inside: bool = False
) -> dict[str, Piece]:
    z, positive, negative = _logits(s, same, where, temperature)
    return {
        "all": Piece(LogSumExp, z, positive | negative),
        "positives": Piece(LogSumExp if inside else Sum, z, positive),
        "num_positives": Piece(Sum, positive, positive),
    }


def _finish_supervised_contrastive(
    found: Found, weights: Array | None = None, *, inside: bool = False, **_: Any
) -> Terms:
    exists = found["num_positives"] > 0
    num = jnp.where(exists, found["num_positives"], 1).astype(found["all"].dtype)
    positives = found["positives"]
    positives = positives - jnp.log(num) if inside else positives / num
    values = jnp.where(exists, found["all"], 0) - jnp.where(exists, positives, 0)
    return make_terms(values, exists, weights=weights)


def _by_positive(
    loss_fn: Callable[..., Any], cost: Callable[[Array, Array], Array]
) -> Fold:
    """Fold of a loss with the value cost(log-sum-exp of negatives, logit) per positive."""

    def pieces(
        s: Array, same: Array, where: Array, *, temperature: Any = 0.1
    ) -> dict[str, Piece]:
        z, positive, negative = _logits(s, same, where, temperature)
        return {
            "against": Piece(LogSumExp, z, negative),
            "positive": Piece(Sum, z, positive),
            "num_positives": Piece(Sum, positive, positive),
        }

    def values_of(against: Array, z: Array, exists: Array) -> Found:
        against, z = jnp.where(exists, against, 0), jnp.where(exists, z, 0)
        values, slopes = jax.jvp(lambda x: cost(x, z), (against,), (jnp.ones_like(z),))
        active = (values != 0).astype(values.dtype)
        return {"numerator": values, "active": active, "slope": slopes}

    def second(
        s: Array, same: Array, where: Array, found: Found, *, temperature: Any = 0.1
    ) -> dict[str, Piece]:
        z, positive, _ = _logits(s, same, where, temperature)
        against = found["against"][:, None]
        exists = positive & ~jnp.isneginf(against)
        values = values_of(against, z, exists)
        return {name: Piece(Sum, value, exists) for name, value in values.items()}

    def second_of_one(found: Found, **_: Any) -> Found:
        exists = (found["num_positives"] > 0) & ~jnp.isneginf(found["against"])
        values = values_of(found["against"], found["positive"], exists)
        return {name: jnp.where(exists, value, 0) for name, value in values.items()}

    def finish(found: Found, weights: Array | None = None, **_: Any) -> tuple[Totals, ...]:
        _refuse_weights(loss_fn, weights)
        num = jnp.where(jnp.isneginf(found["against"]), 0, found["num_positives"])
        numerator = found["numerator"]
        return (Totals(numerator, num.astype(numerator.dtype), found["active"], num),)

    return Fold(pieces, finish, second, second_of_one)


def _sigmoid(
    s: Array, same: Array, where: Array, *, scale: Any = 10.0, bias: Any = -10.0
) -> dict[str, Piece]:
    check_scalar("scale", scale)
    check_scalar("bias", bias)
    sides(s, same, where, name="similarities")
    logits = scale * widen(s) + bias
    terms = losses.logistic_loss(logits, same, where=where, reduce_fn=None)
    return {
        "value": Piece(Sum, terms.values, terms.where),
        "num": Piece(Sum, terms.where, terms.where),
    }


def _finish_sigmoid(found: Found, weights: Array | None = None, **_: Any) -> Terms:
    return make_terms(found["value"], found["num"] > 0, weights=weights)


def _hard_triplet(d: Array, same: Array, where: Array, **_: Any) -> dict[str, Piece]:
    positive, negative = sides(d, same, where)
    d = widen(d)
    return {
        "farthest": Piece(Maximum, d, positive),
        "minus_nearest": Piece(Maximum, -d, negative),
        "num_positives": Piece(Sum, positive, positive),
        "num_negatives": Piece(Sum, negative, negative),
    }


def _finish_hard_triplet(
    found: Found,
    weights: Array | None = None,
    *,
    margin: Any = 1.0,
    soft: bool = False,
) -> Terms:
    complete = (found["num_positives"] > 0) & (found["num_negatives"] > 0)
    return losses.triplet_loss(
        jnp.where(complete, found["farthest"], 0),
        jnp.where(complete, -found["minus_nearest"], 0),
        margin=margin,
        soft=soft,
        where=complete,
        weights=weights,
        reduce_fn=None,
    )


# losses whose gradient `tangent` gives
SMOOTH = ENTRY_WISE | {
    losses.decoupled_contrastive_loss,
    losses.info_nce_loss,
    losses.sigmoid_pair_loss,
    losses.supervised_contrastive_loss,
}

_FOLDS: dict[Callable[..., Any], Fold] = {
    losses.supervised_contrastive_loss: Fold(
        _supervised_contrastive, _finish_supervised_contrastive
    ),
    losses.info_nce_loss: _by_positive(
        losses.info_nce_loss, lambda against, z: softplus(against - z)
    ),
    losses.decoupled_contrastive_loss: _by_positive(
        losses.decoupled_contrastive_loss, jnp.subtract
    ),
    losses.sigmoid_pair_loss: Fold(_sigmoid, _finish_sigmoid),
    losses.hard_triplet_loss: Fold(_hard_triplet, _finish_hard_triplet),
}


def _logits(
    s: Array, same: Array, where: Array, temperature: Any
) -> tuple[Array, Array, Array]:
    check_scalar("temperature", temperature)
    positive, negative = sides(s, same, where, name="similarities")
    return widen(s) / temperature, positive, negative


def _refuse_weights(loss_fn: Callable[..., Any], weights: Array | None) -> None:
    if weights is not None:
        raise ValueError(
            f"{loss_fn.__name__} takes one weight per entry, which its blocks of columns "
            "do not have; weights must be None"
        )
