"""Writes the results of the benchmarks as JSON and as the tables of README.md.

    python -m benchmarks.results    # puts the tables of results/ into README.md

Every benchmark writes its rows and a description of the machine to one JSON file. Files in
a folder of `results`, such as `results/newest` with another version of JAX, make a second
table below the first.
"""

import contextlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.engine.machine import description

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "results"
README = ROOT / "benchmarks" / "README.md"
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "keras",
    "tensorflow-cpu",
    "tensorflow",
    "torch",
    "pytorch-metric-learning",
    "faiss-cpu",
)

# Threads of one contestant wait actively for a while after its answer, and those of the
# next have to wake up. So there is a pause before each turn.
_PAUSE, _LEAST = 0.5, 0.5  # seconds


def machine() -> dict[str, Any]:
    """Describes this machine: processor, versions of packages, commit of the project."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "processor": description(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
    }


def commit() -> str | None:
    """Returns the commit of the checkout, with a plus if files have changed since.

    Outside of a checkout it returns None.
    """
    describe = ["git", "describe", "--always", "--abbrev=10", "--dirty=+"]
    with contextlib.suppress(OSError):
        found = subprocess.run(
            describe, cwd=ROOT, capture_output=True, text=True, check=False
        )
        return found.stdout.strip() or None
    return None


def command(name: str, arguments: Sequence[str] | None = None) -> str:
    """Returns the command line of a benchmark, without the file for its results.

    Args:
      name: Name of the benchmark.
      arguments: Its flags. None means those of this process.
    """
    words = iter(sys.argv[1:] if arguments is None else arguments)
    kept = []
    for word in words:
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            kept.append(word)
    return " ".join(["python -m", f"benchmarks.{name}", *kept])


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    path: pathlib.Path | None,
    arguments: Sequence[str] | None,
    skipped: Mapping[str, str] | None = None,
) -> None:
    """Prints the table of a benchmark and writes its rows as JSON.

    Args:
      name: Name of the benchmark, a key of `COLUMNS`.
      rows: Rows of the table.
      path: File to write, or None to only print.
      arguments: Flags of the benchmark, as in `command`.
      skipped: Why each rival in it was skipped.
    """
    skipped = skipped or {}
    for what, why in skipped.items():
        print(f"skipped: {what}: {why}")
    print(table(rows, COLUMNS[name]))
    about = {"command": command(name, arguments), "machine": machine()}
    write(path, {"rows": list(rows), "skipped": skipped, **about})


def write(path: pathlib.Path | None, found: Mapping[str, Any]) -> None:
    """Writes results to a file as JSON and creates its folder, unless the path is None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n")


def spread(ratios: np.ndarray) -> dict[str, float]:
    """Returns the median, the smallest and the largest ratio of the rounds."""
    return {
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
    }


def seconds_of(fn: Callable[[], Any]) -> float:
    """Returns the seconds of one call."""
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began


def mean_seconds(run_fn: Callable[[], float], *, least: float) -> float:
    """Returns the mean of what `run_fn` returns, in calls until their sum is `least`."""
    seconds = [run_fn()]
    while sum(seconds) < least:
        seconds.append(run_fn())
    return sum(seconds) / len(seconds)


def turn(ask: Callable[..., Any], *, smoke: bool, **request: Any) -> float:
    """Pauses, and asks the process of a contestant for the mean seconds of its turn."""
    _pause(smoke=smoke)
    return ask(**request, least=0 if smoke else _LEAST)["seconds"]


def take_turns(
    ways: Mapping[str, Callable[[], Any]], rounds: int, *, smoke: bool
) -> dict[str, np.ndarray]:
    """Times several functions, which take turns with a pause before each.

    The first round compiles and is not counted.

    Returns:
      The seconds of each function in each counted round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            _pause(smoke=smoke)
            seconds[name].append(seconds_of(way))
    return {name: np.array(times[1:]) for name, times in seconds.items()}


def _pause(*, smoke: bool) -> None:
    time.sleep(0 if smoke else _PAUSE)


# Tables ---------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Returns a Markdown table.

    Args:
      rows: Rows of the table.
      columns: From the heading of each column to the format string that makes a cell of a
        row.
    """
    numeric = ["--:" if "," in form or ":." in form else "---" for form in columns.values()]
    lines = [list(columns), numeric]
    lines += [[form.format(**row) for form in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def section(name: str) -> str | None:
    """Returns the tables of one benchmark, each below a line that describes the machine.

    Without a file of results it returns None.
    """
    files = [FOLDER / f"{name}.json", *sorted(FOLDER.glob(f"*/{name}.json"))]
    return "\n\n".join(_described_table(name, f) for f in files if f.exists()) or None


def _described_table(name: str, path: pathlib.Path) -> str:
    found = json.loads(path.read_text())
    where = found["machine"]
    versions = ", ".join(f"{key} {value}" for key, value in where["versions"].items())
    skipped = "".join(f" Skipped: {key}: {why}." for key, why in found["skipped"].items())
    return (
        f"`{found['command']}`: {where['processor']}; "
        f"Python {where['python']}, {versions}; commit {where['commit']}.{skipped}\n\n"
        f"{table(found['rows'], COLUMNS[name])}"
    )


def write_tables(text: str) -> str:
    """Returns the text with the table of each benchmark between its two comments.

    A table stays as it is if there is no file of results for it.

    Raises:
      ValueError: If the text lacks one of these comments.
    """
    for name in COLUMNS:
        first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if first not in text or last not in text:
            raise ValueError(f"{README} must have the lines {first} and {last}")
        head, rest = text.split(first, 1)
        before, rest = rest.split(last, 1)
        unmeasured = before.strip() or f"Not measured yet: `{command(name, ())}`."
        text = f"{head}{first}\n{section(name) or unmeasured}\n{last}{rest}"
    return text


_RATIO = "{ratio:.2f} ({ratio_min:.2f} to {ratio_max:.2f})"

COLUMNS = {
    "train_step": {
        "system": "{system}",
        "rival": "{rival}",
        "batch": "{batch_size:,}",
        "ours, pairs/s": "{ours_pairs_per_second:,.0f}",
        "rival, pairs/s": "{rival_pairs_per_second:,.0f}",
        "ratio": _RATIO,
        "ours, GFLOP/s": "{ours_gigaflops_per_second:,.0f}",
        "compilation, s": "{ours_compile_seconds:.1f} / {rival_compile_seconds:.1f}",
    },
    "time_to_accuracy": {
        "contestant": "{contestant}",
        "pair accuracy": "{accuracy:.3f}",
        "epochs": "{epochs}",
        "training, s": "{seconds}",
        "best accuracy": "{best:.4f}",
    },
    "inference": {
        "system": "{system}",
        "task": "{task}",
        "rival": "{rival}",
        "ours, per second": "{ours_per_second:,.0f}",
        "rival, per second": "{rival_per_second:,.0f}",
        "ratio": _RATIO,
    },
    "record_step": {
        "preset": "{preset}",
        "precision": "{dtype}",
        "rival": "{rival}",
        "ours, images/s": "{images_per_second:,.0f}",
        "rival, images/s": "{rival_images_per_second:,.0f}",
        "ratio": _RATIO,
    },
    "sweep": {
        "system": "{system}",
        "seeds": "{num_seeds:,}",
        "by vmap, pairs/s": "{vmap_pairs_per_second:,.0f}",
        "one by one, pairs/s": "{single_pairs_per_second:,.0f}",
        "ratio": _RATIO,
    },
    "retrieval": {
        "task": "{task}",
        "rival": "{rival}",
        "ours, queries/s": "{ours_per_second:,.0f}",
        "rival, queries/s": "{rival_per_second:,.0f}",
        "ratio": _RATIO,
        "ours, GB": "{ours_gb:.2f}",
        "rival, GB": "{rival_gb:.2f}",
        "results differ by": "{difference:.0e}",
    },
    "start_up": {"what": "{what}", "median seconds": "{seconds:.2f}"},
    "scale": {
        "loss": "`{loss}`",
        "rows": "{num_rows:,}",
        "dense": "{dense}",
        "tiled": "{tiled}",
        "optax": "{optax}",
        "pytorch-metric-learning": "{pml}",
        "values differ by": "{difference}",
    },
}


if __name__ == "__main__":
    README.write_text(write_tables(README.read_text()))
