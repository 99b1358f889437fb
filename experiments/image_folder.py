"""One-shot recognition on your own images: any folder with one sub-folder a class.

Source:  this project's own; the training recipe is Khosla et al. 2020 on P x K batches.
Run:     python -m experiments.image_folder --data-dir FOLDER
Expect:  depends on the images; some minutes of training on two CPU cores
Quick:   python -m experiments.image_folder --data-dir FOLDER --num-steps 30

A fifth of the classes, at random, is kept for the test and a fifth to choose the threshold
and to calibrate probabilities; the net learns from the others which images are of a class.
On the test classes, which it has never seen: same or different, and one-shot recognition
with one image of each class in the gallery, beside nearest pixels.

Images are brought to `--image-size` (height width), in grey unless `--color`. Say
`--no-flip` where left and right differ (letters), and how far your images may be turned,
scaled and shifted and still be of their class. What comes out serves
`experiments.identify`, `verify` and `export`.
"""

import dataclasses
import json
import pathlib
from functools import partial
from typing import ClassVar

import numpy as np

from experiments import model, pairs, recipe, report, run
from experiments.data import Dataset, load_folder
from experiments.model import Model
from siamese_jax import verification as verify


@dataclasses.dataclass(frozen=True)
class Config(recipe.RecipeConfig):
    """Your images, and the recipe's settings."""

    experiment: ClassVar[str] = "image_folder"

    num_steps: int = 300
    steps_per_call: int = 10
    checkpoint_every: int = 100

    data_dir: pathlib.Path | None = None
    image_size: tuple[int, int] = (64, 64)  # height, width
    color: bool = False


def image_shape(config: Config) -> tuple[int, int, int]:
    """Height, width, channels."""
    return (*config.image_size, 3 if config.color else 1)


def split_classes(labels: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """Names of the classes to train on, to calibrate on, and to test on.

    Raises:
      UserError: If there are too few classes, or one to be judged has a single image.
    """
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 6:
        raise run.UserError(
            f"6 classes are needed: 2 to train on, 2 to calibrate on, 2 to test on; there "
            f"are {len(names)}"
        )
    if counts.min() < 2:
        single = names[counts.argmin()]
        raise run.UserError(f"every class needs 2 images; class {single!s} has 1")
    order = np.random.default_rng(seed).permutation(names)
    num = max(2, len(names) // 5)
    test, validation, training = np.split(order, [num, 2 * num])
    return np.sort(training), np.sort(validation), np.sort(test)


def load(config: Config) -> Dataset:
    """All images, resized."""
    if config.data_dir is None:
        raise run.UserError("--data-dir: a folder with one sub-folder a class")
    if min(config.image_size) < 2 ** len(config.widths):
        raise run.UserError(
            f"image_size must be at least {2 ** len(config.widths)} for "
            f"{len(config.widths)} blocks; got {config.image_size}"
        )
    return load_folder(config.data_dir, size=config.image_size, color=config.color)


def load_model(config: Config) -> Model:
    """The trained encoder."""
    return recipe.load_model(config, image_shape(config))


def main(config: Config) -> None:
    """Loads, trains, judges classes never seen, reports."""
    dataset = load(config)
    parts = split_classes(dataset.labels, config.seed)
    seen, kept, unseen = (dataset.only(np.isin(dataset.labels, part)) for part in parts)
    recipe.check_batch(seen.labels, config.num_classes, config.num_images)
    if not run.start(config):
        return
    names = dict(zip(("training", "validation", "test"), map(list, parts), strict=True))
    run.write_whole(config.directory / "classes.json", json.dumps(names, indent=2) + "\n")
    trained = run.train(
        config,
        recipe.initial_state(config, image_shape(config)),
        recipe.make_data(seen),
        partial(recipe.train_steps, config),
        images_per_step=config.num_classes * config.num_images,
    )
    learnt = model.load_model(config.directory)
    calibration = recipe.calibrate(learnt, kept, "pairs of the validation classes")
    model.save_calibration(config, calibration)
    metrics, judged = recipe.judge_unseen(learnt, unseen, calibration.threshold)
    pixels = model.pixel_model(image_shape(config))
    at = recipe.calibrate(pixels, kept, "pairs of the validation classes").threshold
    pixel_metrics, pixels_judged = recipe.judge_unseen(pixels, unseen, at)
    metrics |= {f"pixels_{name}": figure for name, figure in pixel_metrics.items()}
    run.finish(config, metrics, trained)  # first: a report can be made again
    curves = {"net": verify.roc_curve(*judged), "pixels": verify.roc_curve(*pixels_judged)}
    drawn = recipe.all_pairs(unseen.labels)
    pictures = [
        *pairs.sections(unseen.images, drawn, judged, calibration.threshold, "gray")[:2],
        report.Section("ROC", "The falling line marks equal errors.", report.roc(curves)),
        report.Section("Training", "", report.curves(config.directory)),
    ]
    report.write_report(config, "Classes never seen", metrics, pictures)


if __name__ == "__main__":
    run.command_line(main, Config)
