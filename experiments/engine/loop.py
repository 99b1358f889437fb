"""The training loop: one form for every system, exact resume, results.

A system (`experiments.engine.system`) is made by `build(config)` in its file. `start`
prepares the folder of the run, `train` runs the steps, `finish` writes the results:

    workdir/config.json     the settings; a run with other settings is refused
    workdir/metrics.jsonl   one line for each step, also after the run was killed, some with
                            the health of the embeddings (`experiments.engine.health`)
    workdir/tensorboard/    the same curves, one point for each compiled call, and the
                            figures of evaluations.jsonl
    workdir/checkpoints/    the last two states
    workdir/evaluations.jsonl, workdir/best/   for systems that are evaluated as they train
    workdir/model/          the trained model, for `siamese-jax` and the evaluations
    workdir/results.json    figures, seconds, device, versions
    workdir/report.html     one page to look at

A collapse of the embeddings is told in a line when it begins, and in one when it ends.
Started again with the same folder and settings, a run continues from its last checkpoint
and ends bit for bit where an unbroken run ends: all randomness comes from the seed and the
number of the step, and the compiled calls begin at the same steps. A run can be lengthened
by a larger number of steps, unless its learning rate falls to zero at the last step.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli import finite_or_none, print_table, read_json, write_whole
from experiments.engine import checkpoints, devices, health, machine, processes, streams
from experiments.engine.config import (
    RunConfig,
    as_json,
    check_config,
    command,
    is_started,
    stream,
)
from experiments.engine.folders import check_settings, other_settings, write_settings
from experiments.engine.init_from import load_parameters, read_parameters
from experiments.engine.logs import Evaluation, EvaluationLog, Log, locked
from experiments.engine.stops import stop_requests
from experiments.engine.system import System, initial_state, with_floats
from siamese_jax.errors import UserError
from siamese_jax.model import Model, save_model
from siamese_jax.training import TrainState


class Trained(NamedTuple):
    """The end of a training run.

    Attributes:
      state: The state after the last step.
      best: The state with the best evaluation, or the last one without evaluations.
      seconds: Training time, summed over the parts of an interrupted run.
    """

    state: TrainState
    best: TrainState
    seconds: float


def start(config: RunConfig) -> bool:
    """Checks the settings and prepares the folder; returns whether there is work to do.

    Raises:
      UserError: If the settings make no sense, or the folder holds a run with others.
    """
    prepare_folder(config)
    directory = config.directory
    complete = all((directory / name).exists() for name in ("results.json", "report.html"))
    if not processes.any_of(complete):
        return True
    if not processes.is_first():
        return False
    print_table(read_json(directory / "results.json")["metrics"])
    print(f"{directory} is complete: delete it, or give another --workdir")
    return False


def prepare_folder(config: RunConfig) -> None:
    """Checks the settings and writes them to the folder of the run.

    A folder with the same settings and fewer steps is lengthened, where the system's
    updates do not depend on the number of steps.

    Raises:
      UserError: If the settings make no sense, the folder holds a run with others, or
        `--init-from` is no model.
    """
    check_config(config)
    _check_precision(config)
    directory, asked = config.directory, as_json(config)
    if is_started(directory):
        _check_settings(config, read_json(directory / "config.json"), asked)
    elif config.init_from is not None:
        read_parameters(config.init_from)
    write_settings(directory, asked)


def _check_precision(config: RunConfig) -> None:
    """Refuses float64 without JAX's 64-bit types, and other types with them."""
    if config.compute_dtype == "auto":
        raise ValueError("compute_dtype must be what `precision.settled` chose; got auto")
    enabled = jnp.result_type(float) == jnp.float64
    if enabled != (config.compute_dtype == "float64"):
        raise UserError(
            f"--compute-dtype {config.compute_dtype} needs jax_enable_x64 to be "
            f"{not enabled}, as the command sets it; it is {enabled}"
        )


def _check_settings(
    config: RunConfig, found: dict[str, Any], asked: dict[str, Any]
) -> None:
    """Refuses other settings than those of the folder, apart from a larger `num_steps`."""
    longer = config.num_steps > found.get("num_steps", 0)
    if longer and other_settings(found, asked) == ["num_steps"]:
        _lengthen(config, found["num_steps"])
    else:
        check_settings(config.directory, found, asked)


def _lengthen(config: RunConfig, num_steps: int) -> None:
    """Sets the results of a run of `num_steps` aside, so that it goes on to more steps."""
    directory = config.directory
    if not config.can_be_lengthened:
        raise UserError(
            f"{directory} holds a run of {num_steps} steps that cannot be lengthened: its "
            "learning rate falls to zero at the last step. Start another run from its "
            f"model, with --init-from {directory / 'model'} and another --workdir"
        )
    results = directory / "results.json"
    if results.exists():
        results.replace(directory / f"results-{num_steps}-steps.json")


def train(
    config: RunConfig, system: System, data: Any, *, evaluation: Evaluation | None = None
) -> Trained:
    """Trains to the last step, starting from the last checkpoint if there is one.

    Ctrl-C and SIGTERM end the training with a checkpoint after the current call.

    Args:
      config: The settings of the run.
      system: The functions to run.
      data: Whatever `system.sample` takes, on the device, or a `streams.Stream`, of which
        it takes `StreamedBatches`.
      evaluation: Evaluates the state at every checkpoint.

    Raises:
      UserError: If a checkpoint or the log is damaged, another process runs in the folder,
        `--init-from` does not fit, a metric is not finite, or an image cannot be read.
      KeyboardInterrupt: If the run was stopped. It says at which step the state was saved.
    """
    key, state = stream(config, "train"), initial_state(system, stream(config, "init"))
    batch = jax.eval_shape(system.sample, key, state.step, streams.shapes(data))
    images_per_step = math.prod(batch.images.shape[:-3])
    mesh = devices.choose_mesh(config, batch.images.shape[-4])
    compiled = devices.compile_steps(config, system, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(config.directory))
        saved = stack.enter_context(checkpoints.open_checkpoints(config.directory))
        if config.init_from is not None and saved.latest_step() is None:
            state = load_parameters(config.init_from, state, system.optimizer)
        state = processes.from_first(lambda: checkpoints.restore(saved, state), state)
        key, state = devices.replicate(mesh, (key, state))
        first = int(state.step)
        if 0 < first < config.num_steps:
            print(f"continuing from step {first} in {config.directory}")
        processes.share_files(config.directory, ("metrics.jsonl", "evaluations.jsonl"))
        log = stack.enter_context(contextlib.closing(Log(config.directory, first)))
        evaluations = EvaluationLog(config.directory, first, evaluation)
        progress = stack.enter_context(_progress_bar(config.num_steps, first))
        stop = stack.enter_context(stop_requests())
        watch = health.CollapseWatch(log.measured)
        data_of_calls = streams.of_calls(config, mesh, data, calls(config, first))
        stack.enter_context(contextlib.closing(data_of_calls))
        for step, done in calls(config, first):
            if processes.any_of(evaluations.out_of_patience()):
                print(f"stopped at step {step}: no better evaluation for a while")
                break
            began = time.perf_counter()
            state, metrics = compiled(key, state, next(data_of_calls), done - step)
            metrics = jax.tree.map(np.asarray, metrics)
            _check_finite(metrics, step)
            seconds = time.perf_counter() - began
            log.write(step, metrics, log.seconds + seconds)
            for line in watch.told(metrics, step) if processes.is_first() else ():
                progress.write(line)
            speed = (done - step) * images_per_step / seconds
            _show(progress, metrics["loss"], speed)
            stopping = processes.any_of(stop.is_set())
            if done % config.checkpoint_every == 0 or done == config.num_steps:
                local = devices.local_copy(mesh, state)
                log.write_figures(done, evaluations.add(done, local))
                checkpoints.save(saved, done, local)
            elif stopping:
                checkpoints.save(saved, done, devices.local_copy(mesh, state))
            if stopping:
                raise KeyboardInterrupt(f"saved at step {done}")
    state = best = devices.local_copy(mesh, state)
    if evaluation is not None:
        best = processes.from_first(
            lambda: checkpoints.load_best(config.directory, state), state
        )
    return Trained(state, best, log.seconds)


def calls(config: RunConfig, first: int) -> Iterator[tuple[int, int]]:
    """The steps before and after each compiled call that follows step `first`.

    Calls end at the multiples of `steps_per_call` and at the last step, wherever a run was
    interrupted or ended before it was lengthened.

    >>> list(calls(RunConfig(num_steps=25, steps_per_call=10), 12))
    [(12, 20), (20, 25)]
    """
    size = config.steps_per_call
    ends = [*range((first // size + 1) * size, config.num_steps, size), config.num_steps]
    return zip([first, *ends], ends, strict=False) if first < config.num_steps else iter(())


def finish(
    config: RunConfig, metrics: dict[str, Any], trained: Trained, model: Model | None
) -> None:
    """Writes the model and results.json, and prints the figures.

    Args:
      config: The settings of the run.
      metrics: Figures by name. A figure that is not finite is written as null.
      trained: What `train` returned.
      model: The trained model with its calibration; None for a run that is a summary of
        several others.
    """
    figures = {name: finite_or_none(value) for name, value in metrics.items()}
    if model is not None:
        details = {
            **model.details,
            "settings": as_json(config),
            "step": int(trained.best.step),
            "metrics": figures,
        }
        params = jax.tree.map(partial(with_floats, np.float32), model.params)
        model = dataclasses.replace(model, params=params, details=details)
        with jax.enable_x64(False):  # the folder is read where only 32-bit types are
            save_model(config.directory / "model", model)
    results = {
        "command": command(config),
        "seed": config.seed,
        "metrics": figures,
        "seconds": round(trained.seconds, 2),
        "num_steps": int(trained.state.step),
        "compute_dtype": config.compute_dtype,
        "parallel": config.parallel,
        **made_with(trained.state),
    }
    text = json.dumps(results, indent=2, allow_nan=False)
    write_whole(config.directory / "results.json", text + "\n")
    print_table(figures)
    print(f"{trained.seconds:.0f} s of training; results and report in {config.directory}")


def made_with(state: TrainState | Model) -> dict[str, Any]:
    """The devices that hold the parameters, the machine, the versions of the libraries."""
    return {
        "device": device_of(state),
        "machine": machine.description(),
        "versions": _versions(),
    }


def device_of(state: TrainState | Model) -> str:
    """The kind and the number of the devices that hold the state, in all processes."""
    held = {device for leaf in jax.tree.leaves(state.params) for device in leaf.devices()}
    return f"{next(iter(held)).device_kind} x {len(held) * jax.process_count()}"


def _progress_bar(num_steps: int, first: int) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=num_steps,
        initial=first,
        unit="step",
        mininterval=0.5,
        disable=not processes.is_first(),
    )


def _show(progress: Any, losses: np.ndarray, speed: float) -> None:
    """Advances the bar by the steps of a call, with their mean loss and images a second."""
    shown = {"loss": f"{losses.mean():.4f}", "images/s": f"{speed:,.0f}"}
    progress.set_postfix(shown, refresh=False)
    progress.update(len(losses))


def _check_finite(metrics: dict[str, np.ndarray], step: int) -> None:
    for name, array in metrics.items():
        if name not in health.FIGURES and not np.isfinite(array).all():
            bad = int(np.argmin(np.isfinite(array)))
            raise UserError(
                f"{name} is {array[bad]} at step {step + 1 + bad}: training has diverged; "
                "what was saved before is kept"
            )


def _versions() -> dict[str, str]:
    names = ("siamese_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}
