"""Entry-wise losses: each pair by itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import (
    check_boolean,
    check_floating,
    check_same_shape,
    check_scalar,
)
from siamese_jax._numerics import Scalar, widen
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms


def contrastive_loss(
    distances: Float[Array, "*shape"],
    same: Bool[Array, "*shape"],
    *,
    margin: Scalar = 1.0,
    positive_margin: Scalar = 0.0,
    factor: float = 0.5,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Pulls same-class pairs together, pushes others beyond a margin.

    For distance d:  factor * max(0, d - positive_margin)^2  if same,
    factor * max(0, margin - d)^2  otherwise.

    Args:
      distances: Non-negative distances, not squared.
      same: True where the two are of one class.
      margin: Distance beyond which a pair of two classes costs nothing.
      positive_margin: Distance below which a pair of one class costs nothing.
      factor: 1/2 as in the paper; the Keras tutorials use 1.
      where: See `siamese_jax.losses`, as for `weights` (one an entry) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value an entry.

    Raises:
      ValueError: If the shapes differ.
      TypeError: If `distances` is not floating-point or `same` not boolean.

    Reference:
      Hadsell, Chopra, LeCun. Dimensionality Reduction by Learning an Invariant Mapping.
      CVPR 2006, eq. 4 (whose Y = 1 means different). `positive_margin` is not in the
      paper.

    >>> loss = contrastive_loss(jnp.array([0.5, 0.5]), jnp.array([True, False]))
    >>> print(loss)
    0.125
    """
    d, dtype = _entries("distances", distances, same)
    check_scalar("margin", margin)
    check_scalar("positive_margin", positive_margin)
    check_scalar("factor", factor)
    pull = jax.nn.relu(d - positive_margin)
    push = jax.nn.relu(margin - d)
    values = factor * jnp.where(same, pull, push) ** 2
    terms = make_terms(values.astype(dtype), where=where, weights=weights)
    return reduce_terms(terms, reduce_fn)


def logistic_loss(
    similarities: Float[Array, "*shape"],
    same: Bool[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Binary cross-entropy, in nats, of "same" given a similarity as its log-odds.

    For similarity s:  log(1 + exp(-s))  if same,  log(1 + exp(s))  otherwise. A distance
    becomes log-odds by `siamese.threshold_logits`; a pair head returns them.

    Args:
      similarities: Log-odds of being the same, any real number. Not a probability.
      same: True where the two are of one class.
      where: See `siamese_jax.losses`, as for `weights` (one an entry) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value an entry.

    Raises:
      ValueError: If the shapes differ.
      TypeError: If `similarities` is not floating-point or `same` not boolean.

    Reference:
      Koch, Zemel, Salakhutdinov. Siamese Neural Networks for One-shot Image Recognition.
      2015, section 3.2, without its regulariser.

    >>> print(f"{logistic_loss(jnp.zeros(2), jnp.array([True, False])):.4f}")  # log 2
    0.6931
    """
    s, dtype = _entries("similarities", similarities, same)
    values = jax.nn.softplus(jnp.where(same, -s, s))
    terms = make_terms(values.astype(dtype), where=where, weights=weights)
    return reduce_terms(terms, reduce_fn)


def _entries(name: str, numbers: Array, same: Array) -> tuple[Array, jnp.dtype]:
    check_floating(name, numbers)
    check_boolean("same", same)
    check_same_shape("same", same, name, numbers)
    return widen(numbers), numbers.dtype
