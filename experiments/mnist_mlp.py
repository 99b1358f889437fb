"""Contrastive loss on MNIST pairs: the Keras siamese multilayer perceptron.

Source:  the Keras example "mnist_siamese" (2015): dense 128 x 3, dropout, contrastive loss
         of margin 1, RMSprop, batch 128, 20 epochs.
Run:     python -m experiments.mnist_mlp --dropout 0.1 --workdir runs/mnist_mlp
Expect:  pair_accuracy .9713 +- .0030 over three seeds (Keras: .972), .9303 with dropout .5;
         some 45 s of training on two CPU cores
Quick:   python -m experiments.mnist_mlp --dataset digits --num-steps 900 --workdir runs/q

Needs MNIST in TFDS form (`python -m experiments.data mnist`); `--dataset digits` takes
scikit-learn's small digits instead. The tutorial's pairs are made once and shuffled each
epoch; `--pairs fresh` draws new ones at every step.

Its accuracy is that of "same if the distance is below .5". A threshold chosen on training
pairs is reported beside it, by its own name. As written for tf.keras the tutorial has
dropout .1 in later versions and .5 in the first; .5 is the default here.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report, run
from experiments.data import Dataset, load_digits, load_tfds
from siamese_jax import distances, losses, samplers, training
from siamese_jax import verification as verify
from siamese_jax.batching import map_batches
from siamese_jax.encoders import MnistMlp
from siamese_jax.siamese import twin


@dataclasses.dataclass(frozen=True)
class Config(run.RunConfig):
    """The tutorial's settings."""

    experiment: ClassVar[str] = "mnist_mlp"

    num_steps: int = 16_940  # 20 epochs of 108,400 pairs
    steps_per_call: int = 847  # one epoch
    checkpoint_every: int = 3_388

    dataset: Literal["mnist", "digits"] = "mnist"
    pairs: Literal["fixed", "fresh"] = "fixed"  # the tutorial's, or new at each step
    dropout: float = 0.5  # .1 in later versions of the tutorial
    batch_size: int = 128  # pairs
    margin: float = 1.0
    learning_rate: float = 1e-3


TEST_SEED = 0  # the test pairs are the same for every seed


class Pairs(NamedTuple):
    """Numbers of examples [2, n], and whether they show the same digit [n]."""

    examples: Any
    same: Any


class Epochs(NamedTuple):
    """Consecutive epochs: the number of the first, and the order of each, stacked."""

    first: jax.Array
    orders: samplers.EpochOrder  # [epochs, batches, batch_size]


class Data(NamedTuple):
    """What stays on the device; with fixed pairs also the epochs of this call."""

    images: jax.Array
    classes: samplers.ClassIndex
    pairs: Pairs
    epochs: Epochs | None = None


def tutorial_pairs(labels: np.ndarray, rng: np.random.Generator) -> Pairs:
    """The tutorial's pairs: neighbours in a class, and each with one of another class.

    For each digit d and each i below the smallest class size less one: (i, i + 1) of d is
    a same pair, and (i of d, i of another digit at random) a different one.
    """
    by_class = [np.flatnonzero(labels == d) for d in np.unique(labels)]
    num = min(map(len, by_class)) - 1
    if num < 1:
        smallest = np.unique(labels)[np.argmin([len(rows) for rows in by_class])]
        raise run.UserError(f"every class needs 2 images; class {smallest} has too few")
    left, right, same = [], [], []
    for digit, rows in enumerate(by_class):
        others = (digit + rng.integers(1, len(by_class), size=num)) % len(by_class)
        different = np.array([by_class[other][i] for i, other in enumerate(others)])
        left += [rows[:num], rows[:num]]
        right += [rows[1 : num + 1], different]
        same += [np.ones(num, bool), np.zeros(num, bool)]
    examples = np.stack([np.concatenate(left), np.concatenate(right)])
    return Pairs(examples.astype(np.int32), np.concatenate(same))


# Training -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Images [2, batch, ...] in [0, 1]; `where` masks the padding of an epoch's last."""

    images: jax.Array
    same: jax.Array
    where: jax.Array


def sample(config: Config, key: jax.Array, step: jax.Array, data: Data) -> Batch:
    """The next pairs of the epoch, or fresh ones."""
    if data.epochs is None:
        pairs = samplers.sample_pairs(key, data.classes, config.batch_size)
        examples, same, where = *pairs, jnp.ones(config.batch_size, bool)
    else:
        orders = data.epochs.orders
        epoch, place = jnp.divmod(step, orders.examples.shape[1])
        row = epoch - data.epochs.first
        numbers, where = orders.examples[row, place], orders.where[row, place]
        examples, same = data.pairs.examples[:, numbers], data.pairs.same[numbers]
    return Batch(data.images[examples] / 255, same, where)


def loss_fn(
    config: Config, encoder: MnistMlp, params: Any, statistics: Any, batch: Batch, key: Any
) -> Any:
    """Contrastive loss without the factor 1/2, as the tutorial has it."""

    def embed(params: Any, images: jax.Array, key: jax.Array) -> Any:
        return encoder.apply({"params": params}, images, train=True, rngs={"dropout": key})

    a, b = twin(embed)(params, batch.images, jax.random.split(key))
    loss = losses.contrastive_loss(
        distances.euclidean_distance(a, b),
        batch.same,
        margin=config.margin,
        factor=1.0,
        where=batch.where,
    )
    return loss, (statistics, {})


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """RMSprop as Keras 3 has it: g / sqrt(v + 1e-7)."""
    return optax.rmsprop(config.learning_rate, decay=0.9, eps=1e-7, eps_in_sqrt=True)


def initial_state(
    config: Config, encoder: MnistMlp, images: jax.Array
) -> training.TrainState:
    """Random parameters from the seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # no step has it
    params = encoder.init(key, images[:1] / 255)["params"]
    return training.init_state(params, make_optimizer(config))


def add_epochs(
    config: Config, key: jax.Array, step: jax.Array, data: Data, num_steps: int
) -> Data:
    """The orders of all epochs that the next steps touch: one permutation an epoch."""
    num_pairs = data.pairs.same.shape[0]
    num_batches = -(-num_pairs // config.batch_size)
    first = step // num_batches
    epochs = first + jnp.arange(-(-num_steps // num_batches) + 1)
    order_key = jax.random.fold_in(key, 2**31 - 2)  # no step has it

    def one_epoch(epoch: jax.Array) -> samplers.EpochOrder:
        epoch_key = jax.random.fold_in(order_key, epoch)
        return samplers.sample_epoch(epoch_key, num_pairs, config.batch_size)

    return data._replace(epochs=Epochs(first, jax.vmap(one_epoch)(epochs)))


def train_steps(
    config: Config,
    encoder: MnistMlp,
    key: jax.Array,
    state: training.TrainState,
    data: Data,
    num_steps: int,
) -> tuple[training.TrainState, training.Metrics]:
    """Many steps as one program."""
    if config.pairs == "fixed":
        data = add_epochs(config, key, state.step, data, num_steps)
    return training.train_steps(
        key,
        state,
        data,
        num_steps=num_steps,
        batch_fn=partial(sample, config),
        loss_fn=partial(loss_fn, config, encoder),
        optimizer=make_optimizer(config),
    )


# Evaluation -----------------------------------------------------------------------------


def embed(encoder: MnistMlp, params: Any, images: np.ndarray) -> jax.Array:
    """The embedding of every image, without dropout."""

    @jax.jit
    def embed_all(images: jax.Array) -> jax.Array:
        def some(images: jax.Array) -> Any:
            return encoder.apply({"params": params}, images / 255)

        return map_batches(some, images, batch_size=1000)

    return embed_all(jnp.asarray(images))


def judge(embeddings: jax.Array, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """Distance of each pair, and whether it is the same."""
    a, b = embeddings[pairs.examples]
    return distances.euclidean_distance(a, b), jnp.asarray(pairs.same)


def evaluate(
    test: tuple[jax.Array, jax.Array], seen: tuple[jax.Array, jax.Array]
) -> dict[str, float]:
    """At the tutorial's threshold .5, and at the one chosen on training pairs."""
    at_half = verify.decision_rates(*test, 0.5)
    chosen = verify.transferred_threshold(seen, test)
    figures = {
        "pair_accuracy": at_half.accuracy,
        "pair_precision": at_half.precision,
        "pair_recall": at_half.recall,
        "pair_accuracy_training_pairs": verify.decision_rates(*seen, 0.5).accuracy,
        "chosen_threshold": chosen.threshold,
        "pair_accuracy_at_chosen_threshold": chosen.accuracy_where_applied,
        "pair_accuracy_at_chosen_threshold_training_pairs": chosen.accuracy_where_chosen,
        "pair_eer": verify.equal_error_rate(*test),
        "roc_area": verify.roc_area(*test),
    }
    return {name: float(figure) for name, figure in figures.items()}


def called_the_same(labels: np.ndarray, pairs: Pairs, judged: np.ndarray) -> np.ndarray:
    """[digits, digits]: the share of different pairs of two digits that are called same."""
    first, second = labels[pairs.examples[:, ~pairs.same]]
    called = judged[~pairs.same] <= 0.5
    sums, counts = np.zeros((2, 10, 10))
    for rows, columns in ((first, second), (second, first)):
        np.add.at(sums, (rows, columns), called)
        np.add.at(counts, (rows, columns), 1)
    return sums / np.maximum(counts, 1)


def sections(
    config: Config,
    unseen: Dataset,
    embeddings: jax.Array,
    pairs: Pairs,
    test: tuple[jax.Array, jax.Array],
) -> list[report.Section]:
    """The pictures of the report."""
    images = unseen.images
    judged, same = (np.asarray(array) for array in test)
    wrong = np.flatnonzero((judged <= 0.5) != same)
    shown = np.concatenate([np.arange(0, len(same), len(same) // 7)[:7], wrong[:7]])
    return [
        report.Section(
            "Same or different?",
            "Test pairs with their distances; green where the threshold .5 judges rightly. "
            "The right half are all mistakes.",
            report.pair_grid(
                images[pairs.examples[:, shown]], judged[shown], same[shown], 0.5
            ),
        ),
        report.Section(
            "Distances of test pairs",
            f"The margin is {config.margin}; the line is the tutorial's threshold, .5.",
            report.distance_histogram(judged, same, 0.5),
        ),
        report.Section(
            "ROC",
            "The falling line marks equal error rates.",
            report.roc({"embeddings": verify.roc_curve(*test)}),
        ),
        report.Section(
            "Which digits are called the same?",
            "Share of the different test pairs of two digits within the threshold.",
            report.confusion_matrix(
                called_the_same(unseen.labels, pairs, judged), [str(d) for d in range(10)]
            ),
        ),
        report.Section(
            "The embedding space",
            "Test digits laid out by t-SNE of their embeddings.",
            report.embedding_map(np.asarray(embeddings[:400]), images[:400]),
        ),
        report.Section("Training", "", report.curves(config.directory)),
    ]


def load(config: Config, split: str) -> Dataset:
    """The images of a split."""
    return load_digits(split) if config.dataset == "digits" else load_tfds("mnist", split)


def main(config: Config) -> None:
    """Loads, trains, judges, reports."""
    if not 0 <= config.dropout < 1:
        raise run.UserError(f"dropout must be in [0, 1); got {config.dropout}")
    if config.margin <= 0:
        raise run.UserError(f"margin must be positive; got {config.margin}")
    if not run.start(config):
        return
    seen, unseen = load(config, "train"), load(config, "test")
    encoder = MnistMlp(dropout=config.dropout)
    pairs = tutorial_pairs(seen.labels, np.random.default_rng(config.seed))
    images = jnp.asarray(seen.images)
    data = Data(
        images, samplers.class_index(seen.labels), Pairs(*(jnp.asarray(x) for x in pairs))
    )
    trained = run.train(
        config,
        initial_state(config, encoder, images),
        data,
        partial(train_steps, config, encoder),
        images_per_step=2 * config.batch_size,
    )
    params = trained.state.params
    embeddings = embed(encoder, params, unseen.images)
    test_pairs = tutorial_pairs(unseen.labels, np.random.default_rng(TEST_SEED))
    test = judge(embeddings, test_pairs)
    metrics = evaluate(test, judge(embed(encoder, params, seen.images), pairs))
    run.finish(config, metrics, trained)  # first: a report can be made again
    pictures = sections(config, unseen, embeddings, test_pairs, test)
    report.write_report(config, f"Pairs of digits: {config.dataset}", metrics, pictures)


if __name__ == "__main__":
    run.command_line(main, Config)
