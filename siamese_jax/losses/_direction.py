"""Takes a loss apart, and refuses distances for a loss of similarities, and the reverse."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from siamese_jax.losses.softmax import symmetric_loss


class Plain(NamedTuple):
    """A loss without `functools.partial` and `both_directions` around it.

    Attributes:
      fn: The loss of one direction.
      both: Whether rows and columns are anchors.
      options: Options that are already given.
    """

    fn: Callable[..., Any]
    both: bool
    options: dict[str, Any]


def plain(loss_fn: Callable[..., Any]) -> Plain:
    """Takes `functools.partial` and `both_directions` off a loss.

    >>> from siamese_jax import losses
    >>> taken = plain(losses.both_directions(functools.partial(
    ...     losses.info_nce_loss, temperature=0.5)))
    >>> print(taken.fn.__name__, taken.both, taken.options)
    info_nce_loss True {'temperature': 0.5}
    """
    both = False
    options: dict[str, Any] = {}
    while isinstance(loss_fn, functools.partial):
        options = loss_fn.keywords | options
        if loss_fn.func is symmetric_loss:
            both, loss_fn = True, loss_fn.args[0]
        elif loss_fn.args:
            break
        else:
            loss_fn = loss_fn.func
    return Plain(loss_fn, both, options)


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
    loss_fn, matrix_fn = plain(loss_fn).fn, plain(matrix_fn).fn
    if not (_is_own(loss_fn, "losses") and _is_own(matrix_fn, "distances")):
        return
    taken = next(iter(inspect.signature(loss_fn).parameters))
    made = "distances" if matrix_fn.__name__.endswith("distance_matrix") else "similarities"
    if taken in ("distances", "similarities") and taken != made:
        raise ValueError(
            f"{loss_fn.__name__} takes {taken}; {matrix_fn.__name__} makes {made}"
        )


def _is_own(fn: Callable[..., Any], module: str) -> bool:
    """Whether a function is one of the library's, and no function around one."""
    home = str(getattr(fn, "__module__", ""))
    name = str(getattr(fn, "__name__", ""))
    is_inside = home.startswith(f"siamese_jax.{module}.")
    return is_inside and getattr(sys.modules.get(home), name, None) is fn
