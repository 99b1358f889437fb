"""Time to the first training step: importing, then compiling a step of `mnist_mlp`.

    python -m benchmarks.start_up [--rounds N] [--json OUT]

Each time is measured in a fresh process, with the files already in the file cache of the
operating system.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from benchmarks import results

IMPORT_JAX = "import jax, jax.numpy"
IMPORT_ALL = """
import pkgutil, importlib, siamese_jax
for module in pkgutil.walk_packages(siamese_jax.__path__, "siamese_jax."):
    importlib.import_module(module.name)
"""
FIRST_STEP = """
from benchmarks.cases import get_case, make_pairs
from benchmarks.contestants import build_system, make_data
from experiments.engine.system import initial_state, train_steps
import functools
case, key = get_case("mnist_mlp"), jax.random.key(0)
system = build_system("mnist_mlp", case)
state, data = initial_state(system, key), make_data(case, make_pairs(case))
jax.block_until_ready((state, data))
steps = jax.jit(functools.partial(train_steps, system), static_argnums=3)
"""


def timed(before: str, code: str) -> float:
    """Measures the seconds of `code` in a fresh process, after `before` has run."""
    program = (
        f"import time\n{before}\nbegan = time.perf_counter()\n{code}\n"
        "print(time.perf_counter() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=results.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def measure(rounds: int) -> list[dict[str, object]]:
    """Times each part once per round and returns the median of each over the rounds."""
    first_step = "jax.block_until_ready(steps(key, state, data, 1))"
    parts = {
        "import jax": ("", IMPORT_JAX),
        "import all of siamese_jax, after jax": (IMPORT_JAX, IMPORT_ALL),
        "import jax and siamese_jax.losses alone": ("", "import siamese_jax.losses"),
        "first step of mnist_mlp": (f"{IMPORT_JAX}\n{FIRST_STEP}", first_step),
    }
    timed("", IMPORT_JAX + IMPORT_ALL)  # brings the files into the cache
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, (before, code) in parts.items():
            seconds[name].append(timed(before, code))
    return [
        {"what": name, "seconds": float(np.median(times)), "all_seconds": times}
        for name, times in seconds.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the times, prints a table, and writes the rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {options.rounds}")
    results.report("start_up", measure(options.rounds), options.json, arguments)


if __name__ == "__main__":
    main()
