"""One image file as pixels: what a viewer shows, or an error that names the file.

`siamese_jax.images.read_image` says what becomes of each kind of image.
"""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from siamese_jax._extras import import_extra
from siamese_jax.errors import UserError

ImageFile = str | pathlib.Path

# Pillow knows these formats, but makes pixels of them only with the help of other programs,
# which it would start, or not at all.
_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# The further pictures in such files are layers, or for the device that wrote them.
_ONE_PICTURE = {"MPO", "PSD"}
# Grey of 2 and 4 bits is multiplied by this when it is read; the transparent value is not.
_WIDENED = {"L;2": 85, "L;4": 17}
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF files


def readable_endings() -> frozenset[str]:
    """The endings, such as ".png", of the image files that Pillow reads."""
    endings, formats = import_extra("PIL.Image").registered_extensions(), _formats()
    return frozenset(ending for ending, kind in endings.items() if kind in formats)


def has_several_frames(file: ImageFile) -> bool:
    """Whether a file is an animation or has several pages; false if it cannot be read."""
    try:
        with _opened(file) as picture:
            several = bool(getattr(picture, "is_animated", False))
            return several and picture.format not in _ONE_PICTURE
    except UserError:
        return False


def read_pixels(
    file: ImageFile, *, color: bool, background: int
) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of a file, as `siamese_jax.images.read_image` describes them."""
    with _opened(file) as picture:
        key = _transparent_value(picture)
        picture.load()
        with contextlib.suppress(Exception):  # no orientation in damaged EXIF data
            import_extra("PIL.ImageOps").exif_transpose(picture, in_place=True)
        flat = _on_ground(picture, file, key, background)
        pixels = np.asarray(flat.convert("RGB" if color else "L"))
    return pixels if color else pixels[:, :, None]


def _formats() -> list[str]:
    pil = import_extra("PIL.Image")
    pil.init()
    return [kind for kind in pil.ID if kind in pil.OPEN and kind not in _NOT_READ]


@contextlib.contextmanager
def _opened(file: ImageFile) -> Iterator[Any]:
    """The open picture. Any error of Pillow becomes one that names the file."""
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"file must be the name of a file; got {type(file).__name__}")
    pil = import_extra("PIL.Image")
    try:
        with warnings.catch_warnings():
            # What Pillow warns of, such as damaged EXIF data, no viewer mentions.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            # Of a name alone Pillow would map the file into memory, and garble TIFF files
            # that are to be turned by a quarter.
            with open(file, "rb") as stream, pil.open(stream, formats=_formats()) as opened:
                yield opened
    except UserError:
        raise
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise UserError(
            f"{file} is too large an image: at most {pil.MAX_IMAGE_PIXELS:,} pixels are "
            "read; make it smaller"
        ) from error
    except pil.UnidentifiedImageError as error:
        empty = not os.path.getsize(file)
        reason = "it is empty" if empty else "no format that Pillow reads is recognised"
        raise UserError(f"{file} cannot be read as an image: {reason}") from error
    except Exception as error:  # damaged files make Pillow raise errors of many types
        raise UserError(f"{file} cannot be read as an image: {error}") from error


def _on_ground(picture: Any, file: ImageFile, key: Any, background: int) -> Any:
    """The picture in grey or RGB with 8 bits; what is transparent shows the ground."""
    pil, mode = import_extra("PIL.Image"), picture.mode
    if mode in ("1", "L", "I", "F") or mode.startswith("I;16"):
        values = np.asarray(picture.convert("L") if mode == "1" else picture)
        pixels = _eight_bits(picture, values, file)
        hidden = values == key if isinstance(key, int) else False
        return pil.fromarray(np.where(hidden, background, pixels).astype(np.uint8))
    if mode == "RGB" and isinstance(key, tuple):
        pixels = np.asarray(picture)
        hidden = (pixels == key).all(axis=2, keepdims=True)
        return pil.fromarray(np.where(hidden, background, pixels).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    colored = picture.convert("RGBA")
    ground = pil.new("RGBA", colored.size, (background, background, background, 255))
    return pil.alpha_composite(ground, colored).convert("RGB")


def _transparent_value(picture: Any) -> Any:
    """The grey value or colour that is transparent, as the loaded pixels have it."""
    key = picture.info.get("transparency")
    if picture.mode == "1" and isinstance(key, int):
        return 255 if key else 0
    if picture.format != "PNG" or not picture.tile:
        return key
    raw_mode = picture.tile[0].args  # how the pixels are stored
    if raw_mode in _WIDENED:
        return key * _WIDENED[raw_mode] if isinstance(key, int) else key
    if raw_mode == "RGB;16B" and isinstance(key, tuple):
        return tuple(value >> 8 for value in key)  # as the pixels are cut to 8 bits
    return key


def _eight_bits(picture: Any, values: np.ndarray, file: ImageFile) -> np.ndarray:
    """The grey values of a picture of 1 to 32 bits, from 0, black, to 255, white."""
    tags = getattr(picture, "tag_v2", {})  # of a TIFF file
    inverted = tags.get(_PHOTOMETRIC) == 0
    if picture.mode in ("1", "L"):  # Pillow has inverted these
        return values
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        bits = 12 if tags.get(_BITS_PER_SAMPLE) == (12,) else 16
        return (2**bits - 1 - values if inverted else values) // 2 ** (bits - 8)
    if picture.mode == "I":
        raise UserError(
            f"{file} has integers of 32 bits or with a sign (mode I), and does not say "
            "which of them is white; 8 or 16 bits without a sign are wanted"
        )
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 1:  # nor with NaN
        raise UserError(
            f"{file} has floating-point values (mode F) from {low} to {high}; values from "
            "0, black, to 1, white, are wanted, or 8 or 16 bits"
        )
    return np.rint(255 * (1 - values if inverted else values))
