"""Training speed of the system `omniglot_supcon`, compared with the same in PyTorch.

    python -m benchmarks.record_step [--presets ...] [--rounds R] [--json OUT] [--smoke]

A step samples and distorts a batch, computes the loss and its gradient, and updates the
weights and their average. No characters are made (`--made none`). The images are random,
with the number and shape of Omniglot's. PyTorch computes the network eagerly, and once more
compiled by `torch.compile`. The programs take turns. Before anything is timed, the losses
of both networks on one batch, with the same weights in float32, must agree to four digits.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import results
from benchmarks.contestants import PLAIN_TORCH
from benchmarks.train_step import why_not
from experiments.engine.data import ClassData
from experiments.engine.supcon import LabelledBatch
from experiments.engine.system import initial_state, train_steps
from experiments.systems import omniglot_supcon
from siamese_jax import samplers

SMOKE: dict[str, Any] = {
    "size": 16,
    "stem": 4,
    "widths": (4, 8),
    "num_blocks": 1,
    "dim": 4,
    "num_classes": 4,
    "num_images": 2,
}


def make_images(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns 20 random images of each of 964 characters, their labels and alphabets."""
    labels = np.repeat(np.arange(964), 20)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, 1))
    return images.astype(np.uint8), labels, labels // 20 * 30 // 964


def compare_losses(config: Any, state: Any, trainer: Any) -> tuple[float, float]:
    """Compares the losses of one batch in float32, with our weights in both networks.

    Returns:
      Our loss and that of PyTorch.

    Raises:
      ValueError: If the relative difference of the losses is above 1e-4.
    """
    import torch

    from benchmarks import record_torch

    ink = np.random.default_rng(1).random((8, config.size, config.size, 1), np.float32)
    labels = np.repeat(np.arange(4), 2)
    wide = dataclasses.replace(config, compute_dtype="float32")
    batch = LabelledBatch(jnp.asarray(ink), jnp.asarray(labels), jnp.arange(8))
    system = omniglot_supcon.build(wide)
    ours, _ = system.loss(state.params, state.statistics, batch, jax.random.key(0))
    record_torch.load(trainer.net, state.params["encoder"])
    with torch.no_grad():
        channels_first = torch.from_numpy(np.moveaxis(ink, 3, 1)).to(trainer.device)
        theirs = record_torch.loss_of(
            trainer.net(channels_first),
            torch.from_numpy(labels).to(trainer.device),
            trainer.log_temperature,
        )
    found = float(ours), float(theirs)
    if not np.isclose(*found, rtol=1e-4):
        raise ValueError(
            f"the losses of one batch differ: ours is {found[0]}, PyTorch's is {found[1]}"
        )
    return found


def measure(
    preset: str, dtype: str, rivals: Sequence[str], *, rounds: int, smoke: bool
) -> list[dict[str, Any]]:
    """Measures how many training images per second ours and PyTorch take, in turns."""
    config = omniglot_supcon.Config(
        preset=preset,  # type: ignore[arg-type]
        compute_dtype=dtype,  # type: ignore[arg-type]
        made="none",
    )
    if smoke:
        config = dataclasses.replace(config, **SMOKE)
    config = omniglot_supcon.with_preset(config)
    images, labels, alphabets = make_images(config.size)
    index = samplers.class_index(labels, groups=alphabets)
    data = ClassData(jnp.asarray(images), index)
    system = omniglot_supcon.build(config)
    state = initial_state(system, jax.random.key(0))
    num_steps = 2 if smoke else max(1, round(10 * 256 / sum(config.widths)))
    steps = jax.jit(partial(train_steps, system), static_argnums=3)

    def train_torch(trainer: Any) -> None:
        for _ in range(num_steps):
            loss = trainer.step()
        assert np.isfinite(float(loss))

    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: jax.block_until_ready(
            steps(jax.random.key(0), state, data, num_steps)
        )
    }
    for rival in rivals:
        from benchmarks import record_torch

        trainer = record_torch.Trainer(config, images, labels, alphabets)
        compare_losses(config, state, trainer)
        if PLAIN_TORCH[rival]:
            trainer.net.compile()
        ways[rival] = partial(train_torch, trainer)
    num_images = num_steps * config.num_classes * config.num_images
    seconds = results.take_turns(ways, rounds, smoke=smoke)
    speed = {name: num_images / times for name, times in seconds.items()}
    return [
        {
            "preset": preset,
            "dtype": dtype,
            "rival": rival,
            "images_per_second": float(np.median(speed["ours"])),
            "rival_images_per_second": float(np.median(speed[rival])),
            **results.spread(speed["ours"] / speed[rival]),
        }
        for rival in rivals
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the speeds, prints a table, and writes the rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record_step")
    presets = list(omniglot_supcon.PRESETS)
    parser.add_argument("--presets", nargs="+", choices=presets, default=presets)
    dtypes = ["bfloat16", "float32"]
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes)
    parser.add_argument("--rivals", nargs="+", choices=PLAIN_TORCH, default=PLAIN_TORCH)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {options.rounds}")
    skipped = {rival: why for rival in options.rivals if (why := why_not(rival))}
    rivals = [rival for rival in options.rivals if rival not in skipped]
    size = {"rounds": options.rounds, "smoke": options.smoke}
    rows = [
        row
        for preset in (options.presets if rivals else ())
        for dtype in options.dtypes
        for row in measure(preset, dtype, rivals, **size)
    ]
    results.report("record_step", rows, options.json, arguments, skipped)


if __name__ == "__main__":
    main()
