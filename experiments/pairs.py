"""Fixed pairs of images, shuffled each epoch, and how pairs are judged.

What the tutorials on pairs have in common: a list of pairs is made once, training passes
over it in a new order each epoch, and test pairs are judged by their distance. All of a
call's orders are drawn on the device, and the steps run as one program.
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import report, run
from siamese_jax import samplers, training
from siamese_jax import verification as verify
from siamese_jax.siamese import joint_twin


@dataclasses.dataclass(frozen=True)
class PairConfig(run.RunConfig):
    """What every experiment on pairs can be asked."""

    batch_size: int = 128  # pairs
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters stay float32


class Pairs(NamedTuple):
    """Numbers of examples [2, n], and whether they are of one class [n]."""

    examples: Any
    same: Any


class Judged(NamedTuple):
    """Pairs by their distance [n], and whether they are of one class [n]."""

    distances: Any
    same: Any


class Batch(NamedTuple):
    """Images [2, batch, ...] in [0, 1]; `where` masks the padding of an epoch's last."""

    images: jax.Array
    same: jax.Array
    where: jax.Array


class Epochs(NamedTuple):
    """Consecutive epochs: the number of the first, and the order of each, stacked."""

    first: jax.Array
    orders: samplers.EpochOrder  # [epochs, batches, batch_size]


class Data(NamedTuple):
    """What stays on the device: uint8 images; pairs, or the classes to draw them from."""

    images: jax.Array
    pairs: Pairs | None = None
    classes: samplers.ClassIndex | None = None
    epochs: Epochs | None = None


# Making pairs ---------------------------------------------------------------------------


def adjacent_pairs(labels: np.ndarray, rng: np.random.Generator) -> Pairs:
    """Neighbours in a class, and each with one of another class: the Keras MNIST pairs.

    For each class c and each i below the smallest class size less one: (i, i + 1) of c is
    a same pair, and (i of c, i of another class at random) a different one.
    """
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    num = min(map(len, by_class)) - 1
    if num < 1:
        smallest = np.unique(labels)[np.argmin([len(rows) for rows in by_class])]
        raise run.UserError(f"every class needs 2 images; class {smallest} has too few")
    left, right, same = [], [], []
    for number, rows in enumerate(by_class):
        others = (number + rng.integers(1, len(by_class), size=num)) % len(by_class)
        different = np.array([by_class[other][i] for i, other in enumerate(others)])
        left += [rows[:num], rows[:num]]
        right += [rows[1 : num + 1], different]
        same += [np.ones(num, bool), np.zeros(num, bool)]
    examples = np.stack([np.concatenate(left), np.concatenate(right)])
    return Pairs(examples.astype(np.int32), np.concatenate(same))


def random_pairs(key: jax.Array, labels: np.ndarray, num_pairs: int) -> Pairs:
    """Balanced pairs of the classes that have two images or more, evenly over classes."""
    names, counts = np.unique(labels, return_counts=True)
    rows = np.flatnonzero(np.isin(labels, names[counts >= 2]))
    if (counts >= 2).sum() < 2:
        raise run.UserError("pairs need two classes with two images each")
    drawn = samplers.sample_pairs(key, samplers.class_index(labels[rows]), num_pairs)
    return Pairs(rows[np.asarray(drawn.examples)], np.asarray(drawn.same))


# Training -------------------------------------------------------------------------------


def sample(config: PairConfig, key: jax.Array, step: jax.Array, data: Data) -> Batch:
    """The next pairs of the epoch; new ones where there is no list of pairs."""
    if data.pairs is None or data.epochs is None:
        assert data.classes is not None
        pairs = samplers.sample_pairs(key, data.classes, config.batch_size)
        examples, same, where = *pairs, jnp.ones(config.batch_size, bool)
    else:
        orders = data.epochs.orders
        epoch, place = jnp.divmod(step, orders.examples.shape[1])
        row = epoch - data.epochs.first
        numbers, where = orders.examples[row, place], orders.where[row, place]
        examples, same = data.pairs.examples[:, numbers], data.pairs.same[numbers]
    return Batch(gather(data.images, examples), same, where)


def embed_both(config: PairConfig, embed: Any) -> Any:
    """One network for both images, in the precision asked for: `(params, images, *key)`."""
    return joint_twin(training.with_compute_dtype(embed, config.compute_dtype))


def gather(images: jax.Array, examples: jax.Array) -> jax.Array:
    """Some of the uint8 images, in [0, 1].

    They are copied as bytes first: a fused copy and division goes number by number.
    """
    some = images.at[examples].get(mode="promise_in_bounds")
    return lax.optimization_barrier(some) / 255


def add_epochs(
    config: PairConfig, key: jax.Array, step: jax.Array, data: Data, num_steps: int
) -> Data:
    """The orders of all epochs that the next steps touch: one permutation an epoch."""
    if data.pairs is None:
        return data
    num_pairs = data.pairs.same.shape[0]
    num_batches = -(-num_pairs // config.batch_size)
    first = step // num_batches
    epochs = first + jnp.arange(-(-num_steps // num_batches) + 1)
    order_key = jax.random.fold_in(key, 2**31 - 2)  # no step has it

    def one_epoch(epoch: jax.Array) -> samplers.EpochOrder:
        epoch_key = jax.random.fold_in(order_key, epoch)
        return samplers.sample_epoch(epoch_key, num_pairs, config.batch_size)

    def if_reached(epoch: jax.Array) -> samplers.EpochOrder:
        unused = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one_epoch, epoch)
        )
        last = (step + num_steps - 1) // num_batches
        return lax.cond(epoch <= last, one_epoch, lambda _: unused, epoch)

    return data._replace(epochs=Epochs(first, lax.map(if_reached, epochs)))


def train_steps(
    config: PairConfig,
    loss_fn: training.LossFn,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    state: training.TrainState,
    data: Data,
    num_steps: int,
) -> tuple[training.TrainState, training.Metrics]:
    """Many steps as one program."""
    return training.train_steps(
        key,
        state,
        add_epochs(config, key, state.step, data, num_steps),
        num_steps=num_steps,
        batch_fn=partial(sample, config),
        loss_fn=loss_fn,
        optimizer=optimizer,
    )


# Judging --------------------------------------------------------------------------------


def pair_metrics(test: Judged, threshold: float) -> dict[str, float]:
    """Accuracy, precision and recall at the tutorial's threshold; figures over all."""
    rates = verify.decision_rates(*test, threshold)
    figures = {
        "pair_accuracy": rates.accuracy,
        "pair_precision": rates.precision,
        "pair_recall": rates.recall,
        "pair_eer": verify.equal_error_rate(*test),
        "roc_area": verify.roc_area(*test),
    }
    return {name: float(figure) for name, figure in figures.items()}


def chosen_threshold_metrics(seen: Judged, test: Judged) -> dict[str, float]:
    """At the threshold that is best on training pairs."""
    chosen = verify.transferred_threshold(seen, test)
    return {
        "chosen_threshold": float(chosen.threshold),
        "pair_accuracy_at_chosen_threshold": float(chosen.accuracy_where_applied),
        "pair_accuracy_at_chosen_threshold_training_pairs": float(
            chosen.accuracy_where_chosen
        ),
    }


def called_the_same(labels: np.ndarray, pairs: Pairs, called: np.ndarray) -> np.ndarray:
    """[classes, classes]: the share of different pairs of two classes called the same."""
    first, second = labels[pairs.examples[:, ~pairs.same]]
    called = called[~pairs.same]
    sums, counts = np.zeros((2, 10, 10))
    for rows, columns in ((first, second), (second, first)):
        np.add.at(sums, (rows, columns), called)
        np.add.at(counts, (rows, columns), 1)
    return sums / np.maximum(counts, 1)


def sections(
    images: np.ndarray,
    pairs: Pairs,
    judged: Judged,
    threshold: float,
    cmap: str = "gray_r",
    name: str = "test pairs",
) -> list[report.Section]:
    """Pairs, half of them mistakes; their distances; the ROC."""
    away, same = (np.asarray(array) for array in judged)
    wrong = np.flatnonzero((away <= threshold) != same)
    shown = np.concatenate([np.arange(0, len(same), -(-len(same) // 7))[:7], wrong[:7]])
    return [
        report.Section(
            "Same or different?",
            f"{name.capitalize()} with their distances; green where the threshold judges "
            "rightly. The right half are all mistakes.",
            report.pair_grid(
                images[pairs.examples[:, shown]],
                away[shown],
                same[shown],
                threshold,
                cmap=cmap,
            ),
        ),
        report.Section(
            f"Distances of {name}",
            f"The line is the threshold, {threshold:.3f}.",
            report.distance_histogram(away, same, threshold),
        ),
        report.Section(
            "ROC",
            "The falling line marks equal error rates.",
            report.roc({name: verify.roc_curve(*judged)}),
        ),
    ]
