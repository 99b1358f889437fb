"""Row-wise softmax losses: the same among all the others."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_scalar
from siamese_jax._numerics import Scalar, widen
from siamese_jax.miners import sides
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
    """Cross-entropy, in nats, of finding an anchor's positives among all others.

    For anchor i with positives P(i) and valid entries A(i):
    -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) ).
    An anchor without a positive does not count; one without a negative does, and its
    loss is at least log |P(i)|.

    Args:
      similarities: Rows are anchors; cosine similarities in the paper.
      same: True where the two are of one class.
      temperature: Divides the similarities; 0.1 in the paper.
      where: See `siamese_jax.losses`, as for `weights` (one an anchor) and `reduce_fn`.
        It must leave out the anchor itself, as `relations.within` does.

    Returns:
      The reduced loss, or `Terms` with one value an anchor.

    Raises:
      ValueError: If `similarities` is not a matrix or the shapes differ.
      TypeError: If `similarities` is not floating-point, `same` or `where` not boolean.

    Reference:
      Khosla et al. Supervised Contrastive Learning. NeurIPS 2020, eq. 2 (L_out; a sum over
      anchors there, a mean here).

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
    terms = make_terms(
        values.astype(similarities.dtype), where=num_positives > 0, weights=weights
    )
    return reduce_terms(terms, reduce_fn)


def _log_sum_exp(
    logits: Float[Array, "n m"], where: Bool[Array, "n m"]
) -> Float[Array, " n"]:
    """Log sum exp over a row's valid entries; 0 with gradient 0 for a row with none."""
    masked = jnp.where(where, logits, -jnp.inf)
    empty = ~jnp.any(where, axis=1)
    largest = lax.stop_gradient(jnp.where(empty, 0, jnp.max(masked, axis=1)))
    sums = jnp.sum(jnp.exp(masked - largest[:, None]), axis=1)
    return jnp.where(empty, 0, largest + jnp.log(jnp.where(empty, 1, sums)))
