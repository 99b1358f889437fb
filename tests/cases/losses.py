"""Rows of the contract table for losses and miners."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import losses, miners
from tests import oracles
from tests.cases.case import (
    Case,
    Inputs,
    Kind,
    Refusal,
    Singular,
    entry_arrays,
    f32,
)


def pairs(rng):
    args = f32(rng.uniform(0, 2, size=9)), jnp.asarray(rng.random(9) < 0.5)
    return Inputs(args, entry_arrays(rng, 9))


def scores(rng):
    args = f32(rng.normal(size=9)), jnp.asarray(rng.random(9) < 0.5)
    return Inputs(args, entry_arrays(rng, 9))


def triplets(rng):
    args = f32(rng.uniform(0, 2, size=9)), f32(rng.uniform(0, 2, size=9))
    return Inputs(args, entry_arrays(rng, 9))


def square(rng):
    """Distances within a batch of unequal classes, one of which is alone."""
    labels = np.array([0, 0, 0, 1, 1, 2, 3])
    points = rng.normal(size=(7, 3))
    matrix = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    args = f32(matrix), jnp.asarray(labels[:, None] == labels[None])
    return Inputs(args, entry_arrays(rng, (7, 7)))


def square_with_anchor_weights(rng):
    args, arrays = square(rng)
    return Inputs(args, arrays | {"weights": f32(rng.uniform(0.5, 2, size=7))})


def square_with_mask(rng):
    args, arrays = square(rng)
    return Inputs(args, {"where": arrays["where"]})


# a sort would move the NaN of this negative of row 0 to the end
OF_A_NEGATIVE = (0, 4)

_D, _S = jnp.zeros(4), jnp.zeros(4, bool)
_MATRIX, _SAME = jnp.zeros((4, 4)), jnp.zeros((4, 4), bool)


def _pair_refusals(name):
    return (
        Refusal(
            "same is a column",
            (_D, _S[:, None]),
            {},
            ValueError,
            rf"same must have shape \(4,\) to match {name}",
        ),
        Refusal(
            "same is not boolean",
            (_D, _D),
            {},
            TypeError,
            "same must be a boolean array; got dtype float32",
        ),
        Refusal(
            f"{name} are boolean",
            (_S, _S),
            {},
            TypeError,
            f"{name} must be a floating-point array",
        ),
        Refusal(
            "where is too short",
            (_D, _S),
            {"where": _S[:3]},
            ValueError,
            r"where must have shape \(4,\)",
        ),
        Refusal(
            "weights are too short",
            (_D, _S),
            {"weights": _D[:3]},
            ValueError,
            r"weights must have shape \(4,\)",
        ),
        Refusal(
            "where is not boolean",
            (_D, _S),
            {"where": _D},
            TypeError,
            "where must be a boolean",
        ),
    )


def _column_refusals(*names):
    return tuple(
        Refusal(
            f"{name} is a column",
            (_D, _S),
            {name: jnp.ones((4, 1))},
            ValueError,
            rf"{name} must be a scalar; got shape \(4, 1\)",
        )
        for name in names
    )


def _matrix_refusals(name="distances"):
    return (
        Refusal(
            f"{name} are a vector",
            (_MATRIX[0], _SAME[0]),
            {},
            ValueError,
            f"{name} must have 2 axes",
        ),
        Refusal(
            "same has fewer rows",
            (_MATRIX, _SAME[:3]),
            {},
            ValueError,
            r"same must have shape \(4, 4\)",
        ),
        Refusal(
            f"{name} are boolean",
            (_SAME, _SAME),
            {},
            TypeError,
            f"{name} must be a floating-point",
        ),
        Refusal(
            "same is not boolean",
            (_MATRIX, _MATRIX),
            {},
            TypeError,
            "same must be a boolean",
        ),
        Refusal(
            "where is a vector",
            (_MATRIX, _SAME),
            {"where": _SAME[0]},
            ValueError,
            r"where must have shape \(4, 4\)",
        ),
    )


def _loss_refusals(name, scalar):
    return (
        *_matrix_refusals(name),
        Refusal(
            "weights are too short",
            (_MATRIX, _SAME),
            {"weights": jnp.ones(3)},
            ValueError,
            "weights must have shape",
        ),
        Refusal(
            f"{scalar} is a vector",
            (_MATRIX, _SAME),
            {scalar: jnp.ones(4)},
            ValueError,
            f"{scalar} must be a scalar",
        ),
    )


PAIR_LOSSES = [
    Case(
        "losses.contrastive_loss",
        losses.contrastive_loss,
        Kind.PAIR_LOSS,
        pairs,
        options=(
            {},
            {"margin": 0.7, "factor": 1.0},
            {"margin": 1.5, "positive_margin": 0.4},
        ),
        oracle=oracles.contrastive,
        singular=Singular(
            (f32([0.0, 0.0, 1.0, 0.3]), jnp.array([True, False, False, True]))
        ),
        refusals=_pair_refusals("distances")
        + _column_refusals("margin", "positive_margin", "factor"),
    ),
    Case(
        "losses.logistic_loss",
        losses.logistic_loss,
        Kind.PAIR_LOSS,
        scores,
        oracle=oracles.logistic,
        singular=Singular(
            (f32([0.0, 1e4, -1e4, 1e4]), jnp.array([True, False, True, True]))
        ),
        refusals=_pair_refusals("similarities"),
    ),
    Case(
        "losses.triplet_loss",
        losses.triplet_loss,
        Kind.TRIPLET_LOSS,
        triplets,
        options=({}, {"margin": 0.2}),
        oracle=oracles.triplet,
        singular=Singular((f32([0.0, 0.0, 1.0]), f32([0.0, 1.0, 1.5]))),
        refusals=(
            Refusal(
                "negatives are a column",
                (jnp.zeros(3), jnp.zeros((3, 1))),
                {},
                ValueError,
                "negative_distances must have",
            ),
            Refusal(
                "positives are integers",
                (jnp.zeros(3, int), jnp.zeros(3)),
                {},
                TypeError,
                "positive_distances must be",
            ),
            Refusal(
                "negatives are integers",
                (jnp.zeros(3), jnp.zeros(3, int)),
                {},
                TypeError,
                "negative_distances must be",
            ),
        ),
    ),
]


def _matrix_loss(name, *, numbers="distances", scalar="margin", scale=1.0, **row):
    """All distances equal, of which some rows have a positive and some have none."""
    same = jnp.eye(4) + jnp.eye(4, k=1) > 0 if numbers == "distances" else jnp.eye(4) > 0
    return Case(
        f"losses.{name}",
        getattr(losses, name),
        Kind.MATRIX_LOSS,
        singular=Singular((f32(np.ones((4, 4)) * scale), same)),
        refusals=_loss_refusals(numbers, scalar),
        nan_at=OF_A_NEGATIVE,
        **row,
    )


MATRIX_LOSSES = [
    _matrix_loss(
        "hard_triplet_loss",
        inputs=square_with_anchor_weights,
        options=({}, {"margin": 0.2}),
        oracle=oracles.hard_triplet,
    ),
    _matrix_loss(
        "semi_hard_triplet_loss",
        inputs=square,
        options=({}, {"margin": 0.2}),
        oracle=oracles.semi_hard_triplet,
    ),
    _matrix_loss(
        "all_triplets_loss",
        inputs=square_with_anchor_weights,
        options=({}, {"margin": 0.2}, {"margin": 0.3, "active_only": True}),
        oracle=oracles.all_triplets,
    ),
    _matrix_loss(
        "supervised_contrastive_loss",
        numbers="similarities",
        scalar="temperature",
        scale=1e4,
        inputs=square_with_anchor_weights,
        options=({"temperature": 0.5}, {}),
        oracle=oracles.supervised_contrastive,
    ),
]

LOSSES = [*PAIR_LOSSES, *MATRIX_LOSSES]

MINERS = [
    Case(
        f"miners.{fn.__name__}",
        fn,
        Kind.MINER,
        square_with_mask,
        oracle=oracle,
        refusals=_matrix_refusals(),
        nan_at=OF_A_NEGATIVE,
    )
    for fn, oracle in (
        (miners.hard_negatives, oracles.hard_negatives),
        (miners.semi_hard_negatives, oracles.semi_hard_negatives),
    )
]
