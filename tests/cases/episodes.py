"""Rows of the contract table for episodes."""

import jax.numpy as jnp

from siamese_jax import episodes
from tests import oracles
from tests.cases.case import KEY, Case, Inputs, Kind, Refusal, f32, key
from tests.cases.samplers import INDEX


def _accuracy_refusal(name, options, words, *, embeddings=None, error=ValueError):
    embeddings = jnp.ones((14, 2)) if embeddings is None else embeddings
    return Refusal(name, (KEY, embeddings, INDEX), options, error, words)


EPISODES = [
    Case(
        "episodes.prototypes",
        episodes.prototypes,
        Kind.MAP,
        lambda rng: Inputs((f32(rng.normal(size=(4, 3, 2))),)),
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
                "must have 4 columns",
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
            _accuracy_refusal("too few examples", {"num_shots": 2}, "class 5 has 2"),
            _accuracy_refusal(
                "queries of more classes than there are",
                {"num_query_classes": 3},
                "num_query_classes must be from 1 to 2; got 3",
            ),
        ),
    ),
]
