"""Losses that compare embeddings with learnt proxies of the classes.

`x_loss(embeddings, labels, proxies, ...)` with embeddings `[n, dim]`, integer labels `[n]`
from 0 to classes - 1, and proxies `[classes, dim]`, which are parameters to be trained with
the network. A label outside of the classes makes the loss NaN. `where` and `weights` are
`[n]`, one for each embedding.

Most of them are a softmax over the classes after the logit of the right class was made
smaller by a margin, and are one call of `class_loss`:

    logits [n, classes], labels -> mean of -log softmax(logits)[label]

A margin may be one number or one for each class, `[classes]`: `arc_face_loss` with
`dynamic_margins(counts)` gives rare classes larger margins. A scale multiplies the logits,
as 1 / temperature would.

>>> proxies = jnp.array([[1.0, 0.0], [0.0, 1.0]])
>>> loss = cos_face_loss(proxies, jnp.array([0, 1]), proxies, margin=0.0, scale=1.0)
>>> print(f"{loss:.4f}")  # log(1 + exp(-1))
0.3133
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp, softplus
from jaxtyping import Array, Bool, Float, Int

from siamese_jax import relations
from siamese_jax._checks import (
    check_at_least,
    check_floating,
    check_integer,
    check_rank,
    check_scalar,
    check_shape,
)
from siamese_jax._numerics import Margin, Scalar, add_angle, safe_sqrt, widen
from siamese_jax.distances import (
    cosine_similarity_matrix,
    dot_similarity_matrix,
    normalize,
    squared_euclidean_distance_matrix,
)
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms

Embeddings = Float[Array, "n dim"]
Labels = Int[Array, " n"]
Proxies = Float[Array, "classes dim"]
Centers = Float[Array, "classes centers dim"]
Where = Bool[Array, " n"] | None
Weights = Float[Array, " n"] | None


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
    values = logsumexp(logits, axis=1) - _at(logits, labels)
    return reduce_terms(make_terms(values, where, weights=weights), reduce_fn)


# Margins on the angle or the cosine -----------------------------------------------------


def normalized_softmax_loss(
    embeddings: Embeddings,
    labels: Labels,
    proxies: Proxies,
    *,
    temperature: Scalar = 0.05,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Softmax over the cosines to the proxies, divided by a temperature.

    Reference:
      Zhai, Wu. Classification is a Strong Baseline for Deep Metric Learning. BMVC 2019.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, -1.0]])
    >>> print(f"{normalized_softmax_loss(x, jnp.array([0]), w):.4f}")  # log 2
    0.6931
    """
    check_scalar("temperature", temperature)
    logits = _cosines(embeddings, proxies) / temperature
    return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)


def cos_face_loss(
    embeddings: Embeddings,
    labels: Labels,
    proxies: Proxies,
    *,
    margin: Margin = 0.35,
    scale: Scalar = 64.0,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """CosFace: the cosine of the right class is made smaller by a margin.

    The logits are scale (cos - margin) for the right class and scale cos for the others.

    Reference:
      Wang et al. CosFace: Large Margin Cosine Loss for Deep Face Recognition. CVPR 2018,
      eq. 4.

    >>> x = jnp.array([[1.0, 0.0]])
    >>> loss = cos_face_loss(x, jnp.array([0]), jnp.array([[1.0, 0.0], [1.0, 0.0]]),
    ...                      margin=1.0, scale=1.0)
    >>> print(f"{loss:.4f}")  # log(1 + e)
    1.3133
    """
    check_scalar("scale", scale)
    cosines = _cosines(embeddings, proxies)
    margins = _margins(margin, labels, proxies)
    logits = _replaced(cosines, labels, _at(cosines, labels) - margins)
    return class_loss(
        scale * logits, labels, where=where, weights=weights, reduce_fn=reduce_fn
    )


def arc_face_loss(
    embeddings: Embeddings,
    labels: Labels,
    proxies: Proxies | Centers,
    *,
    margin: Margin = 28.6,
    scale: Scalar = 64.0,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """ArcFace: the angle to the proxy of the right class is made larger by a margin.

    The logits are scale cos(t + margin) for the right class and scale cos(t) for the
    others. Where t + margin is beyond 180 degrees, cos(t) - margin sin(margin) takes the
    place of the first, with the margin in radians, so that it still falls with the angle.

    Args:
      embeddings: Embeddings, whose lengths do not matter.
      labels: Their classes.
      proxies: One proxy for each class, or several centres `[classes, centers, dim]`, of
        which the nearest counts (sub-centre ArcFace).
      margin: In degrees; 0.5 radians by default. One for each class in dynamic ArcFace.
      scale: Multiplies the cosines.
      where: See `siamese_jax.losses`, also for `weights` and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per embedding.

    Reference:
      Deng et al. ArcFace. CVPR 2019, eq. 3. Deng et al. Sub-center ArcFace. ECCV 2020.

    >>> x = jnp.array([[1.0, 0.0]])
    >>> loss = arc_face_loss(x, jnp.array([0]), jnp.array([[1.0, 0.0], [0.0, 1.0]]),
    ...                      margin=90.0, scale=1.0)
    >>> print(f"{loss:.4f}")  # both logits are 0: log 2
    0.6931
    """
    check_scalar("scale", scale)
    if jnp.ndim(proxies) == 3:
        cosines = jnp.max(_cosines_to_centers(embeddings, proxies), axis=2)
    else:
        cosines = _cosines(embeddings, proxies)
    radians = jnp.deg2rad(_margins(margin, labels, proxies))
    right = _at(cosines, labels)
    beyond = right < -jnp.cos(radians)
    linear = right - radians * jnp.sin(radians)
    with_margin = jnp.where(beyond, linear, add_angle(right, radians))
    logits = scale * _replaced(cosines, labels, with_margin)
    return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)


def dynamic_margins(
    counts: Int[Array, " classes"],
    *,
    power: float = 0.25,
    largest: float = 28.6,
    smallest: float = 0.0,
) -> Float[Array, " classes"]:
    """Margins of dynamic ArcFace: (largest - smallest) n^-power + smallest, in degrees.

    Args:
      counts: n, the number of examples of each class, at least 1.
      power: How much more margin rare classes get.
      largest: Margin of a class with one example.
      smallest: Margin that the most frequent classes approach.

    Reference:
      Ha et al. Google Landmark Recognition 2020 Competition Third Place Solution. 2020,
      eq. 3.

    >>> margins = dynamic_margins(jnp.array([1, 16]), largest=30.0, smallest=10.0)
    >>> print(margins)
    [30. 20.]
    """
    check_integer("counts", counts)
    check_rank("counts", counts, 1)
    shares = jnp.asarray(counts, jnp.float32) ** -power
    return (largest - smallest) * shares + smallest


def large_margin_softmax_loss(
    embeddings: Embeddings,
    labels: Labels,
    proxies: Proxies,
    *,
    margin: int = 4,
    scale: Scalar = 1.0,
    normalize_proxies: bool = False,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Large-margin softmax: the angle to the proxy of the right class counts m times.

    The logits are scale |x| |w| cos(t), and for the right class scale |x| |w| psi(t), where
    psi(t) = (-1)^k cos(m t) - 2 k for t between 180 k / m and 180 (k + 1) / m degrees,
    which falls from 1 at 0 to 1 - 2 m at 180.

    Args:
      embeddings: Embeddings, whose lengths count.
      labels: Their classes.
      proxies: One proxy for each class.
      margin: m, an integer of at least 1.
      scale: Multiplies the logits.
      normalize_proxies: Take |w| = 1, as in SphereFace.
      where: See `siamese_jax.losses`, also for `weights` and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per embedding.

    Raises:
      ValueError: If the margin is below 1.

    Reference:
      Liu et al. Large-Margin Softmax Loss for Convolutional Neural Networks. ICML 2016, eq.
      4 to 6.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> loss = large_margin_softmax_loss(x, jnp.array([0]), w, margin=1)
    >>> print(f"{loss:.4f}")  # log(1 + e)
    1.3133
    """
    check_at_least("margin", margin, 1)
    check_scalar("scale", scale)
    cosines = _cosines(embeddings, proxies)
    right = _at(cosines, labels)
    k = lax.stop_gradient(jnp.floor(jnp.arccos(jnp.clip(right, -1, 1)) * margin / jnp.pi))
    k = jnp.clip(k, 0, margin - 1)
    psi = (1 - 2 * (k % 2)) * _multiple_angle(right, margin) - 2 * k
    lengths = _lengths(embeddings)[:, None]
    if not normalize_proxies:
        lengths = lengths * _lengths(proxies)[None, :]
    logits = scale * lengths * _replaced(cosines, labels, psi)
    return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)


def sphere_face_loss(
    embeddings: Embeddings,
    labels: Labels,
    proxies: Proxies,
    *,
    margin: int = 4,
    scale: Scalar = 1.0,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """SphereFace: `large_margin_softmax_loss` with proxies of length 1.

    Reference:
      Liu et al. SphereFace. CVPR 2017, eq. 7, without the annealing of its appendix.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 5.0], [5.0, 0.0]])
    >>> print(f"{sphere_face_loss(x, jnp.array([0]), w, margin=1):.4f}")  # log(1 + e)
    1.3133
    """
    return large_margin_softmax_loss(
        embeddings,
        labels,
        proxies,
        margin=margin,
        scale=scale,
        normalize_proxies=True,
        where=where,
        weights=weights,
        reduce_fn=reduce_fn,
    )


def soft_triple_loss(
    embeddings: Embeddings,
    labels: Labels,
    centers: Centers,
    *,
    center_temperature: Scalar = 0.1,
    margin: Margin = 0.01,
    scale: Scalar = 20.0,
    where: Where = None,
    weights: Weights = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """SoftTriple: several centres for each class, of which the nearest count most.

    The similarity to a class is sum_k q_k cos_k over its centres, with q = softmax(cos /
    center_temperature). The logits are as in `cos_face_loss`. The paper adds
    `regularizers.sparse_centers`.

    Reference:
      Qian et al. SoftTriple Loss. ICCV 2019, eq. 7 to 9.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.ones((2, 3, 2))
    >>> print(f"{soft_triple_loss(x, jnp.array([0]), w, margin=0.0):.4f}")  # log 2
    0.6931
    """
    check_scalar("center_temperature", center_temperature)
    check_scalar("scale", scale)
    cosines = _cosines_to_centers(embeddings, centers)
    shares = jax.nn.softmax(cosines / center_temperature, axis=2)
    similarities = jnp.sum(shares * cosines, axis=2)
    right = _at(similarities, labels) - _margins(margin, labels, centers)
    logits = scale * _replaced(similarities, labels, right)
    return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)


# Other forms ----------------------------------------------------------------------------


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
    _check(embeddings, proxies)
    squared = squared_euclidean_distance_matrix(normalize(embeddings), normalize(proxies))
    logits = -squared / temperature
    if not negatives_only:
        return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)
    check_at_least("the number of proxies", len(proxies), 2)
    wrong = ~_one_hot(labels, logits)
    values = logsumexp(logits, axis=1, where=wrong) - _at(logits, labels)
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
    cosines = _cosines(embeddings, proxies)
    positive = _one_hot(labels, cosines)
    valid = jnp.ones(len(labels), bool) if where is None else where
    check_shape("where", valid, (len(labels),), "one for each embedding")
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
    cosines = _cosines(embeddings, proxies)
    target = _one_hot(labels, cosines)
    values = jnp.mean((cosines - target) ** 2, axis=1)
    values = values + 0 * _at(cosines, labels)  # NaN for a label outside of the classes
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
    _check(embeddings, proxies)
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
    _check(embeddings, prototypes)
    logits = -squared_euclidean_distance_matrix(embeddings, prototypes)
    return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)


# Implementation -------------------------------------------------------------------------


def _check(embeddings: Array, proxies: Array, *, rank: int = 2) -> None:
    check_floating("embeddings", embeddings)
    check_rank("embeddings", embeddings, 2)
    check_floating("proxies", proxies)
    check_rank("proxies", proxies, rank)
    if proxies.shape[-1] != embeddings.shape[1]:
        raise ValueError(
            f"proxies must have {embeddings.shape[1]} features, as the embeddings; got "
            f"shape {proxies.shape}"
        )


def _cosines(embeddings: Array, proxies: Array) -> Float[Array, "n classes"]:
    _check(embeddings, proxies)
    return cosine_similarity_matrix(embeddings, proxies)


def _cosines_to_centers(
    embeddings: Array, centers: Array
) -> Float[Array, "n classes centers"]:
    _check(embeddings, centers, rank=3)
    flat = cosine_similarity_matrix(embeddings, centers.reshape(-1, centers.shape[2]))
    return flat.reshape(len(embeddings), *centers.shape[:2])


def _margins(margin: Margin, labels: Array, proxies: Array) -> Array:
    """The margin of each embedding's class, or one for all."""
    if jnp.ndim(margin) == 0:
        return jnp.asarray(margin)
    check_shape("margin", margin, proxies.shape[:1], "one for each class, or a scalar")
    return jnp.asarray(margin).at[labels].get(mode="fill", fill_value=jnp.nan)


def _one_hot(labels: Array, matrix: Array) -> Bool[Array, "n classes"]:
    check_integer("labels", labels)
    check_shape("labels", labels, matrix.shape[:1], "one for each embedding")
    classes = relations.Items(jnp.arange(matrix.shape[1]))
    return relations.between(relations.Items(labels), classes).same


def _at(matrix: Array, labels: Array) -> Float[Array, " n"]:
    """The entry of the right class, NaN for a label outside of the classes."""
    right = _one_hot(labels, matrix)
    chosen = jnp.sum(jnp.where(right, matrix, 0), axis=1)
    return jnp.where(jnp.any(right, axis=1), chosen, jnp.nan)


def _replaced(matrix: Array, labels: Array, right: Array) -> Float[Array, "n classes"]:
    return jnp.where(_one_hot(labels, matrix), right[:, None], matrix)


def _lengths(x: Array) -> Float[Array, " n"]:
    return safe_sqrt(jnp.sum(widen(x) ** 2, axis=1))


def _multiple_angle(cosine: Array, multiple: int) -> Array:
    """cos(m t) as the Chebyshev polynomial of cos(t), whose gradient is finite."""
    previous, current = jnp.ones_like(cosine), cosine
    for _ in range(multiple - 1):
        previous, current = current, 2 * cosine * current - previous
    return current
