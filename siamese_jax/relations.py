"""Who is the same as whom, and which comparisons count.

A relation of two sets is `(same, where)`, two boolean matrices `[n, m]`: `same[i, j]` is
True where row i and column j are of one class, `where[i, j]` where the comparison counts.
A set is its `Items`: labels, and optionally identities and a validity mask.

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

Two items with equal `ids` are the same image and are never compared: so a memory queue may
hold the batch itself. Items that are not `valid` (padding, a queue not yet full) are
compared with nothing. A batch against itself, a queue, other devices' embeddings, several
labels an item: all are `between` two `Items`, and no loss needs to know.

A relation function takes two `Items` and can build any tile of the matrix from slices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped

from siamese_jax._checks import check_boolean, check_integer, check_rank


class Items(NamedTuple):
    """What is known of each of n items, besides its embedding.

    Attributes:
      labels: Class of each item, or whatever the relation's `same_fn` compares.
      ids: Identity of each item; equal ids are the same image and are not compared.
      valid: False for padding, whose embeddings must be finite all the same.
    """

    labels: Shaped[Array, "n ..."]
    ids: Int[Array, " n"] | None = None
    valid: Bool[Array, " n"] | None = None


class Relation(NamedTuple):
    """`same`: of one class. `where`: this comparison counts."""

    same: Bool[Array, "n m"]
    where: Bool[Array, "n m"]


SameFn = Callable[[Array, Array], Bool[Array, "n m"]]


def equal_labels(rows: Int[Array, " n"], columns: Int[Array, " m"]) -> Bool[Array, "n m"]:
    """Same where the two integer labels are equal.

    Raises:
      ValueError: If labels are not `[n]`: `[n, 1]` would broadcast silently.
      TypeError: If labels are not integers.

    >>> print(equal_labels(jnp.array([1, 2]), jnp.array([2])).tolist())
    [[False], [True]]
    """
    for labels in (rows, columns):
        check_rank("labels", labels, 1)
        check_integer("labels", labels)
    return rows[:, None] == columns[None, :]


def shared_label(
    rows: Bool[Array, "n classes"], columns: Bool[Array, "m classes"]
) -> Bool[Array, "n m"]:
    """Same where the two label sets (rows of a boolean matrix) have a common member.

    Raises:
      ValueError: If label sets are not `[n, classes]`.
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
    """Relation of two sets: equal ids and invalid items are left out.

    Ids are compared if both sides have them.

    Args:
      rows: n items.
      columns: m items.
      same_fn: Takes both labels, returns which entries are of one class `[n, m]`.

    Raises:
      ValueError: If a set's ids or validity is not one per item.
      TypeError: If ids are not integers or validity not boolean.

    >>> batch = Items(jnp.array([1, 2]), ids=jnp.array([10, 11]))
    >>> queue = Items(jnp.array([1, 1, 2]), ids=jnp.array([10, 9, 8]))
    >>> print(between(batch, queue).where.tolist())
    [[False, True, True], [True, True, True]]
    """
    _check_items("rows", rows)
    _check_items("columns", columns)
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
    """Relation of a set with itself: no item is compared with itself.

    Raises:
      ValueError: If ids or validity is not one per item.
      TypeError: If ids are not integers or validity not boolean.

    >>> items = Items(jnp.array([1, 1]), valid=jnp.array([True, False]))
    >>> print(within(items).where.tolist())
    [[False, False], [False, False]]
    """
    _check_items("items", items)
    if items.ids is None:
        num_items = len(jax.tree.leaves(items.labels)[0])
        items = items._replace(ids=jnp.arange(num_items))
    return between(items, items, same_fn=same_fn)


def _check_items(name: str, items: Items) -> None:
    if not isinstance(items, Items):
        raise TypeError(f"{name} must be Items(labels); got {type(items).__name__}")
    num_items = len(jax.tree.leaves(items.labels)[0])
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
