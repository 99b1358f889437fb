"""Tests of the system `image_folder`: training, use of its model, and error messages."""

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.cli import same_run
from experiments.datasets.yardsticks import YARDSTICKS
from experiments.engine import loop, supcon
from experiments.systems import image_folder
from siamese_jax import cli
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


def test_a_run_does_not_go_on_with_other_classes(finished, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    short = {"num_steps": 2, "steps_per_call": 2, "checkpoint_every": 2}
    folder = write_stripes(tmp_path / "images", names=NAMES, num=5)
    file = tmp_path / "test.txt"
    file.write_text("class1\nclass2\n")
    changes = {"workdir": tmp_path / "run", "data_dir": folder, "test_classes": file}
    config = dataclasses.replace(finished, **changes, **short)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            image_folder.main(config)
    before = (config.workdir / "classes.json").read_text()
    file.write_text("class1\nclass3\n")
    words = r"run was started with.* in test: class3; gone in test: class2\); choose anoth"
    with pytest.raises(UserError, match=words):
        image_folder.main(config)
    file.write_text("class1\nclass2\n")
    write_stripes(folder, names=["one more"], num=5)
    with pytest.raises(UserError, match=r"others \(new in .*one more"):
        image_folder.main(config)
    assert (config.workdir / "classes.json").read_text() == before
    shutil.rmtree(folder / "one more")
    image_folder.main(config)
    assert (config.workdir / "results.json").exists()


def test_a_run_with_smaller_batches_keeps_the_folder_of_its_flags(
    stripes, tmp_path, monkeypatch
):
    asked = image_folder.Config(data_dir=stripes, image_size=(16, 16), num_images=9)
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(loop, "start", started.append)
    image_folder.main(asked)
    (config,) = started
    assert config.num_images == 5
    assert same_run(asked, []) == ["--workdir", str(config.directory)]


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
        background=0,
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
    assert model.preparation.background == 0
    embeddings = model.embed(np.arange(2 * 9 * 9, dtype=np.uint8).reshape(2, 9, 9, 1))
    assert embeddings.shape == (2, 6 * 5 * 8)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_a_class_is_mirrored_as_a_whole():
    config = supcon.SupConConfig(
        max_rotation=0.0, max_shear=0.0, max_scale=0.0, max_shift=0.0, num_images=3
    )
    left = jnp.zeros((12, 4, 4, 1)).at[:, :, 0].set(1.0)
    out = supcon.distort(config, jax.random.key(1), left)
    on_the_right = np.asarray(out[:, 0, 3, 0] == 1).reshape(3, 4)  # a column is a class
    assert (on_the_right.all(axis=0) | ~on_the_right.any(axis=0)).all()
    assert 0 < on_the_right.mean() < 1


def test_single_images_of_classes_are_all_named():
    labels = np.array([*np.repeat(NAMES, 2), "anna", "bert"])
    with pytest.raises(UserError, match=r"class 'anna' has 1, class 'bert' has 1; --min-"):
        image_folder.split_classes(labels, 0)


def test_a_folder_that_cannot_be_learnt_from_is_refused_at_once(finished, tmp_path, capsys):
    def main(**changes):
        workdir = tmp_path / "run"
        image_folder.main(dataclasses.replace(finished, workdir=workdir, **changes))

    few = write_stripes(tmp_path / "few", names=NAMES[:5], num=2)
    with pytest.raises(UserError, match=r"6 classes are needed: .* there are 5"):
        main(data_dir=few)
    (few / "single").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(few / "single" / "0.png")
    (few / "one").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(few / "one" / "0.png")
    (few / "empty").mkdir()
    words = (
        "3 of 8 classes have fewer than 2 images: class 'empty' has no image, class 'one' "
        "has 1, class 'single' has 1; --min-images 2 leaves such classes out"
    )
    with pytest.raises(UserError, match=words):
        main(data_dir=few)
    capsys.readouterr()
    with pytest.raises(UserError, match=r"6 classes are needed: .* there are 5"):
        main(data_dir=few, min_images=2)
    line = "left out: 3 of 8 classes have fewer than 2 images: class 'empty' has no image"
    assert capsys.readouterr().err.startswith(line)
    with pytest.raises(UserError, match="8 of 8 classes have fewer than 3 images: class"):
        main(data_dir=few, min_images=3)
    with pytest.raises(UserError, match=r"--background must be .* at most 255; got 256"):
        main(background=256)
    with pytest.raises(UserError, match=r"--image-size must be at least \(4, 4\)"):
        main(image_size=(3, 16))
    with pytest.raises(UserError, match=r"--image-size must be at least \(6, 5\)"):
        main(image_size=(5, 16), encoder="hog", widths=(16, 32, 64, 128), dim=64)
    with pytest.raises(UserError, match="--data-dir"):
        main(data_dir=None)
    with pytest.raises(UserError, match="--widths is used only with --encoder conv"):
        main(encoder="hog")
    assert not (tmp_path / "run").exists()


# As people have it ----------------------------------------------------------------------

COMPOSED, DECOMPOSED, NO_TEXT = "Jos\u00e9", "Jose\u0301", os.fsdecode(b"caf\xe9")
PEOPLE = [DECOMPOSED, "Ba$$in", NO_TEXT, "Li & Co", "\u738b", "anna", "bert", "carl"]


def write_as_people_do(folder):
    """Writes classes of phone pictures, scans, drawings and palettes, and what lies about.

    Each class is a disc of its own size. Its pictures are of six kinds, and would differ
    much without orientation, depth and transparency.
    """
    exif = Image.Exif()
    exif[274] = 6  # to be turned a quarter to the right
    rows, columns = np.mgrid[-1:1:40j, -1:1:30j]
    for number, name in enumerate(PEOPLE):
        (folder / name).mkdir(parents=True)
        disc = np.hypot(rows + 0.5, columns) < 0.2 + 0.06 * number  # in the upper half
        grey = np.where(disc, 0, 255).astype(np.uint8)
        ink = Image.fromarray(np.dstack([0 * grey, 255 - grey]), "LA")
        white = Image.fromarray((grey > 0).astype(np.uint8), "P")
        white.putpalette([0] * 6)
        place = folder / (COMPOSED if name == DECOMPOSED else name)
        place.mkdir(exist_ok=True)
        Image.fromarray(np.rot90(grey)).save(place / "IMG_1.JPG", exif=exif)
        Image.fromarray(grey.astype(np.uint16) * 257).save(folder / name / "scan.tif")
        ink.save(folder / name / "drawing.png")
        ink.convert("RGBA").save(folder / name / "photo.webp", lossless=True)
        white.save(folder / name / "palette.gif", transparency=1)
        Image.fromarray(grey > 0).save(folder / name / "fax.pbm")
        for litter in (".DS_Store", "._scan.tif", "Thumbs.db"):
            (folder / name / litter).write_bytes(b"no image")
        (folder / name / "@eaDir" / "scan.tif").mkdir(parents=True)
        (folder / name / "live.heic").write_bytes(b"no format of Pillow")
    (folder / "__MACOSX" / "anna").mkdir(parents=True)
    (folder / "__MACOSX" / "anna" / "._scan.tif").write_bytes(b"no image")
    (folder / "only one").mkdir()
    Image.new("L", (1, 1)).save(folder / "only one" / "0.png")
    return folder


def test_a_folder_as_people_have_it(finished, tmp_path, capsys):
    folder = write_as_people_do(tmp_path / "people")
    run = tmp_path / "run"
    config = dataclasses.replace(
        finished,
        workdir=run,
        data_dir=folder,
        min_images=2,
        **{"num_steps": 2, "steps_per_call": 2, "checkpoint_every": 2},
    )
    data = image_folder.load(config)
    assert capsys.readouterr().err.splitlines() == [
        "passed over 8 files of 57: 8 .heic (not an image format that Pillow reads)",
        "left out: 1 of 9 classes have fewer than 2 images: class 'only one' has 1",
    ]
    assert sorted(set(data.labels)) == sorted(PEOPLE)
    for name in PEOPLE:
        of_class = data.images[data.labels == name].astype(int)
        assert len(of_class) == 6
        assert np.abs(of_class - of_class[:1]).max() < 20  # of a JPEG file
    image_folder.main(config)
    parts = json.loads((run / "classes.json").read_text())
    assert sorted(name for part in parts.values() for name in part) == sorted(PEOPLE)
    assert load_model(run / "model").preparation.background == 255
    capsys.readouterr()
    for name in PEOPLE:
        model = ("--model", str(run / "model"))
        pair = (folder / name / "scan.tif", folder / name / "drawing.png")
        cli.main(arguments=["verify", *model, *map(str, pair)])
        assert capsys.readouterr().out.startswith("same: distance 0.0000")
    shutil.rmtree(folder / "only one")
    queries = [str(path) for path in folder.glob("*/[Idp]*")]
    outputs = ["--json", str(run / "a.json"), "--picture", str(run / "a.png")]
    words = ["identify", *model, "--gallery", str(folder), "--labelled", *outputs]
    cli.main(arguments=[*words, "--queries", *queries])
    found = json.loads((run / "a.json").read_text())
    assert found["metrics"]["one_shot_accuracy"] == 1
    assert found["num_classes"] == len(PEOPLE)
    assert len(found["queries"]) == 4 * len(PEOPLE)
    assert (run / "a.png").exists()


# Sizes of the test, own encoders and own splits -----------------------------------------


def test_sizes_and_intervals_stand_beside_the_figures(finished, capsys):
    metrics = metrics_of(finished.workdir)
    sizes = {"num_test_classes": 2, "num_test_images": 10, "num_test_pairs": 45}
    assert {name: metrics[name] for name in sizes} == sizes
    assert metrics["num_ways"] == 2
    for name in ("pair_accuracy", "pair_eer", "roc_auc"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    image_folder.main(finished)  # complete: its figures are shown again
    low, high = (f"{metrics[f'roc_auc_{end}']:.4f}" for end in ("low", "high"))
    assert f"({low} to {high})" in capsys.readouterr().out
    page = (finished.workdir / "report.html").read_text()
    assert "The test has 2 classes: too few for its figures to mean much." in page
    assert f"({low} to {high})" in page


@pytest.mark.parametrize("num_classes", [4, 16])
def test_batches_shrink_to_what_is_there_in_one_line(num_classes, capsys):
    labels = np.repeat(NAMES[:6], 3)
    config = image_folder.Config(num_classes=num_classes, num_images=4)
    fitted = supcon.fit_batch(config, labels)
    assert (fitted.num_classes, fitted.num_images) == (min(num_classes, 6), 3)
    assert "3 images, which is all there are" in capsys.readouterr().out
    same = image_folder.Config(num_classes=6, num_images=3)
    assert supcon.fit_batch(same, labels) == same
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match=r"1 of 2 classes .* class 'class1' has 1"):
        supcon.fit_batch(config, np.array(["class0", "class0", "class1"]))


def test_a_file_names_the_test_classes(tmp_path):
    labels = np.repeat([*NAMES, "Jos\u00e9"], 2)
    file = tmp_path / "test.txt"
    file.write_text("class3\nJose\u0301\n\n")
    config = image_folder.Config(test_classes=file)
    wanted = image_folder.read_names(config)
    parts = image_folder.split_classes(labels, 0, test_names=wanted)
    assert parts.test.tolist() == ["Jos\u00e9", "class3"]
    assert sorted(np.concatenate(parts).tolist()) == sorted(set(labels.tolist()))
    for names, words in (
        (["class3", "nobody"], "no class is named nobody"),
        (["class3"], "2 classes or more"),
        (NAMES[:9], "4 others"),
    ):
        with pytest.raises(UserError, match=words):
            image_folder.split_classes(labels, 0, test_names=names)
    with pytest.raises(UserError, match="--test-classes"):
        image_folder.read_names(image_folder.Config(test_classes=tmp_path / "none"))


OWN = """
import flax.linen as nn
import jax.numpy as jnp

class Own(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(5)(images.reshape(images.shape[0], 256))

class Wrong(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        return images

number = 3
"""


def test_a_network_of_ones_own_is_trained(stripes, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = image_folder.Config(
        workdir=tmp_path / "run",
        data_dir=stripes,
        image_size=(16, 16),
        encoder="own_networks:Own",
        **{"num_steps": 2, "steps_per_call": 2, "checkpoint_every": 2},
    )
    image_folder.main(config)
    model = load_model(config.workdir / "model")
    assert model.embed([stripes / "class0" / "0.png"]).shape == (1, 5)
    for encoder, words in (
        ("own_networks:Wrong", r"must return embeddings \[n, dim\]"),
        ("own_networks:number", "must be a Flax linen module; got int"),
        ("own_networks:Missing", "cannot be imported"),
        ("no_such_module:Net", "cannot be imported"),
        ("resnet", "must be hog, conv or package.module:Name; got resnet"),
    ):
        with pytest.raises(UserError, match=words):
            image_folder.main(dataclasses.replace(config, encoder=encoder))
    with pytest.raises(UserError, match="does not take images"):
        image_folder.main(dataclasses.replace(config, image_size=(8, 8)))


# Data sets with their own test classes --------------------------------------------------


def write_birds(folder, num_classes=12):
    """Stripes, packed as CUB-200-2011 is."""
    names = [f"{number:03}.Bird" for number in range(1, num_classes + 1)]
    write_stripes(folder / "images", names=names, num=4)
    files = [f"{name}/{i}.png" for i in range(4) for name in names]
    lines = [f"{number} {file}" for number, file in enumerate(files, 1)]
    (folder / "images.txt").write_text("\n".join(lines))
    lines = [f"{number} {int(file[:3])}" for number, file in enumerate(files, 1)]
    (folder / "image_class_labels.txt").write_text("\n".join(lines))


def test_the_test_classes_of_a_data_set_are_those_of_papers(tmp_path, monkeypatch, capsys):
    write_birds(tmp_path / "birds")
    name = "caltech_birds2011"
    about = YARDSTICKS[name]._replace(num_classes=(8, 4), num_images=(32, 16))
    monkeypatch.setitem(YARDSTICKS, name, about)
    config = image_folder.Config(
        workdir=tmp_path / "run",
        data_dir=tmp_path / "birds",
        dataset=name,
        image_size=(16, 16),
        crop=True,
        widths=(8, 8),
        dim=8,
        num_classes=4,
        num_images=3,
        **{"num_steps": 2, "steps_per_call": 2, "checkpoint_every": 2},
    )
    image_folder.main(config)
    parts = json.loads((config.workdir / "classes.json").read_text())
    assert parts["test"] == [8, 9, 10, 11]
    assert sorted(parts["train"] + parts["validation"]) == list(range(8))
    assert len(parts["validation"]) == 2
    assert load_model(config.workdir / "model").preparation.resampling == "center-crop"
    assert "--gallery FOLDER" in capsys.readouterr().out
    streamed = dataclasses.replace(config, workdir=tmp_path / "streamed", stream=True)
    image_folder.main(streamed)
    assert metrics_of(streamed.workdir) == metrics_of(config.workdir)
    with pytest.raises(UserError, match="--min-images is used only with --dataset folder"):
        image_folder.main(dataclasses.replace(config, min_images=2))


def test_a_tenth_of_the_training_classes_of_papers_is_for_validation():
    labels = np.repeat(np.arange(200), 2)
    parts = image_folder.standard_split("caltech_birds2011", labels, 0)
    assert [len(part) for part in parts] == [90, 10, 100]
    assert parts.test.tolist() == list(range(100, 200))
    assert sorted([*parts.train, *parts.validation]) == list(range(100))
    other = image_folder.standard_split("caltech_birds2011", labels, 1)
    assert other.validation.tolist() != parts.validation.tolist()
    assert other.test.tolist() == parts.test.tolist()
