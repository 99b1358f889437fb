"""The share of strangers that identification lets in, beside the share that was asked for.

Source:  this project's own.
Run:     python -m experiments stranger_rates --model runs/glyphs/model
Expect:  each share at most the one asked for and at least two thirds of it, but for chance,
         in one minute on two CPU cores

A gallery has one image of each of its classes, a stranger is an image of another class, and
it is let in if it is near enough to an image of the gallery. The classes are glyphs that
matplotlib's fonts draw, none of which `glyphs` was trained on. In each of many calibrations
the glyphs are dealt out anew: 450 calibrate the model as after a training run, others are
the gallery, and 500 others are strangers. There are too few glyphs for galleries of 5,000
classes, which have random unit vectors as embeddings, and fewer calibrations.
"""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.cli import command_line, show_figures
from experiments.datasets import evaluation_key
from experiments.datasets.letters import draw_glyphs
from experiments.engine.config import check_config, setting
from experiments.engine.pair_batches import random_pairs
from experiments.evaluations.pair_metrics import calibrate, pair_distances
from siamese_jax.cli import check_output
from siamese_jax.errors import UserError
from siamese_jax.identification import is_within, stranger_threshold
from siamese_jax.model import Model, load_model

NUM_CALIBRATING = 450
NUM_STRANGERS = 500
NUM_PAIRS = 4_000


@dataclasses.dataclass(frozen=True)
class Config:
    """The model, and the sizes of the galleries.

    Attributes:
      model: The folder of a model that was trained by `glyphs`.
      num_classes: Numbers of classes in a gallery of glyphs.
      num_simulated: Number of classes in a gallery of random vectors; 0 for none.
      rates: Shares of strangers to ask for.
      num_calibrations: Number of calibrations.
      json: A file for the figures.
    """

    model: pathlib.Path
    num_classes: tuple[int, ...] = setting((10, 100, 500, 1_000), at_least=2)
    num_simulated: int = setting(5_000, at_least=0)
    rates: tuple[float, ...] = setting((0.1, 0.01), above=0, below=1)
    num_calibrations: int = setting(100, at_least=1)
    json: pathlib.Path | None = None


def main(config: Config) -> None:
    """Measures the shares, and shows them.

    Raises:
      UserError: If a flag or the folder of the model is wrong.
    """
    check_config(config)
    check_output("--json", config.json)
    model = load_model(config.model)
    glyphs = draw_glyphs()
    print(f"embedding {len(glyphs.images):,} drawings of {glyphs.num_letters:,} glyphs ...")
    vectors = np.asarray(model.embed_prepared(glyphs.images))
    vectors = vectors.reshape(glyphs.num_letters, -1, vectors.shape[1])
    most = len(vectors) - NUM_CALIBRATING - NUM_STRANGERS
    if not all(2 <= num <= most for num in config.num_classes):
        raise UserError(f"--num-classes must be from 2 to {most}; got {config.num_classes}")
    metrics: dict[str, float] = {}
    for num in config.num_classes:
        metrics |= shares_let_in(config, model, vectors, num)
    if config.num_simulated:
        vectors = random_vectors(
            config.num_simulated + NUM_CALIBRATING + NUM_STRANGERS, vectors.shape[2]
        )
        few = dataclasses.replace(config, num_calibrations=-(-config.num_calibrations // 5))
        metrics |= shares_let_in(few, model, vectors, config.num_simulated)
    show_figures({"metrics": metrics}, config.json)


def random_vectors(num_classes: int, dim: int) -> np.ndarray:
    """Returns unit vectors [classes, 2, dim], those of a class around a random centre."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_classes, 1, dim))
    vectors = centres + 0.5 * rng.normal(size=(num_classes, 2, dim))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors.astype(np.float32)


def shares_let_in(
    config: Config, model: Model, vectors: np.ndarray, num_classes: int
) -> dict[str, float]:
    """Returns the mean shares of strangers let in, and prints where thresholds are from.

    Args:
      config: The rates and the number of calibrations.
      model: Its distance compares the embeddings.
      vectors: [classes, examples, dim], the embeddings.
      num_classes: Number of classes in a gallery.
    """
    shares: dict[float, list[float]] = {rate: [] for rate in config.rates}
    sources: dict[float, Any] = {}
    for number in range(config.num_calibrations):
        rng = np.random.default_rng(number)
        order = rng.permutation(len(vectors))
        ends = np.cumsum([num_classes, NUM_STRANGERS, NUM_CALIBRATING])
        gallery, strangers, others, _ = np.split(order, ends)
        known, new = (
            jnp.asarray(vectors[rows, rng.integers(vectors.shape[1], size=len(rows))])
            for rows in (gallery, strangers)
        )
        calibration = calibrated(model, vectors[others]).calibration
        if calibration is None:
            raise UserError("the model tells nothing apart")
        between = np.asarray(model.distances(known, known))
        nearest = np.asarray(model.distances(new, known)).min(axis=1)
        for rate in config.rates:
            threshold, sources[rate] = stranger_threshold(
                calibration, between, np.arange(num_classes), rate
            )
            shares[rate].append(float(is_within(nearest, threshold).mean()))
    metrics = {}
    for rate, found in shares.items():
        mean, error = np.mean(found), np.std(found) / np.sqrt(len(found))
        print(
            f"{num_classes:>5} classes, asked {rate:g}: let in {mean:.4f} +- {error:.4f} "
            f"({mean / rate:.2f} of it), threshold from the {sources[rate]}"
        )
        metrics[f"let_in_of_{num_classes}_classes_at_{rate:g}"] = float(mean)
    return metrics


def calibrated(model: Model, vectors: np.ndarray) -> Model:
    """Returns the model calibrated on some classes, as after a training run."""
    labels = np.repeat(np.arange(len(vectors)), vectors.shape[1])
    embeddings = jnp.asarray(vectors.reshape(-1, vectors.shape[2]))
    pairs = random_pairs(evaluation_key("calibration pairs"), labels, NUM_PAIRS)
    distances = pair_distances(model, embeddings, pairs)
    return calibrate(model, distances, "pairs of other classes", embeddings, labels)


if __name__ == "__main__":
    command_line(main, Config)
