"""The digits of the three MNIST tutorials: MNIST, or scikit-learn's small digits.

Two of the tutorials make no pair of the images beyond the size of the smallest class.
These are the validation images of `load_splits`: the two models are not trained on them,
and their thresholds are chosen on them. The third tutorial uses all training images.
"""

from typing import NamedTuple

import numpy as np

from experiments.datasets.tfds import load_tfds
from siamese_jax import samplers
from siamese_jax.images import LabelledImages

NUM_DIGITS = 10


class DigitSplits(NamedTuple):
    """Images to train on, to choose thresholds on, and to test on."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def load_splits(name: str) -> DigitSplits:
    """Returns the splits of "mnist" or "digits".

    Train and validation images are both from the training split: the first n of each digit
    are for training, where n is the number of images of the rarest digit.

    Raises:
      FileNotFoundError: If MNIST is not prepared.
    """
    images = load_digit_images(name, "train")
    index = samplers.class_index(images.labels)
    is_train = np.asarray(index.rank_of) < index.smallest_class[1]
    test = load_digit_images(name, "test")
    return DigitSplits(images.only(is_train), images.only(~is_train), test)


def load_digit_images(name: str, split: str) -> LabelledImages:
    """Returns a split of a TFDS image set such as "mnist", or of scikit-learn's "digits".

    Raises:
      FileNotFoundError: If the TFDS set is not prepared.
    """
    return load_digits(split) if name == "digits" else load_tfds(name, split)


def load_digits(split: str) -> LabelledImages:
    """Returns a split of scikit-learn's 1,797 digits of 8 x 8 pixels.

    The first two thirds are "train", the others "test".

    Raises:
      ValueError: If `split` is neither.
    """
    from sklearn import datasets

    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test"; got {split!r}')
    digits = datasets.load_digits()
    images = np.rint(digits.images / 16 * 255).astype(np.uint8)[..., None]
    num_train = len(images) * 2 // 3
    rows = slice(num_train) if split == "train" else slice(num_train, None)
    return LabelledImages(images[rows], digits.target[rows])


def image_shape(name: str) -> tuple[int, int, int]:
    """Returns height, width and channels of the images of "mnist" or "digits"."""
    return (8, 8, 1) if name == "digits" else (28, 28, 1)
