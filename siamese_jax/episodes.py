"""N-way K-shot recognition of classes never seen, from cached embeddings.

Embed every test image once, then judge thousands of random tasks in one call:

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

from siamese_jax._checks import check_at_least, check_floating, check_rank
from siamese_jax._numerics import widen
from siamese_jax.batching import map_batches
from siamese_jax.distances import euclidean_distance_matrix
from siamese_jax.samplers import ClassIndex, sample_episode

MatrixFn = Callable[[Array, Array], Float[Array, "n m"]]

_EPISODES_AT_ONCE = 64


class EpisodeAccuracy(NamedTuple):
    """Mean accuracy over episodes, its 95 % interval, and each episode's accuracy.

    The interval is mean +- 1.96 standard errors: the episodes are independent draws, the
    test classes are taken as given. It is not cut at 0 and 1.
    """

    mean: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    accuracies: Float[Array, " episodes"]


def prototypes(support: Float[Array, "ways shots dim"]) -> Float[Array, "ways dim"]:
    """The mean embedding of each class.

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
    """For each query the class with the nearest prototype; -1 where a distance is NaN.

    Args:
      support: K examples of each of N classes.
      queries: To classify, each alone.
      matrix_fn: A distance matrix function: smaller is closer.

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
    num_asked: int | None = None,
    max_groups: int | None = None,
    aligned: bool = False,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
) -> EpisodeAccuracy:
    """Accuracy over random N-way K-shot episodes, with its 95 % interval.

    Args:
      key: A JAX key.
      embeddings: Of every test example.
      index: `samplers.class_index` of their labels.
      num_episodes: How many tasks; at least 2, for the interval.
      num_ways: N, classes a task.
      num_shots: K, support examples a class.
      num_queries: Query examples a class; each is classified alone.
      num_asked: How many of the classes are asked for; None asks for all. 1 with one query
        makes tasks of a single question, which are independent of each other.
      max_groups: 1 keeps each task within one group (an alphabet).
      aligned: Support by one drawer, queries by another; see `samplers.sample_episode`.
      matrix_fn: A distance matrix function: smaller is closer.

    Returns:
      NaN accuracy for a task with a NaN embedding.

    Raises:
      ValueError: If the embeddings are not one for each example of the index, a class or
        group is too small (named), or `num_asked` is not from 1 to `num_ways`.
      TypeError: If `embeddings` is not floating-point.
    """
    check_floating("embeddings", embeddings)
    check_rank("embeddings", embeddings, 2)
    check_at_least("num_episodes", num_episodes, 2)
    if num_asked is not None and not 1 <= num_asked <= num_ways:
        raise ValueError(f"num_asked must be from 1 to {num_ways}; got {num_asked}")
    if len(embeddings) != index.num_examples:
        raise ValueError(
            f"embeddings must have {index.num_examples} rows, one for each example of the "
            f"index; got {len(embeddings)}"
        )

    accuracies = _accuracies(
        jax.random.split(key, num_episodes),
        embeddings,
        index,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
        num_asked=num_ways if num_asked is None else num_asked,
        max_groups=max_groups,
        aligned=aligned,
        matrix_fn=matrix_fn,
    )
    mean = jnp.mean(accuracies)
    margin = 1.96 * jnp.std(accuracies, ddof=1) / num_episodes**0.5
    return EpisodeAccuracy(mean, mean - margin, mean + margin, accuracies)


_STATIC = (
    "num_ways",
    "num_shots",
    "num_queries",
    "num_asked",
    "max_groups",
    "aligned",
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
    num_asked: int,
    max_groups: int | None,
    aligned: bool,
    matrix_fn: MatrixFn,
) -> Float[Array, " episodes"]:
    def one_episode(key: PRNGKeyArray) -> Float[Array, ""]:
        support, query = sample_episode(
            key,
            index,
            num_ways,
            num_shots,
            num_queries,
            max_groups=max_groups,
            aligned=aligned,
        )
        asked = jnp.arange(num_ways)
        if num_asked < num_ways:  # at random: of equal distances the first one answers
            asked_key = jax.random.fold_in(key, 1)
            asked = jax.random.permutation(asked_key, num_ways)[:num_asked]
        queries = embeddings[query[asked].reshape(-1)]
        truth = jnp.repeat(asked, num_queries)
        answers = classify(embeddings[support], queries, matrix_fn=matrix_fn)
        broken = jnp.any(answers < 0)
        return jnp.where(broken, jnp.nan, jnp.mean(answers == truth))

    return map_batches(jax.vmap(one_episode), keys, batch_size=_EPISODES_AT_ONCE)
