"""Rows of the losses over triplets and quadruplets."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from siamese_jax import losses
from tests import oracles
from tests.cases.case import (
    Case,
    Contract,
    Inputs,
    Kind,
    Reach,
    Refusal,
    Singular,
    entry_arrays,
    f32,
)
from tests.cases.losses.inputs import (
    OF_A_NEGATIVE,
    loss_refusals,
    margin_refusals,
    square,
)

THREE, FOUR_ZEROS = jnp.zeros(3), jnp.zeros(4)
OWN_MARGINS = f32(np.linspace(0.1, 1.5, 9))
ANCHOR_MARGINS = f32(np.linspace(0.1, 1.5, 7))
EQUAL = (f32(np.ones((7, 7))), jnp.eye(7) + jnp.eye(7, k=1) > 0)


def tuples(rng, *, num):
    args = tuple(f32(rng.uniform(0, 2, size=9)) for _ in range(num))
    return Inputs(args, entry_arrays(rng, 9))


def _given(name, *, num, options, margins, **row):
    """A loss of given distances, in the order in which it names them."""
    names = ("positive_distances", "negative_distances", "other_distances")[:num]
    points = f32(np.resize([0.0, 0.0, 1.0, 0.5], 9)), f32(np.resize([0.0, 1.0, 1.5], 9))
    types = (
        Refusal(
            f"{name_of} are integers",
            tuple(THREE.astype(int) if k == place else THREE for k in range(num)),
            {},
            TypeError,
            f"{name_of} must be a floating-point",
        )
        for place, name_of in enumerate(names)
    )
    shapes = (
        Refusal(
            f"{name_of} are a column",
            tuple(THREE[:, None] if k == place else THREE for k in range(num)),
            {},
            ValueError,
            rf"{name_of if place == 1 else 'negative_distances'} must have shape|"
            r"positive_distances|other_distances|to match",
        )
        for place, name_of in enumerate(names)
        if place == 1
    )
    return Case(
        f"losses.{name}",
        getattr(losses, name),
        Kind.TRIPLET_LOSS,
        partial(tuples, num=num),
        options=options,
        singular=Singular((*points, points[0])[:num]),
        refusals=(*types, *shapes, *margin_refusals((FOUR_ZEROS,) * num, margins)),
        **row,
    )


def _of_matrix(name, *, weights, mask="entries", **row):
    """All distances equal, of which some rows have a positive and some have none."""
    return Case(
        f"losses.{name}",
        getattr(losses, name),
        Kind.MATRIX_LOSS,
        partial(square, weights=weights, mask=mask),
        singular=Singular(EQUAL),
        refusals=loss_refusals("distances", weights=weights, margins=("margin",)),
        nan_at=OF_A_NEGATIVE,
        reach=Reach.ROW,
        **row,
    )


def _dynamic_inputs(rng):
    distances = (f32(rng.uniform(0, 2, size=9)) for _ in range(2))
    return Inputs((*distances, f32(rng.uniform(size=5))), entry_arrays(rng, 9))


TRIPLETS = [
    _given(
        "triplet_loss",
        num=2,
        options=(
            {},
            {"margin": 0.2},
            {"margin": OWN_MARGINS, "swapped_distances": OWN_MARGINS[::-1]},
            {"margin": 0.1, "soft": True},
        ),
        margins=("margin",),
        oracle=oracles.triplet,
    ),
    _given(
        "quadruplet_loss",
        num=3,
        options=(
            {},
            {"margin": 0.3, "other_margin": 0.1},
            {"margin": OWN_MARGINS, "other_margin": OWN_MARGINS / 2},
        ),
        margins=("margin",),
        oracle=oracles.quadruplet,
    ),
    _of_matrix(
        "hard_triplet_loss",
        weights="anchor",
        options=(
            {},
            {"margin": 0.2},
            {"margin": 0.1, "soft": True},
            {"margin": ANCHOR_MARGINS},
        ),
        oracle=oracles.hard_triplet,
    ),
    _of_matrix(
        "semi_hard_triplet_loss",
        weights="entry",
        options=(
            {},
            {"margin": 0.2},
            {"margin": 0.1, "soft": True},
            {"margin": ANCHOR_MARGINS[:, None]},
        ),
        oracle=oracles.semi_hard_triplet,
    ),
    _of_matrix(
        "all_triplets_loss",
        weights="anchor",
        mask="items",
        options=(
            {},
            {"margin": 0.2},
            {"margin": 0.3, "active_only": True},
            {"margin": 0.0, "soft": True},
            {"margin": 0.4, "swap": True},
            {"margin": 0.4, "swap": True, "active_only": True},
            {"margin": ANCHOR_MARGINS[:, None]},
            {"margin": f32(np.linspace(-0.5, 1, 49).reshape(7, 7)), "soft": True},
        ),
        whole_with="swap",
        oracle=oracles.all_triplets,
    ),
    Case(
        "losses.dynamic_soft_margin_loss",
        losses.dynamic_soft_margin_loss,
        Kind.MAP,
        _dynamic_inputs,
        options=({}, {"momentum": 0.3, "lowest": -1.0}),
        oracle=oracles.dynamic_soft_margin,
        keeps_dtype=False,
        refusals=(
            Refusal(
                "the histogram is a matrix",
                (THREE, THREE, jnp.zeros((2, 2))),
                {},
                ValueError,
                "histogram must have 1 axis",
            ),
            Refusal(
                "the histogram has one bin",
                (THREE, THREE, jnp.zeros(1)),
                {},
                ValueError,
                "the number of bins must be at least 2; got 1",
            ),
            Refusal(
                "the negatives are a column",
                (THREE, THREE[:, None], FOUR_ZEROS),
                {},
                ValueError,
                r"negative_distances must have shape \(3,\)",
            ),
            Refusal(
                "the positives are integers",
                (THREE.astype(int), THREE, FOUR_ZEROS),
                {},
                TypeError,
                "positive_distances must be a floating",
            ),
        ),
        exempt={Contract.GRADIENT: "the ranks are constants for the gradient"},
    ),
]
