"""Tests of siamese-jax evaluate: its files, its page and its error messages."""

import importlib
import json
import math

import numpy as np
import pytest
from PIL import Image

from experiments import __main__ as listing
from siamese_jax import _evaluate_command, cli
from siamese_jax.errors import UserError
from siamese_jax.evaluation import make_sets, report
from siamese_jax.evaluation.figures import figure
from siamese_jax.evaluation.files import read_images, read_labels, read_pairs
from siamese_jax.evaluation.report import json_text, table_text
from tests.test_evaluation_figures import LABELS, X

NAMES = np.array(list("abcdef"))[LABELS]


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "E.npy", X)
    np.save(tmp_path / "L.npy", NAMES)
    return tmp_path


def run(folder, *arguments, out="out", inputs=("--embeddings", "--labels")):
    given = [part for flag in inputs for part in (flag, f"{folder}/{flag[2].upper()}.npy")]
    flags = ["evaluate", *given, "--out", f"{folder}/{out}", *map(str, arguments)]
    cli.main(arguments=flags)


def fails(capsys, words, *arguments, **options):
    with pytest.raises(SystemExit) as caught:
        run(*arguments, **options)
    error = capsys.readouterr().err
    assert caught.value.code == 1, error
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# The whole command ----------------------------------------------------------------------


def write_pairs(path):
    rng = np.random.default_rng(0)
    first = rng.integers(0, 40, 200)
    pairs = np.stack([first, (first + rng.integers(1, 40, 200)) % 40], axis=1)
    lines = [
        f"{a},{b},{int(LABELS[a] == LABELS[b])},{i % 10}" for i, (a, b) in enumerate(pairs)
    ]
    path.write_text("\n".join(["a,b,same,fold", *lines]))


@pytest.mark.slow
def test_figures_are_in_table_file_and_page(files, capsys):
    write_pairs(files / "pairs.csv")
    np.save(files / "I.npy", np.random.default_rng(0).random((40, 8, 8)))
    flags = ("--pairs", files / "pairs.csv", "--images", files / "I.npy")
    run(files, *flags, "--num-tasks", 2, "--distance", "cosine")
    shown = capsys.readouterr().out

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (files / "out" / "evaluation.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    page = (files / "out" / "evaluation.html").read_text()
    groups = {
        *("retrieval", "verification", "few-shot, inductive", "few-shot, transductive"),
        *("clusters", "health", "verification of pairs.csv"),
    }
    assert set(found["figures"]) == groups
    for group, figures in found["figures"].items():
        assert f"{group}\n" in shown
        for name, parts in figures.items():
            assert name in shown
            assert f"<td>{name}</td>" in page
            value = parts["value"]
            assert (value is None) == ("why" in parts), name
            if isinstance(value, float):
                assert f"{value:.4f}" in page
                assert math.isfinite(value)
    assert found["figures"]["few-shot, inductive"]["20_way_5_shot_ridge"]["value"] is None
    assert found["figures"]["verification of pairs.csv"]["fold_accuracy"]["value"] > 0.5
    assert found["sizes"]["num_listed_same"] + found["sizes"]["num_listed_different"] == 200
    assert "Classes are in several folds of pairs.csv" in shown
    assert found["settings"]["distance"] == "cosine"
    assert len(found["worst_classes"]) == 6
    for title in ("Neighbours, right", "Neighbours, wrong", "Worst classes", "Calibration"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("data:image/png;base64,") == 10
    assert "https:" not in page
    assert "http:" not in page


@pytest.mark.slow
def test_a_list_of_distances_needs_no_embeddings(files, capsys):
    lines = ["distance, same", *(f"{d}, {d < 3}" for d in range(6))]
    (files / "P.csv").write_text("\n".join(lines))
    run(files, "--pairs", files / "P.csv", inputs=())
    figures = json.loads((files / "out" / "evaluation.json").read_text())["figures"]
    assert figures["verification of P.csv"]["equal_error_rate"]["value"] == 0
    assert figures["verification of P.csv"]["roc_auc"]["value"] == 1
    assert "random halves" in capsys.readouterr().out


def test_the_room_of_experiments_is_the_same_command(files, capsys):
    module = importlib.import_module("experiments.evaluations.evaluate")
    assert "evaluate" in listing.list_room("evaluations")
    with pytest.raises(SystemExit) as caught:
        listing.main(
            ["evaluate", "--labels", str(files / "L.npy"), "--out", str(files / "o")]
        )
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: --labels needs --embeddings\n"
    with pytest.raises(SystemExit) as caught:
        listing.main(["evaluate", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(module.__doc__.strip())
    assert "usage: python -m experiments evaluate" in shown


def test_an_image_that_cannot_be_read_does_not_lose_the_figures(files, monkeypatch, capsys):
    def page_text(**judged):
        raise UserError("x.png cannot be read as an image")

    found = {"groups": {"some": {"one": figure(0.5)}}, "lists": {}, "notes": []}
    judged = {**found, "sizes": {}, "found": None}
    monkeypatch.setattr(_evaluate_command, "_judge", lambda *_: judged)
    monkeypatch.setattr(report, "page_text", page_text)
    fails(capsys, "x.png cannot be read", files)
    written = json.loads((files / "out" / "evaluation.json").read_text())
    assert written["figures"]["some"]["one"]["value"] == 0.5


# Misuse ---------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_and_kept(files, capsys):
    (files / "out").mkdir()
    (files / "out" / "thesis.txt").write_text("precious")
    fails(capsys, "exists and is not empty", files)
    assert (files / "out" / "thesis.txt").read_text() == "precious"
    fails(capsys, "L.npy is a file; a new folder is wanted", files, out="L.npy")
    fails(capsys, "does not exist", files, out="nowhere/out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-queries", 0), "--max-queries must be at least 1"),
        (("--num-tasks", 1), "--num-tasks must be at least 2"),
        (("--seed", -1), "--seed must be at least 0"),
        (("--reference-labels", "R.npy"), "--reference-labels needs --reference-emb"),
        (("--reference-images", "R.npy"), "--reference-images needs --reference-emb"),
        (("--ids", "nowhere.npy"), "--ids: nowhere.npy is not a file"),
        (("--images", "nowhere.npy"), "--images: nowhere.npy is not a file"),
        (("--pairs", "nowhere.csv"), "--pairs: nowhere.csv is not a file"),
    ],
)
def test_flags_that_make_no_sense_are_named(files, capsys, arguments, words):
    fails(capsys, words, files, *arguments)
    assert not (files / "out").exists()


def test_inputs_are_needed(files, capsys):
    fails(capsys, "--embeddings and --labels are needed, or --pairs", files, inputs=())
    fails(capsys, "--embeddings needs --labels", files, inputs=("--embeddings",))
    fails(capsys, "--labels needs --embeddings", files, inputs=("--labels",))
    for flag in ("--ids", "--images", "--reference-embeddings"):
        flags = (flag, files / "L.npy", "--pairs", files / "P.csv")
        fails(capsys, f"{flag} needs --labels", files, *flags, inputs=("--embeddings",))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("E", b"", "E.npy is empty"),
        ("E", b"no array", "E.npy is no .npy file"),
        ("E", b"PK\3\4 cut", "E.npy is an archive of arrays; one .npy is wanted"),
        ("L", np.array(3), "labels must be 40, one for each row; got one value"),
        ("E", X[0], "embeddings must have shape [rows, dimensions]; got (5,)"),
        ("E", X[:5], "labels must be 5, one for each row; got 40"),
        ("E", X * np.nan, "40 of 40 rows have NaN or infinity, first row 0"),
        ("L", np.array([1, "a"], object), "it holds Python objects"),
        ("L", np.zeros(40, int), "all rows are of class 0"),
        ("L", np.arange(40), "no two rows are of one class"),
    ],
)
def test_files_that_do_not_fit_are_named(files, capsys, name, content, words):
    path = files / f"{name}.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    fails(capsys, words, files)
    assert not (files / "out").exists()


def test_several_arrays_in_a_file_are_refused(files, capsys):
    with (files / "E.npy").open("wb") as file:
        np.savez(file, X, X)
    fails(capsys, "is an archive of arrays; one .npy is wanted", files)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must name the columns a, b, same or else distance, same; it is ''"),
        ("a,b,distance,same\n1,2,0,1", "or else distance, same; it is 'a,b,dist"),
        ("a,b,same\n0,1,1\n7,7,1", "pair 2: a and b are both row 7; a row is not"),
        ("a,b\n1,2", "it is 'a,b'"),
        ("a,b,same", "has no pairs"),
        ("a,b,same\n0,1,1\n0,40,1", "pair 2: b is '40': it must be from 0 to 39"),
        ("a,b,same\n-1,1,1", "pair 1: a is '-1': it must be from 0 to 39"),
        ("a,b,same\n0.5,1,1", "pair 1: a is '0.5': invalid literal"),
        ("a,b,same\n0,1,perhaps", "pair 1: same is 'perhaps': it must be 1 or 0"),
        ("a,b,same\n0,1", "pair 1: same is 'None': it is missing"),
        ("distance,same\nnan,1", "pair 1: distance is 'nan': it must be finite"),
        ("distance,same,fold\n1,1,", "pair 1: fold is '': it is missing"),
    ],
)
def test_wrong_lines_of_pairs_are_named(files, capsys, text, words):
    (files / "P.csv").write_text(text)
    fails(capsys, words, files, "--pairs", files / "P.csv")
    assert not (files / "out").exists()


def test_rows_of_pairs_need_embeddings_and_both_kinds(files, capsys):
    (files / "P.csv").write_text("a,b,same\n0,1,1")
    flags = ("--pairs", files / "P.csv")
    fails(capsys, "rows a and b need --embeddings", files, *flags, inputs=())
    for more in ("--max-queries", "--num-tasks"):
        unused, inputs = (*flags, more, 5), ("--embeddings",)
        fails(capsys, f"{more} needs --labels", files, *unused, inputs=inputs)
    one_kind = "cannot be judged: there are no different pairs"
    fails(capsys, one_kind, files, *flags, inputs=("--embeddings",))


def test_pairs_that_contradict_the_labels_are_counted(files):
    i, j = np.flatnonzero(LABELS == 0)[:2]
    other = np.flatnonzero(LABELS == 1)[0]
    flags = {"pairs": files / "P.csv", "seed": 0, "distance": "euclidean"}
    for same, words in (("1", []), ("0", ["Of 1 pairs of P.csv the labels say the opp"])):
        (files / "P.csv").write_text(f"a,b,same\n{i},{j},{same}\n{i},{other},0")
        listed = _evaluate_command._read_pairs(flags, make_sets(X, LABELS))
        found = [note for note in listed.notes if "labels" in note]
        assert len(found) == len(words)
        assert all(a.startswith(b) for a, b in zip(found, words, strict=True))


def test_what_a_list_of_distances_does_not_use_is_refused(files, capsys):
    (files / "P.csv").write_text("distance,same\n0,1\n1,0")
    flags = ("--pairs", files / "P.csv")
    cosine = ("--distance", "cosine")
    fails(capsys, "--distance needs --embeddings", files, *flags, *cosine, inputs=())
    unused = "has distances; embeddings are not used"
    fails(capsys, unused, files, *flags, inputs=("--embeddings",))


def test_a_seed_that_draws_nothing_is_refused(files, capsys):
    seed = ("--pairs", files / "P.csv", "--seed", 1)
    words = "P.csv has folds; nothing is drawn at random"
    (files / "P.csv").write_text("distance,same,fold\n0,1,a\n1,0,b")
    fails(capsys, f"--seed: {files}/{words}", files, *seed, inputs=())
    (files / "P.csv").write_text("a,b,same,fold\n0,1,1,a\n2,3,0,b")
    fails(capsys, words, files, *seed, inputs=("--embeddings",))
    flags = {"pairs": files / "P.csv", "seed": 1, "distance": "euclidean"}
    _evaluate_command._read_pairs(flags, make_sets(X, LABELS))  # of the other figures
    (files / "P.csv").write_text("distance,same\n0,1\n1,0")  # of the random halves
    _evaluate_command._read_pairs({**flags, "embeddings": None}, None)


def test_images_of_queries_and_of_references_come_together(files, capsys):
    references = ("--reference-embeddings", files / "E.npy")
    references += ("--reference-labels", files / "L.npy")
    one = ("--images", files / "I.npy")
    fails(capsys, "--images needs --reference-images beside", files, *references, *one)
    other = ("--reference-images", files / "I.npy")
    fails(capsys, "--reference-images needs --images", files, *references, *other)


# Files ----------------------------------------------------------------------------------


def test_columns_of_pairs_have_any_order_and_folds_any_name(tmp_path):
    (tmp_path / "P.csv").write_text("\ufefffold, same, b, a\nx, True, 3, 0\ny, 0, 2, 1\n")
    found = read_pairs(tmp_path / "P.csv", 4)
    assert found.same.tolist() == [True, False]
    assert found.examples.tolist() == [[0, 1], [3, 2]]
    assert found.folds.tolist() == [0, 1]


def test_images_come_in_the_order_of_rows(tmp_path):
    for name in ("b/0.png", "a/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (2, 3), 10 * int(name[2])).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("b/0.png\na/1.png\n")
    content = {"files": [str(tmp_path / "b/0.png"), str(tmp_path / "a/1.png")]}
    (tmp_path / "E.json").write_text(json.dumps(content))
    (tmp_path / "F.JSON").write_text(json.dumps(content))
    for name in ("list.txt", "E.json", "F.JSON"):
        image_of = read_images("--images", tmp_path / name, 2)
        assert [image_of(row)[0, 0, 0] for row in (0, 1)] == [0, 10]
        assert read_labels("--labels", tmp_path / name) == ["b", "a"]
    (tmp_path / "list.txt").unlink()
    image_of = read_images("--images", tmp_path, 2)
    assert [image_of(row)[0, 0, 0] for row in (0, 1)] == [10, 0]
    np.save(tmp_path / "I.npy", np.array([[[0.0]], [[1.0]]]))
    assert read_images("--images", tmp_path / "I.npy", 2)(1).tolist() == [[[255]]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((3, 4)), "images must have shape"),
        (np.zeros((3, 4, 4, 2), np.uint8), "images must have shape"),
        (np.zeros((2, 4, 4), np.uint8), "3 images are wanted, one a row; got 2"),
        (np.zeros((3, 4, 4), int), "uint8, or floats in"),
        (np.full((3, 4, 4), 255.0), "floats in .* got floats from 255 to 255"),
        (np.full((3, 4, 4), np.nan), "floats in .* got floats from nan to nan"),
    ],
)
def test_images_that_do_not_fit_are_named(tmp_path, content, words):
    np.save(tmp_path / "I.npy", content)
    with pytest.raises(ValueError, match=words):
        read_images("--images", tmp_path / "I.npy", 3)


def test_lists_of_images_that_are_none_are_named(tmp_path):
    (tmp_path / "E.json").write_text('{"other": 1}')
    with pytest.raises(ValueError, match=r"E\.json is no list of image files"):
        read_labels("--labels", tmp_path / "E.json")
    (tmp_path / "list.txt").write_text("nowhere.png")
    with pytest.raises(ValueError, match=r"nowhere\.png is not a file"):
        read_images("--images", tmp_path / "list.txt", 1)


def test_a_figure_without_a_value_is_null_with_its_reason():
    groups = {"some": {"one": figure(math.nan, why="no query"), "two": figure(3)}}
    parts = {"settings": {}, "sizes": {}, "notes": [], "found": None, "lists": {}}
    found = json.loads(json_text(groups=groups, **parts))["figures"]["some"]
    assert found == {"one": {"value": None, "why": "no query"}, "two": {"value": 3}}
    assert table_text(groups).splitlines() == ["some", "  one  none: no query", "  two  3"]
