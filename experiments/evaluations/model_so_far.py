"""The accuracies and the best model so far of a run that is still training.

Source:  for omniglot_koch the public Keras tutorial, which evaluates on random 20-way tasks
         as it trains. Its notebook shows .672 after 2,000 steps, .728 after 4,000, .776
         after 6,000, and .82 after 20,000, each on 250 tasks (95 % interval: +- .05).
Run:     python -m experiments model_so_far --run RUN
         python -m experiments model_so_far --run RUN --model best_so_far
         python -m experiments lake_trials --model best_so_far --runs all_runs.zip
         python -m experiments mnist_transfer --model best_so_far
Expect:  one line for each 2,000 steps of a run that has come so far

The run must be of a system that evaluates as it trains, such as omniglot_koch. A finished
run has its model in RUN/model. Before that, `--model` writes the model of the best state of
the evaluations so far, which is also the one that a finished run keeps. The model is not
calibrated, so `lake_trials`, `mnist_transfer` and `within_alphabet` can use it, and
`siamese-jax verify` cannot. The run is only read and may go on meanwhile. If it saves a
state at the same moment, the command ends with an error and can be repeated.

The accuracies are those of the file evaluations.jsonl. Those of omniglot_koch are on 2,000
tasks over all characters of the validation alphabets, and on 2,000 within one alphabet.
The tutorial's tasks are over all characters for evaluation, as at the end of a run.
"""

import dataclasses
import pathlib

import jax

from experiments.cli import command_line, print_table, read_json
from experiments.engine import checkpoints
from experiments.engine.config import RunConfig, check_config, setting
from experiments.engine.logs import read_log
from experiments.engine.system import initial_state, load_system, system_names
from siamese_jax.errors import UserError
from siamese_jax.model import Model, save_model


@dataclasses.dataclass(frozen=True)
class Config:
    """The run, and what to make of it.

    Attributes:
      run: The folder of a run.
      every: Number of steps between the lines of the table.
      model: A folder for the model of the best state. Without it, none is written.
    """

    run: pathlib.Path
    every: int = setting(2_000, at_least=1)
    model: pathlib.Path | None = None


def main(config: Config) -> None:
    """Prints the accuracies and writes the model.

    Raises:
      UserError: If the folder is no run, or nothing was evaluated yet.
    """
    check_config(config)
    settings = read_settings(config.run)
    if not (config.run / "evaluations.jsonl").exists():
        raise UserError(f"--run: {config.run} holds no state that was evaluated")
    found = curve(config.run, config.every)
    if not found:
        print(f"no evaluation was at a multiple of {config.every:,} steps yet")
    for step, figures in found.items():
        print(f"step {step:,}")
        print_table(figures)
    if config.model is not None:
        save_model(config.model, best_model(config.run, settings))
        print(f"wrote {config.model}")


def read_settings(run: pathlib.Path) -> RunConfig:
    """Returns the settings of a run.

    Raises:
      UserError: If the folder is no run of a system.
    """
    path = run / "config.json"
    found = read_json(path) if path.is_file() else {}
    name = found.pop("experiment", None)
    if name not in system_names():
        raise UserError(f"--run: {run} is no run of a system")
    config_type = load_system(name).Config
    names = {field.name for field in dataclasses.fields(config_type)}
    if not found.keys() <= names:
        unknown = ", ".join(sorted(found.keys() - names))
        raise UserError(f"--run: {run} was made by another version; it has {unknown}")
    return config_type(**found)


def curve(run: pathlib.Path, every: int) -> dict[int, dict[str, float]]:
    """Returns the figures of the evaluations at multiples of `every` steps, by step."""
    log = read_log(run, "evaluations.jsonl")
    steps = log.pop("step")
    return {
        int(step): {name: float(values[row]) for name, values in log.items()}
        for row, step in enumerate(steps)
        if step % every == 0
    }


def best_model(run: pathlib.Path, settings: RunConfig) -> Model:
    """Returns the best state of a run as a model, which says at which step it was.

    Raises:
      UserError: If no state was evaluated yet, or the best one cannot be read.
    """
    system = load_system(settings.experiment).build(settings)
    like = jax.eval_shape(lambda: initial_state(system, jax.random.key(0)))
    state = checkpoints.load_best(run, like)
    return dataclasses.replace(system.model(state), details={"step": int(state.step)})


if __name__ == "__main__":
    command_line(main, Config)
