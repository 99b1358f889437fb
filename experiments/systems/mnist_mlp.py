"""Contrastive loss on MNIST pairs: the Keras siamese multilayer perceptron.

Source:  the Keras example "mnist_siamese" (2015): three dense layers of 128, dropout,
         contrastive loss with margin 1, RMSprop, batches of 128 pairs, 20 epochs.
Run:     python -m experiments mnist_mlp --dropout 0.1
         python -m experiments mnist_mlp --dropout 0.1 --recipe tuned
Expect:  pair_accuracy .9716 +- .0010 over three seeds (Keras reports .972); .911 +- .010
         with dropout .5, tuned .9848 +- .0007; about a minute of training on two CPU cores
Quick:   python -m experiments mnist_mlp --dataset digits --num-steps 900
             --workdir runs/quick_mnist_mlp

The experiment needs MNIST (`python -m experiments tfds mnist`). With `--dataset digits` it
uses scikit-learn's small digits instead.

The tutorial makes its pairs once and shuffles them in each epoch. `--pairs fresh` draws new
pairs of the same images at each step. The tutorial's accuracy is that of the rule "same if
the distance is below .5". Later versions of the tutorial have dropout .1 instead of .5.

`--recipe tuned` keeps the encoder and the number of images in a batch. The 256 images of
128 pairs become 25 images of each digit, all compared with all by the supervised
contrastive loss, and the learning rate of AdamW falls to zero.

The tutorial's training pairs leave some training images out. The threshold of the tuned
recipe, and the probabilities of both, are calibrated on pairs of these.
"""

import dataclasses
from typing import ClassVar, Literal

from experiments.cli import command_line
from experiments.datasets import digits
from experiments.datasets.digits import DigitSplits
from experiments.engine import optimizers, pair_batches, supcon
from experiments.engine.config import setting
from experiments.engine.data import ClassData
from experiments.engine.pair_batches import PairData
from experiments.engine.precision import settled
from experiments.engine.system import System
from experiments.evaluations import digit_pairs
from experiments.evaluations.digit_pairs import DigitConfig, DigitEvaluation
from siamese_jax.encoders import MnistMlp
from siamese_jax.images import Preparation
from siamese_jax.model import Model
from siamese_jax.siamese import from_flax
from siamese_jax.training import TrainState


@dataclasses.dataclass(frozen=True)
class Config(DigitConfig):
    """The tutorial's settings.

    Attributes:
      recipe: The tutorial's training, or the tuned one.
      pairs: The tutorial's fixed pairs, or new pairs at each step.
      dropout: Dropout rate after each of the first two layers.
      margin: Different pairs are pushed apart up to this distance.
      learning_rate: Learning rate; of the tuned recipe its peak.
    """

    experiment: ClassVar[str] = "mnist_mlp"

    num_steps: int = setting(16_940, at_least=1)  # 20 epochs of 108,400 pairs
    steps_per_call: int = setting(847, at_least=1)  # one epoch
    checkpoint_every: int = setting(3_388, at_least=1)

    recipe: Literal["tutorial", "tuned"] = "tutorial"
    pairs: Literal["fixed", "fresh"] = setting("fixed", only_when={"recipe": "tutorial"})
    dropout: float = setting(0.5, at_least=0, below=1)
    margin: float = setting(1.0, above=0, only_when={"recipe": "tutorial"})
    learning_rate: float = setting(1e-3, above=0)

    @property
    def can_be_lengthened(self) -> bool:
        """Only with the tutorial's recipe; the tuned learning rate falls to zero."""
        return self.recipe == "tutorial"


TUTORIAL_THRESHOLD = 0.5


def build(config: Config) -> System:
    """The tutorial's system, or the tuned one, as pure functions."""
    if config.recipe == "tuned":
        return build_tuned(config)
    encoder_init, encode = from_flax(make_encoder(config))

    def model(state: TrainState) -> Model:
        return Model(state.params["encoder"], encode, preparation(config))

    fixed = config.pairs == "fixed"
    sampler = pair_batches.epoch_sampler if fixed else pair_batches.fresh_sampler
    return System(
        init=pair_batches.make_init(encoder_init, preparation(config).image_shape),
        sample=sampler(config),
        loss=pair_batches.contrastive_loss(encode, config, margin=config.margin),
        optimizer=optimizers.rmsprop(config.learning_rate),
        model=model,
    )


def build_tuned(config: Config) -> System:
    """The same encoder, trained by comparing all images of a batch."""
    return supcon.make_system(
        make_encoder(config),
        preparation(config),
        sample=digit_pairs.class_sampler(config),
        optimizer=optimizers.one_cycle_adamw(
            config.learning_rate, config.num_steps, weight_decay=1e-4
        ),
        compute_dtype=config.compute_dtype,
        axis_name=config.axis_name,
    )


def make_encoder(config: Config) -> MnistMlp:
    """The tutorial's network."""
    return MnistMlp(dropout=config.dropout, axis_name=config.axis_name)


def preparation(config: Config) -> Preparation:
    """Light digits on a dark ground, as they are in the data set."""
    return Preparation(digits.image_shape(config.dataset)[:2])


def load(config: Config) -> DigitSplits:
    """The images to train on, to choose thresholds on, and to test on."""
    return digits.load_splits(config.dataset)


def training_data(config: Config, splits: DigitSplits) -> PairData | ClassData:
    """The tutorial's fixed pairs, or the images of each class."""
    fixed = config.recipe == "tutorial" and config.pairs == "fixed"
    return digit_pairs.training_data(config, splits, fixed_pairs=fixed)


def evaluate(config: Config, splits: DigitSplits, model: Model) -> DigitEvaluation:
    """Evaluates a model, by the tutorial's recipe at the tutorial's threshold."""
    threshold = TUTORIAL_THRESHOLD if config.recipe == "tutorial" else None
    return digit_pairs.evaluate(config, splits, model, threshold=threshold)


def main(config: Config) -> None:
    """Trains, evaluates and reports."""
    config = settled(config)
    digit_pairs.run(
        config,
        build(config),
        data_fn=training_data,
        evaluate_fn=evaluate,
        title=f"Pairs of digits: {config.dataset}",
    )


if __name__ == "__main__":
    command_line(main, Config)
