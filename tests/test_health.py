"""Tests of the health of embeddings at its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import health
from siamese_jax.reductions import make_terms

PAIRS = ~jnp.eye(8, dtype=bool)
SAME = jnp.arange(8)[:, None] // 4 == jnp.arange(8)[None, :] // 4
health_of = jax.jit(lambda x: health.embedding_health(x, SAME, PAIRS))


def test_collapse_is_named():
    rng = np.random.default_rng(0)
    point = jnp.ones((8, 5)) + 1e-4 * rng.normal(size=(8, 5))
    line = jnp.asarray(np.outer(rng.normal(size=8), np.ones(5)), jnp.float32)
    spread = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    assert "collapsed to a point" in health.warning(health_of(point))
    assert "collapsed to a line" in health.warning(health_of(line))
    assert health.warning(health_of(spread)) is None
    assert "not finite" in health.warning(health_of(spread.at[0, 0].set(jnp.nan)))


def test_all_zero_embeddings_have_figures():
    found = health_of(jnp.zeros((8, 5)))
    assert tuple(map(float, found)) == (0, 0, 0, 0)


def test_equal_embeddings_have_no_rank_and_no_spread():
    found = health_of(jnp.full((8, 5), 0.1) * jnp.arange(1.0, 6.0)[None, :])
    assert (found.spread, found.effective_rank) == (0, 0)


def test_padding_counts_in_no_figure():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    valid = jnp.arange(8) < 6
    both = PAIRS & valid[:, None] & valid[None, :]
    found = health.embedding_health(x.at[6:].set(1e4), SAME, both)
    wanted = health.embedding_health(x[:6], SAME[:6, :6], PAIRS[:6, :6])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    none = health.embedding_health(x, SAME, jnp.zeros_like(PAIRS))
    assert np.isnan(none).all()
    assert health.warning(none) == "no embedding counts, or one is not finite"


def test_without_pairs_of_a_class_there_is_no_alignment():
    found = health.embedding_health(jnp.eye(8, 5), jnp.eye(8, dtype=bool), PAIRS)
    assert np.isnan(found.alignment)
    assert np.isfinite(found.uniformity)


def test_directions_that_are_used_alike_count_in_full():
    axes = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
    assert health_of(axes).effective_rank == pytest.approx(4, 1e-5)
    assert health_of(axes).spread == 1


def test_a_nan_among_the_terms_is_not_active():
    terms = make_terms(jnp.array([0.0, jnp.nan]), None)
    assert np.isnan(health.active_share(terms))
    assert np.isnan(health.active_share(make_terms(jnp.ones(2), jnp.zeros(2, bool))))
    several = make_terms(jnp.array([0.0, 1.0]), None), make_terms(jnp.zeros(2), None)
    assert health.active_share(several) == 0.25
