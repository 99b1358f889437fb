"""Tests of the system `image_folder`: training, use of its model, and error messages."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.engine import supcon
from experiments.systems import image_folder
from siamese_jax.errors import UserError
from siamese_jax.model import load_model
from tests.stripes import write_stripes

pytestmark = pytest.mark.slow

NAMES = [f"class{number}" for number in range(10)]


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("images") / "all", names=NAMES, num=5)


@pytest.fixture(scope="module")
def finished(stripes, tmp_path_factory):
    config = image_folder.Config(
        workdir=tmp_path_factory.mktemp("runs") / "stripes",
        data_dir=stripes,
        image_size=(16, 16),
        num_steps=20,
        steps_per_call=10,
        checkpoint_every=20,
        num_classes=4,
        num_images=3,
        widths=(8, 8),
        dim=8,
        flip=False,
        max_rotation=2.0,
    )
    image_folder.main(config)
    return config


def metrics_of(workdir):
    return json.loads((workdir / "results.json").read_text())["metrics"]


def test_a_folder_of_images_is_learnt_and_tested_on_other_classes(finished):
    metrics = metrics_of(finished.workdir)
    for name in ("pair_accuracy", "pair_eer", "roc_auc", "one_shot_accuracy"):
        assert 0 <= metrics[name] <= 1
        assert f"{name}_pixels" in metrics
        assert f"validation_{name}" in metrics
    assert metrics["one_shot_accuracy"] > 0.75  # of 2 classes, plainly different
    parts = json.loads((finished.workdir / "classes.json").read_text())
    assert sorted(name for part in parts.values() for name in part) == NAMES
    assert len(parts["test"]) == len(parts["validation"]) == 2
    assert len(parts["train"]) == 6
    assert "data:image/png" in (finished.workdir / "report.html").read_text()


def test_another_seed_tests_on_other_classes():
    labels = np.repeat(NAMES, 2)
    parts = [image_folder.split_classes(labels, seed).test.tolist() for seed in range(5)]
    assert len({tuple(part) for part in parts}) > 1
    assert parts[0] == image_folder.split_classes(labels, 0).test.tolist()


def test_the_model_of_a_run_verifies_and_identifies_files(finished, stripes):
    model = load_model(finished.workdir / "model")
    assert model.details["settings"]["experiment"] == "image_folder"
    assert model.calibration.pairs == "pairs of the validation classes"
    a, b = stripes / "class0" / "0.png", stripes / "class0" / "1.png"
    answer, itself = model.verify(a, b), model.verify(a, a)
    assert answer.threshold == model.calibration.threshold
    assert answer.same == (answer.distance <= answer.threshold)
    assert itself.distance == pytest.approx(0, abs=1e-3)
    assert itself.same
    assert itself.probability_same >= answer.probability_same
    names = json.loads((finished.workdir / "classes.json").read_text())["test"]
    gallery = [stripes / name / "0.png" for name in names]
    queries = [stripes / name / f"{i}.png" for name in names for i in range(1, 5)]
    nearest = model.identify(gallery, names, queries).nearest
    assert np.mean(nearest.labels == np.repeat(names, 4)) > 0.75


def test_a_run_says_how_its_model_is_used(finished, tmp_path, capsys):
    short = {"num_steps": 2, "steps_per_call": 2, "checkpoint_every": 2}
    config = dataclasses.replace(finished, workdir=tmp_path / "run", **short)
    image_folder.main(config)
    command = f"siamese-jax identify --model {config.workdir / 'model'} --gallery"
    assert command in capsys.readouterr().out


def test_colour_images_of_any_sizes_and_oriented_gradients(tmp_path):
    folder = tmp_path / "colour"
    rng = np.random.default_rng(0)
    for name in NAMES[:6]:
        (folder / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (14 + i, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    config = image_folder.Config(
        workdir=tmp_path / "run",
        data_dir=folder,
        image_size=(12, 10),
        color=True,
        encoder="hog",
        num_classes=2,
        num_images=2,
        num_steps=2,
        steps_per_call=2,
        checkpoint_every=2,
    )
    image_folder.main(config)
    model = load_model(config.workdir / "model")
    assert model.preparation.image_shape == (12, 10, 3)
    embeddings = model.embed(np.arange(2 * 9 * 9, dtype=np.uint8).reshape(2, 9, 9, 1))
    assert embeddings.shape == (2, 6 * 5 * 8)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_a_class_is_mirrored_as_a_whole():
    config = supcon.SupConConfig(
        max_rotation=0.0, max_shear=0.0, max_scale=0.0, max_shift=0.0, num_images=3
    )
    left = jnp.zeros((12, 4, 4, 1)).at[:, :, 0].set(1.0)
    out = supcon.distort(config, jax.random.key(1), left)
    on_the_right = np.asarray(out[:, 0, 3, 0] == 1).reshape(4, 3)
    assert (on_the_right.all(axis=1) | ~on_the_right.any(axis=1)).all()
    assert 0 < on_the_right.mean() < 1


def test_a_folder_that_cannot_be_learnt_from_is_refused_at_once(finished, tmp_path):
    def main(**changes):
        workdir = tmp_path / "run"
        image_folder.main(dataclasses.replace(finished, workdir=workdir, **changes))

    few = write_stripes(tmp_path / "few", names=NAMES[:5], num=2)
    with pytest.raises(UserError, match=r"6 classes are needed: .* there are 5"):
        main(data_dir=few)
    (few / "single").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(few / "single" / "0.png")
    with pytest.raises(UserError, match=r"class '?single'? has 1"):
        main(data_dir=few)
    with pytest.raises(UserError, match="--num-classes: there are 6 training classes"):
        main(num_classes=7)
    with pytest.raises(UserError, match=r"--num-images: class class\d has 5; got 6"):
        main(num_images=6)
    with pytest.raises(UserError, match="--image-size must be at least 4 for 2 blocks"):
        main(image_size=(3, 16))
    with pytest.raises(UserError, match=r"--image-size must be at least \(6, 5\)"):
        main(image_size=(5, 16), encoder="hog", widths=(16, 32, 64, 128), dim=64)
    with pytest.raises(UserError, match="--data-dir"):
        main(data_dir=None)
    with pytest.raises(UserError, match="--widths is used only with --encoder conv"):
        main(encoder="hog")
    assert not (tmp_path / "run").exists()
