"""Runs put to use on Omniglot's tasks within an alphabet and on MNIST's digits."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as listing
from experiments import mnist_transfer, model, omniglot, omniglot_koch, run, within_alphabet
from experiments.data import Dataset
from experiments.model import Model
from experiments.omniglot import Characters
from experiments.run import UserError

ROOT = pathlib.Path(__file__).parent.parent
MODULES = (within_alphabet, mnist_transfer)


def pixels(params, images):
    return images.reshape(len(images), -1)


def pixel_model(*image_shape):
    return Model((), pixels, image_shape)


@pytest.fixture
def use_model(monkeypatch):
    """Puts a net in the place of a working directory's."""

    def use(learnt):
        monkeypatch.setattr(model, "load_model", lambda workdir: learnt)

    return use


# Working directories and flags that are wrong -------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_a_directory_without_a_run_or_a_checkpoint_is_named(tmp_path, module):
    config = module.Config(tmp_path / "run")
    with pytest.raises(UserError, match=r"run holds no run: there is no config\.json"):
        module.command(config)
    run.start(omniglot_koch.Config(workdir=config.workdir, size="half"))
    with pytest.raises(UserError, match="run holds no checkpoint that was judged"):
        module.command(config)


@pytest.mark.parametrize("module", MODULES)
def test_a_place_for_figures_that_is_none_is_refused_before_any_work(tmp_path, module):
    for place, words in ((tmp_path, "is a folder"), (tmp_path / "a" / "b", "not exist")):
        with pytest.raises(UserError, match=rf"--json: .*{words}"):
            module.command(module.Config(tmp_path / "run", json=place))


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
    chosen = within_alphabet.choose(words)
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
        within_alphabet.choose(("Klingon", "Tibetan", "tibetan"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_episodes": 1}, "num_episodes must be at least 2; got 1"),
        ({"num_ways": 1}, "num_ways must be at least 2; got 1"),
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
    use_model(Model((), None, (2, 1, 1)))  # nothing is embedded
    config = within_alphabet.Config(tmp_path, **{"alphabets": ("test",)} | changes)
    with pytest.raises(UserError, match=words):
        within_alphabet.command(config)


def test_accuracy_is_over_random_alphabets_and_of_each(fake_omniglot, use_model, tmp_path):
    use_model(pixel_model(2, 1, 1))
    out = tmp_path / "within.json"
    config = within_alphabet.Config(
        tmp_path, alphabets=("test",), num_episodes=400, num_ways=2, json=out
    )
    within_alphabet.command(config)
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


def test_a_net_without_numbers_leaves_no_figures(fake_omniglot, use_model, tmp_path):
    use_model(Model((), lambda _, images: jnp.nan * pixels((), images), (2, 1, 1)))
    config = within_alphabet.Config(
        tmp_path, num_episodes=2, num_ways=2, json=tmp_path / "within.json"
    )
    with pytest.raises(UserError, match="within_alphabet_accuracy is nan: the model gives"):
        within_alphabet.command(config)
    assert not config.json.exists()


# Digits ---------------------------------------------------------------------------------


def fake_mnist(name, split):
    """Light digits on dark: 10 d + 5 light pixels at random places, six of each d."""
    assert (name, split) == ("mnist", "test")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 6)
    images = np.zeros((60, 784), np.uint8)
    for image, digit in zip(images, labels, strict=True):
        image[rng.choice(784, 10 * digit + 5, replace=False)] = 255
    return Dataset(images.reshape(60, 28, 28, 1), labels)


def test_digits_become_dark_ink_on_light_paper(monkeypatch):
    monkeypatch.setattr(mnist_transfer, "load_tfds", fake_mnist)
    images, labels = mnist_transfer.load_pictures()
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(np.sum(images == 0, axis=(1, 2, 3)), 10 * labels + 5)
    assert np.median(images) == 255


def test_a_net_and_the_pixels_are_judged_on_the_same_digits(
    monkeypatch, use_model, tmp_path
):
    def amount_of_ink(
        params, images
    ):  # of pictures in [0, 1]; without a value on dark paper
        assert images.shape[1:] == (35, 35, 1)
        light = jnp.mean(images, axis=(1, 2, 3))[:, None]
        return jnp.where(light > 0.5, light, jnp.nan)

    monkeypatch.setattr(mnist_transfer, "load_tfds", fake_mnist)
    use_model(Model((), amount_of_ink, (35, 35, 1)))
    out = tmp_path / "digits.json"
    config = mnist_transfer.Config(tmp_path, num_episodes=300, json=out)
    mnist_transfer.command(config)
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
    use_model(pixel_model(28, 28, 1))
    with pytest.raises(UserError, match="num_episodes must be at least 2; got 1"):
        mnist_transfer.command(mnist_transfer.Config(tmp_path, num_episodes=1))
    digits = fake_mnist("mnist", "test")
    nine = digits.only(digits.labels < 9)
    with pytest.raises(UserError, match="10 classes are needed; there are 9"):
        mnist_transfer.judge(mnist_transfer.Config(tmp_path), pixel_model(28, 28, 1), nine)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"python -m experiments\.data mnist"):
        mnist_transfer.command(mnist_transfer.Config(tmp_path))


# The commands ---------------------------------------------------------------------------


def test_every_command_is_listed_and_names_itself():
    commands = listing.list_commands()
    assert {"lake_runs", "mnist_transfer", "within_alphabet"} <= commands.keys()
    assert not commands.keys() & listing.list_experiments().keys()
    for name, line in commands.items():
        assert line.endswith((".", "?")), name
        text = (ROOT / "experiments" / f"{name}.py").read_text()
        assert f"python -m experiments.{name} " in text
