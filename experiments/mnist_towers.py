"""Three ways to compare two digits, side by side: only a distance compares.

Source:  a public Keras tutorial on siamese networks: one dense layer of 128, binary
         cross-entropy, Adam, batch 16, 10 epochs of 120,000 pairs.
Run:     python -m experiments.mnist_towers --workdir runs/mnist_towers
         python -m experiments.mnist_towers --dataset omniglot --num-steps 24100
Expect:  test accuracy of a .506, b .502, c .906 (one seed); nine minutes of training
         for all three on two busy CPU cores
Quick:   python -m experiments.mnist_towers --dataset digits --num-steps 750

a  two towers with their own weights, concatenated, a dense layer to "same":
   201,217 parameters; the tutorial reports training accuracy 52.4 %
b  one tower for both, concatenated, a dense layer: 100,737 parameters; 50 to 51 %
c  one tower for both, the Euclidean distance, a dense layer on it: 100,482 parameters;
   87.4 %

A linear layer on two embeddings side by side adds what each says alone: it cannot tell
whether they agree. `--dataset omniglot` trains on the characters of the 30 background
alphabets at 28 x 28 pixels and tests on those of ten others.

Every training image is in two pairs, so none is left for calibration but on Omniglot, where
the validation alphabets serve. The model of the run is that of variant c.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import digits, model, omniglot, optimizers, pairs, report, run
from experiments.data import Dataset, load_digit_images, resize
from experiments.model import Model
from siamese_jax import losses, samplers, training
from siamese_jax import verification as verify
from siamese_jax.batching import map_batches
from siamese_jax.encoders import ConcatenationHead, DistanceHead, MnistTower
from siamese_jax.siamese import joint_twin, two_towers

Variant = Literal["a", "b", "c"]


@dataclasses.dataclass(frozen=True)
class Config(pairs.PairConfig):
    """The tutorial's settings."""

    experiment: ClassVar[str] = "mnist_towers"

    num_steps: int = 75_000  # 10 epochs of 120,000 pairs
    steps_per_call: int = 750
    checkpoint_every: int = 7_500  # an epoch

    dataset: Literal["mnist", "digits", "omniglot"] = "mnist"
    variants: tuple[Variant, ...] = ("a", "b", "c")
    batch_size: int = 16
    learning_rate: float = 1e-3


# Training -------------------------------------------------------------------------------


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Keras's Adam."""
    return optimizers.adam(config.learning_rate)


def make_head(variant: Variant) -> DistanceHead | ConcatenationHead:
    """What turns two embeddings into the log-odds of "same"."""
    return DistanceHead() if variant == "c" else ConcatenationHead()


def initial_state(config: Config) -> training.TrainState:
    """Random parameters from the seed, of the one variant of `config`."""
    (variant,) = config.variants
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # no step has it
    tower_key, head_key = jax.random.split(key)
    image = jnp.zeros((1, *digits.image_shape(config.dataset)))
    embedding = jnp.zeros((1, MnistTower().dim))

    def init(key: jax.Array) -> Any:
        return MnistTower().init(key, image)["params"]

    own = variant == "a"
    towers = jax.vmap(init)(jax.random.split(tower_key)) if own else init(tower_key)
    head = make_head(variant).init(head_key, embedding, embedding)["params"]
    return training.init_state({"towers": towers, "head": head}, make_optimizer(config))


def embed(towers: Any, images: jax.Array) -> Any:
    """Embeddings by one tower."""
    return MnistTower().apply({"params": towers}, images)


def logits(
    variant: Variant, params: Any, images: jax.Array, compute_dtype: str = "float32"
) -> Any:
    """Log-odds of "same" for images [2, n, ...]."""
    tower = training.with_compute_dtype(embed, compute_dtype)
    both = two_towers(tower) if variant == "a" else joint_twin(tower)
    a, b = both(params["towers"], images)
    return make_head(variant).apply({"params": params["head"]}, a, b)


def loss_fn(
    config: Config, params: Any, statistics: Any, batch: pairs.Batch, key: jax.Array
) -> Any:
    """Binary cross-entropy."""
    (variant,) = config.variants
    odds = logits(variant, params, batch.images, config.compute_dtype)
    loss = losses.logistic_loss(odds, batch.same, where=batch.where)
    accuracy = jnp.sum(((odds >= 0) == batch.same) & batch.where) / jnp.sum(batch.where)
    return loss, (statistics, {"accuracy": accuracy})


def train_steps(
    config: Config,
    key: jax.Array,
    state: training.TrainState,
    data: pairs.Data,
    num_steps: int,
) -> tuple[training.TrainState, training.Metrics]:
    """Many steps as one program."""
    fn, optimizer = partial(loss_fn, config), make_optimizer(config)
    return pairs.train_steps(config, fn, optimizer, key, state, data, num_steps)


# Data -----------------------------------------------------------------------------------


class Split(NamedTuple):
    """Images with each one's two pairs: with a match and with a mismatch."""

    dataset: Dataset
    pairs: pairs.Pairs


def make_split(key: jax.Array, dataset: Dataset) -> Split:
    """Each image once with another of its class, once with one of another class."""
    num = len(dataset.labels)
    anchors, same = jnp.tile(jnp.arange(num), 2), jnp.arange(2 * num) < num
    index = samplers.class_index(dataset.labels)
    partners = samplers.sample_partners(key, index, anchors, same)
    return Split(dataset, pairs.Pairs(np.stack([anchors, partners]), np.asarray(same)))


def load(config: Config) -> tuple[Split, ...]:
    """To train on, to calibrate on (the same but for Omniglot), and to test on."""
    if config.dataset == "omniglot":
        parts = [omniglot_digits(part) for part in ("background", "validation", "test")]
    else:
        splits = ("train", "train", "test")
        parts = [load_digit_images(config.dataset, split) for split in splits]
    # the test pairs are the same for every seed
    keys = map(jax.random.key, (config.seed, digits.TEST_SEED, digits.TEST_SEED))
    return tuple(make_split(key, part) for key, part in zip(keys, parts, strict=True))


def omniglot_digits(part: omniglot.Part) -> Dataset:
    """Characters as small as digits, light on dark as they are."""
    characters = omniglot.load(part)
    return Dataset(_as_digits(characters.images, (28, 28, 1)), characters.labels)


def _as_digits(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return resize(255 - images, shape)


# Use and evaluation ---------------------------------------------------------------------


def load_model(config: Config) -> Model:
    """Variant c's tower with its Euclidean distance."""
    directory = config.directory
    if len(config.variants) > 1 and "c" in config.variants:
        config, directory = of_variant(config, "c"), directory / "c"
    if config.variants != ("c",):
        raise run.UserError(f"{directory}: only variant c has a distance; train it")
    state = run.load_state(config, initial_state(config))
    tower = Model(state.params["towers"], embed, digits.image_shape(config.dataset))
    return tower._replace(prepare_fn=_as_digits) if config.dataset == "omniglot" else tower


def judge(variant: Variant, params: Any, split: Split) -> pairs.Judged:
    """Minus the log-odds of "same" as a distance: even odds are 0."""
    images = jnp.asarray(split.dataset.images)

    @jax.jit
    def judge_all(examples: jax.Array) -> Any:
        def some(examples: jax.Array) -> jax.Array:
            return -logits(variant, params, images[examples.T] / 255)

        return map_batches(some, examples.T, batch_size=1000)

    examples = jnp.asarray(split.pairs.examples)
    return pairs.Judged(judge_all(examples), jnp.asarray(split.pairs.same))


def of_variant(config: Config, variant: Variant) -> Config:
    """The run of one variant, in a folder of its own."""
    return dataclasses.replace(
        config, variants=(variant,), workdir=config.directory / variant
    )


def train_variant(config: Config, seen: Split) -> run.Trained:
    """Trains the one variant of `config`."""
    run.start(config)
    data = pairs.Data(
        jnp.asarray(seen.dataset.images), jax.tree.map(jnp.asarray, seen.pairs)
    )
    return run.train(
        config,
        initial_state(config),
        data,
        partial(train_steps, config),
        images_per_step=2 * config.batch_size,
    )


def main(config: Config) -> None:
    """Trains the variants one after the other, judges them on the same pairs."""
    if not config.variants or len(set(config.variants)) < len(config.variants):
        raise run.UserError(f"variants must be some of a b c; got {config.variants}")
    if not run.start(config):
        return
    seen, kept, unseen = load(config)
    metrics: dict[str, float] = {}
    curves: dict[str, verify.RocCurve] = {}
    seconds = 0.0
    for variant in config.variants:
        print(f"variant {variant}")
        trained = train_variant(of_variant(config, variant), seen)
        params = trained.state.params
        test = judge(variant, params, unseen)
        curves[variant] = verify.roc_curve(*test)
        figures = pairs.pair_metrics(test, 0.0) | {
            "training_pair_accuracy": float(
                verify.decision_rates(*judge(variant, params, seen), 0.0).accuracy
            ),
            "num_parameters": float(sum(x.size for x in jax.tree.leaves(params))),
        }
        metrics |= {f"towers_{variant}_{name}": x for name, x in figures.items()}
        seconds += trained.seconds
    if "c" in config.variants:
        calibrate(config, kept)
    print_side_by_side(config, metrics)
    run.finish(config, metrics, trained._replace(seconds=seconds))
    write_report(config, metrics, curves)


def calibrate(config: Config, kept: Split) -> None:
    """Keeps what the distances of variant c mean."""
    learnt = model.load_model(config.directory)
    images = kept.dataset.images
    embeddings = model.embed(learnt._replace(prepare_fn=resize), images)
    which = "of the validation alphabets" if config.dataset == "omniglot" else "of training"
    judged = model.judge(learnt, embeddings, kept.pairs)
    model.save_calibration(config, model.calibrate(judged, f"pairs {which}"))


def print_side_by_side(config: Config, metrics: dict[str, float]) -> None:
    """A column for each variant."""
    first = f"towers_{config.variants[0]}_"
    names = [name.removeprefix(first) for name in metrics if name.startswith(first)]
    print(f"\n{'':24}" + "".join(f"{variant:>12}" for variant in config.variants))
    for name in names:
        row = [metrics[f"towers_{variant}_{name}"] for variant in config.variants]
        style = ",.0f" if name == "num_parameters" else ".4f"
        print(f"{name:24}" + "".join(f"{value:>12{style}}" for value in row))


def write_report(
    config: Config, metrics: dict[str, float], curves: dict[str, verify.RocCurve]
) -> None:
    """All ROCs in one picture, and the training of each variant."""
    pictures = [
        report.Section(
            "Which can compare?",
            "Test pairs. A diagonal is chance; the falling line marks equal error rates.",
            report.roc({f"variant {variant}": curve for variant, curve in curves.items()}),
        )
    ]
    for variant in config.variants:
        directory = config.directory / variant
        picture = report.curves(directory, ("loss", "accuracy"))
        note = "Loss and accuracy on training pairs, one point a step."
        pictures.append(report.Section(f"Training of variant {variant}", note, picture))
    report.write_report(config, f"Two towers: {config.dataset}", metrics, pictures)


if __name__ == "__main__":
    run.command_line(main, Config)
