"""Rows of the losses over two views."""

import jax.numpy as jnp

from siamese_jax import losses
from tests import oracles
from tests.cases.case import Case, Contract, Inputs, Kind, Refusal, Singular, f32

# equal rows, zero rows, a constant feature, and an ordinary row
A = f32([[1, 2, 1], [1, 2, 1], [0, 0, 1], [0, 0, 1], [-1, 0.5, 1]])
B = f32([[1, 2, 1], [-1, -2, -1], [0, 0, 0], [1, 0, 1], [2, 1, 3]])
_A = jnp.ones((3, 2))


def views(rng):
    a = 0.6 * rng.normal(size=(5, 3))
    return Inputs((f32(a), f32(a + 0.4 * rng.normal(size=(5, 3)))))


def _view_loss(name, *, names=("a", "b"), scalars=(), more=(), **row):
    first, second = names
    return Case(
        f"losses.{name}",
        getattr(losses, name),
        Kind.VIEW_LOSS,
        views,
        singular=Singular((A, B), learning_rows=(4,)),
        refusals=(
            Refusal(
                "the views have other shapes",
                (_A, _A[:2]),
                {},
                ValueError,
                rf"{second} must have shape \(3, 2\)",
            ),
            Refusal(
                "the first view is of integers",
                (_A.astype(int), _A.astype(int)),
                {},
                TypeError,
                f"({first}|a) must be a floating-point",
            ),
            *(
                Refusal(
                    f"{scalar} is a vector",
                    (_A, _A),
                    {scalar: jnp.ones(3)},
                    ValueError,
                    f"{scalar} must be a scalar",
                )
                for scalar in scalars
            ),
            *more,
        ),
        **row,
    )


ONE_ROW = (
    Refusal(
        "one row does not vary",
        (_A[:1], _A[:1]),
        {},
        ValueError,
        "the number of rows must be at least 2; got 1",
    ),
)

VIEWS = [
    _view_loss(
        "nt_xent_loss",
        options=({}, {"temperature": 0.5}),
        oracle=oracles.nt_xent,
        scalars=("temperature",),
    ),
    _view_loss(
        "negative_cosine_loss",
        oracle=oracles.negative_cosine,
        names=("predictions", "targets"),
        exempt={Contract.GRADIENT: "targets are constants for the gradient"},
    ),
    _view_loss(
        "barlow_twins_loss",
        options=({}, {"redundancy_weight": 0.5}),
        oracle=oracles.barlow_twins,
        scalars=("redundancy_weight",),
        more=ONE_ROW,
    ),
    _view_loss(
        "vicreg_loss",
        options=(
            {},
            {"invariance_weight": 3.0, "variance_weight": 5.0, "covariance_weight": 7.0},
            {"epsilon": 0.25},
        ),
        oracle=oracles.vicreg,
        scalars=("invariance_weight", "variance_weight", "covariance_weight", "epsilon"),
        more=ONE_ROW,
        exempt={Contract.TERMS: "is a sum of three figures, not a mean of terms"},
    ),
]
