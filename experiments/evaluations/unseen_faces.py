"""Five folds over the persons of ORL: models are tested on persons they never saw."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from experiments import report
from experiments.engine import loop
from experiments.engine.config import RunConfig, setting
from experiments.engine.system import System
from experiments.evaluations import unseen_classes
from experiments.evaluations.pair_metrics import roc_curve
from experiments.evaluations.unseen_classes import ClassSplit
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, Preparation, load_folder

# The files of ORL have 112 x 92 pixels.
PREPARATION = Preparation(size=(56, 46), resampling="every-second-pixel")
NUM_FOLDS = 5
NUM_VALIDATION_PERSONS = 3
SPLIT_SEED = 0  # of the order of persons, the same for every run


@dataclasses.dataclass(frozen=True)
class FaceConfig(RunConfig):
    """The settings of every system that is trained on ORL.

    Attributes:
      data_dir: The folder of ORL, with one sub-folder for each person.
      folds: The folds to run, some of 0 to 4.
    """

    data_dir: pathlib.Path | None = None
    folds: tuple[int, ...] = setting((0, 1, 2, 3, 4), at_least=0, at_most=4)


# Data -----------------------------------------------------------------------------------


def load_faces(data_dir: pathlib.Path | None) -> LabelledImages:
    """Reads the faces as they are in their files. A label is the name of a person's folder.

    Raises:
      UserError: If no folder is given, or it cannot be read as labelled images.
      FileNotFoundError: If the folder does not exist.
    """
    if data_dir is None:
        raise UserError("--data-dir: the folder of ORL, one sub-folder a person")
    return load_folder(data_dir)


def split_persons(labels: np.ndarray, fold: int) -> ClassSplit:
    """Splits the persons for one fold, in the same way for every seed.

    Every fifth person of a random order is for the test. Three of the others, drawn at
    random for each fold, are for validation.

    Args:
      labels: The name of the person in each image.
      fold: Number of the fold, from 0 to 4.

    Raises:
      UserError: If there are fewer than 13 persons.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(np.unique(labels))
    if len(order) < 2 * NUM_FOLDS + NUM_VALIDATION_PERSONS:
        raise UserError(f"five folds need 13 persons; there are {len(order)}")
    test = order[fold::NUM_FOLDS]
    others = np.setdiff1d(order, test)
    shuffled = np.random.default_rng(fold).permutation(others)
    validation, train = np.split(shuffled, [NUM_VALIDATION_PERSONS])
    return ClassSplit(np.sort(train), np.sort(validation), np.sort(test))


def split_folds(folds: Sequence[int], labels: np.ndarray) -> dict[int, ClassSplit]:
    """Splits the persons for each fold of a run.

    Raises:
      UserError: If a fold is named twice, or there are too few persons.
    """
    if len(set(folds)) < len(folds):
        raise UserError(f"--folds must be some of 0 1 2 3 4, each once; got {folds}")
    return {fold: split_persons(labels, fold) for fold in folds}


# Runs -----------------------------------------------------------------------------------


def deviation(figures: Sequence[float]) -> float | None:
    """The standard deviation of a figure over folds, or None for a single fold.

    Its divisor is the number of folds minus one.

    >>> print(deviation([0.0, 0.5, 1.0]), deviation([0.25]))
    0.5 None
    """
    return float(np.std(figures, ddof=1)) if len(figures) > 1 else None


def run_folds(
    config: FaceConfig,
    system: System,
    faces: LabelledImages,
    folds: Mapping[int, ClassSplit],
) -> None:
    """Runs the folds one after the other, then writes the means of their figures.

    Args:
      config: The settings of the run, whose folder `loop.start` has prepared.
      system: What to train, on `ClassData`.
      faces: The images of all persons, not prepared.
      folds: The persons of each fold, by its number.
    """
    runs, select = [], partial(unseen_classes.select_classes, faces)
    for fold, persons in folds.items():
        print(f"fold {fold}")
        directory = config.directory / f"fold{fold}"
        fold_config = dataclasses.replace(config, folds=(fold,), workdir=directory)
        loop.prepare_folder(fold_config)
        one = unseen_classes.run(
            fold_config,
            system,
            unseen_classes.prepared_data(select(persons.train), PREPARATION),
            select,
            persons,
            noun="persons",
            title=f"Unseen faces, fold {fold}",
        )
        runs.append(one)
    figures = [evaluated.metrics for _, evaluated in runs]
    metrics: dict[str, float | None] = {
        name: float(np.mean([fold[name] for fold in figures]))
        for name in figures[0]
        if not name.endswith(("_low", "_high"))  # of the classes of one fold
    }
    for name in ("pair_eer", "one_shot_accuracy"):
        metrics[f"{name}_deviation"] = deviation([fold[name] for fold in figures])
    seconds = sum(trained.seconds for trained, _ in runs)
    loop.finish(config, metrics, runs[-1][0]._replace(seconds=seconds), None)
    curves = {
        f"fold {fold}": roc_curve(*evaluated.pairs)
        for fold, (_, evaluated) in zip(folds, runs, strict=True)
    }
    note = "Pairs of the test persons of each fold. Each fold has its own page beside this."
    section = report.Section("ROC of each fold", note, report.roc(curves))
    report.write_report(config.directory, "Unseen faces", metrics, [section])
