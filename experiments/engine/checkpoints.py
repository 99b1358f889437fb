"""Checkpoints: the last states of a run, and the state with the best evaluation.

Beside the files of each state stands checksums.json, which is written last. A file that was
damaged, cut short or lost is found by it before the state is read.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np

from experiments.cli import read_json, write_whole
from siamese_jax.errors import UserError
from siamese_jax.training import TrainState

if TYPE_CHECKING:  # imported inside functions, since a training step needs no storage
    import orbax.checkpoint as ocp

CHECKSUMS = "checksums.json"


@contextlib.contextmanager
def open_checkpoints(
    workdir: pathlib.Path, *, read_only: bool = False
) -> Iterator["ocp.CheckpointManager"]:
    """The checkpoints of a run, of which the last two are kept.

    Args:
      workdir: The folder of the run.
      read_only: Leaves the folder as it is, so that another process may save in it
        meanwhile. Otherwise half-written checkpoints of a killed process are deleted.

    Raises:
      UserError: If a file of the last checkpoint is damaged or missing.
    """
    import orbax.checkpoint as ocp

    folder = workdir.absolute() / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    _verify_last(folder)
    # Saving is synchronous, because the next step reuses the memory of the state.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        create=False,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        multiprocessing_options=_this_process(),
    )
    with ocp.CheckpointManager(folder, options=options) as manager:
        yield manager


def save(checkpoints: "ocp.CheckpointManager", step: int, state: TrainState) -> None:
    """Saves the state after `step` updates."""
    import orbax.checkpoint as ocp

    checkpoints.save(step, args=ocp.args.StandardSave(_to_save(state)))
    _write_checksums(_step_folder(checkpoints, step))


def restore(checkpoints: "ocp.CheckpointManager", state: TrainState) -> TrainState:
    """The last saved state, or `state` itself where nothing was saved yet.

    Raises:
      UserError: If the checkpoint cannot be read.
    """
    import orbax.checkpoint as ocp

    step = checkpoints.latest_step()
    if step is None:
        return state
    args = ocp.args.StandardRestore(state)
    folder = _step_folder(checkpoints, step)
    return _read(folder, lambda: checkpoints.restore(step, args=args))


def load_state(workdir: pathlib.Path, state: TrainState) -> TrainState:
    """The last checkpoint in the folder of a run, for a state shaped like `state`.

    The run may be training meanwhile.

    Raises:
      UserError: If there is no checkpoint, or it cannot be read.
    """
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no checkpoint")
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UserError(f"{workdir} holds no complete checkpoint")
        return restore(checkpoints, state)


def save_best(workdir: pathlib.Path, state: TrainState) -> None:
    """Keeps the best state so far, in place of the one before it."""
    folder = workdir.absolute() / "best"
    with _checkpointer() as checkpointer:
        checkpointer.save(folder, _to_save(state), force=True)
    _write_checksums(folder)


def load_best(workdir: pathlib.Path, state: TrainState) -> TrainState:
    """The state with the best evaluation, for a state shaped like `state`.

    Raises:
      UserError: If no state was evaluated yet, or the best one cannot be read.
    """
    folder = workdir.absolute() / "best"
    if not folder.is_dir():
        raise UserError(f"{workdir} holds no state that was evaluated")
    _verify(folder)
    with _checkpointer() as checkpointer:
        return _read(folder, lambda: checkpointer.restore(folder, state))


# Several processes: each that saves, saves by itself --------------------------------------


def _this_process() -> "ocp.options.MultiprocessingOptions":
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"of_{this}"
    )


def _checkpointer() -> "ocp.StandardCheckpointer":
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointer(multiprocessing_options=_this_process())


def _to_save(state: TrainState) -> TrainState:
    """In a run of several processes, only arrays of NumPy are saved by one of them."""
    return state if jax.process_count() == 1 else jax.tree.map(np.asarray, state)


# Damage ---------------------------------------------------------------------------------


def _step_folder(checkpoints: "ocp.CheckpointManager", step: int) -> pathlib.Path:
    return pathlib.Path(checkpoints.directory) / str(step)


def _read(folder: pathlib.Path, read_fn: Callable[[], TrainState]) -> TrainState:
    """What `read_fn` reads from a folder; its failure names the folder."""
    try:
        return read_fn()
    except Exception as error:  # the storage layers raise many kinds
        raise _damaged(folder, type(error).__name__) from error


def _damaged(folder: pathlib.Path, reason: str) -> UserError:
    return UserError(
        f"{folder} cannot be read: it is damaged, cut short or belongs to another network "
        f"({reason}). Delete that folder to continue from the checkpoint before it, if "
        "there is one, or from the beginning"
    )


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    """The checksum of each file below a folder, by its name relative to the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(folder).as_posix()] = digest
    return found


def _write_checksums(folder: pathlib.Path) -> None:
    write_whole(folder / CHECKSUMS, json.dumps(_checksums(folder), indent=2) + "\n")


def _verify(folder: pathlib.Path) -> None:
    """Refuses a saved state with a damaged file, before anything is read from it.

    A state without checksums, which a process leaves that is killed between the two, is
    left to the reader.
    """
    if not (folder / CHECKSUMS).exists():
        return
    wanted, found = read_json(folder / CHECKSUMS), _checksums(folder)
    for name, checksum in wanted.items():
        if name not in found:
            raise _damaged(folder, f"{name} is missing")
        if found[name] != checksum:
            raise _damaged(folder, f"{name} is not as it was written")


def _verify_last(folder: pathlib.Path) -> None:
    """Refuses a damaged last checkpoint."""
    steps = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    if steps:
        _verify(folder / str(max(steps)))
