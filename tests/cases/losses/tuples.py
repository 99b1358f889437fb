"""Rows of the losses of an anchor with all its positives and negatives."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from siamese_jax import losses
from tests import oracles
from tests.cases.case import Case, Contract, Kind, Reach, Singular, f32
from tests.cases.losses.inputs import (
    OF_A_NEGATIVE,
    ZEROS,
    loss_refusals,
    square,
    too_small,
)

SAME = jnp.eye(7) + jnp.eye(7, k=1) > 0
# rows of the cosines 1 and -1, and an ordinary one
EXTREME = np.where(np.arange(7)[:, None] % 2 == 0, 1.0, -1.0) * np.ones((7, 7))
EXTREME[5] = np.linspace(-0.8, 0.9, 7)


def matrix_loss(
    name, *, form, weights="anchor", mask="entries", scalars=(), more=(), **row
):
    """Singular where distances are equal, or cosines are 1 and -1."""
    numbers = "similarities" if form == "cosines" else "distances"
    matrix = EXTREME if form == "cosines" else np.ones((7, 7))
    return Case(
        f"losses.{name}",
        getattr(losses, name),
        Kind.MATRIX_LOSS,
        partial(square, form=form, weights=weights, mask=mask),
        singular=Singular((f32(matrix), SAME)),
        refusals=(
            *loss_refusals(
                numbers,
                *scalars,
                weights=weights,
                square=name in ("angular_loss", "lifted_structure_loss"),
            ),
            *more,
        ),
        nan_at=OF_A_NEGATIVE,
        **row,
    )


TUPLES = [
    matrix_loss(
        "multi_similarity_loss",
        form="cosines",
        options=({}, {"positive_scale": 1.0, "negative_scale": 5.0, "base": 0.2}),
        oracle=oracles.multi_similarity,
        scalars=("positive_scale", "negative_scale", "base"),
        reach=Reach.ROW,
        counts_without_positive="negatives are pushed all the same",
    ),
    matrix_loss(
        "circle_loss",
        form="cosines",
        options=({}, {"margin": 0.25, "scale": 8.0}),
        oracle=oracles.circle,
        scalars=("margin", "scale"),
        reach=Reach.ROW,
        exempt={Contract.GRADIENT: "its weights are constants for the gradient"},
    ),
    matrix_loss(
        "tuplet_margin_loss",
        form="cosines",
        weights="entry",
        options=({}, {"angle": 20.0, "scale": 4.0}),
        oracle=oracles.tuplet_margin,
        scalars=("angle", "scale"),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "angular_loss",
        form="cosines",
        weights="entry",
        mask="items",
        options=({}, {"angle": 20.0}, {"angle": 75.0}),  # the last by a loop
        oracle=oracles.angular,
        scalars=("angle",),
        reach=Reach.WHOLE,
    ),
    matrix_loss(
        "lifted_structure_loss",
        form="distances",
        weights="entry",
        options=({}, {"margin": 0.3}),
        oracle=oracles.lifted_structure,
        scalars=("margin",),
        reach=Reach.WHOLE,
    ),
    matrix_loss(
        "generalized_lifted_structure_loss",
        form="distances",
        options=({}, {"margin": 0.3}),
        oracle=oracles.generalized_lifted_structure,
        scalars=("margin",),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "intra_pair_variance_loss",
        form="cosines",
        weights="entry",
        options=({}, {"positive_slack": 0.3, "negative_slack": 0.2}),
        oracle=oracles.intra_pair_variance,
        scalars=("positive_slack", "negative_slack"),
        reach=Reach.WHOLE,
        counts_without_positive="negatives vary around their own mean",
    ),
    matrix_loss(
        "ranked_list_loss",
        form="unit distances",
        options=(
            {},
            {
                "margin": 0.8,
                "boundary": 1.5,
                "positive_scale": 2.0,
                "negative_scale": 3.0,
                "balance": 0.3,
            },
        ),
        oracle=oracles.ranked_list,
        scalars=("margin", "boundary", "positive_scale", "negative_scale", "balance"),
        reach=Reach.ROW,
        counts_without_positive="negatives are pushed all the same",
    ),
    matrix_loss(
        "histogram_loss",
        form="cosines",
        weights="entry",
        options=({"num_bins": 7}, {}),
        oracle=oracles.histogram,
        more=(too_small(ZEROS, "num_bins", 0),),
        reach=Reach.WHOLE,
    ),
]
