"""Accuracy of tasks of a few examples, by several classifiers, from the embeddings."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siamese_jax import episodes, samplers
from siamese_jax.distances import normalize
from siamese_jax.episodes.accuracy import LogitsFn
from siamese_jax.evaluation.distance import Distance
from siamese_jax.evaluation.figures import Figures, figure, missing
from siamese_jax.retrieval.neighbours import MatrixFn

TASKS = ((5, 1), (5, 5), (20, 1), (20, 5))  # ways and shots
KINDS = {
    "inductive": (
        *("neighbour", "prototype", "simple_shot", "matching", "ridge", "logistic"),
    ),
    "transductive": ("laplacian_shot", "transport"),
}
_MOST_QUERIES = 15  # of each class of a task


class FewShot(NamedTuple):
    """What the tasks found.

    Attributes:
      figures: Accuracies by name, of "inductive" and of "transductive" classifiers.
      num_queries: Number of queries of each class in the tasks that could be made.
      limits: Why these tasks have fewer than 15 queries of each class, where they do.
    """

    figures: dict[str, Figures]
    num_queries: dict[str, int]
    limits: dict[str, str]


def few_shot(
    embeddings: Float[np.ndarray, "n dim"],
    labels: Int[np.ndarray, " n"],
    *,
    distance: Distance,
    num_tasks: int,
    seed: int,
    tasks: tuple[tuple[int, int], ...] = TASKS,
) -> FewShot:
    """Accuracies of N-way K-shot tasks, with the 95 % intervals over the tasks.

    The classes of a task are drawn among those with K + 1 rows or more. Each has as many
    queries as the smallest of these classes allows, at most 15. All classifiers are given
    the same tasks.

    Args:
      embeddings: Embeddings.
      labels: Number of the class of each row.
      distance: For the nearest neighbour and the nearest prototype.
      num_tasks: Number of tasks of each kind.
      seed: Seed of the tasks.
      tasks: Pairs of ways and shots.
    """
    x = with_centred(embeddings)
    figures: dict[str, Figures] = {kind: {} for kind in KINDS}
    num_queries: dict[str, int] = {}
    limits: dict[str, str] = {}
    for num_ways, num_shots in tasks:
        task = f"{num_ways}_way_{num_shots}_shot"
        rows, queries, why = _task(labels, num_ways, num_shots)
        if not queries:
            for kind, names in KINDS.items():
                figures[kind] |= missing([f"{task}_{name}" for name in names], why)
            continue
        num_queries[task] = queries
        if why:
            limits[task] = why
        found = episodes.episode_accuracy(
            jax.random.key(seed),
            x[rows],
            samplers.class_index(labels[rows]),
            num_episodes=num_tasks,
            num_ways=num_ways,
            num_shots=num_shots,
            num_queries=queries,
            logits_fn=all_logits(distance.matrix_fn),
        )
        for kind, names in KINDS.items():
            for name in names:
                ends = (found.mean[name], found.low[name], found.high[name])
                mean, low, high = ends
                figures[kind][f"{task}_{name}"] = figure(mean, low=low, high=high)
    return FewShot(figures, num_queries, limits)


def _task(
    labels: Int[np.ndarray, " n"], num_ways: int, num_shots: int
) -> tuple[Int[np.ndarray, " k"], int, str]:
    """Rows of classes that are large enough, number of queries, why there are not 15."""
    counts = np.bincount(labels)
    enough = counts > num_shots
    if enough.sum() < num_ways:
        why = (
            f"{enough.sum()} of {np.count_nonzero(counts)} classes have "
            f"{num_shots + 1} rows or more; {num_ways} are needed"
        )
        return np.zeros(0, int), 0, why
    rows, smallest = np.flatnonzero(enough[labels]), int(counts[enough].min())
    if smallest - num_shots >= _MOST_QUERIES:
        return rows, _MOST_QUERIES, ""
    number = int(np.sum(counts == smallest))
    why = f"as {number} of {enough.sum()} classes {'has' if number == 1 else 'have'} "
    return rows, smallest - num_shots, f"{why}{smallest} rows"


def with_centred(embeddings: Float[np.ndarray, "n dim"]) -> Float[Array, "n twice_dim"]:
    """The embeddings, and beside them the same minus the mean of all rows.

    >>> print(with_centred(np.array([[1.0], [3.0]], np.float32)))
    [[ 1. -1.]
     [ 3.  1.]]
    """
    x = jnp.asarray(embeddings)
    return jnp.concatenate([x, x - jnp.mean(x, axis=0, keepdims=True)], axis=1)


@cache  # so that it is compiled once
def all_logits(matrix_fn: MatrixFn) -> LogitsFn:
    """A function that gives the logits of all classifiers, for rows of `with_centred`.

    The regressions are given the embeddings with length 1; SimpleShot, LaplacianShot and
    optimal transport the centred embeddings with length 1.
    """

    def logits_fn(support: Array, queries: Array) -> dict[str, Array]:
        both = (jnp.split(array, 2, axis=-1) for array in (support, queries))
        raw, centred = zip(*both, strict=True)
        unit, sphere = (tuple(map(normalize, of)) for of in (raw, centred))
        origin = jnp.zeros(queries.shape[1] // 2, queries.dtype)
        return {
            "neighbour": episodes.neighbour_logits(*raw, matrix_fn=matrix_fn),
            "prototype": episodes.prototype_logits(*raw, matrix_fn=matrix_fn),
            "simple_shot": episodes.simple_shot_logits(centred[0], centred[1], origin),
            "matching": episodes.matching_logits(*raw),
            "ridge": episodes.ridge_logits(*unit),
            "logistic": episodes.logistic_logits(*unit),
            "laplacian_shot": episodes.laplacian_shot_logits(*sphere),
            "transport": episodes.transport_logits(*sphere),
        }

    return logits_fn
