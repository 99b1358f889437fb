"""Several seeds at once by `vmap`, against one run after the other.

    python -m benchmarks.sweep [--systems ...] [--num-seeds K] [--json OUT] [--smoke]

Both are one compiled program that is run for each: the states of all seeds stacked, or one
state. They take turns; the time of a round is that of all seeds.
"""

import argparse
import importlib
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import results
from benchmarks.cases import CASES, get_case, make_pairs
from benchmarks.contestants import as_data, steps_of


def measure(system: str, num_seeds: int, *, rounds: int, smoke: bool) -> dict[str, Any]:
    """Pairs a second over all seeds, both ways."""
    case = get_case(system, smoke=smoke)
    case = case._replace(num_steps=max(case.num_steps // 4, 1))
    module = importlib.import_module(f"experiments.{system}")
    config = module.Config(batch_size=case.batch_size, **case.config)
    data = as_data(make_pairs(case))
    keys = jax.random.split(jax.random.key(0), num_seeds)
    state = module.initial_state(config)
    states = jax.tree.map(lambda x: jnp.stack([x] * num_seeds), state)

    def steps(key: jax.Array, state: Any, data: Any) -> Any:
        return steps_of(module, config)(key, state, data, case.num_steps)

    single, stacked = jax.jit(steps), jax.jit(jax.vmap(steps, in_axes=(0, 0, None)))
    ways: dict[str, Callable[[], Any]] = {
        "vmap": lambda: jax.block_until_ready(stacked(keys, states, data)),
        "single": lambda: jax.block_until_ready([single(key, state, data) for key in keys]),
    }
    num_pairs = num_seeds * case.num_steps * case.batch_size
    seconds = results.take_turns(ways, rounds)
    speed = {name: num_pairs / times for name, times in seconds.items()}
    return {
        "system": system,
        "num_seeds": num_seeds,
        "vmap_pairs_per_second": float(np.median(speed["vmap"])),
        "single_pairs_per_second": float(np.median(speed["single"])),
        **results.spread(speed["vmap"] / speed["single"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep")
    systems = ["mnist_mlp", "mnist_towers"]
    parser.add_argument("--systems", nargs="+", choices=CASES, default=systems)
    parser.add_argument("--num-seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    if min(options.num_seeds, options.rounds) < 1:
        parser.error("--num-seeds and --rounds must be at least 1")
    run = partial(measure, rounds=options.rounds, smoke=options.smoke)
    rows = [run(system, options.num_seeds) for system in options.systems]
    results.report("sweep", rows, options.json)


if __name__ == "__main__":
    main()
