"""Angles, hyperbolic space, learnt metrics and noise relative to the signal."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._checks import check_floating, check_rank
from siamese_jax._numerics import centred, safe_sqrt, widen
from siamese_jax.distances.standard import (
    cosine_distance,
    cosine_distance_matrix,
    euclidean_distance,
    euclidean_distance_matrix,
    squared_euclidean_distance,
    squared_euclidean_distance_matrix,
)


def angular_distance(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"]
) -> Float[Array, "*batch"]:
    """Angle between a and b, arccos of their cosine, in radians; pi / 2 if one is zero.

    It is computed as 2 arctan2(|u - v|, |u + v|) of the unit vectors, which is exact for
    angles near 0 and near pi too. The gradient is 0 where the angle is 0 or pi.

    >>> print(f"{angular_distance(jnp.array([2.0, 0.0]), jnp.array([0.0, 3.0])):.4f}")
    1.5708
    """
    return _angle(cosine_distance(a, b), cosine_distance(a, -b))


def angular_distance_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`angular_distance` of every row of `a` to every row of `b`.

    >>> axes = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    >>> print(jnp.round(angular_distance_matrix(axes, axes), 4))
    [[0.     1.5708]
     [1.5708 0.    ]]
    """
    return _angle(cosine_distance_matrix(a, b), cosine_distance_matrix(a, -b))


def mahalanobis_distance(
    a: Float[Array, "*batch dim"],
    b: Float[Array, "*batch dim"],
    factor: Float[Array, "rank dim"],
) -> Float[Array, "*batch"]:
    """Mahalanobis distance sqrt((a - b)^T M (a - b)) with M = L^T L, usually learnt.

    Args:
      a: Vectors.
      b: Vectors of the same shape.
      factor: L, any matrix with one column for each dimension. M is then never negative.
        With fewer rows than columns the distance is one of a projection.

    Raises:
      ValueError: If `factor` is not such a matrix.

    Reference:
      Weinberger, Saul. Distance Metric Learning for Large Margin Nearest Neighbor
      Classification. JMLR 2009, eq. 2 and 3.

    >>> a, b = jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])
    >>> print(mahalanobis_distance(a, b, jnp.array([[1.0, 0.0], [0.0, 2.0]])))  # 3, 8
    8.5440035
    """
    return euclidean_distance(_mapped("a", a, factor), _mapped("b", b, factor))


def mahalanobis_distance_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"], factor: Float[Array, "rank dim"]
) -> Float[Array, "n m"]:
    """`mahalanobis_distance` of every row of `a` to every row of `b`.

    Raises:
      ValueError: If `factor` has not one column for each dimension.

    >>> points = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    >>> print(mahalanobis_distance_matrix(points, points, jnp.array([[1.0, 0.0]])))
    [[0. 3.]
     [3. 0.]]
    """
    return euclidean_distance_matrix(_mapped("a", a, factor), _mapped("b", b, factor))


def poincare_distance(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"]
) -> Float[Array, "*batch"]:
    """Hyperbolic distance in the Poincare ball: arcosh(1 + 2 |a - b|^2 / (n_a n_b)).

    Here n_x = 1 - |x|^2. Points on or outside of the unit ball have no such distance: the
    result is NaN. The gradient is 0 where a = b.

    Reference:
      Nickel, Kiela. Poincare Embeddings for Learning Hierarchical Representations. NIPS
      2017, eq. 1.

    >>> print(f"{poincare_distance(jnp.array([0.0]), jnp.array([0.5])):.4f}")  # log 3
    1.0986
    """
    squared = squared_euclidean_distance(a, b)
    return _hyperbolic(squared, _room(a), _room(b))


def poincare_distance_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`poincare_distance` of every row of `a` to every row of `b`.

    >>> points = jnp.array([[0.0], [0.5]])
    >>> print(jnp.round(poincare_distance_matrix(points, points), 4))
    [[0.     1.0986]
     [1.0986 0.    ]]
    """
    squared = squared_euclidean_distance_matrix(a, b)
    return _hyperbolic(squared, _room(a)[:, None], _room(b)[None, :])


def signal_to_noise_distance(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"]
) -> Float[Array, "*batch"]:
    """Variance of b - a over that of the anchor a: the inverse signal-to-noise ratio.

    The variances are over the features. The distance is not symmetric. If the anchor is
    constant it is 0 to a constant difference and infinite to any other.

    Reference:
      Yuan et al. Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning.
      CVPR 2019, eq. 6.

    >>> a, b = jnp.array([1.0, -1.0]), jnp.array([3.0, -3.0])
    >>> print(signal_to_noise_distance(a, b))  # 4 / 1
    4.0
    """
    noise = squared_euclidean_distance(_centred("a", a), _centred("b", b))
    return _ratio(noise, _signal(a))


def signal_to_noise_distance_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`signal_to_noise_distance` of every row of `a`, the anchors, to every row of `b`.

    >>> points = jnp.array([[1.0, -1.0], [3.0, -3.0]])
    >>> print(signal_to_noise_distance_matrix(points, points))
    [[0.         4.        ]
     [0.44444445 0.        ]]
    """
    noise = squared_euclidean_distance_matrix(_centred("a", a), _centred("b", b))
    return _ratio(noise, jnp.broadcast_to(_signal(a)[:, None], noise.shape))


# Implementation -------------------------------------------------------------------------


def _angle(
    to_vector: Float[Array, "*batch"], to_opposite: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """From 1 - cos = |u - v|^2 / 2 and 1 + cos = |u + v|^2 / 2, without cancellation."""
    return 2 * jnp.arctan2(safe_sqrt(to_vector), safe_sqrt(to_opposite))


def _mapped(name: str, x: Array, factor: Array) -> Float[Array, "*batch rank"]:
    check_floating(name, x)
    check_floating("factor", factor)
    check_rank("factor", factor, 2)
    if x.shape[-1:] != factor.shape[1:]:
        raise ValueError(
            f"factor must have {x.shape[-1]} columns, one for each dimension of {name}; "
            f"got shape {factor.shape}"
        )
    return jnp.matmul(widen(x), widen(factor).T, precision=lax.Precision.HIGHEST)


def _room(x: Array) -> Float[Array, "*batch"]:
    """1 - |x|^2, NaN outside of the ball."""
    room = 1 - jnp.sum(widen(x) ** 2, axis=-1)
    return jnp.where(room > 0, room, jnp.nan)


def _hyperbolic(squared: Array, room_a: Array, room_b: Array) -> Array:
    x = 2 * squared / (room_a * room_b)
    return jnp.log1p(x + safe_sqrt(x * (x + 2)))  # arcosh(1 + x)


def _centred(name: str, x: Array) -> Float[Array, "*batch dim"]:
    check_floating(name, x)
    return centred(widen(x), axis=-1)


def _signal(a: Array) -> Float[Array, "*batch"]:
    return jnp.sum(_centred("a", a) ** 2, axis=-1)


def _ratio(noise: Array, signal: Array) -> Array:
    none = signal == 0
    ratio = noise / jnp.where(none, 1, signal)
    return jnp.where(none, jnp.where(noise == 0, 0, jnp.inf), ratio)
