"""The rows, the columns and the options of a loss in tiles or over devices, checked."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from siamese_jax._checks import check_at_least, check_floating, check_rank
from siamese_jax._labels import fitting_items, traced_labels
from siamese_jax._numerics import widen
from siamese_jax._reach import refuse_whole_matrix
from siamese_jax._tiles import RelationFn, Rows, Whole, cut
from siamese_jax._totals import check_reduction
from siamese_jax.losses._direction import Plain
from siamese_jax.losses.softmax import check_both
from siamese_jax.reductions import ReduceFn, mean
from siamese_jax.relations import Items, between

Sets = tuple[tuple[Array, Items], tuple[Array, Items]]


def read_options(
    taken: Plain, options: dict[str, Any]
) -> tuple[ReduceFn | None, dict[str, Array], dict[str, Any]]:
    """The reduction, the options that are arrays, and the other options."""
    options = taken.options | options
    if options.get("weights") is None:
        options.pop("weights", None)
    refuse_whole_matrix(taken.fn, options)
    if "where" in options:
        raise ValueError("where must not be given: it is made of the items, by relation_fn")
    reduce_fn = options.pop("reduce_fn", _default_reduction(taken.fn))
    check_reduction(reduce_fn)
    if taken.both:
        check_both(reduce_fn, options)
    arrays = {name: jnp.asarray(x) for name, x in options.items() if _is_array(x)}
    return reduce_fn, arrays, {k: x for k, x in options.items() if k not in arrays}


def _is_array(option: Any) -> bool:
    return isinstance(option, jax.Array | np.ndarray)


def _default_reduction(loss_fn: Callable[..., Any]) -> ReduceFn | None:
    parameter = inspect.signature(loss_fn).parameters.get("reduce_fn")
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return mean
    return parameter.default


def two_sets(
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
    items = fitting_items(items_name, items._replace(labels=labels))
    for leaf in jax.tree.leaves(items):
        if leaf.shape[:1] != (len(embeddings),):
            raise ValueError(
                f"{items_name} must have {len(embeddings)} places, one for each of {name}; "
                f"got shape {leaf.shape}"
            )
    return widen(jnp.asarray(embeddings)), items


def cut_rows(sets: Sets, arrays: dict[str, Array], tile_size: int) -> tuple[Rows, Whole]:
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
