"""Checks of output paths, and files that are written whole or not at all."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from siamese_jax.errors import UserError


def check_output(
    flag: str, path: pathlib.Path | None, *, endings: tuple[str, ...] = ()
) -> None:
    """Checks, before any work is done, that a file can be written to the path of a flag.

    Raises:
      UserError: If the ending is another, the path is a folder, or the folder that it lies
        in does not exist or cannot be written to.
    """
    if path is None:
        return
    if endings and path.suffix.lower() not in endings:
        raise UserError(f"{flag}: {path} must end in {' or '.join(endings)}")
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; a file is wanted")
    _check_parent(flag, path)


def check_new_folder(flag: str, path: pathlib.Path) -> None:
    """Checks, before any work is done, that a folder can be made, or is there and empty.

    Raises:
      UserError: If there is a file, or a folder with something in it, or the folder that it
        lies in does not exist or cannot be written to.
    """
    if path.is_dir():
        if any(path.iterdir()):
            raise UserError(f"{flag}: the folder {path} exists and is not empty")
        if not os.access(path, os.W_OK):
            raise UserError(f"{flag}: the folder {path} cannot be written to")
        return
    if path.exists():
        raise UserError(f"{flag}: {path} is a file; a new folder is wanted")
    _check_parent(flag, path)


def _check_parent(flag: str, path: pathlib.Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{flag}: the folder {path.parent} does not exist")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{flag}: the folder {path.parent} cannot be written to")


def finite_or_none(value: Any) -> Any:
    """Returns None for a number without a value, which JSON cannot hold.

    >>> print(finite_or_none(float("nan")), finite_or_none(0.5))
    None 0.5
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def open_whole(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file for bytes; a killed process leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        yield file
    part.replace(path)


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that a killed process leaves the old file or the new one."""
    with open_whole(path) as file:
        file.write(text.encode())


def checksum(content: bytes) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes all of a file or nothing; a top entry without a value becomes null."""
    plain = {key: finite_or_none(value) for key, value in content.items()}
    write_whole(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")
