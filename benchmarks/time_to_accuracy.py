"""Training time until an accuracy on MNIST pairs is reached, ours compared with Keras.

    python -m benchmarks.time_to_accuracy [--accuracies .972 .981] [--json OUT]

tutorial    our `mnist_mlp` with the tutorial's settings and dropout .1
tuned       our `mnist_mlp --recipe tuned`, with its learning rate schedule over
            `--tuned-epochs` epochs
keras-...   the network, pairs and settings of "tutorial" in Keras

All of them train for a number of epochs and are tested on the tutorial's test pairs after
each epoch. An epoch of MNIST has 108,400 pairs. A pair counts as the same if its distance
is below .5, or for "tuned" below the best threshold on validation pairs. Only training is
timed, not compilation and testing. The benchmark needs MNIST (`python -m experiments tfds
mnist`).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.contestants import BACKENDS
from benchmarks.train_step import why_not
from experiments.engine.system import initial_state, train_steps

OURS = ("tutorial", "tuned")
RIVALS = ("keras-jax", "keras-tensorflow")
DROPOUT = 0.1

Epoch = tuple[float, float]  # seconds of training so far, accuracy of test pairs


def load(dataset: str) -> tuple[Any, Any, Any]:
    """Returns the splits of the data set, and the tutorial's training and test pairs."""
    from experiments.datasets import digits, evaluation_rng
    from experiments.engine.pair_batches import adjacent_pairs

    splits = digits.load_splits(dataset)
    train = adjacent_pairs(splits.train.labels, np.random.default_rng(0))
    return splits, train, adjacent_pairs(splits.test.labels, evaluation_rng("test pairs"))


def train_ours(recipe: Any, dataset: Any, num_epochs: int) -> Iterator[Epoch]:
    """Trains our system, one call of the compiled program for each epoch."""
    import jax

    from experiments.datasets import evaluation_key
    from experiments.engine.data import class_data
    from experiments.engine.pair_batches import PairData, random_pairs
    from experiments.evaluations.pair_metrics import pair_distances
    from experiments.systems import mnist_mlp
    from siamese_jax import verification

    splits, train, test = load(dataset)
    config = mnist_mlp.Config(dataset=dataset, recipe=recipe, dropout=DROPOUT)
    epoch = -(-train.same.size // config.batch_size)
    config = dataclasses.replace(config, num_steps=num_epochs * epoch)
    system, data = mnist_mlp.build(config), class_data(splits.train)
    training_data: Any = data if recipe == "tuned" else PairData(data.images, train)
    validation = random_pairs(
        evaluation_key("validation pairs"), splits.validation.labels, 10_000
    )

    def accuracy(state: Any) -> float:
        model = system.model(state)
        threshold: Any = mnist_mlp.TUTORIAL_THRESHOLD
        if recipe == "tuned":
            embeddings = model.embed(splits.validation.images)
            distances = pair_distances(model, embeddings, validation)
            threshold = verification.best_threshold(*distances).threshold
        distances = pair_distances(model, model.embed(splits.test.images), test)
        return float(verification.decision_rates(*distances, threshold).accuracy)

    steps = partial(train_steps, system)
    compiled = jax.jit(steps, static_argnums=3, donate_argnums=1)
    key = jax.random.key(0)
    jax.block_until_ready(compiled(key, initial_state(system, key), training_data, epoch))
    state, seconds = initial_state(system, key), 0.0
    for _ in range(num_epochs):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(key, state, training_data, epoch))
        seconds += time.perf_counter() - began
        yield seconds, accuracy(state)


def train_keras(dataset: str, num_epochs: int) -> Iterator[Epoch]:
    """Trains the Keras model by `fit` on tensors in memory, one call for each epoch."""
    import keras

    from benchmarks import keras_reference

    splits, train, test = load(dataset)
    shape = splits.train.images.shape[1:]
    options: Any = {"dropout": DROPOUT, "image_shape": shape}
    keras.utils.set_random_seed(0)

    def sides(images: np.ndarray, examples: Any) -> list[Any]:
        scaled = images.astype(np.float32) / 255
        return [keras.ops.convert_to_tensor(scaled[side]) for side in np.asarray(examples)]

    inputs = sides(splits.train.images, train.examples)
    same = np.asarray(train.same, np.float32)[:, None]
    targets = keras.ops.convert_to_tensor(same)
    tested = sides(splits.test.images, test.examples)
    for timed in (False, True):  # the first round only compiles
        model = keras_reference.build("mnist_mlp", **options).model
        model.compile(model.optimizer, model.loss, steps_per_execution=20)
        seconds = 0.0
        for _ in range(num_epochs if timed else 1):
            seconds += keras_reference.fit(model, inputs, targets, 128)
            if timed:
                found = model.predict(tested, batch_size=1_000, verbose=0)[:, 0]
                yield seconds, float(np.mean((found < 0.5) == np.asarray(test.same)))


def curve(name: str, dataset: str, num_epochs: int) -> list[Epoch]:
    """Trains a contestant in its own process and returns its epochs."""
    program = [sys.executable, "-m", "benchmarks.time_to_accuracy", "--serve", name]
    program += ["--dataset", dataset, "--epochs", str(num_epochs)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"KERAS_BACKEND": BACKENDS[name]} if name in BACKENDS else {}
    done = subprocess.run(
        program, cwd=results.ROOT, env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def make_rows(
    name: str, epochs: Sequence[Epoch], accuracies: Sequence[float]
) -> list[dict[str, Any]]:
    """Returns a row for each accuracy, with the epoch that first reached it, and when."""
    rows = []
    for wanted in accuracies:
        reached = [number for number, (_, found) in enumerate(epochs) if found >= wanted]
        first = reached[0] if reached else None
        rows.append(
            {
                "contestant": name,
                "accuracy": wanted,
                "epochs": "not reached" if first is None else first + 1,
                "seconds": "" if first is None else f"{epochs[first][0]:.1f}",
                "best": max(found for _, found in epochs),
                "curve": list(epochs),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the times, prints a table, and writes the rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_accuracy")
    parser.add_argument("--dataset", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--accuracies", nargs="+", type=float, default=[0.972, 0.981])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--tuned-epochs", type=int, default=8)
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=RIVALS)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--serve", choices=(*OURS, *RIVALS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve in OURS:
        print(json.dumps(list(train_ours(options.serve, options.dataset, options.epochs))))
        return
    if options.serve:
        print(json.dumps(list(train_keras(options.dataset, options.epochs))))
        return
    from experiments.datasets.digits import load_digit_images
    from siamese_jax.errors import UserError

    try:
        load_digit_images(options.dataset, "test")
    except (UserError, FileNotFoundError) as error:
        print(f"skipped: {options.dataset} cannot be read: {error}")
        return
    skipped = {rival: why for rival in options.rivals if (why := why_not(rival))}
    names = [*OURS, *(rival for rival in options.rivals if rival not in skipped)]
    rows: list[dict[str, Any]] = []
    for name in names:
        epochs = options.tuned_epochs if name == "tuned" else options.epochs
        found = curve(name, options.dataset, epochs)
        rows += make_rows(name, found, options.accuracies)
    results.report("time_to_accuracy", rows, options.json, arguments, skipped)


if __name__ == "__main__":
    main()
