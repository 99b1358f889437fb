"""Killed runs end where unbroken ones end; misuse is named and costs nothing."""

import dataclasses
import gc
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments import __main__ as listing
from experiments import glyphs, mnist_mlp, pairs, run
from experiments.letters import Letters, draw_letters
from siamese_jax import training

ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
    "--dataset digits --num-steps 40 --steps-per-call 2 --checkpoint-every 2 --batch-size 8"
).split()


def command(workdir, *flags, module="mnist_mlp"):
    return [
        sys.executable,
        "-m",
        f"experiments.{module}",
        "--workdir",
        str(workdir),
        *flags,
    ]


def final_state(workdir):
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        step = manager.latest_step()
        return step, jax.tree.leaves(manager.restore(step, args=ocp.args.StandardRestore()))


def has_logged(workdir, num_steps):
    log = workdir / "metrics.jsonl"
    return log.exists() and len(log.read_text().splitlines()) >= num_steps


def is_saving(workdir):
    checkpoints = workdir / "checkpoints"
    return checkpoints.exists() and any(
        "tmp" in path.name for path in checkpoints.iterdir()
    )


def test_a_run_killed_three_times_ends_bit_for_bit_as_an_unbroken_one(tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    subprocess.run(command(unbroken, *SMALL), cwd=ROOT, check=True, capture_output=True)
    moments = (
        lambda: has_logged(broken, 6),
        lambda: has_logged(broken, 12) and is_saving(broken),
        lambda: has_logged(broken, 20),
    )
    for reached in moments:
        process = subprocess.Popen(
            command(broken, *SMALL),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None and not reached():
            time.sleep(0.0002)
        assert process.poll() is None, process.stdout.read().decode()
        process.kill()
        process.communicate()
        assert not (broken / "results.json").exists()
    # a line cut short in the middle, as a kill may leave it
    with (broken / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3')
    subprocess.run(command(broken, *SMALL), cwd=ROOT, check=True, capture_output=True)

    (step, wanted), (last, found) = final_state(unbroken), final_state(broken)
    assert step == last == 40
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    logs = [run.read_log(workdir) for workdir in (unbroken, broken)]
    np.testing.assert_array_equal(logs[1]["step"], np.arange(1, 41))
    np.testing.assert_array_equal(logs[0]["loss"], logs[1]["loss"])
    results = [
        json.loads((workdir / "results.json").read_text()) for workdir in (unbroken, broken)
    ]
    assert results[0]["metrics"] == results[1]["metrics"]


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--num-stepz", "3"], 2, "num-stepz"),
        (["--num-steps", "many"], 2, "many"),
        (["--dataset", "mnist"], 1, "python -m experiments.data mnist"),
    ],
)
def test_wrong_flags_and_missing_data_are_named(tmp_path, flags, status, words):
    environment = {"TFDS_DATA_DIR": str(tmp_path / "nothing"), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        command(tmp_path / "run", *flags),
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == status
    assert words in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


# In this process ------------------------------------------------------------------------


def small_config(workdir, **changes):
    config = mnist_mlp.Config(
        workdir=workdir,
        dataset="digits",
        num_steps=6,
        steps_per_call=3,
        checkpoint_every=3,
        batch_size=8,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("runs") / "digits", pairs="fresh")
    mnist_mlp.main(config)
    return config


def test_a_run_leaves_everything_it_promises(finished):
    results = json.loads((finished.workdir / "results.json").read_text())
    assert results["num_steps"] == 6
    assert results["seconds"] > 0
    assert "cpu" in results["device"].lower()
    assert results["versions"]["jax"] == jax.__version__
    assert {
        "pair_accuracy",
        "pair_accuracy_at_chosen_threshold",
        "chosen_threshold",
        "pair_eer",
        "roc_area",
    } <= results["metrics"].keys()
    assert all(np.isfinite(value) for value in results["metrics"].values())
    page = (finished.workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert "http" not in page.replace("http-equiv", "")  # self-contained
    assert list((finished.workdir / "tensorboard").glob("events*"))
    np.testing.assert_array_equal(run.read_log(finished.workdir)["step"], np.arange(1, 7))


def test_a_finished_run_is_shown_again_without_work(finished, capsys):
    before = (finished.workdir / "results.json").stat().st_mtime_ns
    mnist_mlp.main(finished)
    assert "is complete" in capsys.readouterr().out
    assert (finished.workdir / "results.json").stat().st_mtime_ns == before


def test_another_configuration_in_the_same_place_is_refused(finished):
    other = dataclasses.replace(finished, margin=2.0)
    with pytest.raises(run.UserError, match=r"margin: 1.0 there, 2.0 asked"):
        mnist_mlp.main(other)


def toy_steps(key, state, data, num_steps):
    def batch_fn(key, step, data):
        return data + 0 * step

    def loss_fn(params, statistics, batch, key):
        loss = jnp.sum((params - batch) ** 2) + jax.random.normal(key, ()) * 1e-3
        return loss, (statistics, {})

    return training.train_steps(
        key,
        state,
        data,
        num_steps=num_steps,
        batch_fn=batch_fn,
        loss_fn=loss_fn,
        optimizer=optax.sgd(0.1),
    )


def toy_run(config, data=2.0, steps_fn=toy_steps):
    state = training.init_state(jnp.zeros(3), optax.sgd(0.1))
    return run.train(config, state, jnp.asarray(data), steps_fn, images_per_step=1)


def test_nan_in_the_data_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    config = run.RunConfig(tmp_path, num_steps=4, steps_per_call=2, checkpoint_every=2)
    run.start(config)
    with pytest.raises(run.UserError, match="loss is nan at step 1: training has diverged"):
        toy_run(config, data=np.nan)
    toy_run(config)
    with pytest.raises(run.UserError, match="loss is nan at step 5"):
        toy_run(dataclasses.replace(config, num_steps=8), data=np.nan)
    kept = run.load_state(config, training.init_state(jnp.ones(3), optax.sgd(0.1)))
    assert int(kept.step) == 4


# orbax leaves unfinished coroutines behind a failed read; they are collected here
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_checkpoint_cut_short_is_named_and_the_one_before_it_still_serves(tmp_path):
    config = run.RunConfig(tmp_path, num_steps=4, steps_per_call=2, checkpoint_every=2)
    run.start(config)
    wanted = toy_run(config).state.params
    last = tmp_path / "checkpoints" / "4"
    for path in last.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(
        run.UserError,
        match=r"checkpoints/4 cannot be read: it is damaged.*Delete that folder",
    ):
        toy_run(config)
    gc.collect()
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    last.rmdir()
    found = toy_run(config).state.params
    np.testing.assert_array_equal(found, wanted)


def test_a_directory_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(run.UserError, match="holds no checkpoint"):
        run.load_state(
            run.RunConfig(tmp_path), training.init_state(jnp.ones(3), optax.sgd(0.1))
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1; got 0"),
        ({"steps_per_call": 0}, "steps_per_call must be at least 1"),
        ({"checkpoint_every": 15}, r"multiple of steps_per_call \(10\); got 15"),
    ],
)
def test_counts_that_make_no_sense_are_refused_before_any_work(tmp_path, changes, words):
    config = dataclasses.replace(run.RunConfig(tmp_path / "run"), **changes)
    with pytest.raises(run.UserError, match=words):
        run.start(config)
    assert not config.workdir.exists()


def test_the_last_call_may_be_shorter(tmp_path):
    config = run.RunConfig(tmp_path, num_steps=5, steps_per_call=2, checkpoint_every=4)
    run.start(config)
    assert int(toy_run(config).state.step) == 5
    np.testing.assert_array_equal(run.read_log(tmp_path)["step"], np.arange(1, 6))


# The experiments -------------------------------------------------------------------------


def test_every_experiment_is_listed_and_names_its_own_command():
    experiments = listing.list_experiments()
    assert {"glyphs", "mnist_mlp"} <= experiments.keys()
    for name, line in experiments.items():
        assert line.endswith(".")
        text = (ROOT / "experiments" / f"{name}.py").read_text()
        assert f"python -m experiments.{name} " in text
        assert "Expect:" in text


def test_glyphs_end_to_end(tmp_path, monkeypatch):
    def some_letters(font_dir):
        everything = draw_letters(font_dir)
        names = np.unique(everything.letters)[::3]  # a third
        return Letters(*(array[np.isin(everything.letters, names)] for array in everything))

    monkeypatch.setattr(glyphs, "draw_letters", some_letters)
    config = glyphs.Config(
        workdir=tmp_path / "glyphs",
        num_steps=2,
        steps_per_call=2,
        checkpoint_every=2,
        num_letters=4,
        num_faces=2,
        widths=(4, 4, 4),
        dim=4,
        num_episodes=64,
        num_ways=5,
        num_pairs=200,
    )
    glyphs.main(config)
    metrics = json.loads((config.workdir / "results.json").read_text())["metrics"]
    assert {
        "one_shot_accuracy",
        "one_shot_accuracy_pixels",
        "one_shot_accuracy_armenian",
        "one_shot_accuracy_georgian",
        "pair_accuracy",
        "pair_eer",
        "roc_area",
    } <= metrics.keys()
    mean = (
        metrics["one_shot_accuracy_armenian"] + metrics["one_shot_accuracy_georgian"]
    ) / 2
    assert metrics["one_shot_accuracy"] == pytest.approx(mean)
    assert 0.2 < metrics["one_shot_accuracy_pixels"] < 0.6


def test_tutorial_pairs_are_the_tutorial_s():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    drawn = pairs.adjacent_pairs(labels, np.random.default_rng(0))
    num = 2  # the smallest class has three
    assert drawn.examples.shape == (2, 3 * 2 * num)
    left, right = labels[drawn.examples]
    np.testing.assert_array_equal(left == right, drawn.same)
    same = drawn.examples[:, drawn.same].T.tolist()
    assert same == [[0, 1], [1, 2], [4, 5], [5, 6], [7, 8], [8, 9]]
    # a different pair takes the same place in its other class
    rank = np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3])
    left, right = rank[drawn.examples[:, ~drawn.same]]
    np.testing.assert_array_equal(left, right)
    with pytest.raises(run.UserError, match="class 1 has too few"):
        pairs.adjacent_pairs(np.array([0, 0, 1]), np.random.default_rng(0))


def test_fixed_pairs_are_each_seen_once_an_epoch_in_a_new_order_each():
    config = mnist_mlp.Config(batch_size=4)
    drawn = pairs.Pairs(jnp.arange(20).reshape(2, 10), jnp.arange(10) % 2 == 0)
    images = jnp.arange(20, dtype=jnp.uint8)[:, None, None, None]
    data = pairs.Data(images, drawn)
    key = jax.random.key(0)
    # six steps from step 2 touch three epochs of three batches
    data = pairs.add_epochs(config, key, jnp.asarray(2), data, num_steps=6)
    orders = []
    for epoch in (1, 2):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            batch = pairs.sample(config, jax.random.key(step), jnp.asarray(step), data)
            first = np.rint(np.asarray(batch.images[0, :, 0, 0, 0]) * 255)
            seen += first[np.asarray(batch.where)].tolist()
        assert sorted(seen) == list(range(10))
        orders.append(seen)
    assert orders[0] != orders[1]
    # a call that begins elsewhere draws the same epochs
    again = pairs.add_epochs(config, key, jnp.asarray(6), data, num_steps=3)
    np.testing.assert_array_equal(
        again.epochs.orders.examples[0], data.epochs.orders.examples[2]
    )


def test_without_a_workdir_the_name_tells_the_runs_apart():
    def place(**changes):
        return mnist_mlp.Config(**changes).directory.as_posix()

    assert place() == "runs/mnist_mlp"
    assert place(seed=2, dropout=0.1) == "runs/mnist_mlp-seed=2-dropout=0.1"
    assert glyphs.Config(font_dir=pathlib.Path("/my/fonts")).directory.as_posix() == (
        "runs/glyphs-font_dir=my_fonts"
    )


def test_a_second_process_in_the_same_directory_is_refused(tmp_path):
    config = run.RunConfig(tmp_path, num_steps=2, steps_per_call=2, checkpoint_every=2)
    run.start(config)
    with run._locked(tmp_path), pytest.raises(run.UserError, match="another process"):
        toy_run(config)
    assert int(toy_run(config).state.step) == 2


def test_a_damaged_log_is_named(tmp_path):
    config = run.RunConfig(tmp_path, num_steps=4, steps_per_call=2, checkpoint_every=2)
    run.start(config)
    toy_run(config)
    log = tmp_path / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], "###", *lines[2:]]))
    with pytest.raises(run.UserError, match="does not hold each step up to the checkpoint"):
        toy_run(config)


def test_a_directory_where_nothing_ran_takes_another_configuration(tmp_path):
    run.start(run.RunConfig(tmp_path, num_steps=2))
    assert run.start(run.RunConfig(tmp_path, num_steps=3))
    (tmp_path / "file").touch()
    with pytest.raises(run.UserError, match="is not a folder"):
        run.start(run.RunConfig(tmp_path / "file"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_ways": 200}, "num_ways: armenian has .* letters; got 200"),
        ({"num_letters": 900}, "num_letters: latin has .* letters; got 900"),
        ({"num_faces": 13}, "num_faces: there are 12; got 13"),
        ({"num_episodes": 1}, "num_episodes must be at least 2"),
    ],
)
def test_glyphs_refuse_what_the_letters_cannot_give_before_training(changes, words):
    faces = np.tile(np.arange(12), 250)
    alphabets = np.repeat([*glyphs.TRAINING, *glyphs.TEST], 600)
    letters = Letters(np.zeros(3000), np.repeat(np.arange(250), 12), alphabets, faces)
    with pytest.raises(run.UserError, match=words):
        glyphs.check_counts(glyphs.Config(**changes), letters)
