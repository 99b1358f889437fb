"""Tests of the command siamese-jax: its answers, its files and its error messages."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from siamese_jax import cli
from siamese_jax.distances import cosine_similarity_matrix
from siamese_jax.encoders import MnistMlp
from siamese_jax.images import Preparation, load_folder
from siamese_jax.model import Model, load_model, save_model
from siamese_jax.verification import calibrate

pytestmark = pytest.mark.slow

NAMES = [f"class{number}" for number in range(6)]


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


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("images") / "all", names=NAMES, num=5)


@pytest.fixture(scope="module")
def folder(stripes, tmp_path_factory):
    """An untrained net, calibrated on four of the classes: stripes are told apart."""
    encoder = MnistMlp()
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    model = Model(params, encoder.apply, Preparation((16, 16)))
    data = load_folder(stripes)
    data = data.only(data.labels < "class4")
    x = model.embed(data.images)
    rows, columns = np.triu_indices(len(x), 1)
    calibration = calibrate(
        np.asarray(model.distances(x, x))[rows, columns],
        data.labels[rows] == data.labels[columns],
        pairs="all pairs of four classes",
    )
    path = tmp_path_factory.mktemp("models") / "model"
    model = Model(
        params, encoder.apply, model.preparation, calibration=calibration, details={}
    )
    save_model(path, model)
    return path


@pytest.fixture(scope="module")
def new_classes(stripes, tmp_path_factory):
    """A gallery of two classes, and the other images of them as queries."""
    root = tmp_path_factory.mktemp("new")
    for name in NAMES[4:]:
        for part in ("gallery", "queries"):
            (root / part / name).mkdir(parents=True)
        for i in range(5):
            part = "gallery" if i < 2 else "queries"
            os.link(stripes / name / f"{i}.png", root / part / name / f"{i}.png")
    return root


def run(*arguments):
    cli.main(arguments=[str(argument) for argument in arguments])


def fails(capsys, words, *arguments, status=1):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == status
    error = capsys.readouterr().err
    assert words in error
    if status == 1:
        assert error.startswith("error: ")
        assert error.count("\n") == 1


# Answers --------------------------------------------------------------------------------


def test_verify_tells_the_distance_and_what_it_means(folder, stripes, tmp_path, capsys):
    a, b = stripes / "class0" / "0.png", stripes / "class0" / "1.png"
    run("verify", "--model", folder, a, b, "--json", tmp_path / "answer.json")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert list(answer) == ["same", "distance", "threshold", "probability_same"]
    calibration = load_model(folder).calibration
    assert answer["threshold"] == calibration.threshold
    assert answer["same"] == (answer["distance"] <= calibration.threshold)
    assert answer["same"]
    assert answer["probability_same"] == calibration.probability_same(answer["distance"])
    assert capsys.readouterr().out == (
        f"same: distance {answer['distance']:.4f}, threshold {answer['threshold']:.4f}, "
        f"probability of the same {answer['probability_same']:.3f}\n"
    )
    run("verify", "--model", folder, a, a, "--json", tmp_path / "twice.json")
    twice = json.loads((tmp_path / "twice.json").read_text())
    assert twice["distance"] == 0
    assert twice["same"]
    assert twice["probability_same"] >= answer["probability_same"]
    run("verify", a, stripes / "class5" / "1.png", "--model", folder)
    assert capsys.readouterr().out.splitlines()[-1].startswith("different: distance")


def test_identify_answers_with_the_nearest_class(folder, new_classes, tmp_path, capsys):
    queries = sorted((new_classes / "queries").rglob("*.png"))
    flags = ("identify", "--model", folder, "--gallery", new_classes / "gallery")
    outputs = ("--picture", tmp_path / "match.png", "--json", tmp_path / "answers.json")
    run(*flags, "--queries", *queries, "--labelled", *outputs)
    found = json.loads((tmp_path / "answers.json").read_text())
    assert set(found) == {
        *("metrics", "threshold", "threshold_from", "num_classes", "picture", "queries")
    }
    assert found["picture"] == str(tmp_path / "match.png")
    assert found["num_classes"] == 2
    assert [query["file"] for query in found["queries"]] == [str(q) for q in queries]
    right = 0
    for query in found["queries"]:
        assert {query["nearest"], query["runner_up"]} == set(NAMES[4:])
        assert query["distance"] <= query["runner_up_distance"]
        accepted = query["distance"] <= found["threshold"]
        assert query["answer"] == (query["nearest"] if accepted else None)
        right += query["nearest"] == pathlib.Path(query["file"]).parent.name
    assert found["metrics"]["one_shot_accuracy"] == right / len(queries)
    assert found["metrics"]["one_shot_accuracy"] > 0.75  # plainly different
    assert 0 <= found["metrics"]["strangers_let_in"] <= 1
    shown = capsys.readouterr().out
    assert shown.count("nearest class") == len(queries)
    words = f"threshold {found['threshold']:.4f}, for 2 classes, from the pairs"
    assert words in shown
    assert found["threshold_from"] == "pairs"
    assert "one_shot_accuracy" in shown
    assert not any(query["in_gallery"] for query in found["queries"])
    assert "a file of the gallery" not in shown


def test_the_threshold_follows_the_rate_and_the_number_of_classes(
    folder, new_classes, tmp_path
):
    query = next((new_classes / "queries").rglob("*.png"))
    flags = ("identify", "--model", folder, "--gallery", new_classes / "gallery")
    flags = (*flags, "--queries", query, "--json", tmp_path / "answers.json")
    run(*flags, "--false-accept-rate", 0.36)
    found = json.loads((tmp_path / "answers.json").read_text())
    calibration = load_model(folder).calibration  # the gallery has four images
    assert found["threshold"] == calibration.threshold_at(0.36, num_comparisons=4)
    assert found["picture"] is None
    assert list(found["metrics"]) == ["strangers_let_in"]


def test_few_classes_behind_a_calibration_are_named(
    folder, stripes, new_classes, tmp_path, capsys
):
    a, query = stripes / "class0" / "0.png", next((new_classes / "queries").rglob("*.png"))
    gallery = ("--gallery", new_classes / "gallery", "--queries", query)
    words = "warning: calibrated on 4 classes only (all pairs of four classes): "
    loaded = load_model(folder)

    def errors(num_classes):
        calibration = dataclasses.replace(loaded.calibration, num_classes=num_classes)
        save_model(tmp_path / "one", dataclasses.replace(loaded, calibration=calibration))
        for command in (("verify", a, a), ("identify", *gallery)):
            run(*command, "--model", tmp_path / "one")
            yield capsys.readouterr().err

    of_verify, of_identify = errors(4)
    assert of_verify.startswith(words)
    assert of_identify.startswith(f"{words}more images of the gallery's classes may come")
    assert of_verify.count("\n") == of_identify.count("\n") == 1
    assert not any(errors(20))
    assert not any(errors(None))


def test_a_rate_that_cannot_be_told_is_named_with_one_that_can(
    folder, new_classes, tmp_path, capsys
):
    query = next((new_classes / "queries").rglob("*.png"))
    flags = ("identify", "--model", folder, "--gallery", new_classes / "gallery")
    flags = (*flags, "--queries", query, "--json", tmp_path / "answers.json")
    run(*flags, "--false-accept-rate", 0.001)
    shown, error = capsys.readouterr()
    found = json.loads((tmp_path / "answers.json").read_text())
    assert found["threshold"] is None
    assert found["threshold_from"] is None
    assert found["queries"][0]["answer"] is None
    assert found["queries"][0]["nearest"] in NAMES
    assert "none of these (nearest class" in shown
    assert "no threshold for 2 classes" in shown
    assert error.startswith("warning: neither the 4 images of the gallery nor the pairs")
    asked = error.partition("--false-accept-rate ")[2].split()[0]
    run(*flags, "--false-accept-rate", asked)
    found = json.loads((tmp_path / "answers.json").read_text())
    assert found["threshold_from"] == "pairs"


def test_queries_of_the_gallery_are_named(folder, new_classes, tmp_path, capsys):
    gallery = new_classes / "gallery"
    known = next(gallery.rglob("*.png"))
    copy, link = tmp_path / "copy.png", tmp_path / "link.png"
    copy.write_bytes(known.read_bytes())
    link.symlink_to(known)
    new = next((new_classes / "queries").rglob("*.png"))
    queries = (known, copy, link, new)
    flags = ("--model", folder, "--gallery", gallery, "--queries", *queries)
    run("identify", *flags, "--json", tmp_path / "answers.json")
    found = json.loads((tmp_path / "answers.json").read_text())["queries"]
    assert [query["in_gallery"] for query in found] == [True, True, True, False]
    lines = capsys.readouterr().out.splitlines()
    for line, query in zip(lines, queries, strict=False):
        named = query is not new
        assert line.startswith(f"{query}{' (a file of the gallery)' if named else ''}: ")


def test_a_model_without_calibration_ends_with_the_reason(
    folder, new_classes, tmp_path, capsys
):
    reason = "the model tells nothing apart, all 40 distances are 0"
    model = dataclasses.replace(
        load_model(folder), calibration=None, details={"no_calibration": reason}
    )
    save_model(tmp_path / "model", model)
    image = next((new_classes / "queries").rglob("*.png"))
    fails(capsys, reason, "verify", "--model", tmp_path / "model", image, image)
    flags = ("--gallery", new_classes / "gallery", "--queries", image)
    fails(capsys, reason, "identify", "--model", tmp_path / "model", *flags)


def test_verdict_and_printed_probability_agree_next_to_the_threshold(
    folder, stripes, tmp_path, capsys
):
    a, b = stripes / "class0" / "0.png", stripes / "class0" / "1.png"
    loaded = load_model(folder)
    distance = loaded.verify(a, b).distance
    for threshold, shown in ((distance, "0.500"), (np.nextafter(distance, 0), "0.499")):
        near = dataclasses.replace(loaded.calibration, threshold=float(threshold))
        save_model(tmp_path / "near", dataclasses.replace(loaded, calibration=near))
        run("verify", "--model", tmp_path / "near", a, b)
        line = capsys.readouterr().out
        assert line.startswith("same" if shown == "0.500" else "different")
        assert line.endswith(f"probability of the same {shown}\n")


def test_the_picture_frames_accepted_answers_green_and_others_red(
    folder, stripes, new_classes, tmp_path
):
    picture, answers = tmp_path / "match.png", tmp_path / "answers.json"
    queries = [stripes / "class4" / "0.png", stripes / "class0" / "0.png"]
    flags = ("identify", "--model", folder, "--gallery", new_classes / "gallery")
    run(*flags, "--queries", *queries, "--picture", picture, "--json", answers)
    found = json.loads(answers.read_text())["queries"]
    assert [query["answer"] for query in found] == ["class4", None]
    with Image.open(picture) as drawn:
        pixels = np.asarray(drawn)
    left, right = np.array_split(pixels, 2, axis=1)
    green, red = np.array([30, 130, 60]), np.array([190, 40, 40])
    for half, color, other in ((left, green, red), (right, red, green)):
        assert (half == color[None, None, :]).all(axis=2).sum() > 1000
        assert not (half == other[None, None, :]).all(axis=2).any()


def test_a_picture_of_many_queries_with_long_names_is_drawn(folder, stripes, tmp_path):
    long = "\u0531\u10d0" * 40  # letters that the font may not have
    for name in ("short", long):
        (tmp_path / "gallery" / name).mkdir(parents=True)
    for number, name in enumerate(("short", long)):
        Image.open(stripes / f"class{number}" / "0.png").convert("RGB").resize(
            (300, 40)
        ).save(tmp_path / "gallery" / name / "0.jpg")
    queries = sorted(stripes.rglob("*.png"))[:14]
    picture = tmp_path / "match.jpg"
    flags = ("identify", "--model", folder, "--gallery", tmp_path / "gallery")
    run(*flags, "--queries", *queries, "--picture", picture)
    assert picture.read_bytes().startswith(b"\xff\xd8")


def test_embeddings_come_with_the_list_of_their_files(folder, stripes, tmp_path, capsys):
    single = stripes / "class5" / "3.png"
    out = tmp_path / "E.npy"
    run("embed", "--model", folder, "--out", out, single, stripes / "class0")
    vectors = np.load(out)
    files = json.loads((tmp_path / "E.json").read_text())["files"]
    class0 = [stripes / "class0" / f"{i}.png" for i in range(5)]
    assert files == [str(file) for file in (single, *class0)]
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, load_model(folder).embed(files), rtol=1e-6)
    assert "6 embeddings of 128 numbers" in capsys.readouterr().out


# Names and other files ------------------------------------------------------------------


ODD_NAMES = [
    "Ba$$in",
    r"$\frac{a_1}^2$",
    os.fsdecode(b"caf\xe9"),
    "two\nlines",
    "\u0627\u0628",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_text_in_answers_files_and_pictures(
    folder, stripes, tmp_path, name, capsys
):
    gallery = tmp_path / "gallery"
    for number, one in enumerate(("other", name)):
        (gallery / one).mkdir(parents=True)
        os.link(stripes / f"class{number}" / "0.png", gallery / one / "0.png")
    flags = ("identify", "--model", folder, "--gallery", gallery)
    queries = ("--queries", gallery / name / "0.png", "--labelled")
    outputs = ("--json", tmp_path / "a.json", "--picture", tmp_path / "a.png")
    run(*flags, *queries, *outputs)
    shown = capsys.readouterr()
    assert shown.err == ""
    found = json.loads((tmp_path / "a.json").read_bytes().decode())["queries"][0]
    wanted = {"caf\udce9": r"caf\udce9", "two\nlines": r"two\nlines"}.get(name, name)
    assert found["answer"] == found["nearest"] == wanted
    assert f"{wanted}/0.png (a file of the gallery): {wanted} (nearest" in shown.out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    run("embed", "--model", folder, "--out", tmp_path / "E.npy", gallery)
    files = json.loads((tmp_path / "E.json").read_bytes().decode())["files"]
    assert f"{gallery}/{wanted}/0.png" in files
    run("verify", "--model", folder, *[gallery / name / "0.png"] * 2)
    missing = gallery / name / "1.png"
    capsys.readouterr()
    fails(capsys, f"{wanted}/1.png", "verify", "--model", folder, missing, missing)


def test_one_text_is_one_class_in_gallery_and_queries(folder, stripes, tmp_path):
    composed, decomposed = "Jos\u00e9", "Jose\u0301"
    for place, name, number, file in (
        *(("gallery", decomposed, 4, 0), ("gallery", composed, 4, 1)),
        *(("gallery", "anna", 5, 0), ("queries", composed, 4, 2)),
    ):
        (tmp_path / place / name).mkdir(parents=True, exist_ok=True)
        source = stripes / f"class{number}" / f"{file}.png"
        os.link(source, tmp_path / place / name / f"{file}.png")
    flags = ("identify", "--model", folder, "--gallery", tmp_path / "gallery")
    queries = ("--queries", tmp_path / "queries", "--labelled")
    run(*flags, *queries, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["num_classes"] == 2
    assert found["queries"][0]["nearest"] == decomposed
    assert found["queries"][0]["runner_up"] == "anna"
    assert found["metrics"]["one_shot_accuracy"] == 1


def test_what_is_not_read_is_said_in_a_line(folder, stripes, new_classes, tmp_path, capsys):
    gallery = tmp_path / "gallery"
    shutil.copytree(new_classes / "gallery", gallery)
    for name in ("class4/Thumbs.db", "class4/._0.png", ".DS_Store", "class5/1.heic"):
        (gallery / name).write_bytes(b"no image")
    (gallery / "__MACOSX").mkdir()
    frames = [Image.new("L", (20, 16), value) for value in (0, 255)]
    moving = tmp_path / "moving.gif"
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    run("verify", "--model", folder, moving, stripes / "class0" / "0.png")
    frame = "read only the first frame of 1 file of 2: moving.gif\n"
    assert capsys.readouterr().err == frame
    flags = ("--model", folder, "--gallery", gallery, "--queries")
    litter = (gallery / "class4" / "Thumbs.db", gallery / "__MACOSX")
    run("identify", *flags, moving, *litter, "--json", tmp_path / "a.json")
    lines = capsys.readouterr().err.splitlines()
    heic = "1 .heic (not an image format that Pillow reads)"
    assert lines == [f"passed over 1 file of 5: {heic}", frame[:-1].replace("2:", "5:")]
    found = json.loads((tmp_path / "a.json").read_text())["queries"]
    assert [query["file"] for query in found] == [str(moving)]
    run("embed", "--model", folder, "--out", tmp_path / "E.npy", gallery, moving)
    assert capsys.readouterr().err.splitlines() == lines
    assert len(np.load(tmp_path / "E.npy")) == 5
    fails(capsys, "at least one image file", "identify", *flags, *litter)


def test_a_terminal_without_the_letters_shows_escapes(folder, stripes, tmp_path):
    (tmp_path / "Jos\u00e9").mkdir()
    file = tmp_path / "Jos\u00e9" / "0.png"
    os.link(stripes / "class0" / "0.png", file)
    flags = ("embed", "--model", str(folder), "--out", str(file.with_suffix(".npy")))
    options = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "siamese_jax", *flags, str(file)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=options
    )
    assert result.returncode == 0, result.stderr
    assert r"Jos\xe9/0.npy: 1 embeddings" in result.stdout


# Misuse ---------------------------------------------------------------------------------


def test_verify_names_what_is_wrong(folder, stripes, tmp_path, capsys):
    a = stripes / "class0" / "0.png"
    text = tmp_path / "text.png"
    text.write_text("no image")
    fails(capsys, "text.png cannot be read", "verify", "--model", folder, a, text)
    fails(capsys, "is no model folder", "verify", "--model", tmp_path, a, a)
    cosines = {"matrix_fn": lambda _, x, y: cosine_similarity_matrix(x, y)}
    save_model(tmp_path / "cos", dataclasses.replace(load_model(folder), **cosines))
    fails(capsys, "must give distances", "verify", "--model", tmp_path / "cos", a, a)
    out = tmp_path / "nowhere" / "answer.json"
    flags = ("verify", "--model", tmp_path, a, a, "--json")
    fails(capsys, "--json: the folder", *flags, out)  # before the model is looked at
    fails(capsys, "is a folder; a file is wanted", *flags, tmp_path)
    fails(capsys, "--unknown", *flags[:-1], "--unknown", status=2)
    fails(capsys, "model", "verify", a, a, status=2)
    fails(capsys, "verify", status=2)


def test_identify_names_what_is_wrong(folder, new_classes, tmp_path, capsys):
    query = next((new_classes / "queries").rglob("*.png"))

    def wrong(
        words, *more, gallery=new_classes / "gallery", model=folder, queries=(query,)
    ):
        flags = ("--model", model, "--gallery", gallery, "--queries", *queries)
        fails(capsys, words, "identify", *flags, *more)

    (tmp_path / "empty").mkdir()
    wrong("empty has no sub-folders", gallery=tmp_path / "empty")
    wrong("nowhere is not a folder", gallery=tmp_path / "nowhere")
    (tmp_path / "text.png").write_text("no image")
    wrong("text.png cannot be read", queries=(tmp_path / "text.png",))
    wrong("nowhere.png is not a file", queries=(query, tmp_path / "nowhere.png"))
    wrong("at least one image file", queries=())
    wrong("must be in (0, 1); got 1.0", "--false-accept-rate", 1)
    wrong("is no model folder", model=tmp_path)
    one = tmp_path / "one" / "class"
    one.mkdir(parents=True)
    os.link(query, one / "0.png")
    wrong("has one class, class; two are needed", gallery=tmp_path / "one")
    queries = (one / "0.png",)
    wrong("no query is of a class of the gallery", "--labelled", queries=queries)
    wrong("must end in .png or .jpg or .jpeg", "--picture", tmp_path / "match.pdf")
    wrong("--json: the folder", "--json", tmp_path / "nowhere" / "answers.json")


def test_embed_names_what_is_wrong(folder, stripes, tmp_path, capsys):
    flags = ("embed", "--model", folder, "--out")
    fails(capsys, "must end in .npy", *flags, tmp_path / "E.txt", stripes)
    fails(capsys, "must end in .npy", *flags, ".", stripes)
    fails(capsys, "at least one image file or folder", *flags, tmp_path / "E.npy")
    wrong = (tmp_path / "E.npy", stripes / "nowhere.png")
    fails(capsys, "nowhere.png is not a file", *flags, *wrong)
    (tmp_path / "E.json").mkdir()
    fails(capsys, "E.json is a folder", *flags, tmp_path / "E.npy", stripes)
    assert not (tmp_path / "E.npy").exists()


def test_an_answer_is_not_lost_when_the_picture_fails(
    folder, new_classes, tmp_path, monkeypatch, capsys
):
    def broken(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("siamese_jax._match_picture.draw_matches", broken)
    query = next((new_classes / "queries").rglob("*.png"))
    flags = ("--model", folder, "--gallery", new_classes / "gallery", "--queries", query)
    outputs = ("--picture", tmp_path / "match.png", "--json", tmp_path / "answers.json")
    run("identify", *flags, *outputs)
    shown = capsys.readouterr()
    assert shown.err == "warning: no picture was made: OSError: disk full\n"
    assert str(query) in shown.out
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["queries"]
    assert answers["picture"] is None
    assert not (tmp_path / "match.png").exists()


@pytest.mark.parametrize("package", ["tyro", "PIL"])
def test_a_missing_package_is_named_with_the_extra(
    folder, stripes, package, monkeypatch, capsys
):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    a = stripes / "class0" / "0.png"
    words = f"{package} is not installed: pip install 'siamese_jax[cli]'"
    fails(capsys, words, "verify", "--model", folder, a, a)
