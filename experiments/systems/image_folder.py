"""One-shot recognition on your own images: any folder with one sub-folder for each class.

Source:  this project's own; the supervised contrastive loss of Khosla et al. 2020 on
         several images of each of some classes.
Run:     python -m experiments image_folder --data-dir FOLDER
Expect:  depends on the images; some minutes of training on two CPU cores
Quick:   python -m experiments image_folder --data-dir FOLDER --num-steps 30

A fifth of the classes, at random, is for the test. Another fifth is for validation: the
threshold is chosen and probabilities are calibrated on it. The encoder is trained on the
other classes. On the test classes, which it has never seen, it is tested at "same or
different?" and at one-shot recognition with one image of each class in the gallery, beside
the baseline of pixels. The names of the classes of each part are in RUN/classes.json.

Images are resized to `--image-size` (height width), in grey unless `--color` is given. Use
`--no-flip` where left and right differ, as in letters, and say how far your images may be
rotated, sheared, scaled and shifted: it is the only knowledge about them that goes into
training. For few images, `--encoder hog` trains a linear map of oriented gradients.

Then use the model on your images:

    siamese-jax verify --model RUN/model a.png b.png
    siamese-jax identify --model RUN/model --gallery FOLDER --queries c.png
"""

import dataclasses
import pathlib
from typing import ClassVar

import numpy as np

from experiments.cli import command_line
from experiments.engine import loop, photographs, supcon
from experiments.engine.config import check_config, setting
from experiments.engine.loop import System
from experiments.evaluations import unseen_classes
from experiments.evaluations.unseen_classes import ClassSplit, select_classes
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, Preparation, load_folder


@dataclasses.dataclass(frozen=True)
class Config(photographs.PhotographConfig):
    """Your images, and the settings of the encoder and of its training.

    Attributes:
      data_dir: A folder with one sub-folder of images for each class.
      image_size: Height and width to which the images are resized.
      color: Whether the encoder sees colours.
    """

    experiment: ClassVar[str] = "image_folder"

    num_steps: int = setting(300, at_least=1)

    data_dir: pathlib.Path | None = None
    image_size: tuple[int, int] = setting((64, 64), at_least=1)
    color: bool = False


def build(config: Config) -> System:
    """The system as pure functions."""
    return photographs.build(config, preparation(config))


def preparation(config: Config) -> Preparation:
    """How images are prepared, in training and in use."""
    return Preparation(config.image_size, color=config.color)


def split_classes(labels: np.ndarray, seed: int) -> ClassSplit:
    """Splits the classes at random; another seed tests on other classes.

    Raises:
      UserError: If there are fewer than 6 classes, or a class has a single image.
    """
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 6:
        raise UserError(
            f"6 classes are needed: 2 to train on, 2 to calibrate on, 2 to test on; there "
            f"are {len(names)}"
        )
    if counts.min() < 2:
        single = names[counts.argmin()]
        raise UserError(f"every class needs 2 images; class {single!s} has 1")
    order = np.random.default_rng(seed).permutation(names)
    num = max(2, len(names) // 5)
    test, validation, train = np.split(order, [num, 2 * num])
    return ClassSplit(np.sort(train), np.sort(validation), np.sort(test))


def load(config: Config) -> LabelledImages:
    """Reads all images and prepares them. A label is the name of a sub-folder.

    Raises:
      UserError: If no folder is given, it cannot be read as labelled images, or the images
        are too small for the encoder.
      FileNotFoundError: If the folder does not exist.
    """
    if config.data_dir is None:
        raise UserError("--data-dir: a folder with one sub-folder a class")
    photographs.check_size(config, config.image_size, "--image-size")
    prepared = preparation(config)
    return load_folder(config.data_dir, size=prepared.size, color=prepared.color)


def main(config: Config) -> None:
    """Trains, evaluates on classes never seen, reports, and says how to use the model."""
    check_config(config)
    dataset = load(config)
    names = split_classes(dataset.labels, config.seed)
    train = select_classes(dataset, names.train)
    supcon.check_batch(train.labels, config.num_classes, config.num_images)
    if not loop.start(config):
        return
    unseen_classes.run(
        config,
        build(config),
        preparation(config),
        dataset,
        names,
        noun="classes",
        title="Classes never seen",
    )
    print("use the model on other images:\n")
    print(
        f"  siamese-jax identify --model {config.directory / 'model'} "
        f"--gallery {config.data_dir} --queries FILE ...\n"
    )


if __name__ == "__main__":
    command_line(main, Config)
