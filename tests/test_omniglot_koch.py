"""Tests of `omniglot_koch` on small drawings: batches, optimiser and files of a run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.datasets import omniglot
from experiments.engine import checkpoints, logs
from experiments.engine.config import check_config
from experiments.engine.data import ClassData
from experiments.engine.system import initial_state
from experiments.evaluations import model_so_far
from experiments.systems import omniglot_koch
from siamese_jax.encoders import WeightedL1Head
from siamese_jax.errors import UserError
from siamese_jax.model import load_model
from tests.drawings import drawings
from tests.test_systems import SHORT, VARIANTS, koch_encoder

pytestmark = pytest.mark.slow


@pytest.fixture
def small_koch(tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot, "load", drawings)
    monkeypatch.setattr(omniglot_koch, "make_encoder", koch_encoder)
    return omniglot_koch.Config(
        workdir=tmp_path / "koch", **SHORT, **VARIANTS["omniglot_koch"][1]
    )


def test_koch_is_evaluated_as_it_goes_and_the_best_state_becomes_the_model(
    small_koch, capsys
):
    omniglot_koch.main(small_koch)
    metrics = json.loads((small_koch.workdir / "results.json").read_text())["metrics"]
    assert {
        "random_20_way_accuracy",
        "random_20_way_accuracy_test",
        "within_alphabet_accuracy",
        "within_alphabet_accuracy_test",
        "pair_accuracy",
        "pair_eer",
    } <= metrics.keys()
    evaluated = logs.read_log(small_koch.workdir, "evaluations.jsonl")
    np.testing.assert_array_equal(evaluated["step"], [2, 4])
    (board,) = (small_koch.workdir / "tensorboard").glob("events*")
    for name in ("random_20_way_accuracy", "within_alphabet_accuracy"):
        assert f"evaluation/{name}".encode() in board.read_bytes()
    best = evaluated["step"][np.argmax(evaluated["within_alphabet_accuracy"])]
    system = omniglot_koch.build(small_koch)
    like = jax.eval_shape(lambda: initial_state(system, jax.random.key(0)))
    state = checkpoints.load_best(small_koch.workdir, like)
    assert int(state.step) == best
    model = load_model(small_koch.workdir / "model")
    assert model.details["step"] == best
    pictures = drawings("test").images[:2]
    embeddings = model.embed(pictures)
    np.testing.assert_allclose(
        embeddings, system.model(state).embed(pictures), rtol=1e-4, atol=1e-5
    )
    model_so_far.main(
        model_so_far.Config(
            small_koch.workdir, every=4, model=small_koch.workdir / "so_far"
        )
    )
    shown = capsys.readouterr().out
    assert "step 4\n" in shown
    assert "step 2\n" not in shown
    assert f"{evaluated['random_20_way_accuracy'][1]:.4f}" in shown
    so_far = load_model(small_koch.workdir / "so_far")
    assert so_far.details["step"] == best
    np.testing.assert_allclose(so_far.embed(pictures), embeddings, rtol=1e-5, atol=1e-6)
    row = model.pair_distances(embeddings[:1], embeddings[1:])
    matrix = model.distances(embeddings, embeddings)
    np.testing.assert_allclose(matrix[0, 1], row[0], rtol=1e-5)
    assert model.calibration.num_pairs == 4_000


def test_the_distance_is_minus_the_log_odds_of_what_the_encoder_sees(small_koch):
    pictures = drawings("test").images[:3]
    resized = omniglot_koch.prepare(pictures, omniglot_koch.Preparation((53, 53)))
    light = jnp.asarray(resized, jnp.float32)  # paper is 255
    seen = {"paper-255": light, "ink-255": 255 - light, "ink-1": 1 - light / 255}
    state = initial_state(omniglot_koch.build(small_koch), jax.random.key(0))
    encode = jax.jit(omniglot_koch.make_encoder(small_koch).apply)
    for pixels, images in seen.items():
        config = dataclasses.replace(small_koch, pixels=pixels)
        model = omniglot_koch.build(config).model(state)
        embeddings = model.embed(pictures)
        wanted = encode({"params": state.params["encoder"]}, images)
        np.testing.assert_allclose(embeddings, wanted, rtol=1e-4, atol=1e-5)
        head = {"params": state.params["head"]}
        logits = WeightedL1Head().apply(head, embeddings[:1], embeddings[2:])
        distance = model.distances(embeddings, embeddings)[0, 2]
        np.testing.assert_allclose(distance, -logits[0], rtol=1e-4)


def numbered_drawings():
    """Each image has its character and its place among the drawings of it as pixels."""
    characters = drawings("background")
    images = np.zeros((525, 53, 53, 1), np.uint8)
    images[:, 0, 0, 0] = characters.labels
    images[:, 0, 1, 0] = np.arange(525) % 5
    return ClassData(jnp.asarray(images), characters.class_index())


def test_a_batch_of_koch_has_different_characters_half_of_them_twice(small_koch):
    config = dataclasses.replace(small_koch, affine=False, batch_size=32)
    sample = omniglot_koch.build(config).sample
    batch = sample(jax.random.key(0), jnp.asarray(0), numbered_drawings())
    labels, drawing = np.rint(np.asarray(batch.images[:, :, 0, :2, 0]) * 255).T
    assert len(set(labels[:, 0])) == 32
    np.testing.assert_array_equal(labels[:, 0] == labels[:, 1], batch.same)
    assert int(batch.same.sum()) == 16
    same = np.asarray(batch.same)
    assert (drawing[same, 0] != drawing[same, 1]).all()  # never one drawing twice


def test_distorted_drawings_are_surrounded_by_paper(small_koch):
    characters = drawings("background")
    ink = ClassData(jnp.full((525, 53, 53, 1), 255, np.uint8), characters.class_index())
    config = dataclasses.replace(small_koch, batch_size=32)
    batch = omniglot_koch.build(config).sample(jax.random.key(0), jnp.asarray(0), ink)
    assert batch.images.shape == (2, 32, 53, 53, 1)
    corners = np.asarray(batch.images[:, :, 0, 0, 0]).ravel()
    assert 0.2 < np.mean(corners == 0) < 0.9  # without ink, where the drawing moved away
    np.testing.assert_allclose(batch.images[:, :, 26, 26], 1, atol=1e-5)
    assert len({image.tobytes() for image in np.asarray(batch.images[0])}) > 16


def test_the_paper_s_momentum_rises_and_its_rate_falls_by_epochs():
    config = omniglot_koch.Config(schedule="paper", batch_size=150_000, momentum=0.9)
    optimizer = omniglot_koch.make_optimizer(config)  # an epoch a step
    params = jnp.zeros(())
    state = optimizer.init(params)
    total = 0.0
    for step in range(3):
        update, state = optimizer.update(jnp.ones(()), state, params)
        total = 1 + (0.5 + 0.4 * step / 200) * total
        assert float(update) == pytest.approx(-0.01 * 0.99**step * total, rel=1e-5)


def test_the_learning_rate_is_the_schedule_s_unless_it_is_given():
    for changes, wanted in (
        ({"schedule": "tutorial"}, 6e-5),
        ({"schedule": "paper"}, 1e-2),
        ({"schedule": "tutorial", "learning_rate": 3e-4}, 3e-4),
        ({"schedule": "paper", "learning_rate": 3e-4}, 3e-4),
    ):
        optimizer = omniglot_koch.make_optimizer(omniglot_koch.Config(**changes))
        params = jnp.zeros(())
        update, _ = optimizer.update(jnp.ones(()), optimizer.init(params), params)
        assert float(update) == pytest.approx(-wanted, rel=1e-4)


def test_the_l2_terms_leave_biases_alone(small_koch):
    params = {
        "Conv_0": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(9)},
        "Dense_0": {"kernel": jnp.full(3, 3.0), "bias": jnp.ones(9)},
    }
    found = omniglot_koch.regularizer(small_koch, params)
    assert float(found) == pytest.approx(2e-4 * 16 + 1e-3 * 27)


def test_the_loss_is_the_cross_entropy_with_the_l2_terms(small_koch):
    config = dataclasses.replace(small_koch, affine=False)
    system = omniglot_koch.build(config)
    params, statistics = jax.jit(system.init)(jax.random.key(0))
    batch = system.sample(jax.random.key(1), jnp.asarray(0), numbered_drawings())
    key = jax.random.key(2)
    value, (_, metrics) = jax.jit(system.loss)(params, statistics, batch, key)
    encode = jax.jit(omniglot_koch.make_encoder(config).apply)
    seen = 255 * (1 - batch.images)
    a, b = (encode({"params": params["encoder"]}, x) for x in seen)
    logits = np.asarray(WeightedL1Head().apply({"params": params["head"]}, a, b), float)
    signed = np.where(batch.same, logits, -logits)
    cross_entropy = np.mean(np.log1p(np.exp(-signed)))
    assert float(metrics["cross_entropy"]) == pytest.approx(cross_entropy, rel=1e-4)
    assert float(metrics["accuracy"]) == np.mean((logits >= 0) == batch.same)
    l2 = omniglot_koch.regularizer(config, params["encoder"])
    assert float(value) == pytest.approx(cross_entropy + float(l2), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_drawings": 1}, "--num-drawings must be at least 2 and at most 20; got 1"),
        ({"num_drawings": 21}, "--num-drawings must be .* at most 20; got 21"),
        ({"batch_size": 5}, "--batch-size must be even; got 5"),
        (
            {"schedule": "tutorial", "momentum": 0.5},
            "--momentum is used only with --schedule paper",
        ),
    ],
)
def test_koch_refuses_what_makes_no_sense(small_koch, changes, words):
    config = dataclasses.replace(small_koch, **changes)
    with pytest.raises(UserError, match=words):
        omniglot_koch.main(config)
    assert not small_koch.workdir.exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "is no run of a system"),
        ({"config.json": {"experiment": "lake_trials"}}, "is no run of a system"),
        ({"config.json": {"experiment": "glyphs"}}, "no state that was evaluated"),
        ({"config.json": {"experiment": "omniglot_koch"}}, "no state that was evaluated"),
        (
            {"config.json": {"experiment": "omniglot_koch", "colour": 1}},
            "was made by another version; it has colour",
        ),
    ],
)
def test_what_is_no_run_of_koch_is_refused(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        model_so_far.main(model_so_far.Config(tmp_path))


def test_a_run_without_an_evaluation_at_these_steps_says_so(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"experiment": "omniglot_koch"}')
    (tmp_path / "evaluations.jsonl").write_text('{"step": 500, "accuracy": 0.5}\n')
    model_so_far.main(model_so_far.Config(tmp_path))
    said = "no evaluation was at a multiple of 2,000 steps yet\n"
    assert capsys.readouterr().out == said
    model_so_far.main(model_so_far.Config(tmp_path, every=500))
    assert capsys.readouterr().out.startswith("step 500\n")


def test_a_batch_with_more_characters_than_there_are_is_refused(small_koch):
    config = dataclasses.replace(small_koch, batch_size=106)
    with pytest.raises(UserError, match="--batch-size: there are 105 characters; got 106"):
        omniglot_koch.main(config)


def test_momentum_belongs_to_the_paper_s_schedule(small_koch):
    check_config(dataclasses.replace(small_koch, momentum=0.5))
