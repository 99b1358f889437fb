"""Tests of the flags of all commands: ranges, names of folders, files that can be run."""

import ast
import dataclasses
import importlib
import math
import pathlib
import re
import subprocess
import sys
import types
import typing

import pytest

from experiments.__main__ import ROOMS, list_room
from experiments.__main__ import main as run_experiment
from experiments.engine import config as settings
from experiments.engine.config import Range, RunConfig, check_config, check_range, setting
from experiments.systems import glyphs, image_folder, mnist_conv, omniglot_supcon
from siamese_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
MODULES = [(room, name) for room in ROOMS for name in list_room(room)]
CONFIGS = {
    name: importlib.import_module(f"experiments.{room}.{name}").Config
    for room, name in MODULES
}


def is_numeric(kind):
    """Whether a type has numbers; choices among some numbers are checked by the parser."""
    if typing.get_origin(kind) in (typing.Literal, None):
        return kind in (int, float)
    return any(map(is_numeric, typing.get_args(kind)))


NUMERIC = [
    pytest.param(config_type, field, id=f"{name}-{field.name}")
    for name, config_type in CONFIGS.items()
    for field in dataclasses.fields(config_type)
    if is_numeric(typing.get_type_hints(config_type)[field.name])
]


def test_the_numeric_fields_are_found():
    assert len(NUMERIC) > 100
    assert is_numeric(float | None)
    assert is_numeric(tuple[int, ...])
    assert not is_numeric(typing.Literal[1, 3])
    assert not is_numeric(bool)
    assert isinstance(int | None, types.UnionType)


def outside(bounds):
    """Values just outside of each bound, and numbers that are none."""
    for bound, beyond in (
        (bounds.at_least, -1),
        (bounds.above, 0),
        (bounds.at_most, 1),
        (bounds.below, 0),
    ):
        if bound is not None:
            yield bound + beyond
    yield from (math.nan, math.inf, -math.inf, 2**63)


@pytest.mark.parametrize(("config_type", "field"), NUMERIC)
def test_every_number_has_a_range_and_is_refused_outside_of_it(config_type, field):
    bounds = field.metadata["range"]
    assert bounds != Range(), "declare it with `setting`"
    assert bounds.at_least is not None or bounds.above is not None
    check_range(field, field.default)
    flag = "--" + field.name.replace("_", "-")
    several = isinstance(field.default, tuple)
    for value in outside(bounds):
        if value == 2**63 and not isinstance(value, type(field.default)):
            continue
        wrong = (*field.default[1:], value) if several else value
        with pytest.raises(UserError, match=f"^{flag} must be .*; got .*"):
            check_range(field, wrong)
    if several and field.default:
        with pytest.raises(UserError, match=f"^{flag} needs at least one value; got none"):
            check_range(field, ())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            mnist_conv.Config(learning_rate=-1.0),
            "--learning-rate must be above 0; got -1.0",
        ),
        (image_folder.Config(max_scale=1.0), "--max-scale must be at least 0 and below 1"),
        (
            image_folder.Config(image_size=(64, 0)),
            r"--image-size must be at least 1; got \(64, 0\)",
        ),
        (RunConfig(seed=-1), "--seed must be at least 0 and at most 4,294,967,295; got -1"),
        (RunConfig(seed=10**19), "--seed must be .* at most 4,294,967,295; got 1000"),
        (RunConfig(num_steps=10**400), "--num-steps must be at most 2,147,483,647"),
        (
            glyphs.Config(temperature=math.inf),
            "--temperature must be finite; got inf",
        ),
    ],
)
def test_a_number_out_of_its_range_is_named_with_the_range(config, words):
    with pytest.raises(UserError, match=words):
        check_config(config)


def test_the_ends_of_a_range_belong_to_it_or_not():
    closed, opened = Range(at_least=0, at_most=1), Range(above=0, below=1)
    assert [closed.holds(x) for x in (0, 0.5, 1)] == [True] * 3
    assert [opened.holds(x) for x in (0, 0.5, 1)] == [False, True, False]
    check_config(RunConfig(seed=2**32 - 1))


@pytest.mark.slow
@pytest.mark.parametrize(("room", "name"), [m for m in MODULES if m[1] != "tfds"])
def test_a_command_checks_its_numbers_before_it_looks_at_anything(
    room, name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    numbers = [p.values[1] for p in NUMERIC if p.values[0] is CONFIGS[name]]
    required = [
        word
        for field in dataclasses.fields(CONFIGS[name])
        if field.default is dataclasses.MISSING
        for word in (f"--{field.name}", "nowhere")
    ]
    for field in numbers:
        kind = typing.get_type_hints(CONFIGS[name])[field.name]
        if typing.get_origin(kind) is tuple:
            continue
        value = "-1" if int in (kind, *typing.get_args(kind)) else "-0.5"
        flag = "--" + field.name.replace("_", "-")
        with pytest.raises(SystemExit) as stopped:
            run_experiment([name, *required, flag, value])
        assert stopped.value.code == 1
        assert capsys.readouterr().err.startswith(f"error: {flag} must be")
    assert list(tmp_path.iterdir()) == []


def test_what_stands_for_the_preset_s_value_may_be_empty():
    check_config(omniglot_supcon.Config(num_steps=0, widths=(), num_blocks=0))


def test_a_tuple_that_must_be_given_is_not_empty():
    @dataclasses.dataclass(frozen=True)
    class Config:
        models: tuple[pathlib.Path, ...]
        margin: float = setting(1.0, above=0)

    with pytest.raises(UserError, match="--models needs at least one value; got none"):
        check_config(Config(()))
    check_config(Config((pathlib.Path("a"),)))


# Names of folders -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder/" * 60, "é" * 200, "\udcff" * 90, "顔" * 100])
def test_a_long_name_of_a_folder_is_shortened_with_a_hash(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = image_folder.Config(data_dir=pathlib.Path(name + "a")).directory
    other = image_folder.Config(data_dir=pathlib.Path(name + "b")).directory
    again = image_folder.Config(data_dir=pathlib.Path(name + "a")).directory
    assert first == again != other
    assert first.parent == pathlib.Path("runs")
    assert first.name.startswith("image_folder-data_dir=")
    for folder in (first, other):
        assert len(folder.name.encode()) <= 120
        folder.mkdir(parents=True)


def test_a_short_name_stays_as_it_is():
    assert image_folder.Config(seed=7).directory.name == "image_folder-seed=7"
    assert "é" * 40 in image_folder.Config(data_dir=pathlib.Path("é" * 40)).directory.name


def test_seeds_give_keys_at_both_ends():
    for seed in (0, settings.LARGEST_SEED):
        assert settings.stream(RunConfig(seed=seed), "train").shape == ()


# Commands in the docstrings -------------------------------------------------------------


def test_quick_commands_have_folders_of_their_own():
    for name, config_type in CONFIGS.items():
        text = sys.modules[config_type.__module__].__doc__
        _, _, quick = text.partition("\nQuick:")
        for folder in re.findall(r"--workdir (runs/\S+)", quick.partition("\n\n")[0]):
            assert folder == f"runs/quick_{name}"


# Files that are run by their path -------------------------------------------------------


@pytest.mark.parametrize(("room", "name"), MODULES)
def test_every_file_runs_by_its_path(room, name):
    tree = ast.parse((ROOT / "experiments" / room / f"{name}.py").read_text())
    last = ast.unparse(tree.body[-1])
    assert last == "if __name__ == '__main__':\n    command_line(main, Config)"


@pytest.mark.slow
def test_a_file_that_is_run_by_its_path_explains_itself(tmp_path):
    file = ROOT / "experiments" / "systems" / "image_folder.py"
    done = subprocess.run(
        [sys.executable, str(file), "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("One-shot recognition on your own images")
    assert "--data-dir" in done.stdout
    assert "usage: python -m experiments image_folder" in done.stdout
