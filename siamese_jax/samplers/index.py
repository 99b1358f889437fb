"""The class index: which examples belong to each class, and which classes to each group."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from siamese_jax._checks import check_at_least
from siamese_jax._labels import Labels, host_labels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassIndex:
    """The examples sorted by class, and the classes sorted by group.

    Classes and groups are numbered in ascending order of their labels. The index is a
    pytree, so compiled functions take it as an argument; the sizes that decide whether a
    request is refused are static.

    Attributes:
      examples: Example numbers, class after class.
      starts: Position in `examples` of the first example of each class.
      counts: Number of examples of each class.
      class_of: Class number of each example.
      rank_of: Position of each example within its class.
      group_of: Group number of each class.
      group_classes: Class numbers, group after group.
      group_starts: Position in `group_classes` of the first class of each group.
      group_counts: Number of classes of each group.
      group_rank_of: Position of each class within its group.
      smallest_class: Label and number of examples of the smallest class.
      group_sizes: Label and number of classes of each group, smallest first.
    """

    examples: Int[Array, "*stack n"]
    starts: Int[Array, "*stack classes"]
    counts: Int[Array, "*stack classes"]
    class_of: Int[Array, "*stack n"]
    rank_of: Int[Array, "*stack n"]
    group_of: Int[Array, "*stack classes"]
    group_classes: Int[Array, "*stack classes"]
    group_starts: Int[Array, "*stack groups"]
    group_counts: Int[Array, "*stack groups"]
    group_rank_of: Int[Array, "*stack classes"]
    smallest_class: tuple[Any, int] = dataclasses.field(metadata={"static": True})
    group_sizes: tuple[tuple[Any, int], ...] = dataclasses.field(metadata={"static": True})

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return self.class_of.shape[-1]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.counts.shape[-1]


def class_index(labels: Labels, *, groups: Labels | None = None) -> ClassIndex:
    """Builds the index of a labelled data set; runs on the host.

    Args:
      labels: The label of each example: strings, or numbers. Whole numbers count as
        integers, whatever their type.
      groups: The group of each example, in the same way. All examples of a class must be in
        one group. None puts all classes into one group.

    Raises:
      ValueError: If `labels` is not one-dimensional or is empty, a label is not finite,
        `groups` has another shape, or a class is in several groups; the class is named.
      TypeError: If labels or groups are neither all strings nor all numbers.

    >>> index = class_index(["a", "b", "b"])
    >>> print(index.counts, index.smallest_class)
    [1 2] ('a', 1)
    """
    labels = host_labels("labels", labels)
    if labels.size == 0:
        raise ValueError("labels must have at least one example; got none")
    groups = np.zeros_like(labels, int) if groups is None else host_labels("groups", groups)
    if groups.shape != labels.shape:
        raise ValueError(
            f"groups must have shape {labels.shape} to match labels; got {groups.shape}"
        )
    names, class_of = np.unique(labels, return_inverse=True)
    group_names, group_of_example = np.unique(groups, return_inverse=True)
    examples, starts, counts, rank_of = _sorted_runs(class_of, len(names))
    group_of = group_of_example[examples[starts]]
    elsewhere = np.flatnonzero(group_of[class_of] != group_of_example)
    if elsewhere.size:
        name = names[class_of[elsewhere[0]]]
        found = np.unique(groups[labels == name])
        raise ValueError(f"class {name.item()!r} is in several groups: {found.tolist()}")
    group_classes, group_starts, group_counts, group_rank_of = _sorted_runs(
        group_of, len(group_names)
    )
    return ClassIndex(
        examples=jnp.asarray(examples, jnp.int32),
        starts=jnp.asarray(starts, jnp.int32),
        counts=jnp.asarray(counts, jnp.int32),
        class_of=jnp.asarray(class_of, jnp.int32),
        rank_of=jnp.asarray(rank_of, jnp.int32),
        group_of=jnp.asarray(group_of, jnp.int32),
        group_classes=jnp.asarray(group_classes, jnp.int32),
        group_starts=jnp.asarray(group_starts, jnp.int32),
        group_counts=jnp.asarray(group_counts, jnp.int32),
        group_rank_of=jnp.asarray(group_rank_of, jnp.int32),
        smallest_class=(names[counts.argmin()].item(), int(counts.min())),
        group_sizes=tuple(
            (group_names[group].item(), int(group_counts[group]))
            for group in np.argsort(group_counts, kind="stable")
        ),
    )


def _sorted_runs(numbers: np.ndarray, num_runs: int) -> tuple[np.ndarray, ...]:
    """Sorts numbers stably into runs of equal ones.

    Returns:
      The order, the start and the length of each run, and for each number its position
      within its run.
    """
    order = np.argsort(numbers, kind="stable")
    lengths = np.bincount(numbers, minlength=num_runs)
    starts = np.cumsum(lengths) - lengths
    places = np.empty(len(numbers), int)
    places[order] = np.arange(len(numbers)) - starts[numbers[order]]
    return order, starts, lengths, places


def check_index(index: ClassIndex) -> None:
    """Raises TypeError for labels in place of their index."""
    if not isinstance(index, ClassIndex):
        raise TypeError(f"index must be class_index(labels); got {type(index).__name__}")


def require_examples(index: ClassIndex, needed: int) -> None:
    """Raises ValueError unless every class has at least `needed` examples."""
    check_index(index)
    label, count = index.smallest_class
    if count < needed:
        raise ValueError(
            f"every class needs at least {needed} examples; class {label!r} has {count}"
        )


def require_classes(index: ClassIndex, needed: int, max_groups: int | None) -> None:
    """Raises ValueError unless any `max_groups` groups have at least `needed` classes."""
    check_index(index)
    if max_groups is None:
        if index.num_classes < needed:
            raise ValueError(
                f"at least {needed} classes are needed; there are {index.num_classes}"
            )
        return
    check_at_least("max_groups", max_groups, 1)
    smallest = index.group_sizes[:max_groups]
    found = sum(size for _, size in smallest)
    if found < needed:
        groups = ", ".join(f"{label!r} ({size} classes)" for label, size in smallest)
        raise ValueError(
            f"{needed} classes are needed from at most {max_groups} group(s); "
            f"the smallest have {found}: {groups}"
        )
