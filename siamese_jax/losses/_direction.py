"""Refuses distances for a loss of similarities, and the reverse, among own functions."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from siamese_jax.losses.softmax import symmetric_loss


def check_direction(loss_fn: Callable[..., Any], matrix_fn: Callable[..., Any]) -> None:
    """Raises ValueError if a loss takes distances and gets similarities, or the reverse.

    It knows the library's own functions, also in `functools.partial` and `both_directions`.
    Such a loss takes what the name of its first argument says, and a function makes what
    its name ends with, `distance_matrix` or `similarity_matrix`. Of all other functions it
    knows nothing, and refuses none.

    >>> from siamese_jax import distances, losses
    >>> try:
    ...     check_direction(losses.contrastive_loss, distances.cosine_similarity_matrix)
    ... except ValueError as error:
    ...     print(error)
    contrastive_loss takes distances; cosine_similarity_matrix makes similarities
    """
    loss_fn, matrix_fn = _without_options(loss_fn), _without_options(matrix_fn)
    if not (_is_own(loss_fn, "losses") and _is_own(matrix_fn, "distances")):
        return
    taken = next(iter(inspect.signature(loss_fn).parameters))
    made = "distances" if matrix_fn.__name__.endswith("distance_matrix") else "similarities"
    if taken in ("distances", "similarities") and taken != made:
        raise ValueError(
            f"{loss_fn.__name__} takes {taken}; {matrix_fn.__name__} makes {made}"
        )


def _without_options(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Takes `functools.partial` and `both_directions` off a function."""
    while isinstance(fn, functools.partial):
        fn = fn.args[0] if fn.func is symmetric_loss else fn.func
    return fn


def _is_own(fn: Callable[..., Any], module: str) -> bool:
    """Whether a function is one of the library's, and no function around one."""
    home = str(getattr(fn, "__module__", ""))
    name = str(getattr(fn, "__name__", ""))
    is_inside = home.startswith(f"siamese_jax.{module}.")
    return is_inside and getattr(sys.modules.get(home), name, None) is fn
