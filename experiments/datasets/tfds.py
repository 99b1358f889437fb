"""Downloads sets of TensorFlow Datasets, prepared to be read without TensorFlow.

Run:     python -m experiments tfds mnist omniglot
         python -m experiments tfds caltech_birds2011 lfw
Expect:  prepared files under $TFDS_DATA_DIR, by default ~/tensorflow_datasets

Some sets, Omniglot among them, need TensorFlow for this step. Reading never does.

Of the sets by which metric learning is judged it knows caltech_birds2011 (CUB-200-2011),
cars196, stanford_online_products and lfw. Where a server no longer has a set, as that of
cars196, get the archive of the authors elsewhere, unpack it to a folder and give the folder
as --data-dir. The message of a download that fails says which files it must have.

The other functions of this module read prepared sets as uint8 arrays. A set is decoded
once; the arrays are then kept in $SIAMESE_JAX_CACHE, by default ~/.cache/siamese_jax.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from experiments.cli import command_line
from experiments.datasets.sources import ImageSource
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, Preparation, prepare

Columns = Mapping[str, Callable[[Any], Any]]  # a function of an example for each array

# What a folder must have that is read as --data-dir instead of the set of TFDS.
ARCHIVES = {
    "caltech_birds2011": "images.txt, image_class_labels.txt and images/, of "
    "CUB_200_2011.tgz",
    "cars196": "cars_annos.mat and car_ims/, or cars_train/, cars_test/, "
    "devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat",
    "stanford_online_products": "Ebay_train.txt, Ebay_test.txt and the folders of images, "
    "of Stanford_Online_Products.zip",
    "lfw": "one sub-folder a person, of lfw.tgz, and the list of pairs, pairs.txt",
}

_VERSION = re.compile("[0-9]+[.][0-9]+[.][0-9]+")


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
    """Downloads a set and prepares it as array_record files, which need no TensorFlow.

    Raises:
      UserError: If there is no such set, TensorFlow is needed and missing, or the set
        cannot be downloaded. The message says what can be done instead, where that is
        known.
    """
    import tensorflow_datasets as tfds

    folder = str(_tfds_folder())
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # of TFDS, the network or a damaged archive
        words = " ".join(str(error).split())
        instead = instead_of_tfds(name)
        raise UserError(f"{name!r} cannot be prepared: {words}{instead}") from error


def instead_of_tfds(name: str) -> str:
    """Says what can be done without TFDS, if anything.

    >>> instead_of_tfds("mnist")
    ''
    """
    if name not in ARCHIVES:
        return ""
    words = f"Or unpack it to a folder with {ARCHIVES[name]}"
    return f". {words}, and give the folder as --data-dir"


# Reading --------------------------------------------------------------------------------


def load_tfds(name: str, split: str) -> LabelledImages:
    """Returns a split of a prepared image set, such as ("mnist", "train").

    Raises:
      FileNotFoundError: If the set is not prepared. The message says where it was looked
        for and how to get it.
      UserError: If the set cannot be read, has no features "image" and "label", or has
        images of several sizes or of another type than uint8.
    """
    columns: Columns = {"images": lambda x: x["image"], "labels": lambda x: x["label"]}
    arrays = load_columns(name, split, columns)
    if arrays["images"].dtype != np.uint8:
        found = arrays["images"].dtype
        raise UserError(f"{name}, split {split!r}, has images of {found}; uint8 is read")
    return LabelledImages(arrays["images"], arrays["labels"])


def open_tfds(
    name: str, split: str, preparation: Preparation, *, label: str = "label"
) -> ImageSource:
    """Opens a split of a prepared image set, whose images are read one by one.

    The labels are read at once and cached.

    Args:
      name: The name of the set. Its newest version is read.
      split: The name of the split.
      preparation: How an image of any size is prepared when it is read.
      label: The name of the feature that holds the labels.

    Raises:
      FileNotFoundError: If the set is not prepared. The message says where it was looked
        for and how to get it.
      UserError: If the set cannot be read, or has no features "image" and `label`. Reading
        an image raises it too; the message has the number of the example.
    """
    import tensorflow_datasets as tfds

    # named by its feature, so that labels of another feature are not taken from the cache
    labels = load_columns(name, split, {label: lambda x: x[label]}, skipped=("image",))
    folder = _prepared(name).folder
    source = tfds.builder_from_directory(str(folder)).as_data_source(split=split)

    def read(number: int) -> np.ndarray:
        try:
            return prepare(source[number]["image"][None], preparation)[0]
        except Exception as error:  # of array_record, the image decoder or `prepare`
            words = " ".join(str(error).split())
            raise UserError(
                f"{folder}, split {split!r}, example {number} cannot be read: {words}"
            ) from error

    return ImageSource(read, labels[label], preparation.image_shape)


def load_columns(
    name: str, split: str, columns: Columns, *, skipped: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Returns a split of a prepared set as arrays.

    The decoded arrays are cached. The cache is used as long as the folder of the set, its
    version and the sizes and times of its files stay the same.

    Args:
      name: The name of the set. Its newest version is read.
      split: The name of the split.
      columns: For each array of the result, the function that makes one row of it from an
        example. Columns with the same name must be made by the same function.
      skipped: Features that no function needs and that are not decoded, such as images.

    Raises:
      FileNotFoundError: If the set is not prepared. The message says where it was looked
        for and how to get it.
      UserError: If the set cannot be read, lacks a feature, or the rows of an array have
        several shapes.
    """
    prepared = _prepared(name)
    cached = _cache_folder() / _cache_name(prepared, split, [*columns, *skipped])
    try:
        with np.load(cached) as arrays:
            return {column: arrays[column] for column in columns}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        print(f"{cached} is damaged; it is written anew")
    decoded = _decode(prepared, split, columns, skipped)
    cached.parent.mkdir(parents=True, exist_ok=True)
    part = cached.with_name(f"{os.getpid()}-{cached.name}")  # ends in .npz for numpy
    np.savez_compressed(part, allow_pickle=False, **decoded)
    part.replace(cached)
    return decoded


def class_names(name: str, feature: str) -> list[str]:
    """Returns the class names of a feature of a prepared set, in the order of its labels.

    Raises:
      FileNotFoundError: If the set is not prepared.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(_prepared(name).folder))
    return builder.info.features[feature].names


class Prepared(NamedTuple):
    """The newest version of a prepared set, and its folder."""

    name: str
    version: str
    folder: pathlib.Path


def _prepared(name: str) -> Prepared:
    """Finds the newest version of a set, by its numbers: 3.0.10 is newer than 3.0.9.

    Folders with other names, such as those of an unfinished download, are ignored.
    """
    folder = _tfds_folder()
    versions = [
        path.parent.name
        for path in (folder / name).glob("*/dataset_info.json")
        if _VERSION.fullmatch(path.parent.name)
    ]
    if not versions:
        raise FileNotFoundError(
            f"no prepared {name!r} under {folder} ($TFDS_DATA_DIR, by default "
            f"~/tensorflow_datasets). `python -m experiments tfds {name}` downloads and "
            f"prepares it there{instead_of_tfds(name)}"
        )
    newest = max(versions, key=lambda version: tuple(map(int, version.split("."))))
    return Prepared(name, newest, folder / name / newest)


def _cache_name(prepared: Prepared, split: str, columns: Sequence[str]) -> str:
    """The name of the file that holds the decoded arrays of just these files."""
    facts = []
    for path in sorted(prepared.folder.rglob("*")):
        file = path.relative_to(prepared.folder).as_posix()
        facts.append([file, path.stat().st_size, path.stat().st_mtime_ns])
    what = json.dumps([str(prepared.folder.resolve()), split, sorted(columns), facts])
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.+-]+", "_", f"{prepared.name}-{prepared.version}-{split}")
    return f"{name}-{digest}.npz"


def _decode(
    prepared: Prepared, split: str, columns: Columns, skipped: Sequence[str]
) -> dict[str, np.ndarray]:
    """Reads all examples of a split, apart from the features that are skipped."""
    import tensorflow_datasets as tfds

    where = f"{prepared.folder}, split {split!r},"
    features: list[str] = []
    try:
        builder = tfds.builder_from_directory(str(prepared.folder))
        features += builder.info.features
        decoders = {
            name: tfds.decode.SkipDecoding() for name in skipped if name in features
        }
        source = builder.as_data_source(split=split, decoders=decoders)
        rows = [[read(example) for read in columns.values()] for example in source]
    except Exception as error:  # of TFDS, array_record or the image decoder
        if isinstance(error, KeyError) and features and error.args[0] not in features:
            words = f"has no feature {error}; it has {', '.join(sorted(features))}"
        else:
            words = f"cannot be read: {' '.join(str(error).split())}"
        raise UserError(f"{where} {words}") from error
    if not rows:
        raise UserError(f"{where} has no examples")
    decoded = {}
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        shapes = sorted({np.shape(value) for value in values})
        if len(shapes) > 1:
            some = ", ".join(" x ".join(map(str, shape)) for shape in shapes[:3])
            more = f" and {len(shapes) - 3} others" if len(shapes) > 3 else ""
            raise UserError(
                f"{where} has {column} of several sizes, where one is needed: {some}{more}"
            )
        decoded[column] = np.asarray(values)
    return decoded


def _tfds_folder() -> pathlib.Path:
    folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return pathlib.Path(folder).expanduser()


def _cache_folder() -> pathlib.Path:
    folder = os.environ.get("SIAMESE_JAX_CACHE", "~/.cache/siamese_jax")
    return pathlib.Path(folder).expanduser()


if __name__ == "__main__":
    command_line(main, Config)
