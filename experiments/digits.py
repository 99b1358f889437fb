"""The digits of the three MNIST tutorials: their splits, and how a net is judged on them.

Images beyond the size of the smallest class are in no tutorial pair. They are kept apart:
no net is trained on them, and thresholds and probabilities are calibrated on them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import model, pairs, report, run
from experiments.data import Dataset, load_digit_images
from siamese_jax import distances, losses, relations, samplers
from siamese_jax import verification as verify

TEST_SEED = 0  # the test pairs are the same for every seed
NUM_VALIDATION_PAIRS = 10_000
NUM_DIGITS = 10


class Splits(NamedTuple):
    """Images to train on, to calibrate on, and to test on."""

    seen: Dataset
    kept: Dataset
    unseen: Dataset


def load_splits(name: str) -> Splits:
    """MNIST, or scikit-learn's "digits"."""
    dataset = load_digit_images(name, "train")
    index = samplers.class_index(dataset.labels)
    paired = np.asarray(index.rank_of) < index.smallest_class[1]
    kept = dataset.only(~paired)
    return Splits(dataset.only(paired), kept, load_digit_images(name, "test"))


def image_shape(name: str) -> tuple[int, int, int]:
    """Of MNIST, or of scikit-learn's "digits"."""
    return (8, 8, 1) if name == "digits" else (28, 28, 1)


# Comparing all of a batch ---------------------------------------------------------------


class LabelledBatch(NamedTuple):
    """Images [n, ...] in [0, 1] with their classes [n]."""

    images: jax.Array
    labels: jax.Array


def check_batch_size(config: pairs.PairConfig) -> None:
    """A batch of all digits needs two of each."""
    if config.batch_size < NUM_DIGITS:
        raise run.UserError(f"batch_size must be at least 10; got {config.batch_size}")


def sample_labelled(
    config: pairs.PairConfig, key: jax.Array, step: jax.Array, data: pairs.Data
) -> LabelledBatch:
    """As many images as `batch_size` pairs have, evenly of the ten digits."""
    assert data.classes is not None
    num_each = 2 * config.batch_size // NUM_DIGITS
    batch = samplers.sample_batch(key, data.classes, NUM_DIGITS, num_each)
    return LabelledBatch(pairs.gather(data.images, batch.examples), batch.labels)


def supervised_loss(
    embeddings: jax.Array, labels: jax.Array, log_temperature: jax.Array
) -> jax.Array:
    """Supervised contrastive loss of cosine similarities, all against all."""
    same, where = relations.within(relations.Items(labels))
    return losses.supervised_contrastive_loss(
        distances.cosine_similarity_matrix(embeddings, embeddings),
        same,
        where=where,
        temperature=jnp.exp(log_temperature),
    )


# Judging --------------------------------------------------------------------------------


class Conclusion(NamedTuple):
    """Figures, and what pictures are made of."""

    metrics: dict[str, float]
    embeddings: jax.Array
    test_pairs: pairs.Pairs
    test: pairs.Judged
    threshold: float


def conclude(
    config: run.RunConfig,
    splits: Splits,
    training_pairs: pairs.Pairs,
    test_pairs: pairs.Pairs,
    *,
    threshold: float | None = None,
) -> Conclusion:
    """Judges training, validation and test pairs; keeps the calibration.

    The figures are at `threshold`, a tutorial's, or at the best on validation pairs.
    """
    learnt = model.load_model(config.directory)
    embeddings = model.embed(learnt, splits.unseen.images)
    test = model.judge(learnt, embeddings, test_pairs)
    seen = model.judge(learnt, model.embed(learnt, splits.seen.images), training_pairs)
    validation_pairs = pairs.random_pairs(
        jax.random.key(TEST_SEED), splits.kept.labels, NUM_VALIDATION_PAIRS
    )
    kept = model.judge(learnt, model.embed(learnt, splits.kept.images), validation_pairs)
    calibration = model.calibrate(kept, "pairs of training images that no pair trained on")
    model.save_calibration(config, calibration)
    threshold = calibration.threshold if threshold is None else threshold
    at_validation = verify.decision_rates(*test, calibration.threshold)
    metrics = (
        pairs.pair_metrics(test, threshold)
        | {
            "pair_accuracy_training_pairs": float(
                verify.decision_rates(*seen, threshold).accuracy
            )
        }
        | pairs.chosen_threshold_metrics(seen, test)
        | {
            "validation_threshold": calibration.threshold,
            "pair_accuracy_at_validation_threshold": float(at_validation.accuracy),
        }
    )
    return Conclusion(metrics, embeddings, test_pairs, test, threshold)


def write_report(
    config: run.RunConfig,
    title: str,
    splits: Splits,
    conclusion: Conclusion,
    *,
    curves: Sequence[str] = ("loss",),
) -> None:
    """Pairs, distances, ROC, which digits are confused, the embedding, the loss."""
    images, labels = splits.unseen
    metrics, embeddings, test_pairs, test, threshold = conclusion
    called = np.asarray(test.distances) <= threshold
    pictures = [
        *pairs.sections(images, test_pairs, test, threshold),
        report.Section(
            "Which digits are called the same?",
            "Share of the different test pairs of two digits within the threshold.",
            report.confusion_matrix(
                pairs.called_the_same(labels, test_pairs, called),
                [str(digit) for digit in range(10)],
            ),
        ),
        report.Section(
            "The embedding space",
            "Test digits laid out by t-SNE of their embeddings.",
            report.embedding_map(np.asarray(embeddings[:400]), images[:400]),
        ),
        report.Section("Training", "", report.curves(config.directory, curves)),
    ]
    report.write_report(config, title, metrics, pictures)
