"""How long until pairs of MNIST digits are judged well: ours beside Keras.

    python -m benchmarks.time_to_accuracy [--accuracies .972 .981] [--json OUT]

tutorial    our `mnist_mlp` with the tutorial's settings, dropout .1
tuned       our `mnist_mlp --recipe tuned`, one cycle of the epochs asked for
keras-...   the same net, pairs and settings as "tutorial" in Keras

All train for some epochs of the 108,400 pairs; after each one the test pairs are judged
(below a distance of .5 is "same"; tuned: at the best threshold of validation pairs). The
seconds are those of training, compilation and judging left out. MNIST is needed.
"""

import argparse
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

OURS = ("tutorial", "tuned")
RIVALS = ("keras-jax", "keras-tensorflow")
DROPOUT = 0.1

Epoch = tuple[float, float]  # seconds so far, accuracy


def load(dataset: str) -> tuple[Any, Any, Any]:
    """The splits, and the tutorial's pairs to train on and to test on."""
    from experiments import digits, pairs

    splits = digits.load_splits(dataset)
    seen = pairs.adjacent_pairs(splits.seen.labels, np.random.default_rng(0))
    rng = np.random.default_rng(digits.TEST_SEED)
    return splits, seen, pairs.adjacent_pairs(splits.unseen.labels, rng)


def train_ours(recipe: Any, dataset: Any, num_epochs: int) -> Iterator[Epoch]:
    """An epoch is one call of the compiled program."""
    import jax
    import jax.numpy as jnp

    from experiments import mnist_mlp, pairs
    from siamese_jax import distances, samplers
    from siamese_jax import verification as verify

    splits, seen, unseen = load(dataset)
    config = mnist_mlp.Config(dataset=dataset, recipe=recipe, dropout=DROPOUT)
    epoch = -(-seen.same.size // config.batch_size)
    config = mnist_mlp.Config(
        dataset=dataset, recipe=recipe, dropout=DROPOUT, num_steps=num_epochs * epoch
    )
    tuned = recipe == "tuned"
    data = pairs.Data(
        jnp.asarray(splits.seen.images),
        pairs=None if tuned else jax.tree.map(jnp.asarray, seen),
        classes=samplers.class_index(splits.seen.labels) if tuned else None,
    )
    kept = pairs.random_pairs(jax.random.key(0), splits.kept.labels, 10_000)

    @jax.jit
    def judge(params: Any, images: jax.Array, examples: jax.Array) -> Any:
        net = params["encoder"] if tuned else params
        encoder = mnist_mlp.make_encoder(config)
        embeddings: Any = encoder.apply({"params": net}, images / 255)
        embeddings = distances.normalize(embeddings) if tuned else embeddings
        return distances.euclidean_distance(*embeddings[examples])

    def accuracy(params: Any) -> float:
        threshold: Any = mnist_mlp.TUTORIAL_THRESHOLD
        if tuned:
            judged = judge(params, splits.kept.images, kept.examples)
            threshold = verify.best_threshold(judged, jnp.asarray(kept.same)).threshold
        test = judge(params, splits.unseen.images, unseen.examples)
        same = jnp.asarray(unseen.same)
        return float(verify.decision_rates(test, same, threshold).accuracy)

    steps = partial(mnist_mlp.train_steps, config)
    compiled = jax.jit(steps, static_argnums=3, donate_argnums=1)
    key = jax.random.key(0)
    jax.block_until_ready(compiled(key, mnist_mlp.initial_state(config), data, epoch))
    state, seconds = mnist_mlp.initial_state(config), 0.0
    for _ in range(num_epochs):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(key, state, data, epoch))
        seconds += time.perf_counter() - began
        yield seconds, accuracy(state.params)


def train_keras(dataset: str, num_epochs: int) -> Iterator[Epoch]:
    """`fit` an epoch at a time over tensors in memory."""
    import keras

    from benchmarks import keras_reference

    splits, seen, unseen = load(dataset)
    shape = splits.seen.images.shape[1:]
    options: Any = {"dropout": DROPOUT, "image_shape": shape}
    keras.utils.set_random_seed(0)

    def sides(images: np.ndarray, examples: np.ndarray) -> list[Any]:
        scaled = images.astype(np.float32) / 255
        return [keras.ops.convert_to_tensor(scaled[side]) for side in examples]

    inputs = sides(splits.seen.images, seen.examples)
    targets = keras.ops.convert_to_tensor(seen.same.astype(np.float32)[:, None])
    test = sides(splits.unseen.images, unseen.examples)
    for timed in (False, True):  # the first only compiles
        model = keras_reference.build("mnist_mlp", **options).model
        model.compile(model.optimizer, model.loss, steps_per_execution=20)
        seconds = 0.0
        for _ in range(num_epochs if timed else 1):
            began = time.perf_counter()
            model.fit(inputs, targets, batch_size=128, verbose=0)
            seconds += time.perf_counter() - began
            if timed:
                found = model.predict(test, batch_size=1_000, verbose=0)[:, 0]
                yield seconds, float(np.mean((found < 0.5) == unseen.same))


def curve(name: str, dataset: str, num_epochs: int) -> list[Epoch]:
    """Trained in a process of its own."""
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
    """When each accuracy was first reached, if it was."""
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
    """Measures, prints a table, writes JSON."""
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
    from experiments.data import load_digit_images
    from experiments.run import UserError

    try:
        load_digit_images(options.dataset, "test")
    except (UserError, FileNotFoundError) as error:
        print(f"skipped: {options.dataset} is not there: {error}")
        return
    skipped = {rival: why for rival in options.rivals if (why := why_not(rival))}
    names = [*OURS, *(rival for rival in options.rivals if rival not in skipped)]
    rows: list[dict[str, Any]] = []
    for name in names:
        epochs = options.tuned_epochs if name == "tuned" else options.epochs
        found = curve(name, options.dataset, epochs)
        rows += make_rows(name, found, options.accuracies)
    results.report("time_to_accuracy", rows, options.json, skipped)


if __name__ == "__main__":
    main()
