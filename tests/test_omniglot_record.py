"""The recipe on small drawings: its batches, its weights, its presets, what it writes."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import (
    lake_runs,
    model,
    omniglot,
    omniglot_extras,
    omniglot_record,
    optimizers,
    recipe,
    run,
)
from experiments.model import Model
from experiments.omniglot import Characters
from experiments.run import UserError
from tests.test_experiments import drawings, metrics_of
from tests.test_lake_runs import FILES, pixels, write_zip

SMALL = {
    "size": 16,
    "stem": 8,
    "widths": (8,),
    "num_blocks": 1,
    "dim": 4,
    "num_classes": 6,
    "num_images": 2,
    "num_episodes": 20,
    "num_steps": 4,
    "steps_per_call": 2,
    "checkpoint_every": 2,
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot, "load", drawings)
    monkeypatch.setattr(omniglot, "load_split", drawings)
    monkeypatch.setattr(omniglot, "FEW_SHOT", ((20, 1),))
    return omniglot_record.Config(workdir=tmp_path / "record", **SMALL)


# End to end -----------------------------------------------------------------------------


def final_state(config):
    state = jax.eval_shape(lambda: omniglot_record.initial_state(config))
    return run.load_state(config, state)


def test_a_run_cut_off_and_resumed_ends_as_an_unbroken_one(small, tmp_path, monkeypatch):
    omniglot_record.main(small)
    metrics = metrics_of(small.workdir)
    assert {
        "within_alphabet_accuracy",
        "within_alphabet_accuracy_interval",
        "within_alphabet_accuracy_test",
        "random_20_way_accuracy_test",
    } <= metrics.keys()
    assert "lake_accuracy" not in metrics

    broken = dataclasses.replace(small, workdir=tmp_path / "broken")
    write = run._Log.write

    def cut_off(log, step, *figures):
        if step == 2:
            raise KeyboardInterrupt
        write(log, step, *figures)

    monkeypatch.setattr(run._Log, "write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        omniglot_record.main(broken)
    monkeypatch.setattr(run._Log, "write", write)
    monkeypatch.setattr(omniglot_record, "judge", lambda *_: {"judged": 1.0})
    assert len(run.read_log(broken.workdir)["loss"]) == 2
    omniglot_record.main(broken)
    assert metrics_of(broken.workdir) == {"judged": 1.0}
    jax.tree.map(np.testing.assert_array_equal, final_state(broken), final_state(small))


def test_the_model_of_a_run_has_the_averaged_weights(small):
    run.start(small)
    state = omniglot_record.initial_state(small)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, state.params)
    moved = omniglot_record.make_optimizer(small).init(doubled)
    with run._open_checkpoints(small.directory) as checkpoints:
        run._save(checkpoints, 1, state._replace(optimizer_state=moved))
    learnt = model.load_model(small.workdir)
    jax.tree.map(np.testing.assert_array_equal, learnt.params["params"], doubled["encoder"])
    paper = np.full((2, 16, 16, 1), 255, np.uint8)
    paper[0, 2:5, 2:9:2] = paper[1, 7:10, 5:12:2] = 0  # the same, elsewhere
    embeddings = model.embed(learnt, paper)
    np.testing.assert_allclose(jnp.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=5e-3)  # bfloat16


def test_test_alphabets_are_not_touched_while_settings_are_chosen(small, monkeypatch):
    asked = []
    monkeypatch.setattr(omniglot, "load", lambda part: asked.append(part) or drawings(part))
    parts = omniglot_record.load_parts(dataclasses.replace(small, judge_test=False))
    assert asked == ["validation"]
    assert parts.keys() == {"train", "validation"}


# Presets --------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", omniglot_record.PRESETS)
def test_a_preset_fills_in_what_is_not_given(preset):
    config = omniglot_record.Config(preset=preset)
    settled = omniglot_record.settle(config)
    for name, value in omniglot_record.PRESETS[preset].settings.items():
        assert getattr(settled, name) == value
    assert settled.widths
    assert settled.num_blocks
    assert settled.directory == config.directory
    given = omniglot_record.settle(dataclasses.replace(config, num_steps=7, widths=(8,)))
    assert (given.num_steps, given.widths) == (7, (8,))


# Batches --------------------------------------------------------------------------------


def test_a_batch_has_one_alphabet_in_one_position(small):
    characters = drawings("background")
    images = np.full((525, 16, 16, 1), 255, np.uint8)
    images[:, 4, 3:7] = images[:, 5, 3] = 0  # no turn and no mirror leaves it as it is
    data = recipe.Data(jnp.asarray(images), characters.class_index())
    still = dict.fromkeys(
        ("max_rotation", "max_shear", "max_scale", "max_shift", "elastic", "thickness"), 0.0
    )
    config = dataclasses.replace(small, num_classes=20, **still)
    sample = jax.jit(lambda key: omniglot_record.sample(config, key, jnp.asarray(0), data))
    seen, alphabets = set(), set()
    for seed in range(40):
        ink, labels = sample(jax.random.key(seed))
        np.testing.assert_allclose(ink, np.broadcast_to(ink[:1], ink.shape), atol=1e-5)
        places = np.argwhere(np.asarray(ink[0, ..., 0]) > 0.5)
        assert len(places) == 5
        np.testing.assert_array_equal(places.min(0) + places.max(0), [15, 15])  # centred
        seen.add(places.tobytes())
        found = set(characters.alphabets[np.asarray(labels) * 5])
        assert len(found) == 1
        alphabets |= found
        assert len(set(np.asarray(labels))) == 20
    assert len(seen) == 8
    assert alphabets == set("abcde")


def test_as_many_alphabets_as_the_smallest_need(small):
    index = drawings("background").class_index()  # 21 characters each
    for num_classes, wanted in ((20, 1), (21, 1), (22, 2), (105, 5)):
        config = dataclasses.replace(small, num_classes=num_classes)
        assert omniglot_record.num_alphabets(config, index) == wanted


def test_what_the_drawings_cannot_give_is_refused_before_training(small, tmp_path):
    for wrong, words in (
        ({"num_classes": 106}, "num_classes: there are 105 training classes; got 106"),
        ({"num_images": 6}, "num_images: class .* has 5; got 6"),
        ({"num_images": 1}, "must be at least 2; got 6 and 1"),
        ({"runs": tmp_path / "none.zip"}, "none.zip: there is no such file"),
    ):
        with pytest.raises(UserError, match=words):
            omniglot_record.main(dataclasses.replace(small, **wrong))
        assert not (small.workdir / "metrics.jsonl").exists()


def test_lake_s_runs_are_judged_where_they_are_given(small, tmp_path):
    runs = lake_runs.read_runs(write_zip(tmp_path / "all_runs.zip", FILES))
    by_pixels = Model({}, pixels, (8, 8, 1))
    found = omniglot_record.judge(small, by_pixels, {}, runs)
    assert (found["lake_accuracy"], found["num_trials"]) == (pytest.approx(3 / 5), 5)
    assert omniglot_record.judge(small, by_pixels, {}, []) == {}


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


# Few-shot tasks -------------------------------------------------------------------------


def test_more_shots_and_fewer_ways_are_easier_and_named(monkeypatch):
    monkeypatch.setattr(omniglot, "FEW_SHOT", ((20, 1), (5, 1), (20, 4)))
    characters = drawings("validation")
    net = Model(1.0, flat, (15, 15, 1))
    metrics = omniglot.few_shot_metrics(net, characters.only(slice(0, 315)), 200, "_x")
    one = metrics["within_alphabet_accuracy_x"]
    assert metrics["within_alphabet_5_way_1_shot_accuracy_x"] > one
    assert metrics["within_alphabet_20_way_4_shot_accuracy_x"] > one
    assert metrics["random_20_way_accuracy_x"] >= one - 0.1
    assert len(metrics) == 2 * 2 * 3


def test_one_alphabet_has_tasks_over_all_characters_alone(monkeypatch):
    monkeypatch.setattr(omniglot, "FEW_SHOT", ((20, 1),))
    characters = drawings("validation").only(slice(0, 105))
    net = Model(1.0, flat, (15, 15, 1))
    metrics = omniglot.few_shot_metrics(net, characters, 50)
    assert list(metrics) == ["random_20_way_accuracy", "random_20_way_accuracy_interval"]


# Splits ---------------------------------------------------------------------------------


def test_the_split_of_vinyals_parts_characters_not_alphabets(monkeypatch):
    def load_split(split):
        labels = np.arange(964) if split == "train" else 964 + np.arange(659)
        images = np.zeros((len(labels), 2, 2, 1), np.uint8)
        return Characters(images, labels, np.array(list("abcd"))[labels % 4])

    monkeypatch.setattr(omniglot, "load_split", load_split)
    parts = omniglot.vinyals_split(0)
    train, test = (set(parts[name].labels) for name in ("train", "vinyals"))
    assert (len(train), len(test), len(train & test)) == (1200, 423, 0)
    assert set(parts["train"].alphabets) == set("abcd")
    assert parts["vinyals"].class_index().group_sizes == (("all", 423),)
    assert set(omniglot.vinyals_split(1)["train"].labels) != train


# Extras ---------------------------------------------------------------------------------


def flat(params, images):
    rows = images.reshape(len(images), -1) * jnp.atleast_2d(params)
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def test_an_ensemble_s_cosine_is_the_mean_of_cosines():
    images = jnp.asarray(np.random.default_rng(0).random((2, 3, 3, 1)), jnp.float32)
    nets = [Model(jnp.arange(9.0) + 1, flat, (3, 3, 1)), Model(1.0, flat, (3, 3, 1))]
    cosines = [jnp.vdot(*net.embed_fn(net.params, images)) for net in nets]
    embeddings = [net.embed_fn(net.params, images) for net in nets]
    found = jnp.vdot(*omniglot_extras.ensemble(embeddings))
    np.testing.assert_allclose(found, np.mean(cosines), rtol=1e-5)


def test_views_are_seven_small_distortions_and_the_first_is_none():
    matrices = np.asarray(omniglot_extras.view_matrices(9))
    assert matrices.shape == (7, 2, 3)
    np.testing.assert_allclose(matrices[0], np.eye(2, 3), atol=1e-6)
    centre = matrices @ [4.0, 4.0, 1.0]
    np.testing.assert_allclose(centre, 4, atol=1e-5)
    assert len({tuple(matrix.ravel().round(4)) for matrix in matrices}) == 7
    images = jnp.ones((2, 9, 9, 1))
    net = Model(1.0, flat, (9, 9, 1))
    found = omniglot_extras.with_views(net).embed_fn(1.0, images)
    np.testing.assert_allclose(found, net.embed_fn(1.0, images), atol=1e-6)  # all paper


def test_every_way_is_judged_on_the_same_tasks(small, tmp_path, monkeypatch):
    characters = drawings("validation")
    monkeypatch.setattr(omniglot_extras.within_alphabet, "choose", lambda words: characters)
    net = Model(1.0, flat, (15, 15, 1))
    monkeypatch.setattr(model, "load_model", lambda workdir: net)
    out = tmp_path / "extras.json"
    config = omniglot_extras.Config((tmp_path,), num_episodes=50, num_ways=5, json=out)
    omniglot_extras.command(config)
    metrics = json.loads(out.read_text())["metrics"]
    assert metrics["one_accuracy"] == metrics["ensemble_accuracy"]  # of one net
    assert metrics["views_accuracy"] == metrics["ensemble_views_accuracy"]
    assert metrics["transductive_accuracy"] == metrics["ensemble_transductive_accuracy"]
    assert 0 < metrics["one_accuracy"] <= 1
    with pytest.raises(UserError, match="num_episodes must be at least 2"):
        omniglot_extras.command(dataclasses.replace(config, num_episodes=1))


def test_nets_of_different_sizes_are_refused(monkeypatch):
    sizes = iter([15, 16])
    monkeypatch.setattr(
        model, "load_model", lambda workdir: Model(1.0, flat, (next(sizes), 15, 1))
    )
    with pytest.raises(UserError, match=r"nets of one size .*\(15, 15, 1\), \(16, 15, 1\)"):
        omniglot_extras.command(omniglot_extras.Config((pathlib.Path(), pathlib.Path())))
