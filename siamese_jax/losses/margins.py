"""Softmax over the proxies of all classes, with a margin on the logit of the right one.

`x_loss(embeddings, labels, proxies, ...)` as in `losses.proxies`. Each is one call of
`class_loss` after the logit of the right class was made smaller.

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
from jaxtyping import Array, Float, Int

from siamese_jax._checks import (
    check_at_least,
    check_integer,
    check_rank,
    check_scalar,
    check_shape,
)
from siamese_jax._numerics import Margin, Scalar, add_angle, safe_sqrt, widen
from siamese_jax.losses._proxies import (
    Centers,
    Embeddings,
    Labels,
    Proxies,
    Weights,
    Where,
    center_cosines,
    check_features,
    entry_of,
    one_hot,
    proxy_cosines,
)
from siamese_jax.losses.proxies import class_loss
from siamese_jax.reductions import ReduceFn, mean


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
    logits = proxy_cosines(embeddings, proxies) / temperature
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
    cosines = proxy_cosines(embeddings, proxies)
    margins = _margins(margin, labels, proxies)
    logits = _replaced(cosines, labels, entry_of(cosines, labels) - margins)
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
        cosines = jnp.max(center_cosines(embeddings, proxies), axis=2)
    else:
        cosines = proxy_cosines(embeddings, proxies)
    radians = jnp.deg2rad(_margins(margin, labels, proxies))
    right = entry_of(cosines, labels)
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
    if not isinstance(margin, int):
        raise TypeError(f"margin must be an integer; got {margin!r}")
    check_at_least("margin", margin, 1)
    check_scalar("scale", scale)
    check_features(embeddings, proxies)
    embeddings, proxies = widen(embeddings), widen(proxies)  # once, as they are used twice
    cosines = proxy_cosines(embeddings, proxies)
    right = entry_of(cosines, labels)
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
    cosines = center_cosines(embeddings, centers)
    shares = jax.nn.softmax(cosines / center_temperature, axis=2)
    similarities = jnp.sum(shares * cosines, axis=2)
    right = entry_of(similarities, labels) - _margins(margin, labels, centers)
    logits = scale * _replaced(similarities, labels, right)
    return class_loss(logits, labels, where=where, weights=weights, reduce_fn=reduce_fn)


# Implementation -------------------------------------------------------------------------


def _margins(margin: Margin, labels: Array, proxies: Array) -> Array:
    """The margin of each embedding's class, or one for all."""
    if jnp.ndim(margin) == 0:
        return jnp.asarray(margin)
    margins = jnp.asarray(margin)
    check_shape("margin", margins, proxies.shape[:1], "one for each class, or a scalar")
    return margins.at[labels].get(mode="clip")


def _replaced(matrix: Array, labels: Array, right: Array) -> Float[Array, "n classes"]:
    return jnp.where(one_hot(labels, matrix), right[:, None], matrix)


def _lengths(x: Array) -> Float[Array, " n"]:
    return safe_sqrt(jnp.sum(widen(x) ** 2, axis=1))


def _multiple_angle(cosine: Array, multiple: int) -> Array:
    """cos(m t) as the Chebyshev polynomial of cos(t), whose gradient is finite."""
    previous, current = jnp.ones_like(cosine), cosine
    for _ in range(multiple - 1):
        previous, current = current, 2 * cosine * current - previous
    return current
