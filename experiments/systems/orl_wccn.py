"""Faces of persons never trained on: oriented gradients, whitened within persons, on ORL.

Source:  this project's own. Within-class covariance normalisation is that of Hatch,
         Kajarekar, Stolcke 2006; the oriented gradients are those of Dalal, Triggs 2005.
Run:     python -m experiments orl_wccn --data-dir orl_faces
Expect:  pair_eer .048 (pixels .118), one_shot_accuracy .969 (pixels .866), means of five
         folds over 34 persons; validation_pair_eer .036. Strangers let in: .005 where .01
         is asked (95 % interval 0 to .014), .045 where .05 is (.003 to .121). Two to four
         minutes on two CPU cores
Quick:   python -m experiments orl_wccn --data-dir orl_faces --folds 0
             --workdir runs/quick_orl_wccn

ORL (AT&T) has 40 persons with ten PGM images each, in one folder for each person. The
figures above are of 34 of the 40 persons.

Nothing is trained step by step. With C the covariance of the features within a person, the
embedding of the features f of a face is

    (f - mean) W / |(f - mean) W|,   W W' = (C + shrinkage * trace(C) / dim * I)^-1,

which makes directions small in which images of one person differ: pose, light, expression.

The grid of the gradients, the use of mirror images and the shrinkage are chosen by
nested cross-validation. Each of five folds tests on every fifth person. The other persons
are dealt into five groups, twice. Each group is tested with a map that is fitted to the
other four, and the choice with the lowest mean equal error rate is fitted to all of them.
So a choice never sees the persons that it is tested on. The distances between the persons
of one group also calibrate the model, as its map was not fitted to them. Strangers are
images of each test person, where the gallery has one image of each of the others.

Which choices there are was decided by validation errors on the training persons of the
first three folds, some of whom are test persons of other folds. No test error was used.
Left out is what lowered the validation error by less than .003: fitting to mirrored,
shifted, rotated and scaled images too, two grids together, and distances normalised by
those to a cohort.

Then the choice is made once more, on everyone, for the model in RUN/model. With
`--test-dir FOLDER`, instead of the five folds, this model is tested on the persons there.
RUN/results.json has every choice with its validation figures.
"""

import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli import command_line, print_table, read_json, write_whole
from experiments.datasets import evaluation_rng
from experiments.engine.config import (
    as_json,
    check_config,
    command,
    directory_of,
    is_started,
    setting,
)
from experiments.engine.folders import check_settings, write_settings
from experiments.engine.loop import made_with
from experiments.evaluations import gallery_figures, unseen_faces
from experiments.evaluations.pair_metrics import equal_error_rate
from experiments.evaluations.unseen_classes import select_classes
from siamese_jax import verification, whitening
from siamese_jax.distances import normalize
from siamese_jax.encoders.hog import oriented_gradients
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, Preparation, load_folder, prepare
from siamese_jax.model import Model, pixel_model, save_model

PREPARATION = Preparation(size=(56, 46))
NUM_DIRECTIONS = 8
NUM_GROUPS = 5  # that the training persons are dealt into
NUM_CHOOSING = 2  # times that they are dealt anew to choose,
NUM_CALIBRATING = 5  # and to calibrate: two persons meet in one group in most of these
RATES = (0.01, 0.05)  # shares of strangers that are asked for


@dataclasses.dataclass(frozen=True)
class Config:
    """The persons, and the folder of the results.

    Attributes:
      data_dir: The folder of ORL, with one sub-folder for each person.
      test_dir: A folder of other persons, to test the model of all of the former on.
      folds: The folds to run, some of 0 to 4. They are not used with `test_dir`.
      workdir: The folder that the settings, results.json and the model are written to.
        Without it the folder is runs/orl_wccn, with every flag that differs from its
        default in the name.
    """

    experiment: ClassVar[str] = "orl_wccn"

    data_dir: pathlib.Path | None = None
    test_dir: pathlib.Path | None = None
    folds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4), at_least=0, at_most=4, only_when={"test_dir": None}
    )
    workdir: pathlib.Path | None = None


class Choice(NamedTuple):
    """What is chosen by validation.

    Attributes:
      cells: Rows and columns of the grid that gradients are measured in.
      mirrored: Whether the features of an image are the mean of its own and those of its
        mirror image, so that a face turned to the left is like one turned to the right.
      shrinkage: Weight of the identity beside the covariance.
    """

    cells: tuple[int, int]
    mirrored: bool
    shrinkage: float


CHOICES = [
    Choice(*values)
    for values in itertools.product(
        ((6, 5), (8, 7), (10, 8)), (False, True), (0.1, 0.3, 1.0, 3.0)
    )
]


class Fitted(NamedTuple):
    """A model that is chosen, fitted and calibrated on some persons.

    Attributes:
      model: The model.
      choice: The choice with the lowest validation error.
      errors: The validation error of each choice: the mean equal error rate of persons
        that the map was not fitted to.
    """

    model: Model
    choice: Choice
    errors: dict[Choice, float]


# Features and the map -------------------------------------------------------------------


def measure(images: jax.Array, cells: tuple[int, int], mirrored: bool) -> jax.Array:
    """Features [n, dim] of images in [0, 1]; see `Choice`."""
    features = oriented_gradients(images, cells, NUM_DIRECTIONS)
    if not mirrored:
        return features
    return (features + oriented_gradients(images[:, :, ::-1], cells, NUM_DIRECTIONS)) / 2


def fit_map(
    features: np.ndarray, labels: np.ndarray, shrinkage: float
) -> dict[str, np.ndarray]:
    """The mean of features and the matrix that whitens them within classes.

    Args:
      features: [n, dim].
      labels: [n], the class of each.
      shrinkage: The weight of the identity, in units of the mean variance within a class.
    """
    factor = whitening.within_class_factor(features, labels, shrinkage=shrinkage)
    return {"mean": features.mean(axis=0), "matrix": factor.T}


def apply_map(params: Any, features: Any) -> Any:
    """Embeddings of length 1."""
    return normalize((features - params["mean"][None]) @ params["matrix"])


@cache  # one function for each choice, so that models share compiled programs
def make_embed_fn(choice: Choice) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns `embed_fn(params, images)` of a model."""
    cells, mirrored, _ = choice
    return lambda params, images: apply_map(params, measure(images, cells, mirrored))


# Choice and calibration -----------------------------------------------------------------


def left_out(labels: np.ndarray, num_rounds: int) -> Iterator[np.ndarray]:
    """Deals the persons into five groups, in several rounds; yields who is in a group.

    Args:
      labels: [n], the person in each image.
      num_rounds: Number of times that the persons are dealt.

    Yields:
      Whether each image is of the group, bool [n].

    Raises:
      UserError: If there are fewer than two persons for a group.
    """
    persons = np.unique(labels)
    if len(persons) < 2 * NUM_GROUPS:
        raise UserError(
            f"a choice needs {2 * NUM_GROUPS} persons to train on; there are {len(persons)}"
        )
    for number in range(num_rounds):
        order = evaluation_rng(f"groups of persons {number}").permutation(persons)
        for group in range(NUM_GROUPS):
            yield np.isin(labels, order[group::NUM_GROUPS])


def left_out_pairs(
    features: np.ndarray, labels: np.ndarray, out: np.ndarray, shrinkage: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of the images where `out`, by a map that is fitted to the others.

    Returns:
      The numbers of the two images of each pair [pairs, 2], their distance, and whether
      they show one person.
    """
    params = fit_map(features[~out], labels[~out], shrinkage)
    embeddings = np.asarray(apply_map(params, jnp.asarray(features[out])))
    first, second = np.triu_indices(len(embeddings), 1)
    distances = np.linalg.norm(embeddings[first] - embeddings[second], axis=1)
    images = np.flatnonzero(out)
    pairs = np.stack([images[first], images[second]], axis=1)
    return pairs, distances, labels[pairs[:, 0]] == labels[pairs[:, 1]]


def choose(
    features_of: Callable[[Choice], np.ndarray], labels: np.ndarray
) -> dict[Choice, float]:
    """The validation error of each choice, the best first.

    Args:
      features_of: The features [n, dim] by a choice.
      labels: [n], the person in each image.
    """
    groups, errors = list(left_out(labels, NUM_CHOOSING)), {}
    for choice in CHOICES:
        features = features_of(choice)
        found = [
            equal_error_rate(*left_out_pairs(features, labels, out, choice.shrinkage)[1:])
            for out in groups
        ]
        errors[choice] = float(np.mean(found))
    return dict(sorted(errors.items(), key=lambda item: item[1]))


def calibrate(
    features: np.ndarray, labels: np.ndarray, shrinkage: float
) -> verification.Calibration:
    """Measures what distances mean, on pairs of persons that were left out together.

    Each pair of images counts once, with the first of its distances. As many different as
    same pairs choose the threshold, and all different ones give the false match rates.
    """
    parts = [
        left_out_pairs(features, labels, out, shrinkage)
        for out in left_out(labels, NUM_CALIBRATING)
    ]
    pairs, distances, same = map(np.concatenate, zip(*parts, strict=True))
    _, first = np.unique(pairs, axis=0, return_index=True)
    distances, same = distances[first], same[first]
    different = evaluation_rng("different pairs").permutation(distances[~same])
    num = int(same.sum())
    return verification.calibrate(
        np.concatenate([distances[same], different[:num]]),
        np.arange(num + len(different[:num])) < num,
        pairs="pairs of persons left out of the fit",
        num_classes=len(np.unique(labels)),
        different=different,
    )


def fit(faces: LabelledImages) -> Fitted:
    """Chooses by validation, then fits to all persons and calibrates."""
    images = jnp.asarray(prepare(faces.images, PREPARATION), jnp.float32) / 255
    compiled = jax.jit(measure, static_argnums=(1, 2))

    def features_of(choice: Choice) -> np.ndarray:
        return np.asarray(compiled(images, choice.cells, choice.mirrored))

    errors = choose(features_of, faces.labels)
    choice = next(iter(errors))
    features = features_of(choice)
    params = fit_map(features, faces.labels, choice.shrinkage)
    model = Model(
        {name: jnp.asarray(array, jnp.float32) for name, array in params.items()},
        make_embed_fn(choice),
        PREPARATION,
        calibration=calibrate(features, faces.labels, choice.shrinkage),
        details={"choice": choice._asdict(), "validation_pair_eer": errors[choice]},
    )
    return Fitted(model, choice, errors)


# Tests ----------------------------------------------------------------------------------


def test_model(
    fitted: Fitted, test: LabelledImages
) -> tuple[dict[str, float], dict[float, np.ndarray]]:
    """Figures of persons that the model does not know, and shares of strangers let in.

    Names that end in "_pixels" are of the baseline, the nearest pixels.
    """
    compared = gallery_figures.compare(fitted.model, test)
    pixels = gallery_figures.compare(pixel_model(PREPARATION), test)
    calibration = fitted.model.calibration
    assert calibration is not None
    metrics = {
        "validation_pair_eer": fitted.errors[fitted.choice],
        "pair_eer": gallery_figures.pair_error(compared),
        "pair_eer_pixels": gallery_figures.pair_error(pixels),
        "pair_accuracy": gallery_figures.pair_accuracy(compared, calibration.threshold),
        "one_shot_accuracy": gallery_figures.one_shot_accuracy(compared),
        "one_shot_accuracy_pixels": gallery_figures.one_shot_accuracy(pixels),
    }
    return metrics, {
        rate: gallery_figures.let_in(compared, calibration, rate) for rate in RATES
    }


class Part(NamedTuple):
    """Images of the persons to fit to, and of those to test on."""

    train: LabelledImages
    test: LabelledImages


def load_parts(config: Config) -> dict[str, Part]:
    """The parts of each fold, or of the test on `test_dir`, by name.

    Raises:
      UserError: If no folder is given, one cannot be read as labelled images, a fold is
        named twice, there are too few persons, or persons are in both folders.
    """
    faces = unseen_faces.load_faces(config.data_dir)
    if config.test_dir is not None:
        test = load_folder(config.test_dir)
        if both := sorted({*faces.labels.tolist()} & {*test.labels.tolist()}):
            others = f" and {len(both) - 1} more" if len(both) > 1 else ""
            raise UserError(f"--test-dir: {both[0]}{others} are persons of --data-dir too")
        return {"everyone": Part(faces, test)}
    return {
        f"fold {fold}": Part(
            select_classes(faces, np.concatenate([persons.train, persons.validation])),
            select_classes(faces, persons.test),
        )
        for fold, persons in unseen_faces.split_folds(config.folds, faces.labels).items()
    }


def mean_metrics(
    metrics: Sequence[dict[str, float]], shares: Sequence[dict[float, np.ndarray]]
) -> dict[str, float | None]:
    """Means over the folds, and the shares of strangers let in with their intervals."""
    means: dict[str, float | None] = {
        name: float(np.mean([one[name] for one in metrics])) for name in metrics[0]
    }
    errors = [one["pair_eer"] for one in metrics]
    means["pair_eer_deviation"] = unseen_faces.deviation(errors)
    for rate in RATES:
        name, ends = f"let_in_at_{rate:g}", ("", "_low", "_high")
        figures = gallery_figures.mean_let_in([found[rate] for found in shares])
        means |= {f"{name}{end}": x for end, x in zip(ends, figures, strict=True)}
    return means


def fold_as_json(fitted: Fitted, test: LabelledImages, metrics: dict[str, float]) -> dict:
    """What results.json has of a fold."""
    return {
        "test_persons": np.unique(test.labels).tolist(),
        "choice": fitted.choice._asdict(),
        "metrics": metrics,
        "validation": [
            choice._asdict() | {"pair_eer": error}
            for choice, error in fitted.errors.items()
        ],
    }


def in_words(fitted: Fitted) -> str:
    """The choice and its validation error in one line."""
    (rows, columns), mirrored, shrinkage = fitted.choice
    error = fitted.errors[fitted.choice]
    return (
        f"{rows} x {columns} cells, {'with' if mirrored else 'without'} mirror images, "
        f"shrinkage {shrinkage:g}; validation {error:.4f}"
    )


def prepare_folder(config: Config) -> pathlib.Path:
    """Writes the settings to the folder of the results, and returns it.

    Raises:
      UserError: If it holds results of other settings, or another run that has begun.
    """
    directory, asked = directory_of(config), as_json(config)
    if is_started(directory) or (directory / "results.json").exists():
        path = directory / "config.json"
        check_settings(directory, read_json(path) if path.exists() else {}, asked)
    write_settings(directory, asked)
    return directory


def main(config: Config) -> None:
    """Chooses, fits, tests and writes the results and the model.

    Raises:
      UserError: If the settings or the folders are wrong, or the folder of the results
        holds those of other settings.
    """
    check_config(config)
    began = time.perf_counter()
    parts = load_parts(config)
    directory = prepare_folder(config)
    folds, metrics, shares = [], [], []
    for name, part in parts.items():
        fitted = fit(part.train)
        figures, let_in_at = test_model(fitted, part.test)
        print(f"{name}: {in_words(fitted)}, test {figures['pair_eer']:.4f}")
        folds.append(fold_as_json(fitted, part.test, figures))
        metrics.append(figures)
        shares.append(let_in_at)
    if config.test_dir is None:
        fitted = fit(unseen_faces.load_faces(config.data_dir))
        print(f"everyone: {in_words(fitted)}")
    save_model(directory / "model", fitted.model)
    means = mean_metrics(metrics, shares)
    results = {
        "command": command(config),
        "seed": 0,
        "num_steps": 0,
        "seconds": round(time.perf_counter() - began, 2),
        "metrics": means,
        "folds": folds,
        **made_with(fitted.model),
    }
    text = json.dumps(results, indent=2, allow_nan=False)
    write_whole(directory / "results.json", text + "\n")
    print_table(means)
    print(f"{results['seconds']:.0f} s; results and model in {directory}")


if __name__ == "__main__":
    command_line(main, Config)
