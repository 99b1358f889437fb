"""Speed of embedding images, verifying pairs and identifying images in a gallery.

    python -m benchmarks.inference [--systems ...] [--rivals ...] [--json OUT] [--smoke]

embed     computes the embeddings of images
verify    computes the distances of pairs of images
identify  finds the nearest embedding of a gallery for each image

The images are NumPy arrays of bytes, rectangles of noise on black, and the time ends when
the answer is a NumPy array. Batches have the size with which the contestants are fastest:
16 images for Koch's network, 64 for `orl_tutorial`, 1,024 for `mnist_mlp` and 256 for
`mnist_conv`. Ours is one compiled function over all batches. Keras embeds each batch by
`predict_on_batch`, since `predict` in TensorFlow waits at the end for a thread of its input
pipeline. PyTorch embeds in inference mode, eagerly or compiled by `torch.compile`. Each
computes distances in its own framework, which JAX and TensorFlow compile. All have the same
weights, and their embeddings must agree before anything is timed. Each contestant has its
own process, and they take turns of half a second, with pauses between them.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.cases import Case, get_case
from benchmarks.contestants import (
    BACKENDS,
    OURS,
    PLAIN_TORCH,
    build_system,
    flat_weights,
    nested_weights,
)
from benchmarks.train_step import Ask, BenchmarkError, started, why_not
from experiments.engine.system import initial_state

TASKS = ("embed", "verify", "identify")
SYSTEMS = ("mnist_mlp", "mnist_conv", "orl_tutorial", "omniglot_koch")
RIVALS = (*BACKENDS, *PLAIN_TORCH)
GALLERY = 1_000
NUM_COMPARED, LARGEST_DIFFERENCE = 4, 1e-4  # images; of the largest number of an embedding

TaskFn = Callable[[np.ndarray], Any]


def sizes(system: str, *, smoke: bool) -> tuple[int, int]:
    """Returns the number of images to embed and the batch size."""
    if smoke:
        return 8, 4
    batch_sizes = {"mnist_mlp": 1_024, "orl_tutorial": 64, "omniglot_koch": 16}
    return (64 if system == "omniglot_koch" else 5_120), batch_sizes.get(system, 256)


def make_images(system: str, *, smoke: bool) -> np.ndarray:
    """Returns rectangles of noise, of random size and place, on black.

    Whole images of noise have embeddings that are all nearly equal, whose small distances
    our functions compute twice, to be exact. Those of real images are not.
    """
    num, _ = sizes(system, smoke=smoke)
    height, width, channels = get_case(system, smoke=smoke).image_shape
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, height, width, channels), np.uint8)
    for axis, size in ((1, height), (2, width)):
        ends = np.sort(rng.integers(0, size + 1, (num, 2, 1)), axis=1)
        inside = (ends[:, 0] <= np.arange(size)) & (np.arange(size) < ends[:, 1])
        images *= np.expand_dims(inside, (3, 3 - axis)).astype(np.uint8)
    return images


# Ours -----------------------------------------------------------------------------------


def make_ours(
    system: str, case: Case, batch_size: int, gallery_size: int, weights: pathlib.Path
) -> dict[str, TaskFn]:
    """Returns a function for each task: one compiled program from bytes to the answer.

    Args:
      system: Name of the system.
      case: Settings of the system.
      batch_size: Number of images that the network embeds at once.
      gallery_size: Number of images of the gallery, which are the first ones.
      weights: File to write the weights to.
    """
    import jax
    import jax.numpy as jnp

    from siamese_jax import distances, encoders, retrieval
    from siamese_jax.batching import map_batches

    sizes = case.options.get("kernel_sizes")
    encoder = {
        "mnist_mlp": encoders.MnistMlp(),
        "mnist_conv": encoders.MnistConv(),
        "orl_tutorial": encoders.OrlConv(),
        "omniglot_koch": encoders.KochConv(**({"kernel_sizes": sizes} if sizes else {})),
    }[system]
    params = initial_state(build_system(system, case), jax.random.key(0)).params
    np.savez(weights, **flat_weights(params))  # type: ignore[arg-type]
    variables = {"params": params["encoder"]}

    def embed(variables: Any, images: jax.Array) -> Any:
        def some(images: jax.Array) -> Any:
            return encoder.apply(variables, images / 255)

        return map_batches(some, images, batch_size=batch_size)

    def verify(variables: Any, images: jax.Array) -> Any:
        return distances.euclidean_distance(*jnp.split(embed(variables, images), 2))

    def identify(variables: Any, images: jax.Array) -> Any:
        embeddings = embed(variables, images)
        gallery = embeddings[:gallery_size]
        return retrieval.nearest(embeddings, gallery, k=1).indices[:, 0]

    tasks = {fn.__name__: jax.jit(fn) for fn in (embed, verify, identify)}
    return {name: partial(fn, variables) for name, fn in tasks.items()}


# Rivals ---------------------------------------------------------------------------------


def make_rival(
    name: str, system: str, case: Case, batch_size: int, gallery: int, weights: pathlib.Path
) -> dict[str, TaskFn]:
    """Returns a function for each task. The arguments are those of `make_ours`."""
    make = make_keras
    if name in PLAIN_TORCH:
        make = partial(make_torch, compiled=PLAIN_TORCH[name])
    with np.load(weights) as flat:
        embed, distance, nearest = make(system, case, batch_size, nested_weights(flat))

    def verify(images: np.ndarray) -> Any:
        return distance(*np.split(embed(images), 2))

    def identify(images: np.ndarray) -> Any:
        embeddings = embed(images)
        return nearest(embeddings, embeddings[:gallery])

    return {"embed": embed, "verify": verify, "identify": identify}


def make_keras(
    system: str, case: Case, batch_size: int, params: Mapping[str, Any]
) -> tuple[TaskFn, Callable[..., Any], Callable[..., Any]]:
    """Returns functions that embed by `predict_on_batch`, and that compute distances."""
    import keras

    from benchmarks import keras_reference

    reference = keras_reference.build(system, **case.options)
    keras_reference.set_weights(reference, params)
    images = keras.Input(case.image_shape, dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    encoder = keras.Model(images, reference.encoders[0](scaled))

    def embed(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), batch_size)
        parts = [encoder.predict_on_batch(images[i : i + batch_size]) for i in starts]
        return np.concatenate(parts)

    def distance(a: Any, b: Any) -> Any:
        return keras.ops.norm(keras.ops.subtract(a, b), axis=1)

    def nearest(a: Any, b: Any) -> Any:
        products = keras.ops.matmul(a, keras.ops.transpose(b))
        squared = keras.ops.sum(keras.ops.square(b), axis=1) - 2 * products
        return keras.ops.argmin(squared, axis=1)

    return embed, _compiled_by_keras(distance), _compiled_by_keras(nearest)


def _compiled_by_keras(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles operations of Keras, where its backend has a compiler for functions."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(fn)
    if backend == "tensorflow":
        import tensorflow

        return tensorflow.function(fn)
    return lambda *arrays: keras.ops.convert_to_numpy(fn(*arrays))


def make_torch(
    system: str, case: Case, batch_size: int, params: Mapping[str, Any], *, compiled: bool
) -> tuple[TaskFn, Callable[..., Any], Callable[..., Any]]:
    """Returns functions that embed in inference mode, and that compute distances."""
    import torch

    from benchmarks import torch_reference

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference = torch_reference.build(system, **case.options)
    torch_reference.set_weights(reference, params)
    encoder: Any = reference.encoder.to(device).eval()
    if compiled:
        encoder = torch.compile(encoder)

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            turned = torch.from_numpy(images).permute(0, 3, 1, 2)
            parts = [
                encoder(part.to(device).float() / 255).cpu()
                for part in turned.split(batch_size)
            ]
        return torch.cat(parts).numpy()

    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        apart = torch.from_numpy(a) - torch.from_numpy(b)
        return torch.linalg.vector_norm(apart, dim=1).numpy()

    def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, y = torch.from_numpy(a), torch.from_numpy(b)
        return torch.addmm(y.square().sum(1), x, y.T, alpha=-2).argmin(1).numpy()

    return embed, distance, nearest


# Measuring ------------------------------------------------------------------------------


def serve(name: str, requests: Any, replies: Any) -> None:
    """Answers the requests, one on each line, until there are no more.

    {"do": "prepare", "system": "mnist_mlp", "smoke": false, "weights": "w.npz"}
                                         makes the network, whose weights ours writes
                                         to the file and the others read, and returns
                                         the first embeddings
    {"do": "time", "task": "embed", "least": 0.5}
                                         returns the mean seconds of the calls in half
                                         a second, one at least
    """
    tasks: dict[str, TaskFn] = {}
    for text in requests:
        request = json.loads(text)
        if request["do"] == "prepare":
            system, smoke = request["system"], request["smoke"]
            tasks.clear()  # frees its memory before the next one is made
            images = make_images(system, smoke=smoke)
            case, gallery = get_case(system, smoke=smoke), 4 if smoke else GALLERY
            make = make_ours if name == OURS else partial(make_rival, name)
            batch_size, weights = sizes(system, smoke=smoke)[1], request["weights"]
            tasks = make(system, case, batch_size, gallery, pathlib.Path(weights))
            first = np.asarray(tasks["embed"](images))[:NUM_COMPARED]
            reply: dict[str, Any] = {"embeddings": first.tolist()}
        else:
            call = partial(_answer, tasks[request["task"]], images)
            seconds_fn = partial(results.seconds_of, call)
            seconds = results.mean_seconds(seconds_fn, least=request["least"])
            reply = {"seconds": seconds}
        print(json.dumps(reply), file=replies, flush=True)


def _answer(fn: TaskFn, images: np.ndarray) -> np.ndarray:
    return np.asarray(fn(images))


def prepare(system: str, contestants: Mapping[str, Ask], *, smoke: bool) -> None:
    """Makes the networks with the weights of ours, which is the first contestant.

    Raises:
      BenchmarkError: If the embeddings of a rival differ from ours.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = str(pathlib.Path(folder, "weights.npz"))
        about = {"system": system, "smoke": smoke, "weights": weights}
        found = {
            name: np.array(ask(do="prepare", **about)["embeddings"])
            for name, ask in contestants.items()
        }
    ours = found[OURS]
    for rival, theirs in found.items():
        difference = np.abs(theirs - ours).max() / np.abs(ours).max()
        if not difference <= LARGEST_DIFFERENCE:
            raise BenchmarkError(
                f"{system}: the embeddings of {rival} differ from ours by {difference:.1g} "
                "of the largest number"
            )


def measure(
    system: str, task: str, contestants: Mapping[str, Ask], *, rounds: int, smoke: bool
) -> list[dict[str, Any]]:
    """Measures one task of one system and returns a row for each rival.

    A turn of a contestant is the mean of the calls in half a second. The first round
    compiles and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, ask in contestants.items():
            passed = results.turn(ask, smoke=smoke, do="time", task=task)
            seconds[name] += [passed] if number else []
    num = sizes(system, smoke=smoke)[0] // (2 if task == "verify" else 1)
    speed = {name: num / np.array(times) for name, times in seconds.items()}
    rows = []
    for rival in contestants:
        if rival != OURS:
            ratios = speed[OURS] / speed[rival]
            rows.append(
                {
                    "system": system,
                    "task": task,
                    "rival": rival,
                    "ours_per_second": float(np.median(speed[OURS])),
                    "rival_per_second": float(np.median(speed[rival])),
                    "ratio": float(np.median(ratios)),
                    "ratio_min": float(ratios.min()),
                    "ratio_max": float(ratios.max()),
                }
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the speeds, prints a table, and writes the rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=RIVALS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--serve", choices=(OURS, *RIVALS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        if options.serve in BACKENDS:
            os.environ["KERAS_BACKEND"] = BACKENDS[options.serve]
        replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        serve(options.serve, sys.stdin, replies)
        return
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {options.rounds}")
    skipped = {rival: why for rival in options.rivals if (why := why_not(rival))}
    try:
        rows = benchmark(options, [name for name in options.rivals if name not in skipped])
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    results.report("inference", rows, options.json, arguments, skipped)


def benchmark(options: argparse.Namespace, rivals: Sequence[str]) -> list[dict[str, Any]]:
    """Measures all tasks of the systems and returns the rows."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        contestants = {
            name: stack.enter_context(started(name, "benchmarks.inference", "--serve"))
            for name in (OURS, *rivals)
        }
        for system in options.systems:
            prepare(system, contestants, smoke=options.smoke)
            for task in TASKS:
                rows += measure(
                    system, task, contestants, rounds=options.rounds, smoke=options.smoke
                )
    return rows


if __name__ == "__main__":
    main()
