"""Tests of the system `glyphs` on a few letters: figures, files and error messages."""

import dataclasses
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.datasets import letters as drawn_letters
from experiments.datasets.letters import TEST, TRAINING, Letters
from experiments.engine import loop
from experiments.engine.data import ClassData
from experiments.engine.logs import Evaluation
from experiments.evaluations import letters_one_shot
from experiments.systems import glyphs
from siamese_jax import samplers
from siamese_jax.errors import UserError
from siamese_jax.images import read_image
from siamese_jax.model import load_model, pixel_model
from tests.test_systems import SHORT, VARIANTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def some_letters():
    letters = drawn_letters.draw_letters()
    names = np.unique(letters.letters)[::3]  # a third
    return Letters(*(array[np.isin(letters.letters, names)] for array in letters))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, some_letters):
    config = glyphs.Config(
        workdir=tmp_path_factory.mktemp("runs") / "glyphs",
        **SHORT,
        **VARIANTS["glyphs"][0],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "draw_letters", lambda font_dir: some_letters)
        glyphs.main(config)
    return config


def test_glyphs_end_to_end(finished):
    metrics = json.loads((finished.workdir / "results.json").read_text())["metrics"]
    assert {
        "one_shot_accuracy",
        "one_shot_accuracy_pixels",
        "one_shot_accuracy_armenian",
        "one_shot_accuracy_georgian",
        "pair_accuracy",
        "pair_eer",
        "roc_auc",
    } <= metrics.keys()
    mean = (
        metrics["one_shot_accuracy_armenian"] + metrics["one_shot_accuracy_georgian"]
    ) / 2
    assert metrics["one_shot_accuracy"] == pytest.approx(mean)
    assert 0.2 < metrics["one_shot_accuracy_pixels"] < 0.6
    page = (finished.workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8


def test_the_model_is_calibrated_on_signs(finished):
    metrics = json.loads((finished.workdir / "results.json").read_text())["metrics"]
    calibration = load_model(finished.workdir / "model").calibration
    assert calibration.threshold == pytest.approx(metrics["pair_threshold"])
    assert calibration.accuracy == pytest.approx(metrics["pair_accuracy_signs"])
    assert calibration.pairs == "pairs of distorted signs"
    assert calibration.num_classes > 700
    assert calibration.num_pairs == 200


SMALL_QUEUE = glyphs.Config(
    num_steps=4,
    steps_per_call=2,
    checkpoint_every=2,
    num_letters=4,
    num_faces=2,
    widths=(4, 4),
    dim=4,
    queue_size=20,
)


@pytest.fixture(scope="module")
def data(some_letters):
    train = some_letters.only(TRAINING)
    index = samplers.class_index(train.letters, groups=train.alphabets)
    return ClassData(jnp.asarray(train.images), index)


def test_the_loss_sees_the_queue_but_no_image_its_own_copy_there(data):
    with_queue = glyphs.build(SMALL_QUEUE)
    without = glyphs.build(dataclasses.replace(SMALL_QUEUE, queue_size=0))

    @jax.jit
    def losses(key):
        params, statistics = with_queue.init(key)
        first, second = (with_queue.sample(k, 0, data) for k in jax.random.split(key))
        alone, _ = without.loss(params, without.init(key)[1], first, key)
        empty, (after, _) = with_queue.loss(params, statistics, first, key)
        itself, _ = with_queue.loss(params, after, first, key)
        other, _ = with_queue.loss(
            params, with_queue.loss(params, statistics, second, key)[1][0], first, key
        )
        return alone, empty, itself, other

    alone, empty, itself, other = losses(jax.random.key(1))
    # an image is not compared with its copy in the queue, all others are there twice
    np.testing.assert_allclose([empty, itself - np.log(2)], [alone, alone], rtol=1e-5)
    assert other > alone + 0.1  # with more negatives


def test_a_run_with_a_queue_that_is_resumed_ends_as_an_unbroken_one(tmp_path, data):
    system = glyphs.build(SMALL_QUEUE)

    def run(name, evaluate):
        run_config = dataclasses.replace(SMALL_QUEUE, workdir=tmp_path / name)
        run_config.workdir.mkdir(exist_ok=True)
        evaluation = Evaluation(evaluate, "num_held", patience=9)
        return loop.train(run_config, system, data, evaluation=evaluation).state

    held = []

    def count(state):
        held.append(int(state.statistics["memory"].queue.items.valid.sum()))
        return {"num_held": held[-1]}

    def killed_at_the_end(state):
        if int(state.step) == 4:
            raise KeyboardInterrupt
        return count(state)

    unbroken = run("unbroken", count)
    with pytest.raises(KeyboardInterrupt):
        run("resumed", killed_at_the_end)
    resumed = run("resumed", count)
    for a, b in zip(*map(jax.tree.leaves, (resumed, unbroken)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert held == [16, 20, 16, 20]  # two batches of 8 at step 2, a full queue at step 4
    queue = unbroken.statistics["memory"].queue
    assert int(queue.position) == 32 % 20
    assert len(np.unique(queue.embeddings, axis=0)) == 20
    np.testing.assert_array_equal(
        np.asarray(data.classes.class_of)[queue.items.ids], queue.items.labels
    )


def test_the_printed_commands_name_files_that_exist(finished, some_letters):
    test_letters = some_letters.only(TEST[:1])
    commands = glyphs.write_examples(finished.workdir, test_letters)
    assert [shlex.split(line)[1] for line in commands] == ["verify", "verify", "identify"]
    for line in commands:
        paths = [word for word in shlex.split(line)[3:] if not word.startswith("--")]
        assert len(paths) == 3
        assert all(glyphs.pathlib.Path(path).exists() for path in paths)
    gallery = sorted((finished.workdir / "examples" / "gallery").iterdir())
    assert len(gallery) == 5
    assert all(path.name.startswith("armenian-") for path in gallery)


def test_examples_are_dark_ink_and_the_model_sees_them_as_the_drawings(
    finished, some_letters
):
    test_letters = some_letters.only(TEST[:1])
    names = list(dict.fromkeys(test_letters.letters.tolist()))
    folder = finished.workdir / "examples"
    pictures = [folder / name for name in ("A1.png", "A2.png", "B1.png")]
    assert read_image(pictures[0])[0, 0, 0] == 255  # paper
    pixels = pixel_model(glyphs.PREPARATION)
    found = np.asarray(pixels.embed(pictures))
    for row, name in zip(found, [names[0], names[0], names[1]], strict=True):
        of_letter = test_letters.letters == name
        drawings = np.asarray(pixels.embed_prepared(test_letters.images[of_letter]))
        gaps = np.abs(drawings - row).mean(axis=1)
        assert gaps.min() < 0.02 < np.median(gaps)
    assert not np.array_equal(found[0], found[1])


def test_a_batch_has_one_alphabet_and_every_drawing_is_distorted_by_itself(some_letters):
    train = some_letters.only(TRAINING)
    index = samplers.class_index(train.letters, groups=train.alphabets)
    images = np.zeros_like(train.images)
    images[:, 12:20, 14:17] = 255
    data = ClassData(jnp.asarray(images), index)
    config = glyphs.Config(num_letters=6, num_faces=3)
    sample = jax.jit(glyphs.build(config).sample)
    alphabets = set()
    for seed in range(8):
        batch = sample(jax.random.key(seed), jnp.asarray(0), data)
        assert batch.images.shape == (18, 32, 32, 1)
        assert np.unique(batch.labels, return_counts=True)[1].tolist() == [3] * 6
        names = np.unique(train.letters)[np.asarray(batch.labels)]
        found = {train.alphabets[train.letters == name][0] for name in names}
        assert len(found) == 1
        alphabets |= found
        assert len({image.tobytes() for image in np.asarray(batch.images)}) == 18
        assert 0 <= float(batch.images.min()) < float(batch.images.max()) <= 1
    assert len(alphabets) > 1


def test_test_drawings_are_distorted_once_the_same_for_every_seed(some_letters):
    few = some_letters.images[:24]
    first, second = glyphs.distort_for_test(few), glyphs.distort_for_test(few)
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.uint8
    assert first.shape == few.shape
    assert (first != few).any(axis=(1, 2, 3)).all()


def test_pixels_of_clean_drawings_are_found_among_letters(some_letters):
    signs = drawn_letters.draw_signs()
    clean = letters_one_shot.evaluate(
        pixel_model(glyphs.PREPARATION),
        some_letters,
        some_letters.images,
        signs,
        signs.images,
        num_episodes=50,
        num_ways=5,
        num_pairs=200,
    )
    metrics = clean.metrics
    assert metrics["one_shot_accuracy"] == metrics["one_shot_accuracy_pixels"] > 0.7
    assert metrics["pair_eer"] == metrics["pair_eer_pixels"]
    assert metrics["pair_accuracy"] == metrics["pair_accuracy_pixels"] > 0.7
    assert metrics["roc_auc_low"] < metrics["roc_auc"] < metrics["roc_auc_high"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_ways": 200}, "--num-ways: armenian has .* letters; got 200"),
        ({"num_letters": 900}, "--num-letters: latin has .* letters; got 900"),
        ({"num_faces": 13}, "--num-faces: there are 12; got 13"),
    ],
)
def test_glyphs_refuse_what_the_letters_cannot_give_before_training(changes, words):
    faces = np.tile(np.arange(12), 250)
    alphabets = np.repeat([*TRAINING, *TEST], 600)
    letters = Letters(np.zeros(3000), np.repeat(np.arange(250), 12), alphabets, faces)
    with pytest.raises(UserError, match=words):
        glyphs.check_counts(glyphs.Config(**changes), letters)
