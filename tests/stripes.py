"""Writes a folder of small images of stripes, for tests that read image files."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image


def write_stripes(
    folder: pathlib.Path,
    *,
    names: Sequence[str],
    num: int,
    size: tuple[int, int] = (20, 16),
    seed: int = 0,
) -> pathlib.Path:
    """Writes `num` pictures of each class and returns the folder.

    Each class has stripes of its own direction and width. The pictures of a class differ by
    noise.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        angle, width = number * 2.4, 0.5 + 0.13 * number
        wave = np.sin(width * (rows * np.cos(angle) + columns * np.sin(angle)))
        for i in range(num):
            image = 128 + 90 * wave + 12 * rng.normal(size=size)
            picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
            picture.save(folder / name / f"{i}.png")
    return folder
