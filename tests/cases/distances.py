"""Rows of the table: distances."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from siamese_jax import (
    distances,
)
from tests import oracles
from tests.cases.case import Case, f32


def two_rows(rng):
    return f32(rng.normal(size=(3, 5, 4))), f32(rng.normal(size=(3, 5, 4)))


def two_sets(rng):
    return f32(rng.normal(size=(6, 4))), f32(rng.normal(size=(5, 4)))


# ordinary, coinciding, zero, both zero, differing in one coordinate only
COINCIDING_A = f32([[1.0, -2.0], [3.0, -1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
COINCIDING_B = f32([[0.5, 1.0], [3.0, -1.0], [1.0, 2.0], [0.0, 0.0], [1.0, 4.0]])

_ROWS_MISUSE = (
    (
        (jnp.zeros((3, 2)), jnp.zeros((3, 1, 2))),
        {},
        ValueError,
        r"b must have shape \(3, 2\)",
    ),
    (
        (jnp.zeros((3, 2), int), jnp.zeros((3, 2))),
        {},
        TypeError,
        "a must be a floating-point",
    ),
    (([1.0], jnp.zeros(1)), {}, TypeError, "got list"),
)
_SETS_MISUSE = (
    ((jnp.zeros((3, 2)), jnp.zeros((3, 3))), {}, ValueError, "b must have 2 columns"),
    ((jnp.zeros(3), jnp.zeros((3, 3))), {}, ValueError, "a must have 2 axes"),
    ((jnp.zeros((3, 2), bool), jnp.zeros((3, 2))), {}, TypeError, "a must be a floating"),
)


def distance_cases(name, oracle, options=({},), misuse=()):
    common = {
        "gradient": (0, 1),
        "singular": lambda: (COINCIDING_A, COINCIDING_B),
        "options": options,
        "traits": frozenset({"half", "nan"}),
    }
    yield Case(
        f"distances.{name}",
        getattr(distances, name),
        two_rows,
        oracle=oracles.rows(oracle),
        misuse=tuple((args, options[0] | kw, e, m) for args, kw, e, m in _ROWS_MISUSE)
        + tuple((two_rows(np.random.default_rng(0)), kw, e, m) for kw, e, m in misuse),
        **common,
    )
    yield Case(
        f"distances.{name}_matrix",
        getattr(distances, f"{name}_matrix"),
        two_sets,
        oracle=oracles.matrix(oracle),
        misuse=tuple((args, options[0] | kw, e, m) for args, kw, e, m in _SETS_MISUSE)
        + tuple((two_sets(np.random.default_rng(0)), kw, e, m) for kw, e, m in misuse),
        **common,
    )


DISTANCES = [
    *distance_cases("squared_euclidean_distance", oracles.squared_euclidean),
    *distance_cases("euclidean_distance", oracles.euclidean),
    *distance_cases("manhattan_distance", oracles.manhattan),
    *distance_cases(
        "lp_distance",
        oracles.lp,
        options=(
            {"order": 3},
            {"order": 1},
            {"order": 1.5},
            {"order": 2},
            {"order": jnp.inf},
        ),
        misuse=(({"order": 0.5}, ValueError, "order must be at least 1; got 0.5"),),
    ),
    *distance_cases("cosine_distance", oracles.cosine_distance),
    *distance_cases("cosine_similarity", oracles.cosine),
    *distance_cases("dot_similarity", oracles.dot),
    Case(
        "distances.distance_matrix",
        partial(distances.distance_matrix, distances.euclidean_distance),
        two_sets,
        oracle=oracles.matrix(oracles.euclidean),
        gradient=(0, 1),
        singular=lambda: (COINCIDING_A, COINCIDING_B),
        misuse=_SETS_MISUSE,
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "distances.normalize",
        distances.normalize,
        lambda rng: two_rows(rng)[:1],
        oracle=lambda x: np.array([[oracles.unit(row) for row in rows] for rows in x]),
        gradient=(0,),
        singular=lambda: (COINCIDING_A,),
        misuse=(((jnp.zeros(2, int),), {}, TypeError, "x must be a floating-point"),),
        traits=frozenset({"half", "nan"}),
    ),
]
