"""The embeddings to judge: checked, with numbered classes and identities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from siamese_jax._labels import host_labels
from siamese_jax._names import enumerated, shown
from siamese_jax.errors import UserError
from siamese_jax.relations import Items, SameFn, equal_labels, shared_label

_LONGEST = 1e18


class EmbeddingSet(NamedTuple):
    """Embeddings with their classes and identities.

    Attributes:
      embeddings: One row for each example.
      labels: Number of the class of each row, or True where a row has a label.
      ids: Identity of each row. Rows of equal identity are not compared.
    """

    embeddings: Float[np.ndarray, "n dim"]
    labels: Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"]
    ids: Int[np.ndarray, " n"]

    def rows(self, rows: Int[np.ndarray, " k"]) -> "EmbeddingSet":
        """Selects some rows."""
        return EmbeddingSet(*(array[rows] for array in self))

    @property
    def items(self) -> Items:
        """Labels and identities as arrays of JAX."""
        return Items(jnp.asarray(self.labels), jnp.asarray(self.ids))


class Sets(NamedTuple):
    """Queries, and the references that they are compared with.

    Attributes:
      queries: The embeddings to judge.
      references: The embeddings to search. They are the queries if `itself`.
      itself: Whether the queries are compared with one another.
      names: Names of the classes, in the order of their numbers.
      multi_label: Whether a row has any number of labels.
    """

    queries: EmbeddingSet
    references: EmbeddingSet
    itself: bool
    names: list[str]
    multi_label: bool

    @property
    def same_fn(self) -> SameFn:
        """Which labels are the same: equal ones, or a label in common."""
        return shared_label if self.multi_label else equal_labels

    def name_of(self, labels: Any) -> str:
        """The class of a row in words; several labels are joined by commas."""
        if self.multi_label:
            names = [name for name, has in zip(self.names, labels, strict=True) if has]
            return enumerated(names, limit=3) or "no label"
        return self.names[int(labels)]


def make_sets(
    embeddings: Any,
    labels: Any,
    *,
    ids: Any = None,
    references: Any = None,
    reference_labels: Any = None,
    reference_ids: Any = None,
) -> Sets:
    """Checks arrays and numbers their classes and identities.

    Args:
      embeddings: Numbers `[n, dim]`.
      labels: Integers or strings `[n]`, or for several labels a row booleans
        `[n, classes]`.
      ids: Integers or strings `[n]`: what a row shows. Rows of equal identity are not
        compared. None means that all rows differ.
      references: Embeddings to compare with, `[m, dim]`. None compares the rows with one
        another.
      reference_labels: Their labels.
      reference_ids: Their identities, given together with `ids`.

    Raises:
      UserError: If a shape or a type is wrong, numbers of rows differ, a number is not
        finite, there are fewer than two classes, or no two rows are of one class.

    >>> sets = make_sets(np.zeros((3, 2)), ["b", "a", "b"])
    >>> sets.names, sets.queries.labels.tolist()
    (['a', 'b'], [1, 0, 1])
    """
    if (references is None) != (reference_labels is None):
        raise UserError("reference embeddings and reference labels must be given together")
    if reference_ids is not None and references is None:
        raise UserError("reference ids are given without reference embeddings")
    x = checked_embeddings("embeddings", embeddings)
    parts = [("labels", labels, len(x))]
    found = [x]
    if references is not None:
        found.append(checked_embeddings("reference embeddings", references))
        if found[1].shape[1] != x.shape[1]:
            raise UserError(
                f"reference embeddings must have {x.shape[1]} columns, as the embeddings "
                f"have; got {found[1].shape[1]}"
            )
        parts.append(("reference labels", reference_labels, len(found[1])))
    numbered, names = _numbered_labels(parts)
    multi_label = numbered[0].ndim == 2
    identities = _identities([len(rows) for rows in found], ids, reference_ids)
    sets = [EmbeddingSet(*of) for of in zip(found, numbered, identities, strict=True)]
    result = Sets(sets[0], sets[-1], references is None, names, multi_label)
    _check_classes(result)
    return result


def checked_embeddings(name: str, embeddings: Any) -> Float[np.ndarray, "n dim"]:
    """Returns rows of float32, or raises UserError if they are not all numbers.

    The square of the length of a row must fit in float32, or its distances are not finite.
    """
    array = np.asarray(embeddings)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 1:
        raise UserError(f"{name} must have shape [rows, dimensions]; got {array.shape}")
    if array.dtype.kind not in "fiu" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name} must be numbers; got {array.dtype}")
    with np.errstate(over="ignore"):
        rows = array.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if wrong.size:
        raise UserError(
            f"{name} must be finite; {wrong.size} of {len(rows)} rows have NaN or "
            f"infinity, first row {wrong[0]}"
        )
    long = np.flatnonzero(np.linalg.norm(rows.astype(np.float64), axis=1) > _LONGEST)
    if long.size:
        raise UserError(
            f"{name} must have lengths up to {_LONGEST:.0e}, of which the squares fit in "
            f"float32; {long.size} of {len(rows)} rows are longer, first row {long[0]}"
        )
    return rows


def some_rows(rows: Int[np.ndarray, " n"], most: int, seed: int) -> Int[np.ndarray, " k"]:
    """All rows, or the given number of random ones, ascending.

    >>> some_rows(np.array([3, 5]), 2, 0).tolist()
    [3, 5]
    """
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _numbered_labels(
    parts: Sequence[tuple[str, Any, int]],
) -> tuple[list[np.ndarray], list[str]]:
    """Numbers the classes of one or two sets alike."""
    arrays = []
    for name, labels, num in parts:
        array = labels if isinstance(labels, list | tuple) else np.asarray(labels)
        found = "one value" if _num_axes(name, array) == 0 else len(array)
        if found != num:
            raise UserError(f"{name} must be {num}, one for each row; got {found}")
        arrays.append(array)
    if any(np.ndim(array) == 2 for array in arrays):
        return _label_sets(parts[0][0], [np.asarray(array) for array in arrays])
    try:
        checked = [
            host_labels(name, array)
            for (name, _, _), array in zip(parts, arrays, strict=True)
        ]
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    kinds = {array.dtype.kind in "UST" for array in checked}
    if len(kinds) > 1:
        both = " and ".join(name for name, _, _ in parts)
        raise UserError(f"{both} must be both strings or both numbers")
    classes, numbers = np.unique(np.concatenate(checked), return_inverse=True)
    split = np.split(numbers.astype(np.int32), [len(checked[0])])
    names = [shown(str(_text(name))) for name in classes]
    return split[: len(checked)], names


def _num_axes(name: str, array: Any) -> int:
    try:
        return np.ndim(array)
    except ValueError as error:  # lists of several lengths
        raise UserError(f"{name} must have rows of one length") from error


def _text(name: Any) -> Any:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _label_sets(name: str, arrays: list[np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1 or any(array.dtype != bool for array in arrays):
        kinds = " and ".join(f"{array.dtype} {array.shape}" for array in arrays)
        raise UserError(
            f"{name} must be integers or strings [rows], or True and False "
            f"[rows, classes]; got {kinds}"
        )
    return arrays, [str(number) for number in range(shapes.pop()[0])]


def _identities(sizes: Sequence[int], *given: Any) -> list[Int[np.ndarray, " n"]]:
    """Numbers of the identities of each set; without any, all rows differ."""
    if all(ids is None for ids in given):
        return np.split(np.arange(sum(sizes), dtype=np.int32), np.cumsum(sizes))[:-1]
    if any(ids is None for ids in given[: len(sizes)]):
        raise UserError("ids and reference ids must be given together")
    parts = list(zip(("ids", "reference ids"), given, sizes, strict=False))
    for name, ids, _ in parts:
        if np.ndim(ids) != 1:
            raise UserError(f"{name} must have shape [rows]; got {np.shape(ids)}")
    return _numbered_labels(parts)[0]


def _check_classes(sets: Sets) -> None:
    labels = [sets.queries.labels, sets.references.labels]
    if sets.multi_label:
        counts = [np.count_nonzero(array, axis=0) for array in labels]
    else:
        counts = [np.bincount(array, minlength=len(sets.names)) for array in labels]
        if len(sets.names) < 2:
            raise UserError(
                f"labels must name at least two classes; all rows are of class "
                f"{sets.names[0]}"
            )
    enough = counts[0] >= 2 if sets.itself else (counts[0] > 0) & (counts[1] > 0)
    if not enough.any():
        raise UserError(
            "no two rows are of one class, so that nothing can be found"
            if sets.itself
            else "no reference is of the class of a query: they have no label in common"
        )
