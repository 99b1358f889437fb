"""Tests that each figure of `siamese_jax.evaluation` is that of the library's function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import episodes, health, relations, retrieval, samplers, verification
from siamese_jax.distances import cosine_distance_matrix, normalize
from siamese_jax.errors import UserError
from siamese_jax.evaluation import Pairs, evaluate_sets, make_sets, neighbours, verify
from siamese_jax.evaluation.distance import DISTANCES
from siamese_jax.evaluation.few_shot import _task, few_shot
from siamese_jax.evaluation.neighbours import rank
from siamese_jax.evaluation.pairs import NO_PART, all_pairs, listed_pairs
from siamese_jax.evaluation.whole import _few_shot_groups, _health_figures
from siamese_jax.relations import Items

EUCLIDEAN = DISTANCES["euclidean"]


def embeddings(seed=0, num=40, classes=6, dim=5):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, num - classes)])
    x = rng.normal(size=(classes, dim))[labels] + rng.normal(size=(num, dim))
    return x.astype(np.float32), labels


X, LABELS = embeddings()
ROWS = np.arange(len(X))
SETS = make_sets(X, LABELS)


def values(figures):
    return {name: figure.value for name, figure in figures.items()}


# Sets -----------------------------------------------------------------------------------


def test_classes_and_ids_are_numbered_over_both_sets():
    found = make_sets(
        X[:3],
        ["b", "a", "b"],
        ids=["p", "q", "r"],
        references=X[:2],
        reference_labels=["c", "b"],
        reference_ids=["q", "z"],
    )
    assert found.names == ["a", "b", "c"]
    assert found.queries.labels.tolist() == [1, 0, 1]
    assert found.references.labels.tolist() == [2, 1]
    assert found.queries.ids[1] == found.references.ids[0]
    assert len({*found.queries.ids, *found.references.ids}) == 4
    other = make_sets(X[:3], [1, 0, 1], references=X[:2], reference_labels=[1, 1])
    assert not set(other.queries.ids) & set(other.references.ids)
    assert not other.itself


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X[0], LABELS), r"embeddings must have shape \[rows, dimensions\]; got \(5,\)"),
        ((X.astype(str), LABELS), "embeddings must be numbers; got <U"),
        ((X, LABELS[:-1]), "labels must be 40, one for each row; got 39"),
        (
            (X * 1e25, LABELS),
            r"lengths up to 1e\+18, .* 40 of 40 rows are longer, first ro",
        ),
        ((X, np.array(5)), "labels must be 40, one for each row; got one value"),
        ((X[:2], [[1, 2], [3]]), "labels must have rows of one length"),
        ((X, np.zeros(40)), "at least two classes; all rows are of class 0"),
        ((X[:3], ["a", "b", "c"]), "no two rows are of one class"),
        ((X, [None] * 40), "labels must be all strings or all numbers"),
        ((X, LABELS[:, None] == np.arange(6.0)), None),
        ((X, np.zeros((40, 3))), r"labels must be integers or strings \[rows\], or True"),
    ],
)
def test_wrong_arrays_are_named(arguments, words):
    if words is None:  # several labels for a row
        assert make_sets(*arguments).multi_label
        return
    with pytest.raises(UserError, match=words):
        make_sets(*arguments)


def test_rows_without_a_value_are_counted():
    wrong = X.copy()
    wrong[[3, 7], 1] = np.nan, np.inf
    with pytest.raises(UserError, match="2 of 40 rows have NaN or infinity, first row 3"):
        make_sets(wrong, LABELS)
    for more, words in (
        ({"references": X}, "must be given together"),
        ({"reference_ids": LABELS}, "without reference embeddings"),
        ({"references": X[:, :2], "reference_labels": LABELS}, "must have 5 columns"),
        ({"references": X[:1], "reference_labels": [9]}, "no label in common"),
        ({"references": X[:1], "reference_labels": ["a"]}, "both strings or both numbers"),
        ({"ids": [1]}, "ids must be 40"),
        (
            {
                **{"references": X, "reference_labels": LABELS},
                **{"ids": LABELS.astype(str), "reference_ids": LABELS},
            },
            "ids and reference ids must be both strings or both numbers",
        ),
        ({"ids": [1], "references": X, "reference_labels": LABELS}, "given together"),
    ):
        with pytest.raises(UserError, match=words):
            make_sets(X, LABELS, **more)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_queries": 0}, "max_queries must be at least 1 and below 2.*; got 0"),
        ({"num_tasks": 1}, "num_tasks must be at least 2 and below 2.*; got 1"),
        ({"seed": -1}, "seed must be at least 0 and below 2.*; got -1"),
        ({"seed": 2**31}, "seed must be at least 0 and below 2.*; got 2147483648"),
    ],
)
def test_numbers_out_of_range_are_named_before_any_work(options, words):
    begun = []
    with pytest.raises(ValueError, match=f"^{words}"):
        evaluate_sets(SETS, **options, progress_fn=begun.append)
    assert begun == []


# Retrieval ------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_of_retrieval_are_those_of_the_library():
    found = rank(SETS, ROWS, distance=DISTANCES["cosine"], seed=3)
    wanted = retrieval.evaluate(
        jnp.asarray(X),
        Items(jnp.asarray(LABELS)),
        cutoffs=(1, 2, 10),
        matrix_fn=cosine_distance_matrix,
    )
    figures = values(found.figures)
    mean = wanted.mean
    for name, value in (
        ("precision_at_1", mean.precision_at_k[0]),
        ("precision_at_10", mean.precision_at_k[2]),
        ("recall_at_2", mean.recall_at_k[1]),
        ("map_at_10", mean.average_precision_at_k[2]),
        ("ndcg_at_10", mean.ndcg_at_k[2]),
        ("r_precision", mean.r_precision),
        ("map_at_r", mean.average_precision_at_r),
        ("map", mean.average_precision),
        ("mrr", mean.reciprocal_rank),
        ("ndcg", mean.ndcg),
    ):
        assert figures[name] == pytest.approx(float(value), rel=1e-6), name
    assert found.figures["recall_at_100"].why == "fewer than 100 references"
    arrays = (jnp.asarray(LABELS), wanted.where)
    by_class = retrieval.class_means(wanted.per_query, *arrays, num_classes=6)
    assert found.figures["map_at_r"].macro == pytest.approx(
        float(by_class.macro.average_precision_at_r)
    )
    interval = retrieval.class_interval(
        jax.random.key(3), wanted.per_query.average_precision, *arrays, num_classes=6
    )
    ends = (found.figures["map"].low, found.figures["map"].high)
    assert ends == pytest.approx(tuple(map(float, interval)))
    precision = np.asarray(by_class.per_class.precision_at_k[:, 0])
    assert found.worst[0].precision_at_1 == pytest.approx(precision.min())
    assert [of.precision_at_1 for of in found.worst] == pytest.approx(np.sort(precision))
    assert {of.name for of in found.worst} == set("012345")


@pytest.mark.slow
def test_answers_and_confusions_are_those_of_the_nearest_rows():
    found = rank(SETS, ROWS, distance=EUCLIDEAN, seed=0)
    distances = np.linalg.norm(X[:, None] - X[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    right = [bool(answer.same[0]) for answer in found.answers]
    assert right == sorted(right, reverse=True)
    assert {True, False} == set(right)
    for answer in found.answers:
        assert answer.neighbours[0] == nearest[answer.query]
        assert len(answer.neighbours) == 8
        same = LABELS[answer.neighbours] == LABELS[answer.query]
        assert answer.same.tolist() == same.tolist()
    worst = found.worst[0]
    taken = LABELS[nearest[int(worst.name) == LABELS]]
    taken = taken[taken != int(worst.name)]
    counts = np.bincount(taken, minlength=6)
    assert counts[int(worst.taken_for)] == counts.max()


@pytest.mark.slow
def test_every_one_of_the_worst_classes_is_asked(monkeypatch):
    """Row j of class c is at 10 j + c, next to row j of another class."""
    monkeypatch.setattr(neighbours, "_MOST_ASKED", 1)
    labels = np.repeat(np.arange(4), 5)
    places = 10 * np.tile(np.arange(5), 4) + labels
    sets = make_sets(places[:, None], labels)
    found = rank(sets, np.arange(20), distance=EUCLIDEAN, seed=0)
    assert [of.precision_at_1 for of in found.worst] == [0] * 4
    for of in found.worst:
        assert abs(int(of.name) - int(of.taken_for)) == 1


@pytest.mark.slow
def test_a_row_is_no_answer_to_a_row_of_the_same_id():
    ids = ROWS // 2
    sets = make_sets(X, LABELS, ids=ids)
    found = rank(sets, ROWS, distance=EUCLIDEAN, seed=0)
    for answer in found.answers:
        assert ids[answer.query] not in ids[answer.neighbours]
    pairs = all_pairs(sets, ROWS, distance=EUCLIDEAN, seed=0)
    assert len(pairs.same) == 40 * 39 // 2 - 20


@pytest.mark.slow
def test_rows_of_several_labels_are_relevant_if_they_share_one():
    labels = LABELS[:, None] == np.arange(6)[None, :]
    found = rank(make_sets(X, labels), ROWS, distance=EUCLIDEAN, seed=0)
    wanted = rank(SETS, ROWS, distance=EUCLIDEAN, seed=0)
    assert values(found.figures) == values(wanted.figures)
    assert found.figures["map"].macro is None
    assert found.worst == []


# Pairs ----------------------------------------------------------------------------------


def pairs_by_hand():
    first, second = np.triu_indices(len(X), 1)
    distances = np.linalg.norm(X[first].astype(float) - X[second], axis=1)
    return distances, LABELS[first] == LABELS[second]


def test_every_pair_is_there_once():
    distances, same = pairs_by_hand()
    for rows in (ROWS, ROWS[::3]):
        found = all_pairs(SETS, rows, distance=EUCLIDEAN, seed=0)
        first, second = np.triu_indices(len(X), 1)
        some = np.isin(first, rows) | np.isin(second, rows)
        for kind in (True, False):
            np.testing.assert_allclose(
                np.sort(found.distances[found.same == kind]),
                np.sort(distances[some & (same == kind)]),
                rtol=1e-5,
            )


def test_parts_are_halves_of_the_classes():
    found = all_pairs(SETS, ROWS, distance=EUCLIDEAN, seed=0)
    assert set(found.part[found.same]) == {0, 1}
    assert set(found.part[~found.same]) == {NO_PART, 0, 1}
    sizes = np.bincount(LABELS)
    across = np.sum(found.part == NO_PART)
    halves = {sum(sizes[list(half)]) for half in _triples()}
    assert any(across == half * (40 - half) for half in halves)


def _triples():
    return [(a, b, c) for c in range(6) for b in range(c) for a in range(b)]


@pytest.mark.slow
def test_counted_pairs_give_the_figures_of_all_of_them():
    kept = all_pairs(SETS, ROWS, distance=EUCLIDEAN, seed=0)
    counted = all_pairs(SETS, ROWS, distance=EUCLIDEAN, seed=0, most_kept=0)
    assert kept.counts is None
    assert counted.counts.sum() == len(kept.same)
    assert np.abs(np.sort(counted.distances[~counted.same])[0]).sum() > 0
    wanted, found = (values(verify(pairs).figures) for pairs in (kept, counted))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == (value and pytest.approx(value, abs=2e-4)), name


@pytest.mark.slow
def test_a_row_far_from_all_others_does_not_round_the_distances_of_the_others():
    x = X.copy()
    x[0] = 1e6
    sets = make_sets(x, LABELS)
    kept, counted = (
        all_pairs(sets, ROWS, distance=EUCLIDEAN, seed=0, most_kept=most_kept)
        for most_kept in (2**20, 0)
    )
    for kind in (True, False):
        wanted = np.sort(kept.distances[kept.same == kind])
        some = counted.same == kind
        found = np.repeat(counted.distances[some], counted.counts[some].astype(int))
        near = wanted < 100
        assert near.sum() < len(near)
        np.testing.assert_allclose(np.sort(found)[near], wanted[near], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_figures_of_verification_are_those_of_the_library():
    pairs = all_pairs(SETS, ROWS, distance=EUCLIDEAN, seed=0)
    found = verify(pairs)
    with jax.enable_x64(True):
        points, wanted = jax.jit(_by_hand)(pairs.distances, pairs.same)
        wanted |= _calibrated_by_hand(pairs)
    for name, value in wanted.items():
        assert found.figures[name].value == pytest.approx(float(value), rel=1e-9), name
    assert found.thresholds["1e-1"] == pytest.approx(float(points.thresholds[0]))
    number = (~pairs.same).sum()
    why = found.figures["tar_at_far_1e-3"].why
    assert why == f"{number} different pairs cannot tell it; 1,000 can"
    assert found.thresholds["1e-3"] is None
    assert found.det.false_match_rate[[0, -1]].tolist() == [0, 1]


def _by_hand(distances, same):
    points = verification.operating_points(distances, same, [0.1, 0.01])
    return points, {
        "equal_error_rate": verification.equal_error_rate(distances, same),
        "roc_auc": verification.roc_auc(distances, same),
        "min_dcf_0.05": verification.min_dcf(distances, same, p_target=0.05).cost,
        "min_cllr": verification.min_cllr(distances, same),
        "tar_at_far_1e-1": points.true_match_rate[0],
        "tar_at_far_1e-2": points.true_match_rate[1],
        "fnmr_at_fmr_1e-2": points.false_non_match_rate[1],
    }


def _calibrated_by_hand(pairs):
    ratios = np.full(len(pairs.same), np.nan)
    for part in (0, 1):
        other = pairs.part == 1 - part
        same = pairs.same[other]
        weights = np.where(same, 1 / same.sum(), 1 / (~same).sum())
        weights *= min(same.sum(), (~same).sum())
        fit = jax.jit(verification.fit_logistic)(
            pairs.distances[other], same, weights=weights
        )
        judged = pairs.part == part
        ratios[judged] = fit.scale * (fit.threshold - pairs.distances[judged])
    judged = pairs.part >= 0
    ratios, same = ratios[judged], pairs.same[judged]
    weights = np.where(same, 1 / same.sum(), 1 / (~same).sum())
    probabilities = 1 / (1 + np.exp(-ratios))
    expected = jax.jit(verification.expected_calibration_error)
    return {
        "cllr": jax.jit(verification.cllr)(ratios, same),
        "min_cllr_of_judged": jax.jit(verification.min_cllr)(pairs.distances[judged], same),
        "actual_dcf_0.01": jax.jit(verification.actual_dcf)(ratios, same),
        "expected_calibration_error": expected(probabilities, same, weights=weights),
    }


@pytest.mark.slow
def test_folds_of_a_list_calibrate_one_another_and_give_their_accuracy():
    rng = np.random.default_rng(1)
    examples = rng.integers(0, 40, (2, 300))
    distances = listed_pairs(X, examples, distance=EUCLIDEAN)
    wanted = np.linalg.norm(X[examples[0]] - X[examples[1]], axis=1)
    np.testing.assert_allclose(distances, wanted, rtol=1e-5, atol=1e-6)
    same, folds = LABELS[examples[0]] == LABELS[examples[1]], np.arange(300) % 10
    found = verify(Pairs(distances.astype(float), same, folds), folds=folds)
    accuracy = jax.jit(verification.fold_accuracy)(distances, same, folds)
    figure = found.figures["fold_accuracy"]
    assert figure.value == pytest.approx(float(accuracy.mean))
    half = 1.96 * float(accuracy.standard_error)
    assert figure.high - figure.value == pytest.approx(half, rel=1e-5)
    assert found.figures["cllr"].value < 1
    one = verify(Pairs(distances.astype(float), same, 0 * folds), folds=0 * folds)
    assert one.figures["fold_accuracy"].why == "all pairs are in one fold"
    assert one.figures["cllr"].why == "the pairs cannot be divided to calibrate"


def test_pairs_of_one_kind_have_no_figures():
    pairs = Pairs(np.arange(3.0), np.ones(3, bool), np.zeros(3, int))
    assert verify(pairs) == "there are no different pairs"
    assert verify(pairs._replace(same=~pairs.same)) == "there are no same pairs"


# Few-shot tasks and health --------------------------------------------------------------


@pytest.mark.slow
def test_accuracies_of_tasks_are_those_of_the_library():
    found = few_shot(X, LABELS, distance=EUCLIDEAN, num_tasks=20, seed=5, tasks=((5, 1),))
    queries = min(15, np.bincount(LABELS).min() - 1)
    assert found.num_queries == {"5_way_1_shot": queries}
    index, centred = samplers.class_index(LABELS), X - X.mean(axis=0)
    unit, sphere = normalize(jnp.asarray(X)), normalize(jnp.asarray(centred))
    for kind, name, x, logits_fn in (
        ("inductive", "prototype", X, None),
        ("inductive", "neighbour", X, episodes.neighbour_logits),
        ("inductive", "ridge", unit, episodes.ridge_logits),
        ("inductive", "simple_shot", sphere, episodes.prototype_logits),
        ("transductive", "transport", sphere, episodes.transport_logits),
    ):
        wanted = episodes.episode_accuracy(
            jax.random.key(5),
            jnp.asarray(x),
            index,
            num_episodes=20,
            num_ways=5,
            num_queries=int(queries),
            logits_fn=logits_fn,
        )
        figure = found.figures[kind][f"5_way_1_shot_{name}"]
        assert figure.value == pytest.approx(float(wanted.mean)), name
        assert figure.low == pytest.approx(float(wanted.low), abs=1e-6), name


def test_tasks_that_need_larger_classes_have_a_reason():
    labels = np.array([0, 0, 1, 1, 2])
    found = few_shot(X[:5], labels, distance=EUCLIDEAN, num_tasks=2, seed=0)
    figure = found.figures["transductive"]["5_way_5_shot_transport"]
    assert figure.value is None
    assert figure.why == "0 of 3 classes have 6 rows or more; 5 are needed"
    assert found.num_queries == found.limits == {}


def test_the_number_of_queries_has_its_cause():
    labels = np.repeat(np.arange(7), [1, 2, 20, 20, 16, 17, 3])
    for shots, queries, why in (
        (1, 1, "as 1 of 6 classes has 2 rows"),
        (2, 1, "as 1 of 5 classes has 3 rows"),
        (5, 11, "as 1 of 4 classes has 16 rows"),
    ):
        rows, number, found = _task(labels, 3, shots)
        assert (number, found) == (queries, why)
        assert len(rows) == np.sum(np.bincount(labels)[labels] > shots)
    assert _task(np.repeat([0, 1], 3), 2, 1)[1:] == (2, "as 2 of 2 classes have 3 rows")
    assert _task(np.repeat([0, 1], 16), 2, 1)[1:] == (15, "")


@pytest.mark.slow
def test_tasks_have_one_row_of_each_id():
    ids, notes = np.arange(30) // 3, []
    sets = make_sets(np.repeat(X[:10], 3, axis=0), ids % 5, ids=ids)
    found = _few_shot_groups(sets, EUCLIDEAN, 2, 0, notes)["few-shot, inductive"]
    assert notes[0] == "Few-shot tasks take one row of each of 10 ids."
    queries = "1 in 5-way-1-shot tasks (as 5 of 5 classes have 2 rows)."
    assert f"Queries of each class: {queries}" in notes[1]
    why = "0 of 5 classes have 6 rows or more; 5 are needed"
    assert found["5_way_5_shot_prototype"].why == why


@pytest.mark.slow
def test_health_is_that_of_all_rows():
    notes = []
    found = values(_health_figures(SETS, 0, notes))
    same, where = relations.within(Items(jnp.asarray(LABELS)))
    wanted = health.embedding_health(jnp.asarray(X), same, where)
    assert found == pytest.approx({k: float(v) for k, v in wanted._asdict().items()})
    assert notes == []
    flat = make_sets(np.ones((40, 3)) + 1e-4 * X[:, :3], LABELS)
    _health_figures(flat, 0, notes)
    assert notes[0].startswith("Warning: the embeddings have collapsed to a point")


def test_two_classes_or_one_dimension_are_no_collapse_to_a_line():
    line = np.stack([X[:, 0], np.zeros(40)], axis=1)
    for x, labels, warned in (
        (line, LABELS, True),
        (line, LABELS % 2, False),
        (X[:, :1], LABELS, False),
    ):
        notes = []
        _health_figures(make_sets(x, labels), 0, notes)
        assert bool(notes) == warned
