"""Samplers of pairs and triplets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_integer,
    check_rank,
    check_same_shape,
)
from siamese_jax.samplers.index import (
    ClassIndex,
    check_index,
    require_classes,
    require_examples,
)


class Pairs(NamedTuple):
    """The two examples of each pair, and whether they are of one class."""

    examples: Int[Array, "2 pairs"]
    same: Bool[Array, " pairs"]


def sample_pairs(
    key: PRNGKeyArray, index: ClassIndex, num_pairs: int, *, same_group: bool = False
) -> Pairs:
    """Samples pairs of the same class and of different classes, alternately.

    Args:
      key: A JAX key.
      index: From `class_index`.
      num_pairs: Number of pairs.
      same_group: Take the second class of a different pair from the group of the first.

    Raises:
      ValueError: If a class has fewer than 2 examples, or there are fewer than 2 classes
        (in a group, if `same_group`). The class or group is named.

    >>> from siamese_jax.samplers import class_index
    >>> index = class_index([0, 0, 1, 1])
    >>> print(sample_pairs(jax.random.key(0), index, 6).examples.shape)
    (2, 6)
    """
    check_at_least("num_pairs", num_pairs, 1)
    anchor_key, partner_key = jax.random.split(key)
    anchors = _sample_anchors(anchor_key, index, num_pairs)
    same = jnp.arange(num_pairs) % 2 == 0
    partners = sample_partners(partner_key, index, anchors, same, same_group=same_group)
    return Pairs(jnp.stack([anchors, partners]), same)


def sample_partners(
    key: PRNGKeyArray,
    index: ClassIndex,
    anchors: Int[Array, " n"],
    same: Bool[Array, " n"],
    *,
    same_group: bool = False,
) -> Int[Array, " n"]:
    """Samples a second example for each given one, of its class or of another class.

    Args:
      key: A JAX key.
      index: From `class_index`.
      anchors: Example numbers.
      same: True for a partner of the same class (never the anchor itself), False for one
        of another class.
      same_group: Take the other class from the anchor's group.

    Raises:
      ValueError: If a class has fewer than 2 examples, or there are fewer than 2 classes
        (in a group, if `same_group`). The class or group is named. Or if `anchors` and
        `same` are not of one shape `[n]`.
      TypeError: If `anchors` are not integers, or `same` not boolean.

    >>> from siamese_jax.samplers import class_index
    >>> index = class_index([0, 0, 1, 1])
    >>> anchors, same = jnp.array([0, 3]), jnp.array([True, True])
    >>> print(sample_partners(jax.random.key(0), index, anchors, same).tolist())
    [1, 2]
    """
    check_integer("anchors", anchors)
    check_rank("anchors", anchors, 1)
    check_boolean("same", same)
    check_same_shape("same", same, "anchors", anchors)
    require_examples(index, 2)
    positive_key, negative_key = jax.random.split(key)
    positives = _sample_positives(positive_key, index, anchors)
    negatives = _sample_negatives(negative_key, index, anchors, same_group)
    return jnp.where(same, positives, negatives)


def sample_triplets(
    key: PRNGKeyArray,
    index: ClassIndex,
    num_triplets: int,
    *,
    same_group: bool = False,
) -> Int[Array, "3 triplets"]:
    """Samples triplets: an anchor, a positive of its class, a negative of another class.

    Args:
      key: A JAX key.
      index: From `class_index`.
      num_triplets: Number of triplets.
      same_group: Take the negative from the anchor's group.

    Raises:
      ValueError: If a class has fewer than 2 examples, or there are fewer than 2 classes
        (in a group, if `same_group`). The class or group is named.

    >>> from siamese_jax.samplers import class_index
    >>> index = class_index([0, 0, 1, 1])
    >>> print(sample_triplets(jax.random.key(0), index, 5).shape)
    (3, 5)
    """
    check_at_least("num_triplets", num_triplets, 1)
    require_examples(index, 2)
    anchor_key, positive_key, negative_key = jax.random.split(key, 3)
    anchors = _sample_anchors(anchor_key, index, num_triplets)
    positives = _sample_positives(positive_key, index, anchors)
    negatives = _sample_negatives(negative_key, index, anchors, same_group)
    return jnp.stack([anchors, positives, negatives])


def _sample_anchors(key: PRNGKeyArray, index: ClassIndex, num: int) -> Array:
    check_index(index)
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
    key: PRNGKeyArray, index: ClassIndex, anchors: Array, same_group: bool
) -> Array:
    class_key, example_key = jax.random.split(key)
    classes = index.class_of[anchors]
    if same_group:
        require_classes(index, 2, max_groups=1)
        groups = index.group_of[classes]
        counts, starts = index.group_counts[groups], index.group_starts[groups]
        steps = jax.random.randint(class_key, anchors.shape, 1, counts)
        ranks = (index.group_rank_of[classes] + steps) % counts
        others = index.group_classes[starts + ranks]
    else:
        require_classes(index, 2, max_groups=None)
        steps = jax.random.randint(class_key, anchors.shape, 1, index.num_classes)
        others = (classes + steps) % index.num_classes
    ranks = jax.random.randint(example_key, anchors.shape, 0, index.counts[others])
    return index.examples[index.starts[others] + ranks]
