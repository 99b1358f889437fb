"""Speed of training several seeds at once by `vmap`, compared with one after the other.

    python -m benchmarks.sweep [--systems ...] [--num-seeds K] [--json OUT] [--smoke]

Both forms are one compiled program for many steps. One is called once, with the stacked
states of all seeds. The other is called for each seed with its state. The two forms take
turns, and every round trains all seeds.
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import results
from benchmarks.cases import CASES, get_case, make_pairs
from benchmarks.contestants import build_system, make_data
from experiments.engine.system import initial_state, train_steps


def measure(system: str, num_seeds: int, *, rounds: int, smoke: bool) -> dict[str, Any]:
    """Measures how many training pairs per second each form takes, over all seeds."""
    case = get_case(system, smoke=smoke)
    case = case._replace(num_steps=max(case.num_steps // 4, 1))
    built = build_system(system, case)
    data = make_data(case, make_pairs(case))
    keys = jax.random.split(jax.random.key(0), num_seeds)
    state = initial_state(built, keys[0])
    states = jax.tree.map(lambda x: jnp.stack([x] * num_seeds), state)

    def steps(key: jax.Array, state: Any, data: Any) -> Any:
        return train_steps(built, key, state, data, case.num_steps)

    single, stacked = jax.jit(steps), jax.jit(jax.vmap(steps, in_axes=(0, 0, None)))
    ways: dict[str, Callable[[], Any]] = {
        "vmap": lambda: jax.block_until_ready(stacked(keys, states, data)),
        "single": lambda: jax.block_until_ready([single(key, state, data) for key in keys]),
    }
    num_pairs = num_seeds * case.num_steps * case.batch_size
    seconds = results.take_turns(ways, rounds, smoke=smoke)
    speed = {name: num_pairs / times for name, times in seconds.items()}
    return {
        "system": system,
        "num_seeds": num_seeds,
        "vmap_pairs_per_second": float(np.median(speed["vmap"])),
        "single_pairs_per_second": float(np.median(speed["single"])),
        **results.spread(speed["vmap"] / speed["single"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the speeds, prints a table, and writes the rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep")
    systems = ["mnist_mlp", "mnist_towers"]
    parser.add_argument("--systems", nargs="+", choices=CASES, default=systems)
    parser.add_argument("--num-seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    if min(options.num_seeds, options.rounds) < 1:
        found = f"{options.num_seeds} and {options.rounds}"
        parser.error(f"--num-seeds and --rounds must be at least 1; got {found}")
    run = partial(measure, rounds=options.rounds, smoke=options.smoke)
    rows = [run(system, options.num_seeds) for system in options.systems]
    results.report("sweep", rows, options.json, arguments)


if __name__ == "__main__":
    main()
