"""Evaluation on classes that a model was not trained on, beside the baseline of pixels.

The classes of a data set are in three parts. A model is trained on the first, its distances
are calibrated on the second, and it is tested on the third.
"""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from experiments import report
from experiments.evaluations import few_shot
from experiments.evaluations.pair_metrics import PairDistances
from siamese_jax import verification
from siamese_jax.images import LabelledImages, prepare
from siamese_jax.model import Model, pixel_model


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


def select_classes(dataset: LabelledImages, names: np.ndarray) -> LabelledImages:
    """The images of the classes with these names."""
    return dataset.only(np.isin(dataset.labels, names))


def evaluate(
    model: Model, validation: LabelledImages, test: LabelledImages, *, noun: str
) -> Evaluated:
    """Calibrates a model on validation classes and tests it on others.

    The metrics are those of `few_shot.unseen_class_metrics`. Names that begin with
    "validation_" are of the validation classes, names that end in "_pixels" of the
    baseline, which has a threshold from the validation classes too.

    Args:
      model: The trained model.
      validation: Images of the classes that the threshold is chosen on, not prepared.
      test: Images of the test classes, not prepared.
      noun: What a class is, in the plural, such as "persons".
    """
    description = f"pairs of the validation {noun}"
    calibration = few_shot.calibrate_model(model, validation, description)
    threshold = calibration.threshold
    metrics, pairs = few_shot.unseen_class_metrics(model, test, threshold)
    of_validation, _ = few_shot.unseen_class_metrics(model, validation, threshold)
    metrics |= {f"validation_{name}": figure for name, figure in of_validation.items()}
    pixels = pixel_model(model.preparation)
    pixel_threshold = few_shot.calibrate_model(pixels, validation, description).threshold
    of_pixels, pixel_pairs = few_shot.unseen_class_metrics(
        pixels, test, pixel_threshold, suffix="_pixels"
    )
    calibrated = dataclasses.replace(model, calibration=calibration)
    return Evaluated(metrics | of_pixels, calibrated, pairs, pixel_pairs)


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
    assert model.calibration is not None
    pairs_and_distances = report.pair_sections(
        prepare(test.images, model.preparation),
        few_shot.all_pairs(test.labels),
        np.asarray(evaluated.pairs.distances),
        model.calibration.threshold,
        cmap="gray",
    )[:2]
    curves = {
        "model": verification.roc_curve(*evaluated.pairs),
        "pixels": verification.roc_curve(*evaluated.pixel_pairs),
    }
    return [
        *pairs_and_distances,
        report.roc_section(curves),
        report.training_section(workdir),
    ]
