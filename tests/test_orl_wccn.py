"""Tests of `orl_wccn`: the map, the nested choice, the calibration, strangers, runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import loop
from experiments.engine.config import RunConfig
from experiments.evaluations import gallery_figures, unseen_faces
from experiments.systems import orl_wccn
from experiments.systems.orl_wccn import Choice
from siamese_jax.errors import UserError
from siamese_jax.model import load_model
from siamese_jax.verification import calibrate
from tests.stripes import write_stripes

pytestmark = pytest.mark.slow

PERSONS = [f"s{number}" for number in range(14)]
SMALL = [Choice((3, 2), False, 1.0), Choice((3, 2), True, 0.1), Choice((4, 3), True, 1.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    write_stripes(root / "orl", names=PERSONS, num=4, size=(112, 92))
    write_stripes(root / "others", names=["a", "b", "c"], num=3, size=(112, 92), seed=1)
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(orl_wccn, "CHOICES", SMALL)
    monkeypatch.setattr(gallery_figures, "NUM_GALLERIES", 5)


# The map --------------------------------------------------------------------------------


def test_the_map_whitens_what_is_within_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.array(["b", "a", "c"]), 40)
    features = rng.normal(size=(120, 3)) @ np.diag([1, 5, 0.2]) + 7
    features += np.repeat(10 * rng.normal(size=(3, 3)), 40, axis=0)
    params = orl_wccn.fit_map(features, labels, 1e-9)
    np.testing.assert_allclose(params["mean"], features.mean(axis=0))
    white = (features - params["mean"]) @ params["matrix"]
    within = np.concatenate(
        [white[labels == x] - white[labels == x].mean(0) for x in "abc"]
    )
    np.testing.assert_allclose(within.T @ within / 120, np.eye(3), atol=1e-6)


def test_the_matrix_is_a_root_of_the_inverse_of_the_shrunk_covariance():
    features = np.array([[2.0, 0.0], [-2.0, 0.0], [5.0, 1.0], [5.0, -1.0]])
    found = orl_wccn.fit_map(features, np.array([0, 0, 1, 1]), 0.4)
    # C = diag(2, 1/2), of mean variance 5/4, and 0.4 * 5/4 = 1/2 is added
    np.testing.assert_allclose(
        found["matrix"] @ found["matrix"].T, np.diag([1 / 2.5, 1]), atol=1e-12
    )
    embeddings = orl_wccn.apply_map(found, jnp.asarray(features))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)


def test_mirror_images_have_equal_features_if_both_are_averaged():
    images = jnp.asarray(np.random.default_rng(0).random((2, 20, 16, 1)), jnp.float32)
    own = orl_wccn.measure(images, (3, 2), False)
    mirrored = orl_wccn.measure(images[:, :, ::-1], (3, 2), False)
    assert float(jnp.abs(own - mirrored).max()) > 0.1
    for turned in (images, images[:, :, ::-1]):
        found = orl_wccn.measure(turned, (3, 2), True)
        np.testing.assert_allclose(found, (own + mirrored) / 2, atol=1e-6)


# The choice -----------------------------------------------------------------------------


def test_every_person_is_left_out_once_in_each_round():
    labels = np.repeat(PERSONS, 3)
    groups = np.stack(list(orl_wccn.left_out(labels, 2)))
    assert groups.shape == (10, 42)
    np.testing.assert_array_equal(groups[:5].sum(axis=0), 1)
    np.testing.assert_array_equal(groups[5:].sum(axis=0), 1)
    assert (groups[:5] != groups[5:]).any()
    for group in groups:  # all images of a person together
        assert {*labels[group]}.isdisjoint(labels[~group])


def test_pairs_are_judged_by_a_map_that_has_not_seen_them():
    rng = np.random.default_rng(0)
    labels = np.repeat(PERSONS, 3)
    features = np.float32(rng.normal(size=(42, 4)))
    out = np.isin(labels, PERSONS[:3])
    pairs, distances, same = orl_wccn.left_out_pairs(features, labels, out, 0.5)
    assert len(pairs) == 9 * 8 / 2
    assert same.sum() == 9
    params = orl_wccn.fit_map(features[9:], labels[9:], 0.5)
    white = (features - params["mean"]) @ params["matrix"]
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    wanted = np.linalg.norm(white[pairs[:, 0]] - white[pairs[:, 1]], axis=1)
    np.testing.assert_allclose(distances, wanted, atol=1e-5)
    np.testing.assert_array_equal(same, labels[pairs[:, 0]] == labels[pairs[:, 1]])


def test_the_choice_with_the_lowest_validation_error_is_first():
    rng = np.random.default_rng(0)
    labels = np.repeat(PERSONS, 3)
    centres = np.repeat(rng.normal(size=(14, 6)), 3, axis=0)
    noise = rng.normal(size=(42, 6))
    blur = dict(zip(SMALL, (5.0, 0.01, 0.3), strict=True))
    found = orl_wccn.choose(lambda choice: centres + blur[choice] * noise, labels)
    assert list(found) == [SMALL[1], SMALL[2], SMALL[0]]
    assert list(found.values()) == sorted(found.values())
    assert found[SMALL[1]] == 0


def test_each_pair_calibrates_once():
    rng = np.random.default_rng(0)
    labels = np.repeat(PERSONS, 3)
    features = np.repeat(rng.normal(size=(14, 6)), 3, axis=0) + 0.3 * rng.normal(
        size=(42, 6)
    )
    found = orl_wccn.calibrate(np.float32(features), labels, 1.0)
    assert found.num_classes == 14
    assert found.num_pairs == 2 * 14 * 3  # every same pair, and as many different ones
    most = 9 * 14 * 13 // 2
    assert 0.4 * most < found.num_different < 0.9 * most
    assert found.accuracy > 0.9


# Strangers ------------------------------------------------------------------------------


def on_a_line(places, person):
    """Images that are points on a line."""
    distances = np.abs(np.subtract.outer(places, places)).astype(np.float32)
    return gallery_figures.Compared(distances, np.asarray(person))


def test_shares_of_strangers_equal_a_plain_count():
    """One image a person: the only gallery of a stranger is everybody else."""
    compared = on_a_line([0, 1, 3, 7], [0, 1, 2, 3])
    known = np.linspace(1.5, 40, 2_000, dtype=np.float32)
    calibration = calibrate(
        np.append(np.zeros(9, np.float32), known), np.arange(2_009) < 9, pairs="toy pairs"
    )
    threshold = calibration.threshold_at(0.15, num_comparisons=3)
    assert 2 < threshold < 4
    found = gallery_figures.let_in(compared, calibration, 0.15)
    wanted = np.zeros((4, 4))
    wanted[0, 1] = wanted[1, 0] = wanted[2, 1] = 1
    np.testing.assert_array_equal(found, wanted)


def test_figures_of_points_on_a_line():
    compared = on_a_line([0, 1, 2.5, 3, 9], [0, 0, 1, 1, 2])
    assert gallery_figures.pair_error(compared) == 0
    assert gallery_figures.pair_accuracy(compared, 0.7) == 0.75  # one of two same pairs
    # 1 is nearer to 2.5 than to 0 only if that is not in the gallery: never; 0 to 1 is near
    compared = on_a_line([0, 4, 5], [0, 0, 1])  # 4 is nearer to 5 than to 0
    found = gallery_figures.one_shot_accuracy(compared)
    drawn = [gallery[0] for gallery in gallery_figures.galleries(compared.person)]
    assert found == pytest.approx(np.mean(np.equal(drawn, 1)))  # the query is 0, or 4


def test_two_persons_who_look_alike_are_one_accident():
    """Half of the resamplings have at most one of the two, or few of them."""
    alike = np.zeros((10, 10))
    alike[2, 7] = alike[7, 2] = 1
    mean, low, high = gallery_figures.mean_let_in([alike])
    assert mean == pytest.approx(0.2)
    assert low == 0  # one of the two is missing in more than half of the resamplings
    assert 0.5 < high < 1
    everyone = np.full((5, 5), 0.1) * (1 - np.eye(5))
    assert gallery_figures.mean_let_in([everyone] * 3) == pytest.approx((0.4, 0.4, 0.4))


# Runs -----------------------------------------------------------------------------------


def test_a_run_never_chooses_with_its_test_persons(folder, tmp_path, monkeypatch, capsys):
    fitted_to = []
    fit = orl_wccn.fit
    monkeypatch.setattr(
        orl_wccn, "fit", lambda faces: fitted_to.append({*faces.labels}) or fit(faces)
    )
    config = orl_wccn.Config(folder / "orl", folds=(0, 3), workdir=tmp_path / "run")
    orl_wccn.main(config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["command"].startswith("python -m experiments orl_wccn --data-dir ")
    assert results["command"].endswith(" --folds 0 3")
    assert len(results["folds"]) == 2
    for number, fold in zip((0, 3), results["folds"], strict=True):
        labels = np.repeat(PERSONS, 4)
        test = unseen_faces.split_persons(labels, number).test
        assert fold["test_persons"] == test.tolist()
        assert fitted_to.pop(0) == {*PERSONS} - {*test}
        errors = [one["pair_eer"] for one in fold["validation"]]
        assert errors == sorted(errors)
        assert len(errors) == len(SMALL)
        best = {name: fold["validation"][0][name] for name in fold["choice"]}
        assert best == fold["choice"]
        assert fold["metrics"]["validation_pair_eer"] == errors[0]
    assert fitted_to == [{*PERSONS}]
    metrics = results["metrics"]
    for name in ("pair_eer", "one_shot_accuracy", "pair_eer_pixels"):
        means = [fold["metrics"][name] for fold in results["folds"]]
        assert metrics[name] == pytest.approx(np.mean(means))
    for rate in ("0.01", "0.05"):
        low, mean, high = (
            metrics[f"let_in_at_{rate}{end}"] for end in ("_low", "", "_high")
        )
        assert 0 <= low <= mean <= high <= 1
    shown = capsys.readouterr().out
    assert "fold 3: " in shown
    assert "cells, with" in shown
    model = load_model(tmp_path / "run" / "model")
    assert model.calibration.num_classes == 14
    assert model.embed(np.full((1, 60, 40, 1), 9, np.uint8)).shape[0] == 1


def test_the_model_of_everyone_is_tested_on_another_folder(folder, tmp_path):
    config = orl_wccn.Config(
        folder / "orl", test_dir=folder / "others", workdir=tmp_path / "run"
    )
    orl_wccn.main(config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [fold["test_persons"] for fold in results["folds"]] == [["a", "b", "c"]]
    assert load_model(tmp_path / "run" / "model").calibration.num_classes == 14
    assert "--test-dir" in results["command"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_dir": None}, "--data-dir: the folder of ORL"),
        ({"folds": (1, 1)}, "--folds must be some of 0 1 2 3 4, each once"),
        ({"test_dir": "orl", "folds": (0,)}, "--folds is used only with --test-dir None"),
        ({"test_dir": "orl"}, "--test-dir: s0 and 13 more are persons of --data-dir too"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(folder, tmp_path, changes, words):
    settings = {"data_dir": folder / "orl", "workdir": tmp_path / "run"} | changes
    if settings.get("test_dir"):
        settings["test_dir"] = folder / settings["test_dir"]
    with pytest.raises(UserError, match=words):
        orl_wccn.main(orl_wccn.Config(**settings))
    assert not (tmp_path / "run").exists()


def test_results_of_other_settings_are_kept(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    five = orl_wccn.Config(folder / "orl")
    one = dataclasses.replace(five, folds=(0,))
    assert orl_wccn.prepare_folder(five) != orl_wccn.prepare_folder(one)
    assert orl_wccn.directory_of(one).name.startswith("orl_wccn-data_dir=")
    assert orl_wccn.directory_of(orl_wccn.Config()).as_posix() == "runs/orl_wccn"
    five, one = (dataclasses.replace(of, workdir=tmp_path / "run") for of in (five, one))
    orl_wccn.prepare_folder(one)
    orl_wccn.prepare_folder(five)  # without results there is nothing to lose
    results = tmp_path / "run" / "results.json"
    results.write_text("precious")
    orl_wccn.prepare_folder(five)
    words = r"run holds a run with other settings \(folds: \[0, 1, 2, 3, 4\] there, \[0\] a"
    with pytest.raises(UserError, match=words):
        orl_wccn.main(one)
    (tmp_path / "run" / "config.json").unlink()  # as of an earlier version
    with pytest.raises(UserError, match="run holds a run with other settings"):
        orl_wccn.main(five)
    assert results.read_text() == "precious"


def test_a_run_of_another_system_that_has_begun_is_kept(folder, tmp_path):
    loop.start(RunConfig(tmp_path, num_steps=2))
    before = (tmp_path / "config.json").read_text()
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="experiment: experiment there, orl_wccn asked"):
        orl_wccn.main(orl_wccn.Config(folder / "orl", workdir=tmp_path))
    assert (tmp_path / "config.json").read_text() == before


def test_one_fold_has_no_deviation():
    folds = [{"pair_eer": 0.25}, {"pair_eer": 0.75}]
    shares = [dict.fromkeys(orl_wccn.RATES, np.zeros((3, 3)))] * 2
    found = orl_wccn.mean_metrics(folds, shares)
    assert found["pair_eer_deviation"] == pytest.approx(np.sqrt(0.125))
    assert orl_wccn.mean_metrics(folds[:1], shares[:1])["pair_eer_deviation"] is None


def test_a_choice_needs_ten_persons():
    with pytest.raises(
        UserError, match="a choice needs 10 persons to train on; there are 9"
    ):
        next(orl_wccn.left_out(np.arange(9), 1))


def test_models_of_one_choice_share_their_function():
    assert orl_wccn.make_embed_fn(SMALL[0]) is orl_wccn.make_embed_fn(
        Choice((3, 2), False, 1.0)
    )
    jax.eval_shape(
        orl_wccn.make_embed_fn(SMALL[0]),
        {"mean": jnp.zeros(48), "matrix": jnp.eye(48)},
        jnp.zeros((1, 20, 16, 1)),
    )
