"""Accuracy over random N-way K-shot episodes of embeddings."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from siamese_jax._checks import (
    check_at_least,
    check_distance_fn,
    check_floating,
    check_rank,
)
from siamese_jax.batching import map_batches
from siamese_jax.distances import euclidean_distance_matrix
from siamese_jax.episodes.inductive import MatrixFn, answers, prototype_logits
from siamese_jax.samplers import ClassIndex, sample_episode
from siamese_jax.samplers.index import check_index

LogitsFn = Callable[..., PyTree[Float[Array, "queries ways"]]]

_EPISODES_AT_ONCE = 64


class EpisodeAccuracy(NamedTuple):
    """Mean accuracy over episodes, its 95 % interval, and the accuracy of each episode.

    The interval is the mean +- 1.96 standard errors. It covers the random draw of the
    episodes, not the choice of the test classes, and is not clipped to [0, 1]. If a
    function gives the logits of several classifiers, each field is a tree like theirs.
    """

    mean: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    accuracies: Float[Array, " episodes"]


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
    min_shots: int | None = None,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
    logits_fn: LogitsFn | None = None,
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
      min_shots: Draws for each class of each task how many of the K examples are given,
        from `min_shots` to K. None gives all.
      matrix_fn: `matrix_fn(x, y)`, distances of `[n, dim]` to `[m, dim]`, for the nearest
        prototype.
      logits_fn: `logits_fn(support, queries)`, of which the class with the largest logit is
        the answer, such as `ridge_logits`. It takes `where` besides, if `min_shots` is
        given. To give several classifiers the same tasks, it returns a dictionary, or
        another tree, of their logits. None answers by the nearest prototype. A function
        made anew for each call is compiled for each call.

    Returns:
      The accuracies. That of a task with a NaN embedding is NaN.

    Raises:
      ValueError: If the number of embeddings is not that of the index, a class or group is
        too small (named), `num_query_classes` is not from 1 to `num_ways`, `min_shots` is
        not from 1 to `num_shots`, `matrix_fn` is given beside `logits_fn`, or `matrix_fn`
        clearly gives similarities. Under `jit` and in `classify`, where there are no
        numbers yet, the farthest class would be the answer then.
      TypeError: If `embeddings` is not floating-point, or `index` is not a `ClassIndex`.
    """
    check_floating("embeddings", embeddings)
    check_rank("embeddings", embeddings, 2)
    check_at_least("num_episodes", num_episodes, 2)
    if num_query_classes is not None and not 1 <= num_query_classes <= num_ways:
        raise ValueError(
            f"num_query_classes must be from 1 to {num_ways}; got {num_query_classes}"
        )
    if min_shots is not None and not 1 <= min_shots <= num_shots:
        raise ValueError(f"min_shots must be from 1 to {num_shots}; got {min_shots}")
    if logits_fn is not None and matrix_fn is not euclidean_distance_matrix:
        raise ValueError("matrix_fn must not be given beside logits_fn, which ignores it")
    check_index(index)
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
        min_shots=min_shots,
        matrix_fn=matrix_fn,
        logits_fn=logits_fn,
    )

    def end(side: float, values: Array) -> Array:
        return jnp.mean(values) + side * 1.96 * jnp.std(values, ddof=1) / num_episodes**0.5

    mean, low, high = (jax.tree.map(partial(end, x), accuracies) for x in (0, -1, 1))
    return EpisodeAccuracy(mean, low, high, accuracies)


_STATIC = (
    "num_ways",
    "num_shots",
    "num_queries",
    "num_query_classes",
    "max_groups",
    "same_rank",
    "min_shots",
    "matrix_fn",
    "logits_fn",
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
    min_shots: int | None,
    matrix_fn: MatrixFn,
    logits_fn: LogitsFn | None,
) -> PyTree[Float[Array, " episodes"]]:
    logits_of = logits_fn or partial(prototype_logits, matrix_fn=matrix_fn)

    def one_episode(key: PRNGKeyArray) -> PyTree[Float[Array, ""]]:
        episode_key, class_key = jax.random.split(key)
        given: dict[str, Any] = {}
        if min_shots is not None:
            class_key, shots_key = jax.random.split(class_key)
            counts = jax.random.randint(shots_key, (num_ways, 1), min_shots, num_shots + 1)
            given["where"] = jnp.arange(num_shots)[None, :] < counts
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

        def accuracy(logits: Array) -> Array:
            found = answers(logits)
            has_nan = jnp.any(found < 0)
            return jnp.where(has_nan, jnp.nan, jnp.mean(found == truth))

        logits = logits_of(embeddings[support], queries, **given)
        return jax.tree.map(accuracy, logits)

    return map_batches(jax.vmap(one_episode), keys, batch_size=_EPISODES_AT_ONCE)
