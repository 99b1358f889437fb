"""Tests of runs that are stopped, damaged, lengthened, or started from a model."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import checkpoints, init_from, logs, loop, stops
from experiments.engine.config import RunConfig
from experiments.engine.system import initial_state
from experiments.systems import mnist_mlp, mnist_towers, omniglot_koch
from siamese_jax.errors import UserError
from siamese_jax.model import save_model
from tests.test_engine import command, small_config, toy_run, toy_system

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent


def toy_config(workdir, **changes):
    settings = {"num_steps": 400, "steps_per_call": 3, "checkpoint_every": 99}
    return RunConfig(workdir, **settings | changes)


def unbroken(folder, **changes):
    config = toy_config(folder, **changes)
    loop.start(config)
    return toy_run(config).state


def assert_equal_states(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


# Ctrl-C ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _ctrl_c_is_not_ignored():
    """As in a terminal; a shell's background jobs, and their children, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_saves_and_ends_as_an_unbroken_one(
    tmp_path, monkeypatch, capsys, number
):
    config = toy_config(tmp_path / "stopped")
    write = logs.Log.write

    def write_and_signal(log, step, *figures):
        write(log, step, *figures)
        if step in (6, 150):
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # the signal is noticed by another thread

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(logs.Log, "write", write_and_signal)
    loop.start(config)
    for step in (9, 153):
        with pytest.raises(KeyboardInterrupt, match=f"saved at step {step}"):
            toy_run(config)
        assert "stopping when the steps of this call are saved" in capsys.readouterr().err
    monkeypatch.setattr(logs.Log, "write", write)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert_equal_states(toy_run(config).state, unbroken(tmp_path / "unbroken"))
    steps = logs.read_log(config.workdir)["step"]
    np.testing.assert_array_equal(steps, np.arange(1, 401))


def test_other_threads_and_ignored_signals_are_left_alone():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stops.stop_requests() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            assert not asked.is_set()
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def running(workdir, printed, *flags):
    """A process of its own that trains, with what it prints in a file."""
    with printed.open("w") as file:
        process = subprocess.Popen(
            command(workdir, *flags), cwd=ROOT, stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(reached, seconds=60):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ctrl_c_ends_a_command_with_one_line_that_says_how_to_go_on(tmp_path):
    workdir, printed = tmp_path / "a run", tmp_path / "printed"
    flags = "--dataset digits --num-steps 9000 --steps-per-call 1 --batch-size 8".split()
    log = workdir / "metrics.jsonl"
    with running(workdir, printed, *flags) as process:
        wait_for(lambda: log.exists() and log.read_text().count("\n") > 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    lines = printed.read_text().splitlines()
    assert "Traceback" not in printed.read_text()
    said, again = lines[-1].split("; to go on: ")
    assert said.startswith("saved at step ")
    assert f"--workdir '{workdir}'" in again
    assert int(said.split()[-1]) in (
        int(p.name) for p in (workdir / "checkpoints").iterdir()
    )
    first, *words = shlex.split(again)
    assert first == "python"
    with printed.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", *words], cwd=ROOT, stdout=file, stderr=file
        )
    wait_for(lambda: "continuing from step" in printed.read_text())
    process.kill()
    process.wait()
    assert f"continuing from step {said.split()[-1]} in" in printed.read_text()


def test_a_second_ctrl_c_ends_a_command_at_once(tmp_path):
    workdir, printed = tmp_path / "run", tmp_path / "printed"
    flags = "--dataset digits --num-steps 9000000 --steps-per-call 9000000".split()
    flags += ["--checkpoint-every", "9000000", "--batch-size", "8"]
    with running(workdir, printed, *flags) as process:
        wait_for(lambda: (workdir / "tensorboard").exists())
        time.sleep(1)  # the call begins, which takes minutes
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "once more stops at once" in printed.read_text())
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130


# Damage ---------------------------------------------------------------------------------

DAMAGE = """
import dataclasses, pathlib, shutil, sys
import numpy as np
from experiments.cli import command_line
from experiments.engine import checkpoints
from tests.test_engine import toy_run
from tests.test_runs import damages, toy_config

@dataclasses.dataclass(frozen=True)
class Config:
    pass

source = pathlib.Path(sys.argv[1])
for number, (name, damage) in enumerate(damages(source / "checkpoints" / "6")):
    workdir = source.with_name(f"damaged-{number}")
    shutil.copytree(source, workdir)
    damage(workdir / "checkpoints" / "6")
    print(f"{name}:", file=sys.stderr)
    try:
        command_line(lambda _: toy_run(toy_config(workdir, num_steps=6)), Config, [])
    except SystemExit as stopped:
        print(f"status {stopped.code}", file=sys.stderr)
    shutil.rmtree(workdir)
"""


def damages(folder):
    """Ways to damage each file of a checkpoint, with their names."""

    def change(name, content_fn):
        path = pathlib.Path(name)

        def damage(folder):
            content = content_fn((folder / path).read_bytes())
            (folder / path).unlink()
            if content is not None:
                (folder / path).write_bytes(content)

        return damage

    def one_bit(content):
        return content[:-1] + bytes([content[-1] ^ 1])

    def random(content):
        return np.random.default_rng(0).bytes(len(content))

    kinds = {
        "cut short": lambda content: content[: len(content) // 2],
        "empty": lambda content: b"",
        "zeros": lambda content: bytes(len(content)),
        "random": random,
        "one bit": one_bit,
        "missing": lambda content: None,
    }
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != checkpoints.CHECKSUMS:
            for kind, content_fn in kinds.items():
                yield f"{name} {kind}", change(name, content_fn)


def test_every_damage_of_a_checkpoint_is_one_line_and_nothing_else(tmp_path):
    unbroken(tmp_path / "run", num_steps=6, checkpoint_every=3)
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stderr.splitlines()
    names = [name for name, _ in damages(tmp_path / "run" / "checkpoints" / "6")]
    assert len(names) > 50
    assert lines[::3] == [f"{name}:" for name in names]
    for name, line, status in zip(names, lines[1::3], lines[2::3], strict=True):
        file, missing = name.split()[0], name.endswith("missing")
        reason = "is missing" if missing else "is not as it was written"
        assert "checkpoints/6 cannot be read: it is damaged" in line
        assert f"({file} {reason})" in line
        assert status == "status 1"


def test_a_checkpoint_of_another_network_is_one_line_and_nothing_else(tmp_path):
    flags = ["--num-steps", "2", "--steps-per-call", "2", "--checkpoint-every", "2"]
    flags += ["--dataset", "digits", "--batch-size", "8"]
    unbroken(tmp_path / "run", num_steps=6, checkpoint_every=3)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    done = subprocess.run(
        command(tmp_path / "run", *flags),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "belongs to another network" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_best_state_is_checked_too(tmp_path):
    state = initial_state(toy_system(), jax.random.key(0))
    checkpoints.save_best(tmp_path, state)
    assert_equal_states(checkpoints.load_best(tmp_path, state), state)
    checkpoints.save_best(tmp_path, state._replace(step=state.step + 1))
    assert int(checkpoints.load_best(tmp_path, state).step) == 1
    (tmp_path / "best" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(UserError, match=r"best cannot be read.*manifest.ocdbt is not as"):
        checkpoints.load_best(tmp_path, state)


@pytest.mark.parametrize("content", ["[1]", "{", "\udcff", ""])
def test_damaged_files_of_settings_are_named(tmp_path, content):
    config = toy_config(tmp_path, num_steps=6)
    unbroken(tmp_path, num_steps=6)
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=r"config.json is damaged .*; delete it"):
        loop.start(config)


@pytest.mark.parametrize("line", [b"[1]\n", b"\xff\xfe\n", b"7\n", b'{"loss": 1}\n'])
def test_a_log_with_a_damaged_line_is_named(tmp_path, line):
    config = toy_config(tmp_path, num_steps=6)
    unbroken(tmp_path, num_steps=6)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(UserError, match="does not hold each step up to the checkpoint"):
        toy_run(config)


# Lengthening ----------------------------------------------------------------------------


def finish(config, state):
    loop.finish(config, {"rate": 0.5}, loop.Trained(state, state, 1.0), None)
    (config.workdir / "report.html").touch()


@pytest.mark.parametrize("num_steps", [100, 99, 7])
def test_a_finished_run_is_lengthened_and_ends_as_an_unbroken_one(tmp_path, num_steps):
    short = toy_config(tmp_path / "run", num_steps=num_steps)
    finish(short, unbroken(short.workdir, num_steps=num_steps))
    assert not loop.start(short)
    longer = dataclasses.replace(short, num_steps=301)
    assert loop.start(longer)
    assert not (short.workdir / "results.json").exists()
    kept = short.workdir / f"results-{num_steps}-steps.json"
    assert json.loads(kept.read_text())["metrics"] == {"rate": 0.5}
    assert loop.start(longer)  # stopped before its end, it is not complete
    state = toy_run(longer).state
    assert_equal_states(state, unbroken(tmp_path / "unbroken", num_steps=301))
    np.testing.assert_array_equal(logs.read_log(longer.workdir)["step"], np.arange(1, 302))
    finish(longer, state)
    assert not loop.start(longer)
    for steps in (num_steps, 300):
        with pytest.raises(UserError, match=f"num_steps: 301 there, {steps} asked"):
            loop.start(dataclasses.replace(short, num_steps=steps))


def test_nothing_else_may_differ_when_a_run_is_lengthened(tmp_path):
    unbroken(tmp_path, num_steps=9)
    for changes in ({"seed": 1}, {"steps_per_call": 1}, {"checkpoint_every": 3}):
        with pytest.raises(UserError, match="holds a run with other settings"):
            loop.start(toy_config(tmp_path, num_steps=12, **changes))
    assert json.loads((tmp_path / "config.json").read_text())["num_steps"] == 9


def test_a_run_on_a_schedule_is_not_lengthened_and_says_what_works(tmp_path):
    short = small_config(tmp_path / "run", recipe="tuned")
    loop.start(short)
    (short.workdir / "results.json").write_text('{"metrics": {}}')
    with pytest.raises(UserError) as caught:
        loop.start(dataclasses.replace(short, num_steps=12))
    assert str(caught.value) == (
        f"{short.workdir} holds a run of 6 steps that cannot be lengthened: its learning "
        "rate falls to zero at the last step. Start another run from its model, with "
        f"--init-from {short.workdir / 'model'} and another --workdir"
    )
    assert loop.start(dataclasses.replace(short, workdir=tmp_path / "b", num_steps=12))


# From a model ---------------------------------------------------------------------------


def saved_model(folder, module, config, seed=5):
    """Saves the model of a state that was never trained, and returns the state."""
    system = module.build(config)
    state = initial_state(system, jax.random.key(seed))
    save_model(folder, system.model(state))
    return state


def test_a_run_starts_from_the_parameters_of_a_model(tmp_path):
    config = toy_config(tmp_path / "run", num_steps=9, init_from=tmp_path / "model")
    system = toy_system()
    state = initial_state(system, jax.random.key(0))
    trained = state._replace(params={"encoder": jnp.array([5.0, 6.0, 7.0])})
    save_model(tmp_path / "model", system.model(trained))
    loop.start(config)
    wanted = toy_run(config).state
    losses = logs.read_log(config.workdir)["loss"]
    assert losses[0] == pytest.approx(3**2 + 4**2 + 5**2, abs=0.01)  # from 2
    settings = json.loads((config.workdir / "config.json").read_text())
    assert settings["init_from"] == str(tmp_path / "model")
    # the model is not needed any more to go on
    shutil.rmtree(tmp_path / "model")
    longer = dataclasses.replace(config, num_steps=12)
    loop.start(longer)
    assert int(toy_run(longer).state.step) == 12
    assert wanted.params["encoder"][0] > 2.1


def test_a_model_is_the_start_of_another_kind_of_training(tmp_path):
    config = small_config(tmp_path / "run")
    trained = saved_model(tmp_path / "model", mnist_mlp, config)
    tuned = small_config(tmp_path / "run", recipe="tuned", batch_size=10)
    system = mnist_mlp.build(tuned)
    fresh = initial_state(system, jax.random.key(0))
    state = init_from.load_parameters(tmp_path / "model", fresh, system.optimizer)
    assert_equal_states(state.params["encoder"], trained.params["encoder"])
    assert state.params["log_temperature"] == fresh.params["log_temperature"]


def test_what_is_learnt_beside_the_encoder_is_taken_where_the_model_has_it(tmp_path):
    config = omniglot_koch.Config(size="half")
    system = omniglot_koch.build(config)
    fresh = jax.eval_shape(lambda: initial_state(system, jax.random.key(0)))
    fresh = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), fresh)
    params = {
        "encoder": jax.tree.map(lambda x: x + 1, fresh.params["encoder"]),
        "head": jax.tree.map(lambda x: x + 2, fresh.params["head"]),
    }
    named = init_from.named_arrays(params)
    found = init_from.as_in_state(named)
    assert found.keys() == init_from.named_arrays({"params": fresh.params}).keys()
    assert all(
        (array == (2 if "head" in name else 1)).all() for name, array in found.items()
    )


@pytest.mark.parametrize(
    ("module", "settings", "words"),
    [
        (
            mnist_mlp,
            {"dataset": "mnist"},
            r"Dense_0/kernel is of shape \(64, 128\) there and of shape \(784, 128\) in",
        ),
        (
            mnist_towers,
            {"dataset": "digits", "variants": ("c",)},
            "Dense_1/bias is of shape .* there and missing in this run",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_the_name_of_a_parameter(
    tmp_path, module, settings, words
):
    saved_model(tmp_path / "model", mnist_mlp, small_config(tmp_path / "run"))
    system = module.build(module.Config(**settings))
    fresh = initial_state(system, jax.random.key(0))
    with pytest.raises(
        UserError, match=f"--init-from: .*model has another encoder: {words}"
    ):
        init_from.load_parameters(tmp_path / "model", fresh, system.optimizer)


def test_a_folder_that_is_no_model_is_refused_before_any_work(tmp_path):
    config = toy_config(tmp_path / "run", init_from=tmp_path / "nothing")
    with pytest.raises(UserError, match=r"--init-from: .*nothing is no model folder"):
        loop.start(config)
    assert not config.workdir.exists()
