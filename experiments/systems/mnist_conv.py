"""A convolutional siamese net on MNIST pairs, as a public tutorial trains it and corrected.

Source:  a Keras tutorial on one-shot learning: one convolution of 32 features, dense 128,
         Euclidean distance, Adam, batches of 128 pairs, 10 epochs.
Run:     python -m experiments mnist_conv
         python -m experiments mnist_conv --form literal
Expect:  pair_accuracy .988 (one seed) after 41 minutes of training on two busy CPU cores;
         the literal form stays at chance, .49 after one epoch (--num-steps 847)
Quick:   python -m experiments mnist_conv --dataset digits --num-steps 300
             --workdir runs/quick_mnist_conv

The tutorial trains with binary cross-entropy on the raw distance, with target 1 for same
pairs. It therefore reads the distance as the probability of "same". This has three faults:
same pairs should have small distances, a distance is not a probability, and where it is
above 1 the clipped cross-entropy has no gradient. `--form literal` does the same. The
corrected forms are:

contrastive  Hadsell's contrastive loss: same pairs are pulled together, others are pushed
             apart up to the margin
logistic     the log-odds of "same" are scale * (threshold - distance), with learnt scale
             and threshold
supervised   the 256 images of 128 pairs become 25 images of each digit, all compared with
             all by the supervised contrastive loss

The corrected forms draw new, slightly distorted images at each step, and the learning rate
of Adam falls to zero. Their `pair_accuracy` is measured at the threshold that is best on
validation pairs. That of the literal form uses the tutorial's rule "same if the distance is
above .5".
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from experiments.cli import command_line
from experiments.datasets import digits
from experiments.datasets.digits import DigitSplits
from experiments.engine import optimizers, pair_batches, supcon
from experiments.engine.config import setting
from experiments.engine.data import ClassData
from experiments.engine.pair_batches import PairBatch, PairData
from experiments.engine.precision import settled
from experiments.engine.system import System
from experiments.evaluations import digit_pairs
from experiments.evaluations.digit_pairs import DigitConfig, DigitEvaluation
from siamese_jax import augment, distances, losses, reductions
from siamese_jax.encoders import MnistConv
from siamese_jax.images import Preparation
from siamese_jax.model import Model
from siamese_jax.siamese import from_flax, threshold_logits
from siamese_jax.training import TrainState

CORRECTED = ("supervised", "contrastive", "logistic")


@dataclasses.dataclass(frozen=True)
class Config(DigitConfig):
    """The tutorial's settings.

    Attributes:
      form: The loss: the tutorial's literal one, or a corrected one.
      distort: Whether training images are distorted.
      margin: Different pairs are pushed apart up to this distance.
      learning_rate: Learning rate of Adam.
    """

    experiment: ClassVar[str] = "mnist_conv"

    num_steps: int = setting(8_470, at_least=1)  # 10 epochs of 108,400 pairs
    steps_per_call: int = setting(77, at_least=1)
    checkpoint_every: int = setting(847, at_least=1)  # an epoch

    form: Literal["supervised", "contrastive", "logistic", "literal"] = "supervised"
    distort: bool = setting(True, only_when={"form": CORRECTED})
    margin: float = setting(1.0, above=0, only_when={"form": "contrastive"})
    learning_rate: float = setting(1e-3, above=0)

    @property
    def can_be_lengthened(self) -> bool:
        """Only in the literal form; in the others the learning rate falls to zero."""
        return self.form == "literal"


DISTORTION = augment.Affine(
    max_rotation=10.0, max_shear=0.1, scale_range=(0.9, 1.1), max_shift=2.0
)
LITERAL_THRESHOLD = -0.5  # of minus the distance


def build(config: Config) -> System:
    """The system of the form that is asked for, as pure functions."""
    encoder, optimizer = MnistConv(), make_optimizer(config)
    preparation = Preparation(digits.image_shape(config.dataset)[:2])
    if config.form == "supervised":
        classes = digit_pairs.class_sampler(config)
        return supcon.make_system(
            encoder,
            preparation,
            sample=distorted(classes) if config.distort else classes,
            optimizer=optimizer,
            compute_dtype=config.compute_dtype,
            axis_name=config.axis_name,
        )
    encoder_init, encode = from_flax(encoder)
    literal, logistic = config.form == "literal", config.form == "logistic"
    head = {"threshold": jnp.ones(()), "log_scale": jnp.zeros(())} if logistic else {}
    sampler = pair_batches.epoch_sampler if literal else pair_batches.fresh_sampler
    sample = sampler(config)

    def model(state: TrainState) -> Model:
        fitted = Model(state.params["encoder"], encode, preparation)
        if not literal:
            return fitted
        return dataclasses.replace(fitted, matrix_fn=minus_distance_matrix)

    return System(
        init=pair_batches.make_init(encoder_init, preparation.image_shape, **head),
        sample=sample if literal or not config.distort else distorted(sample),
        loss=make_pair_loss(config, encode),
        optimizer=optimizer,
        model=model,
    )


def minus_distance_matrix(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The distance of the literal form, in which far means alike."""
    return -distances.euclidean_distance_matrix(x, y)


def distorted(sample: Any) -> Any:
    """Returns a sampler whose images are slightly distorted, each in its own way."""
    affine = partial(augment.random_affine, distortion=DISTORTION)

    def sample_distorted(key: jax.Array, step: jax.Array, data: Any) -> Any:
        sample_key, distortion_key = jax.random.split(key)
        batch = sample(sample_key, step, data)
        images = batch.images.reshape(-1, *batch.images.shape[-3:])
        images = jax.vmap(affine)(jax.random.split(distortion_key, len(images)), images)
        return batch._replace(images=images.reshape(batch.images.shape))

    return sample_distorted


def make_pair_loss(config: Config, encode: Any) -> Any:
    """Returns the loss of the literal, contrastive or logistic form."""
    if config.form == "contrastive":
        return pair_batches.contrastive_loss(encode, config, margin=config.margin)
    embed_pairs = pair_batches.embed_pairs(encode, config)
    mean = pair_batches.batch_mean(config)

    def loss(params: Any, statistics: Any, batch: PairBatch, key: jax.Array) -> Any:
        embeddings = embed_pairs(params["encoder"], batch.images, key)
        distance = distances.euclidean_distance(*embeddings)
        if config.form == "literal":
            values = cross_entropy_of_distance(distance, batch.same)
            terms = reductions.make_terms(values, where=batch.where)
        else:
            scale = jnp.exp(params["log_scale"])
            logits = threshold_logits(distance, threshold=params["threshold"], scale=scale)
            terms = losses.logistic_loss(
                logits, batch.same, where=batch.where, reduce_fn=None
            )
        metrics = pair_batches.embedded(config, embeddings, batch, terms)
        return mean(terms), (statistics, metrics)

    return loss


def cross_entropy_of_distance(distance: jax.Array, same: jax.Array) -> jax.Array:
    """The tutorial's loss: the distance, clipped as Keras does, is taken for P(same)."""
    probability = jnp.clip(distance, 1e-7, 1 - 1e-7)
    return -jnp.where(same, jnp.log(probability), jnp.log1p(-probability))


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Keras's Adam; in the corrected forms its learning rate falls to zero."""
    if config.form == "literal":
        return optimizers.adam(config.learning_rate)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    return optimizers.adam(schedule, eps=1e-8)


def load(config: Config) -> DigitSplits:
    """The images to train on, to choose thresholds on, and to test on."""
    return digits.load_splits(config.dataset)


def training_data(config: Config, splits: DigitSplits) -> PairData | ClassData:
    """The tutorial's fixed pairs for the literal form, else the images of each class."""
    return digit_pairs.training_data(config, splits, fixed_pairs=config.form == "literal")


def evaluate(config: Config, splits: DigitSplits, model: Model) -> DigitEvaluation:
    """Evaluates a model, that of the literal form at the tutorial's threshold."""
    threshold = LITERAL_THRESHOLD if config.form == "literal" else None
    return digit_pairs.evaluate(config, splits, model, threshold=threshold)


def main(config: Config) -> None:
    """Trains, evaluates and reports."""
    config = settled(config)
    digit_pairs.run(
        config,
        build(config),
        data_fn=training_data,
        evaluate_fn=evaluate,
        title=f"Pairs of digits, convolutional: {config.form}",
    )


if __name__ == "__main__":
    command_line(main, Config)
