"""Trains small systems on one and on eight devices, and prints how far they end apart.

It is a program of its own, since the number of devices is fixed when JAX starts. It prints
a JSON object: for each system and form the largest difference of a final parameter from
that of one device, and the types of all parameters.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import digits
from experiments.engine import loop
from experiments.engine.data import ClassData
from experiments.engine.pair_batches import PairData, adjacent_pairs
from experiments.systems import glyphs, mnist_mlp
from siamese_jax import samplers

NUM_DEVICES = 8
NUM_STEPS = 50
FORMS = {
    "one device": {"devices": 1},
    "jit": {"devices": NUM_DEVICES},
    "pmap": {"devices": NUM_DEVICES, "parallel": "pmap"},
}


def digit_pairs():
    """Dropout, a batch of 8 rows a device, and padding at the end of each epoch."""
    config = mnist_mlp.Config(dataset="digits", batch_size=64, num_steps=NUM_STEPS)
    train = digits.load_splits("digits").train
    train = train._replace(images=train.images[:200], labels=train.labels[:200])
    pairs = adjacent_pairs(train.labels, np.random.default_rng(0))
    return config, mnist_mlp.build, PairData(jnp.asarray(train.images), pairs)


def letters():
    """Batch normalisation and a loss of all pairs of a batch."""
    config = glyphs.Config(
        num_letters=4, num_faces=4, widths=(4, 8), dim=8, num_steps=NUM_STEPS
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 1)).astype(np.uint8)
    index = samplers.class_index(np.arange(40) // 5)
    return config, glyphs.build, ClassData(jnp.asarray(images), index)


def train(make, folder):
    ends = {}
    for name, where in FORMS.items():
        config, build, data = make()
        config = dataclasses.replace(
            config,
            workdir=folder / make.__name__ / name,
            compute_dtype="float64",
            steps_per_call=NUM_STEPS,
            checkpoint_every=NUM_STEPS,
            **where,
        )
        config.directory.mkdir(parents=True)
        state = loop.train(config, build(config), data).state
        ends[name] = jax.tree.map(np.asarray, (state.params, state.statistics))
    wanted = ends["one device"]
    apart = {
        name: max(
            float(np.max(np.abs(a - b)))
            for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(end), strict=True)
        )
        for name, end in ends.items()
    }
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(wanted)})
    return {"apart": apart, "dtypes": dtypes}


def main():
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    jax.config.update("jax_enable_x64", True)
    systems = {"digit_pairs": digit_pairs, "letters": letters}
    with tempfile.TemporaryDirectory() as folder:
        found = {
            n: train(systems[n], pathlib.Path(folder)) for n in sys.argv[1:] or systems
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
