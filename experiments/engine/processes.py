"""Runs of several processes, each with devices of its own, on one machine or on many.

All processes are started with the same command, apart from `--process-id`:

    python -m experiments NAME --coordinator HOST:PORT --num-processes 2 --process-id 0
    python -m experiments NAME --coordinator HOST:PORT --num-processes 2 --process-id 1

`--coordinator auto` finds all three values where the cluster tells them, as Slurm and TPU
pods do. The processes train one model together and evaluate it each for itself. Process 0
writes the folder of the run and reads its checkpoints, whose content it sends to the
others. These write to a temporary folder that is deleted at their end. If a process ends
before its time, the others end within a minute with an error, from here or from JAX, and
the same commands go on from the last checkpoint.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np

from experiments.engine.config import RunConfig, check_range
from experiments.engine.stops import STATUS
from siamese_jax.errors import UserError

ConfigT = TypeVar("ConfigT", bound=RunConfig)
Tree = TypeVar("Tree")

AUTO = "auto"
_START_SECONDS = 300  # how long processes wait for those that start later
_HEARTBEAT_SECONDS = 30  # after which a process that says nothing counts as dead


@contextlib.contextmanager
def joined(config: ConfigT) -> Iterator[ConfigT]:
    """Joins the processes that the flags name; yields the settings of this process.

    Raises:
      UserError: If the flags do not name all there is to know, or the processes do not find
        each other.
    """
    _check_flags(config)
    if config.coordinator is None:
        yield config
        return
    is_auto = config.coordinator == AUTO
    try:
        jax.distributed.initialize(
            None if is_auto else config.coordinator,
            config.num_processes,
            config.process_id,
            cluster_detection_method=None if is_auto else "deactivate",
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--coordinator {config.coordinator}: {error}") from error
    with contextlib.ExitStack() as stack:
        if jax.process_index() > 0:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            config = dataclasses.replace(config, workdir=pathlib.Path(folder))
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield config
        except SystemExit:
            raise
        except BaseException as error:
            stack.close()
            _leave(error)


def _leave(error: BaseException) -> None:
    """Says what happened and ends this process at once.

    An ordinary end would wait for the other processes, which wait for this one.
    """
    status = 1
    if isinstance(error, KeyboardInterrupt):
        status, words = STATUS, f"{error or 'stopped'}; the same commands go on"
    elif isinstance(error, UserError | OSError):
        words = f"error: {error}"
    elif isinstance(error, jax.errors.JaxRuntimeError) and _is_lost(str(error)):
        words = (
            "error: another process of this run has ended, or cannot be reached; start all "
            f"of them again to go on from the last checkpoint ({str(error).strip()[:200]})"
        )
    else:
        words = "".join(traceback.format_exception(error))
    print(words, file=sys.stderr, flush=True)
    os._exit(status)


def _is_lost(words: str) -> bool:
    """Whether an error of JAX tells of another process."""
    signs = ("gloo", "connection", "peer", "unavailable", "deadline", "coordination")
    return any(sign in words.lower() for sign in signs)


def _check_flags(config: RunConfig) -> None:
    for field in dataclasses.fields(config):
        if field.name in ("num_processes", "process_id"):
            check_range(field, getattr(config, field.name))
    number, of = config.process_id, config.num_processes
    flags = {"--num-processes": of, "--process-id": number}
    if config.coordinator in (None, AUTO):
        for flag, value in flags.items():
            if value is not None:
                raise UserError(f"{flag} is used only with --coordinator HOST:PORT")
        return
    for flag, value in flags.items():
        if value is None:
            raise UserError(f"--coordinator {config.coordinator} needs {flag}")
    if number is not None and of is not None and number >= of:
        raise UserError(f"--process-id must be below --num-processes {of}; got {number}")


def is_first() -> bool:
    """Whether this process writes the folder of the run."""
    return jax.process_index() == 0


def from_first(make_fn: Callable[[], Tree], like: Tree) -> Tree:
    """What `make_fn` returns in process 0, on all processes.

    Args:
      make_fn: It is called in process 0 alone, and returns a tree of arrays.
      like: A tree of arrays of the same shapes and types, on devices of this process.
    """
    if jax.process_count() == 1:
        return make_fn()
    sent = _sent(make_fn() if is_first() else like)
    return jax.tree.map(lambda x, wanted: jax.device_put(x, wanted.sharding), sent, like)


def share_files(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Copies files of process 0 to the folders of the others, where they exist."""
    if jax.process_count() == 1:
        return
    for name in names:
        path = folder / name
        content = path.read_bytes() if is_first() and path.exists() else b""
        size = int(_sent(np.array(len(content))))
        if size:
            received = _sent(np.frombuffer(content or bytes(size), np.uint8))
            if not is_first():
                path.write_bytes(np.asarray(received).tobytes())


def _sent(tree: Tree) -> Tree:
    """The tree of process 0."""
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
