"""The data sets by which metric learning is judged, split by class as the papers do it.

name                      training part                  test part
caltech_birds2011         100 classes,     5,864 images  100 classes,     5,924 images
cars196                   98 classes,      8,054 images  98 classes,      8,131 images
stanford_online_products  11,318 classes, 59,551 images  11,316 classes, 60,502 images
omniglot                  964 classes,    19,280 images  659 classes,    13,180 images

The names are those of TensorFlow Datasets. The first is known as CUB-200-2011. A class is
in one part only: the classes in the order of their numbers are cut in two. The authors of
the first two sets also published a split for classification, with images of every class in
both parts. It plays no role here: all images of a class stay together.

Each set but Omniglot is read from a folder, unpacked as the authors packed it, or as TFDS
has prepared it. Labels are class numbers from 0, in the order of the authors' numbers from
1.

Reference:
  Song, Xiang, Jegelka, Savarese. Deep Metric Learning via Lifted Structured Feature
  Embedding. CVPR 2016, section 5: the split of all three. Omniglot: Lake et al. 2015.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.datasets import omniglot, sources
from experiments.datasets.sources import ImageSource
from experiments.datasets.tfds import ARCHIVES, open_tfds
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, Preparation, prepare

ClassSplitName = Literal[
    "caltech_birds2011", "cars196", "stanford_online_products", "omniglot"
]
Numbered = tuple[list[pathlib.Path], list[int]]  # image files and class numbers from 1


class Part(NamedTuple):
    """The training part or the test part of a set.

    Attributes:
      source: The images, which are read when they are needed, and their class numbers.
      names: [n], what each image is called: its file, relative to the folder, or its split
        and number in TFDS, such as "train/17".
    """

    source: ImageSource
    names: np.ndarray

    def only(self, rows: np.ndarray) -> "Part":
        """Selects images by their positions or by a boolean mask."""
        return Part(self.source.only(rows), self.names[rows])


class Parts(NamedTuple):
    """Both parts of a set. No class is in both."""

    train: Part
    test: Part


class Yardstick(NamedTuple):
    """What is known of a set.

    Attributes:
      num_classes: Number of classes of the training part and of the test part.
      num_images: Number of images of both.
      cutoffs: The k for which papers give recall@k.
      label: The feature of TFDS that holds the class.
      list_files: Lists the image files of an unpacked folder. None if there is no such
        form.
    """

    num_classes: tuple[int, int]
    num_images: tuple[int, int]
    cutoffs: tuple[int, ...] = (1, 2, 4, 8)
    label: str = "label"
    list_files: Callable[[pathlib.Path], Numbered] | None = None


# Folders --------------------------------------------------------------------------------


def list_birds(folder: pathlib.Path) -> Numbered:
    """Lists CUB_200_2011 by its files images.txt and image_class_labels.txt."""
    root = found_in(folder, "images.txt", ("CUB_200_2011",))
    files = _by_number(root / "images.txt")
    classes = _by_number(root / "image_class_labels.txt", number=1)
    if files.keys() != classes.keys():
        raise UserError(f"{root}: images.txt and image_class_labels.txt differ in numbers")
    paths = [root / "images" / files[number] for number in files]
    return paths, [int(classes[number]) for number in files]


def _by_number(file: pathlib.Path, *, number: int | None = None) -> dict[str, str]:
    """The second word of each line by the first; `number` is the word that is a number."""
    found: dict[str, str] = {}
    for line in _lines(file):
        key, value = _words(line, 2, file, number=number)
        if key in found:
            raise UserError(f"{file}: number {key} is there more than once")
        found[key] = value
    return found


def list_cars(folder: pathlib.Path) -> Numbered:
    """Lists Cars-196 by cars_annos.mat, or by the two files of the development kit."""
    names = ("cars_annos.mat", "devkit/cars_train_annos.mat")
    for name in names:
        if (folder / name).is_file():
            break
    else:
        raise UserError(f"{folder} has neither {' nor '.join(names)}")
    if name == names[0]:
        return _annotated(folder / name, folder, "relative_im_path")
    test = "cars_test_annos_withlabels.mat"
    where = folder if (folder / test).is_file() else folder / "devkit"
    train_files, train_classes = _annotated(folder / name, folder / "cars_train", "fname")
    test_files, test_classes = _annotated(where / test, folder / "cars_test", "fname")
    return train_files + test_files, train_classes + test_classes


def _annotated(file: pathlib.Path, root: pathlib.Path, field: str) -> Numbered:
    """Reads the names and the classes of a MATLAB file of annotations."""
    from scipy.io import loadmat

    try:
        found = np.atleast_1d(loadmat(file, squeeze_me=True)["annotations"])
        return [root / str(name) for name in found[field]], list(map(int, found["class"]))
    except Exception as error:  # SciPy raises many kinds for a damaged file
        raise UserError(f"{file} cannot be read as annotations: {error}") from error


def list_products(folder: pathlib.Path) -> Numbered:
    """Lists Stanford Online Products by Ebay_train.txt and Ebay_test.txt."""
    root = found_in(folder, "Ebay_train.txt", ("Stanford_Online_Products",))
    files, classes = [], []
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        for line in _lines(root / name)[1:]:  # after the names of the columns
            _, number, _, path = _words(line, 4, root / name, number=1)
            files.append(root / path)
            classes.append(int(number))
    return files, classes


def found_in(folder: pathlib.Path, file: str, names: Sequence[str]) -> pathlib.Path:
    """Finds the folder with a file: the given one, or one with a usual name in it.

    Raises:
      UserError: If the file is in none of them.
    """
    places = [folder, *(folder / name for name in names)]
    for place in places:
        if (place / file).is_file():
            return place
    raise UserError(f"there is no {file} in {' or '.join(map(str, places))}")


def _lines(file: pathlib.Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _words(
    line: str, num: int, file: pathlib.Path, *, number: int | None = None
) -> list[str]:
    """Splits a line into words, of which one may have to be a number."""
    words = line.split()
    if len(words) != num:
        raise UserError(f"{file}: a line must have {num} words; got {line!r}")
    if number is not None and not words[number].isdecimal():
        raise UserError(f"{file}: word {number + 1} must be a number; got {line!r}")
    return words


YARDSTICKS: dict[str, Yardstick] = {
    "caltech_birds2011": Yardstick(
        (100, 100),
        (5_864, 5_924),
        list_files=list_birds,
    ),
    "cars196": Yardstick(
        (98, 98),
        (8_054, 8_131),
        list_files=list_cars,
    ),
    "stanford_online_products": Yardstick(
        (11_318, 11_316),
        (59_551, 60_502),
        cutoffs=(1, 10, 100, 1_000),
        label="class_id",
        list_files=list_products,
    ),
    "omniglot": Yardstick((964, 659), (19_280, 13_180)),
}


# Both forms -----------------------------------------------------------------------------


def open_yardstick(
    name: str, folder: pathlib.Path | None, preparation: Preparation
) -> Parts:
    """Opens both parts of a set, and prints a line with their sizes.

    Args:
      name: One of `YARDSTICKS`.
      folder: Where the archive of the authors was unpacked. None for the set that TFDS has
        prepared.
      preparation: How an image is prepared when it is read.

    Raises:
      UserError: If the folder has other files than it must have, a class number is out of
        range, or there is no form of a folder.
      FileNotFoundError: If TFDS has not prepared the set.
    """
    about = YARDSTICKS[name]
    everything = (
        _of_tfds(name, about, preparation)
        if folder is None
        else _of_folder(name, about, folder, preparation)
    )
    is_train = in_training(name, everything.source.labels)
    parts = Parts(everything.only(is_train), everything.only(~is_train))
    print(f"{name}: {described(parts)}")
    wanted = f"{_counted('training', about, 0)}, {_counted('test', about, 1)}"
    if described(parts) != wanted:
        print(f"the papers have {wanted}: figures cannot be compared with theirs")
    return parts


def in_training(name: str, labels: np.ndarray) -> np.ndarray:
    """Tells which images belong to the training part, by their class numbers from 0.

    Raises:
      UserError: If a class number is out of range.

    >>> in_training("cars196", np.array([0, 97, 98, 195])).tolist()
    [True, True, False, False]
    """
    num_train, num_test = YARDSTICKS[name].num_classes
    wrong = labels[(labels < 0) | (labels >= num_train + num_test)]
    if wrong.size:
        raise UserError(
            f"{name} has classes 1 to {num_train + num_test}; there is one of number "
            f"{wrong[0] + 1}"
        )
    return labels < num_train


def described(parts: Parts) -> str:
    """The sizes of both parts in words."""
    texts = []
    for kind, part in zip(("training", "test"), parts, strict=True):
        num_classes = len(np.unique(part.source.labels))
        texts.append(f"{len(part.names):,} {kind} images of {num_classes:,} classes")
    return ", ".join(texts)


def _counted(kind: str, about: Yardstick, part: int) -> str:
    return (
        f"{about.num_images[part]:,} {kind} images of {about.num_classes[part]:,} classes"
    )


def _of_folder(
    name: str, about: Yardstick, folder: pathlib.Path, preparation: Preparation
) -> Part:
    if about.list_files is None:
        raise UserError(f"--data-dir: {name} is read from TensorFlow Datasets alone")
    try:
        files, numbers = about.list_files(folder)
    except UserError as error:
        raise UserError(
            f"--data-dir: {error}. The folder of {name} has {ARCHIVES[name]}"
        ) from error
    if not files:
        raise UserError(f"--data-dir: the lists of {folder} name no image")
    source = sources.of_files(files, np.array(numbers) - 1, preparation)
    return Part(source, np.array([file.relative_to(folder).as_posix() for file in files]))


def _of_tfds(name: str, about: Yardstick, preparation: Preparation) -> Part:
    opened = [_split_of_tfds(name, split, about, preparation) for split in _SPLITS]
    names = [
        f"{split}/{number}"
        for split, source in zip(_SPLITS, opened, strict=True)
        for number in range(len(source.labels))
    ]
    return Part(sources.joined(*opened), np.array(names))


_SPLITS = ("train", "test")


def _split_of_tfds(
    name: str, split: str, about: Yardstick, preparation: Preparation
) -> ImageSource:
    """Opens a split of TFDS, which for some sets is another one than that of the papers."""
    if name != "omniglot":
        return open_tfds(name, split, preparation, label=about.label)
    characters = omniglot.load_split(split)
    images: Any = prepare(characters.images, preparation)
    return sources.in_memory(LabelledImages(images, characters.labels))
