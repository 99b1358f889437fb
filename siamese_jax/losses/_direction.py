"""Distances are not taken for similarities, nor the reverse, as far as names tell."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from siamese_jax.losses.softmax import symmetric_loss


def check_direction(loss_fn: Callable[..., Any], matrix_fn: Callable[..., Any]) -> None:
    """Raises ValueError if a loss takes distances and gets similarities, or the reverse.

    A loss takes what the name of its first argument says, and a function makes what its
    name ends with, `distance_matrix` or `similarity_matrix`. Other names say nothing.

    >>> from siamese_jax import distances, losses
    >>> try:
    ...     check_direction(losses.contrastive_loss, distances.cosine_similarity_matrix)
    ... except ValueError as error:
    ...     print(error)
    contrastive_loss takes distances; cosine_similarity_matrix makes similarities
    """
    loss_fn, matrix_fn = _without_options(loss_fn), _without_options(matrix_fn)
    taken, made = _taken(loss_fn), _made(matrix_fn)
    if taken and made and taken != made:
        raise ValueError(
            f"{loss_fn.__name__} takes {taken}; {matrix_fn.__name__} makes {made}"
        )


def _without_options(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Takes `functools.partial` and `both_directions` off a function."""
    while isinstance(fn, functools.partial):
        fn = fn.args[0] if fn.func is symmetric_loss else fn.func
    return fn


def _taken(loss_fn: Callable[..., Any]) -> str | None:
    try:
        names = list(inspect.signature(loss_fn).parameters)
    except (TypeError, ValueError):  # some functions of C have no signature
        return None
    taken = names[0] if names and hasattr(loss_fn, "__name__") else None
    return taken if taken in ("distances", "similarities") else None


def _made(matrix_fn: Callable[..., Any]) -> str | None:
    name = getattr(matrix_fn, "__name__", "")
    if name.endswith("distance_matrix"):
        return "distances"
    return "similarities" if name.endswith("similarity_matrix") else None
