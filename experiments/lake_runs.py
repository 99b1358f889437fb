"""Lake's one-shot runs: 20-way tasks within an alphabet, one drawer against another.

Source:  Lake, Salakhutdinov, Tenenbaum. Human-level concept learning through
         probabilistic program induction. Science 2015; the archive all_runs.zip beside
         Omniglot (python/one-shot-classification), 20 runs of 20 trials.
Run:     python -m experiments.lake_runs --workdir RUN --runs all_runs.zip
         python -m experiments.lake_runs --method hausdorff --runs all_runs.zip
Expect:  Hausdorff .55 .65 .60 .75 on runs 1 to 4, .612 on all 20; Koch 2015 reports .920,
         people .955

Each test image is classified alone: the training image at the smallest distance is the
answer. A tie with a wrong image counts as wrong, so that a net that sees no difference
gets 0 instead of what the order of the files gives it. The 95 % interval is Wilson's, over
trials, as if they were independent; those of one run share their training images.

--method hausdorff is the baseline of Lake's demonstration and needs no run: it checks that
the archive is read as it should be. The distance of two images is the modified Hausdorff
distance of their ink, each centred on its mean.

The archive is read in memory, never unpacked. Its size, names, and the sizes and
dimensions of its files are checked before anything is decoded.
"""

import contextlib
import dataclasses
import io
import math
import pathlib
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from experiments import model, run
from experiments.model import Model
from experiments.run import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """Which archive, and by which distance.

    Attributes:
      runs: all_runs.zip, or any archive laid out like it.
      workdir: A run of an experiment; --method hausdorff needs none.
      method: The distance of the run's net, or that of the baseline.
      json: A file for the figures.
    """

    runs: pathlib.Path
    workdir: pathlib.Path | None = None
    method: Literal["model", "hausdorff"] = "model"
    json: pathlib.Path | None = None


class LakeRun(NamedTuple):
    """One run: test images, and training images of which one is right.

    Attributes:
      name: Its folder.
      questions: Test images, uint8 [n, height, width, 1], dark ink on light paper.
      candidates: Training images [m, ...], one of each class.
      answers: [n], the place of the right candidate.
    """

    name: str
    questions: np.ndarray
    candidates: np.ndarray
    answers: np.ndarray


# The archive ----------------------------------------------------------------------------

# The full archive has 0.4 MB, 840 files of up to 1 kB, and images of 105 x 105.
MAX_ARCHIVE_BYTES = 32 * 2**20
MAX_ENTRIES = 10_000
MAX_TOTAL_BYTES = 64 * 2**20
MAX_FILE_BYTES = 256 * 2**10
MAX_SIDE = 256

_LABELS = "class_labels.txt"
_LITTER = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)

Files = dict[str, zipfile.ZipInfo]  # by their names from the folder of the run on


def read_runs(path: pathlib.Path) -> list[LakeRun]:
    """All runs of an archive, in the order of their numbers.

    Args:
      path: A zip file with folders run01, run02 ..., at its top or in one common folder.
        Each has class_labels.txt, with a line "run01/test/item01.png
        run01/training/class08.png" a trial, and the images it names.

    Raises:
      UserError: If the archive is not as described, or larger than is sensible; says
        which file is wrong and why.
    """
    with _naming(path):
        if not path.is_file():
            raise UserError("there is no such file; wanted is a zip archive of runs")
        if path.stat().st_size > MAX_ARCHIVE_BYTES:
            raise UserError(
                f"it has {path.stat().st_size:,} bytes; at most {MAX_ARCHIVE_BYTES:,} are "
                "read"
            )
        with zipfile.ZipFile(path) as archive:
            files = _find_files(archive.infolist())
            names = sorted({name.split("/")[0] for name in files}, key=_run_number)
            runs = [_read_run(archive, files, name) for name in names]
        _check_sizes(runs)
        return runs


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Puts the archive before what is wrong in it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except _DAMAGE as error:  # of zipfile
        raise UserError(f"{path} cannot be read as a zip archive: {error}") from error


def _run_number(name: str) -> tuple[int, str]:
    return int(name.removeprefix("run")), name


def _find_files(entries: list[zipfile.ZipInfo]) -> Files:
    """The files of all runs; other files and what file managers leave are passed over."""
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or total > MAX_TOTAL_BYTES:
        raise UserError(
            f"it declares {len(entries):,} entries of {total:,} bytes in all; at most "
            f"{MAX_ENTRIES:,} of {MAX_TOTAL_BYTES:,} are read"
        )
    files: Files = {}
    folders = set()
    for entry in entries:
        parts = _safe_parts(entry.orig_filename)
        litter = not _LITTER.isdisjoint(parts) or parts[-1:][:1] and parts[-1][:2] == "._"
        depths = [i for i, part in enumerate(parts) if re.fullmatch(r"run[0-9]{1,9}", part)]
        if entry.is_dir() or litter or not depths:
            continue
        name = "/".join(parts[depths[0] :])
        if name in files:
            raise UserError(f"{name!r} is there twice")
        files[name] = entry
        folders.add("/".join(parts[: depths[0]]))
    if not files:
        raise UserError("it holds no runs: no files in folders run01, run02 ...")
    if len(folders) > 1:
        raise UserError(f"its runs are in several folders: {sorted(folders)}")
    return files


def _safe_parts(name: str) -> list[str]:
    absolute = name.startswith("/") or re.match("[A-Za-z]:", name)
    parts = name.split("/")
    if absolute or ".." in parts or "\\" in name or "\0" in name:
        raise UserError(
            f"the entry {name!r} is refused: names are relative, with / and without '..'"
        )
    return [part for part in parts if part not in ("", ".")]


def _read_run(archive: zipfile.ZipFile, files: Files, name: str) -> LakeRun:
    trials = _read_labels(archive, files, name)
    questions, candidates = (
        sorted(file for file in files if file.startswith(f"{name}/{part}/"))
        for part in ("test", "training")
    )
    right = dict(trials)
    for asked, answer in trials:
        for file, known in ((asked, questions), (answer, candidates)):
            if file not in known:
                raise UserError(
                    f"{name}/{_LABELS} names {file!r}, which is not in the archive, in the "
                    f"{'test' if known is questions else 'training'} folder of {name}"
                )
    if len(right) < len(trials):
        raise UserError(f"{name}/{_LABELS} names a test image twice")
    if len(right) < len(questions):
        astray = sorted(set(questions) - set(right))
        raise UserError(f"{name}/{_LABELS} has no line for {astray[0]!r}")
    return LakeRun(
        name,
        _stack([_read_image(archive, files[file], file) for file in questions]),
        _stack([_read_image(archive, files[file], file) for file in candidates]),
        np.array([candidates.index(right[file]) for file in questions]),
    )
