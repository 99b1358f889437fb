"""Frequencies of the samplers of batches, over many keys: groups, confusions, epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from siamese_jax import samplers
from tests.key_ledger import every_key_is_used_once

pytestmark = pytest.mark.slow

NUM_KEYS = 2000
# classes 0 to 8 with 1, 2, 3, 4, 5, 1, 2, 3, 4 examples, in groups of 2, 3 and 4 classes
COUNTS = np.array([1, 2, 3, 4, 5, 1, 2, 3, 4])
CLASS_OF = np.repeat(np.arange(9), COUNTS)
GROUP_OF = np.repeat(np.arange(3), [2, 3, 4])
INDEX = samplers.class_index(CLASS_OF, groups=GROUP_OF[CLASS_OF])
CONFUSION = np.array([[9.0, 1, 2, 5], [4, 9, 4, 0], [0, 0, 9, 0], [1, 1, 1, 0]])


@pytest.fixture(scope="module")
def drawn():
    """Batches of all samplers for many keys, drawn by one program."""
    four, confusion = samplers.class_index(np.arange(4)), jnp.asarray(CONFUSION)

    def draw(key):
        keys = jax.random.split(key, 3)
        return {
            "groups": samplers.sample_batch(
                keys[0], INDEX, 4, 6, num_groups=2, repeat=True
            ),
            "hard": samplers.sample_hard_batch(keys[1], four, confusion, 2, 1),
            "hard three": samplers.sample_hard_batch(keys[2], four, confusion, 3, 1),
        }

    keys = jax.random.split(jax.random.key(7), NUM_KEYS)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys))


def assert_even(counts, shares=None):
    """Counts that are drawn in these shares, or evenly, would rarely differ by more."""
    counts = np.asarray(counts)
    shares = np.ones(counts.shape) if shares is None else np.asarray(shares)
    wanted = counts.sum() * shares / shares.sum()
    if counts.size > 1:
        found = stats.chisquare(counts.ravel(), wanted.ravel())
        assert found.pvalue > 1e-3, f"drawn {counts}, expected {wanted}"


# Groups and repetition ------------------------------------------------------------------


def test_groups_have_equal_shares_and_are_drawn_evenly(drawn):
    classes = drawn["groups"].classes[:, :4]
    assert (np.diff(np.sort(classes, axis=1), axis=1) > 0).all()  # distinct
    groups = np.sort(GROUP_OF[classes], axis=1)
    assert (groups[:, 0] == groups[:, 1]).all()
    assert (groups[:, 2] == groups[:, 3]).all()
    assert (groups[:, 0] != groups[:, 2]).all()
    assert_even(np.unique(groups[:, 0] * 3 + groups[:, 2], return_counts=True)[1])


def test_every_two_classes_of_a_group_are_drawn_as_often(drawn):
    pairs = np.sort(drawn["groups"].classes[:, :4], axis=1).reshape(-1, 2)
    assert (GROUP_OF[pairs[:, 0]] == GROUP_OF[pairs[:, 1]]).all()
    names, counts = np.unique(pairs, axis=0, return_counts=True)
    for group, num_pairs in enumerate([1, 3, 6]):
        of_group = counts[GROUP_OF[names[:, 0]] == group]
        assert len(of_group) == num_pairs
        assert_even(of_group)


def test_small_classes_repeat_their_examples_evenly(drawn):
    batch = drawn["groups"]
    np.testing.assert_array_equal(CLASS_OF[batch.examples], batch.classes)
    times = np.zeros((NUM_KEYS, len(CLASS_OF)), int)
    np.add.at(times, (np.arange(NUM_KEYS)[:, None], batch.examples), 1)
    used = times[:, CLASS_OF == 0].ravel()
    assert set(used) == {0, 6}  # the only example of its class, six times
    for label in range(1, 9):
        of_class = times[:, CLASS_OF == label]
        of_class = of_class[of_class.any(axis=1)]
        size = COUNTS[label]
        assert (of_class.sum(axis=1) == 6).all()
        assert (of_class >= 6 // size).all()
        assert (of_class <= -(-6 // size)).all()
        if 6 % size:  # which examples come once more is random
            assert_even((of_class > 6 // size).sum(axis=0))


def test_any_examples_of_a_small_class_come_once_more_and_at_any_place(drawn):
    examples = drawn["groups"].examples.reshape(NUM_KEYS, 6, 4)
    of_four = np.moveaxis(examples, 1, 2)[drawn["groups"].classes[:, :4] == 3]
    of_four = of_four - np.flatnonzero(CLASS_OF == 3)[0]
    for place in range(6):
        assert_even(np.bincount(of_four[:, place], minlength=4))
    twice = np.stack(
        [(of_four == example).sum(axis=1) == 2 for example in range(4)], axis=1
    )
    names, counts = np.unique(twice, axis=0, return_counts=True)
    assert len(names) == 6  # two of four
    assert_even(counts)


# Hard classes ---------------------------------------------------------------------------


def test_the_first_hard_class_is_any(drawn):
    assert_even(np.bincount(drawn["hard"].classes[:, 0], minlength=4))


@pytest.mark.parametrize("first", [0, 1, 3])
def test_the_second_hard_class_is_drawn_in_proportion_to_the_confusion(drawn, first):
    classes = drawn["hard"].classes
    counts = np.bincount(classes[classes[:, 0] == first, 1], minlength=4)
    shares = np.where(np.arange(4) == first, 0, CONFUSION[first])
    assert not counts[shares == 0].any()
    assert_even(counts[shares > 0], shares[shares > 0])


def test_without_a_confusion_hard_classes_are_drawn_evenly(drawn):
    classes = drawn["hard"].classes
    counts = np.bincount(classes[classes[:, 0] == 2, 1], minlength=4)
    assert counts[2] == 0
    assert_even(counts[[0, 1, 3]])


def test_further_hard_classes_are_drawn_in_proportion_to_the_confusion(drawn):
    """Without replacement: in proportion to the numbers of the classes that are left."""
    classes = drawn["hard three"].classes
    rest = classes[classes[:, 0] == 0, 1:]
    orders, wanted = [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)], []
    for second, third in orders:
        of_second = CONFUSION[0, second] / 8
        wanted.append(of_second * CONFUSION[0, third] / (8 - CONFUSION[0, second]))
    counts = [(rest == order).all(axis=1).sum() for order in orders]
    assert sum(counts) == len(rest)
    assert_even(counts, wanted)
    # class 1 is never taken for class 3, which comes last where three are needed
    rest = classes[classes[:, 0] == 1, 1:]
    assert set(rest.ravel()) == {0, 2}


# Epochs over classes --------------------------------------------------------------------


def test_every_epoch_visits_each_class_once():
    num_classes, steps, num_epochs = 4, 3, 400
    batches = jax.jit(
        jax.vmap(
            lambda step: samplers.class_epoch_batch(
                jax.random.key(0), step, INDEX, num_classes, 2, repeat=True
            )
        )
    )(jnp.arange(num_epochs * steps))
    np.testing.assert_array_equal(CLASS_OF[batches.examples], batches.classes)
    by_place = [np.asarray(x).reshape(-1, 2, num_classes) for x in batches[1:]]
    for leaf in by_place:
        np.testing.assert_array_equal(leaf[:, 0], leaf[:, 1])
    classes, where = (leaf[:, 0].reshape(num_epochs, -1) for leaf in by_place)
    np.testing.assert_array_equal(
        where, np.tile(np.arange(where.shape[1]) < 9, (num_epochs, 1))
    )
    orders = classes[:, :9]
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(9), (num_epochs, 1)))
    for place in (0, 4, 8):
        assert_even(np.bincount(orders[:, place], minlength=9))
    # within a batch the classes are distinct, those that fill it included
    assert (np.diff(np.sort(by_place[0][:, 0]), axis=1) > 0).all()
    times = np.bincount(np.asarray(batches.examples)[np.asarray(batches.where)])
    np.testing.assert_array_equal(np.bincount(CLASS_OF, times), 2 * num_epochs)
    for label in range(9):
        assert_even(times[CLASS_OF == label])


def test_no_key_is_used_twice():
    with every_key_is_used_once():
        samplers.sample_batch(jax.random.key(0), INDEX, 4, 3, num_groups=2, repeat=True)
        samplers.sample_hard_batch(
            jax.random.key(1), INDEX, jnp.ones((9, 9)), 4, 3, repeat=True
        )
        samplers.class_epoch_batch(jax.random.key(2), 0, INDEX, 4, 3, repeat=True)
