"""Rows of the contract table for convolution and pooling."""

import jax.numpy as jnp

from siamese_jax import convolution
from tests import oracles
from tests.cases.case import Case, Inputs, Kind, Refusal, f32


def images(rng):
    return f32(rng.random((3, 6, 5, 2)))


_IMAGE = jnp.zeros((1, 4, 4, 1))

CONVOLUTION = [
    Case(
        "convolution.convolution",
        convolution.convolution,
        Kind.MAP,
        lambda rng: Inputs((images(rng), f32(rng.normal(size=(3, 2, 2, 4))))),
        options=(
            {"window_strides": (1, 1), "padding": ((0, 0), (0, 0))},
            {"window_strides": (2, 1), "padding": ((1, 2), (0, 1))},
        ),
        oracle=lambda x, kernel, window_strides, padding: oracles.convolution(
            x, kernel, window_strides, padding
        ),
        refusals=(
            Refusal(
                "a stride of 0",
                (_IMAGE, jnp.zeros((2, 2, 1, 1))),
                {"window_strides": (0, 1)},
                ValueError,
                "window_strides must be at least 1; got 0",
            ),
            Refusal(
                "a dilation of 0",
                (_IMAGE, jnp.zeros((2, 2, 1, 1))),
                {"rhs_dilation": (1, 0)},
                ValueError,
                "rhs_dilation must be at least 1; got 0",
            ),
            Refusal(
                "a kernel of two channels",
                (_IMAGE, jnp.zeros((2, 2, 2, 1))),
                {},
                ValueError,
                "feature dimension",
            ),
        ),
    ),
    Case(
        "convolution.max_pool",
        convolution.max_pool,
        Kind.MAP,
        lambda rng: Inputs((images(rng),)),
        options=({"window": 2},),
        oracle=oracles.max_pool,
        refusals=(
            Refusal(
                "a window above the image",
                (_IMAGE,),
                {"window": 5},
                ValueError,
                "window must be from 1 to 4, .*; got 5",
            ),
            Refusal(
                "a window of 0",
                (_IMAGE,),
                {"window": 0},
                ValueError,
                "window must be from 1 to 4, .*; got 0",
            ),
        ),
    ),
]
