"""One contestant in a process of its own: frameworks do not share one well.

`python -m benchmarks.contestants NAME` reads one request a line and answers each with one
line, both JSON; `benchmarks.train_step` starts it. NAME is "ours", or one of `BACKENDS` or
`PLAIN_TORCH`.

    {"do": "prepare", "system": "mnist_mlp"}     compiles; options of `get_case`
    {"do": "losses", "weights": "weights.npz"}   first losses without dropout; ours writes
                                                 the file of first weights, others read it
    {"do": "time"}                               seconds of one run
"""

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cases import Case, Pairs, get_case, make_pairs

OURS = "ours"
PLAIN_TORCH = {"torch": False, "torch-compile": True}  # whether it is compiled
BACKENDS = {"keras-jax": "jax", "keras-tensorflow": "tensorflow", "keras-torch": "torch"}


class Contestant(NamedTuple):
    """What can be asked of one that is set up for a case.

    Attributes:
      run_fn: Trains for the steps of one timed run, and waits for the end.
      losses_fn: The losses of the first steps without dropout, given the file of weights.
      device: What it runs on.
    """

    run_fn: Callable[[], Any]
    losses_fn: Callable[[str], list[float]]
    device: str


# Ours -----------------------------------------------------------------------------------


def as_data(pairs: Pairs) -> Any:
    """What the experiments keep on the device: images as bytes."""
    import jax.numpy as jnp

    from experiments import pairs as experiment_pairs
    from siamese_jax import samplers

    return experiment_pairs.Data(
        jnp.asarray(pairs.images),
        pairs=experiment_pairs.Pairs(jnp.asarray(pairs.examples), jnp.asarray(pairs.same)),
        classes=samplers.class_index(np.arange(len(pairs.images)) // 2),
    )


def steps_of(module: Any, config: Any) -> Callable[..., Any]:
    """An experiment's `(key, state, data, num_steps) -> (state, metrics)`."""
    from experiments import pairs as experiment_pairs

    if hasattr(module, "train_steps"):
        return partial(module.train_steps, config)
    loss_fn, optimizer = partial(module.loss_fn, config), module.make_optimizer(config)
    return partial(experiment_pairs.train_steps, config, loss_fn, optimizer)


def make_ours(system: str, case: Case, pairs: Pairs) -> Contestant:
    """The experiment's own steps: images stay bytes on the device, one compiled program."""
    import jax
    import jax.numpy as jnp

    from experiments import pairs as experiment_pairs
    from siamese_jax import training

    module = importlib.import_module(f"experiments.{system}")
    config = module.Config(batch_size=case.batch_size, **case.config)
    data, key = as_data(pairs), jax.random.key(0)
    compiled = jax.jit(steps_of(module, config), static_argnums=3, donate_argnums=1)
    state = module.initial_state(config)

    def run() -> None:
        nonlocal state
        state, metrics = compiled(key, state, data, case.num_steps)
        jax.block_until_ready((state, metrics))

    def next_batch(_: Any, step: Any, data: experiment_pairs.Data) -> Any:
        assert data.pairs is not None
        rows = step * case.batch_size + jnp.arange(case.batch_size)
        images = data.images[data.pairs.examples[:, rows]] / 255
        where = jnp.ones(case.batch_size, bool)
        return experiment_pairs.Batch(images, data.pairs.same[rows], where)

    def losses(path: str) -> list[float]:
        still = dataclasses.replace(config, **case.without_dropout)
        first = module.initial_state(still)
        np.savez(path, **_flat(first.params))  # type: ignore[arg-type]
        train = partial(
            training.train_steps,
            num_steps=case.num_compared_steps,
            batch_fn=next_batch,
            loss_fn=partial(module.loss_fn, still),
            optimizer=module.make_optimizer(still),
        )
        _, metrics = jax.jit(train)(key, first, data)
        return np.asarray(metrics["loss"]).tolist()

    return Contestant(run, losses, jax.devices()[0].platform)


def _flat(params: Any, prefix: str = "") -> dict[str, np.ndarray]:
    if not isinstance(params, dict):
        return {prefix: np.asarray(params)}
    flat: dict[str, np.ndarray] = {}
    for name, below in params.items():
        flat |= _flat(below, f"{prefix}/{name}" if prefix else name)
    return flat


# Keras ----------------------------------------------------------------------------------


def make_keras(system: str, case: Case, pairs: Pairs) -> Contestant:
    """`fit` on the backend's own tensors of left and right images, in memory."""
    import keras

    from benchmarks import keras_reference

    if case.config["compute_dtype"] != "float32":
        keras.config.set_dtype_policy(f"mixed_{case.config['compute_dtype']}")
    images = pairs.images.astype(np.float32) / 255
    images = 1 - images if case.inverted else images
    sides = [images[side] for side in pairs.examples]
    same = pairs.same.astype(np.float32)[:, None]
    inputs = [keras.ops.convert_to_tensor(side) for side in sides]
    targets = keras.ops.convert_to_tensor(same)
    model = keras_reference.build(system, **case.options).model
    several = 1 if keras.backend.backend() == "torch" else case.steps_per_execution
    model.compile(model.optimizer, model.loss, steps_per_execution=several)

    def run() -> None:
        model.fit(inputs, targets, batch_size=case.batch_size, verbose=0)

    def losses(path: str) -> list[float]:
        options = {**case.options, **case.without_dropout}
        reference = keras_reference.build(system, **options)
        with np.load(path) as flat:
            keras_reference.set_weights(reference, _nested(flat))
        found = []
        for first in range(0, case.num_compared_steps * case.batch_size, case.batch_size):
            rows = slice(first, first + case.batch_size)
            batch = [side[rows] for side in sides]
            found.append(float(reference.model.train_on_batch(batch, same[rows])))
        return found

    return Contestant(run, losses, _keras_device())


def _nested(flat: Any) -> dict[str, Any]:
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
    """A plain training loop: images as floats on the device, a fused optimiser."""
    import torch

    from benchmarks import torch_reference

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = pairs.images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    pictures = 1 - pictures if case.inverted else pictures
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

    def run() -> None:
        for number in range(case.num_steps):
            loss = step(number)
        loss.item()  # waits

    def losses(path: str) -> list[float]:
        reference, step = make(**{**case.options, **case.without_dropout})
        with np.load(path) as flat:
            torch_reference.set_weights(reference, _nested(flat))
        return [float(step(number)) for number in range(case.num_compared_steps)]

    return Contestant(run, losses, "gpu" if device.type == "cuda" else "cpu")


# Requests -------------------------------------------------------------------------------


def prepare(name: str, request: dict[str, Any]) -> tuple[Contestant, dict[str, Any]]:
    """Sets up a case and trains twice: the first time compiles, the second warms up."""
    options = {key: value for key, value in request.items() if key not in ("do", "system")}
    case = get_case(request["system"], **options)
    make: Callable[..., Contestant] = make_ours if name == OURS else make_keras
    if name in PLAIN_TORCH:
        make = partial(make_torch, compiled=PLAIN_TORCH[name])
    contestant = make(request["system"], case, make_pairs(case))
    first, second = (_seconds(contestant.run_fn) for _ in range(2))
    compiling = max(first - second, 0.0)
    return contestant, {"device": contestant.device, "compile_seconds": compiling}


def _seconds(run_fn: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run_fn()
    return time.perf_counter() - began


def serve(name: str, requests: Any, replies: Any) -> None:
    """Answers one request a line until there are no more."""
    contestant: Contestant | None = None
    for line in requests:
        request = json.loads(line)
        if request["do"] == "prepare":
            contestant = None  # its memory first
            contestant, reply = prepare(name, request)
        else:
            assert contestant is not None
            if request["do"] == "losses":
                reply = {"losses": contestant.losses_fn(request["weights"])}
            else:
                reply = {"seconds": _seconds(contestant.run_fn)}
        print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    """Answers on what was standard output; whatever else is printed goes to the errors."""
    (name,) = sys.argv[1:]
    if name in BACKENDS:
        os.environ["KERAS_BACKEND"] = BACKENDS[name]
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(name, sys.stdin, replies)


if __name__ == "__main__":
    main()
