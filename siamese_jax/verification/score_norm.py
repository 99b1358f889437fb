"""Score normalisation: distances in units of those to a cohort of strangers."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._checks import check_at_least, check_floating, check_rank, check_shape
from siamese_jax._numerics import widen


def z_norm(
    distances: Float[Array, "n ..."],
    cohort: Float[Array, "n size"],
    *,
    num_nearest: int | None = None,
) -> Float[Array, "n ..."]:
    """Distances of one side's examples, in units of their distances to a cohort.

    With the mean m and the deviation s (over N, not N - 1) of the distances of example i to
    the cohort, a distance d becomes (d - m_i) / s_i. Example i has one distance, `[n]`, or
    a row of them, `[n, m]`. It is NaN where all distances to the cohort that are used are
    equal, or one of them is infinite, or one of the cohort is NaN.

    Args:
      distances: Distances of the examples.
      cohort: Distances of the same examples to each of a cohort of strangers.
      num_nearest: The number of the nearest of the cohort that are used (adaptive), at
        least 2. None uses the whole cohort.

    Raises:
      ValueError: If a shape is wrong, or `num_nearest` is not from 2 to the size.
      TypeError: If an input is not floating-point.

    >>> print(z_norm(jnp.array([5.0]), jnp.array([[1.0, 3.0, 100.0]]), num_nearest=2))
    [3.]
    """
    check_floating("distances", distances)
    if jnp.ndim(distances) not in (1, 2):
        raise ValueError(f"distances must have 1 or 2 axes; got shape {distances.shape}")
    mean, deviation = _of_nearest("cohort", cohort, len(distances), num_nearest)
    shape = (len(distances),) + (1,) * (jnp.ndim(distances) - 1)
    mean, deviation = mean.reshape(shape), deviation.reshape(shape)
    scaled = (widen(distances) - mean) / jnp.where(deviation == 0, 1, deviation)
    return jnp.where(deviation == 0, jnp.nan, scaled)


def as_norm(
    distances: Float[Array, "n ..."],
    first: Float[Array, "n size"],
    second: Float[Array, "m other_size"],
    *,
    num_nearest: int | None = None,
) -> Float[Array, "n ..."]:
    """Adaptive symmetric normalisation: the mean of `z_norm` by both sides of a pair.

        ((d - m_1) / s_1 + (d - m_2) / s_2) / 2

    Args:
      distances: One for each pair, `[n]`, or a matrix of both sides, `[n, m]`.
      first: Distances of each first example, or of each row, to a cohort.
      second: Distances of each second example (m = n), or of each column, to a cohort.
      num_nearest: The number of the nearest of the cohort that are used, such as 300. None
        uses all, which is symmetric normalisation (S-norm).

    Raises:
      ValueError: If a shape is wrong, or `num_nearest` is not from 2 to a cohort's size.
      TypeError: If an input is not floating-point.

    Reference:
      Matejka, Novotny, Plchot, Burget, Diez, Cernocky. Analysis of Score Normalization in
      Multilingual Speaker Recognition. Interspeech 2017, AS-norm1 of section 2.

    >>> nearest = jnp.array([[1.0, 3.0]])
    >>> print(as_norm(jnp.array([5.0]), nearest, 2 * nearest))  # 3 and 1 / 2
    [1.75]
    """
    by_first = z_norm(distances, first, num_nearest=num_nearest)
    turned = jnp.matrix_transpose(distances) if jnp.ndim(distances) == 2 else distances
    _of_nearest("second", second, len(turned), num_nearest)
    by_second = z_norm(turned, second, num_nearest=num_nearest)
    if jnp.ndim(distances) == 2:
        by_second = by_second.T
    return (by_first + by_second) / 2


def _of_nearest(
    name: str, cohort: Array, num_rows: int, num_nearest: int | None
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Mean and deviation of the nearest of each row."""
    check_floating(name, cohort)
    check_rank(name, cohort, 2)
    size = jnp.shape(cohort)[1]
    check_shape(name, cohort, (num_rows, size), "one row for each example")
    num = size if num_nearest is None else num_nearest
    check_at_least(f"the number of nearest of {name}", num, 2)
    if num > size:
        raise ValueError(
            f"num_nearest must be at most {size}, the size of {name}; got {num}"
        )
    cohort = widen(jnp.asarray(cohort))
    has_nan = jnp.any(jnp.isnan(cohort), axis=1, keepdims=True)  # top_k may hide it
    nearest = jnp.where(has_nan, jnp.nan, -lax.top_k(-cohort, num)[0])
    # equal numbers may have a mean that is rounded, and a deviation above 0
    equal = jnp.max(nearest, axis=1) == jnp.min(nearest, axis=1)
    return jnp.mean(nearest, axis=1), jnp.where(equal, 0, jnp.std(nearest, axis=1))
