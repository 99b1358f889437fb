"""Image files and folders as arrays, and the preparation of images for a network.

Images are uint8 arrays `[height, width, channels]` with one channel (grey) or three
(colour), as a viewer shows them: see `read_image`. A folder of labelled images has one
sub-folder for each class, named as the class. Names are compared as text, so that "é" is
one letter however it is stored. Hidden files and folders, whose names begin with a dot, and
`__MACOSX`, `@eaDir`, `Thumbs.db` and `desktop.ini`, which systems leave behind, are never
taken for images or classes.

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

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Shaped, UInt8

from siamese_jax._extras import import_extra
from siamese_jax._image_file import ImageFile as ImageFile
from siamese_jax._image_file import has_several_frames, read_pixels
from siamese_jax._image_folder import (
    files_by_class,
    images_among,
    names_of_folders,
    num_files,
    passed_over,
    walk,
)
from siamese_jax._labels import host_labels
from siamese_jax._names import enumerated, is_litter, shown
from siamese_jax.errors import UserError

Resampling = Literal["lanczos", "every-second-pixel", "center-crop"]


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

    The steps are, in this order: transparent images are laid on a ground of the grey
    `background`, conversion to grey or to colour, inversion if `invert`, resizing. The
    first step is one of files, as arrays have no transparency.

    Attributes:
      size: Height and width after the preparation, in pixels.
      color: Three channels if true, else one.
      invert: Replaces each value x by 255 - x.
      resampling: "lanczos" resizes with Pillow's Lanczos filter. "every-second-pixel"
        resizes in that way to twice the size and then takes every second row and column.
        "center-crop" keeps the proportions: Pillow's bilinear filter resizes until the
        image just covers 8/7 of the size, and the middle is taken. With the size (224, 224)
        the shorter side gets 256 pixels, which is the usual preparation for a test on
        CUB-200, Cars-196 and Stanford Online Products.
      background: What shows through transparent images, from 0, black, to 255, white.

    Raises:
      ValueError: If the size is not two whole numbers of at least 1, the resampling is
        unknown, or the background is not a whole number in 0 to 255.
      TypeError: If `color` or `invert` is not boolean.

    >>> Preparation(size=(28, 28)).image_shape
    (28, 28, 1)
    """

    size: tuple[int, int]
    color: bool = False
    invert: bool = False
    resampling: Resampling = "lanczos"
    background: int = 255

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple | list) else ()
        if len(sides) != 2 or not all(_is_whole(side) and side >= 1 for side in sides):
            raise ValueError(
                "size must be a height and a width, whole numbers of at least 1; got "
                f"{self.size!r}"
            )
        for name in ("color", "invert"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"{name} must be boolean; got {value!r}")
        if self.resampling not in get_args(Resampling):
            raise ValueError(
                f"resampling must be one of {', '.join(get_args(Resampling))}; "
                f"got {self.resampling}"
            )
        if not _is_whole(self.background) or not 0 <= self.background <= 255:
            raise ValueError(
                f"background must be a whole number in 0 to 255; got {self.background!r}"
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
    if preparation.resampling == "center-crop":
        return _center_crop(images, height, width)
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


def check_files(files: Any) -> None:
    """Raises TypeError for one name in the place of a list, whose letters are no names.

    >>> check_files("a.png")
    Traceback (most recent call last):
    TypeError: a list of files is wanted; got one name, 'a.png'
    """
    if isinstance(files, str | os.PathLike):
        raise TypeError(f"a list of files is wanted; got one name, {os.fspath(files)!r}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


# Files ----------------------------------------------------------------------------------


def read_image(
    file: ImageFile, *, color: bool = False, background: int = 255
) -> UInt8[np.ndarray, "height width channels"]:
    """Reads one image file, in grey or in colour, as a viewer shows it.

    All formats are read that Pillow reads by itself. If a file has several frames or pages,
    the first is read.

    * The image is turned as the EXIF data of the file say.
    * Where it is transparent, a ground of the grey `background` shows through.
    * A grey value v of 16 bits becomes v // 256, and so does each colour of 16 bits. In PGM
      and PPM files the largest value is the one that the file declares.
    * A floating-point grey value v becomes 255 v, rounded; all must be in [0, 1].
    * Integers of 32 bits or with a sign are refused, since the file does not say which
      value is white.

    Args:
      file: The name of the file.
      color: Three channels if true, else one.
      background: What shows through transparent parts, from 0, black, to 255, white.

    Raises:
      UserError: If the file cannot be read as an image, has more pixels than Pillow allows
        (`PIL.Image.MAX_IMAGE_PIXELS`) or values of unknown meaning, or Pillow is not
        installed. The message names the file.
      TypeError: If `file` is not the name of a file.
    """
    return read_pixels(file, color=color, background=background)


def read_prepared(
    files: Sequence[ImageFile], preparation: Preparation
) -> UInt8[np.ndarray, "n height width channels"]:
    """Reads image files of any sizes and applies the whole preparation to each.

    Raises:
      ValueError: If there is no file.
      TypeError: If `files` is one name, not a list of names.
      UserError: If a file cannot be read; see `read_image`.
    """
    check_files(files)
    if not len(files):
        raise ValueError("files must have at least one file; got none")
    color, background = preparation.color, preparation.background
    read = (read_image(file, color=color, background=background) for file in files)
    return np.concatenate([prepare(image[None], preparation) for image in read])


# Folders --------------------------------------------------------------------------------


def count_images(folder: ImageFile) -> dict[str, int]:
    """Counts the image files of each class of a folder, which may be 0.

    Raises:
      FileNotFoundError: If the folder does not exist.
      UserError: If the folder has no sub-folders.
    """
    return {name: len(files) for name, files in files_by_class(folder).items()}


def small_classes(counts: Mapping[Any, int], num_images: int) -> str:
    """Names all classes with fewer images in words; no words if there are none.

    Args:
      counts: Number of images of each class.
      num_images: Number of images that each class should have.

    >>> small_classes({"anna": 1, "bert": 3, "carl": 0}, 2)
    "2 of 3 classes have fewer than 2 images: class 'anna' has 1, class 'carl' has no image"
    """
    named = [
        f"class {str(name)!r} has {num or 'no image'}"
        for name, num in counts.items()
        if num < num_images
    ]
    if not named:
        return ""
    images = f"{num_images} image{'s' * (num_images > 1)}"
    return (
        f"{len(named)} of {len(counts)} classes have fewer than {images}: "
        f"{enumerated(named)}"
    )


def list_folder(folder: ImageFile, *, min_images: int | None = None) -> list[pathlib.Path]:
    """Lists the image files of a folder that has one sub-folder for each class.

    The classes are in the order of their names, and so are the files within a class. Files
    are taken for images by their ending, such as ".png" or ".webp"; `remarks` tells which
    are passed over. Sub-folders with one name as text are one class.

    Args:
      folder: The folder that holds the sub-folders.
      min_images: Leaves out classes with fewer images. None refuses classes without any.

    Raises:
      FileNotFoundError: If the folder does not exist.
      UserError: If the folder has no sub-folders, a sub-folder has no image and no
        `min_images` is given, or no class has so many images.
    """
    classes = files_by_class(folder)
    wanted = 1 if min_images is None else min_images
    kept = [files for files in classes.values() if len(files) >= wanted]
    if not kept or (min_images is None and len(kept) < len(classes)):
        few = small_classes({name: len(files) for name, files in classes.items()}, wanted)
        found = [file for files in classes.values() for file in files]
        reasons = [f"{folder}: {few}", passed_over([folder], found)]
        raise UserError("; ".join(filter(None, reasons)))
    return [file for files in kept for file in files]


def list_images(paths: Sequence[ImageFile]) -> list[pathlib.Path]:
    """Replaces each folder in a list by the image files in it and in its sub-folders.

    Raises:
      TypeError: If `paths` is one name, not a list of names.
      UserError: If a folder has no image.

    >>> [file.name for file in list_images(["a.png", ".DS_Store", "b.jpg"])]
    ['a.png', 'b.jpg']
    """
    check_files(paths)
    files: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if is_litter(path.name):
            continue
        if not path.is_dir():
            files.append(path)
            continue
        inside = images_among(walk(path))
        if not inside:
            reasons = [f"{path} has no image in it", passed_over([path], [])]
            raise UserError("; ".join(filter(None, reasons)))
        files += inside
    return files


def class_names(files: Sequence[ImageFile]) -> list[str]:
    """The class of each file, which is the name of the folder that it lies in.

    Names that are one text get one spelling, that of the first of them.

    Raises:
      TypeError: If `files` is one name, not a list of names.

    >>> class_names(["Jos\u00e9/0.png", "Jose\u0301/1.png"]) == ["Jos\u00e9"] * 2
    True
    """
    check_files(files)
    return names_of_folders(files)


def remarks(paths: Sequence[ImageFile], files: Sequence[ImageFile]) -> list[str]:
    """Tells what a user should know when `files` are read out of folders: lines of text.

    Args:
      paths: The folders, in which there may be other files, and any files.
      files: The image files that are read.

    Returns:
      A line on the files of the folders that are passed over, by their endings, if there
      are any, and a line on the files of which only the first frame or page is read.

    >>> remarks(["a.png"], ["a.png"])
    []
    """
    several = [pathlib.Path(file) for file in files if has_several_frames(file)]
    first_frames = several and (
        f"read only the first frame of {num_files(len(several))} of {len(files)}: "
        f"{enumerated([shown(file.name) for file in several], limit=3)}"
    )
    return [line for line in (passed_over(paths, files), first_frames) if line]


def load_folder(
    folder: ImageFile,
    *,
    size: tuple[int, int] | None = None,
    color: bool = False,
    background: int = 255,
) -> LabelledImages:
    """Reads a folder that has one sub-folder for each class; its name is the label.

    Args:
      folder: The folder that holds the sub-folders.
      size: Height and width to resize to. None leaves the images as they are, which then
        must all have one size.
      color: Three channels if true, else one.
      background: What shows through transparent images; see `read_image`.

    Raises:
      FileNotFoundError: If the folder does not exist.
      UserError: If there is no class, a class has no image, a file cannot be read, or the
        sizes differ and no size is given. The class or the file is named.
    """
    files = list_folder(folder)
    labels = np.array(class_names(files))
    if size is not None:
        preparation = Preparation(size, color=color, background=background)
        return LabelledImages(read_prepared(files, preparation), labels)
    images: list[np.ndarray] = []
    for file in files:
        image = read_image(file, color=color, background=background)
        if images and image.shape != images[0].shape:
            raise UserError(
                f"{file} has {image.shape[0]} x {image.shape[1]} pixels, those before it "
                f"{images[0].shape[0]} x {images[0].shape[1]}; give a size to resize to"
            )
        images.append(image)
    return LabelledImages(np.stack(images), labels)


# Pixels ---------------------------------------------------------------------------------


def _with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    grey = [np.asarray(picture.convert("L")) for picture in _pictures(images)]
    return np.stack(grey)[..., None]


def _center_crop(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes to cover 8/7 of the size, in the same proportions, and takes the middle."""
    num_rows, num_columns = images.shape[1:3]
    rows, columns = round(height * 8 / 7), round(width * 8 / 7)
    if rows * num_columns >= columns * num_rows:
        columns = rows * num_columns // num_rows
    else:
        rows = columns * num_rows // num_columns
    images = _resize(images, rows, columns, filter_name="BILINEAR")
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    return np.ascontiguousarray(images[:, top : top + height, left : left + width])


def _resize(
    images: np.ndarray, height: int, width: int, *, filter_name: str = "LANCZOS"
) -> np.ndarray:
    if images.shape[1:3] == (height, width):
        return images
    kind = import_extra("PIL.Image").Resampling[filter_name]
    pictures = _pictures(images)
    resized = [np.asarray(picture.resize((width, height), kind)) for picture in pictures]
    return np.stack(resized).reshape(-1, height, width, images.shape[3])


def _pictures(images: np.ndarray) -> Iterator[Any]:
    pil = import_extra("PIL.Image")
    for image in images:
        yield pil.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
