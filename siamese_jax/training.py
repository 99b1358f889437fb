"""One pure step, and many steps in one program.

A loss function has one form, whatever the network:

    loss_fn(params, statistics, batch, key) -> (loss, (statistics, metrics))

`statistics` is what a forward pass updates beside the parameters (batch norm); a network
without passes it through. `metrics` is a dictionary of scalars.

>>> import jax
>>> import jax.numpy as jnp
>>> import optax
>>> def loss_fn(params, statistics, batch, key):
...     loss = jnp.mean((params * batch["x"] - batch["y"]) ** 2)
...     return loss, (statistics, {})
>>> def batch_fn(key, step, data):
...     rows = jax.random.randint(key, (8,), 0, len(data["x"]))
...     return jax.tree.map(lambda array: array[rows], data)
>>> data = {"x": jnp.arange(1.0, 9.0), "y": 3 * jnp.arange(1.0, 9.0)}
>>> optimizer = optax.sgd(0.01)
>>> state = init_state(jnp.array(0.0), optimizer)
>>> run = jax.jit(lambda key, state: train_steps(
...     key, state, data, num_steps=100,
...     batch_fn=batch_fn, loss_fn=loss_fn, optimizer=optimizer))
>>> state, metrics = run(jax.random.key(0), state)
>>> print(f"{state.params:.3f} {metrics['loss'].shape}")
3.000 (100,)

The caller compiles: `jax.jit(..., donate_argnums=1)` gives the old state's memory to the
new one (and so deletes the parameters that `init_state` was given). Under
`jax.pmap(..., axis_name="devices")` pass `axis_name="devices"`, and gradients, statistics
and metrics are averaged over the devices inside the step: no factor is left to do. The
average is that of equally large shards; a loss that must see the whole batch gathers it
itself.

All randomness of a step comes from the key and `state.step`: a run cut into pieces draws
what an unbroken run draws.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from siamese_jax._checks import check_at_least

Metrics = dict[str, Array]
LossFn = Callable[..., tuple[Array, tuple[PyTree, Metrics]]]
ApplyFn = Callable[..., PyTree]
BatchFn = Callable[[PRNGKeyArray, Array, PyTree], PyTree]


class TrainState(NamedTuple):
    """All that training changes; a plain tree of arrays, so it saves and restores whole.

    Attributes:
      step: Number of updates made.
      params: Parameters.
      statistics: What forward passes update beside the parameters; `()` for nothing.
      optimizer_state: Of optax.
    """

    step: Int[Array, "..."]
    params: PyTree
    statistics: PyTree
    optimizer_state: PyTree


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, *, statistics: PyTree = ()
) -> TrainState:
    """The state before the first step.

    Weakly typed numbers (`jnp.log(0.1)`) get a firm type, since the update would give them
    one and a second call would compile anew.

    >>> print(init_state(jnp.zeros(3), optax.sgd(0.1)).step)
    0
    """
    params, statistics = jax.tree.map(_firmly_typed, (params, statistics))
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, statistics, optimizer.init(params))


def with_compute_dtype(apply_fn: ApplyFn, dtype: DTypeLike) -> ApplyFn:
    """Mixed precision: the network computes in `dtype`, its parameters stay what they are.

    Floating-point parameters and inputs are cast on their way in, embeddings on their way
    out, to the parameters' type: distances, losses, gradients and updates keep it. With
    the parameters' own type nothing happens.

    Args:
      apply_fn: `apply_fn(params, x, *extras) -> embeddings`.
      dtype: Such as bfloat16.

    >>> apply_fn = with_compute_dtype(lambda params, x: params * x, jnp.bfloat16)
    >>> print(apply_fn(jnp.array(1.0), jnp.array(1.001)))  # bfloat16 has three digits
    1.0
    """

    def cast(tree: PyTree, wanted: DTypeLike) -> PyTree:
        return jax.tree.map(
            lambda x: x.astype(wanted) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    def apply(params: PyTree, x: PyTree, *extras: PyTree) -> PyTree:
        wide = jnp.result_type(*jax.tree.leaves(params))
        return cast(apply_fn(cast(params, dtype), cast(x, dtype), *extras), wide)

    return apply


def train_step(
    key: PRNGKeyArray,
    state: TrainState,
    batch: PyTree,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update from one batch.

    Args:
      key: For `loss_fn`; the number of the step is folded in, so one key serves a whole
        run. On several devices each folds its own number in too, so that no two draw the
        same dropout masks.
      state: Before the update.
      batch: Whatever `loss_fn` takes; under `pmap`, this device's share.
      loss_fn: See the module.
      optimizer: From optax.
      axis_name: Of the enclosing `pmap` or `shard_map`, whose devices average their
        gradients here.

    Returns:
      The new state, and `metrics` with "loss" added.

    Raises:
      ValueError: If `loss_fn` has a metric named "loss", or changes the tree or the shapes
        of the statistics.

    >>> def loss_fn(params, statistics, batch, key):
    ...     return params**2, (statistics, {})
    >>> optimizer = optax.sgd(0.5)
    >>> state = init_state(jnp.array(3.0), optimizer)
    >>> state, metrics = train_step(
    ...     jax.random.key(0), state, None, loss_fn=loss_fn, optimizer=optimizer)
    >>> print(state.params, metrics["loss"])
    0.0 9.0
    """
    key = jax.random.fold_in(key, state.step)
    params = state.params
    if axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(axis_name))
        params = jax.tree.map(lambda leaf: _of_this_device(leaf, axis_name), params)
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (statistics, metrics)), gradients = gradient_fn(
        params, state.statistics, batch, key
    )
    found, wanted = (
        jax.tree.map(jnp.shape, tree) for tree in (statistics, state.statistics)
    )
    if found != wanted:
        raise ValueError(
            f"loss_fn must return statistics shaped as they were, {wanted}; got {found} "
            "(does twin need has_statistics=True?)"
        )
    if "loss" in metrics:
        raise ValueError('loss_fn must not name a metric "loss": the step adds it')
    metrics = {"loss": loss, **metrics}
    if axis_name is not None:
        gradients, statistics, metrics = jax.tree.map(
            lambda leaf: lax.pmean(leaf, axis_name).astype(jnp.result_type(leaf)),
            (gradients, statistics, metrics),
        )
    updates, optimizer_state = optimizer.update(
        gradients, state.optimizer_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, statistics, optimizer_state), metrics


def train_steps(
    key: PRNGKeyArray,
    state: TrainState,
    data: PyTree,
    *,
    num_steps: int,
    batch_fn: BatchFn,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    unroll: int = 1,
) -> tuple[TrainState, Metrics]:
    """Many updates as one program: sampling, augmentation and update inside one scan.

    Args:
      key: The run's key, the same for every call of a run.
      state: Before the first update; donate it.
      data: The whole set, on the device: images as uint8, labels, a class index.
      num_steps: How many updates; static.
      batch_fn: `batch_fn(key, step, data) -> batch`, pure. Under `pmap` the key is the
        same on all devices: draw the whole batch's numbers and take this device's share of
        them by `lax.axis_index`, and the run does not depend on how many devices there are.
      loss_fn: See the module.
      optimizer: From optax.
      axis_name: As in `train_step`.
      unroll: Steps unrolled in the loop's body, which helps tiny steps on accelerators.

    Returns:
      The new state, and each metric with a leading axis of `num_steps`.

    Raises:
      ValueError: If `num_steps` is below 1.
    """
    check_at_least("num_steps", num_steps, 1)

    batch_key, loss_key = jax.random.split(key)

    def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        batch = batch_fn(jax.random.fold_in(batch_key, state.step), state.step, data)
        return train_step(
            loss_key,
            state,
            batch,
            loss_fn=loss_fn,
            optimizer=optimizer,
            axis_name=axis_name,
        )

    return lax.scan(body, state, length=num_steps, unroll=unroll)


def _of_this_device(leaf: Array, axis_name: str) -> Array:
    """Under `shard_map`, makes the gradient this device's own instead of a silent sum."""
    varying = lax.axis_index(axis_name)
    return leaf + jnp.zeros_like(varying, dtype=leaf.dtype)


def _firmly_typed(leaf: Array) -> Array:
    return lax.convert_element_type(leaf, jnp.result_type(leaf))
