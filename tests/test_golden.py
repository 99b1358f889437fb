"""Tests of losses, miners and distances against the values of other libraries.

The values are made by golden/make_peers.py. golden/losses.py and golden/others.py say how
we compute each.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import coverage
from siamese_jax import distances, losses, miners, relations
from tests.golden import losses as ours
from tests.golden import others

GOLDEN = json.loads((Path(__file__).parent / "golden" / "peers.json").read_text())
PML = GOLDEN["pytorch_metric_learning"]
FAMILIES = {
    "pairs": (ours.PAIRS, PML["losses"]),
    "rows": (ours.ROWS, PML["losses"]),
    "ranks": (ours.RANKS, PML["losses"]),
    "proxies": (ours.PROXIES, PML["losses"]),
    "regularizers": (others.REGULARIZERS, PML["regularizers"]),
    "reducers": (others.REDUCERS, PML["reducers"]),
    "optax": (others.OPTAX, GOLDEN["optax"]),
    "distances": (others.DISTANCES, PML["distances"]),
    "terms": (others.TERMS, PML["terms"]),
    "miners": (others.MINERS, PML["miners"]),
}
DIFFERENTIATED = ("pairs", "rows", "ranks", "proxies", "regularizers", "reducers", "optax")


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def assert_agrees(ours, theirs):
    """To nine digits, or to fourteen digits of the largest entry."""
    theirs = np.asarray(theirs, np.float64)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(
        ours, theirs, rtol=1e-9, atol=1e-14 * np.max(np.abs(theirs), initial=0)
    )


def inputs():
    return {key: jnp.array(value) for key, value in GOLDEN["inputs"].items()}


def batch(embeddings="embeddings"):
    """The embeddings, or those of which two are equal, with all that goes with them."""
    x = inputs()
    x["embeddings"] = x[embeddings]
    del x["with_equal"]
    return ours.Batch(**x)


def all_of(family, fn_of_case, x):
    """What a function of each row and each of its cases returns, by one program."""
    table, golden = FAMILIES[family]
    # a program that runs once need not be fast
    quick = {"xla_backend_optimization_level": 0}

    @functools.partial(jax.jit, compiler_options=quick)
    def program(x):
        return {
            name: [
                fn_of_case(functools.partial(fn, **case["settings"]), x)
                for case in golden[name]
            ]
            for name, fn in table.items()
        }

    return jax.tree.map(np.asarray, program(x))


def each_name_of(*families):
    return pytest.mark.parametrize(
        ("family", "name"),
        [(family, name) for family in families for name in FAMILIES[family][0]],
    )


def test_the_file_holds_what_is_tested_and_no_more():
    tables = {}
    for table, golden in FAMILIES.values():
        tables.setdefault(id(golden), (golden, set()))[1].update(table)
    for golden, names in tables.values():
        assert set(golden) == names


# Losses ---------------------------------------------------------------------------------


@functools.cache
def differentiated(family):
    return all_of(family, lambda fn, x: jax.value_and_grad(fn)(x), batch())


@pytest.mark.slow
@each_name_of(*DIFFERENTIATED)
def test_values_and_gradients(family, name):
    cases = FAMILIES[family][1][name]
    for (value, gradients), case in zip(differentiated(family)[name], cases, strict=True):
        assert_agrees(value, case["value"])
        for key, gradient in vars(gradients).items():
            theirs = case["gradients"].get(key, np.zeros(gradient.shape))
            assert_agrees(gradient, theirs)


# Distances ------------------------------------------------------------------------------


@functools.cache
def differentiated_distances():
    def matrix_and_gradient(fn, x):
        def weighted_sum(embeddings):
            matrix = fn(embeddings)
            return jnp.sum(matrix * x.weights), matrix

        return jax.grad(weighted_sum, has_aux=True)(x.embeddings)

    return all_of("distances", matrix_and_gradient, batch("with_equal"))


@pytest.mark.parametrize("name", PML["distances"])
def test_matrices_and_gradients(name):
    found = differentiated_distances()[name]
    for (gradient, matrix), case in zip(found, PML["distances"][name], strict=True):
        assert_agrees(matrix, case["value"])
        assert_agrees(gradient, case["gradient"])


def test_distances_of_scikit_learn():
    x, factor = inputs()["embeddings"], inputs()["other"][:2]
    found = {
        "cosine": distances.cosine_distance_matrix(x, x),
        "manhattan": distances.manhattan_distance_matrix(x, x),
        "chebyshev": distances.lp_distance_matrix(x, x, order=np.inf),
        "mahalanobis": distances.mahalanobis_distance_matrix(x, x, factor),
    }
    theirs = GOLDEN["sklearn"]["matrices"]
    assert found.keys() == theirs.keys()
    for name, matrix in found.items():
        assert_agrees(matrix, theirs[name])


# Terms, of embeddings of which two are equal --------------------------------------------


def relation():
    return relations.within(relations.Items(jnp.array(GOLDEN["labels"])))


def with_gaps(numbers):
    """The array, and where it has no null."""
    array = np.array(numbers, dtype=np.float64)
    return np.nan_to_num(array), ~np.isnan(array)


@functools.cache
def terms():
    return all_of("terms", lambda fn, x: fn(x), batch("with_equal"))


def terms_and_cases(name):
    return zip(terms()[name], PML["terms"][name], strict=True)


def test_contrastive_loss_is_half_their_hinges_squared():
    same, where = relation()
    for (found, mean), case in terms_and_cases("ContrastiveLoss"):
        positive_hinges, positive = with_gaps(case["pos_loss"])
        negative_hinges, negative = with_gaps(case["neg_loss"])
        np.testing.assert_array_equal(same & where, positive)
        np.testing.assert_array_equal(~same & where, negative)
        halves = (positive_hinges**2 + negative_hinges**2) / 2  # one of the two is 0
        assert_agrees(found.values, halves)
        assert_agrees(mean, halves.sum() / (positive | negative).sum())


def test_all_triplets_loss():
    for (of_all, of_active), case in terms_and_cases("TripletMarginLoss"):
        assert_agrees(of_all, case["MeanReducer"])
        assert_agrees(of_active, case["AvgNonZeroReducer"])


def test_hard_triplet_loss():
    for (found, mean), case in terms_and_cases("TripletMarginLoss of the hardest"):
        per_anchor, counted = with_gaps(case["loss"])
        np.testing.assert_array_equal(found.where, counted)
        assert_agrees(found.values, per_anchor)
        assert_agrees(mean, case["MeanReducer"])


def test_supervised_contrastive_loss():
    for (found, mean), case in terms_and_cases("SupConLoss"):
        # theirs has the loss 0 for an anchor without a positive, which ours leaves out
        assert_agrees(found.values, case["loss"])
        assert_agrees(mean, case["AvgNonZeroReducer"])
        assert_agrees(np.sum(found.values) / len(found.values), case["MeanReducer"])


# Figures that losses are or approach ----------------------------------------------------


def test_smooth_ap_approaches_the_average_precision_of_scikit_learn():
    same, where = relation()
    x = inputs()["embeddings"]
    cosines = distances.cosine_similarity_matrix(x, x)
    found = losses.smooth_ap_loss(
        cosines, same, temperature=1e-8, where=where, reduce_fn=None
    )
    theirs = 1 - np.array(GOLDEN["sklearn"]["average_precision"])
    np.testing.assert_allclose(found.values[found.where], theirs, atol=1e-12)


def test_class_loss_is_the_log_loss_of_scikit_learn():
    logits = inputs()["weights"][:, :4]
    loss = losses.class_loss(logits, jnp.array(GOLDEN["labels"]))
    assert_agrees(loss, GOLDEN["sklearn"]["log_loss"])


# Miners ---------------------------------------------------------------------------------


@functools.cache
def mined():
    return all_of("miners", lambda fn, x: fn(x), batch())


def mined_and_cases(name):
    return zip(mined()[name], PML["miners"][name], strict=True)


def mask(*columns):
    found = np.zeros((len(GOLDEN["labels"]),) * len(columns), bool)
    found[tuple(np.array(column, int) for column in columns)] = True
    return found


def mask_of_pairs(case):
    first, positive, second, negative = case["indices"]
    return mask(first, positive) | mask(second, negative)


def assert_same_triplets(found, anchors, positives, negatives):
    np.testing.assert_array_equal(np.flatnonzero(found.where), anchors)
    np.testing.assert_array_equal(found.positive.indices[found.where], positives)
    np.testing.assert_array_equal(found.negative.indices[found.where], negatives)


@pytest.mark.parametrize("name", ["MultiSimilarityMiner", "PairMarginMiner"])
def test_masks_of_pairs(name):
    for found, case in mined_and_cases(name):
        np.testing.assert_array_equal(found, mask_of_pairs(case))


def test_hardest_share_mask():
    for found, case in mined_and_cases("HDCMiner"):
        # of an odd number of pairs theirs keeps (i, j) without (j, i), which is as far
        theirs = mask_of_pairs(case)
        np.testing.assert_array_equal(found, theirs | theirs.T)


def test_mine_triplets():
    ((found, case),) = mined_and_cases("BatchHardMiner")
    assert_same_triplets(found, *case["indices"])
    *triplets, (of_pairs, case) = mined_and_cases("BatchEasyHardMiner")
    np.testing.assert_array_equal(of_pairs, mask_of_pairs(case))
    for found, case in triplets:
        anchors, positives, _, negatives = case["indices"]
        assert_same_triplets(found, anchors, positives, negatives)


def test_angular_negatives():
    for found, case in mined_and_cases("AngularMiner"):
        # of all negatives beyond the angle ours is the one with the largest
        theirs = mask(*case["indices"])
        np.testing.assert_array_equal(found.where, theirs.any(axis=2))
        rows, columns = np.nonzero(found.where)
        assert theirs[rows, columns, found.indices[rows, columns]].all()


def test_number_of_triplets_beyond_a_margin():
    for found, case in mined_and_cases("TripletMarginMiner"):
        of_each_anchor = np.bincount(case["indices"][0], minlength=len(found))
        np.testing.assert_array_equal(found, of_each_anchor)


def test_given_triplets():
    ((found, case),) = mined_and_cases("EmbeddingsAlreadyPackagedAsTriplets")
    np.testing.assert_array_equal(found, case["indices"])


def test_uniform_histogram_weights():
    (((d, weights), case),) = mined_and_cases("UniformHistogramMiner")
    same, where = relation()
    pairs = case["indices"][:2], case["indices"][2:]
    for kind, bins, drawn in zip((same, ~same), case["bins"], pairs, strict=True):
        theirs, _ = np.histogram(d[tuple(np.array(drawn))], bins)
        kept = np.asarray(kind & where)
        found, _ = np.histogram(d[kept], bins, weights=weights[kept])
        np.testing.assert_array_equal(found, theirs)


def test_distance_weighted_negatives():
    same, where = relation()
    for found, case in mined_and_cases("DistanceWeightedMiner"):
        theirs, known = with_gaps(case["probabilities"])
        exists = same & where & known.any(axis=1)[:, None]
        np.testing.assert_array_equal(found.where.all(axis=0), exists)
        times = np.zeros(theirs.shape)
        _, rows, _ = np.nonzero(found.where)
        np.add.at(times, (rows, found.indices[found.where]), 1)
        num_draws = times.sum(axis=1, keepdims=True)
        deviation = np.sqrt(num_draws * theirs * (1 - theirs))
        assert (np.abs(times - num_draws * theirs) <= 5 * deviation + 1e-9).all()


# The peers' names -----------------------------------------------------------------------


def test_all_names_of_the_peers_that_count(capsys):
    failed = coverage.main()
    assert not failed, capsys.readouterr().out


def test_a_name_without_golden_values_does_not_count(capsys, monkeypatch):
    monkeypatch.setattr(coverage, "golden_names", lambda: {"optax": set()})
    assert coverage.main() == 1
    assert "optax ntxent lacks a golden value" in capsys.readouterr().out


# What other libraries state in their tests ----------------------------------------------


def test_triplets_of_tensorflow_similarity():
    """The farthest positive, with the nearest negative beyond it or else the farthest."""
    x = jnp.array([[1.0, 0.0], [0.5, 0.8660254], [0.0, 1.0], [0.01010049, 0.999949]])
    same, where = relations.within(relations.Items(jnp.array([0, 0, 1, 1])))
    d = distances.cosine_distance_matrix(x, x)
    farthest = miners.nearest_mask(d, same, num_positives=1, where=where)
    terms = losses.semi_hard_triplet_loss(d, same, where=farthest, reduce_fn=None)
    values = jnp.sum(terms.values, axis=1)
    np.testing.assert_allclose(values, [0.51, 1.366, 0.866, 0.871], atol=1e-3)


def test_triplets_of_open_metric_learning():
    d = jnp.array([[0, 3, 2, 4], [3, 0, 4, 8], [2, 4, 0, 5], [4, 8, 5, 0]]) / 10
    same, where = relations.within(relations.Items(jnp.array([0, 0, 1, 1])))
    found = miners.mine_triplets(d, same, where=where)
    assert found.positive.indices.tolist() == [1, 0, 3, 2]
    assert found.negative.indices.tolist() == [2, 2, 0, 0]


def test_pairs_of_tensorflow_addons():
    d = jnp.array([0.1, 0.3, 1.3, 0.7, 1.1, 0.5])
    same = jnp.array([False, False, True, True, False, True])
    loss = losses.contrastive_loss(d, same, factor=1.0)
    np.testing.assert_allclose(loss, 0.621666, atol=1e-6)
    corners = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    products = distances.dot_similarity_matrix(corners, corners)
    n_pairs = losses.info_nce_loss(products, jnp.eye(4, dtype=bool), temperature=1.0)
    np.testing.assert_allclose(n_pairs, 0.253856, atol=1e-6)
