"""From labels to the two masks of a matrix: which entries are same, and which are valid.

The relation of two sets of items is `(same, where)`, two boolean matrices `[n, m]`:
`same[i, j]` is True where row i and column j are of one class, `where[i, j]` is True where
the entry is valid. A set is described by its `Items`: labels, and optionally identities and
a validity mask.

>>> import jax.numpy as jnp
>>> same, where = within(Items(jnp.array([7, 7, 8])))
>>> print(same.astype(int))
[[1 1 0]
 [1 1 0]
 [0 0 1]]
>>> print(where.astype(int))  # an item is not compared with itself
[[0 1 1]
 [1 0 1]
 [1 1 0]]

Two items with equal `ids` are the same image and are never compared, so a memory queue may
contain the batch itself. Items that are not `valid`, such as padding or the empty places of
a queue, are compared with nothing.

`within` relates a batch to itself. `between` relates two sets: a batch and a queue, or the
embeddings of one device and those of all devices. `same_fn` decides what same means, such
as a common label of items with several labels. Applied to slices of the items, the same
functions give any tile of the matrices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped

from siamese_jax._checks import check_boolean, check_integer, check_rank
from siamese_jax._labels import Labels, traced_labels


class Items(NamedTuple):
    """Labels, identities and validity of n items.

    Attributes:
      labels: Class of each item, integers in an array or a list, or whatever `same_fn`
        compares.
      ids: Identity of each item. Items with equal ids are not compared. None means that all
        items are different.
      valid: False for padding, whose embeddings must still be finite. None means that all
        items are valid.
    """

    labels: Shaped[Array, "n ..."]
    ids: Int[Array, " n"] | None = None
    valid: Bool[Array, " n"] | None = None


class Relation(NamedTuple):
    """Two masks of a matrix.

    Attributes:
      same: True where the two items are of one class.
      where: True where the two items are to be compared.
    """

    same: Bool[Array, "n m"]
    where: Bool[Array, "n m"]


SameFn = Callable[[Array, Array], Bool[Array, "n m"]]


def equal_labels(rows: Labels, columns: Labels) -> Bool[Array, "n m"]:
    """Items are the same if their integer labels are equal.

    Args:
      rows: Integers, as a JAX or NumPy array or a list.
      columns: Integers.

    Raises:
      ValueError: If labels are not of shape `[n]`, or do not fit the integers of JAX.
      TypeError: If labels are not integers. `samplers.class_index` numbers strings. Floats
        are taken if they are whole numbers in a list or a NumPy array.

    >>> print(equal_labels(jnp.array([1, 2]), jnp.array([2])).tolist())
    [[False], [True]]
    """
    rows, columns = (traced_labels("labels", labels) for labels in (rows, columns))
    same = rows[:, None] == columns[None, :]
    for side in (rows[:, None], columns[None, :]):
        if rows.dtype != columns.dtype and jnp.issubdtype(side.dtype, jnp.signedinteger):
            same &= side >= 0  # else -1 would be the largest number without a sign
    return same


def shared_label(
    rows: Bool[Array, "n classes"], columns: Bool[Array, "m classes"]
) -> Bool[Array, "n m"]:
    """Items are the same if they have a label in common.

    Args:
      rows: True where the item has the label.
      columns: True where the item has the label.

    Raises:
      ValueError: If label sets are not of shape `[n, classes]`.
      TypeError: If label sets are not boolean.

    >>> a, b = jnp.array([[True, True, False]]), jnp.array([[False, True, True]])
    >>> print(shared_label(a, b).tolist())
    [[True]]
    """
    for labels in (rows, columns):
        check_rank("labels", labels, 2)
        check_boolean("labels", labels)
    common = jnp.matmul(
        rows.astype(jnp.float32),
        columns.T.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )
    return common > 0


def between(rows: Items, columns: Items, *, same_fn: SameFn = equal_labels) -> Relation:
    """Relation of two sets, in which equal ids and invalid items are masked.

    Args:
      rows: n items.
      columns: m items. Ids are compared if both sets have them.
      same_fn: Takes the labels of both sets and returns which entries are same, `[n, m]`.

    Raises:
      ValueError: If the ids or the validity mask of a set are not one per item.
      TypeError: If labels or ids are not integers or a validity mask is not boolean.

    >>> batch = Items(jnp.array([1, 2]), ids=jnp.array([10, 11]))
    >>> queue = Items(jnp.array([1, 1, 2]), ids=jnp.array([10, 9, 8]))
    >>> print(between(batch, queue).where.tolist())
    [[False, True, True], [True, True, True]]
    """
    rows = _checked_items("rows", rows, same_fn)
    columns = _checked_items("columns", columns, same_fn)
    same = same_fn(rows.labels, columns.labels)
    where = jnp.ones(same.shape, bool)
    if rows.ids is not None and columns.ids is not None:
        where &= rows.ids[:, None] != columns.ids[None, :]
    if rows.valid is not None:
        where &= rows.valid[:, None]
    if columns.valid is not None:
        where &= columns.valid[None, :]
    return Relation(same, where)


def within(items: Items, *, same_fn: SameFn = equal_labels) -> Relation:
    """Relation of a set with itself, in which no item is compared with itself.

    Args:
      items: n items.
      same_fn: Takes the labels twice and returns which entries are same, `[n, n]`.

    Raises:
      ValueError: If the ids or the validity mask are not one per item.
      TypeError: If labels or ids are not integers or the validity mask is not boolean.

    >>> items = Items(jnp.array([1, 1]), valid=jnp.array([True, False]))
    >>> print(within(items).where.tolist())
    [[False, False], [False, False]]
    """
    items = _checked_items("items", items, same_fn)
    if items.ids is None:
        items = items._replace(ids=jnp.arange(_num_items(items)))
    return between(items, items, same_fn=same_fn)


def aligned(num_rows: int) -> Relation:
    """Relation of two sets of n items, in which equal positions belong together.

    They are two views of the same examples, or images and their texts. All other entries
    are negatives.

    >>> same, where = aligned(2)
    >>> print(same.tolist(), where.tolist())
    [[True, False], [False, True]] [[True, True], [True, True]]
    """
    items = Items(jnp.arange(num_rows))
    return between(items, items)


def _num_items(items: Items) -> int:
    return len(jax.tree.leaves(items.labels)[0])


def _is_nested_list(labels: Any) -> bool:
    leaves = jax.tree.leaves(labels)
    return isinstance(labels, list | tuple) and all(np.ndim(leaf) == 0 for leaf in leaves)


def _checked_items(name: str, items: Items, same_fn: SameFn) -> Items:
    """Refuses wrong ids and masks, and returns the items with labels that are arrays."""
    if not isinstance(items, Items):
        raise TypeError(f"{name} must be Items(labels); got {type(items).__name__}")
    if same_fn is equal_labels:
        items = items._replace(labels=traced_labels(f"{name}.labels", items.labels))
    elif _is_nested_list(items.labels):
        items = items._replace(labels=jnp.asarray(items.labels))
    num_items = _num_items(items)
    for field, check in (("ids", check_integer), ("valid", check_boolean)):
        value = getattr(items, field)
        if value is None:
            continue
        check(f"{name}.{field}", value)
        if value.shape != (num_items,):
            raise ValueError(
                f"{name}.{field} must have shape ({num_items},), one per label; "
                f"got {value.shape}"
            )
    return items
