"""The devices of a run, and its training steps compiled for them.

Every device holds the whole state and the whole data set, unless the data are streamed
(`experiments.engine.streams`). A batch is cut into equal shares
of examples, one for each device. There are two forms:

* `jit`: one program over a mesh of devices. The examples of a batch are spread over the
  mesh, and the compiler adds the communication. The loss is that of the whole batch,
  whatever the loss is.
* `pmap`: each device draws the whole batch, and runs the program of its share. Losses and
  batch statistics are combined by the name of the axis, `AXIS`: a system with
  `Config.axis_name` builds its loss and its encoder for that.

Both draw the batch that one device draws, so that the result does not depend on the number
of devices, apart from rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.engine.config import AXIS, RunConfig
from experiments.engine.system import System, train_steps
from siamese_jax.errors import UserError
from siamese_jax.training import Metrics, TrainState

Tree = TypeVar("Tree")
Steps = Callable[[jax.Array, TrainState, Any, int], tuple[TrainState, Metrics]]


def choose_mesh(config: RunConfig, num_examples: int) -> Mesh:
    """The devices of a run: those that `--devices` asks for, or all that share evenly.

    Args:
      config: The settings of the run.
      num_examples: Number of examples in a batch.

    Raises:
      UserError: If there are fewer devices than asked for, or the examples of a batch
        cannot be cut into that many equal shares.
    """
    num_processes = jax.process_count()
    available = num_processes * jax.local_device_count()
    if config.devices is None:
        usual = num_processes * usual_devices()
        shares = range(num_processes, usual + 1, num_processes)
        num_devices = max((n for n in shares if num_examples % n == 0), default=0)
    else:
        num_devices = config.devices
    if num_devices > available:
        raise UserError(f"--devices: there are {available}; got {num_devices}")
    if not num_devices:
        raise UserError(
            f"the {num_examples} examples of a batch cannot be shared by a multiple of "
            f"{num_processes}, the number of processes"
        )
    if num_devices % num_processes or num_examples % num_devices:
        raise UserError(
            f"--devices must divide the {num_examples} examples of a batch, and be a "
            f"multiple of the number of processes, {num_processes}; got {num_devices}"
        )
    if available > 1:
        kind = jax.devices()[0].device_kind
        print(
            f"trains on {num_devices} of {available} devices ({kind}) by "
            f"{config.parallel}, {num_examples // num_devices} examples on each"
        )
    chosen = [
        device
        for process in range(num_processes)
        for device in _devices_of(process)[: num_devices // num_processes]
    ]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def usual_devices() -> int:
    """How many devices a process uses at most, unless `--devices` says otherwise."""
    return jax.local_device_count()


def _devices_of(process: int) -> list[jax.Device]:
    return [device for device in jax.devices() if device.process_index == process]


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Puts a copy of every array on each device, those of other processes included."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if mesh.is_multi_process:
        return jax.tree.map(partial(_from_each_process, everywhere), tree)
    return jax.device_put(tree, everywhere)


def rows_of_process(config: RunConfig, num_examples: int) -> slice:
    """The rows of a batch that this process gives to `spread`."""
    if config.parallel == "pmap":
        return slice(num_examples)
    size = num_examples // jax.process_count()
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def spread(config: RunConfig, mesh: Mesh, images: np.ndarray) -> jax.Array:
    """Puts batches of images on the devices, in the form that `compile_steps` takes best.

    Args:
      config: The settings of the run.
      mesh: Its devices. With `jit`, each gets its share of every batch. With `pmap`, it
        gets whole batches.
      images: [num_steps, n, height, width, channels], the rows of `rows_of_process`.
    """
    is_whole = config.parallel == "pmap"
    spec = PartitionSpec() if is_whole else PartitionSpec(None, AXIS)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), images)


def _from_each_process(everywhere: NamedSharding, leaf: Any) -> jax.Array:
    """An array that all processes have, as one array of all processes."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _from_each_process(everywhere, jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_process_local_data(everywhere, np.asarray(leaf), leaf.shape)


def local_copy(mesh: Mesh, tree: Tree) -> Tree:
    """What the devices of this process hold of replicated arrays, without the others."""
    if jax.process_count() == 1:
        return tree
    own = Mesh(np.array(mesh.local_devices), (AXIS,), axis_types=(AxisType.Auto,))
    return replicate(own, jax.tree.map(lambda leaf: leaf.addressable_data(0), tree))


def compile_steps(config: RunConfig, system: "System", mesh: Mesh) -> Steps:
    """Returns `(key, state, data, num_steps) -> (state, metrics)`, compiled for a mesh.

    All arguments and results are on every device, apart from the images that `spread` puts
    there. The state is donated.
    """
    return (_by_pmap if config.parallel == "pmap" else _by_jit)(system, mesh)


def _by_jit(system: System, mesh: Mesh) -> Steps:
    def sample(key: jax.Array, step: jax.Array, data: Any) -> Any:
        batch = system.sample(key, step, data)
        axes = (None,) * (batch.images.ndim - 4) + (AXIS,)
        spread = NamedSharding(mesh, PartitionSpec(*axes))
        images = lax.with_sharding_constraint(batch.images, spread)
        return batch._replace(images=images)

    steps = partial(train_steps, system._replace(sample=sample), with_health=True)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(steps, static_argnums=3, donate_argnums=1, out_shardings=everywhere)


def _by_pmap(system: System, mesh: Mesh) -> Steps:
    def steps(
        share: jax.Array, key: jax.Array, state: TrainState, data: Any, num_steps: int
    ) -> Any:
        def sample(key: jax.Array, step: jax.Array, data: Any) -> Any:
            batch = system.sample(key, step, data)
            size = batch.images.shape[-4] // mesh.size

            def rows_of_share(name: str, leaf: Any) -> Any:
                axis = leaf.ndim - 4 if name == "images" else 0
                return lax.dynamic_slice_in_dim(leaf, share * size, size, axis)

            return batch._replace(
                **{
                    name: rows_of_share(name, leaf)
                    for name, leaf in batch._asdict().items()
                }
            )

        shared = system._replace(sample=sample)
        return train_steps(
            shared, key, state, data, num_steps, axis_name=AXIS, with_health=True
        )

    mapped = jax.pmap(
        steps,
        axis_name=AXIS,
        in_axes=(0, None, None, None),
        out_axes=None,
        static_broadcasted_argnums=4,
        devices=list(mesh.devices),
        donate_argnums=2,
    )
    this = jax.process_index()
    own = [i for i, device in enumerate(mesh.devices) if device.process_index == this]
    return lambda key, state, data, num_steps: mapped(
        np.array(own), key, state, data, num_steps
    )
