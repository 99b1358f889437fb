"""End-to-end tests of the two ORL systems on small data, and of their error messages."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import report
from experiments.engine.loop import initial_state
from experiments.evaluations import unseen_classes, unseen_faces
from experiments.systems import orl_hog, orl_tutorial
from siamese_jax import verification
from siamese_jax.errors import UserError
from siamese_jax.images import prepare
from siamese_jax.model import load_model
from tests.stripes import write_stripes
from tests.test_systems import CLASSES, PAIRS, SHORT

pytestmark = pytest.mark.slow

PERSONS = [f"s{number}" for number in range(14)]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "orl"
    return write_stripes(folder, names=PERSONS, num=4, size=(112, 92))


def tutorial(workdir, faces, **changes):
    settings = SHORT | PAIRS | {"data_dir": faces} | changes
    return orl_tutorial.Config(workdir=workdir, **settings)


def hog(workdir, faces, **changes):
    settings = SHORT | CLASSES | {"data_dir": faces} | changes
    return orl_hog.Config(workdir=workdir, **settings)


def metrics_of(workdir):
    return json.loads((workdir / "results.json").read_text())["metrics"]


# Runs -----------------------------------------------------------------------------------


def test_pairs_by_the_protocol_of_the_tutorial(tmp_path, faces):
    config = tutorial(tmp_path / "pairs", faces)
    orl_tutorial.main(config)
    metrics = metrics_of(config.workdir)
    wanted = {"pair_accuracy", "pair_precision", "pair_recall", "pair_eer", "roc_auc"}
    assert wanted | {"pair_eer_pixels", "chosen_threshold"} <= metrics.keys()
    calibration = load_model(config.workdir / "model").calibration
    assert calibration.pairs == "training pairs"
    assert calibration.num_pairs == 15_000
    assert calibration.threshold == pytest.approx(metrics["chosen_threshold"])
    assert "data:image/png" in (config.workdir / "report.html").read_text()


def test_training_and_test_pairs_are_different_lists_for_every_seed():
    labels = np.repeat(PERSONS, 4)
    train, test = orl_tutorial.draw_pairs(labels)
    assert train.examples.shape == (2, 15_000)
    assert test.examples.shape == (2, 5_000)
    for pairs in (train, test):
        left, right = labels[np.asarray(pairs.examples)]
        np.testing.assert_array_equal(left == right, pairs.same)
        assert 0.45 < np.mean(pairs.same) < 0.55


@pytest.fixture(scope="module")
def finished(tmp_path_factory, faces):
    """A run of the linear map over two folds."""
    config = hog(tmp_path_factory.mktemp("runs") / "hog", faces, folds=(0, 3))
    orl_hog.main(config)
    return config


def check_fold(workdir):
    persons = json.loads((workdir / "persons.json").read_text())
    assert persons.keys() == {"train", "validation", "test"}
    assert sorted(name for part in persons.values() for name in part) == sorted(PERSONS)
    model = load_model(workdir / "model")
    assert model.embed(np.full((1, 60, 40, 1), 9, np.uint8)).shape[0] == 1
    assert model.calibration.pairs == "pairs of the validation persons"
    assert "data:image/png" in (workdir / "report.html").read_text()


def test_figures_of_unseen_persons_are_means_over_folds(finished):
    metrics = metrics_of(finished.workdir)
    folds = [metrics_of(finished.workdir / f"fold{fold}") for fold in (0, 3)]
    for name in ("pair_eer", "one_shot_accuracy", "pair_eer_pixels"):
        assert metrics[name] == pytest.approx(np.mean([fold[name] for fold in folds]))
    deviation = np.std([fold["pair_eer"] for fold in folds], ddof=1)
    assert metrics["pair_eer_deviation"] == pytest.approx(deviation)
    for fold in (0, 3):
        check_fold(finished.workdir / f"fold{fold}")
    assert not (finished.workdir / "model").exists()
    assert "data:image/png" in (finished.workdir / "report.html").read_text()


def test_a_run_over_folds_resumes_and_does_not_run_twice(finished, capsys):
    first = metrics_of(finished.workdir)
    (finished.workdir / "results.json").unlink()
    orl_hog.main(finished)
    assert metrics_of(finished.workdir) == first
    assert "is complete" not in capsys.readouterr().out
    orl_hog.main(finished)
    assert capsys.readouterr().out.count("is complete") == 1


def test_the_other_encoders_on_unseen_persons(tmp_path, faces):
    small = {"encoder": "conv", "widths": (4, 4), "dim": 4}
    orl_hog.main(hog(tmp_path / "conv", faces, folds=(3,), **small))
    check_fold(tmp_path / "conv" / "fold3")
    assert metrics_of(tmp_path / "conv")["pair_eer_deviation"] is None  # of one fold
    settings = {"protocol": "unseen-persons", "stride": 3, "folds": (3,)}
    orl_tutorial.main(tutorial(tmp_path / "tutorial", faces, **settings))
    check_fold(tmp_path / "tutorial" / "fold3")


def test_the_picture_has_a_curve_for_each_of_five_folds():
    curve = verification.roc_curve(jnp.array([0.1, 0.9]), jnp.array([True, False]))
    figure = report.roc({f"fold {fold}": curve for fold in range(5)})
    legend = figure.axes[0].get_legend()
    assert len({text.get_text() for text in legend.get_texts()}) == 5
    assert len({line.get_color() for line in legend.get_lines()}) == 5


# Data -----------------------------------------------------------------------------------


def test_folds_test_every_person_once_and_keep_the_parts_apart():
    labels = np.repeat([f"s{number}" for number in range(34)], 2)
    folds = [unseen_faces.split_persons(labels, fold) for fold in range(5)]
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == sorted(set(labels))
    for fold in folds:
        everyone = np.concatenate(fold)
        assert len(everyone) == len(set(everyone)) == 34
        assert len(fold.validation) == 3


def test_training_and_use_prepare_images_alike(tmp_path, faces):
    config = hog(tmp_path, faces)
    loaded = unseen_faces.load_faces(config.data_dir)
    data = unseen_classes.prepared_data(loaded, unseen_faces.PREPARATION)
    trained_on = np.asarray(data.images)
    np.testing.assert_array_equal(trained_on, loaded.images[:, ::2, ::2])
    system = orl_hog.build(config)
    preparation = system.model(initial_state(system, jax.random.key(0))).preparation
    np.testing.assert_array_equal(trained_on, prepare(loaded.images, preparation))


def test_the_embeddings_of_the_linear_map_have_length_1(tmp_path, faces):
    system = orl_hog.build(hog(tmp_path, faces))
    model = system.model(initial_state(system, jax.random.key(0)))
    images = np.arange(3 * 112 * 92, dtype=np.uint32).reshape(3, 112, 92, 1) % 251
    embeddings = model.embed(images.astype(np.uint8))
    np.testing.assert_allclose(jnp.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


# Refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dropout": (0.1, 1.0, 0.1)}, "--dropout must be at least 0 and below 1"),
        ({"data_dir": None}, "--data-dir: the folder of ORL"),
        ({"margin": 0.0}, "--margin must be above 0"),
        ({"folds": (0,)}, "--folds is used only with --protocol unseen-persons"),
        (
            {"protocol": "unseen-persons", "folds": (5,)},
            "--folds must be at least 0 and at most 4",
        ),
        (
            {"protocol": "unseen-persons", "folds": (1, 1)},
            "--folds must be some of 0 1 2 3 4",
        ),
    ],
)
def test_the_tutorial_refuses_what_makes_no_sense(tmp_path, faces, changes, words):
    with pytest.raises(UserError, match=words):
        orl_tutorial.main(tutorial(tmp_path / "run", faces, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": ()}, "--folds needs at least one value"),
        ({"folds": (5,)}, "--folds must be at least 0 and at most 4"),
        ({"data_dir": None}, "--data-dir: the folder of ORL"),
        (
            {"num_classes": 12},
            "--num-classes: a batch would need 12 training classes; there are 8",
        ),
        (
            {"num_images": 5},
            r"--num-images: .* fewer than 5 images: class 's\d+' has 4.*; got 5",
        ),
        ({"dim": 8}, "--dim is used only with --encoder conv"),
        ({"widths": (4, 4)}, "--widths is used only with --encoder conv"),
        (
            {"encoder": "conv", "widths": (4,) * 6},
            r"the size of the images must be at least \(64, 64\)",
        ),
    ],
)
def test_the_linear_map_refuses_what_makes_no_sense(tmp_path, faces, changes, words):
    with pytest.raises(UserError, match=words):
        orl_hog.main(hog(tmp_path / "run", faces, **changes))
    assert not (tmp_path / "run").exists()


def test_folds_need_13_persons(tmp_path):
    few = write_stripes(tmp_path / "few", names=PERSONS[:12], num=4, size=(112, 92))
    with pytest.raises(UserError, match="five folds need 13 persons; there are 12"):
        orl_hog.main(hog(tmp_path / "run", few))
    assert not (tmp_path / "run").exists()
