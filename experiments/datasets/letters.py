"""Letters of five alphabets drawn from fonts, a data set that needs no download.

matplotlib installs twelve DejaVu faces, which have about 1,300 letters in common. Each
letter is a class, and each face gives one example of it. Letters with the same shape, such
as Latin A, Greek Alpha and Cyrillic A, are one class. A test letter that looks like a
training letter is left out.

The faces have about 750 signs in common as well: digits, punctuation, arrows, symbols of
mathematics. They are of none of the alphabets, and calibrate a model.
"""

import pathlib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from siamese_jax.errors import UserError

TRAINING = ("latin", "greek", "cyrillic")
TEST = ("armenian", "georgian")

_FACES = "DejaVuSans*.ttf", "DejaVuSerif*.ttf"
_GLYPH_FACES = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"
_FONT_SIZE = 24  # in images of 32 pixels; larger letters are shrunk to leave a margin
_MARGIN = 2  # pixels
# Two letters are compared by the median, over the faces, of the cosine of their pixels.
_ONE_CLASS = 0.99  # from here on, two letters are one class
_TOO_SIMILAR = 0.9  # from here on to a training letter, a test letter is left out


class Letters(NamedTuple):
    """Drawings, one for each letter and face, sorted by letter.

    Attributes:
      images: uint8 [n, size, size, 1], ink 255 on 0.
      letters: [n], characters. The first of several letters with the same shape stands for
        all of them.
      alphabets: [n], the alphabet of each letter.
      faces: [n], the number of the face of each drawing.
    """

    images: np.ndarray
    letters: np.ndarray
    alphabets: np.ndarray
    faces: np.ndarray

    def only(self, alphabets: Sequence[str]) -> "Letters":
        """Returns the drawings of some alphabets."""
        chosen = np.isin(self.alphabets, alphabets)
        return Letters(*(array[chosen] for array in self))

    @property
    def num_letters(self) -> int:
        """Number of different letters."""
        return len(np.unique(self.letters))


def draw_letters(font_dir: pathlib.Path | None = None, *, size: int = 32) -> Letters:
    """Draws every letter of the five alphabets that all faces have.

    Args:
      font_dir: A folder with more fonts (.ttf, .otf), which are added to the twelve faces.
      size: Height and width of the images in pixels.

    Raises:
      UserError: If the folder has no font, a file cannot be read as a font, or an alphabet
        has no letter that is in all fonts.
    """
    faces = _all_faces(font_dir)
    by_alphabet = _common_letters(faces)
    characters = [c for letters in by_alphabet.values() for c in letters]
    alphabets = np.array([a for a, letters in by_alphabet.items() for _ in letters])
    return _draw(faces, characters, alphabets, size)


def draw_signs(font_dir: pathlib.Path | None = None, *, size: int = 32) -> Letters:
    """Draws every digit, punctuation mark and symbol that all faces have.

    Their alphabet is called "signs". The arguments are those of `draw_letters`.

    Raises:
      UserError: As for `draw_letters`, or if fewer than two signs are in all fonts.
    """
    faces = _all_faces(font_dir)
    characters = [
        character
        for character in _common_characters(faces)
        if unicodedata.category(character)[0] in "NPS"
        and _alphabet(character) not in (*TRAINING, *TEST)
    ]
    if len(characters) < 2:
        raise UserError(f"fewer than two signs are in all of the {len(faces)} fonts")
    return _draw(faces, characters, np.full(len(characters), "signs"), size)


def draw_glyphs(*, size: int = 32) -> Letters:
    """Draws all glyphs that the sans-serif face has both plain and bold, about 3,500.

    There are two drawings of each. Letters of the training alphabets are left out. The
    alphabet of all is called "glyphs".
    """
    faces = [face for face in _default_faces() if face.name in _GLYPH_FACES]
    characters = [
        character
        for character in _common_characters(faces)
        if unicodedata.category(character)[0] in "LNPS"
        and _alphabet(character) not in TRAINING
    ]
    return _draw(faces, characters, np.full(len(characters), "glyphs"), size)


def _draw(
    faces: Sequence[pathlib.Path],
    characters: Sequence[str],
    alphabets: np.ndarray,
    size: int,
) -> Letters:
    images = np.stack([_draw_face(face, characters, size) for face in faces], axis=1)
    chosen = _choose_letters(images, np.isin(alphabets, TEST))
    num_faces = len(faces)
    return Letters(
        images[chosen].reshape(-1, size, size, 1),
        np.repeat(np.array(characters)[chosen], num_faces),
        np.repeat(alphabets[chosen], num_faces),
        np.tile(np.arange(num_faces), len(chosen)),
    )


def _all_faces(font_dir: pathlib.Path | None) -> list[pathlib.Path]:
    return _default_faces() + (_fonts_in(font_dir) if font_dir else [])


def _default_faces() -> list[pathlib.Path]:
    """Returns the font files of matplotlib's twelve DejaVu faces."""
    import matplotlib

    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    faces = sorted(path for pattern in _FACES for path in folder.glob(pattern))
    faces = [path for path in faces if "Display" not in path.stem]
    if not faces:
        raise UserError(f"no DejaVu fonts under {folder}, where matplotlib keeps them")
    return faces


def _fonts_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the font files under a folder."""
    if not folder.is_dir():
        raise UserError(f"--font-dir: {folder} is not a folder")
    fonts = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".ttf", ".otf"))
    if not fonts:
        raise UserError(f"--font-dir: no .ttf or .otf file under {folder}")
    return fonts


def _common_characters(faces: Sequence[pathlib.Path]) -> list[str]:
    """Returns the characters that all faces have, in the order of their numbers."""
    from fontTools.ttLib import TTFont, TTLibError

    common: set[int] | None = None
    for face in faces:
        try:
            with face.open("rb") as file, TTFont(file) as font:
                drawn = set(font.getBestCmap() or ())
        except (TTLibError, OSError) as error:
            raise UserError(f"{face} cannot be read as a font: {error}") from error
        common = drawn if common is None else common & drawn
    return list(map(chr, sorted(common or ())))


def _alphabet(character: str) -> str:
    """Returns the first word of the name of a character."""
    return unicodedata.name(character, "-").split()[0].lower()


def _common_letters(faces: Sequence[pathlib.Path]) -> dict[str, list[str]]:
    """Returns the letters that all faces have, by alphabet."""
    by_alphabet: dict[str, list[str]] = {name: [] for name in (*TRAINING, *TEST)}
    for character in _common_characters(faces):
        alphabet = _alphabet(character)
        is_letter = unicodedata.category(character) in ("Lu", "Ll", "Lo")
        if is_letter and alphabet in by_alphabet:
            by_alphabet[alphabet].append(character)
    for alphabet, letters in by_alphabet.items():
        if not letters:
            raise UserError(f"no {alphabet} letter is in all of the {len(faces)} fonts")
    return by_alphabet


def _draw_face(face: pathlib.Path, characters: Sequence[str], size: int) -> np.ndarray:
    """Returns images [letters, size, size] of centred letters in their own proportions."""
    from PIL import Image, ImageDraw, ImageFont

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


def _choose_letters(images: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Returns the rows of the letters to keep, from images [letters, faces, size, size].

    These are the first of each set of letters with the same shape, without letters that
    have no ink and test letters that are too similar to a training letter.
    """
    num_letters, num_faces = images.shape[:2]
    ink = images.reshape(num_letters, num_faces, -1).swapaxes(0, 1).astype(np.float32)
    ink /= np.maximum(np.linalg.norm(ink, axis=2, keepdims=True), 1e-6)
    similarity = np.median(ink @ ink.swapaxes(1, 2), axis=0)
    is_copy = np.tril(similarity >= _ONE_CLASS, k=-1).any(axis=1)  # of an earlier letter
    like_training = (similarity[:, ~is_test] >= _TOO_SIMILAR).any(axis=1)
    is_empty = ~images.any(axis=(1, 2, 3))
    return np.flatnonzero(~is_copy & ~(is_test & like_training) & ~is_empty)
