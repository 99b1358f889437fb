"""A figure with its interval, or the reason why it has no value."""

import math
from typing import Any, NamedTuple

UNDEFINED = "it is not defined for these numbers"


class Figure(NamedTuple):
    """One number of a table.

    Attributes:
      value: The figure, or None if it has no value.
      low: Lower end of its 95 % interval, or None if there is none.
      high: Upper end of the interval.
      macro: Mean over classes, in which each class weighs the same, or None.
      why: Why the figure has no value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    macro: float | None = None
    why: str | None = None


Figures = dict[str, Figure]  # by name


def figure(
    value: Any,
    *,
    low: Any = None,
    high: Any = None,
    macro: Any = None,
    why: str = UNDEFINED,
) -> Figure:
    """Makes a figure of numbers, of which those that are not finite become None.

    >>> figure(0.5)
    Figure(value=0.5, low=None, high=None, macro=None, why=None)
    >>> figure(float("nan"), why="there is no query").why
    'there is no query'
    """
    number = finite(value)
    if number is None:
        return Figure(None, why=why)
    return Figure(number, finite(low), finite(high), finite(macro))


def missing(names: Any, why: str) -> Figures:
    """Figures without values, for the same reason.

    >>> missing(["a"], "too few rows")["a"].why
    'too few rows'
    """
    return {name: Figure(None, why=why) for name in names}


def finite(value: Any) -> float | None:
    """Returns a number as Python's, or None for None and what is not finite.

    >>> finite(2), finite(float("inf"))
    (2, None)
    """
    if value is None:
        return None
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None
