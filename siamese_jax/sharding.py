"""The loss of a batch that is spread over devices, and its gradient, equal to one device's.

Under `jax.jit` over a mesh whose axes are Auto nothing here is needed: a loss as it is
written is that of the whole batch, for every loss, and so is its gradient. Over a mesh of
Explicit axes the same is true of `jax.sharding.auto_axes(loss, out_sharding=jax.P())`.

Inside `jax.shard_map` and `jax.pmap` a device sees its share of the batch alone, and the
mean over its own pairs is another loss. Two functions make the loss of the whole batch from
a loss of a matrix:

* `gathered`: the rows stay on their device and meet the columns of all devices. It serves
  all losses whose terms need one entry or one row of the matrix.
* `ring`: the columns travel from device to device in blocks, so that the memory does not
  grow with the number of devices. It serves the losses that can be put together from
  blocks: contrastive, logistic and the other losses of single pairs, supervised
  contrastive, InfoNCE, decoupled, sigmoid and hard triplet.

They give the same number on all devices. The gradient has one recipe, under `shard_map`
with `check_vma=True` and False, and under `pmap`: differentiate this number by parameters
that are the same on all devices, and average the gradient over the devices.

>>> import jax
>>> import jax.numpy as jnp
>>> from siamese_jax import distances, losses, relations
>>> loss_fn = gathered(
...     losses.contrastive_loss, distances.euclidean_distance_matrix, axis_name="data")
>>> def value_and_gradient(params, inputs, labels):
...     def loss(params):
...         return loss_fn(params * inputs, relations.Items(labels))
...     value, gradient = jax.value_and_grad(loss)(params)
...     return value, jax.lax.pmean(gradient, "data")
>>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
>>> step = jax.jit(jax.shard_map(
...     value_and_gradient, mesh=mesh,
...     in_specs=(jax.P(), jax.P("data"), jax.P("data")), out_specs=jax.P()))
>>> value, gradient = step(jnp.array(2.0), jnp.array([[0.0], [1.0]]), jnp.array([7, 7]))
>>> print(value, gradient)  # w^2 / 2 with w = 2, and its derivative w
2.0 2.0

No factor has to be remembered. With `check_vma=True` the gradient by a parameter that does
not vary over the devices is summed over them by JAX, and their mean is the same number.
Without it, each device differentiates the sum of all devices' equal losses by its own copy
of the parameters, and the mean of these gradients is the gradient of the loss. To sum
instead of averaging is right in neither. A parameter that JAX believes to be another on
each device, by `jax.lax.pcast`, is the one exception under `check_vma=True`: its gradients
are parts, and have to be summed.

`embeddings`, `items`, `columns` and `column_items` are this device's shares: all devices
have equally many rows, and equally many columns. Padding is marked by `Items.valid`, and
devices may have different numbers of valid items. Without `columns` the batch is compared
with itself, and an item without `ids` is its place in the batch. Items with equal ids are
not compared, wherever they are. Labels and ids mean the same on all devices: those of
aligned pairs are numbers of the whole batch, not of a device.

>>> def clip_loss(images, texts, temperature):
...     loss_fn = ring(
...         losses.both_directions(losses.info_nce_loss),
...         distances.cosine_similarity_matrix, axis_name="data")
...     start = jax.lax.axis_index("data") * len(images)
...     pairs = relations.Items(start + jnp.arange(len(images)))
...     return loss_fn(images, pairs, texts, pairs, temperature=temperature)
>>> both = jax.jit(jax.shard_map(
...     clip_loss, mesh=mesh, in_specs=(jax.P("data"), jax.P("data"), jax.P()),
...     out_specs=jax.P()))
>>> print(f"{both(jnp.eye(2), jnp.eye(2), jnp.array(1.0)):.4f}")  # log(1 + exp(-1))
0.3133

A loss of given pairs or triplets, or of proxies, has no columns to gather. Its terms are
added by `over_devices`, as its `reduce_fn`.

`reduce_fn` is `mean`, `mean_of_active`, `mean_and_count` or `sum_terms` of
`siamese_jax.reductions`. Numerators and denominators are added over the devices and divided
once: a mean of the devices' means would give an item on a device with much padding a larger
weight. With None, `gathered` returns the `Terms` of this device's rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._checks import check_at_least
from siamese_jax._folds import Fold, Found, State, fold_of, numbers, of_block
from siamese_jax._reach import taken_apart
from siamese_jax._ring import AxisName, journey
from siamese_jax._sets import Sets, cut_rows, read_options, two_sets
from siamese_jax._tiles import (
    Loss,
    MatrixFn,
    RelationFn,
    Rows,
    row_totals,
    terms_of_rows,
    turned,
)
from siamese_jax._totals import check_reduction, reduce_totals, totals, unreduced_terms
from siamese_jax.reductions import ReduceFn, Terms
from siamese_jax.relations import Items, between


def over_devices(reduce_fn: ReduceFn, *, axis_name: AxisName) -> ReduceFn:
    """Makes a reduction of the terms of all devices from a reduction of terms.

    It is the `reduce_fn` of a loss whose terms need nothing of other devices: of given
    pairs or triplets, or of an embedding and proxies. The terms of
    `losses.proxy_anchor_loss` are of whole classes and need the embeddings of all devices.

    Args:
      reduce_fn: `mean`, `mean_of_active`, `mean_and_count` or `sum_terms`.
      axis_name: The axis of `shard_map` or `pmap` over which terms are added, or several.

    Raises:
      ValueError: If it is another reduction, or there is no such axis.

    >>> from siamese_jax import losses, reductions
    >>> reduce_fn = over_devices(reductions.mean, axis_name="data")
    >>> def loss(distances, valid):
    ...     same = jnp.ones(2, bool)
    ...     return losses.contrastive_loss(
    ...         distances, same, factor=1.0, where=valid, reduce_fn=reduce_fn)
    >>> distances = jnp.array([[1.0, 9.0], [2.0, 4.0]])  # of two devices
    >>> valid = jnp.array([[True, False], [True, True]])
    >>> of_both = jax.jit(jax.vmap(loss, axis_name="data"))
    >>> print(of_both(distances, valid))  # (1 + 4 + 16) / 3
    [7. 7.]
    """
    check_reduction(reduce_fn)
    if reduce_fn is None:
        raise ValueError("reduce_fn must not be None: terms are not added over devices")

    def reduced(terms: Terms) -> Any:
        _check_axis(axis_name)
        return _reduced(terms, reduce_fn, axis_name)

    return reduced


def gathered(
    loss_fn: Callable[..., Any],
    matrix_fn: MatrixFn,
    *,
    axis_name: AxisName,
    relation_fn: RelationFn = between,
    tile_size: int | None = None,
) -> Callable[..., Any]:
    """Makes a loss of a matrix that of the batch of all devices, from gathered columns.

    A device computes the terms of its rows, from [share, columns of all devices] numbers,
    or [tile_size, columns of all devices] at a time.

    Args:
      loss_fn: `loss_fn(matrix, same, *, where, reduce_fn, ...)`, of which a term needs its
        entry or its row alone, or such a loss by `losses.both_directions`. A loss of your
        own may use any miner but those of the whole batch, which are refused. A miner with
        a key draws other examples on each device if the key is
        `jax.random.fold_in(key, jax.lax.axis_index(axis_name))`.
      matrix_fn: What the loss takes, of all pairs of two sets of embeddings.
      axis_name: The axis of `shard_map` or `pmap` over which the batch is spread, or
        several.
      relation_fn: Makes `(same, where)` of two `Items`.
      tile_size: Largest number of rows that are computed at a time, as in `tiling.tiled`.
        None takes all rows of a device.

    Returns:
      `loss(embeddings, items, columns=None, column_items=None, **options)`, the loss of the
      whole batch on every device, to be used as the module's docstring says. The options
      go to `loss_fn`. Those that have one number per anchor or per entry, such as
      `weights`, are of this device's rows.

    Raises:
      ValueError: If the loss or its miner needs the whole matrix, or takes distances where
        `matrix_fn` makes similarities or the reverse, or `reduce_fn`
        is one that cannot be added over devices, or there is no such axis, or one of
        `columns` and `column_items` is missing.

    >>> from siamese_jax import distances, losses
    >>> loss_fn = gathered(
    ...     losses.hard_triplet_loss, distances.euclidean_distance_matrix,
    ...     axis_name="data")
    >>> embeddings = jnp.array([[[0.0], [1.0]], [[3.0], [5.0]]])  # of two devices
    >>> labels = jnp.array([[0, 1], [0, 2]])
    >>> def loss(embeddings, labels):
    ...     return loss_fn(embeddings, Items(labels))
    >>> of_both = jax.jit(jax.vmap(loss, axis_name="data"))
    >>> print(of_both(embeddings, labels))  # 3 - 1 + 1, 3 - 2 + 1
    [2.5 2.5]
    """
    taken = taken_apart(loss_fn, matrix_fn)
    _check_tile_size(tile_size)

    def parts(one: Loss, sets: Sets, arrays: dict[str, Array], reduce_fn: Any) -> Any:
        (embeddings, items), columns = sets
        columns, column_items = jax.tree.map(
            lambda leaf: lax.all_gather(leaf, axis_name, tiled=True), columns
        )
        if tile_size is None:
            matrix = one.matrix_fn(embeddings, columns)
            same, where = one.relation_fn(items, column_items)
            options = one.fixed | arrays
            return unreduced_terms(one.fn, matrix, same, where=where, **options)
        everything = (embeddings, items), (columns, column_items)
        tiles, whole = cut_rows(everything, arrays, tile_size)
        if reduce_fn is None:
            return terms_of_rows(one, tiles, whole, len(embeddings))
        return row_totals(one, tiles, whole)

    def loss(
        embeddings: Float[Array, "n dim"],
        items: Items,
        columns: Float[Array, "m dim"] | None = None,
        column_items: Items | None = None,
        **options: Any,
    ) -> Any:
        reduce_fn, arrays, fixed = read_options(taken, options)
        one = Loss(taken.fn, matrix_fn, relation_fn, fixed)
        sets = _shares(embeddings, items, columns, column_items, relation_fn, axis_name)
        by_rows = parts(one, sets, arrays, reduce_fn)
        if reduce_fn is None:
            return by_rows[0] if len(by_rows) == 1 else by_rows
        value = _reduced(by_rows, reduce_fn, axis_name)
        if not taken.both:
            return value
        by_columns = parts(turned(one), sets[::-1], arrays, reduce_fn)
        return (value + _reduced(by_columns, reduce_fn, axis_name)) / 2

    return loss


def ring(
    loss_fn: Callable[..., Any],
    matrix_fn: MatrixFn,
    *,
    axis_name: AxisName,
    relation_fn: RelationFn = between,
    tile_size: int | None = None,
) -> Callable[..., Any]:
    """Makes a loss of a matrix that of the batch of all devices, from travelling columns.

    The columns and items of a device go around all devices. A device holds [share, share]
    numbers of the matrix at a time, or [share, tile_size]. For the gradient the columns go
    around again, together with their gradients, and nothing of a block is kept in between.

    Args:
      loss_fn: One of `losses.contrastive_loss`, `cosine_embedding_loss`, `logistic_loss`,
        `margin_loss`, `threshold_consistent_margin_loss`, `supervised_contrastive_loss`,
        `info_nce_loss`, `decoupled_contrastive_loss`, `sigmoid_pair_loss` and
        `hard_triplet_loss`, with options given by `functools.partial` or without, in one
        direction or by `losses.both_directions`. Both directions take one journey.
        `info_nce_loss` and `decoupled_contrastive_loss` take a second one if any anchor has
        several positives.
      matrix_fn: What the loss takes, of all pairs of two sets of embeddings.
      axis_name: The axis of `shard_map` or `pmap` over which the batch is spread, or
        several.
      relation_fn: Makes `(same, where)` of two `Items`.
      tile_size: Largest number of columns that are computed at a time. None takes all of a
        device.

    Returns:
      `loss(embeddings, items, columns=None, column_items=None, **options)`, as in
      `gathered`. Options that have one number per entry are refused, and in both directions
      those that have one per row. `reduce_fn` is not None.

    Raises:
      ValueError: If the loss cannot be put together from blocks of columns, `tile_size` is
        below 1, or as in `gathered`.

    Reference:
      Zhai et al. Sigmoid Loss for Language Image Pre-Training. ICCV 2023, section 3.3, for
      one direction.

    >>> from siamese_jax import distances, losses
    >>> loss_fn = ring(
    ...     losses.hard_triplet_loss, distances.euclidean_distance_matrix,
    ...     axis_name="data")
    >>> embeddings = jnp.array([[[0.0], [1.0]], [[3.0], [5.0]]])  # of two devices
    >>> labels = jnp.array([[0, 1], [0, 2]])
    >>> def loss(embeddings, labels):
    ...     return loss_fn(embeddings, Items(labels))
    >>> of_both = jax.jit(jax.vmap(loss, axis_name="data"))
    >>> print(of_both(embeddings, labels))  # 3 - 1 + 1, 3 - 2 + 1
    [2.5 2.5]
    """
    taken = taken_apart(loss_fn, matrix_fn)
    _check_tile_size(tile_size)
    fold = fold_of(taken.fn)
    if fold is None:
        raise ValueError(
            f"{getattr(taken.fn, '__name__', repr(taken.fn))} cannot be put together from "
            "blocks of columns; sharding.gathered computes it from whole rows"
        )

    def loss(
        embeddings: Float[Array, "n dim"],
        items: Items,
        columns: Float[Array, "m dim"] | None = None,
        column_items: Items | None = None,
        **options: Any,
    ) -> Any:
        reduce_fn, arrays, fixed = read_options(taken, options)
        if reduce_fn is None:
            raise ValueError(
                "reduce_fn must not be None: a ring has no terms of single entries"
            )
        weights = arrays.pop("weights", None)
        for name, option in arrays.items():
            if taken.both and jnp.ndim(option) > 0:
                raise ValueError(
                    f"{name} must be a scalar in a ring of both directions; got shape "
                    f"{jnp.shape(option)}"
                )
        one = Loss(taken.fn, matrix_fn, relation_fn, fixed)
        sets = _shares(embeddings, items, columns, column_items, relation_fn, axis_name)
        rows, others = (Rows(x, y, jnp.ones(len(x), bool), {}) for x, y in sets)

        def found_by(pieces: Callable[..., Any], rows: Rows, columns: Rows) -> list[Found]:
            block_fn = partial(_block_states, one, pieces, taken.both)
            both = journey(
                block_fn, arrays, rows, columns, axis_name=axis_name, tile_size=tile_size
            )
            return [numbers(state) for state in both[: 1 + taken.both]]

        values = [
            _reduced(fold.finish(found, weights, **fixed, **arrays), reduce_fn, axis_name)
            for found in _journeys(fold, found_by, rows, others, fixed | arrays, axis_name)
        ]
        return (values[0] + values[1]) / 2 if taken.both else values[0]

    return loss


# The journeys of a ring ------------------------------------------------------------------


def _block_states(
    loss: Loss,
    pieces: Callable[..., Any],
    both: bool,
    options: dict[str, Array],
    rows: Rows,
    columns: Rows,
) -> tuple[State, State]:
    """What a block leaves in its rows and, of both directions, in its columns.

    The second journey needs what the first has found in the rows and in the columns.
    """
    options = loss.fixed | options
    matrix = loss.matrix_fn(rows.embeddings, columns.embeddings)
    same, where = loss.relation_fn(rows.items, columns.items)
    where &= columns.real[None, :]
    of_rows, of_columns = ([x.options] if x.options else [] for x in (rows, columns))
    by_rows = of_block(pieces(matrix, same, where, *of_rows, **options))
    if not both:
        return by_rows, {}
    return by_rows, of_block(pieces(matrix.T, same.T, where.T, *of_columns, **options))


def _journeys(
    fold: Fold,
    found_by: Callable[[Callable[..., Any], Rows, Rows], list[Found]],
    rows: Rows,
    columns: Rows,
    options: dict[str, Any],
    axis_name: AxisName,
) -> list[Found]:
    """What the rows and, of both directions, the columns have found on all journeys."""
    first = found_by(fold.pieces, rows, columns)
    second, second_of_one = fold.second, fold.second_of_one
    if second is None or second_of_one is None:
        return first
    most = jnp.stack([jnp.max(found["num_positives"]) for found in first])
    rows = rows._replace(options=first[0])
    columns = columns._replace(options=first[-1])
    more = lax.cond(
        lax.pmax(jnp.max(most), axis_name) > 1,
        lambda: found_by(second, rows, columns),
        lambda: [second_of_one(found, **options) for found in first],
    )
    return [one | other for one, other in zip(first, more, strict=True)]


# Shares and sums -------------------------------------------------------------------------


def _shares(
    embeddings: Array,
    items: Items,
    columns: Array | None,
    column_items: Items | None,
    relation_fn: RelationFn,
    axis_name: AxisName,
) -> Sets:
    """This device's rows and columns. A batch with itself gets the ids of its places."""
    _check_axis(axis_name)
    alone = columns is None and column_items is None
    if alone and isinstance(items, Items) and items.ids is None:
        start = lax.axis_index(axis_name) * len(embeddings)
        items = items._replace(ids=start + jnp.arange(len(embeddings)))
    return two_sets(embeddings, items, columns, column_items, relation_fn)


def _reduced(parts: Any, reduce_fn: ReduceFn, axis_name: AxisName) -> Any:
    """The reduction of the terms, or the totals, of all devices."""
    return reduce_totals(lax.psum(totals(parts), axis_name), reduce_fn)


def _check_axis(axis_name: AxisName) -> None:
    try:
        lax.axis_size(axis_name)
    except NameError as error:
        raise ValueError(
            "axis_name must be an axis of the jax.shard_map or jax.pmap around the loss; "
            f"got {axis_name!r}"
        ) from error


def _check_tile_size(tile_size: int | None) -> None:
    if tile_size is not None:
        check_at_least("tile_size", tile_size, 1)
