"""Tests of the command siamese-jax as a process: its help, its errors, what it imports."""

import subprocess
import sys

import pytest

from siamese_jax import cli

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", [None, "verify", "identify", "embed"])
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
