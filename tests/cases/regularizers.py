"""Rows of the contract table for penalties on embeddings and proxies."""

from functools import partial

import jax.numpy as jnp

from siamese_jax import regularizers
from tests import oracles
from tests.cases.case import Case, Contract, Inputs, Kind, Refusal, Singular, f32

ROWS = f32([[1, 2, 0], [1, 2, 0], [0, 0, 0], [0, 0, 0], [1, 0.5, 3]])
CENTERS = jnp.stack([ROWS, ROWS[::-1]], axis=1)


def arrays(rng, *, shape=(5, 3)):
    return Inputs((f32(rng.normal(size=shape)),))


def _penalty(name, *, argument="embeddings", shape=(5, 3), more=(), **row):
    zeros = jnp.zeros(shape)
    return Case(
        f"regularizers.{name}",
        getattr(regularizers, name),
        Kind.VIEW_LOSS,
        partial(arrays, shape=shape),
        oracle=getattr(oracles, name),
        singular=Singular((ROWS if len(shape) == 2 else CENTERS,), learning_rows=(4,)),
        refusals=(
            Refusal(
                f"{argument} are a vector",
                (zeros[0, 0],),
                {},
                ValueError,
                f"{argument} must have {len(shape)} axes",
            ),
            Refusal(
                f"{argument} are integers",
                (zeros.astype(int),),
                {},
                TypeError,
                "must be a floating-point",
            ),
            *(Refusal(*refusal, ValueError, words) for *refusal, words in more),
        ),
        **row,
    )


_X = jnp.zeros((1, 3))
REGULARIZERS = [
    _penalty(
        "norm_penalty",
        options=({}, {"order": 1.0}, {"order": 3.0, "power": 2.0}),
        more=(
            ("order is below 1", (_X,), {"order": 0.5}, "order must be at least 1"),
            ("power is below 1", (_X,), {"power": 0.5}, "power must be at least 1"),
        ),
    ),
    _penalty("zero_mean_penalty"),
    _penalty("equal_norm_penalty", argument="proxies"),
    _penalty(
        "nearest_class_penalty",
        argument="proxies",
        more=(("one class", (_X,), {}, "the number of proxies must be at least 2; got 1"),),
    ),
    _penalty(
        "sparse_centers_penalty",
        argument="centers",
        shape=(5, 2, 3),
        more=(
            ("one centre", (_X[:, None],), {}, "the number of centres must be at least 2"),
        ),
        exempt={Contract.TERMS: "has no terms"},
    ),
]
