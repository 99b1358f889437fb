"""Image files and folders as arrays, and the preparation of images for a network.

Images are uint8 arrays `[height, width, channels]` with one channel (grey) or three
(colour). A folder of labelled images has one sub-folder for each class, named as the class.

>>> import pathlib, tempfile
>>> from PIL import Image
>>> with tempfile.TemporaryDirectory() as name:
...     folder = pathlib.Path(name)
...     for label in ("anna", "bert"):
...         (folder / label).mkdir()
...         Image.new("L", (4, 6), color=200).save(folder / label / "0.png")
...     files = list_folder(folder)
...     image = read_image(files[0])
...     data = load_folder(folder, size=(3, 2))
>>> [file.name for file in files], image.shape
(['0.png', '0.png'], (6, 4, 1))
>>> data.images.shape, data.labels.tolist()
((2, 3, 2, 1), ['anna', 'bert'])

A `Preparation` says how such images become the input of a network. It is stored with the
network, so that new images are prepared as those of the training were.

>>> ink = Preparation(size=(1, 2), invert=True)  # dark strokes on white paper
>>> prepare(np.array([[[[0], [255]]]], np.uint8), ink).tolist()
[[[[255], [0]]]]

Reading files, changing sizes and turning colour into grey need Pillow, which
`pip install 'siamese_jax[cli]'` installs.
"""

import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Shaped, UInt8

from siamese_jax._extras import import_extra
from siamese_jax._labels import host_labels
from siamese_jax.errors import UserError

ImageFile = str | pathlib.Path
Resampling = Literal["lanczos", "every-second-pixel"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm")


class LabelledImages(NamedTuple):
    """Images of one size, with one label for each.

    Attributes:
      images: The pixels.
      labels: Integers or class names.
    """

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Shaped[np.ndarray, " n"]

    def only(self, rows: slice | np.ndarray) -> "LabelledImages":
        """Selects images by their positions, by a slice or by a boolean mask."""
        labels = host_labels("labels", self.labels)
        return LabelledImages(self.images[rows], labels[rows])


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the input of a network.

    The steps are, in this order: conversion to grey or to colour, inversion if `invert`,
    resizing.

    Attributes:
      size: Height and width after the preparation, in pixels.
      color: Three channels if true, else one.
      invert: Replaces each value x by 255 - x.
      resampling: "lanczos" resizes with Pillow's Lanczos filter. "every-second-pixel"
        resizes in that way to twice the size and then takes every second row and column.

    Raises:
      ValueError: If the size is not two numbers of at least 1, or the resampling is
        unknown.

    >>> Preparation(size=(28, 28)).image_shape
    (28, 28, 1)
    """

    size: tuple[int, int]
    color: bool = False
    invert: bool = False
    resampling: Resampling = "lanczos"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(
                f"size must be a height and a width of at least 1; got {self.size}"
            )
        if self.resampling not in get_args(Resampling):
            raise ValueError(
                f"resampling must be one of {', '.join(get_args(Resampling))}; "
                f"got {self.resampling}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels after the preparation."""
        return (*self.size, 3 if self.color else 1)


def prepare(
    images: np.ndarray, preparation: Preparation
) -> UInt8[np.ndarray, "n height width channels"]:
    """Applies the whole preparation to images of any one size.

    Images that already have the right shape are still inverted if the preparation says so.

    Args:
      images: uint8 `[n, height, width, channels]` with 1 or 3 channels, as in their files.
      preparation: The steps to take.

    Returns:
      uint8 `[n, *preparation.image_shape]`.

    Raises:
      ValueError: If the shape of the images is wrong, or there is no image.
      TypeError: If the images are not uint8.
      UserError: If Pillow is needed and not installed.

    >>> images = np.array([[[[10], [20]]]], np.uint8)
    >>> prepare(images, Preparation(size=(1, 2), color=True)).tolist()
    [[[[10, 10, 10], [20, 20, 20]]]]
    """
    check_images("images", images)
    factor = 2 if preparation.resampling == "every-second-pixel" else 1
    height, width = preparation.size
    images = _with_channels(images, preparation.image_shape[2])
    if preparation.invert:
        images = 255 - images
    images = _resize(images, factor * height, factor * width)
    return np.ascontiguousarray(images[:, ::factor, ::factor])


def check_images(name: str, images: np.ndarray) -> None:
    """Raises TypeError unless images are uint8, ValueError unless they have four axes.

    >>> check_images("images", np.zeros((2, 28, 28), np.uint8))
    Traceback (most recent call last):
    ValueError: images must be [n, height, width, 1 or 3], n >= 1; got shape (2, 28, 28)
    """
    dtype, shape = np.asarray(images).dtype, np.shape(images)
    if dtype != np.uint8:
        raise TypeError(f"{name} must be uint8; got {dtype}")
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"{name} must be [n, height, width, 1 or 3], n >= 1; got shape {shape}"
        )


def read_image(
    file: ImageFile, *, color: bool = False
) -> UInt8[np.ndarray, "height width channels"]:
    """Reads one image file, in grey or in colour.

    Raises:
      UserError: If the file cannot be read as an image, or Pillow is not installed.
    """
    pil = import_extra("PIL.Image")
    try:
        with pil.open(file) as opened:
            pixels = np.asarray(opened.convert("RGB" if color else "L"))
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as an image: {error}") from error
    return pixels if color else pixels[:, :, None]


def list_folder(folder: ImageFile) -> list[pathlib.Path]:
    """Lists the image files of a folder that has one sub-folder for each class.

    The classes are in the order of their names, and so are the files within a class. Files
    with other endings than PNG, JPEG, PGM, PPM and BMP files have are passed over.

    Raises:
      FileNotFoundError: If the folder does not exist.
      UserError: If the folder has no sub-folders, or a sub-folder has no image.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; a folder with one sub-folder for each class is "
            "wanted"
        )
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise UserError(f"{folder} has no sub-folders; one is needed for each class")
    files: list[pathlib.Path] = []
    for path in classes:
        of_class = sorted(file for file in path.iterdir() if _is_image(file))
        if not of_class:
            raise UserError(
                f"class {path.name!r} has no image ({', '.join(SUFFIXES)}) in {path}"
            )
        files += of_class
    return files


def list_images(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Replaces each folder in a list by the image files in it and in its sub-folders.

    Raises:
      UserError: If a folder has no image.

    >>> [file.name for file in list_images([pathlib.Path("a.png"), pathlib.Path("b.jpg")])]
    ['a.png', 'b.jpg']
    """
    files: list[pathlib.Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if _is_image(file))
        if not inside:
            raise UserError(f"{path} has no image ({', '.join(SUFFIXES)}) in it")
        files += inside
    return files


def load_folder(
    folder: ImageFile, *, size: tuple[int, int] | None = None, color: bool = False
) -> LabelledImages:
    """Reads a folder that has one sub-folder for each class; its name is the label.

    Args:
      folder: The folder that holds the sub-folders.
      size: Height and width to resize to. None leaves the images as they are, which then
        must all have one size.
      color: Three channels if true, else one.

    Raises:
      FileNotFoundError: If the folder does not exist.
      UserError: If there is no class, a class has no image, a file cannot be read, or the
        sizes differ and no size is given. The class or the file is named.
    """
    files = list_folder(folder)
    images: list[np.ndarray] = []
    for file in files:
        image = read_image(file, color=color)
        if size is not None:
            image = prepare(image[None], Preparation(size, color=color))[0]
        elif images and image.shape != images[0].shape:
            raise UserError(
                f"{file} has {image.shape[0]} x {image.shape[1]} pixels, those before it "
                f"{images[0].shape[0]} x {images[0].shape[1]}; give a size to resize to"
            )
        images.append(image)
    labels = np.array([file.parent.name for file in files])
    return LabelledImages(np.stack(images), labels)


def _is_image(file: pathlib.Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    grey = [np.asarray(picture.convert("L")) for picture in _pictures(images)]
    return np.stack(grey)[..., None]


def _resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    if images.shape[1:3] == (height, width):
        return images
    lanczos = import_extra("PIL.Image").Resampling.LANCZOS
    pictures = _pictures(images)
    resized = [np.asarray(picture.resize((width, height), lanczos)) for picture in pictures]
    return np.stack(resized).reshape(-1, height, width, images.shape[3])


def _pictures(images: np.ndarray) -> Iterator[Any]:
    pil = import_extra("PIL.Image")
    for image in images:
        yield pil.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
