"""What every benchmark writes: rows, and the machine they were measured on.

python -m benchmarks.results    puts the tables of results/*.json into README.md
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "results"
README = ROOT / "benchmarks" / "README.md"
PACKAGES = (
    "jax",
    "flax",
    "optax",
    "numpy",
    "keras",
    "tensorflow-cpu",
    "tensorflow",
    "torch",
)


def machine() -> dict[str, Any]:
    """Where it ran: processor, versions, commit."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
    }


def commit() -> str | None:
    """Of the checkout, with a plus where files are changed; None outside of one."""
    describe = ["git", "describe", "--always", "--abbrev=10", "--dirty=+"]
    with contextlib.suppress(OSError):
        found = subprocess.run(
            describe, cwd=ROOT, capture_output=True, text=True, check=False
        )
        return found.stdout.strip() or None
    return None


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    path: pathlib.Path | None,
    skipped: Mapping[str, str] | None = None,
) -> None:
    """Prints the table of a benchmark and writes its rows."""
    skipped = skipped or {}
    for what, why in skipped.items():
        print(f"skipped: {what}: {why}")
    print(table(rows, COLUMNS[name]))
    write(path, {"rows": list(rows), "skipped": skipped, "machine": machine()})


def write(path: pathlib.Path | None, found: Mapping[str, Any]) -> None:
    """As JSON, if there is a path; its folder is made."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n")


def spread(ratios: np.ndarray) -> dict[str, float]:
    """The median of the rounds' ratios, their least and their largest."""
    return {
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
    }


def take_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each way in each round; the first, which compiles, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(times[1:]) for name, times in seconds.items()}


# Tables ---------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Markdown of some columns; a column is a format of a row under its heading."""
    numeric = ["--:" if "," in form or ":." in form else "---" for form in columns.values()]
    lines = [list(columns), numeric]
    lines += [[form.format(**row) for form in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def section(name: str) -> str:
    """The table of one file of results, with what it was measured on."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return f"Not measured yet: `{COMMANDS[name]}`."
    found = json.loads(path.read_text())
    where = found["machine"]
    versions = ", ".join(f"{key} {value}" for key, value in where["versions"].items())
    skipped = "".join(f" Skipped: {key}: {why}." for key, why in found["skipped"].items())
    return (
        f"`{COMMANDS[name]}`: {where['architecture']}, {where['cores']} cores; "
        f"Python {where['python']}, {versions}; commit {where['commit']}.{skipped}\n\n"
        f"{table(found['rows'], COLUMNS[name])}"
    )


def write_tables(text: str) -> str:
    """The text with each table put between its two comments.

    Raises:
      ValueError: If the comments of a table are not there.
    """
    for name in COLUMNS:
        first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if first not in text or last not in text:
            raise ValueError(f"{README} must have the lines {first} and {last}")
        head, rest = text.split(first, 1)
        text = f"{head}{first}\n{section(name)}\n{last}{rest.split(last, 1)[1]}"
    return text


_RATIO = "{ratio:.2f} ({ratio_min:.2f} to {ratio_max:.2f})"

COMMANDS = {
    "train_step": "python -m benchmarks.train_step",
    "time_to_accuracy": "python -m benchmarks.time_to_accuracy",
    "inference": "python -m benchmarks.inference",
    "record_step": "python -m benchmarks.record_step",
    "sweep": "python -m benchmarks.sweep",
    "start_up": "python -m benchmarks.start_up",
}
COLUMNS = {
    "train_step": {
        "system": "{system}",
        "rival": "{rival}",
        "batch": "{batch_size:,}",
        "ours, pairs/s": "{ours_pairs_per_second:,.0f}",
        "rival, pairs/s": "{rival_pairs_per_second:,.0f}",
        "ratio": _RATIO,
        "ours, GFLOP/s": "{ours_gigaflops_per_second:,.0f}",
        "compiling, s": "{ours_compile_seconds:.1f} / {rival_compile_seconds:.1f}",
    },
    "time_to_accuracy": {
        "contestant": "{contestant}",
        "accuracy of pairs": "{accuracy:.3f}",
        "epochs": "{epochs}",
        "training, s": "{seconds}",
        "best": "{best:.4f}",
    },
    "inference": {
        "system": "{system}",
        "task": "{task}",
        "rival": "{rival}",
        "ours, a second": "{ours_per_second:,.0f}",
        "rival, a second": "{rival_per_second:,.0f}",
        "ratio": _RATIO,
    },
    "record_step": {
        "preset": "{preset}",
        "precision": "{dtype}",
        "ours, images/s": "{images_per_second:,.0f}",
        "PyTorch, images/s": "{torch_images_per_second:,.0f}",
        "ratio": _RATIO,
    },
    "sweep": {
        "system": "{system}",
        "seeds": "{num_seeds:,}",
        "by vmap, pairs/s": "{vmap_pairs_per_second:,.0f}",
        "one by one, pairs/s": "{single_pairs_per_second:,.0f}",
        "ratio": _RATIO,
    },
    "start_up": {"what": "{what}", "seconds, median": "{seconds:.2f}"},
}


if __name__ == "__main__":
    README.write_text(write_tables(README.read_text()))
