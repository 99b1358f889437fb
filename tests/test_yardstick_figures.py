"""Tests of the figures of papers, by a model, by any function, or by given embeddings."""

import json

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_curve

from experiments.__main__ import main as run_experiment
from experiments.datasets import lfw
from experiments.datasets.sources import ImageSource
from experiments.datasets.yardsticks import YARDSTICKS
from experiments.engine import backbones
from experiments.evaluations import yardsticks
from siamese_jax.errors import UserError
from siamese_jax.evaluation.distance import DISTANCES
from siamese_jax.images import Preparation
from siamese_jax.model import pixel_model, save_model
from tests.test_yardsticks import (
    small,  # noqa: F401, a fixture
    write_birds,
    write_pairs,
    write_pictures,
)

BACKBONE = """
import numpy as np

shapes = []

def embed(images):
    shapes.append((images.shape, str(images.dtype)))
    grey = images.mean(axis=(1, 2, 3))
    return np.stack([np.cos(grey), np.sin(grey)], axis=1)

def wrong_rows(images):
    return np.zeros((len(images) + 1, 3))

def not_finite(images):
    return np.full((len(images), 3), np.nan)

def words(images):
    return np.full((len(images), 3), "a")

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "own_backbones.py").write_text(BACKBONE)
    monkeypatch.syspath_prepend(str(tmp_path / "python"))
    return "own_backbones"


def expected(embeddings, labels, cutoffs):
    """Recall@k, MAP@R and R-precision by loops over queries, by the cosine."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    recalls, maps, precisions = [], [], []
    for query in range(len(labels)):
        others = [i for i in range(len(labels)) if i != query]
        others.sort(key=lambda i: np.sum((unit[query] - unit[i]) ** 2))
        hits = [bool(labels[i] == labels[query]) for i in others]
        relevant = sum(hits)
        recalls.append([any(hits[:k]) for k in cutoffs])
        at = [hits[: i + 1].count(True) / (i + 1) * hits[i] for i in range(relevant)]
        maps.append(sum(at) / relevant)
        precisions.append(sum(hits[:relevant]) / relevant)
    return [*np.mean(recalls, axis=0), np.mean(maps), np.mean(precisions)]


def test_figures_are_those_of_loops_over_queries():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(30, 4)).astype(np.float32)
    labels = np.repeat([5, 2, 9], 10)
    matrix_fn = DISTANCES["cosine"].matrix_fn
    for cutoffs in ((1, 2, 4, 8), YARDSTICKS["stanford_online_products"].cutoffs):
        found = yardsticks.retrieval_metrics(matrix_fn, embeddings, labels, cutoffs)
        names = [*(f"recall_at_{k}" for k in cutoffs), "map_at_r", "r_precision"]
        wanted = expected(embeddings, labels, cutoffs)
        np.testing.assert_allclose([found[name] for name in names], wanted, rtol=1e-6)
        assert (found["num_queries"], found["num_without_relevant"]) == (30, 0)


@pytest.mark.slow
def test_a_function_of_images_and_its_embeddings_give_the_same_figures(
    small,  # noqa: F811
    module,
    tmp_path,
    capsys,
):
    write_birds(tmp_path)
    out, figures = tmp_path / "out", {}
    data = ["--data-dir", str(tmp_path)]
    choices = {
        "backbone": [f"{module}:embed", "--image-size", "16", "12", "--batch-size", "3"],
        "embeddings": [str(out / "embeddings.npy")],
    }
    for method, words in choices.items():
        file = tmp_path / f"{method}.json"
        command = ["yardsticks", *data, "--method", method, f"--{method}", *words]
        new = ["--out", str(out)] if method == "backbone" else []
        run_experiment([*command, "--json", str(file), *new])
        found = json.loads(file.read_text())
        figures[method] = found["metrics"]
        assert (found["part"], found["distance"]) == ("test", "cosine")
    with pytest.raises(SystemExit):  # what is there may have taken days
        run_experiment([*command, "--out", str(out)])
    assert f"--out: the folder {out} exists and is not empty" in capsys.readouterr().err
    assert figures["backbone"] == figures["embeddings"]
    import own_backbones

    assert own_backbones.shapes == [((3, 16, 12, 3), "uint8"), ((1, 16, 12, 3), "uint8")]
    rows = (out / "rows.csv").read_text().splitlines()
    assert rows[:2] == ["name,label", "CUB_200_2011/images/004.Bird/Bird_0.png,3"]
    labels = np.load(out / "labels.npy")
    assert labels.tolist() == [3, 2, 2, 3]
    greys = np.array([0, 30, 40, 60.0])
    embeddings = np.stack([np.cos(greys), np.sin(greys)], axis=1)
    np.testing.assert_allclose(np.load(out / "embeddings.npy"), embeddings, atol=1e-5)
    wanted = expected(embeddings, labels, (1, 2, 4, 8))
    np.testing.assert_allclose(list(figures["backbone"].values())[2:], wanted, rtol=1e-6)
    np.save(out / "embeddings.npy", embeddings[:3])
    with pytest.raises(SystemExit):
        run_experiment([*command, "--out", str(tmp_path / "other")])
    assert "must have 4 rows; got shape (3, 2)" in capsys.readouterr().err


def ten_folds():
    """The text of a list of ten folds of 3 + 3 pairs, and the names of its images."""
    lines, names = ["10\t3"], []
    for fold in range(10):
        a, b = f"A{fold}", f"B{fold}"
        lines += [f"{a}\t1\t2", f"{b}\t1\t2", f"{b}\t2\t1"]
        lines += [f"{a}\t1\t{b}\t1", f"{a}\t2\t{b}\t1", f"{b}\t2\t{a}\t2"]
        names += [f"{person}/{person}_000{i}.jpg" for person in (a, b) for i in (1, 2)]
    return "\n".join(lines) + "\n", names


def test_figures_of_ten_folds_are_those_of_loops_over_folds(tmp_path, capsys):
    text, names = ten_folds()
    pairs = lfw.read_pairs(write_pairs(tmp_path, text))
    assert np.unique(pairs.names).tolist() == sorted(names)
    rng = np.random.default_rng(0)
    person = np.repeat(rng.normal(size=(20, 4)), 2, axis=0)
    embeddings = (person + rng.normal(size=(40, 4))).astype(np.float32)
    pairs_fn = jax.jit(DISTANCES["euclidean"].row_fn)
    order = np.argsort(names)
    found = yardsticks.pair_metrics(
        pairs_fn, embeddings[order], np.array(names)[order], pairs
    )
    assert "several folds" not in capsys.readouterr().out
    rows = np.array([[names.index(name) for name in side] for side in pairs.names])
    distances = np.linalg.norm(embeddings[rows[0]] - embeddings[rows[1]], axis=1)
    same, accuracies = pairs.same, []
    for held_out in np.arange(60).reshape(10, 6):
        others = np.setdiff1d(np.arange(60), held_out)
        cuts = np.sort(distances[others])
        cuts = np.append((cuts[1:] + cuts[:-1]) / 2, np.inf)
        right = [((distances[others] <= cut) == same[others]).mean() for cut in cuts]
        best = np.flatnonzero(np.isclose(right, max(right)))
        accuracies.append(
            [((distances[held_out] <= cuts[i]) == same[held_out]).mean() for i in best]
        )
    low, high = (np.mean([end(rates) for rates in accuracies]) for end in (min, max))
    assert low - 1e-6 <= found["accuracy"] <= high + 1e-6
    assert 0 < found["accuracy_standard_error"] < 0.2
    assert found["num_pairs"] == 60
    false_rates, true_rates, _ = roc_curve(same, -distances, drop_intermediate=False)
    reached = true_rates[false_rates <= 0.1 + 1e-9].max()
    assert found["tar_at_far_0.1"] == pytest.approx(reached, rel=1e-5)
    for rate in (0.001, 0.01):  # of which 30 different pairs tell nothing
        assert found[f"tar_at_far_{rate}"] is None


@pytest.mark.slow
def test_a_model_is_judged_on_faces(tmp_path):
    text, names = ten_folds()
    write_pairs(tmp_path, text)
    for start in (0, 20):
        write_pictures(tmp_path / "lfw", names[start : start + 20])
    save_model(tmp_path / "model", pixel_model(Preparation((2, 2))))
    command = ["yardsticks", "--dataset", "lfw", "--data-dir", str(tmp_path)]
    command += ["--model", str(tmp_path / "model"), "--json", str(tmp_path / "a.json")]
    run_experiment([*command, "--out", str(tmp_path / "out")])
    embeddings = np.load(tmp_path / "out" / "embeddings.npy")
    greys = {name: 10 * (number % 20) for number, name in enumerate(names)}
    wanted = np.array([[greys[name] / 255] * 4 for name in sorted(names)])
    np.testing.assert_allclose(embeddings, wanted, atol=1e-6)
    facts = json.loads((tmp_path / "a.json").read_text())
    assert not {"part", "distance"} & facts.keys()
    found = facts["metrics"]
    assert found["num_pairs"] == 60
    assert found["tar_at_far_0.01"] is None  # 30 different pairs do not tell it
    assert 0 <= found["accuracy"] <= 1
    write_pairs(tmp_path, "\n".join(["1", "A0\t1\t2", "A0\t1\tB0\t1"]))
    run_experiment(command)
    found = json.loads((tmp_path / "a.json").read_text())["metrics"]
    assert "accuracy" not in found  # there are no folds
    assert found["num_pairs"] == 2


def test_a_person_in_several_folds_is_said(capsys):
    names = np.array([["A/1", "A/2", "A/1", "A/3"], ["A/2", "B/1", "A/3", "B/1"]])
    pairs = yardsticks.FacePairs(names, np.array([True, False] * 2), np.array([0, 0, 1, 1]))
    sorted_names = np.unique(names)
    embeddings = np.eye(4, dtype=np.float32)
    pairs_fn = jax.jit(DISTANCES["euclidean"].row_fn)
    yardsticks.pair_metrics(pairs_fn, embeddings, sorted_names, pairs)
    assert "persons are in several folds" in capsys.readouterr().out


def test_flags_that_are_missing_or_wrong_are_one_line(module, tmp_path, capsys):
    for words, message in (
        (["--method", "model"], "--model is needed with --method model"),
        (["--method", "backbone"], "--backbone is needed with --method backbone"),
        (["--method", "none"], "--out is needed with --method none"),
        (["--method", "none", "--model", "x"], "--model is used only with --method model"),
        (
            ["--method", "none", "--batch-size", "3"],
            "--batch-size is used only with --method model",
        ),
        (
            ["--method", "none", "--json", "x"],
            "--json is used only with --method model",
        ),
        (["--pairs", "x"], "--pairs is used only with --dataset lfw"),
        (
            ["--dataset", "lfw", "--part", "train"],
            "--part is used only with --dataset calt",
        ),
        (
            ["--method", "backbone", "--backbone", f"{module}:number"],
            "must be a function of images; got int",
        ),
        (
            ["--method", "backbone", "--backbone", f"{module}:nothing"],
            "own_backbones:nothing cannot be imported",
        ),
        (["--method", "backbone", "--backbone", "own"], "must be package.module:name; got"),
    ):
        with pytest.raises(SystemExit):
            run_experiment(["yardsticks", *words])
        assert message in capsys.readouterr().err


def test_a_backbone_that_returns_no_embeddings_is_named(module):
    source = ImageSource(
        lambda number: np.zeros((2, 2, 3), np.uint8), np.arange(5), (2, 2, 3)
    )
    for name, words in (
        ("wrong_rows", r"must return embeddings \[4, dim\] for images \[4, 2, 2, 3\]; got"),
        ("not_finite", "embeddings of the backbone must be finite; 4 of 4 rows have NaN"),
        ("words", "embeddings of the backbone must be numbers; got <U1"),
    ):
        embed = backbones.import_backbone(f"{module}:{name}")
        with pytest.raises(UserError, match=words):
            backbones.embed_source(embed, source, batch_size=4)


def test_files_of_embeddings_hold_no_python_objects(tmp_path):
    file = tmp_path / "e.npy"
    np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(
        UserError, match=r"--embeddings: .*e.npy is no .npy file .*Python obj"
    ):
        backbones.read_embeddings(file)
    np.save(file, np.zeros(3))
    with pytest.raises(
        UserError, match=r"must have shape \[rows, dimensions\]; got \(3,\)"
    ):
        backbones.read_embeddings(file)
    np.savez(tmp_path / "e.npz", np.zeros(3))
    with pytest.raises(UserError, match=r"is an archive of arrays; one .npy is wanted"):
        backbones.read_embeddings(tmp_path / "e.npz")
    np.save(file, np.full((2, 2), 1e300))
    with pytest.raises(UserError, match="must be finite; 2 of 2 rows have NaN or infinity"):
        backbones.read_embeddings(file)
