"""What the contract tests need to know of a public function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """A public function under contract.

    Attributes:
      name: "module.function".
      fn: The function, with callables bound.
      make: Makes its arrays from a NumPy generator.
      options: Keyword arguments to try, all of which the oracle understands.
      arrays: Makes optional array keywords (where, weights), tried with the first option.
      oracle: Plain float64 loops; None if its own test module has the properties.
      gradient: Positions of the arguments to differentiate.
      singular: Arguments at which the naive gradient is NaN.
      misuse: (changed arguments, keywords, error, words of its message).
      traits: Which contracts apply: "loss", "matrix", "half", "nan".
    """

    name: str
    fn: Callable[..., Any]
    make: Callable[[np.random.Generator], tuple]
    options: tuple[dict, ...] = ({},)
    arrays: Callable[[np.random.Generator, tuple], dict] | None = None
    oracle: Callable[..., Any] | None = None
    gradient: tuple[int, ...] = ()
    singular: Callable[[], tuple] | None = None
    misuse: tuple[tuple[tuple, dict, type[Exception], str], ...] = ()
    traits: frozenset[str] = frozenset()


def f32(array):
    return jnp.asarray(array, jnp.float32)


def key(rng):
    return jax.random.key(int(rng.integers(2**31)))


KEY = jax.random.key(0)
