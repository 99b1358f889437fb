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

import dataclasses
import io
import math
import pathlib
import re
import warnings
import zipfile
import zlib
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.spatial import KDTree

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

_RUN = re.compile("run[0-9]{1,9}")
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
    """The files of all runs; other files and what file managers leave are passed over."""
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
        litter = any(part in _LITTER or part.startswith("._") for part in parts)
        depths = [i for i, part in enumerate(parts) if _RUN.fullmatch(part)]
        if entry.is_dir() or litter or not depths:
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
    """A file's bytes; never more than are declared, and these are few."""
    if entry.file_size > MAX_FILE_BYTES:
        raise UserError(
            f"{name!r} declares {entry.file_size:,} bytes; at most {MAX_FILE_BYTES:,} are "
            "read"
        )
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python bounds what other methods yield only after it is unpacked
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
    """A test image and the training image of its class, a trial."""
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
    """The test and training images of all runs; they have one size."""
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
    """A PNG file as uint8 [height, width, 1]; of 1 bit or more, ink is what is dark."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what matters is refused below
            opened = Image.open(io.BytesIO(content), formats=["PNG"])
            if max(opened.size) > MAX_SIDE:  # known from the header; nothing is decoded yet
                width, height = opened.size
                raise UserError(
                    f"{name!r} has {height:,} x {width:,} pixels; at most {MAX_SIDE} x "
                    f"{MAX_SIDE} are read"
                )
            picture = np.asarray(opened.convert("L"))
    except Image.DecompressionBombError as error:
        raise UserError(f"{name!r} is too large an image: {error}") from error
    except (SyntaxError, *_DAMAGE) as error:  # of Pillow
        raise UserError(f"{name!r} cannot be read as a PNG image: {error}") from error
    ink = np.mean(is_ink(picture))
    if not 0 < ink <= 0.5:
        raise UserError(
            f"{name!r} must have dark ink on light paper; {ink:.0%} of its pixels are dark"
        )
    return picture[:, :, None]


def _assemble(
    name: str, trials: list[tuple[str, str]], images: dict[str, np.ndarray]
) -> LakeRun:
    """The images of a run in order; its labels must fit them."""
    labels = f"{name}/class_labels.txt"
    questions, candidates = (
        sorted(file for file in images if file.startswith(f"{name}/{folder}/"))
        for folder in ("test", "training")
    )
    for question, answer in trials:
        for file, folder in ((question, questions), (answer, candidates)):
            if file not in folder:
                kind = "test" if folder is questions else "training"
                raise UserError(
                    f"{labels!r} names {file!r}: {name} has no such {kind} image"
                )
    right = dict(trials)
    if len(right) < len(trials):
        raise UserError(f"{labels!r} names a test image twice")
    if unnamed := [file for file in questions if file not in right]:
        raise UserError(f"{labels!r} has no line for {unnamed[0]!r}")
    return LakeRun(
        name,
        np.stack([images[file] for file in questions]),
        np.stack([images[file] for file in candidates]),
        np.array([candidates.index(right[file]) for file in questions]),
    )


# Distances ------------------------------------------------------------------------------


def model_distances(learnt: Model, runs: list[LakeRun]) -> list[np.ndarray]:
    """The net's distances [questions, candidates] of each run.

    Raises:
      UserError: If a distance is not a number.
    """
    images = [array for one in runs for array in (one.questions, one.candidates)]
    embeddings = model.embed(learnt, np.concatenate(images), batch_size=64)
    ends = np.cumsum([len(array) for array in images])[:-1]
    parts = jnp.split(embeddings, ends)
    found = []
    for one, questions, candidates in zip(runs, parts[::2], parts[1::2], strict=True):
        distances = np.asarray(learnt.matrix_fn(questions, candidates))
        if np.isnan(distances).any():
            raise UserError(f"the model gives distances that are not numbers in {one.name}")
        found.append(distances)
    return found


def is_ink(image: np.ndarray) -> np.ndarray:
    """Where a picture is dark: ink is 0, paper 255."""
    return image < 128


def hausdorff_distances(one: LakeRun) -> np.ndarray:
    """The baseline's distances [questions, candidates]."""
    questions, candidates = (
        [_centred_ink(image) for image in images]
        for images in (one.questions, one.candidates)
    )
    return np.array([[hausdorff_distance(a, b) for b in candidates] for a in questions])


def _centred_ink(image: np.ndarray) -> np.ndarray:
    points = np.argwhere(is_ink(image[:, :, 0])).astype(float)
    return points - points.mean(axis=0)


def hausdorff_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The modified Hausdorff distance of two sets of points [n, 2], [m, 2].

    The larger of two means: of the distance from each point of `a` to the nearest of `b`,
    and from each of `b` to the nearest of `a`.

    Reference:
      Dubuisson, Jain. A modified Hausdorff distance for object matching. ICPR 1994, d22
      with f2.

    >>> line = np.array([[0.0, 0.0], [0.0, 2.0]])
    >>> hausdorff_distance(line, line[:1])
    1.0
    """
    nearest = (KDTree(b).query(a)[0], KDTree(a).query(b)[0])
    return max(float(distances.mean()) for distances in nearest)


# Judgement ------------------------------------------------------------------------------


def num_right(distances: np.ndarray, answers: np.ndarray) -> int:
    """Questions whose right candidate is nearer than every other; a tie is wrong.

    >>> num_right(np.array([[1.0, 2.0], [1.0, 1.0]]), np.array([0, 0]))
    1
    """
    rows = np.arange(len(answers))
    others = distances.copy()
    others[rows, answers] = np.inf
    return int(np.sum(distances[rows, answers] < others.min(axis=1)))


def wilson_interval(num_right: int, num_trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; within [0, 1], and sound near both ends.

    Reference:
      Wilson. Probable inference, the law of succession, and statistical inference. 1927.

    >>> low, high = wilson_interval(368, 400)   # .92 of 400 trials
    >>> print(f"{low:.3f} {high:.3f}")
    0.889 0.943
    """
    z, share = 1.96, num_right / num_trials
    centre = share + z**2 / (2 * num_trials)
    half = z * math.sqrt(share * (1 - share) / num_trials + (z / (2 * num_trials)) ** 2)
    scale = 1 + z**2 / num_trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def judge(runs: list[LakeRun], distances: list[np.ndarray]) -> dict[str, Any]:
    """The accuracy of all trials, with its interval, and of each run."""
    right = [num_right(d, one.answers) for one, d in zip(runs, distances, strict=True)]
    trials = [len(one.answers) for one in runs]
    low, high = wilson_interval(sum(right), sum(trials))
    return {
        "metrics": {
            "lake_accuracy": sum(right) / sum(trials),
            "lake_accuracy_low": low,
            "lake_accuracy_high": high,
            "num_trials": sum(trials),
        },
        "runs": [
            {"run": one.name, "accuracy": r / t, "num_trials": t}
            for one, r, t in zip(runs, right, trials, strict=True)
        ],
    }


def command(config: Config) -> None:
    """Reads the archive, measures, and shows the figures.

    Raises:
      UserError: If a flag, the archive or the working directory is wrong.
    """
    if config.method == "model" and config.workdir is None:
        raise UserError("--workdir is needed: the run whose net is judged")
    run.check_output(config.json)
    runs = read_runs(config.runs)
    if config.workdir is None or config.method == "hausdorff":
        distances = [hausdorff_distances(one) for one in runs]
    else:
        distances = model_distances(model.load_model(config.workdir), runs)
    figures = judge(runs, distances)
    run.print_table({one["run"]: one["accuracy"] for one in figures["runs"]})
    run.show_figures(figures, config.json)


if __name__ == "__main__":
    run.command_line(command, Config)
