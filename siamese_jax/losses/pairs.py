"""Losses over pairs: contrastive and logistic, each pair by itself."""

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
    """Contrastive loss: pulls pairs of one class together and others beyond a margin.

    For distance d:  factor * max(0, d - positive_margin)^2  if same,
    factor * max(0, margin - d)^2  otherwise.

    Args:
      distances: Non-negative distances, not squared.
      same: True where the two are of one class.
      margin: Distance beyond which a pair of different classes has loss 0.
      positive_margin: Distance below which a pair of one class has loss 0.
      factor: 1/2 as in the paper. The Keras tutorials use 1.
      where: See `siamese_jax.losses`, also for `weights` (one per entry) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per entry.

    Reference:
      Hadsell, Chopra, LeCun. Dimensionality Reduction by Learning an Invariant Mapping.
      CVPR 2006, eq. 4, where Y = 1 means different. `positive_margin` is not in the paper.

    >>> loss = contrastive_loss(jnp.array([0.5, 0.5]), jnp.array([True, False]))
    >>> print(loss)
    0.125
    """
    d = _entries("distances", distances, same)
    check_scalar("margin", margin)
    check_scalar("positive_margin", positive_margin)
    check_scalar("factor", factor)
    pull = jax.nn.relu(d - positive_margin)
    push = jax.nn.relu(margin - d)
    values = factor * jnp.where(same, pull, push) ** 2
    return reduce_terms(make_terms(values, where=where, weights=weights), reduce_fn)


def logistic_loss(
    similarities: Float[Array, "*shape"],
    same: Bool[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Binary cross-entropy in nats, with the similarity as the log-odds of "same".

    For similarity s:  log(1 + exp(-s))  if same,  log(1 + exp(s))  otherwise.
    `siamese.threshold_logits` turns a distance into log-odds; a pair head returns them.

    Args:
      similarities: Log-odds that the two are of one class: any real number, not a
        probability.
      same: True where the two are of one class.
      where: See `siamese_jax.losses`, also for `weights` (one per entry) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per entry.

    Reference:
      Koch, Zemel, Salakhutdinov. Siamese Neural Networks for One-shot Image Recognition.
      2015, section 3.2, without the regularizer.

    >>> print(f"{logistic_loss(jnp.zeros(2), jnp.array([True, False])):.4f}")  # log 2
    0.6931
    """
    s = _entries("similarities", similarities, same)
    values = jax.nn.softplus(jnp.where(same, -s, s))
    return reduce_terms(make_terms(values, where=where, weights=weights), reduce_fn)


def _entries(name: str, numbers: Array, same: Array) -> Array:
    check_floating(name, numbers)
    check_boolean("same", same)
    check_same_shape("same", same, name, numbers)
    return widen(numbers)
