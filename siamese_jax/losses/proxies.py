"""Losses that compare embeddings with learnt proxies of the classes.

`x_loss(embeddings, labels, proxies, ...)` with embeddings `[n, dim]`, integer labels `[n]`
from 0 to classes - 1, and proxies `[classes, dim]`, which are parameters to be trained with
the network. A label outside of the classes makes the loss NaN. `where` and `weights` are
`[n]`, one for each embedding. Losses with a margin on the right class are in
`losses.margins`.

>>> proxies = jnp.array([[1.0, 0.0], [0.0, 1.0]])
>>> print(p2s_grad_loss(proxies, jnp.array([0, 1]), proxies))
0.0
"""

from typing import Any

import jax.numpy as jnp
from jax.nn import logsumexp, softplus
from jaxtyping import Array, Float

from siamese_jax._checks import (
    check_at_least,
    check_floating,
    check_mask,
    check_rank,
    check_scalar,
)
from siamese_jax._numerics import Scalar, widen
from siamese_jax.distances import (
    dot_similarity_matrix,
    normalize,
    squared_euclidean_distance_matrix,
)
from siamese_jax.losses._proxies import (
    Embeddings,
    Labels,
    Proxies,
    Weights,
    Where,
    check_features,
    entry_of,
    of_classes,
    one_hot,
    proxy_cosines,
)
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms


def class_loss(
    logits: Float[Array, "n classes"],
    labels: Labels,
    *,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Softmax cross-entropy in nats: -log softmax(logits)[label] of each row.

    Args:
      logits: One number for each class; the largest is the most likely class.
      labels: The right class of each row.
      where: See `siamese_jax.losses`, also for `weights` (one per row) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per row.

    >>> print(f"{class_loss(jnp.zeros((1, 2)), jnp.array([1])):.4f}")  # log 2
    0.6931
    """
    check_rank("logits", logits, 2)
    check_floating("logits", logits)
    logits = widen(logits)
    values = logsumexp(logits, axis=1) - entry_of(logits, labels)
    values = of_classes(values, labels, logits)
    return reduce_terms(make_terms(values, where, weights=weights), reduce_fn)


def proxy_nca_loss(
    embeddings: Embeddings,
    labels: Labels,
    proxies: Proxies,
    *,
    temperature: Scalar = 1.0,
    negatives_only: bool = False,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Proxy-NCA(++): softmax over squared distances of unit vectors to the proxies.

    With x and w scaled to length 1:  -log( exp(-|x - w_y|^2 / t) / sum_c exp(-|x - w_c|^2 /
    t) ), where the sum is over all classes or, with `negatives_only`, over the wrong ones.

    Args:
      embeddings: Embeddings.
      labels: Their classes.
      proxies: One proxy for each class; at least two with `negatives_only`.
      temperature: t. Proxy-NCA++ uses 1/9.
      negatives_only: The denominator of the first paper, without the right class.
      where: See `siamese_jax.losses`, also for `weights` and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per embedding.

    Reference:
      Movshovitz-Attias et al. No Fuss Distance Metric Learning using Proxies. ICCV 2017,
      eq. 6 (`negatives_only`). Teh, DeVries, Taylor. ProxyNCA++. ECCV 2020, eq. 6 and 7.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, -1.0]])
    >>> print(f"{proxy_nca_loss(x, jnp.array([0]), w):.4f}")  # log 2
    0.6931
    """
    check_scalar("temperature", temperature)
    check_features(embeddings, proxies)
    x, w = normalize(widen(embeddings)), normalize(widen(proxies))
    squared = squared_euclidean_distance_matrix(x, w)
    logits = -squared / temperature
    if not negatives_only:
        return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)
    check_at_least("the number of proxies", len(proxies), 2)
    wrong = ~one_hot(labels, logits)
    values = logsumexp(logits, axis=1, where=wrong) - entry_of(logits, labels)
    values = of_classes(values, labels, logits)
    return reduce_terms(make_terms(values, where, weights=weights), reduce_fn)


def proxy_anchor_loss(
    embeddings: Embeddings,
    labels: Labels,
    proxies: Proxies,
    *,
    margin: Scalar = 0.1,
    scale: Scalar = 32.0,
    where: Where = None,
    weights: Float[Array, " classes"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Proxy-Anchor: each proxy against the embeddings of its class and all the others.

    The mean over proxies with positives of log(1 + sum exp(-scale (cos - margin))) over
    their positives, plus the mean over all proxies of
    log(1 + sum exp(scale (cos + margin))) over their negatives.

    Args:
      embeddings: Embeddings.
      labels: Their classes.
      proxies: One proxy for each class.
      margin: In cosines.
      scale: Sharpness of the smooth maxima.
      where: True where an embedding counts, `[n]`.
      weights: Weight of each proxy.
      reduce_fn: See `siamese_jax.losses`.

    Returns:
      The reduced loss, or two `Terms` with one value per proxy.

    Reference:
      Kim et al. Proxy Anchor Loss for Deep Metric Learning. CVPR 2020, eq. 4.

    >>> w = jnp.array([[1.0, 0.0]])
    >>> loss = proxy_anchor_loss(w, jnp.array([0]), w, margin=1.0)
    >>> print(f"{loss:.4f}")  # log 2
    0.6931
    """
    check_scalar("margin", margin)
    check_scalar("scale", scale)
    cosines = proxy_cosines(embeddings, proxies)
    positive = one_hot(labels, cosines)
    valid = jnp.ones(len(labels), bool) if where is None else where
    check_mask("where", valid, labels)
    is_class = jnp.any(positive, axis=1, keepdims=True)
    cosines = jnp.where(is_class | ~valid[:, None], cosines, jnp.nan)
    pulled, pushed = positive & valid[:, None], ~positive & valid[:, None]
    pull = softplus(logsumexp(-scale * (cosines - margin), axis=0, where=pulled))
    push = softplus(logsumexp(scale * (cosines + margin), axis=0, where=pushed))
    any_valid = jnp.broadcast_to(jnp.any(valid), push.shape)
    terms = (
        make_terms(pull, jnp.any(pulled, axis=0), weights=weights),
        make_terms(push, any_valid, weights=weights),
    )
    return reduce_terms(terms, reduce_fn)


def p2s_grad_loss(
    embeddings: Embeddings,
    labels: Labels,
    proxies: Proxies,
    *,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """P2SGrad: squared difference of the cosines to 1 (right class) and 0 (others).

    The value of an embedding is the mean over classes of (cos - target)^2.

    Reference:
      Zhang et al. P2SGrad: Refined Gradients for Optimizing Deep Face Models. CVPR 2019,
      eq. 11, of whose gradient it is the integral, up to a factor.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> print(p2s_grad_loss(x, jnp.array([0]), w))  # both are wrong by 1
    1.0
    """
    cosines = proxy_cosines(embeddings, proxies)
    target = one_hot(labels, cosines)
    values = jnp.mean((cosines - target) ** 2, axis=1)
    values = of_classes(values, labels, cosines)
    return reduce_terms(make_terms(values, where, weights=weights), reduce_fn)


def instance_loss(
    embeddings: Embeddings,
    labels: Labels,
    proxies: Proxies,
    *,
    scale: Scalar = 64.0,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Instance loss: softmax over products with one proxy for each instance.

    Both modalities, such as images and texts, are classified by the same proxies; add the
    losses of both.

    Args:
      embeddings: Embeddings of length 1.
      labels: The number of each instance, of which each is a class of its own.
      proxies: One for each instance.
      scale: Multiplies the products.
      where: See `siamese_jax.losses`, also for `weights` and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per embedding.

    Reference:
      Zheng et al. Dual-Path Convolutional Image-Text Embeddings with Instance Loss. TOMM
      2020, eq. 3 and 4.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, 3.0]])
    >>> print(f"{instance_loss(x, jnp.array([0]), w):.4f}")  # log 2
    0.6931
    """
    check_scalar("scale", scale)
    check_features(embeddings, proxies)
    logits = scale * dot_similarity_matrix(embeddings, proxies)
    return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)


def prototypical_loss(
    embeddings: Embeddings,
    labels: Labels,
    prototypes: Proxies,
    *,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Prototypical networks: softmax over negative squared distances to the prototypes.

    Args:
      embeddings: Embeddings of the queries.
      labels: Their classes.
      prototypes: The mean embedding of the support of each class, which
        `episodes.prototypes` computes; gradients go through it.
      where: See `siamese_jax.losses`, also for `weights` and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per query.

    Reference:
      Snell, Swersky, Zemel. Prototypical Networks for Few-shot Learning. NIPS 2017, eq. 2.

    >>> x, w = jnp.array([[0.0]]), jnp.array([[1.0], [-1.0]])
    >>> print(f"{prototypical_loss(x, jnp.array([0]), w):.4f}")  # log 2
    0.6931
    """
    check_features(embeddings, prototypes)
    logits = -squared_euclidean_distance_matrix(embeddings, prototypes)
    return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)
