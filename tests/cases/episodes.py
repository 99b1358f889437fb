"""Rows of the contract table for episodes."""

import jax.numpy as jnp

from siamese_jax import distances, episodes
from tests import oracles
from tests.cases.case import KEY, Case, Inputs, Kind, Refusal, f32, key
from tests.cases.samplers import INDEX


def _accuracy_refusal(name, options, words, *, embeddings=None, error=ValueError):
    embeddings = jnp.ones((14, 2)) if embeddings is None else embeddings
    return Refusal(name, (KEY, embeddings, INDEX), options, error, words)


def _task(rng, shots=3):
    """Four classes of unequal shots, well enough apart for regressions."""
    centres = rng.normal(size=(4, 1, 3))
    support = centres + rng.normal(size=(4, shots, 3)) / 2
    where = jnp.asarray(rng.random((4, shots)) < 0.6).at[:, 0].set(True)
    return (f32(support), f32(rng.normal(size=(6, 3)))), {"where": where}


_SUPPORT, _QUERIES = jnp.ones((3, 2, 2)), jnp.ones((5, 2))
_TASK_REFUSALS = (
    *(
        Refusal(name, (support, queries), options, error, words)
        for name, support, queries, options, error, words in (
            ("no axis of shots", _QUERIES, _QUERIES, {}, ValueError, "support must have 3"),
            ("one query", _SUPPORT, _QUERIES[0], {}, ValueError, "queries must have 2"),
            (
                "queries of another dim",
                _SUPPORT,
                jnp.ones((5, 4)),
                {},
                ValueError,
                r"queries must have shape \(5, 2\), with the columns of support",
            ),
            (
                "support is integers",
                jnp.ones((3, 2, 2), int),
                _QUERIES,
                {},
                TypeError,
                "support must be a floating",
            ),
            (
                "queries are integers",
                _SUPPORT,
                jnp.ones((5, 2), int),
                {},
                TypeError,
                "queries must be a floating",
            ),
            (
                "a mask of classes",
                _SUPPORT,
                _QUERIES,
                {"where": jnp.ones(3, bool)},
                ValueError,
                r"where must have shape \(3, 2\)",
            ),
        )
    ),
)


def _few_shot(fn, options=({},), further=()):
    return Case(
        f"episodes.{fn.__name__}",
        fn,
        Kind.MAP,
        lambda rng: Inputs(*_task(rng)),
        options=options,
        oracle=getattr(oracles, fn.__name__),
        refusals=(*_TASK_REFUSALS, *further),
        keeps_dtype=False,
    )


def _of_task(name, options, words):
    return Refusal(name, (_SUPPORT, _QUERIES), options, ValueError, words)


def _simple_shot(support, queries, **options):
    """The mean of the base classes is bound."""
    return episodes.simple_shot_logits(
        support, queries, jnp.full(queries.shape[-1:], 0.25), **options
    )


def _simple_shot_oracle(support, queries, **options):
    return oracles.simple_shot_logits(support, queries, [0.25] * 3, **options)


EPISODES = [
    _few_shot(episodes.neighbour_logits),
    _few_shot(episodes.prototype_logits),
    _few_shot(episodes.matching_logits, ({}, {"temperature": 0.2})),
    _few_shot(episodes.ridge_logits, ({}, {"strength": 0.1})),
    _few_shot(
        episodes.logistic_logits,
        ({"num_steps": 400}, {"strength": 0.3, "num_steps": 400}),
    ),
    _few_shot(
        episodes.laplacian_shot_logits,
        ({}, {"num_neighbours": 2, "strength": 0.5, "num_steps": 4}),
        further=(
            _of_task("no neighbours", {"num_neighbours": 0}, "num_neighbours must be at"),
            _of_task("all are neighbours", {"num_neighbours": 5}, "must be below .* 5"),
        ),
    ),
    _few_shot(
        episodes.transport_logits,
        ({}, {"temperature": 1.0, "num_steps": 5}),
    ),
    Case(
        "episodes.simple_shot_logits",
        _simple_shot,
        Kind.MAP,
        lambda rng: Inputs(*_task(rng)),
        oracle=_simple_shot_oracle,
        refusals=_TASK_REFUSALS,
        keeps_dtype=False,
    ),
    Case(
        "episodes.prototypes",
        episodes.prototypes,
        Kind.MAP,
        lambda rng: Inputs((_task(rng)[0][0],), _task(rng)[1]),
        oracle=oracles.prototypes,
        refusals=(
            Refusal(
                "no axis of shots",
                (jnp.ones((3, 2)),),
                {},
                ValueError,
                "support must have 3 axes",
            ),
            Refusal(
                "support is integers",
                (jnp.ones((3, 2, 2), int),),
                {},
                TypeError,
                "support must be a floating",
            ),
        ),
    ),
    Case(
        "episodes.classify",
        episodes.classify,
        Kind.DECISION,
        lambda rng: Inputs((f32(rng.normal(size=(4, 3, 2))), f32(rng.normal(size=(6, 2))))),
        oracle=oracles.classify,
        refusals=(
            Refusal(
                "no axis of shots",
                (jnp.ones((3, 2)), jnp.ones((3, 2))),
                {},
                ValueError,
                "support must have 3",
            ),
            Refusal(
                "queries of another dim",
                (jnp.ones((3, 1, 2)), jnp.ones((3, 4))),
                {},
                ValueError,
                r"queries must have shape .3, 2., with the columns of support",
            ),
            Refusal(
                "queries are integers",
                (jnp.ones((3, 1, 2)), jnp.ones((3, 2), int)),
                {},
                TypeError,
                "must be a float",
            ),
        ),
    ),
    Case(
        "episodes.episode_accuracy",
        episodes.episode_accuracy,
        Kind.RANDOM,
        lambda rng: Inputs((key(rng), f32(rng.normal(size=(14, 2))), INDEX)),
        options=({"num_episodes": 5, "num_ways": 2},),
        refusals=(
            _accuracy_refusal(
                "too few embeddings", {}, "14 rows", embeddings=jnp.ones((13, 2))
            ),
            _accuracy_refusal(
                "embeddings are numbers", {}, "must have 2 axes", embeddings=jnp.ones(14)
            ),
            _accuracy_refusal(
                "embeddings are integers",
                {},
                "floating",
                embeddings=jnp.ones((14, 2), int),
                error=TypeError,
            ),
            _accuracy_refusal(
                "one episode", {"num_episodes": 1}, "num_episodes must be at least 2"
            ),
            _accuracy_refusal(
                "more shots than there are",
                {"min_shots": 2},
                "min_shots must be from 1 to 1",
            ),
            _accuracy_refusal(
                "two ways to answer",
                {
                    "logits_fn": episodes.ridge_logits,
                    "matrix_fn": distances.manhattan_distance_matrix,
                },
                "matrix_fn must not be given beside logits_fn",
            ),
            _accuracy_refusal("too few examples", {"num_shots": 2}, "class 5 has 2"),
            _accuracy_refusal(
                "queries of more classes than there are",
                {"num_query_classes": 3},
                "num_query_classes must be from 1 to 2; got 3",
            ),
        ),
    ),
]
