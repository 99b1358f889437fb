"""Rows of the contract table for retrieval."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import retrieval
from siamese_jax.relations import Items
from tests import oracles
from tests.cases.case import KEY, Case, Inputs, Kind, Refusal, f32, key

_NUM_REFERENCES = 12


def grid(rng, num_rows):
    """Embeddings of which many are equally far apart."""
    return f32(rng.integers(3, size=(num_rows, 2)))


def integers(rng, stop, num):
    return jnp.asarray(rng.integers(stop, size=num))


def some_ranks(rng):
    """Ranks of relevant references, and how many there are, with two that have no rank."""
    hits = rng.random((7, _NUM_REFERENCES)) < np.linspace(0, 0.9, 7)[:, None]
    ranks = np.zeros((7, _NUM_REFERENCES), int)
    for row, found in zip(ranks, hits, strict=True):
        numbers = 1 + np.flatnonzero(found)
        row[: len(numbers)] = numbers
    return jnp.asarray(ranks), jnp.asarray(hits.sum(axis=1))


def some_figures(rng):
    return retrieval.all_figures(
        *some_ranks(rng), cutoffs=(1, 3), num_references=_NUM_REFERENCES
    )


def found_in_others(rng):
    return Inputs(
        (
            *(grid(rng, 7), grid(rng, 40)),
            *(integers(rng, 9, 7), integers(rng, 9, 40)),
            jnp.asarray(rng.random(40) < 0.8),
        )
    )


def _nearest(queries, references, query_ids, reference_ids, reference_valid, **options):
    return retrieval.nearest(
        *(queries, references),
        query_ids=query_ids,
        reference_ids=reference_ids,
        reference_valid=reference_valid,
        **options,
    )


def _evaluate(queries, items, *others, **options):
    names = ("references", "reference_items")
    return retrieval.evaluate(
        queries, items, **dict(zip(names, others, strict=False)), **options
    )


_X, _IDS, _RANKS = jnp.ones((4, 2)), jnp.arange(4), jnp.ones((3, 2), int)
_COUNTS = jnp.ones(3, int)
_ITEMS = Items(_IDS)


def _nearest_refusal(name, words, *, error=ValueError, k=1, place=None, value=None):
    args = [_X, _X, _IDS, _IDS, jnp.ones(4, bool)]
    if place is not None:
        args[place] = value
    return Refusal(name, tuple(args), {"k": k}, error, words)


_RANK_REFUSALS = (
    Refusal("ranks are a row", (_RANKS[0],), {}, ValueError, "ranks must have 2 axes"),
    Refusal("ranks are floats", (f32(_RANKS),), {}, TypeError, "ranks must be an integer"),
)
_COUNT_REFUSALS = (
    Refusal("one axis", (_RANKS[0], _COUNTS), {}, ValueError, "ranks must have 2 axes"),
    Refusal(
        "too few counts",
        (_RANKS, _COUNTS[:2]),
        {},
        ValueError,
        r"num_relevant must have shape \(3,\)",
    ),
    Refusal(
        "counts are floats",
        (_RANKS, f32(_COUNTS)),
        {},
        TypeError,
        "num_relevant must be an integer",
    ),
)


def _no_rank(*args):
    return Refusal("k is 0", args, {"k": 0}, ValueError, "k must be at least 1; got 0")


def _evaluate_refusal(name, args, words, *, options=None, error=ValueError):
    return Refusal(name, args, options or {}, error, words)


_FIGURES = some_figures(np.random.default_rng(0))
_FLAGS = jnp.ones(7, bool)
_LABELS = jnp.zeros(7, int)
_BAD_QUERIES = (
    Refusal(
        "too few labels",
        (_FIGURES, _LABELS[:2], _FLAGS),
        {},
        ValueError,
        r"labels must have shape \(7,\)",
    ),
    Refusal(
        "labels are floats",
        (_FIGURES, f32(_LABELS), _FLAGS),
        {},
        TypeError,
        "labels must be an integer",
    ),
    Refusal(
        "where is not boolean",
        (_FIGURES, _LABELS, _LABELS),
        {},
        TypeError,
        "where must be a boolean",
    ),
)

RETRIEVAL = [
    Case(
        "retrieval.nearest",
        _nearest,
        Kind.TREES,
        found_in_others,
        options=(
            {"k": 5},
            {"k": 3, "query_tile_size": 3, "reference_tile_size": 8},
            {"k": 50, "reference_tile_size": 32},
        ),
        oracle=lambda *args, query_tile_size=0, reference_tile_size=0, **options: (
            oracles.nearest(*args, **options)
        ),
        refusals=(
            _nearest_refusal("no neighbour", "k must be at least 1", k=0),
            _nearest_refusal(
                "references of another dim",
                "references must have 2 columns",
                place=1,
                value=jnp.ones((4, 3)),
            ),
            _nearest_refusal(
                "queries are a vector", "queries must have 2 axes", place=0, value=_X[0]
            ),
            _nearest_refusal(
                "no references", "number of references", place=1, value=_X[:0]
            ),
            _nearest_refusal(
                "references are integers",
                "references must be a floating",
                place=1,
                value=_X.astype(int),
                error=TypeError,
            ),
            _nearest_refusal("ids of one set", "given together", place=2, value=None),
            _nearest_refusal(
                "too few ids",
                r"reference_ids must have shape \(4,\)",
                place=3,
                value=_IDS[:3],
            ),
            _nearest_refusal(
                "ids are floats",
                "query_ids must be an integer",
                place=2,
                value=_X[:, 0],
                error=TypeError,
            ),
            _nearest_refusal(
                "validity is a number",
                "reference_valid must be a boolean",
                place=4,
                value=_IDS,
                error=TypeError,
            ),
        ),
    ),
    Case(
        "retrieval.evaluate",
        _evaluate,
        Kind.TREES,
        lambda rng: Inputs(
            (
                grid(rng, 9),
                Items(integers(rng, 4, 9), integers(rng, 6, 9)),
                grid(rng, _NUM_REFERENCES),
                Items(
                    integers(rng, 3, _NUM_REFERENCES),
                    integers(rng, 6, _NUM_REFERENCES),
                    jnp.asarray(rng.random(_NUM_REFERENCES) < 0.7),
                ),
            )
        ),
        options=({"cutoffs": (1, 2, 5)}, {"cutoffs": (2,), "max_relevant": 8}),
        oracle=lambda *args, max_relevant=None, **options: oracles.evaluate(
            *args, **options
        ),
        refusals=(
            _evaluate_refusal("no items", (_X, _ITEMS, _X), "must be given together"),
            _evaluate_refusal(
                "too few labels", (_X, Items(_IDS[:3])), "4 queries to 4 references"
            ),
            _evaluate_refusal(
                "labels alone", (_X, _IDS), r"must be Items\(labels\)", error=TypeError
            ),
            _evaluate_refusal(
                "labels are names",
                (_X, Items(np.array(list("abcd")))),
                "number them by samplers.class_index",
                error=TypeError,
            ),
            _evaluate_refusal(
                "no cut-off", (_X, _ITEMS), "number of cutoffs", options={"cutoffs": ()}
            ),
            _evaluate_refusal(
                "a cut-off of 0", (_X, _ITEMS), "cutoffs", options={"cutoffs": (0, 1)}
            ),
            _evaluate_refusal(
                "no relevant",
                (_X, _ITEMS),
                "max_relevant must be at least 1",
                options={"max_relevant": 0},
            ),
            _evaluate_refusal(
                "labels are floats",
                (_X, Items(_X[:, 0])),
                "labels must be an integer",
                error=TypeError,
            ),
            _evaluate_refusal(
                "embeddings are integers",
                (_X.astype(int), _ITEMS),
                "queries must be a floating",
                error=TypeError,
            ),
        ),
    ),
    Case(
        "retrieval.ranks_of_hits",
        retrieval.ranks_of_hits,
        Kind.TREES,
        lambda rng: Inputs((jnp.asarray(rng.random((4, 5)) < 0.5),)),
        oracle=lambda hits: np.array(
            [[r * h for r, h in enumerate(x, 1)] for x in np.array(hits)]
        ),
        refusals=(
            Refusal("a row", (jnp.ones(2, bool),), {}, ValueError, "hits must have 2 axes"),
            Refusal("numbers", (_RANKS,), {}, TypeError, "hits must be a boolean"),
        ),
    ),
    *(
        Case(
            f"retrieval.{fn.__name__}",
            fn,
            Kind.TREES,
            lambda rng: Inputs(some_ranks(rng)[:1]),
            options=options,
            oracle=oracle,
            refusals=_RANK_REFUSALS + tuple(_no_rank(_RANKS) for _ in options[0]),
        )
        for fn, oracle, options in (
            (retrieval.precision_at_k, oracles.precision_at_k, ({"k": 1}, {"k": 20})),
            (retrieval.recall_at_k, oracles.recall_at_k, ({"k": 1}, {"k": 3})),
            (retrieval.reciprocal_rank, oracles.reciprocal_rank, ({},)),
        )
    ),
    *(
        Case(
            f"retrieval.{fn.__name__}",
            fn,
            Kind.TREES,
            lambda rng: Inputs(some_ranks(rng)),
            options=options,
            oracle=oracle,
            refusals=_COUNT_REFUSALS + tuple(_no_rank(_RANKS, _COUNTS) for _ in options[0]),
        )
        for fn, oracle, options in (
            (retrieval.r_precision, oracles.r_precision, ({},)),
            (retrieval.average_precision, oracles.mean_precision, ({},)),
            (retrieval.average_precision_at_r, oracles.average_precision_at_r, ({},)),
            (
                retrieval.average_precision_at_k,
                oracles.average_precision_at_k,
                ({"k": 1}, {"k": 4}),
            ),
            (retrieval.ndcg_at_k, oracles.ndcg_at_k, ({"k": 1}, {"k": 4})),
        )
    ),
    Case(
        "retrieval.all_figures",
        retrieval.all_figures,
        Kind.TREES,
        lambda rng: Inputs(some_ranks(rng)),
        options=({"cutoffs": (1, 4), "num_references": _NUM_REFERENCES},),
        oracle=oracles.all_figures,
        refusals=(
            *_COUNT_REFUSALS,
            Refusal(
                "no cut-off",
                (_RANKS, _COUNTS),
                {"cutoffs": ()},
                ValueError,
                "number of cutoffs",
            ),
        ),
    ),
    Case(
        "retrieval.mean_figures",
        retrieval.mean_figures,
        Kind.TREES,
        lambda rng: Inputs((some_figures(rng), jnp.arange(7) % 3 > 0)),
        oracle=oracles.mean_figures,
        refusals=(
            Refusal("too few", (_FIGURES, _FLAGS[:2]), {}, ValueError, "where must have"),
            Refusal("numbers", (_FIGURES, _LABELS), {}, TypeError, "where must be a bool"),
        ),
    ),
    Case(
        "retrieval.class_means",
        retrieval.class_means,
        Kind.TREES,
        lambda rng: Inputs(
            (some_figures(rng), jnp.array([0, 2, 2, 0, 1, 5, -1]), jnp.arange(7) != 4)
        ),
        options=({"num_classes": 4},),
        oracle=oracles.class_means,
        refusals=(
            *_BAD_QUERIES,
            Refusal(
                "no class",
                (_FIGURES, _LABELS, _FLAGS),
                {"num_classes": 0},
                ValueError,
                "num_classes must be at least 1",
            ),
        ),
    ),
    Case(
        "retrieval.class_interval",
        retrieval.class_interval,
        Kind.RANDOM,
        lambda rng: Inputs(
            (key(rng), f32(rng.random(9)), integers(rng, 4, 9), jnp.arange(9) > 1)
        ),
        options=({"num_classes": 4, "num_samples": 20},),
        refusals=(
            Refusal(
                "values are a matrix",
                (KEY, _X, _IDS, _FLAGS[:4]),
                {},
                ValueError,
                "values must have 1 axis",
            ),
            Refusal(
                "too few labels",
                (KEY, _X[:, 0], _IDS[:3], _FLAGS[:4]),
                {},
                ValueError,
                r"labels must have shape \(4,\)",
            ),
            Refusal(
                "values are integers",
                (KEY, _IDS, _IDS, _FLAGS[:4]),
                {},
                TypeError,
                "values must be a floating",
            ),
            Refusal(
                "one class",
                (KEY, _X[:, 0], _IDS, _FLAGS[:4]),
                {"num_classes": 1},
                ValueError,
                "num_identities must be at least 2",
            ),
        ),
    ),
]
