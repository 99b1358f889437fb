"""Tests of the evaluations: pairs, few-shot tasks, and commands that read a saved model."""

import doctest
import importlib
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as listing
from experiments import cli
from experiments.datasets import omniglot
from experiments.datasets.omniglot import Characters
from experiments.evaluations import (
    ensembles,
    few_shot,
    mnist_transfer,
    pair_metrics,
    within_alphabet,
)
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, Preparation
from siamese_jax.model import Model, pixel_model, save_model
from siamese_jax.samplers import Pairs
from tests.drawings import drawings

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
MODULES = (within_alphabet, mnist_transfer)


def pixels(params, images):
    return images.reshape(len(images), -1)


def flat(params, images):
    rows = images.reshape(len(images), -1) * jnp.atleast_2d(params)
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def nothing_is_embedded(params, images):
    raise AssertionError


@pytest.fixture
def use_model(monkeypatch):
    """Replaces the model of any folder."""

    def use(model):
        for module in MODULES:
            monkeypatch.setattr(module, "load_model", lambda folder: model)

    return use


# Pairs ----------------------------------------------------------------------------------


def line_model(points):
    """Images of one pixel; their embedding is their value."""
    images = np.array(points, np.uint8)[:, None, None, None]
    return images, pixel_model(Preparation((1, 1)))


def test_pair_metrics_by_hand():
    images, model = line_model([0, 51, 153, 255])
    examples = jnp.array([[0, 0, 0, 2], [1, 2, 3, 3]])  # distances .2 .6 1 .4
    pairs = Pairs(examples, jnp.array([True, True, False, False]))
    found = pair_metrics.pair_distances(model, model.embed(images), pairs)
    np.testing.assert_allclose(found.distances, [0.2, 0.6, 1.0, 0.4], rtol=1e-6)
    assert pair_metrics.pair_metrics(found, 0.5) == {
        "pair_accuracy": 0.5,
        "pair_precision": 0.5,
        "pair_recall": 0.5,
        "pair_eer": 0.5,
        "roc_auc": 0.75,  # three of four same pairs are nearer than a different one
    }
    train = pair_metrics.PairDistances(jnp.array([0.1, 0.2, 0.4]), found.same[:3])
    metrics = pair_metrics.chosen_threshold_metrics(train, found)
    assert metrics == {
        "chosen_threshold": pytest.approx(0.3),
        "pair_accuracy_at_chosen_threshold": 0.75,
        "pair_accuracy_at_chosen_threshold_training_pairs": 1.0,
    }
    equal = train._replace(distances=jnp.ones(3))
    metrics = pair_metrics.chosen_threshold_metrics(equal, found)
    assert np.isnan(list(metrics.values())).all()
    rates = pair_metrics.pair_metrics(found, float("nan"))
    undefined = {name for name, figure in rates.items() if np.isnan(figure)}
    assert undefined == {"pair_accuracy", "pair_precision", "pair_recall"}


def test_a_model_is_calibrated_or_says_why_not(capsys):
    images, model = line_model([0, 51, 153, 255])
    labels, x = np.array([0, 0, 1, 2]), model.embed(images)
    pairs = pair_metrics.PairDistances(
        jnp.array([0.2, 0.6, 1.0]), jnp.array([True, False, False])
    )
    calibrated = pair_metrics.calibrate(model, pairs, "toy pairs", x, labels)
    calibration = calibrated.calibration
    assert (calibration.pairs, calibration.num_pairs) == ("toy pairs", 3)
    assert (calibration.num_classes, calibration.num_different) == (3, 5)
    assert pair_metrics.threshold_of(calibrated) == calibration.threshold
    assert capsys.readouterr().out == ""
    for distances, same, words in (
        ([0.2, 0.6, 1.0], [True, True, True], "3 same, 0 different"),
        ([0.5, 0.5, 0.5], [True, True, False], "all 3 distances are 0.5"),
        ([0.5, np.inf, 1.0], [True, True, False], "1 distances not finite"),
    ):
        pairs = pair_metrics.PairDistances(jnp.array(distances), jnp.array(same))
        without = pair_metrics.calibrate(calibrated, pairs, "toy pairs", x, labels)
        assert without.calibration is None
        assert words in without.details["no_calibration"]
        assert words in capsys.readouterr().out
        assert np.isnan(pair_metrics.threshold_of(without))


def test_different_pairs_are_each_there_once_and_spread_over_the_classes():
    images, model = line_model(np.arange(200))
    labels = np.repeat(["a", "b", "c"], [196, 2, 2])
    found = pair_metrics.different_distances(model, model.embed(images), labels)
    assert len(found) == 196 * 2 + 196 * 2 + 2 * 2
    many = np.arange(3_000) // 3  # 1,000 classes
    x = jnp.arange(3_000.0)[:, None]
    found = pair_metrics.different_distances(model, x, many)
    assert len(found) == 450 * 449 / 2  # one image of each of 450 classes


def test_how_often_two_classes_are_called_the_same():
    labels = np.array([0, 0, 1, 1, 2])
    pairs = Pairs(
        jnp.array([[0, 0, 1, 4, 2], [1, 2, 3, 0, 4]]),
        jnp.array([True, False, False, False, False]),
    )
    called = np.array([True, True, False, True, False])
    shares = pair_metrics.called_the_same(labels, pairs, called)
    np.testing.assert_array_equal(shares, [[0, 0.5, 1], [0.5, 0, 0], [1, 0, 0]])


def test_all_pairs_are_every_two_examples_or_many_random_ones():
    labels = np.array([4, 4, 7])
    pairs = few_shot.all_pairs(labels)
    assert pairs.examples.T.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert pairs.same.tolist() == [True, False, False]
    labels = np.arange(1_001) % 9
    pairs = few_shot.all_pairs(labels)
    assert pairs.examples.shape == (2, 100_000)
    left, right = labels[np.asarray(pairs.examples)]
    np.testing.assert_array_equal(left == right, pairs.same)
    assert pairs.same.sum() == 50_000
    again = few_shot.all_pairs(labels)
    np.testing.assert_array_equal(pairs.examples, again.examples)


def test_pairs_of_drawings_are_balanced_and_within_an_alphabet():
    characters = drawings("validation")
    pairs = few_shot.draw_pairs(characters)
    left, right = np.asarray(pairs.examples)
    assert len(left) == 4_000
    np.testing.assert_array_equal(
        characters.labels[left] == characters.labels[right], pairs.same
    )
    assert pairs.same.sum() == 2_000
    assert (left != right).all()
    np.testing.assert_array_equal(characters.alphabets[left], characters.alphabets[right])
    model = Model(1.0, flat, Preparation((15, 15)))
    found = few_shot.drawing_distances(model, characters, pairs)
    assert found.distances.shape == (4_000,)
    # stripes of one character are nearer, whatever their phase
    assert np.mean(found.distances[pairs.same]) < np.mean(found.distances[~pairs.same])


def test_classes_of_images_are_verified_and_identified():
    images, model = line_model([0, 10, 100, 110, 200, 210])
    dataset = LabelledImages(images, np.array(["a", "a", "b", "b", "c", "c"]))
    calibration = few_shot.calibrate_model(model, dataset, "toy pairs").calibration
    assert 10 < 255 * calibration.threshold < 90
    assert (calibration.num_classes, calibration.num_different) == (3, 12)
    metrics, pairs = few_shot.unseen_class_metrics(
        model, dataset, 11 / 255, suffix="_pixels"
    )
    assert metrics == {
        "pair_accuracy_pixels": pytest.approx(1),
        "pair_eer_pixels": 0,
        "roc_auc_pixels": 1,
        "one_shot_accuracy_pixels": 1,
    }
    assert len(pairs.same) == 15
    # 2 of 12 different pairs are called the same too; both kinds weigh one half
    swapped = LabelledImages(images, np.array(["a", "b", "a", "b", "c", "c"]))
    metrics, _ = few_shot.unseen_class_metrics(model, swapped, 11 / 255)
    assert metrics["pair_accuracy"] == pytest.approx((1 / 3 + 10 / 12) / 2)


# Few-shot tasks -------------------------------------------------------------------------


def test_more_shots_and_fewer_ways_are_easier_and_named(monkeypatch):
    monkeypatch.setattr(few_shot, "FEW_SHOT", ((20, 1), (5, 1), (20, 4)))
    characters = drawings("validation")
    model = Model(1.0, flat, Preparation((15, 15)))
    characters = characters.only(slice(0, 315))
    metrics = few_shot.few_shot_metrics(model, characters, 2_000, suffix="_x")
    one = metrics["within_alphabet_accuracy_x"]
    assert metrics["within_alphabet_5_way_1_shot_accuracy_x"] > one
    assert metrics["within_alphabet_20_way_4_shot_accuracy_x"] > one
    assert metrics["random_20_way_accuracy_x"] >= one - 0.1
    assert len(metrics) == 2 * 2 * 3


def test_one_alphabet_has_tasks_over_all_characters_alone(monkeypatch):
    monkeypatch.setattr(few_shot, "FEW_SHOT", ((20, 1),))
    characters = drawings("validation").only(slice(0, 105))
    model = Model(1.0, flat, Preparation((15, 15)))
    metrics = few_shot.few_shot_metrics(model, characters, 50)
    assert list(metrics) == ["random_20_way_accuracy", "random_20_way_accuracy_interval"]


# Folders and flags that are wrong -------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_a_folder_that_is_no_model_is_named(tmp_path, module):
    (tmp_path / "run").mkdir()
    for folder in (tmp_path / "nowhere", tmp_path / "run"):
        with pytest.raises(UserError, match=f"{folder.name} is no model folder"):
            module.main(module.Config(folder))


@pytest.mark.parametrize("module", MODULES)
def test_a_place_for_figures_that_is_none_is_refused_before_any_work(tmp_path, module):
    for place, words in ((tmp_path, "is a folder"), (tmp_path / "a" / "b", "not exist")):
        with pytest.raises(UserError, match=rf"--json: .*{words}"):
            module.main(module.Config(tmp_path / "model", json=place))


# Tasks within an alphabet ---------------------------------------------------------------


def characters(**alphabets):
    """Drawings of two pixels; an alphabet is some characters, these are some drawings."""
    rows = [
        (np.array(drawing, np.uint8).reshape(2, 1, 1), f"{name} {number}", name)
        for name, drawn in alphabets.items()
        for number, drawings in enumerate(drawn)
        for drawing in drawings
    ]
    return Characters(*map(np.array, zip(*rows, strict=True)))


# two drawings each, of two characters: near, or at the corners of a square, where every
# drawing is nearer to both of the other character than to the other of its own; of a near
# and a crossed character, each is told from the other
NEAR = (((200, 200), (200, 209)), ((250, 250), (250, 241)))
CROSSED = (((0, 0), (90, 90)), ((90, 0), (0, 90)))
PARTS = {
    "all": characters(Angelic=NEAR, Kannada=CROSSED, Tibetan=NEAR),
    "background": characters(Latin=NEAR, Tagalog=NEAR[:1]),
}


@pytest.fixture
def fake_omniglot(monkeypatch):
    asked = []

    def load(part):
        asked.append(part)
        return PARTS[part]

    monkeypatch.setattr(omniglot, "load", load)
    return asked


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("all",), ["Angelic", "Kannada", "Tibetan"]),
        (("test",), ["Kannada", "Tibetan"]),
        (("validation",), ["Angelic"]),
        (("background",), ["Latin", "Tagalog"]),
        (("Tibetan", "Latin", "Tibetan"), ["Latin", "Tibetan"]),
        (("validation", "Kannada"), ["Angelic", "Kannada"]),
    ],
)
def test_alphabets_are_chosen_by_part_and_by_name(fake_omniglot, words, wanted):
    chosen = within_alphabet.choose_alphabets(words)
    assert np.unique(chosen.alphabets).tolist() == wanted
    assert len(chosen.images) == len(chosen.labels) == len(chosen.alphabets)
    needs_background = not {"Latin", "Tagalog"}.isdisjoint(wanted)
    assert ("background" in fake_omniglot) == needs_background
    for name, label in zip(chosen.alphabets, chosen.labels, strict=True):
        assert label.startswith(name)


def test_an_unknown_alphabet_is_named_and_all_are_listed(fake_omniglot):
    with pytest.raises(
        UserError,
        match=r"there is no 'Klingon', 'tibetan'; there are all, background, test, "
        r"validation, or one or more of Angelic, Kannada, Latin, Tagalog, Tibetan$",
    ):
        within_alphabet.choose_alphabets(("Klingon", "Tibetan", "tibetan"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_episodes": 1}, "--num-episodes must be at least 2; got 1"),
        ({"num_ways": 1}, "--num-ways must be at least 2; got 1"),
        (
            {"alphabets": ("background",), "num_ways": 2},
            "2-way tasks need 2 characters in each alphabet; Tagalog has 1: leave out",
        ),
        (
            {"num_ways": 20},
            "20-way .*; Kannada has 2, Tibetan has 2: .* smaller --num-ways",
        ),
    ],
)
def test_counts_that_cannot_be_met_are_refused(
    fake_omniglot, use_model, tmp_path, changes, words
):
    use_model(Model((), nothing_is_embedded, Preparation((2, 1))))
    config = within_alphabet.Config(tmp_path, **{"alphabets": ("test",)} | changes)
    with pytest.raises(UserError, match=words):
        within_alphabet.main(config)


def test_accuracy_is_over_random_alphabets_and_of_each(fake_omniglot, use_model, tmp_path):
    use_model(pixel_model(Preparation((2, 1))))
    out = tmp_path / "within.json"
    config = within_alphabet.Config(
        tmp_path, alphabets=("test",), num_episodes=400, num_ways=2, json=out
    )
    within_alphabet.main(config)
    figures = json.loads(out.read_text())
    assert figures["alphabets"] == [
        {"alphabet": "Kannada", "accuracy": 0, "accuracy_interval": 0, "num_episodes": 200},
        {"alphabet": "Tibetan", "accuracy": 1, "accuracy_interval": 0, "num_episodes": 200},
    ]
    accuracy, interval = figures["metrics"].values()
    assert list(figures["metrics"]) == [
        "within_alphabet_accuracy",
        "within_alphabet_accuracy_interval",
    ]
    assert accuracy == pytest.approx(0.5, abs=0.1)  # four standard errors
    # every task is all right or all wrong
    wanted = 1.96 * (accuracy * (1 - accuracy) / 399) ** 0.5
    assert interval == pytest.approx(wanted, rel=1e-4)


def test_a_model_without_numbers_leaves_no_figures(fake_omniglot, use_model, tmp_path):
    size = Preparation((2, 1))
    use_model(Model((), lambda _, images: jnp.nan * pixels((), images), size))
    config = within_alphabet.Config(
        tmp_path, num_episodes=2, num_ways=2, json=tmp_path / "within.json"
    )
    with pytest.raises(UserError, match="within_alphabet_accuracy is nan: the model gives"):
        within_alphabet.main(config)
    assert not config.json.exists()


def test_a_saved_model_is_evaluated_as_the_model_itself(fake_omniglot, tmp_path):
    model = pixel_model(Preparation((2, 1), invert=True))
    save_model(tmp_path / "model", model)
    config = within_alphabet.Config(
        tmp_path / "model",
        alphabets=("all",),
        num_episodes=100,
        num_ways=2,
        json=tmp_path / "within.json",
    )
    within_alphabet.main(config)
    wanted = within_alphabet.evaluate(config, model, PARTS["all"])
    assert json.loads(config.json.read_text()) == wanted
    assert 0 < wanted["metrics"]["within_alphabet_accuracy"] < 1


# Digits ---------------------------------------------------------------------------------


def fake_mnist(name, split):
    """Light digits on dark: 10 d + 5 light pixels at random places, six of each d."""
    assert (name, split) == ("mnist", "test")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 6)
    images = np.zeros((60, 784), np.uint8)
    for image, digit in zip(images, labels, strict=True):
        image[rng.choice(784, 10 * digit + 5, replace=False)] = 255
    return LabelledImages(images.reshape(60, 28, 28, 1), labels)


def test_digits_become_dark_ink_on_light_paper(monkeypatch):
    monkeypatch.setattr(mnist_transfer, "load_tfds", fake_mnist)
    images, labels = mnist_transfer.load_pictures()
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(np.sum(images == 0, axis=(1, 2, 3)), 10 * labels + 5)
    assert np.median(images) == 255


def test_a_model_and_the_pixels_are_evaluated_on_the_same_digits(
    monkeypatch, use_model, tmp_path
):
    def amount_of_ink(params, images):  # NaN if the paper is dark
        assert images.shape[1:] == (35, 35, 1)
        light = jnp.mean(images, axis=(1, 2, 3))[:, None]
        return jnp.where(light > 0.5, light, jnp.nan)

    monkeypatch.setattr(mnist_transfer, "load_tfds", fake_mnist)
    use_model(Model((), amount_of_ink, Preparation((35, 35))))
    out = tmp_path / "digits.json"
    config = mnist_transfer.Config(tmp_path, num_episodes=300, json=out)
    mnist_transfer.main(config)
    figures = json.loads(out.read_text())
    assert list(figures) == ["metrics"]
    metrics = figures["metrics"]
    assert metrics.pop("one_shot_accuracy") == 1
    assert metrics.pop("one_shot_accuracy_interval") == 0
    # the nearest digit by pixels is the one with the least ink
    assert 0 < metrics.pop("one_shot_accuracy_pixels") < 0.4
    assert 0 < metrics.pop("one_shot_accuracy_pixels_interval") < 0.06
    assert not metrics


def test_missing_digits_and_counts_that_make_no_sense_are_named(
    monkeypatch, use_model, tmp_path
):
    model = pixel_model(Preparation((28, 28)))
    use_model(model)
    with pytest.raises(UserError, match="--num-episodes must be at least 2; got 1"):
        mnist_transfer.main(mnist_transfer.Config(tmp_path, num_episodes=1))
    digits = fake_mnist("mnist", "test")
    nine = digits.only(digits.labels < 9)
    with pytest.raises(UserError, match="10 classes are needed; there are 9"):
        mnist_transfer.evaluate(mnist_transfer.Config(tmp_path), model, nine)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="python -m experiments tfds mnist"):
        mnist_transfer.main(mnist_transfer.Config(tmp_path))


# The commands ---------------------------------------------------------------------------


def test_every_command_is_listed_and_names_itself():
    commands = listing.list_room("evaluations")
    names = {
        *("ensembles", "evaluate", "model_so_far", "lake_trials", "mnist_transfer"),
        *("stranger_rates", "whitened", "within_alphabet", "yardsticks"),
    }
    assert names <= commands.keys()
    assert not commands.keys() & listing.list_room("systems").keys()
    assert all(line.endswith((".", "?")) for line in commands.values()), commands
    for name in names:
        text = (ROOT / "experiments" / "evaluations" / f"{name}.py").read_text()
        assert f"python -m experiments {name} " in text
        assert "Expect:" in text


@pytest.mark.parametrize("name", ["ensembles", "lake_trials", "within_alphabet"])
def test_help_shows_the_header_line_by_line(name, capsys):
    module = importlib.import_module(f"experiments.evaluations.{name}")
    with pytest.raises(SystemExit) as caught:
        cli.command_line(module.main, module.Config, ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(module.__doc__)
    assert f"usage: python -m experiments {name} " in shown
    assert "--json" in shown


def test_figures_are_shown_and_files_written_whole(tmp_path, capsys):
    path = tmp_path / "figures.json"
    figures = {"metrics": {"accuracy": 0.25, "num_trials": 3}}
    cli.show_figures(figures, path)
    assert cli.read_json(path) == figures
    assert "  accuracy    0.2500\n  num_trials  3\n" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]
    cli.print_table({"accuracy": None})
    assert "  accuracy  undefined\n" in capsys.readouterr().out
    path.write_text('{"metrics": ')
    with pytest.raises(UserError, match=r"figures\.json is damaged"):
        cli.read_json(path)


@pytest.mark.parametrize("module", [cli, ensembles])
def test_examples_in_docstrings_are_true(module):
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted >= 1
