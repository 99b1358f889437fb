"""Rows of the losses over pairs."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import losses
from tests import oracles
from tests.cases.case import Case, Inputs, Kind, Singular, entry_arrays, f32
from tests.cases.losses.inputs import NUM_PAIRS, cosine_pairs, pair_refusals, pairs

OWN_MARGINS = f32(np.linspace(0.3, 1.4, NUM_PAIRS))


def scores(rng):
    numbers = f32(2 * rng.normal(size=NUM_PAIRS))
    same = jnp.asarray(rng.random(NUM_PAIRS) < 0.5)
    return Inputs((numbers, same), entry_arrays(rng, NUM_PAIRS))


def _pair_loss(name, *singular, scalars=(), margins=(), numbers="similarities", **row):
    """Some same pairs and some different ones at each of the singular numbers."""
    same = jnp.asarray(np.arange(NUM_PAIRS) % 3 == 0)
    return Case(
        f"losses.{name}",
        getattr(losses, name),
        Kind.PAIR_LOSS,
        singular=Singular((f32(np.resize(singular, NUM_PAIRS)), same)),
        refusals=pair_refusals(numbers, *scalars, margins=margins),
        **row,
    )


PAIRS = [
    _pair_loss(
        "contrastive_loss",
        *(0.0, 1.0, 0.7, 1.5),
        inputs=pairs,
        options=(
            {},
            {"margin": 1.5, "positive_margin": 0.4},
            {"margin": 0.7, "factor": 1.0, "squared": False},
            {"margin": 1.3, "positive_margin": 0.2, "apart": True},
            {"margin": OWN_MARGINS, "positive_margin": OWN_MARGINS / 2},
        ),
        oracle=oracles.contrastive,
        numbers="distances",
        scalars=("factor",),
        margins=("margin", "positive_margin"),
    ),
    _pair_loss(
        "logistic_loss",
        *(0.0, 1e4, -1e4),
        inputs=scores,
        oracle=oracles.logistic,
    ),
    _pair_loss(
        "cosine_embedding_loss",
        *(0.0, 1.0, -1.0, 0.3),
        inputs=cosine_pairs,
        options=({}, {"margin": 0.3}, {"margin": OWN_MARGINS / 2}),
        oracle=oracles.cosine_embedding,
        margins=("margin",),
    ),
    _pair_loss(
        "margin_loss",
        *(0.0, 1.0, 1.4, 1.2),
        inputs=pairs,
        options=(
            {},
            {"boundary": 0.9, "margin": 0.4},
            {"boundary": OWN_MARGINS, "margin": OWN_MARGINS / 3},
        ),
        oracle=oracles.margin_loss,
        numbers="distances",
        margins=("boundary", "margin"),
    ),
    _pair_loss(
        "threshold_consistent_margin_loss",
        *(0.9, 0.5, 1.0, -1.0),
        inputs=cosine_pairs,
        options=(
            {},
            {"positive_margin": 0.3, "negative_margin": -0.2},
            {"positive_margin": OWN_MARGINS / 2, "negative_margin": OWN_MARGINS / 3},
        ),
        oracle=oracles.threshold_consistent_margin,
        margins=("positive_margin", "negative_margin"),
    ),
]
