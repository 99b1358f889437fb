"""Classifiers of a few examples, each query by itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, Int

from siamese_jax._checks import (
    check_boolean,
    check_floating,
    check_rank,
    check_shape,
)
from siamese_jax._numerics import Scalar, widen
from siamese_jax.distances import (
    cosine_similarity_matrix,
    euclidean_distance_matrix,
    normalize,
)

MatrixFn = Callable[[Array, Array], Float[Array, "n m"]]


def prototypes(
    support: Float[Array, "ways shots dim"],
    *,
    where: Bool[Array, "ways shots"] | None = None,
) -> Float[Array, "ways dim"]:
    """Mean embedding of each class; NaN for a class without examples.

    Raises:
      ValueError: If `support` is not `[ways, shots, dim]`, or `where` not `[ways, shots]`.
      TypeError: If `support` is not floating-point, or `where` not boolean.

    Reference:
      Snell, Swersky, Zemel. Prototypical Networks. NeurIPS 2017, eq. 1.

    >>> print(prototypes(jnp.array([[[0.0], [2.0]]])))
    [[1.]]
    """
    examples, counted = checked_support(support, where)
    if where is None:
        return jnp.mean(examples, axis=1).astype(support.dtype)
    num = jnp.sum(counted, axis=1, keepdims=True)
    means = jnp.sum(examples, axis=1) / jnp.maximum(num, 1)
    return jnp.where(num == 0, jnp.nan, means).astype(support.dtype)


def classify(
    support: Float[Array, "ways shots dim"],
    queries: Float[Array, "queries dim"],
    *,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
) -> Int[Array, " queries"]:
    """Number of the class with the nearest prototype, or -1 if a distance is NaN.

    Args:
      support: Embeddings of K examples of each of N classes.
      queries: Embeddings to classify, independently of one another.
      matrix_fn: `matrix_fn(x, y)`, distances of `[n, dim]` to `[m, dim]`.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If an input is not floating-point.

    >>> support = jnp.array([[[0.0]], [[1.0]]])
    >>> print(classify(support, jnp.array([[0.9], [0.2]])))
    [1 0]
    """
    return answers(prototype_logits(support, queries, matrix_fn=matrix_fn))


def answers(logits: Float[Array, "queries ways"]) -> Int[Array, " queries"]:
    """Number of the class with the largest logit, or -1 if a logit is NaN."""
    unknown = jnp.any(jnp.isnan(logits), axis=1)
    return jnp.where(unknown, -1, jnp.argmax(logits, axis=1))


# Logits -------------------------------------------------------------------------------


def neighbour_logits(
    support: Float[Array, "ways shots dim"],
    queries: Float[Array, "queries dim"],
    *,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
    where: Bool[Array, "ways shots"] | None = None,
) -> Float[Array, "queries ways"]:
    """Nearest neighbour: minus the distance to the nearest example of each class.

    Args:
      support: See `siamese_jax.episodes`, also for `queries` and `where`.
      queries: Embeddings to classify.
      matrix_fn: `matrix_fn(x, y)`, distances of `[n, dim]` to `[m, dim]`.
      where: False where an example is ignored.

    >>> support = jnp.array([[[0.0], [4.0]], [[1.0], [9.0]]])
    >>> print(neighbour_logits(support, jnp.array([[3.0]])))
    [[-1. -2.]]
    """
    examples, counted = checked_task(support, queries, where)
    distances = matrix_fn(widen(queries), _flat(examples))
    distances = distances.reshape(-1, *counted.shape)
    nearest = jnp.min(jnp.where(counted, distances, jnp.inf), axis=2)
    return if_all_have_examples(counted, -nearest)


def prototype_logits(
    support: Float[Array, "ways shots dim"],
    queries: Float[Array, "queries dim"],
    *,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
    where: Bool[Array, "ways shots"] | None = None,
) -> Float[Array, "queries ways"]:
    """Nearest prototype: minus the distance to the mean embedding of each class.

    Args:
      support: See `siamese_jax.episodes`, also for `queries` and `where`.
      queries: Embeddings to classify.
      matrix_fn: `matrix_fn(x, y)`, distances of `[n, dim]` to `[m, dim]`.
      where: False where an example is ignored.

    Reference:
      Snell, Swersky, Zemel. Prototypical Networks. NeurIPS 2017, eq. 2, there of squared
      Euclidean distances.

    >>> support = jnp.array([[[0.0], [4.0]], [[1.0], [9.0]]])
    >>> print(prototype_logits(support, jnp.array([[3.0]])))
    [[-1. -2.]]
    """
    examples, counted = checked_task(support, queries, where)
    logits = -matrix_fn(widen(queries), prototypes(examples, where=counted))
    return if_all_have_examples(counted, logits)


def simple_shot_logits(
    support: Float[Array, "ways shots dim"],
    queries: Float[Array, "queries dim"],
    base_mean: Float[Array, " dim"],
    *,
    where: Bool[Array, "ways shots"] | None = None,
) -> Float[Array, "queries ways"]:
    """SimpleShot: `prototype_logits` of centred embeddings of length 1 (CL2N).

    Each embedding x becomes (x - m) / |x - m|, where m is the mean embedding of the
    training classes.

    Args:
      support: See `siamese_jax.episodes`, also for `queries` and `where`.
      queries: Embeddings to classify.
      base_mean: m, from the classes that the network was trained on.
      where: False where an example is ignored.

    Reference:
      Wang, Chao, Weinberger, van der Maaten. SimpleShot. 2019, eq. 1 to 3.

    >>> support = jnp.array([[[5.0]], [[1.0]]])
    >>> print(simple_shot_logits(support, jnp.array([[2.5]]), jnp.array([2.0])))
    [[-0. -2.]]
    """
    examples, counted = checked_task(support, queries, where)
    check_floating("base_mean", base_mean)
    check_shape("base_mean", base_mean, jnp.shape(queries)[1:], "one for each feature")
    mean = widen(base_mean)
    examples, centred = examples - mean[None, None, :], widen(queries) - mean[None, :]
    return prototype_logits(normalize(examples), normalize(centred), where=counted)


def matching_logits(
    support: Float[Array, "ways shots dim"],
    queries: Float[Array, "queries dim"],
    *,
    temperature: Scalar = 1.0,
    where: Bool[Array, "ways shots"] | None = None,
) -> Float[Array, "queries ways"]:
    """Matching: log of the attention that each class gets, a softmax of cosines.

    log( sum_{i in class} exp(s_i / t) / sum_i exp(s_i / t) ), with the cosine s_i of the
    query and example i. A class of more examples gets more attention.

    Args:
      support: See `siamese_jax.episodes`, also for `queries` and `where`.
      queries: Embeddings to classify.
      temperature: t, which divides the cosines.
      where: False where an example is ignored.

    Reference:
      Vinyals et al. Matching Networks for One Shot Learning. NIPS 2016, eq. 1 and section
      2.1.1.

    >>> support = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> print(jnp.exp(matching_logits(support, jnp.array([[1.0, 1.0]]))).round(3))
    [[0.5 0.5]]
    """
    examples, counted = checked_task(support, queries, where)
    cosines = cosine_similarity_matrix(widen(queries), _flat(examples))
    cosines = cosines.reshape(-1, *counted.shape) / temperature
    attention = jnp.where(counted, cosines, -jnp.inf)
    logits = logsumexp(attention, axis=2)
    logits -= logsumexp(attention, axis=(1, 2))[:, None]
    return if_all_have_examples(counted, logits)


def ridge_logits(
    support: Float[Array, "ways shots dim"],
    queries: Float[Array, "queries dim"],
    *,
    strength: Scalar = 1.0,
    where: Bool[Array, "ways shots"] | None = None,
) -> Float[Array, "queries ways"]:
    """Ridge regression of the classes' indicators on the embeddings.

    The weights W and offsets b minimise sum_i |W x_i + b - y_i|^2 + strength |W|^2, with
    y_i = 1 for the class of example i and 0 for others. The logits are W x + b. A strength
    below 1e-6 of the sum of all |x_i|^2 counts as this, since float32 cannot tell it.

    Args:
      support: See `siamese_jax.episodes`, also for `queries` and `where`.
      queries: Embeddings to classify.
      strength: Strength of the penalty, positive. It depends on the length of embeddings.
      where: False where an example is ignored.

    Reference:
      Bertinetto, Henriques, Torr, Vedaldi. Meta-learning with differentiable closed-form
      solvers. ICLR 2019, eq. 4 to 6; the offsets are added here.

    >>> support = jnp.array([[[1.0]], [[-1.0]]])
    >>> logits = ridge_logits(support, jnp.array([[2.0]]), strength=2.0)
    >>> print(abs(logits).round(3))  # 1/2 + 2/4 and 1/2 - 2/4
    [[1. 0.]]
    """
    examples, counted = checked_task(support, queries, where)
    x, mean, y, used = _regression(examples, counted)
    share = jnp.sum(y, axis=0, keepdims=True) / jnp.maximum(jnp.sum(used), 1)
    targets = jnp.where(used[:, None], y - share, 0)
    gram = _product(x, x.T)
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.trace(gram)
    gram += jnp.maximum(strength, rounding) * jnp.eye(len(x))
    dual = jax.scipy.linalg.solve(gram, targets, assume_a="pos")
    logits = _product(_product(widen(queries) - mean, x.T), dual) + share
    return if_all_have_examples(counted, logits)


def logistic_logits(
    support: Float[Array, "ways shots dim"],
    queries: Float[Array, "queries dim"],
    *,
    strength: Scalar = 1.0,
    num_steps: int = 100,
    where: Bool[Array, "ways shots"] | None = None,
) -> Float[Array, "queries ways"]:
    """Multinomial logistic regression on the support.

    The weights W and offsets b minimise the sum of cross-entropies of W x_i + b, plus
    strength |W|^2 / 2, which in scikit-learn is C = 1 / strength. They are found by
    accelerated gradient descent of a fixed number of steps, which suffices for embeddings
    of length 1; longer ones need a larger strength or more steps.

    Args:
      support: See `siamese_jax.episodes`, also for `queries` and `where`.
      queries: Embeddings to classify.
      strength: Strength of the penalty, positive. It depends on the length of embeddings.
      num_steps: Number of steps.
      where: False where an example is ignored.

    Reference:
      Tian, Wang, Krishnan, Tenenbaum, Isola. Rethinking Few-Shot Image Classification. ECCV
      2020, section 3.1. The steps: O'Donoghue, Candès. Adaptive Restart for Accelerated
      Gradient Schemes. 2015, algorithm 1 with the gradient scheme of section 3.2.

    >>> support = jnp.array([[[1.0]], [[-1.0]]])
    >>> print(logistic_logits(support, jnp.array([[0.0]])))
    [[0. 0.]]
    """
    examples, counted = checked_task(support, queries, where)
    x, mean, y, used = _regression(examples, counted)
    gram = _product(x, x.T)
    # a bound of the curvature: half the largest eigenvalue of [x, 1] [x, 1]^T
    bound = jnp.max(jnp.sum(jnp.abs(gram) + used[None, :], axis=1)) / 2 + strength

    def step(_: Array, state: tuple[_Regression, _Regression, Array]) -> Any:
        now, before, t = state
        new_t = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        speed = (t - 1) / new_t
        ahead = jax.tree.map(lambda x, y: x + speed * (x - y), now, before)
        error = jax.nn.softmax(ahead.fitted + ahead.offset, axis=1) - y
        error = jnp.where(used[:, None], error, 0)
        slope, offset_slope = error + strength * ahead.dual, jnp.sum(error, axis=0)[None, :]
        dual = ahead.dual - slope / bound
        new = _Regression(dual, ahead.offset - offset_slope / bound, _product(gram, dual))
        uphill = jnp.sum(slope * (new.fitted - now.fitted))
        uphill += jnp.sum(offset_slope * (new.offset - now.offset))
        return new, now, jnp.where(uphill > 0, 1, new_t)

    nothing = _Regression(jnp.zeros_like(y), jnp.zeros_like(y[:1]), jnp.zeros_like(y))
    start = (nothing, nothing, jnp.ones((), y.dtype))
    found, _, _ = lax.fori_loop(0, num_steps, step, start)
    logits = _product(_product(widen(queries) - mean, x.T), found.dual) + found.offset
    logits -= jnp.mean(logits, axis=1, keepdims=True)  # their sum is 0 up to rounding
    return if_all_have_examples(counted, logits)


# The support --------------------------------------------------------------------------


def checked_support(
    support: Array, where: Array | None
) -> tuple[Float[Array, "ways shots dim"], Bool[Array, "ways shots"]]:
    """Returns the examples in float32, those that are ignored 0, and which count."""
    check_floating("support", support)
    check_rank("support", support, 3)
    shape = jnp.shape(support)[:2]
    if where is None:
        return widen(support), jnp.ones(shape, bool)
    check_boolean("where", where)
    check_shape("where", where, shape, "one for each example")
    return jnp.where(where[:, :, None], widen(support), 0), jnp.asarray(where)


def checked_task(
    support: Array, queries: Array, where: Array | None
) -> tuple[Float[Array, "ways shots dim"], Bool[Array, "ways shots"]]:
    """`checked_support`, and refuses queries of another dimension."""
    examples, counted = checked_support(support, where)
    check_floating("queries", queries)
    check_rank("queries", queries, 2)
    num, dim = len(queries), examples.shape[2]
    check_shape("queries", queries, (num, dim), "with the columns of support")
    return examples, counted


def if_all_have_examples(
    counted: Bool[Array, "ways shots"], logits: Float[Array, "queries ways"]
) -> Float[Array, "queries ways"]:
    """The logits, or NaN if a class has no example."""
    return jnp.where(jnp.all(jnp.any(counted, axis=1)), logits, jnp.nan)


class _Regression(NamedTuple):
    """Weights W = x^T A, so that A has a row of each example, and what they give.

    Attributes:
      dual: A.
      offset: One of each class.
      fitted: x W.
    """

    dual: Float[Array, "n ways"]
    offset: Float[Array, "1 ways"]
    fitted: Float[Array, "n ways"]


def _flat(examples: Array) -> Array:
    return examples.reshape(-1, examples.shape[2])


def _regression(
    examples: Array, counted: Array
) -> tuple[
    Float[Array, "n dim"], Float[Array, "1 dim"], Float[Array, "n ways"], Bool[Array, " n"]
]:
    """Centred examples, their mean, indicators of their classes, and which count."""
    x, used = _flat(examples), counted.reshape(-1)
    mean = jnp.sum(x, axis=0, keepdims=True) / jnp.maximum(jnp.sum(used), 1)
    x = jnp.where(used[:, None], x - mean, 0)
    num_ways, num_shots = counted.shape
    y = jnp.repeat(jnp.eye(num_ways, dtype=x.dtype), num_shots, axis=0)
    return x, mean, jnp.where(used[:, None], y, 0), used


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
