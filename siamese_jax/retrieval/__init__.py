"""Retrieval: the nearest references of a query, and how many of them are relevant.

`nearest` searches exactly, and `evaluate` gives the figures that metric learning is judged
by. Both take some queries at a time, so that no matrix of all distances exists:

>>> import jax.numpy as jnp
>>> from siamese_jax.relations import Items
>>> embeddings = jnp.array([[0.0], [1.0], [1.75], [3.0], [9.0]])
>>> items = Items(jnp.array([0, 0, 1, 1, 2]))
>>> found = evaluate(embeddings, items, cutoffs=(1, 2))
>>> print(found.mean.recall_at_k)  # the first relevant ranks are 1, 2, 2, 1
[0.5 1. ]
>>> print(found.num_queries, found.num_without_relevant)  # 9 is alone in its class
4 1

A reference is relevant to a query if both are of one class. Queries without a relevant
reference are left out and counted. A query is searched in the other queries, or in a set of
references of its own, in which references with the id of the query are left out:

>>> gallery = jnp.array([[0.9], [0.0]])
>>> found = evaluate(
...     embeddings[:1], Items([0]), references=gallery, reference_items=Items([0, 1]))
>>> print(found.mean.reciprocal_rank)  # the reference at 0.0 is nearer
0.5

`relations.shared_label` as `same_fn` is for items with several labels. Means over classes,
in which rare classes weigh as much as others, come from the figures of each query, and so
does an interval of the mean that takes the classes to be a random sample:

>>> labels = jnp.array([0, 0, 1, 1, 2])
>>> found = evaluate(embeddings, items, cutoffs=(1,))
>>> means = class_means(found.per_query, labels, found.where, num_classes=3)
>>> print(means.per_class.recall_at_k[:, 0])
[0.5 0.5 nan]

The figures are functions of the ranks of relevant references, so they serve other searches
too. From the labels of the k nearest that `nearest` found:

>>> numbers = jnp.arange(5)
>>> near = nearest(embeddings, embeddings, k=2, query_ids=numbers, reference_ids=numbers)
>>> hits = labels[near.indices] == labels[:, None]
>>> print(precision_at_k(ranks_of_hits(hits), k=2))
[0.5 0.5 0.5 0.5 0. ]

(Where there may be fewer than k references, `hits` is also masked by `near.indices >= 0`.)
"""

from siamese_jax.retrieval.evaluation import Evaluation, evaluate
from siamese_jax.retrieval.figures import (
    ClassMeans,
    Figures,
    all_figures,
    average_precision,
    average_precision_at_k,
    average_precision_at_r,
    class_interval,
    class_means,
    mean_figures,
    ndcg_at_k,
    precision_at_k,
    r_precision,
    ranks_of_hits,
    recall_at_k,
    reciprocal_rank,
)
from siamese_jax.retrieval.neighbours import Neighbours, nearest

__all__ = [
    "ClassMeans",
    "Evaluation",
    "Figures",
    "Neighbours",
    "all_figures",
    "average_precision",
    "average_precision_at_k",
    "average_precision_at_r",
    "class_interval",
    "class_means",
    "evaluate",
    "mean_figures",
    "ndcg_at_k",
    "nearest",
    "precision_at_k",
    "r_precision",
    "ranks_of_hits",
    "recall_at_k",
    "reciprocal_rank",
]
