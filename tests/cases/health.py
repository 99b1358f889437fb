"""Rows of the contract table for the health of embeddings."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import health
from siamese_jax.reductions import make_terms
from siamese_jax.relations import Items, within
from tests import oracles
from tests.cases.case import Case, Inputs, Kind, Refusal, f32

_X, _PAIRS = jnp.ones((3, 2)), jnp.ones((3, 3), bool)


def some_embeddings(rng):
    relation = within(Items(jnp.asarray(rng.integers(3, size=9))))
    return Inputs((f32(rng.normal(size=(9, 4)) + 1), *relation))


def some_terms(rng):
    values = f32(rng.normal(size=8).clip(0))
    return make_terms(values, jnp.asarray(rng.random(8) < 0.7))


HEALTH = [
    Case(
        "health.embedding_health",
        health.embedding_health,
        Kind.TREES,
        some_embeddings,
        oracle=oracles.embedding_health,
        refusals=(
            Refusal("a vector", (_X[0], _PAIRS, _PAIRS), {}, ValueError, "2 axes"),
            Refusal("too few", (_X, _PAIRS[:2], _PAIRS), {}, ValueError, "same must have"),
            Refusal("no flags", (_X, _PAIRS, _X), {}, TypeError, "where must be a boolean"),
            Refusal(
                "integers",
                (_X.astype(int), _PAIRS, _PAIRS),
                {},
                TypeError,
                "embeddings must be a floating",
            ),
        ),
    ),
    Case(
        "health.active_share",
        health.active_share,
        Kind.TREES,
        lambda rng: Inputs((some_terms(rng),)),
        oracle=lambda terms: np.mean(np.asarray(terms.values)[np.asarray(terms.where)] > 0),
        refusals=(
            Refusal("a mean", (jnp.ones(3),), {}, TypeError, "terms must be the Terms"),
        ),
    ),
]
