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
pipeline. PyTorch embeds in inference mode, eagerly or compiled by `torch.compile`. Both
compute distances in NumPy. The networks are freshly initialised. Each contestant has its
own process, and they take turns of half a second, with pauses between them.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.cases import Case, get_case
from benchmarks.contestants import BACKENDS, OURS, PLAIN_TORCH
from benchmarks.train_step import started, why_not

TASKS = ("embed", "verify", "identify")
SYSTEMS = ("mnist_mlp", "mnist_conv", "orl_tutorial", "omniglot_koch")
RIVALS = (*BACKENDS, *PLAIN_TORCH)
GALLERY = 1_000

EmbedFn = Callable[[np.ndarray], Any]


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


def make_ours(system: str, case: Case, batch_size: int, gallery_size: int) -> Any:
    """Returns a function for each task: one compiled program from bytes to the answer."""
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
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, *case.image_shape)))

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


def make_rival(name: str, system: str, case: Case, batch_size: int, gallery: int) -> Any:
    """Returns a function for each task, with embeddings by a rival and NumPy distances."""
    make: Callable[..., EmbedFn] = make_keras
    if name in PLAIN_TORCH:
        make = partial(make_torch, compiled=PLAIN_TORCH[name])
    embed = make(system, case, batch_size)

    def verify(images: np.ndarray) -> np.ndarray:
        a, b = np.split(embed(images), 2)
        return np.linalg.norm(a - b, axis=1)

    def identify(images: np.ndarray) -> np.ndarray:
        a = embed(images)
        b = a[:gallery]
        return np.argmin(np.square(b).sum(1) - 2 * a @ b.T, axis=1)

    return {"embed": embed, "verify": verify, "identify": identify}


def make_keras(system: str, case: Case, batch_size: int) -> EmbedFn:
    """Returns a function that embeds images by `predict_on_batch` of the Keras encoder."""
    from benchmarks import keras_reference

    encoder = keras_reference.build(system, **case.options).encoders[0]

    def embed(images: np.ndarray) -> np.ndarray:
        scaled = images.astype(np.float32) / 255
        starts = range(0, len(scaled), batch_size)
        parts = [encoder.predict_on_batch(scaled[i : i + batch_size]) for i in starts]
        return np.concatenate(parts)

    return embed


def make_torch(system: str, case: Case, batch_size: int, *, compiled: bool) -> EmbedFn:
    """Returns a function that embeds images in batches, in PyTorch's inference mode."""
    import torch

    from benchmarks import torch_reference

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder: Any = torch_reference.build(system, **case.options).encoder.to(device).eval()
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

    return embed


# Measuring ------------------------------------------------------------------------------


def serve(name: str, requests: Any, replies: Any) -> None:
    """Runs the requested task of the requested system and answers with its seconds."""
    made: dict[str, Any] = {}
    for text in requests:
        request = json.loads(text)
        system, smoke = request["system"], request["smoke"]
        images = make_images(system, smoke=smoke)
        if system not in made:
            case, gallery = get_case(system, smoke=smoke), 4 if smoke else GALLERY
            batch_size = sizes(system, smoke=smoke)[1]
            if name == OURS:
                made = {system: make_ours(system, case, batch_size, gallery)}
            else:
                made = {system: make_rival(name, system, case, batch_size, gallery)}
        answer = partial(_answer, made[system][request["task"]], images)
        call = partial(results.seconds_of, answer)
        seconds = results.mean_seconds(call, least=request["least"])
        print(json.dumps({"seconds": seconds}), file=replies, flush=True)


def _answer(fn: EmbedFn, images: np.ndarray) -> np.ndarray:
    return np.asarray(fn(images))


def measure(
    system: str, task: str, contestants: dict[str, Any], *, rounds: int, smoke: bool
) -> list[dict[str, Any]]:
    """Measures one task of one system and returns a row for each rival.

    A turn of a contestant is the mean of the calls in half a second. The first round
    compiles and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, ask in contestants.items():
            ask_task = partial(ask, system=system, task=task, smoke=smoke)
            passed = results.turn(ask_task, smoke=smoke)
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
    rivals = [rival for rival in options.rivals if rival not in skipped]
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        contestants = {
            name: stack.enter_context(started(name, "benchmarks.inference", "--serve"))
            for name in (OURS, *rivals)
        }
        for system in options.systems:
            for task in TASKS:
                rows += measure(
                    system, task, contestants, rounds=options.rounds, smoke=options.smoke
                )
    results.report("inference", rows, options.json, skipped)


if __name__ == "__main__":
    main()
