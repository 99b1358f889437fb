"""Losses of a matrix in the memory of some of its rows, forward and backward.

A loss over all pairs of n embeddings needs the n x n matrix, and the gradient several of
that size. `tiled` computes the same number and the same gradient from tiles of rows, of
which one exists at a time:

>>> import jax.numpy as jnp
>>> from siamese_jax import distances, losses, relations
>>> embeddings = jnp.array([[0.0], [1.0], [0.5]])
>>> items = relations.Items(jnp.array([0, 0, 1]))
>>> loss = tiled(losses.contrastive_loss, distances.euclidean_distance_matrix, tile_size=2)
>>> print(loss(embeddings, items))  # (1/2 + 1/8 + 1/8) / 3
0.25

The batch can be compared with another set, such as a memory queue or the texts of images:

>>> texts = jnp.array([[1.0, 0.0], [0.0, 1.0]])
>>> aligned = relations.Items(jnp.arange(2))
>>> clip = tiled(
...     losses.both_directions(losses.info_nce_loss), distances.dot_similarity_matrix)
>>> print(f"{clip(texts, aligned, texts, aligned, temperature=1.0):.4f}")  # log(1 + 1/e)
0.3133

With n rows, m columns, tiles of t rows and embeddings of dim numbers, the memory is that of
a few arrays [t, m] and of the gradients [n, dim] and [m, dim]. The work is, in operations
of the products of matrices, where the dense form takes 6 n m dim for the gradient:

* 6 n m dim, with the gradient made in the forward sweep: all losses of `losses` in which a
  term needs its entry or its row, without weights;
* 8 n m dim, where each tile is computed again for the gradient: with `weights`, for a loss
  of one's own, with two means (`apart`, threshold-consistent margins), and unreduced;
* 8 n m dim for both directions: `losses.both_directions` of supervised contrastive,
  InfoNCE, decoupled, sigmoid and all entry-wise losses. Where a column has several
  positives, InfoNCE and the decoupled loss take 2 more.
* 12 n m dim for `both_directions` of another loss.

A loss that needs the whole matrix is refused by name. NT-Xent is InfoNCE of both views:
`tiled(losses.info_nce_loss, distances.cosine_similarity_matrix)` of `jnp.concatenate([a,
b])` and `Items(jnp.tile(jnp.arange(n), 2))`.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from siamese_jax._checks import check_at_least
from siamese_jax._folds import SMOOTH, fold_of
from siamese_jax._reach import taken_apart
from siamese_jax._sets import Sets, cut_rows, read_options, two_sets
from siamese_jax._tiles import (
    Loss,
    MatrixFn,
    RelationFn,
    row_totals,
    symmetric_totals,
    terms_of_rows,
    turned,
)
from siamese_jax._totals import Totals, reduce_totals
from siamese_jax.relations import Items, between


def tiled(
    loss_fn: Callable[..., Any],
    matrix_fn: MatrixFn,
    *,
    relation_fn: RelationFn = between,
    tile_size: int = 256,
) -> Callable[..., Any]:
    """Makes a loss of a matrix a function of embeddings that makes no matrix.

    Args:
      loss_fn: An entry-wise or row-wise loss of `siamese_jax.losses`, `both_directions` of
        one, or `functools.partial` of these. Any other function
        `loss_fn(matrix, same, *, where, reduce_fn, ...)` that returns `reduce_fn(terms)` is
        taken to be row-wise: a term may depend on the row of its anchor alone.
      matrix_fn: Makes the matrix of two sets of embeddings, row by row: an entry may depend
        on its two embeddings alone. Embeddings of half precision come in float32.
      relation_fn: Makes `(same, where)` of two sets of items, such as
        `functools.partial(relations.between, same_fn=relations.shared_label)`.
      tile_size: Largest number of rows of a tile.

    Returns:
      `loss(embeddings, items, columns=None, column_items=None, **options)`. Without
      `columns` the batch is compared with itself, but no embedding with itself. The options
      go to `loss_fn`. Those that are arrays may be differentiated, and those whose first
      axis has one place per row are cut with the rows. `reduce_fn` must be `mean`,
      `mean_of_active`, `mean_and_count`, `sum_terms`, or None for the `Terms` of a loss
      with one term per anchor.

    Raises:
      ValueError: If the loss needs the whole matrix, or takes distances where `matrix_fn`
        makes similarities or the reverse, or `tile_size` is below 1.

    >>> import jax.numpy as jnp
    >>> from siamese_jax.reductions import make_terms
    >>> def mean_positive(similarities, same, *, where, reduce_fn):
    ...     return reduce_fn(make_terms(similarities, same & where))
    >>> loss = tiled(mean_positive, lambda a, b: a @ b.T, tile_size=2)
    >>> print(loss(jnp.array([[1.0], [2.0], [3.0]]), Items([4, 4, 4])))  # (2 + 3 + 6) / 3
    3.6666667
    """
    check_at_least("tile_size", tile_size, 1)
    taken = taken_apart(loss_fn, matrix_fn)

    def loss(
        embeddings: Float[Array, "n dim"],
        items: Items,
        columns: Float[Array, "m dim"] | None = None,
        column_items: Items | None = None,
        **options: Any,
    ) -> Any:
        reduce_fn, arrays, fixed = read_options(taken, options)
        one = Loss(taken.fn, matrix_fn, relation_fn, fixed)
        sets = two_sets(embeddings, items, columns, column_items, relation_fn)
        if reduce_fn is None:
            tiles, whole = cut_rows(sets, arrays, tile_size)
            return terms_of_rows(one, tiles, whole, len(embeddings))
        if taken.both:
            both = _both_directions(one, sets, arrays, tile_size)
            by_rows, by_columns = (reduce_totals(sums, reduce_fn) for sums in both)
            return (by_rows + by_columns) / 2
        totals = row_totals(one, *cut_rows(sets, arrays, tile_size))
        return reduce_totals(totals, reduce_fn)

    return loss


def _both_directions(
    loss: Loss, sets: Sets, arrays: dict[str, Array], tile_size: int
) -> tuple[tuple[Totals, ...], ...]:
    fold = fold_of(loss.fn) if loss.fn in SMOOTH else None
    tiles, whole = cut_rows(sets, arrays, tile_size)
    if fold is not None:
        whole = whole._replace(options=arrays)
        return symmetric_totals(loss, fold, tiles, whole, num_rows=len(sets[0][0]))

    by_columns = row_totals(turned(loss), *cut_rows(sets[::-1], arrays, tile_size))
    return row_totals(loss, tiles, whole), by_columns
