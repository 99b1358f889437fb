"""Real images as arrays: TFDS, scikit-learn's digits, and folders of image files.

Everything comes back as uint8 images `[n, height, width, channels]` with labels. TFDS sets
are read without TensorFlow, and decoded once: the arrays are kept in
`$SIAMESE_JAX_CACHE`, or `~/.cache/siamese_jax`.

To download and prepare a TFDS set (some, like Omniglot, need TensorFlow for this step):

    python -m experiments.data mnist
"""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.run import UserError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".bmp"}


class Dataset(NamedTuple):
    """Images and one label each.

    Attributes:
      images: uint8 [n, height, width, channels].
      labels: [n], integers or class names.
    """

    images: np.ndarray
    labels: np.ndarray

    def only(self, rows: np.ndarray) -> "Dataset":
        """Some of the images: numbers, a slice or a mask."""
        return Dataset(self.images[rows], self.labels[rows])


# TensorFlow Datasets --------------------------------------------------------------------


def load_tfds(name: str, split: str) -> Dataset:
    """A split of a prepared TFDS image set, such as ("mnist", "train").

    Looks in `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

    Raises:
      FileNotFoundError: If it is not there; says where it looked and how to get it.
    """
    columns = {"images": _feature("image"), "labels": _feature("label")}
    return Dataset(**load_columns(name, split, columns))


def load_columns(
    name: str, split: str, columns: dict[str, Callable[[Any], Any]]
) -> dict[str, np.ndarray]:
    """A split of a prepared TFDS set as arrays, each made by a function of an example.

    Decoded once; the cache knows a set and a split by name, so a set has one form.

    Raises:
      FileNotFoundError: If it is not there; says where it looked and how to get it.
      UserError: If it cannot be read.
    """
    folder, version = _prepared(name)
    cached = _cache_folder() / f"{name}-{version}-{split}.npz"
    if not cached.exists():
        _decode(name, version, split, folder, cached, columns)
    with np.load(cached) as arrays:
        return {column: arrays[column] for column in columns}


def class_names(name: str, feature: str) -> list[str]:
    """The names of the numbers in a feature of a prepared TFDS set."""
    import tensorflow_datasets as tfds

    folder, version = _prepared(name)
    builder = tfds.builder(f"{name}:{version}", data_dir=str(folder))
    return builder.info.features[feature].names


def prepare_tfds(name: str) -> None:
    """Downloads a set and prepares it in the form that is read without TensorFlow."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(_tfds_folder()), file_format="array_record")
    builder.download_and_prepare()


def _feature(name: str) -> Callable[[Any], Any]:
    return lambda example: example[name]


def _prepared(name: str) -> tuple[pathlib.Path, str]:
    """The folder of all sets, and the newest version of this one there."""
    folder = _tfds_folder()
    prepared = sorted((folder / name).glob("*/dataset_info.json"))
    if not prepared:
        raise FileNotFoundError(
            f"no prepared {name!r} under {folder} ($TFDS_DATA_DIR, by default "
            f"~/tensorflow_datasets). `python -m experiments.data {name}` downloads and "
            "prepares it there"
        )
    return folder, prepared[-1].parent.name


def _decode(
    name: str,
    version: str,
    split: str,
    folder: pathlib.Path,
    cached: pathlib.Path,
    columns: dict[str, Callable[[Any], Any]],
) -> None:
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
    return pathlib.Path(
        os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    ).expanduser()


def _cache_folder() -> pathlib.Path:
    return pathlib.Path(
        os.environ.get("SIAMESE_JAX_CACHE", "~/.cache/siamese_jax")
    ).expanduser()


# What needs no download -----------------------------------------------------------------


def load_digits(split: str) -> Dataset:
    """scikit-learn's 1,797 digits of 8x8 pixels; "train" is the first two thirds."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.rint(digits.images / 16 * 255).astype(np.uint8)[..., None]
    cut = len(images) * 2 // 3
    chosen = slice(cut) if split == "train" else slice(cut, None)
    return Dataset(images[chosen], digits.target[chosen])


def load_digit_images(name: str, split: str) -> Dataset:
    """MNIST, or with "digits" the small set that needs no download."""
    return load_digits(split) if name == "digits" else load_tfds(name, split)


def load_folder(
    folder: str | pathlib.Path,
    *,
    size: tuple[int, int] | None = None,
    color: bool = False,
) -> Dataset:
    """A folder with one sub-folder a class, of PNG, JPEG, PGM, PPM or BMP files.

    Args:
      folder: Where the classes are; their names are the labels.
      size: Height and width to resize to; None takes the images as they are, which then
        must all have one size.
      color: Three channels instead of one.

    Raises:
      FileNotFoundError: If the folder does not exist.
      UserError: If there is no class, a class has no image, a file cannot be read, or
        sizes are mixed; the class or file is named.
    """
    files = list_folder(folder)
    images: list[np.ndarray] = []
    for file in files:
        image = read_image(file, size=size, color=color)
        if images and image.shape != images[0].shape:
            raise UserError(
                f"{file} has {image.shape[0]} x {image.shape[1]} pixels, those "
                f"before it {images[0].shape[0]} x {images[0].shape[1]}; give a size "
                "to resize to"
            )
        images.append(image)
    return Dataset(np.stack(images), np.array([file.parent.name for file in files]))


def list_folder(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder with one sub-folder a class, class after class.

    Raises:
      FileNotFoundError: If the folder does not exist.
      UserError: If there is no class, or a class has no image.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; it should hold one a class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise UserError(f"{folder} has no sub-folders; one is needed for each class")
    found: list[pathlib.Path] = []
    for path in classes:
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
        if not files:
            endings = ", ".join(sorted(_SUFFIXES))
            raise UserError(f"class {path.name!r} has no image ({endings}) in {path}")
        found += files
    return found


def read_image(
    file: pathlib.Path, *, size: tuple[int, int] | None = None, color: bool = False
) -> np.ndarray:
    """One image file as uint8 [height, width, channels].

    Raises:
      UserError: If it cannot be read as an image; the file is named.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB" if color else "L")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file} cannot be read as an image: {error}") from error
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array if color else array[:, :, None]


def resize(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Images of one size, as uint8 [n, *shape]: anti-aliased, in grey or in colour."""
    from PIL import Image

    height, width, channels = shape
    if images.shape[1:] == shape:
        return images

    def one(image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        picture = picture.convert("RGB" if channels == 3 else "L")
        return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))

    return np.stack([one(image) for image in images]).reshape(-1, *shape)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(
            "usage: python -m experiments.data NAME...  (mnist, omniglot, ...)"
        )
    for dataset in sys.argv[1:]:
        prepare_tfds(dataset)
