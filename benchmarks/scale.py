"""Memory and time of losses of many rows: whole matrix, tiles, optax, and another library.

    python -m benchmarks.scale [--num-rows 1024 4096 16384 65536] [--losses ...]
        [--forms dense tiled optax pml] [--tile-size 256] [--limit-seconds 600]
        [--processor-time] [--smoke] [--json OUT]

Value and gradient with respect to the embeddings, of 128 numbers in float32, of:

* `info_nce_loss` of two views of each image, which is NT-Xent,
* `supervised_contrastive_loss`, `multi_similarity_loss`, `hard_triplet_loss` and
  `all_triplets_loss` with four images of each class,
* `sigmoid_pair_loss` of as many images as texts, which is SigLIP.

The forms are the loss of the matrix (dense), the same loss by `tiling.tiled`, optax and
pytorch-metric-learning (pml). Those that lack a loss have no figure for it.

Each cell of the table is measured in a process of its own and reads

    seconds of a call, temporaries of the compiled program of peak memory of the process

The peak is that of the whole process with Python and the libraries, which take a few
hundred megabytes. GB are 2^30 bytes. A program that needs more than 8 GB of temporaries is
not run. A process that takes more than 8 GB, or more time than the limit, is stopped, and
where pytorch-metric-learning was stopped, more rows are not tried.

On a machine that does other work too, `taskset -c 0 python -m benchmarks.scale
--processor-time` measures the time that one core computes.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import cells, results

DIM = 128
FORMS = ("dense", "tiled", "optax", "pml")
Run = Callable[[], float]


class Case(NamedTuple):
    """One loss, in this library and in the others.

    Attributes:
      matrix: The function of `siamese_jax.distances` that makes its matrix.
      options: Options of the loss here.
      examples_per_class: Number of rows of each class. None means rows and as many columns
        that are a second set, each of which belongs to one row.
      optax: Name of the loss in optax.
      pml: Name of the loss in pytorch-metric-learning.
      miner: Name of its miner there.
      pml_options: Options of the loss there.
    """

    matrix: str
    options: Mapping[str, Any] = {}
    examples_per_class: int | None = 4
    optax: str | None = None
    pml: str | None = None
    miner: str | None = None
    pml_options: Mapping[str, Any] = {}


_SIMILARITY, _DISTANCE = "dot_similarity_matrix", "euclidean_distance_matrix"
_MARGIN = {"margin": 0.05}
CASES = {
    "info_nce_loss": Case(
        _SIMILARITY, {"temperature": 0.07}, 2, optax="ntxent", pml="NTXentLoss"
    ),
    "supervised_contrastive_loss": Case(_SIMILARITY, pml="SupConLoss"),
    "sigmoid_pair_loss": Case(_SIMILARITY, examples_per_class=None),
    "hard_triplet_loss": Case(
        _DISTANCE,
        _MARGIN,
        pml="TripletMarginLoss",
        miner="BatchHardMiner",
        pml_options=_MARGIN,
    ),
    "all_triplets_loss": Case(
        _DISTANCE,
        _MARGIN | {"active_only": True},
        pml="TripletMarginLoss",
        pml_options=_MARGIN,
    ),
    "multi_similarity_loss": Case(_SIMILARITY, pml="MultiSimilarityLoss"),
}


def make_inputs(case: Case, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of length 1, of one set or of two, and the labels of a set."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_rows) // (case.examples_per_class or 1)
    centers = rng.normal(size=(labels.max() + 1, DIM)).astype(np.float32)
    num_sets = 1 if case.examples_per_class else 2
    noise = rng.normal(size=(num_sets, num_rows, DIM)).astype(np.float32)
    embeddings = centers[labels] + noise
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True), labels


# The forms ------------------------------------------------------------------------------


def make_ours(name: str, form: str, tile_size: int) -> Callable[..., Any]:
    """Our loss as a function of the embeddings and labels that `make_inputs` returns."""
    from siamese_jax import distances, losses, reductions, relations, tiling

    case = CASES[name]
    loss_fn = functools.partial(getattr(losses, name), **case.options)
    if name == "hard_triplet_loss":  # as the other library does by default
        loss_fn = functools.partial(loss_fn, reduce_fn=reductions.mean_of_active)
    matrix_fn = getattr(distances, case.matrix)

    def dense(rows: Any, items: Any, columns: Any = None, column_items: Any = None) -> Any:
        if columns is None:
            same, where = relations.within(items)
            return loss_fn(matrix_fn(rows, rows), same, where=where)
        same, where = relations.between(items, column_items)
        return loss_fn(matrix_fn(rows, columns), same, where=where)

    of_sets = dense
    if form == "tiled":
        of_sets = tiling.tiled(loss_fn, matrix_fn, tile_size=tile_size)

    def loss(embeddings: Any, labels: Any) -> Any:
        items = relations.Items(labels)
        return of_sets(*(part for x in embeddings for part in (x, items)))

    return loss


def make_optax(name: str) -> Callable[..., Any]:
    """The loss of optax as a function of embeddings and labels."""
    import optax

    loss_fn = getattr(optax.losses, str(CASES[name].optax))
    return lambda embeddings, labels: loss_fn(embeddings[0], labels)


def compile_gradient(
    loss: Callable[..., Any], case: Case, num_rows: int
) -> tuple[Run, float]:
    """Value and gradient, compiled for inputs, and the GB of its temporaries."""
    import jax

    embeddings, labels = map(jax.numpy.asarray, make_inputs(case, num_rows))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(embeddings, labels).compile()
    analysis: Any = compiled.memory_analysis()

    def run() -> float:
        return float(jax.block_until_ready(compiled(embeddings, labels))[0])

    return run, analysis.temp_size_in_bytes / 2**30


def make_pml(name: str, num_rows: int) -> Run:
    """Value and gradient by pytorch-metric-learning."""
    import torch
    from pytorch_metric_learning import losses, miners

    case = CASES[name]
    loss_fn = getattr(losses, str(case.pml))(**case.pml_options)
    embeddings, labels = map(torch.tensor, make_inputs(case, num_rows))

    def run() -> float:
        leaf = embeddings[0].clone().requires_grad_()
        mined = getattr(miners, case.miner)()(leaf, labels) if case.miner else None
        value = loss_fn(leaf, labels, mined)
        value.backward()
        return float(value)

    return run


# One cell -------------------------------------------------------------------------------


def measure(
    name: str, form: str, num_rows: int, tile_size: int, clock: Callable[[], float]
) -> None:
    """Prints the findings of a cell as lines of JSON, as soon as they are known."""
    if form == "pml":
        run = make_pml(name, num_rows)
    else:
        ours = form in ("dense", "tiled")
        loss = make_ours(name, form, tile_size) if ours else make_optax(name)
        run, temporaries_gb = compile_gradient(loss, CASES[name], num_rows)
        print(json.dumps({"temporaries_gb": temporaries_gb}), flush=True)
        if temporaries_gb > cells.LIMIT_GB:
            print(json.dumps({"stopped": cells.OVER_MEMORY}))
            return
    value, seconds = cells.time_calls(run, clock)
    found = {"value": value, "seconds": seconds, "process_gb": cells.peak_gb()}
    print(json.dumps(found))


def text_of(found: Mapping[str, Any]) -> str:
    """A cell of the table, as the module's docstring describes it."""
    if not found:
        return ""
    if found.get("stopped") == cells.OVER_MEMORY:
        needed = found.get("temporaries_gb")
        return f"{needed:.1f} GB, not run" if needed else cells.OVER_MEMORY
    if "process_gb" not in found:
        return str(found["stopped"])
    how_long = found.get("stopped") or f"{found['seconds']:.3g} s"
    temporaries = found.get("temporaries_gb")
    of = f"{temporaries:.3f} of " if temporaries is not None else ""
    return f"{how_long}, {of}{found['process_gb']:.2f} GB"


# The command ----------------------------------------------------------------------------


def measure_row(
    name: str, num_rows: int, before: Mapping[str, Any] | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Measures all forms of a loss with a number of rows.

    Args:
      name: The loss.
      num_rows: Number of rows.
      before: The same with fewer rows.
      options: The flags.
    """
    row: dict[str, Any] = {"loss": name, "num_rows": num_rows, "found": {}}
    for form in FORMS:
        found: dict[str, Any] = {}
        exists = form in ("dense", "tiled") or getattr(CASES[name], form)
        if exists and form in options.forms:
            stopped = before is not None and "stopped" in before["found"][form]
            if form == "pml" and stopped:
                found = {"stopped": "not tried"}
            else:
                flags = f"--cell {name} {form} --num-rows {num_rows}"
                found = cells.measure_apart(
                    "benchmarks.scale",
                    [*flags.split(), "--tile-size", str(options.tile_size)],
                    options.limit_seconds,
                    options.processor_time,
                )
            print(f"{name}, {num_rows:,} rows, {form}: {text_of(found)}", flush=True)
        row["found"][form] = found
        row[form] = text_of(found)
    values = [found["value"] for found in row["found"].values() if "value" in found]
    apart = max(values, default=0.0) - min(values, default=0.0)
    row["difference"] = f"{apart / max(values):.0e}" if len(values) > 1 else ""
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all losses, prints a table, and writes the rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument(
        "--num-rows", nargs="+", type=int, default=[1024, 4096, 16384, 65536]
    )
    parser.add_argument("--losses", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--tile-size", type=int, default=256)
    parser.add_argument("--limit-seconds", type=float, default=600.0)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="two small cases")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--cell", nargs=2, metavar=("LOSS", "FORM"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cell:
        clock = cells.clock_of(options.processor_time)
        name, form = options.cell
        measure(name, form, options.num_rows[0], options.tile_size, clock)
        return
    if options.smoke:
        options.num_rows, options.tile_size = [256], 64
        options.losses, options.forms = list(CASES)[:2], list(FORMS[:2])
    rows: list[dict[str, Any]] = []
    try:
        for name in options.losses:
            row = None
            for num_rows in sorted(options.num_rows):
                row = measure_row(name, num_rows, row, options)
                rows.append(row)
    finally:  # what is measured is kept, also after Ctrl-C
        results.report("scale", rows, options.json, arguments)


if __name__ == "__main__":
    main()
