"""Tests of `omniglot_supcon` on small drawings: batches, weights, presets and files."""

import dataclasses
import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.datasets import lake_archive, omniglot
from experiments.engine import checkpoints, logs, optimizers, precision
from experiments.engine.config import check_conditions
from experiments.engine.data import ClassData
from experiments.engine.system import initial_state
from experiments.evaluations import few_shot, whitened
from experiments.systems import omniglot_supcon
from siamese_jax import whitening
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation, prepare
from siamese_jax.model import load_model, pixel_model
from tests.drawings import drawings
from tests.test_lake_archive import FILES, write_zip
from tests.test_systems import SHORT, VARIANTS

pytestmark = pytest.mark.slow

SMALL = SHORT | VARIANTS["omniglot_supcon"][0]
STILL = dict.fromkeys(  # no distortion
    ("max_rotation", "max_shear", "max_scale", "max_shift", "elastic", "thickness"), 0.0
)


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot, "load", drawings)
    monkeypatch.setattr(omniglot, "load_split", drawings)
    monkeypatch.setattr(few_shot, "FEW_SHOT", ((20, 1),))
    return omniglot_supcon.Config(workdir=tmp_path / "supcon", **SMALL)


def metrics_of(workdir):
    return json.loads((workdir / "results.json").read_text())["metrics"]


def final_state(config):
    system = omniglot_supcon.build(dataclasses.replace(config, compute_dtype="bfloat16"))
    like = jax.eval_shape(lambda: initial_state(system, jax.random.key(0)))
    return checkpoints.load_state(config.workdir, like)


# End to end -----------------------------------------------------------------------------


def test_a_run_cut_off_and_resumed_ends_as_an_unbroken_one(small, tmp_path, monkeypatch):
    omniglot_supcon.main(small)
    metrics = metrics_of(small.workdir)
    assert {
        "within_alphabet_accuracy",
        "within_alphabet_accuracy_interval",
        "within_alphabet_accuracy_test",
        "random_20_way_accuracy_test",
    } <= metrics.keys()
    assert "lake_accuracy" not in metrics
    model = load_model(small.workdir / "model")
    assert "validation" in model.calibration.pairs
    assert model.details["metrics"] == metrics

    broken = dataclasses.replace(small, workdir=tmp_path / "broken", compute_dtype="auto")
    monkeypatch.setattr(precision, "measured_seconds", lambda: (1.0, 2.0))
    write = logs.Log.write

    def cut_off(log, step, *figures):
        if step == 2:
            raise KeyboardInterrupt
        write(log, step, *figures)

    monkeypatch.setattr(logs.Log, "write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        omniglot_supcon.main(broken)
    monkeypatch.setattr(logs.Log, "write", write)
    # it goes on where bfloat16 is the slower type
    monkeypatch.setattr(precision, "measured_seconds", lambda: (2.0, 1.0))
    monkeypatch.setattr(omniglot_supcon, "evaluate", lambda *_: {"evaluated": 1.0})
    assert len(logs.read_log(broken.workdir)["loss"]) == 2
    omniglot_supcon.main(broken)
    assert metrics_of(broken.workdir) == {"evaluated": 1.0}
    jax.tree.map(np.testing.assert_array_equal, final_state(broken), final_state(small))
    results = json.loads((broken.workdir / "results.json").read_text())
    assert results["compute_dtype"] == "bfloat16"
    assert "--compute-dtype bfloat16" in results["command"]


def test_the_model_of_a_run_has_the_averaged_weights(small):
    system = omniglot_supcon.build(small)
    state = initial_state(system, jax.random.key(0))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, state.params)
    moved = omniglot_supcon.make_optimizer(small).init(doubled)
    model = system.model(state._replace(optimizer_state=moved))
    jax.tree.map(np.testing.assert_array_equal, model.params["params"], doubled["encoder"])
    paper = np.full((2, 16, 16, 1), 255, np.uint8)
    paper[0, 2:5, 2:9:2] = paper[1, 7:10, 5:12:2] = 0  # the same, elsewhere
    embeddings = model.embed(paper)
    np.testing.assert_allclose(jnp.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=5e-3)  # bfloat16


def trained_model(config):
    """A model, the prepared drawings that it could have been trained on, and labels."""
    characters = drawings("train")
    system = omniglot_supcon.build(config)
    model = system.model(initial_state(system, jax.random.key(0)))
    images = prepare(characters.images, omniglot_supcon.preparation(config))
    return model, images, characters.labels


def test_embeddings_are_whitened_in_the_last_layer(small):
    config = dataclasses.replace(small, compute_dtype="float32")
    model, images, labels = trained_model(config)
    white = omniglot_supcon.whitened(model, images, labels, shrinkage=0.5)
    before, after = (np.asarray(m.embed_prepared(images)) for m in (model, white))
    factor = whitening.within_class_factor(before, labels, shrinkage=0.5)
    wanted = before @ factor.T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(after, wanted, atol=1e-4)
    assert np.abs(after - before).max() > 0.05
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), model.params, white.params)
    assert changed["params"].pop("Dense_0")["kernel"]
    assert not any(jax.tree.leaves(changed))


@pytest.mark.parametrize("whiten", [True, False])
def test_the_model_that_is_kept_is_whitened_where_asked(small, monkeypatch, whiten):
    def marked(model, images, labels, *, shrinkage):
        kept.append(shrinkage)
        return dataclasses.replace(model, params=jax.tree.map(jnp.ones_like, model.params))

    kept = []
    monkeypatch.setattr(omniglot_supcon, "evaluate", lambda *_: {"evaluated": 1.0})
    monkeypatch.setattr(omniglot_supcon, "whitened", marked)
    omniglot_supcon.main(dataclasses.replace(small, whiten=whiten))
    assert kept == [small.shrinkage] * whiten
    kernel = load_model(small.workdir / "model").params["params/Dense_0/kernel"]
    assert bool((kernel == 1).all()) == whiten


def test_a_network_that_has_collapsed_is_left_as_it_is(small, capsys):
    config = dataclasses.replace(small, compute_dtype="float32")
    model, images, labels = trained_model(config)
    for value in (0.0, np.nan):
        params = {**model.params["params"]}
        last = params["Dense_0"]
        params["Dense_0"] = jax.tree.map(partial(jnp.multiply, value), last)
        broken = dataclasses.replace(model, params={**model.params, "params": params})
        white = omniglot_supcon.whitened(broken, images, labels, shrinkage=0.3)
        assert white is broken
        assert "the embedding is not whitened: " in capsys.readouterr().out


def test_shrinkages_are_compared_on_the_tasks_of_the_run(small, tmp_path):
    small = dataclasses.replace(small, compute_dtype="float32", shrinkage=0.5)
    omniglot_supcon.main(small)
    config = whitened.Config(
        small.workdir, (0.5, 100.0), small.num_episodes, tmp_path / "shrinkages.json"
    )
    whitened.main(config)
    metrics = json.loads(config.json.read_text())["metrics"]
    wanted = metrics_of(small.workdir)["within_alphabet_accuracy"]
    assert metrics["shrinkage_0.5"] == wanted
    # with so much shrinkage the directions stay as they are
    assert metrics["shrinkage_100"] == pytest.approx(metrics["not_whitened"], abs=0.05)
    assert metrics["not_whitened"] != wanted


def test_runs_that_have_no_whitening_to_compare_are_refused(tmp_path, monkeypatch):
    settings = {"experiment": "glyphs"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"--run: .* is a run of glyphs"):
        whitened.main(whitened.Config(tmp_path))
    parts = {"train": drawings("train"), "vinyals": drawings("test")}
    monkeypatch.setattr(omniglot, "vinyals_split", lambda seed: parts)
    settings = {"experiment": "omniglot_supcon", "train_on": "vinyals"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"--run: .* has no validation alphabets"):
        whitened.main(whitened.Config(tmp_path))


def test_test_alphabets_are_not_touched_while_settings_are_chosen(small, monkeypatch):
    asked = []
    monkeypatch.setattr(omniglot, "load", lambda part: asked.append(part) or drawings(part))
    config = dataclasses.replace(small, evaluate_test=False)
    parts = omniglot_supcon.load_parts(config)
    assert asked == ["validation"]
    assert parts.keys() == {"train", "validation"}


def test_the_split_of_vinyals_has_no_test_alphabets_to_leave_out(small):
    config = dataclasses.replace(small, train_on="vinyals")
    check_conditions(config)
    with pytest.raises(UserError, match="--evaluate-test is used only with --train-on"):
        omniglot_supcon.main(dataclasses.replace(config, evaluate_test=False))


# Presets --------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", omniglot_supcon.PRESETS)
def test_a_preset_fills_in_what_is_not_given(preset):
    config = omniglot_supcon.Config(preset=preset)
    filled = omniglot_supcon.with_preset(config)
    for name, value in omniglot_supcon.PRESETS[preset].items():
        assert getattr(filled, name) == value
    assert filled.widths
    assert filled.num_blocks
    assert filled.directory == config.directory
    changed = dataclasses.replace(config, num_steps=7, widths=(8,))
    given = omniglot_supcon.with_preset(changed)
    assert (given.num_steps, given.widths) == (7, (8,))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, True),
        ({"preset": "long", "seed": 3, "compute_dtype": "float32", "devices": 1}, True),
        ({"num_steps": 1_500, "runs": pathlib.Path("all_runs.zip")}, True),
        ({"num_steps": 20}, False),
        ({"whiten": False}, False),
        ({"train_on": "small1"}, False),
        ({"train_on": "vinyals"}, False),
    ],
)
def test_a_figure_is_expected_of_the_settings_that_gave_it(
    changes, wanted, monkeypatch, capsys
):
    monkeypatch.setattr(omniglot_supcon.loop, "start", lambda config: False)
    monkeypatch.setattr(precision, "measured_seconds", lambda: (1.0, 1.0))
    omniglot_supcon.main(omniglot_supcon.Config(**changes))
    said = "expected within_alphabet_accuracy" in capsys.readouterr().out
    assert said == wanted


# Batches --------------------------------------------------------------------------------


def test_a_batch_has_one_alphabet_in_one_position(small):
    characters = drawings("background")
    images = np.zeros((525, 16, 16, 1), np.uint8)
    images[:, 4, 3:7] = images[:, 5, 3] = 255  # no turn and no mirror leaves it as it is
    data = ClassData(jnp.asarray(images), characters.class_index())
    config = dataclasses.replace(small, num_classes=20, made="none", **STILL)
    sample = jax.jit(lambda key: omniglot_supcon.sample(config, key, jnp.asarray(0), data))
    found, alphabets = set(), set()
    for seed in range(40):
        ink, labels, _ = sample(jax.random.key(seed))
        np.testing.assert_allclose(ink, np.broadcast_to(ink[:1], ink.shape), atol=1e-5)
        places = np.argwhere(np.asarray(ink[0, ..., 0]) > 0.5)
        assert len(places) == 5
        np.testing.assert_array_equal(places.min(0) + places.max(0), [15, 15])  # centred
        found.add(places.tobytes())
        of_batch = set(characters.alphabets[np.asarray(labels) * 5])
        assert len(of_batch) == 1
        alphabets |= of_batch
        assert len(set(np.asarray(labels))) == 20
    assert len(found) == 8
    assert alphabets == set("abcde")


def test_without_turns_a_batch_stays_upright(small):
    characters = drawings("background")
    images = np.zeros((525, 16, 16, 1), np.uint8)
    images[:, 2:14, 7:9] = 255
    data = ClassData(jnp.asarray(images), characters.class_index())
    config = dataclasses.replace(small, turn=False)
    sample = jax.jit(lambda key: omniglot_supcon.sample(config, key, jnp.asarray(0), data))
    for seed in range(5):
        ink = sample(jax.random.key(seed)).images
        rows, columns = ((ink > 0.5).any(axis).sum((1, 2)) for axis in (2, 1))
        assert (rows > 1.5 * columns).all()
        assert len({drawing.tobytes() for drawing in np.asarray(ink)}) == len(ink)


def made_batch(small, made):
    """A batch of undistorted drawings, where each character is a grey of its own."""
    characters = drawings("background")
    greys = np.uint8(120 + characters.labels)
    images = np.broadcast_to(greys[:, None, None, None], (525, 16, 16, 1))
    data = ClassData(jnp.asarray(images), characters.class_index())
    config = dataclasses.replace(
        small, **STILL, num_classes=9, num_images=3, made=made, made_share=0.45
    )
    batch = omniglot_supcon.sample(config, jax.random.key(0), jnp.asarray(0), data)
    ink, labels, examples = (np.asarray(array) for array in batch)
    assert len(ink) == 27
    assert len(set(labels)) == 9
    assert len(set(examples)) == 27
    drawn, of_made = labels[:15].reshape(3, 5), labels[15:].reshape(3, 4)
    np.testing.assert_array_equal(drawn, np.broadcast_to(drawn[:1], (3, 5)))
    np.testing.assert_array_equal(of_made, -1 - drawn[:, :4])
    made_ink = ink[15:].reshape(3, 4, 16, 16)
    # all drawings of a made character are changed alike, and those of others otherwise
    np.testing.assert_allclose(made_ink, made_ink[:1].repeat(3, axis=0), atol=1e-6)
    return np.round(255 * made_ink[0]), 120 + drawn[0]


def test_a_batch_has_characters_that_join_two_others(small):
    made, greys = made_batch(small, "splice")
    masks = [joined == grey for joined, grey in zip(made, greys[:4], strict=True)]
    for joined, mask, other in zip(made, masks, greys[1:], strict=True):
        np.testing.assert_array_equal(joined[~mask], other)
        assert 0.3 < mask.mean() < 0.7
    assert len({mask.tobytes() for mask in masks}) == 4


def test_a_batch_has_characters_with_a_gap_of_their_own(small):
    made, greys = made_batch(small, "gap")
    for cut, grey in zip(made, greys[:4], strict=True):
        assert set(np.unique(cut)) == {0, grey}
        assert 0.05 < np.mean(cut == 0) < 0.3
    assert len({(cut == 0).tobytes() for cut in made}) == 4


def test_as_many_alphabets_as_the_smallest_need(small):
    index = drawings("background").class_index()  # 21 characters each
    for num_classes, wanted in ((20, 1), (21, 1), (22, 2), (105, 5)):
        config = dataclasses.replace(small, num_classes=num_classes, made="none")
        assert omniglot_supcon.num_alphabets(config, index) == wanted
    config = dataclasses.replace(small, num_classes=28, made="splice", made_share=0.25)
    assert omniglot_supcon.num_alphabets(config, index) == 1  # 21 are drawn


@pytest.mark.parametrize(("num_classes", "wanted"), [(2, 0), (3, 1), (8, 4), (9, 4)])
def test_two_characters_or_more_are_not_made(small, num_classes, wanted):
    half = {"num_classes": num_classes, "made_share": 0.5}
    assert dataclasses.replace(small, **half, made="splice").num_made == wanted
    assert dataclasses.replace(small, **half, made="none").num_made == 0


def test_what_the_drawings_cannot_give_is_refused_before_training(small, tmp_path):
    for wrong, words in (
        (
            {"num_classes": 142},  # a quarter of them are made
            "num-classes: a batch would need 107 training classes; there are 105",
        ),
        ({"made_share": 0.6}, "--made-share must be above 0 and at most 0.5; got 0.6"),
        ({"num_images": 6}, "num-images: .* fewer than 6 images: class .* has 5.*; got 6"),
        ({"num_images": 1}, "--num-images must be at least 2; got 1"),
        ({"runs": tmp_path / "none.zip"}, "none.zip: there is no such file"),
    ):
        with pytest.raises(UserError, match=words):
            omniglot_supcon.main(dataclasses.replace(small, **wrong))
        assert not (small.workdir / "metrics.jsonl").exists()


def test_lake_s_runs_are_evaluated_where_they_are_given(small, tmp_path):
    runs = lake_archive.read_runs(write_zip(tmp_path / "all_runs.zip", FILES))
    model = pixel_model(Preparation((8, 8)))
    found = omniglot_supcon.evaluate(small, model, {}, runs)
    assert (found["lake_accuracy"], found["num_trials"]) == (pytest.approx(3 / 5), 5)
    assert omniglot_supcon.evaluate(small, model, {}, []) == {}


# Averaged weights -----------------------------------------------------------------------


def test_averaged_weights_are_those_of_a_plain_loop():
    optimizer = optax.chain(optax.sgd(0.5), optimizers.average_params(0.6))
    params = {"w": jnp.array([1.0, -2.0])}
    state = optimizer.init(params)
    average = np.array([1.0, -2.0])
    for step in range(12):
        gradients = {"w": params["w"] + step}
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        kept = min(0.6, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * np.asarray(params["w"])
        found = optimizers.averaged_params(state)["w"]
        np.testing.assert_allclose(found, average, rtol=1e-5)
