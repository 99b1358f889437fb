"""Tests of the accuracy on Lake's trials, of a model and of the baseline."""

import doctest
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cli
from experiments.datasets import lake_archive
from experiments.evaluations import lake_trials
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from siamese_jax.model import Model, pixel_model, save_model
from tests.test_lake_archive import FILES, picture, png, write_zip

pytestmark = pytest.mark.slow


def pixels(params, images):
    return images.reshape(len(images), -1)


@pytest.fixture
def archive(tmp_path):
    return write_zip(tmp_path / "all_runs.zip", FILES)


def test_accuracy_is_what_a_hand_finds_and_a_tie_is_wrong(
    tmp_path, archive, monkeypatch, capsys
):
    model = Model((), pixels, Preparation((8, 8)))
    monkeypatch.setattr(lake_trials, "load_model", lambda folder: model)
    out = tmp_path / "lake.json"
    lake_trials.main(lake_trials.Config(runs=archive, model=tmp_path / "model", json=out))
    figures = json.loads(out.read_text())
    assert figures == {
        "metrics": {
            "lake_accuracy": 3 / 5,
            # centre (3/5 + 1.96^2 / 10) / (1 + 1.96^2 / 5), half .3260 around it
            "lake_accuracy_low": pytest.approx(0.2307, abs=1e-4),
            "lake_accuracy_high": pytest.approx(0.8824, abs=1e-4),
            "num_trials": 5,
        },
        "runs": [
            {"run": "run01", "accuracy": 2 / 3, "num_trials": 3},
            {"run": "run02", "accuracy": 1 / 2, "num_trials": 2},
        ],
    }
    shown = capsys.readouterr().out
    assert "  run01  0.6667\n  run02  0.5000\n" in shown
    assert "num_trials     5\n" in shown


def test_images_are_resized_to_the_model_s_input(archive):
    def embed_fn(params, images):
        assert images.shape[1:] == (16, 16, 1)
        return pixels(params, images)

    runs = lake_archive.read_runs(archive)
    model = Model((), embed_fn, Preparation((16, 16)))
    distances = lake_trials.model_distances(model, runs)
    assert [matrix.shape for matrix in distances] == [(3, 3), (2, 2)]
    assert lake_trials.num_correct(distances[0], runs[0].answers) == 2


def test_a_model_without_differences_scores_0_and_nan_is_refused(archive):
    runs = lake_archive.read_runs(archive)
    size = Preparation((8, 8))
    blind = Model((), lambda _, images: 0 * pixels((), images), size)
    figures = lake_trials.evaluate(runs, lake_trials.model_distances(blind, runs))
    assert figures["metrics"]["lake_accuracy"] == 0
    broken = Model((), lambda _, images: jnp.nan * pixels((), images), size)
    with pytest.raises(UserError, match="distances that are not numbers in run01"):
        lake_trials.model_distances(broken, runs)


def test_wilson_s_interval_stays_within_0_and_1():
    low, high = lake_trials.wilson_interval(0, 10)
    assert low == 0
    assert high == pytest.approx(1.96**2 / (10 + 1.96**2))
    low, high = lake_trials.wilson_interval(10, 10)
    assert high == 1
    assert low == pytest.approx(10 / (10 + 1.96**2))


# The Hausdorff baseline -----------------------------------------------------------------


def plain_hausdorff(image, other):
    """Dubuisson and Jain 1994, from the paper: plain loops over centred points."""

    def centred(image):
        rows, columns = image.shape
        ink = [(i, j) for i in range(rows) for j in range(columns) if image[i, j] == 0]
        middle = [math.fsum(axis) / len(ink) for axis in zip(*ink, strict=True)]
        return [(i - middle[0], j - middle[1]) for i, j in ink]

    def directed(points, others):
        nearest = [min(math.dist(point, other) for other in others) for point in points]
        return math.fsum(nearest) / len(nearest)

    a, b = centred(image), centred(other)
    return max(directed(a, b), directed(b, a))


def test_the_hausdorff_distance_equals_plain_loops():
    rng = np.random.default_rng(0)
    images = np.where(rng.random((5, 9, 7, 1)) < 0.3, 0, 255).astype(np.uint8)
    run = lake_archive.LakeRun("run01", images[:3], images[2:], np.arange(3))
    found = lake_trials.hausdorff_distances(run)
    assert found.shape == (3, 3)
    for i, question in enumerate(run.test_images):
        for j, candidate in enumerate(run.train_images):
            wanted = plain_hausdorff(question[:, :, 0], candidate[:, :, 0])
            assert found[i, j] == pytest.approx(wanted, abs=1e-12)
    assert found[2, 0] == 0  # an image and itself
    assert np.count_nonzero(found) == 8


def test_the_hausdorff_distance_is_that_of_shapes_wherever_they_are():
    bar = picture((1, 1), (1, 2), (1, 3))
    moved = picture((6, 4), (6, 5), (6, 6))
    upright = picture((3, 4), (4, 4), (5, 4))
    images = np.stack([bar, moved, upright])[..., None]
    run = lake_archive.LakeRun("run01", images[:1], images[1:], np.array([0]))
    # upright: the ends are 1 from the nearest point, the middle 0
    np.testing.assert_allclose(lake_trials.hausdorff_distances(run), [[0, 2 / 3]])


def test_the_baseline_needs_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(lake_trials, "load_model", None)
    files = {
        "run07/training/class01.png": png(picture((1, 1), (1, 2), (1, 3))),
        "run07/training/class02.png": png(picture((3, 4), (4, 4), (5, 4))),
        "run07/test/item01.png": png(picture((1, 1), (2, 1), (3, 1))),
        "run07/test/item02.png": png(picture((1, 1), (2, 1), (3, 1), (3, 2))),
        "run07/class_labels.txt": b"run07/test/item01.png run07/training/class02.png\n"
        b"run07/test/item02.png run07/training/class01.png\n",
    }
    path, out = write_zip(tmp_path / "runs.zip", files), tmp_path / "lake.json"
    lake_trials.main(lake_trials.Config(runs=path, method="hausdorff", json=out))
    figures = json.loads(out.read_text())
    assert figures["runs"] == [{"run": "run07", "accuracy": 0.5, "num_trials": 2}]


# What is asked --------------------------------------------------------------------------


def test_a_folder_that_is_no_model_is_named(tmp_path, archive):
    (tmp_path / "run").mkdir()
    for folder in (tmp_path / "nowhere", tmp_path / "run"):
        with pytest.raises(UserError, match=f"{folder.name} is no model folder"):
            lake_trials.main(lake_trials.Config(runs=archive, model=folder))
    with pytest.raises(UserError, match="--model is needed"):
        lake_trials.main(lake_trials.Config(runs=archive))
    config = lake_trials.Config(runs=archive, model=tmp_path, method="hausdorff")
    with pytest.raises(UserError, match="--model is used only with --method model"):
        lake_trials.main(config)


def test_a_saved_model_is_evaluated_as_the_model_itself(tmp_path, archive):
    model = pixel_model(Preparation((8, 8), invert=True))
    save_model(tmp_path / "model", model)
    out = tmp_path / "lake.json"
    lake_trials.main(lake_trials.Config(runs=archive, model=tmp_path / "model", json=out))
    runs = lake_archive.read_runs(archive)
    wanted = lake_trials.evaluate(runs, lake_trials.model_distances(model, runs))
    assert json.loads(out.read_text()) == wanted
    assert wanted["metrics"]["lake_accuracy"] == 3 / 5


@pytest.mark.parametrize("place", [".", "a/b"])
def test_a_place_for_figures_that_is_none_is_refused_before_any_work(tmp_path, place):
    words = {".": "is a folder; a file is wanted", "a/b": "the folder .*a does not exist"}
    config = lake_trials.Config(
        runs=tmp_path / "none.zip", model=tmp_path, json=tmp_path / place
    )
    with pytest.raises(UserError, match=rf"--json: .*{words[place]}"):
        lake_trials.main(config)


def test_user_errors_end_a_command_with_status_1_and_one_line(tmp_path, capsys):
    flags = ["--method", "hausdorff", "--runs", str(tmp_path / "none.zip")]
    for more, status, words in (([], 1, "error: "), (["--runz", "3"], 2, "runz")):
        with pytest.raises(SystemExit) as caught:
            cli.command_line(lake_trials.main, lake_trials.Config, [*flags, *more])
        assert caught.value.code == status
        assert words in capsys.readouterr().err


def test_examples_in_docstrings_are_true():
    found = doctest.testmod(lake_trials)
    assert found.failed == 0
    assert found.attempted >= 3
