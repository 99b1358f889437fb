"""Rows of the table: losses and miners."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import (
    losses,
    miners,
)
from tests import oracles
from tests.cases.case import Case, f32


def pairs(rng):
    return f32(rng.uniform(0, 2, size=9)), jnp.asarray(rng.random(9) < 0.5)


def triplets(rng):
    return f32(rng.uniform(0, 2, size=9)), f32(rng.uniform(0, 2, size=9))


def square(rng):
    """Distances within a batch of unequal classes, one of which is alone."""
    labels = np.array([0, 0, 0, 1, 1, 2, 3])
    points = rng.normal(size=(7, 3))
    matrix = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    return f32(matrix), jnp.asarray(labels[:, None] == labels[None])


def entry_arrays(rng, args):
    shape = args[0].shape
    return {
        "where": jnp.asarray(rng.random(shape) < 0.7),
        "weights": f32(rng.uniform(0.5, 2, size=shape)),
    }


def anchor_arrays(rng, args):
    arrays = entry_arrays(rng, args)
    return arrays | {"weights": f32(rng.uniform(0.5, 2, size=len(args[0])))}


def _pairs_misuse(name):
    d, same = jnp.zeros(4), jnp.zeros(4, bool)
    return (
        (
            (d, same[:, None]),
            {},
            ValueError,
            rf"same must have shape \(4,\) to match {name}",
        ),
        ((d, d), {}, TypeError, "same must be a boolean array; got dtype float32"),
        ((same, same), {}, TypeError, f"{name} must be a floating-point array"),
        ((d, same), {"where": same[:3]}, ValueError, r"where must have shape \(4,\)"),
        ((d, same), {"weights": d[:3]}, ValueError, r"weights must have shape \(4,\)"),
        ((d, same), {"where": d}, TypeError, "where must be a boolean"),
    )


def _not_scalar(*names):
    d, same = jnp.zeros(4), jnp.zeros(4, bool)
    column = jnp.ones((4, 1))
    return tuple(
        (
            (d, same),
            {name: column},
            ValueError,
            rf"{name} must be a scalar; got shape \(4, 1\)",
        )
        for name in names
    )


def _matrix_misuse(name="distances"):
    d, same = jnp.zeros((4, 4)), jnp.zeros((4, 4), bool)
    return (
        ((d[0], same[0]), {}, ValueError, f"{name} must have 2 axes"),
        ((d, same[:3]), {}, ValueError, r"same must have shape \(4, 4\)"),
        ((same, same), {}, TypeError, f"{name} must be a floating-point"),
        ((d, d), {}, TypeError, "same must be a boolean"),
        ((d, same), {"where": same[0]}, ValueError, r"where must have shape \(4, 4\)"),
    )


def _loss_misuse(name):
    d, same = jnp.zeros((4, 4)), jnp.zeros((4, 4), bool)
    scalar = "temperature" if name == "similarities" else "margin"
    return (
        *_matrix_misuse(name),
        ((d, same), {"weights": jnp.ones(3)}, ValueError, "weights must have shape"),
        ((d, same), {scalar: jnp.ones(4)}, ValueError, f"{scalar} must be a scalar"),
    )


LOSS = frozenset({"loss", "half", "nan"})
ROWS = frozenset({"loss", "matrix", "half", "nan"})

LOSSES = [
    Case(
        "losses.contrastive_loss",
        losses.contrastive_loss,
        pairs,
        options=(
            {},
            {"margin": 0.7, "factor": 1.0},
            {"margin": 1.5, "positive_margin": 0.4},
        ),
        arrays=entry_arrays,
        oracle=oracles.contrastive,
        gradient=(0,),
        singular=lambda: (f32([0.0, 0.0, 1.0, 0.3]), jnp.array([True, False, False, True])),
        misuse=_pairs_misuse("distances")
        + _not_scalar("margin", "positive_margin", "factor"),
        traits=LOSS,
    ),
    Case(
        "losses.logistic_loss",
        losses.logistic_loss,
        lambda rng: (f32(rng.normal(size=9)), jnp.asarray(rng.random(9) < 0.5)),
        arrays=entry_arrays,
        oracle=oracles.logistic,
        gradient=(0,),
        singular=lambda: (f32([0.0, 1e4, -1e4, 1e4]), jnp.array([True, False, True, True])),
        misuse=_pairs_misuse("similarities"),
        traits=LOSS,
    ),
    Case(
        "losses.triplet_loss",
        losses.triplet_loss,
        triplets,
        options=({}, {"margin": 0.2}),
        arrays=entry_arrays,
        oracle=oracles.triplet,
        gradient=(0, 1),
        singular=lambda: (f32([0.0, 0.0, 1.0]), f32([0.0, 1.0, 1.5])),
        misuse=(
            (
                (jnp.zeros(3), jnp.zeros((3, 1))),
                {},
                ValueError,
                "negative_distances must have",
            ),
            (
                (jnp.zeros(3, int), jnp.zeros(3)),
                {},
                TypeError,
                "positive_distances must be",
            ),
            (
                (jnp.zeros(3), jnp.zeros(3, int)),
                {},
                TypeError,
                "negative_distances must be",
            ),
        ),
        traits=frozenset({"half", "nan"}),
    ),
    *(
        Case(
            f"losses.{name}",
            getattr(losses, name),
            square,
            options=options,
            arrays=arrays,
            oracle=oracle,
            gradient=(0,),
            singular=lambda: (f32(np.ones((4, 4))), jnp.eye(4) + jnp.eye(4, k=1) > 0),
            misuse=_loss_misuse("distances"),
            traits=ROWS,
        )
        for name, options, arrays, oracle in (
            (
                "hard_triplet_loss",
                ({}, {"margin": 0.2}),
                anchor_arrays,
                oracles.hard_triplet,
            ),
            (
                "semi_hard_triplet_loss",
                ({}, {"margin": 0.2}),
                entry_arrays,
                oracles.semi_hard_triplet,
            ),
            (
                "all_triplets_loss",
                ({}, {"margin": 0.2}, {"margin": 0.3, "active_only": True}),
                anchor_arrays,
                oracles.all_triplets,
            ),
        )
    ),
    Case(
        "losses.supervised_contrastive_loss",
        losses.supervised_contrastive_loss,
        square,
        options=({"temperature": 0.5}, {}),
        arrays=anchor_arrays,
        oracle=oracles.supervised_contrastive,
        gradient=(0,),
        singular=lambda: (f32(np.ones((4, 4)) * 1e4), jnp.eye(4) > 0),
        misuse=_loss_misuse("similarities"),
        traits=ROWS,
    ),
]

MINERS = [
    *(
        Case(
            f"miners.{fn.__name__}",
            fn,
            square,
            arrays=lambda rng, args: {"where": entry_arrays(rng, args)["where"]},
            oracle=oracle,
            gradient=(0,),
            misuse=_matrix_misuse(),
            traits=frozenset({"nan"}),
        )
        for fn, oracle in (
            (miners.hard_negatives, oracles.hard_negatives),
            (miners.semi_hard_negatives, oracles.semi_hard_negatives),
        )
    ),
    Case(
        "miners.sides",
        miners.sides,
        square,
        arrays=lambda rng, args: {"where": entry_arrays(rng, args)["where"]},
        oracle=oracles.sides,
        misuse=_matrix_misuse(),
    ),
    Case(
        "miners.row_has_nan",
        miners.row_has_nan,
        lambda rng: (
            f32(np.where(rng.random((5, 4)) < 0.3, np.nan, 1.0)),
            jnp.asarray(rng.random((5, 4)) < 0.5),
        ),
        oracle=oracles.row_has_nan,
    ),
]
