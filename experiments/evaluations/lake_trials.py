"""Accuracy on Lake's one-shot runs: 20-way tasks within an alphabet, across two drawers.

Source:  Lake, Salakhutdinov, Tenenbaum. Human-level concept learning through
         probabilistic program induction. Science 2015; the archive all_runs.zip beside
         Omniglot (python/one-shot-classification), 20 runs of 20 trials.
Run:     python -m experiments lake_trials --model RUN/model --runs all_runs.zip
         python -m experiments lake_trials --method hausdorff --runs all_runs.zip
Expect:  Hausdorff .55 .65 .60 .75 on runs 1 to 4, .612 on all 20; Koch et al. 2015 report
         .920 for their network and .955 for people

The answer to a test image is the training image at the smallest distance. Each test image
is classified alone. A tie with a wrong image counts as an error, so a model that gives the
same distance for all images scores 0. The 95 % interval is Wilson's; it treats the trials
as independent, though those of one run share their training images.

--method hausdorff is the baseline of Lake's demonstration and needs no model. It shows that
the archive is read correctly. Its distance is the modified Hausdorff distance between the
dark pixels of two images, each centred on its mean.
"""

import dataclasses
import math
import pathlib
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from experiments.cli import command_line, print_table, show_figures
from experiments.datasets.lake_archive import LakeRun, is_ink, read_runs
from experiments.engine.config import check_config, setting
from siamese_jax.cli import check_output
from siamese_jax.errors import UserError
from siamese_jax.model import Model, load_model


@dataclasses.dataclass(frozen=True)
class Config:
    """The archive, and the distance to classify by.

    Attributes:
      runs: all_runs.zip, or another archive with the same layout.
      model: The folder of a model.
      method: The distance of the model, or that of the baseline.
      json: A file for the figures.
    """

    runs: pathlib.Path
    model: pathlib.Path | None = setting(None, only_when={"method": "model"})
    method: Literal["model", "hausdorff"] = "model"
    json: pathlib.Path | None = None


def main(config: Config) -> None:
    """Reads the archive, computes distances, and shows the figures.

    Raises:
      UserError: If a flag, the archive or the folder of the model is wrong.
    """
    check_config(config)
    if config.method == "model" and config.model is None:
        raise UserError("--model is needed: the folder of the model to evaluate")
    check_output("--json", config.json)
    runs = read_runs(config.runs)
    if config.model is None:
        distances = [hausdorff_distances(run) for run in runs]
    else:
        distances = model_distances(load_model(config.model), runs)
    figures = evaluate(runs, distances)
    print_table({run["run"]: run["accuracy"] for run in figures["runs"]})
    show_figures(figures, config.json)


# Distances ------------------------------------------------------------------------------


def model_distances(model: Model, runs: list[LakeRun]) -> list[np.ndarray]:
    """Returns a model's distances [test images, training images] in each run.

    Raises:
      UserError: If a distance is not a number.
    """
    images = [array for run in runs for array in (run.test_images, run.train_images)]
    embeddings = model.embed(np.concatenate(images), batch_size=64)
    parts = jnp.split(embeddings, np.cumsum([len(array) for array in images])[:-1])
    matrices = []
    for run, test, train in zip(runs, parts[::2], parts[1::2], strict=True):
        distances = np.asarray(model.distances(test, train))
        if np.isnan(distances).any():
            raise UserError(f"the model gives distances that are not numbers in {run.name}")
        matrices.append(distances)
    return matrices


def hausdorff_distances(run: LakeRun) -> np.ndarray:
    """Returns the baseline's distances [test images, training images]."""
    test = [_centred_ink(image) for image in run.test_images]
    train = [_centred_ink(image) for image in run.train_images]
    return np.array([[hausdorff_distance(a, b) for b in train] for a in test])


def _centred_ink(image: np.ndarray) -> np.ndarray:
    """Returns the places [n, 2] of the dark pixels, relative to their mean."""
    points = np.argwhere(is_ink(image[:, :, 0])).astype(float)
    return points - points.mean(axis=0)


def hausdorff_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the modified Hausdorff distance of two sets of points [n, 2], [m, 2].

    It is the larger of two means: that of the distances from each point of `a` to the
    nearest point of `b`, and that from each point of `b` to the nearest point of `a`.

    Reference:
      Dubuisson, Jain. A modified Hausdorff distance for object matching. ICPR 1994, d22
      with f2.

    >>> line = np.array([[0.0, 0.0], [0.0, 2.0]])
    >>> hausdorff_distance(line, line[:1])
    1.0
    """
    from scipy.spatial import KDTree

    nearest = (KDTree(b).query(a)[0], KDTree(a).query(b)[0])
    return max(float(distances.mean()) for distances in nearest)


# Accuracy -------------------------------------------------------------------------------


def evaluate(runs: list[LakeRun], distances: list[np.ndarray]) -> dict[str, Any]:
    """Returns the accuracy over all trials with its interval, and that of each run.

    Args:
      runs: The runs.
      distances: For each run a matrix [test images, training images].

    Returns:
      A dictionary with "metrics", a dictionary of figures, and "runs", a list with a
      dictionary for each run.
    """
    correct = [num_correct(d, run.answers) for run, d in zip(runs, distances, strict=True)]
    trials = [len(run.answers) for run in runs]
    low, high = wilson_interval(sum(correct), sum(trials))
    return {
        "metrics": {
            "lake_accuracy": sum(correct) / sum(trials),
            "lake_accuracy_low": low,
            "lake_accuracy_high": high,
            "num_trials": sum(trials),
        },
        "runs": [
            {"run": run.name, "accuracy": c / n, "num_trials": n}
            for run, c, n in zip(runs, correct, trials, strict=True)
        ],
    }


def num_correct(distances: np.ndarray, answers: np.ndarray) -> int:
    """Returns in how many rows the answer has the single smallest distance.

    >>> num_correct(np.array([[1.0, 2.0], [1.0, 1.0]]), np.array([0, 0]))
    1
    """
    rows = np.arange(len(answers))
    others = distances.copy()
    others[rows, answers] = np.inf
    return int(np.sum(distances[rows, answers] < others.min(axis=1)))


def wilson_interval(num_correct: int, num_trials: int) -> tuple[float, float]:
    """Returns Wilson's 95 % confidence interval of a share, which lies within [0, 1].

    With p = num_correct / n and z = 1.96 it is
    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    Reference:
      Wilson. Probable inference, the law of succession, and statistical inference. 1927.

    >>> low, high = wilson_interval(368, 400)   # .92 of 400 trials
    >>> print(f"{low:.3f} {high:.3f}")
    0.889 0.943
    """
    z, share = 1.96, num_correct / num_trials
    centre = share + z**2 / (2 * num_trials)
    half = z * math.sqrt(share * (1 - share) / num_trials + (z / (2 * num_trials)) ** 2)
    scale = 1 + z**2 / num_trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


if __name__ == "__main__":
    command_line(main, Config)
