"""Labeled Faces in the Wild: 13,233 images of 5,749 people, and lists of pairs of them.

pairs.txt ("View 2") has ten folds of 300 pairs of one person and 300 pairs of two persons.
No person is in two folds. Accuracies on it are reported as the mean over the folds and its
standard error. pairsDevTrain.txt and pairsDevTest.txt ("View 1") have 1,100 + 1,100 and 500
+ 500 pairs to develop on. These lists are files of their own beside the images.

An image is called NAME/NAME_0001.jpg. The images are read from a folder with one sub-folder
for each person, or as TFDS has prepared them. TFDS does not keep the names of the files,
but its order follows from them: see `_names_in_tfds`.

Reference:
  Huang, Ramesh, Berg, Learned-Miller. Labeled Faces in the Wild. 2007.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from experiments.datasets import sources
from experiments.datasets.sources import ImageSource
from experiments.datasets.tfds import ARCHIVES, load_columns, open_tfds
from experiments.datasets.yardsticks import Part, found_in
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation

FOLDERS = ("lfw", "lfw_funneled", "lfw-deepfunneled")  # of the archives


class FacePairs(NamedTuple):
    """A list of pairs of images.

    Attributes:
      names: [2, n], the names of the images, such as "Ann_Lee/Ann_Lee_0001.jpg".
      same: bool [n], True where both are of one person.
      folds: [n], the number of the fold, all 0 where there are no folds.
    """

    names: np.ndarray
    same: np.ndarray
    folds: np.ndarray

    @property
    def people(self) -> np.ndarray:
        """[2, n], the names of the persons."""
        return np.array([[name.split("/")[0] for name in side] for side in self.names])


def read_pairs(file: pathlib.Path) -> FacePairs:
    """Reads pairs.txt, pairsDevTrain.txt or pairsDevTest.txt.

    The first line has the number of folds and the number n of pairs, or n alone. In each
    fold n lines "NAME 1 2", pairs of one person, are followed by n lines "NAME 1 OTHER 3".

    Raises:
      UserError: If the file cannot be read, or is not of this form. The line is named.
    """
    try:
        lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeError) as error:
        raise UserError(f"the list of pairs {file} cannot be read: {error}") from error
    head = lines[0] if lines else []
    if len(head) not in (1, 2) or not all(word.isdecimal() for word in head):
        raise UserError(f"{file}, line 1: wanted one number or two; got {' '.join(head)!r}")
    num_folds, num_pairs = (1, int(head[0])) if len(head) == 1 else map(int, head)
    if num_folds * num_pairs == 0:
        raise UserError(f"{file} declares no pairs; its first line is {' '.join(head)!r}")
    numbered = [(number, line) for number, line in enumerate(lines[1:], 2) if line]
    rows = [line for _, line in numbered]
    if len(rows) != 2 * num_folds * num_pairs:
        raise UserError(
            f"{file} declares {num_folds} x 2 x {num_pairs} pairs, and has {len(rows)}"
        )
    same = np.arange(len(rows)) // num_pairs % 2 == 0
    names = [
        _pair(words, bool(one_person), f"{file}, line {number}")
        for (number, words), one_person in zip(numbered, same, strict=True)
    ]
    folds = np.arange(len(rows)) // (2 * num_pairs)
    return FacePairs(np.array(names).T, same, folds)


def _pair(words: list[str], same: bool, where: str) -> tuple[str, str]:
    """The names of two images from the words of a line."""
    numbers = [1, 2] if same else [1, 3]
    is_whole = len(words) == numbers[1] + 1
    if not is_whole or not all(words[place].isdecimal() for place in numbers):
        wanted = "NAME NUMBER NUMBER" if same else "NAME NUMBER NAME NUMBER"
        raise UserError(f"{where}: wanted {wanted}; got {' '.join(words)!r}")
    first, second = (int(words[place]) for place in numbers)
    return image_name(words[0], first), image_name(words[0 if same else 2], second)


def image_name(person: str, number: int) -> str:
    """The name of an image of a person.

    >>> image_name("Ann_Lee", 1)
    'Ann_Lee/Ann_Lee_0001.jpg'
    """
    return f"{person}/{person}_{number:04}.jpg"


def find_pairs(folder: pathlib.Path | None, file: pathlib.Path | None) -> pathlib.Path:
    """The list of pairs: the given file, or pairs.txt in the folder of the images.

    Raises:
      UserError: If there is neither. The message says where the list comes from.
    """
    if file is not None:
        return file
    if folder is not None:
        for place in (folder, folder.parent):
            if (place / "pairs.txt").is_file():
                return place / "pairs.txt"
    raise UserError(
        "--pairs: the list of pairs of LFW, pairs.txt, is a file of its own beside the "
        "archive of the images; put it into --data-dir, or give its name"
    )


def open_faces(
    names: np.ndarray, folder: pathlib.Path | None, preparation: Preparation
) -> Part:
    """Opens the images with some names; the label of an image is the name of its person.

    Args:
      names: [n], such as "Ann_Lee/Ann_Lee_0001.jpg".
      folder: The folder with one sub-folder for each person. None for the set that TFDS has
        prepared.
      preparation: How an image is prepared when it is read.

    Raises:
      UserError: If an image is missing. It is named.
      FileNotFoundError: If TFDS has not prepared the set.
    """
    if folder is None:
        return _faces_of_tfds(names, preparation)
    try:
        root = found_in(folder, str(names[0]), FOLDERS)
    except UserError as error:
        raise UserError(
            f"--data-dir: {error}. The folder of lfw has {ARCHIVES['lfw']}"
        ) from error
    files = [root / str(name) for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(
            f"--data-dir: {len(missing)} images are missing, first {missing[0]}"
        )
    people = np.array([file.parent.name for file in files])
    return Part(sources.of_files(files, people, preparation), names)


def _faces_of_tfds(names: np.ndarray, preparation: Preparation) -> Part:
    columns = {"people": lambda example: _text(example["label"])}
    people = load_columns("lfw", "train", columns, skipped=("image",))["people"]
    row_of = {name: row for row, name in enumerate(_names_in_tfds(people))}
    if missing := [name for name in names if name not in row_of]:
        raise UserError(f"lfw: {len(missing)} images are not in TFDS, first {missing[0]}")
    opened = open_tfds("lfw", "train", preparation)
    source: ImageSource = opened._replace(labels=people)
    return Part(source.only(np.array([row_of[name] for name in names])), names)


def _text(label: str | bytes) -> str:
    return label if isinstance(label, str) else label.decode()


def _names_in_tfds(people: np.ndarray) -> list[str]:
    """The names of the images in the order of TFDS.

    The images of a person are numbered from 1. TFDS sorts all examples by a hash of their
    names. So the names follow from the number of images of each person. The persons in that
    order must be those of the examples, which would not be so if TFDS sorted in another
    way.

    Raises:
      UserError: If the persons are in another order.
    """
    from tensorflow_datasets.core.hashing import Hasher

    names = [
        image_name(person, number + 1)
        for person, count in zip(*np.unique(people, return_counts=True), strict=True)
        for number in range(count)
    ]
    names.sort(key=Hasher("train").hash_key)
    if [name.split("/")[0] for name in names] != people.tolist():
        raise UserError(
            "lfw: the images of TFDS are in an unknown order, so that their numbers are "
            "not known; unpack lfw.tgz to a folder and give it as --data-dir"
        )
    return names
