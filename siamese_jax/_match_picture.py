"""The picture of `siamese-jax identify`: queries above their nearest gallery images."""

import pathlib
from collections.abc import Sequence
from typing import Any

from siamese_jax._extras import import_extra
from siamese_jax._names import shown
from siamese_jax.identification import Identification
from siamese_jax.images import read_image

NUM_SHOWN = 12
GREEN, RED, WHITE = (30, 130, 60), (190, 40, 40), (255, 255, 255)

_SIZE = 96  # of an image, in pixels
_FRAME = 4
_GAP = 12
_TEXT = 48  # three lines
_CELL = _SIZE + 2 * _FRAME


def draw_matches(
    queries: Sequence[pathlib.Path],
    nearest: Sequence[pathlib.Path],
    found: Identification,
) -> Any:
    """Draws the first queries above what they are nearest to, as a Pillow image.

    The frame is green where the nearest class is accepted, else red. The nearest class and
    its distance stand below.
    """
    pil, drawing = import_extra("PIL.Image"), import_extra("PIL.ImageDraw")
    num = min(len(queries), NUM_SHOWN)
    size = (num * (_CELL + _GAP) + _GAP, 2 * _CELL + 3 * _GAP + _TEXT)
    picture = pil.new("RGB", size, WHITE)
    pen = drawing.Draw(picture)
    for column in range(num):
        left, color = _GAP + column * (_CELL + _GAP), RED
        lines = [shown(found.nearest.labels[column])]
        lines.append(f"{found.nearest.distances[column]:.2f}")
        if found.accepted[column]:
            color = GREEN
        else:
            lines.append("none of these")
        for row, file in enumerate((queries[column], nearest[column])):
            top = _GAP + row * (_CELL + _GAP)
            pen.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill=color)
            picture.paste(_fitted(file), (left + _FRAME, top + _FRAME))
        _write(pen, lines, (left, 2 * _CELL + 3 * _GAP), color)
    return picture


def _fitted(file: pathlib.Path) -> Any:
    """An image as large as its place allows, on white."""
    pil = import_extra("PIL.Image")
    image = pil.fromarray(read_image(file, color=True))
    scale = _SIZE / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    enlarged = scale > 1  # pixels stay visible
    resampling = pil.Resampling.NEAREST if enlarged else pil.Resampling.LANCZOS
    square = pil.new("RGB", (_SIZE, _SIZE), WHITE)
    place = ((_SIZE - width) // 2, (_SIZE - height) // 2)
    square.paste(image.resize((width, height), resampling), place)
    return square


def _write(
    pen: Any, lines: Sequence[str], place: tuple[int, int], color: tuple[int, int, int]
) -> None:
    """Writes lines of text, each cut to the width of a cell."""
    font = import_extra("PIL.ImageFont").load_default(12)
    left, top = place
    for number, line in enumerate(lines):
        while pen.textlength(line, font=font) > _CELL:
            line = line.rstrip("\u2026")[:-1] + "\u2026"
        pen.text((left, top + 15 * number), line, fill=color, font=font)
