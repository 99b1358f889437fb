"""Data sets as NumPy arrays, and the random keys of everything that is drawn for a test.

Whatever a system is tested on must be the same for every seed of its training. Such draws
take their randomness from `evaluation_key` or `evaluation_rng`, never from the seed of the
run.
"""

import zlib

import jax
import numpy as np

TEST_SEED = 20


def evaluation_key(purpose: str) -> jax.Array:
    """Returns the JAX key of a test draw.

    The key is fold_in(key(20), crc32(purpose)). Draws for the same purpose are equal, draws
    for different purposes are independent.
    """
    return jax.random.fold_in(jax.random.key(TEST_SEED), zlib.crc32(purpose.encode()))


def evaluation_rng(purpose: str) -> np.random.Generator:
    """Returns the NumPy generator of a test draw; see `evaluation_key`."""
    return np.random.default_rng([TEST_SEED, zlib.crc32(purpose.encode())])
