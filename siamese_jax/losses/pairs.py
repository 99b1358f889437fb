"""Losses over pairs, each of which is computed by itself.

Arrays have any shape: `[n]` for given pairs, `[n, m]` for all pairs of two sets. A margin
is one number, or an array with as many axes that broadcasts against them, such as
`margins[labels][:, None]` for one margin for each class of the rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import (
    check_boolean,
    check_broadcastable,
    check_floating,
    check_mask,
    check_same_shape,
    check_scalar,
)
from siamese_jax._numerics import Margin, widen
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms


def contrastive_loss(
    distances: Float[Array, "*shape"],
    same: Bool[Array, "*shape"],
    *,
    margin: Margin = 1.0,
    positive_margin: Margin = 0.0,
    factor: float = 0.5,
    squared: bool = True,
    apart: bool = False,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Contrastive loss: pulls pairs of one class together and others beyond a margin.

    For distance d:  factor * max(0, d - positive_margin)^2  if same,
    factor * max(0, margin - d)^2  otherwise. Without `squared` the hinges are linear.

    Args:
      distances: Non-negative distances, not squared.
      same: True where the two are of one class.
      margin: Distance beyond which a pair of different classes has loss 0.
      positive_margin: Distance below which a pair of one class has loss 0.
      factor: 1/2 as in the paper. The Keras tutorials use 1.
      squared: Square the hinges, as in the paper.
      apart: Average same pairs and different pairs apart and add the two means, so that the
        kind with fewer pairs counts as much.
      where: See `siamese_jax.losses`, also for `weights` (one per entry) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per entry, or two of them `apart`.

    Reference:
      Hadsell, Chopra, LeCun. Dimensionality Reduction by Learning an Invariant Mapping.
      CVPR 2006, eq. 4, where Y = 1 means different. `positive_margin` is not in the paper.

    >>> loss = contrastive_loss(jnp.array([0.5, 0.5]), jnp.array([True, False]))
    >>> print(loss)
    0.125
    """
    d = _entries("distances", distances, same)
    check_broadcastable("margin", margin, d)
    check_broadcastable("positive_margin", positive_margin, d)
    check_scalar("factor", factor)
    hinges = jnp.where(same, jax.nn.relu(d - positive_margin), jax.nn.relu(margin - d))
    values = factor * (hinges**2 if squared else hinges)
    return _reduced(values, same, where, weights, reduce_fn, apart=apart)


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
    return reduce_terms(make_terms(values, where, weights=weights), reduce_fn)


def cosine_embedding_loss(
    similarities: Float[Array, "*shape"],
    same: Bool[Array, "*shape"],
    *,
    margin: Margin = 0.0,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Cosine embedding loss: same pairs to the cosine 1, others below a margin.

    For similarity s:  1 - s  if same,  max(0, s - margin)  otherwise.

    Args:
      similarities: Cosine similarities.
      same: True where the two are of one class.
      margin: Similarity below which a pair of different classes has loss 0.
      where: See `siamese_jax.losses`, also for `weights` (one per entry) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per entry.

    Reference:
      torch.nn.CosineEmbeddingLoss, whose target is 1 for same and -1 for different.

    >>> loss = cosine_embedding_loss(jnp.array([0.5, 0.5]), jnp.array([True, False]))
    >>> print(loss)
    0.5
    """
    s = _entries("similarities", similarities, same)
    check_broadcastable("margin", margin, s)
    values = jnp.where(same, 1 - s, jax.nn.relu(s - margin))
    return reduce_terms(make_terms(values, where, weights=weights), reduce_fn)


def margin_loss(
    distances: Float[Array, "*shape"],
    same: Bool[Array, "*shape"],
    *,
    boundary: Margin = 1.2,
    margin: Margin = 0.2,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Margin loss: same pairs within a learnt boundary, others beyond it, with a margin.

    For distance d:  max(0, d - boundary + margin)  if same,
    max(0, boundary - d + margin)  otherwise.

    Args:
      distances: Distances, in the paper Euclidean ones of embeddings of length 1.
      same: True where the two are of one class.
      boundary: A parameter to be trained: one number, or `boundaries[labels][:, None]` for
        one for each class of the rows. The paper adds a small multiple of it to the loss.
      margin: Distance that pairs should keep from the boundary.
      where: See `siamese_jax.losses`, also for `weights` (one per entry) and `reduce_fn`.
        The paper takes pairs of `miners.distance_weighted_negatives`, and the mean of those
        with a positive hinge, `reductions.mean_of_active`.

    Returns:
      The reduced loss, or `Terms` with one value per entry.

    Reference:
      Wu et al. Sampling Matters in Deep Embedding Learning. ICCV 2017, eq. 5.

    >>> same = jnp.array([True, False])
    >>> loss = margin_loss(jnp.array([1.2, 1.2]), same, boundary=1.2, margin=0.25)
    >>> print(loss)
    0.25
    """
    d = _entries("distances", distances, same)
    check_broadcastable("boundary", boundary, d)
    check_broadcastable("margin", margin, d)
    values = jax.nn.relu(margin + jnp.where(same, d - boundary, boundary - d))
    return reduce_terms(make_terms(values, where, weights=weights), reduce_fn)


def threshold_consistent_margin_loss(
    similarities: Float[Array, "*shape"],
    same: Bool[Array, "*shape"],
    *,
    positive_margin: Margin = 0.9,
    negative_margin: Margin = 0.5,
    where: Bool[Array, "*shape"] | None = None,
    weights: Float[Array, "*shape"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Threshold-consistent margin loss: one threshold should serve all classes.

    The mean of positive_margin - s over the same pairs with s <= positive_margin, plus the
    mean of s - negative_margin over the different pairs with s >= negative_margin. It is
    meant to be added to another loss.

    Args:
      similarities: Cosine similarities.
      same: True where the two are of one class.
      positive_margin: Similarity that same pairs should reach.
      negative_margin: Similarity that different pairs should stay below.
      where: See `siamese_jax.losses`, also for `weights` (one per entry) and `reduce_fn`.

    Returns:
      The reduced loss, or two `Terms` with one value per entry, of same and of different
      pairs.

    Reference:
      Zhang et al. Learning for Transductive Threshold Calibration in Open-World
      Recognition. CVPR 2024; Threshold-Consistent Margin Loss. ICLR 2024, eq. 4.

    >>> same = jnp.array([True, True, False])
    >>> s = jnp.array([0.5, 0.95, 0.75])
    >>> print(threshold_consistent_margin_loss(s, same, positive_margin=0.75))  # 1/4 + 1/4
    0.5
    """
    s = _entries("similarities", similarities, same)
    check_broadcastable("positive_margin", positive_margin, s)
    check_broadcastable("negative_margin", negative_margin, s)
    excess = jnp.where(same, positive_margin - s, s - negative_margin)
    active = ~(excess < 0)  # NaN stays
    if where is not None:
        check_mask("where", where, s)
        active &= where
    return _reduced(excess, same, active, weights, reduce_fn, apart=True)


def _reduced(
    values: Array,
    same: Array,
    where: Array | None,
    weights: Array | None,
    reduce_fn: ReduceFn | None,
    *,
    apart: bool,
) -> Any:
    """Reduces all entries together, or same and different ones apart."""
    if not apart:
        return reduce_terms(make_terms(values, where, weights=weights), reduce_fn)
    where = jnp.ones(same.shape, bool) if where is None else where
    check_mask("where", where, values)
    kinds = (same, ~same)
    terms = tuple(make_terms(values, where & kind, weights=weights) for kind in kinds)
    return reduce_terms(terms, reduce_fn)


def _entries(name: str, numbers: Array, same: Array) -> Array:
    check_floating(name, numbers)
    check_boolean("same", same)
    check_same_shape("same", same, name, numbers)
    return widen(numbers)
