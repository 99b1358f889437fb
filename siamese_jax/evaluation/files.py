"""Files of `siamese-jax evaluate`: arrays, labels, images in the order of rows, pairs."""

import csv
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from siamese_jax._names import shown
from siamese_jax.errors import UserError
from siamese_jax.images import class_names, list_images, read_image

_NUM_CHECKED = 16  # images of floats whose range is checked

ImageFn = Callable[[int], UInt8[np.ndarray, "height width channels"]]


def read_array(flag: str, path: pathlib.Path) -> np.ndarray:
    """Reads an array of a file that `numpy.save` has written.

    Raises:
      UserError: If there is no such file, or it is no array.
    """
    if not path.is_file():
        raise UserError(f"{flag}: {path} is not a file")
    with path.open("rb") as file:
        if file.read(2) == b"PK":  # as of .npz, whole or damaged
            raise UserError(f"{flag}: {path} is an archive of arrays; one .npy is wanted")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        objects = "Python objects" in str(error)
        reason = "it holds Python objects" if objects else "it is damaged or another file"
        raise UserError(
            f"{flag}: {path} is no .npy file of numbers or strings: {reason}"
        ) from error
    except EOFError as error:
        raise UserError(f"{flag}: {path} is empty") from error


def read_labels(flag: str, path: pathlib.Path) -> Any:
    """Reads labels: an array, or a list of image files whose folders are the classes.

    Raises:
      UserError: If the file cannot be read.
    """
    if path.suffix.lower() == ".npy" or not path.is_file():
        return np.asarray(read_array(flag, path))
    return class_names(_listed_files(flag, path))


def read_images(flag: str, path: pathlib.Path, num_rows: int) -> ImageFn:
    """A function that gives the image of a row.

    Args:
      flag: The flag, for error messages.
      path: An array of uint8 `[n, height, width]` or with channels, a folder of images, or
        a list of image files: text with one path a line, or the JSON file that
        `siamese-jax embed` writes.
      num_rows: Number of rows, which is that of the images.

    Raises:
      UserError: If the images cannot be read, or are not as many as the rows.
    """
    if path.is_dir():
        files = list_images([path])
    elif path.suffix.lower() == ".npy" or not path.is_file():
        return _images_of(flag, read_array(flag, path), num_rows)
    else:
        files = _listed_files(flag, path)
    _check_number(flag, len(files), num_rows)
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{flag}: {absent[0]} is not a file")
    return lambda row: read_image(files[row], color=True)


def _listed_files(flag: str, path: pathlib.Path) -> list[pathlib.Path]:
    """The paths in a list, those that are not there relative to the folder of the list."""
    try:
        text = path.read_text(encoding="utf-8")
        is_json = path.suffix.lower() == ".json"
        names = json.loads(text)["files"] if is_json else text.splitlines()
        files = [pathlib.Path(name) for name in names if name]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{flag}: {path} is no list of image files ({error})") from error
    return [file if file.exists() else path.parent / file for file in files]


def _images_of(flag: str, images: np.ndarray, num_rows: int) -> ImageFn:
    shape = images.shape
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise UserError(
            f"{flag}: images must have shape [n, height, width] or [n, height, width, 1 or "
            f"3]; got {shape}"
        )
    _check_number(flag, len(images), num_rows)
    if images.dtype == np.uint8:
        return lambda row: np.asarray(images[row]).reshape(*shape[1:3], -1)
    if images.dtype != bool and images.dtype.kind != "f":
        raise UserError(
            f"{flag}: images must be uint8, or floats in [0, 1]; got {images.dtype}"
        )

    some = np.asarray(images[:: -(-len(images) // _NUM_CHECKED)], np.float32)
    if not (-0.01 <= some.min() and some.max() <= 1.01):  # NaN is neither
        raise UserError(
            f"{flag}: images must be uint8, or floats in [0, 1]; got floats from "
            f"{some.min():g} to {some.max():g}"
        )

    def in_bytes(row: int) -> UInt8[np.ndarray, "height width channels"]:
        values = np.clip(np.asarray(images[row], np.float32), 0, 1)
        return np.rint(255 * values).astype(np.uint8).reshape(*shape[1:3], -1)

    return in_bytes


def _check_number(flag: str, found: int, num_rows: int) -> None:
    if found != num_rows:
        raise UserError(f"{flag}: {num_rows} images are wanted, one a row; got {found}")


# Pairs ----------------------------------------------------------------------------------


class PairList(NamedTuple):
    """The pairs of a list.

    Attributes:
      same: True where the two are of one class.
      examples: Rows of the two, or None if the list has distances.
      distances: Distances, or None if the list has rows.
      folds: Number of the fold of each pair, or None.
    """

    same: Bool[np.ndarray, " n"]
    examples: Int[np.ndarray, "2 n"] | None
    distances: Float[np.ndarray, " n"] | None
    folds: Int[np.ndarray, " n"] | None


_SAME = {"1": True, "true": True, "same": True, "0": False, "false": False}
_SAME["different"] = False


def read_pairs(path: pathlib.Path, num_rows: int | None) -> PairList:
    """Reads a list of pairs: CSV with the columns a, b, same or distance, same.

    Args:
      path: The file. Its first line names the columns. `a` and `b` are numbers of rows,
        from 0. `same` is 1 or 0, or true or false. A column `fold` is optional.
      num_rows: Number of embeddings, or None if there are none.

    Raises:
      UserError: If a column is missing, there are columns of both kinds, or a pair is
        wrong, which is named.
    """
    if not path.is_file():
        raise UserError(f"--pairs: {path} is not a file")
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            with_rows = {"a", "b"} <= set(columns)
            if "same" not in columns or with_rows == ("distance" in columns):
                raise UserError(
                    f"--pairs: the first line of {path} must name the columns a, b, same "
                    f"or else distance, same; it is {shown(','.join(columns))!r}"
                )
            lines = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"--pairs: {path} is no CSV file ({error})") from error
    if not lines:
        raise UserError(f"--pairs: {path} has no pairs")
    same = np.array([_parsed(path, i, line, "same", _same) for i, line in enumerate(lines)])
    folds = None
    if "fold" in columns:
        names = [_parsed(path, i, line, "fold", str) for i, line in enumerate(lines)]
        folds = np.unique(names, return_inverse=True)[1].astype(np.int32)
    if not with_rows:
        distances = [
            _parsed(path, i, of, "distance", _finite) for i, of in enumerate(lines)
        ]
        return PairList(same, None, np.array(distances), folds)
    if num_rows is None:
        raise UserError("--pairs: rows a and b need --embeddings")

    def row(text: str) -> int:
        number = int(text)
        if not 0 <= number < num_rows:
            raise ValueError(f"it must be from 0 to {num_rows - 1}")
        return number

    examples = np.array(
        [
            [_parsed(path, i, line, name, row) for i, line in enumerate(lines)]
            for name in ("a", "b")
        ]
    )
    if len(alike := np.flatnonzero(examples[0] == examples[1])):
        raise UserError(
            f"--pairs: {path}, pair {alike[0] + 1}: a and b are both row "
            f"{examples[0, alike[0]]}; a row is not compared with itself"
        )
    return PairList(same, examples, None, folds)


def _parsed(
    path: pathlib.Path, place: int, line: dict, column: str, parse_fn: Callable[[str], Any]
) -> Any:
    text = line.get(column)
    try:
        if not isinstance(text, str) or not text.strip():
            raise ValueError("it is missing")
        return parse_fn(text.strip())
    except ValueError as error:
        raise UserError(
            f"--pairs: {path}, pair {place + 1}: {column} is {shown(str(text))!r}: {error}"
        ) from None


def _same(text: str) -> bool:
    if text.lower() not in _SAME:
        raise ValueError("it must be 1 or 0")
    return _SAME[text.lower()]


def _finite(text: str) -> float:
    number = float(text)
    if not np.isfinite(number):
        raise ValueError("it must be finite")
    return number
