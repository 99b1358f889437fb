"""The logs of a run: metrics of each step, figures at each checkpoint, and its lock."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.cli import finite_or_none, write_whole
from experiments.engine import checkpoints
from experiments.engine.health import FIGURES, is_measured
from siamese_jax.errors import UserError
from siamese_jax.training import TrainState

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def read_log(workdir: pathlib.Path, name: str = "metrics.jsonl") -> dict[str, np.ndarray]:
    """The metrics of metrics.jsonl, or of another log, as one array each.

    A figure without a value is null in the file and NaN here, and so is one of the health
    of embeddings, in lines of steps in which it was not measured.
    """
    lines = [_parse(line) for line in (workdir / name).read_text().splitlines()]
    names = dict.fromkeys(name for line in lines for name in line)
    nan = float("nan")
    return {name: np.array([line.get(name, nan) for line in lines]) for name in names}


class Log:
    """Writes metrics.jsonl and TensorBoard events, starting after `step`.

    What an interrupted run logged beyond its last checkpoint is cut off, so that each step
    stands in the log once.

    Attributes:
      seconds: Training time up to the last line.
      measured: The lines with the health of embeddings, up to `step`.
    """

    def __init__(self, workdir: pathlib.Path, step: int) -> None:
        import tensorboardX

        path = workdir / "metrics.jsonl"
        lines = list(_lines_until(path, step))
        if [line["step"] for line in lines] != list(range(1, step + 1)):
            raise UserError(
                f"{path} does not hold each step up to the checkpoint at step {step} once; "
                f"it was changed by hand or is damaged. Delete {workdir} to start again"
            )
        write_whole(path, "".join(map(_as_text, lines)))
        self.seconds = lines[-1]["seconds"] if lines else 0.0
        self.measured = [line for line in lines if FIGURES[0] in line]
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1
        )

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()

    def write(self, step: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        """Adds the metrics of the steps after `step`, one array entry for each step.

        The health of embeddings stands in the lines of the steps in which it was measured.
        """
        self.seconds = seconds
        for i in range(len(metrics["loss"])):
            values = {
                name: float(array[i])
                for name, array in metrics.items()
                if name not in FIGURES or is_measured(step + i + 1)
            }
            line = {"step": step + i + 1, **values, "seconds": round(seconds, 3)}
            self._file.write(_as_text(line))
        self._file.flush()  # before the checkpoint that relies on these lines
        for name, array in metrics.items():
            known = array[np.isfinite(array)]
            if len(known):
                self._board.add_scalar(name, known.mean(), step + len(array))

    def write_figures(self, step: int, figures: dict[str, float]) -> None:
        """Adds the figures of the evaluation at a step to the TensorBoard events."""
        for name, figure in figures.items():
            self._board.add_scalar(f"evaluation/{name}", figure, step)


class Evaluation(NamedTuple):
    """How a run is evaluated at every checkpoint, and when it stops early.

    Attributes:
      evaluate_fn: Maps a state to figures; the same state gives the same figures.
      metric: The figure whose highest value marks the best state, which is kept.
      patience: Number of evaluations without a better one after which training stops.
    """

    evaluate_fn: Callable[[TrainState], dict[str, float]]
    metric: str
    patience: int


class EvaluationLog:
    """Writes evaluations.jsonl and keeps the best state.

    What an interrupted run evaluated beyond its last checkpoint is evaluated again.
    """

    def __init__(
        self, workdir: pathlib.Path, step: int, evaluation: Evaluation | None
    ) -> None:
        self._folder, self._evaluation = workdir, evaluation
        self._lines = list(_lines_until(workdir / "evaluations.jsonl", step))

    def add(self, step: int, state: TrainState) -> dict[str, float]:
        """Evaluates a state and returns its figures: none without an evaluation."""
        if self._evaluation is None:
            return {}
        from tqdm import tqdm

        figures = self._evaluation.evaluate_fn(state)
        metric = self._evaluation.metric
        tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        earlier = [line[metric] for line in self._lines]
        # NaN is never better, but the first state is kept in any case
        is_best = not earlier or figures[metric] > np.nanmax([-np.inf, *earlier])
        self._lines.append({"step": step, **figures})
        if is_best:
            checkpoints.save_best(self._folder, state)
        text = "".join(map(_as_text, self._lines))
        write_whole(self._folder / "evaluations.jsonl", text)
        return figures

    def out_of_patience(self) -> bool:
        """Whether the last evaluations have brought nothing better."""
        if self._evaluation is None or not self._lines:
            return False
        figures = [line[self._evaluation.metric] for line in self._lines]
        best = int(np.argmax(np.nan_to_num(figures, nan=-np.inf)))
        return len(figures) - 1 - best >= self._evaluation.patience


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Refuses a second process in the same folder; the end of the process unlocks it."""
    with (workdir / "lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is running in {workdir}") from None
        yield


def _lines_until(path: pathlib.Path, step: int) -> Iterator[dict[str, float]]:
    if path.exists():
        for text in path.read_text(errors="replace").splitlines():
            try:
                line = _parse(text)
            except json.JSONDecodeError:  # the line was cut short when the run was killed
                return
            if line.get("step", step + 1) > step:
                return
            yield line


def _as_text(line: dict[str, float]) -> str:
    """The figures as a line of JSON, with null for those without a value."""
    plain = {name: finite_or_none(value) for name, value in line.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


def _parse(text: str) -> dict[str, float]:
    """The figures of a line; none if it is no line of a log."""
    line = json.loads(text)
    if not isinstance(line, dict):
        return {}
    return {name: float("nan") if value is None else value for name, value in line.items()}
