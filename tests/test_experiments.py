"""The five systems end to end on small data: what they write, and what they refuse."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import (
    gradients,
    mnist_conv,
    mnist_mlp,
    mnist_towers,
    model,
    omniglot,
    omniglot_koch,
    orl_faces,
    pairs,
    recipe,
    run,
)
from siamese_jax import training
from tests.test_use import write_stripes

SHORT = {"num_steps": 4, "steps_per_call": 2, "checkpoint_every": 2}


def metrics_of(workdir):
    return json.loads((workdir / "results.json").read_text())["metrics"]


# Digits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["supervised", "logistic", "literal"])
def test_mnist_conv_end_to_end(tmp_path, form):
    config = mnist_conv.Config(
        workdir=tmp_path / form, dataset="digits", form=form, batch_size=16, **SHORT
    )
    mnist_conv.main(config)
    metrics = metrics_of(config.workdir)
    assert {"pair_accuracy", "pair_eer", "roc_area"} <= metrics.keys()
    calibration = model.load_calibration(config.workdir)
    assert metrics["validation_threshold"] == calibration.threshold
    if form == "literal":  # the farther, the more alike
        learnt = model.load_model(config.workdir)
        a, b = jnp.zeros((1, 3)), jnp.full((1, 3), 2.0)
        assert learnt.distance_fn(a, b)[0] < learnt.distance_fn(a, a)[0]
    else:
        assert metrics["pair_accuracy"] == metrics["pair_accuracy_at_validation_threshold"]


def test_the_literal_loss_has_its_polarity_upside_down_and_no_gradient_beyond_1():
    same = jnp.array([True, False, False])
    distance = jnp.array([0.2, 0.2, 1.5])
    values = mnist_conv.cross_entropy_of_distance(distance, same)
    np.testing.assert_allclose(values[:2], -np.log([0.2, 0.8]), rtol=1e-6)

    def total(d):
        return jnp.sum(mnist_conv.cross_entropy_of_distance(d, same))

    gradient = jax.grad(total)(distance)
    assert gradient[0] < 0 < gradient[1]  # the same apart, others together
    assert gradient[2] == 0


def test_the_tuned_perceptron_embeds_as_many_images_as_the_tutorial(tmp_path):
    config = mnist_mlp.Config(
        workdir=tmp_path / "tuned", dataset="digits", recipe="tuned", batch_size=16, **SHORT
    )
    mnist_mlp.main(config)
    assert "temperature" in run.read_log(config.workdir)
    learnt = model.load_model(config.workdir)
    embeddings = model.embed(learnt, np.full((3, 8, 8, 1), 100, np.uint8))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    with pytest.raises(run.UserError, match="batch_size must be at least 10; got 8"):
        mnist_mlp.main(dataclasses.replace(config, batch_size=8))


def test_towers_print_three_variants_side_by_side(tmp_path, capsys):
    config = mnist_towers.Config(workdir=tmp_path / "towers", dataset="digits", **SHORT)
    mnist_towers.main(config)
    metrics = metrics_of(config.workdir)
    counts = {"a": 2 * (64 * 128 + 128) + 257, "b": 64 * 128 + 128 + 257, "c": 8_322}
    for variant, count in counts.items():
        assert metrics[f"towers_{variant}_num_parameters"] == count
        assert 0 <= metrics[f"towers_{variant}_pair_accuracy"] <= 1
        assert (config.workdir / variant / "checkpoints").is_dir()
    out = capsys.readouterr().out
    assert any(line.split() == ["a", "b", "c"] for line in out.splitlines())
    assert model.load_model(config.workdir).image_shape == (8, 8, 1)
    with pytest.raises(run.UserError, match="only variant c has a distance"):
        model.load_model(config.workdir / "a")
    with pytest.raises(run.UserError, match="variants must be some of a b c"):
        mnist_towers.main(dataclasses.replace(config, variants=("a", "a")))


def test_each_image_has_a_match_and_a_mismatch():
    labels = np.repeat(np.arange(4), 5)
    dataset = mnist_towers.Dataset(np.zeros((20, 2, 2, 1), np.uint8), labels)
    drawn = mnist_towers.make_split(jax.random.key(0), dataset).pairs
    left, right = labels[drawn.examples]
    np.testing.assert_array_equal(left == right, drawn.same)
    for same in (True, False):
        np.testing.assert_array_equal(drawn.examples[0, drawn.same == same], np.arange(20))
    assert (drawn.examples[0] != drawn.examples[1]).all()


# Faces -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    names = [f"s{number}" for number in range(14)]
    folder = tmp_path_factory.mktemp("faces")
    return write_stripes(folder / "orl", names=names, num=4, size=(112, 92))


def small_orl(workdir, faces, **changes):
    settings = SHORT | {"data_dir": faces, "batch_size": 8, "num_classes": 4}
    return orl_faces.Config(workdir=workdir, **settings | {"num_images": 3} | changes)


def test_faces_by_the_tutorial_s_protocol(tmp_path, faces):
    config = small_orl(tmp_path / "pairs", faces)
    orl_faces.main(config)
    wanted = {"pair_accuracy", "pair_precision", "pair_recall", "pair_eer", "roc_area"}
    assert wanted <= metrics_of(config.workdir).keys()


@pytest.mark.parametrize("net", ["tutorial", "ours"])
def test_faces_of_unseen_persons(tmp_path, faces, net):
    config = small_orl(
        tmp_path / net, faces, protocol="unseen-persons", net=net, folds=(0, 3), stride=3
    )
    orl_faces.main(config)
    metrics = metrics_of(config.workdir)
    folds = [metrics_of(config.workdir / f"fold{fold}") for fold in config.folds]
    for name in ("pair_eer", "one_shot_accuracy", "pixels_pair_eer"):
        assert metrics[name] == pytest.approx(np.mean([fold[name] for fold in folds]))
    persons = json.loads((config.workdir / "fold3" / "persons.json").read_text())
    assert len({name for part in persons.values() for name in part}) == 14
    learnt = model.load_model(config.workdir / "fold3")
    faces_of_any_size = np.full((1, 60, 40, 1), 9, np.uint8)
    assert learnt.prepare_fn(faces_of_any_size, learnt.image_shape).shape == (1, 56, 46, 1)
    with pytest.raises(run.UserError, match=r"holds a model a fold: give .*fold0"):
        model.load_model(config.workdir)


def test_folds_cover_every_person_once_and_keep_the_kinds_apart():
    labels = np.repeat([f"s{number}" for number in range(34)], 2)
    folds = [orl_faces.split_persons(labels, fold) for fold in range(5)]
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == sorted(set(labels))
    for fold in folds:
        everyone = np.concatenate(fold)
        assert len(everyone) == len(set(everyone)) == 34


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"net": "ours"}, "--net ours is for --protocol unseen-persons"),
        ({"folds": (5,)}, "folds must be some of 0 1 2 3 4"),
        ({"dropout": (0.1, 1.0, 0.1)}, r"dropout rates must be in \[0, 1\)"),
        ({"data_dir": None}, "--data-dir: the folder of ORL"),
        ({"margin": 0.0}, "margin must be positive"),
    ],
)
def test_faces_refuse_what_makes_no_sense(tmp_path, faces, changes, words):
    with pytest.raises(run.UserError, match=words):
        orl_faces.main(small_orl(tmp_path / "run", faces, **changes))
    assert not (tmp_path / "run").exists()


def test_a_class_is_mirrored_as_a_whole():
    config = recipe.RecipeConfig(
        max_rotation=0.0, max_shear=0.0, max_scale=0.0, max_shift=0.0, num_images=3
    )
    left = jnp.zeros((12, 4, 4, 1)).at[:, :, 0].set(1.0)
    out = recipe.distort(config, jax.random.key(1), left)
    on_the_right = np.asarray(out[:, 0, 3, 0] == 1).reshape(4, 3)
    assert (on_the_right.all(axis=1) | ~on_the_right.any(axis=1)).all()
    assert 0 < on_the_right.mean() < 1


def test_oriented_gradients_by_hand():
    # lighter downwards, evenly: one direction of four, the same in every inner cell
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 24)[:, None], (24, 20))[None, :, :, None]
    found = gradients.oriented_gradients(ramp, (6, 5), 4).reshape(6, 5, 4)
    np.testing.assert_allclose(found[..., 1], 1, atol=0.06)  # sin 90 degrees: down
    np.testing.assert_allclose(found[..., jnp.array([0, 2, 3])], 0, atol=1e-5)
    upside_down = gradients.oriented_gradients(1 - ramp, (6, 5), 4).reshape(6, 5, 4)
    np.testing.assert_allclose(upside_down[..., 3], found[..., 1], atol=1e-5)
    # contrast and brightness tell next to nothing
    np.testing.assert_allclose(
        gradients.oriented_gradients(0.5 * ramp + 0.2, (6, 5), 4).reshape(6, 5, 4),
        found,
        atol=0.1,
    )
    # the learnt map is the identity at first
    net = gradients.GradientMap(cells=(6, 5), num_directions=4)
    embedding, _ = net.init_with_output(jax.random.key(0), ramp)
    np.testing.assert_allclose(embedding.reshape(6, 5, 4), found, rtol=1e-5, atol=1e-6)


# Koch ------------------------------------------------------------------------------------


def drawings(part):
    """Five alphabets of 21 characters with five drawings each: stripes again."""
    rng = np.random.default_rng(len(part))
    labels = np.repeat(np.arange(105), 5)
    rows, columns = np.mgrid[:105, :105]
    angle, width = labels * 0.7, 0.1 + 0.01 * (labels % 21)
    phase = (
        np.cos(angle)[:, None, None] * rows + np.sin(angle)[:, None, None] * columns
    ) * width[:, None, None] + rng.normal(scale=0.3, size=(525, 1, 1))
    images = np.where(np.sin(phase) > 0.8, 0, 255).astype(np.uint8)[..., None]
    return omniglot.Characters(images, labels, np.array(list("abcde"))[labels // 21])


@pytest.fixture
def small_koch(tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot, "load", drawings)
    return omniglot_koch.Config(
        workdir=tmp_path / "koch",
        size="half",
        batch_size=4,
        num_judged=2,
        num_episodes=50,
        affine=True,
        schedule="paper",
        **SHORT,
    )


def test_koch_is_judged_as_it_goes_and_the_best_state_is_kept(small_koch):
    omniglot_koch.main(small_koch)
    metrics = metrics_of(small_koch.workdir)
    assert {
        "random_20_way_accuracy",
        "within_alphabet_accuracy",
        "within_alphabet_accuracy_test",
        "pair_accuracy",
        "pair_eer",
    } <= metrics.keys()
    judged = run.read_log(small_koch.workdir, "judgements.jsonl")
    np.testing.assert_array_equal(judged["step"], [2, 4])
    best = judged["step"][np.argmax(judged["within_alphabet_accuracy"])]
    state = jax.eval_shape(lambda: omniglot_koch.initial_state(small_koch))
    assert int(run.load_best(small_koch, state).step) == best
    learnt = model.load_model(small_koch.workdir)
    embeddings = model.embed(learnt, drawings("test").images[:2])
    row = learnt.distance_fn(embeddings[:1], embeddings[1:])
    np.testing.assert_allclose(
        learnt.matrix_fn(embeddings, embeddings)[0, 1], row[0], rtol=1e-5
    )


def test_a_batch_of_koch_has_different_characters_half_of_them_twice(small_koch):
    characters = drawings("background")
    images = np.zeros((525, 53, 53, 1), np.uint8)
    images[:, 0, 0, 0] = characters.labels
    images[:, 0, 1, 0] = np.arange(525) % 5
    data = omniglot_koch.Data(jnp.asarray(images), characters.class_index())
    config = dataclasses.replace(small_koch, affine=False, batch_size=32)
    batch = omniglot_koch.sample(config, jax.random.key(0), jnp.asarray(0), data)
    labels, drawing = np.rint(np.asarray(batch.images[:, :, 0, :2, 0]) * 255).T
    assert len(set(labels[:, 0])) == 32
    np.testing.assert_array_equal(labels[:, 0] == labels[:, 1], batch.same)
    assert int(batch.same.sum()) == 16
    same = np.asarray(batch.same)
    assert (drawing[same, 0] != drawing[same, 1]).all()  # never one drawing twice


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


def test_the_l2_terms_leave_biases_alone(small_koch):
    params = {
        "encoder": {
            "Conv_0": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(9)},
            "Dense_0": {"kernel": jnp.full(3, 3.0), "bias": jnp.ones(9)},
        }
    }
    found = omniglot_koch.regularizer(small_koch, params)
    assert float(found) == pytest.approx(2e-4 * 16 + 1e-3 * 27)


# Judging during training -----------------------------------------------------------------


def toy_run(config, target, patience):
    """Moves a parameter to `target`; judged by how near it is to 3."""

    def loss_fn(params, statistics, batch, key):
        return (params - target) ** 2, (statistics, {})

    def steps(key, state, data, num_steps):
        return training.train_steps(
            key,
            state,
            data,
            num_steps=num_steps,
            batch_fn=lambda key, step, data: None,
            loss_fn=loss_fn,
            optimizer=optax.sgd(0.05),
        )

    evaluation = run.Evaluation(
        lambda state: {"nearness": -abs(float(state.params) - 3)}, "nearness", patience
    )
    state = training.init_state(jnp.zeros(()), optax.sgd(0.05))
    return run.train(config, state, (), steps, images_per_step=1, evaluation=evaluation)


def test_training_stops_when_nothing_better_comes_and_keeps_the_best(tmp_path):
    config = run.RunConfig(tmp_path, num_steps=40, steps_per_call=1, checkpoint_every=1)
    run.start(config)
    trained = toy_run(config, 5.0, patience=3)
    judged = run.read_log(tmp_path, "judgements.jsonl")
    best = int(judged["step"][np.argmax(judged["nearness"])])
    assert int(trained.state.step) == best + 3 < 40
    like = training.init_state(jnp.ones(()), optax.sgd(0.05))
    assert int(run.load_best(config, like).step) == best
    # started again, it stays stopped; what lies beyond a checkpoint is judged again
    assert int(toy_run(config, 5.0, patience=3).state.step) == best + 3
    lines = (tmp_path / "judgements.jsonl").read_text()
    last = tmp_path / "checkpoints" / str(best + 3)
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    last.rmdir()
    assert int(toy_run(config, 5.0, patience=3).state.step) == best + 3
    assert (tmp_path / "judgements.jsonl").read_text() == lines


def test_without_a_judgement_there_is_no_best(tmp_path):
    like = training.init_state(jnp.ones(()), optax.sgd(0.05))
    with pytest.raises(run.UserError, match="holds no checkpoint that was judged"):
        run.load_best(run.RunConfig(tmp_path), like)


# Pairs -----------------------------------------------------------------------------------


def test_random_pairs_leave_out_classes_of_one_image():
    labels = np.array(["a", "a", "b", "c", "c", "c"])
    drawn = pairs.random_pairs(jax.random.key(0), labels, 60)
    assert "b" not in labels[drawn.examples]
    left, right = labels[drawn.examples]
    np.testing.assert_array_equal(left == right, drawn.same)
    with pytest.raises(run.UserError, match="two classes with two images each"):
        pairs.random_pairs(jax.random.key(0), labels[:3], 10)
