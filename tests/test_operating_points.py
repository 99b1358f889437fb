"""Tests of operating points, of all pairs at once and streamed in tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from siamese_jax import verification
from siamese_jax.relations import Items
from siamese_jax.verification import Tile, pair_tiles, streamed_operating_points
from tests.contract import as_for_a_user

RATES = (0.0, 1e-3, 0.01, 0.1, 0.5, 0.999)
points_of = jax.jit(verification.operating_points, static_argnums=2)


def pairs(seed, num, *, spread=2):
    """Distances of all signs and sizes, with ties, zeros of both signs and infinities."""
    rng = np.random.default_rng(seed)
    same = rng.random(num) < 0.3
    distances = np.round(rng.normal(size=num) + np.where(same, 0, 1), spread)
    distances[:: max(2, num // 40)] *= 10.0 ** rng.integers(-30, 30)
    distances[[1, 2, 5]] = np.inf, 0.0, -0.0
    return distances.astype(np.float32), same


def counted(distances, same, rates):
    """Rates and thresholds by counting integers, one threshold after the other."""
    different = np.sort(distances[~same])
    rows = []
    for rate in rates:
        num = int(np.floor(rate * len(different) * (1 + 1e-12)))
        below = different[min(num, len(different) - 1)]
        rows.append(
            (
                np.mean(different < below),
                np.mean(distances[same] < below),
                np.mean(distances[same] >= below),
            )
        )
    return np.array(rows).T


def in_tiles(distances, same, where=None, size=37):
    def tiles_fn():
        for start in range(0, len(distances), size):
            part = slice(start, start + size)
            mask = None if where is None else where[part]
            yield Tile(distances[part], same[part], mask)

    return tiles_fn


def test_rates_are_reached_by_their_thresholds_and_none_larger():
    for seed in range(4):
        distances, same = pairs(seed, 500)
        found = points_of(distances, same, RATES)
        np.testing.assert_allclose(found[1:], counted(distances, same, RATES), rtol=1e-6)
        false, true, _ = metrics.roc_curve(same, -distances.clip(-1e35, 1e35))
        for rate, threshold, reached, of_same, _ in zip(RATES, *found, strict=True):
            assert np.mean(distances[~same] <= threshold) == pytest.approx(reached)
            assert np.mean(distances[same] <= threshold) == pytest.approx(of_same)
            assert of_same == pytest.approx(true[false <= rate + 1e-9].max(), abs=1e-6)
            with np.errstate(over="ignore"):
                beyond = np.nextafter(np.nextafter(threshold, np.inf), np.inf)
            beyond = max(beyond, 1e-37) if abs(threshold) < 1e-37 else beyond
            assert np.mean(distances[~same] <= beyond) > rate


def test_equal_distances_match_all_or_not_at_all():
    distances = jnp.array([0.5, 1.0, 1.0, 1.0, 2.0])
    same = jnp.array([True, False, False, True, False])
    found = points_of(distances, same, (0.0, 0.4, 0.7))
    np.testing.assert_allclose(found.false_match_rate, [0, 0, 2 / 3])
    np.testing.assert_allclose(found.true_match_rate, [0.5, 0.5, 1])
    np.testing.assert_allclose(found.false_non_match_rate, [0.5, 0.5, 0])
    assert (found.thresholds[:2] < 1).all()
    streamed = streamed_operating_points(in_tiles(distances, same, size=2), [0.0, 0.4, 0.7])
    np.testing.assert_allclose(streamed, np.array(found), rtol=1e-7)


@pytest.mark.parametrize("kind", [True, False])
def test_pairs_of_one_kind_have_the_rates_of_that_kind(kind):
    distances, same = jnp.array([0.5, 1.0]), jnp.full(2, kind)
    for found in (
        points_of(distances, same, (0.0, 0.5)),
        streamed_operating_points(in_tiles(distances, same), [0.0, 0.5]),
    ):
        assert np.isnan(found.true_match_rate).all()
        assert np.isnan(found.false_non_match_rate).all()
        assert np.isnan(found.thresholds).all() == kind
        np.testing.assert_array_equal(
            found.false_match_rate, [np.nan] * 2 if kind else [0, 0.5]
        )


def test_no_threshold_keeps_out_minus_infinity():
    distances, same = jnp.array([-np.inf, 1.0, 2.0]), jnp.array([False, True, False])
    for found in (
        points_of(distances, same, (0.0, 0.5)),
        streamed_operating_points(in_tiles(distances, same), [0.0, 0.5]),
    ):
        assert np.isnan(found.thresholds).tolist() == [True, False]
        np.testing.assert_array_equal(found.true_match_rate, [0, 1])


# Streams ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_streamed_points_are_those_of_all_pairs_at_once():
    for seed in range(3):
        distances, same = pairs(seed, 2000, spread=1 + seed)
        where = np.random.default_rng(seed).random(2000) < 0.8
        found = streamed_operating_points(in_tiles(distances, same, where, 500), RATES)
        kept = distances[where], same[where]
        np.testing.assert_array_equal(np.array(found[1:]), counted(*kept, RATES))
        whole = verification.operating_points(*kept, RATES)
        np.testing.assert_array_equal(found.thresholds, whole.thresholds)
        assert found.thresholds.dtype == np.float32


def test_half_precision_tiles_and_a_nan():
    distances, same = np.float16([1, 2, 3, 4]), np.array([True, False, True, False])
    found = streamed_operating_points(in_tiles(distances, same), [0.5])
    assert found.true_match_rate == 1
    for sign in (1, -1):
        broken = np.array([1, 2, sign * np.nan], np.float32)
        found = streamed_operating_points(in_tiles(broken, same[:3]), [0.5])
        assert np.isnan(found).all()
        where = np.array([True, True, False])
        found = streamed_operating_points(in_tiles(broken, same[:3], where), [0.5])
        assert found.true_match_rate == 1


def test_pairs_of_embeddings_come_once_each():
    rng = np.random.default_rng(0)
    x, labels = np.float32(rng.normal(size=(11, 3))), rng.integers(3, size=11)
    every = pair_tiles(x, Items(labels), tile_size=4)
    distances = np.linalg.norm(x[:, None] - x[None, :], axis=-1)
    rows, columns = np.triu_indices(11, 1)
    tiles = [jax.tree.map(np.asarray, tile) for tile in every()]
    assert [tile.distances.shape for tile in tiles] == [(4, 11), (4, 11), (3, 11)]
    found = np.concatenate([tile.distances[tile.where] for tile in tiles])
    np.testing.assert_allclose(found, distances[rows, columns], rtol=1e-5)
    same = np.concatenate([tile.same[tile.where] for tile in tiles])
    np.testing.assert_array_equal(same, labels[rows] == labels[columns])
    points = streamed_operating_points(every, RATES)
    np.testing.assert_array_equal(np.array(points[1:]), counted(found, same, RATES))

    valid = jnp.arange(5) < 4
    others = Items(labels[:5].tolist(), valid=valid)
    two_sets = pair_tiles(x, Items(labels), columns=x[:5], column_items=others)
    (tile,) = two_sets()
    np.testing.assert_allclose(tile.distances, distances[:, :5], atol=1e-6)
    np.testing.assert_array_equal(tile.where, np.tile(valid, (11, 1)))


def test_what_cannot_be_streamed_is_refused():
    distances, same = np.float32([1, 2]), np.array([True, False])
    tiles_fn = in_tiles(distances, same)
    words = r"tiles_fn must be a function .* got generator"
    with as_for_a_user(), pytest.raises(TypeError, match=words):
        streamed_operating_points(tiles_fn(), [0.1])
    used = iter(tiles_fn())
    with pytest.raises(ValueError, match="tiles_fn must give the same tiles each time"):
        streamed_operating_points(lambda: used, [0.1])
    with pytest.raises(TypeError, match="distances must have at most 32 bits; got float64"):
        streamed_operating_points(in_tiles(np.float64(distances), same), [0.1])
    with pytest.raises(TypeError, match="same must be a boolean"):
        streamed_operating_points(in_tiles(distances, distances), [0.1])
    with pytest.raises(ValueError, match=r"must be a list of rates in \[0, 1\); got \[2\]"):
        streamed_operating_points(tiles_fn, [2])
    x, items = jnp.ones((3, 2)), Items([0, 1, 1])
    for words, options in (
        ("tile_size must be at least 1", {"tile_size": 0}),
        ("columns and column_items must be given together", {"columns": x}),
        ("items of columns must be 3", {"columns": x, "column_items": Items([0])}),
    ):
        with as_for_a_user(), pytest.raises(ValueError, match=words):
            pair_tiles(x, items, **options)


@pytest.mark.slow
def test_millions_of_pairs_need_no_matrix():
    """4e6 pairs in tiles, against the sorted distances of all."""
    rng = np.random.default_rng(0)
    labels = rng.integers(200, size=2829)
    centres = rng.normal(size=(200, 8))
    x = np.float32(centres[labels] + rng.normal(size=(2829, 8)) / 2)
    tiles_fn = pair_tiles(x, Items(labels), tile_size=512)
    found = streamed_operating_points(tiles_fn, [1e-6, 1e-4, 1e-2, 0.5])
    tiles = [jax.tree.map(np.asarray, tile) for tile in tiles_fn()]
    distances = np.concatenate([tile.distances[tile.where] for tile in tiles])
    same = np.concatenate([tile.same[tile.where] for tile in tiles])
    assert len(distances) == 2829 * 2828 // 2
    wanted = counted(distances, same, [1e-6, 1e-4, 1e-2, 0.5])
    np.testing.assert_array_equal(np.array(found[1:]), wanted)
