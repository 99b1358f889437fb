"""N-way K-shot accuracy: classify queries by the nearest class among N.

Embed every test image once, then evaluate thousands of random tasks in one call:

>>> import jax
>>> import jax.numpy as jnp
>>> from siamese_jax import samplers
>>> labels = [0, 0, 1, 1, 2, 2]
>>> embeddings = jnp.array([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
>>> index = samplers.class_index(labels)
>>> result = episode_accuracy(
...     jax.random.key(0), embeddings, index, num_episodes=100, num_ways=2)
>>> print(result.mean, result.low, result.high)
1.0 1.0 1.0
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from siamese_jax._checks import (
    check_at_least,
    check_distance_fn,
    check_floating,
    check_rank,
)
from siamese_jax._numerics import widen
from siamese_jax.batching import map_batches
from siamese_jax.distances import euclidean_distance_matrix
from siamese_jax.samplers import ClassIndex, sample_episode

MatrixFn = Callable[[Array, Array], Float[Array, "n m"]]

_EPISODES_AT_ONCE = 64


class EpisodeAccuracy(NamedTuple):
    """Mean accuracy over episodes, its 95 % interval, and the accuracy of each episode.

    The interval is the mean +- 1.96 standard errors. It covers the random draw of the
    episodes, not the choice of the test classes, and is not clipped to [0, 1].
    """

    mean: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    accuracies: Float[Array, " episodes"]


def prototypes(support: Float[Array, "ways shots dim"]) -> Float[Array, "ways dim"]:
    """Mean embedding of each class.

    Raises:
      ValueError: If `support` is not `[ways, shots, dim]`.
      TypeError: If `support` is not floating-point.

    Reference:
      Snell, Swersky, Zemel. Prototypical Networks. NeurIPS 2017, eq. 1.

    >>> print(prototypes(jnp.array([[[0.0], [2.0]]])))
    [[1.]]
    """
    check_floating("support", support)
    check_rank("support", support, 3)
    return jnp.mean(widen(support), axis=1).astype(support.dtype)


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
    distances = matrix_fn(queries, prototypes(support))
    unknown = jnp.any(jnp.isnan(distances), axis=1)
    return jnp.where(unknown, -1, jnp.argmin(distances, axis=1))


def episode_accuracy(
    key: PRNGKeyArray,
    embeddings: Float[Array, "n dim"],
    index: ClassIndex,
    *,
    num_episodes: int,
    num_ways: int,
    num_shots: int = 1,
    num_queries: int = 1,
    num_query_classes: int | None = None,
    max_groups: int | None = None,
    same_rank: bool = False,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
) -> EpisodeAccuracy:
    """Accuracy over random N-way K-shot episodes, with its 95 % interval.

    Args:
      key: A JAX key.
      embeddings: Embedding of every test example.
      index: `samplers.class_index` of their labels.
      num_episodes: Number of tasks, at least 2.
      num_ways: N, the number of classes of each task.
      num_shots: K, the number of support examples of each class.
      num_queries: Number of query examples of each class, classified independently.
      num_query_classes: Number of the task's classes that queries are taken from, chosen
        at random. None takes queries from all N. 1, with one query, makes tasks of a
        single trial.
      max_groups: As in `samplers.sample_episode`. 1 draws all classes of a task from one
        group, such as an alphabet.
      same_rank: As in `samplers.sample_episode`.
      matrix_fn: `matrix_fn(x, y)`, distances of `[n, dim]` to `[m, dim]`.

    Returns:
      The accuracies. That of a task with a NaN embedding is NaN.

    Raises:
      ValueError: If the number of embeddings is not that of the index, a class or group is
        too small (named), `num_query_classes` is not from 1 to `num_ways`, or `matrix_fn`
        clearly gives similarities. Under `jit` and in `classify`, where there are no
        numbers yet, the farthest class would be the answer then.
      TypeError: If `embeddings` is not floating-point.
    """
    check_floating("embeddings", embeddings)
    check_rank("embeddings", embeddings, 2)
    check_at_least("num_episodes", num_episodes, 2)
    if num_query_classes is not None and not 1 <= num_query_classes <= num_ways:
        raise ValueError(
            f"num_query_classes must be from 1 to {num_ways}; got {num_query_classes}"
        )
    if len(embeddings) != index.num_examples:
        raise ValueError(
            f"embeddings must have {index.num_examples} rows, one for each example of the "
            f"index; got {len(embeddings)}"
        )
    check_distance_fn("matrix_fn", matrix_fn, embeddings)

    accuracies = _accuracies(
        jax.random.split(key, num_episodes),
        embeddings,
        index,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
        num_query_classes=num_ways if num_query_classes is None else num_query_classes,
        max_groups=max_groups,
        same_rank=same_rank,
        matrix_fn=matrix_fn,
    )
    mean = jnp.mean(accuracies)
    margin = 1.96 * jnp.std(accuracies, ddof=1) / num_episodes**0.5
    return EpisodeAccuracy(mean, mean - margin, mean + margin, accuracies)


_STATIC = (
    "num_ways",
    "num_shots",
    "num_queries",
    "num_query_classes",
    "max_groups",
    "same_rank",
    "matrix_fn",
)


@partial(jax.jit, static_argnames=_STATIC)  # compiled once, not once a call
def _accuracies(
    keys: Shaped[Array, "episodes ..."],
    embeddings: Float[Array, "n dim"],
    index: ClassIndex,
    *,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    num_query_classes: int,
    max_groups: int | None,
    same_rank: bool,
    matrix_fn: MatrixFn,
) -> Float[Array, " episodes"]:
    def one_episode(key: PRNGKeyArray) -> Float[Array, ""]:
        episode_key, class_key = jax.random.split(key)
        support, query = sample_episode(
            episode_key,
            index,
            num_ways,
            num_shots,
            num_queries,
            max_groups=max_groups,
            same_rank=same_rank,
        )
        classes = jnp.arange(num_ways)
        if num_query_classes < num_ways:
            # At random, since the first of equally near classes wins: always taking
            # queries from the first classes would favour a constant embedding.
            classes = jax.random.permutation(class_key, num_ways)[:num_query_classes]
        queries = embeddings[query[classes].reshape(-1)]
        truth = jnp.repeat(classes, num_queries)
        answers = classify(embeddings[support], queries, matrix_fn=matrix_fn)
        has_nan = jnp.any(answers < 0)
        return jnp.where(has_nan, jnp.nan, jnp.mean(answers == truth))

    return map_batches(jax.vmap(one_episode), keys, batch_size=_EPISODES_AT_ONCE)
