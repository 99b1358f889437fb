"""Losses over two views of the same examples, without negatives or with all others.

`a` and `b` are the embeddings of two views, row by row of the same example.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._checks import (
    check_at_least,
    check_floating,
    check_rank,
    check_same_shape,
    check_scalar,
)
from siamese_jax._numerics import Scalar, centred, safe_sqrt, widen
from siamese_jax.distances import cosine_similarity, cosine_similarity_matrix
from siamese_jax.losses.softmax import info_nce_loss
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms, sum_terms
from siamese_jax.relations import Items, within


def nt_xent_loss(
    a: Float[Array, "n dim"],
    b: Float[Array, "n dim"],
    *,
    temperature: Scalar = 0.1,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """NT-Xent, the loss of SimCLR: finds the other view among all 2 n - 1 others.

    For each of the 2 n embeddings, with z the cosine similarities divided by t:
    -log( exp(z of the other view) / sum exp(z of all other embeddings) ).

    Args:
      a: Embeddings of one view.
      b: Embeddings of the other view.
      temperature: t.
      reduce_fn: See `siamese_jax.losses`.

    Returns:
      The reduced loss, or `Terms` with one value for each of the 2 n x 2 n entries, of
      which 2 n are valid.

    Reference:
      Chen et al. A Simple Framework for Contrastive Learning of Visual Representations.
      ICML 2020, eq. 1.

    >>> print(f"{nt_xent_loss(jnp.ones((2, 3)), jnp.ones((2, 3))):.4f}")  # log 3
    1.0986
    """
    _check_views(a, b)
    embeddings = jnp.concatenate([widen(a), widen(b)])
    same, where = within(Items(jnp.tile(jnp.arange(len(a)), 2)))
    matrix = cosine_similarity_matrix(embeddings, embeddings)
    return info_nce_loss(
        matrix, same, temperature=temperature, where=where, reduce_fn=reduce_fn
    )


def negative_cosine_loss(
    predictions: Float[Array, "n dim"],
    targets: Float[Array, "n dim"],
    *,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Minus the cosine of prediction and target; no gradient reaches the target.

    SimSiam and BYOL use it in both directions: the mean of the loss of (prediction of view
    1, embedding of view 2) and that of (prediction of view 2, embedding of view 1).

    Args:
      predictions: What the predictor makes of one view.
      targets: Embeddings of the other view, in BYOL by the slowly moving network.
      reduce_fn: See `siamese_jax.losses`.

    Returns:
      The reduced loss, or `Terms` with one value per row. The loss of BYOL is 2 + 2 times
      it.

    Reference:
      Chen, He. Exploring Simple Siamese Representation Learning. CVPR 2021, eq. 1 and 3.

    >>> print(negative_cosine_loss(jnp.ones((2, 4)), 2 * jnp.ones((2, 4))))
    -1.0
    """
    check_floating("predictions", predictions)
    check_floating("targets", targets)
    check_same_shape("targets", targets, "predictions", predictions)
    values = -cosine_similarity(predictions, lax.stop_gradient(targets))
    return reduce_terms(make_terms(values, None), reduce_fn)


def barlow_twins_loss(
    a: Float[Array, "n dim"],
    b: Float[Array, "n dim"],
    *,
    redundancy_weight: Scalar = 5e-3,
    reduce_fn: ReduceFn | None = sum_terms,
) -> Any:
    """Barlow Twins: the correlations of features between the views should be the identity.

    With the correlation c_kl of feature k of one view and feature l of the other:
    sum_k (1 - c_kk)^2 + w sum_{k != l} c_kl^2. A constant feature has correlation 0.

    Args:
      a: Embeddings of one view.
      b: Embeddings of the other view.
      redundancy_weight: w.
      reduce_fn: See `siamese_jax.losses`. Here the default is the weighted sum.

    Returns:
      The reduced loss, or `Terms` with one value per entry of the correlations.

    Reference:
      Zbontar et al. Barlow Twins. ICML 2021, eq. 1 and 2.

    >>> a = jnp.array([[2.0, 0.0], [0.0, 2.0]])  # the features are opposite
    >>> print(f"{barlow_twins_loss(a, a, redundancy_weight=0.5):.4f}")  # (1 + 1) / 2
    1.0000
    """
    _check_views(a, b, least=2)
    check_scalar("redundancy_weight", redundancy_weight)
    by_feature = [centred(widen(x), axis=0).T for x in (a, b)]
    correlations = cosine_similarity_matrix(*by_feature)
    diagonal = jnp.eye(len(correlations), dtype=bool)
    values = jnp.where(diagonal, 1 - correlations, correlations) ** 2
    weights = jnp.where(diagonal, 1, redundancy_weight).astype(values.dtype)
    return reduce_terms(make_terms(values, None, weights=weights), reduce_fn)


def vicreg_loss(
    a: Float[Array, "n dim"],
    b: Float[Array, "n dim"],
    *,
    invariance_weight: Scalar = 25.0,
    variance_weight: Scalar = 25.0,
    covariance_weight: Scalar = 1.0,
    epsilon: Scalar = 1e-4,
) -> Float[Array, ""]:
    """VICReg: views agree, features vary, and features do not repeat one another.

    The weighted sum of three parts, with n rows and dim features:
    invariance: mean over rows and features of (a - b)^2;
    variance: mean over features of max(0, 1 - sqrt(var + epsilon)), the mean of both views;
    covariance: sum over k != l of cov_kl^2 / dim, the sum of both views.
    Variances and covariances divide by n - 1.

    Reference:
      Bardes, Ponce, LeCun. VICReg. ICLR 2022, eq. 1 to 6. As in their code the invariance
      is a mean over features too and the variance is halved, so that the weights are
      those of the paper.

    >>> a = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    >>> print(vicreg_loss(2 * a, 2 * a))
    0.0
    """
    _check_views(a, b, least=2)
    check_scalar("invariance_weight", invariance_weight)
    check_scalar("variance_weight", variance_weight)
    check_scalar("covariance_weight", covariance_weight)
    check_scalar("epsilon", epsilon)
    a, b = widen(a), widen(b)

    def variance(x: Array) -> Array:
        deviation = safe_sqrt(jnp.var(x, axis=0, ddof=1) + epsilon)
        return jnp.mean(jax.nn.relu(1 - deviation))

    def covariance(x: Array) -> Array:
        apart = centred(x, axis=0)
        products = jnp.matmul(apart.T, apart, precision=lax.Precision.HIGHEST)
        squares = (products / (len(x) - 1)) ** 2
        others = ~jnp.eye(x.shape[1], dtype=bool)
        return jnp.sum(jnp.where(others, squares, 0)) / x.shape[1]

    return (
        invariance_weight * jnp.mean((a - b) ** 2)
        + variance_weight * (variance(a) + variance(b)) / 2
        + covariance_weight * (covariance(a) + covariance(b))
    )


def _check_views(a: Array, b: Array, *, least: int = 1) -> None:
    check_floating("a", a)
    check_floating("b", b)
    check_rank("a", a, 2)
    check_same_shape("b", b, "a", a)
    check_at_least("the number of rows", len(a), least)
