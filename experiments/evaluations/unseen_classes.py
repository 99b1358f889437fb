"""Evaluation on classes that a model was not trained on, beside the baseline of pixels.

The classes of a data set are in three parts. A model is trained on the first, its distances
are calibrated on the second, and it is tested on the third.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from experiments import report
from experiments.cli import read_json, write_whole
from experiments.datasets.sources import ImageSource
from experiments.engine import loop
from experiments.engine.config import RunConfig, is_started
from experiments.engine.data import ClassData, class_data
from experiments.engine.loop import Trained
from experiments.engine.system import System
from experiments.evaluations import few_shot
from experiments.evaluations.pair_metrics import PairDistances, roc_curve, threshold_of
from siamese_jax._names import enumerated
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, Preparation, prepare
from siamese_jax.model import Model, pixel_model

ImagesT = TypeVar("ImagesT", LabelledImages, ImageSource)

_FEW_CLASSES = 6  # in a test of fewer, one hard class changes every figure


class ClassSplit(NamedTuple):
    """The names of the classes to train on, to calibrate on and to test on."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Evaluated(NamedTuple):
    """The result of an evaluation.

    Attributes:
      metrics: Figures by name.
      model: The model with its calibration.
      pairs: All pairs of test images with their distances.
      pixel_pairs: The same pairs with the distances of the baseline.
    """

    metrics: dict[str, float]
    model: Model
    pairs: PairDistances
    pixel_pairs: PairDistances


def run(
    config: RunConfig,
    system: System,
    data: Any,
    select_fn: Callable[[np.ndarray], LabelledImages],
    names: ClassSplit,
    *,
    noun: str,
    title: str,
) -> tuple[Trained, Evaluated]:
    """Trains on one part of the classes, evaluates on the others and reports.

    The names of the classes of each part are written to RUN/{noun}.json.

    Args:
      config: The settings of the run, whose folder `loop.start` has prepared.
      system: What to train.
      data: The images of the training classes, as `loop.train` takes them.
      select_fn: `select_fn(names)` returns the images of the classes with these names, of
        the size that `system.model` takes or larger.
      names: The classes of each part.
      noun: What a class is, in the plural, such as "persons".
      title: The heading of the report.

    Raises:
      UserError: As `keep_names`.
    """
    keep_names(config, names, noun)
    trained = loop.train(config, system, data)
    validation, test = select_fn(names.validation), select_fn(names.test)
    model = system.model(trained.state)
    evaluated = evaluate(model, validation, test, noun=noun)
    loop.finish(config, evaluated.metrics, trained, evaluated.model)
    sections = report_sections(config.directory, test, evaluated)
    lines = remarks(len(names.test), noun)
    print(*lines, sep="\n")
    report.write_report(config.directory, title, evaluated.metrics, sections, remarks=lines)
    return trained, evaluated


def keep_names(config: RunConfig, names: ClassSplit, noun: str) -> None:
    """Writes the names of the classes of each part to RUN/{noun}.json.

    Args:
      config: The settings of the run.
      names: The classes of each part.
      noun: What a class is, in the plural.

    Raises:
      UserError: If the run has made steps with other classes in a part. If it went on, it
        would be tested on classes that it was trained on.
    """
    path = config.directory / f"{noun}.json"
    asked = {part: array.tolist() for part, array in names._asdict().items()}
    found = read_json(path) if is_started(config.directory) and path.exists() else asked
    changes = []
    for part in asked:
        now, before = {*asked[part]}, {*found.get(part, [])}
        for change, those in (("new", now - before), ("gone", before - now)):
            if those:
                words = enumerated([str(name) for name in sorted(those)])
                changes.append(f"{change} in {part}: {words}")
    if changes:
        raise UserError(
            f"{path} has the {noun} that the run was started with, and now there are "
            f"others ({'; '.join(changes)}); choose another --workdir, or restore the data"
        )
    write_whole(path, json.dumps(asked, indent=2) + "\n")


def prepared_data(dataset: LabelledImages, preparation: Preparation) -> ClassData:
    """Prepares images for training and moves them to the device."""
    return class_data(dataset._replace(images=prepare(dataset.images, preparation)))


def select_classes(dataset: ImagesT, names: np.ndarray) -> ImagesT:
    """The images of the classes with these names."""
    return dataset.only(np.isin(dataset.labels, names))


def evaluate(
    model: Model, validation: LabelledImages, test: LabelledImages, *, noun: str
) -> Evaluated:
    """Calibrates a model on validation classes and tests it on others.

    The metrics are those of `few_shot.unseen_class_metrics`. Names that begin with
    "validation_" are of the validation classes, names that end in "_pixels" of the
    baseline, which has a threshold from the validation classes too. Figures of pairs have
    bootstrap intervals, and the size of the test stands beside them.

    Args:
      model: The trained model.
      validation: Images of the classes that the threshold is chosen on, not prepared.
      test: Images of the test classes, not prepared.
      noun: What a class is, in the plural, such as "persons".
    """
    description = f"pairs of the validation {noun}"
    model = few_shot.calibrate_model(model, validation, description)
    threshold = threshold_of(model)
    metrics, pairs = few_shot.unseen_class_metrics(model, test, threshold)
    of_validation, _ = few_shot.unseen_class_metrics(model, validation, threshold)
    metrics |= {f"validation_{name}": figure for name, figure in of_validation.items()}
    pixels = pixel_model(model.preparation)
    pixels = few_shot.calibrate_model(pixels, validation, f"{description}, by pixels")
    of_pixels, pixel_pairs = few_shot.unseen_class_metrics(
        pixels, test, threshold_of(pixels), suffix="_pixels"
    )
    metrics |= few_shot.intervals(pairs, test.labels, threshold)
    metrics = few_shot.sizes(test.labels, pairs) | metrics | of_pixels
    return Evaluated(metrics, model, pairs, pixel_pairs)


def remarks(num_classes: int, noun: str) -> list[str]:
    """Returns what to say of the figures of a test, which are of few classes.

    Args:
      num_classes: Number of test classes.
      noun: What a class is, in the plural, such as "persons".

    >>> remarks(2, "persons")
    ['The test has 2 persons: too few for its figures to mean much.']
    """
    if num_classes < _FEW_CLASSES:
        return [f"The test has {num_classes} {noun}: too few for its figures to mean much."]
    return [f"Figures of pairs have 95 % intervals, by resampling the {noun} of the test."]


def report_sections(
    workdir: pathlib.Path, test: LabelledImages, evaluated: Evaluated
) -> list[report.Section]:
    """Returns sections on pairs of test images, the ROC beside pixels, and the training.

    Args:
      workdir: The folder of the run.
      test: Images of the test classes, not prepared.
      evaluated: The result of `evaluate`.
    """
    model = evaluated.model
    pairs_and_distances = report.pair_sections(
        prepare(test.images, model.preparation),
        few_shot.all_pairs(test.labels),
        np.asarray(evaluated.pairs.distances),
        threshold_of(model),
        cmap="gray",
    )[:2]
    curves = {
        "model": roc_curve(*evaluated.pairs),
        "pixels": roc_curve(*evaluated.pixel_pairs),
    }
    return [
        *pairs_and_distances,
        report.roc_section(curves),
        report.training_section(workdir),
    ]
