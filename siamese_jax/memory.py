"""A memory queue: embeddings of earlier batches, as further columns of a loss.

A loss over a matrix compares the rows of a batch with columns. With a queue of the
embeddings of the last batches there are many more columns, at no cost in the encoder:

>>> import jax.numpy as jnp
>>> from siamese_jax import distances, losses, relations
>>> queue = make_queue(3, 1)
>>> queue = push(queue, jnp.array([[1.0], [2.0]]), Items(jnp.array([7, 8]), jnp.arange(2)))
>>> embeddings = jnp.array([[1.5]])
>>> items = Items(jnp.array([7]), ids=jnp.array([2]))
>>> columns = joined(queue, embeddings, items)
>>> print(columns.embeddings[:, 0], columns.items.valid)  # the batch, then the queue
[1.5 1.  2.  0. ] [ True  True  True False]
>>> same, where = relations.between(items, columns.items)
>>> print(same.astype(int), where.astype(int))  # the item is not compared with itself
[[1 1 0 0]] [[0 1 1 0]]
>>> matrix = distances.euclidean_distance_matrix(embeddings, columns.embeddings)
>>> print(losses.contrastive_loss(matrix, same, where=where))  # (1/2 1/4 + 1/2 1/4) / 2
0.125

The queue is a tree of arrays of fixed size, so a training step takes and returns it in its
statistics, and a checkpoint holds all of it::

    def loss_fn(params, statistics, batch, key):
        embeddings = apply(params, batch["images"])
        items = Items(batch["labels"], ids=batch["ids"])
        columns = joined(statistics["queue"], embeddings, items)
        same, where = relations.between(items, columns.items)
        matrix = distances.cosine_similarity_matrix(embeddings, columns.embeddings)
        loss = losses.supervised_contrastive_loss(matrix, same, where=where)
        return loss, ({"queue": push(statistics["queue"], embeddings, items)}, {})

This is cross-batch memory, for an encoder that changes slowly, such as after the first
epochs. While it changes fast, the loss falls most easily if all new embeddings move away
from all old ones. In momentum contrast the embeddings of the columns, those of the batch
too, come from a second network, whose parameters are a moving average of those that are
trained: keep them in the statistics, and call `momentum_update` in the loss function.

On several devices every device holds the whole queue. `push(..., axis_name=...)` gathers
the batch in the order of the devices first, so that the queues stay equal. Under `jit` over
a mesh nothing is needed.

References:
  Wang et al. Cross-Batch Memory for Embedding Learning. CVPR 2020, section 3.2. There the
  queue holds the batch too when the loss is computed. Here the batch stands beside it with
  its gradient.
  He et al. Momentum Contrast for Unsupervised Visual Representation Learning. CVPR 2020,
  algorithm 1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_floating,
    check_integer,
    check_rank,
    check_scalar,
    check_shape,
)
from siamese_jax._labels import fitting, traced_labels
from siamese_jax._numerics import Scalar, widen
from siamese_jax.relations import Items


class Queue(NamedTuple):
    """The last valid items that were pushed, and their embeddings.

    Attributes:
      embeddings: Embeddings, which are not differentiated; 0 in places not yet filled.
      items: Labels and ids. `valid` is False in places not yet filled, and its sum is the
        number of items held.
      position: Place of the next item, below the size of the queue. Once the queue is
        full, the oldest item is there.
    """

    embeddings: Float[Array, "size dim"]
    items: Items
    position: Int[Array, ""]


class Columns(NamedTuple):
    """The columns of a matrix: a batch, and the contents of a queue after it.

    Attributes:
      embeddings: Embeddings of the batch, with their gradient, and of the queue, without.
      items: What they are; `valid` is False in places of the queue not yet filled.
    """

    embeddings: Float[Array, "m dim"]
    items: Items


def make_queue(
    size: int, dim: int, *, dtype: DTypeLike = jnp.float32, like: Items | None = None
) -> Queue:
    """Returns an empty queue.

    Args:
      size: Number of embeddings that it holds.
      dim: Number of dimensions of an embedding.
      dtype: Type of the embeddings in the queue.
      like: Items such as will be pushed, whose labels and ids give the shapes and types.
        None means one 32-bit integer as label and one as id.

    Raises:
      ValueError: If `size` or `dim` is below 1, or `like` has no ids.

    >>> queue = make_queue(3, 2)
    >>> print(queue.embeddings.shape, queue.items.valid, queue.position)
    (3, 2) [False False False] 0
    """
    check_at_least("size", size, 1)
    check_at_least("dim", dim, 1)
    if like is None:
        like = Items(jnp.zeros(1, jnp.int32), ids=jnp.zeros(1, jnp.int32))
    labels, ids, _ = _checked_items("like", like)

    def empty(array: Array) -> Array:
        return jnp.zeros((size, *array.shape[1:]), array.dtype)

    items = Items(jax.tree.map(empty, labels), empty(ids), jnp.zeros(size, bool))
    return Queue(jnp.zeros((size, dim), dtype), items, jnp.zeros((), jnp.int32))


def push(
    queue: Queue,
    embeddings: Float[Array, "n dim"],
    items: Items,
    *,
    axis_name: str | None = None,
) -> Queue:
    """Puts a batch into the queue, in the place of the oldest items.

    Items that are not valid, such as padding, are not pushed. So the queue always holds the
    last `size` valid items, whatever the sizes of the batches; of a batch with more it
    holds the last ones. The embeddings take the type of the queue and lose their gradient.

    Args:
      queue: The queue before.
      embeddings: The embeddings of the batch, on several devices those of this device.
      items: The labels and ids of the batch. Ids must be given: equal ids mean the same
        image, and are not compared. An example number, or the step times the batch size
        plus the row, will do.
      axis_name: Name of the axis of `pmap` or `shard_map` over which the batch is gathered,
        device after device. None does not gather.

    Raises:
      ValueError: If `embeddings` has another number of dimensions than the queue, items are
        not one per embedding, labels have another structure or shape than in the queue, or
        ids are missing.
      TypeError: If `embeddings` is not floating-point, ids are not integers, the validity
        mask is not boolean, or labels or ids do not fit their type in the queue.

    >>> queue = make_queue(2, 1)
    >>> for number in range(3):
    ...     item = Items(jnp.array([number]), ids=jnp.array([number]))
    ...     queue = push(queue, jnp.array([[10.0 * number]]), item)
    >>> print(queue.embeddings.tolist(), queue.items.labels, queue.position)
    [[20.0], [10.0]] [2 1] 1
    """
    items = _checked_batch(queue, embeddings, items)
    if axis_name is not None:
        embeddings, items = _gathered((embeddings, items), axis_name)
    size, num_rows = len(queue.embeddings), len(embeddings)
    valid = jnp.asarray(items.valid)
    num_valid = jnp.sum(valid, dtype=jnp.int32)
    rank = jnp.cumsum(valid, dtype=jnp.int32) - 1  # among the valid items
    kept = valid & (rank >= num_valid - size)
    beyond = size + jnp.arange(num_rows, dtype=jnp.int32)  # where nothing is written
    places = jnp.where(kept, (queue.position + rank) % size, beyond)

    def write(into: Array, rows: Array) -> Array:
        rows = lax.stop_gradient(rows).astype(into.dtype)
        return into.at[places].set(rows, mode="drop", unique_indices=True)

    embeddings, items = jax.tree.map(
        write, (queue.embeddings, queue.items), (embeddings, items)
    )
    return Queue(embeddings, items, (queue.position + num_valid) % size)


def joined(queue: Queue, embeddings: Float[Array, "n dim"], items: Items) -> Columns:
    """Returns the columns of a loss: the batch, then the queue.

    The gradient reaches the embeddings of the batch alone. Push the batch afterwards, else
    it is there twice; `relations.between` leaves out its second copy, whose ids are equal.

    Args:
      queue: The queue before the batch is pushed.
      embeddings: The embeddings of the batch, on several devices those of all devices.
      items: The labels and ids of the batch, as for `push`.

    Raises:
      ValueError: As in `push`.
      TypeError: As in `push`.

    >>> columns = joined(
    ...     make_queue(1, 2), jnp.ones((2, 2)), Items(jnp.array([4, 5]), jnp.array([0, 1])))
    >>> print(columns.items.labels, columns.items.valid)
    [4 5 0] [ True  True False]
    """
    items = _checked_batch(queue, embeddings, items)
    held = lax.stop_gradient(queue.embeddings), queue.items
    return Columns(
        *jax.tree.map(lambda *parts: jnp.concatenate(parts), (embeddings, items), held)
    )


def momentum_update(target: PyTree, source: PyTree, momentum: Scalar) -> PyTree:
    """Moving average of parameters: m target + (1 - m) source.

    Half precision is computed in float32 and rounded to the type of the target, in which
    small changes are lost: keep the target in float32. Integers and booleans, such as
    counters, are those of the source. The result is not differentiated.

    Args:
      target: The averages so far.
      source: The parameters that are trained, a tree of the same structure and shapes.
      momentum: m, such as 0.999 in momentum contrast. It may be traced.

    Raises:
      ValueError: If the structures or shapes of the trees differ, or `momentum` is not a
        scalar, or is a number below 0 or above 1.

    Reference:
      He et al. Momentum Contrast for Unsupervised Visual Representation Learning. CVPR
      2020, eq. 2. Grill et al. Bootstrap Your Own Latent. NeurIPS 2020, eq. 1.

    >>> print(momentum_update(jnp.array([1.0, 4.0]), jnp.array([3.0, 0.0]), 0.75))
    [1.5 3. ]
    """
    check_scalar("momentum", momentum)
    if isinstance(momentum, int | float) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be from 0 to 1; got {momentum}")
    found, wanted = (jax.tree.map(jnp.shape, tree) for tree in (source, target))
    if found != wanted:
        raise ValueError(f"source must have the shapes of target, {wanted}; got {found}")

    def average(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
            return lax.stop_gradient(new)
        mean = momentum * widen(old) + (1 - momentum) * widen(new)
        return lax.stop_gradient(mean).astype(old.dtype)

    return jax.tree.map(average, *jax.tree.map(jnp.asarray, (target, source)))


# Checks and devices ---------------------------------------------------------------------


def _checked_batch(queue: Queue, embeddings: Array, items: Items) -> Items:
    """Refuses what does not fit the queue, and returns the items with a validity mask."""
    check_floating("embeddings", embeddings)
    check_rank("embeddings", embeddings, 2)
    num_rows, dim = len(embeddings), queue.embeddings.shape[1]
    check_shape("embeddings", embeddings, (num_rows, dim), "as wide as the queue")
    labels, ids, valid = _checked_items("items", items)
    if valid is None:
        valid = jnp.ones(num_rows, bool)
    check_boolean("items.valid", valid)
    check_shape("items.valid", valid, (num_rows,), "one per embedding")
    for name, given, held in (
        ("labels", labels, queue.items.labels),
        ("ids", ids, queue.items.ids),
    ):
        wanted = jax.tree.map(lambda leaf: (num_rows, *leaf.shape[1:]), held)
        found = jax.tree.map(jnp.shape, given)
        if found != wanted:
            raise ValueError(
                f"items.{name} must have shape {wanted}, one per embedding and as in the "
                f"queue; got {found}"
            )
        for leaf, place in zip(*map(jax.tree.leaves, (given, held)), strict=True):
            if jnp.promote_types(leaf.dtype, place.dtype) != place.dtype:
                raise TypeError(
                    f"items.{name} must fit the type of the queue, {place.dtype}; "
                    f"got {leaf.dtype} (make_queue takes items like these)"
                )
    return Items(labels, ids, valid)


def _checked_items(name: str, items: Items) -> tuple[PyTree, Array, Array | None]:
    """Labels and ids as arrays, and the validity mask; refuses items without ids."""
    if not isinstance(items, Items):
        raise TypeError(f"{name} must be Items(labels, ids); got {type(items).__name__}")
    if items.ids is None:
        raise ValueError(f"{name}.ids must be given, one integer per item; got None")
    check_integer(f"{name}.ids", items.ids)
    labels = items.labels
    if isinstance(labels, list):
        labels = traced_labels(f"{name}.labels", labels)
    labels = jax.tree.map(partial(fitting, f"{name}.labels"), labels)
    return labels, fitting(f"{name}.ids", items.ids), items.valid


def _gathered(tree: PyTree, axis_name: str) -> PyTree:
    """The rows of all devices, in the order of the devices."""

    def gather(leaf: Array) -> Array:
        # types of `shard_map` with check_vma: the result is equal on all devices
        varies = axis_name in jax.typeof(leaf).manual_axis_type.varying
        to = "invarying" if varies else "varying"
        return lax.all_gather(leaf, axis_name, tiled=True, to=to)

    return jax.tree.map(gather, lax.stop_gradient(tree))
