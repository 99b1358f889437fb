"""What every command has in common: flags, error messages, tables, JSON files.

A runnable module has a frozen dataclass `Config`, whose fields are the flags, and
`main(config)`. Its docstring is what `--help` shows first.
"""

import contextlib
import inspect
import json
import logging
import math
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from siamese_jax._files import finite_or_none as finite_or_none
from siamese_jax._files import write_whole as write_whole
from siamese_jax._names import print_any_name, shown
from siamese_jax.errors import UserError

ConfigT = TypeVar("ConfigT")  # a frozen dataclass


def command_line(
    main: Callable[[ConfigT], Any],
    config_type: type[ConfigT],
    flags: Sequence[str] | None = None,
) -> None:
    """Runs a module's `main` with a configuration that is parsed from flags.

    A `UserError` or `OSError`, such as `FileNotFoundError`, ends the program with one line,
    `error: ...`, on the standard error stream and exit status 1. Flags that cannot be
    parsed end it with exit status 2. Ctrl-C ends it with exit status 130 and one line with
    the command that goes on.

    Args:
      main: The function to run. The docstring of its module heads the output of `--help`,
        printed line by line as it is written.
      config_type: A dataclass with one flag for each field, parsed by the field's type. If
        it has an attribute `positional` that is true, fields without a default are
        positional arguments instead of flags. If it has a method `from_flags(flags,
        program)`, this makes the configuration.
      flags: The command line after the module's name; that of this process if None.
    """
    flags = sys.argv[1:] if flags is None else flags
    logging.getLogger("absl").setLevel(logging.ERROR)
    if not {"-h", "--help"}.isdisjoint(flags):
        # printed here, since tyro joins the lines of a description to paragraphs
        print((sys.modules[main.__module__].__doc__ or "").strip() + "\n")
    program = f"python -m experiments {pathlib.Path(inspect.getfile(main)).stem}"
    from_flags = getattr(config_type, "from_flags", partial(parse_flags, config_type))
    config = None
    print_any_name()
    try:
        config = from_flags(flags, program)
        with _precision(config), _joined(config) as own:
            main(own)
    except (UserError, OSError) as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as stopped:
        again = f"{program} {shlex.join(same_run(config, flags))}".strip()
        print(f"{stopped or 'stopped'}; to go on: {again}", file=sys.stderr)
        raise SystemExit(130) from None


def parse_flags(config_type: type[ConfigT], flags: Sequence[str], program: str) -> ConfigT:
    """The configuration that flags describe; wrong flags end the program with status 2."""
    import tyro

    positional = getattr(config_type, "positional", False)
    return tyro.cli(
        config_type,
        args=flags,
        prog=program,
        description="",
        config=(tyro.conf.PositionalRequiredArgs,) if positional else (),
    )


def _joined(config: Any) -> contextlib.AbstractContextManager[Any]:
    """The settings of this process, after it joined the others of a training run."""
    join = getattr(config, "joined", lambda: contextlib.nullcontext(config))
    return join()


def _precision(config: Any) -> contextlib.AbstractContextManager[Any]:
    """JAX's 64-bit types for a run that computes in float64, 32-bit types for others."""
    settings = getattr(config, "fixed", config)  # those that the runs of a sweep share
    if not hasattr(settings, "compute_dtype"):
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(settings.compute_dtype == "float64")


def same_run(config: Any, flags: Sequence[str]) -> list[str]:
    """The flags with the folder of the run, if the command makes one."""
    named = any(flag.split("=")[0] == "--workdir" for flag in flags)
    if named or not hasattr(config, "directory"):
        return list(flags)
    return [*flags, "--workdir", str(config.directory)]


# Figures --------------------------------------------------------------------------------


def print_table(metrics: Mapping[str, float | None]) -> None:
    """Prints one metric on each line, as `table_rows` writes it."""
    rows = table_rows(metrics)
    width = max((len(name) for name, _ in rows), default=0)
    print()
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
    print()


def table_rows(metrics: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """Returns the name and the text of each metric, with its interval if there is one.

    The interval of a metric is in two others, whose names end in "_low" and "_high".

    >>> print(table_rows({"eer": 0.1, "eer_low": 0.05, "eer_high": 0.2, "num_pairs": 9}))
    [('eer', '0.1000 (0.0500 to 0.2000)'), ('num_pairs', '9')]
    """
    rows = []
    for name, value in metrics.items():
        of = re.sub("_(low|high)$", "", name)
        if of != name and of in metrics:
            continue
        text = format_figure(value)
        if f"{name}_low" in metrics:
            low, high = (format_figure(metrics[f"{name}_{end}"]) for end in ("low", "high"))
            text += f" ({low} to {high})"
        rows.append((name, text))
    return rows


def format_figure(value: float | None) -> str:
    """Returns a figure as text: four decimals, or none for integers.

    None stands for a figure that is undefined.

    >>> print(format_figure(20), format_figure(0.5), format_figure(None))
    20 0.5000 undefined
    """
    if value is None:
        return "undefined"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def show_figures(figures: Mapping[str, Any], path: pathlib.Path | None) -> None:
    """Prints figures["metrics"] as a table and, if a path is given, writes all as JSON.

    A metric of None is undefined for these data.

    Raises:
      UserError: If a metric is not finite. No file is written then.
    """
    for name, value in figures["metrics"].items():
        if value is not None and not math.isfinite(value):
            raise UserError(f"{name} is {value}: the model gives distances without a value")
    print_table(figures["metrics"])
    if path is not None:
        write_whole(path, json.dumps(figures, indent=2) + "\n")


# Files ----------------------------------------------------------------------------------


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      UserError: If the file is not valid JSON, or holds another value than an object.
      FileNotFoundError: If there is no such file.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, or the folder, to start again"
        ) from error
    return content
