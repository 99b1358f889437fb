"""Tests of the scripts for clusters, with stand-ins for the programs of a cluster."""

import json
import os
import pathlib
import socket
import stat
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "docs" / "scripts").glob("*.sh"))
FIRST_PORT = 65_535 - 2**12 + 1  # JAX: the port is this plus the number of the job

SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for number in 0 1; do
    SLURM_PROCID=$number SLURM_LOCALID=$number "$@" > "$LOGS/$number" 2>&1 &
    processes[$number]=$!
done
for process in "${processes[@]}"; do wait "$process" || exit 1; done
"""
GCLOUD = """#!/bin/bash
printf '%s\\0' "$@" > "$SEEN"
"""
PYTHON = """#!/bin/bash
printf '%s\\0' "$PWD" "$@"
"""


def stand_in(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def searching(folder):
    """A PATH that finds the stand-ins of a folder first, then this Python."""
    own = pathlib.Path(sys.executable).parent
    return os.pathsep.join([str(folder), str(own), os.environ["PATH"]])


def number_of_a_job():
    """Slurm's number of a job, such that the port that JAX makes of it is free."""
    for number in range(2**12):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", FIRST_PORT + number))
            except OSError:
                continue
            return number
    raise OSError("no free port")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_has_no_mistake_of_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


@pytest.mark.slow
def test_slurm_starts_the_processes_of_one_run(tmp_path):
    stand_in(tmp_path, "srun", SRUN)
    cluster = {
        "PATH": searching(tmp_path),
        "LOGS": str(tmp_path),
        "SLURM_JOB_ID": str(number_of_a_job()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "OMP_NUM_THREADS": "1",
        "JAX_NUM_CPU_DEVICES": "1",
        "http_proxy": "http://127.0.0.1:9",
    }
    flags = "mnist_mlp --dataset digits --num-steps 10 --batch-size 64 --workdir".split()
    ended = subprocess.run(
        ["bash", ROOT / "docs" / "scripts" / "slurm.sh", *flags, tmp_path / "run"],
        cwd=ROOT,
        env=os.environ | cluster,
        check=False,
    )
    logs = [(tmp_path / str(number)).read_text() for number in range(2)]
    assert ended.returncode == 0, logs
    assert "trains on 2 of 2 devices" in logs[0]
    assert "trains on" not in logs[1]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["num_steps"] == 10


def test_all_hosts_of_a_tpu_slice_get_the_flags_as_they_were_given(tmp_path):
    stand_in(tmp_path, "gcloud", GCLOUD)
    stand_in(tmp_path, "python3", PYTHON)
    (tmp_path / "siamese_jax").mkdir()
    flags = ["glyphs", "--workdir", "/mnt/a folder", "--margin", "1e-3"]
    script = [ROOT / "docs" / "scripts" / "tpu_pod.sh", *flags]
    env = os.environ | {"PATH": searching(tmp_path), "SEEN": str(tmp_path / "seen")}
    alone = subprocess.run(script, env=env, check=False, capture_output=True, text=True)
    assert "TPU_NAME: must be the name of the slice" in alone.stderr
    assert alone.returncode != 0

    subprocess.run(script, env=env | {"TPU_NAME": "slice", "ZONE": "here"}, check=True)
    *about, command = (tmp_path / "seen").read_text().rstrip("\0").split("\0")
    assert about == "compute tpus tpu-vm ssh slice --zone=here --worker=all".split()
    on_a_host = subprocess.run(
        ["sh", "-c", command.removeprefix("--command=")],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    folder, *given = on_a_host.stdout.rstrip("\0").split("\0")
    assert folder == str(tmp_path / "siamese_jax")
    assert given == ["-m", "experiments", *flags, "--coordinator", "auto"]
