"""The runs of two MNIST tutorials: pairs of digits, how they are evaluated, one report.

Thresholds and probabilities are calibrated on pairs of the validation images, on which no
model is trained.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import report
from experiments.datasets import digits, evaluation_key, evaluation_rng
from experiments.datasets.digits import DigitSplits
from experiments.engine import loop, supcon
from experiments.engine.data import ClassData, class_data
from experiments.engine.pair_batches import (
    PairConfig,
    PairData,
    adjacent_pairs,
    random_pairs,
)
from experiments.engine.supcon import LabelledBatch
from experiments.engine.system import System
from experiments.evaluations import pair_metrics
from experiments.evaluations.pair_metrics import (
    PairDistances,
    decision_rates,
    pair_distances,
)
from siamese_jax.errors import UserError
from siamese_jax.model import Model
from siamese_jax.samplers import Pairs

NUM_VALIDATION_PAIRS = 10_000
NUM_MAPPED = 400  # test digits in the picture of the embedding space


@dataclasses.dataclass(frozen=True)
class DigitConfig(PairConfig):
    """The settings of both tutorials.

    Attributes:
      dataset: MNIST, or scikit-learn's digits.
    """

    dataset: Literal["mnist", "digits"] = "mnist"


class DigitEvaluation(NamedTuple):
    """The evaluation of a model on pairs of digits.

    Attributes:
      model: The model with its calibration.
      metrics: Figures by name.
      embeddings: Embeddings of the test digits [n, dim].
      pairs: The test pairs.
      distances: The distances of the test pairs.
      threshold: Pairs up to this distance are called the same.
    """

    model: Model
    metrics: dict[str, float]
    embeddings: jax.Array
    pairs: Pairs
    distances: PairDistances
    threshold: float


def class_sampler(config: PairConfig) -> Callable[..., LabelledBatch]:
    """Returns a sampler of as many images as the batch's pairs have, evenly over digits.

    Raises:
      UserError: If the batch is too small for two images of each digit. The sampler raises
        it for a batch with more images of a digit than there are.
    """
    if config.batch_size < digits.NUM_DIGITS:
        raise UserError(f"--batch-size must be at least 10; got {config.batch_size}")
    num_images = 2 * config.batch_size // digits.NUM_DIGITS

    def sample(key: jax.Array, step: jax.Array, data: ClassData) -> LabelledBatch:
        label, rarest = data.classes.smallest_class
        if num_images > rarest:
            raise UserError(
                f"--batch-size {config.batch_size} has {num_images} images of each digit; "
                f"there are {rarest} of {label}"
            )
        return supcon.sample_classes(key, data, digits.NUM_DIGITS, num_images)

    return sample


def training_pairs(config: DigitConfig, splits: DigitSplits) -> Pairs:
    """The tutorial's training pairs, which differ from seed to seed."""
    return adjacent_pairs(splits.train.labels, np.random.default_rng(config.seed))


def training_data(
    config: DigitConfig, splits: DigitSplits, *, fixed_pairs: bool
) -> PairData | ClassData:
    """The training images with the fixed pairs of the tutorial, or with their classes."""
    data = class_data(splits.train)
    if not fixed_pairs:
        return data
    return PairData(data.images, training_pairs(config, splits))


def run(
    config: DigitConfig,
    system: System,
    *,
    data_fn: Callable[[Any, DigitSplits], PairData | ClassData],
    evaluate_fn: Callable[[Any, DigitSplits, Model], DigitEvaluation],
    title: str,
) -> None:
    """Trains, evaluates and reports, unless the run is complete already.

    Args:
      config: The settings of the run.
      system: What to train.
      data_fn: `data_fn(config, splits)` is what the system trains on.
      evaluate_fn: `evaluate_fn(config, splits, model)` evaluates the trained model.
      title: The heading of the report.
    """
    if not loop.start(config):
        return
    splits = digits.load_splits(config.dataset)
    trained = loop.train(config, system, data_fn(config, splits))
    evaluated = evaluate_fn(config, splits, system.model(trained.state))
    loop.finish(config, evaluated.metrics, trained, evaluated.model)
    write_report(config.directory, title, splits, evaluated)


def evaluate(
    config: DigitConfig,
    splits: DigitSplits,
    model: Model,
    *,
    threshold: float | None = None,
) -> DigitEvaluation:
    """Evaluates a model on training, validation and test pairs, and calibrates it.

    Args:
      config: The settings of the run.
      splits: The images.
      model: The trained model.
      threshold: The tutorial's threshold. Without it the figures are taken at the threshold
        that is best on validation pairs.
    """
    test_pairs = adjacent_pairs(splits.test.labels, evaluation_rng("test pairs"))
    validation_pairs = random_pairs(
        evaluation_key("validation pairs"), splits.validation.labels, NUM_VALIDATION_PAIRS
    )
    train_pairs = training_pairs(config, splits)
    embeddings = model.embed(splits.test.images)
    test = pair_distances(model, embeddings, test_pairs)
    train = pair_distances(model, model.embed(splits.train.images), train_pairs)
    of_validation = model.embed(splits.validation.images)
    model = pair_metrics.calibrate(
        model,
        pair_distances(model, of_validation, validation_pairs),
        "pairs of training images that no pair trained on",
        of_validation,
        splits.validation.labels,
    )
    validation_threshold = pair_metrics.threshold_of(model)
    threshold = validation_threshold if threshold is None else threshold
    train_rates = decision_rates(*train, threshold)
    test_rates = decision_rates(*test, validation_threshold)
    metrics = {
        **pair_metrics.pair_metrics(test, threshold),
        "pair_accuracy_training_pairs": float(train_rates.accuracy),
        **pair_metrics.chosen_threshold_metrics(train, test),
        "validation_threshold": validation_threshold,
        "pair_accuracy_at_validation_threshold": float(test_rates.accuracy),
    }
    return DigitEvaluation(model, metrics, embeddings, test_pairs, test, threshold)


def write_report(
    workdir: pathlib.Path, title: str, splits: DigitSplits, evaluation: DigitEvaluation
) -> None:
    """Writes the page: pairs, distances, ROC, confused digits, embeddings, the loss."""
    images, labels = splits.test
    called = np.asarray(evaluation.distances.distances) <= evaluation.threshold
    sections = [
        *report.pair_sections(
            images,
            evaluation.pairs,
            np.asarray(evaluation.distances.distances),
            evaluation.threshold,
        ),
        report.Section(
            "Which digits are called the same?",
            "Share of the different test pairs of two digits within the threshold.",
            report.confusion_matrix(
                pair_metrics.called_the_same(labels, evaluation.pairs, called),
                [str(digit) for digit in range(digits.NUM_DIGITS)],
            ),
        ),
        report.Section(
            "The embedding space",
            "Test digits laid out by t-SNE of their embeddings.",
            report.embedding_map(
                np.asarray(evaluation.embeddings[:NUM_MAPPED]), images[:NUM_MAPPED]
            ),
        ),
        report.training_section(workdir),
    ]
    report.write_report(workdir, title, evaluation.metrics, sections)
