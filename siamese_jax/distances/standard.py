"""Euclidean, Manhattan, Lp, cosine and dot products, by rows and as matrices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._checks import (
    check_at_least,
    check_floating,
    check_rank,
    check_same_shape,
)
from siamese_jax._numerics import safe_abs, safe_sqrt, widen

RowFn = Callable[[Float[Array, "*batch dim"], Float[Array, "*batch dim"]], Array]


# Row by row ---------------------------------------------------------------------------


def squared_euclidean_distance(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"]
) -> Float[Array, "*batch"]:
    """Squared Euclidean distance: sum_k (a_k - b_k)^2.

    >>> print(squared_euclidean_distance(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
    25.0
    """
    a, b = _rows(a, b)
    return _sum_of_squares(a - b)


def euclidean_distance(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"]
) -> Float[Array, "*batch"]:
    """Euclidean distance: sqrt(sum_k (a_k - b_k)^2), with gradient 0 where a = b.

    >>> print(euclidean_distance(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
    5.0
    """
    a, b = _rows(a, b)
    return safe_sqrt(_sum_of_squares(a - b))


def manhattan_distance(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"]
) -> Float[Array, "*batch"]:
    """City-block distance: sum_k |a_k - b_k|, with gradient 0 where a_k = b_k.

    >>> print(manhattan_distance(jnp.array([0.0, 0.0]), jnp.array([3.0, -4.0])))
    7.0
    """
    a, b = _rows(a, b)
    return jnp.sum(safe_abs(a - b), axis=-1)


def lp_distance(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"], *, order: float
) -> Float[Array, "*batch"]:
    """Minkowski distance: (sum_k |a_k - b_k|^order)^(1 / order).

    The differences are divided by the largest one first, so that no order overflows.

    Args:
      a: Vectors.
      b: Vectors of the same shape.
      order: At least 1. `inf` gives the largest |a_k - b_k|.

    Raises:
      ValueError: If `order` is below 1, where the formula is not a distance.

    >>> print(lp_distance(jnp.array([0.0, 0.0]), jnp.array([3.0, -4.0]), order=1))
    7.0
    """
    check_at_least("order", order, 1)
    a, b = _rows(a, b)
    difference = safe_abs(a - b)
    if order == jnp.inf:
        return jnp.max(difference, axis=-1)
    # The value does not depend on `largest`, so no gradient has to pass through it.
    largest = lax.stop_gradient(jnp.max(difference, axis=-1))
    zero = largest == 0
    scaled = difference / jnp.where(zero, 1, largest)[..., None]
    powers = jnp.sum(scaled**order, axis=-1)
    root = jnp.where(zero, 1, powers) ** (1 / order)
    return jnp.where(zero, 0, largest * root)


def cosine_distance(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"]
) -> Float[Array, "*batch"]:
    """One minus the cosine of the angle between a and b; 1 if one is zero.

    It is in [0, 2] up to rounding.

    It is computed as half the squared distance of the unit vectors, which is the same
    number without the cancellation of 1 - cos for similar directions.

    >>> print(cosine_distance(jnp.array([2.0, 0.0]), jnp.array([0.0, 3.0])))
    1.0
    """
    a, b = _rows(a, b)
    halved = _sum_of_squares(_unit(a) - _unit(b)) / 2
    return halved + (_is_zero(a) + _is_zero(b)) / 2


def cosine_similarity(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"]
) -> Float[Array, "*batch"]:
    """Cosine of the angle between a and b, in [-1, 1] up to rounding; 0 if one is zero.

    It is the dot product of the two vectors scaled to length 1.

    >>> print(cosine_similarity(jnp.array([2.0, 0.0]), jnp.array([-3.0, 0.0])))
    -1.0
    """
    a, b = _rows(a, b)
    return jnp.sum(_unit(a) * _unit(b), axis=-1)


def dot_similarity(
    a: Float[Array, "*batch dim"], b: Float[Array, "*batch dim"]
) -> Float[Array, "*batch"]:
    """Dot product: sum_k a_k b_k.

    >>> print(dot_similarity(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
    11.0
    """
    a, b = _rows(a, b)
    return jnp.sum(a * b, axis=-1)


def normalize(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Scales vectors to length 1. A zero vector stays zero and has gradient 0.

    The result has the dtype of the vectors, as they are embeddings still.

    >>> print(normalize(jnp.array([0.0, 2.0])))
    [0. 1.]
    """
    check_floating("x", x)
    return _unit(widen(x)).astype(x.dtype)


# All pairs of rows --------------------------------------------------------------------


def squared_euclidean_distance_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`squared_euclidean_distance` of every row of `a` to every row of `b`.

    >>> points = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    >>> print(squared_euclidean_distance_matrix(points, points))
    [[ 0. 25.]
     [25.  0.]]
    """
    a, b = _sets(a, b)
    return _squared_matrix(a, b)


def euclidean_distance_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`euclidean_distance` of every row of `a` to every row of `b`.

    >>> points = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    >>> print(euclidean_distance_matrix(points, points))
    [[0. 5.]
     [5. 0.]]
    """
    a, b = _sets(a, b)
    return safe_sqrt(_squared_matrix(a, b))


def manhattan_distance_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`manhattan_distance` of every row of `a` to every row of `b`, in tiles of rows.

    >>> points = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    >>> print(manhattan_distance_matrix(points, points))
    [[0. 7.]
     [7. 0.]]
    """
    return distance_matrix(manhattan_distance, a, b)


def lp_distance_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"], *, order: float
) -> Float[Array, "n m"]:
    """`lp_distance` of every row of `a` to every row of `b`, in tiles of rows.

    Raises:
      ValueError: If `order` is below 1, where the formula is not a distance.

    >>> points = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    >>> print(lp_distance_matrix(points, points, order=jnp.inf))
    [[0. 4.]
     [4. 0.]]
    """
    return distance_matrix(lambda x, y: lp_distance(x, y, order=order), a, b)


def cosine_distance_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`cosine_distance` of every row of `a` to every row of `b`.

    >>> axes = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    >>> print(cosine_distance_matrix(axes, axes))
    [[0. 1.]
     [1. 0.]]
    """
    a, b = _sets(a, b)
    halved = _squared_matrix(_unit(a), _unit(b)) / 2
    return halved + (_is_zero(a)[:, None] + _is_zero(b)[None, :]) / 2


def cosine_similarity_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`cosine_similarity` of every row of `a` to every row of `b`.

    >>> axes = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    >>> print(cosine_similarity_matrix(axes, axes))
    [[1. 0.]
     [0. 1.]]
    """
    a, b = _sets(a, b)
    return _products(_unit(a), _unit(b))


def dot_similarity_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`dot_similarity` of every row of `a` to every row of `b`.

    >>> a, b = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])
    >>> print(dot_similarity_matrix(a, b))
    [[11.  2.]]
    """
    a, b = _sets(a, b)
    return _products(a, b)


def distance_matrix(
    row_fn: RowFn, a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """Any row-by-row function, such as a learned distance, of all pairs of rows.

    It is computed in tiles of rows, and again for the gradient, so that no array of shape
    `[n, m, dim]` is made.

    Args:
      row_fn: Takes `[m, dim]` and `[m, dim]`, returns `[m]`.
      a: The vectors of the rows.
      b: The vectors of the columns.

    >>> points = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    >>> print(distance_matrix(lambda a, b: jnp.max(a - b, axis=-1), points, points))
    [[ 0. -3.]
     [ 4.  0.]]
    """
    _check_sets(a, b)

    @jax.checkpoint
    def one_row(row: Float[Array, " dim"]) -> Float[Array, " m"]:
        return row_fn(jnp.broadcast_to(row, b.shape), b)

    if not isinstance(b.shape[0], int):  # a symbolic size, while exporting
        return lax.map(one_row, a)
    rows_per_tile = max(1, _TILE_NUMBERS // max(1, b.size))
    return lax.map(one_row, a, batch_size=rows_per_tile)


# Implementation -----------------------------------------------------------------------

# Size of a tile of differences. 2 MB of float32 stay in a processor's cache.
_TILE_NUMBERS = 2**19

# The rounding error of the expansion is a few units in the last place of |a|^2 + |b|^2.
# An entry whose squared distance is below this fraction of it is computed again. Above,
# the relative error is below 1e-3 in float32.
_NEAR = 1e-3

# If no row has more near entries than this, they are computed again, one per row at a
# time. Otherwise the whole matrix is.
_FEW = 16


def _rows(a: Array, b: Array) -> tuple[Array, Array]:
    check_floating("a", a)
    check_floating("b", b)
    check_same_shape("b", b, "a", a)
    return widen(jnp.asarray(a)), widen(jnp.asarray(b))


def _check_sets(a: Array, b: Array) -> None:
    check_floating("a", a)
    check_floating("b", b)
    check_rank("a", a, 2)
    check_rank("b", b, 2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"b must have {a.shape[1]} columns to match a {a.shape}; got {b.shape}"
        )


def _sets(a: Array, b: Array) -> tuple[Array, Array]:
    _check_sets(a, b)
    return widen(jnp.asarray(a)), widen(jnp.asarray(b))


def _sum_of_squares(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    return jnp.sum(x * x, axis=-1)


def _products(a: Float[Array, "n dim"], b: Float[Array, "m dim"]) -> Array:
    return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)


def _largest(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch 1"]:
    """Returns the largest |x_k|, a constant to differentiation, or 0 if none is normal."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    return jnp.where(largest < jnp.finfo(x.dtype).tiny, 0, largest)


def _is_zero(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    return (_largest(x)[..., 0] == 0).astype(x.dtype)


def _unit(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Returns x / |x|, dividing by the largest entry first so that no square underflows.

    The zero is a constant inside as well as outside, so that its gradient is 0.
    """
    largest = _largest(x)
    zero = largest == 0
    scaled = x / jnp.where(zero, 1, largest)
    norm = jnp.sqrt(jnp.where(zero, 1, jnp.sum(scaled**2, axis=-1, keepdims=True)))
    return jnp.where(zero, 0, scaled / norm)


@jax.custom_jvp
def _squared_matrix(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """|a|^2 + |b|^2 - 2ab by a matrix product, with near entries computed again."""
    n, m = a.shape[0], b.shape[0]  # not len(), since sizes are symbolic while exporting
    if 0 in (n, m):
        return jnp.zeros((n, m), a.dtype)
    norms = _sum_of_squares(a)[:, None] + _sum_of_squares(b)[None, :]
    squared = norms - 2 * _products(a, b)
    near = squared < _NEAR * norms
    rows = jnp.arange(n)

    def next_near_of_each_row(_: int | Array, carry: tuple[Array, Array]) -> tuple:
        squared, near = carry
        column = jnp.argmax(near, axis=1)
        exact = _sum_of_squares(a - b[column])
        exact = jnp.where(near[rows, column], exact, squared[rows, column])
        return squared.at[rows, column].set(exact), near.at[rows, column].set(False)

    def whole_row(row: int | Array, squared: Array) -> Array:
        return squared.at[row].set(_sum_of_squares(a[row][None, :] - b))

    # Two loops, one of which has no iterations, instead of `lax.cond`: under `vmap` a
    # condition computes both branches. (Under `vmap` both loops run for all sets if one of
    # the sets needs them.)
    rounds = jnp.max(jnp.sum(near, axis=1))
    few = rounds <= _FEW
    squared, _ = lax.fori_loop(
        0, jnp.where(few, rounds, 0), next_near_of_each_row, (squared, near)
    )
    return lax.fori_loop(0, jnp.where(few, 0, n), whole_row, squared)


@_squared_matrix.defjvp
def _squared_matrix_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """d|a - b|^2 = 2 (a - b)(da - db), expanded into products.

    The mean of b is subtracted from both first, so that little cancels where all points
    are near one another.
    """
    (a, b), (da, db) = primals, tangents
    squared = _squared_matrix(a, b)
    centre = lax.stop_gradient(jnp.mean(b, axis=0, keepdims=True))
    a, b = a - centre, b - centre
    along_a = jnp.sum(a * da, axis=-1)[:, None] - _products(da, b)
    along_b = jnp.sum(b * db, axis=-1)[None, :] - _products(a, db)
    return squared, 2 * (along_a + along_b)
