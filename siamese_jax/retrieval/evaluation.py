"""All figures of retrieval for a set of embeddings, in the memory of some of its rows."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from siamese_jax._checks import check_at_least, check_distance_fn
from siamese_jax._labels import fitting_items, traced_labels
from siamese_jax._numerics import row_has_nan
from siamese_jax.batching import map_batches
from siamese_jax.distances import euclidean_distance_matrix
from siamese_jax.relations import Items, SameFn, between, equal_labels
from siamese_jax.retrieval.figures import Figures, all_figures, mean_figures
from siamese_jax.retrieval.neighbours import (
    MatrixFn,
    Neighbours,
    check_two_sets,
    comparable,
    even_tiles,
    mesh_size,
    smallest,
)

_ENTRIES_AT_ONCE = 2**22  # 16 MB of distances in float32
_FEW_RELEVANT = 32  # up to which comparing all references with each is faster


class Evaluation(NamedTuple):
    """Figures of retrieval, their means, and over how many queries these are.

    Attributes:
      mean: Means over the queries that count. NaN if there is none.
      per_query: Figures of each query: 0 where it does not count, NaN where one of its
        distances is NaN or `max_relevant` was too small.
      where: True for the queries that count. They are valid and have a relevant reference.
      num_queries: Number of queries that count.
      num_without_relevant: Number of valid queries that have no relevant reference and so
        are left out.
      num_relevant: Number of relevant references of each query.
    """

    mean: Figures
    per_query: Figures
    where: Bool[Array, " n"]
    num_queries: Int[Array, ""]
    num_without_relevant: Int[Array, ""]
    num_relevant: Int[Array, " n"]


def evaluate(
    queries: Float[Array, "n dim"],
    query_items: Items,
    *,
    references: Float[Array, "m dim"] | None = None,
    reference_items: Items | None = None,
    cutoffs: tuple[int, ...] = (1, 2, 4, 8),
    max_relevant: int | None = None,
    same_fn: SameFn = equal_labels,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
) -> Evaluation:
    """All figures of retrieval, by the ranks of the relevant references of each query.

    All references are ranked, and of equal distances the one that comes first is the
    nearer. Without `references` the queries are searched in themselves, and none is
    compared with itself. Distances are computed from some queries at a time to all
    references. Where a mesh is set (`jax.set_mesh`), its devices share these queries.

    Args:
      queries: Embeddings.
      query_items: Labels, and optionally ids and validity, of the queries.
      references: Embeddings to search.
      reference_items: Labels, ids and validity of the references. A query is not compared
        with references of the same id.
      cutoffs: The k of the figures "at k".
      max_relevant: A number that no query has more relevant references than. It is found
        out where labels are known. Inside `jit` they are not: pass the largest
        `num_relevant` of an earlier call, or the size of the largest class. Without it all
        references may be relevant, and all of them are sorted, which takes some times as
        long.
      same_fn: Which labels are the same, as for `relations.between`. A reference that is
        the same as the query is relevant.
      matrix_fn: `matrix_fn(x, y)`, distances of `[n, dim]` to `[m, dim]`, each of which
        depends on its two embeddings alone.

    Raises:
      ValueError: If a shape is wrong, a set is empty, a number is below 1, references are
        given without their items or the reverse, or `matrix_fn` clearly gives similarities.
      TypeError: If embeddings are not floating-point, or labels or ids not integers.

    >>> points = jnp.array([[0.0], [1.0], [3.0], [9.0]])
    >>> found = evaluate(points, Items(jnp.array([0, 0, 0, 1])), cutoffs=(1,))
    >>> print(found.mean.recall_at_k, found.num_without_relevant)
    [1.] 1
    """
    if (references is None) != (reference_items is None):
        raise ValueError("references and reference_items must be given together")
    itself = references is None
    if references is None or reference_items is None:
        references, reference_items = queries, query_items
    check_two_sets(queries, references)
    check_at_least("the number of cutoffs", len(cutoffs), 1)
    check_at_least("the smallest of cutoffs", min(cutoffs), 1)
    query_items = _as_arrays("query_items", query_items, same_fn)
    reference_items = _as_arrays("reference_items", reference_items, same_fn)
    related = jax.eval_shape(
        partial(between, same_fn=same_fn), query_items, reference_items
    )
    if related.same.shape != (len(queries), len(references)):
        raise ValueError(
            f"the labels must relate {len(queries)} queries to {len(references)} "
            f"references; they relate {' to '.join(map(str, related.same.shape))}"
        )
    if itself and query_items.ids is None:
        query_items = query_items._replace(ids=jnp.arange(len(queries)))
        reference_items = query_items
    check_distance_fn("matrix_fn", matrix_fn, references)
    sizes = {"num_queries_at_once": _queries_at_once(len(queries), len(references))}
    if max_relevant is None:
        counted = _num_relevant(query_items, reference_items, same_fn=same_fn, **sizes)
        traced = isinstance(counted, jax.core.Tracer)
        max_relevant = len(references) if traced else _rounded(int(jnp.max(counted)))
    check_at_least("max_relevant", max_relevant, 1)
    return _evaluate(
        (queries, query_items),
        (references, reference_items),
        cutoffs=tuple(cutoffs),
        max_relevant=min(max_relevant, len(references)),
        same_fn=same_fn,
        matrix_fn=matrix_fn,
        **sizes,
    )


def _as_arrays(name: str, items: Items, same_fn: SameFn) -> Items:
    if not isinstance(items, Items):
        raise TypeError(f"{name} must be Items(labels); got {type(items).__name__}")
    if same_fn is equal_labels:
        items = items._replace(labels=traced_labels(f"{name}.labels", items.labels))
    elif isinstance(items.labels, list):
        items = items._replace(labels=jnp.asarray(items.labels))
    return fitting_items(name, items)


def _queries_at_once(num_queries: int, num_references: int) -> int:
    most = max(1, _ENTRIES_AT_ONCE // num_references)
    return even_tiles(num_queries, min(most, num_queries), mesh_size())


def _rounded(count: int) -> int:
    """The next power of two, so that few programs are compiled."""
    return 1 << max(count - 1, 0).bit_length()


@partial(jax.jit, static_argnames=("same_fn", "num_queries_at_once"))
def _num_relevant(
    queries: Items, references: Items, *, same_fn: SameFn, num_queries_at_once: int
) -> Int[Array, " n"]:
    def some(queries: Items) -> Array:
        same, where = between(queries, references, same_fn=same_fn)
        return jnp.sum(same & where, axis=1)

    return map_batches(some, queries, batch_size=num_queries_at_once)


_STATIC = ("cutoffs", "max_relevant", "same_fn", "matrix_fn", "num_queries_at_once")


@partial(jax.jit, static_argnames=_STATIC)  # compiled once, not once a call
def _evaluate(
    queries: tuple[Array, Items],
    references: tuple[Array, Items],
    *,
    cutoffs: tuple[int, ...],
    max_relevant: int,
    same_fn: SameFn,
    matrix_fn: MatrixFn,
    num_queries_at_once: int,
) -> Evaluation:
    num_references = len(references[0])
    few = max_relevant <= _FEW_RELEVANT
    ranks_fn = ranks_by_comparing if few else ranks_by_searching

    def some(queries: tuple[Array, Items]) -> tuple[Figures, Array]:
        embeddings, items = queries
        same, where = between(items, references[1], same_fn=same_fn)
        distances = matrix_fn(embeddings, references[0])
        num_relevant = jnp.sum(same & where, axis=1)
        ranks = ranks_fn(distances, same, where, max_relevant)
        figures = all_figures(
            ranks, num_relevant, cutoffs=cutoffs, num_references=num_references
        )
        incomplete = num_relevant > ranks.shape[1]
        unknown = row_has_nan(distances, where)[:, 0] | incomplete
        return jax.tree.map(partial(_nan_where, unknown), figures), num_relevant

    figures, num_relevant = map_batches(some, queries, batch_size=num_queries_at_once)
    valid = queries[1].valid
    valid = jnp.ones(num_relevant.shape, bool) if valid is None else valid
    where = num_relevant > 0
    per_query = jax.tree.map(partial(_nan_where, ~where, fill=0.0), figures)
    return Evaluation(
        mean=mean_figures(per_query, where),
        per_query=per_query,
        where=where,
        num_queries=jnp.sum(where),
        num_without_relevant=jnp.sum(valid & ~where),
        num_relevant=num_relevant,
    )


def _nan_where(flags: Array, values: Array, *, fill: float = jnp.nan) -> Array:
    return jnp.where(jnp.expand_dims(flags, range(1, values.ndim)), fill, values)


def ranks_by_comparing(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    where: Bool[Array, "n m"],
    num_ranks: int,
) -> Int[Array, "n p"]:
    """Ranks of relevant references, by comparing all references with each of them.

    >>> print(ranks_by_comparing(
    ...     jnp.array([[2.0, 1.0, 2.0]]), jnp.array([[True, False, True]]),
    ...     jnp.ones((1, 3), bool), 3))
    [[2 3 0]]
    """
    distances = comparable(distances)
    relevant = smallest(jnp.where(same & where, distances, jnp.inf), num_ranks)
    distances = jnp.where(where, distances, jnp.inf)
    columns = jnp.arange(distances.shape[1])[None, :]

    def rank(one: tuple[Array, Array]) -> Array:
        distance, index = (array[:, None] for array in one)
        before = (distances < distance) | ((distances == distance) & (columns < index))
        count = 1 + jnp.sum(before, axis=1)
        return jnp.where(one[0] == jnp.inf, 0, count)

    return lax.map(rank, jax.tree.map(jnp.transpose, tuple(relevant))).T


def ranks_by_searching(
    distances: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    where: Bool[Array, "n m"],
    num_ranks: int,
) -> Int[Array, "n p"]:
    """Ranks of relevant references, by finding the place of each reference among them.

    Only the relevant references are sorted. If c of them come before a reference, it comes
    before all others, or is the first of these itself. So the rank of relevant reference p
    is the number of references for which c <= p.

    >>> print(ranks_by_searching(
    ...     jnp.array([[2.0, 1.0, 2.0]]), jnp.array([[True, False, True]]),
    ...     jnp.ones((1, 3), bool), 3))
    [[2 3 0]]
    """
    distances = comparable(distances)
    relevant = smallest(jnp.where(same & where, distances, jnp.inf), num_ranks)
    num_ranks = relevant.distances.shape[1]

    def of_query(distances: Array, where: Array, relevant: Neighbours) -> Array:
        places = _num_before(distances, relevant)
        places = jnp.where(where, places, num_ranks)  # beyond the counts: left out
        counts = jnp.zeros(num_ranks, jnp.int32).at[places].add(1, mode="drop")
        return jnp.cumsum(counts)

    ranks = jax.vmap(of_query)(distances, where, relevant)
    return jnp.where(relevant.distances == jnp.inf, 0, ranks)


def _num_before(distances: Float[Array, " m"], relevant: Neighbours) -> Int[Array, " m"]:
    """How many of sorted relevant references come before each reference of a query.

    A binary search for all references at once, whose steps are powers of two.
    """
    num_ranks, columns = len(relevant.indices), jnp.arange(len(distances))
    num_steps = num_ranks.bit_length()

    def step(i: Array, places: Array) -> Array:
        size = jnp.right_shift(1 << (num_steps - 1), i)
        last = places + size - 1
        distance, index = (x.at[last].get(mode="clip") for x in relevant)
        before = (distance < distances) | ((distance == distances) & (index < columns))
        return jnp.where((last < num_ranks) & before, places + size, places)

    return lax.fori_loop(0, num_steps, step, jnp.zeros_like(columns))
