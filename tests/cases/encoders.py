"""Rows of the contract table for functions of the encoders."""

import math

import jax.numpy as jnp
import numpy as np

from siamese_jax import encoders
from tests.cases.case import Case, Contract, Inputs, Kind, Refusal, f32


def _gaussian(size, num, i, deviation):
    """Weights of all places for the i-th of `num` evenly spaced ones; their sum is 1."""
    middle = (i + 0.5) * size / num - 0.5
    weights = [math.exp(-0.5 * ((x - middle) / deviation) ** 2) for x in range(size)]
    return [w / math.fsum(weights) for w in weights]


def _smooth(picture, size, down, across):
    height, width = picture.shape
    out = np.zeros(size)
    for i, j in np.ndindex(size):
        rows = _gaussian(height, size[0], i, down)
        columns = _gaussian(width, size[1], j, across)
        out[i, j] = math.fsum(
            rows[y] * columns[x] * picture[y, x] for y, x in np.ndindex(picture.shape)
        )
    return out


def _slope(picture, y, x, dy, dx):
    """Difference between the neighbours on both sides, over their distance."""
    height, width = picture.shape
    ahead = min(y + dy, height - 1), min(x + dx, width - 1)
    behind = max(y - dy, 0), max(x - dx, 0)
    distance = ahead[0] - behind[0] + ahead[1] - behind[1]
    return (picture[ahead] - picture[behind]) / distance


def _oriented_gradients(images, cells, num_directions):
    features = []
    for image in np.asarray(images, np.float64):
        gray = _smooth(image.mean(axis=-1), image.shape[:2], 0.5, 0.5)
        spread = [size / num / 2 for size, num in zip(gray.shape, cells, strict=True)]
        in_cells = []
        for k in range(num_directions):
            angle = 2 * math.pi * k / num_directions
            strength = np.zeros(gray.shape)
            for y, x in np.ndindex(gray.shape):
                along = math.sin(angle) * _slope(gray, y, x, 1, 0)
                along += math.cos(angle) * _slope(gray, y, x, 0, 1)
                strength[y, x] = max(0.0, along)
            in_cells.append(_smooth(strength, cells, *spread))
        energy = _smooth(sum(cell**2 for cell in in_cells), cells, 1.0, 1.0)
        features.append(np.stack(in_cells, -1) / np.sqrt(energy + 1e-4)[..., None])
    return np.stack(features).reshape(len(features), -1)


ENCODERS = [
    Case(
        "encoders.oriented_gradients",
        encoders.oriented_gradients,
        Kind.MAP,
        lambda rng: Inputs((f32(rng.random((2, 8, 7, 2))),)),
        options=({"cells": (3, 2), "num_directions": 4},),
        oracle=_oriented_gradients,
        refusals=(
            Refusal(
                "images without channels",
                (jnp.zeros((2, 8, 7)),),
                {},
                ValueError,
                r"needs images \[n, height, width, channels\]; got shape \(2, 8, 7\)",
            ),
            Refusal(
                "fewer columns than cells",
                (jnp.zeros((2, 3, 1, 1)),),
                {},
                ValueError,
                "oriented_gradients needs images of at least 3 x 2; got 3 x 1",
            ),
            Refusal(
                "no directions",
                (jnp.zeros((2, 8, 7, 1)),),
                {"num_directions": 0},
                ValueError,
                "num_directions must be at least 1; got 0",
            ),
            Refusal(
                "no rows of cells",
                (jnp.zeros((2, 8, 7, 1)),),
                {"cells": (0, 2)},
                ValueError,
                r"cells must be rows and columns of at least 1; got \(0, 2\)",
            ),
            Refusal(
                "images are integers",
                (jnp.zeros((2, 8, 7, 1), jnp.uint8),),
                {},
                TypeError,
                "images must be a floating-point",
            ),
        ),
        exempt={Contract.HALF: "features are float32 whatever the images"},
    ),
]
