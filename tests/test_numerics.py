"""Tests of the numerical functions that several modules share."""

import jax.numpy as jnp
import numpy as np

from siamese_jax._numerics import row_has_nan
from tests import oracles


def test_a_nan_counts_only_where_it_is_valid():
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(np.where(rng.random((9, 4)) < 0.3, np.nan, 1.0), jnp.float32)
    where = jnp.asarray(rng.random((9, 4)) < 0.5)
    found = row_has_nan(matrix, where)
    np.testing.assert_array_equal(found, oracles.row_has_nan(matrix, where))
    assert 0 < found.sum() < len(found)
