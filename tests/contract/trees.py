"""Trees of arrays: comparison, and the floating-point leaves."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def assert_trees_close(found, wanted, rtol=1e-5, atol=1e-6):
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=atol
        )


def is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def float_leaves(tree) -> list:
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def replace_floats(tree, new: list):
    """The tree with other floating-point leaves."""
    leaves, structure = jax.tree.flatten(tree)
    numbers = iter(new)
    return structure.unflatten(next(numbers) if is_float(x) else x for x in leaves)


def map_floats(fn: Callable, tree):
    return replace_floats(tree, [fn(leaf) for leaf in float_leaves(tree)])
