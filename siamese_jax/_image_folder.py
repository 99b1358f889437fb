"""The image files of a folder, with or without a sub-folder for each class."""

import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from siamese_jax._image_file import ImageFile, readable_endings
from siamese_jax._names import comparable, enumerated, is_litter, shown
from siamese_jax.errors import UserError


def names_of_folders(files: Sequence[ImageFile]) -> list[str]:
    """The name of the folder of each file, with one spelling for names of one text."""
    # the folder where a file lies, not the one that a link leads to
    names = [pathlib.Path(os.path.abspath(file)).parent.name for file in files]
    spelling: dict[str, str] = {}
    return [spelling.setdefault(comparable(name), name) for name in names]


def files_by_class(folder: ImageFile) -> dict[str, list[pathlib.Path]]:
    """The image files of each class, in the order of names; a class may have none."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; a folder with one sub-folder for each class is "
            "wanted"
        )
    folders = [path for path in _entries(folder) if path.is_dir()]
    if not folders:
        raise UserError(f"{folder} has no sub-folders; one is needed for each class")
    classes: dict[str, list[pathlib.Path]] = {}
    names = names_of_folders([path / "file" for path in folders])
    for name, path in zip(names, folders, strict=True):
        inside = (file for file in _entries(path) if not file.is_dir())
        classes.setdefault(name, []).extend(images_among(inside))
    return classes


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if not is_litter(path.name))


def walk(folder: pathlib.Path, above: tuple[str, ...] = ()) -> Iterator[pathlib.Path]:
    """All files in a folder and its sub-folders, without those of `is_litter`."""
    real = os.path.realpath(folder)
    if real in above:  # a link leads back
        return
    for path in _entries(folder):
        if path.is_dir():
            yield from walk(path, (*above, real))
        else:
            yield path


def images_among(files: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    endings = readable_endings()
    return [file for file in files if file.suffix.lower() in endings]


def passed_over(paths: Sequence[ImageFile], files: Sequence[ImageFile]) -> str | None:
    """A line on the files of folders that are not among those to read, if there are any."""
    read = set(map(pathlib.Path, files))
    found = [f for path in map(pathlib.Path, paths) if path.is_dir() for f in walk(path)]
    others = [file for file in found if file not in read]
    if not others:
        return None
    misplaced = images_among(others)
    reasons = {
        "not an image format that Pillow reads": set(others) - set(misplaced),
        "not directly in the folder of a class": misplaced,
    }
    counted = [f"{_by_ending(of)} ({why})" for why, of in reasons.items() if of]
    return f"passed over {num_files(len(others))} of {len(found)}: {enumerated(counted)}"


def num_files(number: int) -> str:
    """A number of files in words.

    >>> num_files(1), num_files(2)
    ('1 file', '2 files')
    """
    return f"{number} file{'s' * (number != 1)}"


def _by_ending(files: Iterable[pathlib.Path]) -> str:
    counts = Counter(shown(file.suffix.lower()) or "without an ending" for file in files)
    return enumerated(
        [f"{num} {ending}" for ending, num in sorted(counts.items())], limit=8
    )
