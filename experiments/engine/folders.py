"""The folder of a run: its settings in config.json, and the refusal of other ones."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.cli import write_whole
from siamese_jax.errors import UserError


def other_settings(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The names of the settings that differ.

    >>> other_settings({"seed": 1, "dim": 2}, {"seed": 1, "dim": 3, "rate": 0.1})
    ['dim', 'rate']
    """
    names = sorted(found.keys() | asked.keys())
    return [name for name in names if found.get(name) != asked.get(name)]


def check_settings(
    directory: pathlib.Path, found: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
    """Refuses other settings than those of the folder.

    Raises:
      UserError: If one differs.
    """
    if different := other_settings(found, asked):
        words = [f"{n}: {found.get(n)} there, {asked.get(n)} asked" for n in different]
        raise UserError(
            f"{directory} holds a run with other settings ({'; '.join(words)}); "
            "choose another --workdir, or delete it"
        )


def write_settings(directory: pathlib.Path, asked: Mapping[str, Any]) -> None:
    """Makes the folder and writes the settings to it.

    Raises:
      UserError: If it is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--workdir: {directory} is not a folder")
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "config.json", json.dumps(asked, indent=2) + "\n")
