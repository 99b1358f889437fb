"""The figures of a sweep: means and deviations over the seeds of each setting, the best.

The best setting has the highest mean, over its seeds, of the accuracy on the pairs on which
models are calibrated. It is not chosen by a figure of the test, which would then be too
good. A setting with a run that has diverged is not the best one.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.cli import format_figure

CHOICE = "calibration_accuracy"  # the figure that the best is chosen by

Figures = dict[str, float | None]


class RunResult(NamedTuple):
    """The result of a run.

    Attributes:
      setting: The numbers in which settings differ, by name.
      seed: The seed.
      diverged: The first step with a number that is not finite, or None.
      metrics: The figures by name. None is a figure without a value, as all figures are of
        a run that has diverged.
    """

    setting: dict[str, float]
    seed: int
    diverged: int | None
    metrics: Figures


class SettingResult(NamedTuple):
    """The results of the runs of a setting.

    Attributes:
      setting: The numbers in which settings differ, by name.
      num_runs: Number of its runs, one for each seed.
      num_diverged: Number of those that have diverged, which the figures leave out.
      means: The mean of each figure; None if a run has no value.
      deviations: The standard deviation of each figure over the seeds, with the divisor
        n - 1; None also for a single run.
    """

    setting: dict[str, float]
    num_runs: int
    num_diverged: int
    means: Figures
    deviations: Figures


def summarize(results: Sequence[RunResult]) -> list[SettingResult]:
    """The means and deviations of each setting, in the order of the runs.

    >>> runs = [RunResult({"margin": 1.0}, seed, None, {"a": seed}) for seed in (1, 3)]
    >>> [one] = summarize([*runs, RunResult({"margin": 1.0}, 5, 20, {"a": None})])
    >>> print(one.num_runs, one.num_diverged, one.means["a"], one.deviations["a"] ** 2)
    3 1 2.0 2.0000000000000004
    """
    by_setting: dict[tuple[float, ...], list[RunResult]] = {}
    for result in results:
        by_setting.setdefault(tuple(result.setting.values()), []).append(result)
    return [summarize_setting(runs) for runs in by_setting.values()]


def summarize_setting(runs: Sequence[RunResult]) -> SettingResult:
    """The means and deviations of the runs of one setting."""
    ended = [run.metrics for run in runs if run.diverged is None]
    means: Figures = {}
    deviations: Figures = {}
    for name in runs[0].metrics:
        values = [metrics[name] for metrics in ended]
        known = [value for value in values if value is not None]
        complete = len(known) == len(values)
        means[name] = float(np.mean(known)) if known and complete else None
        several = complete and len(known) > 1
        deviations[name] = float(np.std(known, ddof=1)) if several else None
    return SettingResult(
        runs[0].setting, len(runs), len(runs) - len(ended), means, deviations
    )


def best_of(values: Sequence[float | None]) -> int | None:
    """The position of the largest value that is not None; None if there is none.

    >>> print(best_of([0.5, None, 0.75, 0.75]), best_of([None]))
    2 None
    """
    numbers = [-np.inf if value is None else value for value in values]
    best = int(np.argmax(numbers))
    return None if values[best] is None else best


def best_run(results: Sequence[RunResult]) -> int | None:
    """The number of the best run; None if every run has diverged or has no such figure."""
    return best_of([result.metrics.get(CHOICE) for result in results])


def best_setting(settings: Sequence[SettingResult]) -> int | None:
    """The number of the best setting; None if there is none without a diverged run."""
    return best_of(
        [None if one.num_diverged else one.means.get(CHOICE) for one in settings]
    )


def make_table(
    settings: Sequence[SettingResult], best: int | None, figures: Sequence[str]
) -> str:
    """One line for each setting: how many of its runs ended, means +- deviations.

    The best setting is marked with an asterisk.
    """
    names = list(settings[0].setting)
    head = ["", *names, "runs", *figures]
    rows = [
        [
            "*" if number == best else "",
            *(f"{one.setting[name]:g}" for name in names),
            f"{one.num_runs - one.num_diverged} of {one.num_runs}",
            *(with_deviation(one, name) for name in figures),
        ]
        for number, one in enumerate(settings)
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows]
    )


def with_deviation(result: SettingResult, name: str) -> str:
    """The mean of a figure with its deviation if there is one."""
    deviation = result.deviations.get(name)
    text = format_figure(result.means.get(name))
    return text if deviation is None else f"{text} +- {format_figure(deviation)}"


def as_csv(results: Sequence[RunResult]) -> str:
    """One line for each run; what has no value is empty.

    >>> print(as_csv([RunResult({"margin": 0.5}, 3, 7, {"a": None})]).replace(chr(13), ""))
    run,seed,margin,diverged,a
    0,3,0.5,7,
    <BLANKLINE>
    """
    text = io.StringIO()
    rows: list[Mapping[str, Any]] = [
        {"run": number, "seed": result.seed}
        | result.setting
        | {"diverged": result.diverged}
        | result.metrics
        for number, result in enumerate(results)
    ]
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
