"""Letters of five alphabets, drawn from fonts: a data set with nothing to download.

matplotlib brings twelve DejaVu faces that all draw some 1,300 letters. A class is a
letter, an example is a face. Letters that are drawn alike (A, Alpha, Cyrillic A) are one
class, and a test letter that looks like a training letter is left out.
"""

import pathlib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

from experiments.run import UserError

TRAINING = ("latin", "greek", "cyrillic")
TEST = ("armenian", "georgian")

_FACES = "DejaVuSans*.ttf", "DejaVuSerif*.ttf"
_FONT_SIZE = 24  # of 32 pixels; what is larger is shrunk to leave a margin
_MARGIN = 2
_ALIKE = 0.99  # median correlation over the faces from which two letters are one class
_TOO_NEAR = 0.9  # that with a training letter from which a test letter is left out


class Letters(NamedTuple):
    """Drawings, one for each letter and face, letter after letter.

    Attributes:
      images: uint8 [n, size, size, 1], ink 255 on 0.
      letters: [n], the character (of the first alphabet that has it).
      alphabets: [n], the alphabet of the letter.
      faces: [n], the number of the face.
    """

    images: np.ndarray
    letters: np.ndarray
    alphabets: np.ndarray
    faces: np.ndarray

    def only(self, alphabets: Sequence[str]) -> "Letters":
        """The letters of some alphabets."""
        chosen = np.isin(self.alphabets, alphabets)
        return Letters(*(array[chosen] for array in self))

    @property
    def num_letters(self) -> int:
        """How many letters there are."""
        return len(np.unique(self.letters))


def draw_letters(font_dir: pathlib.Path | None = None, *, size: int = 32) -> Letters:
    """Draws every letter that all faces have, in all five alphabets.

    Args:
      font_dir: A folder of the user's own fonts (.ttf, .otf), added to the twelve.
      size: Height and width in pixels.

    Raises:
      UserError: If the folder has no font, a file is no font, or no letter is in all.
    """
    faces = _default_faces() + (_fonts_in(font_dir) if font_dir else [])
    by_alphabet = _common_letters(faces)
    characters = [c for letters in by_alphabet.values() for c in letters]
    alphabets = np.array([a for a, letters in by_alphabet.items() for _ in letters])
    images = np.stack([_draw_face(face, characters, size) for face in faces], axis=1)
    kept = _one_class_each(images, np.isin(alphabets, TEST))
    num_faces = len(faces)
    return Letters(
        images[kept].reshape(-1, size, size, 1),
        np.repeat(np.array(characters)[kept], num_faces),
        np.repeat(alphabets[kept], num_faces),
        np.tile(np.arange(num_faces), len(kept)),
    )


def _default_faces() -> list[pathlib.Path]:
    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    faces = sorted(path for pattern in _FACES for path in folder.glob(pattern))
    faces = [path for path in faces if "Display" not in path.stem]
    if not faces:
        raise UserError(f"no DejaVu fonts under {folder}, where matplotlib keeps them")
    return faces


def _fonts_in(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise UserError(f"--font-dir: {folder} is not a folder")
    fonts = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".ttf", ".otf"))
    if not fonts:
        raise UserError(f"--font-dir: no .ttf or .otf file under {folder}")
    return fonts


def _common_letters(faces: Sequence[pathlib.Path]) -> dict[str, list[str]]:
    """Letters that every face draws, by alphabet."""
    common: set[int] | None = None
    for face in faces:
        try:
            with face.open("rb") as file, TTFont(file) as font:
                drawn = set(font.getBestCmap() or ())
        except (TTLibError, OSError) as error:
            raise UserError(f"{face} cannot be read as a font: {error}") from error
        common = drawn if common is None else common & drawn
    by_alphabet: dict[str, list[str]] = {name: [] for name in (*TRAINING, *TEST)}
    for character in map(chr, sorted(common or ())):
        alphabet = unicodedata.name(character, "-").split()[0].lower()
        if alphabet in by_alphabet and unicodedata.category(character) in (
            "Lu",
            "Ll",
            "Lo",
        ):
            by_alphabet[alphabet].append(character)
    for alphabet, letters in by_alphabet.items():
        if not letters:
            raise UserError(f"no {alphabet} letter is in all of the {len(faces)} fonts")
    return by_alphabet


def _draw_face(face: pathlib.Path, characters: Sequence[str], size: int) -> np.ndarray:
    """[letters, size, size]: each letter in the middle, at the font's own proportions."""
    font = ImageFont.truetype(str(face), _FONT_SIZE * size // 32)
    room = size - 2 * _MARGIN
    images = np.zeros((len(characters), size, size), np.uint8)
    for image, character in zip(images, characters, strict=True):
        left, top, right, bottom = (int(x) for x in font.getbbox(character))
        width, height = max(right - left, 1), max(bottom - top, 1)
        drawing = Image.new("L", (width, height), 0)
        ImageDraw.Draw(drawing).text((-left, -top), character, font=font, fill=255)
        drawing.thumbnail((room, room), Image.Resampling.LANCZOS)
        row, column = (size - drawing.height) // 2, (size - drawing.width) // 2
        image[row : row + drawing.height, column : column + drawing.width] = np.asarray(
            drawing
        )
    return images


def _one_class_each(images: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """The first of each set of letters drawn alike, less test letters seen in training."""
    num_letters, num_faces = images.shape[:2]
    ink = images.reshape(num_letters, num_faces, -1).swapaxes(0, 1).astype(np.float32)
    ink /= np.maximum(np.linalg.norm(ink, axis=2, keepdims=True), 1e-6)
    correlation = np.median(ink @ ink.swapaxes(1, 2), axis=0)
    alike = np.tril(correlation >= _ALIKE, k=-1)
    first = ~alike.any(axis=1)
    seen = (correlation[:, ~is_test] >= _TOO_NEAR).any(axis=1)
    empty = ~images.any(axis=(1, 2, 3))
    return np.flatnonzero(first & ~(is_test & seen) & ~empty)
