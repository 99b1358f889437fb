"""Time and memory of retrieval, beside faiss-cpu and pytorch-metric-learning.

    python -m benchmarks.retrieval [--tasks ...] [--rounds 3] [--smoke] [--json OUT]

Three tasks on random embeddings, whose results are compared:

* `product`: the 10 references with the largest inner products, of 1,000 queries among
  100,000 references of 128 features, beside the flat index of faiss.
* `distance`: the same by the Euclidean distance.
* `figures`: precision@1, R-precision, MAP@R, MAP and MRR of 4,000 embeddings of 64 features
  in themselves, 8 of each class, beside `AccuracyCalculator(k=None)`, whose nearest
  neighbours are faiss's, its default.

Each measurement runs in a process of its own, and the two libraries take turns. Memory is
what the peak of the process rises by in these calls.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import cells, results

K, EXAMPLES_PER_CLASS, CALLS = 10, 8, 3


class Task(NamedTuple):
    """Sizes of a task, of the smoke test, and the package of the rival."""

    sizes: tuple[int, int, int]
    small: tuple[int, int, int]
    package: str


TASKS = {
    "product": Task((1000, 100_000, 128), (5, 300, 4), "faiss"),
    "distance": Task((1000, 100_000, 128), (5, 300, 4), "faiss"),
    "figures": Task((4000, 4000, 64), (24, 24, 4), "pytorch_metric_learning"),
}


def make_inputs(sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Queries and references, of which the first are in loose clusters."""
    num_queries, num_references, dim = sizes
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_queries // EXAMPLES_PER_CLASS + 1, dim))
    noise = rng.normal(size=(num_queries, dim))
    queries = centres[_labels(num_queries)] + 2 * noise
    references = rng.normal(size=(num_references, dim))
    return queries.astype(np.float32), references.astype(np.float32)


def _labels(num_rows: int) -> np.ndarray:
    return np.arange(num_rows) // EXAMPLES_PER_CLASS


# The libraries --------------------------------------------------------------------------


def make_ours(task: str, sizes: tuple[int, int, int]) -> Callable[[], list]:
    """Our way of doing a task, which returns indices or figures."""
    import jax.numpy as jnp

    from siamese_jax import distances, retrieval
    from siamese_jax.relations import Items

    queries, references = map(jnp.asarray, make_inputs(sizes))
    if task == "figures":
        items = Items(jnp.asarray(_labels(len(queries))))

        def figures() -> list:
            mean = retrieval.evaluate(queries, items, cutoffs=(1,)).mean
            found = [mean.average_precision, mean.average_precision_at_r]
            found += [mean.reciprocal_rank, mean.precision_at_k[0], mean.r_precision]
            return [float(value) for value in found]

        return figures
    product = task == "product"
    matrix_fn = _negative_products if product else distances.euclidean_distance_matrix

    def search() -> list:
        found = retrieval.nearest(queries, references, k=K, matrix_fn=matrix_fn)
        return np.asarray(found.indices).tolist()

    return search


def _negative_products(a: Any, b: Any) -> Any:
    return -(a @ b.T)


def make_theirs(task: str, sizes: tuple[int, int, int]) -> Callable[[], list]:
    """The rival's way of doing a task."""
    queries, references = make_inputs(sizes)
    if task == "figures":
        import torch
        from pytorch_metric_learning.utils import accuracy_calculator

        calculator = accuracy_calculator.AccuracyCalculator(
            exclude=("NMI", "AMI"), device=torch.device("cpu")
        )
        x, y = torch.tensor(queries), torch.tensor(_labels(len(queries)))

        def figures() -> list:
            found = calculator.get_accuracy(x, y)
            return [found[name] for name in sorted(found)]

        return figures
    import faiss

    index_type = faiss.IndexFlatIP if task == "product" else faiss.IndexFlatL2
    index = index_type(queries.shape[1])
    index.add(references)
    return lambda: index.search(queries, K)[1].tolist()


# One measurement in its own process -----------------------------------------------------


def measure(task: str, library: str, *, smoke: bool) -> dict[str, Any]:
    """Result, median seconds of some calls, and the memory that they need, in GB."""
    sizes = TASKS[task].small if smoke else TASKS[task].sizes
    run = (make_ours if library == "ours" else make_theirs)(task, sizes)
    result = run()
    before = cells.reset_peak()
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    memory = cells.peak_gb() - before
    return {"result": result, "seconds": float(np.median(seconds)), "memory_gb": memory}


def measure_apart(task: str, library: str, *, smoke: bool) -> dict[str, Any]:
    """Measures in a new process."""
    command = [sys.executable, "-m", "benchmarks.retrieval", "--one", task, library]
    done = subprocess.run(
        command + ["--smoke"] * smoke, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["it was stopped"])[-1]
        raise SystemExit(f"error: {library} failed at {task}: {words}")
    return json.loads(done.stdout.splitlines()[-1])


def difference(task: str, ours: list, theirs: list) -> float:
    """Share of neighbours that differ, or the largest difference of a figure."""
    if task == "figures":
        return float(np.abs(np.subtract(ours, theirs)).max())
    return float(np.mean(np.not_equal(ours, theirs)))


def compare(task: str, rounds: int, *, smoke: bool) -> dict[str, Any]:
    """Measures both libraries in turns."""
    found = [
        [measure_apart(task, side, smoke=smoke) for side in ("ours", "theirs")]
        for _ in range(rounds)
    ]
    ours, theirs = zip(*found, strict=True)
    ratios = [b["seconds"] / a["seconds"] for a, b in found]
    num_queries = (TASKS[task].small if smoke else TASKS[task].sizes)[0]

    def per_second(side: tuple) -> float:
        return num_queries / float(np.median([one["seconds"] for one in side]))

    return {
        "task": task,
        "rival": TASKS[task].package,
        "ours_per_second": per_second(ours),
        "rival_per_second": per_second(theirs),
        **results.spread(np.array(ratios)),
        "ours_gb": max(one["memory_gb"] for one in ours),
        "rival_gb": max(one["memory_gb"] for one in theirs),
        "difference": difference(task, ours[0]["result"], theirs[0]["result"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the tasks, prints a table, and writes the rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument(
        "--one", nargs=2, metavar=("TASK", "LIBRARY"), help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {options.rounds}")
    if options.one:
        print(json.dumps(measure(*options.one, smoke=options.smoke)))
        return
    missing = {
        task: f"{TASKS[task].package} not installed"
        for task in options.tasks
        if importlib.util.find_spec(TASKS[task].package) is None
    }
    rows = [
        compare(task, options.rounds, smoke=options.smoke)
        for task in options.tasks
        if task not in missing
    ]
    results.report("retrieval", rows, options.json, arguments, missing)


if __name__ == "__main__":
    main()
