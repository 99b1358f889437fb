"""The start of a run from the parameters of a saved model."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from siamese_jax import training
from siamese_jax.errors import UserError
from siamese_jax.model import load_model
from siamese_jax.training import TrainState

ENCODER, STATISTICS = "params/encoder/", "statistics/"  # how their names begin in a state
MEMORY = "memory"  # statistics of this name are no encoder's, and start anew in every run

Arrays = dict[str, jax.Array]


def load_parameters(
    folder: pathlib.Path, state: TrainState, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step with the parameters of a model.

    The model must have the encoder of the run: parameters and statistics with the same
    names and shapes. What is learnt beside the encoder, such as a head, is taken where the
    model has it.

    Args:
      folder: The folder of the model.
      state: The state before the first step.
      optimizer: The optimiser, whose state is made anew.

    Raises:
      UserError: If the folder is no model, or the model has another encoder.
    """
    tree = {"params": state.params, "statistics": state.statistics}
    given, wanted = read_parameters(folder), named_arrays(tree)
    _check_encoder(folder, given, wanted)
    shapes = {name: array.shape for name, array in given.items()}
    taken = {name for name, array in wanted.items() if shapes.get(name) == array.shape}
    print(f"starting from {folder}: {len(taken)} of {len(wanted)} arrays are taken")

    def take(path: Any, array: jax.Array) -> jax.Array:
        name = _name(path)
        return jnp.asarray(given[name] if name in taken else array, array.dtype)

    tree = jax.tree_util.tree_map_with_path(take, tree)
    return training.init_state(tree["params"], optimizer, statistics=tree["statistics"])


def read_parameters(folder: pathlib.Path) -> Arrays:
    """The parameters of a model by the names that they have in the state of a run.

    Raises:
      UserError: If the folder is no model.
    """
    try:
        return as_in_state(load_model(folder).params)
    except UserError as error:
        raise UserError(f"--init-from: {error}") from error


def named_arrays(tree: Any) -> Arrays:
    """The arrays of a tree by name: their keys, joined by "/"."""
    return {_name(path): array for path, array in jax.tree_util.tree_leaves_with_path(tree)}


def as_in_state(params: Arrays) -> Arrays:
    """Renames the parameters of a model as they are named in the state of a run.

    A model holds its encoder's parameters alone, or under "params" beside its statistics,
    or under "encoder" beside everything else that was learnt.

    >>> list(as_in_state({"Dense_0/bias": jnp.zeros(1)}))
    ['params/encoder/Dense_0/bias']
    >>> list(as_in_state({"encoder/Dense_0/bias": jnp.zeros(1), "head/bias": jnp.zeros(1)}))
    ['params/encoder/Dense_0/bias', 'params/head/bias']
    """
    parts = {name.split("/")[0] for name in params}
    if "params" in parts:
        return {name.replace("params/", ENCODER, 1): x for name, x in params.items()}
    prefix = "params/" if "encoder" in parts else ENCODER
    return {prefix + name: array for name, array in params.items()}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_encoder(folder: pathlib.Path, given: Arrays, wanted: Arrays) -> None:
    for name in sorted(given.keys() | wanted.keys()):
        of_encoder = name.startswith((ENCODER, STATISTICS))
        if not of_encoder or name.startswith(f"{STATISTICS}{MEMORY}/"):
            continue
        there, here = (
            f"of shape {arrays[name].shape}" if name in arrays else "missing"
            for arrays in (given, wanted)
        )
        if there != here:
            raise UserError(
                f"--init-from: {folder} has another encoder: {name.removeprefix(ENCODER)} "
                f"is {there} there and {here} in this run"
            )
