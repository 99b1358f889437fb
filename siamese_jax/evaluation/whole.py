"""All figures of a set of embeddings."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from siamese_jax import health
from siamese_jax.errors import UserError
from siamese_jax.evaluation.clusters import cluster_agreement
from siamese_jax.evaluation.distance import DISTANCES, DistanceName
from siamese_jax.evaluation.few_shot import FewShot, few_shot
from siamese_jax.evaluation.figures import Figures, figure, missing
from siamese_jax.evaluation.neighbours import Ranked, rank
from siamese_jax.evaluation.pairs import all_pairs
from siamese_jax.evaluation.sets import Sets, some_rows
from siamese_jax.evaluation.verified import Verified, verify
from siamese_jax.relations import Items, within

MOST_COMPARISONS = 10**9
MOST_IN_A_BATCH = 4096
MOST_CLUSTERED = 5_000
AT_LEAST = {"max_queries": 1, "num_tasks": 2, "seed": 0}
_MULTI_LABEL = "rows with several labels have no classes to choose among"


class Evaluated(NamedTuple):
    """All that was found out about a set of embeddings.

    Attributes:
      sizes: Numbers of rows, classes, queries, pairs and so on.
      groups: Figures by group ("retrieval", "verification", ...) and name.
      notes: Sentences on what was limited or left out.
      ranked: Curves, classes and answers of retrieval.
      verified: Curves of all pairs, or None if there are none.
    """

    sizes: dict[str, int]
    groups: dict[str, Figures]
    notes: list[str]
    ranked: Ranked
    verified: Verified | None


def evaluate_sets(
    sets: Sets,
    *,
    distance: DistanceName = "euclidean",
    max_queries: int | None = None,
    num_tasks: int = 600,
    seed: int = 0,
    progress_fn: Callable[[str], None] = lambda words: None,
) -> Evaluated:
    """Figures of retrieval, verification, few-shot tasks, clusters, and health.

    Args:
      sets: The embeddings, from `make_sets`.
      distance: The distance of two embeddings.
      max_queries: The largest number of rows that are compared with all references; of more
        rows random ones are taken. None takes as many as make 1e9 comparisons.
      num_tasks: Number of few-shot tasks of each kind, at least 2.
      seed: Seed of all that is drawn.
      progress_fn: Called with the name of each part before it is computed.

    Raises:
      UserError: If `max_queries`, `num_tasks` or `seed` is too small, or 2**31 or larger.
    """
    check_numbers({"max_queries": max_queries, "num_tasks": num_tasks, "seed": seed})
    of = DISTANCES[distance]
    x, labels = sets.queries.embeddings, sets.queries.labels
    num, num_references = len(x), len(sets.references.embeddings)
    if max_queries is None:
        max_queries = max(1000, MOST_COMPARISONS // num_references)
    rows = some_rows(np.arange(num), max_queries, seed)
    notes = _notes(sets, len(rows))
    progress_fn("retrieval")
    ranked = rank(sets, rows, distance=of, seed=seed)
    progress_fn("verification")
    pairs = verify(all_pairs(sets, rows, distance=of, seed=seed))
    verified = None if isinstance(pairs, str) else pairs
    groups = {
        "retrieval": ranked.figures,
        "verification": missing(["equal_error_rate", "roc_auc"], pairs)
        if isinstance(pairs, str)
        else pairs.figures,
    }
    progress_fn("few-shot tasks")
    groups |= _few_shot_groups(sets, of, num_tasks, seed, notes)
    progress_fn("clusters and health")
    groups["clusters"] = _cluster_figures(x, labels, sets.multi_label, seed, notes)
    groups["health"] = _health_figures(sets, seed, notes)
    sizes = {
        "num_rows": num,
        "num_dimensions": x.shape[1],
        "num_classes": len(sets.names),
        **ranked.sizes,
        **({} if verified is None else verified.sizes),
    }
    return Evaluated(sizes, groups, notes, ranked, verified)


def check_numbers(
    options: Mapping[str, Any], *, name_fn: Callable[[str], str] = str
) -> None:
    """Refuses numbers of `evaluate_sets` that are out of their range.

    Args:
      options: Numbers by the names of `AT_LEAST`, and any other options. None is in order.
      name_fn: What an option is called in the message.

    Raises:
      UserError: If a number is too small, or 2**31 or larger.

    >>> check_numbers({"max_queries": None, "num_tasks": 1, "seed": 0})
    Traceback (most recent call last):
    siamese_jax.errors.UserError: num_tasks must be at least 2 and below 2**31; got 1
    """
    for name, least in AT_LEAST.items():
        value = options[name]
        if value is not None and not least <= value < 2**31:
            raise UserError(
                f"{name_fn(name)} must be at least {least} and below 2**31; got {value}"
            )


def _notes(sets: Sets, num_queries: int) -> list[str]:
    notes = []
    num = len(sets.queries.embeddings)
    if num_queries < num:
        notes.append(
            f"Retrieval and verification compare {num_queries:,} random rows of {num:,} "
            f"with all {len(sets.references.embeddings):,} references."
        )
    if sets.itself and not sets.multi_label:
        alone = int(np.sum(np.bincount(sets.queries.labels) == 1))
        if alone:
            notes.append(
                f"{alone:,} of {len(sets.names):,} classes have a single row, which is "
                "no query of retrieval, only a wrong answer to others."
            )
    return notes


# Few-shot tasks, clusters, health -------------------------------------------------------


def _few_shot_groups(
    sets: Sets, distance: Any, num_tasks: int, seed: int, notes: list[str]
) -> dict[str, Figures]:
    names = {kind: f"few-shot, {kind}" for kind in ("inductive", "transductive")}
    if sets.multi_label:
        return {name: missing(["accuracy"], _MULTI_LABEL) for name in names.values()}
    _, first = np.unique(sets.queries.ids, return_index=True)
    x, labels, _ = sets.queries.rows(np.sort(first))
    if len(x) < len(sets.queries.ids):
        notes.append(f"Few-shot tasks take one row of each of {len(x):,} ids.")
    found: FewShot = few_shot(x, labels, distance=distance, num_tasks=num_tasks, seed=seed)
    if found.num_queries:
        queries = ", ".join(
            f"{number} in {task.replace('_', '-')} tasks"
            + (f" ({found.limits[task]})" if task in found.limits else "")
            for task, number in found.num_queries.items()
        )
        notes.append(
            f"Few-shot accuracies are means over {num_tasks:,} random tasks. Queries of "
            f"each class: {queries}. Transductive classifiers learn from the queries. "
            "Classifiers that centre the embeddings subtract the mean of all rows."
        )
    return {name: found.figures[kind] for kind, name in names.items()}


def _cluster_figures(
    x: np.ndarray, labels: np.ndarray, multi_label: bool, seed: int, notes: list[str]
) -> Figures:
    names = ("normalized_mutual_information", "adjusted_mutual_information")
    if multi_label:
        return missing(names, _MULTI_LABEL)
    classes = some_rows(np.unique(labels), MOST_CLUSTERED // 10, seed)
    rows = some_rows(np.flatnonzero(np.isin(labels, classes)), MOST_CLUSTERED, seed)
    if len(rows) < len(labels):
        notes.append(
            f"Clusters are made of {len(rows):,} random rows of "
            f"{len(np.unique(labels[rows])):,} classes."
        )
    try:
        found = cluster_agreement(x[rows], labels[rows], seed=seed, num_starts=3)
    except ModuleNotFoundError:
        return missing(names, "scikit-learn is not installed")
    why = f"the embeddings have fewer than {found.num_clusters} distinct rows"
    return {name: figure(getattr(found, name), why=why) for name in names}


def _health_figures(sets: Sets, seed: int, notes: list[str]) -> Figures:
    """Health of all rows, or of random ones; the alignment of rows of whole classes."""
    num = len(sets.queries.embeddings)
    rows = some_rows(np.arange(num), MOST_IN_A_BATCH, seed)
    measured = _health(sets, rows)
    values = dict(measured._asdict())
    if len(rows) < num:
        if not sets.multi_label:
            values["alignment"] = _health(sets, _of_whole_classes(sets, seed)).alignment
        notes.append(f"Health is measured on {len(rows):,} rows.")
    # embeddings of one number, and two classes that are told apart, are on a line anyway
    on_a_line = len(sets.names) <= 2 or sets.queries.embeddings.shape[1] == 1
    words = health.warning(measured, **({"min_rank": 0.0} if on_a_line else {}))
    if words is not None:
        notes.append(f"Warning: {words}.")
    return {name: figure(value) for name, value in values.items()}


def _health(sets: Sets, rows: Int[np.ndarray, " k"]) -> health.Health:
    some = sets.queries.rows(rows)

    def measure(x: jax.Array, items: Items) -> health.Health:
        same, where = within(items, same_fn=sets.same_fn)
        return health.embedding_health(x, same, where)

    return jax.jit(measure)(jnp.asarray(some.embeddings), some.items)


def _of_whole_classes(sets: Sets, seed: int) -> Int[np.ndarray, " k"]:
    """As many rows as a batch has, class after class in random order."""
    labels = sets.queries.labels
    order = np.random.default_rng(seed).permutation(len(sets.names))[labels]
    return np.argsort(order, kind="stable")[:MOST_IN_A_BATCH]
