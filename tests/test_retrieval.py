"""Tests of retrieval: ties, masks, tiles, devices and figures by hand."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import distances, retrieval
from siamese_jax.relations import Items, shared_label
from siamese_jax.retrieval import evaluation, neighbours
from tests import oracles
from tests.contract.trees import assert_trees_close


def grid(num_rows, seed=0, dim=2):
    """Points on a small grid, of which many are equal or equally far apart."""
    return jnp.asarray(
        np.random.default_rng(seed).integers(3, size=(num_rows, dim)), jnp.float32
    )


# Neighbours -----------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 31])
def test_of_equal_entries_the_first_are_taken(k):
    rng = np.random.default_rng(k)
    rows = rng.integers(4, size=(20, 32 * 40)).astype(np.float32)
    rows[0] = 1.0  # all are equal
    found = jax.jit(neighbours.smallest, static_argnums=1)(rows, k)
    wanted = np.argsort(rows, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.indices, wanted)
    np.testing.assert_array_equal(found.distances, np.take_along_axis(rows, wanted, 1))


def test_zeros_of_both_signs_are_equal():
    signed = jnp.array([[0.0, -0.0, 0.0, -0.0]])
    found = retrieval.nearest(
        jnp.ones((1, 1)), signed.T, k=4, matrix_fn=lambda x, y: jnp.zeros_like(x) * y.T
    )
    assert found.indices.tolist() == [[0, 1, 2, 3]]


def test_an_infinite_distance_is_a_neighbour_and_padding_is_none():
    points = jnp.array([[0.0], [1.0], [2.0]])

    def far(x, y):
        return jnp.where(y.T == 1, jnp.inf, jnp.abs(x - y.T))

    found = retrieval.nearest(
        points[:1],
        points,
        k=4,
        reference_valid=jnp.array([True, True, False]),
        matrix_fn=far,
    )
    assert found.indices.tolist() == [[0, 1, -1, -1]]
    assert found.distances.tolist() == [[0.0, np.inf, np.inf, np.inf]]


def test_nan_is_an_answer_of_its_own_query_alone():
    points = jnp.array([[0.0], [jnp.nan], [2.0]])
    found = retrieval.nearest(points, points[::2], k=1, reference_tile_size=1)
    assert found.indices.tolist() == [[0], [-1], [1]]
    assert np.isnan(found.distances).tolist() == [[False], [True], [False]]
    # a NaN that is not compared is not seen
    found = retrieval.nearest(
        points[:1], points, k=1, reference_valid=jnp.array([True, False, True])
    )
    assert found.indices.tolist() == [[0]]


def test_similarities_are_refused():
    with pytest.raises(ValueError, match="matrix_fn must give distances"):
        retrieval.nearest(
            grid(9), grid(9), k=1, matrix_fn=distances.cosine_similarity_matrix
        )


def test_no_matrix_of_all_distances_is_made():
    n, m, dim = 60_000, 60_000, 64
    queries, references = (
        (jax.ShapeDtypeStruct((rows, dim), jnp.float32), None) for rows in (n, m)
    )
    lowered = neighbours._nearest.lower(
        queries,
        (*references, None),
        k=10,
        matrix_fn=distances.euclidean_distance_matrix,
        query_tile_size=512,
        reference_tile_size=8192,
        shard_references=False,
    )
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 200e6  # of 14.4 GB


# Figures --------------------------------------------------------------------------------

CUTOFFS = (1, 3)


def figures_of(x, items, **options):
    return retrieval.evaluate(x, items, cutoffs=CUTOFFS, **options)


def test_a_set_in_itself_is_searched_without_each_query():
    x, labels = grid(40), np.random.default_rng(1).integers(9, size=40)
    labels[0] = 99  # alone in its class
    found = figures_of(x, Items(labels.tolist()))
    assert_trees_close(found, oracles.evaluate(x, Items(labels), cutoffs=CUTOFFS))
    assert int(found.num_without_relevant) >= 1
    assert not found.where[0]


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [1, 2, 3, 4]])
def test_one_class_and_classes_of_one(labels):
    found = figures_of(grid(4), Items(labels))
    if labels[1] == 1:
        assert all(np.allclose(mean, 1) for mean in found.mean[:4])
        assert all(np.allclose(mean, 1) for mean in found.mean[4:])
    else:
        assert int(found.num_queries) == 0
        assert int(found.num_without_relevant) == 4
        assert all(np.isnan(mean).all() for mean in found.mean)


@pytest.mark.parametrize("num_ranks", [1, 33, 40, 64, 100])
@pytest.mark.parametrize("way", ["comparing", "searching"])
def test_ranks_of_relevant_references_are_those_of_a_stable_sort(way, num_ranks):
    rng = np.random.default_rng(3)
    d = rng.integers(-2, 3, size=(30, 64)).astype(np.float32)  # with many ties
    d[0, 5], d[1] = np.inf, 0.0
    share = np.array([0.0, 1.0] + [0.2] * 28)[:, None]
    same, where = rng.random((30, 64)) < share, rng.random((30, 64)) < 0.8
    ranks_fn = getattr(evaluation, f"ranks_by_{way}")
    found = np.asarray(jax.jit(ranks_fn, static_argnums=3)(d, same, where, num_ranks))
    for row, ranks in enumerate(found):
        columns = np.flatnonzero(where[row])
        order = columns[np.argsort(d[row, columns], kind="stable")]
        wanted = 1 + np.flatnonzero(same[row, order])[:num_ranks]
        assert ranks.tolist() == [*wanted, *[0] * (len(ranks) - len(wanted))]


def test_items_with_several_labels():
    x = grid(12, dim=3)
    sets = np.random.default_rng(2).random((12, 5)) < 0.3
    found = figures_of(x, Items(jnp.asarray(sets)), same_fn=shared_label)

    def relevant(i, j):
        return any(a and b for a, b in zip(sets[i], sets[j], strict=True))

    rows = list(oracles.hits_of_queries(x, x, relevant, lambda i, j: i != j))
    ranks = [[r for r, hit in enumerate(hits, 1) if hit] for hits in rows]
    num_relevant = [sum(hits) for hits in rows]
    wanted = oracles.all_figures(ranks, num_relevant, cutoffs=CUTOFFS, num_references=12)
    assert_trees_close(found.per_query, wanted)
    assert found.num_relevant.tolist() == num_relevant


def test_what_is_unknown_is_nan():
    x, items = grid(12), Items(jnp.arange(12) // 4)
    few = figures_of(x, items, max_relevant=2)  # of 3
    assert all(np.isnan(mean).all() for mean in few.mean)
    with_nan = figures_of(
        x, items, references=x.at[3, 0].set(jnp.nan), reference_items=items
    )
    assert np.isnan(with_nan.per_query.r_precision).all()
    unseen = items._replace(valid=jnp.arange(12) != 3)
    found = figures_of(x, items, references=x.at[3].set(jnp.nan), reference_items=unseen)
    assert np.isfinite(found.mean.ndcg)


def test_the_order_of_equal_figures_is_that_of_the_references():
    x = jnp.zeros((1, 2))
    found = figures_of(
        x,
        Items([1]),
        references=jnp.zeros((4, 2)),
        reference_items=Items([0, 0, 1, 0]),
    )
    assert found.per_query.reciprocal_rank.tolist() == [pytest.approx(1 / 3)]


def test_bootstrap_intervals_hold_the_mean_and_ignore_what_does_not_count():
    labels = jnp.arange(40) // 4
    values = (labels % 3 == 0) * 1.0
    where = jnp.arange(40) < 36
    interval = functools.partial(
        retrieval.class_interval, jax.random.key(0), num_classes=10, num_samples=100
    )
    low, high = interval(values, labels, where)
    assert low < values[where].mean() < high
    other = jnp.where(where, values, jnp.nan)
    assert interval(other, jnp.where(where, labels, -1), where) == (low, high)
    assert np.isnan(interval(values.at[0].set(jnp.nan), labels, where).low)


# Devices --------------------------------------------------------------------------------


def test_devices_share_the_queries():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, items = grid(21), Items(jnp.arange(21) // 3)
    alone = (
        retrieval.nearest(x, x, k=5, query_tile_size=4),
        figures_of(x, items),
    )
    with jax.set_mesh(mesh):
        shared = (
            retrieval.nearest(x, x, k=5, query_tile_size=4),
            figures_of(x, items),
        )
    assert_trees_close(shared, alone)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_devices_share_the_references(num_devices):
    """37 references with many ties, which no number of devices divides."""
    mesh = jax.make_mesh(
        (num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    x, y = grid(21), grid(37, seed=1)
    search = functools.partial(
        retrieval.nearest,
        x,
        k=9,
        query_ids=jnp.arange(21),
        reference_ids=jnp.arange(37) - 10,
        reference_valid=jnp.arange(37) % 5 != 0,
        query_tile_size=6,
        reference_tile_size=4,
    )
    alone, alone_with_nan = search(y), search(y.at[36].set(jnp.nan))
    assert len(np.unique(alone.distances)) < 9  # ties
    with jax.set_mesh(mesh):
        shared = search(y, shard_references=True)
        with_nan = search(y.at[36].set(jnp.nan), shard_references=True)
    jax.tree.map(np.testing.assert_array_equal, shared, alone)
    jax.tree.map(np.testing.assert_array_equal, with_nan, alone_with_nan)
    assert (with_nan.indices == -1).any()


def test_a_device_holds_its_share_of_the_references_alone():
    num_references, dim = 80_000, 16
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.P("data"))
    with jax.set_mesh(mesh):
        compiled = neighbours._nearest.lower(
            (jax.ShapeDtypeStruct((64, dim), jnp.float32), None),
            (
                jax.ShapeDtypeStruct((num_references, dim), jnp.float32, sharding=spread),
                None,
                None,
            ),
            k=4,
            matrix_fn=distances.euclidean_distance_matrix,
            query_tile_size=64,
            reference_tile_size=1024,
            shard_references=True,
        ).compile()
    share = num_references // 8 * dim * 4
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < 1.1 * share
    assert memory.temp_size_in_bytes < 3 * share  # of 8 shares


def test_without_a_mesh_the_references_are_not_shared():
    with pytest.raises(ValueError, match="shard_references needs a mesh"):
        retrieval.nearest(grid(3), grid(4), k=1, shard_references=True)


# Another library ------------------------------------------------------------------------

GOLDEN = json.loads((Path(__file__).parent / "golden" / "peers.json").read_text())
PEERS = GOLDEN["pytorch_metric_learning"]["figures"]["AccuracyCalculator"]
SEARCHES = GOLDEN["pytorch_metric_learning"]["search"]
THEIR_NAMES = {
    "mean_average_precision": "average_precision",
    "mean_average_precision_at_r": "average_precision_at_r",
    "mean_reciprocal_rank": "reciprocal_rank",
    "r_precision": "r_precision",
}


def figures_of_the_first(k, x, labels, references, found):
    """Figures of the k nearest alone; the references after them are not found."""
    ids = jnp.arange(len(x))
    other = references is not None
    near = retrieval.nearest(
        x,
        references if other else x,
        k=k,
        query_ids=None if other else ids,
        reference_ids=None if other else ids,
    )
    hits = (labels[near.indices] == labels[:, None]) & (near.indices >= 0)
    figures = retrieval.all_figures(
        retrieval.ranks_of_hits(hits),
        found.num_relevant,
        cutoffs=(1,),
        num_references=len(x),
    )
    return retrieval.mean_figures(figures, found.where)


@pytest.mark.parametrize("place", ["itself", "others"])
def test_figures_of_pytorch_metric_learning(place):
    labels = jnp.array(GOLDEN["labels"])
    x, other = (jnp.array(GOLDEN["inputs"][name]) for name in ("embeddings", "other"))
    references = other if place == "others" else None
    items = Items(labels)
    found = retrieval.evaluate(
        x,
        items,
        references=references,
        reference_items=None if references is None else items,
        cutoffs=(1,),
    )
    for case in PEERS:
        ours = found.mean
        if "avg_of_avgs" in case["settings"]:
            ours = retrieval.class_means(
                found.per_query, labels, found.where, num_classes=4
            ).macro
        elif case["settings"]["k"] == "max_bin_count":
            k = int(found.num_relevant.max())
            ours = figures_of_the_first(k, x, labels, references, found)
        wanted = case[place]
        assert ours.precision_at_k[0] == pytest.approx(wanted["precision_at_1"], 1e-6)
        for theirs, name in THEIR_NAMES.items():
            assert getattr(ours, name) == pytest.approx(wanted[theirs], 1e-6), theirs


def inputs_of_the_peers():
    return (jnp.array(GOLDEN["inputs"][name]) for name in ("embeddings", "other"))


@pytest.mark.parametrize("name", ["CustomKNN", "FaissKNN", "InferenceModel"])
def test_neighbours_of_pytorch_metric_learning(name):
    """`FaissKNN` does not normalise, and its distances are squared."""
    x, other = inputs_of_the_peers()
    if name != "FaissKNN":
        x, other = map(distances.normalize, (x, other))
    squared = distances.squared_euclidean_distance_matrix
    plain = distances.euclidean_distance_matrix
    search = functools.partial(
        retrieval.nearest, x, k=3, matrix_fn=plain if name == "CustomKNN" else squared
    )
    ids = jnp.arange(len(x))
    ours = {
        "others": search(other),
        "itself": search(x, query_ids=ids, reference_ids=ids),
    }
    for case in SEARCHES[name]:
        for place in case.keys() - {"settings"}:
            theirs = [np.array(array) for array in case[place]]
            np.testing.assert_allclose(ours[place].distances, theirs[0], rtol=1e-5)
            np.testing.assert_array_equal(ours[place].indices, theirs[1])


def test_matches_of_pytorch_metric_learning():
    """Single pairs are compared as they are, all pairs after normalising."""
    x, other = inputs_of_the_peers()
    (case,) = SEARCHES["MatchFinder"]
    limit = case["settings"]["threshold"]
    unit = map(distances.normalize, (x, other))
    near = distances.euclidean_distance_matrix(*unit) <= limit
    np.testing.assert_array_equal(near, case["pairs"])
    rows = distances.euclidean_distance(x, other) <= limit
    np.testing.assert_array_equal(rows, case["rows"])
