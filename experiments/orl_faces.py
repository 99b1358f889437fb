"""ORL faces: a tutorial's convolutional siamese net, its protocol, and an honest one.

Source:  a public Keras tutorial: two small convolutions, dense 128 and 50, contrastive loss
         of margin 1, RMSprop, batch 128, 13 epochs of 15,000 random pairs.
Run:     python -m experiments.orl_faces --data-dir orl_faces
         python -m experiments.orl_faces --data-dir orl_faces --protocol unseen-persons
         (the same with --net ours)
Expect:  the tutorial's pairs: accuracy .990, EER .0004 (pixels .135). Unseen persons: EER
         and one-shot identification .266 and .483 for the tutorial's net (--stride 3), .064
         and .946 for ours, .122 and .862 for pixels. One seed; two to four minutes of
         training on two CPU cores, more for the tutorial's net at stride 1
Quick:   python -m experiments.orl_faces --data-dir orl_faces --num-steps 118

ORL (AT&T) is 40 persons with ten PGM images each, one folder a person; every second pixel
is taken, as the tutorial does. The figures above are of 34 of the 40 persons.

--protocol pairs           the tutorial's: 10,000 genuine and 10,000 impostor pairs, three
                           quarters to train and a quarter to test, at random: the same
                           persons and images are in both. What the tutorial prints as
                           accuracy, labels[d < .5].mean(), is the precision
--protocol unseen-persons  five folds over persons: trained on most, tested on others; the
                           threshold comes from three persons kept apart in each fold
--stride 3                 what the tutorial's code does (the third positional argument of
                           its convolutions is the stride); 1 is what was meant
--net ours                 a linear map of oriented gradients, learnt by the recipe of
                           `experiments.recipe`; --features learnt takes a ConvNet

Each fold leaves a model: RUN/fold0 ... RUN/fold4, whose persons.json names its persons.
"""

import dataclasses
import json
import pathlib
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import model, optimizers, pairs, recipe, report, run
from experiments.data import Dataset, load_folder, resize
from experiments.model import Model
from siamese_jax import distances, losses, samplers, training
from siamese_jax import verification as verify
from siamese_jax.encoders import OrlConv


@dataclasses.dataclass(frozen=True)
class Config(recipe.RecipeConfig, pairs.PairConfig):
    """The tutorial's settings, and those of the recipe."""

    experiment: ClassVar[str] = "orl_faces"

    num_steps: int = 1_534  # 13 epochs of 15,000 pairs
    steps_per_call: int = 59
    checkpoint_every: int = 767

    features: Literal["learnt", "gradients"] = "gradients"
    num_images: int = 6
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    max_rotation: float = 8.0
    max_shear: float = 0.08
    max_scale: float = 0.1
    max_shift: float = 0.035

    data_dir: pathlib.Path | None = None  # one sub-folder a person
    protocol: Literal["pairs", "unseen-persons"] = "pairs"
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    net: Literal["tutorial", "ours"] = "tutorial"
    stride: Literal[1, 3] = 1
    dropout: tuple[float, float, float] = (0.25, 0.25, 0.1)
    margin: float = 1.0


IMAGE_SHAPE = (56, 46, 1)
NUM_FOLDS = 5
NUM_VALIDATION_PERSONS = 3
NUM_PAIRS = 20_000
TUTORIAL_THRESHOLD = 0.5
SPLIT_SEED = 0  # folds, test pairs and galleries are the same for every seed


# Training -------------------------------------------------------------------------------


def make_encoder(config: Config) -> OrlConv:
    """The tutorial's network."""
    return OrlConv(stride=config.stride, dropout=config.dropout)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Keras's RMSprop, at its own rate."""
    return optimizers.rmsprop(1e-3)


def initial_state(config: Config) -> training.TrainState:
    """Random parameters from the seed."""
    if config.net == "ours":
        return recipe.initial_state(config, IMAGE_SHAPE)
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # no step has it
    params = jax.jit(make_encoder(config).init)(key, jnp.zeros((1, *IMAGE_SHAPE)))["params"]
    return training.init_state(params, make_optimizer(config))


def loss_fn(
    config: Config, params: Any, statistics: Any, batch: pairs.Batch, key: jax.Array
) -> Any:
    """Contrastive loss without the factor 1/2, as the tutorial has it."""

    def embed(params: Any, images: jax.Array, key: jax.Array) -> Any:
        rngs = {"dropout": key}
        return make_encoder(config).apply({"params": params}, images, train=True, rngs=rngs)

    a, b = pairs.embed_both(config, embed)(params, batch.images, key)
    loss = losses.contrastive_loss(
        distances.euclidean_distance(a, b),
        batch.same,
        margin=config.margin,
        factor=1.0,
        where=batch.where,
    )
    return loss, (statistics, {})


def train(config: Config, seen: Dataset, fixed: pairs.Pairs | None = None) -> run.Trained:
    """The tutorial's net on given pairs, or on fresh ones; or the recipe."""
    if config.net == "ours":
        recipe.check_batch(seen.labels, config.num_classes, config.num_images)
        data: Any = recipe.make_data(seen)
        steps_fn: Any = partial(recipe.train_steps, config)
        images_per_step = config.num_classes * config.num_images
    else:
        images = jnp.asarray(seen.images)
        classes = samplers.class_index(seen.labels)
        data = pairs.Data(images, jax.tree.map(jnp.asarray, fixed), classes)
        optimizer = make_optimizer(config)
        steps_fn = partial(pairs.train_steps, config, partial(loss_fn, config), optimizer)
        images_per_step = 2 * config.batch_size
    state = initial_state(config)
    return run.train(config, state, data, steps_fn, images_per_step=images_per_step)


# Data -----------------------------------------------------------------------------------


def every_second_pixel(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Images of any one size, brought to that of ORL, and halved as the tutorial does."""
    height, width, channels = shape
    return resize(images, (2 * height, 2 * width, channels))[:, ::2, ::2]


def load(config: Config) -> Dataset:
    """The faces, halved; labels are the names of the folders."""
    if config.data_dir is None:
        raise run.UserError("--data-dir: the folder of ORL, one sub-folder a person")
    faces = load_folder(config.data_dir)
    return Dataset(every_second_pixel(faces.images, IMAGE_SHAPE), faces.labels)


class Fold(NamedTuple):
    """Names of the persons to train on, to calibrate on, and to test on."""

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_persons(labels: np.ndarray, fold: int) -> Fold:
    """Every fifth person of a random order is tested; three others are kept apart."""
    order = np.random.default_rng(SPLIT_SEED).permutation(np.unique(labels))
    if len(order) < 2 * NUM_FOLDS + NUM_VALIDATION_PERSONS:
        raise run.UserError(f"five folds need 13 persons; there are {len(order)}")
    test = order[fold::NUM_FOLDS]
    rest = np.random.default_rng(fold).permutation(np.setdiff1d(order, test))
    validation, training = np.split(rest, [NUM_VALIDATION_PERSONS])
    return Fold(np.sort(training), np.sort(validation), np.sort(test))


# Use and evaluation ---------------------------------------------------------------------


def load_model(config: Config) -> Model:
    """The trained net of a fold, or of the tutorial's protocol."""
    if config.protocol == "unseen-persons" and len(config.folds) > 1:
        raise run.UserError(
            f"{config.directory} holds a model a fold: give {config.directory / 'fold0'}"
        )
    if config.net == "ours":
        fitted = recipe.load_model(config, IMAGE_SHAPE)
    else:
        params = run.load_state(config, initial_state(config)).params

        def embed_fn(params: Any, images: jax.Array) -> Any:
            return make_encoder(config).apply({"params": params}, images)

        fitted = Model(params, embed_fn, IMAGE_SHAPE)
    return fitted._replace(prepare_fn=every_second_pixel)


# The protocols --------------------------------------------------------------------------


def run_pairs(config: Config, faces: Dataset) -> None:
    """The tutorial's protocol."""
    drawn = pairs.random_pairs(jax.random.key(SPLIT_SEED), faces.labels, NUM_PAIRS)
    order = np.random.default_rng(SPLIT_SEED).permutation(NUM_PAIRS)
    seen, unseen = (
        pairs.Pairs(drawn.examples[:, rows], drawn.same[rows])
        for rows in np.split(order, [NUM_PAIRS * 3 // 4])
    )
    trained = train(config, faces, seen)
    learnt = model.load_model(config.directory)
    test = model.judge(learnt, model.embed(learnt, faces.images), unseen)
    training_judged = model.judge(learnt, model.embed(learnt, faces.images), seen)
    pixels = model.pixel_model(IMAGE_SHAPE)
    pixel_test = model.judge(pixels, model.embed(pixels, faces.images), unseen)
    calibration = model.calibrate(training_judged, "training pairs")
    model.save_calibration(config, calibration)
    metrics = (
        pairs.pair_metrics(test, TUTORIAL_THRESHOLD)
        | pairs.chosen_threshold_metrics(training_judged, test)
        | {"pixels_pair_eer": float(verify.equal_error_rate(*pixel_test))}
    )
    run.finish(config, metrics, trained)  # first: a report can be made again
    pictures = [
        *pairs.sections(faces.images, unseen, test, TUTORIAL_THRESHOLD, "gray"),
        report.Section("Training", "", report.curves(config.directory)),
    ]
    report.write_report(config, "Pairs of faces, as the tutorial", metrics, pictures)


def run_fold(config: Config, faces: Dataset) -> tuple[run.Trained, dict[str, float], Any]:
    """Trains on some persons, judges others; beside it nearest pixels."""
    (fold,) = config.folds
    run.start(config)
    persons = split_persons(faces.labels, fold)
    names = {field: names.tolist() for field, names in persons._asdict().items()}
    run.write_whole(config.directory / "persons.json", json.dumps(names, indent=2) + "\n")
    seen, kept, unseen = (faces.only(np.isin(faces.labels, part)) for part in persons)
    trained = train(config, seen)
    learnt = model.load_model(config.directory)
    calibration = recipe.calibrate(learnt, kept, "pairs of the validation persons")
    model.save_calibration(config, calibration)
    metrics, judged = recipe.judge_unseen(learnt, unseen, calibration.threshold)
    kept_metrics, _ = recipe.judge_unseen(learnt, kept, calibration.threshold)
    metrics |= {f"validation_{name}": x for name, x in kept_metrics.items()}
    pixels = model.pixel_model(IMAGE_SHAPE)
    at = recipe.calibrate(pixels, kept, "").threshold
    pixel_metrics, pixels_judged = recipe.judge_unseen(pixels, unseen, at)
    metrics |= {f"pixels_{name}": x for name, x in pixel_metrics.items()}
    run.finish(config, metrics, trained)
    curves = {"net": verify.roc_curve(*judged), "pixels": verify.roc_curve(*pixels_judged)}
    pictures = [
        *pairs.sections(
            unseen.images,
            recipe.all_pairs(unseen.labels),
            judged,
            calibration.threshold,
            "gray",
        )[:2],
        report.Section(
            "ROC", "The falling line marks equal error rates.", report.roc(curves)
        ),
        report.Section("Training", "", report.curves(config.directory)),
    ]
    report.write_report(config, f"Unseen faces, fold {fold}", metrics, pictures)
    return trained, metrics, curves["net"]


def run_folds(config: Config, faces: Dataset) -> None:
    """All folds, each in its own folder; figures are means over folds."""
    results = []
    for fold in config.folds:
        print(f"fold {fold}")
        directory = config.directory / f"fold{fold}"
        results.append(
            run_fold(dataclasses.replace(config, folds=(fold,), workdir=directory), faces)
        )
    trained, metrics, curves = zip(*results, strict=True)
    by_name = {name: [figures[name] for figures in metrics] for name in metrics[0]}
    means = {name: float(np.mean(values)) for name, values in by_name.items()}
    spread = {
        f"{name}_deviation": float(np.std(by_name[name]))
        for name in ("pair_eer", "one_shot_accuracy")
    }
    seconds = sum(fold.seconds for fold in trained)
    total = trained[-1]._replace(seconds=seconds)
    run.finish(config, means | spread, total)
    named = {
        f"fold {fold}": curve for fold, curve in zip(config.folds, curves, strict=True)
    }
    note = "Persons never seen in training; each fold has its own page beside this one."
    pictures = [report.Section("ROC of each fold", note, report.roc(named))]
    report.write_report(config, "Unseen faces", means | spread, pictures)


def check(config: Config) -> None:
    """Refuses settings that make no sense."""
    if not all(0 <= rate < 1 for rate in config.dropout):
        raise run.UserError(f"dropout rates must be in [0, 1); got {config.dropout}")
    if config.margin <= 0:
        raise run.UserError(f"margin must be positive; got {config.margin}")
    if config.protocol == "pairs" and config.net == "ours":
        raise run.UserError("--net ours is for --protocol unseen-persons")
    if not config.folds or not set(config.folds) <= set(range(NUM_FOLDS)):
        raise run.UserError(f"folds must be some of 0 1 2 3 4; got {config.folds}")


def main(config: Config) -> None:
    """One of the two protocols."""
    check(config)
    faces = load(config)
    if config.net == "ours" and config.compute_dtype != "float32":
        raise run.UserError("compute_dtype is for the tutorial's net; ours takes float32")
    if not run.start(config):
        return
    if config.protocol == "pairs":
        run_pairs(config, faces)
    else:
        run_folds(config, faces)


if __name__ == "__main__":
    run.command_line(main, Config)
