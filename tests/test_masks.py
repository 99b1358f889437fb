"""Tests of the masks that miners and losses share, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config
from siamese_jax._masks import row_has_nan, sides

from tests import oracles


@pytest.mark.parametrize("masked", [False, True])
def test_positives_and_negatives_are_the_valid_entries(masked):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    same = jnp.asarray(rng.random((6, 5)) < 0.4)
    where = jnp.asarray(rng.random((6, 5)) < 0.6) if masked else None
    found = jax.jit(sides)(matrix, same, where)
    wanted = oracles.sides(matrix, same, where=where)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((jnp.ones(3), jnp.ones(3, bool)), ValueError, "scores must have 2 axes"),
        ((jnp.ones((2, 2), int), jnp.ones((2, 2), bool)), TypeError, "scores must be a fl"),
        ((jnp.ones((2, 2)), jnp.ones((2, 2))), TypeError, "same must be a boolean"),
        ((jnp.ones((2, 2)), jnp.ones((2, 3), bool)), ValueError, "same must have shape"),
    ],
)
def test_bad_matrices_are_refused_by_name(args, error, words, monkeypatch):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # as for a user
    with pytest.raises(error, match=words):
        sides(*args, None, name="scores")


def test_a_nan_counts_only_where_it_is_valid():
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(np.where(rng.random((9, 4)) < 0.3, np.nan, 1.0), jnp.float32)
    where = jnp.asarray(rng.random((9, 4)) < 0.5)
    found = row_has_nan(matrix, where)
    np.testing.assert_array_equal(found, oracles.row_has_nan(matrix, where))
    assert 0 < found.sum() < len(found)
