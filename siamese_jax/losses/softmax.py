"""Supervised contrastive (softmax) loss."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_scalar
from siamese_jax._masks import sides
from siamese_jax._numerics import Scalar, widen
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms


def supervised_contrastive_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    temperature: Scalar = 0.1,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Softmax cross-entropy, in nats, of each anchor's positives among all other items.

    For anchor i with positives P(i) and valid entries A(i):
    -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) ).
    An anchor without a positive is left out. An anchor without a negative is not; its loss
    is at least log |P(i)|.

    Args:
      similarities: A matrix whose rows are anchors, in the paper of cosine similarities.
      same: True where the two are of one class.
      temperature: t, which divides the similarities, 0.1 in the paper.
      where: See `siamese_jax.losses`, also for `weights` (one per anchor) and `reduce_fn`.
        It must be False between an anchor and itself, as in `relations.within`.

    Returns:
      The reduced loss, or `Terms` with one value per anchor.

    Reference:
      Khosla et al. Supervised Contrastive Learning. NeurIPS 2020, eq. 2 (L_out), which
      sums over anchors instead of averaging.

    >>> same = jnp.array([[True, False]])
    >>> loss = supervised_contrastive_loss(jnp.zeros((1, 2)), same)
    >>> print(f"{loss:.4f}")  # log 2
    0.6931
    """
    check_scalar("temperature", temperature)
    positive, negative = sides(similarities, same, where, name="similarities")
    logits = widen(similarities) / temperature
    num_positives = jnp.sum(positive, axis=1)
    sums = jnp.sum(jnp.where(positive, logits, 0), axis=1)
    mean_positive = sums / jnp.maximum(num_positives, 1)
    values = _log_sum_exp(logits, positive | negative) - mean_positive
    terms = make_terms(values, where=num_positives > 0, weights=weights)
    return reduce_terms(terms, reduce_fn)


def _log_sum_exp(
    logits: Float[Array, "n m"], where: Bool[Array, "n m"]
) -> Float[Array, " n"]:
    """Log-sum-exp over the valid entries of a row, 0 with gradient 0 if there is none."""
    masked = jnp.where(where, logits, -jnp.inf)
    empty = ~jnp.any(where, axis=1)
    largest = lax.stop_gradient(jnp.where(empty, 0, jnp.max(masked, axis=1)))
    sums = jnp.sum(jnp.exp(masked - largest[:, None]), axis=1)
    return jnp.where(empty, 0, largest + jnp.log(jnp.where(empty, 1, sums)))
