"""The loop of every experiment: flags, progress, log, checkpoints, exact resume, results.

An experiment is a file with a `Config` and `main(config)`. In it, `start` looks at the
working directory, `train` runs the steps, `finish` writes the results:

    workdir/config.json     what was asked; another configuration is refused
    workdir/metrics.jsonl   one line a step, each step once, also after a kill
    workdir/tensorboard/    the same curves, one point a call
    workdir/checkpoints/    the last two states
    workdir/judgements.jsonl, workdir/best/   where a run is judged as it goes
    workdir/results.json    figures, seconds, device, versions
    workdir/report.html     one page to look at

Started again with the same working directory and configuration, a run goes on from its
last checkpoint and ends bit for bit where an unbroken run ends: all randomness comes from
the seed and the number of the step, and calls are cut at the same steps.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import re
import sys
import time
import typing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import numpy as np

if typing.TYPE_CHECKING:  # imported where needed: the steps of an experiment need none
    import orbax.checkpoint as ocp

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from siamese_jax import training
from siamese_jax.training import Metrics, TrainState


class UserError(Exception):
    """Something the user can mend: shown without a traceback, exit status 1."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every experiment can be asked.

    Attributes:
      workdir: Where everything is written, and resumed from. By default
        runs/EXPERIMENT, with every flag that differs from its default in the name.
      seed: Of all randomness.
      num_steps: Updates.
      steps_per_call: Updates in one compiled program.
      checkpoint_every: Steps between checkpoints, a multiple of `steps_per_call`.
    """

    experiment: ClassVar[str] = "experiment"

    workdir: pathlib.Path | None = None
    seed: int = 0
    num_steps: int = 1000
    steps_per_call: int = 10
    checkpoint_every: int = 100

    @property
    def directory(self) -> pathlib.Path:
        """The working directory, given or made up from the flags."""
        if self.workdir is not None:
            return self.workdir
        changes = [
            f"{field.name}={_plain(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return pathlib.Path("runs", "-".join([self.experiment, *changes]))


class Trained(NamedTuple):
    """The final state and how long training took, over all its pieces."""

    state: TrainState
    seconds: float


class Evaluation(NamedTuple):
    """How a run is judged at every checkpoint, and when it has seen enough.

    Attributes:
      judge_fn: State to figures; the same state gives the same figures.
      metric: The figure whose highest value marks the best state, which is kept.
      patience: Judgements without a better one after which training stops.
    """

    judge_fn: Callable[[TrainState], dict[str, float]]
    metric: str
    patience: int


ConfigT = TypeVar("ConfigT")  # a frozen dataclass
StepsFn = Callable[..., tuple[TrainState, Metrics]]


def command_line(main: Callable[[ConfigT], Any], config_type: type[ConfigT]) -> None:
    """Parses flags by the types of the configuration, runs, and names user errors."""
    import tyro

    logging.getLogger("absl").setLevel(logging.ERROR)
    doc = sys.modules[main.__module__].__doc__
    config = tyro.cli(config_type, description=doc)
    try:
        main(config)
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def load_config(workdir: pathlib.Path) -> RunConfig:
    """The configuration that a working directory was made with.

    Raises:
      UserError: If it holds no run of an experiment that is here.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run: there is no config.json")
    found = read_json(path)
    try:
        name = found.pop("experiment")
        config_type = importlib.import_module(f"experiments.{name}").Config
        fields = {field.name: field.type for field in dataclasses.fields(config_type)}
        given = {key: _from_json(value, fields[key]) for key, value in found.items()}
    except (KeyError, AttributeError, ModuleNotFoundError) as error:
        raise UserError(
            f"{path} is not of an experiment of this version ({type(error).__name__}: "
            f"{error}); train again with another --workdir"
        ) from error
    return config_type(**given | {"workdir": workdir})


def start(config: RunConfig) -> bool:
    """Makes or checks the working directory; True if there is something to do.

    Raises:
      UserError: If a count makes no sense, or the directory is of another configuration.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        counts = isinstance(value, int) and not isinstance(value, bool)
        if counts and field.name != "seed" and value < 1:
            raise UserError(f"{field.name} must be at least 1; got {value}")
    if config.checkpoint_every % config.steps_per_call:
        raise UserError(
            f"checkpoint_every must be a multiple of steps_per_call "
            f"({config.steps_per_call}); got {config.checkpoint_every}"
        )
    if config.directory.exists() and not config.directory.is_dir():
        raise UserError(f"--workdir: {config.directory} is not a folder")
    config.directory.mkdir(parents=True, exist_ok=True)
    path = config.directory / "config.json"
    asked = _as_json(config)
    if path.exists() and (config.directory / "metrics.jsonl").exists():
        found = read_json(path)
        different = [
            f"{name}: {found.get(name)} there, {asked.get(name)} asked"
            for name in sorted(found.keys() | asked.keys())
            if found.get(name) != asked.get(name)
        ]
        if different:
            raise UserError(
                f"{config.directory} holds a run of another configuration "
                f"({'; '.join(different)}); choose another --workdir, or delete it"
            )
    else:
        write_whole(path, json.dumps(asked, indent=2) + "\n")
    results = config.directory / "results.json"
    if results.exists() and (config.directory / "report.html").exists():
        print_table(read_json(results)["metrics"])
        print(f"{config.directory} is complete: delete it, or give another --workdir")
        return False
    return True


def train(
    config: RunConfig,
    state: TrainState,
    data: Any,
    steps_fn: StepsFn,
    *,
    images_per_step: int,
    evaluation: Evaluation | None = None,
) -> Trained:
    """Runs `steps_fn` to the end, from the last checkpoint if there is one.

    Args:
      config: The run.
      state: Before the first step.
      data: Handed to `steps_fn`.
      steps_fn: `steps_fn(key, state, data, num_steps) -> (state, metrics)`, pure.
      images_per_step: For the speed shown.
      evaluation: Judges the state at every checkpoint.

    Raises:
      UserError: If a checkpoint or the log is damaged, another process runs in the
        directory, or a metric is not finite.
    """
    from tqdm import tqdm

    compiled = jax.jit(steps_fn, static_argnums=3, donate_argnums=1)
    key = jax.random.key(config.seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(config.directory))
        checkpoints = stack.enter_context(_open_checkpoints(config.directory))
        state = _restore(checkpoints, state)
        first = int(state.step)
        if 0 < first < config.num_steps:
            print(f"going on from step {first} in {config.directory}")
        log = stack.enter_context(contextlib.closing(_Log(config.directory, first)))
        judgements = _Judgements(config.directory, first, evaluation)
        progress = stack.enter_context(
            tqdm(total=config.num_steps, initial=first, unit="step", mininterval=0.5)
        )
        began = time.perf_counter() - log.seconds
        for step in range(first, config.num_steps, config.steps_per_call):
            if judgements.out_of_patience():
                print(f"stopped at step {step}: no better judgement for a while")
                break
            num_steps = min(config.steps_per_call, config.num_steps - step)
            call_began = time.perf_counter()
            state, metrics = compiled(key, state, data, num_steps)
            metrics = jax.tree.map(np.asarray, metrics)
            _check_finite(metrics, step)
            now = time.perf_counter()
            log.write(step, metrics, now - began)
            speed = num_steps * images_per_step / (now - call_began)
            shown = {"loss": f"{metrics['loss'].mean():.4f}", "images/s": f"{speed:,.0f}"}
            progress.set_postfix(shown, refresh=False)
            progress.update(num_steps)
            done = step + num_steps
            if done % config.checkpoint_every == 0 or done == config.num_steps:
                judgements.add(done, state)
                _save(checkpoints, done, state)
        return Trained(state, log.seconds)


def make_steps(
    batch_fn: Callable[..., Any],
    loss_fn: Callable[..., Any],
    optimizer_fn: Callable[[Any], Any],
) -> StepsFn:
    """Many steps as one program: `train_steps(config, key, state, data, num_steps)`.

    Of an experiment's functions, each of which takes the configuration first.
    """

    def train_steps(
        config: Any, key: jax.Array, state: TrainState, data: Any, num_steps: int
    ) -> tuple[TrainState, Metrics]:
        return training.train_steps(
            key,
            state,
            data,
            num_steps=num_steps,
            batch_fn=partial(batch_fn, config),
            loss_fn=partial(loss_fn, config),
            optimizer=optimizer_fn(config),
        )

    return train_steps


def load_state(config: RunConfig, state: TrainState) -> TrainState:
    """The last checkpoint of a working directory, shaped like `state`.

    Raises:
      UserError: If there is no checkpoint, or it cannot be read.
    """
    if not (config.directory / "checkpoints").is_dir():
        raise UserError(f"{config.directory} holds no checkpoint")
    with _open_checkpoints(config.directory) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UserError(f"{config.directory} holds no whole checkpoint")
        return _restore(checkpoints, state)


def load_best(config: RunConfig, state: TrainState) -> TrainState:
    """The state that was judged best, shaped like `state`.

    Raises:
      UserError: If none was judged yet, or it cannot be read.
    """
    import orbax.checkpoint as ocp

    folder = config.directory.absolute() / "best"
    if not folder.is_dir():
        raise UserError(f"{config.directory} holds no checkpoint that was judged")
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(folder, state)
        except Exception as error:  # whatever the storage layers raise
            raise UserError(
                f"{folder} cannot be read: it is damaged, cut short or of another network "
                f"({type(error).__name__})"
            ) from error


def finish(config: RunConfig, metrics: dict[str, float], trained: Trained) -> None:
    """Writes results.json and shows a short table."""
    results = {
        "metrics": metrics,
        "seconds": round(trained.seconds, 2),
        "num_steps": int(trained.state.step),
        "device": f"{jax.devices()[0].device_kind} x {jax.local_device_count()}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": _versions(),
    }
    write_whole(config.directory / "results.json", json.dumps(results, indent=2) + "\n")
    print_table(metrics)
    print(f"{trained.seconds:.0f} s of training; results and report in {config.directory}")


def print_table(metrics: dict[str, float]) -> None:
    """One figure a line; whole numbers are shown as such."""
    width = max(map(len, metrics))
    print()
    for name, value in metrics.items():
        shown = str(value) if isinstance(value, int) else f"{value:.4f}"
        print(f"  {name:<{width}}  {shown}")
    print()


def check_output(path: pathlib.Path | None) -> None:
    """Refuses, before any work, a place where no file can be written after it.

    Raises:
      UserError: If the path is a folder, or its folder does not exist.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--json: {path} is a folder; a file is wanted")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--json: the folder {path.parent} does not exist")


def show_figures(figures: dict[str, Any], path: pathlib.Path | None) -> None:
    """Shows figures["metrics"] as a table and, if a path is given, writes all as JSON.

    Raises:
      UserError: If a metric is not finite; nothing is written.
    """
    for name, value in figures["metrics"].items():
        if not np.isfinite(value):
            raise UserError(f"{name} is {value}: the model gives distances without a value")
    print_table(figures["metrics"])
    if path is not None:
        write_whole(path, json.dumps(figures, indent=2) + "\n")


def read_log(workdir: pathlib.Path, name: str = "metrics.jsonl") -> dict[str, np.ndarray]:
    """Every metric of metrics.jsonl, or of another log, one array each."""
    lines = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


class _Log:
    """metrics.jsonl and TensorBoard, from a step on; what was logged beyond it is cut."""

    def __init__(self, workdir: pathlib.Path, step: int) -> None:
        import tensorboardX

        path = workdir / "metrics.jsonl"
        kept = list(_lines_until(path, step))
        if [line["step"] for line in kept] != list(range(1, step + 1)):
            raise UserError(
                f"{path} does not hold each step up to the checkpoint at step {step} once; "
                f"it was changed by hand or is damaged. Delete {workdir} to start again"
            )
        write_whole(path, "".join(f"{json.dumps(line)}\n" for line in kept))
        self.seconds = kept[-1]["seconds"] if kept else 0.0
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1
        )

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def write(self, step: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        self.seconds = seconds
        for i in range(len(metrics["loss"])):
            values = {name: float(array[i]) for name, array in metrics.items()}
            line = {"step": step + i + 1, **values, "seconds": round(seconds, 3)}
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()  # before the checkpoint that relies on it
        for name, array in metrics.items():
            self._board.add_scalar(name, array.mean(), step + len(array))


class _Judgements:
    """judgements.jsonl, and the best state; what lies beyond a step is judged again."""

    def __init__(
        self, workdir: pathlib.Path, step: int, evaluation: Evaluation | None
    ) -> None:
        self._folder, self._evaluation = workdir, evaluation
        self._lines = list(_lines_until(workdir / "judgements.jsonl", step))

    def add(self, step: int, state: TrainState) -> None:
        if self._evaluation is None:
            return
        import orbax.checkpoint as ocp
        from tqdm import tqdm

        figures = self._evaluation.judge_fn(state)
        metric = self._evaluation.metric
        tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        better = all(figures[metric] > line[metric] for line in self._lines)
        self._lines.append({"step": step, **figures})
        if better:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self._folder.absolute() / "best", state, force=True)
        text = "".join(f"{json.dumps(line)}\n" for line in self._lines)
        write_whole(self._folder / "judgements.jsonl", text)

    def out_of_patience(self) -> bool:
        if self._evaluation is None or not self._lines:
            return False
        figures = [line[self._evaluation.metric] for line in self._lines]
        return len(figures) - 1 - int(np.argmax(figures)) >= self._evaluation.patience


def _lines_until(path: pathlib.Path, step: int) -> Iterator[dict[str, float]]:
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # cut short by a kill
                return
            if line["step"] > step:
                return
            yield line


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Refuses a second process in the same directory; a kill unlocks."""
    with (workdir / "lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is running in {workdir}") from None
        yield


@contextlib.contextmanager
def _open_checkpoints(workdir: pathlib.Path) -> Iterator["ocp.CheckpointManager"]:
    import orbax.checkpoint as ocp

    # Saving waits: the state's memory is given to the next step.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    folder = workdir.absolute() / "checkpoints"
    with ocp.CheckpointManager(folder, options=options) as manager:
        yield manager


def _save(checkpoints: "ocp.CheckpointManager", step: int, state: TrainState) -> None:
    import orbax.checkpoint as ocp

    checkpoints.save(step, args=ocp.args.StandardSave(state))


def _restore(checkpoints: "ocp.CheckpointManager", state: TrainState) -> TrainState:
    import orbax.checkpoint as ocp

    step = checkpoints.latest_step()
    if step is None:
        return state
    try:
        return checkpoints.restore(step, args=ocp.args.StandardRestore(state))
    except Exception as error:  # whatever the storage layers raise
        folder = pathlib.Path(checkpoints.directory) / str(step)
        raise UserError(
            f"checkpoint {folder} cannot be read: it is damaged, cut short or of another "
            f"network ({type(error).__name__}). Delete that folder to go on from the "
            "checkpoint before it, if there is one, or from the beginning"
        ) from error


def _check_finite(metrics: dict[str, np.ndarray], step: int) -> None:
    for name, array in metrics.items():
        if not np.isfinite(array).all():
            bad = step + 1 + int(np.argmin(np.isfinite(array)))
            raise UserError(
                f"{name} is {array[bad - step - 1]} at step {bad}: training has diverged; "
                "what was saved before is kept"
            )


def _plain(value: Any) -> str:
    """A flag's value as part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")


def _as_json(config: RunConfig) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    del fields["workdir"]
    asked = {"experiment": config.experiment, **fields}
    return json.loads(json.dumps(asked, default=str))


def _from_json(value: Any, kind: Any) -> Any:
    if value is not None and pathlib.Path in (kind, *typing.get_args(kind)):
        return pathlib.Path(value)
    return tuple(value) if isinstance(value, list) else value


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file; a damaged one is named."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, or the folder, to start again"
        ) from error


def write_whole(path: pathlib.Path, text: str) -> None:
    """All or nothing: a kill leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def _versions() -> dict[str, str]:
    names = ("siamese_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}
