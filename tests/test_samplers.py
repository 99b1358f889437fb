"""What every draw must hold, over many keys; and that draws are even."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import samplers
from tests.cases.samplers import GROUPS, INDEX, LABELS

KEYS = jax.random.split(jax.random.key(0), 400)
# groups that are large enough for within_groups: alphabets 0 and 1
LARGE = samplers.class_index(
    np.repeat(np.arange(9), 4), groups=np.repeat(np.arange(9) // 3, 4)
)


def group_of(examples):
    return GROUPS[examples]


def draw(fn):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(fn))(KEYS))


def test_the_index_finds_every_example_of_every_class():
    shuffled = np.random.default_rng(0).permutation(len(LABELS))
    index = samplers.class_index(LABELS[shuffled], groups=GROUPS[shuffled])
    names = np.unique(LABELS)
    for number, (start, count) in enumerate(zip(index.starts, index.counts, strict=True)):
        members = index.examples[start : start + count]
        assert set(LABELS[shuffled][members]) == {names[number]}
        assert count == (LABELS == names[number]).sum()
    places = index.starts[index.class_of] + index.rank_of
    np.testing.assert_array_equal(index.examples[places], np.arange(len(LABELS)))
    places = index.group_starts[index.group_of] + index.group_rank_of
    np.testing.assert_array_equal(index.group_classes[places], np.arange(len(names)))
    assert index.smallest_class == (5, 2)
    assert index.group_sizes == ((1, 1), (0, 2), (2, 2))


@pytest.mark.parametrize(
    ("labels", "groups", "words"),
    [
        ([], None, r"labels must have shape \(n,\)"),
        ([[1], [2]], None, r"got \(2, 1\)"),
        ([1, 2], [1], r"groups must have shape \(2,\)"),
        (["a", "b", "b"], [0, 0, 1], r"class .*'b'.* is in several groups: \[0, 1\]"),
    ],
)
def test_bad_labels_are_refused(labels, groups, words):
    with pytest.raises(ValueError, match=words):
        samplers.class_index(labels, groups=groups)


@pytest.mark.parametrize("within", [False, True])
def test_pairs_are_balanced_and_what_they_claim(within):
    index = LARGE if within else INDEX
    labels = np.asarray(index.class_of)
    examples, same = draw(
        lambda key: samplers.sample_pairs(key, index, 8, within_groups=within)
    )
    left, right = examples[:, 0], examples[:, 1]
    assert (same.sum(axis=1) == 4).all()
    np.testing.assert_array_equal(labels[left] == labels[right], same)
    assert (left != right).all()
    if within:
        assert (labels[left] // 3 == labels[right] // 3).all()
    classes = np.bincount(labels[left].ravel(), minlength=index.num_classes)
    np.testing.assert_allclose(classes / classes.sum(), 1 / index.num_classes, atol=0.03)


def test_partners_are_even_over_the_rest_of_the_class_and_over_other_classes():
    anchors = jnp.array([0] * 8)  # class 3 has examples 0, 1, 2
    partners = draw(
        lambda key: samplers.sample_partners(key, INDEX, anchors, jnp.ones(8, bool))
    )
    shares = np.bincount(partners.ravel(), minlength=14) / partners.size
    np.testing.assert_allclose(shares[:3], [0, 0.5, 0.5], atol=0.03)
    partners = draw(
        lambda key: samplers.sample_partners(key, INDEX, anchors, jnp.zeros(8, bool))
    )
    shares = np.bincount(np.asarray(INDEX.class_of)[partners.ravel()], minlength=5)
    np.testing.assert_allclose(
        shares / partners.size, [0, 1 / 4, 1 / 4, 1 / 4, 1 / 4], atol=0.03
    )


def test_triplets_are_what_they_claim():
    anchor, positive, negative = np.moveaxis(
        draw(lambda key: samplers.sample_triplets(key, LARGE, 6, within_groups=True)), 1, 0
    )
    labels = np.asarray(LARGE.class_of)
    assert (labels[anchor] == labels[positive]).all()
    assert (anchor != positive).all()
    assert (labels[anchor] != labels[negative]).all()
    assert (labels[anchor] // 3 == labels[negative] // 3).all()


@pytest.mark.parametrize("max_groups", [None, 2])
def test_batches_hold_distinct_classes_and_distinct_examples(max_groups):
    examples, labels = draw(
        lambda key: samplers.sample_batch(key, INDEX, 3, 2, max_groups=max_groups)
    )
    np.testing.assert_array_equal(np.asarray(INDEX.class_of)[examples], labels)
    for batch, classes in zip(examples, labels, strict=True):
        assert len(set(batch)) == 6
        assert len(set(classes)) == 3
        if max_groups:
            assert len(set(group_of(batch))) == 2  # as few groups as hold three classes
    shares = np.bincount(labels.ravel(), minlength=5) / labels.size
    if max_groups is None:
        np.testing.assert_allclose(shares, 0.2, atol=0.03)


def test_distinct_examples_are_even_and_in_random_order():
    index = samplers.class_index([0] * 7 + [1] * 5)
    keys = jax.random.split(jax.random.key(1), 4000)
    examples = jax.jit(jax.vmap(lambda key: samplers.sample_episode(key, index, 2, 1, 2)))(
        keys
    )
    drawn = np.concatenate([examples.support, examples.query], axis=2)
    of_seven = drawn[drawn.max(axis=2) < 7]
    for place in range(3):
        shares = np.bincount(of_seven[:, place], minlength=7) / len(of_seven)
        np.testing.assert_allclose(shares, 1 / 7, atol=0.02)


def test_episodes_share_no_example_and_stay_in_one_group():
    support, query = draw(
        lambda key: samplers.sample_episode(key, LARGE, 3, 1, 2, max_groups=1)
    )
    labels = np.asarray(LARGE.class_of)
    both = np.concatenate([support, query], axis=2)
    assert (labels[both] == labels[both[:, :, :1]]).all()
    for episode in both:
        assert len(set(episode.ravel())) == episode.size
        assert len(set(labels[episode.ravel()] // 3)) == 1
        assert len(set(labels[episode[:, 0]])) == 3


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 3), (9, 3), (2, 5)])
def test_an_epoch_covers_every_example_once(num_examples, batch_size):
    orders = [
        samplers.sample_epoch(jax.random.key(seed), num_examples, batch_size)
        for seed in (0, 1)
    ]
    for order in orders:
        assert order.examples.shape[1] == batch_size
        covered = np.asarray(order.examples)[np.asarray(order.where)]
        np.testing.assert_array_equal(np.sort(covered), np.arange(num_examples))
        assert (order.examples < num_examples).all()
    if num_examples > 2:
        assert (orders[0].examples != orders[1].examples).any()


def test_an_index_may_be_an_argument_of_a_compiled_function():
    fn = jax.jit(samplers.sample_pairs, static_argnums=2)
    pairs = fn(jax.random.key(0), INDEX, 4)
    np.testing.assert_array_equal(
        pairs.examples, samplers.sample_pairs(jax.random.key(0), INDEX, 4).examples
    )


def test_every_subset_of_a_class_is_equally_likely():
    index = samplers.class_index([0] * 5 + [1] * 5)
    keys = jax.random.split(jax.random.key(2), 4000)
    batches = jax.jit(jax.vmap(lambda key: samplers.sample_batch(key, index, 2, 3)))(keys)
    subsets = np.sort(np.asarray(batches.examples).reshape(-1, 3) % 5, axis=1)
    _, counts = np.unique(subsets, axis=0, return_counts=True)
    assert len(counts) == 10  # 5 choose 3
    np.testing.assert_allclose(counts / counts.sum(), 0.1, atol=0.015)


def test_groups_and_examples_are_drawn_evenly():
    batches = draw(lambda key: samplers.sample_batch(key, LARGE, 2, 1, max_groups=1))
    groups = np.bincount(batches.labels[:, 0] // 3, minlength=3) / len(KEYS)
    np.testing.assert_allclose(groups, 1 / 3, atol=0.08)
    anchor, positive, negative = np.moveaxis(
        draw(lambda key: samplers.sample_triplets(key, LARGE, 8)), 1, 0
    )
    for examples in (anchor, positive, negative):
        shares = np.bincount(examples.ravel(), minlength=36) / examples.size
        np.testing.assert_allclose(shares, 1 / 36, atol=0.013)


def test_aligned_episodes_take_the_same_places_in_all_classes():
    places = np.asarray(INDEX.rank_of)
    support, query = draw(
        lambda key: samplers.sample_episode(key, INDEX, 4, 1, 1, aligned=True)
    )
    both = places[np.concatenate([support, query], axis=2)]
    assert (both == both[:, :1]).all()
    assert (both[:, 0, 0] != both[:, 0, 1]).all()
    assert set(both.ravel()) == {0, 1}  # the smallest class has two


def test_samplers_work_under_shard_map_with_a_key_for_each_device():
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("devices")

    def one_device(keys):
        episode = samplers.sample_episode(keys[0], INDEX, 2, 1, 1)
        return jax.tree.map(lambda leaf: leaf[None], episode)

    keys = jax.random.split(jax.random.key(3))
    sharded = jax.jit(jax.shard_map(one_device, mesh=mesh, in_specs=spec, out_specs=spec))
    for number, key in enumerate(keys):
        wanted = samplers.sample_episode(key, INDEX, 2, 1, 1)
        np.testing.assert_array_equal(sharded(keys).support[number], wanted.support)
