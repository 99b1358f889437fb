"""The training of many runs of one system at once.

The runs differ in their seeds and in some numbers, such as a margin or a learning rate.
Each of these numbers is an array with one entry for each run. `vmap` over the runs makes a
system and a training step of them, and `scan` makes many steps, so that all runs are one
compiled program. The runs are independent of each other: the devices exchange nothing, and
a run whose numbers become NaN spoils no other run.

The folder of a sweep has a line of metrics.jsonl for each compiled call, with the mean of
each metric over the steps of the call for each run, and the checkpoints of the stacked
states. An interrupted sweep continues from the last one and ends bit for bit as an unbroken
one, on the same devices.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.cli import finite_or_none, write_whole
from experiments.engine import checkpoints, devices
from experiments.engine.config import RunConfig, flag_of, stream
from experiments.engine.init_from import load_parameters
from experiments.engine.logs import locked
from experiments.engine.loop import calls
from experiments.engine.stops import stop_requests
from experiments.engine.system import System, initial_state, train_steps
from siamese_jax.errors import UserError
from siamese_jax.training import Metrics, TrainState

AXIS = "runs"
OF_RUNS, SHARED = PartitionSpec(AXIS), PartitionSpec()
Numbers = dict[str, Any]  # of one run, or arrays of those of all runs
Lines = list[dict[str, Any]]


class Runs(NamedTuple):
    """The runs of a sweep.

    Attributes:
      build: `build(config) -> System`.
      configs: The settings of each run.
      names: The settings in which runs differ: the seed, and others that are numbers.
    """

    build: Callable[[Any], System]
    configs: Sequence[RunConfig]
    names: tuple[str, ...]

    def with_numbers(self, numbers: Numbers) -> RunConfig:
        """The settings of a run with these numbers, which may be traced."""
        return dataclasses.replace(self.configs[0], **numbers)

    def numbers(self) -> Numbers:
        """Arrays with the numbers of all runs, in JAX's default types."""
        return {
            name: as_array(name, [getattr(config, name) for config in self.configs])
            for name in self.names
        }


def as_array(name: str, numbers: Sequence[float]) -> np.ndarray:
    """An array of the values of a setting, in JAX's default type of such numbers."""
    kind = int if all(isinstance(number, int) for number in numbers) else float
    dtype = np.uint32 if name == "seed" else jnp.zeros((), kind).dtype
    return np.asarray(numbers, dtype)


# Data -----------------------------------------------------------------------------------


class RunData(NamedTuple):
    """What the runs train on: arrays that all share, and arrays of each run.

    Attributes:
      structure: The structure of the data of a run.
      own: Arrays with a leading axis of runs, by their position in the structure.
      shared: Arrays that are the same for all runs, by their position.
    """

    structure: Any
    own: dict[int, Any]
    shared: dict[int, Any]


def stack_data(data: Iterable[Any]) -> RunData:
    """Stacks the data of all runs; of what is equal for all runs one copy is kept.

    >>> images, pairs = jnp.zeros(3), jnp.array([[4], [5]])
    >>> data = stack_data({"images": images, "pair": pair} for pair in pairs)
    >>> print(data.shared[0].shape, data.own[1].shape)
    (3,) (2, 1)
    """
    trees = iter(data)
    leaves, first_structure = jax.tree.flatten(next(trees))
    structure: Any = first_structure
    columns = [[leaf] for leaf in leaves]
    for tree in trees:
        leaves, found = jax.tree.flatten(tree)
        if found != structure:
            raise UserError("the runs have training data of different forms")
        for column, leaf in zip(columns, leaves, strict=True):
            first = column[0]
            column.append(first if np.array_equal(first, leaf) else leaf)
    own, shared = {}, {}
    for position, column in enumerate(columns):
        if all(leaf is column[0] for leaf in column):
            shared[position] = column[0]
        else:
            own[position] = np.stack([np.asarray(leaf) for leaf in column])
    return RunData(structure, own, shared)


def data_of_a_run(structure: Any, own: dict[int, Any], shared: dict[int, Any]) -> Any:
    """Puts together the data of one run."""
    leaves = own | shared
    return jax.tree.unflatten(structure, [leaves[i] for i in range(len(leaves))])


# Programs -------------------------------------------------------------------------------


def make_mesh(num_runs: int) -> Mesh:
    """As many devices of this process as share the runs evenly."""
    available = jax.local_devices()[: devices.usual_devices()]
    num = max(n for n in range(1, len(available) + 1) if num_runs % n == 0)
    if len(available) > 1:
        kind = available[0].device_kind
        print(
            f"trains on {num} of {len(available)} devices ({kind}), {num_runs // num} runs "
            "on each"
        )
    return Mesh(np.array(available[:num]), (AXIS,), axis_types=(AxisType.Auto,))


def first_state(runs: Runs, numbers: Numbers) -> TrainState:
    """The state of a run before its first step."""
    config = runs.with_numbers(numbers)
    system = runs.build(config)
    state = initial_state(system, stream(config, "init"))
    if config.init_from is None:
        return state
    return load_parameters(config.init_from, state, system.optimizer)


def run_steps(
    runs: Runs, num_steps: int, numbers: Numbers, state: TrainState, data: Any
) -> tuple[TrainState, Metrics]:
    """Many training steps of one run."""
    config = runs.with_numbers(numbers)
    key = stream(config, "train")
    return train_steps(runs.build(config), key, state, data, num_steps)


def compile_first_states(runs: Runs, mesh: Mesh) -> Callable[[Numbers], TrainState]:
    """Returns `numbers -> states`, compiled for all runs on a mesh."""
    mapped = jax.vmap(partial(first_state, runs))
    return jax.jit(
        jax.shard_map(
            mapped, mesh=mesh, in_specs=OF_RUNS, out_specs=OF_RUNS, check_vma=False
        )
    )


def compile_steps(
    runs: Runs, structure: Any, mesh: Mesh
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `(num_steps, numbers, states, own, shared) -> (states, metrics)`, compiled.

    The metrics have the axes of runs and of steps. The states are donated.
    """

    def steps(
        num_steps: int, numbers: Numbers, states: TrainState, own: Any, shared: Any
    ) -> Any:
        def one(numbers: Numbers, state: TrainState, own: Any, shared: Any) -> Any:
            data = data_of_a_run(structure, own, shared)
            return run_steps(runs, num_steps, numbers, state, data)

        # nothing is exchanged between devices, so there is nothing to check
        return jax.shard_map(
            jax.vmap(one, in_axes=(0, 0, 0, None)),
            mesh=mesh,
            in_specs=(OF_RUNS, OF_RUNS, OF_RUNS, SHARED),
            out_specs=OF_RUNS,
            check_vma=False,
        )(numbers, states, own, shared)

    return jax.jit(steps, static_argnums=0, donate_argnums=2)


def check_can_be_traced(runs: Runs, data: RunData) -> None:
    """Refuses settings that are not numbers in the program of the first state and a step.

    Raises:
      UserError: If they cannot be traced with a setting whose number is not known, or none
        of their operations takes the number.
    """
    numbers = {name: array[0] for name, array in runs.numbers().items()}
    own = {position: jnp.asarray(array[0]) for position, array in data.own.items()}
    one = data_of_a_run(data.structure, own, data.shared)

    def step(numbers: Numbers) -> Any:
        return run_steps(runs, 1, numbers, first_state(runs, numbers), one)

    everything = {name: number.item() for name, number in numbers.items()}
    jax.eval_shape(lambda: step(everything))  # fails here if the numbers are not the reason
    for name, number in numbers.items():
        known = {other: x for other, x in everything.items() if other != name}
        try:
            traced = jax.make_jaxpr(
                lambda x, name=name, known=known: step(known | {name: x})
            )(number)
        except UserError:
            raise
        except Exception as error:  # an unknown number is refused in many ways
            raise UserError(
                f"{flag_of(name)} cannot differ between the runs of a sweep: "
                f"the program of a step depends on it ({type(error).__name__}). Give one "
                "value"
            ) from error
        taken = [one for operation in traced.eqns for one in operation.invars]
        if not any(one is traced.jaxpr.invars[0] for one in taken):
            raise UserError(
                f"{flag_of(name)} cannot differ between the runs of a sweep: their "
                "training does not depend on it. Give one value"
            )


# Training -------------------------------------------------------------------------------


class TrainedRuns(NamedTuple):
    """The end of the training of a sweep.

    Attributes:
      states: The states after the last step, with a leading axis of runs.
      diverged: For each run the first step with a number that is not finite, or None.
      seconds: Training time of all runs, summed over the parts of an interrupted sweep.
    """

    states: TrainState
    diverged: list[int | None]
    seconds: float


def train(runs: Runs, data: RunData, directory: pathlib.Path) -> TrainedRuns:
    """Trains all runs to the last step, from the last checkpoint if there is one.

    Ctrl-C and SIGTERM end the training with a checkpoint after the current call.

    Args:
      runs: The runs, which have the same number of steps.
      data: What they train on.
      directory: The folder of the sweep.

    Raises:
      UserError: If a checkpoint is damaged, or another process runs in the folder.
      KeyboardInterrupt: If the sweep was stopped. It says at which step it was saved.
    """
    from tqdm import tqdm

    config, mesh = runs.configs[0], make_mesh(len(runs.configs))
    of_runs, everywhere = (NamedSharding(mesh, spec) for spec in (OF_RUNS, SHARED))
    numbers, own = jax.device_put((runs.numbers(), data.own), of_runs)
    shared = jax.device_put(data.shared, everywhere)
    compiled = compile_steps(runs, data.structure, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(directory))
        saved = stack.enter_context(checkpoints.open_checkpoints(directory))
        states = checkpoints.restore(saved, compile_first_states(runs, mesh)(numbers))
        first = saved.latest_step() or 0
        lines = read_lines(directory, first)
        if 0 < first < config.num_steps:
            print(f"continuing from step {first} in {directory}")
        bar = tqdm(total=config.num_steps, initial=first, unit="step", mininterval=0.5)
        progress = stack.enter_context(contextlib.closing(bar))
        stop = stack.enter_context(stop_requests())
        for step, done in calls(config, first):
            began = time.perf_counter()
            states, metrics = compiled(done - step, numbers, states, own, shared)
            metrics = jax.tree.map(np.asarray, metrics)
            lines.append(make_line(lines, metrics, step, time.perf_counter() - began))
            show(progress, lines[-1], done - step)
            if (
                done % config.checkpoint_every == 0
                or done == config.num_steps
                or (stop.is_set())
            ):
                write_lines(directory, lines)  # before the checkpoint that relies on them
                checkpoints.save(saved, done, states)
            if stop.is_set():
                raise KeyboardInterrupt(f"saved at step {done}")
    finite = have_finite_parameters(states)
    diverged = [
        at if at is not None or is_finite else config.num_steps
        for at, is_finite in zip(lines[-1]["diverged"], finite, strict=True)
    ]
    return TrainedRuns(states, diverged, lines[-1]["seconds"])


def have_finite_parameters(states: TrainState) -> np.ndarray:
    """For each run whether its parameters are finite."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(states.params)]
    of_each = [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves]
    return np.all(of_each, axis=0)


# Metrics --------------------------------------------------------------------------------


def make_line(
    lines: Lines, metrics: dict[str, np.ndarray], step: int, seconds: float
) -> dict[str, Any]:
    """The line of metrics.jsonl for the call after `step`, that follows other lines.

    A run has diverged at the first step at which one of its metrics is not finite.

    >>> metrics = {"loss": np.array([[4.0, 2.0], [1.0, np.nan]])}
    >>> make_line([], metrics, 10, 0.5)
    {'step': 12, 'seconds': 0.5, 'diverged': [None, 12], 'loss': [3.0, None]}
    """
    finite = np.all([np.isfinite(array) for array in metrics.values()], axis=0)
    at_first = {"seconds": 0.0, "diverged": [None] * len(finite)}
    before: dict[str, Any] = lines[-1] if lines else at_first
    diverged = [
        earlier if earlier is not None or is_finite.all() else step + 1 + int(bad)
        for earlier, is_finite, bad in zip(
            before["diverged"], finite, np.argmin(finite, axis=1), strict=True
        )
    ]
    means = {
        name: [finite_or_none(float(mean)) for mean in array.mean(axis=1)]
        for name, array in metrics.items()
    }
    return {
        "step": step + finite.shape[1],
        "seconds": round(before["seconds"] + seconds, 3),
        "diverged": diverged,
        **means,
    }


def show(progress: Any, line: dict[str, Any], num_steps: int) -> None:
    """Advances the bar, with the mean loss of the runs that have not diverged."""
    losses = [loss for loss in line["loss"] if loss is not None]
    num_diverged = sum(at is not None for at in line["diverged"])
    shown = {"loss": f"{np.mean(losses):.4f}" if losses else "undefined"}
    if num_diverged:
        shown["diverged"] = str(num_diverged)
    progress.set_postfix(shown, refresh=False)
    progress.update(num_steps)


def read_lines(directory: pathlib.Path, step: int) -> Lines:
    """The lines of metrics.jsonl up to the checkpoint at `step`.

    Raises:
      UserError: If the line of the checkpoint is not there.
    """
    path = directory / "metrics.jsonl"
    if not step:
        return []
    try:
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        lines = [line for line in lines if line["step"] <= step]
        if lines[-1]["step"] != step:
            raise IndexError(step)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} does not hold the metrics up to the checkpoint at step {step}; it was "
            f"changed by hand or is damaged. Delete {directory} to start again"
        ) from error
    return lines


def write_lines(directory: pathlib.Path, lines: Lines) -> None:
    """Writes metrics.jsonl."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_whole(directory / "metrics.jsonl", text)
