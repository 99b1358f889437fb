"""One contestant of a benchmark, in its own process so that frameworks do not interfere.

`benchmarks.train_step` starts `python -m benchmarks.contestants NAME`. NAME is "ours",
"flattened", or a key of `BACKENDS` or `PLAIN_TORCH`. The process reads requests and writes
replies, each as one line of JSON:

    {"do": "prepare", "system": "mnist_mlp"}     compiles; further keys are the options of
                                                 `get_case`
    {"do": "losses", "weights": "weights.npz"}   returns the first losses without dropout;
                                                 "ours" writes the file of initial
                                                 weights, and the others read it
    {"do": "time", "least": 0.5}                 returns the mean seconds of the runs in
                                                 half a second, one at least
"""

import importlib
import json
import os
import pathlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import results
from benchmarks.cases import Case, Pairs, get_case, make_pairs
from experiments.engine.system import initial_state, train_steps

OURS = "ours"
FLATTENED = "flattened"  # ours, with both inputs as one batch instead of `siamese.twin`
CHECKOUT = "checkout"  # ours, from another checkout of the project
PLAIN_TORCH = {"torch": False, "torch-compile": True}  # whether `torch.compile` is used
BACKENDS = {"keras-jax": "jax", "keras-tensorflow": "tensorflow", "keras-torch": "torch"}


class Contestant(NamedTuple):
    """A contestant that is ready to train on a case.

    Attributes:
      run_fn: Trains for the steps of one timed run, and returns how many seconds they took.
      losses_fn: Returns the losses of the first steps without dropout, given the file of
        initial weights.
      device: Name of the platform that it runs on, for example "cpu".
    """

    run_fn: Callable[[], float]
    losses_fn: Callable[[str], list[float]]
    device: str


# Ours -----------------------------------------------------------------------------------


def make_data(case: Case, pairs: Pairs) -> Any:
    """Returns the data of our system: images as bytes, and their pairs or classes."""
    import jax.numpy as jnp

    from experiments.engine.data import ClassData
    from experiments.engine.pair_batches import PairData
    from siamese_jax import samplers

    images = jnp.asarray(pairs.images)
    if case.draws_pairs:
        labels = np.arange(len(pairs.images)) // 2
        return ClassData(images, samplers.class_index(labels))
    examples, same = jnp.asarray(pairs.examples), jnp.asarray(pairs.same)
    return PairData(images, samplers.Pairs(examples, same))


def build_system(system: str, case: Case, **changes: Any) -> Any:
    """Returns our system with the settings of a case."""
    module = importlib.import_module(f"experiments.systems.{system}")
    config = module.Config(batch_size=case.batch_size, **{**case.config, **changes})
    return module.build(config)


def make_ours(
    system: str, case: Case, pairs: Pairs, *, flattened: bool = False
) -> Contestant:
    """Sets up our system as its experiment trains it: many steps in one compiled program.

    Args:
      system: Name of the system.
      case: Settings of the system.
      pairs: Synthetic images and pairs.
      flattened: Whether both inputs go through the network as one concatenated batch,
        instead of through `siamese.twin`.
    """
    import jax
    import jax.numpy as jnp

    from siamese_jax import siamese, training

    if flattened:  # replaced before the systems import it
        siamese.twin = _flattened_twin  # type: ignore[assignment]

    from experiments.engine.pair_batches import PairBatch

    built = build_system(system, case)
    data, key = make_data(case, pairs), jax.random.key(0)
    compiled = jax.jit(partial(train_steps, built), static_argnums=3, donate_argnums=1)
    state = initial_state(built, key)

    def train() -> None:
        nonlocal state
        state, metrics = compiled(key, state, data, case.num_steps)
        jax.block_until_ready((state, metrics))

    def next_batch(_: Any, step: Any, data: Pairs) -> Any:
        rows = step * case.batch_size + jnp.arange(case.batch_size)
        images = data.images[data.examples[:, rows]] / 255
        return PairBatch(images, data.same[rows], jnp.ones(case.batch_size, bool))

    def losses(path: str) -> list[float]:
        still = build_system(system, case, **case.without_dropout)
        still = still._replace(sample=next_batch)
        first = initial_state(still, key)
        if pathlib.Path(path).exists():  # another form of ours has written its weights
            with np.load(path) as flat:
                weights = jax.tree.map(jnp.asarray, nested_weights(flat))
            first = training.init_state(weights, still.optimizer)
        else:
            np.savez(path, **flat_weights(first.params))  # type: ignore[arg-type]
        train = jax.jit(partial(train_steps, still), static_argnums=3)
        in_order = jax.tree.map(jnp.asarray, pairs)
        _, metrics = train(key, first, in_order, case.num_compared_steps)
        return np.asarray(metrics["loss"]).tolist()

    run = partial(results.seconds_of, train)
    return Contestant(run, losses, jax.devices()[0].platform)


def _flattened_twin(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Replaces `siamese.twin`: both inputs are one batch, with the first input's key."""
    import jax

    def apply(params: Any, inputs: Any, *extras: Any) -> Any:
        k, n = inputs.shape[:2]
        first = jax.tree.map(lambda leaf: leaf[0], extras)
        embeddings = apply_fn(params, inputs.reshape(k * n, *inputs.shape[2:]), *first)
        return embeddings.reshape(k, n, *embeddings.shape[1:])

    return apply


def flat_weights(params: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns the arrays of a tree of dictionaries, by their paths "name/name"."""
    if not isinstance(params, dict):
        return {prefix: np.asarray(params)}
    flat: dict[str, np.ndarray] = {}
    for name, below in params.items():
        flat |= flat_weights(below, f"{prefix}/{name}" if prefix else name)
    return flat


# Keras ----------------------------------------------------------------------------------


def make_keras(system: str, case: Case, pairs: Pairs) -> Contestant:
    """Sets up training by `fit`, on tensors of left and right images in memory."""
    import keras

    from benchmarks import keras_reference

    if case.config["compute_dtype"] != "float32":
        keras.config.set_dtype_policy(f"mixed_{case.config['compute_dtype']}")
    images = pairs.images.astype(np.float32) / 255
    sides = [images[side] for side in pairs.examples]
    same = pairs.same.astype(np.float32)[:, None]
    inputs = [keras.ops.convert_to_tensor(side) for side in sides]
    targets = keras.ops.convert_to_tensor(same)
    model = keras_reference.build(system, **case.options).model
    several = 1 if keras.backend.backend() == "torch" else case.steps_per_execution
    model.compile(model.optimizer, model.loss, steps_per_execution=several)

    def run() -> float:
        return keras_reference.fit(model, inputs, targets, case.batch_size)

    def losses(path: str) -> list[float]:
        options = {**case.options, **case.without_dropout}
        reference = keras_reference.build(system, **options)
        with np.load(path) as flat:
            keras_reference.set_weights(reference, nested_weights(flat))
        found = []
        for first in range(0, case.num_compared_steps * case.batch_size, case.batch_size):
            rows = slice(first, first + case.batch_size)
            batch = [side[rows] for side in sides]
            found.append(float(reference.model.train_on_batch(batch, same[rows])))
        return found

    return Contestant(run, losses, _keras_device())


def nested_weights(flat: Any) -> dict[str, Any]:
    """Returns the tree of dictionaries that `flat_weights` was given."""
    nested: dict[str, Any] = {}
    for path in flat:
        *above, name = path.split("/")
        below = nested
        for part in above:
            below = below.setdefault(part, {})
        below[name] = flat[path]
    return nested


def _keras_device() -> str:
    import keras

    variable = keras.Variable(0.0)
    value: Any = variable.value
    if keras.backend.backend() == "jax":
        return next(iter(value.devices())).platform
    name = str(value.device).lower()
    return "gpu" if "gpu" in name or "cuda" in name else "cpu"


# PyTorch --------------------------------------------------------------------------------


def make_torch(system: str, case: Case, pairs: Pairs, *, compiled: bool) -> Contestant:
    """Sets up a plain training loop, with the images as floats on the device."""
    import torch

    from benchmarks import torch_reference

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = pairs.images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    images = torch.tensor(pictures, device=device)
    examples = torch.tensor(pairs.examples, dtype=torch.long, device=device)
    same = torch.tensor(pairs.same, dtype=torch.float32, device=device)

    half = case.config["compute_dtype"] == "bfloat16"

    def make(**options: Any) -> tuple[Any, Callable[[int], Any]]:
        torch.manual_seed(0)
        reference = torch_reference.build(system, **options)
        for module in (reference.encoder, reference.head):
            if module is not None:
                module.to(device)
        loss_fn = torch.compile(reference.loss) if compiled else reference.loss

        def step(number: int) -> Any:
            rows = slice(number * case.batch_size, (number + 1) * case.batch_size)
            reference.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = loss_fn(images[examples[:, rows].flatten()], same[rows])
            loss.backward()
            reference.optimizer.step()
            return loss.detach()

        return reference, step

    _, step = make(**case.options)

    def train() -> None:
        for number in range(case.num_steps):
            loss = step(number)
        loss.item()  # waits for the device

    def losses(path: str) -> list[float]:
        reference, step = make(**{**case.options, **case.without_dropout})
        with np.load(path) as flat:
            torch_reference.set_weights(reference, nested_weights(flat))
        return [float(step(number)) for number in range(case.num_compared_steps)]

    run = partial(results.seconds_of, train)
    return Contestant(run, losses, "gpu" if device.type == "cuda" else "cpu")


# Requests -------------------------------------------------------------------------------


def prepare(name: str, request: dict[str, Any]) -> tuple[Contestant, dict[str, Any]]:
    """Sets up a contestant and trains twice.

    The first run compiles. Its extra time over the second is reported as the compile time.
    """
    options = {key: value for key, value in request.items() if key not in ("do", "system")}
    case = get_case(request["system"], **options)
    make: Callable[..., Contestant] = make_keras
    if name in (OURS, FLATTENED):
        make = partial(make_ours, flattened=name == FLATTENED)
    elif name in PLAIN_TORCH:
        make = partial(make_torch, compiled=PLAIN_TORCH[name])
    contestant = make(request["system"], case, make_pairs(case))
    first, second = (contestant.run_fn() for _ in range(2))
    compiling = max(first - second, 0.0)
    return contestant, {"device": contestant.device, "compile_seconds": compiling}


def serve(name: str, requests: Any, replies: Any) -> None:
    """Answers the requests, one on each line, until there are no more."""
    contestant: Contestant | None = None
    for line in requests:
        request = json.loads(line)
        if request["do"] == "prepare":
            contestant = None  # frees its memory before the next one is made
            contestant, reply = prepare(name, request)
        else:
            assert contestant is not None
            if request["do"] == "losses":
                reply = {"losses": contestant.losses_fn(request["weights"])}
            else:
                seconds = results.mean_seconds(contestant.run_fn, least=request["least"])
                reply = {"seconds": seconds}
        print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    """Serves requests from standard input and writes replies to standard output.

    Everything else that is printed, by the frameworks for example, goes to standard error.
    """
    (name,) = sys.argv[1:]
    if name in BACKENDS:
        os.environ["KERAS_BACKEND"] = BACKENDS[name]
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(name, sys.stdin, replies)


if __name__ == "__main__":
    main()
