"""Contrastive loss on pairs of ORL faces: a Keras tutorial's convolutional siamese net.

Source:  a public Keras tutorial: two small convolutions, dense 128 and 50, contrastive loss
         of margin 1, RMSprop, batches of 128 pairs, 13 epochs of 15,000 random pairs.
Run:     python -m experiments orl_tutorial --data-dir orl_faces
         python -m experiments orl_tutorial --data-dir orl_faces --protocol unseen-persons
Expect:  pairs: pair_accuracy .990, pair_eer .0004 (pixels .135) after 14 min of training on
         two CPU cores; unseen persons with --stride 3: pair_eer .266, one_shot_accuracy
         .483 (pixels .122 and .862) after 4 min on two busy cores. One seed
Quick:   python -m experiments orl_tutorial --data-dir orl_faces --num-steps 118

ORL (AT&T) has 40 persons with ten PGM images each, in one folder for each person. The
figures above are of 34 of the 40 persons. Every second pixel is taken, as in the tutorial.

--protocol pairs           the tutorial's: 10,000 same and 10,000 different pairs at random,
                           three quarters to train on and a quarter to test on. The same
                           persons and images are in both. What the tutorial prints as
                           accuracy, labels[d < .5].mean(), is the precision
--protocol unseen-persons  five folds: each trains on new pairs of most persons and tests on
                           others. Three further persons choose the threshold
--stride 3                 what the tutorial's code does, as the third positional argument
                           of its convolutions is the stride; 1 is what was meant

With unseen persons every fold is a run of its own in RUN/fold0 ... RUN/fold4, with its
model and with the names of its persons in persons.json. The figures in RUN are means over
the folds. The system orl_hog does much better on the same folds.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments import report
from experiments.cli import command_line
from experiments.datasets import evaluation_key, evaluation_rng
from experiments.engine import loop, optimizers, pair_batches
from experiments.engine.config import setting
from experiments.engine.pair_batches import PairConfig, PairData
from experiments.engine.precision import settled
from experiments.engine.system import System
from experiments.evaluations import pair_metrics, unseen_faces
from experiments.evaluations.pair_metrics import (
    PairDistances,
    equal_error_rate,
    pair_distances,
)
from experiments.evaluations.unseen_faces import PREPARATION, FaceConfig
from siamese_jax.encoders import OrlConv
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, prepare
from siamese_jax.model import Model, pixel_model
from siamese_jax.samplers import Pairs
from siamese_jax.siamese import from_flax
from siamese_jax.training import TrainState


@dataclasses.dataclass(frozen=True)
class Config(PairConfig, FaceConfig):
    """The tutorial's settings.

    Attributes:
      protocol: The tutorial's pairs, or folds over persons.
      folds: The folds to run, some of 0 to 4.
      stride: The stride of both convolutions.
      dropout: Dropout rates after each convolution and after the first dense layer.
      margin: Different pairs are pushed apart up to this distance.
      learning_rate: Learning rate of RMSprop.
    """

    experiment: ClassVar[str] = "orl_tutorial"

    num_steps: int = setting(1_534, at_least=1)  # 13 epochs of 15,000 pairs
    steps_per_call: int = setting(59, at_least=1)
    checkpoint_every: int = setting(767, at_least=1)

    protocol: Literal["pairs", "unseen-persons"] = "pairs"
    folds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4),
        at_least=0,
        at_most=4,
        only_when={"protocol": "unseen-persons"},
    )
    stride: Literal[1, 3] = 1
    dropout: tuple[float, float, float] = setting((0.25, 0.25, 0.1), at_least=0, below=1)
    margin: float = setting(1.0, above=0)
    learning_rate: float = setting(1e-3, above=0)


NUM_PAIRS = 20_000
NUM_TRAIN_PAIRS = 15_000
TUTORIAL_THRESHOLD = 0.5


def build(config: Config) -> System:
    """The tutorial's system, as pure functions."""
    encoder = OrlConv(config.stride, config.dropout, axis_name=config.axis_name)
    encoder_init, encode = from_flax(encoder)

    def model(state: TrainState) -> Model:
        return Model(state.params["encoder"], encode, PREPARATION)

    fixed = config.protocol == "pairs"
    sampler = pair_batches.epoch_sampler if fixed else pair_batches.fresh_sampler
    return System(
        init=pair_batches.make_init(encoder_init, PREPARATION.image_shape),
        sample=sampler(config),
        loss=pair_batches.contrastive_loss(encode, config, margin=config.margin),
        optimizer=optimizers.rmsprop(config.learning_rate),
        model=model,
    )


def draw_pairs(labels: np.ndarray) -> tuple[Pairs, Pairs]:
    """Draws the training and the test pairs of the tutorial, the same for every seed."""
    pairs = pair_batches.random_pairs(evaluation_key("pairs of faces"), labels, NUM_PAIRS)
    order = evaluation_rng("pairs of faces").permutation(NUM_PAIRS)
    train, test = (
        Pairs(pairs.examples[:, numbers], pairs.same[numbers])
        for numbers in np.split(order, [NUM_TRAIN_PAIRS])
    )
    return train, test


class FacePairEvaluation(NamedTuple):
    """The evaluation of a model on the pairs of the tutorial.

    Attributes:
      metrics: Figures by name.
      model: The model with its calibration.
      pairs: The test pairs.
      distances: The distances of the test pairs.
    """

    metrics: dict[str, float]
    model: Model
    pairs: Pairs
    distances: PairDistances


def load(config: Config) -> LabelledImages:
    """The faces as they are in their files."""
    return unseen_faces.load_faces(config.data_dir)


def training_data(config: Config, faces: LabelledImages) -> PairData:
    """The images and the training pairs of the tutorial's protocol.

    Raises:
      UserError: If the protocol is another one, which trains a model for each fold.
    """
    if config.protocol != "pairs":
        raise UserError(f"--protocol {config.protocol} trains a model for each fold")
    images = jnp.asarray(prepare(faces.images, PREPARATION))
    return PairData(images, draw_pairs(faces.labels)[0])


def evaluate(config: Config, faces: LabelledImages, model: Model) -> FacePairEvaluation:
    """Evaluates a model on the test pairs, and calibrates it on the training pairs."""
    train_pairs, test_pairs = draw_pairs(faces.labels)
    pixels = pixel_model(PREPARATION)
    embeddings = model.embed(faces.images)
    train = pair_distances(model, embeddings, train_pairs)
    test = pair_distances(model, embeddings, test_pairs)
    of_pixels = pair_distances(pixels, pixels.embed(faces.images), test_pairs)
    metrics = {
        **pair_metrics.pair_metrics(test, TUTORIAL_THRESHOLD),
        **pair_metrics.chosen_threshold_metrics(train, test),
        "pair_eer_pixels": float(equal_error_rate(*of_pixels)),
    }
    model = pair_metrics.calibrate(model, train, "training pairs", embeddings, faces.labels)
    return FacePairEvaluation(metrics, model, test_pairs, test)


def run_pairs(config: Config, faces: LabelledImages) -> None:
    """Trains, evaluates and reports by the tutorial's protocol."""
    system, data = build(config), training_data(config, faces)
    trained = loop.train(config, system, data)
    evaluated = evaluate(config, faces, system.model(trained.state))
    loop.finish(config, evaluated.metrics, trained, evaluated.model)
    sections = report.pair_sections(
        np.asarray(data.images),
        evaluated.pairs,
        np.asarray(evaluated.distances.distances),
        TUTORIAL_THRESHOLD,
        cmap="gray",
    )
    sections.append(report.training_section(config.directory))
    report.write_report(config.directory, "Pairs of faces", evaluated.metrics, sections)


def main(config: Config) -> None:
    """Trains, evaluates and reports by one of the two protocols."""
    config = settled(config)
    faces = load(config)
    by_pairs = config.protocol == "pairs"
    folds = {} if by_pairs else unseen_faces.split_folds(config.folds, faces.labels)
    if not loop.start(config):
        return
    if by_pairs:
        run_pairs(config, faces)
    else:
        unseen_faces.run_folds(config, build(config), faces, folds)


if __name__ == "__main__":
    command_line(main, Config)
