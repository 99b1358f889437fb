"""Retrieval: figures with intervals, the worst classes, and answers right and wrong."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from siamese_jax import retrieval
from siamese_jax.evaluation.distance import Distance
from siamese_jax.evaluation.figures import Figure, Figures, figure
from siamese_jax.evaluation.sets import Sets, some_rows

CUTOFFS = (1, 2, 4, 8, 10, 16, 32, 64, 100)
AT_ONE = ("precision_at_k", "precision_at", (1, 10))
_TABLE = (
    AT_ONE,
    ("recall_at_k", "recall_at", (2, 4, 8, 10, 100)),
    ("average_precision_at_k", "map_at", (10,)),
    ("ndcg_at_k", "ndcg_at", (10,)),
)
_SCALARS = {
    "r_precision": "r_precision",
    "average_precision_at_r": "map_at_r",
    "average_precision": "map",
    "reciprocal_rank": "mrr",
    "ndcg": "ndcg",
}
_NUM_WORST = 10
_NUM_EXAMPLES = 6
_NUM_NEIGHBOURS = 8
_MOST_ASKED = 200  # queries of each of the worst classes, to see what it is taken for
NO_QUERY = "no query has another row of its class"


class ClassFigures(NamedTuple):
    """How the queries of one class fare.

    Attributes:
      name: Name of the class.
      num_queries: Number of its queries.
      precision_at_1: Share of them whose nearest reference is of the class.
      map_at_r: Mean average precision at R.
      taken_for: The other class that their nearest references are of most often, or None.
        Of many queries of a class, random ones are asked.
    """

    name: str
    num_queries: int
    precision_at_1: float
    map_at_r: float
    taken_for: str | None


class Answer(NamedTuple):
    """The nearest references of a query.

    Attributes:
      query: Row of the query.
      neighbours: Rows of the references, the nearest first.
      distances: Their distances.
      same: Whether each is of the query's class.
    """

    query: int
    neighbours: Int[np.ndarray, " k"]
    distances: Float[np.ndarray, " k"]
    same: Bool[np.ndarray, " k"]


class Ranked(NamedTuple):
    """What retrieval found.

    Attributes:
      figures: The figures by name.
      sizes: Numbers of queries, of references and of queries that are left out.
      cutoffs: The k of the two curves.
      recall: Recall at each k (the cumulative match characteristic).
      precision: Precision at each k.
      class_precision: Precision at 1 of each class that has queries.
      worst: The classes with the smallest precision at 1.
      answers: Answers to some queries, first right ones, then wrong ones.
    """

    figures: Figures
    sizes: dict[str, int]
    cutoffs: tuple[int, ...]
    recall: Float[np.ndarray, " cutoffs"]
    precision: Float[np.ndarray, " cutoffs"]
    class_precision: Float[np.ndarray, " classes"]
    worst: list[ClassFigures]
    answers: list[Answer]


def rank(
    sets: Sets, rows: Int[np.ndarray, " q"], *, distance: Distance, seed: int
) -> Ranked:
    """Searches the nearest references of the queries at some rows.

    Args:
      sets: Queries and references.
      rows: The queries to ask.
      distance: What nearer means.
      seed: Seed of the bootstrap and of the examples that are shown.
    """
    num = len(sets.references.embeddings) - sets.itself
    cutoffs = tuple(k for k in CUTOFFS if k <= max(num, 1))
    queries = sets.queries.rows(rows)
    found = retrieval.evaluate(
        jnp.asarray(queries.embeddings),
        queries.items,
        references=jnp.asarray(sets.references.embeddings),
        reference_items=sets.references.items,
        cutoffs=cutoffs,
        same_fn=sets.same_fn,
        matrix_fn=distance.matrix_fn,
    )
    where = np.asarray(found.where)
    classes, by_class = _by_class(sets, queries.labels, where, found.per_query)
    figures = _figures(found, cutoffs, classes, by_class, seed)
    right = np.asarray(found.per_query.recall_at_k[:, 0]) > 0
    return Ranked(
        figures=figures,
        sizes={
            "num_queries": int(found.num_queries),
            "num_queries_without_relevant": int(found.num_without_relevant),
            "num_references": len(sets.references.embeddings),
        },
        cutoffs=cutoffs,
        recall=np.asarray(found.mean.recall_at_k),
        precision=np.asarray(found.mean.precision_at_k),
        class_precision=_class_precision(by_class),
        worst=_worst(sets, rows[where], classes, by_class, distance, seed),
        answers=_answers(sets, rows, where, right, distance, seed),
    )


# Figures --------------------------------------------------------------------------------


class _Classes(NamedTuple):
    """The classes that have queries, numbered anew, and the class of each query."""

    numbers: Int[np.ndarray, " classes"]
    of_query: Int[np.ndarray, " q"]


def _by_class(
    sets: Sets, labels: np.ndarray, where: np.ndarray, per_query: retrieval.Figures
) -> tuple[_Classes | None, retrieval.ClassMeans | None]:
    """Means of each class with queries; None where rows have several labels."""
    if sets.multi_label or not where.any():
        return None, None
    numbers = np.unique(labels[where])
    of_query = np.where(where, np.searchsorted(numbers, labels), 0).astype(np.int32)
    means = jax.jit(retrieval.class_means, static_argnames="num_classes")(
        per_query, jnp.asarray(of_query), jnp.asarray(where), num_classes=len(numbers)
    )
    return _Classes(numbers, of_query), means


def _figures(
    found: retrieval.Evaluation,
    cutoffs: tuple[int, ...],
    classes: _Classes | None,
    by_class: retrieval.ClassMeans | None,
    seed: int,
) -> Figures:
    def one(pick: Any) -> Figure:
        low = high = macro = None
        if classes is not None and by_class is not None:
            macro = pick(by_class.macro)
            if len(classes.numbers) > 1:
                low, high = retrieval.class_interval(
                    jax.random.key(seed),
                    pick(found.per_query),
                    jnp.asarray(classes.of_query),
                    found.where,
                    num_classes=len(classes.numbers),
                )
        return figure(pick(found.mean), low=low, high=high, macro=macro, why=NO_QUERY)

    figures: Figures = {}
    for field, name, ks in _TABLE:
        for k in ks:
            if k in cutoffs:
                place = cutoffs.index(k)
                figures[f"{name}_{k}"] = one(
                    lambda of, field=field, place=place: getattr(of, field)[..., place]
                )
            else:
                figures[f"{name}_{k}"] = Figure(None, why=f"fewer than {k} references")
    for field, name in _SCALARS.items():
        figures[name] = one(lambda of, field=field: getattr(of, field))
    return figures


def _class_precision(by_class: retrieval.ClassMeans | None) -> Float[np.ndarray, " c"]:
    if by_class is None:
        return np.zeros(0, np.float32)
    return np.asarray(by_class.per_class.precision_at_k[:, 0])


# Examples -------------------------------------------------------------------------------


def _worst(
    sets: Sets,
    rows: Int[np.ndarray, " q"],
    classes: _Classes | None,
    by_class: retrieval.ClassMeans | None,
    distance: Distance,
    seed: int,
) -> list[ClassFigures]:
    """The classes with the smallest precision at 1, of equal ones the smallest MAP@R."""
    if classes is None or by_class is None:
        return []
    precision = _class_precision(by_class)
    map_at_r = np.asarray(by_class.per_class.average_precision_at_r)
    num_queries = np.asarray(by_class.num_queries)
    worst = np.lexsort((map_at_r, precision))[:_NUM_WORST]
    labels = sets.queries.labels[rows]
    asked = np.concatenate(
        [
            some_rows(rows[labels == number], _MOST_ASKED, seed)
            for number in classes.numbers[worst]
        ]
    )
    nearest = _nearest(sets, asked, 1, distance).indices[:, 0]
    taken: dict[int, Counter[int]] = {}
    for row, reference in zip(asked, np.asarray(nearest), strict=True):
        own = int(sets.queries.labels[row])
        other = int(sets.references.labels[reference])
        if reference >= 0 and other != own:
            taken.setdefault(own, Counter())[other] += 1
    result = []
    for place in worst:
        number = int(classes.numbers[place])
        most = taken[number].most_common(1)[0][0] if number in taken else None
        result.append(
            ClassFigures(
                sets.names[number],
                int(num_queries[place]),
                float(precision[place]),
                float(map_at_r[place]),
                None if most is None else sets.names[most],
            )
        )
    return result


def _answers(
    sets: Sets,
    rows: Int[np.ndarray, " q"],
    where: Bool[np.ndarray, " q"],
    right: Bool[np.ndarray, " q"],
    distance: Distance,
    seed: int,
) -> list[Answer]:
    """The answers to random queries, of which the nearest is right or wrong."""
    rng = np.random.default_rng(seed)
    shown = []
    for kind in (right, ~right):
        of_kind = rows[where & kind]
        shown.append(rng.permutation(of_kind)[:_NUM_EXAMPLES])
    asked = np.concatenate(shown)
    if not asked.size:
        return []
    k = min(_NUM_NEIGHBOURS, max(1, len(sets.references.embeddings) - sets.itself))
    found = _nearest(sets, asked, k, distance)
    answers = []
    for query, near, distances in zip(asked, found.indices, found.distances, strict=True):
        near, distances = np.asarray(near), np.asarray(distances)
        near, distances = near[near >= 0], distances[near >= 0]
        same = _same(sets, query, near)
        answers.append(Answer(int(query), near, distances, same))
    return answers


def _same(
    sets: Sets, query: Any, references: Int[np.ndarray, " k"]
) -> Bool[np.ndarray, " k"]:
    own, labels = sets.queries.labels[query], sets.references.labels[references]
    if sets.multi_label:
        return np.any(labels & own[None, :], axis=1)
    return labels == own


def _nearest(
    sets: Sets, rows: Int[np.ndarray, " q"], k: int, distance: Distance
) -> retrieval.Neighbours:
    queries = sets.queries.rows(rows)
    return retrieval.nearest(
        jnp.asarray(queries.embeddings),
        jnp.asarray(sets.references.embeddings),
        k=k,
        query_ids=jnp.asarray(queries.ids),
        reference_ids=jnp.asarray(sets.references.ids),
        matrix_fn=distance.matrix_fn,
    )
