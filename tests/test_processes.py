"""Tests of runs with several devices and several processes, as they are started."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.engine import processes
from experiments.engine.config import RunConfig
from siamese_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
    "--dataset digits --num-steps 120 --steps-per-call 5 --checkpoint-every 20 "
    "--batch-size 64 --compute-dtype float64"
).split()
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # many processes share few cores here


# Flags ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"num_processes": 2}, "--num-processes is used only with --coordinator HOST:PORT"),
        ({"coordinator": "auto", "process_id": 0}, "--process-id is used only with"),
        ({"coordinator": "localhost:1"}, "needs --num-processes"),
        (
            {"coordinator": "localhost:1", "num_processes": 2, "process_id": 2},
            "--process-id must be below --num-processes 2; got 2",
        ),
    ],
)
def test_flags_of_processes_that_do_not_fit_are_refused(flags, words):
    with pytest.raises(UserError, match=words), processes.joined(RunConfig(**flags)):
        pass


def test_one_process_joins_nothing():
    config = RunConfig()
    with processes.joined(config) as own:
        assert own is config


# Runs -----------------------------------------------------------------------------------


def start(workdir, *flags, num_devices, log):
    command = [sys.executable, "-m", "experiments", "mnist_mlp", "--workdir", str(workdir)]
    return subprocess.Popen(
        [*command, *SMALL, *flags],
        cwd=ROOT,
        env=os.environ | ONE_THREAD | {"JAX_NUM_CPU_DEVICES": str(num_devices)},
        stdout=log,
        stderr=log,
    )


def start_two(workdir, logs):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
    return [
        start(workdir, *shared, "--process-id", str(number), num_devices=2, log=log)
        for number, log in enumerate(logs)
    ]


def final_state(workdir):
    checkpoints = ocp.CheckpointManager(workdir / "checkpoints")
    with jax.enable_x64(True), checkpoints as manager:
        step = manager.latest_step()
        return step, jax.tree.leaves(manager.restore(step, args=ocp.args.StandardRestore()))


@pytest.mark.slow
def test_two_processes_train_what_one_trains_though_one_of_them_is_killed(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    with (tmp_path / "alone").open("w") as log:
        alone = start(one, num_devices=1, log=log)
        assert alone.wait() == 0, (tmp_path / "alone").read_text()

    logs = [(tmp_path / f"process{number}").open("w") for number in range(2)]
    first, second = start_two(two, logs)
    metrics = two / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 30:
        assert first.poll() is None, (tmp_path / "process0").read_text()
        time.sleep(0.01)
    second.kill()
    second.wait()
    killed = time.monotonic()
    assert first.wait() != 0
    assert time.monotonic() - killed < 60
    words = (tmp_path / "process0").read_text()
    # the second is what JAX says if it notices first
    assert "another process of this run has ended" in words or "another task died" in words
    assert "Traceback" not in words
    assert not (two / "results.json").exists()

    for process in start_two(two, logs):
        assert process.wait() == 0, (tmp_path / "process0").read_text()
    assert "continuing from step" in (tmp_path / "process0").read_text()
    for log in logs:
        log.close()
    (last, found), (wanted_last, wanted) = final_state(two), final_state(one)
    assert last == wanted_last == 120
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-12)
    results = [json.loads((path / "results.json").read_text()) for path in (one, two)]
    assert [found["device"] for found in results] == ["cpu x 1", "cpu x 4"]
    for name, value in results[0]["metrics"].items():
        np.testing.assert_allclose(results[1]["metrics"][name], value, rtol=1e-6)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [
        *range(1, 121)
    ]


@pytest.mark.slow
def test_eight_devices_end_at_the_parameters_of_one():
    found = subprocess.run(
        [sys.executable, "tests/train_on_devices.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    for name, end in json.loads(found.stdout[found.stdout.index("{") :]).items():
        assert end["dtypes"] == ["float64"]
        for form, apart in end["apart"].items():
            assert apart < 1e-9, (name, form, apart)


@pytest.mark.slow
def test_the_settings_of_another_run_end_all_processes(tmp_path):
    """Process 0 alone sees them, and the others wait for it."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("")
    (workdir / "config.json").write_text('{"experiment": "glyphs"}')
    logs = [(tmp_path / f"process{number}").open("w") for number in range(2)]
    began = time.monotonic()
    first, second = start_two(workdir, logs)
    assert first.wait() == 1
    assert second.wait() != 0
    assert time.monotonic() - began < 120
    for log in logs:
        log.close()
    words = (tmp_path / "process0").read_text()
    assert "holds a run with other settings" in words
    assert "Traceback" not in words
