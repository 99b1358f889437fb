"""Omniglot: 1,623 characters of 50 alphabets, 20 drawings of each.

Images come from TFDS. Its "train" split has the 30 background alphabets, its "test" split
the 20 for evaluation. Ten of these are in Lake's one-shot runs and are the test set here;
the other ten are for validation, as in Koch et al. 2015. TFDS does not say who drew an
image.

Images are pictures as in the files: ink is dark (0), paper is light (255).
"""

from typing import Literal, NamedTuple, get_args

import numpy as np

from experiments.datasets.tfds import class_names, load_columns
from siamese_jax import samplers

LAKE_ALPHABETS = (
    "Atlantean",
    "Ge_ez",
    "Glagolitic",
    "Gurmukhi",
    "Kannada",
    "Malayalam",
    "Manipuri",
    "Old_Church_Slavonic_(Cyrillic)",
    "Tengwar",
    "Tibetan",
)

Part = Literal["background", "validation", "test", "all"]


class Characters(NamedTuple):
    """Drawings of characters.

    Attributes:
      images: uint8 [n, 105, 105, 1].
      labels: [n], one number for each character, over all alphabets.
      alphabets: [n], names.
    """

    images: np.ndarray
    labels: np.ndarray
    alphabets: np.ndarray

    def only(self, rows: np.ndarray | slice) -> "Characters":
        """Returns the drawings in some rows, given as numbers, a slice or a mask."""
        return Characters(*(array[rows] for array in self))

    def class_index(self) -> samplers.ClassIndex:
        """Returns the index with characters as classes and alphabets as their groups."""
        return samplers.class_index(self.labels, groups=self.alphabets)


def load(part: Part) -> Characters:
    """Returns the background, validation or test alphabets.

    "all" are the 20 alphabets for evaluation, validation and test together.

    Raises:
      ValueError: If there is no such part.
      FileNotFoundError: If Omniglot is not prepared.
    """
    if part not in get_args(Part):
        raise ValueError(f"part must be one of {get_args(Part)}; got {part!r}")
    if part == "background":
        return load_split("train")
    characters = load_split("test")
    if part == "all":
        return characters
    is_test = np.isin(characters.alphabets, LAKE_ALPHABETS)
    return characters.only(is_test if part == "test" else ~is_test)


def load_split(split: str) -> Characters:
    """Returns a split of TFDS: "train", "test", "small1" or "small2".

    Raises:
      FileNotFoundError: If Omniglot is not prepared.
    """
    columns = {
        # decoders differ in whether paper is 1 or 255, and in the number of channels
        "images": lambda example: np.where(
            example["image"][:, :, :1] > 0, np.uint8(255), np.uint8(0)
        ),
        "labels": lambda example: example["label"],
        "alphabets": lambda example: example["alphabet"],
    }
    arrays = load_columns("omniglot", split, columns)
    names = np.array(class_names("omniglot", "alphabet"))
    return Characters(arrays["images"], arrays["labels"], names[arrays["alphabets"]])


def first_drawings(characters: Characters, num: int) -> Characters:
    """Returns the first `num` drawings of each character."""
    return characters.only(np.asarray(characters.class_index().rank_of) < num)


def vinyals_split(seed: int) -> dict[str, Characters]:
    """Returns all 1,623 characters: 1,200 random ones as "train", the rest as "vinyals".

    Both parts have characters of every alphabet, those of Lake's runs too. Tasks are drawn
    over all test characters, so these count as one alphabet, "all". The paper does not list
    its characters, so the split is drawn from the seed.

    Reference:
      Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra. Matching Networks for One Shot
      Learning. NeurIPS 2016, section 4.1.1.
    """
    splits = load_split("train"), load_split("test")
    characters = Characters(*map(np.concatenate, zip(*splits, strict=True)))
    order = np.random.default_rng(seed).permutation(np.unique(characters.labels))
    is_train = np.isin(characters.labels, order[:1_200])
    test = characters.only(~is_train)
    test = test._replace(alphabets=np.full(len(test.labels), "all"))
    return {"train": characters.only(is_train), "vinyals": test}
