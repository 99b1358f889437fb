"""A trained run put to use: identify, verify, export, folders of images; and misuse."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import export, identify, image_folder, model, run, verify
from experiments.pairs import Judged

ROOT = pathlib.Path(__file__).parent.parent


def write_stripes(root, *, names, num, size=(20, 16), seed=0):
    """Each class has stripes of its own direction and width; images differ by noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        angle, width = number * 2.4, 0.5 + 0.13 * number
        wave = np.sin(width * (rows * np.cos(angle) + columns * np.sin(angle)))
        for i in range(num):
            image = 128 + 90 * wave + 12 * rng.normal(size=size)
            picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
            picture.save(root / name / f"{i}.png")
    return root


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


@pytest.fixture(scope="module")
def test_classes(finished, stripes, tmp_path_factory):
    """A gallery of two classes never seen, and the other images to ask for."""
    root = tmp_path_factory.mktemp("unseen")
    names = json.loads((finished.workdir / "classes.json").read_text())["test"]
    for name in names:
        for part in ("gallery", "queries"):
            (root / part / name).mkdir(parents=True)
        for i in range(5):
            part = "gallery" if i < 2 else "queries"
            os.link(stripes / name / f"{i}.png", root / part / name / f"{i}.png")
    return root, names


def test_a_folder_of_images_is_learnt_and_judged_on_held_out_classes(finished):
    metrics = json.loads((finished.workdir / "results.json").read_text())["metrics"]
    for name in ("pair_accuracy", "pair_eer", "roc_area", "one_shot_accuracy"):
        assert 0 <= metrics[name] <= 1
        assert f"pixels_{name}" in metrics
    assert metrics["one_shot_accuracy"] > 0.75  # of 2 classes, plainly different
    parts = json.loads((finished.workdir / "classes.json").read_text())
    assert sorted(name for part in parts.values() for name in part) == NAMES
    assert len(parts["test"]) == len(parts["validation"]) == 2
    assert "data:image/png" in (finished.workdir / "report.html").read_text()


def test_another_seed_holds_out_other_classes():
    labels = np.repeat(NAMES, 2)
    parts = [image_folder.split_classes(labels, seed)[2].tolist() for seed in range(5)]
    assert len({tuple(part) for part in parts}) > 1
    assert parts[0] == image_folder.split_classes(labels, 0)[2].tolist()


def test_verify_tells_the_distance_and_what_it_means(finished, stripes, tmp_path):
    a, b = stripes / "class0" / "0.png", stripes / "class0" / "1.png"
    out = tmp_path / "answer.json"
    config = verify.Config(a, b, finished.workdir, json=out)
    verify.command(config)
    answer = json.loads(out.read_text())
    calibration = model.load_calibration(finished.workdir)
    assert answer["threshold"] == calibration.threshold
    assert answer["same"] == (answer["distance"] <= calibration.threshold)
    assert answer["probability_same"] == calibration.probability_same(answer["distance"])
    twice = verify.verify(dataclasses.replace(config, b=a))
    assert twice["distance"] == 0
    assert twice["same"]
    assert twice["probability_same"] >= answer["probability_same"]


def test_identify_answers_with_the_nearest_class(finished, test_classes, tmp_path):
    root, names = test_classes
    queries = tuple(sorted((root / "queries").rglob("*.png")))
    config = identify.Config(
        finished.workdir,
        root / "gallery",
        queries,
        labelled=True,
        picture=tmp_path / "picture.png",
        json=tmp_path / "answers.json",
    )
    identify.command(config)
    found = json.loads((tmp_path / "answers.json").read_text())
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert [query["file"] for query in found["queries"]] == [str(q) for q in queries]
    right = 0
    for query in found["queries"]:
        assert {query["nearest"], query["runner_up"]} == set(names)
        assert query["distance"] <= query["runner_up_distance"]
        accepted = query["distance"] <= found["threshold"]
        assert query["answer"] == (query["nearest"] if accepted else None)
        right += query["nearest"] == pathlib.Path(query["file"]).parent.name
    assert found["metrics"]["one_shot_accuracy"] == right / len(queries)
    assert 0 <= found["metrics"]["strangers_let_in"] <= 1


def test_answers_and_rates_by_hand():
    labels = np.array(["a", "a", "b", "c"])
    gallery = identify.Gallery(np.zeros((4, 1, 1, 1)), labels, None)
    found = identify.answer(gallery, np.array([0.4, 0.2, 0.3, 0.9]))
    assert found == ("a", 0.2, 1, "b", 0.3)
    near, far = found, found._replace(distance=2.0)
    rates = identify.rates(
        [near, far, near, near, near], ["a", "a", "b", "x", "y"], {"a", "b", "c"}, 1.0
    )
    assert rates == {
        "one_shot_accuracy": pytest.approx(2 / 3),
        "right_and_accepted_rate": pytest.approx(1 / 3),
        "false_reject_rate": pytest.approx(1 / 3),
        "false_accept_rate": 1.0,
    }
    points = jnp.array([[0.0], [0.1], [5.0], [5.2]])
    learnt = model.pixel_model((1, 1, 1))
    gallery = gallery._replace(embeddings=points)
    assert identify.strangers_let_in(learnt, gallery, 1.0) == 0.5  # b and c, not a


def test_calibration_by_hand():
    rng = np.random.default_rng(0)
    same = np.arange(4000) % 2 == 0
    distances = np.where(same, rng.uniform(0, 1, 4000), rng.uniform(0.5, 2.5, 4000))
    calibration = model.calibrate(Judged(distances.astype(np.float32), same), "toy")
    assert 0.95 < calibration.threshold < 1.05
    # of different distances, uniform from .5 to 2.5, a tenth lies below .7
    assert calibration.threshold_at(0.1) == pytest.approx(0.7, abs=0.03)
    assert calibration.probability_same(calibration.even_distance) == pytest.approx(0.5)
    low, high = calibration.probability_same(np.array([0.1, 2.0]))
    assert low > 0.95
    assert high < 0.05
    with pytest.raises(run.UserError, match="toy cannot calibrate: 3 same, 0 different"):
        model.calibrate(Judged(np.ones(3), np.ones(3, bool)), "toy")


def test_an_exported_net_needs_jax_alone(finished, stripes, tmp_path):
    export.command(export.Config(finished.workdir, tmp_path / "net"))
    images = [stripes / "class0" / f"{i}.png" for i in range(3)]
    learnt = model.load_model(finished.workdir)
    pictures = model.read_images(learnt, images)
    wanted = np.asarray(model.embed(learnt, pictures))
    np.save(tmp_path / "images.npy", pictures.astype(np.float32) / 255)
    code = (
        "import sys\n"
        "for name in ('flax', 'optax', 'siamese_jax', 'experiments', 'orbax', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "import runpy, numpy as np\n"
        f"facts = runpy.run_path({str(tmp_path / 'net' / 'example.py')!r})\n"
        f"images = np.load({str(tmp_path / 'images.npy')!r})\n"
        "embeddings = facts['encoder'].call(images)\n"
        "matrix = facts['distances'].call(embeddings, embeddings[:2])\n"
        f"np.savez({str(tmp_path / 'out.npz')!r}, embeddings=embeddings, matrix=matrix)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["embeddings"], wanted, rtol=1e-4, atol=1e-5)
        matrix = np.linalg.norm(wanted[:, None] - wanted[None, :2], axis=2)
        np.testing.assert_allclose(found["matrix"], matrix, rtol=1e-3, atol=1e-4)


# Misuse ---------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_learnt_from_is_refused_at_once(finished, tmp_path):
    def main(**changes):
        workdir = tmp_path / "run"
        image_folder.main(dataclasses.replace(finished, workdir=workdir, **changes))

    few = write_stripes(tmp_path / "few", names=NAMES[:5], num=2)
    with pytest.raises(run.UserError, match=r"6 classes are needed: .* there are 5"):
        main(data_dir=few)
    (few / "single").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(few / "single" / "0.png")
    with pytest.raises(run.UserError, match=r"class '?single'? has 1"):
        main(data_dir=few)
    with pytest.raises(run.UserError, match="num_classes: there are 6 training classes"):
        main(num_classes=7)
    with pytest.raises(run.UserError, match=r"num_images: class class\d has 5; got 6"):
        main(num_images=6)
    with pytest.raises(run.UserError, match="image_size must be at least 4 for 2 blocks"):
        main(image_size=(3, 16))
    with pytest.raises(run.UserError, match="--data-dir"):
        main(data_dir=None)
    assert not (tmp_path / "run").exists()


def test_identify_names_what_is_wrong(finished, test_classes, tmp_path):
    root, _ = test_classes
    query = next((root / "queries").rglob("*.png"))
    config = identify.Config(finished.workdir, root / "gallery", (query,))

    def fails(error, words, **changes):
        with pytest.raises(error, match=words):
            identify.identify(dataclasses.replace(config, **changes))

    (tmp_path / "empty").mkdir()
    fails(run.UserError, "empty has no sub-folders", gallery=tmp_path / "empty")
    fails(FileNotFoundError, "nowhere is not a folder", gallery=tmp_path / "nowhere")
    (tmp_path / "text.png").write_text("no image")
    fails(run.UserError, "text.png cannot be read", queries=(tmp_path / "text.png",))
    fails(run.UserError, "at least one image file", queries=())
    fails(run.UserError, r"must be in \(0, 1\); got 1.0", false_accept_rate=1.0)
    fails(run.UserError, "holds no run: there is no config.json", workdir=tmp_path)
    one = tmp_path / "one" / "class"
    one.mkdir(parents=True)
    os.link(query, one / "0.png")
    fails(run.UserError, "has one class, class; two are needed", gallery=tmp_path / "one")
    fails(
        run.UserError,
        "no query is of a class of the gallery",
        labelled=True,
        queries=(one / "0.png",),
    )


def test_a_workdir_without_a_checkpoint_or_a_calibration_is_named(finished, tmp_path):
    started = dataclasses.replace(finished, workdir=tmp_path / "started")
    run.start(started)
    with pytest.raises(run.UserError, match="holds no checkpoint"):
        model.load_model(started.workdir)
    with pytest.raises(run.UserError, match="has no calibration"):
        model.load_calibration(started.workdir)
    facts = json.loads((started.workdir / "config.json").read_text())
    (started.workdir / "config.json").write_text(json.dumps(facts | {"experiment": "x"}))
    with pytest.raises(run.UserError, match="not of an experiment of this version"):
        model.load_model(started.workdir)


def test_a_configuration_comes_back_from_its_folder_as_it_was(finished):
    assert run.load_config(finished.workdir) == finished


def test_the_commands_say_what_is_wrong_without_a_traceback(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "experiments.verify", "a", "b", "--workdir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.strip().startswith("error: ")
    assert "holds no run" in result.stderr
    assert "Traceback" not in result.stderr
