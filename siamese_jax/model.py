"""A trained model: from images to embeddings, distances and decisions.

A `Model` is an encoder with its parameters, the preparation of its images, its distance and
what the distance means. Here is the simplest, which compares pixels:

>>> import pathlib, tempfile
>>> model = pixel_model(Preparation(size=(1, 2)))
>>> images = np.array([[[[0], [0]]], [[[153], [204]]]], np.uint8)
>>> embeddings = model.embed(images)
>>> print(embeddings.shape, model.distances(embeddings, embeddings).tolist())
(2, 2) [[0.0, 1.0], [1.0, 0.0]]
>>> with tempfile.TemporaryDirectory() as name:
...     save_model(pathlib.Path(name, "model"), model)
...     loaded = load_model(pathlib.Path(name, "model"))
>>> print(loaded.pair_distances(*embeddings[:, None]).tolist())
[1.0]

With a calibration, which `verification.calibrate` fits, `model.verify(a, b)` decides
whether two images are of one class, and `model.identify(gallery, labels, queries)` names
the nearest class of a gallery or none of them.

`save_model` writes a folder with four files::

    encoder.jax             parameters, images [n, height, width, channels] -> [n, dim]
    distances.jax           parameters, embeddings [n, dim], [m, dim] -> [n, m]
    parameters.safetensors  the parameters of both, by name
    model.json              preparation, calibration, versions, how the model was made

The two functions are exported by `jax.export` for CPU, CUDA and TPU, for any n and m. They
take prepared images as float32 in [0, 1]. JAX promises to read exported functions for at
least six months after the version that wrote them. The folder holds no other code: these
lines compare two image files where jax, numpy, safetensors and flatbuffers are installed.
`siamese_jax.images`, which needs Pillow, reads the files and prepares them as in training,
by the steps that `preparation` lists::

    import json, pathlib
    import jax, numpy as np
    from jax import export
    from safetensors.numpy import load_file
    from siamese_jax import images
    folder, files = pathlib.Path("model"), ["a.png", "b.png"]
    facts = json.loads((folder / "model.json").read_text())
    params = jax.device_put(load_file(folder / "parameters.safetensors"))
    encoder = export.deserialize((folder / "encoder.jax").read_bytes())
    distances = export.deserialize((folder / "distances.jax").read_bytes())
    preparation = images.Preparation(**facts["preparation"])
    prepared = images.read_prepared(files, preparation).astype(np.float32) / 255
    embeddings = encoder.call(params, prepared)
    matrix = distances.call(params, embeddings, embeddings)
    print(matrix[0, 1])
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree, UInt8

from siamese_jax import identification
from siamese_jax._checks import check_between_0_and_1, check_distance_fn
from siamese_jax._labels import Labels, check_classes, host_labels
from siamese_jax._model_folder import Content, read_folder, write_folder
from siamese_jax.batching import map_batches, use_devices_of
from siamese_jax.distances import euclidean_distance_matrix
from siamese_jax.errors import UserError
from siamese_jax.identification import Identification
from siamese_jax.images import (
    ImageFile,
    Preparation,
    check_files,
    check_images,
    prepare,
    read_prepared,
)
from siamese_jax.verification import Calibration

# Images of any one size as in their files, or the files.
Images = (
    UInt8[np.ndarray, "_n _height _width _channels"]
    | UInt8[Array, "_n _height _width _channels"]
    | Sequence[ImageFile]
)
Image = (
    UInt8[np.ndarray, "_height _width _channels"]
    | UInt8[Array, "_height _width _channels"]
    | ImageFile
)
Vectors = Float[Array, "n dim"] | Float[np.ndarray, "n dim"]
OtherVectors = Float[Array, "m dim"] | Float[np.ndarray, "m dim"]

USUAL_RATE = 0.1  # of strangers that `Model.identify` accepts
_PAIRS_AT_ONCE = 16  # a block computes the square of this number of distances


def _euclidean(params: PyTree, x: Array, y: Array) -> Array:
    return euclidean_distance_matrix(x, y)


class Verification(NamedTuple):
    """The decision about two images.

    Attributes:
      same: Whether the distance is at most the threshold.
      distance: Distance of the two embeddings.
      threshold: The most accurate threshold on the pairs of the calibration.
      probability_same: See `verification.Calibration.probability_same`. It is at least 1/2
        if and only if `same` is True.
    """

    same: bool
    distance: float
    threshold: float
    probability_same: float


@dataclass(frozen=True, eq=False)
class Model:
    """An encoder with its parameters, the preparation of its images and its distance.

    Two models are equal only if they are one object, so that `model.distances` can be given
    as `matrix_fn` to the functions of `siamese_jax.episodes`. Programs are compiled for
    each `embed_fn` and `matrix_fn`; models of one network should share these two objects.

    Attributes:
      params: Whatever the two functions take.
      embed_fn: `embed_fn(params, images)`, from prepared images `[n, *image_shape]`,
        float32 in [0, 1], to embeddings `[n, dim]`. A pure function in which each row of
        the result depends on its own image alone.
      preparation: What is done to an image before it is embedded.
      matrix_fn: `matrix_fn(params, x, y)`, from embeddings `[n, dim]` and `[m, dim]` to
        distances `[n, m]`; smaller is closer. The Euclidean distance by default. `verify`
        and `identify` refuse what clearly gives similarities, such as cosines.
      calibration: What distances mean, or None if nobody has measured it.
      details: How the model was made, as JSON can hold it. "no_calibration" says why there
        is none.
    """

    params: PyTree
    embed_fn: Callable[[PyTree, Array], Array]
    preparation: Preparation
    matrix_fn: Callable[[PyTree, Array, Array], Array] = _euclidean
    calibration: Calibration | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def embed(self, images: Images, *, batch_size: int = 256) -> Float[Array, "n dim"]:
        """Prepares images and embeds them, a batch at a time.

        A program is compiled for each number of images.

        Args:
          images: uint8 images of any one size as in their files, or the names of image
            files, whose sizes may differ.
          batch_size: Number of images at a time.

        Raises:
          ValueError: If the shape of the images is wrong, or there is none.
          TypeError: If the images are neither uint8 nor a list of files.
          UserError: If a file cannot be read as an image.
        """
        return self.embed_prepared(self._prepared(images), batch_size=batch_size)

    def embed_prepared(
        self, images: UInt8[np.ndarray, "..."], *, batch_size: int = 256
    ) -> Float[Array, "n dim"]:
        """Embeds images that `images.prepare` has already prepared.

        Parameters on several devices spread the images over them.

        Raises:
          ValueError: If the images have another shape than the prepared ones.
          TypeError: If the images are not uint8.
        """
        check_images("images", images)
        shape = self.preparation.image_shape
        if images.shape[1:] != shape:
            raise ValueError(
                f"images must have shape [n, {', '.join(map(str, shape))}] after the "
                f"preparation; got {images.shape}"
            )
        batch_size = min(batch_size, len(images))
        with use_devices_of(self.params):
            return _embed(self.embed_fn, batch_size, self.params, jnp.asarray(images))

    def distances(self, x: Vectors, y: OtherVectors) -> Float[Array, "n m"]:
        """Computes the distance of each row of `x` to each row of `y`."""
        return _matrix(self.matrix_fn, self.params, jnp.asarray(x), jnp.asarray(y))

    def pair_distances(self, x: Vectors, y: Vectors) -> Float[Array, " n"]:
        """Computes the distance of each row of `x` to the same row of `y`.

        Raises:
          ValueError: If the shapes differ.
        """
        if x.shape != y.shape:
            raise ValueError(f"x and y must have one shape; got {x.shape} and {y.shape}")
        return _diagonal(self.matrix_fn, self.params, jnp.asarray(x), jnp.asarray(y))

    def verify(self, a: Image, b: Image) -> Verification:
        """Decides whether two images, given as arrays or as files, are of one class.

        Raises:
          ValueError: If the shape of an image is wrong.
          TypeError: If an image is not uint8.
          UserError: If a file cannot be read, the model has no calibration, `matrix_fn`
            gives similarities, or the distance is not finite.
        """
        calibration = self._calibration()
        rows = (x[None] if isinstance(x, np.ndarray | Array) else [x] for x in (a, b))
        images = np.concatenate([self._prepared(row) for row in rows])
        embeddings = self.embed_prepared(images)
        self._check_distances(embeddings)
        x, y = embeddings[:, None]
        distance = float(_finite(self.pair_distances(x, y))[0])
        return Verification(
            same=distance <= calibration.threshold,
            distance=distance,
            threshold=calibration.threshold,
            probability_same=float(calibration.probability_same(distance)),
        )

    def identify(
        self,
        gallery: Images,
        labels: Labels,
        queries: Images,
        *,
        false_accept_rate: float | None = USUAL_RATE,
    ) -> Identification:
        """Finds the nearest class of a gallery for each query, or none of them.

        The threshold is such that, on average, at most the given share of strangers is
        accepted, queries of classes that the gallery does not have. It is measured on the
        gallery, which takes 2 / rate - 1 classes (`identification.gallery_threshold`). A
        smaller gallery takes the threshold of the calibration at which each of its images
        is a chance of a false match (`verification.Calibration.threshold_at`). If the pairs
        of the calibration cannot tell so small a rate, no query is accepted;
        `smallest_rate` of the result is the rate to ask for.

        The images of a gallery should differ as much as the queries do. If all of them are
        of one style, such as one camera, they are nearer to each other than to queries of
        another style, and the threshold is so strict that it also refuses known classes.

        Args:
          gallery: Images with known classes: an array or files, as for `embed`.
          labels: Class of each image of the gallery.
          queries: Images to identify.
          false_accept_rate: Share of strangers that may be accepted. None takes 0.1, or
            the smallest share that the gallery or the pairs can tell.

        Raises:
          ValueError: If there is not one label for each image of the gallery, there are
            fewer than two classes, the rate is not between 0 and 1, or the shape of the
            images is wrong.
          TypeError: If images are neither uint8 nor a list of files.
          UserError: If a file cannot be read, the model has no calibration, `matrix_fn`
            gives similarities, or a distance is not finite.
        """
        calibration = self._calibration()
        labels = host_labels("labels", labels)
        _check_gallery(gallery, labels)
        if false_accept_rate is not None:
            check_between_0_and_1("false_accept_rate", false_accept_rate)
        prepared = [self._prepared(images) for images in (gallery, queries)]
        known, asked = map(self.embed_prepared, prepared)
        self._check_distances(known)
        distances = _finite(self.distances(asked, known))
        nearest = identification.nearest_classes(distances, labels)
        between = _finite(self.distances(known, known))
        smallest_rate = min(
            identification.smallest_gallery_rate(len(np.unique(labels))),
            calibration.smallest_rate(num_comparisons=len(labels)),
        )
        if false_accept_rate is None:
            false_accept_rate = max(USUAL_RATE, smallest_rate)
        threshold, source = identification.stranger_threshold(
            calibration, between, labels, false_accept_rate
        )
        return Identification(
            nearest=nearest,
            accepted=identification.is_within(nearest.distances, threshold),
            threshold=threshold,
            threshold_from=source,
            smallest_rate=smallest_rate,
            strangers_let_in=identification.strangers_let_in(between, labels, threshold),
        )

    def _prepared(self, images: Images) -> np.ndarray:
        if isinstance(images, np.ndarray | Array):
            return prepare(np.asarray(images), self.preparation)
        return read_prepared(images, self.preparation)

    def _check_distances(self, embeddings: Array) -> None:
        """Raises UserError if `matrix_fn` gives similarities."""
        try:
            check_distance_fn("matrix_fn", self.distances, embeddings)
        except ValueError as error:
            raise UserError(f"the model cannot decide what is same: {error}") from error

    def _calibration(self) -> Calibration:
        if self.calibration is None:
            reason = self.details.get("no_calibration")
            raise UserError(
                "the model has no calibration, so that it cannot decide what is same: "
                + (reason or "see siamese_jax.verification.calibrate")
            )
        return self.calibration


def pixel_model(preparation: Preparation) -> Model:
    """Makes the baseline: the pixels are the embedding, the distance is Euclidean.

    >>> model = pixel_model(Preparation(size=(2, 3)))
    >>> model.embed(np.zeros((4, 2, 3, 1), np.uint8)).shape
    (4, 6)
    """
    return Model((), _pixels, preparation, details={"encoder": "pixels"})


def save_model(folder: ImageFile, model: Model) -> None:
    """Writes a model as a folder, all of it or nothing.

    If the program is stopped at any moment, `load_model` finds the model that was there
    before, or the new one. Parameters are dictionaries, lists and tuples of arrays, nested
    in any way, and are named by their keys joined by "/".

    Raises:
      UserError: If a file or a folder with other files is at this place, or a package of
        the extra `cli` is not installed.
      ValueError: If two parameters have one name, or the details hold what JSON cannot.
    """
    write_folder(folder, Content(**vars(model)))


def load_model(folder: ImageFile) -> Model:
    """Reads a folder that `save_model` has written; no code of the folder runs.

    The functions of a loaded model cannot be differentiated.

    Raises:
      UserError: If the folder is no model, has an unknown format, or a file of it is
        missing or damaged, which is named.
    """
    return Model(*read_folder(folder))


# Compiled once for each function and shape; parameters are arguments, never constants.


@partial(jax.jit, static_argnums=(0, 1))
def _embed(
    embed_fn: Callable[[PyTree, Array], Array],
    batch_size: int,
    params: PyTree,
    images: Array,
) -> Array:
    def embed_batch(images: Array) -> Array:
        return embed_fn(params, images.astype(jnp.float32) / 255)

    return map_batches(embed_batch, images, batch_size=batch_size)


@partial(jax.jit, static_argnums=0)
def _matrix(
    matrix_fn: Callable[[PyTree, Array, Array], Array], params: PyTree, x: Array, y: Array
) -> Array:
    return matrix_fn(params, x, y)


@partial(jax.jit, static_argnums=0)
def _diagonal(
    matrix_fn: Callable[[PyTree, Array, Array], Array], params: PyTree, x: Array, y: Array
) -> Array:
    """Distances of rows, as the diagonals of small blocks of the matrix."""
    if not len(x):  # an exported function takes no empty matrix
        one = jax.ShapeDtypeStruct((1, x.shape[1]), x.dtype)
        return jnp.zeros(0, jax.eval_shape(matrix_fn, params, one, one).dtype)
    size = min(_PAIRS_AT_ONCE, len(x))
    num_blocks = -(-len(x) // size)
    rows = jnp.minimum(jnp.arange(num_blocks * size), len(x) - 1).reshape(-1, size)

    def block(rows: Array) -> Array:
        return jnp.diagonal(matrix_fn(params, x[rows], y[rows]))

    return lax.map(block, rows).reshape(-1)[: len(x)]


def _pixels(params: PyTree, images: Array) -> Array:
    return images.reshape(images.shape[0], math.prod(images.shape[1:]))


def _check_gallery(gallery: Images, labels: np.ndarray) -> None:
    if not isinstance(gallery, np.ndarray | Array):
        check_files(gallery)
    words = f"{len(gallery)} images of gallery"
    check_classes("labels of gallery", labels, len(gallery), words)


def _finite(distances: Array) -> np.ndarray:
    found = np.asarray(distances)
    if not np.isfinite(found).all():
        bad = found[~np.isfinite(found)][0]
        raise UserError(f"a distance is {bad}: the model gives distances without a value")
    return found
