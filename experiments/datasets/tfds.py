"""Downloads sets of TensorFlow Datasets, prepared to be read without TensorFlow.

Run:     python -m experiments tfds mnist omniglot
Expect:  prepared files under $TFDS_DATA_DIR, by default ~/tensorflow_datasets

Some sets, Omniglot among them, need TensorFlow for this step. Reading never does.

The other functions of this module read prepared sets as uint8 arrays. A set is decoded
once; the arrays are then kept in $SIAMESE_JAX_CACHE, by default ~/.cache/siamese_jax.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages

Columns = Mapping[str, Callable[[Any], Any]]  # a function of an example for each array


@dataclasses.dataclass(frozen=True)
class Config:
    """The sets to download.

    Attributes:
      names: Names of image sets in TensorFlow Datasets.
    """

    positional: ClassVar[bool] = True

    names: tuple[str, ...]


def main(config: Config) -> None:
    """Downloads and prepares each set.

    Raises:
      UserError: If no set is named.
    """
    if not config.names:
        raise UserError("names of data sets are wanted, such as mnist or omniglot")
    for name in config.names:
        prepare_tfds(name)


def prepare_tfds(name: str) -> None:
    """Downloads a set and prepares it as array_record files, which need no TensorFlow."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(_tfds_folder()), file_format="array_record")
    builder.download_and_prepare()


# Reading --------------------------------------------------------------------------------


def load_tfds(name: str, split: str) -> LabelledImages:
    """Returns a split of a prepared image set, such as ("mnist", "train").

    Raises:
      FileNotFoundError: If the set is not prepared. The message says where it was looked
        for and how to get it.
      UserError: If the set cannot be read.
    """
    columns: Columns = {"images": lambda x: x["image"], "labels": lambda x: x["label"]}
    arrays = load_columns(name, split, columns)
    return LabelledImages(arrays["images"], arrays["labels"])


def load_columns(name: str, split: str, columns: Columns) -> dict[str, np.ndarray]:
    """Returns a split of a prepared set as arrays.

    Args:
      name: The name of the set. Its newest version is read.
      split: The name of the split.
      columns: For each array of the result, the function that makes one row of it from an
        example. The decoded arrays are cached by set, version and split alone, so a set
        must always be read with the same columns.

    Raises:
      FileNotFoundError: If the set is not prepared. The message says where it was looked
        for and how to get it.
      UserError: If the set cannot be read.
    """
    folder, version = _prepared(name)
    cached = _cache_folder() / f"{name}-{version}-{split}.npz"
    if not cached.exists():
        _decode(name, version, split, folder, cached, columns)
    with np.load(cached) as arrays:
        return {column: arrays[column] for column in columns}


def class_names(name: str, feature: str) -> list[str]:
    """Returns the class names of a feature of a prepared set, in the order of its labels.

    Raises:
      FileNotFoundError: If the set is not prepared.
    """
    import tensorflow_datasets as tfds

    folder, version = _prepared(name)
    builder = tfds.builder(f"{name}:{version}", data_dir=str(folder))
    return builder.info.features[feature].names


def _prepared(name: str) -> tuple[pathlib.Path, str]:
    """Returns the folder of all prepared sets, and the newest version of one of them."""
    folder = _tfds_folder()
    prepared = sorted((folder / name).glob("*/dataset_info.json"))
    if not prepared:
        raise FileNotFoundError(
            f"no prepared {name!r} under {folder} ($TFDS_DATA_DIR, by default "
            f"~/tensorflow_datasets). `python -m experiments tfds {name}` downloads and "
            "prepares it there"
        )
    return folder, prepared[-1].parent.name


def _decode(
    name: str,
    version: str,
    split: str,
    folder: pathlib.Path,
    cached: pathlib.Path,
    columns: Columns,
) -> None:
    """Reads all examples of a split and writes their arrays to the cache."""
    import tensorflow_datasets as tfds

    try:
        source = tfds.data_source(f"{name}:{version}", split=split, data_dir=str(folder))
        rows = [[read(example) for read in columns.values()] for example in source]
    except Exception as error:  # of TFDS, array_record or the image decoder
        raise UserError(
            f"{folder / name / version}, split {split!r}, cannot be read: {error}"
        ) from error
    arrays = dict(zip(columns, map(np.asarray, zip(*rows, strict=True)), strict=True))
    cached.parent.mkdir(parents=True, exist_ok=True)
    part = cached.with_name(f"{os.getpid()}-{cached.name}")  # ends in .npz for numpy
    np.savez_compressed(part, allow_pickle=False, **arrays)
    part.replace(cached)


def _tfds_folder() -> pathlib.Path:
    folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return pathlib.Path(folder).expanduser()


def _cache_folder() -> pathlib.Path:
    folder = os.environ.get("SIAMESE_JAX_CACHE", "~/.cache/siamese_jax")
    return pathlib.Path(folder).expanduser()
