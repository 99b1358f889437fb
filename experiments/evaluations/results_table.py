"""Collects the figures of finished runs in one table, RESULTS.md.

Run:     python -m experiments results_table --runs runs

Every folder below the given ones that holds a results.json is one run, or a sweep of many.
Runs with the same command and different seeds are one row for each figure: the mean over
the seeds, their standard deviation, and the number of seeds. Of several runs with one
command and one seed the last one by the name of its folder counts. For a single seed the
table shows the figure's own 95 % interval, where the run has measured one: half its width,
or its two ends where the figure is not in the middle.

The table stands between two comments in RESULTS.md. The rest of the page is left as it is.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.cli import command_line, read_json, write_whole
from experiments.engine.config import check_config
from siamese_jax.errors import UserError

FIRST, LAST = "<!-- results -->", "<!-- end of results -->"
PAGE = pathlib.Path(__file__).parent.parent / "RESULTS.md"

# The figures of each system that the table shows.
FIGURES = {
    "embedding_head": (
        "recall_at_1",
        "recall_at_1_before",
        "map_at_r",
        "map_at_r_before",
    ),
    "glyphs": ("one_shot_accuracy", "one_shot_accuracy_pixels", "pair_eer"),
    "letter_names": tuple(
        f"{test}_image_to_name_recall_at_1"
        for test in ("new_faces", "new_letters", "new_alphabets")
    ),
    "mnist_mlp": ("pair_accuracy", "pair_accuracy_at_chosen_threshold", "pair_eer"),
    "mnist_conv": ("pair_accuracy", "pair_eer"),
    "mnist_towers": tuple(f"towers_{variant}_pair_accuracy" for variant in "abc"),
    "orl_tutorial": (
        "pair_accuracy",
        "pair_precision",
        "pair_eer",
        "one_shot_accuracy",
        "pair_eer_pixels",
    ),
    "orl_hog": (
        "pair_eer",
        "one_shot_accuracy",
        "pair_eer_pixels",
        "one_shot_accuracy_pixels",
    ),
    "orl_wccn": ("pair_eer", "one_shot_accuracy", "let_in_at_0.01", "let_in_at_0.05"),
    "omniglot_koch": (
        "random_20_way_accuracy",
        "random_20_way_accuracy_test",
        "within_alphabet_accuracy",
    ),
    "omniglot_supcon": (
        "within_alphabet_accuracy",
        "within_alphabet_accuracy_test",
        "lake_accuracy",
    ),
    "image_folder": ("pair_accuracy", "pair_eer", "one_shot_accuracy"),
}

Results = dict[str, Any]  # the contents of a results.json


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs, and where to.

    Attributes:
      runs: Folders of runs, or folders that hold such folders.
      out: The page with the two comments between which the table is put.
    """

    runs: tuple[pathlib.Path, ...]
    out: pathlib.Path = PAGE


def find_results(folders: Sequence[pathlib.Path]) -> list[Results]:
    """The results of all finished runs in some folders.

    The folds and variants of a run have results of their own; only those of the whole run
    are taken.

    Raises:
      UserError: If a folder is missing, or holds no finished run.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--runs: there is no folder {folder}")
        paths = sorted(folder.rglob("results.json"))
        whole = [
            path
            for path in paths
            if not any((above / "results.json").exists() for above in path.parents[1:])
        ]
        if not whole:
            raise UserError(f"--runs: {folder} holds no finished run")
        for results in map(read_json, whole):
            found += results.get("runs", [results])  # a sweep has many
    return found


def make_rows(results: Sequence[Results]) -> list[list[str]]:
    """One row for each figure of each command, over all its seeds."""
    by_command: dict[str, dict[int, Results]] = {}
    for one in results:
        by_command.setdefault(one["command"], {})[one["seed"]] = one
    rows = []
    for command, by_seed in sorted(by_command.items()):
        runs = list(by_seed.values())
        name = command.split()[3]
        seconds = np.mean([one["seconds"] for one in runs])
        known = set.intersection(*({*one["metrics"]} for one in runs))
        shown = [key for key in FIGURES.get(name, ()) if key in known]
        for figure in shown or list(runs[0]["metrics"])[:3]:
            value, spread = summarize([one["metrics"] for one in runs], figure)
            rows.append(
                [
                    f"`{command.removeprefix('python -m experiments ')}`",
                    figure,
                    value,
                    spread,
                    str(len(runs)),
                    f"{runs[0]['num_steps']:,}",
                    f"{seconds:,.0f}",
                ]
            )
    return rows


def summarize(metrics: Sequence[dict[str, Any]], figure: str) -> tuple[str, str]:
    """The mean of a figure, and its deviation over seeds or its own interval.

    >>> summarize([{"a": 0.5}, {"a": 0.7}], "a")
    ('0.6000', '0.1414')
    >>> summarize([{"a": 0.5, "a_interval": 0.01}], "a")
    ('0.5000', '0.0100 (95 %)')
    >>> summarize([{"a": 0.5, "a_low": 0.25, "a_high": 0.625}], "a")
    ('0.5000', '0.2500 to 0.6250 (95 %)')
    """
    values = [one[figure] for one in metrics]
    if any(value is None for value in values):
        return "undefined", ""
    if len(values) > 1:
        return f"{np.mean(values):.4f}", f"{np.std(values, ddof=1):.4f}"
    interval = [metrics[0].get(f"{figure}_{of}") for of in ("interval", "low", "high")]
    words = " to ".join(f"{number:.4f}" for number in interval if number is not None)
    return f"{values[0]:.4f}", f"{words} (95 %)" if words else ""


def make_table(results: Sequence[Results]) -> str:
    """The table, and the machines and versions that it was measured with."""
    head = ["run", "figure", "value", "+-", "seeds", "steps", "training, s"]
    lines = [head, ["---", "---", "--:", "--:", "--:", "--:", "--:"], *make_rows(results)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    where = {
        json.dumps([one["machine"], one["device"], one["versions"]], sort_keys=True)
        for one in results
    }
    notes = []
    for machine, device, versions in map(json.loads, sorted(where)):
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        notes.append(f"{machine}; {device}; {named}.")
    return f"{table}\n\nMeasured with: {' '.join(notes)}"


def put_table(page: str, table: str) -> str:
    """The page with the table between its two comments.

    Raises:
      UserError: If the comments are not there.
    """
    if FIRST not in page or LAST not in page:
        raise UserError(f"--out: the page must have the lines {FIRST} and {LAST}")
    head, rest = page.split(FIRST, 1)
    return f"{head}{FIRST}\n{table}\n{LAST}{rest.split(LAST, 1)[1]}"


def main(config: Config) -> None:
    """Reads the runs, prints the table and writes it into the page."""
    check_config(config)
    if not config.out.is_file():
        raise UserError(f"--out: there is no file {config.out}")
    table = make_table(find_results(config.runs))
    page = put_table(config.out.read_text(), table)
    print(table)
    write_whole(config.out, page)


if __name__ == "__main__":
    command_line(main, Config)
