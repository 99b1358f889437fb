"""Rows of the contract table for distances."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from siamese_jax import distances
from tests import oracles
from tests.cases.case import Case, Contract, Inputs, Kind, Refusal, Singular, f32


def two_rows(rng):
    return Inputs((f32(rng.normal(size=(3, 5, 4))), f32(rng.normal(size=(3, 5, 4)))))


def two_sets(rng):
    return Inputs((f32(rng.normal(size=(6, 4))), f32(rng.normal(size=(5, 4)))))


# ordinary, coinciding, zero, both zero, differing in one coordinate only
COINCIDING_A = f32([[1.0, -2.0], [3.0, -1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
COINCIDING_B = f32([[0.5, 1.0], [3.0, -1.0], [1.0, 2.0], [0.0, 0.0], [1.0, 4.0]])
COINCIDING = Singular((COINCIDING_A, COINCIDING_B), learning_rows=(0, -1))

# vectors that differ by a constant, and others
SIGNALS = f32([[1, -2, 3], [2, -1, 4], [2, -1, 4], [1, 0, 1]])

_ROWS = jnp.zeros((3, 2))
_ROW_REFUSALS = (
    Refusal(
        "b has another shape",
        (_ROWS, jnp.zeros((3, 1, 2))),
        {},
        ValueError,
        r"b must have shape \(3, 2\)",
    ),
    Refusal(
        "a holds integers",
        (jnp.zeros((3, 2), int), _ROWS),
        {},
        TypeError,
        "a must be a floating-point",
    ),
    Refusal("a is a list", ([1.0], jnp.zeros(1)), {}, TypeError, "got list"),
)
_MATRIX_REFUSALS = (
    Refusal(
        "b has another dim",
        (_ROWS, jnp.zeros((3, 3))),
        {},
        ValueError,
        "b must have 2 columns",
    ),
    Refusal(
        "a is one vector",
        (jnp.zeros(3), jnp.zeros((3, 3))),
        {},
        ValueError,
        "a must have 2 axes",
    ),
    Refusal(
        "a is boolean",
        (jnp.zeros((3, 2), bool), _ROWS),
        {},
        TypeError,
        "a must be a floating",
    ),
)


def both_forms(name, oracle, *, refused_options=(), bound=(), scale=1.0, **common):
    """The row form and the matrix form of a distance.

    Args:
      name: Name of the row form.
      oracle: The distance of two vectors.
      refused_options: Of each its name, the options, and the words of the error.
      bound: Arguments after the two vectors.
      scale: Multiplies the vectors.
      **common: Fields of both rows.
    """

    def inputs_of(draw, rng):
        a, b = (scale * x for x in draw(rng).args)
        return Inputs((a, b))

    for suffix, kind, draw, form, refusals in (
        ("", Kind.ROW_DISTANCE, two_rows, oracles.rows, _ROW_REFUSALS),
        ("_matrix", Kind.MATRIX_DISTANCE, two_sets, oracles.matrix, _MATRIX_REFUSALS),
    ):
        fn = getattr(distances, name + suffix)
        args = draw(np.random.default_rng(0)).args
        wrong = (
            Refusal(n, args, kw, ValueError, words) for n, kw, words in refused_options
        )
        yield Case(
            f"distances.{name}{suffix}",
            (lambda a, b, fn=fn: fn(a, b, *bound)) if bound else fn,
            kind,
            partial(inputs_of, draw),
            oracle=form(oracle),
            **{
                "singular": COINCIDING,
                "refusals": (*refusals, *wrong),
                **common,
            },
        )


FACTOR = f32([[1.0, 0.5, -1.0, 0.0], [0.0, 2.0, 0.3, 1.0]])
_FOUR = jnp.zeros((3, 4))

DISTANCES = [
    *both_forms("squared_euclidean_distance", oracles.squared_euclidean),
    *both_forms("euclidean_distance", oracles.euclidean),
    *both_forms("manhattan_distance", oracles.manhattan),
    *both_forms(
        "lp_distance",
        oracles.lp,
        options=(
            {"order": 3},
            {"order": 1},
            {"order": 1.5},
            {"order": 2},
            {"order": jnp.inf},
        ),
        large_options=({"order": 40},),
        refused_options=(
            ("order is below 1", {"order": 0.5}, "order must be at least 1; got 0.5"),
        ),
    ),
    *both_forms("cosine_distance", oracles.cosine_distance),
    *both_forms("cosine_similarity", oracles.cosine),
    *both_forms("dot_similarity", oracles.dot),
    *both_forms("angular_distance", oracles.angle),
    *both_forms(
        "mahalanobis_distance",
        partial(oracles.mahalanobis, factor=FACTOR),
        bound=(FACTOR,),
        singular=Singular((jnp.tile(COINCIDING_A, 2), jnp.tile(COINCIDING_B, 2)), (0, -1)),
        refusals=(
            Refusal(
                "as many columns as the factor are wanted",
                (_ROWS, _ROWS),
                {},
                ValueError,
                "factor must have 2 columns, one for each dimension of a; got shape .2, 4.",
            ),
            Refusal(
                "b holds integers",
                (_FOUR, _FOUR.astype(int)),
                {},
                TypeError,
                "b must be a floating-point",
            ),
        ),
    ),
    *both_forms(
        "poincare_distance",
        oracles.poincare,
        scale=0.2,
        singular=Singular((COINCIDING_A / 5, COINCIDING_B / 5), (0, -1)),
        exempt={Contract.HALF: "large vectors are outside of the ball"},
    ),
    *both_forms(
        "signal_to_noise_distance",
        oracles.signal_to_noise,
        singular=Singular((SIGNALS, SIGNALS[::-1]), (0, 3)),
    ),
    Case(
        "distances.distance_matrix",
        partial(distances.distance_matrix, distances.euclidean_distance),
        Kind.MATRIX_DISTANCE,
        two_sets,
        oracle=oracles.matrix(oracles.euclidean),
        singular=COINCIDING,
        refusals=_MATRIX_REFUSALS,
    ),
    Case(
        "distances.normalize",
        distances.normalize,
        Kind.ROW_DISTANCE,
        lambda rng: Inputs(two_rows(rng).args[:1]),
        keeps_dtype=True,
        oracle=lambda x: np.array([[oracles.unit(row) for row in rows] for rows in x]),
        singular=Singular((COINCIDING_A,), learning_rows=(0, -1)),
        refusals=(
            Refusal(
                "x holds integers",
                (jnp.zeros(2, int),),
                {},
                TypeError,
                "x must be a floating-point",
            ),
        ),
    ),
]
