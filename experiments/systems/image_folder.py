"""One-shot recognition on your own images: any folder with one sub-folder for each class.

Source:  this project's own; the supervised contrastive loss of Khosla et al. 2020 on
         several images of each of some classes.
Run:     python -m experiments image_folder --data-dir FOLDER
Expect:  depends on the images; some minutes of training on two CPU cores
Quick:   python -m experiments image_folder --data-dir FOLDER --num-steps 30

A fifth of the classes, at random, is for the test. Another fifth is for validation: the
threshold is chosen and probabilities are calibrated on it. The encoder is trained on the
other classes. (`--test-classes FILE` names the test classes instead.) On the test classes,
which it has never seen, it is tested at "same or different?" and at one-shot recognition
with one image of each class in the gallery, beside the baseline of pixels. The names of the
classes of each part are in RUN/classes.json. A run that was stopped goes on with these, and
refuses others.

Every format that Pillow reads by itself is read, as a viewer shows it: turned as the camera
says, transparent parts white (or of the grey `--background`). Files that are passed over
are counted in a line. Classes with fewer than `--min-images` images are left out.

Images are resized to `--image-size` (height width), in grey unless `--color` is given. Use
`--no-flip` where left and right differ, as in letters, and say how far your images may be
rotated, sheared, scaled and shifted: it is the only knowledge about them that goes into
training. For few images, `--encoder hog` trains a linear map of oriented gradients.
`--encoder package.module:Name` trains a Flax network of your own.

`--dataset` trains on CUB-200-2011 (caltech_birds2011), Cars-196 or Stanford Online Products
instead, as TensorFlow Datasets has prepared it, or from the archive of its authors in
`--data-dir`. Then the test classes are those of the papers, and the validation classes are
a tenth of their training classes. `--crop` cuts a square out of the middle instead of
changing the proportions, as papers do: `--image-size 224 224 --color --crop --stream`.
`python -m experiments yardsticks` gives the figures of papers for the model.

Without more, all images are kept on the device. With `--stream` those of the training
classes are read and prepared when a batch needs them, and the result is the same, apart
from rounding on several devices. The images of the other classes are read into memory when
the training has ended. `--test-classes` chooses the test classes.

Then use the model on your images:

    siamese-jax verify --model RUN/model a.png b.png
    siamese-jax identify --model RUN/model --gallery FOLDER --queries c.png
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from experiments.cli import command_line
from experiments.datasets import sources
from experiments.datasets.sources import ImageSource
from experiments.datasets.yardsticks import in_training, open_yardstick
from experiments.engine import loop, photographs, supcon
from experiments.engine.config import setting
from experiments.engine.data import ClassData, class_data
from experiments.engine.precision import settled
from experiments.engine.streams import Stream
from experiments.engine.system import System
from experiments.evaluations import unseen_classes
from experiments.evaluations.unseen_classes import ClassSplit, select_classes
from siamese_jax._names import comparable, enumerated, shown
from siamese_jax.errors import UserError
from siamese_jax.images import (
    LabelledImages,
    Preparation,
    class_names,
    count_images,
    list_folder,
    remarks,
    small_classes,
)

Dataset = Literal["folder", "caltech_birds2011", "cars196", "stanford_online_products"]


@dataclasses.dataclass(frozen=True)
class Config(photographs.PhotographConfig):
    """Your images, and the settings of the encoder and of its training.

    Attributes:
      data_dir: A folder with one sub-folder of images for each class, or the archive of a
        data set.
      dataset: "folder", or a data set with its own test classes.
      image_size: Height and width to which the images are resized.
      color: Whether the encoder sees colours.
      crop: Whether to keep the proportions of images: the middle is cut out of them.
      background: The grey that shows through transparent images, from 0, black, to 255,
        white.
      min_images: Leave out classes with fewer images.
      test_classes: A text file with the name of a test class on each line. By default the
        test classes are drawn at random.
      stream: Read the training images when they are needed, for folders that do not fit
        into the memory of the device.
    """

    experiment: ClassVar[str] = "image_folder"

    num_steps: int = setting(300, at_least=1)

    data_dir: pathlib.Path | None = None
    dataset: Dataset = "folder"
    image_size: tuple[int, int] = setting((64, 64), at_least=1)
    color: bool = False
    crop: bool = False
    background: int = setting(255, at_least=0, at_most=255)
    min_images: int | None = setting(None, at_least=1, only_when={"dataset": "folder"})
    test_classes: pathlib.Path | None = setting(None, only_when={"dataset": "folder"})
    stream: bool = False


def build(config: Config) -> System:
    """The system as pure functions."""
    return photographs.build(config, preparation(config))


def preparation(config: Config) -> Preparation:
    """How images are prepared, in training and in use."""
    return Preparation(
        config.image_size,
        color=config.color,
        background=config.background,
        resampling="center-crop" if config.crop else "lanczos",
    )


def read_names(config: Config) -> list[str]:
    """Reads the names of the test classes, if a file is given.

    Raises:
      UserError: If it cannot be read as text.
    """
    if config.test_classes is None:
        return []
    try:
        lines = config.test_classes.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--test-classes: {config.test_classes}: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def split_classes(
    labels: np.ndarray, seed: int, *, test_names: Sequence[str] = ()
) -> ClassSplit:
    """Splits the classes at random; another seed tests on other classes.

    Args:
      labels: The class of each image.
      seed: The seed of the split.
      test_names: The test classes, instead of random ones.

    Raises:
      UserError: If there are fewer than 6 classes, classes have a single image, or a test
        class is not there.
    """
    names = np.unique(labels)
    if len(names) < 6:
        raise UserError(
            f"6 classes are needed: 2 to train on, 2 to calibrate on, 2 to test on; there "
            f"are {len(names)}"
        )
    check_counts(supcon.class_counts(labels))
    order = np.random.default_rng(seed).permutation(names)
    num = max(2, len(names) // 5)
    if not test_names:
        test, validation, train = np.split(order, [num, 2 * num])
        return ClassSplit(np.sort(train), np.sort(validation), np.sort(test))
    wanted = {comparable(name) for name in test_names}
    is_test = np.array([comparable(name) in wanted for name in order])
    if missing := sorted(wanted - {comparable(name) for name in names}):
        raise UserError(f"--test-classes: no class is named {enumerated(missing)}")
    if len(wanted) < 2 or len(names) - len(wanted) < 4:
        raise UserError(
            f"--test-classes: 2 classes or more, and 4 others to train and calibrate on, "
            f"are needed; got {len(wanted)} of {len(names)}"
        )
    num = min(num, (~is_test).sum() - 2)
    validation, train = np.split(order[~is_test], [num])
    return ClassSplit(np.sort(train), np.sort(validation), np.sort(order[is_test]))


def standard_split(dataset: str, labels: np.ndarray, seed: int) -> ClassSplit:
    """Splits the classes of a data set as papers do it, and keeps some for validation.

    Args:
      dataset: One of `YARDSTICKS`.
      labels: The class number of each image.
      seed: The seed of the choice of the validation classes, a tenth of the training
        classes.
    """
    is_train = in_training(dataset, labels)
    order = np.random.default_rng(seed).permutation(np.unique(labels[is_train]))
    validation, train = np.split(order, [max(2, len(order) // 10)])
    return ClassSplit(np.sort(train), np.sort(validation), np.unique(labels[~is_train]))


def check_counts(counts: Mapping[str, int]) -> None:
    """Refuses classes with fewer than 2 images.

    Args:
      counts: Number of images of each class.

    Raises:
      UserError: If there are such classes. All are named.
    """
    if few := small_classes(counts, 2):
        raise UserError(f"{few}; --min-images 2 leaves such classes out")


def choose_classes(config: Config, labels: np.ndarray) -> ClassSplit:
    """The classes of each part.

    Raises:
      UserError: As `split_classes`.
    """
    if config.dataset == "folder":
        return split_classes(labels, config.seed, test_names=read_names(config))
    return standard_split(config.dataset, labels, config.seed)


def load(config: Config) -> LabelledImages:
    """Reads all images and prepares them.

    Raises:
      UserError: As `find_images`, or if a file cannot be read.
      FileNotFoundError: If the folder does not exist.
    """
    return sources.load(find_images(config))


def find_images(config: Config) -> ImageSource:
    """Finds all images, without reading them.

    A label is the name of a sub-folder, or the number of a class of a data set.

    Says on the standard error stream which files and classes are passed over.

    Raises:
      UserError: If no folder is given, it has no labelled images, classes have a single
        image, or the images are too small for the encoder.
      FileNotFoundError: If the folder does not exist.
    """
    if config.dataset == "folder" and config.data_dir is None:
        raise UserError("--data-dir: a folder with one sub-folder a class")
    photographs.check_encoder(config, preparation(config), "--image-size")
    if config.dataset != "folder" or config.data_dir is None:
        parts = open_yardstick(config.dataset, config.data_dir, preparation(config))
        return sources.joined(parts.train.source, parts.test.source)
    files = choose_files(config.data_dir, config.min_images)
    return sources.of_files(files, np.array(class_names(files)), preparation(config))


def choose_files(folder: pathlib.Path, min_images: int | None) -> list[pathlib.Path]:
    """Lists the images of a folder, and says what is passed over.

    Args:
      folder: A folder with one sub-folder for each class.
      min_images: Leaves out classes with fewer images. None refuses classes with fewer
        than 2.

    Raises:
      UserError: If the folder has no classes, or a class has too few images.
      FileNotFoundError: If the folder does not exist.
    """
    counts = count_images(folder)
    lines = remarks([folder], list_folder(folder, min_images=1))
    if min_images is not None and (few := small_classes(counts, min_images)):
        lines.append(f"left out: {few}")
    for line in lines:
        print(line, file=sys.stderr)
    check_counts({name: num for name, num in counts.items() if num >= (min_images or 0)})
    return list_folder(folder, min_images=min_images)


def training_data(config: Config, source: ImageSource) -> ClassData | Stream:
    """The training images on the device, or a stream of them."""
    if config.stream:
        return supcon.class_stream(config, source)
    return class_data(sources.load(source))


def main(config: Config) -> None:
    """Trains, evaluates on classes never seen, reports, and says how to use the model."""
    config = settled(config)
    source = find_images(config) if config.stream else sources.in_memory(load(config))
    names = choose_classes(config, source.labels)
    # the folder has the name of what was asked for, as in the command that goes on
    config = dataclasses.replace(config, workdir=config.directory)
    config = supcon.fit_batch(config, select_classes(source, names.train).labels)
    if not loop.start(config):
        return
    unseen_classes.run(
        config,
        build(config),
        training_data(config, select_classes(source, names.train)),
        lambda part: sources.load(select_classes(source, part)),
        names,
        noun="classes",
        title="Classes never seen",
    )
    print("use the model on other images:\n")
    folder = config.data_dir if config.dataset == "folder" else "FOLDER"
    model, gallery = (
        shown(shlex.quote(str(path))) for path in (config.directory / "model", folder)
    )
    print(
        f"  siamese-jax identify --model {model} --gallery {gallery} --queries FILE ...\n"
    )


if __name__ == "__main__":
    command_line(main, Config)
