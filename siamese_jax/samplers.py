"""Which examples meet: pure functions of a key, on the device, inside a scan if you like.

A class index is built once from the labels, on the host; every sampler then takes
`(key, index, counts)` and returns numbers of examples, to be used as `images[numbers]`.

>>> import jax
>>> import numpy as np
>>> labels = np.array([5, 5, 5, 6, 6, 7, 7])
>>> index = class_index(labels)
>>> pairs = sample_pairs(jax.random.key(0), index, num_pairs=4)
>>> print(pairs.examples.shape, pairs.same.tolist())
(2, 4) [True, False, True, False]
>>> left, right = labels[pairs.examples]
>>> print((left == right).tolist())
[True, False, True, False]

* Classes are drawn evenly, whatever their sizes, and examples evenly within their class.
* Drawn examples of one class are distinct: a positive pair never holds one image twice.
* Groups (an alphabet, a family) make harder batches: `max_groups` draws the classes of a
  batch or episode from as few groups as hold them, `within_groups` draws the negative of
  a pair or triplet from the anchor's group.
* A request that a class or group is too small for raises `ValueError` when the sampler is
  traced, before any work, and names it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from siamese_jax._checks import check_at_least


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassIndex:
    """Where the examples of each class, and the classes of each group, are found.

    Classes and groups are numbered in ascending order of their labels. The sizes needed
    to refuse a request are static, so `jit` may take an index as an argument.

    Attributes:
      examples: Numbers of the examples, class after class.
      starts: Where each class begins in `examples`.
      counts: Number of examples of each class.
      class_of: Class of each example.
      rank_of: Place of each example within its class.
      group_of: Group of each class.
      group_classes: Classes, group after group.
      group_starts: Where each group begins in `group_classes`.
      group_counts: Number of classes of each group.
      group_rank_of: Place of each class within its group.
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


class Pairs(NamedTuple):
    """Examples to compare, and whether they are of one class."""

    examples: Int[Array, "2 pairs"]
    same: Bool[Array, " pairs"]


class Batch(NamedTuple):
    """P classes with K examples each, class after class."""

    examples: Int[Array, " p_times_k"]
    labels: Int[Array, " p_times_k"]


class Episode(NamedTuple):
    """An N-way task: row i of support and of query are distinct examples of one class."""

    support: Int[Array, "ways shots"]
    query: Int[Array, "ways queries"]


class EpochOrder(NamedTuple):
    """Every example once, in batches; the last is padded with masked repeats."""

    examples: Int[Array, "batches batch_size"]
    where: Bool[Array, "batches batch_size"]


# The index ----------------------------------------------------------------------------


def class_index(
    labels: np.ndarray | Sequence[Any], *, groups: np.ndarray | Sequence | None = None
) -> ClassIndex:
    """Sorts examples by class and classes by group; runs on the host, once.

    Args:
      labels: One label an example: integers or strings.
      groups: The group of each example; all examples of a class are in one group. None
        puts every class in one group.

    Raises:
      ValueError: If labels are not one-dimensional or are empty, groups are not one an
        example, or a class is in two groups (named).

    >>> index = class_index(["a", "b", "b"])
    >>> print(index.counts, index.smallest_class)
    [1 2] ('a', 1)
    """
    labels = np.asarray(labels)
    groups = np.zeros(labels.shape, int) if groups is None else np.asarray(groups)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"labels must have shape (n,), n >= 1; got {labels.shape}")
    if groups.shape != labels.shape:
        raise ValueError(
            f"groups must have shape {labels.shape} to match labels; got {groups.shape}"
        )
    names, class_of = np.unique(labels, return_inverse=True)
    group_names, group_of_example = np.unique(groups, return_inverse=True)
    examples, starts, counts, rank_of = _sorted_runs(class_of, len(names))
    group_of = group_of_example[examples[starts]]
    astray = np.flatnonzero(group_of[class_of] != group_of_example)
    if astray.size:
        name = names[class_of[astray[0]]]
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
    """Order of a stable sort, start and length of each run, and place within the run."""
    order = np.argsort(numbers, kind="stable")
    lengths = np.bincount(numbers, minlength=num_runs)
    starts = np.cumsum(lengths) - lengths
    places = np.empty(len(numbers), int)
    places[order] = np.arange(len(numbers)) - starts[numbers[order]]
    return order, starts, lengths, places


# Pairs and triplets -------------------------------------------------------------------


def sample_pairs(
    key: PRNGKeyArray, index: ClassIndex, num_pairs: int, *, within_groups: bool = False
) -> Pairs:
    """Balanced pairs: same and different alternate, so any even share is balanced too.

    Args:
      key: A JAX key.
      index: From `class_index`.
      num_pairs: How many pairs.
      within_groups: Take the other class of a different pair from the same group.

    Raises:
      ValueError: If a class has fewer than 2 examples, or there are fewer than 2 classes
        (in a group, if `within_groups`); the class or group is named.

    >>> index = class_index([0, 0, 1, 1])
    >>> print(sample_pairs(jax.random.key(0), index, 6).examples.shape)
    (2, 6)
    """
    check_at_least("num_pairs", num_pairs, 1)
    anchor_key, partner_key = jax.random.split(key)
    anchors = _sample_anchors(anchor_key, index, num_pairs)
    same = jnp.arange(num_pairs) % 2 == 0
    partners = sample_partners(
        partner_key, index, anchors, same, within_groups=within_groups
    )
    return Pairs(jnp.stack([anchors, partners]), same)


def sample_partners(
    key: PRNGKeyArray,
    index: ClassIndex,
    anchors: Int[Array, " n"],
    same: Bool[Array, " n"],
    *,
    within_groups: bool = False,
) -> Int[Array, " n"]:
    """A partner for each given example: another of its class, or one of another class.

    Args:
      key: A JAX key.
      index: From `class_index`.
      anchors: Numbers of examples.
      same: True for a partner of the same class, which is never the anchor itself.
      within_groups: Take the other class from the anchor's group.

    Raises:
      ValueError: As `sample_pairs`.

    >>> index = class_index([0, 0, 1, 1])
    >>> anchors, same = jnp.array([0, 3]), jnp.array([True, True])
    >>> print(sample_partners(jax.random.key(0), index, anchors, same).tolist())
    [1, 2]
    """
    _require_examples(index, 2)
    positive_key, negative_key = jax.random.split(key)
    positives = _sample_positives(positive_key, index, anchors)
    negatives = _sample_negatives(negative_key, index, anchors, within_groups)
    return jnp.where(same, positives, negatives)


def sample_triplets(
    key: PRNGKeyArray,
    index: ClassIndex,
    num_triplets: int,
    *,
    within_groups: bool = False,
) -> Int[Array, "3 triplets"]:
    """Anchor, another of its class, and one of another class.

    Args:
      key: A JAX key.
      index: From `class_index`.
      num_triplets: How many triplets.
      within_groups: Take the other class from the anchor's group.

    Raises:
      ValueError: As `sample_pairs`.

    >>> index = class_index([0, 0, 1, 1])
    >>> print(sample_triplets(jax.random.key(0), index, 5).shape)
    (3, 5)
    """
    check_at_least("num_triplets", num_triplets, 1)
    _require_examples(index, 2)
    anchor_key, positive_key, negative_key = jax.random.split(key, 3)
    anchors = _sample_anchors(anchor_key, index, num_triplets)
    positives = _sample_positives(positive_key, index, anchors)
    negatives = _sample_negatives(negative_key, index, anchors, within_groups)
    return jnp.stack([anchors, positives, negatives])


def _sample_anchors(key: PRNGKeyArray, index: ClassIndex, num: int) -> Array:
    class_key, example_key = jax.random.split(key)
    classes = jax.random.randint(class_key, (num,), 0, index.num_classes)
    ranks = jax.random.randint(example_key, (num,), 0, index.counts[classes])
    return index.examples[index.starts[classes] + ranks]


def _sample_positives(key: PRNGKeyArray, index: ClassIndex, anchors: Array) -> Array:
    classes = index.class_of[anchors]
    counts = index.counts[classes]
    steps = jax.random.randint(key, anchors.shape, 1, counts)  # 1 ... counts - 1
    ranks = (index.rank_of[anchors] + steps) % counts
    return index.examples[index.starts[classes] + ranks]


def _sample_negatives(
    key: PRNGKeyArray, index: ClassIndex, anchors: Array, within_groups: bool
) -> Array:
    class_key, example_key = jax.random.split(key)
    classes = index.class_of[anchors]
    if within_groups:
        _require_classes(index, 2, max_groups=1)
        groups = index.group_of[classes]
        counts, starts = index.group_counts[groups], index.group_starts[groups]
        steps = jax.random.randint(class_key, anchors.shape, 1, counts)
        ranks = (index.group_rank_of[classes] + steps) % counts
        others = index.group_classes[starts + ranks]
    else:
        _require_classes(index, 2, max_groups=None)
        steps = jax.random.randint(class_key, anchors.shape, 1, index.num_classes)
        others = (classes + steps) % index.num_classes
    ranks = jax.random.randint(example_key, anchors.shape, 0, index.counts[others])
    return index.examples[index.starts[others] + ranks]


# P x K batches and episodes -----------------------------------------------------------


def sample_batch(
    key: PRNGKeyArray,
    index: ClassIndex,
    num_classes: int,
    num_per_class: int,
    *,
    max_groups: int | None = None,
) -> Batch:
    """P x K: distinct classes, with distinct examples of each.

    Args:
      key: A JAX key.
      index: From `class_index`.
      num_classes: P.
      num_per_class: K.
      max_groups: Draw the classes from as few groups as hold them, at most this many: a
        random group first, then a second if it is too small, and so on. None draws from
        all classes alike.

    Raises:
      ValueError: If a class has fewer than K examples, or there are fewer than P classes
        (in the smallest `max_groups` groups); the class or group is named.

    Reference:
      Hermans, Beyer, Leibe. In Defense of the Triplet Loss. 2017, section 2.

    >>> index = class_index([0, 0, 1, 1, 2, 2])
    >>> print(sample_batch(jax.random.key(0), index, 2, 2).labels.shape)
    (4,)
    """
    check_at_least("num_per_class", num_per_class, 1)
    class_key, example_key = jax.random.split(key)
    classes = _sample_classes(class_key, index, num_classes, max_groups)
    examples = _sample_distinct(example_key, index, classes, num_per_class, aligned=False)
    return Batch(examples.reshape(-1), jnp.repeat(classes, num_per_class))


def sample_episode(
    key: PRNGKeyArray,
    index: ClassIndex,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    *,
    max_groups: int | None = None,
    aligned: bool = False,
) -> Episode:
    """An N-way K-shot task: support and query examples, all distinct.

    Args:
      key: A JAX key.
      index: From `class_index`.
      num_ways: N, the number of classes.
      num_shots: K, support examples a class.
      num_queries: Query examples a class.
      max_groups: As in `sample_batch`; 1 keeps every task within one group.
      aligned: Take the same places within all classes. Where each class lists its
        examples in one order of drawers (or faces), the support is then by one drawer a
        shot, and each query by another, as in Lake's one-shot runs.

    Raises:
      ValueError: If a class has fewer than `num_shots + num_queries` examples, or there
        are fewer than `num_ways` classes (in the smallest `max_groups` groups).

    >>> index = class_index([0, 0, 0, 1, 1, 1])
    >>> episode = sample_episode(jax.random.key(0), index, 2, 1, 2)
    >>> print(episode.support.shape, episode.query.shape)
    (2, 1) (2, 2)
    """
    check_at_least("num_shots", num_shots, 1)
    check_at_least("num_queries", num_queries, 1)
    class_key, example_key = jax.random.split(key)
    classes = _sample_classes(class_key, index, num_ways, max_groups)
    num_examples = num_shots + num_queries
    examples = _sample_distinct(example_key, index, classes, num_examples, aligned)
    return Episode(examples[:, :num_shots], examples[:, num_shots:])


def _sample_classes(
    key: PRNGKeyArray, index: ClassIndex, num_classes: int, max_groups: int | None
) -> Int[Array, " num_classes"]:
    """Distinct classes: the first of a random order of groups, or of all classes."""
    check_at_least("num_classes", num_classes, 1)
    _require_classes(index, num_classes, max_groups)
    class_key, group_key = jax.random.split(key)
    order = jax.random.permutation(class_key, index.num_classes)
    if max_groups is not None:
        group_ranks = jax.random.permutation(group_key, len(index.group_sizes))
        ranks = group_ranks[index.group_of[order]]
        order = order[jnp.argsort(ranks, stable=True)]
    return order[:num_classes]


def _sample_distinct(
    key: PRNGKeyArray, index: ClassIndex, classes: Int[Array, " p"], num: int, aligned: bool
) -> Int[Array, "p num"]:
    """`num` distinct examples of each class, in random order."""
    _require_examples(index, num)
    if aligned:
        smallest = jnp.full((1,), index.smallest_class[1])
        ranks = jnp.broadcast_to(_distinct_ranks(key, smallest, num), (len(classes), num))
    else:
        ranks = _distinct_ranks(key, index.counts[classes], num)
    return index.examples[index.starts[classes][:, None] + ranks]


def _distinct_ranks(
    key: PRNGKeyArray, counts: Int[Array, " p"], num: int
) -> Int[Array, "p num"]:
    """`num` distinct numbers below each count, in random order: Floyd's algorithm.

    For j = count - num ... count - 1 it takes a random number up to j, or j itself if that
    number is taken: `num` draws give a uniform subset, whatever the count.
    """
    draw_key, order_key = jax.random.split(key)
    last = counts[:, None] - num + jnp.arange(num)[None, :]
    drawn = jax.random.randint(draw_key, last.shape, 0, last + 1)
    ranks = drawn[:, :1]
    for j in range(1, num):
        taken = jnp.any(ranks == drawn[:, j : j + 1], axis=1)
        chosen = jnp.where(taken, last[:, j], drawn[:, j])
        ranks = jnp.concatenate([ranks, chosen[:, None]], axis=1)
    return jax.random.permutation(order_key, ranks, axis=1, independent=True)


# Epochs -------------------------------------------------------------------------------


def sample_epoch(key: PRNGKeyArray, num_examples: int, batch_size: int) -> EpochOrder:
    """A random order that covers every example exactly once, in batches.

    The last batch is filled up with the first examples again, masked by `where`.

    Args:
      key: A JAX key; fold the number of the epoch into it.
      num_examples: How many examples there are.
      batch_size: Examples a batch.

    Raises:
      ValueError: If a count is below 1.

    >>> order = sample_epoch(jax.random.key(0), num_examples=5, batch_size=2)
    >>> print(sorted(order.examples[order.where].tolist()))
    [0, 1, 2, 3, 4]
    """
    check_at_least("num_examples", num_examples, 1)
    check_at_least("batch_size", batch_size, 1)
    num_batches = -(-num_examples // batch_size)
    places = jnp.arange(num_batches * batch_size)
    order = jax.random.permutation(key, num_examples)
    shape = (num_batches, batch_size)
    return EpochOrder(
        order[places % num_examples].reshape(shape),
        (places < num_examples).reshape(shape),
    )


# Refusals -----------------------------------------------------------------------------


def _require_examples(index: ClassIndex, needed: int) -> None:
    label, count = index.smallest_class
    if count < needed:
        raise ValueError(
            f"every class needs at least {needed} examples; class {label!r} has {count}"
        )


def _require_classes(index: ClassIndex, needed: int, max_groups: int | None) -> None:
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
