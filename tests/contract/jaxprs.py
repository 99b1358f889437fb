"""The operations of a traced program, those of its loops and calls included."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

HALVES = {jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16)}
# what moves numbers without computing, and x != x, which tells a NaN
MOVES = {
    "ne",
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "gather"),
    *("reshape", "slice", "squeeze", "stop_gradient", "transpose"),
}


def inner_programs(parameter: Any) -> Iterator[Any]:
    for value in jax.tree.leaves(parameter, is_leaf=lambda x: hasattr(x, "eqns")):
        value = getattr(value, "jaxpr", value)  # of a closed one
        if hasattr(value, "eqns"):
            yield value


def equations(jaxpr) -> Iterator[tuple[Any, bool]]:
    """All equations, and whether each of them calls others, which come after it."""
    for equation in jaxpr.eqns:
        inner = [x for p in equation.params.values() for x in inner_programs(p)]
        yield equation, bool(inner)
        for program in inner:
            yield from equations(program)


def half_arithmetic(jaxpr) -> set[str]:
    """Names of the operations that compute with half-precision numbers."""
    return {
        equation.primitive.name
        for equation, is_call in equations(jaxpr)
        if not is_call
        and HALVES & {getattr(x.aval, "dtype", None) for x in equation.invars}
    } - MOVES


def largest_result(jaxpr) -> int:
    """Number of elements of the largest array that is computed."""
    results = (x.aval for equation, _ in equations(jaxpr) for x in equation.outvars)
    return max(getattr(x, "size", 0) for x in results)
