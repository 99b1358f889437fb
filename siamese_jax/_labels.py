"""Labels as people have them: arrays, lists, names, and numbers read as floats."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Shaped

from siamese_jax._checks import check_integer, check_rank

NamedItems = TypeVar("NamedItems")  # `Items` of a module that imports this one
Labels = Sequence[Any] | Shaped[np.ndarray, "..."] | Shaped[Array, "..."]


def host_labels(name: str, labels: Labels) -> Shaped[np.ndarray, " n"]:
    """Returns labels as an array of names, of whole numbers or of other numbers.

    Args:
      name: Name of the argument in error messages.
      labels: One label for each example: an array or a list, of strings or of numbers.

    Raises:
      ValueError: If the labels are not one-dimensional, or a number is not finite.
      TypeError: If they are neither all strings nor all numbers.

    >>> host_labels("labels", np.array(["b", "a"], object)).tolist()
    ['b', 'a']
    >>> host_labels("labels", [1.0, 2.0]).tolist()
    [1, 2]
    >>> host_labels("labels", ["a", None])
    Traceback (most recent call last):
    TypeError: labels must be all strings or all numbers; got 'a' and None
    """
    array: np.ndarray
    if isinstance(labels, list | tuple):
        array = np.empty(len(labels), object)
        array[:] = [_scalar(name, label) for label in labels]
    else:
        array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(
            f"{name} must have shape (n,), one label for each example; got {array.shape}"
        )
    if array.dtype == object:
        array = _of_one_kind(name, array)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return _whole(name, array)
    if array.dtype.kind not in "iubUSTM":
        raise TypeError(f"{name} must be strings or numbers; got dtype {array.dtype}")
    return array


def check_classes(
    name: str, labels: Shaped[np.ndarray, "..."], num: int, words: str
) -> None:
    """Raises ValueError unless there is a label for each of `num` things, of two classes.

    Args:
      name: Name of the labels in the error about classes.
      labels: What `host_labels` returns.
      num: The number of things.
      words: What the things are, after "one class for each of the".
    """
    if labels.shape != (num,):
        raise ValueError(
            f"labels must have one class for each of the {words}; got shape {labels.shape}"
        )
    classes = np.unique(labels)
    if len(classes) < 2:
        found = "none" if not len(classes) else f"one, {classes[0]!s}"
        raise ValueError(f"{name} must have two classes or more; got {found}")


def traced_labels(name: str, labels: Labels) -> Integer[Array, " n"]:
    """Returns labels as an array of integers, which may be traced.

    Raises:
      ValueError: If the labels are not one-dimensional, or an integer does not fit.
      TypeError: If they are not integers.

    >>> print(traced_labels("labels", [3, 4]))
    [3 4]
    >>> traced_labels("labels", ["anna", "bert"])
    Traceback (most recent call last):
    TypeError: labels must be integers; got strings: number them by samplers.class_index
    """
    if isinstance(labels, jax.Array):
        check_rank(name, labels, 1)
        check_integer(name, labels)
        return labels
    if isinstance(labels, list | tuple) and any(isinstance(x, jax.Array) for x in labels):
        return traced_labels(name, jnp.stack([jnp.asarray(x) for x in labels]))
    array = host_labels(name, labels)
    if array.dtype.kind in "UST":
        raise TypeError(
            f"{name} must be integers; got strings: number them by samplers.class_index"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be an integer array; got dtype {array.dtype}")
    return fitting(name, array)


def fitting(name: str, array: Any) -> Shaped[Array, "..."]:
    """Returns an array of JAX, without wrapping whole numbers that do not fit its integers.

    Raises:
      ValueError: If an integer does not fit.

    >>> print(fitting("ids", np.array([5, 7])))
    [5 7]
    """
    if isinstance(array, jax.Array):
        return array
    given = np.asarray(array)
    if given.dtype.kind not in "iu":
        return jnp.asarray(array)
    found = jax.dtypes.canonicalize_dtype(given.dtype)
    limits = jnp.iinfo(found)
    if given.size and not limits.min <= given.min() <= given.max() <= limits.max:
        raise ValueError(
            f"{name} must fit {found}; got numbers from {given.min()} to "
            f"{given.max()}: number them by samplers.class_index"
        )
    return jnp.asarray(given, found)


def fitting_items(name: str, items: NamedItems) -> NamedItems:
    """Returns `Items` with arrays of JAX, as `fitting` makes them."""

    def of_leaf(path: Any, leaf: Any) -> Array:
        return fitting(f"{name}{jax.tree_util.keystr(path)}", leaf)

    return jax.tree_util.tree_map_with_path(of_leaf, items)


def _scalar(name: str, label: Any) -> Any:
    if np.ndim(label) != 0:
        raise ValueError(
            f"{name} must have one label for each example; got {type(label).__name__} of "
            f"shape {np.shape(label)} among them"
        )
    return label.item() if isinstance(label, np.generic | np.ndarray | jax.Array) else label


def _of_one_kind(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an array of objects as one of strings or of numbers."""
    entries = [_scalar(name, entry) for entry in array]
    first_of_kind = {_kind(entry): entry for entry in reversed(entries)}
    if len(first_of_kind) > 1 or not first_of_kind.keys() <= {"string", "bytes", "number"}:
        kinds = list(dict.fromkeys(map(_kind, entries)))
        words = " and ".join(repr(first_of_kind[kind]) for kind in kinds[:2])
        raise TypeError(f"{name} must be all strings or all numbers; got {words}")
    found = np.array(entries)
    if found.dtype == object:
        raise ValueError(f"{name} must fit 64 bits; got {max(entries, key=abs)}")
    return found


def _kind(entry: Any) -> str:
    named = ((str, "string"), (bytes, "bytes"), (int | float, "number"))
    found = (name for type_, name in named if isinstance(entry, type_))
    return next(found, type(entry).__name__)


def _whole(name: str, array: np.ndarray) -> np.ndarray:
    """Returns floats as integers if all are whole numbers."""
    array = array.astype(np.float64)
    unknown = np.flatnonzero(~np.isfinite(array))
    if unknown.size:
        raise ValueError(
            f"{name} must be finite; got {array[unknown[0]]} for example {unknown[0]}"
        )
    whole = (array == np.floor(array)) & (np.abs(array) < 2**53)
    return array.astype(np.int64) if whole.all() else array
