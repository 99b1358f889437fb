"""Frozen networks of any library: images go in, embeddings come out, nothing is trained.

A backbone is any Python function of images, `[n, height, width, channels]` as a NumPy array
of uint8, that returns embeddings `[n, dim]`, as an array of NumPy, JAX, PyTorch on the CPU
or whatever `numpy.asarray` takes. "module:function" names it, where the module is on the
path of Python, such as a file in the current folder:

    # my_backbone.py
    def embed(images): return network(preprocess(images)).numpy()
"""

import importlib
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from experiments.datasets.sources import ImageSource
from siamese_jax.errors import UserError
from siamese_jax.evaluation.files import read_array
from siamese_jax.evaluation.sets import checked_embeddings

Backbone = Callable[[np.ndarray], Any]

_NUM_THREADS = 8  # that read images


def gradients(images: np.ndarray) -> np.ndarray:
    """Oriented gradients [n, 240], a backbone that is at hand without a download."""
    from siamese_jax.encoders import oriented_gradients

    measure = jax.jit(oriented_gradients, static_argnums=(1, 2))
    return np.asarray(measure(images.astype(np.float32) / 255, (6, 5), 8))


def import_named(flag: str, path: str) -> Any:
    """Imports what "package.module:name" names.

    Args:
      flag: The flag whose value it is, for messages.
      path: The module and the name in it, with a colon between them.

    Raises:
      UserError: If there is no colon, or it cannot be imported.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise UserError(f"{flag} must be package.module:name; got {path}")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{flag} {path} cannot be imported: {error}") from error


def import_backbone(path: str) -> Backbone:
    """Imports a backbone.

    Raises:
      UserError: If it cannot be imported, or cannot be called.
    """
    found = import_named("--backbone", path)
    if not callable(found):
        raise UserError(
            f"--backbone {path} must be a function of images; got {type(found).__name__}"
        )
    return found


def embed_source(
    embed_fn: Backbone, source: ImageSource, *, batch_size: int = 64
) -> np.ndarray:
    """Embeds all images of a source, a batch at a time: float32 [n, dim].

    Args:
      embed_fn: A backbone.
      source: Images, which are read in several threads.
      batch_size: Number of images at a time. The last batch may be smaller.

    Raises:
      UserError: If the result of a batch is not [n, dim] or is not finite, or an image
        cannot be read.
    """
    from tqdm import tqdm

    batches = []
    with tqdm(total=len(source.labels), unit="image") as progress:
        for images in _batches(source, batch_size):
            batches.append(_checked(embed_fn(images), images))
            progress.update(len(images))
    if len({batch.shape[1] for batch in batches}) != 1:
        raise UserError("the backbone returns embeddings of several lengths")
    return np.concatenate(batches)


def _batches(source: ImageSource, batch_size: int) -> Iterator[np.ndarray]:
    """Reads batches, the next one while the caller uses this one."""
    starts = range(0, len(source.labels), batch_size)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        reading = [
            [
                pool.submit(source.read, number)
                for number in _rows(source, start, batch_size)
            ]
            for start in starts[:1]
        ]
        for start in starts:
            following = _rows(source, start + batch_size, batch_size)
            reading.append([pool.submit(source.read, number) for number in following])
            yield np.stack([image.result() for image in reading.pop(0)])


def _rows(source: ImageSource, start: int, size: int) -> range:
    return range(start, min(start + size, len(source.labels)))


def _checked(found: Any, images: np.ndarray) -> np.ndarray:
    embeddings = np.asarray(found)
    if embeddings.ndim != 2 or len(embeddings) != len(images):
        raise UserError(
            f"the backbone must return embeddings [{len(images)}, dim] for images "
            f"{list(images.shape)}; got {list(embeddings.shape)}"
        )
    return checked_embeddings("the embeddings of the backbone", embeddings)


def read_embeddings(file: pathlib.Path, num_rows: int | None = None) -> np.ndarray:
    """Reads float32 embeddings [n, dim] from a .npy file.

    Args:
      file: The file.
      num_rows: The n that is wanted.

    Raises:
      UserError: If it cannot be read, has another shape, or is not finite.
    """
    array = read_array("--embeddings", file)
    if num_rows is not None and array.shape[:1] != (num_rows,):
        raise UserError(
            f"--embeddings: {file} must have {num_rows} rows; got shape {array.shape}"
        )
    return checked_embeddings(f"--embeddings: {file}", array)
