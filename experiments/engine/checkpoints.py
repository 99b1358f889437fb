"""Checkpoints: the last states of a run, and the state with the best evaluation."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from siamese_jax.errors import UserError
from siamese_jax.training import TrainState

if TYPE_CHECKING:  # imported inside functions, since a training step needs no storage
    import orbax.checkpoint as ocp


@contextlib.contextmanager
def open_checkpoints(workdir: pathlib.Path) -> Iterator["ocp.CheckpointManager"]:
    """The checkpoints of a run, of which the last two are kept."""
    import orbax.checkpoint as ocp

    # Saving is synchronous, because the next step reuses the memory of the state.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    folder = workdir.absolute() / "checkpoints"
    with ocp.CheckpointManager(folder, options=options) as manager:
        yield manager


def save(checkpoints: "ocp.CheckpointManager", step: int, state: TrainState) -> None:
    """Saves the state after `step` updates."""
    import orbax.checkpoint as ocp

    checkpoints.save(step, args=ocp.args.StandardSave(state))


def restore(checkpoints: "ocp.CheckpointManager", state: TrainState) -> TrainState:
    """The last saved state, or `state` itself where nothing was saved yet.

    Raises:
      UserError: If the checkpoint cannot be read.
    """
    import orbax.checkpoint as ocp

    step = checkpoints.latest_step()
    if step is None:
        return state
    try:
        return checkpoints.restore(step, args=ocp.args.StandardRestore(state))
    except Exception as error:  # the storage layers raise many kinds
        folder = pathlib.Path(checkpoints.directory) / str(step)
        raise UserError(
            f"checkpoint {folder} cannot be read: it is damaged, cut short or belongs to "
            f"another network ({type(error).__name__}). Delete that folder to continue "
            "from the checkpoint before it, if there is one, or from the beginning"
        ) from error


def load_state(workdir: pathlib.Path, state: TrainState) -> TrainState:
    """The last checkpoint in the folder of a run, for a state shaped like `state`.

    Raises:
      UserError: If there is no checkpoint, or it cannot be read.
    """
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no checkpoint")
    with open_checkpoints(workdir) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UserError(f"{workdir} holds no complete checkpoint")
        return restore(checkpoints, state)


def save_best(workdir: pathlib.Path, state: TrainState) -> None:
    """Keeps the best state so far, in place of the one before it."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(workdir.absolute() / "best", state, force=True)


def load_best(workdir: pathlib.Path, state: TrainState) -> TrainState:
    """The state with the best evaluation, for a state shaped like `state`.

    Raises:
      UserError: If no state was evaluated yet, or the best one cannot be read.
    """
    import orbax.checkpoint as ocp

    folder = workdir.absolute() / "best"
    if not folder.is_dir():
        raise UserError(f"{workdir} holds no state that was evaluated")
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(folder, state)
        except Exception as error:  # the storage layers raise many kinds
            raise UserError(
                f"{folder} cannot be read: it is damaged, cut short or belongs to another "
                f"network ({type(error).__name__})"
            ) from error
