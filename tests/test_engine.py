"""Tests of the training loop: exact resume after a kill, files, and error messages."""

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
import typing
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments.__main__ import list_experiments
from experiments.__main__ import main as run_experiment
from experiments.engine import checkpoints, logs, loop, precision
from experiments.engine import config as settings
from experiments.engine.config import RunConfig, setting, stream
from experiments.engine.system import System, initial_state
from experiments.systems import glyphs, mnist_mlp, mnist_towers
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from siamese_jax.model import Model
from tests.test_systems import PAIRS, SHORT

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
    "--dataset digits --num-steps 24 --steps-per-call 2 --checkpoint-every 2 "
    "--batch-size 10"
).split()


def command(workdir, *flags, module="mnist_mlp"):
    return [
        sys.executable,
        "-m",
        "experiments",
        module,
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
        lambda: has_logged(broken, 4),
        lambda: has_logged(broken, 8) and is_saving(broken),
        lambda: has_logged(broken, 14),
    )
    for reached in moments:
        with (tmp_path / "printed").open("w") as printed:  # a pipe might fill up
            process = subprocess.Popen(
                command(broken, *SMALL), cwd=ROOT, stdout=printed, stderr=printed
            )
        while process.poll() is None and not reached():
            time.sleep(0.002)
        assert process.poll() is None, (tmp_path / "printed").read_text()
        process.kill()
        process.wait()
        assert not (broken / "results.json").exists()
    # a line cut short in the middle, as a kill may leave it
    with (broken / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3')
    subprocess.run(command(broken, *SMALL), cwd=ROOT, check=True, capture_output=True)

    (step, wanted), (last, found) = final_state(unbroken), final_state(broken)
    assert step == last == 24
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    metrics = [logs.read_log(workdir) for workdir in (unbroken, broken)]
    np.testing.assert_array_equal(metrics[1]["step"], np.arange(1, 25))
    np.testing.assert_array_equal(metrics[0]["loss"], metrics[1]["loss"])
    results = [
        json.loads((workdir / "results.json").read_text()) for workdir in (unbroken, broken)
    ]
    assert results[0]["metrics"] == results[1]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mnist_mlp", "--num-stepz", "3"], "num-stepz"),
        (["mnist_mlp", "--num-steps", "many"], "many"),
        (["mnist"], "there is no 'mnist'; `python -m experiments` lists all"),
    ],
)
def test_wrong_flags_and_names_are_named(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_experiment(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert words in printed.err + printed.out


def test_missing_data_is_named_without_a_traceback(tmp_path):
    environment = {"TFDS_DATA_DIR": str(tmp_path / "nothing"), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        command(tmp_path / "run", "--dataset", "mnist"),
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "python -m experiments tfds mnist" in result.stderr
    assert "Traceback" not in result.stderr


def test_everything_that_can_be_run_is_listed_by_room(capsys):
    run_experiment([])
    printed = capsys.readouterr().out
    for room in ("systems", "sweeps", "evaluations", "datasets"):
        assert f"(experiments/{room}):" in printed
    for line in ("omniglot_koch  ", "sweep  ", "lake_trials  ", "tfds  "):
        assert line.strip() in printed
    assert all(text.endswith(".") for text in list_experiments().values())


# In this process ------------------------------------------------------------------------


def small_config(workdir, **changes):
    config = mnist_mlp.Config(
        workdir=workdir, dataset="digits", **SHORT | PAIRS | {"num_steps": 6}
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
        "roc_auc",
    } <= results["metrics"].keys()
    assert all(np.isfinite(value) for value in results["metrics"].values())
    page = (finished.workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert not re.search("https?:", page)  # self-contained
    assert list((finished.workdir / "tensorboard").glob("events*"))
    np.testing.assert_array_equal(logs.read_log(finished.workdir)["step"], np.arange(1, 7))


def test_a_finished_run_is_shown_again_without_work(finished, capsys):
    before = (finished.workdir / "results.json").stat().st_mtime_ns
    mnist_mlp.main(finished)
    assert "is complete" in capsys.readouterr().out
    assert (finished.workdir / "results.json").stat().st_mtime_ns == before


def test_another_configuration_in_the_same_place_is_refused(finished):
    other = dataclasses.replace(finished, margin=2.0)
    with pytest.raises(UserError, match=r"margin: 1.0 there, 2.0 asked"):
        mnist_mlp.main(other)


class ToyBatch(NamedTuple):
    images: jax.Array


def toy_system(learning_rate=0.1):
    """Moves three parameters towards the data, with a little noise in the loss."""

    def init(key):
        return {"encoder": jnp.zeros(3)}, {}

    def sample(key, step, data):
        return ToyBatch(data + 0 * step + jnp.zeros((1, 1, 1, 1)))

    def loss(params, statistics, batch, key):
        distance = jnp.sum((params["encoder"] - batch.images.ravel()) ** 2)
        noise = jax.random.normal(key, ()) * 1e-3
        return distance + noise, (statistics, {})

    def model(state):
        return Model(state.params, lambda params, x: x.reshape(-1, 1), Preparation((1, 1)))

    return System(init, sample, loss, optax.sgd(learning_rate), model)


def toy_run(config, data=2.0, **options):
    return loop.train(config, toy_system(), jnp.asarray(data), **options)


def test_nan_in_the_data_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    config = RunConfig(tmp_path, num_steps=4, steps_per_call=2, checkpoint_every=2)
    loop.start(config)
    with pytest.raises(UserError, match="loss is nan at step 1: training has diverged"):
        toy_run(config, data=np.nan)
    toy_run(config)
    with pytest.raises(UserError, match="loss is nan at step 5"):
        toy_run(dataclasses.replace(config, num_steps=8), data=np.nan)
    like = initial_state(toy_system(), jax.random.key(0))
    assert int(checkpoints.load_state(tmp_path, like).step) == 4


def test_a_checkpoint_cut_short_is_named_and_the_one_before_it_still_serves(tmp_path):
    config = RunConfig(tmp_path, num_steps=4, steps_per_call=2, checkpoint_every=2)
    loop.start(config)
    wanted = toy_run(config).state.params["encoder"]
    last = tmp_path / "checkpoints" / "4"
    for path in last.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(
        UserError,
        match=r"checkpoints/4 cannot be read: .* is not as it .* Delete that folder",
    ):
        toy_run(config)
    shutil.rmtree(last)
    found = toy_run(config).state.params["encoder"]
    np.testing.assert_array_equal(found, wanted)


def test_reading_a_run_leaves_a_checkpoint_that_is_being_written(tmp_path):
    config = RunConfig(tmp_path, num_steps=4, steps_per_call=2, checkpoint_every=2)
    loop.start(config)
    toy_run(config)
    writing = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    writing.mkdir()
    like = initial_state(toy_system(), jax.random.key(0))
    assert int(checkpoints.load_state(tmp_path, like).step) == 4
    assert writing.exists()
    toy_run(dataclasses.replace(config, num_steps=8))  # nobody else writes any more
    assert not writing.exists()


def test_a_directory_without_a_checkpoint_is_named(tmp_path):
    like = initial_state(toy_system(), jax.random.key(0))
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints.load_state(tmp_path, like)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoints.load_state(tmp_path, like)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_steps": 0}, "--num-steps must be at least 1; got 0"),
        ({"steps_per_call": 0}, "--steps-per-call must be at least 1"),
        ({"checkpoint_every": 15}, r"multiple of --steps-per-call \(10\); got 15"),
    ],
)
def test_counts_that_make_no_sense_are_refused_before_any_work(tmp_path, changes, words):
    config = dataclasses.replace(RunConfig(tmp_path / "run"), **changes)
    with pytest.raises(UserError, match=words):
        loop.start(config)
    assert not config.workdir.exists()


def test_the_last_call_may_be_shorter(tmp_path):
    config = RunConfig(tmp_path, num_steps=5, steps_per_call=2, checkpoint_every=4)
    loop.start(config)
    assert int(toy_run(config).state.step) == 5
    np.testing.assert_array_equal(logs.read_log(tmp_path)["step"], np.arange(1, 6))


def test_without_a_workdir_the_name_tells_the_runs_apart():
    def place(**changes):
        return mnist_mlp.Config(**changes).directory.as_posix()

    assert place() == "runs/mnist_mlp"
    assert place(seed=2, dropout=0.1) == "runs/mnist_mlp-seed=2-dropout=0.1"
    assert glyphs.Config(font_dir=pathlib.Path("/my/fonts")).directory.as_posix() == (
        "runs/glyphs-font_dir=my_fonts"
    )


def test_a_second_process_in_the_same_directory_is_refused(tmp_path):
    config = RunConfig(tmp_path, num_steps=2, steps_per_call=2, checkpoint_every=2)
    loop.start(config)
    with logs.locked(tmp_path), pytest.raises(UserError, match="another process"):
        toy_run(config)
    assert int(toy_run(config).state.step) == 2


def test_a_damaged_log_is_named(tmp_path):
    config = RunConfig(tmp_path, num_steps=4, steps_per_call=2, checkpoint_every=2)
    loop.start(config)
    toy_run(config)
    log = tmp_path / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], "###", *lines[2:]]))
    with pytest.raises(UserError, match="does not hold each step up to the checkpoint"):
        toy_run(config)


def test_a_directory_where_nothing_ran_takes_another_configuration(tmp_path):
    loop.start(RunConfig(tmp_path, num_steps=2))
    assert loop.start(RunConfig(tmp_path, num_steps=3))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        loop.start(RunConfig(tmp_path / "file"))


def test_a_finished_run_over_folds_or_variants_refuses_other_settings(tmp_path):
    loop.start(RunConfig(tmp_path, num_steps=2))
    (tmp_path / "results.json").write_text('{"metrics": {}}')  # it has no log of its own
    (tmp_path / "report.html").touch()
    with pytest.raises(UserError, match="num_steps: 2 there, 1 asked"):
        loop.start(RunConfig(tmp_path, num_steps=1))
    assert not loop.start(RunConfig(tmp_path, num_steps=2))


def test_an_unfinished_run_over_folds_or_variants_is_found_in_its_parts(tmp_path):
    variants = mnist_towers.Config(workdir=tmp_path, compute_dtype="bfloat16")
    assert loop.start(variants)
    loop.prepare_folder(mnist_towers.of_variant(variants, "a"))
    assert loop.start(mnist_mlp.Config(workdir=tmp_path))  # there is no step yet
    assert loop.start(variants)
    (tmp_path / "a" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="experiment: mnist_towers there, mnist_mlp asked"):
        loop.start(mnist_mlp.Config(workdir=tmp_path))
    auto = dataclasses.replace(variants, compute_dtype="auto")
    assert precision.settled(auto).compute_dtype == "bfloat16"
    assert loop.start(variants)


# Settings ---------------------------------------------------------------------------------


def test_named_streams_differ_from_each_other_and_between_seeds():
    names = typing.get_args(settings.Stream)
    assert len(names) >= 3
    keys = {
        tuple(np.asarray(jax.random.key_data(stream(RunConfig(seed=seed), name))).tolist())
        for name in names
        for seed in (0, 1)
    }
    assert len(keys) == 2 * len(names)
    # the keys of the training steps are not those of another stream
    train_key = stream(RunConfig(), "train")
    steps = {
        tuple(np.asarray(jax.random.key_data(jax.random.fold_in(key, step))).tolist())
        for key in jax.random.split(train_key)
        for step in range(100)
    }
    assert len(steps) == 200
    assert not steps & keys


@dataclasses.dataclass(frozen=True)
class ConditionalConfig(RunConfig):
    loss: str = "contrastive"
    margin: float = setting(1.0, only_when={"loss": "contrastive"})
    scale: float = setting(1.0, only_when={"loss": ("logistic", "sigmoid")})


def test_a_flag_that_a_run_would_ignore_is_an_error(tmp_path):
    config = ConditionalConfig(tmp_path / "run", loss="logistic", margin=2.0)
    words = "--margin is used only with --loss contrastive; this run has --loss logistic"
    with pytest.raises(UserError, match=words):
        loop.start(config)
    with pytest.raises(
        UserError, match="--scale is used only with --loss logistic or sigm"
    ):
        loop.start(dataclasses.replace(config, loss="contrastive", scale=3.0))
    assert not config.workdir.exists()
    assert loop.start(dataclasses.replace(config, margin=1.0, scale=2.0))


# Evaluations while training ---------------------------------------------------------------


def evaluated_run(config, patience):
    """Three parameters move towards 2; evaluated by how near the first is to 1.2."""

    def nearness(state):
        return {"nearness": -abs(float(state.params["encoder"][0]) - 1.2)}

    return toy_run(config, evaluation=logs.Evaluation(nearness, "nearness", patience))


def test_training_stops_when_nothing_better_comes_and_keeps_the_best(tmp_path):
    config = RunConfig(tmp_path, num_steps=40, steps_per_call=1, checkpoint_every=1)
    loop.start(config)
    trained = evaluated_run(config, patience=3)
    log = logs.read_log(tmp_path, "evaluations.jsonl")
    best = int(log["step"][np.argmax(log["nearness"])])
    assert int(trained.state.step) == best + 3 < 40
    assert int(trained.best.step) == best
    # started again, it stays stopped; what lies beyond a checkpoint is evaluated again
    assert int(evaluated_run(config, patience=3).state.step) == best + 3
    lines = (tmp_path / "evaluations.jsonl").read_text()
    shutil.rmtree(tmp_path / "checkpoints" / str(best + 3))
    again = evaluated_run(config, patience=3)
    assert (int(again.state.step), int(again.best.step)) == (best + 3, best)
    assert (tmp_path / "evaluations.jsonl").read_text() == lines


def test_the_seconds_of_training_are_without_evaluations(tmp_path):
    config = RunConfig(tmp_path, num_steps=4, steps_per_call=1, checkpoint_every=1)
    loop.start(config)

    def slow(state):
        time.sleep(0.5)
        return {"figure": float(state.step)}

    trained = toy_run(config, evaluation=logs.Evaluation(slow, "figure", 9))
    assert 0 < trained.seconds < 4 * 0.5
    assert logs.read_log(tmp_path)["seconds"][-1] == pytest.approx(
        trained.seconds, abs=0.01
    )
    (board,) = (tmp_path / "tensorboard").glob("events*")
    assert b"evaluation/figure" in board.read_bytes()


def test_without_an_evaluation_there_is_no_best_and_the_last_state_serves(tmp_path):
    config = RunConfig(tmp_path, num_steps=2, steps_per_call=1, checkpoint_every=1)
    like = initial_state(toy_system(), jax.random.key(0))
    with pytest.raises(UserError, match="holds no state that was evaluated"):
        checkpoints.load_best(tmp_path, like)
    loop.start(config)
    trained = toy_run(config)
    assert trained.best is trained.state


# Results ----------------------------------------------------------------------------------


def test_undefined_figures_are_null_and_the_devices_are_those_that_were_used(
    tmp_path, capsys
):
    config = RunConfig(tmp_path, num_steps=2, steps_per_call=2, checkpoint_every=2)
    loop.start(config)
    trained = toy_run(config)
    loop.finish(config, {"rate": float("nan"), "count": 3}, trained, None)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metrics"] == {"rate": None, "count": 3}
    assert jax.local_device_count() == 8  # of which the run uses one
    assert results["device"].endswith(" x 1")
    assert "undefined" in capsys.readouterr().out
