"""What a run has learnt, put to use: a working directory becomes a model.

Every experiment has `load_model(config) -> Model`; `load_model(workdir)` finds out which
one made the directory. `calibrate` keeps, beside the checkpoint, what distances mean:

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> away = np.concatenate([rng.uniform(0, 1, 500), rng.uniform(0.9, 2, 500)])
>>> calibration = calibrate(Judged(away.astype("f"), np.arange(1000) < 500), "toy pairs")
>>> bool(0.85 < calibration.threshold < 1.05)
True
>>> bool(calibration.probability_same(0.2) > 0.99)
True
"""

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import run
from experiments.data import read_image, resize
from experiments.pairs import Judged, Pairs
from siamese_jax import verification as verify
from siamese_jax.batching import map_batches
from siamese_jax.distances import euclidean_distance, euclidean_distance_matrix


class Model(NamedTuple):
    """From images to distances.

    Attributes:
      params: Whatever `embed_fn` takes.
      embed_fn: `embed_fn(params, images)`: images [n, *image_shape] in [0, 1] to embeddings
        [n, dim]; pure.
      image_shape: Height, width, channels.
      distance_fn: Embeddings [n, dim] twice to distances [n]; smaller is closer.
      matrix_fn: Embeddings [n, dim], [m, dim] to distances [n, m].
      prepare_fn: uint8 images of any one size to uint8 [n, *image_shape], as for training.
    """

    params: Any
    embed_fn: Callable[[Any, jax.Array], jax.Array]
    image_shape: tuple[int, int, int]
    distance_fn: Callable[[jax.Array, jax.Array], jax.Array] = euclidean_distance
    matrix_fn: Callable[[jax.Array, jax.Array], jax.Array] = euclidean_distance_matrix
    prepare_fn: Callable[..., np.ndarray] = resize


def load_model(workdir: pathlib.Path) -> Model:
    """The model of any finished or unfinished run.

    Raises:
      UserError: If the directory holds no run, no checkpoint, or no single model.
    """
    config = run.load_config(workdir)
    return importlib.import_module(f"experiments.{config.experiment}").load_model(config)


def pixel_model(image_shape: tuple[int, int, int]) -> Model:
    """The baseline: pixels as they are, and their Euclidean distance."""
    return Model((), _pixels, image_shape)


def _pixels(params: Any, images: jax.Array) -> jax.Array:
    return images.reshape(images.shape[0], -1)


def embed(model: Model, images: np.ndarray, *, batch_size: int = 256) -> jax.Array:
    """Embeddings of uint8 images, of any one size or already [n, *image_shape]."""
    ready = images.shape[1:] == model.image_shape
    prepared = images if ready else model.prepare_fn(images, model.image_shape)
    batch_size = min(batch_size, len(images))

    @jax.jit
    def embed_all(params: Any, images: jax.Array) -> Any:
        def some(images: jax.Array) -> jax.Array:
            return model.embed_fn(params, images / 255)

        return map_batches(some, images, batch_size=batch_size)

    return embed_all(model.params, jnp.asarray(prepared))


def read_images(model: Model, files: Sequence[pathlib.Path]) -> np.ndarray:
    """Image files of any sizes as uint8 [n, *image_shape], made ready as in training.

    Raises:
      UserError: If a file cannot be read as an image; it is named.
    """
    shape = model.image_shape
    images = (read_image(file, color=shape[2] == 3) for file in files)
    return np.concatenate([model.prepare_fn(image[None], shape) for image in images])


def judge(model: Model, embeddings: jax.Array, pairs: Pairs) -> Judged:
    """The distance of each pair."""
    a, b = embeddings[pairs.examples]
    return Judged(model.distance_fn(a, b), jnp.asarray(pairs.same))


# Calibration ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a distance means, learnt from pairs that the net was not trained on.

    Attributes:
      pairs: Which pairs, in words.
      num_pairs: How many.
      threshold: The most accurate on them.
      accuracy: At that threshold.
      even_distance: Where same and different are equally likely.
      scale: P(same) = sigmoid(scale * (even_distance - distance)).
      false_match_rates: Ascending rates of different pairs called the same, with
      distances: the thresholds that give them.
    """

    pairs: str
    num_pairs: int
    threshold: float
    accuracy: float
    even_distance: float
    scale: float
    false_match_rates: list[float]
    distances: list[float]

    def probability_same(self, distance: Any) -> Any:
        """The probability of "same", where same and different are equally frequent."""
        logits = self.scale * (self.even_distance - np.asarray(distance, float))
        return 1 / (1 + np.exp(-np.clip(logits, -50, 50)))

    def threshold_at(self, false_match_rate: float) -> float:
        """The largest distance at which at most this share of different pairs match."""
        return float(np.interp(false_match_rate, self.false_match_rates, self.distances))


def calibrate(judged: Judged, pairs: str) -> Calibration:
    """Fits threshold, probability and false match rates.

    Raises:
      UserError: If the pairs are not of both kinds, or a distance is not finite.
    """
    away, same = np.asarray(judged.distances), np.asarray(judged.same)
    if same.all() or not same.any() or not np.isfinite(away).all():
        raise run.UserError(
            f"{pairs} cannot calibrate: {same.sum()} same, {(~same).sum()} different, "
            f"{(~np.isfinite(away)).sum()} distances not finite"
        )
    best = verify.best_threshold(jnp.asarray(away), jnp.asarray(same))
    fit = verify.fit_logistic(jnp.asarray(away), jnp.asarray(same))
    different = away[~same]
    rates = np.geomspace(1 / len(different), 0.5, 50)
    return Calibration(
        pairs=pairs,
        num_pairs=len(same),
        threshold=float(best.threshold),
        accuracy=float(best.accuracy),
        even_distance=float(fit.threshold),
        scale=float(fit.scale),
        false_match_rates=rates.tolist(),
        distances=np.quantile(different, rates).tolist(),
    )


def save_calibration(config: run.RunConfig, calibration: Calibration) -> None:
    """Writes workdir/calibration.json."""
    text = json.dumps(dataclasses.asdict(calibration), indent=2)
    run.write_whole(config.directory / "calibration.json", text + "\n")


def load_calibration(workdir: pathlib.Path) -> Calibration:
    """Reads workdir/calibration.json.

    Raises:
      UserError: If it is not there: the run was not finished.
    """
    path = workdir / "calibration.json"
    if not path.exists():
        raise run.UserError(f"{workdir} has no calibration.json: its run is not finished")
    fields = run.read_json(path)
    return Calibration(**fields)
