"""Trains many seeds and settings of a system at once, in one compiled program.

Run:     python -m experiments sweep mnist_mlp --seeds 0:32 --margin 0.5,1.0
         python -m experiments sweep glyphs --seeds 0,1,2 --temperature 0.05,0.1,0.2
Quick:   python -m experiments sweep mnist_mlp --dataset digits --num-steps 900
             --seeds 0:4 --margin 0.5,1.0 --workdir runs/quick_sweep

The name of the system comes first: glyphs, mnist_conv, mnist_mlp or orl_tutorial. Its flags
follow, which `python -m experiments sweep NAME --help` lists. A flag that takes one number
may have several, with commas between them, and every combination is trained with every
seed. `--seeds 0:32` are the seeds 0 to 31, `--seeds 0,3,7` are three. All other flags hold
for all runs.

A setting can differ between the runs if it is a number in the program of a step, such as a
margin, a temperature, a learning rate or a weight decay. What decides the program itself,
such as a batch size, has one value, and so has what the training does not use, such as the
number of test tasks. A sweep refuses several values of these before it trains.

Every run starts, draws its batches and ends as the single run with the same flags does,
apart from rounding. The runs are spread over as many devices as divide their number.

The table has the mean and the standard deviation over the seeds of each setting. The best
one is chosen by `calibration_accuracy`, the accuracy on the pairs that the model is
calibrated on, not by a figure of the test. A run whose numbers become NaN or infinite does
not stop the others. It has no figures, its step is reported, and its setting is not the
best.

The folder of the sweep has results.json and results.csv with a line for each run. A sweep
that was interrupted continues if it is started again, and a finished one prints its table.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.cli import (
    command_line,
    finite_or_none,
    parse_flags,
    read_json,
    write_whole,
)
from experiments.engine.config import (
    LARGEST_SEED,
    RunConfig,
    as_json,
    changed,
    check_config,
    command,
    flag_of,
    setting,
)
from experiments.engine.folders import check_settings, write_settings
from experiments.engine.loop import made_with
from experiments.engine.system import load_system
from experiments.evaluations.results_table import FIGURES
from experiments.sweeps import summary
from experiments.sweeps.many_runs import (
    Runs,
    TrainedRuns,
    check_can_be_traced,
    stack_data,
    train,
)
from experiments.sweeps.summary import CHOICE, RunResult, SettingResult
from siamese_jax.errors import UserError

# Systems whose files have, beside `build`, the functions `load(config)`,
# `training_data(config, loaded)` and `evaluate(config, loaded, model)`.
SYSTEMS = ("glyphs", "mnist_conv", "mnist_mlp", "orl_tutorial")
MOST_RUNS = 10_000
# Of the settings that every system has, those that a sweep uses.
USED = (
    "workdir",
    "init_from",
    "num_steps",
    "steps_per_call",
    "checkpoint_every",
    "compute_dtype",
)


class Values(NamedTuple):
    """The values of a setting that differs between the runs."""

    name: str
    numbers: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs of a sweep: every combination of values, with every seed.

    Attributes:
      fixed: The settings that all runs share, and the folder of the sweep.
      seeds: The seeds.
      values: The settings that differ, with their values.
    """

    fixed: RunConfig
    seeds: tuple[int, ...] = setting(tuple(range(8)), at_least=0, at_most=LARGEST_SEED)
    values: tuple[Values, ...] = ()

    @classmethod
    def from_flags(cls, flags: Sequence[str], program: str) -> "Config":
        """The sweep that the name of a system and flags describe.

        Raises:
          UserError: If the name or a list of numbers is wrong.
        """
        name, *rest = flags or ("",)
        if name in ("-h", "--help"):
            print(f"usage: {program} {{{','.join(SYSTEMS)}}} [--seeds SEEDS] [flags]")
            raise SystemExit(0)
        if name not in SYSTEMS:
            raise UserError(
                f"the name of a system comes first, one of {', '.join(SYSTEMS)}; got "
                f"{name or 'none'}"
            )
        system = load_system(name)
        types = typing.get_type_hints(system.Config)
        numeric = {field: kind for field, kind in types.items() if kind in (int, float)}
        lists, others = split_lists(rest, tuple(numeric))
        seeds = parse_seeds(lists.pop("seeds")) if "seeds" in lists else cls.seeds
        values = tuple(
            Values(field, parse_numbers(field, text, numeric[field]))
            for field, text in lists.items()
        )
        return cls(parse_flags(system.Config, others, f"{program} {name}"), seeds, values)

    @property
    def directory(self) -> pathlib.Path:
        """The folder of the sweep: `workdir`, or a name made from the settings."""
        if self.fixed.workdir is not None:
            return self.fixed.workdir
        text = json.dumps(sweep_as_json(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return pathlib.Path("runs", f"sweep-{self.fixed.experiment}-{digest}")


# Flags ----------------------------------------------------------------------------------


def split_lists(
    flags: Sequence[str], numeric: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Takes out the seeds, and the flags of numbers that have a comma in their value.

    >>> split_lists(["--margin", "0.5,1", "--seeds=0:2", "--rate", "3"], ["margin", "rate"])
    ({'margin': '0.5,1', 'seeds': '0:2'}, ['--rate', '3'])
    """
    lists, others = {}, []
    words = iter(flags)
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        known = flag.startswith("--") and name in (*numeric, "seeds")
        if known and not equals:
            value = next(words, "")
        if known and (name == "seeds" or "," in value):
            lists[name] = value
        else:
            others += [word] if equals or not known else [word, value]
    return lists, others


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of numbers and of ranges, whose last number is left out.

    Raises:
      UserError: If the text has something else, no seed, or more than a sweep may have.

    >>> parse_seeds("0:3,7")
    (0, 1, 2, 7)
    """
    ranges = []
    for part in text.split(","):
        try:
            first, *last = map(int, part.split(":"))
            (end,) = last or [first + 1]
        except ValueError:
            raise UserError(
                f"--seeds must be numbers and ranges such as 0,3,7 or 0:32; got {text!r}"
            ) from None
        ranges.append(range(first, end))
    if sum(map(len, ranges)) > MOST_RUNS:
        raise UserError(f"--seeds: a sweep has at most {MOST_RUNS:,} runs; got {text!r}")
    return tuple(itertools.chain(*ranges))


def parse_numbers(name: str, text: str, kind: type[float]) -> tuple[float, ...]:
    """The numbers of a flag.

    Raises:
      UserError: If one of them is no number of this kind.

    >>> parse_numbers("margin", "0.5,1", float)
    (0.5, 1.0)
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        words = "integers" if kind is int else "numbers"
        raise UserError(
            f"{flag_of(name)} must be {words} with commas between; got {text!r}"
        ) from None


# Settings -------------------------------------------------------------------------------


def run_configs(config: Config) -> list[RunConfig]:
    """The settings of each run: all seeds of the first combination, then of the others.

    Raises:
      UserError: If a number is out of its range or there twice, or a run would ignore it.
    """
    check_config(config)
    if config.fixed.seed != RunConfig.seed:
        raise UserError(f"--seed: a sweep takes --seeds; got --seed {config.fixed.seed}")
    shared = {field.name for field in dataclasses.fields(RunConfig)} - {"seed"}
    for name in shared & changed(config.fixed).keys() - set(USED):
        raise UserError(f"{flag_of(name)} is not used by a sweep")
    if config.fixed.compute_dtype == "auto":
        raise UserError("--compute-dtype auto is not used by a sweep; give the type")
    for name, numbers in (("seeds", config.seeds), *config.values):
        if name in shared:
            raise UserError(
                f"{flag_of(name)} cannot differ between the runs of a sweep: all "
                f"have the same steps. Give one value; got {numbers}"
            )
        if len(set(numbers)) < len(numbers):
            raise UserError(f"{flag_of(name)} has a number twice; got {numbers}")
    names = [one.name for one in config.values]
    combined: list[dict[str, Any]] = [
        {"seed": seed, **dict(zip(names, numbers, strict=True))}
        for numbers in itertools.product(*(one.numbers for one in config.values))
        for seed in config.seeds
    ]
    configs = [dataclasses.replace(config.fixed, **numbers) for numbers in combined]
    if len(configs) > MOST_RUNS:
        raise UserError(f"a sweep has at most {MOST_RUNS:,} runs; got {len(configs):,}")
    for one in configs[:: len(config.seeds)]:
        check_config(one)
    return configs


def sweep_as_json(config: Config) -> dict[str, Any]:
    """The settings as they stand in config.json; the folder itself is left out."""
    return {
        "experiment": "sweep",
        "seeds": list(config.seeds),
        "values": {name: list(numbers) for name, numbers in config.values},
        "fixed": as_json(config.fixed),
    }


def prepare_folder(config: Config) -> None:
    """Writes the settings to the folder of the sweep.

    Raises:
      UserError: If the folder holds something else than this sweep.
    """
    directory, asked = config.directory, sweep_as_json(config)
    path = directory / "config.json"
    if path.exists():
        check_settings(directory, read_json(path), asked)
    write_settings(directory, asked)


# Evaluation -----------------------------------------------------------------------------


def evaluate(
    system: Any, config: Config, runs: Runs, loaded: Any, trained: TrainedRuns
) -> list[RunResult]:
    """Evaluates the runs one after the other, and keeps what is done in evaluations.jsonl.

    A run that has diverged is not evaluated.
    """
    path = config.directory / "evaluations.jsonl"
    text = path.read_text() if path.exists() else ""
    evaluated: list[summary.Figures] = [json.loads(line) for line in text.splitlines()]
    states = jax.device_get(trained.states)
    num_seeds = len(config.seeds)
    for number, one in enumerate(runs.configs):
        if number % num_seeds == 0:  # the seeds of a setting have one program
            model_fn = runs.build(one).model
        if number < len(evaluated):
            continue
        metrics: summary.Figures = {}
        if trained.diverged[number] is None:
            print(f"evaluating run {number + 1} of {len(runs.configs)}")
            state = jax.tree.map(
                lambda leaf, number=number: jnp.asarray(leaf[number]), states
            )
            result = system.evaluate(one, loaded, model_fn(state))
            calibration = result.model.calibration
            accuracy = None if calibration is None else float(calibration.accuracy)
            figures = {name: finite_or_none(x) for name, x in result.metrics.items()}
            metrics = {CHOICE: accuracy, **figures}
        evaluated.append(metrics)
        lines = (json.dumps(line, allow_nan=False) + "\n" for line in evaluated)
        write_whole(path, "".join(lines))
    names = next((list(metrics) for metrics in evaluated if metrics), [])
    swept = [one.name for one in config.values]
    return [
        RunResult(
            {name: getattr(one, name) for name in swept},
            one.seed,
            diverged,
            {name: metrics.get(name) for name in names},
        )
        for one, diverged, metrics in zip(
            runs.configs, trained.diverged, evaluated, strict=True
        )
    ]


# Results --------------------------------------------------------------------------------


def make_results(
    config: Config, runs: Runs, trained: TrainedRuns, results: list[RunResult]
) -> dict[str, Any]:
    """What results.json holds: the settings, the best, and each run as a single run's."""
    of_settings = summary.summarize(results)
    best = summary.best_setting(of_settings)
    shared = {"num_steps": config.fixed.num_steps, **made_with(trained.states)}
    return {
        "seconds": trained.seconds,
        "chosen_by": CHOICE,
        "best_setting": None if best is None else of_settings[best].setting,
        "best_run": summary.best_run(results),
        "settings": [one._asdict() for one in of_settings],
        "runs": [
            {
                "command": command(one),
                "seed": one.seed,
                "setting": result.setting,
                "diverged": result.diverged,
                "metrics": result.metrics,
                "seconds": round(trained.seconds / len(results), 3),  # its share
                **shared,
            }
            for one, result in zip(runs.configs, results, strict=True)
        ],
    }


def print_results(config: Config, results: dict[str, Any]) -> None:
    """Prints the table, the runs that have diverged, and the command of the best run."""
    of_settings = [SettingResult(**one) for one in results["settings"]]
    known = of_settings[0].means
    figures = [name for name in FIGURES[config.fixed.experiment] if name in known]
    best = summary.best_setting(of_settings)
    print(f"\n{summary.make_table(of_settings, best, [CHOICE, *figures])}\n")
    for run in results["runs"]:
        if run["diverged"] is not None:
            numbers = [f"{name} {value:g}" for name, value in run["setting"].items()]
            words = ", ".join([*numbers, f"seed {run['seed']}"])
            print(f"diverged at step {run['diverged']}: {words}")
    if results["best_run"] is not None:
        run = results["runs"][results["best_run"]]
        print(f"the best run alone: {run['command']} --seed {run['seed']}")


def main(config: Config) -> None:
    """Trains all runs, evaluates them, and prints the table."""
    configs = run_configs(config)
    path = config.directory / "results.json"
    if path.exists():
        prepare_folder(config)
        print_results(config, read_json(path))
        print(f"{config.directory} is complete: delete it, or give another --workdir")
        return
    system = load_system(config.fixed.experiment)
    names = ("seed", *(one.name for one in config.values))
    runs = Runs(system.build, configs, names)
    loaded = system.load(config.fixed)
    data = stack_data(system.training_data(one, loaded) for one in configs)
    check_can_be_traced(runs, data)
    prepare_folder(config)
    trained = train(runs, data, config.directory)
    evaluated = evaluate(system, config, runs, loaded, trained)
    results = make_results(config, runs, trained, evaluated)
    write_whole(config.directory / "results.csv", summary.as_csv(evaluated))
    write_whole(path, json.dumps(results, indent=2, allow_nan=False) + "\n")
    print_results(config, results)
    print(
        f"{trained.seconds:.0f} s of training for {len(configs)} runs; results in "
        f"{config.directory}"
    )


if __name__ == "__main__":
    command_line(main, Config)
