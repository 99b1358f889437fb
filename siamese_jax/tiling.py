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

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siamese_jax._checks import check_at_least, check_floating, check_rank
from siamese_jax._folds import SMOOTH, fold_of
from siamese_jax._labels import traced_labels
from siamese_jax._numerics import widen
from siamese_jax._reach import plain, refuse_whole_matrix
from siamese_jax._tiles import (
    Loss,
    MatrixFn,
    RelationFn,
    Rows,
    Whole,
    cut,
    recomputed_terms,
    row_totals,
    symmetric_totals,
)
from siamese_jax._totals import Totals, check_reduction, reduce_totals
from siamese_jax.reductions import ReduceFn, mean, mean_and_count
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
      ValueError: If the loss needs the whole matrix, or `tile_size` is below 1.

    >>> from siamese_jax.reductions import make_terms
    >>> def mean_positive(similarities, same, *, where, reduce_fn):
    ...     return reduce_fn(make_terms(similarities, same & where))
    >>> loss = tiled(mean_positive, lambda a, b: a @ b.T, tile_size=2)
    >>> print(loss(jnp.array([[1.0], [2.0], [3.0]]), Items([4, 4, 4])))  # (2 + 3 + 6) / 3
    3.6666667
    """
    check_at_least("tile_size", tile_size, 1)
    taken = plain(loss_fn)
    refuse_whole_matrix(taken.fn, taken.options)

    def loss(
        embeddings: Float[Array, "n dim"],
        items: Items,
        columns: Float[Array, "m dim"] | None = None,
        column_items: Items | None = None,
        **options: Any,
    ) -> Any:
        options = taken.options | options
        reduce_fn = options.pop("reduce_fn", _default_reduction(taken.fn))
        check_reduction(reduce_fn)
        refuse_whole_matrix(taken.fn, options)
        arrays = {k: jnp.asarray(x) for k, x in options.items() if _is_array(x)}
        fixed = {k: x for k, x in options.items() if k not in arrays}
        one = Loss(taken.fn, matrix_fn, relation_fn, fixed)
        sets = _two_sets(embeddings, items, columns, column_items, relation_fn)
        if taken.both:
            _check_both(reduce_fn, options)
            both = _both_directions(one, sets, arrays, tile_size)
            by_rows, by_columns = (reduce_totals(sums, reduce_fn) for sums in both)
            return (by_rows + by_columns) / 2
        tiles, whole = _cut(sets, arrays, tile_size)
        if reduce_fn is None:
            return _terms(one, tiles, whole, len(embeddings))
        return reduce_totals(row_totals(one, tiles, whole), reduce_fn)

    return loss


Sets = tuple[tuple[Array, Items], tuple[Array, Items]]


def _both_directions(
    loss: Loss, sets: Sets, arrays: dict[str, Array], tile_size: int
) -> tuple[tuple[Totals, ...], ...]:
    fold = fold_of(loss.fn) if loss.fn in SMOOTH else None
    tiles, whole = _cut(sets, arrays, tile_size)
    if fold is not None:
        whole = whole._replace(options=arrays)
        return symmetric_totals(loss, fold, tiles, whole, num_rows=len(sets[0][0]))

    def turned_relation(rows: Items, columns: Items) -> tuple[Array, Array]:
        same, where = loss.relation_fn(columns, rows)
        return same.T, where.T

    turned = loss._replace(
        matrix_fn=lambda a, b: loss.matrix_fn(b, a).T, relation_fn=turned_relation
    )
    by_columns = row_totals(turned, *_cut(sets[::-1], arrays, tile_size))
    return row_totals(loss, tiles, whole), by_columns


def _terms(loss: Loss, tiles: Rows, whole: Whole, num_rows: int) -> Any:
    parts = recomputed_terms(loss, tiles, whole)
    for part in parts:
        if part.values.ndim != 2:
            raise ValueError(
                "reduce_fn=None needs a loss with one term per anchor, since terms of all "
                f"entries are as large as the matrix; got {part.values.ndim - 1} axes"
            )
    parts = jax.tree.map(lambda x: x.reshape(-1)[:num_rows], parts)
    return parts[0] if len(parts) == 1 else parts


# Inputs ----------------------------------------------------------------------------------


def _is_array(option: Any) -> bool:
    return isinstance(option, jax.Array | np.ndarray)


def _default_reduction(loss_fn: Callable[..., Any]) -> ReduceFn | None:
    parameter = inspect.signature(loss_fn).parameters.get("reduce_fn")
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return mean
    return parameter.default


def _check_both(reduce_fn: ReduceFn | None, options: dict[str, Any]) -> None:
    if reduce_fn is None or reduce_fn is mean_and_count:
        name = getattr(reduce_fn, "__name__", None)
        raise ValueError(f"reduce_fn must return a number; got {name} for both_directions")
    if options.get("weights") is not None:
        raise ValueError("both_directions takes no weights; weights must be None")


def _two_sets(
    embeddings: Array,
    items: Items,
    columns: Array | None,
    column_items: Items | None,
    relation_fn: RelationFn,
) -> Sets:
    """Embeddings and items of rows and columns, checked, in float32 at least."""
    if (columns is None) != (column_items is None):
        raise ValueError("columns and column_items must be given together")
    rows = _one_set("embeddings", "items", embeddings, items, relation_fn)
    if columns is not None:
        assert column_items is not None
        other = _one_set("columns", "column_items", columns, column_items, relation_fn)
        return rows, other
    if rows[1].ids is None:
        rows = rows[0], rows[1]._replace(ids=jnp.arange(len(embeddings)))
    return rows, rows


def _one_set(
    name: str, items_name: str, embeddings: Array, items: Items, relation_fn: RelationFn
) -> tuple[Array, Items]:
    check_floating(name, embeddings)
    check_rank(name, embeddings, 2)
    check_at_least(f"the number of {name}", len(embeddings), 1)
    if not isinstance(items, Items):
        raise TypeError(f"{items_name} must be Items(labels); got {type(items).__name__}")
    labels = items.labels
    if relation_fn is between:
        labels = traced_labels(f"{items_name}.labels", labels)
    elif isinstance(labels, list):
        labels = jnp.asarray(labels)
    items = jax.tree.map(jnp.asarray, items._replace(labels=labels))
    for leaf in jax.tree.leaves(items):
        if leaf.shape[:1] != (len(embeddings),):
            raise ValueError(
                f"{items_name} must have {len(embeddings)} places, one for each of {name}; "
                f"got shape {leaf.shape}"
            )
    return widen(jnp.asarray(embeddings)), items


def _cut(sets: Sets, arrays: dict[str, Array], tile_size: int) -> tuple[Rows, Whole]:
    (embeddings, items), (columns, column_items) = sets
    n = len(embeddings)
    own = {k: x for k, x in arrays.items() if x.shape[:1] == (n,)}
    shared = {k: x for k, x in arrays.items() if k not in own}
    if "weights" in shared:
        raise ValueError(
            f"weights must have one row for each of {n} embeddings; got shape "
            f"{shared['weights'].shape}"
        )
    rows = Rows(embeddings, items, jnp.ones(n, bool), own)
    return cut(rows, tile_size), Whole(columns, column_items, shared)
