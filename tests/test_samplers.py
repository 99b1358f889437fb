"""Tests of the samplers over many keys: properties and uniform frequencies."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from siamese_jax import samplers
from siamese_jax.samplers import epochs
from tests.cases.samplers import GROUPS, INDEX, LABELS
from tests.contract import as_for_a_user
from tests.key_ledger import every_key_is_used_once

pytestmark = pytest.mark.slow

KEYS = jax.random.split(jax.random.key(0), 400)
# groups that are large enough for same_group: alphabets 0 and 1
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
        ([], None, "labels must have at least one example; got none"),
        ([[1], [2]], None, r"one label for each example; got list of shape \(1,\)"),
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
        lambda key: samplers.sample_pairs(key, index, 8, same_group=within)
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
        draw(lambda key: samplers.sample_triplets(key, LARGE, 6, same_group=True)), 1, 0
    )
    labels = np.asarray(LARGE.class_of)
    assert (labels[anchor] == labels[positive]).all()
    assert (anchor != positive).all()
    assert (labels[anchor] != labels[negative]).all()
    assert (labels[anchor] // 3 == labels[negative] // 3).all()


@pytest.mark.parametrize("max_groups", [None, 2])
def test_batches_hold_distinct_classes_and_distinct_examples(max_groups):
    examples, classes = draw(
        lambda key: samplers.sample_batch(key, INDEX, 3, 2, max_groups=max_groups)
    )
    np.testing.assert_array_equal(np.asarray(INDEX.class_of)[examples], classes)
    for batch, batch_classes in zip(examples, classes, strict=True):
        assert len(set(batch)) == 6
        assert len(set(batch_classes)) == 3
        if max_groups:
            assert len(set(group_of(batch))) == 2  # as few groups as hold three classes
    shares = np.bincount(classes.ravel(), minlength=5) / classes.size
    if max_groups is None:
        np.testing.assert_allclose(shares, 0.2, atol=0.03)


@pytest.mark.parametrize("num_devices", [2, 4])
def test_shares_of_consecutive_examples_have_all_classes(num_devices):
    index = samplers.class_index(np.repeat(np.arange(9), 5))
    batch = samplers.sample_batch(jax.random.key(0), index, 6, 4)
    np.testing.assert_array_equal(index.class_of[batch.examples], batch.classes)
    shares = np.asarray(batch.classes).reshape(num_devices, -1)
    drawn = np.unique(batch.classes)
    assert len(drawn) == 6
    for share in shares:
        names, counts = np.unique(share, return_counts=True)
        np.testing.assert_array_equal(names, drawn)
        assert (counts == 4 // num_devices).all()


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


SIZES = [(10, 3), (9, 3), (2, 5), (1, 1), (1, 4), (1000, 16), (257, 256)]


@pytest.mark.parametrize(("num_examples", "batch_size"), SIZES)
def test_every_epoch_visits_each_example_once(num_examples, batch_size):
    steps_per_epoch = -(-num_examples // batch_size)
    batch = jax.jit(
        jax.vmap(
            lambda step: samplers.epoch_batch(
                jax.random.key(0), step, num_examples, batch_size
            )
        )
    )(jnp.arange(4 * steps_per_epoch))
    examples, where = (np.asarray(leaf).reshape(4, -1) for leaf in batch)
    assert ((examples >= 0) & (examples < num_examples)).all()  # of the padding too
    # only the end of the last batch is padding
    assert where[:, :num_examples].all()
    assert not where[:, num_examples:].any()
    orders = examples[:, :num_examples]
    np.testing.assert_array_equal(np.sort(orders), [np.arange(num_examples)] * 4)
    if num_examples > 5:
        assert len({tuple(order) for order in orders}) == 4


def test_batches_of_an_epoch_depend_on_the_key_and_the_step_alone():
    one = jax.jit(lambda key, step: samplers.epoch_batch(key, step, 50, 8).examples)
    key, other = jax.random.key(0), jax.random.key(1)

    def body(carry, _):
        return carry + 1, one(key, carry)

    _, scanned = jax.lax.scan(body, jnp.int32(0), length=14)
    for step in (0, 6, 7, 13):
        np.testing.assert_array_equal(one(key, step), scanned[step])
        np.testing.assert_array_equal(
            samplers.epoch_batch(key, step, 50, 8).examples, scanned[step]
        )
        assert (one(other, step) != scanned[step]).any()


@pytest.mark.parametrize("num_examples", [1, 2, 3, 7, 64, 1000, 4097])
def test_permute_is_a_permutation_in_any_portions(num_examples):
    positions = jnp.arange(num_examples)
    for seed in range(5):
        key = jax.random.key(seed)
        whole = samplers.permute(key, positions, num_examples)
        np.testing.assert_array_equal(np.sort(whole), positions)
        portion = positions[::-3]
        np.testing.assert_array_equal(
            samplers.permute(key, portion, num_examples), whole[portion]
        )


def test_permute_takes_numbers_near_the_limit():
    largest = 2**31 - 1
    positions = jnp.array([0, 1, 12345, largest - 2, largest - 1])
    images = np.asarray(samplers.permute(jax.random.key(0), positions, largest))
    assert images.dtype == np.int32
    assert len(set(images.tolist())) == 5
    assert (images >= 0).all()
    assert (images > 2**28).sum() >= 2
    with pytest.raises(
        ValueError, match=r"num_examples must be below 2\^31; got 2147483648"
    ):
        samplers.permute(jax.random.key(0), positions, 2**31)


def permutations(num_examples, num_keys):
    """A row for each key, and rows of true random permutations."""
    keys = jax.random.split(jax.random.key(5), num_keys)
    positions = jnp.arange(num_examples)
    fn = jax.jit(jax.vmap(lambda key: samplers.permute(key, positions, num_examples)))
    rng = np.random.default_rng(0)
    rows = np.broadcast_to(np.arange(num_examples), (num_keys, num_examples))
    return np.asarray(fn(keys), np.int64), rng.permuted(rows, axis=1)


@pytest.mark.parametrize("num_examples", [2, 3, 4, 5])
def test_all_permutations_of_few_are_equally_frequent(num_examples):
    found, _ = permutations(num_examples, 30_000)
    numbers = (found * num_examples ** np.arange(num_examples)).sum(axis=1)
    _, counts = np.unique(numbers, return_counts=True)
    assert len(counts) == math.factorial(num_examples)
    assert stats.chisquare(counts).pvalue > 1e-3


def orderliness(rows):
    """Numbers for each row that a visible order would shift."""
    num = rows.shape[1]
    steps = np.diff(rows, axis=1)
    places = np.arange(num)

    def equal_neighbours(numbers):
        return (np.diff(np.sort(numbers % num, axis=1), axis=1) == 0).sum(axis=1)

    return {
        "ascents": (steps > 0).sum(axis=1),
        "neighbours": (np.abs(steps) <= max(2, num // 50)).sum(axis=1),
        "fixed points": (rows == places).sum(axis=1),
        "serial correlation": (rows[:, 1:] * rows[:, :-1]).sum(axis=1),
        "correlation with the place": (rows * places).sum(axis=1),
        "equal steps": equal_neighbours(steps),
        "equal shifts": equal_neighbours(rows - places),
        "equal sums": equal_neighbours(rows + places),
        "mean of a batch": rows[:, :16].sum(axis=1),
        "equal parity": (rows[:, 1:] % 2 == rows[:, :-1] % 2).sum(axis=1),
    }


@pytest.mark.parametrize(("num_examples", "num_keys"), [(20, 8000), (600, 3000)])
def test_permutations_cannot_be_told_from_random_ones(num_examples, num_keys):
    found, random = permutations(num_examples, num_keys)
    numbers, wanted = orderliness(found), orderliness(random)
    for name in numbers:
        assert stats.ks_2samp(numbers[name], wanted[name]).pvalue > 1e-3, name
    bins = 10
    share = found * bins // num_examples
    for place in (0, 1, num_examples // 2, num_examples - 1):
        assert stats.chisquare(np.bincount(share[:, place])).pvalue > 1e-3, place
    size = num_examples // bins
    wanted = np.full((bins, bins), size * size) - np.diag([size] * bins)
    wanted = wanted * num_keys / (num_examples * (num_examples - 1))
    for a, b in ((0, 1), (0, num_examples - 1)):
        joint = np.zeros((bins, bins))
        np.add.at(joint, (share[:, a], share[:, b]), 1)
        assert stats.chisquare(joint.ravel(), wanted.ravel()).pvalue > 1e-3, (a, b)


def test_too_few_rounds_would_fail_that_test(monkeypatch):
    monkeypatch.setattr(epochs, "_NUM_ROUNDS", 8)
    found, random = permutations(600, 3000)
    numbers, wanted = orderliness(found), orderliness(random)
    assert stats.ks_2samp(numbers["equal shifts"], wanted["equal shifts"]).pvalue < 1e-9


@pytest.mark.parametrize(
    "fn",
    [
        lambda key: samplers.sample_pairs(key, LARGE, 4, same_group=True),
        lambda key: samplers.sample_triplets(key, LARGE, 4),
        lambda key: samplers.sample_batch(key, LARGE, 2, 2, max_groups=1),
        lambda key: samplers.sample_episode(key, LARGE, 2, 1, 1, same_rank=True),
        lambda key: [samplers.epoch_batch(key, step, 5, 5) for step in (0, 1)],
    ],
    ids=["pairs", "triplets", "batch", "episode", "epochs"],
)
def test_no_key_is_used_twice(fn):
    with every_key_is_used_once():
        fn(jax.random.key(0))


def test_the_ledger_finds_a_key_that_is_used_twice():
    def drawn_twice(key):
        jax.random.normal(key)
        jax.random.uniform(key)

    def split_and_folded(key):
        jax.random.split(key)
        jax.random.fold_in(key, 1)

    def made_twice(key):
        jax.random.fold_in(key, 1)
        jax.random.fold_in(key, 1)

    for fn in (drawn_twice, split_and_folded, made_twice):
        with pytest.raises(AssertionError, match="a key was"), every_key_is_used_once():
            fn(jax.random.key(0))


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
    subsets = np.sort(np.asarray(batches.examples).reshape(-1, 3, 2) % 5, axis=1)
    subsets = np.moveaxis(subsets, 2, 1).reshape(-1, 3)
    _, counts = np.unique(subsets, axis=0, return_counts=True)
    assert len(counts) == 10  # 5 choose 3
    np.testing.assert_allclose(counts / counts.sum(), 0.1, atol=0.015)


def test_groups_and_examples_are_drawn_evenly():
    batches = draw(lambda key: samplers.sample_batch(key, LARGE, 2, 1, max_groups=1))
    groups = np.bincount(batches.classes[:, 0] // 3, minlength=3) / len(KEYS)
    np.testing.assert_allclose(groups, 1 / 3, atol=0.08)
    anchor, positive, negative = np.moveaxis(
        draw(lambda key: samplers.sample_triplets(key, LARGE, 8)), 1, 0
    )
    for examples in (anchor, positive, negative):
        shares = np.bincount(examples.ravel(), minlength=36) / examples.size
        np.testing.assert_allclose(shares, 1 / 36, atol=0.013)


def test_episodes_of_the_same_rank_take_the_same_positions_in_all_classes():
    places = np.asarray(INDEX.rank_of)
    support, query = draw(
        lambda key: samplers.sample_episode(key, INDEX, 4, 1, 1, same_rank=True)
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


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: samplers.sample_pairs(key, LABELS, 4),
        lambda key: samplers.sample_triplets(key, LABELS, 4),
        lambda key: samplers.sample_batch(key, LABELS, 2, 2),
        lambda key: samplers.sample_episode(key, LABELS, 2, 1, 1),
    ],
)
def test_labels_in_place_of_their_index_are_refused(draw):
    words = r"index must be class_index\(labels\); got ndarray"
    with as_for_a_user(), pytest.raises(TypeError, match=words):
        draw(jax.random.key(0))
