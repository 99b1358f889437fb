"""The training step, and many training steps compiled as one program.

The loss function has the same form for every network::

    loss_fn(params, statistics, batch, key) -> (loss, (statistics, metrics))

`statistics` are the arrays that a forward pass updates, such as the running averages of
batch normalization. The loss function of a network without them returns them unchanged.
`metrics` is a dictionary of scalars.

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

The caller compiles. `jax.jit(..., donate_argnums=1)` reuses the memory of the old state for
the new one, which deletes the parameters that `init_state` was given.

Any optax optimizer will do. One that asks for more than the gradient, such as
`optax.lbfgs`, `optax.contrib.reduce_on_plateau` or `optax.contrib.sam`, gets it by name:

* `value`, `grad`: the loss and the gradient of this batch.
* `value_fn`, `obj_fn`: functions of the parameters, the loss of this batch.
* `grad_fn`: a function of the parameters and of a number that has no effect, the gradient.

Two kinds are refused: `optax.lookahead`, which needs two sets of parameters, and
`optax.contrib.dpsgd`, which needs a gradient for each example.

On several devices `jax.jit` needs no change to the step: a batch whose arrays are spread
over a mesh gives the loss of the whole batch, whatever the loss is. In `jax.pmap` and
`jax.shard_map` each device computes the loss of its share. Pass the name of their axis to
the step as `axis_name`. Losses, gradients, metrics and floating-point statistics are then
averaged over the devices, which have shares of equal size. Of statistics that are integers
or booleans, such as counters and flags, the largest is kept: they have no mean, and a
counter never goes back. A loss that needs the whole batch, or whose shares have different
numbers of valid terms, comes from `siamese_jax.sharding`: it is the same on all devices,
and so is the mean of it.

Each device takes a share of the batch: rows i, i + 1, ... of every array. A loss over pairs
of a batch needs several images of each class in every share. `samplers.sample_batch` gives
the first image of every class, then the second of every class, and so on, so that shares of
consecutive rows have all classes if the number of devices divides the number of images of a
class. Half of the pairs of any share of `samplers.sample_pairs` are of the same class, if
its size is even. Rows that are sorted by class, cut into shares, give each device a few
classes of its own: there is nothing to tell apart, and the loss stays where it was.

>>> batch = {"labels": jnp.array([3, 7, 5, 3, 7, 5, 3, 7, 5, 3, 7, 5])}
>>> shares = jax.tree.map(lambda rows: rows.reshape(2, -1, *rows.shape[1:]), batch)
>>> print(shares["labels"])  # the first axis is that of `jax.pmap`
[[3 7 5 3 7 5]
 [3 7 5 3 7 5]]

All randomness of a step comes from the key and `state.step`, so a run that is interrupted
and resumed gives the same result as one that is not. The key that `loss_fn` gets is the
same on all devices. `encoders.Dropout` numbers the rows of the whole batch if it knows the
name of the axis, so that the masks do not depend on the number of devices. For a layer that
draws a mask for the rows it sees, fold `lax.axis_index(axis_name)` into the key: otherwise
all devices use one mask.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from siamese_jax._checks import check_at_least

Metrics = dict[str, Array]
LossFn = Callable[..., tuple[Array, tuple[PyTree, Metrics]]]
ApplyFn = Callable[..., PyTree]
BatchFn = Callable[[PRNGKeyArray, Array, PyTree], PyTree]


class TrainState(NamedTuple):
    """Everything that training changes, as a tree of arrays.

    Attributes:
      step: Number of updates made so far.
      params: Parameters of the network.
      statistics: Arrays that forward passes update, `()` if there are none.
      optimizer_state: State of the optax optimizer.
    """

    step: Int[Array, "..."]
    params: PyTree
    statistics: PyTree
    optimizer_state: PyTree


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, *, statistics: PyTree = ()
) -> TrainState:
    """Returns the state before the first step.

    Weakly typed arrays such as `jnp.log(0.1)` become strongly typed, as the first update
    would make them, so that the second call of a compiled step does not compile again. No
    two leaves are one array, so that the state can be donated.

    Args:
      params: Parameters of the network.
      optimizer: An optax optimizer.
      statistics: Arrays that forward passes update, if there are any.

    Raises:
      ValueError: If the optimizer cannot start from these parameters; it is named.

    >>> print(init_state(jnp.zeros(3), optax.sgd(0.1)).step)
    0
    """
    params, statistics = jax.tree.map(_strip_weak_type, (params, statistics))
    try:
        optimizer_state = optimizer.init(params)
    except Exception as error:
        raise ValueError(
            f"the optimizer {_name(optimizer)} cannot start from these parameters: "
            f"{type(error).__name__}: {error}"
        ) from error
    optimizer_state = jax.tree.map(_strip_weak_type, optimizer_state)
    step = jnp.zeros((), jnp.int32)
    return _without_sharing(TrainState(step, params, statistics, optimizer_state))


def with_compute_dtype(apply_fn: ApplyFn, dtype: DTypeLike) -> ApplyFn:
    """Mixed precision: makes a network compute in another type than its parameters have.

    Floating-point parameters and inputs are cast to `dtype`, and the embeddings back to the
    type of the parameters. Distances, losses, gradients and updates therefore keep the type
    of the parameters. Without floating-point parameters the embeddings are float32.

    Args:
      apply_fn: `apply_fn(params, x, *extras, **options) -> embeddings`. Only `params` and
        `x` are cast.
      dtype: Type of the computation, such as `jnp.bfloat16`.

    >>> apply_fn = with_compute_dtype(lambda params, x: params * x, jnp.bfloat16)
    >>> print(apply_fn(jnp.array(1.0), jnp.array(1.001)))  # bfloat16 has three digits
    1.0
    """

    def is_floating(x: Array) -> bool:
        return jnp.issubdtype(x.dtype, jnp.floating)

    def cast(tree: PyTree, wanted: DTypeLike) -> PyTree:
        return jax.tree.map(lambda x: x.astype(wanted) if is_floating(x) else x, tree)

    def apply(params: PyTree, x: PyTree, *extras: PyTree, **options: Any) -> PyTree:
        floats = list(filter(is_floating, jax.tree.leaves(params)))
        wide = jnp.result_type(*floats or [jnp.float32])
        outputs = apply_fn(cast(params, dtype), cast(x, dtype), *extras, **options)
        return cast(outputs, wide)

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
    """Makes one update from one batch.

    Args:
      key: The same key for all steps of a run and for all devices. The step number is
        folded into it.
      state: State before the update.
      batch: Whatever `loss_fn` takes, on several devices the part of this device.
      loss_fn: See the module's docstring.
      optimizer: An optax optimizer.
      axis_name: Name of the axis of `pmap` or `shard_map` over which gradients, statistics
        and metrics are averaged, as the module's docstring says. None does not average.

    Returns:
      The new state, and `metrics` with "loss" added.

    Raises:
      ValueError: If `loss_fn` returns a metric named "loss", or statistics of another
        structure, shape or dtype than it was given, or if the optimizer, which is named,
        fails or returns updates of another shape than the parameters.
      TypeError: If `loss_fn` does not return `(loss, (statistics, metrics))`, or `state` is
        no `TrainState`.

    >>> def loss_fn(params, statistics, batch, key):
    ...     return params**2, (statistics, {})
    >>> optimizer = optax.sgd(0.5)
    >>> state = init_state(jnp.array(3.0), optimizer)
    >>> state, metrics = train_step(
    ...     jax.random.key(0), state, None, loss_fn=loss_fn, optimizer=optimizer)
    >>> print(state.params, metrics["loss"])
    0.0 9.0
    """
    _check_state(state)
    key = jax.random.fold_in(key, state.step)
    loss_fn = _checked(loss_fn)
    averaged = loss_fn if axis_name is None else _averaged(loss_fn, axis_name)

    def evaluate(params: PyTree) -> tuple[tuple[Array, tuple[PyTree, Metrics]], PyTree]:
        """Returns ((loss, (statistics, metrics)), gradients), averaged over devices."""
        gradient_fn = jax.value_and_grad(averaged, has_aux=True)
        found, gradients = gradient_fn(params, state.statistics, batch, key)
        if axis_name is not None:
            gradients = _averaged_gradients(gradients, params, axis_name)
        return found, gradients

    (loss, (statistics, metrics)), gradients = evaluate(state.params)
    found, wanted = _types(statistics), _types(state.statistics)
    if found != wanted:
        raise ValueError(
            f"loss_fn must return statistics of the types that they had, {wanted}; got "
            f"{found} (does twin need has_statistics=True?)"
        )
    if "loss" in metrics:
        raise ValueError('loss_fn must not name a metric "loss": the step adds it')
    updates, optimizer_state = _update(
        optimizer,
        gradients,
        state,
        value=loss,
        grad=gradients,
        **_functions(evaluate, on_devices=axis_name is not None),
    )
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, **metrics}
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
    """Makes many updates in one `lax.scan`, which samples the batches too.

    Args:
      key: The same key for all calls of a run.
      state: State before the first update.
      data: The whole data set on the device, such as images, labels and a class index.
      num_steps: Number of updates, static.
      batch_fn: `batch_fn(key, step, data) -> batch`, a pure function. Its key is the same
        on all devices: draw the examples of the whole batch and take the part of this
        device by `lax.axis_index`, so that the result does not depend on the number of
        devices.
      loss_fn: See the module's docstring.
      optimizer: An optax optimizer.
      axis_name: As in `train_step`.
      unroll: Number of steps in the body of the loop. More than 1 makes very short steps
        faster on accelerators.

    Returns:
      The new state, and each metric with a leading axis of `num_steps`.

    Raises:
      ValueError: If `num_steps` is below 1, or as in `train_step`.
      TypeError: As in `train_step`.
    """
    check_at_least("num_steps", num_steps, 1)
    _check_state(state)

    _, loss_key = jax.random.split(key)

    def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        batch = batch_fn(batch_key(key, state.step), state.step, data)
        return train_step(
            loss_key,
            state,
            batch,
            loss_fn=loss_fn,
            optimizer=optimizer,
            axis_name=axis_name,
        )

    return lax.scan(body, state, length=num_steps, unroll=unroll)


def batch_key(key: PRNGKeyArray, step: ArrayLike) -> PRNGKeyArray:
    """The key with which `train_steps` draws the batch of a step.

    It is fold_in(split(key)[0], step). With it the batches of coming steps can be drawn
    ahead, such as to read them from files.

    Args:
      key: The key of the run, which `train_steps` is given.
      step: Number of updates before the batch.

    >>> key = jax.random.key(0)
    >>> bool(batch_key(key, 1) == batch_key(key, 2))
    False
    """
    return jax.random.fold_in(jax.random.split(key)[0], step)


def _check_state(state: TrainState) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(
            "state must be a TrainState, as init_state makes it, and stands after the key; "
            f"got {type(state).__name__}"
        )


def _checked(loss_fn: LossFn) -> LossFn:
    """Refuses a loss alone, and `(loss, metrics)` as other libraries have it."""

    def checked(*arguments: Any) -> tuple[Array, tuple[PyTree, Metrics]]:
        match loss_fn(*arguments):
            case (loss, (statistics, Mapping() as metrics)):
                return loss, (statistics, dict(metrics))
            case (_, extra):
                got = f"(loss, {type(extra).__name__})"
            case other:
                got = type(other).__name__
        raise TypeError(
            "loss_fn must return (loss, (statistics, metrics)), of which metrics is a "
            f"dictionary; got {got}"
        )

    return checked


# Optimizers -----------------------------------------------------------------------------


def _update(
    optimizer: optax.GradientTransformation,
    gradients: PyTree,
    state: TrainState,
    **extras: Any,
) -> tuple[PyTree, PyTree]:
    """Returns the updates and the new optimizer state; passes what the optimizer takes."""
    update_fn = optax.with_extra_args_support(optimizer).update
    while True:
        try:
            updates, optimizer_state = update_fn(
                gradients, state.optimizer_state, state.params, **extras
            )
            break
        except Exception as error:
            # most optimizers take any keywords, but some only those that they know
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or extras.pop(unknown[1], None) is None:
                raise ValueError(
                    f"the optimizer {_name(optimizer)} cannot make an update: "
                    f"{type(error).__name__}: {error}"
                ) from error
    found, wanted = _shapes(updates), _shapes(state.params)
    if found != wanted:
        raise ValueError(
            f"the optimizer {_name(optimizer)} must return updates shaped as the "
            f"parameters, {wanted}; got {found}"
        )
    return updates, jax.tree.map(_strip_weak_type, optimizer_state)


def _functions(
    evaluate: Callable[[PyTree], Any], *, on_devices: bool
) -> dict[str, Callable[..., Any]]:
    """Returns the loss and its gradient as functions, under the names that optax has."""

    def loss(params: PyTree) -> Array:
        return evaluate(params)[0][0]

    def forward(params: PyTree) -> tuple[Array, PyTree]:
        (loss, _), gradients = evaluate(params)
        return loss, gradients

    def backward(gradients: PyTree, factor: float | Array) -> tuple[PyTree]:
        return (jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), gradients),)

    if on_devices:  # where the derivative of a mean would be that of the device's own loss
        loss = jax.custom_vjp(loss)
        loss.defvjp(forward, backward)

    def value_fn(params: PyTree, *, obj_fn: Any = None, grad_fn: Any = None) -> Array:
        return loss(
            params
        )  # line searches pass on all keywords and insist that it takes them

    def grad_fn(params: PyTree, number: int) -> PyTree:
        return evaluate(params)[1]

    return {"value_fn": value_fn, "obj_fn": loss, "grad_fn": grad_fn}


def _name(optimizer: optax.GradientTransformation) -> str:
    return getattr(optimizer.init, "__qualname__", "").split(".")[0] or repr(optimizer)


def _without_sharing(state: TrainState) -> TrainState:
    """Copies leaves that are one array with an earlier leaf."""
    seen: set[int] = set()

    def own(leaf: Array) -> Array:
        shared = id(leaf) in seen
        seen.add(id(leaf))
        return jnp.copy(leaf) if shared else leaf

    return jax.tree.map(own, state)


# Shapes and devices ---------------------------------------------------------------------


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.shape, tree)


def _types(tree: PyTree) -> PyTree:
    """Dtypes and shapes, such as float32[3, 4]."""
    return jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)


def _averaged(loss_fn: LossFn, axis_name: str) -> LossFn:
    """Averages what a loss function returns over the devices."""

    def mean_or_largest(leaf: Array) -> Array:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return lax.pmean(leaf, axis_name).astype(leaf.dtype)
        return lax.pmax(leaf, axis_name)

    def averaged(*arguments: Any) -> tuple[Array, tuple[PyTree, Metrics]]:
        loss, (statistics, metrics) = loss_fn(*arguments)
        loss, metrics = lax.pmean((loss, metrics), axis_name)
        return loss, (jax.tree.map(mean_or_largest, statistics), metrics)

    return averaged


def _averaged_gradients(gradients: PyTree, params: PyTree, axis_name: str) -> PyTree:
    """The gradient of a mean over devices, from what `jax.grad` of it gives on each.

    Under `pmap` the derivative of a sum over devices is summed over them again, which makes
    each device's part too large by the number of devices: the mean of the parts is right.
    Under `shard_map` the gradient of parameters that are the same on all devices is whole,
    and stays as it is. That of parameters which differ by device comes in parts.
    """

    def whole(gradient: Array, leaf: Array) -> Array:
        in_parts = axis_name in jax.typeof(leaf).manual_axis_type.varying
        return (lax.psum if in_parts else lax.pmean)(gradient, axis_name)

    return jax.tree.map(whole, gradients, params)


def _strip_weak_type(leaf: Array) -> Array:
    """Makes a weakly typed array strongly typed."""
    return lax.convert_element_type(leaf, jnp.result_type(leaf))
