"""Reader of the archive of Lake's one-shot runs, all_runs.zip.

The archive lies beside Omniglot (python/one-shot-classification). It has 20 runs of 20
one-shot tasks: a training image of each of 20 characters of one alphabet, drawn by one
person, and a test image of each, drawn by another person.

The archive is read in memory and never unpacked. Its size, its names, and the sizes and
dimensions of its files are checked before anything is decoded.
"""

import io
import pathlib
import re
import warnings
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from siamese_jax.errors import UserError


class LakeRun(NamedTuple):
    """The tasks of one run, which share their training images.

    Attributes:
      name: The name of the run's folder.
      test_images: uint8 [n, height, width, 1], dark ink on light paper.
      train_images: uint8 [m, height, width, 1], one of each class.
      answers: [n], for each test image the row in `train_images` that has its class.
    """

    name: str
    test_images: np.ndarray
    train_images: np.ndarray
    answers: np.ndarray


# The full archive has 0.4 MB, 840 files of up to 1 kB, and images of 105 x 105 pixels.
MAX_ARCHIVE_BYTES = 32 * 2**20
MAX_ENTRIES = 10_000
MAX_TOTAL_BYTES = 64 * 2**20
MAX_FILE_BYTES = 256 * 2**10
MAX_SIDE = 256

_RUN = re.compile("run[0-9]{1,9}")
_LITTER = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}  # by file managers
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)

Files = dict[str, zipfile.ZipInfo]  # keys such as run01/test/item01.png


def read_runs(path: pathlib.Path) -> list[LakeRun]:
    """Returns all runs of an archive, sorted by their numbers.

    Args:
      path: A zip file with folders run01, run02 ..., at its top or in one common folder.
        Each folder has the images of a run and a file class_labels.txt, which has a line
        "run01/test/item01.png run01/training/class08.png" for each test image.

    Raises:
      UserError: If the archive is not as described or too large. The message names the
        file that is wrong, and why.
    """
    try:
        with _open(path) as archive:
            files = _find_files(archive.infolist())
            names = sorted({file.split("/")[0] for file in files}, key=_run_number)
            labels = {name: _read_labels(archive, files, name) for name in names}
            images = _read_images(archive, files)
        return [_assemble(name, labels[name], images) for name in names]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__


def _open(path: pathlib.Path) -> zipfile.ZipFile:
    """Opens a zip file of limited size."""
    if not path.is_file():
        raise UserError("there is no such file; wanted is a zip archive of runs")
    size = path.stat().st_size
    if size > MAX_ARCHIVE_BYTES:
        raise UserError(f"it has {size:,} bytes; at most {MAX_ARCHIVE_BYTES:,} are read")
    try:
        return zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise UserError(f"it cannot be read as a zip archive: {error}") from error


def _find_files(entries: list[zipfile.ZipInfo]) -> Files:
    """Returns the files of all runs; other files are ignored."""
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or total > MAX_TOTAL_BYTES:
        raise UserError(
            f"it declares {len(entries):,} entries of {total:,} bytes in all; at most "
            f"{MAX_ENTRIES:,} entries of {MAX_TOTAL_BYTES:,} bytes are read"
        )
    files: Files = {}
    folders = set()
    for entry in entries:
        parts = _safe_parts(entry.orig_filename)
        is_litter = any(part in _LITTER or part.startswith("._") for part in parts)
        depths = [i for i, part in enumerate(parts) if _RUN.fullmatch(part)]
        if entry.is_dir() or is_litter or not depths:
            continue
        name = "/".join(parts[depths[0] :])
        if name in files:
            raise UserError(f"{name!r} is there twice")
        files[name] = entry
        folders.add("/".join(parts[: depths[0]]))
    if not files:
        raise UserError("it holds no runs: there are no folders run01, run02 ...")
    if len(folders) > 1:
        raise UserError(f"its runs are in several folders: {sorted(folders)}")
    return files


def _safe_parts(name: str) -> list[str]:
    """Splits the name of an entry at "/"; refuses names that lead out of the archive."""
    absolute = name.startswith("/") or re.match("[A-Za-z]:", name)
    parts = name.split("/")
    if absolute or ".." in parts or "\\" in name or "\0" in name:
        raise UserError(
            f"the entry {name!r} is refused: names must be relative, with '/' and no '..'"
        )
    return [part for part in parts if part not in ("", ".")]


def _run_number(name: str) -> tuple[int, str]:
    return int(name.removeprefix("run")), name


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bytes:
    """Returns the content of a file, which is no larger than declared and than allowed."""
    if entry.file_size > MAX_FILE_BYTES:
        raise UserError(
            f"{name!r} declares {entry.file_size:,} bytes; at most {MAX_FILE_BYTES:,} are "
            "read"
        )
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python limits the output of other methods only after it has unpacked everything
        raise UserError(f"{name!r} is compressed by another method than deflate")
    try:
        with archive.open(entry) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except _DAMAGE as error:
        raise UserError(f"{name!r} cannot be unpacked: {error}") from error
    if len(content) != entry.file_size:
        raise UserError(
            f"{name!r} declares {entry.file_size:,} bytes and has {len(content):,}"
        )
    return content


def _read_labels(
    archive: zipfile.ZipFile, files: Files, name: str
) -> list[tuple[str, str]]:
    """Returns the names of each test image and of the training image of its class."""
    file = f"{name}/class_labels.txt"
    if file not in files:
        raise UserError(f"{file!r} is missing")
    try:
        text = _read(archive, files[file], file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file!r} is not text: {error}") from error
    trials = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) not in (0, 2):
            raise UserError(
                f"{file!r}, line {number}: wanted a test and a training image; got {line!r}"
            )
        trials += [(words[0], words[1])] if words else []
    if not trials:
        raise UserError(f"{file!r} has no trials")
    return trials


def _read_images(archive: zipfile.ZipFile, files: Files) -> dict[str, np.ndarray]:
    """Returns the test and training images of all runs, which all have the same size."""
    images: dict[str, np.ndarray] = {}
    size: tuple[int, int] | None = None
    for name, entry in files.items():
        if name.split("/")[1] not in ("test", "training"):
            continue
        images[name] = _decode(_read(archive, entry, name), name)
        size = size or images[name].shape[:2]
        if images[name].shape[:2] != size:
            found = " x ".join(map(str, images[name].shape[:2]))
            raise UserError(
                f"{name!r} has {found} pixels, those before it {size[0]} x {size[1]}"
            )
    return images


def _decode(content: bytes, name: str) -> np.ndarray:
    """Decodes a PNG file of any pixel format as uint8 [height, width, 1]."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"):  # too large images are refused below
            opened = Image.open(io.BytesIO(content), formats=["PNG"])  # reads the header
            fits = max(opened.size) <= MAX_SIDE
            picture = np.asarray(opened.convert("L")) if fits else None
    except Image.DecompressionBombError as error:
        raise UserError(f"{name!r} is too large an image: {error}") from error
    except (SyntaxError, *_DAMAGE) as error:
        raise UserError(f"{name!r} cannot be read as a PNG image: {error}") from error
    if picture is None:
        width, height = opened.size
        raise UserError(
            f"{name!r} has {height:,} x {width:,} pixels; at most {MAX_SIDE} x {MAX_SIDE} "
            "are read"
        )
    ink = np.mean(is_ink(picture))
    if not 0 < ink <= 0.5:
        raise UserError(
            f"{name!r} must have dark ink on light paper; {ink:.0%} of its pixels are dark"
        )
    return picture[:, :, None]


def _assemble(
    name: str, trials: list[tuple[str, str]], images: dict[str, np.ndarray]
) -> LakeRun:
    """Makes a run of its labels and images, in the order of the file names."""
    labels = f"{name}/class_labels.txt"
    files = {
        kind: sorted(file for file in images if file.startswith(f"{name}/{kind}/"))
        for kind in ("test", "training")
    }
    for trial in trials:
        for kind, file in zip(files, trial, strict=True):
            if file not in files[kind]:
                raise UserError(
                    f"{labels!r} names {file!r}: {name} has no such {kind} image"
                )
    answer_of = dict(trials)
    if len(answer_of) < len(trials):
        raise UserError(f"{labels!r} names a test image twice")
    if unnamed := [file for file in files["test"] if file not in answer_of]:
        raise UserError(f"{labels!r} has no line for {unnamed[0]!r}")
    return LakeRun(
        name,
        np.stack([images[file] for file in files["test"]]),
        np.stack([images[file] for file in files["training"]]),
        np.array([files["training"].index(answer_of[file]) for file in files["test"]]),
    )


def is_ink(image: np.ndarray) -> np.ndarray:
    """Returns the mask of the dark pixels of a picture: ink is 0, paper is 255."""
    return image < 128
