"""Tests of the command siamese-jax: its help, its defaults, its process and its imports."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from siamese_jax import cli
from siamese_jax.images import Preparation
from siamese_jax.model import pixel_model, save_model
from siamese_jax.verification import calibrate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", [None, "verify", "identify", "embed", "evaluate"])
def test_help_keeps_the_lines_of_a_description_apart(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments=[*([command] if command else []), "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 92
    assert "usage: siamese-jax" in shown
    assert "Args:" not in shown
    if command is None:
        lines = [line.strip() for line in shown.splitlines()]
        assert "siamese-jax verify --model DIR A B" in lines
        for name in cli.COMMANDS:
            assert f"\u2022 {name}" in shown
    else:
        summary = cli.COMMANDS[command].__doc__.splitlines()[0]
        assert shown.startswith(f"{summary}\n\n")
        assert shown.count(summary) == 1


def test_without_a_rate_the_smallest_is_taken_that_can_be_told(tmp_path, capsys):
    for name, grey in (("dark", 0), ("light", 255)):
        (tmp_path / "gallery" / name).mkdir(parents=True)
        Image.new("L", (2, 2), grey).save(tmp_path / "gallery" / name / "0.png")
    few = calibrate(np.array([0.5, 1.0]), np.array([True, False]), pairs="two pairs")
    model = dataclasses.replace(pixel_model(Preparation(size=(2, 2))), calibration=few)
    save_model(tmp_path / "model", model)
    files = ("--model", tmp_path / "model", "--gallery", tmp_path / "gallery")
    files = (*files, "--queries", tmp_path / "gallery" / "dark" / "0.png")
    arguments = ["identify", *map(str, files), "--json", str(tmp_path / "answers.json")]
    cli.main(arguments=arguments)
    assert json.loads((tmp_path / "answers.json").read_text())["threshold_from"]
    assert "not enough to tell a rate of 0.1: at most 0.667" in capsys.readouterr().err
    cli.main(arguments=[*arguments, "--false-accept-rate", "0.1"])
    assert "no threshold for 2 classes" in capsys.readouterr().out


def run_python(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path):
    flags = ("verify", "a", "b", "--model", str(tmp_path))
    result = run_python("-m", "siamese_jax", *flags, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "is no model folder" in result.stderr
    assert "Traceback" not in result.stderr


def test_importing_the_command_line_is_quick():
    result = run_python("-c", "import sys, siamese_jax.cli; print(*sys.modules)")
    imported = {name.split(".")[0] for name in result.stdout.split()}
    assert "siamese_jax" in imported
    assert not {"jax", "numpy", "tyro", "PIL", "flax", "safetensors"} & imported
