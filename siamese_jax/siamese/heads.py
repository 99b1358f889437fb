"""Pair heads: two embeddings, or their distance, to the log-odds of "same".

>>> import jax.numpy as jnp
>>> print(threshold_logits(jnp.array([1.0]), threshold=0.5))
[-0.5]
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from siamese_jax._checks import (
    check_floating,
    check_rank,
    check_same_shape,
    check_scalar,
    check_shape,
)
from siamese_jax._numerics import Scalar, safe_abs, widen


def threshold_logits(
    distances: Float[Array, "*shape"], *, threshold: Scalar, scale: Scalar = 1.0
) -> Float[Array, "*shape"]:
    """Log-odds of "same" from a distance: scale * (threshold - distance).

    The log-odds are positive where the distance is below the threshold. With a learnt
    threshold and scale this is a logistic head. The Keras tutorials write it as a dense
    layer on the distance, whose kernel is -scale and whose bias is scale * threshold.

    Raises:
      ValueError: If `threshold` or `scale` is not a scalar.
      TypeError: If `distances` is not floating-point.

    >>> print(threshold_logits(jnp.array([0.25, 1.0]), threshold=0.5, scale=4.0))
    [ 1. -2.]
    """
    check_floating("distances", distances)
    check_scalar("threshold", threshold)
    check_scalar("scale", scale)
    return scale * (threshold - widen(distances))


def weighted_l1_logits(
    a: Float[Array, "*batch dim"],
    b: Float[Array, "*batch dim"],
    weights: Float[Array, " dim"],
    bias: Scalar,
) -> Float[Array, "*batch"]:
    """Log-odds of "same" from a weighted city-block distance: sum_j w_j |a_j - b_j| + bias.

    The gradient of |a_j - b_j| is 0 where a_j = b_j.

    Raises:
      ValueError: If `weights` does not have one entry for each dimension, or `bias` is not
        a scalar.
      TypeError: If an input is not floating-point.

    Reference:
      Koch, Zemel, Salakhutdinov. Siamese Neural Networks for One-shot Image Recognition.
      2015, section 3.1. The paper's sigmoid is part of `losses.logistic_loss`.

    >>> a, b = jnp.array([[1.0, 5.0]]), jnp.array([[2.0, 2.0]])
    >>> print(weighted_l1_logits(a, b, jnp.array([-1.0, -2.0]), 10.0))
    [3.]
    """
    for name, array in (("a", a), ("b", b), ("weights", weights)):
        check_floating(name, array)
    check_rank("weights", weights, 1)
    check_scalar("bias", bias)
    if not a.shape == b.shape == (*a.shape[:-1], *weights.shape):
        raise ValueError(
            f"a and b must have equal shapes ending in one entry for each of the "
            f"{weights.shape[0]} weights; got {a.shape} and {b.shape}"
        )
    difference = safe_abs(widen(a) - widen(b))
    products = jnp.einsum(
        "...d,d->...", difference, widen(weights), precision=jax.lax.Precision.HIGHEST
    )
    return products + bias


def concatenation_logits(
    a: Float[Array, "*batch dim"],
    b: Float[Array, "*batch dim"],
    weights: Float[Array, " two_dim"],
    bias: Scalar,
) -> Float[Array, "*batch"]:
    """Log-odds of "same" from both vectors side by side: w . [a, b] + bias.

    Without a hidden layer before it this head cannot compare: it adds what it thinks of
    each input.

    Raises:
      ValueError: If the shapes of a and b differ, `weights` does not have one entry for
        each of their dimensions, or `bias` is not a scalar.
      TypeError: If an input is not floating-point.

    >>> a, b = jnp.array([[1.0, 5.0]]), jnp.array([[2.0, 3.0]])
    >>> print(concatenation_logits(a, b, jnp.array([1.0, 0.0, 0.0, 2.0]), 10.0))
    [17.]
    """
    _check_head(a, b, weights, bias, (2,))
    joined = jnp.concatenate([widen(a), widen(b)], axis=-1)
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(joined, widen(weights), precision=highest) + bias


def bilinear_logits(
    a: Float[Array, "*batch dim"],
    b: Float[Array, "*batch dim"],
    weights: Float[Array, "dim dim"],
    bias: Scalar,
) -> Float[Array, "*batch"]:
    """Log-odds of "same" from a learnt similarity: a^T W b + bias.

    It is symmetric in the two inputs if W is a symmetric matrix.

    Raises:
      ValueError: If the shapes of a and b differ, `weights` is not `[dim, dim]`, or `bias`
        is not a scalar.
      TypeError: If an input is not floating-point.

    Reference:
      Chechik et al. Large Scale Online Learning of Image Similarity Through Ranking. JMLR
      2010, eq. 1 (OASIS).

    >>> a, b = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])
    >>> print(bilinear_logits(a, b, jnp.array([[0.0, 1.0], [0.0, 0.0]]), 0.5))  # 1 * 4
    [4.5]
    """
    _check_head(a, b, weights, bias, (1, 1))
    highest = jax.lax.Precision.HIGHEST
    mapped = jnp.matmul(widen(a), widen(weights), precision=highest)
    return jnp.sum(mapped * widen(b), axis=-1) + bias


def _check_head(
    a: Array, b: Array, weights: Array, bias: Scalar, dims: tuple[int, ...]
) -> None:
    """Checks a head whose weights have so many times the dimension of a on each axis."""
    for name, array in (("a", a), ("b", b), ("weights", weights)):
        check_floating(name, array)
    if not a.ndim:
        raise ValueError("a must have at least 1 axis; got shape ()")
    check_same_shape("b", b, "a", a)
    shape = tuple(num * a.shape[-1] for num in dims)
    check_shape("weights", weights, shape, "to match the dimensions of a and b")
    check_scalar("bias", bias)
