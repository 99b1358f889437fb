"""A system that can be trained: pure functions, made by `build(config)` in its file."""

import importlib
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from experiments.engine import health
from siamese_jax import training
from siamese_jax.model import Model
from siamese_jax.training import Metrics, TrainState


class System(NamedTuple):
    """A system that can be trained, as pure functions.

    Attributes:
      init: `init(key) -> (params, statistics)`. `params` is a dictionary with the encoder's
        parameters under "encoder" and everything else that is learnt beside it.
      sample: `sample(key, step, data) -> batch`, a NamedTuple of arrays with n examples.
        Its field `images` is [..., n, height, width, channels], and n is the first axis of
        all other fields.
      loss: `loss(params, statistics, batch, key) -> (loss, (statistics, metrics))`. Of a
        system with embeddings, the metrics have a `health.Embedded` beside the scalars.
      optimizer: The optimiser, from optax.
      model: `model(state) -> Model`: what a trained state is for its users.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    sample: Callable[[jax.Array, jax.Array, Any], Any]
    loss: training.LossFn
    optimizer: optax.GradientTransformation
    model: Callable[[TrainState], Model]


def system_names() -> set[str]:
    """The names of the files in `experiments/systems`."""
    folder = importlib.import_module("experiments.systems").__path__
    return {module.name for module in pkgutil.iter_modules(folder)}


def load_system(name: str) -> Any:
    """The module of a system."""
    return importlib.import_module(f"experiments.systems.{name}")


def initial_state(system: System, key: jax.Array) -> TrainState:
    """The state before the first step, in JAX's default type of floating-point numbers.

    Flax draws float32 parameters. Where 64-bit types are enabled they become float64, so
    that a run in float64 starts from the same parameters as one in float32.
    """
    params, statistics = jax.tree.map(
        partial(with_floats, float), jax.jit(system.init)(key)
    )
    return training.init_state(params, system.optimizer, statistics=statistics)


def with_floats(dtype: DTypeLike, leaf: jax.Array) -> jax.Array:
    """The array in another type, if it holds floating-point numbers."""
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def train_steps(
    system: System,
    key: jax.Array,
    state: TrainState,
    data: Any,
    num_steps: int,
    *,
    axis_name: str | None = None,
    with_health: bool = False,
) -> tuple[TrainState, Metrics]:
    """Many training steps, for one compiled program.

    Args:
      system: The functions to run.
      key: The key of the run.
      state: The state before the first of these steps.
      data: Whatever `system.sample` takes.
      num_steps: Number of steps.
      axis_name: The axis of the devices, if each has a share of the batch.
      with_health: Whether the metrics have the health of the embeddings, which changes
        no parameter.
    """
    sample, loss_fn = system.sample, health.unmeasured(system.loss)
    if with_health:
        sample = health.numbered(sample)
        loss_fn = health.measured(system.loss, axis_name)
    return training.train_steps(
        key,
        state,
        data,
        num_steps=num_steps,
        batch_fn=sample,
        loss_fn=loss_fn,
        optimizer=system.optimizer,
        axis_name=axis_name,
    )
