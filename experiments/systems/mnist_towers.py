"""Three ways to compare two digits, side by side: only a distance can compare them.

Source:  a public Keras tutorial on siamese networks: one dense layer of 128, binary
         cross-entropy, Adam, batches of 16 pairs, 10 epochs of 120,000 pairs.
Run:     python -m experiments mnist_towers
         python -m experiments mnist_towers --dataset omniglot --num-steps 24100
Expect:  test accuracy of a .506, b .502, c .906 (one seed); nine minutes of training
         for all three on two busy CPU cores
Quick:   python -m experiments mnist_towers --dataset digits --num-steps 750

a  two towers with their own weights, concatenated, and a dense layer to "same":
   201,217 parameters; the tutorial reports a training accuracy of 52.4 %
b  one tower for both images, concatenated, and a dense layer: 100,737 parameters; the
   tutorial reports 50 to 51 %
c  one tower for both images, their Euclidean distance, and a dense layer on it: 100,482
   parameters; the tutorial reports 87.4 %

A linear layer on two concatenated embeddings adds up what each image says alone. It cannot
tell whether they agree.

`--dataset omniglot` trains on the characters of the 30 background alphabets at 28 x 28
pixels, and tests on ten other alphabets. The thresholds and probabilities of the model are
calibrated on the validation alphabets. Of digits every training image is in two training
pairs, so there the calibration uses new pairs of training images.

The model of the run is that of variant c, the only one with a distance.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from experiments.cli import command_line
from experiments.datasets import digits, evaluation_key, omniglot
from experiments.engine import loop, optimizers, pair_batches
from experiments.engine.config import setting, stream
from experiments.engine.data import gather
from experiments.engine.loop import Trained
from experiments.engine.pair_batches import PairBatch, PairConfig, PairData
from experiments.engine.precision import settled
from experiments.engine.system import System
from experiments.evaluations import pair_metrics
from experiments.evaluations.pair_metrics import PairDistances, decision_rates, roc_curve
from siamese_jax import losses, reductions, samplers, verification
from siamese_jax.batching import map_batches, use_devices_of
from siamese_jax.encoders import ConcatenationHead, DistanceHead, MnistTower
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, Preparation, prepare
from siamese_jax.model import Model
from siamese_jax.siamese import from_flax, twin, two_towers
from siamese_jax.training import TrainState, with_compute_dtype

Variant = Literal["a", "b", "c"]


@dataclasses.dataclass(frozen=True)
class Config(PairConfig):
    """The tutorial's settings.

    Attributes:
      dataset: MNIST, scikit-learn's digits, or Omniglot's characters.
      variants: The variants to train, one after the other.
      batch_size: Number of pairs in a batch.
      learning_rate: Learning rate of Adam.
    """

    experiment: ClassVar[str] = "mnist_towers"

    num_steps: int = setting(75_000, at_least=1)  # 10 epochs of 120,000 pairs
    steps_per_call: int = setting(750, at_least=1)
    checkpoint_every: int = setting(7_500, at_least=1)  # an epoch

    dataset: Literal["mnist", "digits", "omniglot"] = "mnist"
    variants: tuple[Variant, ...] = ("a", "b", "c")
    batch_size: int = setting(16, at_least=1)
    learning_rate: float = setting(1e-3, above=0)


# The system -----------------------------------------------------------------------------


def build(config: Config) -> System:
    """The system of the one variant of `config`, as pure functions."""
    (variant,) = config.variants
    tower_init, encode = from_flax(MnistTower())
    head = DistanceHead() if variant == "c" else ConcatenationHead()
    tower = with_compute_dtype(encode, config.compute_dtype)
    embed_pairs = embed_fn(variant, tower)
    mean = pair_batches.batch_mean(config)

    def init(key: jax.Array) -> tuple[Any, Any]:
        tower_key, head_key = jax.random.split(key)
        image = jnp.zeros((1, *preparation(config).image_shape))
        if variant == "a":
            keys = jax.random.split(tower_key)
            towers, statistics = jax.vmap(tower_init, in_axes=(0, None))(keys, image)
        else:
            towers, statistics = tower_init(tower_key, image)
        embedding = jnp.zeros((1, MnistTower().dim))
        head_params = head.init(head_key, embedding, embedding)["params"]
        return {"encoder": towers, "head": head_params}, statistics

    def loss(params: Any, statistics: Any, batch: PairBatch, key: jax.Array) -> Any:
        embeddings = embed_pairs(params["encoder"], batch.images)
        odds = same_logits(variant, params["head"], embeddings)
        terms = losses.logistic_loss(odds, batch.same, where=batch.where, reduce_fn=None)
        correct = ((odds >= 0) == batch.same).astype(odds.dtype)
        accuracy = mean(reductions.make_terms(correct, where=batch.where))
        metrics = pair_batches.embedded(config, embeddings, batch, terms)
        return mean(terms), (statistics, metrics | {"accuracy": accuracy})

    def model(state: TrainState) -> Model:
        if variant != "c":
            raise UserError(f"variant {variant} has no distance; only c makes a model")
        return Model(state.params["encoder"], encode, preparation(config))

    sample = pair_batches.epoch_sampler(config)
    return System(init, sample, loss, optimizers.adam(config.learning_rate), model)


def embed_fn(variant: Variant, tower: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `(params, images) -> embeddings` [2, n, dim] of both images of pairs."""
    return two_towers(tower) if variant == "a" else twin(tower)


def same_logits(variant: Variant, params: Any, embeddings: jax.Array) -> jax.Array:
    """Log-odds of "same" for pairs of embeddings [2, n, dim], by the head's parameters."""
    head = DistanceHead() if variant == "c" else ConcatenationHead()
    return jnp.asarray(head.apply({"params": params}, *embeddings))


def preparation(config: Config) -> Preparation:
    """Light strokes on a dark ground: Omniglot's pictures are inverted, digits are not."""
    if config.dataset == "omniglot":
        return Preparation((28, 28), invert=True)
    return Preparation(digits.image_shape(config.dataset)[:2])


# Data -----------------------------------------------------------------------------------


class Split(NamedTuple):
    """Images, their classes, and the two pairs of each: with a match and a mismatch."""

    images: jax.Array
    labels: jax.Array
    pairs: samplers.Pairs


def load(config: Config) -> tuple[Split, ...]:
    """The splits to train on, to calibrate on and to test on."""
    if config.dataset == "omniglot":
        parts = [omniglot.load(part) for part in ("background", "validation", "test")]
        datasets = [LabelledImages(part.images, part.labels) for part in parts]
    else:
        train, test = (
            digits.load_digit_images(config.dataset, split) for split in ("train", "test")
        )
        datasets = [train, train, test]
    keys = (
        stream(config, "pairs"),
        evaluation_key("validation pairs"),
        evaluation_key("test pairs"),
    )
    return tuple(
        make_split(key, config, dataset)
        for key, dataset in zip(keys, datasets, strict=True)
    )


def make_split(key: jax.Array, config: Config, dataset: LabelledImages) -> Split:
    """Pairs each image with another of its class, and with one of another class."""
    num = len(dataset.labels)
    anchors, same = jnp.tile(jnp.arange(num), 2), jnp.arange(2 * num) < num
    index = samplers.class_index(dataset.labels)
    partners = samplers.sample_partners(key, index, anchors, same)
    images = jnp.asarray(prepare(dataset.images, preparation(config)))
    pairs = samplers.Pairs(jnp.stack([anchors, partners]), same)
    return Split(images, jnp.asarray(dataset.labels), pairs)


# Training and evaluation ----------------------------------------------------------------


def pair_distances(config: Config, params: Any, split: Split) -> PairDistances:
    """Minus the log-odds of "same" as the distance of each pair; even odds are 0."""
    (variant,) = config.variants
    embed_pairs = embed_fn(variant, from_flax(MnistTower()).apply)

    @jax.jit
    def all_pairs(params: Any, split: Split) -> Any:
        def some_pairs(examples: jax.Array) -> jax.Array:
            images = gather(split.images, examples.T)
            embeddings = embed_pairs(params["encoder"], images)
            return -same_logits(variant, params["head"], embeddings)

        return map_batches(some_pairs, split.pairs.examples.T, batch_size=1000)

    with use_devices_of(params):
        return PairDistances(all_pairs(params, split), split.pairs.same)


def of_variant(config: Config, variant: Variant) -> Config:
    """The run of one variant, in a folder of its own."""
    return dataclasses.replace(
        config, variants=(variant,), workdir=config.directory / variant
    )


def train_variant(config: Config, train: Split) -> Trained:
    """Trains the one variant of `config`."""
    loop.prepare_folder(config)
    return loop.train(config, build(config), PairData(train.images, train.pairs))


def main(config: Config) -> None:
    """Trains the variants one after the other and tests them on the same pairs."""
    if not config.variants or len(set(config.variants)) < len(config.variants):
        raise UserError(f"--variants must be some of a b c; got {config.variants}")
    config = settled(config)
    if not loop.start(config):
        return
    train, validation, test = load(config)
    metrics: dict[str, float] = {}
    curves: dict[str, verification.RocCurve] = {}
    seconds, model = 0.0, None
    for variant in config.variants:
        print(f"variant {variant}")
        one = of_variant(config, variant)
        trained = train_variant(one, train)
        params = trained.state.params
        tested = pair_distances(one, params, test)
        curves[variant] = roc_curve(*tested)
        rates = decision_rates(*pair_distances(one, params, train), 0.0)
        figures = pair_metrics.pair_metrics(tested, 0.0) | {
            "training_pair_accuracy": float(rates.accuracy),
            "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
        }
        metrics |= {f"towers_{variant}_{name}": x for name, x in figures.items()}
        seconds += trained.seconds
        if variant == "c":
            model = calibrated(one, build(one).model(trained.state), validation)
    print_side_by_side(config, metrics)
    loop.finish(config, metrics, trained._replace(seconds=seconds), model)
    write_report(config, metrics, curves)


def calibrated(config: Config, model: Model, validation: Split) -> Model:
    """The model of variant c with a calibration on the validation pairs."""
    embeddings = model.embed_prepared(np.asarray(validation.images))
    pairs = pair_metrics.pair_distances(model, embeddings, validation.pairs)
    omniglot_pairs = config.dataset == "omniglot"
    which = "the validation alphabets" if omniglot_pairs else "training images"
    labels = np.asarray(validation.labels)
    return pair_metrics.calibrate(model, pairs, f"pairs of {which}", embeddings, labels)


def print_side_by_side(config: Config, metrics: dict[str, float]) -> None:
    """Prints a table with a column for each variant."""
    first = f"towers_{config.variants[0]}_"
    names = [name.removeprefix(first) for name in metrics if name.startswith(first)]
    print(f"\n{'':24}" + "".join(f"{variant:>12}" for variant in config.variants))
    for name in names:
        row = [metrics[f"towers_{variant}_{name}"] for variant in config.variants]
        style = ",.0f" if name == "num_parameters" else ".4f"
        print(f"{name:24}" + "".join(f"{value:>12{style}}" for value in row))


def write_report(
    config: Config, metrics: dict[str, float], curves: dict[str, verification.RocCurve]
) -> None:
    """Writes the page: the ROC curves in one picture, and the training of each variant."""
    sections = [
        report.Section(
            "Which variant can compare?",
            "Test pairs. A diagonal is chance; the falling line marks equal error rates.",
            report.roc({f"variant {variant}": curve for variant, curve in curves.items()}),
        )
    ]
    for variant in config.variants:
        picture = report.curves(config.directory / variant, ("loss", "accuracy"))
        note = "Loss and accuracy on training pairs, one point for each step."
        sections.append(report.Section(f"Training of variant {variant}", note, picture))
    title = f"Two towers: {config.dataset}"
    report.write_report(config.directory, title, metrics, sections)


if __name__ == "__main__":
    command_line(main, Config)
