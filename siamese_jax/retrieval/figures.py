"""Figures of ranked references, from the ranks of those that are relevant to a query.

`ranks` `[n, p]` holds for each query the ranks of relevant references, counted from 1 and
ascending, with 0 in places that hold none. `num_relevant` is R, the number of references
that are relevant to a query, whether `ranks` holds them all or not. One that it does not
hold counts as not found. A query without a relevant reference has 0 everywhere.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_floating,
    check_integer,
    check_rank,
    check_shape,
)
from siamese_jax.verification import Interval, bootstrap_interval

Ranks = Int[Array, "n p"]
Counts = Int[Array, " n"]
PerQuery = Float[Array, " n"]
Tree = TypeVar("Tree")


class Figures(NamedTuple):
    """Figures of retrieval: of each query, of each class, or their means.

    The figures "at k" have one number for each cut-off, on their last axis. The mean over
    queries of `average_precision` is known as MAP, that of `average_precision_at_r` as
    MAP@R, that of `reciprocal_rank` as MRR.
    """

    precision_at_k: Float[Array, "*queries cutoffs"]
    recall_at_k: Float[Array, "*queries cutoffs"]
    average_precision_at_k: Float[Array, "*queries cutoffs"]
    ndcg_at_k: Float[Array, "*queries cutoffs"]
    r_precision: Float[Array, "*queries"]
    average_precision_at_r: Float[Array, "*queries"]
    average_precision: Float[Array, "*queries"]
    reciprocal_rank: Float[Array, "*queries"]
    ndcg: Float[Array, "*queries"]


class ClassMeans(NamedTuple):
    """Means of figures over the queries of each class, and over the classes.

    Attributes:
      per_class: NaN for a class without queries.
      macro: Mean over the classes with queries, in which each class weighs the same.
      num_queries: Number of queries of each class.
    """

    per_class: Figures
    macro: Figures
    num_queries: Int[Array, " classes"]


def ranks_of_hits(hits: Bool[Array, "n k"]) -> Ranks:
    """Ranks of relevant references, from which of the k nearest are relevant.

    `nearest`, or another search, finds the k nearest.

    Raises:
      ValueError: If `hits` is not `[n, k]`.
      TypeError: If `hits` is not boolean.

    >>> print(ranks_of_hits(jnp.array([[True, False, True]])))
    [[1 0 3]]
    """
    check_boolean("hits", hits)
    check_rank("hits", hits, 2)
    return jnp.where(hits, jnp.arange(1, hits.shape[1] + 1)[None, :], 0)


def precision_at_k(ranks: Ranks, *, k: int) -> PerQuery:
    """Share of the first k references that are relevant.

    It is divided by k, even where there are fewer references.

    Raises:
      ValueError: If `ranks` is not `[n, p]` or k is below 1.
      TypeError: If `ranks` is not integer.

    >>> print(precision_at_k(jnp.array([[1, 3, 4]]), k=2))
    [0.5]
    """
    return jnp.sum(_within(ranks, _cutoff(ranks, k)), axis=1) / k


def recall_at_k(ranks: Ranks, *, k: int) -> PerQuery:
    """Returns 1 where at least one of the first k references is relevant, else 0.

    This is recall@k in metric learning. It is known as the hit rate, too, and in
    identification as the cumulative match characteristic (CMC) at rank k. Recall in
    information retrieval, the share of the relevant references that are found, is another
    figure.

    Raises:
      ValueError: If `ranks` is not `[n, p]` or k is below 1.
      TypeError: If `ranks` is not integer.

    >>> print(recall_at_k(jnp.array([[3, 9], [4, 5]]), k=3))
    [1. 0.]
    """
    return jnp.any(_within(ranks, _cutoff(ranks, k)), axis=1) * 1.0


def average_precision_at_k(ranks: Ranks, num_relevant: Counts, *, k: int) -> PerQuery:
    """Mean precision at the ranks of the relevant references among the first k.

    sum_j j / rank_j over the ranks up to k, divided by min(R, k).

    Raises:
      ValueError: If a shape is wrong or k is below 1.
      TypeError: If `ranks` or `num_relevant` is not integer.

    >>> print(average_precision_at_k(jnp.array([[1, 4]]), jnp.array([2]), k=4))  # 1, 2/4
    [0.75]
    """
    cutoff = _cutoff(ranks, k, num_relevant)
    return _summed_precisions(ranks, cutoff) / _divisor(num_relevant, k)


def average_precision(ranks: Ranks, num_relevant: Counts) -> PerQuery:
    """Mean precision at the ranks of all relevant references, (1/R) sum_j j / rank_j.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If `ranks` or `num_relevant` is not integer.

    >>> print(average_precision(jnp.array([[1, 4]]), jnp.array([2])))  # 1 and 2/4
    [0.75]
    """
    _check(ranks, num_relevant)
    everything = jnp.full_like(num_relevant, jnp.iinfo(ranks.dtype).max)
    return _summed_precisions(ranks, everything) / _divisor(num_relevant)


def average_precision_at_r(ranks: Ranks, num_relevant: Counts) -> PerQuery:
    """Mean over the first R ranks of the precision where relevant, else 0.

    (1/R) sum_j j / rank_j over the ranks up to R. Its mean over the queries is MAP@R.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If `ranks` or `num_relevant` is not integer.

    Reference:
      Musgrave, Belongie, Lim. A Metric Learning Reality Check. ECCV 2020, section 3.2.

    >>> print(average_precision_at_r(jnp.array([[1, 4]]), jnp.array([2])))  # 1 and 0
    [0.5]
    """
    _check(ranks, num_relevant)
    return _summed_precisions(ranks, num_relevant) / _divisor(num_relevant)


def r_precision(ranks: Ranks, num_relevant: Counts) -> PerQuery:
    """Share of the first R references that are relevant.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If `ranks` or `num_relevant` is not integer.

    >>> print(r_precision(jnp.array([[2, 4]]), jnp.array([2])))
    [0.5]
    """
    _check(ranks, num_relevant)
    return jnp.sum(_within(ranks, num_relevant), axis=1) / _divisor(num_relevant)


def reciprocal_rank(ranks: Ranks) -> PerQuery:
    """1 / rank of the first relevant reference, 0 if none has a rank.

    Raises:
      ValueError: If `ranks` is not `[n, p]`.
      TypeError: If `ranks` is not integer.

    >>> print(reciprocal_rank(jnp.array([[4, 5], [0, 0]])))
    [0.25 0.  ]
    """
    _check(ranks)
    return jnp.max(_inverse(ranks), axis=1, initial=0)


def ndcg_at_k(ranks: Ranks, num_relevant: Counts, *, k: int) -> PerQuery:
    """Normalised discounted cumulative gain of the first k, with gain 1 if relevant.

    sum_j 1 / log2(1 + rank_j) over the ranks up to k, divided by its largest value
    sum_{r=1}^{min(R, k)} 1 / log2(1 + r).

    Raises:
      ValueError: If a shape is wrong or k is below 1.
      TypeError: If `ranks` or `num_relevant` is not integer.

    Reference:
      Järvelin, Kekäläinen. Cumulated gain-based evaluation of IR techniques. TOIS 2002.

    >>> print(ndcg_at_k(jnp.array([[3, 9]]), jnp.array([1]), k=5))  # (1 / log2 4) / 1
    [0.5]
    """
    return _ndcg(ranks, num_relevant, _cutoff(ranks, k, num_relevant), k)


def all_figures(
    ranks: Ranks,
    num_relevant: Counts,
    *,
    cutoffs: tuple[int, ...],
    num_references: int,
) -> Figures:
    """All figures of each query.

    Args:
      ranks: Ranks of the relevant references.
      num_relevant: R.
      cutoffs: The k of the figures "at k".
      num_references: Number of references, which R does not exceed.

    Raises:
      ValueError: If a shape is wrong, or there is no cut-off or one below 1.
      TypeError: If `ranks` or `num_relevant` is not integer.

    >>> figures = all_figures(
    ...     jnp.array([[2]]), jnp.array([1]), cutoffs=(1, 2), num_references=2)
    >>> print(figures.recall_at_k, figures.reciprocal_rank)
    [[0. 1.]] [0.5]
    """
    check_at_least("the number of cutoffs", len(cutoffs), 1)

    def at_each(fn, *args):
        return jnp.stack([fn(*args, k=k) for k in cutoffs], axis=1)

    return Figures(
        precision_at_k=at_each(precision_at_k, ranks),
        recall_at_k=at_each(recall_at_k, ranks),
        average_precision_at_k=at_each(average_precision_at_k, ranks, num_relevant),
        ndcg_at_k=at_each(ndcg_at_k, ranks, num_relevant),
        r_precision=r_precision(ranks, num_relevant),
        average_precision_at_r=average_precision_at_r(ranks, num_relevant),
        average_precision=average_precision(ranks, num_relevant),
        reciprocal_rank=reciprocal_rank(ranks),
        ndcg=ndcg_at_k(ranks, num_relevant, k=num_references),
    )


def class_means(
    figures: Figures,
    labels: Int[Array, " n"],
    where: Bool[Array, " n"],
    *,
    num_classes: int,
) -> ClassMeans:
    """Means over the queries of each class, and over the classes.

    Args:
      figures: Figures of each query.
      labels: Class of each query, numbered from 0. Queries of other labels are left out.
      where: True for the queries that count.
      num_classes: Number of classes.

    Raises:
      ValueError: If a shape is wrong or `num_classes` is below 1.
      TypeError: If labels are not integers or `where` is not boolean.

    >>> figures = all_figures(
    ...     jnp.array([[1], [2], [4]]), jnp.ones(3, int), cutoffs=(1,), num_references=9)
    >>> means = class_means(
    ...     figures, jnp.array([0, 1, 1]), jnp.ones(3, bool), num_classes=2)
    >>> print(means.per_class.reciprocal_rank, means.macro.reciprocal_rank)
    [1.    0.375] 0.6875
    """
    check_at_least("num_classes", num_classes, 1)
    check_integer("labels", labels)
    check_boolean("where", where)
    shape = figures.r_precision.shape
    check_shape("labels", labels, shape, "one for each query")
    check_shape("where", where, shape, "one for each query")
    known = where & (labels >= 0) & (labels < num_classes)
    place = jnp.where(known, labels, num_classes)
    num_queries = jnp.zeros(num_classes + 1, int).at[place].add(1)[:-1]

    def of_class(values: Array) -> Array:
        sums = jnp.zeros((num_classes + 1, *values.shape[1:]), values.dtype)
        count = jnp.expand_dims(num_queries, range(1, values.ndim))
        return sums.at[place].add(values)[:-1] / count

    per_class = jax.tree.map(of_class, figures)
    macro = mean_figures(per_class, num_queries > 0)
    return ClassMeans(per_class, macro, num_queries)


def mean_figures(figures: Figures, where: Bool[Array, " n"]) -> Figures:
    """Means over the queries, or the classes, that count; NaN if there is none.

    Raises:
      ValueError: If `where` has not one place for each query.
      TypeError: If `where` is not boolean.

    >>> figures = all_figures(
    ...     jnp.array([[1], [2]]), jnp.ones(2, int), cutoffs=(1,), num_references=9)
    >>> print(mean_figures(figures, jnp.array([True, True])).reciprocal_rank)
    0.75
    """
    check_boolean("where", where)
    check_shape("where", where, figures.r_precision.shape, "one for each query")

    def mean(values: Array) -> Array:
        counted = jnp.expand_dims(where, range(1, values.ndim))
        return jnp.sum(jnp.where(counted, values, 0), axis=0) / jnp.sum(where)

    return jax.tree.map(mean, figures)


def class_interval(
    key: PRNGKeyArray,
    values: PerQuery,
    labels: Int[Array, " n"],
    where: Bool[Array, " n"],
    *,
    num_classes: int,
    num_samples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of the mean of a figure, resampling classes.

    The queries of one class are not independent, so classes are drawn with replacement and
    a query weighs as much as its class was drawn often. The references stay as they are.

    Args:
      key: A JAX key.
      values: A figure of each query, such as `Figures.r_precision`.
      labels: Class of each query, numbered from 0. Another label of a query that counts
        makes the interval NaN.
      where: True for the queries that count.
      num_classes: Number of classes, at least 2.
      num_samples: Number of bootstrap samples.
      level: Confidence level of the interval.

    Raises:
      ValueError: If a shape is wrong, a count is below 2 or `level` not in (0, 1).
      TypeError: If `values` are not floating-point, labels not integers or `where` is not
        boolean.

    >>> interval = class_interval(
    ...     jax.random.key(0), jnp.array([0.5, 0.5]), jnp.array([0, 1]),
    ...     jnp.array([True, True]), num_classes=2, num_samples=10)
    >>> print(interval.low, interval.high)
    0.5 0.5
    """
    check_floating("values", values)
    check_rank("values", values, 1)
    check_integer("labels", labels)
    check_shape("labels", labels, values.shape, "one for each query")
    check_boolean("where", where)
    check_shape("where", where, values.shape, "one for each query")
    return bootstrap_interval(
        key,
        _weighted_mean,
        jnp.where(where, values, 0),
        where,
        jnp.stack([jnp.where(where, labels, 0)] * 2),
        num_identities=num_classes,
        num_samples=num_samples,
        level=level,
    )


def _weighted_mean(values: Array, where: Array, *, weights: Array) -> Array:
    counted = jnp.where(where, weights, 0)
    return jnp.sum(counted * values) / jnp.sum(counted)


# Parts of the equations -----------------------------------------------------------------


def _check(ranks: Ranks, num_relevant: Counts | None = None) -> None:
    check_integer("ranks", ranks)
    check_rank("ranks", ranks, 2)
    if num_relevant is not None:
        check_integer("num_relevant", num_relevant)
        check_shape("num_relevant", num_relevant, ranks.shape[:1], "one for each query")


def _cutoff(ranks: Ranks, k: int, num_relevant: Counts | None = None) -> Counts:
    _check(ranks, num_relevant)
    check_at_least("k", k, 1)
    return jnp.full(ranks.shape[0], k)


def _within(ranks: Ranks, cutoff: Counts) -> Bool[Array, "n p"]:
    return (ranks > 0) & (ranks <= cutoff[:, None])


def _inverse(ranks: Ranks) -> Float[Array, "n p"]:
    return jnp.where(ranks > 0, 1 / jnp.maximum(ranks, 1), 0)


def _summed_precisions(ranks: Ranks, cutoff: Counts) -> PerQuery:
    """sum_j j / rank_j over the ranks up to the cut-off."""
    number = jnp.cumsum(ranks > 0, axis=1)
    precisions = number * _inverse(ranks)
    return jnp.sum(jnp.where(_within(ranks, cutoff), precisions, 0), axis=1)


def _divisor(num_relevant: Counts, k: int | None = None) -> Counts:
    """min(R, k), or 1 for a query without a relevant reference, whose numerator is 0."""
    return jnp.clip(num_relevant, 1, k)


def _ndcg(ranks: Ranks, num_relevant: Counts, cutoff: Counts, k: int) -> PerQuery:
    gains = jnp.where(_within(ranks, cutoff), _discount(ranks), 0)
    ideal = jnp.cumsum(_discount(jnp.arange(1, k + 1)))
    return jnp.sum(gains, axis=1) / ideal[_divisor(num_relevant, k) - 1]


def _discount(ranks: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    return 1 / jnp.log2(1.0 + jnp.maximum(ranks, 1))
