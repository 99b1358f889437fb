"""Samplers of P x K batches and of N-way K-shot episodes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siamese_jax._checks import check_at_least, check_floating, check_shape
from siamese_jax.samplers.epochs import epoch_batch
from siamese_jax.samplers.index import ClassIndex, require_classes, require_examples


class Batch(NamedTuple):
    """P classes with K examples each: one example of every class, then the second of each.

    A share of consecutive examples, such as a device takes, has all classes if its size is
    a multiple of P. `examples.reshape(K, P)` has one class in each column.

    Attributes:
      examples: Example numbers.
      classes: Class number of each example: its place among the ascending labels.
    """

    examples: Int[Array, " p_times_k"]
    classes: Int[Array, " p_times_k"]


class Episode(NamedTuple):
    """An N-way K-shot task.

    Row i of `support` and row i of `query` are distinct examples of class i of the task.
    """

    support: Int[Array, "ways shots"]
    query: Int[Array, "ways queries"]


def sample_batch(
    key: PRNGKeyArray,
    index: ClassIndex,
    num_classes: int,
    num_per_class: int,
    *,
    max_groups: int | None = None,
    num_groups: int | None = None,
    repeat: bool = False,
) -> Batch:
    """Samples a P x K batch: P distinct classes with K distinct examples each.

    Args:
      key: A JAX key.
      index: From `class_index`.
      num_classes: P, the number of classes.
      num_per_class: K, the number of examples of each class.
      max_groups: Draw the classes from as few groups as possible, and never from more
        than this: all from a random group, or, if it is too small, the rest from a second
        one, and so on. None draws from all classes with equal probability.
      num_groups: Draw the same number of classes, P / num_groups, from each of so many
        random groups.
      repeat: Repeat examples of classes with fewer than K, each as often as the others up
        to one, instead of refusing them. Which examples come once more is random.

    Raises:
      ValueError: If a class has fewer than K examples (unless `repeat`), there are fewer
        than P classes (in the smallest `max_groups` groups), a group has fewer than
        P / num_groups, that is no integer, or both limits are given. The class or groups
        are named.

    Reference:
      Hermans, Beyer, Leibe. In Defense of the Triplet Loss. 2017, section 2.

    >>> from siamese_jax.samplers import class_index
    >>> index = class_index([0, 0, 1, 1, 2, 2])
    >>> print(sample_batch(jax.random.key(0), index, 2, 2).classes)
    [0 1 0 1]
    """
    check_at_least("num_per_class", num_per_class, 1)
    class_key, example_key = jax.random.split(key)
    if num_groups is None:
        classes = _sample_classes(class_key, index, num_classes, max_groups)
    elif max_groups is None:
        classes = _equal_shares(class_key, index, num_classes, num_groups)
    else:
        raise ValueError("max_groups and num_groups must not both be given")
    return _batch_of(example_key, index, classes, num_per_class, repeat)


def sample_hard_batch(
    key: PRNGKeyArray,
    index: ClassIndex,
    confusion: Float[Array, "classes classes"],
    num_classes: int,
    num_per_class: int,
    *,
    repeat: bool = False,
) -> Batch:
    """Samples a P x K batch of classes that are often taken for one another.

    A first class is random. The other P - 1 distinct classes are drawn with probabilities
    proportional to their numbers in the row of the first; where too few are positive, the
    rest is drawn evenly. Infinite numbers count as the largest finite one.

    Args:
      key: A JAX key.
      index: From `class_index`.
      confusion: How similar each class is to each, at least 0: a confusion matrix, or exp
        of the similarities of proxies divided by a temperature. The diagonal is not used.
      num_classes: P, the number of classes.
      num_per_class: K, the number of examples of each class.
      repeat: As in `sample_batch`.

    Raises:
      ValueError: If the matrix has another shape, or there are too few classes or examples.

    Reference:
      Suh et al. Stochastic Class-based Hard Example Mining for Deep Metric Learning. CVPR
      2019, section 3.2, which takes the nearest classes instead of drawing them.

    >>> from siamese_jax.samplers import class_index
    >>> index = class_index([0, 0, 1, 1, 2, 2])
    >>> confusion = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    >>> batch = sample_hard_batch(jax.random.key(0), index, confusion, 2, 1)
    >>> print(batch.classes.shape)
    (2,)
    """
    check_at_least("num_classes", num_classes, 1)
    require_classes(index, num_classes, None)
    check_floating("confusion", confusion)
    wanted = (index.num_classes, index.num_classes)
    check_shape("confusion", confusion, wanted, "one for every two classes")
    first_key, noise_key, example_key = jax.random.split(key, 3)
    first = jax.random.randint(first_key, (), 0, index.num_classes)
    # Gumbel noise on log-probabilities: the largest are a draw without replacement
    limits = jnp.finfo(jnp.float32)
    weights = jnp.clip(confusion[first].astype(jnp.float32), limits.tiny, limits.max)
    scores = jnp.log(weights)
    scores += jax.random.gumbel(noise_key, scores.shape)
    scores = scores.at[first].set(jnp.inf)
    classes = lax.top_k(scores, num_classes)[1]
    return _batch_of(example_key, index, classes, num_per_class, repeat)


class ClassEpochBatch(NamedTuple):
    """The batch of a step in an epoch over classes.

    Attributes:
      examples: Example numbers, as in `Batch`.
      classes: Class number of each example.
      where: False for the classes that fill the last batch of an epoch.
    """

    examples: Int[Array, " p_times_k"]
    classes: Int[Array, " p_times_k"]
    where: Bool[Array, " p_times_k"]


def class_epoch_batch(
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
    index: ClassIndex,
    num_classes: int,
    num_per_class: int,
    *,
    repeat: bool = False,
) -> ClassEpochBatch:
    """The P x K batch of a step when every epoch visits each class exactly once.

    `epoch_batch` does the same for examples. In the last batch of an epoch, classes that
    fill it up are masked; pass `where` as `Items.valid`.

    Args:
      key: A JAX key, the same for all steps of a run and used for nothing else.
      step: Number of the step, from 0.
      index: From `class_index`.
      num_classes: P, the number of classes, at most those of the index.
      num_per_class: K, the number of examples of each class.
      repeat: As in `sample_batch`.

    Raises:
      ValueError: If there are too few classes or examples.

    >>> from siamese_jax.samplers import class_index
    >>> index, key = class_index([0, 0, 1, 1, 2, 2]), jax.random.key(0)
    >>> first, second = (class_epoch_batch(key, step, index, 2, 1) for step in (0, 1))
    >>> print(second.where)
    [ True False]
    >>> print(jnp.sort(jnp.append(first.classes, second.classes[0])))
    [0 1 2]
    """
    check_at_least("num_classes", num_classes, 1)
    require_classes(index, num_classes, None)
    order_key, example_key = jax.random.split(key)
    epoch = epoch_batch(order_key, step, index.num_classes, num_classes)
    example_key = jax.random.fold_in(example_key, step)
    batch = _batch_of(example_key, index, epoch.examples, num_per_class, repeat)
    return ClassEpochBatch(*batch, jnp.tile(epoch.where, num_per_class))


def sample_episode(
    key: PRNGKeyArray,
    index: ClassIndex,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    *,
    max_groups: int | None = None,
    same_rank: bool = False,
) -> Episode:
    """Samples an N-way K-shot task: support and query examples, all distinct.

    Args:
      key: A JAX key.
      index: From `class_index`.
      num_ways: N, the number of classes.
      num_shots: K, the number of support examples of each class.
      num_queries: Number of query examples of each class.
      max_groups: As in `sample_batch`. 1 draws all classes of a task from one group.
      same_rank: Draw the positions within a class once, for all classes of the task. If
        example i of every class is by the same person, then all examples of a shot are by
        one person and all examples of a query by another, as in Lake's one-shot trials.

    Raises:
      ValueError: If a class has fewer than `num_shots + num_queries` examples, or there
        are fewer than `num_ways` classes (in the smallest `max_groups` groups). The class
        or groups are named.

    >>> from siamese_jax.samplers import class_index
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
    examples = _sample_distinct(example_key, index, classes, num_examples, same_rank)
    return Episode(examples[:, :num_shots], examples[:, num_shots:])


def _sample_classes(
    key: PRNGKeyArray, index: ClassIndex, num_classes: int, max_groups: int | None
) -> Int[Array, " num_classes"]:
    """Draws distinct classes: the first ones of a random order, by groups if limited."""
    check_at_least("num_classes", num_classes, 1)
    require_classes(index, num_classes, max_groups)
    class_key, group_key = jax.random.split(key)
    order = jax.random.permutation(class_key, index.num_classes)
    if max_groups is not None:
        group_ranks = jax.random.permutation(group_key, len(index.group_sizes))
        ranks = group_ranks[index.group_of[order]]
        order = order[jnp.argsort(ranks, stable=True)]
    return order[:num_classes]


def _equal_shares(
    key: PRNGKeyArray, index: ClassIndex, num_classes: int, num_groups: int
) -> Int[Array, " num_classes"]:
    """Draws an equal number of distinct classes from each of some random groups."""
    check_at_least("num_groups", num_groups, 1)
    share, rest = divmod(num_classes, num_groups)
    if rest or not share:
        raise ValueError(
            f"num_classes must be a multiple of num_groups, {num_groups}; got {num_classes}"
        )
    if len(index.group_sizes) < num_groups:
        raise ValueError(
            f"{num_groups} groups are needed; there are {len(index.group_sizes)}"
        )
    require_classes(index, share, 1)
    class_key, group_key = jax.random.split(key)
    order = jax.random.permutation(class_key, index.num_classes)
    group_ranks = jax.random.permutation(group_key, len(index.group_sizes))
    by_group = order[jnp.argsort(index.group_of[order], stable=True)]  # random within each
    place = jnp.arange(index.num_classes) - index.group_starts[index.group_of[by_group]]
    chosen = (group_ranks[index.group_of[by_group]] < num_groups) & (place < share)
    return by_group[jnp.argsort(~chosen, stable=True)][:num_classes]


def _batch_of(
    key: PRNGKeyArray,
    index: ClassIndex,
    classes: Int[Array, " p"],
    num_per_class: int,
    repeat: bool,
) -> Batch:
    """K examples of each of these classes, one of every class after the other."""
    check_at_least("num_per_class", num_per_class, 1)
    if repeat:
        order_key, key = jax.random.split(key)
        counts = index.counts[classes][:, None]
        places = jnp.arange(num_per_class)[None, :]
        # a small class gives all its examples in a random order, again and again
        noise = jax.random.uniform(order_key, (len(classes), num_per_class))
        order = jnp.argsort(jnp.where(places < counts, noise, 1), axis=1)
        of_small = jnp.take_along_axis(order, places % counts, axis=1)
        enough = jnp.maximum(counts[:, 0], num_per_class)
        ranks = _distinct_ranks(key, enough, num_per_class)
        ranks = jnp.where(counts < num_per_class, of_small, ranks)
        examples = index.examples[index.starts[classes][:, None] + ranks]
    else:
        examples = _sample_distinct(key, index, classes, num_per_class, same_rank=False)
    return Batch(examples.T.reshape(-1), jnp.tile(classes, num_per_class))


def _sample_distinct(
    key: PRNGKeyArray,
    index: ClassIndex,
    classes: Int[Array, " p"],
    num: int,
    same_rank: bool,
) -> Int[Array, "p num"]:
    """Draws `num` distinct examples of each class, in random order."""
    require_examples(index, num)
    if same_rank:
        smallest = jnp.full((1,), index.smallest_class[1])
        ranks = jnp.broadcast_to(_distinct_ranks(key, smallest, num), (len(classes), num))
    else:
        ranks = _distinct_ranks(key, index.counts[classes], num)
    return index.examples[index.starts[classes][:, None] + ranks]


def _distinct_ranks(
    key: PRNGKeyArray, counts: Int[Array, " p"], num: int
) -> Int[Array, "p num"]:
    """Draws `num` distinct numbers below each count, in random order.

    Floyd's algorithm: for j = count - num, ..., count - 1 take a random number from 0 to
    j, or j itself if that number was taken before. All subsets are equally likely, and it
    needs only `num` random numbers, whatever the count.
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
