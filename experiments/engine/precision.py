"""`--compute-dtype auto`: bfloat16 where the processor gains by it, else float32.

A number in bfloat16 has 8 binary digits, float32 has 24. A processor with units for
bfloat16 multiplies it several times as fast; another one converts it and is slower. So
`settled` decides when a run starts:

* TPUs, and GPUs of NVIDIA from compute capability 8 on, have such units: bfloat16.
* On CPUs, and on all other devices, the gradient of a small convolution is measured in both
  types, each in the form that is fastest for it, which takes a few seconds. The names of a
  processor's instructions would not do: with a matrix unit bfloat16 gains much, with vector
  instructions for it next to nothing over the Fourier form that float32 has. bfloat16 is
  taken if it is `LEAST_GAIN` times as fast.
* A network that has no bfloat16 products on the device computes in float32: see
  `RunConfig.has_bfloat16_products`.

The type that was chosen stands in the run's config.json and results.json. A run that is
resumed keeps it, on whatever machine, so that it ends where an unbroken run ends.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from experiments.cli import read_json
from experiments.engine import processes
from experiments.engine.config import (
    ComputeDtype,
    RunConfig,
    check_config,
    is_started,
)
from siamese_jax._cpu import images_last
from siamese_jax.convolution import convolution

ConfigT = TypeVar("ConfigT", bound=RunConfig)

LEAST_GAIN = 1.2
_CAPABILITY_WITH_BFLOAT16 = 8.0  # of GPUs of NVIDIA, from 2020 on
_NUM_IMAGES, _SIZE, _CHANNELS = 64, 12, 128  # of the convolution that is measured
_ROUNDS = 5


class Choice(NamedTuple):
    """A type of numbers, and the reason in words."""

    dtype: ComputeDtype
    reason: str


def settled(config: ConfigT) -> ConfigT:
    """Checks the settings, and replaces `auto` by a type, with one line that says why.

    All processes of a run take the choice of process 0.

    Raises:
      UserError: If a setting is out of its range, or not used by this run.
    """
    check_config(config)
    if config.compute_dtype != "auto":
        return config
    types = get_args(ComputeDtype)

    def number_of_choice() -> jax.Array:
        choice = kept(config) or choose(config, jax.local_devices()[0])
        print(
            f"computes in {choice.dtype}: {choice.reason} (--compute-dtype float32 or "
            "bfloat16 sets the type)"
        )
        return jnp.asarray(types.index(choice.dtype))

    number = processes.from_first(number_of_choice, jnp.asarray(0))
    return dataclasses.replace(
        config, workdir=config.directory, compute_dtype=types[int(number)]
    )


def kept(config: RunConfig) -> Choice | None:
    """The type that the run in this folder was started with, if there is one."""
    if not is_started(config.directory):
        return None
    found = read_json(config.directory / "config.json").get("compute_dtype")
    reason = f"the run in {config.directory} was started in it"
    choices = {dtype: Choice(dtype, reason) for dtype in get_args(ComputeDtype)}
    return choices.get(found)


def choose(config: RunConfig, device: jax.Device) -> Choice:
    """Chooses for the network of a run on a device."""
    kind = device.device_kind
    if not config.has_bfloat16_products(device.platform):
        return Choice("float32", f"the network has no bfloat16 products on {kind}")
    if has_bfloat16_units(device):
        return Choice("bfloat16", f"{kind} has units for it")
    narrow, wide = measured_seconds()
    chosen: ComputeDtype = "bfloat16" if wide >= LEAST_GAIN * narrow else "float32"
    reason = f"a convolution takes {narrow:.4f} s in bfloat16, {wide:.4f} s in float32"
    return Choice(chosen, f"{reason} on {kind}")


def has_bfloat16_units(device: jax.Device) -> bool:
    """Whether the kind of the device says that it multiplies bfloat16 faster."""
    if device.platform == "tpu":
        return True
    try:
        capability = float(getattr(device, "compute_capability", "0"))
    except ValueError:  # GPUs of other makers have names there
        return False
    return capability >= _CAPABILITY_WITH_BFLOAT16


def measured_seconds() -> tuple[float, float]:
    """The seconds of a convolution and its gradient in bfloat16, and in float32.

    The two take turns, and the least of several times counts, since other programs on the
    machine can only make it longer.
    """
    runs = [_convolution_in(dtype) for dtype in (jnp.bfloat16, jnp.float32)]
    seconds = np.array([[_seconds(run) for run in runs] for _ in range(_ROUNDS + 1)])
    narrow, wide = seconds[1:].min(0)  # the first call compiles
    return float(narrow), float(wide)


def _convolution_in(dtype: DTypeLike) -> Callable[[], object]:
    """Returns a function that computes a convolution and both of its gradients.

    It does so as `encoders.ResNet` does: with images last on CPUs in bfloat16.
    """
    kernel = jnp.ones((3, 3, _CHANNELS, _CHANNELS), dtype)
    images = jnp.ones((_NUM_IMAGES, _SIZE, _SIZE, _CHANNELS), dtype)

    def plain(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolution(images, kernel, (1, 1), "SAME")

    def on_cpu(images: jax.Array, kernel: jax.Array) -> jax.Array:
        if images.dtype == jnp.float32:
            return plain(images, kernel)
        y = images_last.convolve(jnp.transpose(images, (3, 1, 2, 0)), kernel)
        return jnp.transpose(y, (3, 1, 2, 0))

    def total(images: jax.Array, kernel: jax.Array) -> jax.Array:
        y = jax.lax.platform_dependent(images, kernel, cpu=on_cpu, default=plain)
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    return lambda: gradient(images, kernel)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began
