"""Training speed of our systems, compared with the same networks in Keras and PyTorch.

    python -m benchmarks.train_step --json benchmarks/results/train_step.json
    python -m benchmarks.train_step --systems mnist_mlp --rivals keras-jax torch --smoke
    python -m benchmarks.train_step --rivals torch torch-compile --dtype bfloat16
    python -m benchmarks.train_step --rivals flattened
    python -m benchmarks.train_step --rivals checkout --checkout ../another-checkout

All contestants use the network, batch size, optimiser, loss and dropout of the tutorial, in
float32. "ours" runs the training loop of the experiment, many steps in one compiled
program, with the images in memory as bytes. Keras runs `fit` over tensors in memory with
`jit_compile="auto"`. PyTorch runs a plain loop, eager or compiled. The images are random,
which does not change the speed.

Two rivals are variants of ours. "flattened" puts both inputs through the network as one
concatenated batch instead of through `siamese.twin`. "checkout" is another checkout of this
project, such as an earlier version.

Each contestant has its own process, and they take turns, with a pause before each. A round
is one turn of each contestant, which lasts one run or half a second, and every second round
has the opposite order. A ratio compares two turns of the same round. Compilation and the
first runs are not counted. Before anything is timed, the losses of the first steps must
agree, with the same initial weights, the same pairs and no dropout.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.cases import CASES, Case, get_case
from benchmarks.contestants import BACKENDS, CHECKOUT, FLATTENED, OURS, PLAIN_TORCH

ROOT = pathlib.Path(__file__).parent.parent
# The largest relative differences allowed between our losses and those of a rival.
FIRST_DIFFERENCE = 1e-5  # in the first step
LARGEST_DIFFERENCE = 3e-3  # later, as rounding errors grow and Adam's epsilon differs
HALF_DIFFERENCE = 0.1  # in all steps in bfloat16, which is rounded differently

RIVALS = [*BACKENDS, *PLAIN_TORCH]
OWN_RIVALS = [FLATTENED, CHECKOUT]  # variants of ours

Ask = Callable[..., dict[str, Any]]


class BenchmarkError(Exception):
    """An error that ends a benchmark with one line and exit status 1."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The result for one system and one rival. Speeds are medians over the rounds."""

    system: str
    rival: str
    batch_size: int
    num_steps: int
    rounds: int
    ours_pairs_per_second: float
    rival_pairs_per_second: float
    ratio: float
    ratio_min: float
    ratio_max: float
    ours_compile_seconds: float
    rival_compile_seconds: float
    ours_device: str
    rival_device: str
    loss_difference: float
    dtype: str
    ours_gigaflops_per_second: float


# Contestants ----------------------------------------------------------------------------


def why_not(rival: str) -> str | None:
    """Says what a rival lacks on this machine. None means that it can run."""
    if rival in OWN_RIVALS:
        return None
    needed = ("keras", BACKENDS[rival]) if rival in BACKENDS else ("torch",)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if PLAIN_TORCH.get(rival) and not shutil.which(os.environ.get("CXX", "g++")):
        missing.append("the C++ compiler that torch.compile calls")
    return f"{' and '.join(missing)} not installed" if missing else None


@contextlib.contextmanager
def started(name: str, *module: str, checkout: pathlib.Path | None = None) -> Iterator[Ask]:
    """Starts the process of a contestant and yields a function that sends a request to it.

    Args:
      name: Name of the contestant.
      *module: Module to run, and its arguments before the name.
      checkout: Folder of another checkout of the project, whose "ours" is started.
    """
    module = module or ("benchmarks.contestants",)
    root = ROOT if checkout is None else checkout.absolute()
    paths = str(root), os.environ.get("PYTHONPATH")
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *module, OURS if checkout else name],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        requests, replies = process.stdin, process.stdout

        def ask(**request: Any) -> dict[str, Any]:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(request), file=requests, flush=True)
            reply = replies.readline()
            if not reply:
                errors.seek(0)
                raise BenchmarkError(f"{name} failed at {request}:\n{errors.read()}")
            return json.loads(reply)

        try:
            yield ask
        finally:
            process.kill()
            process.communicate()


# Measuring ------------------------------------------------------------------------------


def measure(
    system: str, contestants: Mapping[str, Ask], *, rounds: int, smoke: bool, **options: Any
) -> list[Row]:
    """Measures one system: all contestants take turns, and each rival gets a row.

    A turn of a contestant is the mean of the runs in half a second, after a pause.

    Raises:
      BenchmarkError: If a contestant fails, or the losses of a rival differ from ours.
    """
    options["smoke"] = smoke
    about = {
        name: ask(do="prepare", system=system, **options)
        for name, ask in contestants.items()
    }
    case = get_case(system, **options)
    differences = compare_losses(system, contestants, case.config["compute_dtype"])
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        names = list(contestants)[:: -1 if number % 2 else 1]
        for name in names:
            passed = results.turn(contestants[name], smoke=smoke, do="time")
            seconds[name].append(passed)
    return [
        make_row(system, rival, seconds, about, differences[rival], case)
        for rival in contestants
        if rival != OURS
    ]


def compare_losses(
    system: str, contestants: Mapping[str, Ask], dtype: str = "float32"
) -> dict[str, float]:
    """Returns the largest relative difference between each rival's first losses and ours.

    Raises:
      BenchmarkError: If a difference is larger than allowed, or NaN.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = str(pathlib.Path(folder, "weights.npz"))  # written by ours, asked first
        losses = {
            name: np.array(ask(do="losses", weights=weights)["losses"])
            for name, ask in contestants.items()
        }
    ours = losses.pop(OURS)
    differences = {name: np.abs(theirs / ours - 1) for name, theirs in losses.items()}
    for rival, difference in differences.items():
        largest = np.full(len(ours), LARGEST_DIFFERENCE)
        largest[0] = FIRST_DIFFERENCE
        largest = largest if dtype == "float32" else np.full(len(ours), HALF_DIFFERENCE)
        if not np.all(difference <= largest):
            raise BenchmarkError(
                f"{system}: ours and {rival} do not have the same losses. Without dropout "
                f"they are {ours.tolist()} and {losses[rival].tolist()}"
            )
    return {rival: float(difference.max()) for rival, difference in differences.items()}


def make_row(
    system: str,
    rival: str,
    seconds: Mapping[str, Sequence[float]],
    about: Mapping[str, Mapping[str, Any]],
    difference: float,
    case: Case,
) -> Row:
    """Computes the speeds from the seconds. The ratio is the median over the rounds."""
    num_pairs = case.num_steps * case.batch_size
    ours, theirs = (num_pairs / np.array(seconds[name]) for name in (OURS, rival))
    ratios = ours / theirs
    return Row(
        system=system,
        rival=rival,
        batch_size=case.batch_size,
        num_steps=case.num_steps,
        rounds=len(ratios),
        ours_pairs_per_second=float(np.median(ours)),
        rival_pairs_per_second=float(np.median(theirs)),
        ratio=float(np.median(ratios)),
        ratio_min=float(ratios.min()),
        ratio_max=float(ratios.max()),
        ours_compile_seconds=about[OURS]["compile_seconds"],
        rival_compile_seconds=about[rival]["compile_seconds"],
        ours_device=about[OURS]["device"],
        rival_device=about[rival]["device"],
        loss_difference=difference,
        dtype=case.config["compute_dtype"],
        ours_gigaflops_per_second=float(np.median(ours)) * case.flops_per_pair / 1e9,
    )


# Reporting ------------------------------------------------------------------------------


def line(row: Row) -> str:
    """Returns a row as a line of the Markdown table."""
    cells = (
        row.system,
        row.rival,
        row.batch_size,
        f"{row.ours_pairs_per_second:,.0f}",
        f"{row.rival_pairs_per_second:,.0f}",
        f"{row.ratio:.2f} ({row.ratio_min:.2f} to {row.ratio_max:.2f})",
        f"{row.ours_compile_seconds:.1f} / {row.rival_compile_seconds:.1f}",
        f"{row.ours_device} / {row.rival_device}",
    )
    return f"| {' | '.join(map(str, cells))} |"


HEADER = (
    "| system | rival | batch | ours, pairs/s | rival, pairs/s | ratio | compilation, s "
    "| device |\n| --- | --- | --: | --: | --: | --: | --: | --- |"
)


# Command line ---------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the flags and checks that they go together."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--systems", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--rivals", nargs="+", choices=[*RIVALS, *OWN_RIVALS], default=RIVALS
    )
    parser.add_argument(
        "--checkout",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of another checkout of the project, for the rival 'checkout'",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, help="default: the tutorial's")
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="OUT", help="file for the results"
    )
    parser.add_argument("--smoke", action="store_true", help="run tiny cases, as a test")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {options.rounds}")
    if (CHECKOUT in options.rivals) != (options.checkout is not None):
        parser.error("--checkout DIR and --rivals checkout go together")
    if options.checkout and not (options.checkout / "benchmarks").is_dir():
        parser.error(f"--checkout: {options.checkout} is not a checkout of the project")
    if options.batch_size is not None and options.batch_size < 2:
        parser.error(f"--batch-size must be at least 2; got {options.batch_size}")
    return options


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measures all systems, prints each row when it is ready, and returns all results."""
    skipped = {name: why for name in options.rivals if (why := why_not(name))}
    for rival, why in skipped.items():
        print(f"skipped: {rival}: {why}")
    rivals = [name for name in dict.fromkeys(options.rivals) if name not in skipped]
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        contestants = {
            name: stack.enter_context(
                started(name, checkout=options.checkout if name == CHECKOUT else None)
            )
            for name in (OURS, *rivals)
            if rivals
        }
        print(HEADER)
        for system in dict.fromkeys(options.systems if rivals else ()):
            found = measure(
                system,
                contestants,
                rounds=options.rounds,
                smoke=options.smoke,
                dtype=options.dtype,
                batch_size=options.batch_size,
            )
            print("\n".join(map(line, found)), flush=True)
            rows += found
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "skipped": skipped,
        "smoke": options.smoke,
        "images": "synthetic",
        "machine": results.machine(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the speeds, prints a Markdown table, and writes the results as JSON."""
    options = parse(arguments)
    try:
        found = benchmark(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    found["command"] = results.command("train_step", arguments)
    results.write(options.json, found)


if __name__ == "__main__":
    main()
